"""PyFlink's names for files: FileSource and StreamFormat, FileSink with buckets, Encoder, rolling part files.

A FileSink writes ``<base>/<bucket>/part-<subtask>-<n>``. Until the job has ended a part is hidden under a name that
begins with a dot; at the end FINISHED (or CANCELED, with ``publish_on_cancel``) all parts are renamed at once, else
removed. Not here: ``write_as_text`` (``file_sinks``).
"""

from __future__ import annotations

import datetime as dt
import zoneinfo
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

from engine.connectors.file_sinks import LineWriter
from engine.connectors.files import TextFileSource, absolute_path
from engine.core.errors import ConfigError, ExternalError
from engine.core.fs import FileSystem, file_system_of
from engine.core.printing import record_formatter
from engine.core.records import Batch, rows_of
from engine.core.type_info import TypeInformation
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

__all__ = [
    "BucketAssigner",
    "Encoder",
    "FileSink",
    "FileSinkBuilder",
    "FileSinkSpec",
    "FileSource",
    "FileSourceBuilder",
    "OutputFileConfig",
    "RollingPolicy",
    "StreamFormat",
]


def _millis(duration: Any) -> int:
    """Return the milliseconds of an int, timedelta, or PyFlink's Duration or Time."""
    if isinstance(duration, dt.timedelta):
        return round(duration.total_seconds() * 1000)
    for method in ("to_milliseconds", "to_millis"):
        if hasattr(duration, method):
            return int(getattr(duration, method)())
    return int(duration)


# --- source -----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class StreamFormat:
    """How records are read from a file."""

    charset: str = "utf-8"

    @staticmethod
    def text_line_format(charset_name: str = "UTF-8") -> StreamFormat:
        return StreamFormat(normal_charset(charset_name))


@final
class FileSource:
    """Entry to the builder of a file source; the result is a ``TextFileSource``."""

    @staticmethod
    def for_record_stream_format(stream_format: StreamFormat, *paths: str) -> FileSourceBuilder:
        if not paths:
            raise ConfigError("FileSource needs at least one path, e.g. for_record_stream_format(format, '/data/in').")
        return FileSourceBuilder(stream_format, tuple(paths))


@final
class FileSourceBuilder:
    def __init__(self, stream_format: StreamFormat, paths: tuple[str, ...]) -> None:
        self._source = TextFileSource(paths, stream_format.charset)

    def monitor_continuously(self, discovery_interval: Any) -> FileSourceBuilder:
        """Look for new files for ever. ``discovery_interval``: milliseconds, timedelta or Duration."""
        self._source = replace(self._source, monitor_interval_ms=max(1, _millis(discovery_interval)))
        return self

    def process_static_file_set(self) -> FileSourceBuilder:
        self._source = replace(self._source, monitor_interval_ms=None)
        return self

    def set_file_enumerator(self, file_enumerator: Any) -> FileSourceBuilder:
        """Accepted for compatibility: files are cut where their format allows it."""
        return self

    def set_split_assigner(self, split_assigner: Any) -> FileSourceBuilder:
        """Accepted for compatibility: splits are always assigned by locality."""
        return self

    def build(self) -> TextFileSource:
        return self._source


# --- sink: configuration ----------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Encoder:
    """How a record becomes bytes: its printed form and a newline."""

    charset: str = "utf-8"

    @staticmethod
    def simple_string_encoder(charset_name: str = "UTF-8") -> Encoder:
        return Encoder(normal_charset(charset_name))


@final
@dataclass(frozen=True)
class RollingPolicy:
    """When a part file is closed and the next one begun. A limit of 0 never applies."""

    part_size_bytes: int = 128 << 20
    rollover_interval_ms: int = 60_000
    inactivity_interval_ms: int = 60_000

    @staticmethod
    def default_rolling_policy(
        part_size: int = 1024 * 1024 * 128, rollover_interval: int = 60 * 1000, inactivity_interval: int = 60 * 1000
    ) -> RollingPolicy:
        return RollingPolicy(int(part_size), _millis(rollover_interval), _millis(inactivity_interval))

    @staticmethod
    def on_checkpoint_rolling_policy() -> RollingPolicy:
        """One part a subtask and bucket until there are checkpoints."""
        return RollingPolicy(0, 0, 0)


#: Letters of Java's DateTimeFormatter → strftime, longest first.
_DATE_LETTERS: Final = (("yyyy", "%Y"), ("MM", "%m"), ("dd", "%d"), ("HH", "%H"), ("mm", "%M"), ("ss", "%S"))


@final
@dataclass(frozen=True)
class BucketAssigner:
    """Which folder below the base a record goes to: none, or one by the wall clock (``strftime`` form)."""

    time_format: str | None = None
    timezone_id: str | None = None

    @staticmethod
    def base_path_bucket_assigner() -> BucketAssigner:
        return BucketAssigner()

    @staticmethod
    def date_time_bucket_assigner(format_str: str = "yyyy-MM-dd--HH", timezone_id: str | None = None) -> BucketAssigner:
        pattern = format_str.replace("%", "%%")
        for letters, directive in _DATE_LETTERS:
            pattern = pattern.replace(letters, directive)
        if timezone_id is not None:
            try:
                zoneinfo.ZoneInfo(timezone_id)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError):
                raise ConfigError(f"Unknown time zone {timezone_id!r}; expected one such as Europe/Berlin.") from None
        return BucketAssigner(pattern, timezone_id)

    def bucket_at(self, now_ms: int) -> str:
        if self.time_format is None:
            return ""
        zone = None if self.timezone_id is None else zoneinfo.ZoneInfo(self.timezone_id)
        moment = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC).astimezone(zone)
        return moment.strftime(self.time_format)


@final
@dataclass(frozen=True)
class OutputFileConfig:
    part_prefix: str = "part"
    part_suffix: str = ""

    def get_part_prefix(self) -> str:
        return self.part_prefix

    def get_part_suffix(self) -> str:
        return self.part_suffix

    @staticmethod
    def builder() -> _OutputFileConfigBuilder:
        return _OutputFileConfigBuilder()


@final
class _OutputFileConfigBuilder:
    def __init__(self) -> None:
        self._config = OutputFileConfig()

    def with_part_prefix(self, prefix: str) -> _OutputFileConfigBuilder:
        self._config = replace(self._config, part_prefix=prefix)
        return self

    def with_part_suffix(self, suffix: str) -> _OutputFileConfigBuilder:
        self._config = replace(self._config, part_suffix=suffix)
        return self

    def build(self) -> OutputFileConfig:
        return self._config


@final
@dataclass(frozen=True)
class FileSink:
    """A configured sink; ``DataStream.sink_to`` takes ``to_spec``."""

    base_path: str
    encoder: Encoder
    bucket_assigner: BucketAssigner = field(
        default_factory=lambda: BucketAssigner.date_time_bucket_assigner("yyyy-MM-dd--HH")
    )
    rolling_policy: RollingPolicy = RollingPolicy()
    output_file_config: OutputFileConfig = OutputFileConfig()

    @staticmethod
    def for_row_format(base_path: str, encoder: Encoder) -> FileSinkBuilder:
        return FileSinkBuilder(base_path, encoder)

    def to_spec(self, type_info: TypeInformation | None = None, *, publish_on_cancel: bool = False) -> FileSinkSpec:
        return FileSinkSpec(self, type_info, publish_on_cancel)


@final
class FileSinkBuilder:
    def __init__(self, base_path: str, encoder: Encoder) -> None:
        self._sink = FileSink(absolute_path(base_path).rstrip("/"), encoder)

    def with_bucket_assigner(self, bucket_assigner: BucketAssigner) -> FileSinkBuilder:
        self._sink = replace(self._sink, bucket_assigner=bucket_assigner)
        return self

    def with_rolling_policy(self, rolling_policy: RollingPolicy) -> FileSinkBuilder:
        self._sink = replace(self._sink, rolling_policy=rolling_policy)
        return self

    def with_output_file_config(self, output_file_config: OutputFileConfig) -> FileSinkBuilder:
        self._sink = replace(self._sink, output_file_config=output_file_config)
        return self

    def with_bucket_check_interval(self, interval: int) -> FileSinkBuilder:
        """Accepted for compatibility: buckets are looked at when their next limit is due."""
        return self

    def build(self) -> FileSink:
        return self._sink


# --- sink: in the task ------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class FileSinkSpec(OperatorSpec):
    sink: FileSink
    type_info: TypeInformation | None = None
    publish_on_cancel: bool = False

    def build(self) -> Operator:
        return _FileSinkOperator(self)

    def coordinator(self) -> CoordinatorSpec:
        return _PartsCoordinatorSpec(self.sink.base_path, self.publish_on_cancel)

    def describe(self) -> str:
        return self.sink.base_path


@dataclass(frozen=True, slots=True)
class PartOpened:
    """Task → coordinator: this hidden file exists; remove it unless it is published."""

    temporary: str


@dataclass(frozen=True, slots=True)
class PartWritten:
    """Task → coordinator: the part is complete; it becomes ``<folder>/<prefix>-<subtask>-<n><suffix>``."""

    temporary: str
    folder: str
    prefix: str
    number: int
    suffix: str
    finished: bool


@dataclass(slots=True)
class _Part:
    writer: LineWriter
    temporary: str
    folder: str
    number: int
    opened_ms: int
    written_ms: int


@final
class _FileSinkOperator(Operator):
    def __init__(self, spec: FileSinkSpec) -> None:
        self._sink = spec.sink
        line_of = record_formatter(spec.type_info)
        self._line_of = lambda record: line_of(record) + "\n"
        self._part: _Part | None = None
        self._next_number = 0

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        runtime = ctx.runtime_context
        self._subtask = runtime.get_index_of_this_subtask()
        self._mark = f"{ctx.job_id[:12]}-{runtime.get_attempt_number()}"

    def process_batch(self, input_index: int, batch: Batch) -> None:
        now_ms = self.ctx.clock.now_ms()
        base, bucket = self._sink.base_path, self._sink.bucket_assigner.bucket_at(now_ms)
        folder = f"{base}/{bucket}" if bucket else base
        if self._part is not None and (self._part.folder != folder or self._is_due(self._part, now_ms)):
            self._close_part(finished=True)
        part = self._part or self._open_part(folder, now_ms)
        part.writer.write(rows_of(batch).rows, self.ctx.operator_name)
        part.written_ms = now_ms

    def _open_part(self, folder: str, now_ms: int) -> _Part:
        number, self._next_number = self._next_number, self._next_number + 1
        config = self._sink.output_file_config
        temporary = f"{folder}/.{config.part_prefix}-{self._subtask}-{number}.inprogress.{self._mark}"
        self.ctx.send_event(PartOpened(temporary))
        stream = file_system_of(temporary).open_write(temporary, overwrite=True)
        writer = LineWriter(stream, self._line_of, self._sink.encoder.charset)
        self._part = _Part(writer, temporary, folder, number, now_ms, now_ms)
        return self._part

    def _due_ms(self, part: _Part) -> int | None:
        policy = self._sink.rolling_policy
        limits = []
        if policy.rollover_interval_ms:
            limits.append(part.opened_ms + policy.rollover_interval_ms)
        if policy.inactivity_interval_ms:
            limits.append(part.written_ms + policy.inactivity_interval_ms)
        return min(limits, default=None)

    def _is_due(self, part: _Part, now_ms: int) -> bool:
        size_max = self._sink.rolling_policy.part_size_bytes
        due_ms = self._due_ms(part)
        return bool(size_max and part.writer.num_bytes >= size_max) or (due_ms is not None and now_ms >= due_ms)

    def next_timer_ms(self) -> int | None:
        return None if self._part is None else self._due_ms(self._part)

    def on_timer(self, now_ms: int) -> None:
        if self._part is not None and self._is_due(self._part, now_ms):
            self._close_part(finished=True)

    def finish(self) -> None:
        self._close_part(finished=True)

    def close(self) -> None:
        self._close_part(finished=False)

    def _close_part(self, finished: bool) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.writer.close()
            config = self._sink.output_file_config
            self.ctx.send_event(
                PartWritten(part.temporary, part.folder, config.part_prefix, part.number, config.part_suffix, finished)
            )


# --- sink: in the JobManager ------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _PartsCoordinatorSpec(CoordinatorSpec):
    base_path: str
    publish_on_cancel: bool

    def create(self) -> OperatorCoordinator:
        return _PartsCoordinator(self.base_path, self.publish_on_cancel)


@final
class _PartsCoordinator(OperatorCoordinator):
    def __init__(self, base_path: str, publish_on_cancel: bool) -> None:
        self._base_path = base_path
        self._publish_on_cancel = publish_on_cancel
        #: hidden file → its part, None while it is written
        self._parts: dict[str, tuple[int, PartWritten] | None] = {}
        self._attempts: dict[str, tuple[int, int]] = {}
        self._last_attempt: dict[int, int] = {}
        self._published: list[str] = []

    def start(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        self._fs: FileSystem = file_system_of(self._base_path)
        self._fs.make_dirs(self._base_path)
        # Fails now, not after hours of work, when the place is not writable.
        probe = f"{self._base_path}/.probe.{ctx.job_id[:12]}"
        self._fs.open_write(probe, overwrite=True).close()
        self._fs.delete(probe)

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        self._last_attempt[subtask_index] = max(attempt_number, self._last_attempt.get(subtask_index, 0))
        match event:
            case PartOpened(temporary):
                self._parts[temporary] = None
                self._attempts[temporary] = (subtask_index, attempt_number)
            case PartWritten():
                if event.finished or self._publish_on_cancel:
                    self._parts[event.temporary] = (subtask_index, event)
            case _:
                raise AssertionError(event)

    def check_end(self, outcome: JobOutcome) -> None:
        for temporary in self._to_publish(outcome):
            if self._fs.status(temporary) is None:
                raise ExternalError(f"{temporary}, which this job has written for {self._base_path}, is gone.")

    def published(self) -> list[str]:
        return self._published

    def _to_publish(self, outcome: JobOutcome) -> dict[str, tuple[int, PartWritten]]:
        publishes = outcome is JobOutcome.FINISHED or (outcome is JobOutcome.CANCELED and self._publish_on_cancel)
        found = {}
        for temporary, written in self._parts.items():
            subtask, attempt = self._attempts[temporary]
            if publishes and written is not None and attempt == self._last_attempt[subtask]:
                found[temporary] = written
        return found

    def job_ended(self, outcome: JobOutcome) -> None:
        publishes = self._to_publish(outcome)
        for temporary in self._parts:
            if temporary in publishes:
                self._publish(*publishes[temporary])
            else:
                self._fs.delete(temporary)
        if outcome is JobOutcome.FAILED or self.ctx.attempt_number > 0:
            self._sweep(self._base_path)

    def _sweep(self, folder: str) -> None:
        """Remove what killed slots left behind: of these files nobody has told."""
        for child in self._fs.list(folder):
            name = child.path.rstrip("/").rpartition("/")[2]
            if child.is_dir:
                self._sweep(child.path)
            elif name.startswith(".") and f".inprogress.{self.ctx.job_id[:12]}-" in name:
                self._fs.delete(child.path)

    def _publish(self, subtask_index: int, part: PartWritten) -> None:
        number = part.number
        while True:
            target = f"{part.folder}/{part.prefix}-{subtask_index}-{number}{part.suffix}"
            if self._fs.status(target) is None:
                break
            number += 1  # an earlier run wrote here: add to it, never replace it
        self._fs.rename(part.temporary, target)
        self._published.append(target)
