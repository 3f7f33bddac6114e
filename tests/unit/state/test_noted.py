"""Increments that are noted at the barrier and made while the task changes its state."""

from __future__ import annotations

import copy
import datetime as dt
from collections import OrderedDict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.records import Row
from engine.operators.functions import ReduceFunction
from engine.state.descriptors import (
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from engine.state.heap_backend import HeapKeyedStateBackend
from engine.state.heap_states import MISSING
from engine.state.mapping_part import MappingPart
from engine.state.noted import UNSETTLED, Settler
from engine.state.parts import NotingPart
from engine.state.slot_state import SlotState
from engine.state.timers import TimerService
from engine.time.watermarks import Duration

GROUPS = range(128)
VALUE, LIST, MAP = ValueStateDescriptor("value"), ListStateDescriptor("list"), MapStateDescriptor("map")


class Holder:
    """A value of a class of the user's."""

    def __init__(self) -> None:
        self.seen: list[int] = []


NAMED = Row(id=1, tags=["a"])


@pytest.mark.parametrize(
    "value",
    [
        7,
        None,
        dt.datetime(2024, 1, 1),
        (1, "a", b"b"),
        (1, [2]),
        [1, [2, (3, [4])]],
        {"a": [1]},
        OrderedDict(a=[1], b=(2, 3)),
        NAMED,
        {"row": Row(1, [2])},
    ],
    ids=repr,
)
def test_what_is_noted_is_equal_and_shares_nothing_that_can_be_changed(value):
    settled = Settler(100).settled(value)
    assert settled == value
    assert type(settled) is type(value)
    before = copy.deepcopy(value)
    _spoil(value)
    assert settled == before


def _spoil(value):
    """Change all that can be changed."""
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, Row)) else ():
        _spoil(part)
    match value:
        case list():
            value.append("spoilt")
        case dict():
            value["spoilt"] = 0
        case Row():
            value[0] = "spoilt"


@pytest.mark.parametrize("value", [Holder(), (1, Holder()), [set()], {(1, 2): 3}, bytearray(b"x")], ids=range(5))
def test_what_could_be_changed_in_ways_unknown_is_not_noted(value):
    assert Settler(100).settled(value) is UNSETTLED


def test_containers_are_noted_until_they_are_too_large():
    settler = Settler(2)
    assert settler.settled(list(range(20))) == list(range(20))
    assert settler.entries_left < 1
    assert settler.settled(list(range(20))) is UNSETTLED
    deep = [1]
    for _ in range(10):
        deep = [deep]
    assert Settler(100).settled(deep) is UNSETTLED


def filled(clock=None):
    """A backend with so many keys that few changes are few, behind the barrier of checkpoint 1."""
    backend = HeapKeyedStateBackend(clock or ManualClock(), 128, incremental=True)
    values = backend.value_state(VALUE)
    for number in range(100):
        backend.set_current_key(("more", number))
        values.update(number)
    full = backend.snapshot(GROUPS)
    backend.begin_epoch(1)
    return backend, [full]


def contents(backend):
    return {
        (name, namespace, key): copy.deepcopy(cell)
        for name, table in backend._tables.items()
        for namespace, cells in table.spaces.items()
        for key, cell in cells.items()
    }


def restored(*layers):
    backend = HeapKeyedStateBackend(ManualClock(), 128)
    for layer in layers:
        backend.restore(layer)
    return contents(backend)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", ("more", 1)]), st.sampled_from(["put", "change", "remove"]), st.integers(0, 9)
    ),
    max_size=8,
)


def apply(backend, operations):
    values, elements, entries = backend.value_state(VALUE), backend.list_state(LIST), backend.map_state(MAP)
    for key, what, number in operations:
        backend.set_current_key(key)
        match what:
            case "put":
                values.update([number])
                elements.add(number)
                entries.put(number % 3, [number])
            case "change":  # in place, and then said or not: what value() has given counts as changed
                if isinstance(value := values.value(), list):
                    value.append(number)
                if (entry := entries.get(number % 3)) is not None:
                    entry.append(number)
                elements.add_all([number, number])
            case "remove":
                values.clear()
                elements.clear()
                entries.remove(number % 3)


@settings(deadline=None, max_examples=60)
@given(st.lists(OPERATIONS, min_size=1, max_size=5))
def test_an_increment_that_was_noted_has_the_state_as_of_its_barrier(epochs):
    backend, layers = filled()
    assert isinstance(backend, NotingPart)
    for number, operations in enumerate(epochs, 2):
        apply(backend, operations)
        noted = backend.note_delta(GROUPS, number - 1, 1000)
        backend.begin_epoch(number)
        backend.forget_epochs(number - 1)
        at_barrier = contents(backend)
        apply(backend, [*reversed(operations), ("a", "change", 5), ("b", "put", 6), ("a", "remove", 7)])
        layers.append(noted.chunks())
        assert restored(*layers) == at_barrier


def test_more_changes_than_allowed_are_not_noted():
    backend, _ = filled()
    apply(backend, [("a", "put", 1), ("b", "put", 2)])
    assert backend.note_delta(GROUPS, 1, 5) is None
    assert backend.note_delta(GROUPS, 1, 50).num_entries >= 6
    assert backend.note_delta(GROUPS, 9, 50) is None  # nothing is known since then
    backend.set_current_key("a")
    backend.value_state(VALUE).update(Holder())
    assert backend.note_delta(GROUPS, 1, 50) is None


class Extend(ReduceFunction):
    def reduce(self, value1, value2):
        value1 += value2
        return value1


def test_an_accumulator_that_is_changed_in_place_is_noted_as_it_was():
    backend, layers = filled()
    state = backend.reducing_state(ReducingStateDescriptor("sum", Extend()))
    backend.set_current_key("a")
    state.add([1])
    noted = backend.note_delta(GROUPS, 1, 50)
    state.add([2])
    assert restored(*layers, noted.chunks())["sum", None, "a"] == [1]


def test_values_that_expire_are_noted():
    clock = ManualClock(1000)
    backend, layers = filled(clock)
    descriptor = ListStateDescriptor("expiring")
    descriptor.enable_time_to_live(StateTtlConfig.new_builder(Duration.of_minutes(1)).build())
    state = backend.list_state(descriptor)
    backend.set_current_key("a")
    state.add(1)
    noted = backend.note_delta(GROUPS, 1, 50)
    state.add(2)
    assert restored(*layers, noted.chunks())["expiring", None, "a"] == [(1, 1000)]


def test_timers_are_noted():
    timers = TimerService(128, incremental=True)
    for number in range(50):
        timers.register_event_time(f"k{number}", None, 100 + number)
    full = timers.snapshot(GROUPS)
    timers.begin_epoch(1)
    timers.register_event_time("late", None, 500)
    timers.delete_event_time("k3", None, 103)
    assert isinstance(timers, NotingPart)
    noted = timers.note_delta(GROUPS, 1, 10)
    assert timers.note_delta(GROUPS, 1, 1) is None
    timers.begin_epoch(2)
    timers.delete_event_time("late", None, 500)
    timers.register_event_time("k3", None, 103)
    again = TimerService(128)
    again.restore(full)
    again.restore(noted.chunks())
    due = [(time_ms, key) for time_ms, key, _ in again.advance_watermark(1000)]
    assert due == [(100 + number, f"k{number}") for number in range(50) if number != 3] + [(500, "late")]


def test_tables_of_operators_are_noted():
    table = {f"k{number}": [number] for number in range(50)}

    def part_of(entries):
        return MappingPart(
            "table",
            128,
            items=entries.items,
            get=lambda key: entries.get(key, MISSING),
            put=entries.__setitem__,
            size=lambda: len(entries),
            owner="Test",
            incremental=True,
        )

    part = part_of(table)
    full = part.snapshot(GROUPS)
    part.begin_epoch(1)
    part.see(["k1"])
    table["k1"].append(7)
    assert isinstance(part, NotingPart)
    noted = part.note_delta(GROUPS, 1, 10)
    assert part.note_delta(GROUPS, 1, 0) is None
    table["k1"].append(8)
    found = {}
    again = part_of(found)
    again.restore(full)
    again.restore(noted.chunks())
    assert found["k1"] == [1, 7]
    table["k1"] = Holder()
    assert part.note_delta(GROUPS, 1, 10) is None


def test_columns_are_noted():
    def put(state, rows):
        slots, _ = state.find([pa.array([key for key, _, _ in rows])])
        state.columns["n"].put(slots, pa.array([n for _, n, _ in rows]))
        state.columns["text"].put(slots, pa.array([text for _, _, text in rows]))
        state.mark(slots)

    def rows_of(state):
        slots = np.arange(state.num_slots)
        columns = [*state.table.keys_of(slots), *(column.get(slots) for column in state.columns.values())]
        return dict(zip(columns[0].to_pylist(), zip(*(c.to_pylist() for c in columns[1:]), strict=True), strict=True))

    state = SlotState(128, is_tuple=False)
    state.define([pa.string()], {"n": pa.int64(), "text": pa.string()})
    put(state, [(f"k{number}", number, "old") for number in range(1000)])
    full = state.snapshot(GROUPS)
    state.begin_epoch(1)
    put(state, [("k5", 50, "changed"), ("new", 60, "new")])
    at_barrier = rows_of(state)
    assert isinstance(state, NotingPart)
    noted = state.note_delta(GROUPS, 1, 10)
    assert state.note_delta(GROUPS, 1, 0) is None
    state.begin_epoch(2)
    put(state, [(f"k{number}", -1, "after") for number in range(1000)])
    again = SlotState(128, is_tuple=False)
    again.restore(full)
    again.restore(noted.chunks())
    assert rows_of(again) == at_barrier
