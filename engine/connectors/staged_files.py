"""Puts segments that tasks have written into a hidden folder together and renames them to the output of a job.

The JobManager's half of ``write_as_text`` and ``write_as_csv``; what tasks do is ``file_sinks``. Published at the end
FINISHED. An unbounded job ends only by being cancelled: with ``publish_on_cancel`` (set by the API when a source is
unbounded) what was written so far, whole lines, is published then: with checkpoints up to the last completed one.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterable, Mapping
from typing import Final, final

from engine.connectors.kept_files import KeptFiles, file_name
from engine.connectors.part_writers import make_durable
from engine.connectors.sink import retains_checkpoints, takes_checkpoints
from engine.core.errors import ExternalError, InputError, OutputExistsError
from engine.core.fs import FileSystem, file_system_of
from engine.core.ids import JobID
from engine.core.late_dataclass import dataclass
from engine.core.plain_pickle import dump_plain, load_plain
from engine.operators.base import CoordinatorContext, CoordinatorSpec, JobOutcome, OperatorCoordinator

__all__ = ["FileWritten", "Segment", "StagedFilesSpec", "WriteMode", "segment_path"]

_COPY_BYTES: Final = 1 << 20
#: In a staging folder: the file that is there once publishing has begun; it says what is published.
_MARKER: Final = ".publishing"
#: in the names of lists of kept files; whose they are is said by their folder
_MARK: Final = "segments"


class WriteMode(enum.Enum):
    """What to do when the output path exists. Values are Flink's."""

    NO_OVERWRITE = 0
    OVERWRITE = 1


@dataclass(frozen=True, slots=True)
class Segment:
    """The first ``size_bytes`` of a file in a staging folder: whole lines."""

    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileWritten:
    """Task → coordinator: the subtask's file is complete (or as complete as a cancelled task gets)."""

    segments: tuple[Segment, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class _Published:
    """What the file says that is there once publishing has begun."""

    num_files: int
    files: dict[int, tuple[Segment, ...]]
    #: Output of a former job, of which this is the continuation, is replaced.
    continues: bool


def staging_folder(path: str, job_id: JobID) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}.{job_id[:12]}.inprogress"


def segment_path(path: str, job_id: JobID, subtask_index: int, attempt_number: int, number: int) -> str:
    suffix = f"-{number}" if number else ""
    return f"{staging_folder(path, job_id)}/{subtask_index + 1}-{attempt_number}{suffix}"


@final
@dataclass(frozen=True)
class StagedFilesSpec(CoordinatorSpec):
    path: str
    write_mode: WriteMode
    publish_on_cancel: bool
    can_resume = True

    def create(self) -> OperatorCoordinator:
        return _StagedFiles(self)


@final
class _StagedFiles(OperatorCoordinator):
    """State: the files of subtasks that have finished."""

    def __init__(self, spec: StagedFilesSpec) -> None:
        self._path = spec.path
        self._overwrite = spec.write_mode is WriteMode.OVERWRITE
        self._publish_on_cancel = spec.publish_on_cancel
        self._started = False
        #: A checkpoint may need what is in the staging folder.
        self._is_needed = False
        #: subtask → its complete file, if it has told
        self._written: dict[int, tuple[Segment, ...]] = {}
        #: of subtasks that had finished before the checkpoint from which this attempt goes on
        self._restored: dict[int, tuple[Segment, ...]] = {}
        #: subtask → its file as of the last completed checkpoint
        self._checkpointed: dict[int, tuple[Segment, ...]] = {}
        #: of those, what subtasks said that were running
        self._offered: dict[int, tuple[Segment, ...]] = {}
        #: What is in the output's place was published by the job that wrote what this one goes on with.
        self._continues = False
        self._written_at: dict[int, dict[int, tuple[Segment, ...]]] = {}
        self._is_restored = False
        #: A former attempt, which had what the checkpoint has, began to publish: some files are in their place.
        self._resumes = False
        self._num_files = 0
        self._published: list[str] = []
        #: A savepoint or a retained checkpoint needs them as they are: they are copied to be published.
        self._keeps_segments = False

    def restore(self, state: bytes, committables: Mapping[int, object]) -> None:
        self._is_restored = True
        self._restored = load_plain(state) if state else {}
        self._offered = _merged({}, committables)
        self._checkpointed = _merged(self._restored, committables)

    def start(self, ctx: CoordinatorContext) -> None:
        self._begin(ctx)
        if ctx.attempt_number > 0 and not self._resumes:
            self._remove_others(_paths(self._checkpointed))

    def resume(self, ctx: CoordinatorContext, reports: Mapping[int, object]) -> None:
        """Segments that no checkpoint has stay: tasks write them. None of them has said of its end what was lost."""
        self._begin(ctx)
        if self._resumes:
            raise ExternalError(f"{self._path} is being published already.")

    def _begin(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        self._takes_checkpoints = takes_checkpoints(ctx.config)
        self._is_needed = self._takes_checkpoints or self._is_restored
        self._fs: FileSystem = file_system_of(self._path)
        self._staging = staging_folder(self._path, ctx.job_id)
        self._num_files = ctx.parallelism
        self._kept = KeptFiles(self._fs, self._staging, _MARK, ctx.attempt_number)
        self._resume()
        found = None if self._resumes else self._fs.status(self._path)
        if found is not None:
            self._continues = self._is_from_former_job()
            if not (self._overwrite or self._continues):
                raise OutputExistsError(
                    f"Output path {self._path} exists. Choose another one, delete it, or use WriteMode.OVERWRITE."
                )
            if found.is_dir:
                self._check_replaceable()
        self._started = True
        # Fails now, not after hours of work, when the place is not writable.
        probe = f"{self._staging}/.probe"
        try:
            self._fs.make_dirs(self._staging)
            self._fs.open_write(probe, overwrite=True).close()
            self._fs.delete(probe)
        except ExternalError as error:
            raise ExternalError(
                f"Output path {self._path} cannot be written: {error} Choose a place where the JobManager and the "
                "TaskManagers may make files, or give them the right to."
            ) from error
        if self._resumes:
            return
        self._check_restored()

    @property
    def _marker(self) -> str:
        return f"{self._staging}/{_MARKER}"

    def _resume(self) -> None:
        found = self._published_from(self._staging) if self._is_restored else None
        if found is not None and found.files == self._restored:
            self._num_files, self._continues, self._resumes = found.num_files, found.continues, True

    def _is_from_former_job(self) -> bool:
        """Whether another job has published just what this one goes on with, as one does that was stopped there."""
        segments = {segment for segment in _all(self._checkpointed) if not self._is_own(segment)}
        for staging in sorted(self._foreign_stagings(self._checkpointed)):
            published = self._published_from(staging)
            if published is not None and set(_all(published.files)) == segments:
                # Unless somebody else has written there since.
                return self._size_of_output() == sum(segment.size_bytes for segment in segments)
        return False

    def _is_own(self, segment: Segment) -> bool:
        return segment.path.startswith(f"{self._staging}/")

    def _foreign_stagings(self, files: Mapping[int, tuple[Segment, ...]]) -> set[str]:
        """Return the folders where former jobs have written parts of this."""
        return {segment.path.rpartition("/")[0] for segment in _all(files) if not self._is_own(segment)}

    def _size_of_output(self) -> int:
        found = self._fs.status(self._path)
        assert found is not None
        if not found.is_dir:
            return found.size_bytes
        return sum(child.size_bytes for child in self._fs.list(self._path) if file_name(child.path).isdigit())

    def _published_from(self, staging: str) -> _Published | None:
        marker = f"{staging}/{_MARKER}"
        if self._fs.status(marker) is None:
            return None
        with contextlib.closing(self._fs.open_read(marker)) as stream:
            found = load_plain(stream.read())
        assert isinstance(found, _Published), found
        return found

    def _mark(self, files: Mapping[int, tuple[Segment, ...]]) -> None:
        with contextlib.closing(self._fs.open_write(f"{self._marker}-new", overwrite=True)) as stream:
            stream.write(dump_plain(_Published(self._num_files, dict(files), self._continues)))
            make_durable(stream)
        self._fs.rename(f"{self._marker}-new", self._marker, overwrite=True)

    def _check_replaceable(self) -> None:
        """A folder is overwritten only if it looks like output of before: numbered files, nothing else but hidden."""
        names = [child.path.rstrip("/").rpartition("/")[2] for child in self._fs.list(self._path)]
        foreign = [name for name in names if not name.isdigit() and not name.startswith((".", "_"))]
        if foreign:
            raise OutputExistsError(
                f"Output path {self._path} is a folder with {foreign[0]!r} in it, which no earlier output has written; "
                "it is not overwritten. Choose another path, or delete the folder."
            )

    def _check_restored(self) -> None:
        for segment in sorted(_all(self._checkpointed), key=lambda segment: segment.path):
            found = self._fs.status(segment.path)
            if found is None or found.size_bytes < segment.size_bytes:
                raise InputError(
                    f"The checkpoint refers to {segment.size_bytes} bytes of output in {segment.path}, which are gone. "
                    "What write_as_text and write_as_csv have written stays for savepoints and retained checkpoints "
                    f"only, hidden beside {self._path}: whoever goes on from there needs it."
                )

    def _remove_others(self, kept: set[str]) -> None:
        """Remove what killed attempts wrote and neither checkpoint nor savepoint knows."""
        names = {*map(file_name, kept), *self._kept.names()}
        for child in self._fs.list(self._staging):
            if file_name(child.path) not in names:
                self._fs.delete(child.path, recursive=child.is_dir)

    def _remove_staging(self, retained: bool = False) -> None:
        """The job has ended; what savepoints or retained checkpoints need stays, and what was published with it."""
        wanted = self._kept.names()
        own = [segment.path for segment in _all(self._checkpointed) if self._is_own(segment)]
        if retained:
            wanted.update(map(file_name, own))
        if wanted:
            self._remove_others({*wanted, _MARKER})
        else:
            self._fs.delete(self._staging, recursive=True)

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        assert isinstance(event, FileWritten), event
        if event.complete or self._publish_on_cancel:
            self._written[subtask_index] = event.segments

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def snapshot(self, checkpoint_id: int) -> bytes:
        self._is_needed = True
        finished = self._written_at[checkpoint_id] = _merged(self._restored, self._written)
        return dump_plain(finished)

    def checkpoint_completed(self, checkpoint_id: int, committables: Mapping[int, object]) -> None:
        finished = self._written_at.pop(checkpoint_id, {})
        self._written_at = {number: files for number, files in self._written_at.items() if number > checkpoint_id}
        self._offered = _merged({}, committables)
        self._checkpointed = _merged(finished, committables)

    def savepoint_taken(self, checkpoint_id: int, committables: Mapping[int, object]) -> None:
        files = _merged(self._written_at.get(checkpoint_id, {}), committables)
        self._kept.keep(checkpoint_id, [segment.path for segment in _all(files) if self._is_own(segment)])

    def checkpoint_aborted(self, checkpoint_id: int) -> None:
        self._written_at.pop(checkpoint_id, None)
        self._kept.forget(checkpoint_id)

    def subtask_finished(self, subtask_index: int) -> None:
        """One that was stopped by a savepoint has told of no end: its file is what the savepoint has."""
        if subtask_index not in self._written and subtask_index in self._offered:
            self._written[subtask_index] = self._offered[subtask_index]

    # --- the end -----------------------------------------------------------------------------------------------------

    def _to_publish(self, outcome: JobOutcome) -> dict[int, tuple[Segment, ...]] | None:
        if self._resumes:
            return None if outcome is JobOutcome.FAILED else self._restored
        if outcome is JobOutcome.FINISHED:
            return _merged(self._restored, self._written)
        if outcome is JobOutcome.CANCELED and self._publish_on_cancel:
            if self._takes_checkpoints:
                return self._checkpointed
            self._find_files_of_killed_tasks()
            return _merged(self._restored, self._written)
        return None

    def check_end(self, outcome: JobOutcome) -> None:
        files = self._to_publish(outcome) if self._started else None
        if files is None or self._resumes:
            return
        for segment in _all(files):
            if self._fs.status(segment.path) is None:
                raise ExternalError(f"{segment.path}, which this job has written for {self._path}, is gone.")
        existing = self._fs.status(self._path)
        if existing is not None and not (self._overwrite or self._continues):
            raise OutputExistsError(f"Output path {self._path} exists now; when the job began it did not.")
        fills_folder = existing is not None and existing.is_dir
        if fills_folder:
            self._check_replaceable()
        folder = self._path if fills_folder and self.ctx.parallelism > 1 else self._path.rpartition("/")[0]
        probe = f"{folder}/.probe.{self.ctx.job_id[:12]}"
        try:
            self._fs.open_write(probe, overwrite=True).close()
            self._fs.delete(probe)
        except ExternalError as error:
            raise ExternalError(f"Output path {self._path} can be written no more: {error}") from error

    def published(self) -> list[str]:
        return self._published

    def job_ended(self, outcome: JobOutcome) -> None:
        if not self._started:
            return
        if outcome is JobOutcome.FAILED and self._is_needed:
            return  # the next attempt goes on with what the last checkpoint knows
        retained = outcome is JobOutcome.CANCELED and retains_checkpoints(self.ctx.config, outcome)
        self._keeps_segments = retained or bool(self._kept.names())
        try:
            files = self._to_publish(outcome)
            if files is not None:
                if self._is_needed or self._keeps_segments:
                    self._mark(files)
                self._publish(files)
                for staging in self._foreign_stagings(files):
                    self._fs.delete(f"{staging}/{_MARKER}")  # its output was replaced
        except Exception:
            if not self._is_needed:
                self._remove_staging()
            raise  # the next attempt publishes the rest
        self._remove_staging(retained)

    def given_up(self, outcome: JobOutcome) -> None:
        if not self._started or self._fs.status(self._staging) is None:
            return
        retained = retains_checkpoints(self.ctx.config, outcome)
        if outcome is JobOutcome.CANCELED and not self._resumes:
            self.job_ended(outcome)
        else:
            self._remove_staging(retained)

    def _find_files_of_killed_tasks(self) -> None:
        """A slot that had to be killed sent nothing; its last attempt's file ends with a whole line all the same."""
        found: dict[int, list[tuple[int, int, Segment]]] = {}
        for child in self._fs.list(self._staging):
            numbers = child.path.rpartition("/")[2].split("-")
            if all(number.isdigit() for number in numbers) and len(numbers) in (2, 3):
                subtask, attempt, number = (*map(int, numbers), 0)[:3]
                segment = Segment(child.path, child.size_bytes)
                found.setdefault(subtask - 1, []).append((attempt, number, segment))
        for subtask, segments in found.items():
            last = max(attempt for attempt, _, _ in segments)
            if last >= self.ctx.attempt_number and subtask not in self._written:
                self._written[subtask] = tuple(own for attempt, _, own in sorted(segments) if attempt == last)

    def _publish(self, files: Mapping[int, tuple[Segment, ...]]) -> None:
        fs, staging = self._fs, self._staging
        complete = f"{staging}/complete"
        folded: dict[int, tuple[Segment, ...]] = {}
        for subtask, segments in sorted(files.items()):  # perhaps of a checkpoint that had more subtasks
            folded[subtask % self._num_files] = folded.get(subtask % self._num_files, ()) + segments
        assembled = {subtask: self._assembled(subtask, segments) for subtask, segments in folded.items()}
        existing = fs.status(self._path)
        if self._num_files == 1:
            if assembled:
                if existing is not None and existing.is_dir:
                    fs.delete(self._path, recursive=True)
                self._move(assembled[0], self._path, overwrite=self._overwrite or self._continues)
                self._published.append(self._path)
            return
        if existing is not None and not existing.is_dir:
            fs.delete(self._path)
            existing = None
        if existing is None:
            # One rename shows the whole folder at once.
            fs.make_dirs(complete)
            for subtask, path in assembled.items():
                self._move(path, f"{complete}/{subtask + 1}")
            fs.rename(complete, self._path)
            self._published.append(self._path)
            return
        for child in fs.list(self._path):
            name = child.path.rpartition("/")[2]
            if name.isdigit() and int(name) - 1 not in assembled:
                fs.delete(child.path)
        for subtask, path in assembled.items():
            self._move(path, f"{self._path}/{subtask + 1}", overwrite=True)
            self._published.append(f"{self._path}/{subtask + 1}")

    def _move(self, source: str, target: str, *, overwrite: bool = False) -> None:
        there = self._resumes and self._fs.status(target) is not None
        if there and (not overwrite or self._fs.status(source) is None):
            return  # a former attempt did it
        self._fs.rename(source, target, overwrite=overwrite)

    def _assembled(self, subtask: int, segments: tuple[Segment, ...]) -> str:
        """Return the path of one file with exactly these segments, in their order; it may be moved."""
        is_ours = self._is_own(segments[0]) and not self._keeps_segments
        if len(segments) == 1 and is_ours:
            found = self._fs.status(segments[0].path)
            if (found is None and self._resumes) or (found and found.size_bytes == segments[0].size_bytes):
                return segments[0].path
        path = f"{self._staging}/whole-{subtask + 1}"
        with contextlib.closing(self._fs.open_write(path, overwrite=True)) as target:
            for segment in segments:
                left = segment.size_bytes
                with contextlib.closing(self._fs.open_read(segment.path)) as source:
                    while left and (piece := source.read(min(left, _COPY_BYTES))):
                        target.write(piece)
                        left -= len(piece)
                if left:
                    raise ExternalError(
                        f"{segment.path} ends {left} bytes before what a task had written to it. Hidden files of a "
                        "running job must be left alone."
                    )
            make_durable(target)
        return path


def _merged(files: Mapping[int, tuple[Segment, ...]], others: Mapping[int, object]) -> dict[int, tuple[Segment, ...]]:
    """Return the files of both; a subtask that is in both wrote the first part before a restart. What a subtask had
    written that had come to its end, and waited, is in both, perhaps as another subtask's: it is taken once."""
    merged = dict(files)
    known = _paths(files)
    for subtask, segments in others.items():
        assert isinstance(segments, tuple), segments
        fresh = tuple(segment for segment in segments if segment.path not in known)
        merged[subtask] = merged.get(subtask, ()) + fresh
    return merged


def _all(files: Mapping[int, tuple[Segment, ...]]) -> Iterable[Segment]:
    return (segment for segments in files.values() for segment in segments)


def _paths(files: Mapping[int, tuple[Segment, ...]]) -> set[str]:
    return {segment.path for segment in _all(files)}
