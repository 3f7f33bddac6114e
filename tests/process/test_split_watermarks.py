"""Watermarks by split in a local cluster: partitions far apart in event time, read together, with a crash."""

from __future__ import annotations

import collections
import time
from pathlib import Path

import pytest

from engine.common import Configuration, Duration, RestartStrategies, Time, WatermarkStrategy
from engine.connectors.column_generator import ColumnGeneratorSource
from engine.connectors.simple import SequenceSource
from engine.datastream import OutputTag, RuntimeExecutionMode, StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource
from engine.datastream.functions import MapFunction, ProcessWindowFunction
from engine.datastream.window import TumblingEventTimeWindows
from tests.testing.partitioned_source import PartitionedSource, write_partitions
from tests.testing.patience import best_of

BY_TIME = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(lambda record, _: record[1])
TUMBLING = TumblingEventTimeWindows.of(Time.milliseconds(100))
LATE = OutputTag("late")


class Count(ProcessWindowFunction):
    def process(self, key, context, elements):
        yield key, context.window().start, len(list(elements))


class FailsOnce(MapFunction):
    """Raises at its 100th record, the first time."""

    def __init__(self, mark: Path):
        self.mark = mark
        self.seen = 0

    def map(self, value):
        self.seen += 1
        if self.seen == 100 and not self.mark.exists():
            self.mark.touch()
            raise RuntimeError("as planned")
        return value


@pytest.fixture
def env():
    environment = StreamExecutionEnvironment.get_execution_environment(Configuration())
    environment.set_parallelism(2)
    environment.set_runtime_mode(RuntimeExecutionMode.STREAMING)
    return environment


def collected(stream):
    with stream.execute_and_collect() as results:
        return sorted(results)


def counted(records):
    return sorted(
        (key, start, count)
        for (key, start), count in collections.Counter((name, t - t % 100) for name, t in records).items()
    )


def test_partitions_far_apart_lose_no_record_across_a_crash(env, tmp_path):
    (tmp_path / "in").mkdir()
    times_of = {f"p{number}": [number * 5000 + 7 * i for i in range(200)] for number in range(5)}
    records = write_partitions(tmp_path / "in", times_of)
    env.enable_checkpointing(20)
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(3, 10))
    stream = env.from_source(PartitionedSource(str(tmp_path / "in")), BY_TIME, "Partitions").uid("partitions")
    counts = stream.map(FailsOnce(tmp_path / "failed")).key_by(lambda record: record[0]).window(TUMBLING)
    counts = counts.side_output_late_data(LATE).process(Count())
    assert collected(counts.union(counts.get_side_output(LATE))) == counted(records)
    assert (tmp_path / "failed").exists()


def test_settings_of_the_stream_are_those_of_the_source(env):
    stream = env.from_source(SequenceSource(0, 9), BY_TIME.with_timestamp_assigner(lambda n, _: n), "Numbers")
    stream.set_parallelism(1).uid("numbers").name("Renamed")
    stream.print()
    plan = env.get_execution_plan()
    assert "Renamed" in plan
    assert "Timestamps/Watermarks" not in plan


def test_columns_stay_columns_behind_a_source_that_stamps_them(env):
    source = ColumnGeneratorSource(lambda indexes: {"key": indexes % 3, "time": indexes, "n": indexes}, 30_000)
    strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field("time")
    sums = (
        env.from_source(source, strategy, "Columns")
        .key_by("key")
        .window(TumblingEventTimeWindows.of(Time.milliseconds(10_000)))
    )
    totals = collections.Counter()
    for index in range(30_000):
        totals[index % 3, index // 10_000] += index
    stream = sums.sum("n")
    stream.print()
    assert "vectorised" in env.get_execution_plan()
    assert sorted(row[2] for row in collected(stream)) == sorted(totals.values())


class Arrived(MapFunction):
    def __init__(self, name):
        self.name = name

    def map(self, value):
        return self.name, value, time.time()


def test_a_fast_source_waits_for_a_slow_one_of_its_group(env):
    env.set_parallelism(1)
    by_value = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(lambda value, _: value)
    step, count, drift = 10_000, 300, 100_000
    aligned = by_value.with_watermark_alignment("together", Duration.of_millis(drift), Duration.of_millis(10))

    def too_early() -> float:
        """Return how many records of the fast one came before those of the slow one that hold them up."""
        slow = env.from_source(DataGeneratorSource(lambda index: index * step, count, 100), aligned, "Slow")
        fast = env.from_source(SequenceSource(0, step * (count - 1)), aligned, "Fast").disable_chaining()
        few = fast.filter(lambda value: value % step == 0)
        both = few.map(Arrived("fast")).union(slow.map(Arrived("slow")))
        at = {(name, value): when for name, value, when in collected(both)}
        assert len(at) == 2 * count
        # The slow one needs three seconds. Alone, the fast one would be through in much less, and does as it likes
        # until the slow one has begun: who has said nothing yet holds up nobody, as in Flink.
        followed = [(at["fast", passed + 3 * drift], passed) for passed in range(0, step * count - 3 * drift, step)]
        held_up = [(when, passed) for when, passed in followed if when > at["slow", 0]]
        if len(held_up) <= count / 3:
            return float("inf")
        return sum(when < at["slow", passed] for when, passed in held_up)

    # Whoever is to tell the fast one of the slow one's beginning may be late once.
    best_of(too_early, 1, "records that did not wait")
