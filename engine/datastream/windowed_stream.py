"""What a program can say about windows of a stream: WindowedStream and AllWindowedStream, with PyFlink's names, and
window join, co-group and interval join as in Flink's Java API.

The operator is ``operators/window``; assigners, triggers and evictors stand in ``datastream/window``.
"""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, final

from engine.core.errors import ProgramError
from engine.core.type_info import TypeInformation
from engine.datastream.field_checks import check_field
from engine.datastream.key_selectors import as_key_selector
from engine.graph.transformation import Edge, Partitioning, ShipStrategy, Transformation
from engine.operators.aggregate import FieldAggregate
from engine.operators.field_aggregates import FieldAggregateOf, RowAggregates, WindowRecord
from engine.operators.functions import (
    AggregateFunction,
    CoGroupFunction,
    FlatJoinFunction,
    Function,
    JoinFunction,
    ReduceFunction,
)
from engine.operators.interval_join import IntervalJoinSpec, ProcessJoinFunction
from engine.operators.keys import ComposedKey
from engine.operators.output_tag import OutputTag
from engine.operators.process_functions import (
    AllWindowFunction,
    ProcessAllWindowFunction,
    ProcessWindowFunction,
    WindowFunction,
)
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, Fold, ReduceFold
from engine.operators.window_functions import CoGroupedFunction, JoinedFunction, WindowCall, window_call
from engine.time.assigners import MergingWindowAssigner, WindowAssigner
from engine.time.evictors import Evictor
from engine.time.triggers import Trigger, lacks_on_merge
from engine.time.watermarks import Duration, Time
from engine.time.windows import span_ms

if TYPE_CHECKING:
    from engine.datastream.data_stream import DataStream
    from engine.datastream.environment import StreamExecutionEnvironment
    from engine.datastream.keyed_stream import KeyedStream

__all__ = ["AllWindowedStream", "CoGroupedStreams", "IntervalJoin", "JoinedStreams", "WindowedStream"]

Span = Time | Duration | dt.timedelta


class _Windows:
    """The settings that all windowed streams have."""

    def __init__(self, window_assigner: WindowAssigner) -> None:
        if not isinstance(window_assigner, WindowAssigner):
            raise ProgramError(
                f"window({window_assigner!r:.80}): expected a WindowAssigner such as "
                "TumblingEventTimeWindows.of(Time.seconds(5))."
            )
        self._assigner = window_assigner
        self._trigger: Trigger | None = None
        self._evictor: Evictor | None = None
        self._allowed_lateness_ms = 0
        self._late_tag: str | None = None

    def trigger(self, trigger: Trigger) -> Self:
        """Fire as ``trigger`` says instead of the assigner's own."""
        if not isinstance(trigger, Trigger):
            raise ProgramError(f"trigger({trigger!r:.80}): expected a Trigger object such as CountTrigger.of(10).")
        if isinstance(self._assigner, MergingWindowAssigner) and not trigger.can_merge():
            raise ProgramError(
                f"trigger({type(trigger).__name__}): it cannot be used with {self._assigner!r}, whose windows merge: "
                "can_merge() is false."
            )
        if isinstance(self._assigner, MergingWindowAssigner) and lacks_on_merge(trigger):
            raise ProgramError(
                f"trigger({type(trigger).__name__}): windows of {self._assigner!r} merge and can_merge() is true, but "
                "it has no on_merge(self, window, ctx). Implement it: register the timers of the merged window there."
            )
        self._trigger = trigger
        return self

    def evictor(self, evictor: Evictor) -> Self:
        """Drop elements before or after the function runs; the windows then keep all their elements."""
        if not isinstance(evictor, Evictor):
            raise ProgramError(f"evictor({evictor!r:.80}): expected an Evictor object such as CountEvictor.of(10).")
        self._evictor = evictor
        return self

    def allowed_lateness(self, time_ms: int | Span) -> Self:
        """Keep windows of event time that long after the watermark has passed them; each late element fires again."""
        lateness_ms = time_ms if isinstance(time_ms, int) else span_ms(time_ms, "allowed_lateness")
        if lateness_ms < 0:
            raise ProgramError(f"allowed_lateness({time_ms}): expected 0 ms or more.")
        self._allowed_lateness_ms = lateness_ms
        return self

    def side_output_late_data(self, output_tag: Any) -> Self:
        """Send elements that come after their windows are gone to a side output instead of dropping them."""
        self._late_tag = _tag_id("side_output_late_data", output_tag)
        return self

    def _spec(
        self,
        env: StreamExecutionEnvironment,
        key_selectors: tuple[Any, ...],
        function: WindowCall,
        fold: Fold | None,
        output_type: TypeInformation | None,
    ) -> WindowSpec:
        trigger = self._trigger or self._assigner.get_default_trigger(env)
        return WindowSpec(
            key_selectors=key_selectors,
            assigner=self._assigner,
            trigger=trigger,
            function=function,
            fold=fold,
            evictor=self._evictor,
            allowed_lateness_ms=self._allowed_lateness_ms,
            late_tag=self._late_tag,
            output_type=output_type,
        )


def _tag_id(method: str, output_tag: Any) -> str:
    if not isinstance(output_tag, OutputTag):
        raise ProgramError(f"{method}({output_tag!r:.80}): expected an OutputTag, e.g. OutputTag('late', type).")
    return output_tag.tag_id


def _check_kind(method: str, function: Any, *kinds: type) -> None:
    if isinstance(function, type) and issubclass(function, Function):
        raise ProgramError(f"{method}({function.__name__}): got a class; pass an object of it: {function.__name__}().")
    if not isinstance(function, kinds):
        expected = " or ".join(f"a {kind.__name__}" if kind.__name__ != "function" else "a function" for kind in kinds)
        raise ProgramError(f"{method}({function!r:.80}): expected {expected}.")


def _check_callable(method: str, function: Any, *kinds: type) -> None:
    """Plain functions will do too."""
    if isinstance(function, Function | type) or not callable(function):
        _check_kind(method, function, *kinds)


class _OneStream(_Windows):
    """Windows of one stream. ``_kinds``: the function interfaces of apply and process."""

    _kinds: tuple[type, type]

    def __init__(self, stream: DataStream, window_assigner: WindowAssigner, key_selector: Any) -> None:
        super().__init__(window_assigner)
        self._stream = stream
        self._key_selector = key_selector

    def get_execution_environment(self) -> StreamExecutionEnvironment:
        return self._stream.get_execution_environment()

    def get_input_type(self) -> TypeInformation:
        return self._stream.get_type()

    def _result(self, what: str, function: Any, fold: Fold | None, output_type: TypeInformation | None) -> DataStream:
        env = self.get_execution_environment()
        spec = self._spec(env, (self._key_selector,), window_call(function), fold, output_type)
        result = self._stream._apply(type(self._assigner).__name__, spec, output_type)
        result.set_description(f"Window({self._assigner!r}, {type(spec.trigger).__name__}, {what})")
        if self._key_selector is None:
            result.force_non_parallel()
        return result

    def reduce(
        self,
        reduce_function: ReduceFunction | Callable[[Any, Any], Any],
        window_function: Any = None,
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Combine the elements of a window one by one; only the value so far is kept."""
        _check_callable("reduce", reduce_function, ReduceFunction)
        self._check_window_function("reduce", window_function)
        if output_type is None and window_function is None:
            output_type = self._stream._node.output_type
        return self._result(_name(reduce_function), window_function, ReduceFold(reduce_function), output_type)

    def aggregate(
        self,
        aggregate_function: AggregateFunction | FieldAggregateOf,
        window_function: Any = None,
        accumulator_type: TypeInformation | FieldAggregateOf | None = None,
        output_type: TypeInformation | FieldAggregateOf | None = None,
        *more: FieldAggregateOf,
    ) -> DataStream:
        """Add the elements of a window to an accumulator one by one; only that is kept.

        Ours beside PyFlink's: built-in aggregates, as many as wanted, e.g. ``aggregate(count(), sum_("amount"))``; the
        results are (key…, window start, window end, aggregates…).
        """
        if isinstance(aggregate_function, FieldAggregateOf):
            given = (aggregate_function, window_function, accumulator_type, output_type, *more)
            return self._built_in([aggregate for aggregate in given if aggregate is not None])
        _check_kind("aggregate", aggregate_function, AggregateFunction)
        assert isinstance(output_type, TypeInformation | None)
        self._check_window_function("aggregate", window_function)
        return self._result(_name(aggregate_function), window_function, AggregateFold(aggregate_function), output_type)

    def _built_in(self, aggregates: list[Any]) -> DataStream:
        for aggregate in aggregates:
            _check_kind("aggregate", aggregate, FieldAggregateOf)
            if aggregate.field is not None:
                check_field(aggregate.kind, aggregate.field, self._stream._node.output_type)
        if self._key_selector is None:
            raise ProgramError("aggregate(count(), …) is for keyed windows: call key_by(…) before window(…).")
        selector = self._key_selector
        num_keys = len(selector.fields) if isinstance(selector, ComposedKey) else 1
        what = ", ".join(aggregate.column_name for aggregate in aggregates)
        return self._result(what, WindowRecord(num_keys), AggregateFold(RowAggregates(aggregates)), None)

    def _check_window_function(self, method: str, window_function: Any) -> None:
        if window_function is not None:
            _check_kind(f"{method}(…, window_function)", window_function, *self._kinds)

    def apply(self, window_function: Any, output_type: TypeInformation | None = None) -> DataStream:
        """Call a function on all elements of a window at once."""
        _check_kind("apply", window_function, self._kinds[0])
        return self._result(_name(window_function), window_function, None, output_type)

    def process(self, process_window_function: Any, output_type: TypeInformation | None = None) -> DataStream:
        """Call a function with a context (window, time, state) on all elements of a window at once."""
        _check_kind("process", process_window_function, self._kinds[1])
        return self._result(_name(process_window_function), process_window_function, None, output_type)

    def _aggregate_field(self, kind: str, field: int | str) -> DataStream:
        check_field(kind, field, self._stream._node.output_type)
        return self._result(kind, None, ReduceFold(FieldAggregate(kind, field)), self._stream._node.output_type)

    def sum(self, position_to_sum: int | str = 0) -> DataStream:
        return self._aggregate_field("sum", position_to_sum)

    def min(self, position_to_min: int | str = 0) -> DataStream:
        return self._aggregate_field("min", position_to_min)

    def max(self, position_to_max: int | str = 0) -> DataStream:
        return self._aggregate_field("max", position_to_max)

    def min_by(self, position_to_min_by: int | str = 0) -> DataStream:
        return self._aggregate_field("min_by", position_to_min_by)

    def max_by(self, position_to_max_by: int | str = 0) -> DataStream:
        return self._aggregate_field("max_by", position_to_max_by)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


@final
class WindowedStream(_OneStream):
    """Windows of each key: ``stream.key_by(…).window(…)``."""

    _kinds = (WindowFunction, ProcessWindowFunction)

    def __init__(self, keyed_stream: KeyedStream, window_assigner: WindowAssigner) -> None:
        super().__init__(keyed_stream, window_assigner, keyed_stream._key_selector)


@final
class AllWindowedStream(_OneStream):
    """Windows of the whole stream, in one subtask: ``stream.window_all(…)``."""

    _kinds = (AllWindowFunction, ProcessAllWindowFunction)

    def __init__(self, data_stream: DataStream, window_assigner: WindowAssigner) -> None:
        super().__init__(data_stream, window_assigner, None)


# --- two streams ------------------------------------------------------------------------------------------------------


def _hashed(stream: DataStream, key_selector: Any, input_index: int) -> list[Edge]:
    partitioning = Partitioning(ShipStrategy.HASH, key_selector)
    return [Edge(m.node, partitioning, input_index, m.side_tag) for m in stream._members]


class _TwoStreams:
    """``first.join(second).where(k1).equal_to(k2).window(w).apply(f)``, step by step."""

    _windowed: type[_TwoWindows]
    _method: str

    def __init__(self, first: DataStream, second: DataStream) -> None:
        from engine.datastream.data_stream import DataStream

        if not isinstance(second, DataStream):
            raise ProgramError(f"{self._method}({second!r:.80}): expected the other DataStream.")
        self._streams = (first, second)

    def equal_to(self, key_selector: Any) -> Any:
        raise ProgramError(f"{self._method}(…).equal_to(…): give the key of the first stream before, by where(…).")

    def window(self, window_assigner: WindowAssigner) -> Any:
        raise ProgramError(f"{self._method}(…).window(…): give the keys before, by where(…).equal_to(…).")

    def where(self, key_selector: Any) -> _Where:
        """Give the key of the first stream."""
        return _Where(self, as_key_selector(key_selector))


@final
class _Where:
    def __init__(self, streams: _TwoStreams, first_key: Any) -> None:
        self._streams = streams
        self._first_key = first_key

    def equal_to(self, key_selector: Any) -> _EqualTo:
        """Give the key of the second stream."""
        return _EqualTo(self._streams, (self._first_key, as_key_selector(key_selector)))

    def window(self, window_assigner: WindowAssigner) -> Any:
        raise ProgramError("where(…).window(…): give the key of the second stream first, by equal_to(…).")


@final
class _EqualTo:
    def __init__(self, streams: _TwoStreams, key_selectors: tuple[Any, Any]) -> None:
        self._streams = streams
        self._key_selectors = key_selectors

    def window(self, window_assigner: WindowAssigner) -> Any:
        return self._streams._windowed(self._streams, self._key_selectors, window_assigner)

    def apply(self, function: Any, output_type: TypeInformation | None = None) -> Any:
        raise ProgramError("equal_to(…).apply(…): give a window before it, by window(TumblingEventTimeWindows.of(…)).")


class _TwoWindows(_Windows):
    _name: str

    def __init__(self, streams: _TwoStreams, key_selectors: tuple[Any, Any], window_assigner: WindowAssigner) -> None:
        super().__init__(window_assigner)
        self._streams = streams._streams
        self._key_selectors = key_selectors

    def _call(self, function: Any) -> WindowCall:
        raise NotImplementedError

    def apply(self, function: Any, output_type: TypeInformation | None = None) -> DataStream:
        """Call ``function`` when a window fires."""
        from engine.datastream.data_stream import DataStream

        env = self._streams[0].get_execution_environment()
        spec = self._spec(env, self._key_selectors, self._call(function), None, output_type)
        edges = [
            edge
            for index, (stream, key) in enumerate(zip(self._streams, self._key_selectors, strict=True))
            for edge in _hashed(stream, key, index)
        ]
        node = Transformation(name=self._name, spec=spec, inputs=edges, output_type=output_type)
        return DataStream(env, node).set_description(f"{self._name}({self._assigner!r}, {_name(function)})")


@final
class _WindowJoin(_TwoWindows):
    _name = "Window Join"

    def _call(self, function: Any) -> WindowCall:
        _check_callable("apply", function, JoinFunction, FlatJoinFunction)
        flat = isinstance(function, FlatJoinFunction) or inspect.isgeneratorfunction(function)
        return JoinedFunction(function, flat)


@final
class _WindowCoGroup(_TwoWindows):
    _name = "Window CoGroup"

    def _call(self, function: Any) -> WindowCall:
        _check_callable("apply", function, CoGroupFunction)
        return CoGroupedFunction(function)


@final
class JoinedStreams(_TwoStreams):
    """Each pair of elements of one key and window: ``first.join(second)``."""

    _windowed = _WindowJoin
    _method = "join"


@final
class CoGroupedStreams(_TwoStreams):
    """All elements of both streams of one key and window: ``first.co_group(second)``."""

    _windowed = _WindowCoGroup
    _method = "co_group"


@final
class IntervalJoin:
    """``first.interval_join(second).between(lower, upper).process(f)``: first + lower ≤ second ≤ first + upper."""

    def __init__(self, first: KeyedStream, second: KeyedStream) -> None:
        if getattr(second, "_key_selector", None) is None:
            raise ProgramError("interval_join: both streams must be keyed: a.key_by(…).interval_join(b.key_by(…)).")
        self._streams = (first, second)
        self._bounds: tuple[int, int] | None = None
        self._late_tags: tuple[str | None, str | None] = (None, None)

    def between(self, lower_bound: Span, upper_bound: Span) -> IntervalJoin:
        """Set the bounds, inclusive; they may be negative."""
        lower_ms, upper_ms = span_ms(lower_bound, "between"), span_ms(upper_bound, "between")
        self._bounds = self._checked(lower_ms, upper_ms)
        return self

    @staticmethod
    def _checked(lower_ms: int, upper_ms: int) -> tuple[int, int]:
        if lower_ms > upper_ms:
            raise ProgramError(
                f"interval_join: the lower bound ({lower_ms} ms) is above the upper one ({upper_ms} ms)."
            )
        return lower_ms, upper_ms

    def _known_bounds(self) -> tuple[int, int]:
        if self._bounds is None:
            raise ProgramError("interval_join: give the bounds by between(lower, upper).")
        return self._bounds

    def lower_bound_exclusive(self) -> IntervalJoin:
        lower_ms, upper_ms = self._known_bounds()
        self._bounds = self._checked(lower_ms + 1, upper_ms)
        return self

    def upper_bound_exclusive(self) -> IntervalJoin:
        lower_ms, upper_ms = self._known_bounds()
        self._bounds = self._checked(lower_ms, upper_ms - 1)
        return self

    def side_output_left_late_data(self, output_tag: Any) -> IntervalJoin:
        self._late_tags = (_tag_id("side_output_left_late_data", output_tag), self._late_tags[1])
        return self

    def side_output_right_late_data(self, output_tag: Any) -> IntervalJoin:
        self._late_tags = (self._late_tags[0], _tag_id("side_output_right_late_data", output_tag))
        return self

    def process(
        self,
        process_join_function: ProcessJoinFunction[Any, Any, Any] | Callable[[Any, Any], Any],
        output_type: TypeInformation | None = None,
    ) -> DataStream:
        """Call a ProcessJoinFunction, or a function (left, right) → result, for each pair."""
        from engine.datastream.data_stream import DataStream

        _check_callable("process", process_join_function, ProcessJoinFunction)
        lower_ms, upper_ms = self._known_bounds()
        keys = tuple(stream._key_selector for stream in self._streams)
        spec = IntervalJoinSpec(
            (keys[0], keys[1]), lower_ms, upper_ms, process_join_function, self._late_tags, output_type
        )
        edges = [edge for i, stream in enumerate(self._streams) for edge in _hashed(stream, keys[i], i)]
        node = Transformation(name="Interval Join", spec=spec, inputs=edges, output_type=output_type)
        return DataStream(self._streams[0].get_execution_environment(), node)
