"""Keyed state in memory against a dict, by key, namespace and snapshot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.errors import ProgramError
from engine.operators.functions import AggregateFunction, ReduceFunction
from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    ValueStateDescriptor,
)
from engine.state.heap_backend import HeapKeyedStateBackend
from engine.state.key_groups import key_group_of

VALUE = ValueStateDescriptor("value")
LIST = ListStateDescriptor("list")
MAP = MapStateDescriptor("map")
SUM = ReducingStateDescriptor("sum", lambda a, b: a + b)


class Mean(AggregateFunction):
    def create_accumulator(self):
        return (0, 0)

    def add(self, value, accumulator):
        return accumulator[0] + value, accumulator[1] + 1

    def get_result(self, accumulator):
        return accumulator[0] / accumulator[1]

    def merge(self, acc_a, acc_b):
        return acc_a[0] + acc_b[0], acc_a[1] + acc_b[1]


MEAN = AggregatingStateDescriptor("mean", Mean())


@pytest.fixture
def backend():
    return HeapKeyedStateBackend(ManualClock(1000), 128)


def test_each_key_has_its_own_value(backend):
    state = backend.value_state(VALUE)
    for key in ("a", "b", 3, (1, "x"), None, 2.5):
        backend.set_current_key(key)
        assert state.value() is None
        state.update(f"of {key!r}")
    backend.set_current_key((1, "x"))
    assert state.value() == "of (1, 'x')"
    state.clear()
    assert state.value() is None
    state.update(1)
    state.update(None)
    assert sorted(map(str, backend.keys("value"))) == ["2.5", "3", "None", "a", "b"]


def test_all_nan_are_one_key(backend):
    state = backend.reducing_state(SUM)
    for key in (float("nan"), float("nan"), float("inf") - float("inf")):
        backend.set_current_key(key)
        state.add(1)
    assert state.get() == 3


def test_list_state_keeps_order_and_gives_out_copies(backend):
    state = backend.list_state(LIST)
    backend.set_current_key("k")
    assert state.get() == []
    state.add(3)
    state.add_all(iter([1, 2]))
    given_out = state.get()
    given_out.append("not in the state")
    for element in state:
        state.add(element)  # iterating while adding ends
    assert state.get() == [3, 1, 2, 3, 1, 2]
    state.update([7])
    assert state.get() == [7]
    state.update([])
    assert list(backend.keys("list")) == []


def test_map_state_has_the_methods_of_pyflink(backend):
    state = backend.map_state(MAP)
    backend.set_current_key("k")
    assert state.is_empty()
    assert state.get("x") is None
    state.put("x", 1)
    state["y"] = 2
    state.put_all({"z": 3, "x": None})
    assert state["y"] == 2
    assert "x" in state  # an entry whose value is None is there
    assert sorted(state) == ["x", "y", "z"]
    assert state.items() == [("x", None), ("y", 2), ("z", 3)]
    assert list(state.values()) == [None, 2, 3]
    for key in list(state.keys()):
        state.remove(key)
    assert state.is_empty()
    assert list(backend.keys("map")) == []


def test_reducing_and_aggregating_state(backend):
    class Add(ReduceFunction):
        def reduce(self, value1, value2):
            return value1 + value2

    total = backend.reducing_state(ReducingStateDescriptor("total", Add()))
    mean = backend.aggregating_state(MEAN)
    backend.set_current_key("k")
    assert total.get() is None
    assert mean.get() is None
    for value in (1, 2, 6):
        total.add(value)
        mean.add(value)
    assert (total.get(), mean.get()) == (9, 3.0)


def test_state_without_a_key_is_refused_and_says_where_it_may_be_used(backend):
    states = [backend.value_state(VALUE), backend.list_state(LIST), backend.map_state(MAP), backend.reducing_state(SUM)]
    backend.set_current_key("k")
    states[0].update(1)
    backend.clear_current_key()
    for use in (
        states[0].value,
        states[1].get,
        states[2].is_empty,
        states[3].clear,
        lambda: states[0].update(1),
        lambda: states[1].add(1),
    ):
        with pytest.raises(ProgramError, match=r"no current key.*open\(\) may only get the state"):
            use()


def test_a_name_known_as_another_kind_of_state_is_refused(backend):
    backend.value_state(VALUE)
    with pytest.raises(ProgramError, match="'value' is a value state and cannot be a list state as well"):
        backend.list_state(ListStateDescriptor("value"))
    with pytest.raises(ProgramError, match="wants a MapStateDescriptor, got ValueStateDescriptor"):
        backend.map_state(VALUE)
    with pytest.raises(ProgramError, match="wants a ValueStateDescriptor, got 'name'"):
        backend.value_state("name")


def test_a_key_that_cannot_be_hashed_is_refused(backend):
    with pytest.raises(ProgramError, match=r"\['a'\] of type list cannot be a key: it is not hashable"):
        backend.set_current_key(["a"])


def test_two_states_of_one_descriptor_see_the_same_values_each_in_its_namespace(backend):
    one, other = backend.value_state(VALUE), backend.value_state(VALUE)
    backend.set_current_key("k")
    one.update(1)
    assert other.value() == 1
    other.set_current_namespace(("window", 5))
    assert other.value() is None
    other.update(2)
    assert one.value() == 1
    assert list(backend.keys("value", ("window", 5))) == ["k"]
    other.clear()
    other.clear()
    assert list(backend.keys("value", ("window", 5))) == []
    assert one.value() == 1


def test_an_empty_namespace_costs_nothing(backend):
    state = backend.list_state(LIST)
    for window in range(1000):
        state.set_current_namespace(window)
        backend.set_current_key("k")
        state.add(1)
        state.clear()
    assert len(backend._tables["list"].spaces) == 0


def test_namespaces_merge_for_lists_reductions_and_aggregates(backend):
    states = [backend.list_state(LIST), backend.reducing_state(SUM), backend.aggregating_state(MEAN)]
    backend.set_current_key("other key")
    for state in states:
        state.set_current_namespace(1)
        state.add(1000)
    backend.set_current_key("k")
    for state in states:
        for namespace in (1, 2, 3, 9):
            state.set_current_namespace(namespace)
            state.add(namespace)
        state.merge_namespaces(2, [1, 2, 3, 4])  # 2 is the target, 4 is empty
        state.merge_namespaces(7, [5, 6])  # all empty
        assert state.get() == ([9] if isinstance(state.get(), list) else 9)  # the namespace is still the one set
        state.set_current_namespace(2)
    assert [state.get() for state in states] == [[2, 1, 3], 6, 2.0]
    for state, expected in zip(states, ([9], 9, 9.0), strict=True):
        for namespace in (1, 3, 7):
            state.set_current_namespace(namespace)
            assert not state.get()
        state.set_current_namespace(9)
        assert state.get() == expected
    backend.set_current_key("other key")
    states[1].set_current_namespace(1)
    assert states[1].get() == 1000


def filled(backend):
    states = [
        backend.value_state(VALUE),
        backend.list_state(LIST),
        backend.map_state(MAP),
        backend.reducing_state(SUM),
        backend.aggregating_state(MEAN),
    ]
    for key in range(50):
        backend.set_current_key(key)
        states[0].update(key)
        states[1].add_all([key, key])
        states[2].put(key, "x")
        states[3].add(key)
        states[4].add(key)
        states[1].set_current_namespace("w")
        states[1].add(key)
        states[1].set_current_namespace(None)
    return states


def contents(backend):
    states = [
        backend.value_state(VALUE),
        backend.list_state(LIST),
        backend.map_state(MAP),
        backend.reducing_state(SUM),
        backend.aggregating_state(MEAN),
    ]
    found = {}
    for key in sorted(backend.keys("value")):
        backend.set_current_key(key)
        in_window = backend.list_state(LIST)
        in_window.set_current_namespace("w")
        found[key] = (
            states[0].value(),
            states[1].get(),
            in_window.get(),
            states[2].items(),
            states[3].get(),
            states[4].get(),
        )
    return found


def test_a_snapshot_holds_the_state_of_then_and_is_split_by_key_group(backend):
    states = filled(backend)
    before = contents(backend)
    chunks = backend.snapshot(range(128))
    backend.set_current_key(1)
    states[1].add("later")
    states[0].update("later")
    assert set(chunks) == {key_group_of(key, 128) for key in range(50)}
    # Rescale from one subtask to two.
    parts = []
    for groups in (range(64), range(64, 128)):
        part = HeapKeyedStateBackend(ManualClock(), 128)
        part.restore({group: chunk for group, chunk in chunks.items() if group in groups})
        parts.append(contents(part))
        assert all(key_group_of(key, 128) in groups for key in parts[-1])
    assert parts[0] | parts[1] == before
    assert set(backend.snapshot(range(64))) == {group for group in chunks if group < 64}
    # And back to one.
    whole = HeapKeyedStateBackend(ManualClock(), 128)
    whole.restore(backend.snapshot(range(64)))
    whole.restore(backend.snapshot(range(64, 128)))
    assert contents(whole).keys() == before.keys()


def test_a_restored_nan_is_still_the_one_nan(backend):
    state = backend.reducing_state(SUM)
    for key in (float("nan"), ("k", float("nan"))):
        backend.set_current_key(key)
        state.add(1)
    restored = HeapKeyedStateBackend(ManualClock(), 128)
    restored.restore(backend.snapshot(range(128)))
    state = restored.reducing_state(SUM)
    for key in (float("nan"), ("k", float("nan"))):
        restored.set_current_key(key)
        state.add(1)
        assert state.get() == 2


def test_a_restored_state_of_another_kind_is_refused(backend):
    filled(backend)
    restored = HeapKeyedStateBackend(ManualClock(), 128)
    restored.restore(backend.snapshot(range(128)))
    with pytest.raises(ProgramError, match=r"'list' was a list state .* asks for a value state"):
        restored.value_state(ValueStateDescriptor("list"))


def test_state_that_the_program_no_longer_asks_for_stays_in_later_snapshots(backend):
    filled(backend)
    restored = HeapKeyedStateBackend(ManualClock(), 128)
    restored.restore(backend.snapshot(range(128)))
    again = HeapKeyedStateBackend(ManualClock(), 128)
    again.restore(restored.snapshot(range(128)))
    assert contents(again) == contents(backend)


KEYS = st.one_of(st.integers(-2, 2), st.sampled_from(["a", "b"]), st.tuples(st.integers(0, 1), st.just("t")), st.none())
OPERATIONS = st.lists(
    st.tuples(KEYS, st.sampled_from([None, "w1", "w2"]), st.sampled_from(["add", "clear", "update"]), st.integers()),
    max_size=40,
)


@given(OPERATIONS)
def test_list_state_behaves_as_a_dict_of_lists_also_after_a_restore(operations):
    backend, model = HeapKeyedStateBackend(ManualClock(), 128), {}
    state = backend.list_state(LIST)
    for key, namespace, what, value in operations:
        backend.set_current_key(key)
        state.set_current_namespace(namespace)
        if what == "add":
            state.add(value)
            model.setdefault((key, namespace), []).append(value)
        elif what == "update":
            state.update([value, value])
            model[(key, namespace)] = [value, value]
        else:
            state.clear()
            model.pop((key, namespace), None)
        assert state.get() == model.get((key, namespace), [])
    restored = HeapKeyedStateBackend(ManualClock(), 128)
    restored.restore(backend.snapshot(range(128)))
    state = restored.list_state(LIST)
    found = {}
    for namespace in (None, "w1", "w2"):
        state.set_current_namespace(namespace)
        for key in restored.keys("list", namespace):
            restored.set_current_key(key)
            found[(key, namespace)] = state.get()
    assert found == model
