"""Operator state: lists dealt out anew, unions and broadcast maps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.errors import ProgramError
from engine.state.descriptors import ListStateDescriptor, MapStateDescriptor, ValueStateDescriptor
from engine.state.operator_state import OperatorStateStore, ReadOnlyView, redistribute

OFFSETS, MEMBERS, RULES = ListStateDescriptor("offsets"), ListStateDescriptor("members"), MapStateDescriptor("rules")


def store(elements=(), restored=None):
    made = OperatorStateStore()
    if restored is not None:
        made.restore(restored)
    made.get_list_state(OFFSETS).add_all(elements)
    made.get_union_list_state(MEMBERS).add_all(elements)
    if restored is None:
        made.get_broadcast_state(RULES).put("rule", "same everywhere")
    return made


@given(st.lists(st.lists(st.integers(), max_size=5), min_size=1, max_size=5), st.integers(1, 7))
def test_on_rescale_lists_are_split_evenly_unions_and_broadcast_maps_go_to_all(old, parallelism):
    dealt = redistribute([store(elements).snapshot() for elements in old], parallelism)
    new = [store(restored=snapshot) for snapshot in dealt]
    everything = [element for elements in old for element in elements]
    shares = [subtask.get_list_state(OFFSETS).get() for subtask in new]
    assert [element for share in shares for element in share] == everything
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for subtask in new:
        assert subtask.get_union_list_state(MEMBERS).get() == everything
        assert subtask.get_broadcast_state(RULES).items() == [("rule", "same everywhere")]


def test_a_list_state_may_be_replaced_and_cleared():
    state = store([1, 2]).get_list_state(OFFSETS)
    state.get().append("a copy")
    assert list(state) == [1, 2]
    state.update([3])
    state.add(4)
    assert state.get() == [3, 4]
    state.clear()
    assert state.get() == []


def test_a_read_only_view_reads_and_refuses_to_write():
    broadcast = OperatorStateStore().get_broadcast_state(RULES)
    broadcast.put_all({"a": 1, "b": 2})
    broadcast["c"] = 3
    del broadcast["b"]
    view = ReadOnlyView(broadcast)
    assert (view.get("a"), view["c"], "b" in view, view.is_empty()) == (1, 3, False, False)
    assert (list(view), list(view.values()), list(view.items())) == (["a", "c"], [1, 3], [("a", 1), ("c", 3)])
    for write in (lambda: view.put("a", 2), lambda: view.clear(), lambda: view.remove("a")):
        with pytest.raises(ProgramError, match=r"Change it in process_broadcast_element\(\)"):
            write()
    assert broadcast.get("a") == 1


def test_a_name_is_one_sort_of_state():
    made = store([1])
    with pytest.raises(ProgramError, match="'offsets' is a split state and cannot be a union state"):
        made.get_union_list_state(OFFSETS)
    with pytest.raises(ProgramError, match="wants a MapStateDescriptor"):
        made.get_broadcast_state(ValueStateDescriptor("v"))
