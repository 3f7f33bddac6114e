"""Joins by keys that functions compute, on columns: any script, with crashes or without, gives what rows give."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.records import ColumnBatch, Row, RowKind, rows_of
from engine.operators import memory_watch, spilling_intervals, window_join_state
from engine.operators.column_fields import KEY_NAME
from engine.operators.column_interval_join import ColumnIntervalJoinSpec, column_interval_join
from engine.operators.column_regular_join import ColumnRegularJoinSpec, column_regular_join
from engine.operators.column_window_join import ColumnWindowJoinSpec, column_window_join
from engine.operators.compile.expressions import Kind
from engine.operators.compile.translate import Shape
from engine.operators.computed_keys import join_keys
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.regular_join import Beside, RegularJoinSpec
from engine.operators.window import WindowSpec
from engine.operators.window_functions import JoinedFunction
from engine.time.assigners import SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Watermark
from tests.unit.operators.test_restore import FULL, INCREMENTAL, ROCKSDB, Run, straight
from tests.unit.operators.test_restore_columns import BARRIER, PHASES, disturbed, in_order, undisturbed

LEFT = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("name", pa.string())])
RIGHT = pa.schema([("k", pa.int64()), ("x", pa.float64()), ("name", pa.string())])
OTHER_LEFT = LEFT.set(0, pa.field("k", pa.int32()))
SHAPES = (Shape((Kind.INT, Kind.INT, Kind.STR)), Shape((Kind.INT, Kind.FLOAT, Kind.STR)))
KEYS = {
    "computed": (lambda a: a[0] % 2, lambda b: b[0] % 2),
    "sometimes in doubt": (lambda a: a[1] + 1, lambda b: b[0] + 1),
    "text": (lambda a: a[2].upper(), lambda b: b[2].upper()),
    "several": (lambda a: (a[2], a[0] % 2), lambda b: (b[2], b[0] % 2)),
    "picked": (lambda a: a[0], lambda b: b[0]),
    "several picked": (lambda a: (a[2], a[0]), lambda b: (b[2], b[0])),
    "of one side": (lambda a: a[0] % 2, FieldKey(0)),
    "of the other": (ComposedKey((0, 2)), lambda b: (b[0] * 2, b[2].lower())),
}
COMPUTED = [name for name in KEYS if "picked" not in name]
FUNCTIONS = {"added": lambda a, b: (a[0], a[1], a[2], b[0], b[1], b[2]), "called": lambda a, b: [a, b]}
ASSIGNERS = {"tumbling": TumblingEventTimeWindows(10, 3), "sliding": SlidingEventTimeWindows(20, 5, 0)}


def made(kind, name, function="added", late_ms=0, **settings):
    """Return a join on columns and on rows. ``kind``: "interval", a window's, or how a regular join is."""
    keys, call = KEYS[name], FUNCTIONS.get(function)
    if kind == "interval":
        rows = IntervalJoinSpec(keys, -5, 5, call, ("late", "late"))
        columns = column_interval_join(rows, SHAPES)
        assert isinstance(columns, ColumnIntervalJoinSpec), columns
    elif kind in ASSIGNERS:
        rows = WindowSpec(keys, ASSIGNERS[kind], EventTimeTrigger(), JoinedFunction(call, False), None, None, late_ms)
        columns = column_window_join(rows, SHAPES)
        assert isinstance(columns, ColumnWindowJoinSpec), columns
    else:
        rows = RegularJoinSpec(keys, kind, call or Beside((3, 3), tuple("abcdef")), **settings)
        columns = column_regular_join(rows, SHAPES)
        assert isinstance(columns, ColumnRegularJoinSpec), columns
    return columns, rows


FEW = st.integers(-3, 3)
TEXT = st.sampled_from("aAé")
LEFT_ROW = st.tuples(FEW, st.one_of(FEW, FEW, FEW, st.just(2**63 - 1)), TEXT)
RIGHT_ROW = st.tuples(FEW, st.sampled_from([0.0, -0.0, float("nan"), 1.5]), TEXT)


@st.composite
def batches(draw):
    side = draw(st.integers(0, 1))
    rows = draw(st.lists((LEFT_ROW, RIGHT_ROW)[side], min_size=1, max_size=6))
    schema = draw(st.sampled_from([LEFT] * 6 + [OTHER_LEFT, None] if side == 0 else [RIGHT] * 7 + [None]))
    if draw(st.integers(0, 9)) == 0:
        rows = [Row(**dict(zip((LEFT, RIGHT)[side].names, row, strict=True))) for row in rows]
    return Rows(rows, draw(st.lists(st.integers(-5, 50), min_size=len(rows), max_size=len(rows))), side, schema)


SCRIPTS = st.lists(
    st.one_of(batches(), batches(), batches(), BARRIER, st.integers(0, 55).map(Watermark)), max_size=12
).map(lambda steps: [*in_order(steps), Watermark(TIME_MAX_MS)])


def check_all(columns, rows, keys, *, config=INCREMENTAL, examples=3):
    @settings(max_examples=examples, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    def check(script):
        assert disturbed(Case((columns,), script, keys), config) == undisturbed(Case((rows,), script, keys))

    check()


@pytest.mark.parametrize(
    ("kind", "function", "config"),
    [
        ("interval", "added", INCREMENTAL),
        ("interval", "called", ROCKSDB),
        ("tumbling", "added", FULL),
        ("sliding", "called", INCREMENTAL),
        ("inner", "called", INCREMENTAL),
        ("full", "beside", INCREMENTAL),
        ("left", "beside", FULL),
    ],
)
@pytest.mark.parametrize("name", KEYS)
def test_after_any_script_joins_are_those_of_rows(name, kind, function, config):
    columns, rows = made(kind, name, function)
    check_all(columns, rows, KEYS[name], config=config)


@pytest.mark.parametrize("name", ["computed", "several"])
def test_window_joins_with_lateness_are_those_of_rows(name):
    columns, rows = made("sliding", name, late_ms=9)
    check_all(columns, rows, KEYS[name])


@pytest.mark.parametrize("kind", ["interval", "tumbling", "sliding"])
@pytest.mark.parametrize("name", COMPUTED)
def test_what_lies_in_files_is_that_of_rows(name, kind, monkeypatch):
    monkeypatch.setattr(spilling_intervals, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(window_join_state, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 100)
    monkeypatch.setattr(spilling_intervals, "_RETURN_SHARE", -1)
    columns, rows = made(kind, name, "added" if kind == "interval" else "called", 0 if kind == "interval" else 7)
    check_all(columns, rows, KEYS[name], examples=2)


def changing(left, right):
    return left[0] >= right[0]


@pytest.mark.parametrize("settings_", [{}, {"condition": changing}, {"ttl_ms": 10}], ids=["plain", "condition", "ttl"])
@pytest.mark.parametrize("how", ["inner", "full"])
@pytest.mark.parametrize("name", ["computed", "text", "several"])
def test_records_that_a_changelog_takes_back_go(name, how, settings_):
    """The key of a record that is taken back is computed as that of the record was."""
    columns, rows = made(how, name, "beside", **settings_)
    records = [(n % 3, n * 7 % 5, "aAé"[n % 3]) for n in range(12)]
    kinds = [RowKind.INSERT] * 6 + [RowKind.DELETE, RowKind.UPDATE_AFTER, RowKind.UPDATE_BEFORE] * 2
    steps = [
        (0, records[:6], kinds[:6]),
        (1, [(k, 1.5, name) for k, _, name in records[:6]], kinds[:6]),
        (0, [records[0], records[9], records[3], records[1], records[8], records[4]], kinds[6:]),
        (1, [(k, 1.5, name) for k, _, name in records[2:8]], kinds[6:]),
        (0, records[6:], kinds[:6]),
    ]
    seen = []
    for spec in (rows, columns):
        with OperatorHarness(spec, clock=ManualClock(1000)) as harness:
            for side, some, of_kinds in steps:
                schema = (LEFT, RIGHT)[side]
                arrays = [pa.array([row[i] for row in some], own.type) for i, own in enumerate(schema)]
                numbers = np.array([kind.value for kind in of_kinds], np.int8)
                made_ = pa.RecordBatch.from_arrays(arrays, schema=schema)
                batch = ColumnBatch(made_, None, named=True, kinds=numbers if numbers.any() else None)
                harness.process_batch(batch if spec is columns else rows_of(batch), input_index=side)
            assert spec is rows or not harness.head._is_on_rows
            seen.append([(row.get_row_kind(), repr(row)) for row in harness.output.rows])
    assert seen[0] == seen[1]
    assert len(seen[0]) > 10


BEFORE = [
    Rows([(key, key, "aA"[key % 2]) for key in range(8)], [12] * 8, 0, LEFT),
    Rows([(key, 1.5, "aA"[key % 3 % 2]) for key in range(8)], [11] * 8, 1, RIGHT),
    Watermark(10),
]
AFTER = [
    Rows([(key, 2.5, "A") for key in range(8)], [15] * 8, 1, RIGHT),
    Rows([(key, 2, "a") for key in range(8)], [14] * 8, 0, LEFT),
    Watermark(TIME_MAX_MS),
]


@pytest.mark.parametrize("kind", ["interval", "tumbling", "full", "inner"])
@pytest.mark.parametrize("name", KEYS)
def test_rows_go_on_where_columns_have_left_off_and_begin_before_them(name, kind):
    """After a change of the program its operator is another."""
    columns, rows = made(kind, name, "called" if kind in ASSIGNERS or kind == "interval" else "beside")
    for first, second in ((columns, rows), (rows, columns)):
        run = Run(Case((first,), [], KEYS[name]), FULL, None)
        run.start(1)
        run.play([*BEFORE, MARK])
        run.case = Case((second,), [], KEYS[name])
        run.start(2)
        run.play([MARK])  # what nobody has taken up yet stays in checkpoints
        run.start(1)
        run.play(AFTER)
        results = run.finish()
        assert results == straight(Case((rows,), [*BEFORE, *AFTER], KEYS[name]))
        assert results.total() > 4


@pytest.mark.parametrize("name", ["computed", "several"])
def test_pairs_that_were_not_sent_before_a_checkpoint_have_no_keys_beside_them(name, monkeypatch):
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    monkeypatch.setattr(spilling_intervals, "_RETURN_SHARE", -1)
    columns, rows = made("interval", name, "called")
    for after in (columns, rows):
        run = Run(Case((columns,), [], KEYS[name]), FULL, None)
        run.start(1)
        run.play([*BEFORE[:1], MARK, *BEFORE[1:], MARK])
        assert sum(map(len, run.snapshots[0].layers[0]["join-pairs"])) > 0
        run.case = Case((after,), [], KEYS[name])
        run.start(2)
        run.play(AFTER)
        assert run.finish() == straight(Case((rows,), [*BEFORE, *AFTER], KEYS[name]))


def test_a_field_that_becomes_a_computed_key_goes_on_on_rows_and_back():
    """Keys are the same, but state has them elsewhere."""
    by_field = IntervalJoinSpec((FieldKey(0), FieldKey(0)), -5, 5, FUNCTIONS["called"])
    by_function = IntervalJoinSpec((lambda a: a[0] + 0, lambda b: b[0] + 0), -5, 5, FUNCTIONS["called"])
    specs = [column_interval_join(rows, SHAPES) for rows in (by_field, by_function)]
    routes = FieldKey(0), FieldKey(0)
    for first, second in (specs, specs[::-1]):
        run = Run(Case((first,), [], routes), FULL, None)
        run.start(1)
        run.play([*BEFORE, MARK])
        run.case = Case((second,), [], routes)
        run.start(1)
        run.play(AFTER)
        told = run.harnesses[0].head.tier("x")
        assert "its state was restored" in told or "not beside those before" in told
        assert run.finish() == straight(Case((by_field,), [*BEFORE, *AFTER], routes))


@pytest.mark.parametrize("kind", ["interval", "tumbling", "inner", "full"])
def test_computed_keys_go_no_further(kind):
    columns, _ = made(kind, "several", "added" if kind in ASSIGNERS or kind == "interval" else "beside")
    assert ", its key computed on columns" in columns.describe()
    with OperatorHarness(columns) as harness:
        for side, schema in enumerate((LEFT, RIGHT)):
            arrays = [pa.array([1, 2], schema.types[0]), pa.array([1, 2], schema.types[1]), pa.array(["a", "b"])]
            batch = ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=schema), np.array([5, 5]))
            harness.process_batch(batch, input_index=side)
        late = ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=RIGHT), np.array([-50, 5]))
        harness.watermark(3)
        harness.process_batch(late, input_index=1)
        harness.watermark(100)
        assert not harness.head._is_on_rows
        batches = [*harness.output.batches, *harness.output.side.get("late", [])]
        assert len(batches) >= 1
        for batch in batches:
            assert isinstance(batch, ColumnBatch)
            assert KEY_NAME.format(0) not in batch.columns.schema.names


def test_an_operator_says_why_a_key_was_left_to_its_function():
    columns, _ = made("interval", "sometimes in doubt")
    arrays = [pa.array([1]), pa.array([2**63 - 1]), pa.array(["a"])]
    with OperatorHarness(columns) as harness:
        harness.process_batch(ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=LEFT), np.array([1])))
        assert "on rows: its key's function was not computed on columns: a value on which" in harness.head.tier("x")


def test_what_keys_columns_cannot_compute_is_said():
    def why(first, second, shapes=SHAPES):
        return join_keys((first, second), shapes)

    assert why(len, FieldKey(0)).startswith("of the first input its key is a function that is not compiled (")
    assert why(FieldKey(0), lambda b: oct(b[0])).startswith("of the second input its key is a function that is not")
    unknown = "of the second input its key is a function of records whose types the plan does not know"
    assert why(FieldKey(0), lambda b: b[0] % 2, (SHAPES[0], None)) == unknown
    fields = "the keys of both inputs have not as many fields"
    assert why(FieldKey(0), ComposedKey((0, 1))) == why(lambda a: (a[0], a[1]), lambda b: (b[0], 1, b[1])) == fields
    assert why(lambda a: a[0] % 2, lambda b: b[2].upper()) == "the keys of both inputs are of different types"
