"""Records that are objects of a dataclass or named tuple: whatever comes, columns of them give what objects give."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.records import ColumnBatch, Row
from engine.operators import memory_watch, session_unsent, spilling_intervals, spilling_sessions, window_join_state
from engine.operators.aggregate import FieldAggregate, KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.column_aggregate import ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_deduplicate import column_deduplicate
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_regular_join import column_regular_join
from engine.operators.column_session import column_session
from engine.operators.column_top_n import column_top_n
from engine.operators.column_window import column_window
from engine.operators.column_window_join import column_window_join
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import Kind
from engine.operators.compile.folds import translate_aggregate, translate_choice, translate_reduce
from engine.operators.compile.pairs import translate_pair
from engine.operators.compile.translate import Shape
from engine.operators.computed_keys import key_function_of
from engine.operators.deduplicate import FIRST, LAST, DeduplicateSpec
from engine.operators.field_aggregates import RowAggregates, WindowRecord, count, max_, sum_
from engine.operators.functions import AggregateFunction, JoinFunction
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import FieldKey
from engine.operators.regular_join import RegularJoinSpec
from engine.operators.top_n import TopNSpec
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import JoinedFunction, window_call
from engine.time.assigners import EventTimeSessionWindows, TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import Case, Rows, Watermark
from tests.unit.operators.test_restore import FULL, INCREMENTAL, batch_of
from tests.unit.operators.test_restore_columns import BARRIER, PHASES, disturbed, in_order, undisturbed


@dataclasses.dataclass(frozen=True)
class Order:
    key: int
    price: int
    name: str = "x"


class Pay(NamedTuple):
    key: int
    price: int
    name: str


@dataclasses.dataclass(frozen=True)
class Both:
    key: int
    total: int
    names: str


class Joining(JoinFunction):
    def __init__(self):
        self.factor = 2

    def join(self, left, right):
        return Both(left.key, left.price * self.factor + right.price, left.name + right.name)


SCHEMA = pa.schema([("key", pa.int64()), ("price", pa.int64()), ("name", pa.string())])
KINDS = (Kind.INT, Kind.INT, Kind.STR)
SHAPES = {kind: Shape(KINDS, names=("key", "price", "name"), record=kind) for kind in (Order, Pay)}
ROWS = Shape(KINDS, names=("key", "price", "name"))
FEW = st.integers(-3, 3)
FIELDS = st.tuples(FEW, st.one_of(FEW, FEW, FEW, st.just(2**63 - 1)), st.sampled_from("aAé"))


@st.composite
def batches(draw, kinds, side=0):
    """As columns, or (rarely) as the objects themselves."""
    rows = draw(st.lists(FIELDS.map(lambda fields: kinds[side](*fields)), min_size=1, max_size=6))
    stamps = draw(st.lists(st.integers(-5, 50), min_size=len(rows), max_size=len(rows)))
    return Rows(rows, stamps, side, draw(st.sampled_from([SCHEMA] * 8 + [None])))


def scripts(*kinds):
    steps = [batches(kinds, side) for side in range(len(kinds))]
    return st.lists(st.one_of(*steps, *steps, BARRIER, st.integers(0, 55).map(Watermark)), max_size=12).map(
        lambda made: [*in_order(made), Watermark(TIME_MAX_MS)]
    )


def known_script(*kinds):
    """Records of all sides that are partners, a crash, some late."""
    steps = []
    for at, then in ((3, None), (8, 2), (21, 1), (6, Watermark(24)), (26, Watermark(TIME_MAX_MS))):
        for side, kind in enumerate(kinds):
            rows = [kind(key, at + side - key, "aA"[key % 2]) for key in (0, 1, 2, 1)]
            steps.append(Rows(rows, [at, at + 1, at, at + 2], side, SCHEMA))
        steps += [then] if at != 8 else [Watermark(9), then]
    return steps


def check_all(columns, rows, keys, *kinds, config=INCREMENTAL, examples=2):
    assert not isinstance(columns, str | None), columns

    @settings(max_examples=examples, deadline=None, phases=PHASES)
    @given(scripts(*kinds))
    @example(known_script(*kinds))
    def check(script):
        assert disturbed(Case((columns,), script, keys), config) == undisturbed(Case((rows,), script, keys))

    check()
    with OperatorHarness(columns) as harness:
        harness.process_batch(batch_of([kinds[0](1, 2, "a")], [60], SCHEMA))
        assert not harness.head._is_on_rows, harness.head.tier("planned")


def of(kind):
    return key_function_of(lambda o: o.key, SHAPES[kind])


# --- joins ------------------------------------------------------------------------------------------------------------

JOINED = {
    "an object": lambda a, b: Both(a.key, a.price + b.price, b.name),
    "a tuple": lambda a, b: (a.key, b.price, a.name),
    "a Row": lambda a, b: Row(key=a.key, price=b.price),
    "a method": Joining(),
    "called": lambda a, b: [a, b],
}


@pytest.mark.parametrize("kinds", [(Order, Order), (Order, Pay), (Pay, Order)], ids=lambda kinds: kinds[0].__name__)
@pytest.mark.parametrize("function", JOINED)
@pytest.mark.parametrize("join", ["interval", "window", "regular"])
def test_joins_are_those_of_objects(join, function, kinds):
    keys, shapes, call = (lambda a: a.key, lambda b: b.key), tuple(SHAPES[kind] for kind in kinds), JOINED[function]
    if join == "interval":
        rows = IntervalJoinSpec(keys, -5, 5, call.join if function == "a method" else call, ("late", "late"))
        columns = column_interval_join(rows, shapes)
    elif join == "window":
        joined = JoinedFunction(call, False)
        rows = WindowSpec(keys, TumblingEventTimeWindows(10, 0), EventTimeTrigger(), joined, None, None, 5)
        columns = column_window_join(rows, shapes)
    else:
        rows = RegularJoinSpec(keys, "inner", call, condition=lambda a, b: a.price <= b.price)
        columns = column_regular_join(rows, shapes)
        assert columns.is_condition_compiled
    is_bound = function == "a method" and join == "interval"
    assert (columns.shape is not None) is (function != "called" and not is_bound)
    check_all(columns, rows, keys, *kinds, examples=2)
    with OperatorHarness(columns) as harness:
        for side, kind in enumerate(kinds):
            harness.process_batch(batch_of([kind(1, 2, "a")], [5], SCHEMA), input_index=side)
        harness.watermark(100)
        (made,) = harness.output.batches
        assert isinstance(made, ColumnBatch) is (columns.shape is not None)


def test_joins_in_files_are_those_of_objects(monkeypatch):
    monkeypatch.setattr(spilling_intervals, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(window_join_state, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 100)
    keys, shapes = (FieldKey("key"), FieldKey("key")), (SHAPES[Order], SHAPES[Pay])
    rows = IntervalJoinSpec(keys, -5, 5, JOINED["called"], ("late", "late"))
    check_all(column_interval_join(rows, shapes), rows, keys, Order, Pay)
    called = JoinedFunction(JOINED["called"], False)
    rows = WindowSpec(keys, TumblingEventTimeWindows(10, 0), EventTimeTrigger(), called, None, None, 5, "late")
    check_all(column_window_join(rows, shapes), rows, keys, Order, Pay)


def test_pairs_of_objects_that_are_not_surely_the_same_are_refused():
    for function in (
        lambda a, b: a[0] + b.price,  # a dataclass has no fields by number
        lambda a, b: (*a, b.price),
        lambda a, b: b["price"],
        lambda a, b: a.nothing,
        lambda a, b: Row(a.key, b.key),
    ):
        with pytest.raises(NotCompilable):
            translate_pair(function, SHAPES[Order], SHAPES[Pay])
    translate_pair(lambda a, b: (b[0], *b, a.price), SHAPES[Order], SHAPES[Pay])


# --- one input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Order, Pay])
@pytest.mark.parametrize("what", ["first", "last", "top", "sum"])
def test_first_and_last_rows_top_n_and_sums_by_a_property_are_those_of_objects(what, kind):
    key = of(kind)
    if what == "first":
        rows = DeduplicateSpec(key.given, FIRST)
        columns = column_deduplicate(rows, key)
    elif what == "last":
        rows = DeduplicateSpec(key.given, LAST, ("a", "b", "c"))
        columns = column_deduplicate(rows, key)
    elif what == "top":
        rows = TopNSpec(key.given, 2, (("price", False),), True)
        columns = column_top_n(rows, key)
    else:
        rows = KeyedAggregateSpec(key.given, "sum", "price")
        columns = ColumnAggregateSpec(key.selector, "sum", "price", key=key)
    if kind is Order and what in ("last", "top"):  # a field of its results is an object
        with OperatorHarness(columns) as harness:
            harness.process_batch(batch_of([Order(1, 2, "a")], [60], SCHEMA))
            assert harness.head._is_on_rows
        return
    check_all(columns, rows, (key.given,), kind)


def price_added(a, b):
    return Order(a.key, a.price + b.price, b.name)


def price_replaced(a, b):
    total = a.price + b.price
    return dataclasses.replace(a, price=total)


@dataclasses.dataclass
class Counted:
    key: int
    price: int
    seen: int = 1


def by_default(a, b):
    return Counted(b.key, max(a.price, b.price))


def paid(a, b):
    key, price, name = a
    return Pay(key, price + b.price, name)


def unpacked(a, b):
    key, price, name = a
    return Order(key, price, name)


REDUCED = {
    "made": (Order, price_added),
    "replaced": (Order, price_replaced),
    "picked": (Order, lambda a, b: b if b.price >= a.price else a),
    "made as a tuple": (Pay, paid),
    "replaced as a tuple": (Pay, lambda a, b: a._replace(price=a[1] + b[1], name=b.name)),
    "whole": (Pay, lambda a, b: b),
}


@pytest.mark.parametrize("name", REDUCED)
def test_reduced_objects_are_those_of_rows(name):
    kind, function = REDUCED[name]
    key = of(kind)
    columns = ColumnReduceSpec(key.selector, function, key=key)
    check_all(columns, KeyedReduceSpec(key.given, function), (key.given,), kind, config=FULL, examples=4)
    by_name = replace(columns, key_selector=FieldKey("key"), key=None)
    check_all(by_name, KeyedReduceSpec(FieldKey("key"), function), (FieldKey("key"),), kind, examples=2)


def test_reduced_rows_are_rows():
    def function(a, b):
        return Row(key=a.key, price=a["price"] + b[1], name=b.name)

    columns, rows = ColumnReduceSpec(FieldKey(0), function), KeyedReduceSpec(FieldKey(0), function)
    assert translate_reduce(function, ROWS).folds[1].kind == "sum"
    check_all(columns, rows, (FieldKey(0),), lambda *fields: Row(key=fields[0], price=fields[1], name=fields[2]))


def test_reduce_functions_that_are_not_surely_the_same_are_refused():
    for function, shape in (
        (lambda a, b: (a.key, a.price + b.price, a.name), SHAPES[Order]),  # a tuple is no Order
        (lambda a, b: (a.key, a.price + b.price, a.name), ROWS),
        (lambda a, b: Pay(a.key, a.price, a.name), SHAPES[Order]),
        (lambda a, b: Order(a[0], a.price + b.price), SHAPES[Order]),
        (lambda a, b: Order(a["key"], a.price + b.price), SHAPES[Order]),
        (by_default, SHAPES[Pay]),
        (lambda a, b: Row(price=a.price, key=a.key, name=a.name), ROWS),
        (lambda a, b: Row(a.key, a.price, a.name), ROWS),
        (lambda a, b: dataclasses.replace(a, nothing=1), SHAPES[Order]),
        (lambda a, b: a._replace(price=1), SHAPES[Order]),
        (paid, SHAPES[Order]),
        (unpacked, SHAPES[Order]),
    ):
        with pytest.raises(NotCompilable):
            translate_reduce(function, shape)
    counted = Shape((Kind.INT,) * 3, names=("key", "price", "seen"), record=Counted)
    assert [fold.kind for fold in translate_reduce(by_default, counted).folds] == ["last", "max", "last"]
    with pytest.raises(NotCompilable):
        translate_choice(lambda a, b: a if a[1] > b[1] else b, SHAPES[Order])


# --- windows and sessions ---------------------------------------------------------------------------------------------


class Totals(AggregateFunction):
    def create_accumulator(self):
        return 0, 0

    def add(self, order, held):
        return held[0] + 1, held[1] + order.price

    def get_result(self, held):
        return held

    def merge(self, a, b):
        return a[0] + b[0], a[1] + b[1]


FOLDS = {
    "aggregates": AggregateFold(RowAggregates([count(), sum_("price"), max_("price")])),
    "a record": ReduceFold(FieldAggregate("sum", "price")),
    "a choice": ReduceFold(FieldAggregate("max_by", "price")),
    "picked": ReduceFold(lambda a, b: b if b.price >= a.price else a),
    "an accumulator": AggregateFold(Totals()),
}


@pytest.mark.parametrize("kind", [Order, Pay])
@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("is_session", [True, False], ids=["sessions", "windows"])
def test_sessions_and_windows_are_those_of_objects(is_session, fold, kind):
    key = of(kind)
    assigner = EventTimeSessionWindows(5) if is_session else TumblingEventTimeWindows(10, 0)
    function = WindowRecord(1) if fold == "aggregates" else None
    rows = WindowSpec((key.given,), assigner, EventTimeTrigger(), window_call(function), FOLDS[fold], None, 4, "late")
    columns = (column_session if is_session else column_window)(rows, SHAPES[kind], key=key)
    if is_session and fold == "an accumulator":
        assert columns is None
        return
    check_all(columns, rows, (key.given,), kind)


def test_sessions_of_objects_in_files_are_those_of_objects(monkeypatch):
    monkeypatch.setattr(spilling_sessions, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_spill", lambda self, held_bytes: held_bytes > 0)
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 500)
    key = of(Order)
    for fold in ("aggregates", "picked"):
        function = WindowRecord(1) if fold == "aggregates" else None
        assigner = EventTimeSessionWindows(5)
        call = window_call(function)
        rows = WindowSpec((key.given,), assigner, EventTimeTrigger(), call, FOLDS[fold], None, 4, "late")
        check_all(column_session(rows, SHAPES[Order], key), rows, (key.given,), Order, examples=4)


@pytest.mark.parametrize("named", [Order, True, False])
def test_late_records_that_a_checkpoint_has_are_what_they_were(named):
    assert session_unsent._named_in(session_unsent.metadata_of(session_unsent.LATE, named=named)) is named


def test_sums_beyond_64_bits_in_sessions_of_rows_and_objects_are_those_of_rows():
    """The rest of a batch is done by the user's key and fields by name."""
    for make, shape in ((Order, SHAPES[Order]), (lambda *f: Row(key=f[0], price=f[1], name=f[2]), ROWS)):
        rows = WindowSpec(
            (FieldKey("key"),),
            EventTimeSessionWindows(5),
            EventTimeTrigger(),
            window_call(WindowRecord(1)),
            FOLDS["aggregates"],
        )
        some = [make(1, price, "a") for price in (2**63 - 1, 2**63 - 1, 5)]
        script = [Rows(some, [1, 2, 3], schema=SCHEMA), Watermark(TIME_MAX_MS)]
        keys = (FieldKey("key"),)
        columns = column_session(rows, shape)
        assert disturbed(Case((columns,), script, keys), FULL) == undisturbed(Case((rows,), script, keys))


def test_what_an_aggregate_function_adds_of_rows_and_objects_is_compiled():
    for shape in (ROWS, *SHAPES.values()):
        assert [fold.kind for fold in translate_aggregate(Totals(), shape).folds] == ["sum", "sum"]
