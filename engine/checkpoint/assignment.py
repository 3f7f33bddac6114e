"""Decides what each subtask of a job restores from a checkpoint, whatever the parallelism and the chains are now.

Pure. Operators are matched by id, which comes from their uid. Not here: what a subtask does with its ``TaskRestore``.
Source: Flink's StateAssignmentOperation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field

from engine.checkpoint.model import (
    CompletedCheckpoint,
    JobLayout,
    OperatorLayout,
    Task,
    VertexLayout,
    VertexState,
)
from engine.core.errors import ProgramError
from engine.core.ids import JobVertexID, OperatorID
from engine.core.late_dataclass import dataclass
from engine.protocol.checkpoint import (
    InFlightHandle,
    KeyedStateHandle,
    ListStateHandle,
    OperatorRestore,
    OperatorStateHandles,
    TaskRestore,
)
from engine.state.key_groups import key_group_range
from engine.state.key_types import ANY_KIND

__all__ = ["JobRestore", "adopted_max_parallelism", "assign_state"]

#: Handle → what people call the states behind it.
StateNames = Callable[[KeyedStateHandle | ListStateHandle], Iterable[str]]


@dataclass(frozen=True, slots=True)
class JobRestore:
    """What a job starts from."""

    checkpoint_id: int
    tasks: dict[Task, TaskRestore]
    coordinators: dict[OperatorID, bytes]
    #: by operator and former subtask
    committables: dict[OperatorID, dict[int, bytes]]


@dataclass(slots=True)
class _FormerOperator:
    """An operator as the checkpoint knows it."""

    layout: OperatorLayout
    vertex: VertexState
    by_subtask: dict[int, OperatorStateHandles] = field(default_factory=dict)

    @property
    def operator_id(self) -> OperatorID:
        return self.layout.operator_id

    def states(self, state_names: StateNames) -> list[str]:
        """Return names of what it keeps, for people."""
        found: dict[str, None] = {}
        for handles in self.by_subtask.values():
            for keyed in handles.keyed:
                found.update(dict.fromkeys(state_names(keyed)))
            if handles.lists is not None:
                found.update(dict.fromkeys(state_names(handles.lists)))
            if handles.committables:
                found["output that is to be committed"] = None
        return list(found)


def _part_names(handle: KeyedStateHandle | ListStateHandle) -> list[str]:
    return [f"keyed state {handle.part!r}" if isinstance(handle, KeyedStateHandle) else "operator state"]


def assign_state(
    checkpoint: CompletedCheckpoint,
    layout: JobLayout,
    *,
    allow_non_restored: bool = False,
    state_names: StateNames = _part_names,
) -> JobRestore:
    """Return what every subtask and coordinator of the job restores.

    Raises: ProgramError when the job cannot take up the state: an operator is gone (unless ``allow_non_restored``),
    or its maximum parallelism differs. The message names operator, uid and state. ``state_names``: what people call
    the states behind a handle; may read it.
    """
    former = _former_operators(checkpoint)
    present = {operator.operator_id for vertex in layout.vertices for operator in vertex.operators}
    lost = [operator for operator_id, operator in former.items() if operator_id not in present]
    if not allow_non_restored:
        _refuse_lost(checkpoint, lost, state_names)
    in_flight = _in_flight_by_consumer(checkpoint)
    is_anothers = checkpoint.job_id != layout.job_id  # whose program may have been another version
    watched = _watched(layout) if is_anothers else {}
    tasks: dict[Task, TaskRestore] = {}
    for vertex in layout.vertices:
        known = [former[o.operator_id] for o in vertex.operators if o.operator_id in former]
        is_finished = _is_finished(checkpoint, vertex, known)
        for operator in known:
            _check_key_groups(checkpoint, vertex, operator)
        waiting = in_flight.pop(vertex.operators[0].operator_id, []) if vertex.operators else []
        for task in vertex.tasks():
            tasks[task] = TaskRestore(
                checkpoint.checkpoint_id,
                {
                    o.operator_id: _operator_restore(
                        o, vertex, task.subtask_index, watched=watched, is_anothers=is_anothers
                    )
                    for o in known
                },
                () if is_finished else _in_flight_of(waiting, former, vertex, task.subtask_index),
                is_finished,
            )
    if in_flight:
        _refuse_in_flight(checkpoint, former, in_flight, allow_non_restored)
    return JobRestore(checkpoint.checkpoint_id, tasks, dict(checkpoint.coordinators), checkpoint.committables())


def _watched(layout: JobLayout) -> dict[OperatorID, str]:
    """Return how messages name the operators whose first keys are to be looked at: another version of the program may
    have keyed by another type."""
    operators = [operator for vertex in layout.vertices for operator in vertex.operators]
    return {o.operator_id: f"Operator {o}" for o in operators if o.key_kind != ANY_KIND}


def adopted_max_parallelism(
    checkpoint: CompletedCheckpoint, layout: JobLayout, defaults: Mapping[JobVertexID, int]
) -> dict[JobVertexID, int]:
    """Return the vertices that take over the checkpoint's maximum parallelism, because theirs is only the default.

    ``defaults``: what each would have if nobody had said a number. Source: Flink, where an "auto-configured" maximum
    gives way to the restored one.
    """
    former = _former_operators(checkpoint)
    adopted = {}
    for vertex in layout.vertices:
        if vertex.max_parallelism != defaults[vertex.vertex_id]:
            continue
        known = {former[o.operator_id].vertex.max_parallelism for o in vertex.operators if o.operator_id in former}
        if len(known) == 1 and (only := known.pop()) != vertex.max_parallelism and only >= vertex.parallelism:
            adopted[vertex.vertex_id] = only
    return adopted


def _former_operators(checkpoint: CompletedCheckpoint) -> dict[OperatorID, _FormerOperator]:
    former = {}
    for vertex in checkpoint.vertices:
        for layout in vertex.operators:
            operator = _FormerOperator(layout, vertex)
            for index, subtask in sorted(vertex.subtasks.items()):
                if layout.operator_id in subtask.operators:
                    operator.by_subtask[index] = subtask.operators[layout.operator_id]
            former[layout.operator_id] = operator
    return former


def _describe(checkpoint: CompletedCheckpoint) -> str:
    kind = "Savepoint" if checkpoint.kind.value == "SAVEPOINT" else "Checkpoint"
    return f"{kind} {checkpoint.folder or checkpoint.checkpoint_id}"


def _refuse_lost(checkpoint: CompletedCheckpoint, lost: list[_FormerOperator], state_names: StateNames) -> None:
    lines = []
    for operator in lost:
        states = operator.states(state_names)
        states += ["coordinator state"] * (operator.operator_id in checkpoint.coordinators)
        if states:
            lines.append(f"operator {operator.layout} has {', '.join(states)}")
    if lines:
        raise ProgramError(
            f"{_describe(checkpoint)} holds state that the program has no place for: {'; '.join(lines)}. "
            "Give the operator the same uid as before, or leave its state out with --allowNonRestoredState (-n)."
        )


def _is_finished(checkpoint: CompletedCheckpoint, vertex: VertexLayout, known: list[_FormerOperator]) -> bool:
    finished = [operator for operator in known if operator.vertex.is_finished]
    if not finished:
        return False
    if len(finished) < len(vertex.operators):
        others = [str(o) for o in vertex.operators if o.operator_id not in {f.operator_id for f in finished}]
        raise ProgramError(
            f"{_describe(checkpoint)} was taken when operator {finished[0].layout} had finished. It is chained to "
            f"{', '.join(others)} now, which had not: that cannot be restored. Keep them apart (disable_chaining)."
        )
    return True


def _check_key_groups(checkpoint: CompletedCheckpoint, vertex: VertexLayout, operator: _FormerOperator) -> None:
    if not any(handles.keyed for handles in operator.by_subtask.values()):
        return
    former_max = operator.vertex.max_parallelism
    if vertex.parallelism > former_max:
        raise ProgramError(
            f"{_describe(checkpoint)} was taken with a maximum parallelism of {former_max}; operator "
            f"{operator.layout} cannot be restored with a parallelism of {vertex.parallelism}. Its keyed state is cut "
            f"into {former_max} key groups for good: use a parallelism of at most {former_max}."
        )
    if vertex.max_parallelism != former_max:
        raise ProgramError(
            f"The maximum parallelism of operator {operator.layout} is {vertex.max_parallelism}; "
            f"{_describe(checkpoint).lower()} has {former_max}, and its keyed state cannot be cut anew. Set it to "
            f"{former_max} (set_max_parallelism, pipeline.max-parallelism)."
        )


def _operator_restore(
    operator: _FormerOperator,
    vertex: VertexLayout,
    subtask_index: int,
    *,
    watched: Mapping[OperatorID, str],
    is_anothers: bool,
) -> OperatorRestore:
    groups = key_group_range(subtask_index, vertex.parallelism, vertex.max_parallelism)
    keyed = tuple(
        handle
        for handles in operator.by_subtask.values()
        for handle in handles.keyed
        if handle.key_group_start < groups.stop and groups.start < handle.key_group_end
    )
    lists: list[ListStateHandle] = [h.lists for h in operator.by_subtask.values() if h.lists is not None]
    # Where some subtasks had finished, the others' lists go to all, so that broadcast state is everywhere.
    redistribute = (
        vertex.parallelism != operator.vertex.parallelism
        or bool(operator.vertex.finished)
        or any(handle.has_union for handle in lists)
    )
    if not redistribute:
        own = operator.by_subtask.get(subtask_index)
        lists = [own.lists] if own is not None and own.lists is not None else []
    own_layout = next(o for o in vertex.operators if o.operator_id == operator.operator_id)
    watched_as = watched.get(operator.operator_id, "")
    told_as = f"Operator {own_layout}" if is_anothers else ""
    return OperatorRestore(keyed, tuple(lists), redistribute, watched_as, told_as)


def _in_flight_by_consumer(checkpoint: CompletedCheckpoint) -> dict[OperatorID, list[InFlightHandle]]:
    found: defaultdict[OperatorID, list[InFlightHandle]] = defaultdict(list)
    for vertex in checkpoint.vertices:
        for _, subtask in sorted(vertex.subtasks.items()):
            for handle in subtask.in_flight:
                found[handle.consumer].append(handle)
    return dict(found)


def _in_flight_of(
    handles: list[InFlightHandle],
    former: Mapping[OperatorID, _FormerOperator],
    vertex: VertexLayout,
    subtask_index: int,
) -> tuple[InFlightHandle, ...]:
    taken = []
    for handle in handles:
        old = former[handle.consumer].vertex
        if old.parallelism == vertex.parallelism:
            belongs = handle.consumer_subtask_index == subtask_index
        elif handle.is_keyed:
            # Everyone who has one of the former subtask's keys now reads it and takes what is his.
            was = key_group_range(handle.consumer_subtask_index, old.parallelism, old.max_parallelism)
            now = key_group_range(subtask_index, vertex.parallelism, vertex.max_parallelism)
            belongs = was.start < now.stop and now.start < was.stop
        else:
            belongs = handle.consumer_subtask_index % vertex.parallelism == subtask_index
        if belongs:
            taken.append(handle)
    return tuple(taken)


def _refuse_in_flight(
    checkpoint: CompletedCheckpoint,
    former: Mapping[OperatorID, _FormerOperator],
    in_flight: dict[OperatorID, list[InFlightHandle]],
    allow_non_restored: bool,
) -> None:
    for consumer in in_flight:
        name = str(former[consumer].layout) if consumer in former else consumer
        if not allow_non_restored:
            raise ProgramError(
                f"{_describe(checkpoint)} is an unaligned one and holds records on their way to operator {name}, which "
                "is gone or chained to what sends to it now. Take a savepoint with the former program instead, "
                "or leave them out with --allowNonRestoredState (-n)."
            )
