"""Keys that are functions, on columns: any script, with crashes or without, gives what rows give."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.records import ColumnBatch, Row
from engine.operators import memory_watch
from engine.operators.aggregate import FieldAggregate, KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_deduplicate import column_deduplicate
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_session import column_session
from engine.operators.column_top_n import column_top_n
from engine.operators.column_window import column_window
from engine.operators.computed_keys import KeyFunction, key_function_of
from engine.operators.deduplicate import FIRST, LAST, DeduplicateSpec
from engine.operators.field_aggregates import RowAggregates, WindowRecord, count, max_, sum_
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.top_n import TopNSpec
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import window_call
from engine.state import spilling_slots
from engine.time.assigners import EventTimeSessionWindows, TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
from tests.unit.operators.test_restore import FULL, INCREMENTAL, Run
from tests.unit.operators.test_restore_columns import BARRIER, PHASES, disturbed, in_order, undisturbed

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("name", pa.string())])
OTHER_SCHEMA = pa.schema([("k", pa.int32()), ("v", pa.int64()), ("name", pa.string())])
FEW = st.integers(-3, 3)
ROW = st.tuples(FEW, st.one_of(FEW, FEW, FEW, FEW, st.sampled_from([2**63 - 1, -(2**63)])), st.sampled_from("aAé"))
KEYS = {
    "computed": lambda r: r[0] % 2,
    "sometimes in doubt": lambda r: r[1] + 1,
    "truth": lambda r: r[0] > 0,
    "float": lambda r: r[0] * 0.5,
    "text": lambda r: r[2].lower(),
    "several": lambda r: (r[2], r[0] % 2),
    "picked": lambda r: r[-1],
    "several picked": lambda r: (r[2], r[0]),
}


def key_of(name: str) -> KeyFunction:
    key = key_function_of(KEYS[name], shape_of_schema(SCHEMA))
    assert isinstance(key, KeyFunction), key
    return key


@st.composite
def batches(draw):
    rows = draw(st.lists(ROW, min_size=1, max_size=6))
    schema = draw(st.sampled_from([SCHEMA] * 7 + [OTHER_SCHEMA, None]))
    if draw(st.integers(0, 6)) == 0:
        rows = [Row(k=k, v=v, name=name) for k, v, name in rows]
    stamps = draw(st.lists(st.integers(-5, 50), min_size=len(rows), max_size=len(rows)))
    return Rows(rows, stamps, schema=schema)


SCRIPTS = st.lists(st.one_of(batches(), batches(), BARRIER), max_size=12)
TIMED_SCRIPTS = st.lists(st.one_of(batches(), batches(), BARRIER, st.integers(0, 55).map(Watermark)), max_size=12).map(
    lambda steps: [*in_order(steps), Watermark(TIME_MAX_MS)]
)


def without_barriers(script):
    """As batch jobs are."""
    return [step for step in script if isinstance(step, Rows)]


def added(a, b):
    return a[0], a[1] + b[1], a[2]


def newest(a, b):
    return b if b[1] >= a[1] else a


def check_all(columns, rows, name, scripts, *, config=INCREMENTAL, examples=6):
    @settings(max_examples=examples, deadline=None, phases=PHASES)
    @given(scripts)
    def check(script):
        keys = (KEYS[name],)
        assert disturbed(Case((columns,), script, keys), config) == undisturbed(Case((rows,), script, keys))

    check()


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("kind", ["sum", "max_by"])
@pytest.mark.parametrize("name", KEYS)
def test_aggregates_are_those_of_rows(name, kind, final):
    key = key_of(name)
    columns = ColumnAggregateSpec(key.selector, kind, 1, final, key=key)
    check_all(columns, KeyedAggregateSpec(key.given, kind, 1, final), name, SCRIPTS)


@pytest.mark.parametrize("function", [added, newest])
@pytest.mark.parametrize("name", ["computed", "sometimes in doubt", "several"])
def test_reduced_records_are_those_of_rows(name, function):
    key = key_of(name)
    rows = KeyedReduceSpec(key.given, function)
    check_all(ColumnReduceSpec(key.selector, function, key=key), rows, name, SCRIPTS, config=FULL)


WINDOWS = {
    "aggregates": (TumblingEventTimeWindows(10, 0), AggregateFold(RowAggregates([count(), sum_(1), max_(-2)]))),
    "a record": (TumblingEventTimeWindows(10, 3), ReduceFold(FieldAggregate("sum", 1))),
    "a choice": (TumblingEventTimeWindows(10, 3), ReduceFold(newest)),
    "a fold": (TumblingEventTimeWindows(10, 3), ReduceFold(added)),
    "session, aggregates": (EventTimeSessionWindows(5), AggregateFold(RowAggregates([count(), sum_(1), max_(-2)]))),
    "session, a record": (EventTimeSessionWindows(5), ReduceFold(FieldAggregate("max_by", 1))),
    "session, a fold": (EventTimeSessionWindows(5), ReduceFold(added)),
}


def windows_of(name: str, kind: str) -> tuple[object, WindowSpec]:
    """Return them on columns, None if there is no such form, and on rows."""
    key, (assigner, fold) = key_of(name), WINDOWS[kind]
    function = WindowRecord(1) if isinstance(fold, AggregateFold) else None
    rows = WindowSpec((key.given,), assigner, EventTimeTrigger(), window_call(function), fold, None, 4, "late")
    shape = shape_of_schema(SCHEMA)
    return column_window(rows, shape, key=key) or column_session(rows, shape, key), rows


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("name", ["computed", "sometimes in doubt", "text", "several", "picked", "several picked"])
def test_windows_are_those_of_rows(name, kind):
    columns, rows = windows_of(name, kind)
    if columns is None:  # a function of the user's wants a key of one value
        assert "several" in name
        assert rows.fold.given in (added, newest)
        return
    check_all(columns, rows, name, TIMED_SCRIPTS, examples=4)


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("what", ["first", "last", "last, final", "top", "top, final"])
def test_changelogs_are_those_of_rows(name, what):
    key = key_of(name)
    kind, _, final = what.partition(", ")
    if kind == "top":
        rows = TopNSpec(key.given, 2, ((-2, False),), True, ("k", "v", "name"), emit_final=bool(final))
        columns = column_top_n(rows, key)
    else:
        keeps = FIRST if kind == "first" else LAST
        rows = DeduplicateSpec(key.given, keeps, ("k", "v", "name"), emit_final=bool(final))
        columns = column_deduplicate(rows, key)
    check_all(columns, rows, name, SCRIPTS.map(without_barriers) if final else SCRIPTS, examples=4)


SPECS = {
    "sum": lambda key: (
        ColumnAggregateSpec(key.selector, "sum", 1, key=key),
        KeyedAggregateSpec(key.given, "sum", 1),
    ),
    "top": lambda key: (column_top_n(TopNSpec(key.given, 2, ((1, True),)), key), TopNSpec(key.given, 2, ((1, True),))),
    "first": lambda key: (
        column_deduplicate(DeduplicateSpec(key.given, FIRST), key),
        DeduplicateSpec(key.given, FIRST),
    ),
    "last": lambda key: (column_deduplicate(DeduplicateSpec(key.given, LAST), key), DeduplicateSpec(key.given, LAST)),
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["computed", "several", "picked", "several picked"])
@pytest.mark.parametrize("named", [False, True])
def test_rows_go_on_where_columns_have_left_off(name, spec, named):
    """After a change of the program its operator is another; a checkpoint may be made before the first record."""
    columns, rows = SPECS[spec](key_of(name))
    records = [(n % 3, n * 7 % 5, "aAé"[n % 3]) for n in range(20)]
    if named:
        records = [Row(k=k, v=v, name=name) for k, v, name in records]
    first, second = Rows(records[:12], schema=SCHEMA), Rows(records[12:], schema=SCHEMA)
    run = Run(Case((columns,), [], (KEYS[name],)), FULL, None)
    run.start(1)
    run.play([first, MARK])
    run.case = Case((rows,), [], (KEYS[name],))
    run.start(2)
    run.play([MARK])
    run.start(1)
    run.play([second])
    assert run.finish() == undisturbed(Case((rows,), [first, second], (KEYS[name],)))


@pytest.mark.parametrize("kind", ["sum", "aggregates", "a record", "session, aggregates"])
@pytest.mark.parametrize("name", ["computed", "sometimes in doubt", "several"])
def test_what_lies_in_files_is_that_of_rows(name, kind, monkeypatch):
    monkeypatch.setattr(spilling_slots, "NUM_PARTITIONS", 6)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 800)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    columns, rows = SPECS["sum"](key_of(name)) if kind == "sum" else windows_of(name, kind)
    check_all(columns, rows, name, TIMED_SCRIPTS, examples=3)


def test_computed_keys_stay_on_columns_and_go_no_further():
    batch = ColumnBatch(
        pa.RecordBatch.from_arrays(
            [pa.array([1, 2, 3]), pa.array([4, 5, 6]), pa.array(["a", "A", "b"])], schema=SCHEMA
        ),
        np.array([1, 2, 3]),
    )
    for spec in (*(make(key_of("several"))[0] for make in SPECS.values()), windows_of("computed", "aggregates")[0]):
        with OperatorHarness(spec) as harness:
            harness.process_batch(batch)
            harness.watermark(100)
            (made, *_) = harness.output.batches
            assert isinstance(made, ColumnBatch)
            assert not any(name.startswith("__") for name in made.columns.schema.names)
            assert not harness.head._is_on_rows


def test_an_operator_says_why_a_key_was_left_to_its_function():
    key = key_of("sometimes in doubt")
    columns, _ = SPECS["sum"](key)
    batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2**63 - 1]), pa.array(["a"])], schema=SCHEMA)
    with OperatorHarness(columns) as harness:
        harness.process_batch(ColumnBatch(batch))
        assert "on rows: its key's function was not computed on columns: a value on which" in harness.head.tier("x")


def test_what_a_function_is_on_columns():
    named = shape_of_schema(SCHEMA.with_metadata({b"records": b"rows"}))

    def seen(function, shape=shape_of_schema(SCHEMA)):
        key = key_function_of(function, shape)
        return key if isinstance(key, str) else (key.selector, key.num_computed)

    assert seen(lambda r: r.name, named) == seen(lambda r: r["name"], named) == (FieldKey(2), 0)
    assert seen(lambda t: (t[0], t[1])) == (ComposedKey((0, 1)), 0)
    assert seen(lambda r: r.name.lower(), named) == (FieldKey("__key_0__"), 1)
    assert seen(lambda r: str(r[0])) == (FieldKey("__key_0__"), 1)
    assert seen(lambda r: (r.k, r.v + 1), named) == (ComposedKey(("__key_0__", "__key_1__")), 2)
    assert "not compiled (" in seen(lambda r: oct(r[0]))
    assert seen(lambda r: r) == "its key is a whole record"
    assert seen(lambda r: (r[0],)) == "its key is a tuple of one value"
    assert "the plan does not know" in seen(lambda r: r[0] % 2, None)
