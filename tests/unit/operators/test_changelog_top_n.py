"""Top-N of a changelog: against sorting all records that are there before and after each one."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.errors import UserCodeError
from engine.core.records import RowKind, row_of_kind
from engine.operators.stateless import MapSpec
from engine.operators.top_n import TopNSpec
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.test_regular_join import shown
from tests.unit.operators.test_restore_columns import PHASES
from tests.unit.operators.test_top_n import KEY, ORDERS, ROW, compare

ADDING = [RowKind.INSERT, RowKind.UPDATE_AFTER]
NOBODY = (-1, ())
TAKING = [RowKind.UPDATE_BEFORE, RowKind.DELETE]


@st.composite
def changelogs(draw, max_size=20):
    """Records that come and go, and some that go though they never came."""
    there: list[tuple] = []
    rows = []
    for _ in range(draw(st.integers(0, max_size))):
        if there and draw(st.booleans()):
            record = there.pop(draw(st.integers(0, len(there) - 1)))
            rows.append(row_of_kind(draw(st.sampled_from(TAKING)), record))
        else:
            there.append(draw(ROW))
            rows.append(row_of_kind(draw(st.sampled_from([*ADDING, *ADDING, *ADDING, *TAKING])), there[-1]))
    return rows


def is_equal(record, other):
    return all(a == b for a, b in zip(record, other, strict=True))


def model(rows, n, order, with_rank):
    """Yield what is told, by comparing whom each place belongs to before and after."""
    there: dict = {}
    by_order = functools.cmp_to_key(lambda one, other: compare(order, one[1], other[1]))
    for number, row in enumerate(rows):
        own = there.setdefault(row[0], [])
        before = own[:n]
        if row.get_row_kind() in ADDING:
            own.append((number, tuple(row)))
            own.sort(key=by_order)
        else:
            gone = next((each for each in own if is_equal(each[1], row)), None)
            if gone is None:
                continue
            own.remove(gone)
        after = own[:n]
        if not with_rank:
            numbers = [{number for number, _ in some} for some in (before, after)]
            yield from (("-D", repr(record)) for number, record in before if number not in numbers[1])
            yield from (("+I", repr(record)) for number, record in after if number not in numbers[0])
            continue
        for rank in range(1, max(len(before), len(after)) + 1):
            old, new = (some[rank - 1 : rank] for some in (before, after))
            (old_number, old_record), (new_number, new_record) = ((*old, NOBODY)[0], (*new, NOBODY)[0])
            if old and new and old_number != new_number:
                yield "-U", repr((*old_record, rank))
                yield "+U", repr((*new_record, rank))
            elif old and not new:
                yield "-D", repr((*old_record, rank))
            elif new and not old:
                yield "+I", repr((*new_record, rank))


@pytest.mark.parametrize("with_rank", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_what_is_told_is_whom_each_place_belongs_to(order, with_rank):
    @settings(max_examples=30, deadline=None, phases=PHASES)
    @given(changelogs(), st.integers(1, 4))
    def check(rows, n):
        with OperatorHarness(TopNSpec(KEY, n, ORDERS[order], with_rank, retracts=True)) as harness:
            harness.process(rows)
            found = [(str(row.get_row_kind()), repr(tuple(row))) for row in harness.output.rows]
            assert found == list(model(rows, n, order, with_rank))

    check()


def test_at_the_end_of_a_batch_job_those_that_are_left_are_told():
    spec = TopNSpec(KEY, 2, ((1, False),), True, ("k", "v"), emit_final=True, retracts=True)
    with OperatorHarness(spec, MapSpec(shown)) as harness:
        harness.process([(1, 5), (1, 7), (1, 6), (2, 1), row_of_kind(RowKind.DELETE, (1, 7))])
        harness.process([row_of_kind(RowKind.DELETE, (2, 1)), row_of_kind(RowKind.DELETE, (3, 1))])
        assert harness.output.rows == []
        harness.end()
        assert [text for _, _, text in harness.output.rows] == ["Row(k=1, v=6, rank=1)", "Row(k=1, v=5, rank=2)"]


def test_all_records_of_a_key_are_forgotten_after_its_time_to_live():
    clock = ManualClock(1000)
    with OperatorHarness(TopNSpec(KEY, 1, ((1, True),), ttl_ms=10, retracts=True), clock=clock) as harness:
        harness.process([("a", 1), ("a", 2)])
        clock.advance(11)
        harness.process([row_of_kind(RowKind.DELETE, ("a", 1)), ("a", 3)], [5, 6])
        assert list(map(tuple, harness.output.rows)) == [("a", 1), ("a", 3)]


@pytest.mark.parametrize("kind", [RowKind.INSERT, RowKind.DELETE])
def test_values_that_cannot_be_compared_are_told_with_their_record(kind):
    with OperatorHarness(TopNSpec(KEY, 1, ((1, False),), retracts=True)) as harness:
        harness.process([(1, 2)])
        with pytest.raises(UserCodeError, match=r"top_n by 1: the record cannot be compared.*\n.*'x'"):
            harness.process([row_of_kind(kind, (1, "x"))])
