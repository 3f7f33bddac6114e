"""Which type stays on columns in which operator, and why not: the whole table, type by type.

Each operator is given records (k, v, n) with values of the type in v, and is asked afterwards whether rows have taken
over. What it gives is what it gives on rows, wherever it ran. ``EXCEPTIONS`` is all that is not on columns.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from engine.core.errors import EngineError
from engine.core.records import ColumnBatch
from engine.core.type_info import Types
from engine.operators.aggregate import FieldAggregate, KeyedAggregateSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.column_deduplicate import column_deduplicate
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_regular_join import column_regular_join
from engine.operators.column_session import column_session
from engine.operators.column_top_n import column_top_n
from engine.operators.column_window import column_window
from engine.operators.compile.expressions import Kind
from engine.operators.compile.translate import Shape
from engine.operators.deduplicate import FIRST, LAST, DeduplicateSpec
from engine.operators.field_aggregates import avg, count, count_distinct, first, last, max_, min_, sum_
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import FieldKey
from engine.operators.regular_join import Beside, RegularJoinSpec
from engine.operators.top_n import TopNSpec
from engine.operators.window_contents import ReduceFold
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.test_column_session import SESSIONS
from tests.unit.operators.test_column_window import ASSIGNERS, built_in, windows

LONG = Types.LONG()
#: name → its type, the column it has, three values in their order
TYPES = {
    "STRING": (Types.STRING(), pa.string(), ["", "a", "ä"]),
    "BYTE": (Types.BYTE(), pa.int8(), [-128, 0, 127]),
    "BOOLEAN": (Types.BOOLEAN(), pa.bool_(), [False, True, True]),
    "SHORT": (Types.SHORT(), pa.int16(), [-1, 0, 2**15 - 1]),
    "INT": (Types.INT(), pa.int32(), [-1, 0, 2**31 - 1]),
    "LONG": (LONG, pa.int64(), [-1, 0, 2**60]),
    "FLOAT": (Types.FLOAT(), pa.float32(), [-1.5, 0.0, 2.5]),
    "DOUBLE": (Types.DOUBLE(), pa.float64(), [-1.5, 0.1, 2.5]),
    "CHAR": (Types.CHAR(), pa.string(), ["a", "b", "ä"]),
    "BIG_DEC": (Types.BIG_DEC(), pa.decimal128(38, 18), [Decimal(n).scaleb(-18) for n in (-(10**20), 7, 10**27)]),
    "SQL_DATE": (Types.SQL_DATE(), pa.date32(), [dt.date(1969, 1, n) for n in (1, 2, 3)]),
    "SQL_TIME": (Types.SQL_TIME(), pa.time64("us"), [dt.time(1, 2, n) for n in (1, 2, 3)]),
    "SQL_TIMESTAMP": (
        Types.SQL_TIMESTAMP(),
        pa.timestamp("us"),
        [dt.datetime(1969, 1, n, microsecond=n) for n in (1, 2, 3)],
    ),
    "ROW": (
        Types.ROW_NAMED(["a", "b"], [LONG, Types.STRING()]),
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
        [{"a": n, "b": str(n)} for n in (1, 2, 3)],
    ),
    "ARRAY": (Types.BASIC_ARRAY(LONG), pa.list_(pa.int64()), [[], [1], [1, 2]]),
    "MAP": (Types.MAP(Types.STRING(), LONG), pa.map_(pa.string(), pa.int64()), [[], [("a", 1)], [("a", 2)]]),
}
#: Types of which there are no columns: ``to_arrow`` gives none, so a stream that declares one of them is rows. BIG_DEC
#: is not of one scale; a source that knows the scale (CSV, Parquet, a generator) has columns of it.
NO_COLUMN = {
    "BIG_DEC": Types.BIG_DEC(),
    "BIG_INT": Types.BIG_INT(),
    "INSTANT": Types.INSTANT(),
    "PICKLED_BYTE_ARRAY": Types.PICKLED_BYTE_ARRAY(),
}

K, V, N = FieldKey(0), FieldKey(1), FieldKey(2)
SHAPE = Shape((Kind.INT, Kind.OPAQUE, Kind.INT))
BESIDE = Beside((3, 3))


def keyed(key, kind, field):
    return ColumnAggregateSpec(key, kind, field), KeyedAggregateSpec(key, kind, field)


def in_windows(fold, key=K, kind="tumbling"):
    assigner = SESSIONS if kind == "sessions" else ASSIGNERS[kind]
    rows = built_in(assigner, fold, key) if isinstance(fold, list) else windows(assigner, fold, key)
    return (column_session if kind == "sessions" else column_window)(rows, None), rows


def only(rows, made):
    return made(rows), rows


def joined(key, is_interval):
    if is_interval:
        rows = IntervalJoinSpec((key, key), -5, 5, lambda left, right: (left, right), (None, None))
        return column_interval_join(rows, (SHAPE, SHAPE)), rows
    rows = RegularJoinSpec((key, key), "inner", BESIDE)
    return column_regular_join(rows, (SHAPE, SHAPE)), rows


def by_operator():
    """Return (on columns, on rows) by what is done with v."""
    made = {f"keyed {kind}": keyed(K, kind, 1) for kind in ("sum", "min", "max", "min_by", "max_by")}
    made["kept by keyed max_by"] = keyed(K, "max_by", 2)
    made["key of a keyed sum"] = keyed(V, "sum", 2)
    for name, aggregate in (
        ("sum", sum_), ("avg", avg), ("min", min_), ("max", max_), ("count", count), ("count_distinct", count_distinct),
    ):  # fmt: skip
        made[f"{name} of windows"] = in_windows([aggregate(1)])
        made[f"{name} of sliding windows"] = in_windows([aggregate(1)], kind="sliding")
        made[f"{name} of sessions"] = in_windows([aggregate(1)], kind="sessions")
    made["first and last of windows"] = in_windows([first(1), last(1)])
    made["first and last of sessions"] = in_windows([first(1), last(1)], kind="sessions")
    for kind in ("tumbling", "sessions"):
        made[f"min_by of windows, {kind}"] = in_windows(ReduceFold(FieldAggregate("min_by", 1)), kind=kind)
        made[f"kept by max_by of windows, {kind}"] = in_windows(ReduceFold(FieldAggregate("max_by", 2)), kind=kind)
        made[f"key of windows, {kind}"] = in_windows([sum_(2)], V, kind)
    made["order of a top-N"] = only(TopNSpec(K, 2, ((1, True),)), column_top_n)
    made["kept by a top-N"] = only(TopNSpec(K, 2, ((2, True),)), column_top_n)
    made["key of a top-N"] = only(TopNSpec(V, 2, ((2, True),)), column_top_n)
    for name, which in (("first", FIRST), ("last", LAST)):
        made[f"kept by {name} rows"] = only(DeduplicateSpec(K, which), column_deduplicate)
        made[f"key of {name} rows"] = only(DeduplicateSpec(V, which), column_deduplicate)
    for name, is_interval in (("a regular join", False), ("an interval join", True)):
        made[f"kept by {name}"] = joined(K, is_interval)
        made[f"key of {name}"] = joined(V, is_interval)
    return made


def play(spec, batches, *, on_rows):
    """Return what comes out, or which error, and how it was taken up."""
    is_join = spec.num_inputs == 2
    with OperatorHarness(spec) as harness:
        why = "columns"
        try:
            for batch in batches:
                for index in range(1 + is_join):
                    harness.process_batch(batch.to_rows() if on_rows else batch, input_index=index)
            harness.watermark(1000)
            found = sorted(map(repr, harness.output.rows))
        except (EngineError, TypeError) as error:
            found = [type(error).__name__]
            why = "refused"
        with contextlib.suppress(AttributeError):
            told = harness.head.tier("columns")
            if why == "columns" and told != "columns":
                why = told.removesuffix(" (planned: columns)").partition(" (")[0]
    return found, why


def table_of(name):
    _, kind, values = TYPES[name]
    batches = []
    for order in ([0, 2, 1, 2], [1, 0, 2, 0]):
        n = 4 * len(batches)
        arrays = [
            pa.array([at % 2 for at in order], pa.int64()),
            pa.array([values[at] for at in order], kind),
            pa.array(range(n, n + 4), pa.int64()),
        ]
        columns = pa.RecordBatch.from_arrays(arrays, names=["k", "v", "n"])
        batches.append(ColumnBatch(columns, np.arange(n, n + 4, dtype=np.int64)))
    table = {}
    for what, (columnar, rows) in by_operator().items():
        expected, _ = play(rows, batches, on_rows=True)
        if columnar is None:
            table[what] = "planned on rows"
            continue
        found, table[what] = play(columnar, batches, on_rows=False)
        assert found == expected, what
    return {what: why for what, why in table.items() if why != "columns"}


REFUSED = "refused"  # on rows, too: by the operator, or by Python
NOT_TAKEN, NOT_IN_WINDOWS = (
    f"on rows: records whose types{times} it does not take up, or not beside those before"
    for times in ("", ", nulls or times")
)
OF_WINDOWS = ("windows", "sliding windows", "sessions")
SUMS = ["keyed sum", *(f"{kind} of {of}" for kind in ("sum", "avg") for of in OF_WINDOWS)]
COMPARED_KEYED = [*(f"keyed {kind}" for kind in ("min", "max", "min_by", "max_by")), "order of a top-N"]
COMPARED_IN_WINDOWS = [
    *(f"{kind} of {of}" for kind in ("min", "max") for of in OF_WINDOWS),
    *(f"min_by of windows, {kind}" for kind in ("tumbling", "sessions")),
]
DISTINCT = [f"count_distinct of {of}" for of in OF_WINDOWS]
KEYS = [what for what in by_operator() if what.startswith("key of")]
#: Texts and times are added nowhere; truth values are, as Python does: the sum of one record is True. Rows are compared
#: nowhere, lists as Python does. What has lists in it is no key. The set of distinct Rows is for rows.
EXCEPTIONS = {
    "BOOLEAN": {**dict.fromkeys(SUMS, NOT_IN_WINDOWS), "keyed sum": NOT_TAKEN},
    **{name: dict.fromkeys(SUMS, REFUSED) for name in ("STRING", "CHAR", "SQL_DATE", "SQL_TIME", "SQL_TIMESTAMP")},
    "ROW": {
        **dict.fromkeys([*SUMS, *COMPARED_KEYED, *COMPARED_IN_WINDOWS], REFUSED),
        **dict.fromkeys(DISTINCT, NOT_IN_WINDOWS),
    },
    "ARRAY": {
        **dict.fromkeys([*SUMS, *DISTINCT, *KEYS], REFUSED),
        **dict.fromkeys(COMPARED_KEYED, NOT_TAKEN),
        **dict.fromkeys(COMPARED_IN_WINDOWS, NOT_IN_WINDOWS),
    },
    "MAP": dict.fromkeys([*SUMS, *DISTINCT, *KEYS, *COMPARED_KEYED, *COMPARED_IN_WINDOWS], REFUSED),
}


@pytest.mark.parametrize("name", TYPES)
def test_what_is_not_on_columns_is_known(name):
    assert table_of(name) == EXCEPTIONS.get(name, {})


def test_every_type_has_a_column_or_is_known_to_have_none():
    for name, (declared, kind, _) in TYPES.items():
        assert name in NO_COLUMN or declared.to_arrow() == kind
    assert [name for name, declared in NO_COLUMN.items() if declared.to_arrow() is not None] == []
    named = {name for name in vars(Types) if name[0].isalpha() and name.isupper()}
    alike = {"ROW_NAMED", "TUPLE", "PRIMITIVE_ARRAY", "BASIC_ARRAY", "OBJECT_ARRAY", "LIST"}  #: as ROW and ARRAY
    assert named - alike == {*TYPES, *NO_COLUMN} - {"ARRAY"}
