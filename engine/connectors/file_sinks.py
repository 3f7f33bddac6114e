"""``write_as_text`` and ``write_as_csv``: files are written beside their place, hidden, and renamed when the job ends.

With parallelism 1 the path is a file, else a folder with files 1 … n, as in Flink. Nothing half-written is ever seen:
tasks write into a hidden staging folder; the coordinator renames at the job's end FINISHED and removes it otherwise.
An unbounded job ends only by being cancelled: with ``publish_on_cancel`` (set by the API when a source is unbounded)
what was written so far, whole lines, is published then. Not here: rolling part files (``file_system``).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Final, final

from engine.connectors.files import absolute_path
from engine.core.errors import ExternalError, OutputExistsError
from engine.core.fs import FileSystem, file_system_of
from engine.core.printing import record_formatter
from engine.core.records import Batch, rows_of
from engine.core.type_info import TypeInformation
from engine.formats.rows import csv_line_formatter
from engine.formats.text import normal_charset
from engine.operators.base import (
    CoordinatorContext,
    CoordinatorSpec,
    JobOutcome,
    Operator,
    OperatorContext,
    OperatorCoordinator,
    OperatorSpec,
    Output,
)
from engine.operators.failure import user_error

__all__ = ["CsvFileSinkSpec", "LineWriter", "TextFileSinkSpec", "WriteMode"]

#: Bytes of whole lines that are gathered before a write.
_WRITE_BYTES: Final = 1 << 18


class WriteMode(enum.Enum):
    """What to do when the output path exists. Values are Flink's."""

    NO_OVERWRITE = 0
    OVERWRITE = 1


@final
@dataclass(frozen=True)
class TextFileSinkSpec(OperatorSpec):
    """Each record as a line, formatted as ``print`` does."""

    path: str
    write_mode: WriteMode = WriteMode.NO_OVERWRITE
    type_info: TypeInformation | None = None
    charset: str = "utf-8"
    publish_on_cancel: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", absolute_path(self.path).rstrip("/"))
        object.__setattr__(self, "charset", normal_charset(self.charset))

    def build(self) -> Operator:
        line_of = record_formatter(self.type_info)
        return _FileSinkOperator(self.path, lambda record: line_of(record) + "\n", self.charset)

    def coordinator(self) -> CoordinatorSpec:
        return _SinkCoordinatorSpec(self.path, self.write_mode, self.publish_on_cancel)

    def describe(self) -> str:
        return self.path


@final
@dataclass(frozen=True)
class CsvFileSinkSpec(OperatorSpec):
    """Each tuple or Row as a line of its fields."""

    path: str
    row_delimiter: str = "\n"
    field_delimiter: str = ","
    write_mode: WriteMode = WriteMode.NO_OVERWRITE
    quote_strings: bool = False
    charset: str = "utf-8"
    publish_on_cancel: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", absolute_path(self.path).rstrip("/"))

    def build(self) -> Operator:
        line_of = csv_line_formatter(self.field_delimiter, self.row_delimiter, quote_strings=self.quote_strings)
        return _FileSinkOperator(self.path, line_of, self.charset)

    def coordinator(self) -> CoordinatorSpec:
        return _SinkCoordinatorSpec(self.path, self.write_mode, self.publish_on_cancel)

    def describe(self) -> str:
        return self.path


# --- in the task ------------------------------------------------------------------------------------------------------


@final
class LineWriter:
    """Writes records as lines to a stream, always whole lines at a time, so that what is on disk ends with one."""

    def __init__(self, stream: IO[bytes], line_of: Callable[[Any], str], charset: str) -> None:
        self._stream = stream
        self._line_of = line_of
        self._charset = charset
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self.num_bytes = 0

    def write(self, rows: list[Any], operator_name: str) -> None:
        lines: list[str] = []
        try:
            for row in rows:
                lines.append(self._line_of(row))
        except Exception as error:
            raise user_error(error, operator_name=operator_name, record=rows[len(lines)]) from error
        try:
            data = "".join(lines).encode(self._charset)
        except UnicodeEncodeError as error:
            bad = next(row for row, line in zip(rows, lines, strict=True) if not _encodes(line, self._charset))
            raise user_error(error, operator_name=operator_name, record=bad) from error
        self._pending.append(data)
        self._pending_bytes += len(data)
        self.num_bytes += len(data)
        if self._pending_bytes >= _WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            try:
                self._stream.write(b"".join(self._pending))
                self._stream.flush()
            except OSError as error:
                raise ExternalError(f"Cannot write {getattr(self._stream, 'name', 'output')}: {error}.") from error
            self._pending = []
            self._pending_bytes = 0

    def close(self) -> None:
        """Write what is pending and close the stream."""
        try:
            self.flush()
        finally:
            self._stream.close()


def _encodes(line: str, charset: str) -> bool:
    try:
        line.encode(charset)
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class FileWritten:
    """Task → coordinator: this file in the staging folder is complete (or as complete as a cancelled task gets)."""

    name: str
    complete: bool


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where the files of one sink in one job go: known alike to tasks and coordinator."""

    path: str
    job_id: str

    @property
    def staging(self) -> str:
        folder, _, name = self.path.rpartition("/")
        return f"{folder}/.{name}.{self.job_id[:12]}.inprogress"

    def temporary(self, subtask_index: int, attempt_number: int) -> str:
        return f"{self.staging}/{subtask_index + 1}-{attempt_number}"


@final
class _FileSinkOperator(Operator):
    def __init__(self, path: str, line_of: Callable[[Any], str], charset: str) -> None:
        self._path = path
        self._line_of = line_of
        self._charset = charset
        self._writer: LineWriter | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        runtime = ctx.runtime_context
        self._temporary = _Placement(self._path, ctx.job_id).temporary(
            runtime.get_index_of_this_subtask(), runtime.get_attempt_number()
        )
        stream = file_system_of(self._path).open_write(self._temporary, overwrite=True)
        self._writer = LineWriter(stream, self._line_of, self._charset)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        assert self._writer is not None
        self._writer.write(rows_of(batch).rows, self.ctx.operator_name)

    def finish(self) -> None:
        self._end(complete=True)

    def close(self) -> None:
        self._end(complete=False)

    def _end(self, complete: bool) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            self.ctx.send_event(FileWritten(self._temporary.rpartition("/")[2], complete))


# --- in the JobManager ------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _SinkCoordinatorSpec(CoordinatorSpec):
    path: str
    write_mode: WriteMode
    publish_on_cancel: bool

    def create(self) -> OperatorCoordinator:
        return _SinkCoordinator(self)


@final
class _SinkCoordinator(OperatorCoordinator):
    def __init__(self, spec: _SinkCoordinatorSpec) -> None:
        self._path = spec.path
        self._overwrite = spec.write_mode is WriteMode.OVERWRITE
        self._publish_on_cancel = spec.publish_on_cancel
        self._started = False
        #: subtask → its complete file in the staging folder
        self._written: dict[int, str] = {}
        self._published: list[str] = []

    def start(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        self._fs: FileSystem = file_system_of(self._path)
        self._placement = _Placement(self._path, ctx.job_id)
        found = self._fs.status(self._path)
        if found is not None:
            if not self._overwrite:
                raise OutputExistsError(
                    f"Output path {self._path} exists. Choose another one, delete it, or use WriteMode.OVERWRITE."
                )
            if found.is_dir:
                self._check_replaceable()
        self._started = True
        # Fails now, not after hours of work, when the place is not writable.
        probe = f"{self._placement.staging}/.probe"
        try:
            self._fs.make_dirs(self._placement.staging)
            self._fs.open_write(probe, overwrite=True).close()
            self._fs.delete(probe)
        except ExternalError as error:
            raise ExternalError(
                f"Output path {self._path} cannot be written: {error} Choose a place where the JobManager and the "
                "TaskManagers may make files, or give them the right to."
            ) from error

    def _check_replaceable(self) -> None:
        """A folder is overwritten only if it looks like output of before: numbered files, nothing else but hidden."""
        names = [child.path.rstrip("/").rpartition("/")[2] for child in self._fs.list(self._path)]
        foreign = [name for name in names if not name.isdigit() and not name.startswith((".", "_"))]
        if foreign:
            raise OutputExistsError(
                f"Output path {self._path} is a folder with {foreign[0]!r} in it, which no earlier output has written; "
                "it is not overwritten. Choose another path, or delete the folder."
            )

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        assert isinstance(event, FileWritten), event
        if event.complete or self._publish_on_cancel:
            self._written[subtask_index] = event.name

    def check_end(self, outcome: JobOutcome) -> None:
        if not self._started or not (outcome is JobOutcome.FINISHED or self._publish_on_cancel):
            return
        fs, staging = self._fs, self._placement.staging
        for name in self._written.values():
            if fs.status(f"{staging}/{name}") is None:
                raise ExternalError(f"{staging}/{name}, which this job has written for {self._path}, is gone.")
        existing = fs.status(self._path)
        if existing is not None and not self._overwrite:
            raise OutputExistsError(f"Output path {self._path} exists now; when the job began it did not.")
        fills_folder = existing is not None and existing.is_dir
        if fills_folder:
            self._check_replaceable()
        folder = self._path if fills_folder and self.ctx.parallelism > 1 else self._path.rpartition("/")[0]
        probe = f"{folder}/.probe.{self.ctx.job_id[:12]}"
        try:
            fs.open_write(probe, overwrite=True).close()
            fs.delete(probe)
        except ExternalError as error:
            raise ExternalError(f"Output path {self._path} can be written no more: {error}") from error

    def published(self) -> list[str]:
        return self._published

    def job_ended(self, outcome: JobOutcome) -> None:
        if not self._started:
            return
        staging = self._placement.staging
        try:
            if outcome is JobOutcome.FINISHED:
                self._publish()
            elif outcome is JobOutcome.CANCELED and self._publish_on_cancel:
                self._find_files_of_killed_tasks()
                self._publish()
        finally:
            self._fs.delete(staging, recursive=True)

    def _find_files_of_killed_tasks(self) -> None:
        """A slot that had to be killed sent nothing; its last attempt's file ends with a whole line all the same."""
        for child in sorted(self._fs.list(self._placement.staging), key=lambda child: _attempt_of(child.path)):
            name = child.path.rpartition("/")[2]
            subtask, _, attempt = name.partition("-")
            is_ours = subtask.isdigit() and attempt.isdigit() and int(attempt) >= self.ctx.attempt_number
            if is_ours and self._written.get(int(subtask) - 1) is None:
                self._written[int(subtask) - 1] = name

    def _publish(self) -> None:
        fs, staging = self._fs, self._placement.staging
        existing = fs.status(self._path)
        if self.ctx.parallelism == 1:
            if self._written:
                if existing is not None and existing.is_dir:
                    fs.delete(self._path, recursive=True)
                fs.rename(f"{staging}/{self._written[0]}", self._path, overwrite=self._overwrite)
                self._published.append(self._path)
            return
        if existing is not None and not existing.is_dir:
            fs.delete(self._path)
            existing = None
        if existing is None:
            # One rename shows the whole folder at once.
            complete = f"{staging}/complete"
            fs.make_dirs(complete)
            for subtask, name in self._written.items():
                fs.rename(f"{staging}/{name}", f"{complete}/{subtask + 1}")
            fs.rename(complete, self._path)
            self._published.append(self._path)
            return
        for child in fs.list(self._path):
            name = child.path.rpartition("/")[2]
            if name.isdigit() and int(name) - 1 not in self._written:
                fs.delete(child.path)
        for subtask, name in self._written.items():
            fs.rename(f"{staging}/{name}", f"{self._path}/{subtask + 1}", overwrite=True)
            self._published.append(f"{self._path}/{subtask + 1}")


def _attempt_of(path: str) -> int:
    attempt = path.rpartition("-")[2]
    return -int(attempt) if attempt.isdigit() else 0
