"""What the windowing API makes of a program, and what it says to wrong ones. Nothing runs here."""

from __future__ import annotations

import warnings

import pytest

from engine.common import Configuration, Duration, Time, Types, WatermarkStrategy
from engine.core.errors import ProgramError
from engine.datastream import OutputTag, StreamExecutionEnvironment
from engine.datastream.aggregates import avg, count, max_
from engine.datastream.functions import AggregateFunction, AllWindowFunction, ReduceFunction, WindowFunction
from engine.datastream.window import (
    CountTrigger,
    DeltaTrigger,
    EventTimeSessionWindows,
    GlobalWindows,
    PurgingTrigger,
    Trigger,
    TriggerResult,
    TumblingEventTimeWindows,
)

TEN = TumblingEventTimeWindows.of(Time.seconds(10))


class Apply(WindowFunction):
    def apply(self, key, window, inputs):
        return inputs


class ApplyAll(AllWindowFunction):
    def apply(self, window, inputs):
        return inputs


@pytest.fixture
def stream():
    env = StreamExecutionEnvironment.get_execution_environment(Configuration())
    return env.from_collection([("a", 1)], Types.TUPLE([Types.STRING(), Types.INT()]))


def test_the_operator_is_named_after_its_assigner_and_described_in_full(stream):
    node = stream.key_by(0).window(TEN).trigger(CountTrigger.of(3)).sum(1)._node
    assert (node.name, node.description) == (
        "TumblingEventTimeWindows",
        "Window(TumblingEventTimeWindows(10000, 0), CountTrigger, sum)",
    )
    assert node.output_type == Types.TUPLE([Types.STRING(), Types.INT()])


def test_settings_reach_the_operator(stream):
    windows = stream.key_by(0).window(TEN).allowed_lateness(500).side_output_late_data(OutputTag("late"))
    spec = windows.apply(Apply())._node.spec
    assert (spec.allowed_lateness_ms, spec.late_tag, spec.fold, spec.num_inputs) == (500, "late", None, 1)


def test_windows_of_all_have_one_subtask(stream):
    node = stream.window_all(TEN).apply(ApplyAll())._node
    assert (node.parallelism, node.forced_non_parallel) == (1, True)


def test_joins_hash_each_stream_by_its_own_key(stream):
    node = stream.join(stream).where(0).equal_to(1).window(TEN).apply(lambda a, b: (a, b))._node
    assert [(e.input_index, e.partitioning.key_selector.field) for e in node.inputs] == [(0, 0), (1, 1)]


class Add(ReduceFunction):
    def reduce(self, value1, value2):
        return value1


class CannotBeTold(Trigger):
    def on_element(self, element, timestamp, window, ctx):
        return TriggerResult.FIRE

    def on_processing_time(self, time, window, ctx):
        return TriggerResult.CONTINUE

    def on_event_time(self, time, window, ctx):
        return TriggerResult.CONTINUE

    def can_merge(self):
        return True

    def clear(self, window, ctx):
        pass


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda s: s.window(TEN), "needs a key: call key_by"),
        (lambda s: s.count_window(3), "needs a key: call key_by"),
        (lambda s: s.interval_join(s), "needs keys: a.key_by"),
        (lambda s: s.key_by(0).window(5), "expected a WindowAssigner"),
        (lambda s: s.key_by(0).window(TEN).side_output_late_data("late"), "expected an OutputTag"),
        (lambda s: s.key_by(0).window(TEN).trigger(CountTrigger), "expected a Trigger object"),
        (lambda s: s.key_by(0).window(TEN).evictor(3), "expected an Evictor object"),
        (lambda s: s.key_by(0).window(TEN).allowed_lateness(-1), "0 ms or more"),
        (
            lambda s: s.key_by(0).window(EventTimeSessionWindows(5)).trigger(DeltaTrigger.of(1, max)),
            r"DeltaTrigger\): it cannot be used with EventTimeSessionWindows\(5\), whose windows merge",
        ),
        (
            lambda s: s.key_by(0).window(EventTimeSessionWindows(5)).trigger(CannotBeTold()),
            r"CannotBeTold\): windows of EventTimeSessionWindows\(5\) merge .* has no on_merge\(self, window, ctx\)",
        ),
        (
            lambda s: s.key_by(0).window(EventTimeSessionWindows(5)).trigger(PurgingTrigger.of(CannotBeTold())),
            "has no on_merge",
        ),
        (lambda s: s.key_by(0).window(TEN).reduce(Add), r"got a class; pass an object of it: Add\(\)"),
        (lambda s: s.key_by(0).window(TEN).reduce(5), "expected a ReduceFunction"),
        (lambda s: s.key_by(0).window(TEN).reduce(max, ApplyAll()), "expected a WindowFunction or a ProcessWindowF"),
        (lambda s: s.key_by(0).window(TEN).aggregate(max), "expected a AggregateFunction"),
        (lambda s: s.key_by(0).window(TEN).aggregate(AggregateFunction), "got a class"),
        (lambda s: s.key_by(0).window(TEN).apply(ApplyAll()), "expected a WindowFunction"),
        (lambda s: s.window_all(GlobalWindows.create()).process(Apply()), "expected a ProcessAllWindowFunction"),
        (lambda s: s.key_by(0).window(TEN).sum(None), "expected a field's index or name"),
        (lambda s: s.key_by(0).window(TEN).sum(0), r"sum\(0\): the field is of type String, which cannot be added up"),
        (lambda s: s.key_by(0).sum("f0"), r"sum\('f0'\): the field is of type String"),
        (lambda s: s.key_by(0).window(TEN).aggregate(avg(0)), r"avg\(0\): the field is of type String"),
        (lambda s: s.key_by(0).window(TEN).aggregate(count(), max_(2)), r"max\(2\): the stream has fields 0 to 1"),
        (lambda s: s.key_by(0).count_window(0), "at least 1"),
        (lambda s: s.join(s).where(0).window(TEN), r"by equal_to"),
        (lambda s: s.join(5), r"join\(5\): expected the other DataStream"),
        (lambda s: s.co_group(s).equal_to(0), r"by where\("),
        (lambda s: s.join(s).window(TEN), r"by where\(…\).equal_to"),
        (lambda s: s.join(s).where(0).equal_to(0).apply(max), r"by window\("),
        (lambda s: s.key_by(0).interval_join(s.key_by(0)).side_output_left_late_data(1), "expected an OutputTag"),
        (lambda s: s.key_by(0).interval_join(s), "both streams must be keyed"),
        (lambda s: s.key_by(0).interval_join(s.key_by(0)).process(max), r"by between\("),
        (
            lambda s: s.key_by(0).interval_join(s.key_by(0)).between(Time.seconds(2), Time.seconds(1)),
            "the lower bound .2000 ms. is above the upper one",
        ),
    ],
)
def test_wrong_programs_are_refused_when_they_are_written(stream, program, message):
    with pytest.raises(ProgramError, match=message):
        program(stream)


def test_alignment_that_has_no_effect_is_told(stream):
    strategy = WatermarkStrategy.for_monotonous_timestamps()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream.assign_timestamps_and_watermarks(strategy)
    aligned = strategy.with_watermark_alignment("together", Duration.of_seconds(1))
    with pytest.warns(UserWarning, match="with_watermark_alignment.* no effect here.*from_source"):
        stream.assign_timestamps_and_watermarks(aligned)


@pytest.mark.parametrize("method", ["reduce", "sum", "min", "max", "min_by", "max_by"])
def test_what_only_keyed_streams_have_is_told_so(stream, method):
    with pytest.raises(AttributeError, match=rf"{method}\(…\) needs a key: call key_by"):
        getattr(stream, method)
    assert not hasattr(stream, "nothing_of_the_sort")
