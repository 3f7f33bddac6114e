"""State goes to the right subtasks at any parallelism; what has no place is told by uid and state."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoint.assignment import adopted_max_parallelism, assign_state
from engine.checkpoint.model import CompletedCheckpoint, JobLayout, SubtaskState, Task
from engine.core.errors import ProgramError
from engine.core.ids import JobID, OperatorID
from engine.protocol.checkpoint import InFlightHandle, OperatorStateHandles
from engine.state.key_groups import key_group_range
from engine.state.key_types import ANY_KIND
from engine.state.operator_state import OperatorStateSnapshot, Redistribution, redistribute
from tests.unit.checkpoint.jobs import JOB_ID, file, keyed_checkpoint, operator, pipeline, vertex

MAX = 8  # key groups in these jobs
parallelisms = st.integers(1, MAX)


def restored_groups(restore, layout: JobLayout, index: int) -> Counter:
    """Return how often each key group is restored by subtasks that take from a handle what is theirs."""
    found: Counter = Counter()
    one = layout.vertices[index]
    (first, *_) = one.operators
    for task in one.tasks():
        own = key_group_range(task.subtask_index, one.parallelism, one.max_parallelism)
        for handle in restore.tasks[task].operators[first.operator_id].keyed:
            held = range(max(own.start, handle.key_group_start), min(own.stop, handle.key_group_end))
            assert held, "a handle that holds nothing of the subtask's"
            found.update(held)
    return found


@given(parallelisms, parallelisms)
def test_every_key_group_is_restored_once_at_any_parallelism(before, after):
    restore = assign_state(keyed_checkpoint(pipeline(1, before)), pipeline(1, after))
    assert restored_groups(restore, pipeline(1, after), 1) == Counter(range(MAX))


def test_keys_are_watched_when_the_state_is_another_jobs_unless_they_may_be_of_any_type():
    layout = pipeline(1)
    (first,) = layout.vertices[0].operators
    task = layout.vertices[0].tasks()[0]
    checkpoint = keyed_checkpoint(layout)
    same = assign_state(checkpoint, layout).tasks[task].operators[first.operator_id]
    assert (same.watched_as, same.told_as) == ("", "")  # a restart: the same program
    other = dataclasses.replace(layout, job_id=JobID("f" * 32))
    watched = assign_state(checkpoint, other).tasks[task].operators[first.operator_id]
    assert (watched.watched_as, watched.told_as) == (f"Operator {first}", f"Operator {first}")
    any_kind = dataclasses.replace(first, key_kind=ANY_KIND)
    vertices = (dataclasses.replace(other.vertices[0], operators=(any_kind,)), *other.vertices[1:])
    declared = assign_state(checkpoint, dataclasses.replace(other, vertices=vertices))
    assert declared.tasks[task].operators[first.operator_id].watched_as == ""


@given(parallelisms, parallelisms, st.lists(st.integers(0, 5), min_size=MAX, max_size=MAX), st.data())
def test_every_list_element_is_restored_once_at_any_parallelism(before, after, sizes, data):
    layout = pipeline(before)
    finished = data.draw(st.sets(st.integers(0, before - 1), max_size=before - 1))
    gone = [Task(layout.vertices[0].vertex_id, index) for index in finished]
    restore = assign_state(keyed_checkpoint(layout, finished=gone), pipeline(after))
    snapshot_of_path = {
        f"file:///s/sp/v0-{index}-lists": OperatorStateSnapshot(
            {"l": (Redistribution.SPLIT, [f"{index}.{n}".encode() for n in range(sizes[index])])}
        )
        for index in range(before)
    }
    taken: list[bytes] = []
    for task in pipeline(after).vertices[0].tasks():
        one = restore.tasks[task].operators[operator("v0").operator_id]
        snapshots = [snapshot_of_path[handle.file.path] for handle in one.lists]
        if one.redistribute:
            dealt = redistribute(snapshots, after)[task.subtask_index]
            taken += dealt.states.get("l", (None, []))[1]
        else:
            assert len(snapshots) <= 1
            taken += [element for snapshot in snapshots for element in snapshot.states["l"][1]]
    expected = [f"{i}.{n}".encode() for i in range(before) if i not in finished for n in range(sizes[i])]
    assert sorted(taken) == sorted(expected)


def test_the_same_parallelism_gives_each_subtask_its_own_lists():
    layout = pipeline(3)
    restore = assign_state(keyed_checkpoint(layout), layout)
    one = restore.tasks[layout.tasks()[1]].operators[operator("v0").operator_id]
    assert [handle.file.path for handle in one.lists] == ["file:///s/sp/v0-1-lists"]
    assert not one.redistribute


def test_union_lists_go_to_everyone_also_when_the_parallelism_stays():
    layout = pipeline(2)
    checkpoint = _with_operators(
        keyed_checkpoint(layout),
        lambda handles: dataclasses.replace(handles, lists=dataclasses.replace(handles.lists, has_union=True)),
    )
    for restore in assign_state(checkpoint, layout).tasks.values():
        one = restore.operators[operator("v0").operator_id]
        assert (len(one.lists), one.redistribute) == (2, True)


def test_lists_go_to_everyone_when_some_subtasks_had_finished():
    """Broadcast state is in each subtask's list: one that starts again finds it at the others."""
    layout = pipeline(2)
    restore = assign_state(keyed_checkpoint(layout, finished=layout.tasks()[:1]), layout)
    one = restore.tasks[layout.tasks()[0]].operators[operator("v0").operator_id]
    assert [handle.file.path for handle in one.lists] == ["file:///s/sp/v0-1-lists"]
    assert one.redistribute


def test_operators_are_found_in_other_chains():
    before = JobLayout(JOB_ID, (vertex("a", 2), vertex("b", 3)))
    after = JobLayout(JOB_ID, (vertex("a", 4, chained="b"),))
    restore = assign_state(keyed_checkpoint(before), after)
    found = restore.tasks[after.tasks()[0]].operators
    assert set(found) == {operator("a").operator_id, operator("b").operator_id}
    assert [len(found[operator(name).operator_id].lists) for name in "ab"] == [2, 3]


def test_coordinators_get_their_state_and_what_is_to_be_committed():
    restore = assign_state(keyed_checkpoint(pipeline(1, 2)), pipeline(1, 3))
    assert restore.coordinators == {operator("v0").operator_id: b"splits"}
    assert restore.committables[operator("v1").operator_id] == {0: b"v10", 1: b"v11"}


# --- finished tasks ---------------------------------------------------------------------------------------------------


def test_a_vertex_is_finished_only_if_all_its_subtasks_were():
    layout = pipeline(2, 2)
    source = layout.vertices[0].tasks()
    half = assign_state(keyed_checkpoint(layout, finished=source[:1]), layout)
    assert not any(restore.is_finished for restore in half.tasks.values())
    whole = assign_state(keyed_checkpoint(layout, finished=source), pipeline(3, 2))
    assert {task for task, restore in whole.tasks.items() if restore.is_finished} == set(
        pipeline(3, 2).vertices[0].tasks()
    )


def test_an_operator_that_had_finished_cannot_be_chained_to_one_that_had_not():
    before = JobLayout(JOB_ID, (vertex("a", 1), vertex("b", 1)))
    checkpoint = keyed_checkpoint(before, finished=before.vertices[0].tasks())
    with pytest.raises(ProgramError, match=r"'a' \(uid 'a'\) had finished.*'b' \(uid 'b'\)"):
        assign_state(checkpoint, JobLayout(JOB_ID, (vertex("a", 1, chained="b"),)))


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_state_without_a_place_is_told_by_uid_and_state_unless_it_may_be_left_out():
    checkpoint = keyed_checkpoint(pipeline(1, 2))
    with pytest.raises(ProgramError) as caught:
        assign_state(checkpoint, pipeline(1))
    assert "operator 'v1' (uid 'v1') has keyed state 'keyed', operator state, output that is to be committed" in (
        str(caught.value)
    )
    assert "--allowNonRestoredState" in str(caught.value)
    restore = assign_state(checkpoint, pipeline(1), allow_non_restored=True)
    assert set(restore.tasks) == set(pipeline(1).tasks())


def test_an_operator_without_state_may_go():
    checkpoint = _with_operators(keyed_checkpoint(pipeline(1, 1)), lambda handles: OperatorStateHandles())
    assign_state(checkpoint, pipeline(1))
    stated = dataclasses.replace(checkpoint, coordinators={operator("v1").operator_id: b"state"})
    with pytest.raises(ProgramError, match="has coordinator state"):
        assign_state(stated, pipeline(1))


def test_a_new_operator_starts_afresh():
    restore = assign_state(keyed_checkpoint(pipeline(1)), pipeline(1, 1))
    assert restore.tasks[pipeline(1, 1).tasks()[1]].operators == {}


def test_more_subtasks_than_key_groups_are_refused():
    wide = JobLayout(JOB_ID, (vertex("v0", 9, max_parallelism=16),))
    with pytest.raises(ProgramError, match=r"maximum parallelism of 8.*with a parallelism of 9"):
        assign_state(keyed_checkpoint(pipeline(2)), wide)


def test_another_number_of_key_groups_is_refused():
    other = JobLayout(JOB_ID, (vertex("v0", 2, max_parallelism=16),))
    with pytest.raises(ProgramError, match=r"is 16; .* has 8.*Set it to 8"):
        assign_state(keyed_checkpoint(pipeline(2)), other)


def test_a_maximum_that_nobody_has_set_gives_way_to_the_restored_one():
    layout = JobLayout(JOB_ID, (vertex("v0", 2, max_parallelism=128), vertex("v1", 2, max_parallelism=128)))
    defaults = {layout.vertices[0].vertex_id: 128, layout.vertices[1].vertex_id: 64}
    adopted = adopted_max_parallelism(keyed_checkpoint(pipeline(2, 2)), layout, defaults)
    assert adopted == {layout.vertices[0].vertex_id: 8}  # the other is the user's


# --- records in flight ------------------------------------------------------------------------------------------------


def _in_flight(checkpoint: CompletedCheckpoint, *, is_keyed: bool) -> CompletedCheckpoint:
    """Give every subtask of the second vertex a file of records on their way to it."""
    consumer = operator("v1").operator_id
    vertices = list(checkpoint.vertices)
    vertices[1] = dataclasses.replace(
        vertices[1],
        subtasks={
            index: dataclasses.replace(
                state, in_flight=(InFlightHandle(file(f"f{index}"), consumer, 0, index, is_keyed),)
            )
            for index, state in vertices[1].subtasks.items()
        },
    )
    return dataclasses.replace(checkpoint, vertices=tuple(vertices))


@given(parallelisms, parallelisms)
def test_records_in_flight_reach_everyone_who_may_have_their_keys_now(before, after):
    checkpoint = _in_flight(keyed_checkpoint(pipeline(1, before)), is_keyed=True)
    layout = pipeline(1, after)
    restore = assign_state(checkpoint, layout)
    for group in range(MAX):
        was = next(i for i in range(before) if group in key_group_range(i, before, MAX))
        now = next(i for i in range(after) if group in key_group_range(i, after, MAX))
        taken = restore.tasks[layout.vertices[1].tasks()[now]].in_flight
        assert f"f{was}" in [handle.file.path for handle in taken]


@given(parallelisms, parallelisms)
def test_records_in_flight_without_a_key_go_to_one_subtask(before, after):
    checkpoint = _in_flight(keyed_checkpoint(pipeline(1, before)), is_keyed=False)
    restore = assign_state(checkpoint, pipeline(1, after))
    taken = [handle.file.path for one in restore.tasks.values() for handle in one.in_flight]
    assert sorted(taken) == sorted(f"f{index}" for index in range(before))


def test_records_in_flight_to_an_operator_that_is_no_head_any_more_are_not_lost_silently():
    checkpoint = _in_flight(keyed_checkpoint(pipeline(1, 1)), is_keyed=True)
    chained = JobLayout(JOB_ID, (vertex("v0", 1, chained="v1"),))
    with pytest.raises(ProgramError, match=r"unaligned one and holds records on their way to operator 'v1'"):
        assign_state(checkpoint, chained)
    assign_state(checkpoint, chained, allow_non_restored=True)


def _with_operators(checkpoint: CompletedCheckpoint, change) -> CompletedCheckpoint:
    return dataclasses.replace(
        checkpoint,
        vertices=tuple(
            dataclasses.replace(
                one,
                subtasks={
                    index: SubtaskState({OperatorID(o): change(h) for o, h in state.operators.items()})
                    for index, state in one.subtasks.items()
                },
            )
            for one in checkpoint.vertices
        ),
    )
