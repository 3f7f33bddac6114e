"""Runs the operators of a chain: builds them, links each one's Output to the next, carries calls from head to tail.

A batch passes the chain by direct calls. What leaves it goes to exits, which are given (``task_exit``). Not here:
when the head is called (``stream_task``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn, Protocol, final

from engine.core.errors import EngineError
from engine.core.records import Batch, ColumnBatch, RowBatch
from engine.core.user_code import user_frames
from engine.graph.job_graph import ChainedOperator, ChainSpec
from engine.operators.base import Operator, OperatorContext, OperatorSpec, batch_for
from engine.operators.failure import user_error
from engine.operators.row_columns import SMALL_ROWS_MAX, RowColumns
from engine.operators.row_copies import private_copy
from engine.operators.row_operator import RowOperator
from engine.operators.row_output import RowOutput
from engine.operators.stateless import FilterSpec, FlatMapSpec, MapSpec
from engine.operators.timestamps import TimestampsSpec
from engine.protocol.profiling import OperatorMetrics
from engine.protocol.stream import WATERMARK_MAX_MS
from engine.runtime.taskmanager.operator_clock import OperatorClock
from engine.runtime.taskmanager.watermark_advances import WatermarkAdvances

__all__ = ["ChainExit", "OperatorChain"]

#: What comes out of them are the records that come in: rows of rows, and of the same type.
_KEEPING: Final = (FilterSpec, TimestampsSpec)


class ChainExit(Protocol):
    """An edge that leaves the chain."""

    def emit(self, batch: Batch) -> None: ...

    def emit_watermark(self, watermark_ms: int) -> None: ...

    def emit_idle(self, idle: bool) -> None: ...

    def emit_superstep_end(self, superstep: int) -> None: ...


@final
class _Link:
    """A chained successor: calls its operator and names it when it fails."""

    def __init__(
        self,
        operator: Operator,
        input_index: int,
        name: str,
        index: int,
        advances: WatermarkAdvances,
        clock: OperatorClock,
    ) -> None:
        self._operator = operator
        self._input_index = input_index
        self._name = name
        self._index = index
        self._advances = advances
        self._clock = clock

    def emit(self, batch: Batch) -> None:
        if self._advances.under_way:
            self._advances.end(self._index)
        before = self._clock.enter(self._index)
        try:
            self._operator.process_batch(self._input_index, batch_for(self._operator, batch))
        except Exception as error:
            _blame(error, self._name)
        self._clock.enter(before)

    def emit_watermark(self, watermark_ms: int) -> None:
        self._advances.end(self._index)
        before = self._clock.enter(self._index)
        try:
            self._advances.begin(self._index, watermark_ms)
        except Exception as error:
            _blame(error, self._name)
        self._clock.enter(before)

    def emit_idle(self, idle: bool) -> None:
        self._advances.end(self._index)
        try:
            self._operator.process_idle(idle)
        except Exception as error:
            _blame(error, self._name)

    def emit_superstep_end(self, superstep: int) -> None:
        self._advances.end(self._index)
        try:
            self._operator.end_superstep(superstep)
        except Exception as error:
            _blame(error, self._name)


@final
class _TimedExit:
    """A ChainExit whose time is not its operator's. ``small_as_rows``: small batches of columns leave as rows."""

    def __init__(self, target: ChainExit, index: int, clock: OperatorClock, *, small_as_rows: bool) -> None:
        self._target = target
        self._index = index
        self._clock = clock
        self.small_as_rows = small_as_rows
        self.emit_watermark = target.emit_watermark
        self.emit_idle = target.emit_idle
        self.emit_superstep_end = target.emit_superstep_end

    def emit(self, batch: Batch) -> None:
        before = self._clock.enter(self._index)
        if self.small_as_rows and len(batch) <= SMALL_ROWS_MAX and type(batch) is ColumnBatch:
            batch = batch.to_rows()
        self._target.emit(batch)
        self._clock.enter(before)


def _blame(error: Exception, operator_name: str) -> NoReturn:
    """Raise the error again: one of user code with the operator's name, unless it has one; others as they are."""
    if isinstance(error, EngineError) or not user_frames(error):
        raise error
    raise user_error(error, operator_name=operator_name) from error


@final
class _ChainOutput:
    """An operator's Output. ``columns``: what makes columns of its rows; None = they stay rows."""

    def __init__(self, object_reuse: bool, columns: RowColumns | None) -> None:
        self.targets: list[_Link | _TimedExit] = []
        self.side_targets: dict[str, list[_Link | _TimedExit]] = {}
        self.num_records = 0
        self.num_batches = 0
        self._object_reuse = object_reuse
        self.columns = columns
        #: small batches of rows stay rows, until they are behind the exchange
        self.passes_small = False

    def emit(self, batch: Batch) -> None:
        if not len(batch):
            return
        self.num_records += len(batch)
        self.num_batches += 1
        if self.columns is not None:
            batch = self._converted(self.columns, batch)
        targets = self.targets
        if len(targets) == 1:
            targets[0].emit(batch)
        else:
            self._emit_to_all(targets, batch)

    def _converted(self, columns: RowColumns, batch: Batch) -> Batch:
        if self.passes_small and len(batch) <= SMALL_ROWS_MAX and type(batch) is RowBatch:
            return columns.as_rows(batch)
        return columns.of(batch)

    def _emit_to_all(self, targets: Sequence[_Link | _TimedExit], batch: Batch) -> None:
        batches = [batch] * len(targets)
        if not self._object_reuse:
            # Before any of them is called: the first may change what it is given.
            batches[1:] = [private_copy(batch) for _ in batches[1:]]
        for target, own in zip(targets, batches):
            target.emit(own)

    def count(self, num_records: int) -> None:
        """Records went to the successor by another way."""
        self.num_records += num_records
        self.num_batches += 1

    def emit_side(self, tag: str, batch: Batch) -> None:
        if not len(batch):
            return
        self._emit_to_all(self.side_targets.get(tag, ()), batch)

    def emit_watermark(self, watermark_ms: int) -> None:
        for target in self._all():
            target.emit_watermark(watermark_ms)

    def emit_idle(self, idle: bool) -> None:
        for target in self._all():
            target.emit_idle(idle)

    def emit_superstep_end(self, superstep: int) -> None:
        # Not to side outputs: what leaves a loop (its result) knows nothing of supersteps.
        for target in self.targets:
            target.emit_superstep_end(superstep)

    def _all(self) -> Iterator[_Link | _TimedExit]:
        yield from self.targets
        for targets in self.side_targets.values():
            yield from targets


@final
class OperatorChain:
    """The running operators of one subtask, head first. Operators are listed after their predecessor in ``spec``."""

    def __init__(self, spec: ChainSpec, exits: Sequence[ChainExit], *, object_reuse: bool = False) -> None:
        assert len(exits) == len(spec.exits), "one exit per outgoing edge"
        self.spec = spec
        self.operators: list[Operator] = []
        self._outputs: list[_ChainOutput] = []
        self.clock = OperatorClock(len(spec.operators))
        self.advances = WatermarkAdvances(
            self.operators, self.clock, lambda error, index: _blame(error, spec.operators[index].name)
        )
        self._opened: list[int] = []
        self._ended_inputs: set[int] = set()
        for index, chained in enumerate(spec.operators):
            own, columns = _converting(chained)
            self._outputs.append(_ChainOutput(object_reuse, columns))
            self.operators.append(_calling(chained.name)(own.build))
            assert all(following > index for following, _, _ in chained.next), "operators are listed head first"
        for index, chained in enumerate(spec.operators):
            for following, tag, input_index in chained.next:
                name = spec.operators[following].name
                link = _Link(self.operators[following], input_index, name, following, self.advances, self.clock)
                self._link(index, tag, link)
        for exit_spec, target in zip(spec.exits, exits):
            timed = _TimedExit(target, len(self.operators), self.clock, small_as_rows=exit_spec.small_as_rows)
            self._link(exit_spec.operator_index, exit_spec.side_tag, timed)
        for index, output in enumerate(self._outputs):
            output.passes_small = self._passes_small(index)
        #: by input of the head, what makes columns of its rows
        self._row_columns = {input_index: RowColumns(kind) for input_index, kind in spec.row_types}
        self._fuse()
        self.head = self.operators[0]
        #: operators that override ``next_timer_ms`` or ``is_ready``: asked every turn, so only those that answer
        self.with_timers = [op for op in self.operators if type(op).next_timer_ms is not Operator.next_timer_ms]
        self.with_readiness = [op for op in self.operators if type(op).is_ready is not Operator.is_ready]

    def _link(self, index: int, tag: str | None, target: _Link | _TimedExit) -> None:
        output = self._outputs[index]
        if tag is None:
            output.targets.append(target)
        else:
            output.side_targets.setdefault(tag, []).append(target)

    def _passes_small(self, index: int) -> bool:
        """Whether all that read the operator's results take small batches as rows, and send them on as such."""
        following = self.spec.operators[index].next
        exits = [own for own in self.spec.exits if own.operator_index == index]
        return all(own.small_as_rows for own in exits) and all(
            tag is None and isinstance(self.spec.operators[at].spec, _KEEPING) and self._passes_small(at)
            for at, tag, _ in following
        )

    def _fuse(self) -> None:
        """Let map, filter and flat_map run in the loop of the one before them, where that one has no other consumer.

        They stay operators of their own for all but batches: opened, closed, named in errors, handed watermarks.
        """
        with_exits = {exit_spec.operator_index for exit_spec in self.spec.exits}
        for index in reversed(range(len(self.operators))):
            operator, following = self.operators[index], self.spec.operators[index].next
            if not isinstance(operator, RowOperator) or index in with_exits or len(following) != 1:
                continue
            if self._outputs[index].columns is not None:
                continue  # what follows wants columns
            (successor_index, tag, _) = following[0]
            successor = self.operators[successor_index]
            if tag is None and isinstance(successor, RowOperator):
                operator.fuse(successor, self._outputs[index].count)

    # --- life

    def open(self, context_of: Callable[[ChainedOperator], OperatorContext]) -> None:
        """Open tail first, so that an operator may emit as soon as it is open."""
        for index in reversed(range(len(self.operators))):
            chained = self.spec.operators[index]
            self._opened.append(index)  # before the call: what opened half is closed too
            _calling(chained.name)(self.operators[index].open, context_of(chained), self._outputs[index])

    def close(self) -> list[Exception]:
        """Close what was opened, head first; never raises. Returns what went wrong."""
        errors: list[Exception] = []
        try:
            self.advances.close()
        except Exception as error:
            errors.append(error)
        for index in reversed(self._opened):
            try:
                _calling(self.spec.operators[index].name)(self.operators[index].close)
            except Exception as error:
                errors.append(error)
        self._opened.clear()
        return errors

    # --- the head's input

    def process_batch(self, input_index: int, batch: Batch) -> None:
        if self._row_columns and type(batch) is RowBatch and not self.head._is_on_rows:
            columns = self._row_columns.get(input_index)
            if columns is not None:
                self._call_head(self.head.process_typed, input_index, batch, columns)
                return
        self._call_head(self.head.process_batch, input_index, batch_for(self.head, batch))

    def process_watermark(self, watermark_ms: int) -> None:
        """What it makes may come in pieces, for which ``advances`` is to be asked before anything else."""
        self._call_head(self.advances.begin, 0, watermark_ms)

    def process_idle(self, idle: bool) -> None:
        self._call_head(self.head.process_idle, idle)

    def end_superstep(self, superstep: int) -> None:
        self._call_head(self.head.end_superstep, superstep)

    def end_input(self, input_index: int) -> None:
        self._call_head(self.head.end_input, input_index)

    def end_event_time(self) -> None:
        """The source at the head has no more records: nothing is waited for any longer."""
        self._outputs[0].emit_watermark(WATERMARK_MAX_MS)

    def finish(self) -> None:
        """All inputs of the head have ended: finish it, then end its successors' input and finish them, and so on."""
        for index, chained in enumerate(self.spec.operators):
            call = _calling(chained.name)
            self.advances.end(index)
            if index:
                for predecessor in self.spec.operators[:index]:
                    for following, _, input_index in predecessor.next:
                        if following == index:
                            call(self.operators[index].end_input, input_index)
            call(self.operators[index].finish)

    def call(self, index: int, method: Callable[..., Any], *args: Any) -> Any:
        """Call a method of operator ``index``, naming it when it fails."""
        self.clock.enter(index)
        try:
            return _calling(self.spec.operators[index].name)(method, *args)
        finally:
            self.clock.enter_nobody()

    def _call_head(self, method: Callable[..., Any], *args: Any) -> Any:
        self.advances.end(0)
        self.clock.enter(0)
        try:
            return method(*args)
        except Exception as error:
            _blame(error, self.spec.operators[0].name)
        finally:
            self.clock.enter_nobody()

    # --- watching

    def num_records_out(self) -> int:
        """Records that the operators with exits have emitted; those of several exits count once."""
        sources = {exit_spec.operator_index for exit_spec in self.spec.exits}
        return sum(self._outputs[index].num_records for index in sources)

    def num_records_of_head(self) -> int:
        return self._outputs[0].num_records

    def operator_metrics(self) -> tuple[OperatorMetrics, ...]:
        """Return what each operator did, and as the last one the exits together (partitioning, serialising)."""
        found: list[OperatorMetrics] = []
        tiers: list[str] = []  #: of a run's operators that are still to come
        head = ""  #: of that run
        for index, (operator, chained) in enumerate(zip(self.operators, self.spec.operators, strict=True)):
            output = self._outputs[index]
            fused_with = head if tiers else ""
            if not tiers:
                if isinstance(operator, RowOperator):
                    tiers = operator.tiers()
                else:
                    tiers = [operator.tier(chained.spec.describe())]
                head = chained.name
            counts = output.num_records, output.num_batches, self.clock.busy_ms(index)
            tier = tiers.pop(0)
            if output.columns is not None:
                tier = f"{tier}, {output.columns.told()}"
            if not index and self._row_columns:
                tier = f"{tier}, {self._told_of_rows()}"
            found.append(OperatorMetrics(chained.name, *counts, tier, fused_with))
        if self.spec.exits:
            num_records, index = self.num_records_out(), len(self.operators)
            num_batches = sum(self._outputs[i].num_batches for i in {one.operator_index for one in self.spec.exits})
            found.append(OperatorMetrics("(exchange)", num_records, num_batches, self.clock.busy_ms(index)))
        return tuple(found)

    def _told_of_rows(self) -> str:
        """Return what happens to rows that come to the head, for people."""
        is_over = any(columns.is_over for columns in self._row_columns.values())
        return "small batches come as rows" + (", until one was not of its type all" if is_over else "")


def _converting(chained: ChainedOperator) -> tuple[OperatorSpec, RowColumns | None]:
    """Return what runs, and what makes columns of its rows: of tuples, before anybody makes Rows of them."""
    spec, columns_of = chained.spec, chained.columns_of
    if columns_of is None:
        return spec, None
    if isinstance(spec, MapSpec | FlatMapSpec) and isinstance(spec.function, RowOutput):
        return replace(spec, function=spec.function.function), RowColumns(columns_of, makes_rows=True)
    return spec, RowColumns(columns_of)


def _calling(operator_name: str) -> Callable[..., Any]:
    def call(method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except Exception as error:
            _blame(error, operator_name)

    return call
