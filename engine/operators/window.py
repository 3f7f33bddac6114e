"""The window operator: assigns elements to windows of their key, keeps them, fires as the trigger says, drops them.

One operator serves all windows of all APIs: keyed and not, tumbling to sessions, reduce to process, one input or two
(window join and co-group). What a window holds is ``window_contents``'s, what is called on it ``window_functions``'s,
which sessions have become one ``window_merging``'s. Semantics are Flink's WindowOperator's.

Elements of one batch that go to the same key and window are taken up together where the trigger cannot tell the
difference (time windows with their default triggers): state is touched once a group, not once a record.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.errors import EngineError, ProgramError
from engine.core.records import Batch, RowBatch, rows_of
from engine.core.type_info import TypeInformation
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output
from engine.operators.failure import user_error
from engine.operators.join_state import JOIN_PART, LeftRecords
from engine.operators.keyed import Keys, last_row, open_keyed_state, open_timers
from engine.operators.left_windows import SESSIONS_PART, WINDOW_SLOTS_PART, LeftSessions, LeftWindows
from engine.operators.opened_functions import keeps_state
from engine.operators.pace import Pace
from engine.operators.results import Results, iterator_of
from engine.operators.window_cells import WindowCells
from engine.operators.window_contents import AccumulatorContents, Contents, ElementContents, Fold, left_of
from engine.operators.window_context import AssignerContext, EvictorContext, FunctionContext, TriggerContext
from engine.operators.window_functions import FoldedFunction, JoinedFunction, WindowCall
from engine.operators.window_merging import MergingWindows
from engine.operators.window_slices import WholeWindows, slices_of
from engine.state.descriptors import ValueStateDescriptor
from engine.state.timers import TimerService
from engine.time.assigners import MergingWindowAssigner, RegularWindows, WindowAssigner
from engine.time.evictors import Evictor, TimestampedValue
from engine.time.triggers import EventTimeTrigger, ProcessingTimeTrigger, Trigger, TriggerResult
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS, TimeWindow, Window

__all__ = ["WindowSpec"]

LATE_RECORDS_DROPPED: Final = "numLateRecordsDropped"
#: Keys that fire together where one timer fires alone.
_CELLS: Final = 4
#: How messages name it.
WINDOW_FUNCTION: Final = "The window function"


@final
@dataclass(frozen=True)
class WindowSpec(OperatorSpec):
    """``key_selectors``: one per input; None = one key for everything (window_all). ``fold``: None = keep all elements.
    ``late_tag``: side output of what comes too late. ``batch``: processing time ends with the input."""

    key_selectors: tuple[Any, ...]
    assigner: WindowAssigner
    trigger: Trigger
    function: WindowCall
    fold: Fold | None = None
    evictor: Evictor | None = None
    allowed_lateness_ms: int = 0
    late_tag: str | None = None
    output_type: TypeInformation | None = None
    batch: bool = False

    @property
    def num_inputs(self) -> int:  # type: ignore[override]
        return len(self.key_selectors)

    def build(self) -> Operator:
        return WindowOperator(self)

    def describe(self) -> str:
        kept = "elements" if self.fold is None or self.evictor is not None else "one accumulator"
        return f"{self.assigner!r}, {type(self.trigger).__name__}, {kept} a window"


class _NoKeys:
    """window_all: every record has the key None."""

    def open(self, ctx: OperatorContext) -> None:
        pass

    def close(self) -> None:
        pass

    def of(self, rows: list[Any]) -> list[Any]:
        return [None] * len(rows)


@final
class WindowOperator(Operator):
    """``is_inside``: of an operator on columns, which restores what such a one has left."""

    def __init__(self, spec: WindowSpec, *, is_inside: bool = False) -> None:
        self._spec = spec
        self._is_inside = is_inside
        #: what an operator on columns has left in the checkpoint, until the first record or watermark
        self._left: LeftWindows | None = None
        self._left_records: LeftRecords | None = None
        self._left_sessions: LeftSessions | None = None
        self._keys = [_NoKeys() if selector is None else Keys(selector) for selector in spec.key_selectors]
        self._function = spec.function
        self._contents: Contents
        if spec.evictor is not None or spec.fold is None:
            self._contents = ElementContents()
            if spec.fold is not None:
                self._function = FoldedFunction(spec.fold, spec.function)
        else:
            self._contents = AccumulatorContents(spec.fold)
        assigner, trigger = spec.assigner, spec.trigger
        self._is_event_time = assigner.is_event_time()
        self._merging = assigner if isinstance(assigner, MergingWindowAssigner) else None
        #: a class of the program's, whose windows are looked at
        self._is_own_assigner = not type(assigner).__module__.startswith("engine.")
        #: the assigner when elements may be taken up in groups
        self._regular: RegularWindows | None = None
        own_trigger = EventTimeTrigger if self._is_event_time else ProcessingTimeTrigger
        if isinstance(assigner, RegularWindows) and isinstance(trigger, own_trigger):
            self._regular = assigner
        #: in place of contents and timers, where all that is regular is quicker
        self._cells: WindowCells | None = None
        self._late_rows: list[Any] = []
        self._late_stamps: list[int] = []
        #: a timer is state until it fires, and a window is until all its keys have
        self._can_snapshot = True
        self.backend: Any = None

    # --- life --------------------------------------------------------------------------------------------------------

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        runtime = ctx.runtime_context
        self.backend = open_keyed_state(ctx)
        self.timers = open_timers(ctx)
        self._results = Results(out, self._spec.output_type, WINDOW_FUNCTION)
        self._late_dropped = runtime.get_metrics_group().counter(LATE_RECORDS_DROPPED)
        self._trigger_context = TriggerContext(self.backend, self.timers, ctx.clock, runtime)
        self._function_context = FunctionContext(
            self.backend, self.timers, ctx.clock, runtime, merges=self._merging is not None
        )
        self._assigner_context = AssignerContext(self.backend, ctx.clock, runtime)
        self._evictor_context = EvictorContext(self.timers, ctx.clock)
        if self._merging is not None:
            self._merging_state = self.backend.value_state(ValueStateDescriptor("$merging-windows"))
        for keys in self._keys:
            keys.open(ctx)
        self._contents.open(ctx, self.backend)
        self._function.open(ctx)
        self._cells = self._open_cells()
        if not self._is_inside and ctx.state.has_left(WINDOW_SLOTS_PART):
            self._left = LeftWindows(ctx.operator_name)
            ctx.state.add_keyed(WINDOW_SLOTS_PART, self._left)
        if not self._is_inside and ctx.state.has_left(SESSIONS_PART):
            self._left_sessions = LeftSessions(ctx.operator_name)
            ctx.state.add_keyed(SESSIONS_PART, self._left_sessions)
        if not self._is_inside and ctx.state.has_left(JOIN_PART):
            self._left_records = LeftRecords()
            ctx.state.add_keyed(JOIN_PART, self._left_records)

    def _take_left(self) -> None:
        joined, self._left_records = self._left_records, None
        for records in () if joined is None else joined.take():
            self.adopt_records(records.side, *records.rows(), records.watermark_ms)
        sessions, self._left_sessions = self._left_sessions, None
        if sessions is not None:
            self._send_unsent(sessions)
        for key, start, end, accumulator, has_fired in () if sessions is None else sessions.take():
            if self._merging is None or self._spec.fold is None or self._spec.evictor is not None:
                raise self._other_windows("sessions")
            self.adopt_session(key, TimeWindow(start, end), accumulator, has_fired=has_fired)
        left, self._left = self._left, None
        if left is None:
            return
        for start, keys, accumulators, watermark_ms in left.take():
            if self._regular is None or self._spec.fold is None or self._spec.evictor is not None:
                raise self._other_windows("tumbling")
            window = TimeWindow(start, start + self._regular._size)
            slices = slices_of(self._regular)
            if slices is not None and slices.size_ms != slices.slice_ms:
                window = TimeWindow(*WholeWindows(slices).window_of(start))
            self.adopt(window, keys, accumulators, has_fired=window.max_timestamp() <= watermark_ms)

    def _send_unsent(self, sessions: LeftSessions) -> None:
        """Send what sessions that were in files had to send, before anything else."""
        due, late = sessions.unsent()
        for key, start, end, accumulator in due:
            self.fire_held(TimeWindow(start, end), [key], [accumulator], self.timers.current_watermark)
        for batch in late:
            rows = batch.to_rows()
            for row, stamp in zip(rows.rows, rows.timestamps_ms or (), strict=True):
                self._too_late(row, stamp)

    def _other_windows(self, kind: str) -> ProgramError:
        return ProgramError(
            f"Operator {self.ctx.operator_name!r}: its windows were {kind}, with one accumulator a key; they "
            "cannot go on as others. Give the operator another uid to begin afresh."
        )

    def _open_cells(self) -> WindowCells | None:
        """Return the quick way, if it does the same as the long one: also with what was restored."""
        spec, contents, assigner = self._spec, self._contents, self._regular
        if assigner is None or slices_of(assigner) is None or spec.allowed_lateness_ms or len(self._keys) > 1:
            return None
        if spec.fold is None or keeps_state(spec.fold.given) or not isinstance(contents, AccumulatorContents):
            return None
        if contents.table is None:
            return None
        cells = WindowCells(contents.table, self.backend, assigner, spec.fold, self._refuse)
        timers = self.timers
        if not isinstance(timers, TimerService) or not timers.take_event_timers(cells.implies):
            return None
        timers.implied = cells
        return cells

    def _refuse(self, row: Any, stamp: int) -> None:
        """Raise ProgramError for a record without an event time."""
        self._spec.assigner.assign_windows(row, stamp, self._assigner_context)

    def close(self) -> None:
        closing = [*(keys.close for keys in self._keys), self._contents.close, self._function.close]
        if self.backend is not None:
            closing.append(self.backend.close)
        errors = []
        for close in closing:
            try:
                close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    # --- elements ----------------------------------------------------------------------------------------------------

    def process_batch(self, input_index: int, batch: Batch) -> None:
        if self._left or self._left_records or self._left_sessions:
            self._take_left()
        batch = rows_of(batch)
        rows = batch.rows
        keys = self._keys[input_index].of(rows)
        stamps = batch.timestamps_ms or [TIME_MIN_MS] * len(rows)
        if self._cells is not None:
            self._cells.take_up(keys, rows, stamps, self.timers.current_watermark, self._without_window)
        elif self._regular is not None:
            self._process_groups(input_index, self._regular, zip(keys, rows, stamps, strict=True))
        else:
            for key, row, stamp in zip(keys, rows, stamps, strict=True):
                self._process_row(input_index, key, row, stamp)
        self._flush()

    def _item(self, input_index: int, row: Any, stamp: int) -> Any:
        """Return the row as the window keeps it."""
        item = (input_index, row) if len(self._keys) > 1 else row
        return item if self._spec.evictor is None else TimestampedValue(item, stamp)

    def _process_groups(
        self,
        input_index: int,
        assigner: RegularWindows,
        elements: Iterator[tuple[Any, Any, int]],
        *,
        fires: bool = True,
    ) -> None:
        plain = len(self._keys) == 1 and self._spec.evictor is None
        groups: dict[tuple[Any, Any], list[Any]] = {}
        #: timestamp → (windows that wait, windows that have fired but may fire again)
        memo: dict[int, tuple[list[Any], list[Any]]] = {}
        now_ms = None if self._is_event_time else self.ctx.clock.now_ms()
        key = row = None
        try:
            for key, row, stamp in elements:
                try:
                    waiting, fired = memo[stamp]
                except KeyError:
                    waiting, fired = memo[stamp] = self._windows_of(assigner, row, stamp, now_ms)
                item = row if plain else self._item(input_index, row, stamp)
                for window in waiting:
                    group = key, window
                    if group in groups:
                        groups[group].append(item)
                    else:
                        groups[group] = [item]
                if fired:
                    self._process_fired(input_index, key, row, stamp, fired, fires=fires)
                elif not waiting and self._is_too_late(stamp):
                    self._too_late(row, stamp)
        except TypeError:
            self.backend.set_current_key(key)  # says it when the key is not hashable
            raise
        for (key, window), items in groups.items():
            self.backend.set_current_key(key)
            self._contents.use(window)
            if not self._contents.add(items):
                continue  # its timers have been registered
            self._trigger_context.window = window
            self._spec.trigger.on_element(items[-1], TIME_MIN_MS, window, self._trigger_context)
            self._register_cleanup(window)

    def _windows_of(
        self, assigner: RegularWindows, row: Any, stamp: int, now_ms: int | None
    ) -> tuple[list[Any], list[Any]]:
        if now_ms is not None:
            return assigner.windows_of(now_ms), []
        if stamp == TIME_MIN_MS:
            assigner.assign_windows(row, stamp, self._assigner_context)  # raises
        watermark_ms = self.timers.current_watermark
        live = [window for window in assigner.windows_of(stamp) if self._cleanup_ms(window) > watermark_ms]
        waiting = [window for window in live if window.max_timestamp() > watermark_ms]
        return waiting, [window for window in live if window.max_timestamp() <= watermark_ms]

    def _process_fired(
        self, input_index: int, key: Any, row: Any, stamp: int, windows: Sequence[Any], *, fires: bool
    ) -> None:
        self.backend.set_current_key(key)
        for window in windows:
            if fires:
                self._take_up(input_index, key, row, stamp, window, window)
            else:
                self._contents.use(window)
                self._contents.add((self._item(input_index, row, stamp),))
                self._register_cleanup(window)

    def _process_row(self, input_index: int, key: Any, row: Any, stamp: int) -> None:
        self.backend.set_current_key(key)
        try:
            windows = self._spec.assigner.assign_windows(row, stamp, self._assigner_context)
        except Exception as error:
            raise self._user_error(error, row) from error
        if self._is_own_assigner:
            windows = self._checked_windows(windows, row)
        if self._merging is not None:
            skipped = self._process_merging(self._merging, input_index, key, row, stamp, windows)
        else:
            skipped = True
            for window in windows:
                if not self._is_late(window):
                    skipped = False
                    self._take_up(input_index, key, row, stamp, window, window)
        if skipped and self._is_too_late(stamp):
            self._too_late(row, stamp)

    def _checked_windows(self, windows: Any, row: Any) -> list[Any]:
        """Return what an assigner of the program's own gave, where it is a collection of windows."""
        if isinstance(windows, Iterable) and not isinstance(windows, Window):
            windows = list(windows)
            if all(isinstance(window, Window) for window in windows):
                return windows
        assigner = type(self._spec.assigner).__name__
        raise self._user_error(
            TypeError(f"{assigner}.assign_windows() returned {windows!r:.80}; expected a list of Window objects"), row
        )

    def _process_merging(
        self, assigner: MergingWindowAssigner, input_index: int, key: Any, row: Any, stamp: int, windows: Iterable[Any]
    ) -> bool:
        """Return whether the element was too late for all its windows."""
        open_windows = MergingWindows(assigner, self._merging_state.value())
        skipped = True
        for window in windows:
            try:
                actual = open_windows.add(window, self._merge)
            except Exception as error:
                raise self._user_error(error, row) from error
            if self._is_late(actual):
                open_windows.retire(actual)
                continue
            skipped = False
            state_window = open_windows.state_windows[actual]
            self._take_up(input_index, key, row, stamp, actual, state_window)
        if open_windows.is_changed:
            self._merging_state.update(open_windows.state_windows or None)
        return skipped

    def _merge(self, result: Any, merged: list[Any], state_window: Any, state_windows: list[Any]) -> None:
        if self._is_event_time and self._cleanup_ms(result) <= self.timers.current_watermark:
            raise ProgramError(
                f"{self._spec.assigner!r} merged windows that are still open into {result!r}, which is over: the "
                f"watermark is {self.timers.current_watermark}. A merged window may not end before those it is made of."
            )
        context = self._trigger_context
        merged = [window for window in merged if window != result]
        context.window, context.merged_windows = result, merged
        self._spec.trigger.on_merge(result, context)
        for window in merged:
            context.window = window
            self._spec.trigger.clear(window, context)
            self._delete_cleanup(window)
        context.merged_windows = ()
        self._contents.merge(state_window, state_windows)

    def _take_up(self, input_index: int, key: Any, row: Any, stamp: int, window: Any, state_window: Any) -> None:
        contents, context = self._contents, self._trigger_context
        contents.use(state_window)
        contents.add((self._item(input_index, row, stamp),))
        context.window = window
        try:
            result = self._spec.trigger.on_element(row, stamp, window, context)
        except Exception as error:
            raise self._user_error(error, row) from error
        self._obey(result, key, window)
        self._register_cleanup(window)

    def _obey(self, result: TriggerResult, key: Any, window: Any) -> None:
        if result is TriggerResult.CONTINUE:
            return
        if not isinstance(result, TriggerResult):
            trigger = type(self._spec.trigger).__name__
            told = f"{trigger} returned {result!r:.80}; expected a TriggerResult, e.g. TriggerResult.CONTINUE"
            raise self._error_of_window(TypeError(told), key, window)
        if result.is_fire():
            self._fire(key, window)
        if result.is_purge():
            self._contents.clear()

    def _is_too_late(self, stamp: int) -> bool:
        """Return whether a record without a window is late, and not one between windows that have gaps."""
        return self._is_event_time and stamp + self._spec.allowed_lateness_ms <= self.timers.current_watermark

    def _without_window(self, row: Any, stamp: int) -> None:
        if self._is_too_late(stamp):
            self._too_late(row, stamp)

    def _too_late(self, row: Any, stamp: int) -> None:
        tag = self._spec.late_tag
        if tag is None:
            self._late_dropped.inc()
        else:
            self._late_rows.append(row)
            self._late_stamps.append(stamp)

    def adopt(self, window: Any, keys: Sequence[Any], accumulators: Sequence[Any], *, has_fired: bool) -> None:
        """Take up what another operator has held of a window until now, by key. For event-time triggers only."""
        for key, accumulator in zip(keys, accumulators, strict=True):
            if self._cells is not None:
                self._cells.put(window, key, accumulator)
                continue
            self.backend.set_current_key(key)
            self._contents.use(window)
            self._contents.merge_in(accumulator)
            if not has_fired:
                self.timers.register_event_time(self.backend.current_key, window, window.max_timestamp())
            self._register_cleanup(window)

    def adopt_records(self, input_index: int, rows: list[Any], stamps: list[int], watermark_ms: int) -> None:
        """Take up what another operator has kept in windows; those that had fired by the watermark do not fire now."""
        if self._regular is None or len(self._keys) == 1:
            raise ProgramError(
                f"Operator {self.ctx.operator_name!r}: its windows were those of two streams, regular in time; they "
                "cannot go on as others. Give the operator another uid to begin afresh."
            )
        now_ms, self.timers.current_watermark = self.timers.current_watermark, watermark_ms
        keys = self._keys[input_index].of(rows)
        self._process_groups(input_index, self._regular, zip(keys, rows, stamps, strict=True), fires=False)
        self.timers.current_watermark = now_ms

    def adopt_session(self, key: Any, window: Any, accumulator: Any, *, has_fired: bool) -> None:
        """Take up what another operator has held of a session that is not over; it may come in several parts."""
        self.backend.set_current_key(key)
        open_windows = dict(self._merging_state.value() or ())
        self._contents.use(open_windows.setdefault(window, window))
        self._contents.merge_in(accumulator)
        self._merging_state.update(open_windows)
        if not has_fired:
            self.timers.register_event_time(self.backend.current_key, window, window.max_timestamp())
        self._register_cleanup(window)

    def join_pairs(self, pairs: list[tuple[Any, Any]], window: Any) -> None:
        """Call a join's function for pairs of a window that another operator holds."""
        function = self._function
        assert isinstance(function, JoinedFunction)
        remaining = iter(pairs)
        rest: Any = function.of_pairs(remaining)
        while rest is not None:
            try:
                rest = self._results.take(rest, window.max_timestamp())
            except Exception as error:
                (key,) = self._keys[0].of([last_row(pairs, remaining)[0]])
                raise self._error_of_window(error, key, window) from error
            self._results.flush()

    # --- time --------------------------------------------------------------------------------------------------------

    def process_watermark(self, watermark_ms: int) -> None:
        collections.deque(self.advance_watermark(watermark_ms), maxlen=0)

    def advance_watermark(self, watermark_ms: int) -> Generator[None, None, None]:
        if self._left or self._left_records or self._left_sessions:
            self._take_left()
        for _ in self._fire_due(watermark_ms):
            self._flush()
            yield
        self._flush()
        self.out.emit_watermark(watermark_ms)

    def _fire_due(self, watermark_ms: int) -> Iterator[None]:
        """Let all fire that is due; yield where it is the turn of others."""
        pace, left = Pace(self.ctx.clock), 1
        for time_ms, key, window in self.timers.advance_watermark(watermark_ms):
            self._on_timer(True, time_ms, key, window)
            left -= 1
            if not left:
                if pace.is_over():
                    yield
                    pace.begin()
                left = pace.stride
        if self._cells is None:
            return
        for window, held_by_key in self._cells.due(watermark_ms):
            cells = iter(held_by_key.items())
            while held := list(itertools.islice(cells, _CELLS * pace.stride)):
                self._fire_cells(window, held)
                if pace.is_over():
                    self._can_snapshot = False  # those that have fired are in there still
                    yield
                    pace.begin()
            self._can_snapshot = True

    def can_snapshot_between(self) -> bool:
        return self._can_snapshot

    def next_timer_ms(self) -> int | None:
        time_ms = self.timers.next_processing_ms()
        # One later: a window that ends at 10:00:00.000 has the timer 09:59:59.999, and that millisecond must be over.
        return None if time_ms is None else time_ms + 1

    def on_timer(self, now_ms: int) -> None:
        for time_ms, key, window in self.timers.due_processing(now_ms - 1):
            self._on_timer(False, time_ms, key, window)
        self._flush()

    def finish(self) -> None:
        if self._spec.batch:
            for time_ms, key, window in self.timers.last_processing():
                self._on_timer(False, time_ms, key, window)
        self._flush()

    def _on_timer(self, event_time: bool, time_ms: int, key: Any, window: Any) -> None:
        self.backend.set_current_key(key)
        open_windows = None
        state_window = window
        if self._merging is not None:
            open_windows = MergingWindows(self._merging, self._merging_state.value())
            state_window = open_windows.state_windows.get(window)
            if state_window is None:
                return  # of a window that is gone: its trigger left the timer behind
        self._contents.use(state_window)
        context = self._trigger_context
        context.window = window
        trigger = self._spec.trigger
        try:
            fire = trigger.on_event_time if event_time else trigger.on_processing_time
            result = fire(time_ms, window, context)
        except Exception as error:
            raise self._error_of_window(error, key, window) from error
        self._obey(result, key, window)
        if event_time is self._is_event_time and time_ms == self._cleanup_ms(window):
            self._drop(key, window)
            if open_windows is not None:
                open_windows.retire(window)
                self._merging_state.update(open_windows.state_windows or None)

    def _cleanup_ms(self, window: Any) -> int:
        end: int = window.max_timestamp()
        return min(end + self._spec.allowed_lateness_ms, TIME_MAX_MS) if self._is_event_time else end

    def _is_late(self, window: Any) -> bool:
        return self._is_event_time and self._cleanup_ms(window) <= self.timers.current_watermark

    def _register_cleanup(self, window: Any) -> None:
        time_ms = self._cleanup_ms(window)
        if time_ms == TIME_MAX_MS:
            return
        register = self.timers.register_event_time if self._is_event_time else self.timers.register_processing_time
        register(self.backend.current_key, window, time_ms)

    def _delete_cleanup(self, window: Any) -> None:
        time_ms = self._cleanup_ms(window)
        delete = self.timers.delete_event_time if self._is_event_time else self.timers.delete_processing_time
        delete(self.backend.current_key, window, time_ms)

    def _drop(self, key: Any, window: Any) -> None:
        self._contents.clear()
        try:
            self._spec.trigger.clear(window, self._trigger_context)
        except Exception as error:
            raise self._error_of_window(error, key, window) from error
        self._clear_function(key, window)

    def _clear_function(self, key: Any, window: Any) -> None:
        self._function_context.window_now = window
        try:
            self._function.clear(self._function_context)
        except Exception as error:
            raise self._error_of_window(error, key, window) from error

    # --- results -----------------------------------------------------------------------------------------------------

    def _fire(self, key: Any, window: Any) -> None:
        elements = self._contents.elements()
        if elements is None:
            return
        evictor = self._spec.evictor
        if evictor is None:
            self._call(key, window, elements)
            return
        kept = elements
        try:
            kept = left_of(evictor.evict_before(elements, len(elements), window, self._evictor_context), "evict_before")
        except Exception as error:
            raise self._error_of_window(error, key, window) from error
        if kept:
            self._call(key, window, [element.value for element in kept])
        try:
            kept = left_of(evictor.evict_after(kept, len(kept), window, self._evictor_context), "evict_after")
        except Exception as error:
            raise self._error_of_window(error, key, window) from error
        self._contents.replace(kept)

    def fire_held(self, window: Any, keys: Sequence[Any], accumulators: Sequence[Any], watermark_ms: int) -> None:
        """Give the results of a window that another operator holds, whose function clears nothing afterwards."""
        assert not self._function.clears
        self.timers.current_watermark = watermark_ms
        self._fire_cells(window, zip(keys, zip(accumulators, strict=True), strict=True))
        self._flush()

    def _fire_cells(self, window: Any, held_by_key: Iterable[tuple[Any, Any]]) -> None:
        """Call the function for each key of a window that goes afterwards."""
        fold, set_key, call = self._spec.fold, self.backend.set_current_key, self._function.call
        assert fold is not None
        result_of, clears = fold.result, self._function.clears
        context = self._function_context
        context.window_now = window
        key = None

        def outcomes() -> Iterator[Any]:
            nonlocal key
            for key, held in held_by_key:
                set_key(key)
                try:
                    element = result_of(held[0])
                except Exception as error:
                    raise fold.error(error, held[0]) from error
                given = call(key, window, context, (element,))
                if given is not None:
                    yield from iterator_of(given, WINDOW_FUNCTION)
                if clears:
                    self._clear_function(key, window)

        stamp = window.max_timestamp()
        rest: Any = outcomes()
        while rest is not None:
            try:
                rest = self._results.take(rest, stamp)
            except Exception as error:
                raise self._error_of_window(error, key, window) from error
            if rest is not None:
                self._results.flush()

    def _call(self, key: Any, window: Any, elements: Sequence[Any]) -> None:
        context = self._function_context
        context.window_now = window
        stamp = window.max_timestamp()
        results = self._results
        rest: Any = None
        while True:
            try:
                if rest is None:
                    rest = self._function.call(key, window, context, elements)
                rest = None if rest is None else results.take(rest, stamp)
            except Exception as error:
                raise self._error_of_window(error, key, window) from error
            if rest is None:
                return
            results.flush()

    def _flush(self) -> None:
        self._results.flush()
        if self._late_rows:
            late = RowBatch(self._late_rows, self._late_stamps)
            self._late_rows, self._late_stamps = [], []
            assert self._spec.late_tag is not None
            self.out.emit_side(self._spec.late_tag, late)

    def _error_of_window(self, error: Exception, key: Any, window: Any) -> EngineError:
        if isinstance(error, EngineError):
            return error
        return user_error(error, operator_name=self.ctx.operator_name, occasion=f"{window!r} of key {key!r:.80}")

    def _user_error(self, error: Exception, record: Any) -> EngineError:
        if isinstance(error, EngineError):
            return error
        return user_error(error, operator_name=self.ctx.operator_name, record=record)
