"""Rows within records on columns: as keys and as what is kept they give what rows give, and stay on columns."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.records import ColumnBatch, Row, arrow_values
from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.column_deduplicate import column_deduplicate
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_regular_join import column_regular_join
from engine.operators.column_top_n import column_top_n
from engine.operators.column_window_join import column_window_join
from engine.operators.deduplicate import FIRST, DeduplicateSpec
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.regular_join import RegularJoinSpec
from engine.operators.stateless import MapSpec
from engine.operators.top_n import TopNSpec
from engine.operators.window import WindowSpec
from engine.operators.window_functions import JoinedFunction
from engine.time.assigners import TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import Case, Rows, Watermark
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
ROW = st.tuples(KEYS, st.integers(-3, 3), KEPT, st.integers(0, 1))


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
ON_ROWS = {
    "sum": KeyedAggregateSpec(KEY, "sum", 1),
    "max_by": KeyedAggregateSpec(KEY, "max_by", 1),
    "sum, tuple": KeyedAggregateSpec(ComposedKey((0, 3)), "sum", 1),
    "top": TopNSpec(KEY, 2, ((1, False),)),
    "first": DeduplicateSpec(KEY, FIRST),
    **JOINS,
}


def on_columns(name):
    rows = ON_ROWS[name]
    match name:
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


@pytest.mark.parametrize("name", ON_ROWS)
def test_results_after_any_script_are_those_of_rows(name):
    sides = 2 if name in JOINS else 1
    keys = (ON_ROWS[name].key_selector,) if sides == 1 else PAIR
    end = [Watermark(TIME_MAX_MS)]

    @settings(max_examples=10, deadline=None, phases=PHASES)
    @given(st.lists(st.one_of(batches(sides), batches(sides), BARRIER), max_size=10))
    def check(script):
        golden = undisturbed(Case((ON_ROWS[name], MapSpec(shown)), [*script, *end], keys))
        assert disturbed(Case((on_columns(name), MapSpec(shown)), [*script, *end], keys), INCREMENTAL) == golden

    check()


@pytest.mark.parametrize("name", ON_ROWS)
def test_they_stay_on_columns(name):
    rows = [(Row(a=at % 2, b=None, c=Row(d=True)) if at % 3 else None, at, Row(n=None, i=at), 0) for at in range(12)]
    arrays = [pa.array(arrow_values([row[i] for row in rows], kind), kind) for i, kind in enumerate(SCHEMA.types)]
    batch = ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA), pa.array(range(12), pa.int64()).to_numpy())
    with OperatorHarness(on_columns(name)) as harness:
        for side in range(2 if name in JOINS else 1):
            for _ in range(2):
                harness.process_batch(batch, input_index=side)
        assert not harness.head._is_on_rows
        harness.watermark(TIME_MAX_MS)
        assert len(harness.output.rows) > 0
