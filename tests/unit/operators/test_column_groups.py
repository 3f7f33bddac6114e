"""Running aggregates of a changelog on columns: what rows give, in that order, from any checkpoint."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.records import ColumnBatch, Row, RowKind, row_of_kind
from engine.operators.column_group_aggregate import ColumnGroupAggregateSpec, column_group_aggregate
from engine.operators.field_aggregates import avg, count, max_, sum_
from engine.operators.group_aggregate import GroupAggregateSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.stateless import MapSpec
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows
from tests.unit.operators.test_regular_join import shown
from tests.unit.operators.test_restore import FULL, INCREMENTAL, ROCKSDB, Run, batch_of, straight
from tests.unit.operators.test_restore_columns import BARRIER, PHASES, disturbed, undisturbed

SCHEMA = pa.schema(
    [
        ("k", pa.int64()),
        ("v", pa.int64()),
        ("x", pa.float64()),
        ("d", pa.decimal128(9, 2)),
        ("name", pa.string()),
        ("i", pa.int32()),
    ]
)
NAMES = Row(*SCHEMA.names)
KEY = FieldKey("k")
NAN = float("nan")
TAKING = [RowKind.UPDATE_BEFORE, RowKind.DELETE]
RECORD = st.tuples(
    st.one_of(st.none(), st.integers(0, 2)),
    st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([2**57, -(2**57), 2**53 + 1])),
    st.one_of(st.none(), st.sampled_from([0.0, -0.0, 0.1, 0.2, -1.5, NAN, float("inf")])),
    st.one_of(st.none(), st.decimals(-9, 9, places=2)),
    st.one_of(st.none(), st.sampled_from(["", "ä", "\U0001f600"])),
    st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)),
)
SPECS = {
    "all": GroupAggregateSpec(
        KEY, (count(), count("x"), sum_("v"), avg("v"), sum_("x"), avg("x"), sum_("d"), count("name"), sum_("i"))
    ),
    "named": GroupAggregateSpec(KEY, (sum_("v"), count("d")), names=("key", "total", "num")),
    "count": GroupAggregateSpec(KEY, (count(),)),
    "tuple": GroupAggregateSpec(ComposedKey(("k", "name")), (count(), avg("i"))),
    "float key": GroupAggregateSpec(FieldKey("x"), (count(), sum_("v"))),
    "in place": GroupAggregateSpec(KEY, (sum_("v"),), in_place=True),
    "in place, float": GroupAggregateSpec(FieldKey("x"), (sum_("d"),), in_place=True, names=tuple("abcdef")),
    "in place, the key": GroupAggregateSpec(FieldKey("i"), (sum_("i"),), in_place=True),
    "at the end": GroupAggregateSpec(KEY, (count(), sum_("x"), sum_("d")), emit_final=True),
    "in place at the end": GroupAggregateSpec(KEY, (sum_("i"),), in_place=True, emit_final=True),
}


def on_columns(rows):
    spec = column_group_aggregate(rows)
    assert isinstance(spec, ColumnGroupAggregateSpec)
    return spec


def of_kind(kind, record):
    return row_of_kind(kind, NAMES(*record))


@st.composite
def changelog(draw, there, max_size=9):
    """Records that come and go, and some that go though they never came. ``there``: changed."""
    rows = []
    for _ in range(draw(st.integers(0, max_size))):
        kind = RowKind.INSERT
        if there and draw(st.booleans()):
            record = there.pop(draw(st.integers(0, len(there) - 1)))
            kind = draw(st.sampled_from(TAKING))
        else:
            record = draw(RECORD)
            if draw(st.integers(0, 9)):
                there.append(record)
            else:
                kind = draw(st.sampled_from(TAKING))
        rows.append(of_kind(kind, record))
    return rows


@st.composite
def batches(draw):
    there: list[tuple] = []
    steps = [(draw(changelog(there)), draw(st.booleans())) for _ in range(draw(st.integers(0, 4)))]
    return [step for step in steps if step[0]]


def play(spec, steps, *, is_columns, schemas=()):
    seen = []
    with OperatorHarness(spec, MapSpec(shown)) as harness:
        for number, (rows, stamped) in enumerate(steps):
            schema = (dict(enumerate(schemas)).get(number) or SCHEMA) if is_columns else None
            harness.process_batch(batch_of(rows, list(range(len(rows))) if stamped else None, schema))
            seen.append((harness.output.rows, harness.output.timestamps_ms))
            harness.output.batches.clear()
        is_on_rows = is_columns and harness.head._is_on_rows
        harness.end()
        return seen, Counter(harness.output.rows), is_on_rows


@pytest.mark.parametrize("name", SPECS)
def test_columns_give_what_rows_give_in_that_order(name):
    rows = SPECS[name]

    @settings(max_examples=40, deadline=None, phases=PHASES)
    @given(batches())
    def check(steps):
        ours = play(on_columns(rows), steps, is_columns=True)
        assert ours[:2] == play(rows, steps, is_columns=False)[:2]
        assert not ours[2]

    check()


def inserted(*records):
    return [of_kind(RowKind.INSERT, record) for record in records]


def deleted(*records):
    return [of_kind(RowKind.DELETE, record) for record in records]


@pytest.mark.parametrize(
    ("aggregate", "records", "why"),
    [
        (sum_("v"), [(1, 2**63 - 1), (1, 1)], "an integer sum beyond 64 bits"),
        (sum_("v"), [(1, -(2**63))], "an integer sum beyond 64 bits"),
        (avg("d"), [(1, 5)], "records whose types"),
    ],
)
def test_what_columns_cannot_hold_goes_to_rows_with_all_that_is_kept(aggregate, records, why):
    rows = GroupAggregateSpec(KEY, (count(), aggregate))
    some = [(key, v, 0.5, Decimal(v % 7), "5", 1) for key, v in records]
    plain = [(1, 5, 0.25, Decimal("0.05"), None, 2), (2, 6, 0.25, None, None, 2)]
    steps = [
        (inserted(*plain), True),
        (inserted(*some), False),
        (deleted(*some, plain[0]), False),
        (deleted(*plain), 1),
    ]
    if aggregate.field == "name":
        return
    with OperatorHarness(on_columns(rows)) as harness:
        for given_rows, _ in steps:
            harness.process_batch(batch_of(given_rows, None, SCHEMA))
        assert harness.head._why_on_rows.startswith(why)
    ours = play(on_columns(rows), steps, is_columns=True)
    assert ours[2]
    assert ours[:2] == play(rows, steps, is_columns=False)[:2]


@pytest.mark.parametrize("in_place", [False, True])
def test_columns_whose_type_is_not_known_yet_wait_for_it(in_place):
    """Those of an outer join of which no partner has come yet."""
    own = (sum_("v"),) if in_place else (count("name"), sum_("v"), sum_("x"), avg("x"))
    rows = GroupAggregateSpec(KEY, own, in_place=in_place)
    unknown = pa.schema([("k", pa.int64())] + [(name, pa.null()) for name in SCHEMA.names[1:]])
    lone = [(key, *[None] * 5) for key in (1, 2, 3)]
    full = [(key, key, 0.5, Decimal("1.00"), "a", 7) for key in (1, 2)]
    steps = [
        (inserted(*lone), False),
        (deleted(lone[0]) + inserted(full[0]), False),
        (inserted(full[1], full[1]) + deleted(lone[1]), True),
        (inserted(lone[0]) + deleted(full[0]), False),
        (deleted(lone[0], lone[2]), False),
        (deleted(full[1]) + inserted(full[0]), False),
    ]
    schemas = (unknown, SCHEMA, None, None, unknown, None)
    steps[3:3], schemas = [(inserted(lone[2]), False)], (*schemas[:3], unknown, *schemas[3:])
    ours = play(on_columns(rows), steps, is_columns=True, schemas=schemas)
    assert ours[:2] == play(rows, steps, is_columns=False)[:2]
    assert not ours[2]


def test_keys_that_are_gone_are_forgotten(monkeypatch):
    monkeypatch.setattr("engine.operators.group_slots._GONE_MIN", 20)
    rows = GroupAggregateSpec(KEY, (count(), sum_("v")), in_place=False)
    steps = []
    for at in range(0, 400, 20):
        some = [(key, key, 0.5, None, "a", 1) for key in range(at, at + 20)]
        steps += [(inserted(*some), False), (deleted(*some[:19], *some[:3]) + inserted(some[0]), False)]
    assert play(on_columns(rows), steps, is_columns=True) == play(rows, steps, is_columns=False)
    with OperatorHarness(on_columns(rows)) as harness:
        for some, _ in steps:
            harness.process_batch(batch_of(some, None, SCHEMA))
        assert harness.head._state.slots.num_slots < 100


def test_plain_records_are_insertions():
    rows = replace(SPECS["named"], key_selector=FieldKey(0), aggregates=(sum_(1), count(3)))
    records = [(1, 5, 0.5, None, "a", 1), (None, 2, 0.5, Decimal(1), "b", 1), (1, 0, 0.5, Decimal(1), None, 2)]
    with OperatorHarness(on_columns(rows), MapSpec(shown)) as harness:
        harness.process_batch(batch_of(records, None, SCHEMA))
        ours = harness.output.rows
    with OperatorHarness(rows, MapSpec(shown)) as harness:
        harness.process(records)
        assert harness.output.rows == ours
        assert len(ours) == 4


def test_what_stays_on_rows_is_said():
    for spec, why in (
        (GroupAggregateSpec(KEY, (max_(1),)), "minima and maxima of a changelog"),
        (GroupAggregateSpec(KEY, (count(),), ttl_ms=5), "its state has a time to live"),
    ):
        assert column_group_aggregate(spec) is None
        assert spec.describe() == f"a changelog, built-in on rows: {why}"


# --- crashes, other parallelism, other types, rows --------------------------------------------------------------------


@st.composite
def scripts(draw):
    there: list[tuple] = []
    script = []
    for _ in range(draw(st.integers(0, 10))):
        if draw(st.integers(0, 2)):
            rows = draw(changelog(there, 6))
            if rows:
                script.append(Rows(rows, schema=draw(st.sampled_from([SCHEMA] * 9 + [None]))))
        else:
            script.append(draw(BARRIER))
    return script


@pytest.mark.parametrize("config", [FULL, INCREMENTAL, ROCKSDB], ids=["full", "incremental", "rocksdb"])
@pytest.mark.parametrize("name", ["all", "in place", "at the end"])
def test_results_after_any_script_are_those_of_rows(name, config):
    rows = SPECS[name]

    @settings(max_examples=12, deadline=None, phases=PHASES)
    @given(scripts())
    def check(script):
        golden = undisturbed(Case((rows, MapSpec(shown)), script, (KEY,)))
        assert disturbed(Case((on_columns(rows), MapSpec(shown)), script, (KEY,)), config) == golden

    check()


@pytest.mark.parametrize("name", ["all", "in place", "float key"])
def test_rows_go_on_where_columns_have_left_off(name):
    rows = SPECS[name]
    keys = (rows.key_selector,)
    some = [(key % 6, key, key / 8, Decimal(key), "a", key) for key in range(20)]
    before, later = [Rows(inserted(*some), schema=SCHEMA)], [Rows(deleted(*some[:7]), schema=SCHEMA)]
    after = [Rows(deleted(*some[7:]) + inserted(*some[3:5]))]
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], keys), INCREMENTAL, None)
    run.start(1)
    run.play([*before, MARK, *later, MARK])
    assert run.num_deltas == 2
    run.case = Case((rows, MapSpec(shown)), [], keys)
    run.start(2)
    run.play([MARK])  # what nobody has taken up yet stays in checkpoints
    run.start(1)
    run.play(after)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), [*before, *later, *after], keys))


@pytest.mark.parametrize("parallelism", [1, 2])
def test_an_increment_is_none_where_a_type_has_become_known(parallelism):
    rows = GroupAggregateSpec(KEY, (sum_("v"),), in_place=True)
    unknown = pa.schema([("k", pa.int64()), ("v", pa.null()), ("name", pa.null())])
    known = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("name", pa.string())])
    names = Row(*known.names)
    lone = Rows([row_of_kind(RowKind.INSERT, names(key, None, None)) for key in range(6)], schema=unknown)
    more = Rows([row_of_kind(RowKind.INSERT, names(key, key, "a")) for key in (2, 9)], schema=known)
    last = Rows([row_of_kind(RowKind.DELETE, names(key, None, None)) for key in range(6)], schema=known)
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], (KEY,)), INCREMENTAL, None)
    run.start(1)
    run.play([lone, MARK, more, MARK])
    assert run.num_deltas == 1  # that of what rows keep, which is nothing
    run.start(parallelism)
    run.play([last])
    assert not any(harness.operators[0]._is_on_rows for harness in run.harnesses)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), [lone, more, last], (KEY,)))


def test_a_restored_batch_job_tells_what_is_there_though_nothing_follows():
    rows = SPECS["at the end"]
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], (KEY,)), FULL, None)
    run.start(1)
    steps = [Rows(inserted((1, 2, 0.5, None, "a", 1), (2, 2, 0.5, None, "a", 1)), schema=SCHEMA)]
    run.play([*steps, MARK])
    run.start(2)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), steps, (KEY,)))


def test_kinds_of_records_without_names_are_taken_too():
    kinds = np.array([0, 0, 3, 1], np.int8)
    columns = pa.RecordBatch.from_arrays([pa.array([1, 2, 1, 7]), pa.array([5, 6, 5, 1])], names=["a", "b"])
    rows = GroupAggregateSpec(FieldKey(0), (sum_(1),), in_place=True)
    with OperatorHarness(on_columns(rows), MapSpec(shown)) as harness:
        harness.process_batch(ColumnBatch(columns, kinds=kinds))
        assert [(kind, text) for kind, _, text in harness.output.rows] == [
            ("+I", "Row(1, 5)"),
            ("+I", "Row(2, 6)"),
            ("-D", "Row(1, 5)"),
        ]
