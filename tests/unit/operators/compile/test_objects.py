"""Records that are objects of dataclasses and named tuples: columns give what the interpreter gives."""

from __future__ import annotations

import collections
import dataclasses
import pickle
import subprocess
import sys
import typing

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.common import Row
from engine.core.errors import UserCodeError
from engine.core.record_class import class_from, class_pickle, why_not_plain
from engine.core.records import ColumnBatch, RowBatch
from engine.core.type_info import Types
from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.base import batch_for
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.compile.column_steps import ColumnFunction
from engine.operators.functions import callable_of
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.row_output import RowMap
from engine.operators.stateless import FilterSpec, MapSpec
from engine.operators.text import TokenizeSpec, WordTokenizer
from engine.protocol.stream import Records
from engine.runtime.exchange.column_hash import key_columns
from engine.runtime.exchange.wire import Decoder, Encoder
from tests.testing.operator_harness import OperatorHarness


@dataclasses.dataclass
class Order:
    RATE: typing.ClassVar[float] = 0.25

    id: int
    price: float
    name: str = "?"

    @property
    def tax(self) -> float:
        return self.price * self.RATE

    def total(self, count, *, extra=1):
        return self.price * count + extra

    def doubled(self):
        return Order(self.id, self.price * 2, self.name)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    id: int
    price: float
    name: str
    more: list[int] = dataclasses.field(default_factory=list)


class Named(typing.NamedTuple):
    id: int
    price: float
    name: str = "n"


Plain = collections.namedtuple("Plain", "id price name")

ROW = Types.ROW_NAMED(["a", "b", "c"], [Types.LONG(), Types.DOUBLE(), Types.STRING()])
CLASSES = [Order, Frozen, Named, Plain]
VALUES = st.lists(
    st.tuples(
        st.one_of(st.integers(-9, 9), st.sampled_from([2**63 - 1, -(2**63)])),
        st.one_of(st.floats(-9, 9), st.sampled_from([float("nan"), -0.0, 1e308])),
        st.one_of(st.none(), st.text("aß,", max_size=3)),
    ),
    min_size=1,
    max_size=6,
)


def batch_of(kind, values):
    arrays = [pa.array(own, to) for own, to in zip(zip(*values), (pa.int64(), pa.float64(), pa.string()), strict=True)]
    names = ["id", "price", "name"]
    if kind is Frozen:
        arrays.append(pa.array([[row[0] % 3] for row in values]))
        names.append("more")
    return ColumnBatch(pa.RecordBatch.from_arrays(arrays, names=names), named=kind or False)


def told_apart(rows):
    return [(type(row), repr(row)) for row in rows]


def check(function, batch, *, is_filter=False):
    """Return whether it was compiled; then columns give what the interpreter gives."""
    compiled = ColumnFunction(function, is_filter=is_filter)
    result = compiled.apply(batch)
    seen = batch.to_rows().rows
    call = callable_of(function, "filter" if is_filter else "map")
    try:
        expected = [row for row in seen if call(row)] if is_filter else [call(row) for row in seen]
    except Exception:
        assert result is None
        return False
    if result is not None:
        assert told_apart(result.to_rows().rows) == told_apart(expected)
    return result is not None


def discount(o):
    if o.price > 3:
        return Order(o.id, o.price - 1, name="big")
    return Order(o.id + 1, price=o.price)


def scaled(o, by=2.0, *, name="x"):
    return Frozen(o.id, o.price * by, name, [])


OF_ALL = [
    lambda o: o.price * 2,
    lambda o: (o.name, o.id + 1),
    lambda o: o,
    lambda o: Row(a=o.id, b=o.name),
    lambda o: Order(o.id, o.price),
    lambda o: Order(price=o.price, id=3, name=o.name),
    lambda o: Named(o.id, o.price) if o.id > 2 else Named(7, 1.0, "m"),
    lambda o: Plain(o.id, o.id < 3, o.name),
    discount,
]  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
@settings(max_examples=8, deadline=None)
@given(VALUES)
def test_functions_of_objects_give_what_the_interpreter_gives(kind, values):
    batch = batch_of(kind, values)
    for function in OF_ALL:
        check(function, batch)
    for condition in (lambda o: o.price > 0.5, lambda o: o.id % 2 == 0 and o.name is not None):
        check(condition, batch, is_filter=True)
    assert check(OF_ALL[1], batch_of(kind, [(1, 2.0, "a")]))


TAME = [(1, 2.0, "a"), (5, 9.5, "b"), (3, -0.0, "c")]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("at", range(len(OF_ALL)))
def test_they_are_compiled(kind, at):
    assert check(OF_ALL[at], batch_of(kind, TAME))


@pytest.mark.parametrize(
    ("kind", "function", "is_compiled"),
    [
        (Order, lambda o: o.tax + o.RATE, True),
        (Order, lambda o: o.total(o.id, extra=2), True),
        (Order, lambda o: o.total(3), True),
        (Order, lambda o: o.doubled(), True),
        (Order, lambda o: dataclasses.replace(o, price=o.price + 1), True),
        (Order, lambda o: dataclasses.replace(o, more=1), False),
        (Frozen, lambda o: dataclasses.replace(o, id=0), True),
        (Order, lambda o: o[0], False),
        (Order, lambda o: o["id"], False),
        (Order, lambda o: (*o, 1), False),
        (Order, lambda o: o.total(1, 2), False),
        (Order, lambda o: o.__class__.__name__, False),
        (Order, lambda o: Order(o.id), False),
        (Named, lambda o: o[0] + o[-2], True),
        (Named, lambda o: o._replace(name="b"), True),
        (Named, lambda o: Order(*o), True),
        (Named, lambda o: Plain(*o), True),
        (Named, lambda o: o["id"], False),
        (Named, lambda o: o.count(1), False),
        (Named, RowMap(lambda o: o, ROW), True),
        (Order, RowMap(lambda o: o, ROW), True),
        (Named, RowMap(lambda o: Plain(1, o.price, "x"), ROW), True),
        (None, lambda r: Order(*r), True),
        (None, lambda r: scaled(Order(r[0], r[1])), False),
    ],
)  # fmt: skip
def test_what_is_special_to_a_class(kind, function, is_compiled):
    if isinstance(function, RowMap):
        function.open(None)
    assert check(function, batch_of(kind, TAME)) is is_compiled


def test_arguments_that_are_not_given_have_their_defaults():
    assert not check(scaled, batch_of(Order, TAME))  # a list is no constant
    assert check(lambda o: o.total(2, extra=0.5), batch_of(Order, TAME))

    def shifted(o, by=2, *, more=0.5):
        return o.price + by * more

    compiled = ColumnFunction(shifted, is_filter=False)
    assert compiled.apply(batch_of(Order, TAME)).to_rows().rows == [3.0, 10.5, 1.0]
    shifted.__kwdefaults__ = {"more": 1}
    assert compiled.apply(batch_of(Order, TAME)).to_rows().rows == [4.0, 11.5, 2.0]


def test_a_class_whose_method_changes_is_compiled_again():
    @dataclasses.dataclass
    class Changing:
        id: int
        price: float
        name: str

        def worth(self):
            return self.price

    compiled = ColumnFunction(lambda o: o.worth(), is_filter=False)
    batch = batch_of(Changing, TAME)
    assert compiled.apply(batch).to_rows().rows == [2.0, 9.5, 0.0]
    Changing.worth = lambda self: self.price + 1
    assert compiled.apply(batch).to_rows().rows == [3.0, 10.5, 1.0]
    Changing.worth = Order.total
    assert compiled.apply(batch) is None


# --- classes ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Checked:
    x: int

    def __post_init__(self):
        self.x = abs(self.x)


@dataclasses.dataclass
class OwnInit:
    x: int

    def __init__(self, x):
        self.x = x + 1


@dataclasses.dataclass
class ByName:
    x: int = dataclasses.field(kw_only=True)


class NoDataclass(Order):
    pass


@dataclasses.dataclass
class Longer(Order):
    more: int = 3


@dataclasses.dataclass
class Watched:
    x: int

    def __setattr__(self, name, value):
        object.__setattr__(self, name, value * 2)


class Swapped(Plain):
    def __new__(cls, a, b, c):
        return Plain.__new__(cls, c, b, a)


class Pretender(tuple):
    _fields = ("a",)

    def __new__(cls, a):
        return tuple.__new__(cls, (a, a))


@dataclasses.dataclass
class Computed:
    x: int = 0


Computed.x = property(lambda self: 7, lambda self, value: None)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        *[(kind, "") for kind in (*CLASSES, Longer)],
        (Checked, "it has a __post_init__()"),
        (OwnInit, "its __init__() is its own"),
        (ByName, "it has fields that its __init__() does not take by position"),
        (NoDataclass, "its __init__() is its own"),
        (Watched, "it has a __setattr__()"),
        (Swapped, "its __new__() is its own"),
        (Pretender, "its __new__() is its own"),
        (Computed, "its field x is computed"),
        (int, "no dataclass and no named tuple with fields"),
    ],
)
def test_only_what_is_nothing_but_its_fields_is_plain(kind, reason):
    assert why_not_plain(kind) == reason
    if reason and kind is not int:
        compiled = ColumnFunction(eval("lambda o: kind(1)", {"kind": kind}), is_filter=False)
        assert compiled.apply(batch_of(Order, TAME)) is None


def test_a_class_of_the_program_is_plain_in_another_process_too():
    source = (
        "import pickle, sys\nfrom engine.core.record_class import class_from, why_not_plain\n"
        "found = list(map(class_from, pickle.load(sys.stdin.buffer)))\n"
        "print([why_not_plain(kind) for kind in found], found[0](1, 2.5))"
    )
    local = dataclasses.make_dataclass("Local", [("id", int), ("price", float)])
    kinds = [local, Frozen, Named, Plain, Longer]
    shown = subprocess.run(
        [sys.executable, "-c", source],
        input=pickle.dumps(list(map(class_pickle, kinds))),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert shown.stdout.decode().strip() == "['', '', '', '', ''] Local(id=1, price=2.5)"
    assert class_from(class_pickle(local)) is local


# --- how they travel --------------------------------------------------------------------------------------------------


def test_they_pass_an_exchange_and_the_class_travels_once():
    encoder, decoder = Encoder(), Decoder()
    batches = [batch_of(Order, TAME), batch_of(Order, TAME[:1]), batch_of(False, TAME), batch_of(Named, TAME)]
    batches.append(batch_of(Order, TAME))
    found, num_frames = [], []
    for batch in batches:
        frames = encoder.encode(Records(batch))
        num_frames.append(len(frames))
        for frame in frames:
            element = decoder.decode(frame.kind, b"".join(frame.buffers))
            if element is not None:
                found.append(element.batch)
    assert [told_apart(batch.to_rows().rows) for batch in found] == [told_apart(b.to_rows().rows) for b in batches]
    assert num_frames == [3, 1, 1, 2, 2]


def test_an_operator_that_does_not_know_them_gets_objects():
    for spec, form in ((TokenizeSpec(WordTokenizer()), RowBatch), (MapSpec(str), ColumnBatch)):
        assert type(batch_for(spec.build(), batch_of(Order, TAME))) is form
    with OperatorHarness(MapSpec(lambda o: [o.id])) as harness:
        harness.process_batch(batch_of(Order, TAME))
        assert harness.output.rows == [[1], [5], [3]]
    with OperatorHarness(FilterSpec(lambda o: o.price > 2)) as harness:
        harness.process_batch(batch_of(Order, TAME))
        assert told_apart(harness.output.rows) == told_apart([Order(5, 9.5, "b")])
        assert isinstance(harness.output.batches[0], ColumnBatch)


def test_keys_by_number_are_no_columns_of_dataclasses():
    assert key_columns(batch_of(Order, TAME), FieldKey(0)) is None
    assert key_columns(batch_of(Order, TAME), FieldKey("id")) is not None
    assert key_columns(batch_of(Named, TAME), ComposedKey((0, "name"))) is not None


def run(spec, batches, restored=None):
    with OperatorHarness(spec, restored=restored) as harness:
        error = ""
        try:
            for batch in batches:
                harness.process_batch(batch)
        except UserCodeError as raised:
            error = str(raised)
        taken = None if error else harness.snapshot(1)
        if not error:
            harness.end()
        return told_apart(harness.output.rows), bool(error), taken, harness.output.batches


@pytest.mark.parametrize("kind", [Order, Named])
@pytest.mark.parametrize("field", ["price", 1])
@pytest.mark.parametrize("how", ["sum", "max", "min_by"])
@pytest.mark.parametrize("key", [FieldKey("name"), ComposedKey(("name", "id"))])
def test_aggregations_of_objects_are_those_of_rows_and_go_on_from_snapshots(kind, field, how, key):
    rng = np.random.default_rng(5)
    values = [(int(n) % 3, float(n % 7) / 2, "ab"[n % 2]) for n in rng.integers(0, 99, 40)]
    batches = [batch_of(kind, values[at : at + 10]) for at in range(0, 40, 10)]
    theirs = run(KeyedAggregateSpec(key, how, field), [batch.to_rows() for batch in batches])
    ours = run(ColumnAggregateSpec(key, how, field), batches)
    assert ours[:2] == theirs[:2]
    assert ours[1] is (kind is Order and field == 1)
    if ours[1]:
        return
    assert all(isinstance(batch, ColumnBatch) for batch in ours[3])
    first = run(ColumnAggregateSpec(key, how, field), batches[:2])
    for rest in (batches[2:], [batch.to_rows() for batch in batches[2:]]):
        later = run(ColumnAggregateSpec(key, how, field), rest, restored=[first[2]])
        assert first[0] + later[0] == theirs[0]
        assert isinstance(later[3][0], type(rest[0]))
    mixed = run(ColumnAggregateSpec(key, how, field), [batches[0], batch_of(Plain, values[:5])])
    assert mixed[0][10:][0][0] in (kind, Plain)
    assert isinstance(mixed[3][-1], RowBatch)
