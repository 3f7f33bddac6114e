"""Sources and sinks that need nothing outside: collections, sequences, user functions as sinks, print.

The two sinks are at-least-once: what they did since the last checkpoint is done again after a restart. Not here:
generated data (``generator``), sources that users write (``function_source``), sockets (``socket``), files (``files``,
``file_sinks``), results for a client (``collect``), sinks that commit (``sink``).
"""

from __future__ import annotations

import itertools
import pickle
import sys
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any, final

from engine.connectors.source import (
    Boundedness,
    Source,
    SourceReader,
    Split,
    SplitEnumerator,
    SplitOrder,
    without_assigned,
)
from engine.core.errors import ExternalError
from engine.core.late_dataclass import dataclass
from engine.core.printing import record_formatter
from engine.core.records import Batch, ColumnBatch, RowBatch, rows_of
from engine.core.type_info import TypeInformation
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output, PollResult, SourceOperator
from engine.operators.bound_function import BoundFunction
from engine.operators.failure import user_error
from engine.state.descriptors import ListStateDescriptor

__all__ = [
    "CollectSinkSpec",
    "CollectionSpec",
    "DataGeneratorSpec",
    "DiscardSpec",
    "FetchResults",
    "FetchedResults",
    "FunctionSinkSpec",
    "FunctionSourceSpec",
    "PrintSpec",
    "SequenceSource",
    "SocketTextSpec",
]

from engine.connectors.collect import CollectSinkSpec, FetchedResults, FetchResults
from engine.connectors.function_source import FunctionSourceSpec
from engine.connectors.generator import DataGeneratorSpec
from engine.connectors.socket import SocketTextSpec


@final
@dataclass(frozen=True)
class CollectionSpec(OperatorSpec):
    """Emits given rows once, from subtask 0. ``rows``: the rows, or the pickle of a list of them (made once by the
    API, so that a record which cannot be pickled is an error at the program's line)."""

    rows: tuple[Any, ...] | bytes
    num_inputs = 0

    def build(self) -> Operator:
        return _CollectionOperator(self.rows)

    def describe(self) -> str:
        return "collection"


@final
class _CollectionOperator(SourceOperator):
    """State: a list with the number of the next row, from the subtask that emits them, empty in the others."""

    def __init__(self, rows: tuple[Any, ...] | bytes) -> None:
        self._given = rows
        self._remaining: Iterator[Any] | None = None
        self._next = 0

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._position = ctx.state.operator_states().get_list_state(ListStateDescriptor("CollectionPosition"))
        positions = self._position.get()
        is_first = ctx.runtime_context.get_index_of_this_subtask() == 0
        if positions or (is_first and not ctx.state.is_restored):
            given = self._given
            rows = pickle.loads(given) if isinstance(given, bytes) else given
            self._next = max(positions, default=0)
            self._remaining = itertools.islice(rows, self._next, None)

    def poll(self, rows_max: int) -> PollResult:
        rows = [] if self._remaining is None else list(itertools.islice(self._remaining, rows_max))
        if not rows:
            return PollResult.END
        self._next += len(rows)
        self.out.emit(RowBatch(rows))
        return PollResult.MORE

    def snapshot_state(self, checkpoint_id: int) -> None:
        self._position.update([] if self._remaining is None else [self._next])


# --- number sequences -------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class SequenceSplit:
    """The numbers start … end - 1."""

    split_id: str
    start: int
    end: int


@final
@dataclass(frozen=True)
class SequenceSource(Source):
    """The integers from ``start`` to ``end``, both included, as Flink's NumberSequenceSource. ``columnar``: as int64
    columns instead of rows."""

    start: int
    end: int
    columnar: bool = False
    boundedness = Boundedness.BOUNDED

    def __post_init__(self) -> None:
        if self.end < self.start - 1:
            raise ValueError(f"Sequence from {self.start} to {self.end}: the end must not be below the start.")

    def create_enumerator(self) -> SplitEnumerator:
        return _SequenceEnumerator(self.start, self.end + 1)

    def create_reader(self) -> SourceReader:
        return _SequenceReader(self.columnar)


@final
class _SequenceEnumerator(SplitEnumerator):
    def __init__(self, start: int, end: int) -> None:
        self._start = start
        self._end = end
        self._splits: deque[SequenceSplit] = deque()

    def start(self, parallelism: int) -> None:
        size = self._end - self._start
        cuts = [self._start + size * i // parallelism for i in range(parallelism + 1)]
        pairs = [(a, b) for a, b in itertools.pairwise(cuts) if a < b]
        self._splits = deque(SequenceSplit(str(i), a, b) for i, (a, b) in enumerate(pairs))

    def next_split(self, subtask_index: int, host: str) -> Split | None:
        return self._splits.popleft() if self._splits else None

    def snapshot(self) -> tuple[SequenceSplit, ...]:
        return tuple(self._splits)

    def restore(self, state: object, parallelism: int) -> None:
        assert isinstance(state, tuple), state
        self._splits = deque(state)

    def assigned(self, splits: Collection[Split]) -> None:
        self._splits = deque(without_assigned(self._splits, splits))


@final
class _SequenceReader(SourceReader):
    split_order = SplitOrder.ONE_BY_ONE

    def __init__(self, columnar: bool) -> None:
        self._columnar = columnar
        self._split_id = ""
        self._next = 0
        self._end = 0

    def add_split(self, split: Split) -> None:
        assert isinstance(split, SequenceSplit)
        assert self._next == self._end, "one split at a time"
        self._split_id, self._next, self._end = split.split_id, split.start, split.end

    def snapshot(self) -> list[Split]:
        return [SequenceSplit(self._split_id, self._next, self._end)] if self._next < self._end else []

    def split_of_batch(self) -> str:
        return self._split_id

    def poll(self, rows_max: int) -> Batch | None:
        start, end = self._next, min(self._end, self._next + rows_max)
        if start == end:
            return None
        self._next = end
        if end == self._end:
            self.end_split(self._split_id)
        if not self._columnar:
            return RowBatch(list(range(start, end)))
        import numpy as np
        import pyarrow as pa

        numbers = pa.array(np.arange(start, end, dtype=np.int64))
        return ColumnBatch(pa.RecordBatch.from_arrays([numbers], names=["f0"]), scalar=True)

    def wants_split(self) -> bool:
        return self._next == self._end

    def is_drained(self) -> bool:
        return self._next == self._end


# --- sinks ------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class PrintSpec(OperatorSpec):
    """Writes each record as a line to standard output or error: ``4> (hello,1)``, ``id:4> …``, no number when there is
    one subtask. In a slot process standard output is the TaskManager's ``.out`` file."""

    identifier: str | None = None
    to_stderr: bool = False
    type_info: TypeInformation | None = None

    def build(self) -> Operator:
        return _PrintOperator(self)


@final
class _PrintOperator(Operator):
    def __init__(self, spec: PrintSpec) -> None:
        self._spec = spec
        self._format = record_formatter(spec.type_info)

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        runtime = ctx.runtime_context
        parts = [self._spec.identifier] if self._spec.identifier else []
        if runtime.get_number_of_parallel_subtasks() > 1:
            parts.append(str(runtime.get_index_of_this_subtask() + 1))
        self._prefix = ":".join(parts) + "> " if parts else ""

    def process_batch(self, input_index: int, batch: Batch) -> None:
        prefix = self._prefix
        rows = rows_of(batch).rows
        lines: list[str] = []
        try:
            for line in map(self._format, rows):
                lines.append(f"{prefix}{line}\n")  # one by one: how many there are tells which record is bad
        except Exception as error:  # of a __str__ or __repr__ of the user's
            raise user_error(error, operator_name=self.ctx.operator_name, record=rows[len(lines)]) from error
        text = "".join(lines)
        # Looked up now: whoever redirects standard output (tests, notebooks) is heard. One write, so that lines of
        # several slot processes do not mix.
        stream = sys.stderr if self._spec.to_stderr else sys.stdout
        try:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                encoding = stream.encoding or "ascii"
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
        except OSError as error:  # a full disk, or a pipe whose reader has gone (| head)
            raise ExternalError(
                f"Operator {self.ctx.operator_name!r} cannot write to standard "
                f"{'error' if self._spec.to_stderr else 'output'}: {error.strerror}."
            ) from error


@final
@dataclass(frozen=True)
class FunctionSinkSpec(OperatorSpec):
    """``function``: SinkFunction, or a callable that takes a record."""

    function: Any

    def build(self) -> Operator:
        return _FunctionSinkOperator(BoundFunction(self.function, "invoke"))

    def describe(self) -> str:
        return "interpreted"


@final
class _FunctionSinkOperator(Operator):
    def __init__(self, function: BoundFunction) -> None:
        self._function = function

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._function.open(ctx)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        invoke = self._function.call
        row = None
        try:
            for row in rows_of(batch).rows:
                invoke(row)
        except BaseException as error:
            raise self._function.error(error, row) from error

    def close(self) -> None:
        self._function.close()


@final
@dataclass(frozen=True)
class DiscardSpec(OperatorSpec):
    """Takes everything and keeps nothing."""

    def build(self) -> Operator:
        return _DiscardOperator()


@final
class _DiscardOperator(Operator):
    takes_kinds = True  # whatever becomes of a record

    def process_batch(self, input_index: int, batch: Batch) -> None:
        pass
