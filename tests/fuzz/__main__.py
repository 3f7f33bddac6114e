"""Run seeds until one differs: ``python -m tests.fuzz --seeds 0 500``, for at most ``--minutes``."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from tests.fuzz.jobs import Job, draw_job
from tests.fuzz.runs import difference, plan_of, results_of


def differs(job: Job) -> list[str]:
    return list(difference(results_of(job, columns=True), results_of(job, columns=False)))


def shrunken(job: Job) -> Job:
    """Return the job with fewer settings and records that still differs, each tried once or twice."""
    for change in ({"fails_at": 0}, {"checkpoint_ms": 0, "fails_at": 0}, {"backend": "hashmap"}):
        smaller = replace(job, **change)
        if vars(smaller) != vars(job) and differs(smaller):
            job = smaller
    for number in range(len(job.tables)):
        size = job.tables[number].num_rows // 2
        while size:
            for begin in range(0, job.tables[number].num_rows, size):
                table = job.tables[number]
                rest = table.slice(0, begin), table.slice(begin + size)
                tables = list(job.tables)
                tables[number] = type(table).from_batches(
                    [batch for part in rest for batch in part.to_batches()], table.schema
                )
                smaller = replace(job, tables=tables)
                if size >= table.num_rows // 64 and differs(smaller):
                    job = smaller
            size //= 2
            if size < job.tables[number].num_rows // 64:
                break
    return job


def told(job: Job, lines: list[str]) -> str:
    shown = [f"seed {job.seed}: {job.settings}", "", job.text]
    shown += ["plan on columns:", *plan_of(job, columns=True), "", "plan on rows:", *plan_of(job, columns=False), ""]
    if sum(table.num_rows for table in job.tables) <= 40:
        shown += [repr(tuple(record.values())) for table in job.tables for record in table.to_pylist()]
    return "\n".join([*shown, *lines])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 100), metavar=("BEGIN", "END"))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that differs")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="tell each seed before it runs")
    options = parser.parse_args()
    started, failed, num_errors, num_run = time.monotonic(), [], 0, 0
    for seed in range(*options.seeds):
        if time.monotonic() - started > options.minutes * 60:
            break
        num_run += 1
        if options.verbose:
            print(f"seed {seed}, {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
        job = draw_job(seed)
        found, expected = results_of(job, columns=True), results_of(job, columns=False)
        num_errors += expected[:1] == found[:1] and expected[:1] != [] and expected[0].startswith("failed: ")
        lines = list(difference(found, expected))
        if not lines:
            continue
        failed.append(seed)
        smaller = job if options.no_shrink else shrunken(job)
        print(told(smaller, differs(smaller) or lines), flush=True)
        if not options.keep_going:
            break
    took = time.monotonic() - started
    print(f"{num_run} seeds, {num_errors} fail on both, {took:.0f} s; differing: {failed or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
