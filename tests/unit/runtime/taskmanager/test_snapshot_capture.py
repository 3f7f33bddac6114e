"""Which snapshots are made in place, which are noted and which need a child; the workers are played here."""

from __future__ import annotations

import json

import pytest

from engine.checkpoint.restored_state import HandleRestoredState
from engine.core.clock import ManualClock
from engine.core.ids import OperatorID
from engine.protocol.checkpoint import CheckpointOptions, OperatorRestore
from engine.runtime.taskmanager.snapshot_capture import StateCapture
from engine.state.descriptors import ListStateDescriptor, ValueStateDescriptor
from engine.state.heap_backend import HeapKeyedStateBackend
from engine.state.parts import OperatorStateRegistry
from engine.state.timers import TimerService

ID = OperatorID.from_text("one")
VALUE, LIST = ValueStateDescriptor("value"), ListStateDescriptor("list")


class Workers:
    """Does the work when it is told; a child's at once, as it sees memory as it was."""

    fork_entries_min = 50
    noted_entries_max = 40

    def __init__(self):
        self.story = []
        self._waiting = []

    def fork(self, work, on_done):
        self.story.append("fork")
        result = work()
        self._waiting.append(lambda: on_done(result, None))
        return self

    def run(self, work, on_done):
        self.story.append("thread")
        self._waiting.append(lambda: on_done(work(), None))
        return self

    def expect_forks(self):
        pass

    def cancel(self):
        pass

    def work(self):
        while self._waiting:
            self._waiting.pop(0)()


class Task:
    def __init__(self, folder, num_keys=200):
        self.folder = f"file://{folder}"
        self.registry = OperatorStateRegistry()
        self.backend = HeapKeyedStateBackend(ManualClock(), 128, incremental=True)
        self.timers = TimerService(128, incremental=True)
        self.registry.add_keyed("keyed", self.backend)
        self.registry.add_keyed("timers", self.timers)
        self.lists = self.registry.operator_states().get_list_state(LIST)
        self.values = self.backend.value_state(VALUE)
        self.workers = Workers()
        for key in range(num_keys):
            self.put(key, 0)
        self.capture = StateCapture([(ID, self.registry)], range(128), self.workers, name="t", work_dir=str(folder))
        self.base = 0

    def put(self, key, value):
        self.backend.set_current_key(key)
        self.values.update(value)

    def checkpoint(self, meanwhile=lambda: None):
        """Take one; return how it was made and its snapshot."""
        ended = []
        options = CheckpointOptions(
            exclusive_folder=self.folder,
            shared_folder=self.folder,
            incremental=True,
            base_checkpoint_id=self.base,
            inline_bytes_max=0,
        )
        self.workers.story.clear()
        snapshot = self.capture.capture(self.base + 1, options, {}, lambda _, error: ended.append(error))
        meanwhile()
        self.workers.work()
        assert ended == [None]
        self.capture.acknowledged(snapshot)
        self.base += 1
        return list(self.workers.story), snapshot

    def restored(self, snapshot):
        restore = OperatorRestore(tuple(snapshot.keyed.values()), tuple(snapshot.lists.values()))
        state = HandleRestoredState(
            restore, operator_name="one", subtask_index=0, parallelism=1, key_groups=range(128), work_dir=self.folder
        )
        registry, backend, timers = (
            OperatorStateRegistry(state),
            HeapKeyedStateBackend(ManualClock(), 128),
            TimerService(128),
        )
        registry.add_keyed("keyed", backend)
        registry.add_keyed("timers", timers)
        values, found = backend.value_state(VALUE), {}
        for key in backend.keys("value"):
            backend.set_current_key(key)
            found[key] = values.value()
        return found, timers.num_timers(), registry


def test_a_small_increment_of_large_state_needs_no_child(tmp_path):
    task = Task(tmp_path)
    assert task.checkpoint()[0] == ["fork"]
    for key in range(20):
        task.put(key, 1)
    task.timers.register_event_time("k", None, 5)

    def meanwhile():
        for key in range(200):
            task.put(key, 2)
        task.timers.delete_event_time("k", None, 5)

    made, snapshot = task.checkpoint(meanwhile)
    assert made == ["thread"]
    assert [layer.is_delta for layer in snapshot.keyed[ID, "keyed"].layers] == [False, True]
    found, num_timers, _ = task.restored(snapshot)
    assert found == {key: int(key < 20) for key in range(200)}
    assert num_timers == 1
    found, num_timers, _ = task.restored(task.checkpoint()[1])
    assert (set(found.values()), num_timers) == ({2}, 0)


@pytest.mark.parametrize("changes", ["many", "of a class of the program's", "beside large lists"])
def test_a_child_makes_what_would_take_too_long_to_note(tmp_path, changes):
    task = Task(tmp_path)
    task.checkpoint()
    if changes == "many":
        for key in range(60):
            task.put(key, 1)
    elif changes == "beside large lists":
        task.put(0, 1)
        task.lists.add_all(range(30))
    else:
        task.put(0, json.JSONEncoder())
    made, snapshot = task.checkpoint()
    assert made == ["fork"]
    found, _, registry = task.restored(snapshot)
    assert len(found) == 200
    assert len(registry.operator_states().get_list_state(LIST).get()) == 30 * (changes == "beside large lists")
