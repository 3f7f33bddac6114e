"""States refuse what their descriptors do not declare: each way of writing, in each backend, with and without TTL."""

from __future__ import annotations

import pytest

from engine.core.clock import ManualClock
from engine.core.errors import ProgramError
from engine.core.records import Row
from engine.core.type_info import Types
from engine.operators.functions import AggregateFunction
from engine.state.descriptors import (
    AggregatingStateDescriptor,
    ListStateDescriptor,
    MapStateDescriptor,
    ReducingStateDescriptor,
    StateTtlConfig,
    ValueStateDescriptor,
)
from engine.state.heap_backend import HeapKeyedStateBackend
from engine.state.operator_state import OperatorStateStore
from engine.time.watermarks import Duration

EVERLASTING = None
EXPIRING = StateTtlConfig.new_builder(Duration.of_millis(100)).update_ttl_on_read_and_write().build()


@pytest.fixture(params=[EVERLASTING, EXPIRING], ids=["everlasting", "expiring"])
def made(request, backends):
    """Return a function: descriptor → state of key "k"."""
    backend = backends.make(ManualClock(1000))

    def make(descriptor):
        if request.param is not None:
            descriptor.enable_time_to_live(request.param)
        make_state = getattr(backend, f"{descriptor.kind}_state")
        backend.set_current_key("k")
        return make_state(descriptor)

    return make


def test_a_value_of_another_type_is_refused_by_name_and_the_former_one_stays(made):
    state = made(ValueStateDescriptor("v", Types.INT()))
    state.update(5)
    with pytest.raises(ProgramError) as caught:
        state.update("x")
    assert str(caught.value) == (
        "Value state 'v' is declared Integer, and update() was given 'x' of type str, expected Integer (int of 32 "
        "bits). Write values of the declared type, or declare the type that they have; Types.PICKLED_BYTE_ARRAY() "
        "takes everything."
    )
    with pytest.raises(ProgramError, match=r"out of the range"):
        state.update(2**31)
    assert state.value() == 5
    state.update(None)  # forgets it, whatever is declared
    assert state.value() is None


@pytest.mark.parametrize("value", ["x", True, 1.5])
def test_values_that_fit_in_another_class_than_the_usual_one_are_kept_as_they_are(made, value):
    declared = {str: Types.CHAR(), bool: Types.INT(), float: Types.FLOAT()}[type(value)]
    state = made(ValueStateDescriptor("v", declared))
    state.update(value)
    assert state.value() is value or state.value() == value


def test_tuples_and_rows_are_looked_into(made):
    state = made(ValueStateDescriptor("v", Types.TUPLE([Types.INT(), Types.STRING()])))
    state.update((1, "a"))
    state.update(Row(1, "a"))
    for wrong in ((1, 2), (2**31, "a"), (1,), Row(1, 2), 5):
        with pytest.raises(ProgramError, match=r"update.. was given"):
            state.update(wrong)
    assert state.value() == Row(1, "a")


def test_elements_of_lists_are_looked_at_however_they_come(made):
    state = made(ListStateDescriptor("l", Types.STRING()))
    state.add("a")
    state.add_all(["b", "c"])
    for write, method in ((state.add, "add"), (lambda v: state.add_all(["d", v]), "add_all")):
        with pytest.raises(ProgramError, match=rf"List state 'l' is declared .*{method}.. was given 1 of type int"):
            write(1)
    with pytest.raises(ProgramError, match=r"update.. was given None"):
        state.update(element for element in ("e", None))
    assert list(state.get()) == ["a", "b", "c"]
    state.update(element for element in ("e", "f"))
    assert list(state.get()) == ["e", "f"]


def test_keys_and_values_of_maps_are_looked_at_however_they_come(made):
    state = made(MapStateDescriptor("m", Types.STRING(), Types.INT()))
    state.put("a", 1)
    state.put_all({"b": 2})
    state.put_all([("c", None)])
    state["d"] = 4
    with pytest.raises(ProgramError, match=r"Map state 'm' .* put.. was given key 1 of type int, expected String"):
        state.put(1, 1)
    with pytest.raises(ProgramError, match=r"value 'x' of type str, expected Integer .* .of key 'e'."):
        state.put_all({"e": "x"})
    with pytest.raises(ProgramError, match=r"value 1.5 of type float"):
        state["a"] = 1.5
    assert dict(state.items()) == {"a": 1, "b": 2, "c": None, "d": 4}
    assert state.get("a") == 1


def test_what_a_reduce_function_makes_is_looked_at(made):
    state = made(ReducingStateDescriptor("r", lambda a, b: a / b, Types.INT()))
    with pytest.raises(ProgramError, match=r"Reducing state 'r' is declared Integer, and add.. would keep 'x'"):
        state.add("x")
    state.add(4)
    with pytest.raises(ProgramError, match=r"would keep 2.0 of type float"):
        state.add(2)
    assert state.get() == 4


def test_the_accumulator_of_an_aggregate_is_looked_at(made):
    class Joined(AggregateFunction):
        def create_accumulator(self):
            return ""

        def add(self, value, accumulator):
            return accumulator + value if value else None

        def get_result(self, accumulator):
            return accumulator

        def merge(self, acc_a, acc_b):
            return acc_a + acc_b

    state = made(AggregatingStateDescriptor("a", Joined(), Types.STRING()))
    state.add("x")
    with pytest.raises(ProgramError, match=r"Aggregating state 'a' is declared String, and add.. would keep None"):
        state.add("")
    assert state.get() == "x"


@pytest.mark.parametrize("declared", [None, Types.PICKLED_BYTE_ARRAY()], ids=["undeclared", "pickled"])
def test_states_of_no_declared_type_take_everything(made, declared):
    state = made(ValueStateDescriptor("v", declared))
    for value in (1, "x", (1, [2])):
        state.update(value)
        assert state.value() == value
    entries = made(MapStateDescriptor("m", declared, declared))
    entries.put(1, "x")
    entries.put("x", 1)
    assert dict(entries.items()) == {1: "x", "x": 1}


# --- state that another version of the program wrote ------------------------------------------------------------------

KINDS = {
    "value": lambda *types: ValueStateDescriptor("s", *types),
    "list": lambda *types: ListStateDescriptor("s", *types),
    "map": lambda *types: MapStateDescriptor("s", *(types and (Types.STRING(), *types))),
    "reducing": lambda *types: ReducingStateDescriptor("s", lambda a, b: a + b, *types),
}


def _write(state, kind):
    {
        "value": lambda: state.update(5),
        "list": lambda: state.add(5),
        "map": lambda: state.put("k", 5),
        "reducing": lambda: state.add(5),
    }[kind]()


@pytest.mark.parametrize("ttl", [EVERLASTING, EXPIRING], ids=["everlasting", "expiring"])
@pytest.mark.parametrize("kind", KINDS)
def test_restored_values_of_another_type_are_told_with_owner_state_and_both_types(backends, kind, ttl):
    def ask(backend, *types):
        descriptor = KINDS[kind](*types)
        if ttl is not None:
            descriptor.enable_time_to_live(ttl)
        return getattr(backend, f"{kind}_state")(descriptor)

    former = backends.make()
    for key in range(40):
        former.set_current_key(key)
        _write(ask(former, Types.LONG()), kind)
    restored = backends.restored(former)
    with pytest.raises(ProgramError) as caught:
        ask(restored, Types.STRING())
    told = str(caught.value)
    assert told.startswith(f"Keyed state: {kind} state 's' is declared ")
    assert "another version of the program wrote it" in told
    assert "5 of type int, expected String (str)" in told
    for types in ((Types.INT(),), ()):  # a narrower type that takes what is there, none
        assert ask(backends.restored(former), *types) is not None


def test_what_the_same_program_wrote_is_taken_as_it_is():
    """A value that was changed in place is not looked at when it is written; a restart must not fail for it."""
    former = HeapKeyedStateBackend(ManualClock(1000), 128)
    descriptor = ValueStateDescriptor("v", Types.LIST(Types.INT()))
    former.set_current_key(1)
    state = former.value_state(descriptor)
    state.update([1])
    state.value()[0] = "x"
    chunks = former.snapshot(range(128))
    again = HeapKeyedStateBackend(ManualClock(1000), 128, is_own=True)
    again.restore(chunks)
    again.set_current_key(1)
    assert again.value_state(descriptor).value() == ["x"]
    another = HeapKeyedStateBackend(ManualClock(1000), 128)
    another.restore(chunks)
    with pytest.raises(ProgramError, match="another version of the program wrote it"):
        another.value_state(descriptor)


def test_one_state_has_one_type(backends):
    backend = backends.make()
    backend.value_state(ValueStateDescriptor("v", Types.INT()))
    backend.value_state(ValueStateDescriptor("v", Types.INT()))
    with pytest.raises(ProgramError, match="State 'v' is declared Integer and also String"):
        backend.value_state(ValueStateDescriptor("v", Types.STRING()))


def test_restored_operator_state_of_another_type_is_told():
    former = OperatorStateStore()
    former.get_list_state(ListStateDescriptor("l", Types.LONG())).add(5)
    former.get_broadcast_state(MapStateDescriptor("b", Types.STRING(), Types.LONG())).put("a", 5)
    store = OperatorStateStore("Operator 'Map' (uid 'm')")
    store.restore(former.snapshot())
    with pytest.raises(ProgramError, match=r"^Operator 'Map' \(uid 'm'\): list state 'l' .* 5 of type int, exp"):
        store.get_list_state(ListStateDescriptor("l", Types.STRING()))
    with pytest.raises(ProgramError, match=r"^Operator 'Map' \(uid 'm'\): map state 'b' .* value 5 of type int"):
        store.get_broadcast_state(MapStateDescriptor("b", Types.STRING(), Types.STRING()))
    assert store.get_list_state(ListStateDescriptor("l", Types.LONG())).get() == [5]


def test_operator_state_is_held_to_its_types_too():
    store = OperatorStateStore()
    elements = store.get_list_state(ListStateDescriptor("l", Types.INT()))
    elements.add(1)
    with pytest.raises(ProgramError, match=r"List state 'l' is declared .* add.. was given 'x' of type str"):
        elements.add("x")
    rules = store.get_broadcast_state(MapStateDescriptor("b", Types.STRING(), Types.INT()))
    rules.put("a", 1)
    again = store.get_broadcast_state(MapStateDescriptor("b", Types.STRING(), Types.INT()))
    with pytest.raises(ProgramError, match=r"Map state 'b' is declared .* value 'x' of type str"):
        again.put_all({"b": "x"})
    assert (elements.get(), rules.items()) == ([1], [("a", 1)])
