"""Checkpoints of real slots, with the test in the JobManager's place: barriers, snapshots, crashes, restores."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.core.ids import ExecutionAttemptID, OperatorID
from engine.graph.transformation import ShipStrategy
from engine.protocol.checkpoint import (
    AcknowledgeCheckpoint,
    CheckpointFailureReason,
    CheckpointKind,
    CheckpointOptions,
    OperatorRestore,
    StopMode,
    TaskRestore,
)
from engine.protocol.lifecycle import ExecutionState
from engine.protocol.stream import WATERMARK_MAX_MS
from tests.process.checkpoint_operators import CountByKey, Rewinding
from tests.process.slot_cluster import SlotCluster, Vertex, Wire
from tests.process.slot_operators import Numbers

COUNT = 40_000
HELD = 5_000


def in_slots(
    body: Callable[[SlotCluster], Coroutine[Any, Any, None]], *, slots: int = 2, config: dict[str, str] | None = None
) -> None:
    async def run() -> None:
        async with SlotCluster(("127.0.0.1",) * slots, config) as cluster:
            await body(cluster)

    asyncio.run(run())


class Job:
    """source → counts, in the given parallelisms; the test deploys, triggers, crashes and restores it."""

    def __init__(self, cluster: SlotCluster, *, num_keys: int = 97, sources: int = 2, counts: int = 2, **spec: Any):
        self.cluster = cluster
        self.num_keys = num_keys
        self.parallelism = {"source": sources, "count": counts}
        self.specs = {"source": Rewinding(COUNT, HELD), "count": CountByKey(num_keys, **spec)}
        self.wires = [Wire("source", "count", ShipStrategy.HASH, key_selector=lambda n: n % num_keys)]

    def deploy(self) -> None:
        vertices = [Vertex(name, [self.specs[name]], self.parallelism[name]) for name in ("source", "count")]
        self.cluster.deploy(vertices, self.wires)

    def attempts(self, *names: str) -> list[ExecutionAttemptID]:
        names = names or ("source", "count")
        return [self.cluster.attempt(name, i) for name in names for i in range(self.parallelism[name])]

    async def until_running(self) -> None:
        states = self.cluster.story.states
        await self.cluster.until(lambda: all(ExecutionState.RUNNING in states[a] for a in self.attempts()))

    async def until_counted(self, num_records: int) -> None:
        def counted() -> int:
            latest = {a: m.records_in for report in self.cluster.story.reports for a, m in report.metrics.items()}
            return sum(latest.get(attempt, 0) for attempt in self.attempts("count"))

        await self.cluster.until(lambda: counted() >= num_records)

    def trigger(self, checkpoint_id: int, options: CheckpointOptions) -> None:
        for attempt in self.attempts("source"):
            self.cluster.trigger(attempt, checkpoint_id, options)

    async def checkpoint(self, checkpoint_id: int, options: CheckpointOptions) -> list[AcknowledgeCheckpoint]:
        self.trigger(checkpoint_id, options)
        acknowledged = self.cluster.story.acknowledged
        keys = [(attempt, checkpoint_id) for attempt in self.attempts()]
        await self.cluster.until(
            lambda: all(key in acknowledged for key in keys) or bool(self.cluster.story.declined), timeout=60
        )
        assert not self.cluster.story.declined, self.cluster.story.declined
        return [acknowledged[key] for key in keys]

    async def crash(self) -> None:
        """All tasks are gone; the next deployment is the next attempt."""
        for attempt in self.attempts():
            self.cluster.cancel(attempt)
        await self.cluster.until(lambda: all(self.cluster.has_ended(attempt) for attempt in self.attempts()))
        self.cluster.attempt_number += 1
        self.cluster.story.events.clear()

    def restore_from(self, acks: Sequence[AcknowledgeCheckpoint]) -> None:
        for name, parallelism in self.parallelism.items():
            operator_id = OperatorID.from_text(f"{name}0")
            handles = [ack.operators[operator_id] for ack in acks if operator_id in ack.operators]
            keyed = tuple(handle for of_subtask in handles for handle in of_subtask.keyed)
            lists = tuple(of_subtask.lists for of_subtask in handles if of_subtask.lists is not None)
            for subtask in range(parallelism):
                # All of them to everybody: who restores keyed records takes those whose keys are its own.
                in_flight = tuple(h for ack in acks for h in ack.in_flight if h.consumer == operator_id)
                self.cluster.restores[name, subtask] = TaskRestore(
                    acks[0].checkpoint_id, {operator_id: OperatorRestore(keyed, lists, redistribute=True)}, in_flight
                )

    async def run_to_end(self) -> Counter[int]:
        for attempt in self.attempts("source"):
            self.cluster.send_event(attempt, "source0", "go")
        await self.cluster.until(lambda: all(self.cluster.has_ended(a) for a in self.attempts()), timeout=60)
        assert not self.cluster.story.errors, [e.message + e.trace for e in self.cluster.story.errors.values()]
        return self.counts()

    def counts(self) -> Counter[int]:
        found: Counter[int] = Counter()
        for event in self.events("counts"):
            assert not set(event[1]) & set(found), "a key in two subtasks"
            found.update(event[1])
        return found

    def events(self, kind: str) -> list[Any]:
        return [event for _, event in self.cluster.story.events if event[0] == kind]

    def expected(self) -> Counter[int]:
        return Counter(n % self.num_keys for n in range(COUNT))


def folders(tmp_path: Path, **options: Any) -> CheckpointOptions:
    root = f"file://{tmp_path}"
    return CheckpointOptions(exclusive_folder=f"{root}/chk", shared_folder=f"{root}/shared", **options)


def files(tmp_path: Path) -> list[Path]:
    return sorted(path for path in tmp_path.rglob("*") if path.is_file())


KINDS = {
    "inline": (97, 0, {}),
    "small file in place": (97, 10, {}),
    "in a child": (20_011, 0, {}),
    "savepoint in a child": (20_011, 0, {"kind": CheckpointKind.SAVEPOINT}),
}


@pytest.mark.parametrize("parallelism", [(2, 2), (3, 1), (1, 5)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_after_a_checkpoint_loses_and_repeats_nothing(kind: str, parallelism: tuple[int, int], tmp_path: Path):
    num_keys, inline_bytes_max, options = KINDS[kind]
    checkpoint = folders(tmp_path, **options)
    if inline_bytes_max:
        checkpoint = folders(tmp_path, inline_bytes_max=inline_bytes_max)

    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster, num_keys=num_keys)
        job.deploy()
        await job.until_running()
        if kind != "inline":  # else the barriers come between the records
            await job.until_counted(2 * HELD)
        acks = await job.checkpoint(1, checkpoint)
        assert bool(files(tmp_path)) == (kind != "inline")
        for attempt in job.attempts("source"):  # what follows is lost with the crash
            cluster.send_event(attempt, "source0", "go")
        await job.crash()
        job.parallelism = dict(zip(("source", "count"), parallelism, strict=True))
        job.restore_from(acks)
        job.deploy()
        assert await job.run_to_end() == job.expected()
        opened = job.events("opened")
        assert sum(num for _, num, _ in opened) > 0, "it began afresh"

    in_slots(body)


@pytest.mark.parametrize("notes", [False, True], ids=["by a child", "noted"])
def test_increments_are_small_and_build_on_each_other(tmp_path: Path, notes: bool):
    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster, num_keys=20_011, sources=1, counts=1, notes=notes)
        job.specs["source"] = Rewinding(COUNT, 25_000)
        job.deploy()
        await job.until_running()
        await job.until_counted(25_000)
        first = (await job.checkpoint(1, folders(tmp_path, incremental=True)))[1]
        for attempt in job.attempts():
            cluster.complete(attempt, 1)
        source = job.attempts("source")[0]
        cluster.send_event(source, "source0", ("hold", 25_200))
        await job.until_counted(25_200)
        increment = folders(tmp_path, incremental=True, base_checkpoint_id=1, inline_bytes_max=0)
        second = (await job.checkpoint(2, increment))[1]
        assert first.metrics.written_bytes > 50_000
        assert 0 < second.metrics.written_bytes < first.metrics.written_bytes / 20
        assert second.metrics.state_bytes > first.metrics.written_bytes
        (handle,) = second.operators[OperatorID.from_text("count0")].keyed
        assert [layer.is_delta for layer in handle.layers] == [False, True]
        await job.crash()
        job.restore_from([cluster.story.acknowledged[source, 2], second])
        job.deploy()
        assert await job.run_to_end() == job.expected()

    in_slots(body, slots=1)


async def child_of(cluster: SlotCluster) -> int:
    """Wait for the child of a slot and return its pid."""
    for _ in range(6000):
        for slot in cluster.slots:
            found = children(slot.pid)
            if found:
                return found[0]
        await asyncio.sleep(0.01)
    raise AssertionError("no slot has forked a child")


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within a minute")


@pytest.mark.parametrize("how", ["killed", "aborted", "cancelled", "slot dies"])
def test_a_child_that_writes_a_snapshot_can_end_early_and_leaves_nothing(how: str, tmp_path: Path):
    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster, num_keys=20_011, sources=1, counts=1, snapshot_s=600.0)
        job.specs["source"] = Rewinding(COUNT, 30_000)
        job.deploy()
        await job.until_running()
        (source,), (count,) = job.attempts("source"), job.attempts("count")
        await job.until_counted(30_000)
        job.trigger(1, folders(tmp_path))
        child = await child_of(cluster)
        match how:
            case "killed":
                os.kill(child, signal.SIGKILL)
                await cluster.until(lambda: (count, 1) in cluster.story.declined)
                declined = cluster.story.declined[count, 1]
                assert declined.reason is CheckpointFailureReason.TASK_FAILED
                assert "SIGKILL" in declined.message
            case "aborted":
                for attempt in (source, count):
                    cluster.abort(attempt, 1)
                await cluster.until(lambda: bool(job.events("aborted")))
            case "cancelled":
                await job.crash()
            case "slot dies":
                os.kill(cluster.slots[0].pid, signal.SIGKILL)
        await until(lambda: not is_alive(child))
        if how in ("killed", "aborted"):
            assert await job.run_to_end() == job.expected()
        if how != "slot dies":
            await until(lambda: not files(tmp_path))

    in_slots(body, slots=1)


def test_the_end_waits_for_the_snapshot(tmp_path: Path):
    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster, num_keys=20_011, sources=1, counts=1, snapshot_s=1.0)
        job.specs["source"] = Rewinding(COUNT, 30_000)
        job.deploy()
        await job.until_running()
        (count,) = job.attempts("count")
        await job.until_counted(30_000)
        job.trigger(1, folders(tmp_path))
        assert await job.run_to_end() == job.expected()
        assert (count, 1) in cluster.story.acknowledged

    in_slots(body, slots=1)


def test_a_task_whose_producers_have_finished_snapshots_at_its_end():
    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster, sources=1, counts=1)
        job.specs["source"] = Numbers(COUNT)
        job.wires[0].buffer_timeout_ms = -1
        job.deploy()
        (count,) = job.attempts("count")
        cluster.trigger(count, 1, CheckpointOptions())
        await cluster.until(lambda: cluster.has_ended(count))
        if (count, 1) in cluster.story.declined:  # it had finished before
            assert cluster.story.declined[count, 1].reason is CheckpointFailureReason.TASK_FINISHED
            return
        handles = cluster.story.acknowledged[count, 1].operators[OperatorID.from_text("count0")]
        cluster.attempt_number += 1
        cluster.restores["count", 0] = TaskRestore(1, {OperatorID.from_text("count0"): OperatorRestore(handles.keyed)})
        cluster.restores["source", 0] = TaskRestore(1, is_finished=True)
        cluster.story.events.clear()
        job.deploy()
        await cluster.until(lambda: all(cluster.has_ended(attempt) for attempt in job.attempts()))
        assert not cluster.story.errors
        assert job.counts() == job.expected(), "the source ran again, or the state is not that of the end"
        assert ("watermark", WATERMARK_MAX_MS) in [event for _, event in cluster.story.events]

    in_slots(body, slots=1)


@pytest.mark.parametrize("outcome", ["complete", "aborted"])
def test_a_suspended_job_emits_nothing_more_and_ends_when_the_savepoint_is_complete(outcome: str):
    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster)
        job.deploy()
        await job.until_running()
        acks = await job.checkpoint(1, CheckpointOptions(CheckpointKind.SAVEPOINT, stop=StopMode.SUSPEND))
        for attempt in job.attempts("source"):
            cluster.send_event(attempt, "source0", "go")
        await asyncio.sleep(0.3)
        assert not any(cluster.has_ended(attempt) for attempt in job.attempts())
        for attempt in job.attempts():
            (cluster.complete if outcome == "complete" else cluster.abort)(attempt, 1)
        await cluster.until(lambda: all(cluster.has_ended(attempt) for attempt in job.attempts()))
        assert all(cluster.story.states[a][-1] is ExecutionState.FINISHED for a in job.attempts()), cluster.story.errors
        if outcome == "aborted":
            assert job.counts() == job.expected()
            return
        assert not job.events("counts"), "finish was called"
        assert not job.events("watermark")
        cluster.attempt_number += 1
        job.restore_from(acks)
        job.deploy()
        assert await job.run_to_end() == job.expected()

    in_slots(body)


def test_draining_ends_event_time_before_the_barrier_and_finishes_behind_it():
    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster)
        job.deploy()
        await job.until_running()
        await job.until_counted(2 * HELD)
        await job.checkpoint(1, CheckpointOptions(CheckpointKind.SAVEPOINT, stop=StopMode.DRAIN))
        assert len(job.events("watermark")) == 2
        for attempt in job.attempts():
            cluster.complete(attempt, 1)
        await cluster.until(lambda: all(cluster.has_ended(attempt) for attempt in job.attempts()))
        assert not cluster.story.errors
        assert sum(job.counts().values()) == 2 * HELD

    in_slots(body)


def test_a_drained_savepoint_that_is_aborted_fails_the_job_for_event_time_is_over():
    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster)
        job.deploy()
        await job.until_running()
        await job.checkpoint(1, CheckpointOptions(CheckpointKind.SAVEPOINT, stop=StopMode.DRAIN))
        for attempt in job.attempts():
            cluster.abort(attempt, 1)
        await cluster.until(lambda: len(cluster.story.errors) == 2)
        assert all("event time" in error.message for error in cluster.story.errors.values())

    in_slots(body)


def test_a_damaged_file_is_noticed_and_named(tmp_path: Path):
    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster, sources=1, counts=1)
        job.deploy()
        await job.until_running()
        acks = await job.checkpoint(1, folders(tmp_path, inline_bytes_max=0))
        handle = acks[1].operators[OperatorID.from_text("count0")].keyed[0].layers[0].file
        path = Path(handle.path.removeprefix("file://"))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        await job.crash()
        job.restore_from(acks)
        job.deploy()
        count = job.attempts("count")[0]
        await cluster.until(lambda: count in cluster.story.errors)
        assert path.name in cluster.story.errors[count].message
        assert cluster.story.errors[count].type_name == "CorruptStateError"

    in_slots(body, slots=1)


@pytest.mark.parametrize("allowed", [False, True])
def test_state_that_nobody_claims_is_an_error_unless_it_is_allowed(allowed: bool):
    config = {"execution.state-recovery.ignore-unclaimed-state": "true"} if allowed else {}

    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster, sources=1, counts=1)
        job.deploy()
        await job.until_running()
        acks = await job.checkpoint(1, CheckpointOptions())
        await job.crash()
        job.restore_from(acks)
        job.specs["count"] = CountByKey(97, part="renamed")
        job.deploy()
        count = job.attempts("count")[0]
        if allowed:
            assert sum((await job.run_to_end()).values()) < COUNT
            return
        await cluster.until(lambda: count in cluster.story.errors)
        assert "'counts'" in cluster.story.errors[count].message
        assert "'count'" in cluster.story.errors[count].message

    in_slots(body, slots=1, config=config)


def test_a_folder_that_cannot_be_written_declines_and_the_job_goes_on(tmp_path: Path):
    (tmp_path / "chk").write_text("a file, not a folder")

    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster, sources=1, counts=1)
        job.deploy()
        await job.until_running()
        (count,) = job.attempts("count")
        job.trigger(1, folders(tmp_path, inline_bytes_max=0))
        await cluster.until(lambda: (count, 1) in cluster.story.declined)
        assert cluster.story.declined[count, 1].reason is CheckpointFailureReason.STORAGE_FAILED
        assert await job.run_to_end() == job.expected()

    in_slots(body, slots=1)


def test_a_task_whose_operator_fails_in_a_snapshot_fails_for_it_may_have_lost_something():
    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster, sources=1, counts=1, loses_in_snapshots=True)
        job.deploy()
        await job.until_running()
        (count,) = job.attempts("count")
        job.trigger(1, CheckpointOptions())
        await cluster.until(lambda: count in cluster.story.errors)
        assert "The disk is full." in cluster.story.errors[count].message

    in_slots(body, slots=1)


def test_a_job_in_batch_mode_declines():
    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster, sources=1, counts=1)
        job.wires[0].blocking = True
        job.deploy()
        await job.until_running()
        (source,) = job.attempts("source")
        job.trigger(1, CheckpointOptions())
        await cluster.until(lambda: (source, 1) in cluster.story.declined)
        assert "batch" in cluster.story.declined[source, 1].message

    in_slots(body, slots=1)


def test_an_operator_that_cannot_be_checkpointed_declines_instead_of_losing_its_state(monkeypatch):
    monkeypatch.setattr(CountByKey, "not_checkpointed", "it counts on its fingers")

    async def body(cluster: SlotCluster) -> None:
        job = Job(cluster, sources=1, counts=1)
        job.deploy()
        await job.until_running()
        (count,) = job.attempts("count")
        job.trigger(1, CheckpointOptions())
        await cluster.until(lambda: (count, 1) in cluster.story.declined)
        assert cluster.story.declined[count, 1].reason is CheckpointFailureReason.TASK_FAILED
        assert "cannot be checkpointed: it counts on its fingers" in cluster.story.declined[count, 1].message
        assert await job.run_to_end() == job.expected()

    in_slots(body, slots=1)


# --- unaligned -------------------------------------------------------------------------------------------------------


UNALIGNED = {
    "at once": {"unaligned": True},
    "after a timeout": {"aligned_timeout_ms": 300},
}


@pytest.mark.parametrize("parallelism", [2, 3], ids=["same", "rescaled"])
@pytest.mark.parametrize("how", UNALIGNED)
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"], ids=["unix", "tcp"])
def test_a_barrier_overtakes_what_waits_and_what_it_overtook_is_restored(
    how: str, parallelism: int, host: str, tmp_path: Path
):
    async def run() -> None:
        async with SlotCluster(("127.0.0.1", host)) as cluster:
            job = Job(cluster, row_s=0.002)
            job.specs["source"] = Rewinding(COUNT, 20_000)
            job.deploy()
            await job.until_running()
            await job.until_counted(500)
            started = time.monotonic()
            acks = await job.checkpoint(1, folders(tmp_path, inline_bytes_max=0, **UNALIGNED[how]))
            took = time.monotonic() - started
            assert took < 30, "what waits takes 40 s"
            assert sum(ack.metrics.in_flight_bytes for ack in acks) > 0
            assert any(handle.is_keyed for ack in acks for handle in ack.in_flight)
            await job.crash()
            job.specs["count"] = CountByKey(97)
            job.parallelism["count"] = parallelism
            job.restore_from(acks)
            job.deploy()
            assert await job.run_to_end() == job.expected()

    asyncio.run(run())
