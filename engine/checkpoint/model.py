"""What a job looks like to checkpoints, and what a completed one holds. Data only.

A completed checkpoint names operators by their ids, so that another version of the program, with other chains and
another parallelism, finds its state again (``assignment``). As a file: ``metadata``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import NamedTuple

from engine.core.ids import ExecutionAttemptID, JobID, JobVertexID, OperatorID
from engine.core.late_dataclass import dataclass
from engine.protocol.checkpoint import CheckpointKind, FileHandle, InFlightHandle, OperatorStateHandles

__all__ = [
    "CheckpointFolders",
    "CompletedCheckpoint",
    "InputLayout",
    "JobLayout",
    "OperatorLayout",
    "SubtaskState",
    "Task",
    "VertexLayout",
    "VertexState",
    "attempt_of",
    "files_of_handles",
]


class Task(NamedTuple):
    """A subtask, whatever its attempt."""

    vertex_id: JobVertexID
    subtask_index: int


def attempt_of(attempt_id: ExecutionAttemptID) -> tuple[Task, int]:
    """Return subtask and attempt number of an attempt's id."""
    vertex_id, subtask, number = attempt_id.rsplit("_", 2)
    return Task(JobVertexID(vertex_id), int(subtask)), int(number)


@dataclass(frozen=True, slots=True)
class OperatorLayout:
    operator_id: OperatorID
    name: str
    uid: str | None = None
    #: kind of its keys, if the program said it
    key_kind: str = ""

    def __str__(self) -> str:
        return f"{self.name!r} (uid {self.uid!r})" if self.uid else f"{self.name!r} (no uid, id {self.operator_id})"


@dataclass(frozen=True, slots=True)
class InputLayout:
    """An edge into a vertex; edges that close a loop are none."""

    source_id: JobVertexID
    #: by consuming subtask: the producers that it reads from; () = all of them read all
    pointwise: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class VertexLayout:
    vertex_id: JobVertexID
    name: str
    parallelism: int
    max_parallelism: int
    operators: tuple[OperatorLayout, ...]  #: head first
    inputs: tuple[InputLayout, ...] = ()

    def tasks(self) -> list[Task]:
        return [Task(self.vertex_id, index) for index in range(self.parallelism)]


@dataclass(frozen=True, slots=True)
class JobLayout:
    job_id: JobID
    vertices: tuple[VertexLayout, ...]
    #: some operator has a coordinator in the JobManager
    has_coordinators: bool = False

    def producers(self, vertex: VertexLayout, subtask_index: int) -> list[Task]:
        """Return the tasks that a subtask reads from."""
        found = []
        for one in vertex.inputs:
            everyone = range(self.vertex(one.source_id).parallelism)
            indexes = one.pointwise[subtask_index] if one.pointwise else everyone
            found += [Task(one.source_id, index) for index in indexes]
        return found

    def vertex(self, vertex_id: JobVertexID) -> VertexLayout:
        return next(vertex for vertex in self.vertices if vertex.vertex_id == vertex_id)

    def tasks(self) -> list[Task]:
        return [task for vertex in self.vertices for task in vertex.tasks()]


@dataclass(frozen=True, slots=True)
class CheckpointFolders:
    """Where the checkpoints of one job lie; ``root`` "" = in memory."""

    root: str
    job_id: JobID

    @property
    def job(self) -> str:
        return f"{self.root.rstrip('/')}/{self.job_id}" if self.root else ""

    @property
    def shared(self) -> str:
        return f"{self.job}/shared" if self.root else ""

    def exclusive(self, checkpoint_id: int) -> str:
        return f"{self.job}/chk-{checkpoint_id}" if self.root else ""


@dataclass(frozen=True, slots=True)
class SubtaskState:
    operators: dict[OperatorID, OperatorStateHandles] = field(default_factory=dict)
    in_flight: tuple[InFlightHandle, ...] = ()


@dataclass(frozen=True, slots=True)
class VertexState:
    vertex_id: JobVertexID
    name: str
    parallelism: int
    max_parallelism: int
    operators: tuple[OperatorLayout, ...]
    #: of those that took part, by index
    subtasks: dict[int, SubtaskState]
    #: Indexes of those that had finished before. If all have come to their end, also of those that took part because
    #: they waited for a checkpoint.
    finished: tuple[int, ...] = ()

    @property
    def is_finished(self) -> bool:
        return len(self.finished) == self.parallelism


@dataclass(frozen=True, slots=True)
class CompletedCheckpoint:
    checkpoint_id: int
    job_id: JobID
    kind: CheckpointKind
    timestamp_ms: int  #: of the trigger, wall clock
    vertices: tuple[VertexState, ...]
    #: state of the operators' coordinators; those that have none are left out
    coordinators: dict[OperatorID, bytes] = field(default_factory=dict)
    #: URI of the folder with its metadata; "" = in the JobManager's memory. Not part of the file: it can be moved.
    folder: str = ""

    def handles(self) -> Iterator[FileHandle]:
        """Yield all that it refers to, inline state too."""
        for vertex in self.vertices:
            for subtask in vertex.subtasks.values():
                yield from files_of_handles(subtask.operators, subtask.in_flight)

    def files(self) -> set[str]:
        """Return the URIs of the files that it refers to."""
        return {handle.path for handle in self.handles() if handle.path}

    def committables(self) -> dict[OperatorID, dict[int, bytes]]:
        """Return what is to be made visible, by operator and subtask."""
        found: dict[OperatorID, dict[int, bytes]] = {}
        for vertex in self.vertices:
            for index, subtask in sorted(vertex.subtasks.items()):
                for operator_id, handles in subtask.operators.items():
                    if handles.committables:
                        found.setdefault(operator_id, {})[index] = handles.committables
        return found


def files_of_handles(
    operators: dict[OperatorID, OperatorStateHandles], in_flight: tuple[InFlightHandle, ...]
) -> Iterator[FileHandle]:
    for handles in operators.values():
        for keyed in handles.keyed:
            yield from (layer.file for layer in keyed.layers)
            yield from (file for _, file in keyed.files)
        if handles.lists is not None:
            yield handles.lists.file
    yield from (handle.file for handle in in_flight)
