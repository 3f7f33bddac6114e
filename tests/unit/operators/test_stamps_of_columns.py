"""Event time of records that are columns: what an assigner gives is what it gives on rows, and they stay columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch, RowBatch
from engine.operators.compile.expressions import Kind
from engine.operators.compile.translate import Shape
from engine.operators.timestamps import TimestampsSpec
from engine.time.watermarks import Duration, TimestampAssigner, Watermark, WatermarkGenerator, WatermarkStrategy
from engine.time.windows import TIME_MIN_MS
from tests.testing.operator_harness import OperatorHarness

SECOND_MS = 1000


class Assigner(TimestampAssigner):
    def __init__(self, factor=1000):
        self.factor = factor

    def extract_timestamp(self, value, record_timestamp):
        return value[1] * self.factor


class Looking(TimestampAssigner):
    """Is no function of the record alone."""

    def __init__(self):
        self.seen = []

    def extract_timestamp(self, value, record_timestamp):
        self.seen.append(value)
        return len(self.seen)


def later(value, stamp):
    base = value[1] // 7
    if base > 3:
        return base * SECOND_MS
    return max(stamp, 0) - base


COMPILED = {
    "a field": lambda value, stamp: value[1],
    "seconds": lambda value, stamp: value[1] * 1000,
    "from the end": lambda value, stamp: value[-2],
    "seconds of a float": lambda value, stamp: int(value[2] * 1000),
    "a float": lambda value, stamp: value[2] * 1.5,
    "a text": lambda value, stamp: int(value[0]),
    "a global": lambda value, stamp: value[1] * SECOND_MS,
    "what it has": lambda value, stamp: stamp + 1 if stamp > 0 else value[1],
    "an object": Assigner(),
    "a function": later,
}
INTERPRETED = {
    "division": lambda value, stamp: 10 // (value[1] - 4) if value[1] != 4 else 0,
    "an object that counts": Looking(),
    "a call": lambda value, stamp: hash(value) & 0xFFFF,
    "a truth value": lambda value, stamp: value[1] > 3,
}


def columns(numbers, *, named=False, stamps=None):
    batch = pa.record_batch(
        {
            "text": [str(number) for number in numbers],
            "number": pa.array(numbers, pa.int64()),
            "amount": [number / 8 for number in numbers],
        }
    )
    return ColumnBatch(batch, None if stamps is None else np.array(stamps, np.int64), named=named)


def run(assigner, batches, strategy=None):
    base = strategy or WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(3))
    with OperatorHarness(TimestampsSpec(base.with_timestamp_assigner(assigner))) as harness:
        emitted = []
        harness.output.emit = lambda batch: emitted.append(batch) if len(batch) else None
        for batch in batches:
            harness.head.process_batch(0, batch)
        return emitted, harness.output.watermarks_ms


def told(emitted):
    return [
        (list(batch.to_rows().rows if isinstance(batch, ColumnBatch) else batch.rows), list(batch.timestamps_ms))
        for batch in emitted
    ]


@pytest.mark.parametrize("stamps", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", [*COMPILED, *INTERPRETED])
def test_times_and_watermarks_are_those_of_rows(name, named, stamps):
    assigner = (COMPILED | INTERPRETED)[name]
    batches = [
        columns(numbers, named=named, stamps=[7, 8, -1] if stamps else None) for numbers in ([1, 40, 6], [-5, 77, 8])
    ]
    if isinstance(assigner, Looking):
        assigner.seen.clear()
    of_columns, watermarks = run(assigner, batches)
    if isinstance(assigner, Looking):
        assigner.seen.clear()
    of_rows, wanted = run(assigner, [batch.to_rows() for batch in batches])
    assert told(of_columns) == told(of_rows)
    assert watermarks == wanted
    assert all(isinstance(batch, ColumnBatch) for batch in of_columns)
    assert all(isinstance(batch, RowBatch) for batch in of_rows)


@pytest.mark.parametrize("name", COMPILED)
def test_what_compiles_sees_no_record(name, monkeypatch):
    monkeypatch.setattr(ColumnBatch, "to_rows", None)
    shape = Shape((Kind.STR, Kind.INT, Kind.FLOAT))
    monkeypatch.setattr("engine.operators.compile.stamps.shape_of", lambda batch: shape)
    batch = columns([1, 2])
    emitted, _ = run(COMPILED[name], [batch])
    assert len(emitted[0]) == 2


@pytest.mark.parametrize(
    ("assigner", "number"),
    [
        (lambda value, stamp: value[1] * 10**15, 10**6),
        (lambda value, stamp: value[2] / (value[1] - 5), 5),
        (lambda value, stamp: value[1] + 0, TIME_MIN_MS),
        (lambda value, stamp: value[2] * 1e300, 10**18),
        (lambda value, stamp: None if value[1] else 5, 3),
    ],
)
def test_what_is_refused_on_rows_is_refused_with_the_same_words(assigner, number):
    batch = columns([number])
    with pytest.raises(UserCodeError) as on_rows:
        run(assigner, [batch.to_rows()])
    with pytest.raises(UserCodeError) as on_columns:
        run(assigner, [batch])
    assert str(on_columns.value) == str(on_rows.value)


def test_a_field_that_is_none_is_left_to_the_interpreter():
    table = pa.record_batch({"a": pa.array([1, None, 3]), "b": pa.array([10, 20, 30])})
    emitted, _ = run(lambda value, stamp: value[1] if value[0] is None else value[0] * 2, [ColumnBatch(table)])
    assert told(emitted) == [([(1, 10), (None, 20), (3, 30)], [2, 20, 6])]


class Renaming(TimestampAssigner):
    def extract_timestamp(self, value, record_timestamp):
        value["text"] = "seen"
        return value["number"]


def test_rows_that_the_assigner_changes_are_changed():
    batches = [columns([1, 2], named=True)]
    emitted, _ = run(Renaming(), batches)
    assert [row["text"] for row in told(emitted)[0][0]] == ["seen", "seen"]
    assert told(emitted) == told(run(Renaming(), [batch.to_rows() for batch in batches])[0])


class EachTenth(WatermarkGenerator):
    def on_event(self, event, event_timestamp, output):
        if event[1] % 10 == 0:
            output.emit_watermark(Watermark(event_timestamp))

    def on_periodic_emit(self, output):
        pass


@pytest.mark.parametrize("named", [False, True])
def test_a_generator_sees_records_that_stay_columns_where_they_cannot_be_changed(named):
    strategy = WatermarkStrategy.for_generator(EachTenth)
    batches = [columns([1, 10, 12, 20, 5], named=named)]
    of_columns, watermarks = run(lambda value, stamp: value[1] + 1, batches, strategy)
    of_rows, wanted = run(lambda value, stamp: value[1] + 1, [batch.to_rows() for batch in batches], strategy)
    assert (told(of_columns), watermarks) == (told(of_rows), wanted)
    assert [len(batch) for batch in of_columns] == [2, 2, 1]
    assert {isinstance(batch, ColumnBatch) for batch in of_columns} == {not named}


def test_lists_in_records_are_seen_as_rows_from_then_on():
    """Nobody could tell whether the assigner changed them."""
    table = pa.record_batch({"a": pa.array([[1], [2]]), "b": pa.array([10, 20])})
    emitted, _ = run(lambda value, stamp: value[0].append(7) or value[1], [ColumnBatch(table)])
    assert told(emitted) == [([([1, 7], 10), ([2, 7], 20)], [10, 20])]


def test_why_it_was_interpreted_is_told():
    strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(INTERPRETED["a call"])
    spec = TimestampsSpec(strategy)
    with OperatorHarness(spec) as harness:
        assert harness.head.tier(spec.describe()) == "by a function: compiled on columns, else interpreted"
        harness.process_batch(columns([2]))
        assert harness.head.tier(spec.describe()).endswith("; interpreted (it uses the record as a whole)")


def test_a_global_that_changes_counts_at_once(monkeypatch):
    strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(COMPILED["a global"])
    with OperatorHarness(TimestampsSpec(strategy)) as harness:
        harness.process_batch(columns([2]))
        monkeypatch.setattr(f"{__name__}.SECOND_MS", 10)
        harness.process_batch(columns([2]))
        assert harness.output.timestamps_ms == [2000, 20]
