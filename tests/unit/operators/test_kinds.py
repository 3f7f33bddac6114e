"""Columns with the kinds of a changelog: who takes them does what rows do, and everybody else gets rows."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine
from engine.common import Duration, WatermarkStrategy
from engine.connectors.part_writers import Encoder
from engine.core.errors import ProgramError
from engine.core.ids import OperatorID
from engine.core.records import BATCH_ROWS_MAX, ColumnBatch, Row, RowBatch, RowKind, kind_of, rows_of
from engine.core.type_info import Types
from engine.graph.job_graph import ChainedOperator, ChainSpec
from engine.operators.base import Operator, OperatorSpec, batch_for
from engine.operators.map_batches import MapBatchesSpec
from engine.operators.stateless import FilterSpec, FlatMapSpec, MapSpec, ProjectSpec
from engine.operators.timestamps import TimestampsSpec
from engine.runtime.taskmanager.chain_runner import OperatorChain
from engine.time.watermarks import FieldTimestamps
from tests.testing.operator_harness import OperatorHarness
from tests.unit.formats.test_column_lines import FORMATS, written
from tests.unit.operators.test_regular_join import shown
from tests.unit.operators.test_restore_columns import PHASES

#: Operators that take columns with kinds. Each is in a test here: whoever is added needs one, too. Those that keep
#: state: beside their other tests.
TAKES_KINDS = {
    "engine.operators.column_group_aggregate._ColumnGroupAggregateOperator",
    "engine.operators.column_last_row._ColumnLastRowOperator",
    "engine.operators.column_regular_join._ColumnRegularJoinOperator",
    "engine.operators.column_top_n._ColumnTopNOperator",
    "engine.operators.row_operator.RowOperator",
    "engine.operators.stateless._ProjectOperator",
    "engine.operators.map_batches._MapBatchesOperator",
    "engine.operators.timestamps._TimestampsOperator",
    "engine.connectors.file_sinks._FileSinkOperator",
    "engine.connectors.file_sink._FileSinkOperator",
    "engine.connectors.simple._DiscardOperator",
}
INSERT, BEFORE, AFTER, DELETE = range(4)
ROW = st.tuples(
    st.integers(0, 3),
    st.integers(0, 9),
    st.one_of(st.none(), st.sampled_from(["", "ä"])),
    st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.5])),
    st.one_of(st.none(), st.integers(-9, 9)),
)


def changes(rows, *, named=True, stamped=False):
    kinds = np.array([row[0] for row in rows], np.int8)
    types = [pa.int64(), pa.string(), pa.float64(), pa.int32()]
    arrays = [pa.array([row[1 + at] for row in rows], kind) for at, kind in enumerate(types)]
    columns = pa.RecordBatch.from_arrays(arrays, names=list("abcd"))
    return ColumnBatch(columns, np.arange(len(rows)) if stamped else None, named=named, kinds=kinds)


SOME = [(INSERT, 1, "x", 0.5, 1), (BEFORE, 2, None, -0.0, None), (AFTER, 3, "ü", None, 2), (DELETE, 4, "", 1.0, 3)]


def all_operators() -> list[type[Operator]]:
    for module in pkgutil.walk_packages(engine.__path__, "engine."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    found: list[type[Operator]] = []
    waiting: list[type[Operator]] = [Operator]
    while waiting:
        subclasses = [kind for kind in waiting.pop().__subclasses__() if kind.__module__.startswith("engine.")]
        found += subclasses
        waiting += subclasses
    return found


def test_all_other_operators_get_rows():
    takers, others = set(), 0
    for kind in all_operators():
        batch = batch_for(object.__new__(kind), changes(SOME)) if not inspect.isabstract(kind) else None
        if isinstance(batch, ColumnBatch):
            takers.add(f"{kind.__module__}.{kind.__qualname__}")
        elif batch is not None:
            others += 1
            assert [str(kind_of(row)) for row in batch.rows] == ["+I", "-U", "+U", "-D"]
    assert takers == TAKES_KINDS
    assert others > 40


class Seen(Operator):
    """Hands on what it gets."""

    def __init__(self, seen):
        self.seen = seen

    def process_batch(self, input_index, batch):
        self.seen.append(type(batch))
        self.out.emit(batch)


class Changing(Operator):
    """Gives columns with kinds, whatever comes."""

    def process_batch(self, input_index, batch):
        self.out.emit(changes(SOME))


class OfOperator(OperatorSpec):
    def __init__(self, operator):
        self.operator = operator

    def build(self):
        return self.operator


def test_a_chain_gives_rows_to_whoever_is_silent_at_its_head_and_within_it():
    seen: list[type] = []
    specs = [Seen(seen), Changing(), Seen(seen)]
    operators = tuple(
        ChainedOperator(
            OperatorID.from_text(str(at)), str(at), OfOperator(one), () if at == 2 else ((at + 1, None, 0),)
        )
        for at, one in enumerate(specs)
    )
    chain = OperatorChain(ChainSpec(operators, ()), [])
    for at, operator in enumerate(chain.operators):
        operator.out = chain._outputs[at]
    chain.process_batch(0, changes(SOME))
    chain.process_batch(0, RowBatch([1]))
    assert seen == [RowBatch] * 4


# --- those that take them ---------------------------------------------------------------------------------------------


def outcome(spec, batches):
    """Return what comes of each batch, with kinds and times, and how many of the results are columns."""
    found, num_columns = [], 0
    with OperatorHarness(spec) as harness:
        for batch in batches:
            harness.process_batch(batch)
            num_columns += sum(isinstance(each, ColumnBatch) for each in harness.output.batches)
            found.append((list(map(shown, harness.output.rows)), harness.output.timestamps_ms))
            harness.output.batches.clear()
        return found, harness.output.watermarks_ms, num_columns


BY_FIELD = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_millis(1)).with_timestamp_assigner(
    FieldTimestamps(0)
)
#: name → spec, whether columns come out where no value is in doubt
SPECS = {
    "filter, compiled": (FilterSpec(lambda row: row["a"] > 3), True),
    "filter of all": (FilterSpec(lambda row: row[0] >= 0), True),
    "filter by kind": (FilterSpec(lambda row: kind_of(row) is not RowKind.UPDATE_BEFORE), False),
    "map to itself": (MapSpec(lambda row: row), True),
    "map to fields": (MapSpec(lambda row: (row[0], row.b)), True),
    "map to a number": (MapSpec(lambda row: row.a * 2), True),
    "map to a Row": (MapSpec(lambda row: Row.of_kind(row.get_row_kind(), row[3], row[1])), False),
    "flat_map": (FlatMapSpec(lambda row: [row, row]), False),
    "event time": (TimestampsSpec(BY_FIELD), True),
    "event time, none": (TimestampsSpec(WatermarkStrategy.no_watermarks()), False),
}


@pytest.mark.parametrize("name", SPECS)
def test_results_are_those_of_rows(name):
    spec, stays = SPECS[name]
    outcome(spec, [changes(SOME)])

    @settings(max_examples=12, deadline=None, phases=PHASES)
    @given(st.lists(st.tuples(st.lists(ROW, min_size=1, max_size=9), st.booleans()), max_size=4))
    def check(steps):
        batches = [changes(rows, stamped=stamped) for rows, stamped in steps]
        ours, expected = outcome(spec, batches), outcome(spec, map(rows_of, batches))
        assert ours[:2] == expected[:2]
        if stays:
            assert ours[2] == sum(bool(rows) for rows, _ in ours[0])

    check()


@pytest.mark.parametrize("name", SPECS)
def test_so_are_those_of_rows_without_names(name):
    spec, _ = SPECS[name]
    batches = [changes(SOME, named=False)] * 2
    if name == "map to a number":
        spec = MapSpec(lambda row: row[0] * 2)
    if name in ("filter, compiled", "map to fields"):
        return  # by name
    assert outcome(spec, batches)[:2] == outcome(spec, map(rows_of, batches))[:2]


@pytest.mark.parametrize(
    "spec",
    [ProjectSpec((0, 2)), MapBatchesSpec(lambda columns: columns.select([0]), output_type=Types.TUPLE([Types.LONG()]))],
)
def test_operators_whose_results_have_no_kind_refuse_what_is_taken_back(spec):
    told = []
    for batch in (changes(SOME), changes(SOME).to_rows(), changes(SOME, named=False).to_rows()):
        with pytest.raises(ProgramError, match=r"got records of kind \+U and -D and -U: its results are") as error:
            outcome(spec, [batch])
        told.append(str(error.value))
    assert len(set(told)) == 1
    inserted = changes([(INSERT, 1, "x", 0.5, 1)] * 3)
    assert outcome(spec, [inserted])[0] == outcome(spec, [inserted.to_rows()])[0]


TYPE_INFOS = [
    None,
    Types.ROW_NAMED(list("abcd"), [Types.LONG(), Types.STRING(), Types.DOUBLE(), Types.INT()]),
    Types.TUPLE([Types.LONG(), Types.STRING(), Types.DOUBLE(), Types.INT()]),
    Types.STRING(),
]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("type_info", TYPE_INFOS, ids=str)
@pytest.mark.parametrize("file_format", FORMATS, ids=str)
def test_lines_are_those_of_rows(file_format, type_info, named):
    batch = changes(SOME, named=named)
    lines = written(file_format, batch, type_info)
    assert lines == written(file_format, batch.to_rows(), type_info)
    if file_format == Encoder():
        assert lines.splitlines()[3] == b"-D[4, , 1.0, 3]"


def test_printed_lines_are_made_without_rows(monkeypatch):
    batch = changes(SOME)
    lines = written(Encoder(), batch)
    monkeypatch.setattr("engine.connectors.part_writers.rows_of", None)
    assert (
        written(Encoder(), batch)
        == lines
        == b"+I[1, x, 0.5, 1]\n-U[2, null, -0.0, null]\n+U[3, \xc3\xbc, null, 2]\n" + (b"-D[4, , 1.0, 3]\n")
    )


def test_parts_of_a_batch_keep_them():
    batch = changes(SOME * 3, stamped=True)
    parts = [batch.slice(at, at + 5) for at in range(0, len(batch), 5)]
    rows = [row for part in parts for row in map(shown, part.to_rows().rows)]
    assert rows == list(map(shown, batch.to_rows().rows))
    assert batch.to_rows().slice(3, 4).rows == [Row.of_kind(RowKind.DELETE, a=4, b="", c=1.0, d=3)]
    assert changes(SOME, named=False).to_rows().rows[1] == Row.of_kind(RowKind.UPDATE_BEFORE, 2, None, -0.0, None)
    assert len(batch) < BATCH_ROWS_MAX
