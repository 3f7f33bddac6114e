"""Small jobs and checkpoints for tests: source → keyed operator → sink, and what their tasks acknowledge."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from engine.checkpoint.model import (
    CheckpointFolders,
    CompletedCheckpoint,
    InputLayout,
    JobLayout,
    OperatorLayout,
    SubtaskState,
    Task,
    VertexLayout,
    VertexState,
)
from engine.core.ids import ExecutionAttemptID, JobID, JobVertexID, OperatorID
from engine.protocol.checkpoint import (
    AcknowledgeCheckpoint,
    CheckpointKind,
    FileHandle,
    KeyedLayer,
    KeyedStateHandle,
    ListStateHandle,
    OperatorStateHandles,
)
from engine.state.key_groups import key_group_range

JOB_ID = JobID.from_text("job")
FOLDERS = CheckpointFolders("file:///checkpoints", JOB_ID)


def operator(name: str) -> OperatorLayout:
    return OperatorLayout(OperatorID.from_text(name), name, name)


def vertex(
    name: str, parallelism: int, inputs: Iterable[InputLayout] = (), *, max_parallelism: int = 8, chained: str = ""
) -> VertexLayout:
    operators = tuple(operator(one) for one in (name, *chained.split()))
    return VertexLayout(JobVertexID.from_text(name), name, parallelism, max_parallelism, operators, tuple(inputs))


def pipeline(*parallelisms: int, has_coordinators: bool = True) -> JobLayout:
    """Return vertices v0 → v1 → …, each with one operator of its name, all-to-all."""
    vertices: list[VertexLayout] = []
    for index, parallelism in enumerate(parallelisms):
        inputs = [InputLayout(vertices[-1].vertex_id)] if vertices else []
        vertices.append(vertex(f"v{index}", parallelism, inputs))
    return JobLayout(JOB_ID, tuple(vertices), has_coordinators)


def file(path: str, size_bytes: int = 3) -> FileHandle:
    return FileHandle(path, size_bytes, zlib.crc32(b"abc"))


def keyed(path: str, start: int, end: int, *, part: str = "keyed") -> KeyedStateHandle:
    layer = KeyedLayer(file(path), dict.fromkeys(range(start, end), (0, 3, 7)))
    return KeyedStateHandle(part, start, end, (layer,))


def acknowledgement(task: Task, checkpoint_id: int, paths: Iterable[str] = (), *, attempt: int = 0):
    """Return an acknowledgement of a task with one operator, whose keyed state lies in ``paths``."""
    handles = OperatorStateHandles(tuple(keyed(path, 0, 8) for path in paths))
    return AcknowledgeCheckpoint(
        JOB_ID,
        ExecutionAttemptID.of(task.vertex_id, task.subtask_index, attempt),
        checkpoint_id,
        {OperatorID(task.vertex_id): handles},
    )


def keyed_checkpoint(
    layout: JobLayout, *, checkpoint_id: int = 7, folder: str = "file:///s/sp", finished: Iterable[Task] = ()
) -> CompletedCheckpoint:
    """Return a savepoint in which every operator of every subtask has keyed state and lists of its own."""
    gone = set(finished)
    vertices = []
    for one in layout.vertices:
        subtasks = {}
        for task in one.tasks():
            if task in gone:
                continue
            groups = key_group_range(task.subtask_index, one.parallelism, one.max_parallelism)
            subtasks[task.subtask_index] = SubtaskState(
                {
                    o.operator_id: OperatorStateHandles(
                        (keyed(f"{folder}/{o.name}-{task.subtask_index}", groups.start, groups.stop),),
                        ListStateHandle(file(f"{folder}/{o.name}-{task.subtask_index}-lists")),
                        committables=f"{o.name}{task.subtask_index}".encode(),
                    )
                    for o in one.operators
                }
            )
        vertices.append(
            VertexState(
                one.vertex_id,
                one.name,
                one.parallelism,
                one.max_parallelism,
                one.operators,
                subtasks,
                tuple(task.subtask_index for task in one.tasks() if task in gone),
            )
        )
    coordinators = {layout.vertices[0].operators[0].operator_id: b"splits"}
    return CompletedCheckpoint(
        checkpoint_id, layout.job_id, CheckpointKind.SAVEPOINT, 1000, tuple(vertices), coordinators, folder
    )
