"""What operators on columns keep is read out of a savepoint without them, as their own snapshots have it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from engine.checkpoint.reader import SavepointReader
from engine.core.clock import ManualClock
from engine.core.records import ColumnBatch
from engine.operators import memory_watch
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_interval_join import ColumnIntervalJoinSpec
from engine.operators.column_session import column_session
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import avg, count, count_distinct, max_, sum_
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import FieldKey
from engine.state import spilling_slots
from engine.time.assigners import EventTimeSessionWindows, TumblingEventTimeWindows
from engine.time.windows import TimeWindow
from flink_yarn.cli import main
from tests.testing.operator_harness import OperatorHarness
from tests.unit.checkpoint.test_reader import handles_of, savepoint_of
from tests.unit.operators.test_column_window import built_in

KEY = FieldKey(0)
SCHEMA = pa.schema([("user", pa.int64()), ("amount", pa.int64()), ("price", pa.float64()), ("text", pa.string())])


def batch(*rows, stamps=None) -> ColumnBatch:
    arrays = [pa.array([row[at] for row in rows], kind) for at, kind in enumerate(SCHEMA.types)]
    columns = pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
    return ColumnBatch(columns, None if stamps is None else np.array(stamps, np.int64))


def table_of(folder, spec, batches, part):
    """Return the path of a savepoint of an operator that has taken up batches, and its only table."""
    folder.mkdir()
    with OperatorHarness(spec) as harness:
        for taken in batches:
            harness.process_batch(taken)
        savepoint_of(folder, [("op", "Operator", handles_of(harness.snapshot(1), folder))])
    reader = SavepointReader.read(str(folder))
    (state,) = [state for state in reader.operators()[0].states if state.kind == "table"]
    table = reader.keyed_state("op", part)
    assert (state.name, state.num_entries) == (part, len(list(table.entries())))
    return table


def entries(table):
    return sorted(table.entries(), key=repr)


def test_aggregates_by_key_of_increments_too(tmp_path):
    config = {"execution.checkpointing.incremental": "true"}
    with OperatorHarness(ColumnAggregateSpec(KEY, "max", 2), config=config) as harness:
        harness.process_batch(batch(*((number, 0, 1.5, "x") for number in range(400))))
        first = harness.snapshot(1)
        harness.process_batch(batch((7, 3, 2.5, "y"), (7, 4, 0.5, "z"), (1000, 1, 0.25, "new")))
        taken = harness.snapshot(2, since=first)
        assert taken.num_deltas > 0
        savepoint_of(tmp_path, [("op", "Operator", handles_of(taken, tmp_path))])
    table = SavepointReader.read(str(tmp_path)).keyed_state("op", "slots")
    found = {key: value for key, _, value in table.entries()}
    assert len(found) == 401
    assert sorted(map(str, found[7].values())) == ["0", "2.5", "x"]
    assert sorted(map(str, found[1000].values())) == ["0.25", "1", "new"]
    assert table.to_arrow().num_rows == 401


def test_windows_have_their_slice_of_time_and_floats_as_floats(tmp_path):
    aggregates = [count(), sum_("amount"), avg("price"), count_distinct("text")]
    spec = column_window(built_in(TumblingEventTimeWindows(10, 0), aggregates))
    rows = [(1, 2, 0.5, "a"), (1, 3, 1.0, "b"), (2, -4, -2.0, None), (1, 9, 0.25, "b")]
    table = table_of(tmp_path / "sp", spec, [batch(*rows, stamps=[1, 9, 5, 12])], "window-slots")
    found = {(key, start): value for key, start, value in entries(table)}
    assert set(found) == {(1, 0), (2, 0), (1, 10)}
    assert found[1, 0]["records"] == 2
    assert found[1, 0]["sum(amount)"] == 5
    assert found[1, 0]["sum(price)"] == 1.5
    assert sorted(found[1, 0]["distinct(text)"]) == ["a", "b"]
    assert found[2, 0]["sum(price)"] == -2.0


def test_windows_of_increments_are_without_those_that_have_fired(tmp_path):
    spec = column_window(built_in(TumblingEventTimeWindows(10, 0), [sum_("amount")]))
    with OperatorHarness(spec) as harness:
        harness.process_batch(batch(*((key, 1, 0.5, "a") for key in range(100)), stamps=[1] * 50 + [12] * 50))
        first = harness.snapshot(1)
        harness.watermark(9)
        harness.process_batch(batch((60, 5, 0.5, "a"), (7, 5, 0.5, "a"), stamps=[15, 25]))
        taken = harness.snapshot(2, since=first)
        assert taken.num_deltas > 0
        savepoint_of(tmp_path, [("op", "Operator", handles_of(taken, tmp_path))])
    table = SavepointReader.read(str(tmp_path)).keyed_state("op", "window-slots")
    found = {(key, start): value["sum(amount)"] for key, start, value in table.entries()}
    assert found == {**{(key, 10): 1 for key in range(50, 100)}, (60, 10): 6, (7, 20): 5}


def test_sessions_have_their_windows(tmp_path):
    spec = column_session(built_in(EventTimeSessionWindows(5), [count(), max_("price")]))
    rows = [(1, 2, 0.5, "a"), (1, 3, 1.5, "b"), (1, 9, 0.25, "b")]
    table = table_of(tmp_path / "sp", spec, [batch(*rows, stamps=[1, 4, 20])], "session-slots")
    found = {(key, window): value for key, window, value in entries(table)}
    assert set(found) == {(1, TimeWindow(1, 9)), (1, TimeWindow(20, 25))}
    assert found[1, TimeWindow(1, 9)] | {"records": 2, "max(price)": 1.5} == found[1, TimeWindow(1, 9)]
    assert table.to_arrow().column_names == ["key", "window_start", "window_end", "value"]


def test_sessions_of_increments_are_those_of_their_keys_now(tmp_path):
    """One is longer, one is new, one has become part of another, and one is over."""
    spec = column_session(built_in(EventTimeSessionWindows(5), [sum_("amount")]))
    with OperatorHarness(spec) as harness:
        rows = [(key, 1, 0.5, "a") for key in range(100)] + [(4, 1, 0.5, "a"), (4, 1, 0.5, "a")]
        harness.process_batch(batch(*rows, stamps=[10] * 99 + [1] + [16, 30]))
        first = harness.snapshot(1)
        rows = [(1, 5, 0.5, "a"), (2, 5, 0.5, "a"), (4, 5, 0.5, "a")]
        harness.process_batch(batch(*rows, stamps=[12, 40, 13]))
        harness.watermark(7)
        taken = harness.snapshot(2, since=first)
        assert taken.num_deltas > 0
        savepoint_of(tmp_path, [("op", "Operator", handles_of(taken, tmp_path))])
    table = SavepointReader.read(str(tmp_path)).keyed_state("op", "session-slots")
    found = {(key, window.start, window.end): value["sum(amount)"] for key, window, value in table.entries()}
    changed = {(1, 10, 17): 6, (2, 10, 15): 1, (2, 40, 45): 5, (4, 10, 21): 7, (4, 30, 35): 1}
    assert found == {**{(key, 10, 15): 1 for key in range(99) if key not in (1, 4)}, **changed}


def test_joins_have_the_records_of_both_sides(tmp_path):
    spec = ColumnIntervalJoinSpec(IntervalJoinSpec((KEY, KEY), -5, 5, lambda a, b: (a, b)))
    left, right = batch((1, 2, 0.5, "a"), (2, 3, 1.0, "b"), stamps=[1, 2]), batch((3, 4, 2.0, "c"), stamps=[3])
    with OperatorHarness(spec) as harness:
        harness.process_batch(left, input_index=0)
        harness.process_batch(right, input_index=1)
        savepoint_of(tmp_path, [("op", "Operator", handles_of(harness.snapshot(1), tmp_path))])
    table = SavepointReader.read(str(tmp_path)).keyed_state("op", "join-records")
    assert sorted((side, *value.values()) for _, side, value in table.entries()) == [
        ("left", 1, 1, 2, 0.5, "a"),
        ("left", 2, 2, 3, 1.0, "b"),
        ("right", 3, 3, 4, 2.0, "c"),
    ]


def test_the_command_shows_and_exports_them(tmp_path, capsys):
    spec = column_window(built_in(TumblingEventTimeWindows(10, 0), [count(), sum_("price")]))
    table_of(tmp_path / "sp", spec, [batch((1, 2, 0.5, "a"), stamps=[1])], "window-slots")
    assert main(["state", str(tmp_path / "sp")]) == 0
    assert "window-slots  table  1" in capsys.readouterr().out
    target = str(tmp_path / "out.parquet")
    assert main(["state", str(tmp_path / "sp"), "-u", "op", "-s", "window-slots", "-o", target]) == 0
    (row,) = pyarrow.parquet.read_table(target).to_pylist()
    assert row["value"] | {"records": 1, "sum(price)": 0.5} == row["value"], json.dumps(row)


@pytest.mark.parametrize("part", ["slots", "other"])
def test_a_table_that_is_not_there_is_answered_with_what_is(tmp_path, part):
    spec = column_window(built_in(TumblingEventTimeWindows(10, 0), [count()]))
    table_of(tmp_path / "sp", spec, [batch((1, 2, 0.5, "a"), stamps=[1])], "window-slots")
    assert main(["state", str(tmp_path / "sp"), "-u", "op", "-s", part]) == 1


AGGREGATES = [ColumnAggregateSpec(KEY, kind, 1) for kind in ("sum", "min", "max", "min_by", "max_by")]
REDUCE = ColumnReduceSpec(KEY, lambda a, b: (a[0], a[1] + b[1] * 2, min(a[2], b[2]), b[3]))


@pytest.mark.parametrize("steps", [0, 2, 99])
@pytest.mark.parametrize("spec", [*AGGREGATES, REDUCE], ids=[*(spec.kind for spec in AGGREGATES), "reduce"])
def test_records_that_waited_at_the_barrier_count(spec, steps, tmp_path, monkeypatch):
    """Whether the operator has taken up some of them or all; compared with one that keeps its state in memory."""
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    monkeypatch.setattr(spilling_slots, "NUM_PARTITIONS", 4)
    tables = []
    for memory_bytes in (2000, 1 << 30):
        folder = tmp_path / str(memory_bytes)
        folder.mkdir()
        with OperatorHarness(spec, memory_bytes=memory_bytes, clock=ManualClock()) as harness:
            harness.process_batch(batch(*((key % 29, key % 7, key / 8, f"a{key}") for key in range(90))))
            operator = harness.head
            assert operator._slots.is_spilled == (memory_bytes == 2000)
            operator._held_rows._bytes_max = 1 << 20
            harness.process_batch(batch(*((key % 31, 6 - key % 8, -key / 4, f"b{key}") for key in range(70))))
            if operator._slots.is_spilled and steps:
                operator._begin_run()
                while steps and operator._run is not None:
                    operator._step()
                    steps -= 1
            harness.process_batch(batch(*((key % 5, key % 3, 0.5, "c") for key in range(9))))
            savepoint_of(folder, [("op", "Operator", handles_of(harness.snapshot(1), folder))])
        tables.append(entries(SavepointReader.read(str(folder)).keyed_state("op", "slots")))
    assert len(tables[0]) == 31
    assert tables[0] == tables[1]


def test_records_that_waited_are_shown_by_themselves_too(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    with OperatorHarness(AGGREGATES[0], memory_bytes=2000, clock=ManualClock()) as harness:
        harness.process_batch(batch(*((key, 1, 0.5, "a") for key in range(90))))
        harness.process_batch(batch((3, 4, 1.5, "late")))
        savepoint_of(tmp_path, [("op", "Operator", handles_of(harness.snapshot(1), tmp_path))])
    reader = SavepointReader.read(str(tmp_path))
    fields = {"user": 3, "amount": 4, "price": 1.5, "text": "late"}
    assert entries(reader.keyed_state("op", "slots-held")) == [(0, "record", fields)]
