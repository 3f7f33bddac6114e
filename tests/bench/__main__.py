"""Benchmarks beside the peers, in one run, alternating, as ratios.

    python -m tests.bench word-count --size 500MB --runs 3       vectorised, beside Flink SQL (2 GB managed) and Polars
    python -m tests.bench word-count-lambdas --size 20MB         plain Python lambdas, beside PyFlink
    python -m tests.bench start-up                               examples/word_count.py, beside a PyFlink hello world
    python -m tests.bench keyed-sum --runs 3                     1 M keys, one result an event, beside Flink Java
    python -m tests.bench window --runs 3                        10 s windows, 100 k keys, beside Flink Java and SQL
    python -m tests.bench curves                                 events a CPU-second by keys and by channels, ours only
    python -m tests.bench smoke                                  seconds, ours only: the programs run and count right

Peers live in virtual environments of their own under --cache (made when missing: apache-flink, polars). Each
line of the result is also appended to --json as one JSON object.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.keyed import FlinkPeer, keyed
from tests.bench.keyed import smoke as smoke_of_keyed
from tests.bench.measure import Measurement, run
from tests.bench.text import write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEER_PACKAGES = {"flink": ["apache-flink==2.3.0"], "polars": ["polars"]}
WORKLOADS = ["word-count", "word-count-lambdas", "start-up", "keyed-sum", "window", "curves", "smoke"]
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def num_bytes(text: str) -> int:
    for unit, factor in UNITS.items():
        if text.upper().endswith(unit):
            return int(float(text[: -len(unit)]) * factor)
    return int(text)


def peer_python(cache: Path, peer: str) -> str:
    """Return the interpreter of the peer's environment, made if it is missing."""
    venv = cache / f"venv-{peer}"
    python = venv / "bin" / "python"
    if not (venv / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "wheel", "setuptools<80"]
        subprocess.run(install, check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES[peer]], check=True)
        (venv / ".ready").touch()
    return str(python)


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
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
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
    cache.mkdir(parents=True, exist_ok=True)
    source = cache / f"zipf-{size}.txt"
    if not source.exists():
        write_text(str(source) + ".part", size)
        os.replace(str(source) + ".part", source)
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
    append_json(arguments.json, rows)
    return 0


def start_up(arguments: argparse.Namespace) -> int:
    cache = Path(arguments.cache)
    contenders = {"engine": ([sys.executable, str(ROOT / "examples" / "word_count.py")], str(ROOT))}
    if arguments.peers:
        contenders["pyflink"] = ([peer_python(cache, "flink"), str(HERE / "peers" / "pyflink_hello.py")], "")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.runs):
        for name, (command, path) in contenders.items():
            env = {**os.environ, "PYTHONPATH": path} if path else dict(os.environ)
            result = run(command, timeout_s=arguments.timeout, env=env)
            if result.exit_code != 0 or result.first_line_s is None:
                print(result.output[-3000:])
                return 1
            seconds[name].append(result.first_line_s)
    rows = []
    for name, values in seconds.items():
        spread = [round(min(values), 2), round(statistics.median(values), 2), round(max(values), 2)]
        print(f"{name:10} seconds from start to first result {spread} (min, median, max)")
        rows.append({"workload": "start-up", "contender": name, "first_result_s": spread, "runs": len(values)})
    append_json(arguments.json, rows)
    return 0


def keyed_workload(arguments: argparse.Namespace) -> int:
    cache = Path(arguments.cache)
    flink = FlinkPeer(peer_python(cache, "flink"), cache) if arguments.peers else None
    rows = keyed(
        arguments.workload,
        events=arguments.events,
        keys=1_000_000 if arguments.workload == "keyed-sum" else 100_000,
        parallelism=arguments.parallelism,
        runs=arguments.runs,
        flink=flink,
        timeout_s=arguments.timeout,
    )
    append_json(arguments.json, rows)
    return 0


def curves(arguments: argparse.Namespace) -> int:
    """Keys from a thousand to ten million; channels from 2 to 64 (subtasks of a few slots)."""
    common = {"events": arguments.events, "runs": arguments.runs, "flink": None, "timeout_s": arguments.timeout}
    for keys in (1_000, 10_000, 100_000, 1_000_000, 10_000_000):
        print(f"{keys} keys")
        append_json(arguments.json, keyed("keyed-sum", keys=keys, parallelism=2, **common))
    for channels in (2, 8, 32, 64):
        print(f"{channels} channels")
        append_json(arguments.json, keyed("keyed-sum", keys=100_000, parallelism=channels, **common))
    return 0


def append_json(path: str | None, rows: list[dict]) -> None:
    if path:
        with open(path, "a", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--events", type=int, default=50_000_000, help="of the keyed workloads")
    parser.add_argument("--size", default=None, help="bytes of text, e.g. 500MB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=900)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    default_cache = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "engine-bench")
    parser.add_argument("--cache", default=default_cache)
    parser.add_argument("--json", help="append results to this file")
    arguments = parser.parse_args()
    match arguments.workload:
        case "word-count":
            arguments.size = arguments.size or "500MB"
            return word_count(
                "word-count", ["engine", *(["flink-sql", "polars"] if arguments.peers else [])], arguments
            )
        case "word-count-lambdas":
            arguments.size = arguments.size or "20MB"
            peers = ["pyflink-lambdas"] if arguments.peers else []
            return word_count("word-count-lambdas", ["engine-lambdas", *peers], arguments)
        case "start-up":
            return start_up(arguments)
        case "keyed-sum" | "window":
            return keyed_workload(arguments)
        case "curves":
            return curves(arguments)
    arguments.size, arguments.runs = arguments.size or "2MB", 1
    arguments.cache = tempfile.mkdtemp(prefix="engine-bench-smoke-")
    try:
        return word_count("smoke", ["engine", "engine-lambdas"], arguments) or smoke_of_keyed()
    finally:
        shutil.rmtree(arguments.cache)


if __name__ == "__main__":
    sys.exit(main())
