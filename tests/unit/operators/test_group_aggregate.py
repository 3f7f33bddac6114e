"""Running aggregates of what is there: against computing them anew of all records after each one."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.errors import UserCodeError
from engine.core.records import Row, RowKind, row_of_kind
from engine.operators.field_aggregates import avg, count, max_, min_, sum_
from engine.operators.group_aggregate import GroupAggregateSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.stateless import MapSpec
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.test_regular_join import shown
from tests.unit.operators.test_restore_columns import PHASES

KEY = FieldKey(0)
ALL = (count(), count(1), sum_(1), avg(1), min_(1), max_(1))
NAN = float("nan")
ADDING = (RowKind.INSERT, RowKind.UPDATE_AFTER)
VALUES = {
    "integers": st.one_of(st.none(), st.integers(-4, 4), st.sampled_from([2**63 - 1, -(2**63)])),
    "decimals": st.one_of(st.none(), st.decimals(-9, 9, places=2), st.just(Decimal("1" * 36 + ".05"))),
}


@st.composite
def changelogs(draw, values):
    """Records that come and go, and some that go though they never came."""
    there: list[tuple] = []
    rows = []
    for _ in range(draw(st.integers(0, 25))):
        if there and draw(st.booleans()):
            record = there.pop(draw(st.integers(0, len(there) - 1)))
            rows.append(row_of_kind(draw(st.sampled_from([RowKind.UPDATE_BEFORE, RowKind.DELETE])), record))
        else:
            there.append((draw(st.integers(0, 1)), draw(values)))
            rows.append(row_of_kind(draw(st.sampled_from(ADDING)), there[-1]))
    return rows


def computed(records):
    values = [value for _, value in records if value is not None]
    total = sum(map(Fraction, values)) if values else None
    return (
        len(records),
        len(values),
        total,
        None if total is None else total / len(values),
        min(values, default=None),
        max(values, default=None),
    )


def model(rows):
    """Yield what is told of each record: (kind, key, results)."""
    there: dict[int, list[tuple]] = {}
    for row in rows:
        key, own = row[0], there.setdefault(row[0], [])
        before = computed(own)
        if row.get_row_kind() in ADDING:
            own.append(tuple(row))
        elif own:
            own.remove(tuple(row))
        after = computed(own)
        if before == after:
            continue
        if not before[0]:
            yield "+I", key, after
        elif not after[0]:
            yield "-D", key, before
        else:
            yield "-U", key, before
            yield "+U", key, after


def exact(row):
    """Averages are of 28 digits, or of a float's; all else is exact."""
    _, num, num_values, total, average, least, greatest = row
    if average is not None:
        own = total / num_values
        assert average == own
        average = Fraction(total) / num_values
    return num, num_values, None if total is None else Fraction(total), average, least, greatest


@pytest.mark.parametrize("kind", VALUES)
def test_results_are_those_of_what_is_there_to_the_last_digit(kind):
    @settings(max_examples=60, deadline=None, phases=PHASES)
    @given(changelogs(VALUES[kind]))
    def check(rows):
        with OperatorHarness(GroupAggregateSpec(KEY, ALL)) as harness:
            harness.process(rows)
            found = [(str(row.get_row_kind()), row[0], exact(row)) for row in harness.output.rows]
            assert found == list(model(rows))

    check()


def told(spec, rows, **settings):
    with OperatorHarness(spec, MapSpec(shown), **settings) as harness:
        harness.process(rows)
        harness.end()
        return [(kind, text) for kind, _, text in harness.output.rows]


def insert(*values, **named):
    return Row(*values, **named)


def delete(*values, **named):
    return Row.of_kind(RowKind.DELETE, *values, **named)


def test_in_place_of_a_field_of_the_first_record_since_the_key_had_none():
    spec = GroupAggregateSpec(FieldKey("k"), (sum_("v"),), in_place=True)
    rows = [insert(k=1, v=2, name="a"), insert(k=1, v=5, name="b"), delete(k=1, v=2, name="a")]
    rows += [delete(k=1, v=5, name="b"), delete(k=1, v=5, name="b"), insert(k=1, v=None, name="c")]
    assert told(spec, rows) == [
        ("+I", "Row(k=1, v=2, name='a')"),
        ("-U", "Row(k=1, v=2, name='a')"),
        ("+U", "Row(k=1, v=7, name='a')"),
        ("-U", "Row(k=1, v=7, name='a')"),
        ("+U", "Row(k=1, v=5, name='a')"),
        ("-D", "Row(k=1, v=5, name='a')"),
        ("+I", "Row(k=1, v=None, name='c')"),
    ]
    plain = GroupAggregateSpec(KEY, (max_(1),), in_place=True, names=("k", "v"))
    assert told(plain, [(1, 2), (1, 2), delete(1, 2), (1, 3)])[-1] == ("+U", "Row(k=1, v=3)")
    assert told(GroupAggregateSpec(lambda value: value % 2, (sum_(0),), in_place=True), [4, 6]) == [
        ("+I", "Row(4)"),
        ("-U", "Row(4)"),
        ("+U", "Row(10)"),
    ]


def test_floats_are_subtracted_until_no_value_is_left():
    spec = GroupAggregateSpec(KEY, (sum_(1), min_(1), max_(1)))
    rows = [(1, 0.1), (1, 0.2), (1, None), delete(1, 0.2), delete(1, 0.1), (1, -0.0)]
    assert [text for kind, text in told(spec, rows) if kind in ("+I", "+U")] == [
        "Row(1, 0.1, 0.1, 0.1)",
        "Row(1, 0.30000000000000004, 0.1, 0.2)",
        "Row(1, 0.10000000000000003, 0.1, 0.1)",
        "Row(1, None, None, None)",
        "Row(1, -0.0, 0.0, 0.0)",
    ]
    # NaN is greater than all else, as in top-N; of a sum it stays.
    rows = [(1, NAN), (1, 2.0), delete(1, float("nan")), (1, NAN), delete(1, 2.0)]
    assert [text for kind, text in told(spec, rows) if kind in ("+I", "+U")] == [
        "Row(1, nan, nan, nan)",
        "Row(1, nan, 2.0, nan)",
        "Row(1, nan, 2.0, 2.0)",
        "Row(1, nan, 2.0, nan)",
        "Row(1, nan, nan, nan)",
    ]


def test_a_value_that_goes_before_it_comes_is_missed_until_then():
    spec = GroupAggregateSpec(KEY, (count(1), sum_(1), min_(1)))
    rows = [(1, 5), (1, 5), delete(1, 3), (1, 3)]
    assert [text for kind, text in told(spec, rows) if kind in ("+I", "+U")] == [
        "Row(1, 1, 5, 5)",
        "Row(1, 2, 10, 5)",
        "Row(1, 1, 7, 5)",
        "Row(1, 2, 10, 5)",
    ]


def test_keys_are_forgotten_with_all_their_values_after_their_time_to_live():
    spec = GroupAggregateSpec(KEY, (sum_(1), min_(1)), ttl_ms=10)
    clock = ManualClock(1000)
    with OperatorHarness(spec, MapSpec(shown), clock=clock) as harness:
        for row in ((1, 3), (1, 1), (1, 1), delete(1, 1), delete(1, 1)):
            harness.process([row])
            clock.advance(6)
        clock.advance(5)
        harness.process([delete(1, 3), (1, 9)])
        # What changes nothing is told, too: what follows would forget it.
        assert [f"{kind} {text}" for kind, _, text in harness.output.rows if kind != "-U"] == [
            "+I Row(1, 3, 3)",
            "+U Row(1, 4, 1)",
            "+U Row(1, 5, 1)",
            "+U Row(1, 4, 1)",
            "+U Row(1, 3, 3)",
            "+I Row(1, 9, 9)",
        ]
    with OperatorHarness(GroupAggregateSpec(KEY, (count(1),), ttl_ms=10)) as harness:
        harness.process([(1, 3), (1, None)])
        assert len(harness.output.rows) == 3


def test_at_the_end_of_a_batch_job_keys_with_records_are_told():
    spec = GroupAggregateSpec(ComposedKey((0, 2)), (count(), sum_(1)), emit_final=True)
    rows = [(1, 5, "a"), (1, 7, "b"), delete(1, 5, "a"), (None, 2, "a"), (1, 4, "b")]
    assert Counter(told(spec, rows)) == {("+I", "Row(1, 'b', 2, 11)"): 1, ("+I", "Row(None, 'a', 1, 2)"): 1}


@pytest.mark.parametrize(
    ("aggregate", "rows", "why"),
    [
        (sum_(1), [(1, "x")], r"sum on field 1: value 'x' is not a number"),
        (avg(1), [(1, 2), (1, "x")], r"avg on field 1: value 'x' is not a number"),
        (min_(1), [(1, 2), (1, "x")], r"min on field 1: value 'x': '<' not supported"),
        (max_(7), [(1, 2)], r"max on field 7: the record has no such field \(2 fields\)"),
        (sum_(1), [(1, Decimal(1)), (1, 0.5)], r"sum on field 1: value 0.5: unsupported operand"),
    ],
)
def test_what_cannot_be_aggregated_is_told_with_its_record(aggregate, rows, why):
    with OperatorHarness(GroupAggregateSpec(KEY, (aggregate,))) as harness, pytest.raises(UserCodeError, match=why):
        harness.process(rows)
