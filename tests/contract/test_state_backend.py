"""Keyed state against a dict, by key, namespace and snapshot: the contract of its backends."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import sys
import threading
import types
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.errors import ProgramError
from engine.core.records import Row
from engine.operators.functions import AggregateFunction, ReduceFunction
from engine.state.chunks import load_keyed
from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    ValueStateDescriptor,
)
from engine.state.heap_backend import HeapKeyedStateBackend
from engine.state.key_groups import key_group_of
from engine.state.rocksdb_backend import RocksDBKeyedStateBackend
from engine.time.windows import TimeWindow

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
def backend(backends):
    return backends.make()


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


def test_an_empty_namespace_costs_nothing(backends, backend):
    state = backend.list_state(LIST)
    for window in range(1000):
        state.set_current_namespace(window)
        backend.set_current_key("k")
        state.add(1)
        state.clear()
    assert list(backend.keys("list", 999)) == []
    assert not backends.snapshot(backend)
    if backends.is_in_memory:
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


def test_a_snapshot_holds_the_state_of_then_and_is_split_by_key_group(backends, backend):
    states = filled(backend)
    before = contents(backend)
    chunks = backends.snapshot(backend, range(128))
    backend.set_current_key(1)
    states[1].add("later")
    states[0].update("later")
    assert set(chunks) == {key_group_of(key, 128) for key in range(50)}
    # Rescale from one subtask to two.
    parts = []
    for groups in (range(64), range(64, 128)):
        part = backends.make()
        part.restore({group: chunk for group, chunk in chunks.items() if group in groups})
        parts.append(contents(part))
        assert all(key_group_of(key, 128) in groups for key in parts[-1])
    assert parts[0] | parts[1] == before
    assert set(backends.snapshot(backend, range(64))) == {group for group in chunks if group < 64}
    # And back to one.
    whole = backends.make()
    whole.restore(backends.snapshot(backend, range(64)))
    whole.restore(backends.snapshot(backend, range(64, 128)))
    assert contents(whole).keys() == before.keys()


def test_a_restored_nan_is_still_the_one_nan(backends, backend):
    state = backend.reducing_state(SUM)
    for key in (float("nan"), ("k", float("nan"))):
        backend.set_current_key(key)
        state.add(1)
    restored = backends.restored(backend)
    state = restored.reducing_state(SUM)
    for key in (float("nan"), ("k", float("nan"))):
        restored.set_current_key(key)
        state.add(1)
        assert state.get() == 2


def test_a_restored_state_of_another_kind_is_refused(backends, backend):
    filled(backend)
    restored = backends.restored(backend)
    with pytest.raises(ProgramError, match=r"'list' was a list state .* asks for a value state"):
        restored.value_state(ValueStateDescriptor("list"))


def test_state_that_the_program_no_longer_asks_for_stays_in_later_snapshots(backends, backend):
    filled(backend)
    restored = backends.restored(backend)
    again = backends.make()
    again.restore(backends.snapshot(restored, range(128)))
    assert contents(again) == contents(backend)


KEYS = st.one_of(st.integers(-2, 2), st.sampled_from(["a", "b"]), st.tuples(st.integers(0, 1), st.just("t")), st.none())
OPERATIONS = st.lists(
    st.tuples(KEYS, st.sampled_from([None, "w1", "w2"]), st.sampled_from(["add", "clear", "update"]), st.integers()),
    max_size=40,
)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS)
def test_list_state_behaves_as_a_dict_of_lists_also_after_a_restore(backends, operations):
    backend, model = backends.make(), {}
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
    restored = backends.restored(backend)
    state = restored.list_state(LIST)
    found = {}
    for namespace in (None, "w1", "w2"):
        state.set_current_namespace(namespace)
        for key in restored.keys("list", namespace):
            restored.set_current_key(key)
            found[(key, namespace)] = state.get()
    assert found == model


# --- keys, values and kinds of chunks ---------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass(frozen=True)
class Place:
    town: str
    number: int


#: Each line is one key.
EQUAL_KEYS = [
    [1, 1.0, True, decimal.Decimal(1)],
    [0.5, decimal.Decimal("0.50")],
    [decimal.Decimal("0.1"), decimal.Decimal("0.10")],
    [0, -0.0, False],
    [2**70, float(2**70)],
    [float("nan"), -float("nan"), decimal.Decimal("nan")],
    [float("inf")],
    ["1"],
    [b"1"],
    [None],
    [""],
    ["\ud800"],
    [()],
    [("a", ("b", 1)), ("a", ("b", 1.0))],
    [("ab",)],
    [("a", "b")],
    [dt.date(2024, 1, 2)],
    [dt.datetime(2024, 1, 2)],
    [
        dt.datetime(2024, 1, 2, 12, tzinfo=dt.UTC),
        dt.datetime(2024, 1, 2, 13, tzinfo=dt.timezone(dt.timedelta(hours=1))),
    ],
    [dt.timedelta(1)],
    [uuid.UUID(int=5)],
    [Colour.RED],
    [Place("x", 1)],
    [Row(1, "a")],
    [Row(x=1, y="a")],
]


def test_keys_that_are_equal_are_one_key_whatever_their_types_and_others_are_not(backends, backend):
    state = backend.reducing_state(SUM)
    for position in range(4):  # so that equal keys do not follow each other
        for number, keys in enumerate(EQUAL_KEYS):
            for key in keys[position : position + 1]:
                backend.set_current_key(key)
                state.add(10**number)
    assert len(list(backend.keys("sum"))) == len(EQUAL_KEYS)
    for store in (backend, backends.restored(backend)):
        state = store.reducing_state(SUM)
        for number, keys in enumerate(EQUAL_KEYS):
            for key in keys:
                store.set_current_key(key)
                assert state.get() == len(keys) * 10**number, key
        assert {key for key in store.keys("sum") if key == key} == {
            keys[0] for keys in EQUAL_KEYS if keys[0] == keys[0]
        }


def test_maps_take_any_hashable_key_and_any_value(backends, backend):
    entries = {
        "x": None, 1: [1], 2.5: "half", None: 0, ("t", 1): {"a": 1}, frozenset({1, 2}): "set", Colour.RED: "red",
        dt.date(2024, 1, 1): "day", lambda_free: "function", b"": b"",
    }  # fmt: skip
    state = backend.map_state(MAP)
    backend.set_current_key("k")
    state.put_all(entries)
    state.put(True, "one")  # equal to 1
    entries[1] = "one"
    state.put("gone", 1)
    state.put(frozenset({9}), 1)
    state.remove("gone")
    state.remove(frozenset({9}))
    for store in (backend, backends.restored(backend)):
        state = store.map_state(MAP)
        store.set_current_key("k")
        assert dict(state.items()) == entries
        for key, value in entries.items():
            assert state.get(key) == value
            assert state.contains(key)
        assert not state.contains("gone")
        store.set_current_key("another")
        assert state.is_empty()
    state.put("a", 1)
    store.set_current_key("k")
    state.clear()
    assert state.items() == []
    store.set_current_key("another")
    assert state.items() == [("a", 1)]


def lambda_free():
    pass


def test_a_value_or_map_value_that_is_changed_in_place_is_kept(backends, backend):
    value, entries = backend.value_state(VALUE), backend.map_state(MAP)
    backend.set_current_key("k")
    value.update([1])
    entries.put("e", [1])
    restored = backends.restored(backend)
    value, entries = restored.value_state(VALUE), restored.map_state(MAP)
    restored.set_current_key("k")
    value.value().append(2)
    entries.get("e").append(2)
    again = backends.restored(restored)
    value, entries = again.value_state(VALUE), again.map_state(MAP)
    again.set_current_key("k")
    assert (value.value(), entries.get("e")) == ([1, 2], [1, 2])


def test_values_of_classes_that_nobody_can_import_come_back_as_the_programs_own(backends, backend):
    @dataclasses.dataclass
    class Order:
        amount: int

        def doubled(self):
            return 2 * self.amount

    value = backend.value_state(VALUE)
    for number in range(50):
        backend.set_current_key(number)
        value.update(Order(number))
    restored = backends.restored(backend)
    value = restored.value_state(VALUE)
    restored.set_current_key(7)
    assert value.value() == Order(7)
    assert type(value.value()) is Order
    assert value.value().doubled() == 14


def test_a_value_that_cannot_be_pickled_is_told_with_state_and_key(backends, backend):
    state = backend.value_state(VALUE)
    state.set_current_namespace(TimeWindow(0, 5))
    backend.set_current_key("good")
    state.update(1)
    backend.set_current_key("bad")
    with pytest.raises(ProgramError, match=r"state 'value', key 'bad' in TimeWindow\(.*: .*cannot.* pickle"):
        state.update(threading.Lock())
        backends.snapshot(backend)


def test_a_class_that_is_gone_is_told_with_its_state(backends, backend, monkeypatch):
    module = types.ModuleType("shop_of_old")
    exec("class Order:\n    pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "shop_of_old", module)
    backend.value_state(VALUE)
    backend.set_current_key("k")
    backend.value_state(VALUE).update(module.Order())
    backend.list_state(LIST).add(1)
    chunks = backends.snapshot(backend)
    del module.Order
    with pytest.raises(ProgramError, match=r"state 'value' cannot be restored: AttributeError.*Order.*renamed"):
        restored = backends.make()
        restored.restore(chunks)
        restored.set_current_key("k")
        restored.value_state(VALUE).value()


def test_keys_of_another_type_than_those_restored_are_refused(backends, backend):
    state = backend.value_state(VALUE)
    for number in range(20):
        backend.set_current_key(number)
        state.update(number)
    restored = backends.restored(backend)
    with pytest.raises(ProgramError, match=r"written with keys of type number.*keys of type str, e\.g\. 'a'"):
        restored.set_current_key("a")
    mixed = backends.restored(backend)
    for key in [None, 5, "a", *map(str, range(100))]:
        mixed.set_current_key(key)  # a stream with keys of several types


@pytest.mark.parametrize("key", [7, 7.0, True, None])
def test_keys_that_may_equal_those_restored_are_not_refused(backends, backend, key):
    state = backend.value_state(VALUE)
    backend.set_current_key(7)
    state.update("seven")
    restored = backends.restored(backend)
    restored.set_current_key(key)
    assert restored.value_state(VALUE).value() == ("seven" if key == 7 else None)


def test_each_backend_reads_the_chunks_of_the_other(backends, backend, tmp_path):
    filled(backend)
    other = RocksDBKeyedStateBackend(ManualClock(), 128, folder=f"{tmp_path}/other", memory_bytes=0, session="o")
    chunks = backends.snapshot(backend)
    heap = HeapKeyedStateBackend(ManualClock(), 128)
    for reader in (heap, other):
        reader.restore(chunks)
        assert contents(reader) == contents(backend)
    other.freeze_rows()
    back = backends.make()
    back.restore(dict(other.snapshot(range(128))))
    assert contents(back) == contents(backend)
    other.close()


def test_a_chunk_of_another_format_is_refused(backends, backend):
    backend.set_current_key("k")
    backend.value_state(VALUE).update(1)
    ((group, chunk),) = backends.snapshot(backend).items()
    with pytest.raises(ProgramError, match=r"format of its keyed state is not known here \(version 9"):
        backends.make().restore({group: chunk[:4] + b"\x09\x00" + chunk[6:]})
    with pytest.raises(ProgramError, match="chunk of 3 bytes is no keyed state"):
        backends.make().restore({group: chunk[:3]})


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(OPERATIONS, st.just("mark")), max_size=6))
def test_increments_give_the_state_that_a_full_snapshot_gives(marks_and_operations):
    backend = HeapKeyedStateBackend(ManualClock(), 128, incremental=True)
    values, elements, entries = backend.value_state(VALUE), backend.list_state(LIST), backend.map_state(MAP)
    for number in range(60):  # so that few changes are few
        backend.set_current_key(("more", number))
        values.update(number)
    layers, last, deltas = [], None, 0
    for checkpoint_id, operations in enumerate([[], *marks_and_operations, []], 1):
        for key, namespace, what, number in () if operations == "mark" else operations:
            backend.set_current_key(key)
            for state in (values, elements, entries):
                state.set_current_namespace(namespace)
            if what == "add":
                elements.add(number)
                entries.put(number % 3, number)
            elif what == "update":
                values.update([number])
            else:
                values.clear()
                elements.clear()
                entries.remove(number % 3)
        delta = None if last is None else backend.snapshot_delta(range(128), last)
        layers = [*layers, delta] if delta is not None else [backend.snapshot(range(128))]
        deltas += delta is not None
        backend.begin_epoch(checkpoint_id)
        if checkpoint_id % 3:  # some checkpoints are aborted, the next one builds on an older one
            last = checkpoint_id
            backend.forget_epochs(last)
        else:
            layers = layers[:-1] if delta is not None else layers
            last = last if delta is not None else checkpoint_id
        restored = HeapKeyedStateBackend(ManualClock(), 128)
        if checkpoint_id % 3 or delta is None:
            for layer in layers:
                restored.restore(layer)
            assert load_all(restored) == load_all(backend)
    assert deltas


def load_all(backend):
    found = {}
    for group, chunk in backend.snapshot(range(128)).items():
        for name, state in load_keyed(chunk, "state").items():
            for namespace, keys, cells in state.entries:
                found |= {(group, name, namespace, key): cell for key, cell in zip(keys, cells, strict=True)}
    return found
