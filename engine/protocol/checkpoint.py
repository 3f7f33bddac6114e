"""Messages and descriptors of checkpoints: what a barrier says, what tasks acknowledge, what they restore from.

A checkpoint: the coordinator in the JobManager asks the operators' coordinators for their state, then tells the
sources (``TriggerCheckpoint``); barriers flow with the records; each task snapshots its chain when it has them all and
sends ``AcknowledgeCheckpoint``; when all have, the metadata is written, then ``NotifyCheckpointComplete`` goes out. A
savepoint is the same, started by the user, in the canonical format of state and in a folder that can be moved.

Nothing here does any work; the files behind the handles are written and read by ``engine/checkpoint/storage``.
"""

from __future__ import annotations

import enum
from dataclasses import field
from typing import TypeAlias

from engine.core.ids import AllocationID, ExecutionAttemptID, JobID, OperatorID
from engine.core.late_dataclass import dataclass

__all__ = [
    "NO_CHECKPOINT",
    "AcknowledgeCheckpoint",
    "AwaitsCheckpoint",
    "CheckpointAnswer",
    "CheckpointFailureReason",
    "CheckpointKind",
    "CheckpointMetrics",
    "CheckpointOptions",
    "ChunkPlace",
    "DeclineCheckpoint",
    "FileHandle",
    "InFlightHandle",
    "KeyedLayer",
    "KeyedStateHandle",
    "ListStateHandle",
    "NotifyCheckpointAborted",
    "NotifyCheckpointComplete",
    "OperatorRestore",
    "OperatorStateHandles",
    "StopMode",
    "TaskRestore",
    "TriggerCheckpoint",
]

#: Checkpoint ids count from 1.
NO_CHECKPOINT = 0


class CheckpointKind(enum.Enum):
    CHECKPOINT = "CHECKPOINT"
    SAVEPOINT = "SAVEPOINT"  #: self-contained, in the canonical format of every state


class StopMode(enum.Enum):
    """What sources do behind the barrier of a savepoint."""

    NONE = "none"  #: go on
    #: emit nothing more; when it is complete, all tasks end and nothing is flushed; when it is aborted, go on
    SUSPEND = "suspend"
    DRAIN = "drain"  #: event time ends before the barrier, so windows fire; then all tasks finish as usual


class CheckpointFailureReason(enum.Enum):
    """(whether it counts against ``tolerable-failed-checkpoints``, sentence). Source: Flink's enum of this name."""

    TASK_FAILED = (True, "the snapshot of a task failed")
    STORAGE_FAILED = (True, "state or metadata could not be written")
    EXPIRED = (True, "it did not complete within execution.checkpointing.timeout")
    COORDINATOR_FAILED = (True, "a coordinator in the JobManager could not give its state")
    #: nothing of the job has failed, and none of its tasks was asked
    IO_EXCEPTION = (False, "the JobManager could not write down that it begins")
    SUBSUMED = (False, "a newer checkpoint completed first")
    TASK_NOT_READY = (False, "a task was not running")
    TASK_FINISHED = (False, "a task finished before the barrier reached it")
    JOB_STOPPED = (False, "the job failed, was cancelled or finished")
    STATE_TOO_LARGE = (True, "state is larger than the jobmanager storage allows")

    @property
    def counts(self) -> bool:
        return bool(self.value[0])

    @property
    def sentence(self) -> str:
        return str(self.value[1])


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """What all tasks need to know to take part; travels with the trigger and in every barrier."""

    kind: CheckpointKind = CheckpointKind.CHECKPOINT
    #: folder (URI) for files of this checkpoint alone; "" = everything travels inside the acknowledgement
    exclusive_folder: str = ""
    #: folder (URI) for files that later checkpoints of the job may refer to; the same as above for a savepoint
    shared_folder: str = ""
    unaligned: bool = False
    #: an aligned checkpoint becomes an unaligned one when alignment lasts longer; 0 = never
    aligned_timeout_ms: int = 0
    #: barriers do not block their channels
    at_least_once: bool = False
    #: newest completed checkpoint when this one was triggered: what increments build on. The JobManager keeps its files
    #: until this one has ended, whatever else completes.
    base_checkpoint_id: int = NO_CHECKPOINT
    incremental: bool = False
    stop: StopMode = StopMode.NONE
    #: state of a task that is not larger travels inside the acknowledgement
    inline_bytes_max: int = 20 << 10
    #: state of a task that is larger is refused when there is no folder
    state_bytes_max: int = 5 << 20


# ---------------------------------------------------------------------------------------------------------------------
# Where state lies


@dataclass(frozen=True, slots=True)
class FileHandle:
    """Bytes of state, in a file or (``path`` == "") inline. Immutable once acknowledged."""

    path: str  #: absolute URI; in metadata relative to the checkpoint's root, so that a savepoint can be moved
    size_bytes: int
    crc32: int  #: of all bytes; of a file of chunks, which are checked one by one: of their checksums
    inline: bytes = b""


#: offset and size in bytes, CRC-32 of these bytes
ChunkPlace: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class KeyedLayer:
    """One file of chunks by key group. A delta has only what changed since the layer before it."""

    file: FileHandle
    chunks: dict[int, ChunkPlace]
    is_delta: bool = False


@dataclass(frozen=True, slots=True)
class KeyedStateHandle:
    """One keyed part (``state/parts.KeyedPart``) of one operator in one subtask.

    Either ``layers`` (oldest first; chunks of a later layer are restored after those of an earlier one), or ``files``:
    the part's own files by name, for a part that keeps itself on disk (``state/parts.FilePart``, e.g. RocksDB).
    """

    part: str
    key_group_start: int
    key_group_end: int  #: exclusive
    layers: tuple[KeyedLayer, ...] = ()
    files: tuple[tuple[str, FileHandle], ...] = ()
    format: str = "chunks"  #: or the FilePart's format, e.g. "rocksdb"


@dataclass(frozen=True, slots=True)
class ListStateHandle:
    """Pickle of ``state/operator_state.OperatorStateSnapshot`` of one operator in one subtask."""

    file: FileHandle
    has_union: bool = False  #: some state is to be seen by every subtask, also when the parallelism stays


@dataclass(frozen=True, slots=True)
class InFlightHandle:
    """Records that an unaligned checkpoint found between two tasks, kept by either of them, on their way to a subtask
    of ``consumer``: a file of batches, encoded as ``exchange/wire`` frames."""

    file: FileHandle
    #: head operator of the consuming chain, and its logical input
    consumer: OperatorID
    input_index: int
    consumer_subtask_index: int
    #: by key group (the record goes to whoever has its key now), else dealt out anew
    is_keyed: bool


@dataclass(frozen=True, slots=True)
class OperatorStateHandles:
    keyed: tuple[KeyedStateHandle, ...] = ()
    lists: ListStateHandle | None = None
    #: pickle of what ``Operator.prepare_commit`` returned: for the operator's coordinator, when this completes
    committables: bytes = b""


@dataclass(frozen=True, slots=True)
class CheckpointMetrics:
    """Of one subtask; times in milliseconds."""

    start_delay_ms: int = 0  #: from the trigger to the first barrier
    alignment_ms: int = 0
    sync_ms: int = 0  #: the task stood still
    async_ms: int = 0
    state_bytes: int = 0  #: all that the checkpoint refers to
    written_bytes: int = 0  #: what this checkpoint had to write
    in_flight_bytes: int = 0
    unaligned: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# What a task starts from


@dataclass(frozen=True, slots=True)
class OperatorRestore:
    """Handles of the former subtasks that concern one new subtask of an operator."""

    #: those that intersect the subtask's key groups; others' chunks in them are to be left alone
    keyed: tuple[KeyedStateHandle, ...] = ()
    #: of all former subtasks in their order; if the parallelism stays and nothing is union state, the subtask's own
    lists: tuple[ListStateHandle, ...] = ()
    #: ``lists`` is to be dealt out anew over the subtasks (``state/operator_state.redistribute``)
    redistribute: bool = False
    #: how messages name the operator if its keys are to be watched (``state/key_types``); "" = they are not
    watched_as: str = ""
    #: how messages name the operator: with its uid, by which its state was found; "" = the state is the job's own, so
    #: the program that wrote it was the same
    told_as: str = ""


@dataclass(frozen=True, slots=True)
class TaskRestore:
    checkpoint_id: int
    operators: dict[OperatorID, OperatorRestore] = field(default_factory=dict)
    in_flight: tuple[InFlightHandle, ...] = ()
    #: The vertex had finished when the checkpoint was taken: the task emits nothing but the end. If it has state, its
    #: operators are opened once more and closed, for what they have not committed yet.
    is_finished: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# JobManager → task


@dataclass(frozen=True, slots=True)
class TriggerCheckpoint:
    """To sources, and to tasks all of whose producers have finished: those take part when their input has ended."""

    allocation_id: AllocationID
    attempt_id: ExecutionAttemptID
    checkpoint_id: int
    timestamp_ms: int
    options: CheckpointOptions


@dataclass(frozen=True, slots=True)
class NotifyCheckpointComplete:
    allocation_id: AllocationID
    attempt_id: ExecutionAttemptID
    checkpoint_id: int


@dataclass(frozen=True, slots=True)
class NotifyCheckpointAborted:
    allocation_id: AllocationID
    attempt_id: ExecutionAttemptID
    checkpoint_id: int


# ---------------------------------------------------------------------------------------------------------------------
# Task → JobManager


@dataclass(frozen=True, slots=True)
class AcknowledgeCheckpoint:
    job_id: JobID
    attempt_id: ExecutionAttemptID
    checkpoint_id: int
    operators: dict[OperatorID, OperatorStateHandles]
    in_flight: tuple[InFlightHandle, ...] = ()
    metrics: CheckpointMetrics = field(default_factory=CheckpointMetrics)
    #: All input had been read and ``finish`` called: it is to be restored as finished, but for what it waits for.
    is_finished: bool = False


@dataclass(frozen=True, slots=True)
class DeclineCheckpoint:
    """The task cannot take part; it goes on."""

    job_id: JobID
    attempt_id: ExecutionAttemptID
    checkpoint_id: int
    reason: CheckpointFailureReason
    message: str = ""


@dataclass(frozen=True, slots=True)
class AwaitsCheckpoint:
    """The task has come to its end and only waits for a checkpoint that completes: it need not wait for its turn."""

    job_id: JobID
    attempt_id: ExecutionAttemptID


#: What tasks say about checkpoints.
CheckpointAnswer: TypeAlias = AcknowledgeCheckpoint | DeclineCheckpoint | AwaitsCheckpoint
