"""What a checkpoint each second costs: records a second of a job at full speed with it and without, alternating.

    python -m tests.bench.checkpoint_cost --keys 500000 --value-bytes 2048 --runs 2

One per cent of the keys changes; increments are on. Prints a JSON object a line, the last one with the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench.recovery import Rest, last_beats, submit, wait_until_filled
from tests.process.cluster_jobs import StandaloneCluster

INTERVALS = {"without": "1 h", "each second": "1 s"}


def rate(arguments: argparse.Namespace, interval: str, folder: Path) -> tuple[float, int]:
    """Return records a second after the state is there, and how many checkpoints completed."""
    cluster = StandaloneCluster(
        folder, taskmanagers=1, slots=arguments.parallelism, taskmanager_memory_process_size=arguments.memory
    )
    try:
        rest, address, beat = Rest(cluster.rest_url), urlsplit(cluster.rest_url), folder / "beat"
        beat.touch()
        hot = max(1, arguments.keys // 100)
        words = [address.hostname, address.port, arguments.keys, arguments.value_bytes, 0, hot, beat]
        job = submit([*words, arguments.backend, folder / "checkpoints", interval, arguments.parallelism])
        wait_until_filled(beat, arguments.keys)
        time.sleep(arguments.settle_s)
        before_ms, _, before = max(last_beats(beat))
        time.sleep(arguments.seconds)
        after_ms, _, after = max(last_beats(beat))
        completed = rest(f"/jobs/{job}/checkpoints")["counts"]["completed"]
        return (after - before) / (after_ms - before_ms) * 1000, completed
    finally:
        cluster.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=500_000)
    parser.add_argument("--value-bytes", type=int, default=2048)
    parser.add_argument("--backend", choices=["hashmap", "rocksdb"], default="hashmap")
    parser.add_argument("--parallelism", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--settle-s", type=float, default=20)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--memory", default="4g", help="taskmanager.memory.process.size")
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in INTERVALS}
    for _ in range(arguments.runs):
        for name, interval in INTERVALS.items():
            with tempfile.TemporaryDirectory(prefix="engine-checkpoint-cost-") as folder:
                found, completed = rate(arguments, interval, Path(folder))
            rates[name].append(found)
            print(json.dumps({"checkpoints": name, "records_per_s": round(found), "completed": completed}), flush=True)
    ratio = statistics.median(rates["each second"]) / statistics.median(rates["without"])
    print(json.dumps({"workload": "checkpoint cost", "ratio": round(ratio, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
