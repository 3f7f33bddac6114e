"""Top-N of a changelog: against sorting all records that are there before and after each one."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.core.errors import UserCodeError
from engine.core.records import RowKind, row_of_kind
from engine.operators import top_segments
from engine.operators.column_top_n import column_top_n
from engine.operators.stateless import MapSpec
from engine.operators.top_n import TopNSpec
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows
from tests.unit.operators.test_column_groups import KEY as BY_NAME
from tests.unit.operators.test_column_groups import SCHEMA, batches, deleted, inserted, play, scripts
from tests.unit.operators.test_regular_join import shown
from tests.unit.operators.test_restore import FULL, INCREMENTAL, ROCKSDB, Run, batch_of, straight
from tests.unit.operators.test_restore_columns import PHASES, disturbed, undisturbed
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


# --- on columns -------------------------------------------------------------------------------------------------------

COLUMN_ORDERS = {
    "v": ((1, False),),
    "x, v": ((2, True), (1, False)),
    "name, d": ((4, False), (3, True)),
    "i": ((5, True),),
}


def spec_of(order="v", n=2, key=BY_NAME, **settings):
    return TopNSpec(key, n, COLUMN_ORDERS[order], retracts=True, **settings)


def on_columns(rows):
    spec = column_top_n(rows)
    assert spec is not None
    return spec


@pytest.mark.parametrize("with_rank", [False, True])
@pytest.mark.parametrize("order", COLUMN_ORDERS)
def test_columns_give_what_rows_give_in_that_order(order, with_rank):
    @settings(max_examples=30, deadline=None, phases=PHASES)
    @given(batches(), st.integers(1, 4), st.booleans())
    def check(steps, n, is_final):
        rows = spec_of(order, n, with_rank=with_rank, emit_final=is_final)
        ours = play(on_columns(rows), steps, is_columns=True)
        assert ours[:2] == play(rows, steps, is_columns=False)[:2]
        assert not ours[2]

    check()


@pytest.mark.parametrize("with_rank", [False, True])
def test_many_records_of_a_key_come_and_go(with_rank, monkeypatch):
    """Segments grow and are packed, changes come in portions."""
    monkeypatch.setattr("engine.operators.top_segments._PACKED_MIN", 50)
    monkeypatch.setattr("engine.operators.column_top_n.BATCH_ROWS_MAX", 5)
    rng = random.Random(with_rank)
    there: list[tuple] = []
    steps = []
    for size in (200, 300, 400, 50):
        step = []
        for _ in range(size):
            if len(there) > 20 and (rng.random() < 0.5 or size == 400):
                step += deleted(there.pop(rng.randrange(len(there))))
            else:
                there.append((rng.randrange(2), rng.randrange(40), rng.random(), None, f"n{rng.randrange(5)}", 1))
                step += inserted(there[-1])
        steps.append((step, True))
    for order in COLUMN_ORDERS:
        rows = spec_of(order, 7, with_rank=with_rank)
        ours = play(on_columns(rows), steps, is_columns=True)
        assert ours == play(rows, steps, is_columns=False)
    with OperatorHarness(on_columns(rows)) as harness:
        for step, _ in steps:
            harness.process_batch(batch_of(step, None, SCHEMA))
        state = harness.head._state
        assert sorted(map(repr, map(tuple, state.rows()))) == sorted(map(repr, there))
        assert state.num_places < 350


def test_hashes_that_lie_send_all_that_is_kept_to_rows(monkeypatch):
    honest = top_segments.hashes_of_records
    monkeypatch.setattr(
        top_segments, "hashes_of_records", lambda columns: (honest(columns)[0] & np.uint64(1), *honest(columns)[1:])
    )
    some = [(key % 2, key // 4, key / 8, None, "a", key) for key in range(16)]
    steps = [(inserted(*some), True), (deleted(*some[2:9]), True), (inserted(*some[1:4]), False)]
    rows = spec_of(n=3, with_rank=True)
    ours = play(on_columns(rows), steps, is_columns=True)
    assert ours[:2] == play(rows, steps, is_columns=False)[:2]
    assert ours[2]
    steps = [(inserted(*some) + deleted(*some[2:9]), True)]
    ours = play(on_columns(rows), steps, is_columns=True)
    assert ours[:2] == play(rows, steps, is_columns=False)[:2]
    assert ours[2]


@pytest.mark.parametrize("config", [FULL, INCREMENTAL, ROCKSDB], ids=["full", "incremental", "rocksdb"])
@pytest.mark.parametrize("order", ["v", "name, d"])
def test_results_after_any_script_are_those_of_rows(order, config):
    rows = spec_of(order, with_rank=order == "v")

    @settings(max_examples=12, deadline=None, phases=PHASES)
    @given(scripts())
    def check(script):
        golden = undisturbed(Case((rows, MapSpec(shown)), script, (BY_NAME,)))
        assert disturbed(Case((on_columns(rows), MapSpec(shown)), script, (BY_NAME,)), config) == golden

    check()


def test_rows_go_on_where_columns_have_left_off():
    rows = spec_of()
    some = [(key % 6, key, key / 8, None, "a", key) for key in range(20)]
    before, later = [Rows(inserted(*some), schema=SCHEMA)], [Rows(deleted(*some[:3]), schema=SCHEMA)]
    after = [Rows(deleted(*some[12:19]) + inserted(*some[:5]))]
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], (BY_NAME,)), INCREMENTAL, None)
    run.start(1)
    run.play([*before, MARK, *later, MARK])
    run.case = Case((rows, MapSpec(shown)), [], (BY_NAME,))
    run.start(2)
    run.play([MARK])
    run.start(1)
    run.play(after)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), [*before, *later, *after], (BY_NAME,)))


# --- on rows ----------------------------------------------------------------------------------------------------------


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
