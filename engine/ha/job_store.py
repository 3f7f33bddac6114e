"""What a leader writes down of its jobs so that the next one can go on, on top of ``MetadataStore`` and a storage dir.

Large things (job graphs, blobs, metadata of checkpoints without a folder of their own) are files in the storage dir,
each under a name that nobody writes twice; a pointer to them is a value in the metadata, written after them, behind the
fence. So whatever a deposed leader still writes is seen by nobody. Blocks: call from an I/O thread.

====================================  =================================================================================
``jobs/<job id>/graph``               path of the pickled job graph
``jobs/<job id>/checkpoints``         JSON: newest checkpoint id given out, (id, folder) of the completed, oldest first
``results/<job id>``                  JSON: how the job ended; such a job never runs again
====================================  =================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.checkpoint.model import CompletedCheckpoint
from engine.core.ids import JobID
from engine.graph.job_graph import JobGraph

__all__ = ["JobResult", "JobStore", "RecoveredCheckpoints"]


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended, as far as somebody asks after the JobManager that ran it is gone."""

    job_id: JobID
    name: str
    status: str  #: FINISHED, FAILED, CANCELED
    message: str = ""  #: of the failure
    start_ms: int = 0
    end_ms: int = 0


@dataclass(frozen=True, slots=True)
class RecoveredCheckpoints:
    #: the newest id that was given out; the next checkpoint has a greater one
    counter: int = 0
    #: oldest first; those that are damaged are left out, and the log says so
    checkpoints: tuple[CompletedCheckpoint, ...] = ()


class JobStore(Protocol):
    """Bound to one leader's token. Every write raises LeadershipLostError, and ExternalError as MetadataStore does."""

    def put_job(self, job_graph: JobGraph, blobs: dict[str, str]) -> None:
        """Keep the job and its files (sha256 → local path); when it returns, the job survives its JobManager."""
        ...

    def job_ids(self) -> list[JobID]:
        """Return the jobs that were put and not removed, in order of their submission."""
        ...

    def job(self, job_id: JobID) -> JobGraph:
        """Raises: CorruptStateError, InputError."""
        ...

    def fetch_blob(self, sha256: str, target: str) -> None:
        """Copy a job's file to the local path. Raises ExternalError, CorruptStateError when the content is another."""
        ...

    def begin_checkpoint(self, job_id: JobID, checkpoint_id: int) -> None:
        """The id is given out: no later leader uses it again."""
        ...

    def put_checkpoint(self, checkpoint: CompletedCheckpoint, num_retained: int) -> None:
        """Point to a checkpoint whose metadata is durable (or, without a folder, write it); keep the newest
        ``num_retained`` pointers. Before it returns nobody may commit what the checkpoint has."""
        ...

    def checkpoints(self, job_id: JobID) -> RecoveredCheckpoints: ...

    def put_result(self, result: JobResult) -> None:
        """The job has ended for good. Written before anything of it is deleted."""
        ...

    def results(self) -> list[JobResult]: ...

    def remove_job(self, job_id: JobID) -> None:
        """Forget graph, pointers and files of a job; its result stays."""
        ...
