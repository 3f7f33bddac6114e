"""Word counts of a text, and the time to a first result, beside the peers. Counts are compared."""

from __future__ import annotations

import argparse
import glob
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench.environments import peer_python
from tests.bench.measure import Measurement, run
from tests.bench.session_start import session_rows
from tests.bench.stats import append_json, stamped
from tests.bench.text import text_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def num_bytes(text: str) -> int:
    for unit, factor in UNITS.items():
        if text.upper().endswith(unit):
            return int(float(text[: -len(unit)]) * factor)
    return int(text)


def count_of(output: Path) -> tuple[int, int]:
    """Return (different words, all words) of CSV output: a file, or a folder of files at any depth."""
    paths = [str(output)] if output.is_file() else glob.glob(f"{output}/**/*", recursive=True)
    words = total = 0
    for path in paths:
        if os.path.isfile(path) and not os.path.basename(path).endswith(".crc"):
            with open(path, encoding="utf-8") as stream:
                for line in stream:
                    word, _, n = line.strip().rpartition(",")
                    if word.strip('"'):
                        words += 1
                        total += int(n)
    return words, total


def command_of(contender: str, cache: Path, source: Path, target: Path, parallelism: int) -> tuple[list[str], dict]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    tail = [str(source), str(target), str(parallelism)]
    if contender.startswith("engine"):
        name = {"engine": "word_count_vectorised", "engine-lambdas": "word_count_lambdas"}[contender]
        return [sys.executable, str(HERE / "programs" / f"{name}.py"), *tail], env
    env.pop("PYTHONPATH")
    if contender == "polars":
        env["POLARS_MAX_THREADS"] = str(parallelism)
    peer, name = {
        "flink-sql": ("flink", "flink_sql_word_count"),
        "pyflink-lambdas": ("flink", "pyflink_word_count"),
        "polars": ("polars", "polars_word_count"),
        "duckdb": ("duckdb", "duckdb_word_count"),
    }[contender]
    return [peer_python(cache, peer), str(HERE / "peers" / f"{name}.py"), *tail], env


def report(name: str, contender: str, size: int, results: list[Measurement]) -> dict:
    cpu = [size / m.cpu_s / 1e6 for m in results]
    wall = [size / m.wall_s / 1e6 for m in results]
    row = {
        "workload": name,
        "contender": contender,
        "bytes": size,
        "runs": len(results),
        "mb_per_cpu_s": [round(min(cpu), 4), round(statistics.median(cpu), 4), round(max(cpu), 4)],
        "mb_per_s": [round(min(wall), 4), round(statistics.median(wall), 4), round(max(wall), 4)],
        "cpu_s_median": round(statistics.median(m.cpu_s for m in results), 2),
        "peak_mb": round(max(m.peak_mb for m in results)),
        "python": platform.python_version(),
    }
    print(
        f"{contender:16} MB per CPU-second {row['mb_per_cpu_s']} (min, median, max)  "
        f"MB/s {row['mb_per_s']}  peak {row['peak_mb']} MB",
        flush=True,
    )
    return row


def word_count(name: str, contenders: list[str], arguments: argparse.Namespace) -> int:
    size = num_bytes(arguments.size)
    cache = Path(arguments.cache)
    source = text_of(cache, size)
    size = source.stat().st_size
    results: dict[str, list[Measurement]] = {contender: [] for contender in contenders}
    seen: set[tuple[int, int]] = set()
    for round_number in range(arguments.runs):
        for contender in contenders:
            with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder:
                target = Path(folder) / "out"
                command, env = command_of(contender, cache, source, target, arguments.parallelism)
                result = run(command, timeout_s=arguments.timeout, env=env, cwd=folder)
                if result.exit_code != 0:
                    print(result.output[-3000:])
                    print(f"{contender} ended with exit code {result.exit_code}.")
                    return 1
                seen.add(count_of(target))
            results[contender].append(result)
            print(
                f"  run {round_number + 1} {contender}: wall {result.wall_s:.2f} s, CPU {result.cpu_s:.2f} s",
                flush=True,
            )
    print(f"{name}: {size / 1e6:.0f} MB, parallelism {arguments.parallelism}, counts {seen}")
    if len(seen) != 1:
        print("The contenders' counts differ.")
        return 1
    rows = [report(name, contender, size, results[contender]) for contender in contenders]
    for row in rows[1:]:
        # Round by round: what else the machine did then was the same for both.
        pairs = zip(results[contenders[0]], results[row["contender"]], strict=True)
        ratios = sorted(theirs.cpu_s / ours.cpu_s for ours, theirs in pairs)
        row["ratio_of_engine"] = [round(f(ratios), 2) for f in (min, statistics.median, max)]
        print(f"engine / {row['contender']}: {row['ratio_of_engine']} (CPU-seconds, min, median, max of the runs)")
    append_json(arguments.json, [stamped(row) for row in rows])
    return 0


def start_up(arguments: argparse.Namespace) -> int:
    """Seconds from the start of a process to its first line of a result, ``(…)``, and CPU-seconds in all; from
    ``execute`` to there for jobs in a session cluster."""
    cache = Path(arguments.cache)
    first_sum = str(HERE / "programs" / "first_sum.py")
    contenders = {
        "engine, batch word count": ([sys.executable, str(ROOT / "examples" / "word_count.py")], str(ROOT)),
        "engine, functions": ([sys.executable, first_sum, "rows"], str(ROOT)),
        "engine, vectorised": ([sys.executable, first_sum, "columns"], str(ROOT)),
    }
    if arguments.peers:
        contenders["pyflink"] = ([peer_python(cache, "flink"), str(HERE / "peers" / "pyflink_hello.py")], "")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu_s: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.runs):
        for name, (command, path) in contenders.items():
            env = {**os.environ, "PYTHONUNBUFFERED": "1", **({"PYTHONPATH": path} if path else {})}
            result = run(command, timeout_s=arguments.timeout, env=env, result_start="(")
            if result.exit_code != 0 or result.first_line_s is None:
                print(result.output[-3000:])
                return 1
            seconds[name].append(result.first_line_s)
            cpu_s[name].append(result.cpu_s)
    rows = []
    for name, values in seconds.items():
        spread = [round(min(values), 2), round(statistics.median(values), 2), round(max(values), 2)]
        used = [round(f(cpu_s[name]), 2) for f in (min, statistics.median, max)]
        print(f"{name:25} seconds from start to first result {spread}, CPU-seconds in all {used} (min, median, max)")
        row = {"contender": name, "first_result_s": spread, "cpu_s": used, "runs": len(values)}
        rows.append({"workload": "start-up", **row})
    for row in session_rows(arguments):
        told = f"seconds from execute to first result {row['first_result_s']}, CPU-seconds in all {row['cpu_s']}"
        print(f"{row['contender']:25} {told}")
        rows.append(row)
    append_json(arguments.json, [stamped(row) for row in rows])
    return 0
