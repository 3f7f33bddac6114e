"""FileSink: records into part files by bucket; finished files hold each record exactly once, whatever crashed.

``<base>/<bucket>/part-<subtask>-<n>``. **Every part is closed at every checkpoint**, whatever the format and the
policy: the one rule that is exact on every file system, for nothing is ever continued, truncated or read back (HDFS
cannot tell how much of an open file is safe). A policy's limits apply in between. So the checkpoint interval bounds
both the size of files and how soon they are seen; without checkpoints all files appear when the job has finished.

State: the next part number, as union state: no number is given twice, whatever the parallelism becomes. Not here: who
renames (``file_commits``), ``write_as_text`` (``file_sinks``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, final

from engine.connectors.file_commits import (
    IN_PROGRESS,
    PENDING,
    PartClosed,
    PartOpened,
    PartsCoordinatorSpec,
    PartsFinished,
    PendingPart,
    hidden_name,
    mark_of,
)
from engine.connectors.file_sink_config import (
    BucketAssigner,
    BucketContext,
    OutputFileConfig,
    RollingPolicy,
    TimeBucketAssigner,
)
from engine.connectors.files import absolute_path
from engine.connectors.part_writers import FileFormat, PartWriter
from engine.connectors.sink import takes_checkpoints
from engine.core.arrow_arrays import arrow_of
from engine.core.errors import EngineError, ProgramError
from engine.core.fs import file_system_of, without_waiting
from engine.core.late_dataclass import dataclass
from engine.core.records import Batch, ColumnBatch, RowBatch
from engine.core.type_info import TypeInformation
from engine.operators.base import CoordinatorSpec, Operator, OperatorContext, OperatorSpec, Output
from engine.operators.failure import user_error
from engine.operators.seen_records import shown
from engine.protocol.checkpoint import NO_CHECKPOINT
from engine.state.descriptors import ListStateDescriptor

__all__ = ["FileSink", "FileSinkBuilder", "FileSinkSpec"]

#: Parts that a subtask writes at the same time; beyond, the one written to longest ago is closed. Each costs a file
#: descriptor, or a connection and a thread (HDFS).
_OPEN_PARTS_MAX: Final = 256


@final
@dataclass(frozen=True)
class FileSink:
    """A configured sink; ``DataStream.sink_to`` takes ``to_spec``."""

    base_path: str
    format: FileFormat
    bucket_assigner: BucketAssigner
    rolling_policy: RollingPolicy
    output_file_config: OutputFileConfig

    @staticmethod
    def for_row_format(base_path: str, encoder: FileFormat) -> FileSinkBuilder:
        return FileSinkBuilder(base_path, encoder, RollingPolicy())

    @staticmethod
    def for_bulk_format(base_path: str, writer_factory: FileFormat) -> FileSinkBuilder:
        """``writer_factory``: of ParquetBulkWriters, CsvBulkWriters or JsonBulkWriters."""
        return FileSinkBuilder(base_path, writer_factory, RollingPolicy.on_checkpoint_rolling_policy())

    def to_spec(self, type_info: TypeInformation | None = None, *, publish_on_cancel: bool = False) -> FileSinkSpec:
        return FileSinkSpec(self, type_info, publish_on_cancel)


@final
class FileSinkBuilder:
    def __init__(self, base_path: str, file_format: FileFormat, rolling_policy: RollingPolicy) -> None:
        if not callable(getattr(file_format, "create", None)):
            raise ProgramError(
                f"FileSink: {file_format!r} is no format; expected Encoder.simple_string_encoder() or a factory such "
                "as ParquetBulkWriters.for_row_type(…)."
            )
        if not isinstance(base_path, str) or not base_path:
            raise ProgramError(f"FileSink: the folder is {base_path!r:.80}; expected a path, e.g. 'hdfs:///output'.")
        by_hour = BucketAssigner.date_time_bucket_assigner("yyyy-MM-dd--HH")
        self._sink = FileSink(
            absolute_path(base_path).rstrip("/"), file_format, by_hour, rolling_policy, OutputFileConfig()
        )

    def with_bucket_assigner(self, bucket_assigner: BucketAssigner) -> FileSinkBuilder:
        if not isinstance(bucket_assigner, BucketAssigner):
            raise ProgramError(f"with_bucket_assigner({bucket_assigner!r:.80}): expected a BucketAssigner object.")
        self._sink = replace(self._sink, bucket_assigner=bucket_assigner)
        return self

    def with_rolling_policy(self, rolling_policy: RollingPolicy) -> FileSinkBuilder:
        if not isinstance(rolling_policy, RollingPolicy):
            raise ProgramError(
                f"with_rolling_policy({rolling_policy!r:.80}): expected RollingPolicy.default_rolling_policy(…) or "
                "RollingPolicy.on_checkpoint_rolling_policy()."
            )
        self._sink = replace(self._sink, rolling_policy=rolling_policy)
        return self

    def with_output_file_config(self, output_file_config: OutputFileConfig) -> FileSinkBuilder:
        if not isinstance(output_file_config, OutputFileConfig):
            raise ProgramError(
                f"with_output_file_config({output_file_config!r:.80}): expected an OutputFileConfig, e.g. "
                "OutputFileConfig.builder().with_part_prefix('events').build()."
            )
        self._sink = replace(self._sink, output_file_config=output_file_config)
        return self

    def with_bucket_check_interval(self, interval: int) -> FileSinkBuilder:
        """Accepted for compatibility: buckets are looked at when their next limit is due."""
        return self

    def build(self) -> FileSink:
        return self._sink


@final
@dataclass(frozen=True)
class FileSinkSpec(OperatorSpec):
    sink: FileSink
    type_info: TypeInformation | None = None
    publish_on_cancel: bool = False
    #: what comes surely is columns, and is written as such: said in plans
    is_vectorised: bool = False

    def build(self) -> Operator:
        return _FileSinkOperator(self)

    def on_columns(self, *, with_kinds: bool = False) -> FileSinkSpec | None:
        """Return the spec for an input of columns, perhaps with kinds, or None where it would be taken apart into
        records."""
        if not getattr(self.sink.format, "writes_kinds" if with_kinds else "writes_columns", False):
            return None
        return replace(self, is_vectorised=True)

    def coordinator(self) -> CoordinatorSpec:
        return PartsCoordinatorSpec(self.sink.base_path, self.publish_on_cancel)

    def describe(self) -> str:
        return f"vectorised, {self.sink.base_path}" if self.is_vectorised else self.sink.base_path


@dataclass(slots=True)
class _Part:
    writer: PartWriter
    path: str
    folder: str
    number: int
    opened_ms: int
    written_ms: int


@final
class _FileSinkOperator(Operator):
    takes_kinds = True  # as its format does, or leaves them to rows

    def __init__(self, spec: FileSinkSpec) -> None:
        self._sink = spec.sink
        self._type_info = spec.type_info
        self._publish_on_cancel = spec.publish_on_cancel
        #: by folder, the one written to longest ago first
        self._parts: dict[str, _Part] = {}
        #: (first checkpoint that has it, part): closed and not known to be committed
        self._pending: list[tuple[int, PendingPart]] = []
        self._next_number = 0
        #: No part is due earlier.
        self._check_ms: int | None = None
        self._watermark_ms: int | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        runtime = ctx.runtime_context
        self._fs = file_system_of(self._sink.base_path)
        self._stem = f"{self._sink.output_file_config.part_prefix}-{runtime.get_index_of_this_subtask()}"
        self._mark = mark_of(ctx.job_id, ctx.operator_id)
        self._attempt_number = runtime.get_attempt_number()
        self._is_checkpointed = takes_checkpoints(ctx.config)
        self._counter = ctx.state.operator_states().get_union_list_state(ListStateDescriptor("NextPartNumber"))
        self._next_number = max(self._counter.get(), default=0)

    # --- records -----------------------------------------------------------------------------------------------------

    def process_batch(self, input_index: int, batch: Batch) -> None:
        now_ms = self.ctx.clock.now_ms()
        assigner = self._sink.bucket_assigner
        if isinstance(assigner, TimeBucketAssigner):
            folder = self._folder_of(assigner.bucket_at(now_ms))
            for other in [other for other in self._parts if other != folder]:
                self._roll(other)  # its hour is over
            self._write(folder, batch, now_ms)
            return
        for bucket, part in self._by_bucket(batch, now_ms).items():
            self._write(self._folder_of(bucket), part, now_ms)

    def _by_bucket(self, batch: Batch, now_ms: int) -> dict[str, Batch]:
        """Return the records of each bucket, as columns if they came so."""
        if isinstance(batch, RowBatch):
            return {bucket: _rows_at(batch, at) for bucket, at in self._places(batch, now_ms).items()}
        rows, are_unchanged = shown(batch)
        places = self._places(rows, now_ms)
        if not are_unchanged():
            return {bucket: _rows_at(rows, at) for bucket, at in places.items()}
        return {bucket: _columns_at(batch, at) for bucket, at in places.items()}

    def _places(self, batch: RowBatch, now_ms: int) -> dict[str, list[int]]:
        """Return which records go to each bucket."""
        bucket_of = self._sink.bucket_assigner.get_bucket_id
        stamps = batch.timestamps_ms
        context = BucketContext(now_ms, self._watermark_ms)
        by_bucket: dict[str, list[int]] = {}
        row = None
        try:
            for index, row in enumerate(batch.rows):
                if stamps is not None:
                    context = BucketContext(now_ms, self._watermark_ms, stamps[index])
                bucket = bucket_of(row, context)
                places = by_bucket.get(bucket)
                if places is None:
                    _check_bucket(bucket)
                    places = by_bucket[bucket] = []
                places.append(index)
        except Exception as error:
            raise user_error(error, operator_name=self.ctx.operator_name, record=row) from error
        return by_bucket

    def _folder_of(self, bucket: str) -> str:
        return f"{self._sink.base_path}/{bucket}" if bucket else self._sink.base_path

    def _write(self, folder: str, batch: Batch, now_ms: int) -> None:
        part = self._parts.get(folder)
        if part is not None and self._is_due(part, now_ms):
            self._roll(folder)
            part = None
        if part is None:
            part = self._open_part(folder, now_ms)
        elif len(self._parts) > 1:
            self._parts[folder] = self._parts.pop(folder)  # written to last
        part.writer.write(batch, self.ctx.operator_name)
        part.written_ms = now_ms

    def process_watermark(self, watermark_ms: int) -> None:
        self._watermark_ms = watermark_ms
        super().process_watermark(watermark_ms)

    # --- parts -------------------------------------------------------------------------------------------------------

    def _open_part(self, folder: str, now_ms: int) -> _Part:
        while len(self._parts) >= _OPEN_PARTS_MAX:
            self._roll(next(iter(self._parts)))
        number, self._next_number = self._next_number, self._next_number + 1
        path = self._hidden_path(folder, number, IN_PROGRESS)
        self.ctx.send_event(PartOpened(folder))
        stream = self._fs.open_write(path, overwrite=True)
        writer = self._sink.format.create(stream, self._type_info)
        part = self._parts[folder] = _Part(writer, path, folder, number, now_ms, now_ms)
        self._check_from(self._due_ms(part))
        return part

    def _hidden_path(self, folder: str, number: int, state: str) -> str:
        return f"{folder}/{hidden_name(self._stem, number, state, self._mark, self._attempt_number)}"

    def _roll(self, folder: str) -> None:
        """Close the folder's part: it is pending now."""
        part = self._parts.pop(folder)
        part.writer.close()
        pending = self._hidden_path(folder, part.number, PENDING)
        self._fs.rename(part.path, pending, overwrite=True)
        suffix = self._sink.output_file_config.part_suffix
        committable = PendingPart(pending, folder, self._stem, part.number, suffix)
        self._pending.append((NO_CHECKPOINT, committable))
        if not self._is_checkpointed:
            self.ctx.send_event(PartClosed(committable))

    def _roll_all(self) -> None:
        for folder in list(self._parts):
            self._roll(folder)

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

    def _check_from(self, due_ms: int | None) -> None:
        if due_ms is not None and (self._check_ms is None or due_ms < self._check_ms):
            self._check_ms = due_ms

    def next_timer_ms(self) -> int | None:
        return self._check_ms if self._parts else None

    def on_timer(self, now_ms: int) -> None:
        self._check_ms = None
        for folder, part in list(self._parts.items()):
            if self._is_due(part, now_ms):
                self._roll(folder)
            else:
                self._check_from(self._due_ms(part))

    # --- checkpoints and the end -------------------------------------------------------------------------------------

    def snapshot_state(self, checkpoint_id: int) -> None:
        self._roll_all()
        self._counter.update([self._next_number])
        self._pending = [(number or checkpoint_id, part) for number, part in self._pending]

    def prepare_commit(self, checkpoint_id: int) -> object | None:
        return tuple(part for _, part in self._pending) or None

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        self._pending = [
            (number, part) for number, part in self._pending if number == NO_CHECKPOINT or number > checkpoint_id
        ]

    def finish(self) -> None:
        self._roll_all()
        self.ctx.send_event(PartsFinished(tuple(part for _, part in self._pending)))

    def close(self) -> None:
        """After ``finish`` nothing is left. Else the task failed or was cancelled: only without checkpoints, and if the
        job's cancel is its regular end, what is in progress may be published."""
        if self._publish_on_cancel and self.ctx_is_open() and not self._is_checkpointed:
            self._roll_all()
        parts, self._parts = list(self._parts.values()), {}
        self._remove(parts)

    def ctx_is_open(self) -> bool:
        return hasattr(self, "_is_checkpointed")

    def _remove(self, parts: Iterable[_Part]) -> None:
        with without_waiting():
            for part in parts:
                try:
                    part.writer.abandon()
                    self._fs.delete(part.path)
                except EngineError:
                    pass  # the coordinator removes what it finds


def _rows_at(batch: RowBatch, places: list[int]) -> RowBatch:
    return RowBatch([batch.rows[at] for at in places])


def _columns_at(batch: ColumnBatch, places: list[int]) -> ColumnBatch:
    if len(places) == len(batch):
        return batch
    import numpy as np

    rows = np.array(places, np.int64)
    stamps, kinds = batch.timestamps_ms, batch.kinds
    return replace(
        batch,
        columns=batch.columns.take(arrow_of(rows)),
        timestamps_ms=None if stamps is None else stamps[rows],
        kinds=None if kinds is None else kinds[rows],
    )


def _check_bucket(bucket: Any) -> None:
    if not isinstance(bucket, str):
        raise TypeError(f"get_bucket_id() returned {bucket!r}; expected a str.")
    if bucket and ({"", ".", ".."} & set(bucket.split("/"))):
        raise ValueError(
            f"get_bucket_id() returned {bucket!r}; expected a path below the sink's folder, without '.', '..' and "
            "empty names, e.g. 'country=de/day=2024-05-01'."
        )
