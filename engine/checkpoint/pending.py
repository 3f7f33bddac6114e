"""One checkpoint on its way to completion, as the coordinator keeps it. Data, and what can be told from it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field

from engine.checkpoint.model import (
    CheckpointFolders,
    CompletedCheckpoint,
    JobLayout,
    SubtaskState,
    Task,
    VertexState,
    files_of_handles,
)
from engine.checkpoint.settings import CheckpointSettings
from engine.core.ids import JobVertexID, OperatorID
from engine.core.late_dataclass import dataclass
from engine.protocol.checkpoint import (
    NO_CHECKPOINT,
    AcknowledgeCheckpoint,
    CheckpointFailureReason,
    CheckpointKind,
    CheckpointOptions,
    StopMode,
)

__all__ = [
    "Pending",
    "Request",
    "Stage",
    "completed_checkpoint",
    "half_finished_union",
    "options_of",
    "tasks_to_trigger",
]


class Stage(enum.Enum):
    PREPARING = "preparing"
    RUNNING = "running"
    WRITING = "writing"


@dataclass(slots=True)
class Request:
    """What a user asked for; the periodic trigger has none."""

    request_id: str
    deadline_ms: int
    #: "" = a checkpoint
    folder: str = ""
    incremental: bool | None = None
    stop: StopMode = StopMode.NONE
    cancel: bool = False
    tries: int = 0


@dataclass(slots=True)
class Pending:
    checkpoint_id: int
    options: CheckpointOptions
    folder: str
    deadline_ms: int
    timestamp_ms: int
    request: Request | None
    #: of tasks that take part and have not acknowledged
    waiting: set[Task]
    #: had finished when it began: what they left is in the coordinators' state
    finished: frozenset[Task]
    #: the last one: all tasks have finished
    is_final: bool = False
    stage: Stage = Stage.PREPARING
    acknowledged: dict[Task, AcknowledgeCheckpoint] = field(default_factory=dict)
    coordinators: Mapping[OperatorID, bytes] = field(default_factory=dict)
    completed: CompletedCheckpoint | None = None
    #: it was given up while its metadata was being written
    dropped_for: CheckpointFailureReason = CheckpointFailureReason.JOB_STOPPED

    @property
    def is_savepoint(self) -> bool:
        return self.options.kind is CheckpointKind.SAVEPOINT

    @property
    def is_stop(self) -> bool:
        return self.options.stop is not StopMode.NONE

    def files(self) -> set[str]:
        return {
            handle.path
            for ack in self.acknowledged.values()
            for handle in files_of_handles(ack.operators, ack.in_flight)
            if handle.path
        }

    def lateness(self, timeout_ms: int) -> str:
        """Return who kept it from completing within that time."""
        if self.stage is Stage.PREPARING:
            missing = "the operators' coordinators did not give their state"
        else:
            missing = f"{len(self.waiting)} of {len(self.waiting) + len(self.acknowledged)} tasks did not acknowledge"
        return f"{CheckpointFailureReason.EXPIRED.sentence} ({timeout_ms} ms): {missing}"


def options_of(
    settings: CheckpointSettings,
    folders: CheckpointFolders,
    checkpoint_id: int,
    request: Request | None,
    base: CompletedCheckpoint | None,
    *,
    is_final: bool,
) -> CheckpointOptions:
    """Return what tasks are told. ``base``: what an increment may build on."""
    if request is not None and request.folder:
        return CheckpointOptions(
            CheckpointKind.SAVEPOINT,
            request.folder,
            request.folder,
            stop=request.stop,
            inline_bytes_max=settings.inline_bytes_max,
        )
    incremental = settings.incremental and not is_final
    if request is not None and request.incremental is not None:
        incremental = request.incremental and not settings.in_memory
    return CheckpointOptions(
        CheckpointKind.CHECKPOINT,
        "" if settings.in_memory else folders.exclusive(checkpoint_id),
        "" if settings.in_memory else folders.shared,
        unaligned=settings.unaligned,
        aligned_timeout_ms=settings.aligned_timeout_ms,
        at_least_once=settings.at_least_once,
        base_checkpoint_id=base.checkpoint_id if incremental and base is not None else NO_CHECKPOINT,
        incremental=incremental,
        inline_bytes_max=settings.inline_bytes_max,
        state_bytes_max=settings.state_bytes_max,
    )


def tasks_to_trigger(pending: Pending, layout: JobLayout) -> set[Task]:
    """Return the tasks that no barrier will reach: sources, and those all of whose producers have finished."""
    return {
        task
        for vertex in layout.vertices
        for task in vertex.tasks()
        if task in pending.waiting and pending.finished.issuperset(layout.producers(vertex, task.subtask_index))
    }


def half_finished_union(pending: Pending, layout: JobLayout) -> str:
    """Return the name of a vertex of which some subtasks had finished and others have union list state, or ""."""
    some_finished = {task.vertex_id for task in pending.finished} - _finished_vertices(pending, layout)
    for task, ack in pending.acknowledged.items():
        handles = ack.operators.values()
        if task.vertex_id in some_finished and any(h.lists is not None and h.lists.has_union for h in handles):
            return layout.vertex(task.vertex_id).name
    return ""


def _finished_vertices(pending: Pending, layout: JobLayout) -> set[JobVertexID]:
    """Return those all of whose subtasks had come to their end, even if some still waited for a checkpoint."""
    ended = {task for task, ack in pending.acknowledged.items() if ack.is_finished} | pending.finished
    return {vertex.vertex_id for vertex in layout.vertices if ended.issuperset(vertex.tasks())}


def completed_checkpoint(pending: Pending, layout: JobLayout) -> CompletedCheckpoint:
    finished = _finished_vertices(pending, layout)
    subtasks: dict[JobVertexID, dict[int, SubtaskState]] = {v.vertex_id: {} for v in layout.vertices}
    for task, ack in sorted(pending.acknowledged.items(), key=lambda item: item[0]):
        subtasks[task.vertex_id][task.subtask_index] = SubtaskState(dict(ack.operators), ack.in_flight)
    return CompletedCheckpoint(
        pending.checkpoint_id,
        layout.job_id,
        pending.options.kind,
        pending.timestamp_ms,
        tuple(
            VertexState(
                vertex.vertex_id,
                vertex.name,
                vertex.parallelism,
                vertex.max_parallelism,
                vertex.operators,
                subtasks[vertex.vertex_id],
                tuple(t.subtask_index for t in vertex.tasks() if t in pending.finished or vertex.vertex_id in finished),
            )
            for vertex in layout.vertices
        ),
        {operator_id: state for operator_id, state in pending.coordinators.items() if state},
        pending.folder,
    )
