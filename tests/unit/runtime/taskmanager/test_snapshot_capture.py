"""Which snapshots are made in place, which are noted and which need a child; the workers are played here."""

from __future__ import annotations

import json
import random

import pytest

from engine.checkpoint import layers
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
        self.base = self.number = 0

    def put(self, key, value):
        self.backend.set_current_key(key)
        self.values.update(value)

    def checkpoint(self, meanwhile=lambda: None, *, completes=True):
        """Take one; return how it was made and its snapshot. ``completes``: the next one may build on it."""
        ended = []
        self.number += 1
        options = CheckpointOptions(
            exclusive_folder=self.folder,
            shared_folder=self.folder,
            incremental=True,
            base_checkpoint_id=self.base,
            inline_bytes_max=0,
        )
        self.workers.story.clear()
        snapshot = self.capture.capture(self.number, options, {}, lambda _, error: ended.append(error))
        meanwhile()
        self.workers.work()
        assert ended == [None]
        self.capture.acknowledged(snapshot)
        self.base = self.number if completes else self.base
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


def test_what_a_thread_writes_of_small_state_is_as_of_the_barrier(tmp_path):
    task = Task(tmp_path, num_keys=20)
    elements = task.backend.list_state(LIST)

    def add():
        for key in range(20):
            task.backend.set_current_key(key)
            elements.add("element")

    add()
    made, snapshot = task.checkpoint(add)
    assert made == ["thread"]
    _, _, registry = task.restored(snapshot)
    restored = registry.keyed["keyed"]
    restored.set_current_key(3)
    assert restored.list_state(LIST).get() == ["element"]


def test_changes_of_the_same_keys_never_need_a_child_or_a_full_layer_again(tmp_path):
    task = Task(tmp_path, num_keys=1000)
    assert task.checkpoint()[0] == ["fork"]
    for number in range(1, 80):
        for key in range(20):
            task.put(key, number)
        task.timers.delete_event_time("k", None, number - 1)
        task.timers.register_event_time("k", None, number)
        made, snapshot = task.checkpoint()
        assert made == ["thread"]
        assert [layer.is_delta for layer in snapshot.keyed[ID, "keyed"].layers] == [False, True]
    found, num_timers, _ = task.restored(snapshot)
    assert found == {key: 79 if key < 20 else 0 for key in range(1000)}
    assert num_timers == 1


@pytest.mark.parametrize("seed", range(6))
def test_each_checkpoint_has_the_state_of_its_barrier_whatever_it_builds_on(tmp_path, seed, monkeypatch):
    """Some complete and some do not; the same keys change, or others, few or many, or go."""
    monkeypatch.setattr(layers, "_GROWTH_ENTRIES", 5)
    monkeypatch.setattr(layers, "LAYERS_MAX", 6)
    rng = random.Random(seed)
    task = Task(tmp_path, num_keys=400)
    expected = dict.fromkeys(range(400), 0)
    depths = set()
    for number in range(1, 70):
        for _ in range(rng.choice([3, 15, 15, 60])):
            key = rng.randrange(10) if rng.random() < 0.7 else rng.randrange(400)
            if rng.random() < 0.1:
                task.backend.set_current_key(key)
                task.values.clear()
                expected.pop(key, None)
            else:
                task.put(key, number)
                expected[key] = number
        task.timers.register_event_time(number, None, number)
        at_barrier = dict(expected)
        _, snapshot = task.checkpoint(lambda: task.put(0, -1), completes=rng.random() < 0.7)
        expected[0] = -1
        depths.add(len(snapshot.keyed[ID, "keyed"].layers))
        found, num_timers, _ = task.restored(snapshot)
        assert (found, num_timers) == (at_barrier, number)
    assert {1, 2, 3} < depths
