"""Untyped Python functions beside Flink in Java: a keyed running sum, and event-time windows.

    python -m tests.bench.lambdas keyed-lambdas --events 10000000 --flink DIR     1 M keys
    python -m tests.bench.lambdas window-lambdas --events 10000000 --flink DIR    100 k keys, 10 s windows
    python -m tests.bench.lambdas keyed-rows|window-rows …                        the same, kept from compiling
    python -m tests.bench.lambdas smoke                                           seconds, ours only: none lost

``DIR`` has ``fj``, which runs a class of compiled Flink programs in one JVM (``fj peers.W2 n=… mode=reduce reps=3``)
and prints a line "RESULT … warm cpu=…" for each repetition. Contenders alternate. Ours is the CPU time of the whole
process tree, start-up included; Flink's is that of its JVM while the job runs, the quickest of the warm repetitions.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

from tests.bench.measure import run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAMS = {
    "keyed-lambdas": ("keyed_lambdas.py", 1_000_000, ["peers.W2", "mode=reduce"], []),
    "window-lambdas": ("window_lambdas.py", 100_000, ["peers.W3", "inter"], []),
    "keyed-rows": ("keyed_lambdas.py", 1_000_000, ["peers.W2", "mode=reduce"], ["rows"]),
    "window-rows": ("window_lambdas.py", 100_000, ["peers.W3", "inter"], ["rows"]),
}
WARM = re.compile(r"^RESULT .* warm cpu=([0-9.]+)", re.MULTILINE)
SMOKE_EVENTS = 600_000  # enough for columns


def ours(workload: str, num_events: int, parallelism: int, *words: str) -> tuple[float, str]:
    """Return CPU seconds and output."""
    name, num_keys, _, own_words = PROGRAMS[workload]
    program = str(HERE / "programs" / name)
    command = [sys.executable, program, str(num_events), str(num_keys), str(parallelism), *own_words, *words]
    result = run(command, timeout_s=1800, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if result.exit_code != 0:
        raise SystemExit(result.output[-3000:])
    return result.cpu_s, result.output


def flinks(workload: str, num_events: int, parallelism: int, folder: str) -> float:
    command = [f"{folder}/fj", *PROGRAMS[workload][2], f"n={num_events}", f"p={parallelism}", "reps=3"]
    env = {**os.environ, "PEERS_HOME": folder, "GC": "-XX:+UseParallelGC"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
    seconds = [float(text) for text in WARM.findall(done.stdout)]
    if done.returncode != 0 or not seconds:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return min(seconds)


def race(workload: str, num_events: int, runs: int, parallelism: int, flink: str | None) -> None:
    rates: dict[str, list[float]] = {"engine": []}
    for _ in range(runs):
        rates["engine"].append(num_events / ours(workload, num_events, parallelism)[0])
        if flink:
            rates.setdefault("flink-java", []).append(num_events / flinks(workload, num_events, parallelism, flink))
    for contender, found in rates.items():
        shown = " / ".join(f"{rate / 1e6:.3f}" for rate in (min(found), statistics.median(found), max(found)))
        print(f"{workload} {contender:10} M events per CPU-second {shown} (min / median / max)")
    if flink:
        ratio = statistics.median(rates["engine"]) / statistics.median(rates["flink-java"])
        print(f"engine / flink-java: {ratio:.2f}")


def smoke() -> None:
    for workload in PROGRAMS:
        words = ["count"] if workload.startswith("keyed") else []
        _, output = ours(workload, SMOKE_EVENTS, 2, *words)
        print(workload, output.strip())
        if f"events {SMOKE_EVENTS}" not in output:
            raise SystemExit(f"{workload}: expected {SMOKE_EVENTS} events, got {output!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=[*PROGRAMS, "smoke"])
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--flink", help="folder with fj and compiled programs; without it, ours alone")
    options = parser.parse_args()
    if options.workload == "smoke":
        smoke()
    else:
        race(options.workload, options.events, options.runs, options.parallelism, options.flink)


if __name__ == "__main__":
    main()
