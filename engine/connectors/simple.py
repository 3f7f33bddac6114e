"""Sources and sinks that need nothing outside: collections, sequences, generated data, user functions, print.

Not here: sockets (``socket``), files (``files``, ``file_sinks``), results for a client (``collect``).
"""

from __future__ import annotations

import itertools
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, final

from engine.connectors.source import Boundedness, Source, SourceReader, Split, SplitEnumerator
from engine.core.errors import ExternalError
from engine.core.printing import record_formatter
from engine.core.records import Batch, ColumnBatch, RowBatch, rows_of
from engine.core.type_info import TypeInformation
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output, PollResult, SourceOperator
from engine.operators.bound_function import BoundFunction
from engine.operators.failure import user_error
from engine.operators.functions import Function

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
    def __init__(self, rows: tuple[Any, ...] | bytes) -> None:
        self._given = rows
        self._remaining: Iterator[Any] = iter(())

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        if ctx.runtime_context.get_index_of_this_subtask() == 0:
            given = self._given
            self._remaining = iter(pickle.loads(given) if isinstance(given, bytes) else given)

    def poll(self, rows_max: int) -> PollResult:
        rows = list(itertools.islice(self._remaining, rows_max))
        if not rows:
            return PollResult.END
        self.out.emit(RowBatch(rows))
        return PollResult.MORE


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


@final
class _SequenceReader(SourceReader):
    def __init__(self, columnar: bool) -> None:
        self._columnar = columnar
        self._next = 0
        self._end = 0

    def add_split(self, split: Split) -> None:
        assert isinstance(split, SequenceSplit)
        assert self._next == self._end, "one split at a time"
        self._next, self._end = split.start, split.end

    def poll(self, rows_max: int) -> Batch | None:
        start, end = self._next, min(self._end, self._next + rows_max)
        if start == end:
            return None
        self._next = end
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


# --- generated data ---------------------------------------------------------------------------------------------------

#: A generator that fell behind its rate (backpressure) makes up for at most this much.
_CATCH_UP_MAX_S: Final = 1.0


@final
@dataclass(frozen=True)
class DataGeneratorSpec(OperatorSpec):
    """``function(index)`` for index 0, 1, 2 …; subtask i of p has i, i + p, i + 2p …

    ``count``: how many in all, None = without end. ``rate_per_second``: of all subtasks together, None = full speed.
    """

    function: Any
    count: int | None = None
    rate_per_second: float | None = None
    num_inputs = 0

    def __post_init__(self) -> None:
        if self.rate_per_second is not None and self.rate_per_second <= 0:
            raise ValueError(f"rate_per_second is {self.rate_per_second}; expected a number above 0, or None.")

    def build(self) -> Operator:
        return _DataGeneratorOperator(self)

    def describe(self) -> str:
        rate = "" if self.rate_per_second is None else f", {self.rate_per_second:g}/s"
        return f"{'unbounded' if self.count is None else self.count}{rate}"


@final
class _DataGeneratorOperator(SourceOperator):
    def __init__(self, spec: DataGeneratorSpec) -> None:
        self._spec = spec
        self._function = BoundFunction(spec.function, "map")
        self._timer_ms: int | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._function.open(ctx)
        runtime = ctx.runtime_context
        parallelism = runtime.get_number_of_parallel_subtasks()
        count = self._spec.count
        first = runtime.get_index_of_this_subtask()
        self._indexes: Iterator[int] = (
            itertools.count(first, parallelism) if count is None else iter(range(first, count, parallelism))
        )
        rate = self._spec.rate_per_second
        self._rate_per_ms = None if rate is None else rate / parallelism / 1000
        #: records owed, negative = ahead; grows with time
        self._owed = 1.0
        self._last_ms = ctx.clock.monotonic_ms()

    def poll(self, rows_max: int) -> PollResult:
        num_rows = rows_max
        if self._rate_per_ms is not None:
            now_ms = self.ctx.clock.monotonic_ms()
            owed_max = max(1.0, self._rate_per_ms * 1000 * _CATCH_UP_MAX_S)
            self._owed = min(owed_max, self._owed + (now_ms - self._last_ms) * self._rate_per_ms)
            self._last_ms = now_ms
            num_rows = min(rows_max, int(self._owed))
            if num_rows <= 0:
                wait_ms = max(1, round((1 - self._owed) / self._rate_per_ms))
                self._timer_ms = self.ctx.clock.now_ms() + wait_ms
                return PollResult.IDLE
            self._owed -= num_rows
        rows: list[Any] = []
        call = self._function.call
        for index in itertools.islice(self._indexes, num_rows):
            try:
                rows.append(call(index))
            except BaseException as error:
                raise self._function.error(error, index) from error
        if not rows:
            return PollResult.END
        self.out.emit(RowBatch(rows))
        return PollResult.MORE

    def next_timer_ms(self) -> int | None:
        return self._timer_ms

    def on_timer(self, now_ms: int) -> None:
        self._timer_ms = None
        self.ctx.wake()

    def close(self) -> None:
        self._function.close()


# --- a source written by the user -------------------------------------------------------------------------------------

#: Records that a user's source may be ahead of the task.
_AHEAD_MAX: Final = 10_000


@final
@dataclass(frozen=True)
class FunctionSourceSpec(OperatorSpec):
    """``function``: SourceFunction, or a callable that returns an iterable. Runs in subtask 0, in a thread of its own,
    because it may sleep or wait for the outside world."""

    function: Any
    num_inputs = 0

    def build(self) -> Operator:
        return _FunctionSourceOperator(BoundFunction(self.function, "run"), self.function)

    def describe(self) -> str:
        return "interpreted"


@final
class _FunctionSourceOperator(SourceOperator):
    def __init__(self, run: BoundFunction, function: Any) -> None:
        self._run = run
        self._function = function
        self._records: deque[Any] = deque()
        self._room = threading.Event()
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._run.open(ctx)
        if ctx.runtime_context.get_index_of_this_subtask() != 0:
            self._ended = True
            return
        self._thread = threading.Thread(target=self._read, name=f"source {ctx.operator_name}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        records = self._records
        try:
            for record in self._run.call():
                if self._stopped:
                    return
                was_empty = not records
                records.append(record)
                if was_empty:
                    self.ctx.wake()
                while len(records) >= _AHEAD_MAX and not self._stopped:
                    self._room.clear()
                    if len(records) >= _AHEAD_MAX:
                        self._room.wait(1.0)
        except BaseException as error:  # sys.exit() would end this thread alone, and the stream as if it were complete
            self._error = error
        finally:
            self._ended = True
            self.ctx.wake()

    def poll(self, rows_max: int) -> PollResult:
        # Read before the queue: what was added before the end is then surely seen.
        ended = self._ended
        records = self._records
        rows = [records.popleft() for _ in range(min(rows_max, len(records)))]
        if len(records) < _AHEAD_MAX // 2:
            self._room.set()
        if rows:
            self.out.emit(RowBatch(rows))
            return PollResult.MORE if records or self._ended else PollResult.IDLE
        if not ended:
            return PollResult.IDLE
        if self._error is not None:
            raise self._run.error(self._error) from self._error
        return PollResult.END

    def cancel(self) -> None:
        self._stop()

    def close(self) -> None:
        self._stop()
        if self._thread is not None:
            # A user's source that sleeps is left behind: the thread is a daemon of a process that ends soon.
            self._thread.join(0.2)
        self._run.close()

    def _stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._room.set()
        if isinstance(self._function, Function):
            cancel: Callable[[], None] | None = getattr(self._function, "cancel", None)
            if cancel is not None:
                cancel()


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
    def process_batch(self, input_index: int, batch: Batch) -> None:
        pass
