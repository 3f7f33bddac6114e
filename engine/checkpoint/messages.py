"""Events and commands of the CheckpointCoordinator (``coordinator``). Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TypeAlias

from engine.checkpoint.model import CompletedCheckpoint, JobLayout, Task
from engine.checkpoint.store import Garbage
from engine.core.ids import ExecutionAttemptID, OperatorID
from engine.core.late_dataclass import dataclass
from engine.protocol.checkpoint import (
    AcknowledgeCheckpoint,
    CheckpointFailureReason,
    CheckpointOptions,
    DeclineCheckpoint,
    StopMode,
)

# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttemptBegun:
    """The job starts, or starts again from ``restore_point()``; nothing of the attempt before is heard any more."""

    attempt_number: int
    #: what the job is from now on, if it was rescaled
    layout: JobLayout | None = None


@dataclass(frozen=True, slots=True)
class AttemptTakenOver:
    """Instead of AttemptBegun: all tasks of the attempt run, another JobManager has triggered their checkpoints. Tasks
    are told once more of the newest complete one, and that those begun since will never be."""

    attempt_number: int


@dataclass(frozen=True, slots=True)
class TaskRunning:
    task: Task


@dataclass(frozen=True, slots=True)
class TaskFinished:
    task: Task


@dataclass(frozen=True, slots=True)
class JobStopping:
    """The attempt fails or is cancelled."""


@dataclass(frozen=True, slots=True)
class NoAttemptFollows:
    """The job is about to be FAILED or CANCELED, what was being written is written: commit what has become durable
    since the job stopped, as nobody goes on from there."""


@dataclass(frozen=True, slots=True)
class AllTasksFinished:
    """Answered by EndJob when what the coordinators are about to commit is durable, or by EndJobFailed."""


@dataclass(frozen=True, slots=True)
class JobEnded:
    """The job is FINISHED, FAILED or CANCELED and no task is left."""

    #: None: it has finished
    error: str | None = None
    #: the last checkpoints stay
    retain: bool = False


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of ``next_timer_ms`` has come."""


@dataclass(frozen=True, slots=True)
class SavepointRequested:
    """A user asks; answered by AnswerRequest."""

    request_id: str
    folder: str
    stop: StopMode = StopMode.NONE
    #: cancel the job when the savepoint is complete
    cancel: bool = False


@dataclass(frozen=True, slots=True)
class CheckpointRequested:
    request_id: str
    #: not an increment, whatever is configured; None = as configured
    incremental: bool | None = None


@dataclass(frozen=True, slots=True)
class CheckpointPrepared:
    """Answer to PrepareCheckpoint."""

    checkpoint_id: int
    coordinators: Mapping[OperatorID, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PrepareFailed:
    checkpoint_id: int
    message: str
    reason: CheckpointFailureReason = CheckpointFailureReason.COORDINATOR_FAILED


@dataclass(frozen=True, slots=True)
class Acknowledged:
    message: AcknowledgeCheckpoint


@dataclass(frozen=True, slots=True)
class Declined:
    message: DeclineCheckpoint


@dataclass(frozen=True, slots=True)
class CheckpointAwaited:
    """A task has come to its end and stays until a checkpoint has completed."""

    attempt_id: ExecutionAttemptID


@dataclass(frozen=True, slots=True)
class MetadataWritten:
    """Answer to WriteMetadata."""

    checkpoint_id: int


@dataclass(frozen=True, slots=True)
class MetadataFailed:
    checkpoint_id: int
    message: str


@dataclass(frozen=True, slots=True)
class RestoreFailed:
    """A task found a file of the checkpoint that it started from damaged."""

    checkpoint_id: int
    message: str


Event: TypeAlias = (
    AttemptBegun
    | AttemptTakenOver
    | TaskRunning
    | TaskFinished
    | JobStopping
    | NoAttemptFollows
    | AllTasksFinished
    | JobEnded
    | TimerFired
    | SavepointRequested
    | CheckpointRequested
    | CheckpointPrepared
    | PrepareFailed
    | Acknowledged
    | Declined
    | CheckpointAwaited
    | MetadataWritten
    | MetadataFailed
    | RestoreFailed
)

# --- commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PrepareCheckpoint:
    """Ask the operators' coordinators for their state; hold back what they send to tasks from then on."""

    checkpoint_id: int


@dataclass(frozen=True, slots=True)
class TriggerTasks:
    checkpoint_id: int
    timestamp_ms: int
    tasks: tuple[Task, ...]
    options: CheckpointOptions


@dataclass(frozen=True, slots=True)
class ReleaseEvents:
    """What was held back for this checkpoint goes out: its trigger is out, or will never be."""

    checkpoint_id: int


@dataclass(frozen=True, slots=True)
class WriteMetadata:
    """Make it durable, after all that was asked for before; answer MetadataWritten or MetadataFailed."""

    checkpoint: CompletedCheckpoint
    #: Once it is complete the job goes on from there and from nothing before; of a plain savepoint that is not so.
    is_restore_point: bool = True


@dataclass(frozen=True, slots=True)
class NotifyComplete:
    """Tell the tasks; the coordinators commit."""

    checkpoint: CompletedCheckpoint
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class NotifyAborted:
    """Tell the tasks and the coordinators."""

    checkpoint_id: int
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Discard:
    garbage: Garbage


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    request_id: str
    #: what was taken; 0 if nothing was
    checkpoint_id: int = 0
    folder: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class FailJob:
    message: str
    reason: CheckpointFailureReason | None = None
    #: no restart can help
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class CancelJob:
    """The savepoint that was to be taken first is complete."""


@dataclass(frozen=True, slots=True)
class EndJob:
    """Let the coordinators commit: should they fail, the job can go on from its last checkpoint."""


@dataclass(frozen=True, slots=True)
class EndJobFailed:
    """The coordinators must not commit: their state could not be made durable."""

    message: str


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Nothing follows: delete what is in the job's folder, but for these folders and files."""

    retained: tuple[str, ...]


Command: TypeAlias = (
    PrepareCheckpoint
    | TriggerTasks
    | ReleaseEvents
    | WriteMetadata
    | NotifyComplete
    | NotifyAborted
    | Discard
    | AnswerRequest
    | FailJob
    | CancelJob
    | EndJob
    | EndJobFailed
    | CleanUp
)
