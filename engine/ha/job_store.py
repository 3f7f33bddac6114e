"""What a leader writes down of its jobs so that the next one can go on, on top of ``MetadataStore`` and a storage dir.

Large things (job graphs, blobs, metadata of checkpoints without a folder of their own) are files in the storage dir,
each under a name that nobody writes twice; a pointer to them is a value in the metadata, written after them, behind the
fence. So whatever a deposed leader still writes is seen by nobody; its files go with their job, or with the cluster.
Blocks: call from an I/O thread; several may.

Files: ``<storage dir>/jobs/<job id>/``: ``graph-<random>``, ``blobs/<sha256>``, ``checkpoint-<id>-<random>/_metadata``.

====================================  =================================================================================
``jobs/<job id>/graph``               JSON: file of the pickled job graph, its digest, the job's number of submission
``jobs/<job id>/checkpoints``         JSON: newest checkpoint id given out, (id, folder) of the completed, oldest first
``jobs/<job id>/attempt``             JSON: newest attempt, whether it has begun to publish
``results/<job id>``                  JSON: how the job ended; such a job never runs again
====================================  =================================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import field
from typing import IO, Any, Final, Protocol, final

from engine.checkpoint.model import CompletedCheckpoint
from engine.checkpoint.storage import read_checkpoint, verify_files, write_metadata
from engine.core.errors import (
    CorruptStateError,
    EngineError,
    ExternalError,
    InputError,
    InternalError,
    JobNotFoundError,
    OutputExistsError,
)
from engine.core.fs import file_system_of
from engine.core.ids import FencingToken, JobID
from engine.core.late_dataclass import dataclass
from engine.core.plain_pickle import dump_plain, load_plain
from engine.graph.job_graph import JobGraph
from engine.ha.contracts import MetadataStore

__all__ = ["FencedJobStore", "JobResult", "JobStore", "RecoveredCheckpoints"]

logger = logging.getLogger(__name__)

#: Results of jobs that are gone are dropped, oldest first, beyond so many.
RESULTS_MAX: Final = 200
_MESSAGE_MAX: Final = 20_000  # characters of a failure that are kept with the result: a long stack trace
_CHUNK_BYTES: Final = 1 << 20


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
    #: what is wrong with those that were left out
    problems: tuple[str, ...] = field(default=(), compare=False)


class JobStore(Protocol):
    """Bound to one leader's token. Every write raises LeadershipLostError, and ExternalError as MetadataStore does."""

    def put_job(self, job_graph: JobGraph, blobs: dict[str, str]) -> None:
        """Keep the job and its files (sha256 → local path); when it returns, the job survives its JobManager."""
        ...

    def job_ids(self) -> list[JobID]:
        """Return the jobs that were put and not removed, in order of their submission."""
        ...

    def job(self, job_id: JobID) -> JobGraph:
        """Raises: CorruptStateError, JobNotFoundError, and ExternalError when the file system does not answer."""
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

    def put_checkpoints(self, job_id: JobID, checkpoints: Sequence[CompletedCheckpoint]) -> None:
        """Point to these, oldest first, and to no others: it has been decided what the job goes on from, and one that
        was put last, or perhaps was, is not among them."""
        ...

    def checkpoints(self, job_id: JobID) -> RecoveredCheckpoints: ...

    def begin_attempt(
        self, job_id: JobID, attempt_number: int, *, publishes: bool = False, is_over: bool = False
    ) -> None:
        """Called before the attempt does anything that others see, and with ``publishes`` before what the job has
        written is made visible without a checkpoint that knows of it: nobody can do that a second time. With
        ``is_over`` before anything of it is cleaned up: what runs of it is not to be taken over any more."""
        ...

    def last_attempt(self, job_id: JobID) -> tuple[int, bool]:
        """Return what ``begin_attempt`` was told last; (-1, False) when it never was."""
        ...

    def is_attempt_over(self, job_id: JobID) -> bool:
        """Whether it was told last that the attempt is over, or never anything."""
        ...

    def put_result(self, result: JobResult) -> None:
        """The job has ended for good. Written before anything of it is deleted."""
        ...

    def results(self) -> list[JobResult]: ...

    def remove_job(self, job_id: JobID) -> None:
        """Forget graph, pointers and files of a job; its result stays."""
        ...


@dataclass
class _Pointers:
    """Value of ``jobs/<job id>/checkpoints``."""

    counter: int = 0
    #: (checkpoint id, folder, whether the folder is the store's own), oldest first
    completed: list[tuple[int, str, bool]] = field(default_factory=list)

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, value: bytes | None, name: str) -> _Pointers:
        if value is None:
            return cls()
        said = _parsed(value, name)
        try:
            completed = [(int(number), str(folder), bool(own)) for number, folder, own in said["completed"]]
            return cls(int(said["counter"]), completed)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStateError(f"High-availability metadata {name} cannot be understood: {error!r}.") from error


@final
class FencedJobStore:
    """The JobStore of one leader. Keeps the pointers that it wrote: while its token holds, nobody else writes them."""

    def __init__(self, metadata: MetadataStore, storage_dir: str, token: FencingToken) -> None:
        """``storage_dir``: URI, as HighAvailabilityServices gives it."""
        self._metadata = metadata
        self._storage_dir = storage_dir.rstrip("/")
        self._token = token
        # One write at a time: pointers are read, changed and written as a whole.
        self._lock = threading.Lock()
        self._pointers: dict[JobID, _Pointers] = {}
        #: where the files of known jobs are
        self._blob_paths: dict[str, str] = {}

    # --- jobs --------------------------------------------------------------------------------------------------------

    def put_job(self, job_graph: JobGraph, blobs: dict[str, str]) -> None:
        folder = self._folder(job_graph.job_id)
        for sha256, local_path in blobs.items():
            self._put_blob(f"{folder}/blobs/{sha256}", sha256, local_path)
        content = dump_plain(job_graph)
        path = f"{folder}/graph-{_random_name()}"
        with _new_file(path) as stream:
            stream.write(content)
        with self._lock:
            numbers = {known: self._graph_pointer(known)["number"] for known in self.job_ids()}
            pointer = {
                "path": path,
                "sha256": hashlib.sha256(content).hexdigest(),
                # A job that is put again, rescaled, keeps its place.
                "number": numbers.get(job_graph.job_id, max(numbers.values(), default=0) + 1),
            }
            self._metadata.put(self._token, f"jobs/{job_graph.job_id}/graph", json.dumps(pointer).encode())
        self._blob_paths.update({sha256: f"{folder}/blobs/{sha256}" for sha256 in blobs})

    def job_ids(self) -> list[JobID]:
        names = [name for name in self._metadata.list("jobs") if self._metadata.get(f"jobs/{name}/graph") is not None]
        return sorted((JobID(name) for name in names), key=lambda job_id: self._graph_pointer(job_id)["number"])

    def job(self, job_id: JobID) -> JobGraph:
        pointer = self._graph_pointer(job_id)
        path = pointer["path"]
        try:
            with file_system_of(path).open_read(path) as stream:
                content = stream.read()
        except InputError as error:
            raise CorruptStateError(
                f"job={job_id}: its job graph is gone, so it cannot be run again: {error} "
                "Nothing of the job was deleted; submit it again, from its last checkpoint with -s."
            ) from error
        if hashlib.sha256(content).hexdigest() != pointer["sha256"]:
            raise CorruptStateError(f"job={job_id}: its job graph {path} is damaged: its digest is wrong.")
        try:
            job_graph = load_plain(content)
        except Exception as error:  # a pickle of another release may raise anything
            raise CorruptStateError(f"job={job_id}: its job graph {path} cannot be understood: {error!r}.") from error
        if not isinstance(job_graph, JobGraph) or job_graph.job_id != job_id:
            raise CorruptStateError(f"job={job_id}: {path} holds no graph of this job.")
        return job_graph

    def remove_job(self, job_id: JobID) -> None:
        with self._lock:
            self._metadata.delete(self._token, f"jobs/{job_id}")
            self._pointers.pop(job_id, None)
        folder = self._folder(job_id)
        for sha256, path in list(self._blob_paths.items()):
            if path.startswith(folder + "/"):
                del self._blob_paths[sha256]
        _delete(folder)

    def _folder(self, job_id: JobID) -> str:
        return f"{self._storage_dir}/jobs/{job_id}"

    def _graph_pointer(self, job_id: JobID) -> dict[str, Any]:
        name = f"jobs/{job_id}/graph"
        value = self._metadata.get(name)
        if value is None:
            raise JobNotFoundError(f"job={job_id} is not among the jobs that a JobManager is to run again.")
        pointer = _parsed(value, name)
        if not isinstance(pointer.get("number"), int) or not isinstance(pointer.get("path"), str):
            raise CorruptStateError(f"High-availability metadata {name} cannot be understood: {value!r}.")
        return pointer

    # --- files of jobs -----------------------------------------------------------------------------------------------

    def _put_blob(self, path: str, sha256: str, local_path: str) -> None:
        """Copy a local file unless it is there: a file gets its last name once it is whole."""
        fs = file_system_of(path)
        status = fs.status(path)
        if status is not None and status.size_bytes == os.path.getsize(local_path):
            return
        partial = f"{path}.{_random_name()}"
        with open(local_path, "rb") as source, _new_file(partial) as target:
            found = _copy(source, target)
        if found != sha256:
            _delete(partial)
            raise InternalError(f"{local_path} has digest {found}; expected {sha256}.")
        try:
            fs.rename(partial, path)
        except OutputExistsError:  # by another leader meanwhile: the same content
            _delete(partial)

    def fetch_blob(self, sha256: str, target: str) -> None:
        path = self._blob_paths.get(sha256) or self._find_blob(sha256)
        self._blob_paths[sha256] = path
        partial = f"{target}.{_random_name()}"
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        try:
            with file_system_of(path).open_read(path) as source, open(partial, "xb") as local:
                found = _copy(source, local)
            if found != sha256:
                raise CorruptStateError(f"A job's file {path} is damaged: its digest is {found}.")
            os.replace(partial, target)
        except InputError as error:
            raise CorruptStateError(f"A job's file is gone: {error}") from error
        except OSError as error:
            raise ExternalError(f"A job's file {path} cannot be copied to {target}: {error}.") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(partial)

    def _find_blob(self, sha256: str) -> str:
        for job_id in self.job_ids():
            path = f"{self._folder(job_id)}/blobs/{sha256}"
            if file_system_of(path).status(path) is not None:
                return path
        raise CorruptStateError(f"A job's file with digest {sha256} is not in {self._storage_dir}/jobs.")

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def begin_checkpoint(self, job_id: JobID, checkpoint_id: int) -> None:
        with self._lock:
            pointers = self._read_pointers(job_id)
            if checkpoint_id > pointers.counter:
                self._write_pointers(job_id, dataclasses.replace(pointers, counter=checkpoint_id))

    def put_checkpoint(self, checkpoint: CompletedCheckpoint, num_retained: int) -> None:
        job_id, number, folder = checkpoint.job_id, checkpoint.checkpoint_id, checkpoint.folder
        if not folder:
            folder = self._write_own(checkpoint)
        with self._lock:
            pointers = self._read_pointers(job_id)
            completed = [entry for entry in pointers.completed if entry[0] != number]
            completed = sorted([*completed, (number, folder, not checkpoint.folder)])[-max(num_retained, 1) :]
            self._write_pointers(job_id, _Pointers(max(pointers.counter, number), completed))
        self._delete_own(pointers, completed)

    def put_checkpoints(self, job_id: JobID, checkpoints: Sequence[CompletedCheckpoint]) -> None:
        with self._lock:
            pointers = self._read_pointers(job_id)
        known = {entry[0]: entry for entry in pointers.completed}
        completed: list[tuple[int, str, bool]] = []
        for checkpoint in checkpoints:
            number, folder = checkpoint.checkpoint_id, checkpoint.folder
            if number in known and known[number][2] is not bool(folder):
                completed.append(known[number])
                continue
            if not folder:
                folder = self._write_own(checkpoint)
            completed.append((number, folder, not checkpoint.folder))
        with self._lock:
            counter = max([pointers.counter, *(number for number, _, _ in completed)])
            self._write_pointers(job_id, _Pointers(counter, completed))
        self._delete_own(pointers, completed)

    def _write_own(self, checkpoint: CompletedCheckpoint) -> str:
        folder = f"{self._folder(checkpoint.job_id)}/checkpoint-{checkpoint.checkpoint_id}-{_random_name()}"
        write_metadata(dataclasses.replace(checkpoint, folder=folder))
        return folder

    @staticmethod
    def _delete_own(before: _Pointers, completed: list[tuple[int, str, bool]]) -> None:
        kept = {entry[1] for entry in completed}
        for _, old_folder, is_own in before.completed:
            if is_own and old_folder not in kept:
                _delete(old_folder)

    def checkpoints(self, job_id: JobID) -> RecoveredCheckpoints:
        with self._lock:
            pointers = self._read_pointers(job_id)
        found, problems = [], []
        for number, folder, is_own in pointers.completed:
            try:
                checkpoint = read_checkpoint(folder)
                if is_own:
                    checkpoint = dataclasses.replace(checkpoint, folder="")
                verify_files(checkpoint)
                # What a job was started from is of another one, and not in a folder of its own.
                is_of_job = checkpoint.job_id == job_id or not (is_own or str(job_id) in folder.split("/"))
                if checkpoint.checkpoint_id != number or not is_of_job:
                    raise CorruptStateError(
                        f"{folder} holds checkpoint {checkpoint.checkpoint_id} of job {checkpoint.job_id}."
                    )
            except (CorruptStateError, InputError) as error:
                logger.error(
                    "job=%s checkpoint=%d cannot be used, falling back to the one before; nothing is deleted: %s",
                    job_id,
                    number,
                    error,
                )
                problems.append(f"checkpoint {number}: {error}")
                continue
            found.append(checkpoint)
        if pointers.completed and not found:
            logger.error("job=%s: none of its %d checkpoints can be used.", job_id, len(pointers.completed))
        return RecoveredCheckpoints(pointers.counter, tuple(found), tuple(problems))

    def _read_pointers(self, job_id: JobID) -> _Pointers:
        if job_id not in self._pointers:
            name = f"jobs/{job_id}/checkpoints"
            self._pointers[job_id] = _Pointers.from_json(self._metadata.get(name), name)
        return self._pointers[job_id]

    def _write_pointers(self, job_id: JobID, pointers: _Pointers) -> None:
        # Not known from here until it is written: a write that failed may have taken effect.
        self._pointers.pop(job_id, None)
        self._metadata.put(self._token, f"jobs/{job_id}/checkpoints", pointers.to_json())
        self._pointers[job_id] = pointers

    # --- attempts ----------------------------------------------------------------------------------------------------

    def begin_attempt(
        self, job_id: JobID, attempt_number: int, *, publishes: bool = False, is_over: bool = False
    ) -> None:
        value = json.dumps({"attempt": attempt_number, "publishes": publishes, "over": is_over}).encode()
        self._metadata.put(self._token, f"jobs/{job_id}/attempt", value)

    def last_attempt(self, job_id: JobID) -> tuple[int, bool]:
        return self._attempt(job_id)[:2]

    def is_attempt_over(self, job_id: JobID) -> bool:
        return self._attempt(job_id)[2]

    def _attempt(self, job_id: JobID) -> tuple[int, bool, bool]:
        name = f"jobs/{job_id}/attempt"
        value = self._metadata.get(name)
        if value is None:
            return -1, False, True
        said = _parsed(value, name)
        try:
            # Who has not said whether it is over has let nobody take tasks over either.
            return int(said["attempt"]), bool(said["publishes"]), bool(said.get("over", True))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStateError(f"High-availability metadata {name} cannot be understood: {value!r}.") from error

    # --- results -----------------------------------------------------------------------------------------------------

    def put_result(self, result: JobResult) -> None:
        result = dataclasses.replace(result, message=result.message[:_MESSAGE_MAX])
        with self._lock:
            self._metadata.put(self._token, f"results/{result.job_id}", json.dumps(dataclasses.asdict(result)).encode())
            if len(self._metadata.list("results")) <= RESULTS_MAX:
                return
            jobs = set(self._metadata.list("jobs"))  # whose result says that they must not run again
            gone = [old for old in self.results() if old.job_id not in jobs and old.job_id != result.job_id]
            for old in gone[: len(self._metadata.list("results")) - RESULTS_MAX]:
                self._metadata.delete(self._token, f"results/{old.job_id}")

    def results(self) -> list[JobResult]:
        found = []
        for name in self._metadata.list("results"):
            value = self._metadata.get(f"results/{name}")
            if value is None:
                continue
            said = _parsed(value, f"results/{name}")
            known = {one.name for one in dataclasses.fields(JobResult)}
            try:
                result = JobResult(**{key: said[key] for key in said if key in known})
                found.append(dataclasses.replace(result, job_id=JobID(name)))
            except TypeError as error:
                raise CorruptStateError(
                    f"High-availability metadata results/{name} cannot be understood: {error}."
                ) from error
        return sorted(found, key=lambda result: (result.end_ms, result.job_id))


def _random_name() -> str:
    return FencingToken.generate()[:12]


def _parsed(value: bytes, name: str) -> dict[str, Any]:
    try:
        said = json.loads(value)
    except ValueError as error:
        raise CorruptStateError(f"High-availability metadata {name} is not JSON: {error}.") from error
    if not isinstance(said, dict):
        raise CorruptStateError(f"High-availability metadata {name} cannot be understood: {value!r}.")
    return said


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[IO[bytes]]:
    """Give a file to write; durable and whole when the block has ended. Raises ExternalError."""
    try:
        with file_system_of(path).open_write(path) as stream:
            yield stream
            stream.flush()
            # Only the local file system has a descriptor; others are durable when the file is closed.
            with contextlib.suppress(AttributeError, io.UnsupportedOperation):
                os.fsync(stream.fileno())
    except OSError as error:
        raise ExternalError(f"Cannot write {path}: {error}.") from error


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy all and return the SHA-256 of it."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()


def _delete(path: str) -> None:
    """Delete what no pointer names; what cannot be deleted is left behind."""
    try:
        file_system_of(path).delete(path, recursive=True)
    except (EngineError, OSError) as error:
        logger.warning("%s It is left behind.", error)
