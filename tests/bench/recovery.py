"""Checkpoints of a large keyed state and recovery from kill -9, on a real standalone cluster of two TaskManagers.

    python -m tests.bench.recovery --keys 500000 --value-bytes 2048 --backend hashmap

Measures, and prints as one JSON object a line: the duration, written bytes and longest standstill of a full checkpoint;
the same of checkpoints behind it, when one per cent of the keys changed; the time from kill -9 of the TaskManager with
the tasks to the first record that is processed on the spare one, with the default configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tests.bench.measure import TreeWatch
from tests.process.cluster_jobs import ROOT, StandaloneCluster

#: A spare TaskManager has been there for a while: a new one is still importing what slots need when it registers.
_WARM_S = 4.0
PROGRAM = Path(__file__).with_name("programs") / "keyed_state.py"


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 180.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise SystemExit(f"Not within {seconds:.0f} s: {what}.")
        time.sleep(0.05)
    return value


class Rest:
    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def last_beats(beat: Path) -> list[tuple[int, int, int]]:
    """(epoch ms, subtask, index) of the last lines."""
    with beat.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - 2000))
        lines = stream.read().decode().splitlines()[1:]
    return [tuple(map(int, line.split())) for line in lines if len(line.split()) == 3]  # type: ignore[misc]


def checkpoint(rest: Rest, job: str, kind: str) -> dict[str, Any]:
    started = time.monotonic()
    trigger = rest(f"/jobs/{job}/checkpoints", {"checkpointType": kind})["request-id"]

    def outcome() -> Any:
        answer = rest(f"/jobs/{job}/checkpoints/{trigger}")
        return answer if answer["status"]["id"] == "COMPLETED" else None

    answer = wait_for(outcome, f"{kind} checkpoint")
    if answer["operation"].get("failureCause"):
        raise SystemExit(f"The checkpoint failed: {answer['operation']['failureCause']}")
    wall_s = time.monotonic() - started
    done = rest(f"/jobs/{job}/checkpoints")["latest"]["completed"]
    details = rest(f"/jobs/{job}/checkpoints/details/{done['id']}")
    sync_ms = [
        rest(f"/jobs/{job}/checkpoints/details/{done['id']}/subtasks/{vertex}")["summary"]["checkpoint_duration"][
            "sync"
        ]["max"]
        for vertex in details["tasks"]
    ]
    return {
        "kind": kind,
        "wall_s": round(wall_s, 2),
        "end_to_end_ms": done["end_to_end_duration"],
        "state_mb": done["state_size"] >> 20,
        "written_mb": round(done["checkpointed_size"] / 2**20, 1),
        "standstill_ms_max": max(sync_ms),
    }


def submit(words: list[object]) -> str:
    """Start the program; return the job's id."""
    command = [sys.executable, str(PROGRAM), *map(str, words)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout.split()[-1]


def wait_until_filled(beat: Path, keys: int) -> None:
    wait_for(lambda: any(index > keys * 1.02 for _, _, index in last_beats(beat)), "all keys written", 300)


@dataclass(frozen=True)
class Load:
    """What the job does, and where: ``keys`` values of ``value_bytes``, ``rate`` updates a second, first each key once,
    then one per cent of them. ``folder``: of the run."""

    keys: int
    value_bytes: int
    rate: int
    parallelism: int
    backend: str
    memory: str
    settle_s: float
    increments: int
    folder: Path

    @property
    def hot(self) -> int:
        return max(1, self.keys // 100)

    @property
    def beat(self) -> Path:
        return self.folder / "beat"


class Contender(Protocol):
    """A running cluster with one TaskManager. All of it ends with ``close``."""

    rest_url: str

    def submit(self, load: Load) -> str: ...

    def add_taskmanager(self) -> object: ...

    def kill_taskmanager(self, index: int) -> None: ...

    def close(self) -> None: ...


class Engine(StandaloneCluster):
    """Ours, with the default configuration but for memory."""

    def __init__(self, load: Load) -> None:
        memory = {"taskmanager_memory_process_size": load.memory}
        super().__init__(load.folder, taskmanagers=1, slots=load.parallelism, **memory)

    def submit(self, load: Load) -> str:
        address = urlsplit(self.rest_url)
        words = [address.hostname, address.port, load.keys, load.value_bytes, load.rate, load.hot, load.beat]
        return submit([*words, load.backend, load.folder / "checkpoints", "1 h", load.parallelism])

    def kill_taskmanager(self, index: int) -> None:
        self.taskmanagers[index].popen.send_signal(signal.SIGKILL)


def measure(start: Callable[[Load], Contender], load: Load) -> list[dict[str, Any]]:
    """Fill the state, take checkpoints, kill the TaskManager; return a row for each with what all processes used."""
    rows: list[dict[str, Any]] = []
    load.beat.touch()

    def took(row: dict[str, Any]) -> None:
        cpu_s, _ = watch.mark()
        rows.append({**row, "cpu_s": round(cpu_s, 2), "peak_mb": round(watch.peak_mb)})

    with TreeWatch() as watch:
        cluster = start(load)
        try:
            rest = Rest(cluster.rest_url)
            started = time.monotonic()
            job = cluster.submit(load)
            wait_until_filled(load.beat, load.keys)
            took({"kind": "fill", "wall_s": round(time.monotonic() - started, 2)})
            watch.mark()
            time.sleep(load.settle_s)
            if load.settle_s:  # what the job uses by itself, without a checkpoint
                took({"kind": "steady", "wall_s": load.settle_s})
            watch.mark()
            took(checkpoint(rest, job, "FULL"))
            for _ in range(load.increments):
                time.sleep(1.5 * load.hot / load.rate + 0.5)  # each hot key has changed
                watch.mark()
                took(checkpoint(rest, job, "CONFIGURED"))
            cluster.add_taskmanager()
            wait_for(lambda: rest("/overview")["taskmanagers"] == 2, "the spare TaskManager")
            time.sleep(_WARM_S)
            watch.mark()
            killed_ms = time.time() * 1000
            cluster.kill_taskmanager(0)
            beats = lambda: [ms for ms, _, _ in last_beats(load.beat) if ms > killed_ms + 300]  # noqa: E731
            first_ms = wait_for(beats, "a record after the recovery")[0]
            took({"kind": "recovery", "kill_to_first_record_s": round((first_ms - killed_ms) / 1000, 2)})
            rest_patch = urllib.request.Request(f"{cluster.rest_url}/jobs/{job}", method="PATCH")
            urllib.request.urlopen(rest_patch, timeout=30).close()
        finally:
            cluster.close()
    return rows


def load_of(arguments: argparse.Namespace, folder: Path) -> Load:
    return Load(
        keys=arguments.keys,
        value_bytes=arguments.value_bytes,
        rate=arguments.rate,
        parallelism=arguments.parallelism,
        backend=arguments.backend,
        memory=arguments.memory,
        settle_s=arguments.settle_s,
        increments=arguments.increments,
        folder=folder,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=500_000)
    parser.add_argument("--value-bytes", type=int, default=2048)
    parser.add_argument("--rate", type=int, default=40_000)
    parser.add_argument("--backend", choices=["hashmap", "rocksdb"], default="hashmap")
    parser.add_argument("--parallelism", type=int, default=1)
    parser.add_argument("--settle-s", type=float, default=0, help="wait between filling the state and checkpoints")
    parser.add_argument("--increments", type=int, default=3)
    parser.add_argument("--memory", default="4g", help="taskmanager.memory.process.size")
    parser.add_argument("--json", help="append the results to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="engine-recovery-") as folder:
        rows = measure(Engine, load_of(arguments, Path(folder)))
    for row in rows:
        row |= {"workload": "recovery", "backend": arguments.backend, "keys": arguments.keys}
        print(json.dumps(row), flush=True)
    if arguments.json:
        with open(arguments.json, "a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
