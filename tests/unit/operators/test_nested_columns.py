"""Rows, lists and maps within records on columns: as what is kept, and Rows as keys, they give what rows give, and stay
on columns."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch, Row, arrow_values
from engine.operators import memory_watch, window_fields
from engine.operators.aggregate import FieldAggregate, KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_deduplicate import column_deduplicate
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_last_row import ColumnLastRowSpec
from engine.operators.column_regular_join import column_regular_join
from engine.operators.column_session import column_session
from engine.operators.column_top_n import column_top_n
from engine.operators.column_window import column_window
from engine.operators.column_window_join import column_window_join
from engine.operators.deduplicate import FIRST, LAST, DeduplicateSpec
from engine.operators.field_aggregates import count, count_distinct, first, last, sum_
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.regular_join import RegularJoinSpec
from engine.operators.stateless import MapSpec
from engine.operators.top_n import TopNSpec
from engine.operators.window import WindowSpec
from engine.operators.window_contents import ReduceFold
from engine.operators.window_functions import JoinedFunction
from engine.state import slot_columns
from engine.state.slot_columns import NestedColumn
from engine.state.value_arena import ValueArena
from engine.time.assigners import EventTimeSessionWindows, SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import Case, Rows, Watermark
from tests.unit.operators.test_column_window import built_in, windows
from tests.unit.operators.test_regular_join import shown
from tests.unit.operators.test_restore import INCREMENTAL
from tests.unit.operators.test_restore_columns import BARRIER, PHASES, disturbed, undisturbed

INNER = pa.struct([("t", pa.string()), ("f", pa.float64())])
SCHEMA = pa.schema(
    [
        ("k", pa.struct([("a", pa.int64()), ("b", pa.string()), ("c", pa.struct([("d", pa.bool_())]))])),
        ("v", pa.int64()),
        ("s", pa.struct([("n", INNER), ("i", pa.int32())])),
        ("w", pa.int64()),
        ("l", pa.list_(INNER)),
        ("m", pa.map_(pa.string(), pa.list_(pa.int64()))),
    ]
)
#: Keys of another type: columns of both may come together in a restore.
OTHER_SCHEMA = SCHEMA.set(0, pa.field("k", pa.struct([("a", pa.int32()), *list(SCHEMA.types[0])[1:]])))


def optional(values):
    return st.one_of(st.none(), values)


def rows_of(**fields):
    """With the fields in that order: Rows that have them in another one are other keys."""
    return optional(st.tuples(*fields.values()).map(lambda values: Row(**dict(zip(fields, values, strict=True)))))


KEYS = rows_of(a=optional(st.integers(0, 1)), b=optional(st.just("x")), c=rows_of(d=optional(st.booleans())))
KEPT = rows_of(n=rows_of(t=optional(st.sampled_from(["", "ä"])), f=st.sampled_from([0.0, -0.0, 1.5])), i=st.just(3))
LISTS = optional(st.lists(rows_of(t=st.just("l"), f=st.sampled_from([0.0, -0.0])), max_size=2))
MAPS = optional(st.dictionaries(st.sampled_from("ab"), optional(st.lists(st.integers(0, 3), max_size=2)), max_size=2))
ROW = st.tuples(KEYS, st.integers(-3, 3), KEPT, st.integers(0, 1), LISTS, MAPS)


@st.composite
def batches(draw, sides=1):
    rows = draw(st.lists(ROW, min_size=1, max_size=6))
    stamps = draw(st.lists(st.integers(0, 20), min_size=len(rows), max_size=len(rows)))
    schema = draw(st.sampled_from([SCHEMA, SCHEMA, SCHEMA, OTHER_SCHEMA, None]))
    return Rows(rows, stamps, draw(st.integers(0, sides - 1)), schema)


def paired(left, right):
    return [left, right]


KEY, PAIR = FieldKey(0), (FieldKey(0), FieldKey(0))
JOINS = {
    "interval": IntervalJoinSpec(PAIR, -5, 5, paired, (None, None)),
    "regular": RegularJoinSpec(PAIR, "inner", paired),
    "window": WindowSpec(PAIR, TumblingEventTimeWindows(10, 0), EventTimeTrigger(), JoinedFunction(paired, False)),
}
TUMBLING, SLIDING = TumblingEventTimeWindows(10, 0), SlidingEventTimeWindows(10, 5, 0)
SESSIONS = EventTimeSessionWindows(4)
EDGES = [count(4), first(4), last(4), last(5), first(2), count_distinct(1), sum_(1)]
WINDOWS = {
    "windows": built_in(TUMBLING, EDGES, lateness_ms=3),
    "windows that overlap": built_in(SLIDING, EDGES[:-2]),
    "windows, max_by": windows(TUMBLING, ReduceFold(FieldAggregate("max_by", 1)), lateness_ms=3),
    "windows, tuple": windows(SLIDING, ReduceFold(FieldAggregate("sum", 1)), ComposedKey((0, 3))),
    "sessions": built_in(SESSIONS, EDGES),
    "sessions, min_by": windows(SESSIONS, ReduceFold(FieldAggregate("min_by", 1)), lateness_ms=3),
}
ON_ROWS = {
    "sum": KeyedAggregateSpec(KEY, "sum", 1),
    "max_by": KeyedAggregateSpec(KEY, "max_by", 1),
    "sum, tuple": KeyedAggregateSpec(ComposedKey((0, 3)), "sum", 1),
    "top": TopNSpec(KEY, 2, ((1, False),)),
    "first": DeduplicateSpec(KEY, FIRST),
    "last": DeduplicateSpec(KEY, LAST),
    "reduce": KeyedReduceSpec(KEY, lambda a, b: b if b[1] > a[1] else a),
    "reduce, last": KeyedReduceSpec(KEY, lambda a, b: b),
    **WINDOWS,
    **JOINS,
}


def on_columns(name):
    rows = ON_ROWS[name]
    if name in WINDOWS:
        return column_session(rows) if name.startswith("sessions") else column_window(rows)
    match name:
        case "last":
            return ColumnLastRowSpec(rows)
        case "reduce" | "reduce, last":
            return ColumnReduceSpec(KEY, rows.function)
        case "top":
            return column_top_n(rows)
        case "first":
            return column_deduplicate(rows)
        case "interval":
            return column_interval_join(rows, (None, None))
        case "regular":
            return column_regular_join(rows, (None, None))
        case "window":
            return column_window_join(rows, (None, None))
    return ColumnAggregateSpec(rows.key_selector, rows.kind, rows.field)


def _keys_of(spec):
    return spec.key_selectors if hasattr(spec, "key_selectors") else (spec.key_selector,)


@pytest.mark.parametrize("name", ON_ROWS)
def test_results_after_any_script_are_those_of_rows(name):
    sides = 2 if name in JOINS else 1
    keys = _keys_of(ON_ROWS[name])
    end = [Watermark(TIME_MAX_MS)]

    @settings(max_examples=10, deadline=None, phases=PHASES)
    @given(st.lists(st.one_of(batches(sides), batches(sides), BARRIER), max_size=10))
    def check(script):
        golden = undisturbed(Case((ON_ROWS[name], MapSpec(shown)), [*script, *end], keys))
        assert disturbed(Case((on_columns(name), MapSpec(shown)), [*script, *end], keys), INCREMENTAL) == golden

    check()


@pytest.mark.parametrize("name", ON_ROWS)
def test_they_stay_on_columns(name):
    key, lists = Row(a=1, b=None, c=Row(d=True)), [[None], None, [Row(t="t", f=1.5)]]
    rows = [
        (key if at % 3 else None, at, Row(n=None, i=at), 0, lists[at % 3], {"m": [at]} if at % 2 else None)
        for at in range(12)
    ]
    arrays = [pa.array(arrow_values([row[i] for row in rows], kind), kind) for i, kind in enumerate(SCHEMA.types)]
    batch = ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA), pa.array(range(12), pa.int64()).to_numpy())
    with OperatorHarness(on_columns(name)) as harness:
        for side in range(2 if name in JOINS else 1):
            for _ in range(2):
                harness.process_batch(batch, input_index=side)
        assert not harness.head._is_on_rows
        harness.watermark(TIME_MAX_MS)
        assert len(harness.output.rows) > 0


@pytest.mark.parametrize("kind", ["sessions, min_by", "windows, max_by"])
def test_undeclared_lists_are_refused_as_keys_as_on_rows(kind):
    batch = ColumnBatch(pa.record_batch([[[1], [2]], [1, 2]], names=["k", "v"]), np.array([1, 2]))
    for spec in (on_columns(kind), ON_ROWS[kind]):
        with OperatorHarness(spec) as harness, pytest.raises(UserCodeError, match="list cannot be a key"):
            harness.process_batch(batch)


def nested_batch(begin, size=12):
    """Of few keys; what is kept is of its own in each record."""
    key = Row(a=1, b=None, c=Row(d=True))
    rows = [
        (key if at % 3 else None, at, Row(n=None, i=at), 0, [Row(t=f"{at}", f=1.5)], {"m": [at]})
        for at in range(begin, begin + size)
    ]
    arrays = [pa.array(arrow_values([row[i] for row in rows], kind), kind) for i, kind in enumerate(SCHEMA.types)]
    return ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA), np.arange(size) % 7)


@pytest.mark.parametrize("name", ["windows", "windows, max_by", "sessions", "sessions, min_by"])
def test_what_lies_in_files_comes_back(name, monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 400)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    seen = []
    for spec in (on_columns(name), ON_ROWS[name]):
        with OperatorHarness(spec) as harness:
            for begin in range(0, 48, 12):
                harness.process_batch(nested_batch(begin))
            harness.watermark(TIME_MAX_MS)
            seen.append(sorted(map(repr, harness.output.rows)))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", ["windows", "windows, max_by", "sessions", "max_by", "last"])
def test_what_nothing_holds_any_more_is_forgotten(name, monkeypatch):
    monkeypatch.setattr(slot_columns, "_RENEW_MIN", 50)
    monkeypatch.setattr(window_fields, "_RENEW_MIN", 50)
    monkeypatch.setattr(window_fields, "_RENEW_NUMBERS_MIN", 50)
    most = 0
    adds = ValueArena.add

    def counted(self, column):
        nonlocal most
        first = adds(self, column)
        most = max(most, self.num_slots)
        return first

    monkeypatch.setattr(ValueArena, "add", counted)
    seen = []
    for spec in (on_columns(name), ON_ROWS[name]):
        with OperatorHarness(spec) as harness:
            for begin in range(0, 600, 12):
                harness.process_batch(nested_batch(begin))
            harness.watermark(TIME_MAX_MS)
            seen.append(sorted(map(repr, harness.output.rows)))
    assert seen[0] == seen[1]
    assert 12 <= most < 120


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_column_of_lists_is_a_list_of_lists(data):
    """Against a dict, with slots that come again in one batch, ones that go, and pieces of many sizes."""
    column, model = NestedColumn(pa.list_(pa.int64())), {}
    column.reserve(40)
    values = optional(st.lists(st.integers(0, 5), max_size=3))
    with mock.patch.object(slot_columns, "_RENEW_MIN", 8):
        for put in data.draw(st.lists(st.lists(st.tuples(st.integers(0, 39), values), max_size=30), max_size=8)):
            slots = np.array([slot for slot, _ in put], np.int32)
            column.put(slots, pa.array([value for _, value in put], column.kind))
            model.update(put)
            if model and data.draw(st.integers(0, 4)) == 0:
                kept = sorted(data.draw(st.sets(st.sampled_from(sorted(model)), min_size=1)))
                column.compact(np.array(kept))
                model = {at: model[slot] for at, slot in enumerate(kept)}
            held = sorted(model, key=lambda slot: slot % 7)
            assert column.get(np.array(held, np.int64)).to_pylist() == [model[slot] for slot in held]
    column.put(slice(0, 3), pa.array([[7], None, [8]], column.kind))
    assert column.get(slice(0, 3)).to_pylist() == [[7], None, [8]]


def test_lists_that_no_slot_holds_any_more_are_forgotten(monkeypatch):
    monkeypatch.setattr(slot_columns, "_RENEW_MIN", 8)
    column = NestedColumn(pa.list_(pa.int64()))
    column.reserve(3)
    for number in range(100):
        column.put(np.array([number % 3, 2, 2]), pa.array([[number], [-1], [number]], column.kind))
        assert column._arena.num_slots <= 8 + 3 + 2
    assert column.get(np.arange(3)).to_pylist() == [[99], [97], [99]]
