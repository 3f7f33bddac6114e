"""Top-N and deduplication, on rows and on columns, against sorting all records so far."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.column_tables import column_entries
from engine.core.clock import ManualClock
from engine.core.errors import ProgramError, UserCodeError
from engine.core.records import ColumnBatch, Row, RowKind, kind_of, row_of_kind, rows_of
from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.column_deduplicate import ColumnDeduplicateSpec, column_deduplicate
from engine.operators.column_last_row import ColumnLastRowSpec
from engine.operators.column_top_n import ColumnTopNSpec, column_top_n
from engine.operators.deduplicate import FIRST, LAST, DeduplicateSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.order_lanes import TEXT_BYTES_MAX
from engine.operators.stateless import MapSpec
from engine.operators.top_n import TopNSpec
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows
from tests.unit.operators.test_regular_join import applied, shown
from tests.unit.operators.test_restore import FULL, INCREMENTAL, ROCKSDB, Run, straight
from tests.unit.operators.test_restore_columns import BARRIER, PHASES, disturbed, subtask_of, undisturbed

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("x", pa.float64()), ("name", pa.string())])
OTHER_SCHEMA = SCHEMA.set(0, pa.field("k", pa.int32()))
TEXT_KEYS = SCHEMA.set(0, pa.field("k", pa.large_string()))
KEY = FieldKey(0)
NAN = float("nan")
ROW = st.tuples(
    st.one_of(st.none(), st.integers(0, 2)),
    st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([2**63 - 1, -(2**63)])),
    st.one_of(st.none(), st.sampled_from([0.0, -0.0, NAN, 1.5, -1.5, float("inf"), -float("inf")])),
    st.one_of(st.none(), st.sampled_from(["", "a", "ä", "a\0", "abcdefgh", "abcdefghi" * 3, "\U0001f600"])),
)
ORDERS = {
    "name up": ((3, True),),
    "name down, v up": ((3, False), (1, True)),
    "v down": ((1, False),),
    "x up, v down": ((2, True), (1, False)),
    "x down": ((2, False),),
}


def top(n=2, order="v down", key=KEY, **settings):
    return TopNSpec(key, n, ORDERS[order], **settings)


def on_columns(rows):
    spec = column_top_n(rows) if isinstance(rows, TopNSpec) else column_deduplicate(rows)
    assert isinstance(spec, ColumnTopNSpec | ColumnDeduplicateSpec | ColumnLastRowSpec)
    return spec


def columns(rows, schema=SCHEMA, named=False):
    arrays = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
    return ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=schema), named=named)


def compare(order, a, b):
    """Null first, NaN last; equal ones are in order of arrival, as sorting is stable."""
    for field, ascending in ORDERS[order]:
        x, y = ((v is not None, v != v, 0 if v is None or v != v else v) for v in (a[field], b[field]))
        if x != y:
            return -1 if (x < y) is ascending else 1
    return 0


def first_ones(records, n, order, with_rank):
    of_key = {}
    for record in records:
        of_key.setdefault(record[0], []).append(record)
    found = []
    for some in of_key.values():
        some.sort(key=functools.cmp_to_key(functools.partial(compare, order)))
        found += [(*row, rank) if with_rank else row for rank, row in enumerate(some[:n], 1)]
    return Counter(map(repr, found))


@pytest.mark.parametrize("with_rank", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("order", ORDERS)
def test_after_each_batch_the_output_says_which_records_come_first(order, n, with_rank):
    rows = top(n, order, with_rank=with_rank)

    @settings(max_examples=8, deadline=None, phases=PHASES)
    @given(st.lists(st.lists(ROW, max_size=8), max_size=4))
    def check(batches):
        for spec in (rows, on_columns(rows)):
            records, table = [], Counter()
            with OperatorHarness(spec, MapSpec(of_texts)) as harness:
                for batch in batches:
                    harness.process_batch(columns(batch))
                    records += batch
                    table = applied(table, harness.output.rows)
                    harness.output.batches.clear()
                    assert Counter(row[0] for row in table.elements()) == first_ones(records, n, order, with_rank)

    check()


def of_texts(row):
    """A NaN is equal to none: compare what is printed."""
    return row_of_kind(kind_of(row), (repr(tuple(row)),))


def play(spec, batches, named):
    seen = []
    with OperatorHarness(spec, MapSpec(shown)) as harness:
        for records, stamped in batches:
            batch = columns(records, named=named)
            if stamped:
                batch = replace(batch, timestamps_ms=pa.array(range(len(records)), pa.int64()).to_numpy())
            harness.process_batch(batch)
            seen.append((harness.output.rows, harness.output.timestamps_ms))
            harness.output.batches.clear()
        harness.end()
        return seen, harness.output.rows


SPECS = {
    "top": top(),
    "top, named": top(3, names=tuple("abcd")),
    "top, ranks": top(3, "x up, v down", with_rank=True),
    "top, ranks and names": top(3, with_rank=True, names=tuple("abcd")),
    "top, by text": top(2, "name up"),
    "top, ranks by text": top(3, "name down, v up", with_rank=True),
    "top, tuple": top(1, key=ComposedKey((0, 3))),
    "top, final": top(3, with_rank=True, emit_final=True),
    "first": DeduplicateSpec(KEY, FIRST),
    "first, tuple": DeduplicateSpec(ComposedKey((0, 3)), FIRST),
    "first, float": DeduplicateSpec(FieldKey(2), FIRST),
    "last": DeduplicateSpec(KEY, LAST),
    "last, names": DeduplicateSpec(KEY, LAST, tuple("abcd")),
    "last, tuple": DeduplicateSpec(ComposedKey((3, 0)), LAST),
    "last, float": DeduplicateSpec(FieldKey(2), LAST, tuple("abcd")),
    "last, at the end": DeduplicateSpec(KEY, LAST, emit_final=True),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_columns_give_what_rows_give_in_that_order(name, named):
    @settings(max_examples=8, deadline=None, phases=PHASES)
    @given(st.lists(st.tuples(st.lists(ROW, max_size=9), st.booleans()), max_size=5))
    def check(batches):
        ours, expected = play(on_columns(SPECS[name]), batches, named), play(SPECS[name], batches, named)
        if "final" in name:  # keys come in another order when one of them is null
            ours, expected = (([], Counter(rows)) for _, rows in (ours, expected))
        assert ours == expected

    check()


def test_many_changes_come_in_portions(monkeypatch):
    monkeypatch.setattr("engine.operators.column_top_n.BATCH_ROWS_MAX", 5)
    batch = [(i % 3, i % 17, 1.0, f"n{i}") for i in range(100)]
    for n in (3, 50):
        rows = top(n, with_rank=True)
        ours = play(on_columns(rows), [(batch, True)] * 2, False)
        assert ours == play(rows, [(batch, True)] * 2, False)
        assert len(ours[0][0][0]) > 10


def test_texts_of_records_that_were_replaced_are_forgotten(monkeypatch):
    monkeypatch.setattr("engine.operators.last_records._COMPACT_MIN", 100)
    with OperatorHarness(on_columns(DeduplicateSpec(KEY, LAST))) as harness:
        for at in range(0, 2000, 20):
            harness.process_batch(columns([(i, at + i, 0.0, f"n{at + i}") for i in range(20)]))
        state = harness.head._state
        assert state.slots.columns["c3"]._distinct.num_slots < 300
        assert [row[3] for rows in state.rows() for row in rows] == [f"n{1980 + i}" for i in range(20)]


@pytest.mark.parametrize("emit_final", [False, True])
def test_what_is_taken_back_from_last_rows_goes_to_rows_with_all_that_is_kept(emit_final):
    rows = DeduplicateSpec(KEY, LAST, emit_final=emit_final)
    inserted = columns([(key, key, 0.5, "a") for key in (3, None, 1, 2, 3)])
    kinds = np.array([RowKind.DELETE.value, RowKind.UPDATE_AFTER.value, RowKind.UPDATE_BEFORE.value], np.int8)
    changes = replace(columns([(3, 3, 0.5, "a"), (4, 4, None, "b"), (7, 0, 0.0, "c")]), kinds=kinds)
    found = []
    for spec in (on_columns(rows), rows):
        with OperatorHarness(spec, MapSpec(shown)) as harness:
            for batch in (inserted, changes, inserted):
                harness.process_batch(batch if spec is not rows else batch.to_rows())
            assert spec is rows or harness.head._is_on_rows
            harness.end()
            found.append(harness.output.rows)
    assert found[0] == found[1]
    assert emit_final or ("-D", "Row", "Row(3, 3, 0.5, 'a')") in found[0]


def test_last_rows_that_outgrow_their_memory_go_to_the_disk(monkeypatch):
    rows = DeduplicateSpec(KEY, LAST)
    steps = [Rows([(key % 30, key, 0.5, "a") for key in range(40)], schema=SCHEMA)]
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], (KEY,)), ROCKSDB, None)
    run.start(1)
    run.play([*steps, MARK])
    assert not run.harnesses[0].operators[0]._is_on_rows
    monkeypatch.setattr("engine.operators.columns_until_rows.MemoryWatch.must_leave", lambda watch, held: held > 0)
    run.start(2)
    run.play([*steps, MARK])
    assert all(harness.operators[0]._is_on_rows for harness in run.harnesses)
    run.start(1)
    run.play(steps)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), steps * 3, (KEY,)))


def test_texts_of_records_that_were_pushed_out_are_forgotten(monkeypatch):
    monkeypatch.setattr("engine.operators.column_top_n._COMPACT_MIN", 100)
    with OperatorHarness(on_columns(top(2))) as harness:
        for at in range(0, 2000, 20):
            harness.process_batch(columns([(i % 5, at + i, 0.0, f"n{at + i}") for i in range(20)]))
        state = harness.head._state
        assert state.num_places == 10
        assert state.columns[3]._distinct.num_slots < 300
        assert sorted(row[1] for row in state.rows()) == list(range(1990, 2000))


@pytest.mark.parametrize("ascending", [False, True])
def test_texts_that_are_too_long_go_to_rows_with_all_that_is_kept(ascending):
    rows = TopNSpec(KEY, 2, ((3, ascending), (1, True)))
    texts = [["b", "a" * 40, None], ["a" * 100, "c"], ["d" * (TEXT_BYTES_MAX + 1), "a" * 41], ["", "e"]]
    batches = [([(1, at, 0.0, text) for at, text in enumerate(some)], False) for some in texts]
    assert play(on_columns(rows), batches, False) == play(rows, batches, False)
    with OperatorHarness(on_columns(rows)) as harness:
        for some, _ in batches[:2]:
            harness.process_batch(columns(some))
            assert not harness.head._is_on_rows
        harness.process_batch(columns(batches[2][0]))
        assert harness.head._is_on_rows


def test_what_columns_cannot_do_is_said_in_the_plan():
    assert top().describe() == DeduplicateSpec(KEY, FIRST).describe() == "on rows"
    for spec, why in (
        (top(ttl_ms=3), "its state has a time to live"),
        (DeduplicateSpec(KEY, FIRST, ttl_ms=3), "its state has a time to live"),
        (DeduplicateSpec(KEY, LAST, ttl_ms=3), "its state has a time to live"),
    ):
        assert spec.describe() == f"on rows: {why}"
        assert (column_top_n(spec) if isinstance(spec, TopNSpec) else column_deduplicate(spec)) is None
    assert column_top_n(top(key=len)) is column_deduplicate(DeduplicateSpec(len, LAST)) is None


class OwnRow(Row):
    """A class of the user's."""


@pytest.mark.parametrize("kind", [Row, OwnRow])
@pytest.mark.parametrize("spec", [top(), DeduplicateSpec(KEY, FIRST), KeyedAggregateSpec(KEY, "sum", 1)])
def test_a_changelog_as_input_is_refused(spec, kind):
    row = kind(1, 2)
    row.set_row_kind(RowKind.UPDATE_BEFORE)
    with OperatorHarness(spec) as harness, pytest.raises(ProgramError, match=r"got a record of kind -U"):
        harness.process([row])


def test_values_that_cannot_be_compared_are_told_with_their_record():
    with OperatorHarness(top()) as harness:
        harness.process([(1, 2)])
        with pytest.raises(UserCodeError, match=r"top_n by 1: the record cannot be compared.*\n.*\(1, 'x'\)"):
            harness.process([(1, "x")])


def test_the_last_record_of_each_key_is_told():
    with OperatorHarness(DeduplicateSpec(KEY, LAST), MapSpec(shown)) as harness:
        harness.process([("a", 1), (None, 1), ("a", 2)], [5, 6, 7])
        harness.process([row_of_kind(RowKind.DELETE, ("a", 2)), row_of_kind(RowKind.DELETE, ("b", 2))], [8, 9])
        harness.process([("a", 3)], [10])
        kinds = [(kind, text) for kind, _, text in harness.output.rows]
        assert kinds == [
            ("+I", "Row('a', 1)"),
            ("+I", "Row(None, 1)"),
            ("-U", "Row('a', 1)"),
            ("+U", "Row('a', 2)"),
            ("-D", "Row('a', 2)"),
            ("+I", "Row('a', 3)"),
        ]
        assert harness.output.timestamps_ms == [5, 6, 7, 7, 8, 10]


def test_the_last_record_of_each_key_is_told_once_in_batch():
    with OperatorHarness(DeduplicateSpec(KEY, LAST, tuple("kv"), emit_final=True), MapSpec(shown)) as harness:
        harness.process([("a", 1), ("b", 1), ("a", 2)])
        assert harness.output.rows == []
        harness.end()
        assert harness.output.rows == [("+I", "Row", "Row(k='a', v=2)"), ("+I", "Row", "Row(k='b', v=1)")]


def test_keys_are_forgotten_after_their_time_to_live():
    for spec, seen in ((DeduplicateSpec(KEY, FIRST, ttl_ms=10), 2), (top(1, ttl_ms=10), 3)):
        clock = ManualClock(1000)
        with OperatorHarness(spec, clock=clock) as harness:
            for value in (1, 2, 0):
                harness.process([("a", value)])
                clock.advance(6 if value == 1 else 11)
            # Of the top-N: 1; 1 goes for 2; then 0, as 2 is no longer known.
            assert len(harness.output.rows) == seen + isinstance(spec, TopNSpec)


# --- crashes, other parallelism, other types, rows --------------------------------------------------------------------


@st.composite
def batches(draw):
    rows = draw(st.lists(ROW, min_size=1, max_size=6))
    schema = draw(st.sampled_from([SCHEMA, SCHEMA, SCHEMA, OTHER_SCHEMA, TEXT_KEYS, None]))
    if schema is TEXT_KEYS:
        rows = [(None if row[0] is None else str(row[0]), *row[1:]) for row in rows]
    return Rows(rows, schema=schema)


SCRIPTS = st.lists(st.one_of(batches(), batches(), BARRIER), max_size=12)
STATEFUL = {
    "top": top(),
    "top, ranks": top(3, "x up, v down", with_rank=True),
    "top, by text": top(3, "name down, v up", with_rank=True),
    "first": DeduplicateSpec(KEY, FIRST),
    "last": DeduplicateSpec(KEY, LAST),
}


@pytest.mark.parametrize("config", [FULL, INCREMENTAL, ROCKSDB], ids=["full", "incremental", "rocksdb"])
@pytest.mark.parametrize("name", STATEFUL)
def test_results_after_any_script_are_those_of_rows(name, config):
    rows = STATEFUL[name]

    @settings(max_examples=7, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    def check(script):
        golden = undisturbed(Case((rows, MapSpec(shown)), script, (KEY,)))
        assert disturbed(Case((on_columns(rows), MapSpec(shown)), script, (KEY,)), config) == golden

    check()


@pytest.mark.parametrize("name", ["top", "first", "last"])
@pytest.mark.parametrize("named", [False, True])
def test_rows_go_on_where_columns_have_left_off(name, named):
    rows = STATEFUL[name]
    before = [Rows([(key % 6, key, 0.5, "a") for key in range(20)], schema=SCHEMA)]
    later = [Rows([(key, key, 0.5, "a") for key in range(100, 120)], schema=SCHEMA)]
    after = [
        Rows([(key % 7, key, 0.5, "b") for key in range(15, 30)]),
        Rows([(key, 5, 0.5, "c") for key in range(90, 125)]),
    ]
    if named:
        names = Row(*SCHEMA.names)
        for steps in (before, later, after):
            steps[:] = [replace(step, rows=[names(*row) for row in step.rows]) for step in steps]
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], (KEY,)), INCREMENTAL, None)
    run.start(1)
    run.play([*before, MARK, *later, MARK])
    assert run.num_deltas == 1 + (name != "top")  # that of what rows keep is empty
    run.case = Case((rows, MapSpec(shown)), [], (KEY,))
    run.start(2)
    run.play([MARK])  # what nobody has taken up yet stays in checkpoints
    run.start(1)
    run.play(after)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), [*before, *later, *after], (KEY,)))


@pytest.mark.parametrize("follows", [[], [(1, 7, 0.5, "b")]])
@pytest.mark.parametrize("name", ["top, final", "last, at the end"])
def test_a_restored_batch_job_tells_what_is_left_whether_something_follows_or_not(name, follows):
    rows = SPECS[name]
    steps = [Rows([(key % 4, key, 0.5, "a") for key in range(9)], schema=SCHEMA)]
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], (KEY,)), FULL, None)
    run.start(1)
    run.play([*steps, MARK])
    run.start(2)
    later = [Rows(follows)] if follows else []  # which only rows can take up
    run.play(later)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), [*steps, *later], (KEY,)))


@pytest.mark.parametrize("name", ["top", "first", "last"])
def test_records_with_keys_of_other_types_come_together(name):
    rows = STATEFUL[name]
    texts = [key for key in map(str, range(30)) if subtask_of(key, 2) == 1]
    numbers = [key for key in range(30) if subtask_of(key, 2) == 0]
    before = [
        Rows([(key, i, 0.0, "a") for i in range(3) for key in numbers], schema=SCHEMA),
        Rows([(key, i, 0.0, "a") for i in range(3) for key in texts], schema=TEXT_KEYS),
    ]
    more = [Rows([(key, 2, 0.0, "b") for key in numbers + texts])]
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], (KEY,)), FULL, None)
    run.start(2)
    run.play([*before, MARK])
    run.start(1)
    state = run.harnesses[0].operators[0]._state
    assert (state.slots if name == "last" else state).others
    run.play([MARK])
    run.start(1)
    run.play(more)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), [*before, *more], (KEY,)))


def test_columns_that_cannot_be_ordered_are_left_to_rows():
    rows = TopNSpec(KEY, 1, ((1, True),))
    for kind, values, is_left in (
        (pa.list_(pa.int64()), [[2], [1, 5]], True),
        (pa.decimal128(38, 2), [Decimal("1.10"), Decimal("-99999999999999999999.05")], False),
    ):
        with OperatorHarness(on_columns(rows)) as harness:
            batch = pa.RecordBatch.from_arrays([pa.array([1, 1]), pa.array(values, kind)], names=["k", "v"])
            harness.process_batch(ColumnBatch(batch))
            found = [row[1] for row in map(tuple, rows_of(harness.output.batches[0]).rows)]
            assert found == [values[0], values[0], values[1]]
            assert harness.head._is_on_rows is is_left


def test_a_listing_of_a_savepoint_shows_what_columns_keep():
    found = {}
    for name, part in (("top", "top-records"), ("first", "seen-keys"), ("last", "last-records")):
        with OperatorHarness(on_columns(STATEFUL[name])) as harness:
            harness.process_batch(columns([(1, 1, 0.0, "a"), (1, 3, 0.0, "b"), (1, 2, 0.0, "c")]))
            (chunk,) = harness.contexts[0].state.keyed[part].snapshot(range(128)).values()
            found[name] = list(column_entries(part, chunk))
    assert [(number, row["v"]) for number, _, row in found["top"]] == [(0, 3), (1, 2)]
    assert found["first"] == [(1, None, True)]
    assert found["last"] == [(1, None, {"k": 1, "v": 2, "x": 0.0, "name": "c"})]
