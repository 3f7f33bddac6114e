"""Timers and keyed state in one RocksDB: how they get into checkpoints and back, with either setting."""

from __future__ import annotations

import pytest

from engine.checkpoint.restored_state import HandleRestoredState
from engine.core.clock import ManualClock
from engine.core.ids import OperatorID
from engine.operators.keyed import KEYED_PART, TIMERS_PART
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import KeyedProcessFunction
from engine.protocol.checkpoint import CheckpointKind, CheckpointOptions, OperatorRestore
from engine.runtime.taskmanager.snapshot_capture import StateCapture
from engine.state.descriptors import ValueStateDescriptor
from engine.state.parts import OperatorStateRegistry
from engine.state.rocksdb_backend import RocksDBKeyedStateBackend
from engine.state.rocksdb_timers import RocksTimers
from engine.state.timers import TimerService
from tests.testing.operator_harness import OperatorHarness

ID = OperatorID.from_text("one")
TIMERS = {
    "disk": {"state.backend.type": "rocksdb"},
    "memory": {"state.backend.type": "rocksdb", "state.backend.rocksdb.timer-service.factory": "heap"},
}


class Remind(KeyedProcessFunction):
    def open(self, runtime_context):
        self.count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, value, ctx):
        self.count.update((self.count.value() or 0) + 1)
        ctx.timer_service().register_event_time_timer(value[1])
        ctx.timer_service().register_processing_time_timer(5000 + value[1])

    def on_timer(self, timestamp, ctx):
        yield timestamp, ctx.get_current_key(), self.count.value()


def harness(config, restored=None):
    spec = ProcessSpec(Remind(), lambda row: row[0])
    return OperatorHarness(spec, clock=ManualClock(5000), config=config, restored=restored)


@pytest.mark.parametrize("is_by_files", [False, True], ids=["canonical", "files"])
@pytest.mark.parametrize(("before", "after"), [("disk", "memory"), ("memory", "disk"), ("disk", "disk")])
def test_a_job_goes_on_with_its_timers_whatever_the_setting_is_afterwards(before, after, is_by_files, tmp_path):
    with harness(TIMERS[before]) as first:
        assert isinstance(first.contexts[0].state.keyed[TIMERS_PART], RocksTimers) is (before == "disk")
        first.process([(f"key {number}", number) for number in range(100)])
        first.watermark(9)
        taken = first.snapshot(1, folder=str(tmp_path) if is_by_files else None)
    with harness(TIMERS[after], [taken]) as second:
        part = second.contexts[0].state.keyed[TIMERS_PART]
        assert isinstance(part, RocksTimers) is (after == "disk")
        second.watermark(1000)
        assert second.output.rows == [(number, f"key {number}", 1) for number in range(10, 100)]
        second.clock.advance(50)
        second.head.on_timer(second.clock.now_ms())
        assert len(second.output.rows) == 90 + 51
        host = second.contexts[0].state.keyed[KEYED_PART]
        again = second.snapshot(2, folder=str(tmp_path) if is_by_files else None)
        # What has moved to memory is no longer in the files.
        left = RocksTimers(host)
        assert left.num_entries() == 0 or after == "disk"
    with harness(TIMERS["memory"], [again]) as third:
        assert third.contexts[0].state.keyed[TIMERS_PART].num_timers() == 49


class Workers:
    """Threads that work when they are told."""

    fork_entries_min = 50
    noted_entries_max = 40

    def __init__(self):
        self.waiting = []

    def run(self, work, on_done):
        self.waiting.append(lambda: on_done(work(), None))
        return self

    def work(self, at_most=100):
        for _ in range(min(at_most, len(self.waiting))):
            self.waiting.pop(0)()


class Task:
    """A task whose operator has timers on the disk, without any state yet."""

    def __init__(self, folder, handles=()):
        self.folder = str(folder)
        restored = None
        if handles:
            restored = HandleRestoredState(
                OperatorRestore(tuple(handles)),
                operator_name="one",
                subtask_index=0,
                parallelism=1,
                key_groups=range(128),
                work_dir=f"{folder}/downloads",
            )
        self.registry = OperatorStateRegistry(restored)
        self.backend = RocksDBKeyedStateBackend(
            ManualClock(), 128, folder=f"{folder}/db-{id(self)}", memory_bytes=0, session=f"s{id(self)}"
        )
        self.registry.add_keyed(KEYED_PART, self.backend)
        self.timers = RocksTimers(self.backend)
        self.registry.add_keyed(TIMERS_PART, self.timers)
        self.workers = Workers()
        self.capture = StateCapture(
            [(ID, self.registry)], range(128), self.workers, name="t", work_dir=f"{folder}/work-{id(self)}"
        )
        self.ended = []

    def begin(self, number, kind):
        options = CheckpointOptions(
            kind=kind,
            exclusive_folder=f"file://{self.folder}",
            shared_folder=f"file://{self.folder}",
            incremental=True,
            inline_bytes_max=0,
        )
        return self.capture.capture(number, options, {}, lambda _, error: self.ended.append(error))

    def register(self, keys):
        for key in keys:
            self.timers.register_event_time(key, None, 5)

    def fired(self):
        return sorted(key for _, key, _ in self.timers.advance_watermark(5))


@pytest.mark.parametrize("kind", [CheckpointKind.CHECKPOINT, CheckpointKind.SAVEPOINT])
def test_a_checkpoint_has_the_timers_of_the_barrier(kind, tmp_path):
    task = Task(tmp_path)
    task.register(range(300))
    snapshot = task.begin(1, kind)
    task.register(range(300, 3000))
    assert task.fired() == list(range(3000))
    task.workers.work()
    assert task.ended == [None]
    own = snapshot.keyed[ID, TIMERS_PART]
    assert (own.files, len(own.layers)) == ((), 0 if kind is CheckpointKind.CHECKPOINT else 1)
    again = Task(tmp_path, snapshot.keyed.values())
    assert again.registry.unused_parts() == []
    assert again.fired() == list(range(300))
    again.backend.close()
    task.backend.close()


def test_a_barrier_does_not_take_the_timers_from_a_savepoint_that_is_being_written(tmp_path):
    task = Task(tmp_path)
    task.register(range(300))
    task.begin(1, CheckpointKind.SAVEPOINT)
    task.workers.work(1)  # the keyed state is written
    with pytest.raises(Exception, match="'timers' is still being written for a savepoint"):
        task.begin(2, CheckpointKind.CHECKPOINT)
    task.workers.work()
    assert task.ended[0] is None
    task.backend.close()


def test_timers_that_the_program_has_no_more_are_told_of(tmp_path):
    task = Task(tmp_path)
    task.register(range(3))
    snapshot = task.begin(1, CheckpointKind.CHECKPOINT)
    task.workers.work()
    again = Task(tmp_path, snapshot.keyed.values())
    del again.registry.keyed[TIMERS_PART]
    assert again.registry.unused_parts() == [TIMERS_PART]
    again.backend.close()
    task.backend.close()


def test_timers_in_memory_need_no_rocksdb_of_their_own():
    with harness({"state.backend.type": "hashmap"}) as first:
        assert isinstance(first.contexts[0].state.keyed[TIMERS_PART], TimerService)
