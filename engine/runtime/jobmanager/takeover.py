"""Decides whether a new leader may go on with the tasks of a job that run, or has to restart them from a checkpoint.

Pure. Everything must fit, to the last task; what is in doubt is restarted, which is always right. First comes what the
former leader has written down (``why_not``), then what TaskManagers report (``judge``). Not here: asking them and
waiting (``taking_over``), what running tasks need of their new JobMaster (``scheduler``, ``coordinators``,
``checkpoint/coordinator``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from engine.core.ids import ExecutionAttemptID, JobVertexID, OperatorID
from engine.core.late_dataclass import dataclass
from engine.graph.execution_graph import ExecutionGraph, ExecutionVertex, SlotGrant
from engine.graph.job_graph import JobGraph
from engine.protocol.control import HeldSlot, RunningTask
from engine.protocol.fingerprint import fingerprint
from engine.protocol.lifecycle import ExecutionState
from engine.runtime.jobmanager.deployment import task_deployment
from engine.runtime.jobmanager.scheduling import SlotRequestKey

__all__ = ["Former", "ReportedSlot", "Restart", "TakeOver", "Verdict", "Wait", "judge", "why_not"]

#: Of checkpoints that were begun since the newest complete one, tasks may know; all of them are told that it is over.
IN_FLIGHT_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Former:
    """What the former leader has written down of a job."""

    attempt_number: int  #: the newest that was begun, -1 = none
    has_published: bool  #: it has begun to make output visible for good
    is_over: bool  #: its tasks had ended, as far as the former leader knew
    takes_checkpoints: bool  #: it is a streaming job that takes checkpoints by itself
    has_blocking_edges: bool
    counter: int  #: newest checkpoint id that was given out
    newest_checkpoint: int  #: newest complete one, 0 = none
    is_savepoint: bool  #: that is a savepoint, which stops a job, or with which the job has begun
    has_problems: bool  #: a newer checkpoint, or an older one, cannot be read
    coordinators: tuple[tuple[str, bool], ...]  #: name of the vertex, whether another one can go on (``can_resume``)


def why_not(former: Former) -> str:
    """Return why the job's tasks cannot be taken over, whatever runs, "" if perhaps they can."""
    if not former.takes_checkpoints:
        return "it takes no checkpoints"
    if former.attempt_number < 0:
        return "it has never run"
    if former.has_published or former.is_over:
        return "the end of its last attempt had begun"
    if former.has_blocking_edges:
        return "it has blocking results"
    if former.has_problems:
        return "a checkpoint cannot be read"
    if former.is_savepoint:
        return "its newest checkpoint is a savepoint"
    if former.counter - former.newest_checkpoint > IN_FLIGHT_MAX:
        return "too many checkpoints were begun since its newest complete one"
    for name, can_resume in former.coordinators:
        if not can_resume:
            return f"what the JobManager did for {name} is lost with it"
    return ""


# --- what runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReportedSlot:
    """``grant``: how the job would hold the slot; None: its process is being made, or ended."""

    held: HeldSlot
    grant: SlotGrant | None


@dataclass(frozen=True, slots=True)
class Wait:
    """All is well so far."""

    num_missing: int  #: tasks


@dataclass(frozen=True, slots=True)
class TakeOver:
    grants: tuple[tuple[SlotRequestKey, SlotGrant], ...]
    #: by operator and subtask: pickles of what operators tell their new coordinators
    reports: Mapping[OperatorID, Mapping[int, bytes]]


@dataclass(frozen=True, slots=True)
class Restart:
    reason: str  #: a clause for logs


Verdict: TypeAlias = Wait | TakeOver | Restart


@dataclass(slots=True)
class _Found:
    task: RunningTask
    grant: SlotGrant


def judge(job_graph: JobGraph, attempt_number: int, reported: Iterable[ReportedSlot]) -> Verdict:
    """``reported``: all slots of the job that were reported so far. A later call may have more of them, not less."""
    graph = ExecutionGraph(job_graph, 0, attempt_number)
    found: dict[ExecutionAttemptID, _Found] = {}
    keys: dict[SlotRequestKey, SlotGrant] = {}
    for slot in reported:
        problem = _collect(graph, slot, found, keys)
        if problem:
            return Restart(problem)
    subtasks = graph.all_subtasks()
    num_missing = len(subtasks) - len(found)
    if num_missing:
        return Wait(num_missing)
    for subtask in subtasks:
        expected = fingerprint(task_deployment(graph, subtask, lambda other: found[other.current.attempt_id].grant))
        if found[subtask.current.attempt_id].task.fingerprint != expected:
            return Restart(f"task {subtask.name} was deployed otherwise than it would be now")
    return TakeOver(tuple(sorted(keys.items(), key=lambda item: item[0])), _reports(subtasks, found))


def _collect(
    graph: ExecutionGraph,
    slot: ReportedSlot,
    found: dict[ExecutionAttemptID, _Found],
    keys: dict[SlotRequestKey, SlotGrant],
) -> str:
    """Take in what one slot holds; return what is wrong with it."""
    name = f"slot {slot.held.slot_id}"
    if slot.grant is None:
        return f"{name} is not ready"
    if slot.held.job_id != graph.job_graph.job_id:
        return f"{name} is another job's"
    if not slot.held.tasks:
        return f"{name} holds no task"
    key: SlotRequestKey | None = None
    for task in slot.held.tasks:
        known = graph.find_attempt(task.attempt_id)
        if known is None:
            return f"{task.attempt_id} in {name} is none of the newest attempt of this job graph"
        subtask = known[0]
        if task.attempt_id in found:
            return f"task {subtask.name} runs twice"
        if task.state is not ExecutionState.RUNNING:
            return f"task {subtask.name} is {task.state.name}{': ' if task.objection else ''}{task.objection}"
        if task.objection:
            return f"task {subtask.name}: {task.objection}"
        own = SlotRequestKey(subtask.job_vertex.slot_sharing_group, subtask.subtask_index)
        if key is not None and own != key:
            return f"{name} holds tasks that do not share a slot"
        key = own
        found[task.attempt_id] = _Found(task, slot.grant)
    assert key is not None
    if key in keys:
        return f"tasks that share a slot run in {name} and in another one"
    keys[key] = slot.grant
    return ""


def _reports(
    subtasks: Sequence[ExecutionVertex], found: Mapping[ExecutionAttemptID, _Found]
) -> dict[OperatorID, dict[int, bytes]]:
    reports: dict[OperatorID, dict[int, bytes]] = {}
    of_vertex: dict[JobVertexID, set[OperatorID]] = {}
    for subtask in subtasks:
        vertex = subtask.job_vertex
        known = of_vertex.setdefault(vertex.vertex_id, set(vertex.coordinators))
        for operator_id, report in found[subtask.current.attempt_id].task.reports.items():
            if operator_id in known:
                reports.setdefault(operator_id, {})[subtask.subtask_index] = report
    return reports
