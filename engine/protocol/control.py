"""Messages between JobManager, TaskManagers and slot processes, and the descriptors that they carry.

A TaskManager keeps one ordered, two-way stream to the JobManager (``engine/rpc/endpoint``); commands go down, events
come up. A slot process speaks a subset of the same messages with its TaskManager over a local socket. Command = verb
phrase, event = past participle. Nothing here does any work.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, TypeAlias

from engine.core.ids import (
    AllocationID,
    ExecutionAttemptID,
    FencingToken,
    IntermediateDatasetID,
    JobID,
    JobVertexID,
    OperatorID,
    ResourceID,
    ResultPartitionID,
    SlotID,
)
from engine.core.late_dataclass import dataclass
from engine.protocol.checkpoint import (
    AcknowledgeCheckpoint,
    AwaitsCheckpoint,
    DeclineCheckpoint,
    NotifyCheckpointAborted,
    NotifyCheckpointComplete,
    TaskRestore,
    TriggerCheckpoint,
)
from engine.protocol.lifecycle import ExecutionState
from engine.protocol.profiling import OperatorMetrics, SampleStacks, StacksSampled

# ---------------------------------------------------------------------------------------------------------------------
# Descriptors


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """A failure as data: it crosses processes whose classes the receiver may not have."""

    type_name: str  #: e.g. "ZeroDivisionError"
    message: str  #: one clear message, possibly of several lines; what a user sees first
    trace: str  #: the user's own frames for user errors, the whole stack for ours
    domain: str = "internal"  #: value of core.errors.Domain

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class UserFile:
    """A file that travels with a job, stored in the JobManager's blob store by content."""

    name: str  #: relative path under the job's working folder
    sha256: str
    size_bytes: int
    #: "module" (put on sys.path: .py, package folder as zip, wheel, zip), "archive" (extracted to ``target``),
    #: "requirements" (installed with pip), "cache" (distributed cache, found by RuntimeContext), "file"
    kind: str
    target: str = ""  #: archive: folder name to extract to; cache: registered name


@dataclass(frozen=True, slots=True)
class SlotAddress:
    """Where other slots reach a slot process. ``unix_path`` is used when ``host`` is the same, else TCP."""

    resource_id: ResourceID
    host: str
    port: int
    unix_path: str


@dataclass(frozen=True, slots=True)
class InputChannelDescriptor:
    """One channel of an input gate: which subpartition of which partition, and where."""

    partition_id: ResultPartitionID
    subpartition_index: int
    address: SlotAddress


@dataclass(frozen=True, slots=True)
class InputGateDescriptor:
    input_index: int  #: which logical input of the head operator (0, 1…); several gates may feed one (union)
    dataset_id: IntermediateDatasetID
    channels: tuple[InputChannelDescriptor, ...]


@dataclass(frozen=True, slots=True)
class ResultPartitionDescriptor:
    partition_id: ResultPartitionID
    dataset_id: IntermediateDatasetID
    num_subpartitions: int
    blocking: bool  #: complete the whole partition (spilled) before a consumer reads
    buffer_timeout_ms: int  #: 0 = flush each batch at once; > 0; -1 = only full buffers
    #: key groups of the consuming vertex (HASH); 0 = what is usual for ``num_subpartitions``
    max_parallelism: int = 0


@dataclass(frozen=True, slots=True)
class TaskDeployment:
    """All that a slot needs to run one attempt."""

    job_id: JobID
    job_name: str
    attempt_id: ExecutionAttemptID
    vertex_id: JobVertexID
    vertex_name: str
    subtask_index: int
    parallelism: int
    max_parallelism: int
    attempt_number: int
    chain: bytes  #: cloudpickle of engine.graph.job_graph.ChainSpec
    gates: tuple[InputGateDescriptor, ...]
    partitions: tuple[ResultPartitionDescriptor, ...]  #: same order as ChainSpec.exits
    restore: TaskRestore | None = None  #: the checkpoint to start from; None = afresh


@dataclass(frozen=True, slots=True)
class JobInformation:
    """What all tasks of a job share; sent once per slot."""

    job_id: JobID
    job_name: str
    config: dict[str, str]
    files: tuple[UserFile, ...] = ()
    preload: tuple[str, ...] = ()  #: modules of the engine that its operators need and that take long to load


@dataclass(slots=True)
class TaskMetrics:
    """Counters of one attempt since its start; times in milliseconds."""

    records_in: int = 0
    records_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    busy_ms: int = 0
    idle_ms: int = 0
    backpressured_ms: int = 0
    batches_in: int = 0
    #: name → user metric / accumulator snapshot, JSON-able
    user: dict[str, Any] = field(default_factory=dict)
    operators: tuple[OperatorMetrics, ...] = ()  #: of the chain, and its exits


# ---------------------------------------------------------------------------------------------------------------------
# TaskManager → JobManager


@dataclass(frozen=True, slots=True)
class RunningTask:
    """What a slot holds of one attempt when another JobManager takes over."""

    attempt_id: ExecutionAttemptID
    state: ExecutionState
    fingerprint: str = ""  #: of the deployment that it runs (``protocol/fingerprint``); said by the TaskManager
    #: why it cannot go on under another JobMaster, "" if it can: one sentence without a full stop
    objection: str = ""
    #: pickles of what its operators tell their new coordinators (``Operator.report``)
    reports: dict[OperatorID, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HeldSlot:
    """A slot process that has outlived the leader it worked for."""

    allocation_id: AllocationID
    slot_id: SlotID
    job_id: JobID
    address: SlotAddress | None = None  #: None: its process is being made, or ended
    tasks: tuple[RunningTask, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskManagerRegistered:
    resource_id: ResourceID
    host: str
    num_slots: int
    cpu_cores: int
    physical_memory_bytes: int
    process_memory_bytes: int  #: taskmanager.memory.process.size
    slot_memory_bytes: int  #: what a slot's job may use
    log_dir: str
    pid: int
    data_port: int
    #: slots whose processes live on, for a JobManager that takes over
    held: tuple[HeldSlot, ...] = ()
    log_url: str = ""  #: where its logs are shown by others than the JobManager: YARN's NodeManager


@dataclass(frozen=True, slots=True)
class HeartbeatFromTaskManager:
    resource_id: ResourceID
    #: by allocation, because attempt ids are unique within one job only
    metrics: dict[AllocationID, dict[ExecutionAttemptID, TaskMetrics]]
    rss_bytes: int
    slot_rss_bytes: dict[AllocationID, int]


@dataclass(frozen=True, slots=True)
class SlotAllocated:
    allocation_id: AllocationID
    slot_id: SlotID
    address: SlotAddress


@dataclass(frozen=True, slots=True)
class SlotAllocationFailed:
    allocation_id: AllocationID
    slot_id: SlotID
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class SlotFreed:
    """The slot's process is gone as told and the slot can be used again."""

    allocation_id: AllocationID
    slot_id: SlotID


@dataclass(frozen=True, slots=True)
class SlotLost:
    """The slot's process died without being told to; its tasks are gone, the slot itself can be used again."""

    allocation_id: AllocationID
    slot_id: SlotID
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class TaskStateChanged:
    job_id: JobID
    attempt_id: ExecutionAttemptID
    state: ExecutionState
    error: ErrorInfo | None = None
    #: final values when the state is terminal: accumulator name → (kind, value) as in core.metrics
    accumulators: bytes = b""  #: cloudpickle of dict[str, Accumulator]; empty if there are none
    metrics: TaskMetrics | None = None


@dataclass(frozen=True, slots=True)
class OperatorEventSent:
    """Subtask → its operator's coordinator in the JobManager."""

    job_id: JobID
    attempt_id: ExecutionAttemptID
    operator_id: OperatorID
    subtask_index: int
    event: bytes  #: pickle of an engine object; user values inside stay pickled bytes


@dataclass(frozen=True, slots=True)
class LogRead:
    request_id: int
    content: bytes
    size_bytes: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class LogsListed:
    request_id: int
    files: tuple[tuple[str, int, int], ...]  #: name, size, mtime in ms


@dataclass(frozen=True, slots=True)
class TaskManagerDraining:
    """The TaskManager is about to end on purpose and still has slots. Answered with ShutDownTaskManager when nothing is
    lost any more by its end; it does not wait for that for long."""

    resource_id: ResourceID
    reason: str


@dataclass(frozen=True, slots=True)
class TaskManagerUnregistered:
    """The TaskManager ends on purpose (SIGTERM, release)."""

    resource_id: ResourceID
    reason: str


# ---------------------------------------------------------------------------------------------------------------------
# JobManager → TaskManager


@dataclass(frozen=True, slots=True)
class AcceptRegistration:
    jobmanager_id: str
    heartbeat_interval_ms: int
    heartbeat_timeout_ms: int


@dataclass(frozen=True, slots=True)
class RejectRegistration:
    reason: str


@dataclass(frozen=True, slots=True)
class HeartbeatFromJobManager:
    pass


@dataclass(frozen=True, slots=True)
class AllocateSlot:
    allocation_id: AllocationID
    slot_id: SlotID
    job: JobInformation


@dataclass(frozen=True, slots=True)
class FreeSlot:
    """End the slot's process (its tasks first get ``grace_ms`` to close) and give the slot back."""

    allocation_id: AllocationID
    reason: str
    grace_ms: int = 0


@dataclass(frozen=True, slots=True)
class DeployTask:
    allocation_id: AllocationID
    task: TaskDeployment


@dataclass(frozen=True, slots=True)
class CancelTask:
    """Stop the attempt; the TaskManager kills the slot's process when it does not answer within its time."""

    allocation_id: AllocationID
    attempt_id: ExecutionAttemptID


@dataclass(frozen=True, slots=True)
class SendOperatorEvent:
    """Coordinator in the JobManager → one subtask of its operator."""

    allocation_id: AllocationID
    attempt_id: ExecutionAttemptID
    operator_id: OperatorID
    event: bytes


@dataclass(frozen=True, slots=True)
class ReadLog:
    request_id: int
    name: str  #: a file name in the log folder; "" = the main log, "stdout" = the main .out
    offset: int = 0
    length_max: int = 8 << 20


@dataclass(frozen=True, slots=True)
class ListLogs:
    request_id: int


@dataclass(frozen=True, slots=True)
class ShutDownTaskManager:
    reason: str


# ---------------------------------------------------------------------------------------------------------------------
# TaskManager ⇄ slot process (besides DeployTask, CancelTask, SendOperatorEvent, TaskStateChanged, OperatorEventSent,
# and the messages of engine/protocol/checkpoint)


@dataclass(frozen=True, slots=True)
class InitializeSlot:
    """First message to a fresh slot process."""

    allocation_id: AllocationID
    slot_id: SlotID
    slot_index: int
    resource_id: ResourceID
    job: JobInformation
    work_dir: str  #: private folder, removed by the TaskManager afterwards
    files_dir: str  #: where the job's files lie, by UserFile.name
    data_host: str
    data_bind_host: str
    data_port: int  #: 0 = any
    unix_path: str
    memory_bytes: int
    config: dict[str, str]  #: the TaskManager's effective configuration, overridden by the job's


@dataclass(frozen=True, slots=True)
class SlotReady:
    allocation_id: AllocationID
    address: SlotAddress


@dataclass(frozen=True, slots=True)
class ReportTasks:
    """To a slot whose leader is gone. What it sends before its answer never reaches the next one."""

    request_id: int


@dataclass(frozen=True, slots=True)
class TasksReported:
    """Of tasks that have not ended."""

    request_id: int
    tasks: tuple[RunningTask, ...]


@dataclass(frozen=True, slots=True)
class SlotReport:
    allocation_id: AllocationID
    metrics: dict[ExecutionAttemptID, TaskMetrics]


UpMessage: TypeAlias = (
    TaskManagerRegistered
    | HeartbeatFromTaskManager
    | SlotAllocated
    | SlotAllocationFailed
    | SlotFreed
    | SlotLost
    | TaskStateChanged
    | OperatorEventSent
    | AcknowledgeCheckpoint
    | DeclineCheckpoint
    | AwaitsCheckpoint
    | LogRead
    | LogsListed
    | StacksSampled
    | TaskManagerDraining
    | TaskManagerUnregistered
)
DownMessage: TypeAlias = (
    AcceptRegistration
    | RejectRegistration
    | HeartbeatFromJobManager
    | AllocateSlot
    | FreeSlot
    | DeployTask
    | CancelTask
    | SendOperatorEvent
    | TriggerCheckpoint
    | NotifyCheckpointComplete
    | NotifyCheckpointAborted
    | ReadLog
    | ListLogs
    | SampleStacks
    | ShutDownTaskManager
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the wire carries. ``token`` is "" only in the first message of a TaskManager that knows no leader yet."""

    token: FencingToken | str
    message: UpMessage | DownMessage
