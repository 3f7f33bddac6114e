"""RocksDB from end to end on a real cluster: increments share files, what is killed, rescaled or moved to another
backend goes on exactly, and nothing is left on any disk."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from engine.checkpoint.storage import read_checkpoint
from engine.client.rest_client import RestClient
from engine.core.errors import EngineError
from engine.protocol.checkpoint import KeyedStateHandle
from tests.process.cluster_jobs import ROOT, StandaloneCluster, is_alive, until
from tests.process.counting_jobs import (
    CountOfKey,
    all_counts,
    checkpoints,
    client_of,
    completed,
    counting,
    environment,
    kill_slot,
    left_hidden,
    processes,
    state,
    totals_in,
    totals_of,
    written,
)

NUM_KEYS = 8000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = StandaloneCluster(tmp_path_factory.mktemp("cluster"), heartbeat_interval="500", heartbeat_timeout="10000")
    yield cluster
    cluster.close()


@pytest.fixture
def client(cluster):
    with client_of(cluster, 4) as client:
        yield client


def rocksdb(folder: Path, **settings: str) -> dict[str, str]:
    return {
        "state.backend.type": "rocksdb",
        "execution.checkpointing.incremental": "true",
        "execution.checkpointing.interval": "300 ms",
        "execution.checkpointing.dir": str(folder),
        **settings,
    }


def local_folders(cluster: StandaloneCluster) -> list[str]:
    """Databases, frozen and downloaded files in the TaskManagers' folders."""
    kinds = ("rocksdb-*", "frozen-*", "restored-*")
    return [str(path) for kind in kinds for path in cluster.temp.rglob(kind)]


def files_of(folder: Path) -> dict[str, int]:
    """Paths of files → when they were written."""
    found = {}
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                found[f"file://{path}"] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def first_all_then_few(number: int) -> int:
    """The key: first each of many once, from then on only some of them."""
    return number if number < NUM_KEYS else number % 10


def test_increments_share_files_dead_ones_go_and_a_retained_one_is_restored_at_other_parallelisms(
    cluster, client, marks, tmp_path
):
    folder = tmp_path / "chk"
    retention = {"execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION"}
    settings = rocksdb(folder, **{"execution.checkpointing.num-retained": "3"}, **retention)
    env = environment(cluster, 2, settings)
    job = counting(env, CountOfKey(marks, 1000), tmp_path / "out", key_of=first_all_then_few, rate=4000)
    home = folder / job.get_job_id()

    def newest() -> dict:
        return checkpoints(client, job)["latest"]["completed"] or {}

    until(lambda: newest().get("state_size", 0) > NUM_KEYS * 1000, "all keys are in a checkpoint")
    seen: dict[int, Seen] = {}
    until(lambda: look(home, seen) >= 8, "eight checkpoints")
    pairs = [(seen[id_], seen[id_ + 1]) for id_ in sorted(seen) if id_ + 1 in seen]
    num_shared = 0
    for base, latest in pairs:
        both = base.tables.keys() & latest.tables.keys()
        num_shared += bool(both)
        assert all(base.tables[name] == latest.tables[name] for name in both), "a table is kept twice"
        assert all(base.written[path] == latest.written[path] for path in base.written.keys() & latest.written.keys())
    assert num_shared >= len(pairs) / 2, "tables are merged now and then, not with each checkpoint"
    sizes = [one for one in checkpoints(client, job)["history"] if one["status"] == "COMPLETED"]
    # Ten keys a checkpoint, of 8 MB of state.
    assert min(one["checkpointed_size"] for one in sizes) < NUM_KEYS * 1000 / 10
    assert sizes[0]["state_size"] > NUM_KEYS * 1000
    assert len([path for path in local_folders(cluster) if "/frozen-" in path]) <= 2
    assert not [path for path in local_folders(cluster) if "/restored-" in path]
    cancel(client, job)
    retained = sorted(path.parent for path in home.glob("chk-*/_metadata"))
    assert len(retained) == 3
    expected = {path for place in retained for path in paths_of(str(place))}
    expected |= {f"file://{place}/_metadata" for place in retained}
    until(lambda: set(files_of(folder)) == expected, "what is there is what the retained checkpoints need")
    latest = max(retained, key=lambda place: int(place.name.partition("-")[2]))
    totals = totals_in(str(latest))
    assert set(totals) == set(range(NUM_KEYS))
    # From 2 to 3: what is not the subtask's is cut off, or taken from several; from 2 to 1: everything from two.
    for parallelism in (3, 1):
        out = tmp_path / f"out-{parallelism}"
        again = rocksdb(folder, **{"execution.state-recovery.path": str(latest)})
        job = counting(
            environment(cluster, parallelism, again), CountOfKey(marks), out, key_of=first_all_then_few, rate=4000
        )
        until(lambda job=job: completed(client, job) >= 2, "checkpoints of its own")
        until(lambda out=out: len(written(out)) > 1000, "results")
        kill_slot(client, job, marks)
        was = completed(client, job)
        until(lambda job=job, was=was: completed(client, job) > was, "a checkpoint of the next attempt")
        saved = job.stop_with_savepoint(False, str(tmp_path / "sp")).result(120)
        grown = totals_in(saved)
        assert set(grown) == set(totals)
        assert written(out) == all_counts(grown) - all_counts(totals)
        until(lambda: client.overview()["slots-available"] == 4, "4 free slots")
        until(lambda: local_folders(cluster) == [], "no local folder is left")
    assert set(files_of(folder)) == expected, "a checkpoint that others started from is left alone"


@dataclass
class Seen:
    """Of one checkpoint: its tables' names → paths; when its shared files were written."""

    tables: dict[str, str]
    written: dict[str, int]


def look(home: Path, seen: dict[int, Seen]) -> int:
    """Note what checkpoints there are; return how many were seen by now."""
    for place in home.glob("chk-*/_metadata"):
        id_ = int(place.parent.name.partition("-")[2])
        if id_ in seen:
            continue
        try:
            handles = keyed_handles(str(place.parent))
        except EngineError:
            continue  # it was being deleted
        tables = {name: file.path for handle in handles for name, file in handle.files if name.endswith(".sst")}
        times = files_of(home / "shared")
        seen[id_] = Seen(tables, {path: times[path] for path in tables.values() if path in times})
    return len(seen)


def paths_of(checkpoint: str) -> set[str]:
    return {handle.path for handle in read_checkpoint(checkpoint).handles() if handle.path}


def cancel(client: RestClient, job) -> None:
    job.cancel().result()
    until(lambda: state(client, job) == "CANCELED", "CANCELED")


def test_a_killed_taskmanager_costs_nothing(cluster, client, marks, tmp_path):
    total = 60_000
    folder, out = tmp_path / "chk", tmp_path / "out"
    job = counting(
        environment(cluster, 2, rocksdb(folder)),
        CountOfKey(marks),
        out,
        key_of=lambda number: number % NUM_KEYS,
        count=total,
        rate=4000,
    )
    until(lambda: completed(client, job) >= 3, "three checkpoints")
    kill_slot(client, job, marks)
    was = completed(client, job)
    until(lambda: completed(client, job) > was + 1, "checkpoints of the second attempt")
    before = processes(marks)
    ancestors = {process.pid for pid in before if is_alive(pid) for process in psutil.Process(pid).parents()}
    victim = next(one for one in cluster.taskmanagers if one.popen.pid in ancestors)
    cluster.taskmanagers.remove(victim)
    cluster.add_taskmanager()
    victim.end(signal.SIGKILL)
    until(lambda: processes(marks) - before, "another process counts")
    job.get_job_execution_result().result(120)
    assert checkpoints(client, job)["counts"]["restored"] >= 2
    assert written(out) == all_counts(totals_of(range(total), lambda number: number % NUM_KEYS))
    assert left_hidden(out) == []
    until(lambda: os.listdir(folder) == [], "no checkpoint is left")
    until(lambda: local_folders(cluster) == [], "no local folder is left")


def flink_state(tmp_path: Path, *words: str) -> str:
    done = subprocess.run(
        [f"{ROOT}/scripts/flink", "state", *words],
        env={**os.environ, "FLINK_PYTHON": sys.executable, "FLINK_CONF_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_savepoints_carry_state_from_one_backend_to_the_other_and_back(cluster, client, marks, tmp_path):
    """Each job stops with a savepoint that the next starts from; together they write what one job would."""
    targets = []
    saved = ""
    for number, (backend, parallelism) in enumerate([("rocksdb", 2), ("hashmap", 3), ("rocksdb", 1), ("hashmap", 2)]):
        settings = rocksdb(tmp_path / "chk", **{"state.backend.type": backend})
        if saved:
            settings["execution.state-recovery.path"] = saved
        targets.append(tmp_path / f"out-{number}")
        env = environment(cluster, parallelism, settings)
        job = counting(env, CountOfKey(marks, 50), targets[-1], key_of=lambda n: n % NUM_KEYS, rate=8000)
        until(lambda job=job: completed(client, job) >= 2, "checkpoints")
        until(lambda: len(written(targets[-1])) > NUM_KEYS, "results")
        saved = job.stop_with_savepoint(False, str(tmp_path / "sp")).result(120)
        totals = totals_in(saved)
        assert written(*targets) == all_counts(totals)
        assert all(not handle.files for handle in keyed_handles(saved)), "the canonical format"
        listed = flink_state(tmp_path, saved)
        assert "(uid count; parallelism " + f"{parallelism} of 128)" in listed
        assert f" total value {len(totals)} " in " ".join(listed.split())
        exported = tmp_path / "total.csv"
        flink_state(tmp_path, saved, "-u", "count", "-s", "total", "-o", str(exported))
        with exported.open(newline="") as stream:
            assert {int(row["key"]): int(row["value"]) for row in csv.DictReader(stream)} == totals
        until(lambda: client.overview()["slots-available"] == 4, "4 free slots")
    assert os.listdir(tmp_path / "chk") == []
    until(lambda: local_folders(cluster) == [], "no local folder is left")


def keyed_handles(path: str) -> list[KeyedStateHandle]:
    subtasks = [subtask for vertex in read_checkpoint(path).vertices for subtask in vertex.subtasks.values()]
    return [handle for subtask in subtasks for state in subtask.operators.values() for handle in state.keyed]
