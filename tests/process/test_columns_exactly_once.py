"""Plain lambdas that run on columns, in slot processes: one of them is killed, and every result comes once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from engine.common import RestartStrategies, Time, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment, vectorise
from engine.datastream.aggregates import count_distinct
from engine.datastream.functions import MapFunction
from engine.datastream.lowering import lower, reachable
from engine.datastream.window import TumblingEventTimeWindows
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_interval_join import ColumnIntervalJoinSpec
from engine.operators.column_window import ColumnWindowSpec
from engine.operators.column_window_join import ColumnWindowJoinSpec

NUM_EVENTS = vectorise.SEQUENCE_MIN
NUM_KEYS = 53
EVERY = 50
#: Milliseconds of a window, and keys: each comes once in it.
SPAN = 5003


class KillsItsSlotOnce(MapFunction):
    """Slow, so that there are checkpoints before."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)
        self.seen = 0

    def map(self, value):
        self.seen += 1
        time.sleep(0.001)
        if self.seen == 3500:
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return value
            os.kill(os.getpid(), signal.SIGKILL)
        return value


def test_counts_of_compiled_lambdas_come_once_each_though_a_slot_dies(tmp_path):
    env = StreamExecutionEnvironment.create_local_environment(2)
    env.enable_checkpointing(200)
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(3, 100))
    pairs = env.from_sequence(0, NUM_EVENTS - 1).map(lambda i: (i * 7919 % NUM_KEYS, 1))
    counts = pairs.key_by(lambda pair: pair[0]).reduce(lambda a, b: (a[0], a[1] + b[1]))
    some = counts.filter(lambda pair: pair[1] % EVERY == 0)
    planned = [node.spec for node in reachable(lower([some._members[0].node], batch=False))]
    assert any(isinstance(spec, ColumnReduceSpec) for spec in planned)
    results = Counter(some.map(KillsItsSlotOnce(tmp_path / "killed")).execute_and_collect())
    by_key = Counter(i * 7919 % NUM_KEYS for i in range(NUM_EVENTS))
    assert results == Counter((key, n) for key, total in by_key.items() for n in range(EVERY, total + 1, EVERY))
    assert (tmp_path / "killed").exists()


@pytest.mark.parametrize("kind", [ColumnIntervalJoinSpec, ColumnWindowJoinSpec])
def test_pairs_of_joins_on_columns_come_once_each_though_a_slot_dies(kind, tmp_path):
    env = StreamExecutionEnvironment.create_local_environment(2)
    env.enable_checkpointing(200)
    env.get_checkpoint_config().set_checkpoint_storage_dir(f"file://{tmp_path}/checkpoints")
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(3, 100))
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field(1)

    def stream():
        numbers = env.from_sequence(0, NUM_EVENTS - 1)
        return numbers.map(lambda i: (i % SPAN, i)).assign_timestamps_and_watermarks(times)

    left, right = stream(), stream()
    if kind is ColumnIntervalJoinSpec:
        near = left.key_by(0).interval_join(right.key_by(0))
        pairs = near.between(Time.milliseconds(0), Time.milliseconds(SPAN - 1)).process(lambda a, b: (a[0], a[1], b[1]))
    else:
        windows = left.join(right).where(0).equal_to(0).window(TumblingEventTimeWindows.of(Time.milliseconds(SPAN)))
        pairs = windows.apply(lambda a, b: (a[0], a[1], b[1]))
    some = pairs.filter(lambda pair: pair[1] % EVERY == 0)
    planned = [node.spec for node in reachable(lower([some._members[0].node], batch=False))]
    assert any(isinstance(spec, kind) and spec.shape is not None for spec in planned)
    results = Counter(some.map(KillsItsSlotOnce(tmp_path / "killed")).execute_and_collect())
    wanted = {(i % SPAN, i, i) for i in range(0, NUM_EVENTS, EVERY)}
    assert set(results) == wanted
    assert results.total() == len(wanted)
    assert (tmp_path / "killed").exists()


def test_chosen_records_and_distinct_counts_come_once_each_though_a_slot_dies(tmp_path):
    """The source has one subtask: which record is chosen so far depends on their order."""
    env = StreamExecutionEnvironment.create_local_environment(2)
    env.enable_checkpointing(200)
    env.get_checkpoint_config().set_checkpoint_storage_dir(f"file://{tmp_path}/checkpoints")
    env.set_restart_strategy(RestartStrategies.fixed_delay_restart(3, 100))
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_field(2)
    numbers = env.from_sequence(0, NUM_EVENTS - 1).set_parallelism(1)
    records = numbers.map(lambda i: (i * 7919 % NUM_KEYS, i * 31 % 1009 + i // 100, i)).set_parallelism(1)
    best = records.key_by(0).max_by(1).filter(lambda record: record[2] % 199 == 0)
    stamped = records.assign_timestamps_and_watermarks(times).set_parallelism(1)
    windows = stamped.key_by(0).window(TumblingEventTimeWindows.of(Time.milliseconds(SPAN)))
    results = best.union(windows.aggregate(count_distinct(1)))
    planned = [node.spec for node in reachable(lower([member.node for member in results._members], batch=False))]
    kinds = {type(spec) for spec in planned}
    assert {ColumnAggregateSpec, ColumnWindowSpec} <= kinds
    found = Counter(results.map(KillsItsSlotOnce(tmp_path / "killed")).execute_and_collect())
    assert found == Counter(chosen_and_counted())
    assert (tmp_path / "killed").exists()


def chosen_and_counted():
    """Yield what a plain loop gives."""
    best = {}
    values = defaultdict(set)
    for i in range(NUM_EVENTS):
        key, value = i * 7919 % NUM_KEYS, i * 31 % 1009 + i // 100
        values[key, i // SPAN].add(value)
        if key not in best or value > best[key][1]:
            best[key] = (key, value, i)
        if best[key][2] % 199 == 0:
            yield best[key]
    for (key, number), own in values.items():
        yield key, number * SPAN, (number + 1) * SPAN, len(own)
