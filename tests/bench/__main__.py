"""Benchmarks beside the peers, in one run, alternating, as ratios.

    python -m tests.bench word-count --size 500MB --runs 3       vectorised, beside Flink SQL, Polars and DuckDB
    python -m tests.bench word-count-lambdas --size 20MB         plain Python lambdas, beside PyFlink
    python -m tests.bench start-up                               three small programs, beside a PyFlink hello world
    python -m tests.bench keyed-sum --runs 3                     1 M keys, one result an event, beside Flink Java
    python -m tests.bench keyed-sum --backend rocksdb --events 2000000      the same with RocksDB named
    python -m tests.bench keyed-sum-on-disk --runs 1             10 M keys with 128 MB of managed memory for both slots,
                                                                 beside RocksDB with as much: state lies in files; an
                                                                 execution of Flink's is ended after --limit-s 60
    python -m tests.bench keyed-sum-on-disk --values 14 --keys 1500000 --events 3000000 --limit-s 0   128 bytes a record
    python -m tests.bench window --runs 3                        10 s windows, 100 k keys, beside Flink Java and SQL
    python -m tests.bench interval-join --events 10000000        two streams, within 5 s, beside Flink Java
    python -m tests.bench window-join --events 10000000          two streams, 10 s windows, beside Flink Java
    python -m tests.bench keyed-python                           lambdas beside Bytewax, Pathway, PyFlink and Spark
    python -m tests.bench window-python                          windows of lambdas beside Bytewax, PyFlink and Spark
    python -m tests.bench window-python --only engine pyflink --marginal    without anybody's start-up
    python -m tests.bench latency                                50,000 events/s at three buffer timeouts, beside Flink
    python -m tests.bench recovery-beside-flink                  checkpoints of 1 GB, kill -9 to the first record
    python -m tests.bench scaling                                by slots, channels and keys, ours only
    python -m tests.bench scaling --only slots ceiling --workload window map-python …  one slot, two, two jobs at once
    python -m tests.bench scaling --only slots --workload keyed-sum --with-flink       Flink's 1 → 2 beside it
    python -m tests.bench smoke [--only PART …]                  seconds, ours only: the programs run and count right
    python -m tests.bench COMMAND [ITS OPTIONS] [--json FILE]    ours only, each with --help of its own:{commands}
    python -m tests.bench charts RESULTS.json [OUT.svg | OUT.html]          charts of what --json has gathered

Peers live in virtual environments of their own under --cache (made when missing). Each line of the result is also
appended to --json as one JSON object.
"""

from __future__ import annotations

import argparse
import runpy
import shutil
import signal
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from tests.bench import latency, python_peers, recovery_race, scaling, smokes
from tests.bench.charts import write_charts
from tests.bench.environments import default_cache, peer_python
from tests.bench.flink_peer import FlinkPeer
from tests.bench.keyed import keyed
from tests.bench.recovery import Load
from tests.bench.stats import RECORDED, append_json
from tests.bench.words import start_up, word_count

#: Programs of their own: ``tests/bench/<name>.py``. Those of the second line write --json themselves.
COMMANDS = (
    *("changelogs", "checkpoint_cost", "checkpoint_pause", "column_aggregates", "compiled", "election", "join_spill"),
    *(
        "keyed_steps",
        "row_wire",
        "session_spill",
        "small_batches",
        "state_growth",
        "state_increments",
        "state_memory",
        "state_pauses",
        "state_spill",
        "text_columns",
        "text_keys",
    ),
    *("text_sinks", "window_checkpoint", "window_firing", "window_spill"),
)
WITH_JSON = ("lambdas", "recovery", "row_steps")
WORKLOADS = [
    "word-count",
    "word-count-lambdas",
    "start-up",
    "keyed-sum",
    "keyed-sum-on-disk",
    "window",
    "interval-join",
    "window-join",
    "keyed-python",
    "window-python",
    "latency",
    "recovery-beside-flink",
    "scaling",
    "smoke",
    "charts",
]
EVENTS = 50_000_000
DISK_EVENTS = 12_000_000  #: of keyed-sum-on-disk
KEYS = {
    "keyed-sum": 1_000_000,
    "keyed-sum-on-disk": 10_000_000,
    "window": 100_000,
    "interval-join": 500_000,
    "window-join": 1_000_000,
}


def flink_of(arguments: argparse.Namespace) -> FlinkPeer | None:
    cache = Path(arguments.cache)
    cache.mkdir(parents=True, exist_ok=True)
    return FlinkPeer(peer_python(cache, "flink"), cache) if arguments.peers else None


def rows_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run a workload that returns rows. Raises: RuntimeError when a contender fails or counts wrong."""
    workload, runs, parallelism, limit_s = arguments.workload, arguments.runs, arguments.parallelism, arguments.timeout
    match workload:
        case "keyed-sum" | "keyed-sum-on-disk" | "window" | "interval-join" | "window-join":
            return keyed(
                workload,
                events=arguments.events or (DISK_EVENTS if workload == "keyed-sum-on-disk" else EVENTS),
                keys=arguments.keys or KEYS[workload],
                parallelism=parallelism,
                runs=runs,
                flink=flink_of(arguments),
                timeout_s=limit_s,
                backend=arguments.backend,
                values=arguments.values,
                limit_s=arguments.limit_s,
            )
        case "keyed-python" | "window-python":
            return python_peers.race(
                workload,
                python_of=lambda peer: peer_python(Path(arguments.cache), peer),
                runs=runs,
                parallelism=parallelism,
                timeout_s=limit_s,
                scale=arguments.scale,
                only=arguments.only if arguments.peers else ["engine"],
                events=arguments.events,
                marginal=arguments.marginal,
            )
        case "latency":
            return latency.latency(
                rate=arguments.rate,
                seconds=arguments.seconds,
                warm_up_s=arguments.seconds * 0.4,
                timeouts_ms=latency.TIMEOUTS_MS,
                parallelism=parallelism,
                runs=runs,
                flink=flink_of(arguments),
                timeout_s=limit_s,
            )
        case "recovery-beside-flink":
            load = Load(
                keys=arguments.keys or 500_000,
                value_bytes=arguments.value_bytes,
                rate=arguments.rate,
                parallelism=1,
                backend="",
                memory=arguments.memory,
                settle_s=arguments.settle_s,
                increments=3,
                folder=Path(),
            )
            return recovery_race.recovery_race(load, runs=runs, flink=flink_of(arguments), only=arguments.only)
        case _:
            return scaling.scaling(
                arguments.only or scaling.CURVES,
                events=arguments.events,
                runs=runs,
                timeout_s=limit_s,
                cache=Path(arguments.cache),
                workloads=arguments.scaled,
                flink=flink_of(arguments) if arguments.with_flink else None,
            )


def smoke(arguments: argparse.Namespace) -> int:
    arguments.size, arguments.runs = arguments.size or "2MB", 1
    arguments.cache = tempfile.mkdtemp(prefix="engine-bench-smoke-")
    parts = {"words": lambda: word_count("smoke", ["engine", "engine-lambdas"], arguments), **smokes.PARTS}
    try:
        return max(parts[name]() for name in arguments.only or parts)
    finally:
        shutil.rmtree(arguments.cache)


def run_command(name: str, options: list[str]) -> None:
    """Run a program of its own, and append what it has recorded to --json; it ends with SystemExit, or returns."""
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument("--json")
    path = None
    if name not in WITH_JSON:
        known, options = given.parse_known_args(options)
        path = known.json
    sys.argv = [name, *options]
    sys.modules.pop(f"tests.bench.{name}", None)  # it is run anew, under another name
    try:
        runpy.run_module(f"tests.bench.{name}", run_name="__main__", alter_sys=True)
    finally:
        append_json(path, [{"workload": name, "options": options, **row} for row in RECORDED])


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=help_text(), formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("workload", choices=WORKLOADS)
    made.add_argument("files", nargs="*", help="of charts: results, and where to")
    made.add_argument(
        "--events", type=int, help=f"of the keyed workloads ({EVENTS}) and scaling (as each workload has)"
    )
    made.add_argument("--size", default=None, help="bytes of text, e.g. 500MB")
    made.add_argument("--runs", type=int, default=3)
    made.add_argument("--parallelism", type=int, default=2)
    made.add_argument("--backend", choices=["hashmap", "rocksdb"], default="hashmap", help="of keyed-sum")
    made.add_argument("--rate", type=int, help="events a second of latency (50000) and recovery (40000)")
    made.add_argument("--seconds", type=int, default=20, help="of latency; the first four tenths do not count")
    made.add_argument("--keys", type=int, help="of the keyed workloads (as each has) and recovery (500000)")
    made.add_argument("--values", type=int, choices=[0, 14], default=0, help="of keyed-sum-on-disk: further fields")
    made.add_argument("--limit-s", type=int, default=60, help="of keyed-sum-on-disk: one execution of Flink's; 0: none")
    made.add_argument("--value-bytes", type=int, default=2048, help="of recovery")
    made.add_argument("--memory", default="4g", help="of recovery: taskmanager.memory.process.size")
    made.add_argument("--settle-s", type=float, default=5, help="of recovery: before the first checkpoint")
    made.add_argument("--scale", type=float, default=1, help="of keyed-python and window-python: of their events")
    made.add_argument(
        "--marginal", action="store_true", help="of those: what a quarter of the events costs is taken off"
    )
    made.add_argument("--only", nargs="+", help="these contenders, curves (scaling) or parts (smoke) only")
    made.add_argument(
        "--workload", dest="scaled", nargs="+", choices=scaling.WORKLOADS, default=["keyed-sum"], help="of scaling"
    )
    made.add_argument("--with-flink", action="store_true", help="of scaling: slots of the keyed sum")
    made.add_argument("--timeout", type=float, default=900)
    made.add_argument("--no-peers", dest="peers", action="store_false")
    made.add_argument("--cache", default=default_cache())
    made.add_argument("--json", help="append results to this file")
    return made


def help_text() -> str:
    names = textwrap.wrap(", ".join(sorted((*COMMANDS, *WITH_JSON))), 100)
    return (__doc__ or "").replace("{commands}", "".join(f"\n        {line}" for line in names))


def main() -> int:
    command = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else ""
    if command in (*COMMANDS, *WITH_JSON):
        run_command(command, sys.argv[2:])
        return 0
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was started ends as well
    arguments.rate = arguments.rate or (40_000 if arguments.workload.startswith("recovery") else 50_000)
    match arguments.workload:
        case "word-count":
            arguments.size = arguments.size or "500MB"
            peers = ["flink-sql", "polars", "duckdb"] if arguments.peers else []
            return word_count("word-count", ["engine", *peers], arguments)
        case "word-count-lambdas":
            arguments.size = arguments.size or "20MB"
            peers = ["pyflink-lambdas"] if arguments.peers else []
            return word_count("word-count-lambdas", ["engine-lambdas", *peers], arguments)
        case "start-up":
            return start_up(arguments)
        case "smoke":
            return smoke(arguments)
        case "charts":
            return write_charts(*arguments.files)
    append_json(arguments.json, rows_of(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
