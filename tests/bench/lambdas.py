"""Untyped Python functions beside Flink in Java: a keyed running sum, and event-time windows.

    python -m tests.bench.lambdas keyed-lambdas --events 10000000     1 M keys
    python -m tests.bench.lambdas window-lambdas --events 10000000    100 k keys, 10 s windows
    python -m tests.bench.lambdas keyed-rows|window-rows …            the same, kept from compiling
    python -m tests.bench.lambdas keyed-typed|keyed-named|window-typed …    so too, records of a declared type
    python -m tests.bench.lambdas smoke                               seconds, ours only: none lost

Contenders alternate. Ours is the CPU time of the whole process tree, start-up included; Flink's is that of its JVM
while the job runs, the quickest of the warm repetitions.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from tests.bench.environments import default_cache, peer_python
from tests.bench.flink_peer import FlinkPeer
from tests.bench.measure import run
from tests.bench.stats import append_json, ratios, shown, spread, stamped

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAMS = {
    "keyed-lambdas": ("keyed_lambdas.py", 1_000_000, ["peers.W2", "mode=reduce"], []),
    "window-lambdas": ("window_lambdas.py", 100_000, ["peers.W3", "inter=true"], []),
    "keyed-rows": ("keyed_lambdas.py", 1_000_000, ["peers.W2", "mode=reduce"], ["rows"]),
    "window-rows": ("window_lambdas.py", 100_000, ["peers.W3", "inter=true"], ["rows"]),
    "keyed-typed": ("keyed_lambdas.py", 1_000_000, ["peers.W2", "mode=reduce"], ["rows", "typed"]),
    "keyed-named": ("keyed_lambdas.py", 1_000_000, ["peers.W2", "mode=reduce"], ["rows", "named"]),
    "window-typed": ("window_lambdas.py", 100_000, ["peers.W3", "inter=true"], ["rows", "typed"]),
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


def flinks(workload: str, num_events: int, parallelism: int, flink: FlinkPeer) -> float:
    _, num_keys, (main, *words), _ = PROGRAMS[workload]
    arguments = [*words, f"n={num_events}", f"keys={num_keys}", f"p={parallelism}", "reps=3"]
    output = flink.run(main, arguments, timeout_s=1800).output
    seconds = [float(text) for text in WARM.findall(output)]
    if not seconds:
        raise SystemExit(output[-3000:])
    return min(seconds)


def race(workload: str, num_events: int, runs: int, parallelism: int, flink: FlinkPeer | None) -> list[dict[str, Any]]:
    rates: dict[str, list[float]] = {"engine": []}
    for _ in range(runs):
        rates["engine"].append(num_events / ours(workload, num_events, parallelism)[0])
        if flink:
            rates.setdefault("flink-java", []).append(num_events / flinks(workload, num_events, parallelism, flink))
    rows = []
    for contender, found in rates.items():
        row = {"workload": workload, "contender": contender, "events": num_events, "runs": runs}
        row |= {"parallelism": parallelism, "events_per_cpu_s": spread(found, 0)}
        rows.append(stamped(row))
        rates_shown = shown(spread(found), 1e6, 3)
        print(f"{workload} {contender:10} M events per CPU-second {rates_shown} (min / median / max)")
    if flink:
        found = rows[0]["ratio"] = ratios(rates["engine"], rates["flink-java"])
        print(f"engine / flink-java, run by run: {shown(found)}")
    return rows


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
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--cache", default=default_cache(), help="of the peer's environment, made when missing")
    parser.add_argument("--json", help="append results to this file")
    options = parser.parse_args()
    if options.workload == "smoke":
        smoke()
    else:
        cache = Path(options.cache)
        cache.mkdir(parents=True, exist_ok=True)
        flink = FlinkPeer(peer_python(cache, "flink"), cache) if options.peers else None
        rows = race(options.workload, options.events, options.runs, options.parallelism, flink)
        append_json(options.json, rows)


if __name__ == "__main__":
    main()
