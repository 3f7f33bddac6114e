"""Cells that were written of late and are not in their table yet: nobody must notice, but the increments be right."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.common import Duration
from engine.core.clock import ManualClock
from engine.state import heap_states
from engine.state.chunks import load_keyed
from engine.state.descriptors import (
    ListStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from engine.state.heap_backend import HeapKeyedStateBackend

GROUPS = range(16)
VALUE = ValueStateDescriptor("value")
SUM = ReducingStateDescriptor("sum", lambda a, b: a + b)
LIST = ListStateDescriptor("list")
NUM_KEYS = 40


@pytest.fixture
def collecting(monkeypatch):
    """Tables of all sizes collect what is written, up to three cells."""
    monkeypatch.setattr(heap_states, "RECENT_CELLS_MIN", 0)
    monkeypatch.setattr(heap_states, "_RECENT_MIN", 3)


def filled():
    """Each key has itself as its value, behind the barrier of checkpoint 1, which was a full one."""
    backend = HeapKeyedStateBackend(ManualClock(), 16, incremental=True)
    values = backend.value_state(VALUE)
    for key in range(NUM_KEYS):
        backend.set_current_key(key)
        values.update(key)
    backend.begin_epoch(1)
    return backend, values


def test_only_large_tables_whose_cells_are_replaced_collect_and_only_behind_a_barrier():
    backend = HeapKeyedStateBackend(ManualClock(), 16, incremental=True)
    values, lists, few = (backend.value_state(VALUE), backend.list_state(LIST), backend.reducing_state(SUM))
    expiring = ValueStateDescriptor("expiring")
    expiring.enable_time_to_live(StateTtlConfig.new_builder(Duration.of_hours(1)).build())
    expires = backend.value_state(expiring)
    for key in range(heap_states.RECENT_CELLS_MIN):
        backend.set_current_key(key)
        values.update(key)
        lists.add(key)
        expires.update(key)
    few.add(1)
    tables = {name: backend._tables[name] for name in ("value", "list", "sum", "expiring")}
    assert [table.recent for table in tables.values()] == [None] * 4
    backend.begin_epoch(1)  # after a full snapshot
    assert [table.recent for table in tables.values()] == [None] * 4
    backend.begin_epoch(2)
    assert {name: table.recent is not None for name, table in tables.items()} == {
        "value": True,
        "list": False,
        "sum": False,
        "expiring": False,
    }
    assert tables["value"].recent_max == 256


def test_what_was_overwritten_is_let_go_of_after_some_writes(collecting):
    backend, values = filled()
    backend.begin_epoch(2)
    table = backend._tables["value"]
    sizes = []
    for key in range(8):
        backend.set_current_key(key)
        values.update(-key)
        sizes.append(len(table.recent))
    assert sizes == [1, 2, 3, 0, 1, 2, 3, 0]
    assert [table.spaces[None][key] for key in range(8)] == [-key for key in range(8)]


def test_what_was_written_of_late_is_read_counted_listed_and_removed(collecting):
    backend, values = filled()
    backend.begin_epoch(2)
    backend.set_current_key("new")
    values.update("late")
    assert values.value() == "late"
    assert backend.num_entries() == NUM_KEYS + 1
    assert "new" in set(backend.keys("value"))
    values.update("later")
    values.clear()
    assert values.value() is None
    assert backend.num_entries() == NUM_KEYS
    backend.set_current_key(3)
    values.update("late")
    values.clear()
    assert values.value() is None
    assert backend.num_entries() == NUM_KEYS - 1


def test_a_barrier_ends_the_epoch_of_what_was_written_before_it(collecting):
    backend, values = filled()
    backend.begin_epoch(2)
    backend.set_current_key(1)
    values.update("first")
    backend.begin_epoch(3)
    backend.set_current_key(2)
    values.update("second")
    assert backend.num_changed(2, 100) == 2
    assert backend.num_changed(3, 100) == 1
    assert contents(backend.snapshot_delta(GROUPS, 3)) == {2: "second"}


def contents(*layers):
    backend = HeapKeyedStateBackend(ManualClock(), 16)
    for layer in layers:
        backend.restore(layer)
    found = {}
    for chunk in backend.snapshot(GROUPS).values():
        for name, state in load_keyed(chunk, "state").items():
            for _, keys, cells in state.entries:
                found |= {key if name == "value" else (name, key): cell for key, cell in zip(keys, cells, strict=True)}
    return found


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["update", "add", "change", "clear", "read"]), st.integers(0, 6)),
            st.just(("barrier", 0)),
            st.just(("abort", 0)),
        ),
        max_size=60,
    )
)
def test_values_and_increments_are_those_of_a_table_that_writes_at_once(collecting, operations):
    """``change``: a list that was read is changed in place, with no word to the state. ``abort``: a barrier whose
    checkpoint does not complete."""
    backend, values = filled()
    sums = backend.reducing_state(SUM)
    expected: dict[object, object] = {key: key for key in range(NUM_KEYS)}
    layers, last = [backend.snapshot(GROUPS)], 2
    backend.begin_epoch(2)
    for number, (what, key) in enumerate([*operations, ("barrier", 0)], 3):
        backend.set_current_key(key)
        match what:
            case "update":
                values.update([number])
                expected[key] = [number]
            case "add":
                sums.add(number)
                expected["sum", key] = expected.get(("sum", key), 0) + number
            case "change":
                held = values.value()
                if isinstance(held, list):
                    held.append(number)
                    expected[key] = [*held]
            case "clear":
                values.clear()
                sums.clear()
                expected.pop(key, None)
                expected.pop(("sum", key), None)
            case "read":
                assert values.value() == expected.get(key)
                assert sums.get() == expected.get(("sum", key))
            case "abort":
                backend.snapshot_delta(GROUPS, last)
                backend.begin_epoch(number)
            case "barrier":
                delta = backend.snapshot_delta(GROUPS, last)
                assert delta is not None
                layers, last = [*layers, delta], number
                backend.begin_epoch(number)
                backend.forget_epochs(number)
                assert contents(*layers) == expected
    assert contents(backend.snapshot(GROUPS)) == expected
