"""Run one seed, telling its story, or many: ``python -m tests.sim --seed 7``, ``python -m tests.sim --seeds 10000``."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.scenario import run_seed
from tests.sim.telling import format_story


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one and print its story")
    parser.add_argument("--seeds", type=int, default=500, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--failover", action="store_true", help="with high availability, and leaders that are lost")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that fails")
    options = parser.parse_args()
    if options.seed is not None:
        outcome = run_seed(options.seed, failover=options.failover)
        print(format_story(outcome.story) if outcome.error is None else outcome.report(None))
        print(
            f"\nseed {outcome.seed}: {'FAILED' if outcome.error else 'ok'}, {outcome.simulated_s:.1f} s simulated, "
            f"{outcome.num_events} events, {outcome.num_faults} faults, {outcome.num_attempts} attempts, "
            f"{outcome.num_checkpoints} checkpoints, {outcome.num_restored} restored, "
            f"{outcome.num_taken_over} taken over, {outcome.statuses}, history {outcome.digest}"
        )
        return outcome.error is not None
    started, failed, totals = time.perf_counter(), [], [0, 0, 0, 0, 0]
    num_run = 0
    for seed in range(options.first, options.first + options.seeds):
        num_run += 1
        outcome = run_seed(seed, failover=options.failover)
        counts = (
            outcome.num_faults, outcome.num_attempts, outcome.num_checkpoints, outcome.num_restored,
            outcome.num_taken_over,
        )  # fmt: skip
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        if outcome.error is not None:
            failed.append(seed)
            print(f"seed {seed}: {outcome.error}" if options.keep_going else outcome.report(), flush=True)
            if not options.keep_going:
                break
    took = time.perf_counter() - started
    faults, attempts, checkpoints, restored, taken_over = totals
    print(
        f"{num_run} seeds, {faults} faults, {attempts} attempts of jobs, {checkpoints} checkpoints, "
        f"{restored} restored, {taken_over} taken over, {took:.1f} s; failed: {failed or 'none'}"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
