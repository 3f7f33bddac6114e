"""What a checkpoint each second costs: records a second of a job at full speed with it and without, alternating.

    python -m tests.bench.checkpoint_cost --keys 500000 --value-bytes 2048 --runs 2

One per cent of the keys changes; increments are on. Prints a JSON object a line, the last one with the ratio: of
records a second, and of records by CPU-second of the slot's process, which other work on the machine changes less. The
first, full checkpoint of all the state is not measured: it has completed before. Its pages are merged for some 5 s
afterwards, which is measured when ``--settle-s`` is shorter.

    python -m tests.bench.checkpoint_cost --beside

runs both jobs at once, in two slots of one cluster: other work on the machine then slows both, and the ratio by
CPU-second can be told on a busy one.
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

import psutil

from tests.bench.recovery import Rest, last_beats, submit, wait_for, wait_until_filled
from tests.bench.stats import record
from tests.process.cluster_jobs import StandaloneCluster

INTERVALS = {"without": "1 h", "each second": "1 s"}


def cpu_s_by_pid(taskmanager: int) -> dict[int, float]:
    """Return the CPU time of each process below the TaskManager, without children of its own."""
    times = {child.pid: child.cpu_times() for child in psutil.Process(taskmanager).children(recursive=True)}
    return {pid: found.user + found.system for pid, found in times.items()}


def rate(arguments: argparse.Namespace, interval: str, folder: Path) -> tuple[float, float, int]:
    """Return records a second after the state is there, records a CPU-second, and how many checkpoints completed."""
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
        completed = lambda: rest(f"/jobs/{job}/checkpoints")["counts"]["completed"]  # noqa: E731
        if interval == "1 s":
            wait_for(lambda filled=completed(): completed() >= filled + 3, "the first checkpoints")
        time.sleep(arguments.settle_s)
        pid, completed_before = cluster.taskmanagers[0].popen.pid, completed()
        used_s, (before_ms, _, before) = cpu_s_by_pid(pid), max(last_beats(beat))
        time.sleep(arguments.seconds)
        used_s_after, (after_ms, _, after) = cpu_s_by_pid(pid), max(last_beats(beat))
        # The slot is the busiest of them meanwhile; before, that may have been the zygote, which loads kernels.
        cpu_s = max(used_s_after[child] - used_s.get(child, 0.0) for child in used_s_after)
        num_records = after - before
        return num_records / (after_ms - before_ms) * 1000, num_records / cpu_s, completed() - completed_before
    finally:
        cluster.close()


def beside(arguments: argparse.Namespace, folder: Path) -> dict[str, tuple[float, float, int]]:
    """Return the same as ``rate`` for each of ``INTERVALS``, of two jobs that ran at the same time."""
    memory = f"{2 * int(arguments.memory.removesuffix('g'))}g"
    cluster = StandaloneCluster(folder, taskmanagers=1, slots=2, taskmanager_memory_process_size=memory)
    try:
        rest, address = Rest(cluster.rest_url), urlsplit(cluster.rest_url)
        completed = lambda job: rest(f"/jobs/{job}/checkpoints")["counts"]["completed"]  # noqa: E731
        jobs, beats = {}, {name: folder / f"beat-{name.split()[0]}" for name in INTERVALS}
        for name, interval in INTERVALS.items():
            beats[name].touch()
            words = [address.hostname, address.port, arguments.keys, arguments.value_bytes, 0, arguments.keys // 100]
            words += [beats[name], arguments.backend, folder / beats[name].name.replace("beat", "checkpoints")]
            jobs[name] = submit([*words, interval, 1])
        for beat in beats.values():
            wait_until_filled(beat, arguments.keys)
        timed = jobs["each second"]
        wait_for(lambda filled=completed(timed): completed(timed) >= filled + 3, "the first checkpoints")
        time.sleep(arguments.settle_s)
        slots = psutil.Process(cluster.taskmanagers[0].popen.pid).children(recursive=True)
        slot_of = {
            name: next(slot for slot in slots if any(file.path == str(beat) for file in slot.open_files()))
            for name, beat in beats.items()
        }

        def seen(name: str) -> tuple[float, int, int, int]:
            cpu, (ms, _, index) = slot_of[name].cpu_times(), max(last_beats(beats[name]))
            return cpu.user + cpu.system, ms, index, completed(jobs[name])

        before = {name: seen(name) for name in INTERVALS}
        time.sleep(arguments.seconds)
        found = {}
        for name, (cpu_s, ms, index, number) in before.items():
            cpu_s_after, ms_after, index_after, number_after = seen(name)
            num_records = index_after - index
            by_s, by_cpu_s = num_records / (ms_after - ms) * 1000, num_records / (cpu_s_after - cpu_s)
            found[name] = by_s, by_cpu_s, number_after - number
        return found
    finally:
        cluster.close()


def alternating(arguments: argparse.Namespace) -> dict[str, tuple[float, float, int]]:
    """Return the same of one job after the other."""
    found = {}
    for name, interval in INTERVALS.items():
        with tempfile.TemporaryDirectory(prefix="engine-checkpoint-cost-") as folder:
            found[name] = rate(arguments, interval, Path(folder))
    return found


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
    parser.add_argument("--beside", action="store_true", help="both jobs at once")
    arguments = parser.parse_args()
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in INTERVALS}
    for _ in range(arguments.runs):
        if arguments.beside:
            with tempfile.TemporaryDirectory(prefix="engine-checkpoint-cost-") as folder:
                found = beside(arguments, Path(folder))
        else:
            found = alternating(arguments)
        for name, (by_s, by_cpu_s, completed) in found.items():
            rates[name].append((by_s, by_cpu_s))
            row = {"checkpoints": name, "records_per_s": round(by_s), "records_per_cpu_s": round(by_cpu_s)}
            print(json.dumps(row | {"completed": completed}), flush=True)
            record(row | {"completed": completed})
    ratios = [
        statistics.median(found[i] for found in rates["each second"])
        / statistics.median(found[i] for found in rates["without"])
        for i in (0, 1)
    ]
    row = {"workload": "checkpoint cost", "ratio": round(ratios[0], 3), "ratio_by_cpu_s": round(ratios[1], 3)}
    print(json.dumps(row))
    record(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
