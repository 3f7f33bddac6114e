"""What REST (and a local client) may ask of the JobManager. Implemented by ``dispatcher.Dispatcher``.

All methods run on the JobManager's event loop. Read-only objects that are returned must not be changed by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.core.config import Configuration
from engine.core.ids import AllocationID, JobID, ResourceID
from engine.graph.execution_graph import ExecutionGraph
from engine.graph.job_graph import JobGraph
from engine.protocol.control import TaskManagerRegistered
from engine.protocol.profiling import StacksSampled

__all__ = ["ClusterOverview", "DispatcherGateway", "TaskManagerView"]


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


class DispatcherGateway(Protocol):
    @property
    def config(self) -> Configuration:
        """The effective cluster configuration."""
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
