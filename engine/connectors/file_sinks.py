"""``write_as_text`` and ``write_as_csv``: files are written beside their place, hidden, and renamed when the job ends.

With parallelism 1 the path is a file, else a folder with files 1 … n, as in Flink. Nothing half-written is ever seen:
tasks write segments into a hidden staging folder; the coordinator puts them together and renames at the job's end.

A checkpoint keeps which segments there are and how much of each is valid: after a restart a task goes on in a new
segment, and what the former attempt wrote behind its last checkpoint is not read. Where a file can be brought to the
disk while it is open (local), a segment lasts as long as its attempt, else (HDFS) it is closed at each barrier.
Not here: rolling part files, which are visible while the job runs (``file_sink``); the coordinator (``staged_files``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

from engine.connectors.files import absolute_path
from engine.connectors.part_writers import LineWriter
from engine.connectors.sink import takes_checkpoints
from engine.connectors.staged_files import FileWritten, Segment, StagedFilesSpec, WriteMode, segment_path
from engine.core.fs import file_system_of, without_waiting
from engine.core.late_dataclass import dataclass
from engine.core.printing import record_formatter
from engine.core.records import Batch
from engine.core.type_info import TypeInformation
from engine.formats.column_lines import ColumnLines, PrintedColumnLines, TypedCsvColumnLines
from engine.formats.rows import csv_line_formatter
from engine.formats.text import normal_charset
from engine.operators.base import CoordinatorSpec, Operator, OperatorContext, OperatorSpec, Output
from engine.state.descriptors import ListStateDescriptor

__all__ = ["CsvFileSinkSpec", "TextFileSinkSpec", "WriteMode"]


@final
@dataclass(frozen=True)
class TextFileSinkSpec(OperatorSpec):
    """Each record as a line, formatted as ``print`` does."""

    path: str
    write_mode: WriteMode = WriteMode.NO_OVERWRITE
    type_info: TypeInformation | None = None
    charset: str = "utf-8"
    publish_on_cancel: bool = False
    is_vectorised: bool = False  #: as in ``file_sink``

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", absolute_path(self.path).rstrip("/"))
        object.__setattr__(self, "charset", normal_charset(self.charset))

    def build(self) -> Operator:
        line_of = record_formatter(self.type_info)
        columns = PrintedColumnLines(self.type_info)
        return _FileSinkOperator(self.path, lambda record: line_of(record) + "\n", self.charset, columns)

    def coordinator(self) -> CoordinatorSpec:
        return StagedFilesSpec(self.path, self.write_mode, self.publish_on_cancel)

    def on_columns(self) -> TextFileSinkSpec:
        return replace(self, is_vectorised=True)

    def describe(self) -> str:
        return f"vectorised, {self.path}" if self.is_vectorised else self.path


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
    is_vectorised: bool = False  #: as in ``file_sink``

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", absolute_path(self.path).rstrip("/"))

    def build(self) -> Operator:
        line_of = csv_line_formatter(self.field_delimiter, self.row_delimiter, quote_strings=self.quote_strings)
        columns = TypedCsvColumnLines(self.field_delimiter, self.row_delimiter, self.quote_strings)
        return _FileSinkOperator(self.path, line_of, self.charset, columns)

    def coordinator(self) -> CoordinatorSpec:
        return StagedFilesSpec(self.path, self.write_mode, self.publish_on_cancel)

    def on_columns(self) -> CsvFileSinkSpec:
        return replace(self, is_vectorised=True)

    def describe(self) -> str:
        return f"vectorised, {self.path}" if self.is_vectorised else self.path


@final
class _FileSinkOperator(Operator):
    """State: the segments that were closed, and the one that is open, valid up to the barrier."""

    takes_kinds = True  # as the lines of columns do, or leave them to rows

    def __init__(self, path: str, line_of: Callable[[Any], str], charset: str, columns: ColumnLines) -> None:
        self._path = path
        self._line_of = line_of
        self._charset = charset
        self._columns = columns
        self._writer: LineWriter | None = None
        self._closed: list[Segment] = []
        self._num_opened = 0
        self._is_finished = False

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._is_checkpointed = takes_checkpoints(ctx.config)
        self._segments = ctx.state.operator_states().get_list_state(ListStateDescriptor("Segments"))
        self._closed = self._segments.get()
        # Also when nothing comes: each subtask has a file.
        self._open_segment()

    def _open_segment(self) -> LineWriter:
        runtime = self.ctx.runtime_context
        self._segment = segment_path(
            self._path,
            self.ctx.job_id,
            runtime.get_index_of_this_subtask(),
            runtime.get_attempt_number(),
            self._num_opened,
        )
        self._num_opened += 1
        stream = file_system_of(self._path).open_write(self._segment, overwrite=True)
        self._writer = LineWriter(stream, self._line_of, self._charset, columns=self._columns)
        return self._writer

    def process_batch(self, input_index: int, batch: Batch) -> None:
        writer = self._writer or self._open_segment()
        writer.write(batch, self.ctx.operator_name)

    def snapshot_state(self, checkpoint_id: int) -> None:
        writer = self._writer
        if writer is not None and not writer.sync():
            self._close_segment(writer)
        self._segments.update(self._all_segments())

    def prepare_commit(self, checkpoint_id: int) -> object | None:
        return tuple(self._segments.get())

    def _all_segments(self) -> list[Segment]:
        writer = self._writer
        open_one = [] if writer is None else [Segment(self._segment, writer.num_bytes)]
        return [*self._closed, *open_one]

    def _close_segment(self, writer: LineWriter) -> None:
        self._writer = None
        writer.close()
        self._closed.append(Segment(self._segment, writer.num_bytes))

    def finish(self) -> None:
        self._end(complete=True)

    def close(self) -> None:
        if self._is_finished or self._writer is None:
            return
        if self._is_checkpointed:
            writer, self._writer = self._writer, None
            writer.abandon()  # the last checkpoint knows how much of it counts
        else:
            with without_waiting():  # whoever cancels the job shall not wait for a file system that is away
                self._end(complete=False)

    def _end(self, complete: bool) -> None:
        self._is_finished = True
        if self._writer is not None:
            self._close_segment(self._writer)
        self.ctx.send_event(FileWritten(tuple(self._closed), complete))
