"""FencedJobStore on metadata in memory and real files: the next leader finds all, a deposed one changes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.checkpoint.storage import write_metadata
from engine.core import fs
from engine.core.errors import CorruptStateError, ExternalError, JobNotFoundError
from engine.core.ids import FencingToken, JobID
from engine.graph.job_graph import JobGraph, JobType
from engine.ha import job_store
from engine.ha.contracts import LeadershipLostError
from engine.ha.job_store import FencedJobStore, JobResult, RecoveredCheckpoints
from engine.ha.memory import MemoryCluster, MemoryServices
from engine.protocol.control import UserFile
from tests.testing.memory_fs import MemoryFileSystem
from tests.unit.checkpoint.jobs import JOB_ID
from tests.unit.checkpoint.test_storage import checkpoint_in


class Contender:
    def leadership_granted(self, token: FencingToken) -> None:
        self.token = token

    def leadership_revoked(self, reason: str) -> None:
        pass


@pytest.fixture
def cluster(tmp_path: Path) -> MemoryCluster:
    return MemoryCluster(f"file://{tmp_path}/ha")


def next_leader(cluster: MemoryCluster) -> FencedJobStore:
    """Depose whoever leads and return the store of the next leader."""
    services, contender = MemoryServices(cluster), Contender()
    for old in list(cluster._contenders):
        asyncio.run(old.close())
    asyncio.run(services.election().start(contender))
    return FencedJobStore(services.metadata(), services.storage_dir, contender.token)


def graph(job_id: JobID | None = None, files: tuple[UserFile, ...] = ()) -> JobGraph:
    return JobGraph(job_id or JobID.generate(), "job", JobType.STREAMING, (), (), {"a": "b"}, files)


def blob(folder: Path, content: bytes) -> tuple[str, str]:
    sha256 = hashlib.sha256(content).hexdigest()
    path = folder / f"local-{sha256[:6]}"
    path.write_bytes(content)
    return sha256, str(path)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_next_leader_finds_jobs_and_their_files_in_order_of_submission(cluster, tmp_path):
    first = next_leader(cluster)
    jobs = [graph(JobID(digit * 32)) for digit in "9528"]
    sha256, path = blob(tmp_path, b"code" * 100_000)
    for job in jobs:
        first.put_job(job, {sha256: path} if job is jobs[2] else {})
    second = next_leader(cluster)
    assert second.job_ids() == [job.job_id for job in jobs]
    assert [second.job(job_id) for job_id in second.job_ids()] == jobs
    second.fetch_blob(sha256, str(tmp_path / "deep" / "copy"))
    assert (tmp_path / "deep" / "copy").read_bytes() == b"code" * 100_000


def test_a_job_put_again_is_one_job(cluster, tmp_path):
    """The caller tried again after an answer was lost."""
    store, job = next_leader(cluster), graph()
    sha256, path = blob(tmp_path, b"x")
    store.put_job(job, {sha256: path})
    store.put_job(job, {sha256: path})
    assert store.job_ids() == [job.job_id]
    assert next_leader(cluster).job(job.job_id) == job


def test_a_removed_job_leaves_nothing_but_its_result(cluster, tmp_path):
    store, job, other = next_leader(cluster), graph(), graph()
    sha256, path = blob(tmp_path, b"x")
    store.put_job(job, {sha256: path})
    store.put_job(other, {sha256: path})
    store.begin_checkpoint(job.job_id, 4)
    store.put_result(JobResult(job.job_id, "job", "FINISHED", end_ms=7))
    store.remove_job(job.job_id)
    assert store.job_ids() == [other.job_id]
    assert not (tmp_path / "ha" / "jobs" / job.job_id).exists()
    assert store.checkpoints(job.job_id) == RecoveredCheckpoints()
    assert next_leader(cluster).results() == [JobResult(job.job_id, "job", "FINISHED", end_ms=7)]
    with pytest.raises(JobNotFoundError, match=job.job_id):
        store.job(job.job_id)
    store.fetch_blob(sha256, str(tmp_path / "copy"))  # the other job's


def test_a_deposed_leader_changes_nothing(cluster, tmp_path):
    old, job = next_leader(cluster), graph(JOB_ID)
    old.put_job(job, {})
    inline = dataclasses.replace(checkpoint_in("", 3, str(tmp_path / "state")), folder="")
    old.put_checkpoint(inline, 1)
    new = next_leader(cluster)
    before = dict(cluster.values), files_below(tmp_path / "ha")
    for write in (
        lambda: old.put_job(graph(), {}),
        lambda: old.begin_checkpoint(job.job_id, 9),
        lambda: old.put_checkpoint(dataclasses.replace(inline, checkpoint_id=9), 1),
        lambda: old.put_result(JobResult(job.job_id, "job", "FAILED")),
        lambda: old.remove_job(job.job_id),
    ):
        with pytest.raises(LeadershipLostError):
            write()
    assert cluster.values == before[0]
    assert files_below(tmp_path / "ha") >= before[1]  # what it wrote under new names is seen by nobody
    assert new.checkpoints(JOB_ID) == RecoveredCheckpoints(3, (inline,))


def test_checkpoint_ids_are_never_given_out_twice(cluster):
    job_id = JobID.generate()
    store = next_leader(cluster)
    store.begin_checkpoint(job_id, 7)
    store.begin_checkpoint(job_id, 5)
    assert next_leader(cluster).checkpoints(job_id).counter == 7


def test_checkpoints_with_a_folder_are_pointed_to_and_without_one_are_written(cluster, tmp_path):
    store = next_leader(cluster)
    folder = f"file://{tmp_path}/chk-1"
    with_folder = checkpoint_in(folder, 1)
    write_metadata(with_folder)
    without = dataclasses.replace(checkpoint_in("", 2, str(tmp_path / "state")), folder="")
    store.put_checkpoint(with_folder, 2)
    store.put_checkpoint(without, 2)
    assert next_leader(cluster).checkpoints(JOB_ID) == RecoveredCheckpoints(2, (with_folder, without))


def test_only_the_newest_pointers_are_kept_and_only_the_stores_own_files_deleted(cluster, tmp_path):
    store = next_leader(cluster)
    outside = checkpoint_in(f"file://{tmp_path}/chk-1", 1)
    write_metadata(outside)
    inline = [
        dataclasses.replace(checkpoint_in("", number, str(tmp_path / "state")), folder="") for number in (2, 3, 4)
    ]
    store.put_checkpoint(outside, 2)
    for checkpoint in inline:
        store.put_checkpoint(checkpoint, 2)
    assert store.checkpoints(JOB_ID).checkpoints == tuple(inline[1:])
    assert (tmp_path / "chk-1" / "_metadata").exists()
    assert len(files_below(tmp_path / "ha")) == 2


def test_what_a_job_was_started_from_is_of_another_job_but_what_is_in_its_own_folder_is_not(cluster, tmp_path):
    other = JobID.generate()
    savepoint = checkpoint_in(f"file://{tmp_path}/savepoint", 7)
    own = checkpoint_in(f"file://{tmp_path}/{other}/chk-8", 8)
    for checkpoint in (savepoint, own):
        write_metadata(checkpoint)
    store = next_leader(cluster)
    store.put_checkpoints(other, [savepoint])
    assert next_leader(cluster).checkpoints(other) == RecoveredCheckpoints(7, (savepoint,))
    store = next_leader(cluster)
    store.put_checkpoints(other, [own])
    found = next_leader(cluster).checkpoints(other)
    assert (found.checkpoints, len(found.problems)) == ((), 1)


@pytest.mark.parametrize("damage", ["metadata gone", "metadata torn", "state gone", "state torn", "another's"])
def test_a_damaged_checkpoint_is_left_out_named_and_not_deleted(cluster, tmp_path, caplog, damage):
    store = next_leader(cluster)
    checkpoints = [checkpoint_in(f"file://{tmp_path}/chk-{number}", number) for number in (1, 2)]
    for checkpoint in checkpoints:
        write_metadata(checkpoint)
        store.put_checkpoint(checkpoint, 3)
    metadata, state = tmp_path / "chk-2" / "_metadata", tmp_path / "chk-2" / "file"
    if damage == "metadata gone":
        metadata.unlink()
    elif damage == "metadata torn":
        metadata.write_bytes(metadata.read_bytes()[:-1])
    elif damage == "state gone":
        state.unlink()
    elif damage == "state torn":
        state.write_bytes(b"")
    else:
        shutil.copy(tmp_path / "chk-1" / "_metadata", metadata)
    before = files_below(tmp_path), dict(cluster.values)
    with caplog.at_level(logging.ERROR, job_store.__name__):
        found = next_leader(cluster).checkpoints(JOB_ID)
    assert found == RecoveredCheckpoints(2, (checkpoints[0],))
    assert "checkpoint=2" in caplog.text
    assert "chk-2" in caplog.text
    assert (files_below(tmp_path), cluster.values) == before


def test_a_file_system_that_does_not_answer_is_not_a_damaged_checkpoint(cluster, monkeypatch):
    store = next_leader(cluster)
    store._write_pointers(JOB_ID, job_store._Pointers(1, [(1, "away:///chk-1", False)]))

    class Away(MemoryFileSystem):
        def status(self, path):
            raise ExternalError("no answer")

    monkeypatch.setitem(fs._instances, "away", Away())
    with pytest.raises(ExternalError, match="no answer"):
        store.checkpoints(JOB_ID)


def test_a_damaged_graph_or_file_is_told(cluster, tmp_path):
    store, job = next_leader(cluster), graph()
    sha256, path = blob(tmp_path, b"content")
    store.put_job(job, {sha256: path})
    folder = tmp_path / "ha" / "jobs" / job.job_id
    (folder / "blobs" / sha256).write_bytes(b"CONTENT")
    with pytest.raises(CorruptStateError, match="digest"):
        store.fetch_blob(sha256, str(tmp_path / "copy"))
    assert not list(tmp_path.glob("copy*"))
    (stored,) = folder.glob("graph-*")
    content = stored.read_bytes()
    stored.write_bytes(content[:-3] + b"xyz")
    with pytest.raises(CorruptStateError, match=f"{job.job_id}.*damaged"):
        store.job(job.job_id)
    stored.unlink()
    with pytest.raises(CorruptStateError, match=f"{job.job_id}.*gone"):
        store.job(job.job_id)


def test_writes_for_one_job_from_several_threads_lose_nothing(cluster, tmp_path, monkeypatch):
    store = next_leader(cluster)
    put = store._metadata.put

    under_way, most = [], 0

    def slow_put(*args):
        nonlocal most
        under_way.append(args)
        most = max(most, len(under_way))
        time.sleep(0.001)  # as long as ZooKeeper takes: the other thread runs meanwhile
        put(*args)
        under_way.pop()

    monkeypatch.setattr(store._metadata, "put", slow_put)
    inline = dataclasses.replace(checkpoint_in("", 1, str(tmp_path / "state")), folder="")
    go = threading.Barrier(2)

    def begin() -> None:
        go.wait()
        for number in range(1, 60):
            store.begin_checkpoint(JOB_ID, number)

    def complete() -> None:
        go.wait()
        for number in range(1, 20):
            store.put_checkpoint(dataclasses.replace(inline, checkpoint_id=number), 3)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(begin), pool.submit(complete)]:
            done.result()
    found = next_leader(cluster).checkpoints(JOB_ID)
    assert (found.counter, [one.checkpoint_id for one in found.checkpoints]) == (59, [17, 18, 19])
    assert most == 1  # of two at a time the first one's change would be lost


def test_results_are_kept_up_to_a_number_but_always_those_of_jobs_that_are_still_there(cluster, monkeypatch):
    monkeypatch.setattr(job_store, "RESULTS_MAX", 3)
    store, job = next_leader(cluster), graph()
    store.put_job(job, {})
    store.put_result(JobResult(job.job_id, "first", "FAILED", end_ms=0))
    for end_ms in range(1, 6):
        store.put_result(JobResult(JobID.generate(), "other", "FINISHED", end_ms=end_ms))
    assert [result.end_ms for result in store.results()] == [0, 4, 5]


def test_a_blob_on_a_file_system_without_descriptors(cluster, tmp_path, monkeypatch):
    """As on HDFS: what is written is safe when the file is closed."""
    memory = MemoryFileSystem()
    monkeypatch.setitem(fs._instances, "mem", memory)
    services, contender = MemoryServices(cluster), Contender()
    asyncio.run(services.election().start(contender))
    store = FencedJobStore(services.metadata(), "mem:///ha", contender.token)
    sha256, path = blob(tmp_path, b"content")
    job = graph()
    store.put_job(job, {sha256: path})
    again = FencedJobStore(services.metadata(), "mem:///ha", contender.token)
    assert again.job(job.job_id) == job
    again.fetch_blob(sha256, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"content"
    assert not [name for name in memory.files if "." in os.path.basename(name)]
