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
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    memory = {"taskmanager_memory_process_size": arguments.memory}
    cluster = StandaloneCluster(folder, taskmanagers=1, slots=arguments.parallelism, **memory)
    try:
        rest, address, beat = Rest(cluster.rest_url), urlsplit(cluster.rest_url), folder / "beat"
        beat.touch()
        hot = max(1, arguments.keys // 100)
        words = [address.hostname, address.port, arguments.keys, arguments.value_bytes, arguments.rate, hot, beat]
        words += [arguments.backend, folder / "checkpoints", "1 h", arguments.parallelism]
        job = submit(words)
        wait_until_filled(beat, arguments.keys)
        time.sleep(arguments.settle_s)
        rows.append(checkpoint(rest, job, "FULL"))
        for _ in range(arguments.increments):
            time.sleep(1.5 * hot / arguments.rate + 0.5)  # each hot key has changed
            rows.append(checkpoint(rest, job, "CONFIGURED"))
        cluster.add_taskmanager()
        wait_for(lambda: rest("/overview")["taskmanagers"] == 2, "the spare TaskManager")
        time.sleep(_WARM_S)
        killed_ms = time.time() * 1000
        cluster.taskmanagers[0].popen.send_signal(signal.SIGKILL)
        beats = lambda: [ms for ms, _, _ in last_beats(beat) if ms > killed_ms + 300]  # noqa: E731
        first_ms = wait_for(beats, "a record after the recovery")[0]
        rows.append({"kind": "recovery", "kill_to_first_record_s": round((first_ms - killed_ms) / 1000, 2)})
        rest_patch = urllib.request.Request(f"{cluster.rest_url}/jobs/{job}", method="PATCH")
        urllib.request.urlopen(rest_patch, timeout=30).close()
    finally:
        cluster.close()
    return rows


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
        rows = measure(arguments, Path(folder))
    for row in rows:
        row |= {"workload": "recovery", "backend": arguments.backend, "keys": arguments.keys}
        print(json.dumps(row), flush=True)
    if arguments.json:
        with open(arguments.json, "a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
