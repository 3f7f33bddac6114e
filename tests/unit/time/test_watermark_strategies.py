"""What a WatermarkStrategy says to wrong settings, and spans of time that are no whole milliseconds."""

from __future__ import annotations

import datetime as dt
import operator

import pytest

from engine.core.errors import ProgramError
from engine.time.watermarks import Duration, Time, TimestampAssigner, WatermarkStrategy


class ByField(TimestampAssigner):
    def extract_timestamp(self, value, record_timestamp):
        return value[1]


MONOTONOUS = WatermarkStrategy.for_monotonous_timestamps()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WatermarkStrategy.for_bounded_out_of_orderness(5000), "expected a Time.* got 5000"),
        (lambda: WatermarkStrategy.for_bounded_out_of_orderness(Duration(-1)), "at least 0 ms, got -1 ms"),
        (lambda: MONOTONOUS.with_idleness(5), "with_idleness: expected a Time.* got 5"),
        (lambda: MONOTONOUS.with_idleness(Duration(0)), "at least 1 ms, got 0 ms"),
        (lambda: MONOTONOUS.with_watermark_alignment("", Duration(1)), "the name of a group"),
        (lambda: MONOTONOUS.with_watermark_alignment("g", 1), "the drift: expected a Time"),
        (lambda: MONOTONOUS.with_watermark_alignment("g", Duration(1), Duration(0)), "the interval: expected at least"),
        (lambda: MONOTONOUS.with_timestamp_assigner(ByField), r"got a class; pass an object of it: ByField\(\)"),
        (lambda: MONOTONOUS.with_timestamp_assigner(None), "expected a TimestampAssigner object or a function"),
        (lambda: MONOTONOUS.with_timestamp_assigner(lambda record: 1), "it has to take two arguments"),
        (lambda: WatermarkStrategy.for_generator(ByField()), "expected the class of a WatermarkGenerator"),
    ],
)
def test_wrong_settings_are_refused_when_they_are_written(make, message):
    with pytest.raises(ProgramError, match=message):
        make()


@pytest.mark.parametrize("span", [Time.seconds(5), Duration.of_seconds(5), dt.timedelta(seconds=5)])
def test_spans_may_be_said_in_three_ways(span):
    strategy = WatermarkStrategy.for_bounded_out_of_orderness(span).with_idleness(span)
    strategy = strategy.with_watermark_alignment("g", span, span)
    assert (strategy.out_of_orderness_ms, strategy.idle_timeout_ms, strategy.alignment) == (
        5000,
        5000,
        ("g", 5000, 5000),
    )


@pytest.mark.parametrize("assigner", [ByField(), lambda record, stamp: 1, lambda *both: 1, operator.itemgetter(1)])
def test_whatever_takes_a_record_and_its_time_assigns_timestamps(assigner):
    assert MONOTONOUS.with_timestamp_assigner(assigner).timestamp_assigner is assigner


def test_half_a_second_is_whole_milliseconds_and_half_a_millisecond_is_not():
    assert (Time.seconds(0.5), Duration.of_minutes(0.5)) == (Time(milliseconds=500), Duration(30_000))
    assert type(Time.seconds(0.5).to_milliseconds()) is int
    for make in (lambda: Time.milliseconds(0.5), lambda: Duration.of_seconds(1e-9), lambda: Time.seconds("5")):
        with pytest.raises(ProgramError, match="expected whole milliseconds, got"):
            make()
