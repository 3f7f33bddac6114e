"""Runs process functions, and map, flat_map and filter that keep keyed state: one or two inputs, with keys or without.

One operator for all: each input says which method gets its records and what their key is. Timers and state are there
when the inputs are keyed. Not here: broadcast streams (``broadcast``), the functions' interfaces
(``process_functions``), where timers and state are kept (``engine/state``).
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, final

from engine.core.clock import Clock
from engine.core.errors import ProgramError
from engine.core.late_dataclass import dataclass
from engine.core.records import BATCH_ROWS_MAX, Batch, rows_of
from engine.core.type_info import TypeInformation
from engine.core.user_code import describe_record
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.bound_function import BoundFunction
from engine.operators.failure import user_error
from engine.operators.keyed import Keys, open_keyed_state, open_timers
from engine.operators.output_tag import OutputTag
from engine.operators.pace import Pace
from engine.operators.process_functions import TimeDomain, TimerService
from engine.operators.results import USUAL_RESULTS, Results, iterator_of
from engine.state import timers as state_timers
from engine.state.backend import VOID, KeyedStateBackend
from engine.state.heap_states import MISSING
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

__all__ = ["OperatorTimerService", "ProcessContext", "ProcessInput", "ProcessOperator", "ProcessSpec"]


@final
@dataclass(frozen=True)
class ProcessInput:
    """Whose records go to ``method`` of the function. ``key_selector`` None: they have no key."""

    method: str
    key_selector: Any = None


@final
@dataclass(frozen=True)
class ProcessSpec(OperatorSpec):
    """A (Keyed)ProcessFunction: ``method`` process_element; or map, flat_map, filter with keyed state."""

    function: Any
    key_selector: Any = None
    output_type: TypeInformation | None = None
    method: str = "process_element"

    def build(self) -> Operator:
        return ProcessOperator(self.function, (ProcessInput(self.method, self.key_selector),), self.output_type)

    def describe(self) -> str:
        return "interpreted (it is called for each record)"


# --- what the function sees -------------------------------------------------------------------------------------------


@final
class OperatorTimerService(TimerService):
    """Registers timers for the current key. ``backend`` None: the input has no keys, so only the time can be asked."""

    def __init__(self, timers: state_timers.Timers, backend: KeyedStateBackend | None, clock: Clock) -> None:
        self._timers = timers
        self._backend = backend
        self._clock = clock

    def current_processing_time(self) -> int:
        return self._clock.now_ms()

    def current_watermark(self) -> int:
        return self._timers.current_watermark

    def _key(self, timestamp: Any) -> Any:
        if self._backend is None:
            raise ProgramError("Timers need a keyed stream: call key_by(...) before process().")
        if type(timestamp) is not int:
            raise ProgramError(
                f"A timer's time must be whole milliseconds (int), got {timestamp!r:.80} "
                f"of type {type(timestamp).__name__}."
            )
        if not TIME_MIN_MS <= timestamp <= TIME_MAX_MS:
            raise ProgramError(
                f"A timer's time must fit into 64 bits, got {timestamp}: no watermark and no clock ever reaches it."
            )
        return self._backend.current_key

    def register_event_time_timer(self, timestamp: int) -> None:
        # Timers of this kind come by the record: no call for what is nearly always in order.
        backend = self._backend
        if backend is not None and type(timestamp) is int and TIME_MIN_MS <= timestamp <= TIME_MAX_MS:
            key = backend.key_or_none
            self._timers.register_event_time(backend.current_key if key is MISSING else key, VOID, timestamp)
            return
        self._timers.register_event_time(self._key(timestamp), VOID, timestamp)

    def delete_event_time_timer(self, timestamp: int) -> None:
        self._timers.delete_event_time(self._key(timestamp), VOID, timestamp)

    def register_processing_time_timer(self, timestamp: int) -> None:
        self._timers.register_processing_time(self._key(timestamp), VOID, timestamp)

    def delete_processing_time_timer(self, timestamp: int) -> None:
        self._timers.delete_processing_time(self._key(timestamp), VOID, timestamp)


class ProcessContext:
    """The ``ctx`` of all process functions: one object that moves on from record to record and timer to timer."""

    def __init__(self, timer_service: OperatorTimerService, backend: KeyedStateBackend | None) -> None:
        self._timer_service = timer_service
        self._backend = backend
        self.now_at: int | None = None  #: event time of the record, or time of the timer
        self.domain: TimeDomain | None = None  #: of the timer that fires

    def timestamp(self) -> int | None:
        return self.now_at

    def timer_service(self) -> TimerService:
        return self._timer_service

    def get_current_key(self) -> Any:
        if self._backend is None:
            raise ProgramError("There is no current key: the stream is not keyed.")
        return self._backend.current_key

    def time_domain(self) -> TimeDomain:
        if self.domain is None:
            raise ProgramError("time_domain() is for on_timer(): no timer fires now.")
        return self.domain

    def current_processing_time(self) -> int:
        return self._timer_service.current_processing_time()

    def current_watermark(self) -> int:
        return self._timer_service.current_watermark()


# --- the operator -----------------------------------------------------------------------------------------------------


def _processing(function: Any, method: str) -> Callable[[Any, Any], Any]:
    """Return (record, ctx) → results for a method of the function."""
    call = BoundFunction(function, method).call
    match method:
        case "map":
            return lambda value, ctx: (call(value),)
        case "filter":
            return lambda value, ctx: (value,) if call(value) else None
        case "map1" | "map2":
            return lambda value, ctx: (call(value),)
        case "flat_map" | "flat_map1" | "flat_map2":
            return lambda value, ctx: call(value)
    return call


@final
class _NoKey:
    """Takes the key of records that have none."""

    __slots__ = ("key_or_none",)


class ProcessOperator(Operator):
    """Subclassed by the broadcast operator only."""

    def __init__(
        self, function: Any, inputs: tuple[ProcessInput, ...], output_type: TypeInformation | None = None
    ) -> None:
        self._function = function
        self._bound = BoundFunction(function, inputs[0].method)
        self._output_type = output_type
        self._methods = [item.method for item in inputs]
        self._calls = [_processing(function, item.method) for item in inputs]
        self._keys = [None if item.key_selector is None else Keys(item.key_selector) for item in inputs]
        self._on_timer: Callable[..., Any] | None = getattr(function, "on_timer", None)
        self._backend: KeyedStateBackend | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        for keys in self._keys:
            if keys is not None:
                keys.open(ctx)
        if any(keys is not None for keys in self._keys):
            self._backend = open_keyed_state(ctx)
            self._timers = open_timers(ctx)
        else:
            self._timers = state_timers.TimerService(ctx.runtime_context.get_max_number_of_parallel_subtasks())
        self._timer_service = OperatorTimerService(self._timers, self._backend, ctx.clock)
        self._process_ctx = ProcessContext(self._timer_service, self._backend)
        self._results = Results(out, self._output_type, self._methods[0])
        self._bound.open(ctx)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        batch = rows_of(batch)
        keys = self._keys[input_index]
        if keys is not None:
            self._process_keyed(input_index, keys.of(batch.rows), batch.rows, batch.timestamps_ms)
        else:
            self._process_unkeyed(self._calls[input_index], self._process_ctx, batch.rows, batch.timestamps_ms)
        self._results.flush()

    def _process_keyed(self, input_index: int, keys: list[Any], rows: list[Any], stamps: list[int] | None) -> None:
        backend = self._backend
        assert backend is not None
        set_key = None if backend.may_assign(keys) else backend.set_current_key
        self._process(self._calls[input_index], self._process_ctx, (backend, set_key, keys), rows, stamps)

    def _process_unkeyed(
        self, call: Callable[[Any, Any], Any], ctx: Any, rows: list[Any], stamps: list[int] | None
    ) -> None:
        self._process(call, ctx, (_NoKey(), None, itertools.repeat(None)), rows, stamps)

    def _process(
        self,
        call: Callable[[Any, Any], Any],
        ctx: Any,
        of_keys: tuple[Any, Callable[[Any], None] | None, Iterable[Any]],
        rows: list[Any],
        stamps: list[int] | None,
    ) -> None:
        """Call the function on each record. ``of_keys``: who holds the current key, what sets it (None: assignment),
        the keys. Everything a record needs is written out in the loop: calls would cost more than what they do."""
        holder, set_key, keys = of_keys
        results = self._results
        results.begin(stamped=stamps is not None)
        make, out, out_stamps = results.make, results.rows, results.stamps
        method, is_stamped = self._methods[0], stamps is not None
        for key, row, stamp in zip(keys, rows, itertools.repeat(None) if stamps is None else stamps):
            ctx.now_at = stamp
            try:
                if set_key is None:
                    holder.key_or_none = key
                else:
                    set_key(key)
                given = call(row, ctx)
                if given is None:
                    continue
                given = iter(given) if type(given) in USUAL_RESULTS else iterator_of(given, method)
                for result in given:
                    if type(result) is tuple and result and type(result[0]) is OutputTag:
                        results.take_side(result, stamp)
                        if results.is_full():
                            break
                        continue
                    out.append(result if make is None else make(result))
                    if is_stamped:
                        out_stamps.append(stamp)  # type: ignore[arg-type]
                    if len(out) >= BATCH_ROWS_MAX:
                        break
                else:
                    continue
            except BaseException as error:
                raise self._error(error, record=row) from error
            self._drain(given, stamp, record=row)
            out, out_stamps = results.rows, results.stamps

    def _drain(self, rest: Iterator[Any] | None, stamp: int | None, **on: Any) -> None:
        """Hand on what fills a batch, take what follows, as often as it takes. One record may yield millions."""
        while rest is not None:
            self._results.flush()
            try:
                rest = self._results.take(rest, stamp)
            except BaseException as error:
                raise self._error(error, **on) from error

    def _error(self, error: BaseException, **on: Any) -> Exception:
        return user_error(error, operator_name=self.ctx.operator_name, **on)

    # --- time ------------------------------------------------------------------------------------------------------

    def process_watermark(self, watermark_ms: int) -> None:
        collections.deque(self.advance_watermark(watermark_ms), maxlen=0)

    def advance_watermark(self, watermark_ms: int) -> Generator[None, None, None]:
        timers, pace = self._timers.advance_watermark(watermark_ms), Pace(self.ctx.clock)
        while self._fire(itertools.islice(timers, pace.stride), TimeDomain.EVENT_TIME):
            if pace.is_over():
                self._results.flush()
                yield
                pace.begin()
        self._results.flush()
        self.out.emit_watermark(watermark_ms)

    def can_snapshot_between(self) -> bool:
        return True  # a timer is state until it fires

    def next_timer_ms(self) -> int | None:
        return self._timers.next_processing_ms()

    def on_timer(self, now_ms: int) -> None:
        self._fire(self._timers.due_processing(now_ms), TimeDomain.PROCESSING_TIME)
        self._results.flush()

    def _fire(self, timers: Iterator[state_timers.Timer], domain: TimeDomain) -> bool:
        """Return whether there was one."""
        time_ms = None
        ctx, backend, take, call = self._process_ctx, self._backend, self._results.take, self._on_timer
        is_event_time = domain is TimeDomain.EVENT_TIME
        may_assign = backend is not None and backend.may_assign([])
        for time_ms, key, _ in timers:
            assert backend is not None
            if may_assign and (type(key) is int or type(key) is str):
                backend.key_or_none = key
            else:
                backend.set_current_key(key)
            ctx.now_at, ctx.domain = time_ms, domain
            stamp = time_ms if is_event_time else None  # what a processing-time timer emits has no event time
            try:
                if call is None:
                    raise ProgramError(f"{type(self._function).__name__} registers timers and has no on_timer().")
                results = call(time_ms, ctx)
                rest = None if results is None else take(results, stamp)
            except BaseException as error:
                raise self._error(error, occasion=_occasion(time_ms, key, domain)) from error
            if rest is not None:
                self._drain(rest, stamp, occasion=_occasion(time_ms, key, domain))
            ctx.domain = None
        return time_ms is not None

    # --- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._backend is not None:
            self._backend.clear_current_key()
        try:
            for keys in self._keys:
                if keys is not None:
                    keys.close()
        finally:
            try:
                self._bound.close()
            finally:
                if self._backend is not None:
                    self._backend.close()


def _occasion(time_ms: int, key: Any, domain: TimeDomain) -> str:
    kind = "event" if domain is TimeDomain.EVENT_TIME else "processing"
    return f"{kind}-time timer {time_ms} of key {describe_record(key)}"
