"""What REST (and a local client) may ask of the JobManager. Implemented by ``dispatcher.Dispatcher``.

All methods run on the JobManager's event loop. Read-only objects that are returned must not be changed by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from engine.checkpoint.settings import CheckpointSettings
from engine.checkpoint.statistics import CheckpointStatistics
from engine.core.config import Configuration
from engine.core.ids import AllocationID, JobID, JobVertexID, ResourceID
from engine.core.late_dataclass import dataclass
from engine.graph.execution_graph import ExecutionGraph
from engine.graph.job_graph import JobGraph
from engine.ha.history import LeaderRecord
from engine.protocol.checkpoint import StopMode
from engine.protocol.control import TaskManagerRegistered
from engine.protocol.profiling import StacksSampled

__all__ = ["CheckpointsView", "ClusterOverview", "DispatcherGateway", "TakenCheckpoint", "TaskManagerView"]


@dataclass(frozen=True, slots=True)
class ClusterOverview:
    num_taskmanagers: int
    slots_total: int
    slots_available: int
    jobs_running: int  #: every non-terminal job
    jobs_finished: int
    jobs_cancelled: int
    jobs_failed: int


@dataclass(frozen=True, slots=True)
class TaskManagerView:
    registration: TaskManagerRegistered
    slots_free: int
    last_heartbeat_ms: int  #: wall clock
    rss_bytes: int
    #: jobs that hold slots here → number of slots
    slots_by_job: dict[JobID, int]


@dataclass(frozen=True, slots=True)
class TakenCheckpoint:
    """A checkpoint or savepoint that a user asked for and that is complete."""

    checkpoint_id: int
    folder: str


@dataclass(frozen=True, slots=True)
class CheckpointsView:
    """What is shown of a job's checkpoints."""

    settings: CheckpointSettings
    statistics: CheckpointStatistics
    is_batch: bool


class DispatcherGateway(Protocol):
    @property
    def config(self) -> Configuration:
        """The effective cluster configuration."""
        ...

    @property
    def leaders(self) -> Sequence[LeaderRecord]:
        """Who has led this cluster, oldest first; empty without high availability."""
        ...

    def overview(self) -> ClusterOverview: ...

    def jobs(self) -> Sequence[ExecutionGraph]:
        """All jobs known, running and ended, newest first."""
        ...

    def job(self, job_id: JobID) -> ExecutionGraph:
        """Raises JobNotFoundError."""
        ...

    async def submit_job(self, job_graph: JobGraph) -> JobID:
        """Accept a job whose files are already in the blob store (``put_blob``); returns when it is accepted.

        Raises: ProgramError when it cannot be run at all (duplicate id, no vertices).
        """
        ...

    async def cancel_job(self, job_id: JobID) -> None:
        """Start cancelling; does nothing on a job that has ended. Raises JobNotFoundError."""
        ...

    def checkpoints(self, job_id: JobID) -> CheckpointsView:
        """Raises JobNotFoundError."""
        ...

    async def trigger_checkpoint(self, job_id: JobID, incremental: bool | None) -> TakenCheckpoint:
        """Wait until a checkpoint is complete; ``incremental`` None = as configured. Raises EngineError."""
        ...

    async def trigger_savepoint(
        self, job_id: JobID, target: str | None, *, stop: StopMode = StopMode.NONE, cancel: bool = False
    ) -> TakenCheckpoint:
        """Wait until a savepoint is complete; with ``stop`` until the job has ended. ``target`` None = the configured
        folder. Raises EngineError."""
        ...

    async def dispose_savepoint(self, path: str) -> None:
        """Raises InputError, CorruptStateError, ExternalError."""
        ...

    async def rescale_job(self, job_id: JobID, parallelism: int | Mapping[JobVertexID, int]) -> None:
        """Go on from a checkpoint at another parallelism, of some vertices or of all that follow the default; wait
        until the job runs so. Raises ProgramError, ExternalError."""
        ...

    async def job_result(self, job_id: JobID) -> ExecutionGraph:
        """Wait until the job has ended, then return it."""
        ...

    async def coordinator_request(self, job_id: JobID, operator_id: str, request: object) -> object:
        """Hand a client's request to an operator's coordinator (collect sink)."""
        ...

    def put_blob(self, content_path: str) -> str:
        """Move a file into the blob store; returns its sha256."""
        ...

    def has_blob(self, sha256: str) -> bool: ...

    def taskmanagers(self) -> Sequence[TaskManagerView]: ...

    def taskmanager(self, resource_id: ResourceID) -> TaskManagerView:
        """Raises KeyError."""
        ...

    async def read_taskmanager_log(self, resource_id: ResourceID, name: str) -> bytes:
        """The end (at most 8 MiB) of a log file; name "" = main log, "stdout" = main .out. Raises KeyError."""
        ...

    async def list_taskmanager_logs(self, resource_id: ResourceID) -> Sequence[tuple[str, int, int]]:
        """(name, size in bytes, mtime in ms). Raises KeyError."""
        ...

    async def sample_stacks(
        self, resource_id: ResourceID, allocation_id: AllocationID, num_samples: int, interval_ms: int
    ) -> StacksSampled:
        """Look at what the subtasks of a slot are doing. Raises KeyError, ExternalError when there is no answer."""
        ...

    @property
    def log_dir(self) -> str | None:
        """Folder of the JobManager's own log and out files; None in a local run."""
        ...

    async def shut_down_cluster(self) -> None:
        """End all jobs (cancelled), all TaskManagers, this process. Returns at once."""
        ...

    def rest_extras(self) -> dict[str, Any]:
        """For features that a deployment adds (YARN application id…); shown in /config."""
        ...
