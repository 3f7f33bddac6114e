"""Session windows on columns against those on rows, with crashes and without, and their kernel against a plain loop."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.errors import ProgramError, UserCodeError
from engine.core.records import ColumnBatch, Row
from engine.datastream.aggregates import avg, count, count_distinct, first, last, max_, min_, sum_
from engine.operators import session_kernels as kernels
from engine.operators.aggregate import FieldAggregate
from engine.operators.column_folds import shape_of_schema
from engine.operators.column_session import column_session
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.session_distinct import SessionDistinct
from engine.operators.window_contents import ReduceFold
from engine.operators.window_panes import Pane
from engine.time.assigners import EventTimeSessionWindows
from engine.time.watermarks import Time
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import Case, Collect
from tests.unit.operators.test_column_window import (
    FLOATS,
    ROW,
    SCHEMA,
    STEP,
    _plain,
    built_in,
    columns,
    drive,
    play,
    windows,
)
from tests.unit.operators.test_restore import FULL, INCREMENTAL
from tests.unit.operators.test_restore_columns import (
    PHASES,
    TIMED_SCRIPTS,
    disturbed,
    other_types_come_together,
    undisturbed,
)

GAP_MS = 6
SESSIONS = EventTimeSessionWindows.with_gap(Time.milliseconds(GAP_MS))
AGGREGATES = [count(), count(3), sum_(1), min_(1), max_(1), avg(1), sum_(2), max_(2), avg(2)]
AGGREGATES += [count_distinct(1), count_distinct(2), count_distinct(3)]
AGGREGATES += [first(1), first(2), first(3), last(1), last(2), last(3), min_(2), min_(3), max_(3)]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(-30, 30)), max_size=8), max_size=4),
    st.lists(st.integers(-20, 20), min_size=4, max_size=4).map(sorted),
    st.sampled_from([0, 9]),
)
def test_the_kernel_keeps_the_sessions_that_a_plain_loop_keeps(batches, watermarks, lateness):
    """Each batch comes at two times: its first half, and its second."""
    heads, sessions = np.zeros(3, np.int64), np.zeros((40, 4), np.int64)
    key_of = np.zeros(40, np.int32)
    open_sessions: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}
    contents: dict[int, list[tuple[int, int, int]]] = {}
    expected: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
    over: list[list[tuple[int, int, int]]] = []
    used = 0
    for number, rows in enumerate(batches):
        slots, times = np.array([slot for slot, _ in rows], np.int32), np.array([time for _, time in rows], np.int64)
        stamps = np.array([watermarks[max(0, number - 1)]] * (len(rows) // 2), np.int64)
        stamps = np.append(stamps, [watermarks[number]] * (len(rows) - stamps.size)).astype(np.int64)
        fresh = np.arange(used, used + len(rows))
        of_row, levels = np.empty(len(rows), np.int64), np.empty(len(rows), np.int16)
        merges, fires = np.empty((2, len(rows), 4), np.int64)
        law = GAP_MS, lateness, used
        _, num_merges, num_fires, num_levels = kernels.assign_sessions(
            slots, times, stamps, law, heads, sessions, fresh, (of_row, levels), merges, fires
        )
        used += len(rows)
        late, fired = [], []
        for row, ((slot, time), watermark_ms) in enumerate(zip(rows, stamps.tolist(), strict=True)):
            gone = [own for own in open_sessions[slot] if own[1] - 1 + lateness <= watermark_ms]
            over += [expected.pop((slot, *own)) for own in gone]
            open_sessions[slot] = [own for own in open_sessions[slot] if own not in gone]
            # In the order in which they were changed, as ``window_merging`` has it.
            near = [own for own in open_sessions[slot] if own[0] <= time + GAP_MS and own[1] >= time]
            window = min([time, *(s for s, _ in near)]), max([time + GAP_MS, *(e for _, e in near)])
            late.append(window[1] - 1 + lateness <= watermark_ms)
            if late[-1]:
                continue
            held = [one for own in near for one in expected.pop((slot, *own))]
            expected[slot, *window] = [*held, (used, row, time)]
            if window[1] - 1 <= watermark_ms:
                fired.append((row, *window, expected[slot, *window]))
            if near != [(time, time + GAP_MS)]:
                open_sessions[slot] = [own for own in open_sessions[slot] if own not in near] + [window]
        assert (of_row < 0).tolist() == late
        seen = []
        for level in range(num_levels):
            of_level = merges[:num_merges][merges[:num_merges, 2] == level]
            assert len(set(of_level[:, :2].ravel().tolist())) == 2 * len(of_level)
            for source, target, _, goes_first in of_level.tolist():
                both = contents.pop(target), contents.pop(source)
                contents[target] = both[1] + both[0] if goes_first else both[0] + both[1]
            for row in np.flatnonzero(levels == level).tolist():
                contents.setdefault(int(of_row[row]), []).append((used, row, rows[row][1]))
                key_of[of_row[row]] = rows[row][0]
            for row, _, start, end in fires[:num_fires][fires[:num_fires, 1] == level].tolist():
                seen.append((row, start, end, list(contents[of_row[row]])))
        assert sorted(seen) == fired
        for slot in range(3):
            assert sorted(chain(slot, heads, sessions)) == sorted(open_sessions[slot])
        linked = {at for slot in range(3) for at in numbers(slot, heads, sessions)}
        assert {(key_of[at], *sessions[at, :2].tolist()): contents[at] for at in linked} == expected
        assert sorted(held for at, held in contents.items() if at not in linked) == sorted(over)
        assert not (sessions[:, 3] % (1 << kernels.LEVEL_BITS)).any()
    live = [at for slot in range(3) for at in numbers(slot, heads, sessions)]
    kernels.unlink_sessions(np.array(live[::2], np.int64), key_of, heads, sessions)
    assert sorted(at for slot in range(3) for at in numbers(slot, heads, sessions)) == sorted(live[1::2])


def numbers(slot, heads, sessions):
    at = heads[slot] - 1
    while at >= 0:
        yield int(at)
        at = sessions[at, 2] - 1


def chain(slot, heads, sessions):
    return [tuple(sessions[at, :2].tolist()) for at in numbers(slot, heads, sessions)]


@pytest.mark.parametrize(("late_tag", "lateness_ms"), [(None, 0), ("late", 0), ("late", 9)])
@pytest.mark.parametrize("key", [FieldKey(0), FieldKey(3), ComposedKey((0, 3))])
def test_sessions_of_columns_give_what_those_of_rows_give(key, late_tag, lateness_ms, monkeypatch):
    monkeypatch.setattr("engine.operators.session_distinct._COMPACT_MIN", 1)
    rows = built_in(SESSIONS, AGGREGATES, key, late_tag=late_tag, lateness_ms=lateness_ms)
    spec = column_session(rows)
    assert spec is not None

    @settings(max_examples=40, deadline=None, phases=PHASES)
    @given(st.lists(STEP, max_size=6))
    @example([[((1, 1, 1.0, "a"), 0), ((1, 2, 1.0, "a"), 12)], [((1, 4, 1.0, "a"), 6)], 17, [((1, 8, 1.0, "a"), 14)]])
    def check(steps):
        assert play(spec, steps) == play(rows, steps)

    check()


@pytest.mark.parametrize("lateness_ms", [0, 12])
def test_sums_beyond_64_bits_go_on_as_python_integers(lateness_ms):
    aggregates = [sum_(1), count(), avg(1), sum_(2), count_distinct(1)]
    rows = built_in(SESSIONS, aggregates, late_tag="late", lateness_ms=lateness_ms)
    large = st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([2**63 - 1, -(2**63), 2**62]))
    row = st.tuples(st.integers(0, 1), large, FLOATS, st.just("a"))
    step = st.one_of(st.lists(st.tuples(row, st.integers(-25, 45)), min_size=1, max_size=8), st.integers(-20, 60))
    three = [((0, 2**62, 1.0, "a"), time) for time in (0, 12, 24)]

    @settings(max_examples=30, deadline=None, phases=PHASES)
    @given(st.lists(step, max_size=6))
    @example([three, [((0, 1, 1.0, "a"), 6), ((1, 1, 1.0, "a"), 6), ((0, 1, 1.0, "a"), 18)], 20])
    @example([13, three, [((0, 1, 1.0, "a"), 6), ((0, 1, 1.0, "a"), 18), ((0, 9, 1.0, "a"), 7)], 20])
    def check(steps):
        assert play(column_session(rows), steps) == play(rows, steps)

    check()


@pytest.mark.parametrize("lateness_ms", [0, 5])
@pytest.mark.parametrize("edge", [TIME_MIN_MS + 1, TIME_MAX_MS - 30])
def test_sessions_at_both_ends_of_time_are_those_of_rows(edge, lateness_ms):
    rows = built_in(SESSIONS, [count(), sum_(1)], late_tag="late", lateness_ms=lateness_ms)
    times = st.one_of(st.integers(edge, edge + 30), st.integers(-25, 45))

    @settings(deadline=None, max_examples=20)
    @given(st.lists(st.lists(st.tuples(ROW, times), min_size=1, max_size=6) | st.integers(-20, 60), max_size=5))
    def check(steps):
        played = []
        for spec in (rows, column_session(rows)):
            with OperatorHarness(spec, name="Window") as harness:
                played.append(drive(harness, [*steps, TIME_MAX_MS]))
        assert played[0] == played[1]

    check()


def reduced(function, key=FieldKey(0), late_tag="late", lateness_ms=0):
    return windows(SESSIONS, ReduceFold(function), key, late_tag=late_tag, lateness_ms=lateness_ms)


PLAIN_ROW = st.tuples(st.integers(0, 2), st.integers(-3, 3), FLOATS, st.sampled_from(["", "a", "é"]))
PLAIN_STEP = st.one_of(
    st.lists(st.tuples(PLAIN_ROW, st.integers(-25, 45)), min_size=1, max_size=8), st.integers(-20, 60)
)
REDUCES = {
    **{f"{kind} of {field}": FieldAggregate(kind, field) for kind in ("sum", "min", "max") for field in (1, 2)},
    **{f"{kind} of {field}": FieldAggregate(kind, field) for kind in ("min_by", "max_by") for field in (1, 2)},
    **{f"{kind} of a text": FieldAggregate(kind, 3) for kind in ("min", "max_by")},
    "by a text": lambda a, b: b if b[3] >= a[3] else a,
    "last of equals": lambda a, b: b if b[1] >= a[1] else a,
    "by a float": lambda a, b: b if b[2] < a[2] else a,
    "not by a float": lambda a, b: a if b[2] > a[2] else b,
    "the first": lambda a, b: a,
    "the last": lambda a, b: b,
    "field by field": lambda a, b: (a[0], a[1] + b[1], max(a[2], b[2]), b[3]),
}


@pytest.mark.parametrize(("nulls", "lateness_ms"), [(False, 0), (True, 0), (False, 9)])
@pytest.mark.parametrize("name", REDUCES)
def test_records_of_sessions_are_those_of_rows(name, nulls, lateness_ms):
    """Which of two sessions that become one comes first decides between equals, and where a NaN is compared."""
    rows = reduced(REDUCES[name], lateness_ms=lateness_ms)
    spec = column_session(rows, shape_of_schema(SCHEMA))
    assert spec is not None

    @settings(max_examples=14, deadline=None, phases=PHASES)
    @given(st.lists(STEP if nulls else PLAIN_STEP, max_size=6))
    @example([[((1, 1, 1.0, "a"), 12), ((1, 1, 2.0, "b"), 0)], [((1, 1, 3.0, "c"), 6)]])
    @example([[((1, 1, 1.0, "a"), 12), ((1, 1, 2.0, "b"), 0), ((1, 1, 3.0, "c"), 12)], [((1, 1, 4.0, "d"), 6)]])
    @example([[((1, 1, 1.0, "a"), 12), ((1, 1, float("nan"), "b"), 0), ((1, 1, 3.0, "c"), 6)]])
    def check(steps):
        try:
            expected = play(rows, steps)
        except UserCodeError:  # None + None
            with pytest.raises(UserCodeError):
                play(spec, steps)
            return
        assert play(spec, steps) == expected

    check()


@pytest.mark.parametrize("late_tag", [None, "late"])
@pytest.mark.parametrize("kind", ["min_by", "sum"])
def test_sessions_of_named_rows_hold_named_rows_in_columns(kind, late_tag):
    rows = reduced(FieldAggregate(kind, "v"), FieldKey("k"), late_tag)
    named = pa.record_batch([[1, 1, 2], [4, 3, 7]], names=["k", "v"])
    seen = []
    for spec in (rows, column_session(rows)):
        with OperatorHarness(spec) as harness:
            harness.process_batch(ColumnBatch(named, np.array([4, 5, 50]), named=True))
            harness.watermark(40)
            harness.process_batch(ColumnBatch(named.slice(0, 1), np.array([4]), named=True))
            seen.append(
                (harness.output.rows, [row for b in harness.output.side.get("late", []) for row in _plain(b).rows])
            )
        assert spec is rows or all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
    assert seen[0] == seen[1]
    assert isinstance(seen[1][0][0], Row)


def test_a_function_of_named_rows_is_called():
    rows = reduced(lambda a, b: b if b[1] > a[1] else a)
    spec = column_session(rows, shape_of_schema(pa.schema([("k", pa.int64()), ("v", pa.int64())])))
    named = ColumnBatch(pa.record_batch([[1, 1], [4, 3]], names=["k", "v"]), np.array([4, 5]), named=True)
    with OperatorHarness(spec) as harness:
        harness.process_batch(named)
        harness.watermark(40)
        assert harness.output.rows == [Row(k=1, v=4)]


def test_a_batch_of_more_rows_than_there_are_levels_is_cut(monkeypatch):
    monkeypatch.setattr("engine.operators.column_session.BATCH_ROWS_MAX", 2)
    rows = reduced(lambda a, b: b if b[1] >= a[1] else a, lateness_ms=3)
    steps = [[((1, 1, float(at), "a"), time) for at, time in enumerate((12, 0, 24, 18, 6, 13))], 8]
    assert play(column_session(rows, shape_of_schema(SCHEMA)), steps) == play(rows, steps)


def test_chosen_records_stay_columns_on_their_way():
    spec = column_session(reduced(FieldAggregate("max_by", 1)))
    with OperatorHarness(spec) as harness:
        harness.process_batch(columns([(1, 2, 1.0, "a"), (1, 3, 1.0, "b")], [5, 6]))
        harness.watermark(40)
        assert [type(batch) for batch in harness.output.batches] == [ColumnBatch]


@pytest.mark.parametrize("name", ["last of equals", "the last", "field by field"])
def test_sessions_of_a_function_that_no_longer_compiles_go_on_by_rows(name):
    function = REDUCES[name]
    spec = column_session(reduced(function), shape_of_schema(SCHEMA))
    first_steps = [[((1, 1, 1.0, "a"), 12), ((1, 1, 2.0, "b"), 0), ((2, 5, 0.5, "c"), 1)]]
    rest = [[((1, 1, 3.0, "c"), 6)], 1000]
    with OperatorHarness(spec) as harness:
        drive(harness, first_steps)
        taken = harness.snapshot(1)
    with OperatorHarness(reduced(function), restored=[taken]) as harness:
        assert drive(harness, rest)[0][-1] == play(reduced(function), first_steps + rest)[0][2]


def test_what_columns_cannot_do_has_no_columnar_form():
    assert column_session(reduced(lambda a, b: b if b[1] > a[1] else a)) is None  # of what types?
    told = windows(SESSIONS, ReduceFold(FieldAggregate("max_by", 1)), function=Collect())
    assert column_session(told) is None
    assert column_session(built_in(SESSIONS, [count()], lateness_ms=1 << 61)) is None
    dynamic = EventTimeSessionWindows.with_dynamic_gap(lambda row: 5)
    assert column_session(built_in(dynamic, [count()])) is None


@pytest.mark.parametrize("lateness_ms", [0, 12])
@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("key", [FieldKey(0), ComposedKey((0, 1))])
def test_sessions_after_any_script_are_those_of_rows(key, config, lateness_ms):
    aggregates = [sum_(1), count(), max_(1), avg(1), count_distinct(1), first(1), last(1)]
    rows = built_in(SESSIONS, aggregates, key, lateness_ms=lateness_ms)
    spec = column_session(rows)

    @settings(max_examples=13, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS)
    def check(script):
        assert disturbed(Case((spec,), script, (key,)), config) == undisturbed(Case((rows,), script, (key,)))

    check()


@pytest.mark.parametrize(("config", "lateness_ms"), [(FULL, 0), (INCREMENTAL, 9)], ids=["full", "incremental, late"])
@pytest.mark.parametrize("name", ["min_by of 1", "sum of 1", "last of equals", "the last"])
def test_records_of_sessions_after_any_script_are_those_of_rows(name, config, lateness_ms):
    rows = reduced(REDUCES[name], lateness_ms=lateness_ms)
    spec = column_session(rows, shape_of_schema(pa.schema([("k", pa.int64()), ("v", pa.int64())])))
    assert spec is not None

    @settings(max_examples=13, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS)
    def check(script):
        assert disturbed(Case((spec,), script, (FieldKey(0),)), config) == undisturbed(
            Case((rows,), script, (FieldKey(0),))
        )

    check()


def test_sessions_of_other_types_come_together():
    rows = built_in(SESSIONS, [sum_(1), count(), count_distinct(1)])
    other_types_come_together(column_session(rows), rows)


@pytest.mark.parametrize("renewed_per_row", [4, 8])
def test_sessions_and_keys_that_are_over_are_forgotten(renewed_per_row, monkeypatch):
    """Keys bit by bit, while the next batches bring sessions and end others."""
    monkeypatch.setattr("engine.operators.session_keys._RENEWED_MIN", 1)
    monkeypatch.setattr("engine.operators.session_keys._RENEWED_PER_ROW", renewed_per_row)
    monkeypatch.setattr("engine.operators.session_state._COMPACT_MIN", 100)
    monkeypatch.setattr("engine.operators.session_distinct._COMPACT_MIN", 100)
    spec = column_session(built_in(SESSIONS, [count(), sum_(1), count_distinct(1)]))
    with OperatorHarness(spec) as harness:
        for at in range(0, 3000, 10):
            rows = [(None if i == 7 else at * 10 + i, i, 1.0, "a") for i in range(20)]
            harness.process_batch(columns(rows, [at] * 20))
            harness.watermark(at)
            assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)
            expected = [(row[0], at - 10, at - 4, 1, row[1], 1) for row in rows] if at else []
            shifted = [(None if k is None else k - 100, *rest) for k, *rest in expected]
            assert sorted(harness.output.rows, key=repr) == sorted(shifted, key=repr)
            harness.output.batches.clear()
            assert harness.head._state.num_keys < (200 if renewed_per_row == 8 else 600)
            assert harness.head._state.num_entries() == 20
            assert harness.head._state._keys.num_slots <= 60
            assert harness.head._state._distinct[0]._pairs.num_slots < 200


@pytest.mark.parametrize("lateness_ms", [0, 9])
def test_keys_that_come_again_while_others_are_forgotten_have_the_sessions_of_rows(lateness_ms, monkeypatch):
    monkeypatch.setattr("engine.operators.session_state._COMPACT_MIN", 30)
    monkeypatch.setattr("engine.operators.session_keys._RENEWED_MIN", 17)
    monkeypatch.setattr("engine.operators.session_keys._RENEWED_PER_ROW", 0)
    rng = np.random.default_rng(3)
    rows = built_in(SESSIONS, [count(), sum_(1)], lateness_ms=lateness_ms)
    num_keys, renewals = [], set()
    with OperatorHarness(column_session(rows)) as harness, OperatorHarness(rows) as model:
        for at in range(0, 1200, 4):
            keys = [*(1000 + at + np.arange(3)).tolist(), *rng.integers(0, 12, rng.integers(0, 3)).tolist()]
            batch = columns([(key if key else None, 1, 0.5, "a") for key in keys], [at] * len(keys))
            for own in (harness, model):
                own.process_batch(batch)
                own.watermark(at - 1)
            num_keys.append(harness.head._state.num_keys)
            renewals.add(id(harness.head._state._renewal))
        for own in (harness, model):
            own.watermark(5000)
        assert len(renewals) > 5
        assert max(num_keys) < 300
        assert sorted(harness.output.rows, key=repr) == sorted(model.output.rows, key=repr)


def test_sessions_of_other_fields_are_refused():
    """Numbers would be taken for each other."""
    batch = columns([(1, 2, 1.5, "a")], [5])
    for before, after in ((sum_(1), sum_(2)), (count_distinct(1), count_distinct(3))):
        with OperatorHarness(column_session(built_in(SESSIONS, [before]))) as harness:
            harness.process_batch(batch)
            taken = harness.snapshot(1)
        with pytest.raises(ProgramError, match="aggregates by other fields"):
            OperatorHarness(column_session(built_in(SESSIONS, [after])), restored=[taken]).__enter__()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=4), st.lists(st.integers(0, 3), max_size=4))
def test_pairs_are_listed_as_a_plain_loop_lists_them(batches, wanted):
    heads, links = np.zeros(4, np.int64), np.zeros(20, np.int64)
    chains, first = {session: [] for session in range(4)}, 0
    for sessions in batches:
        for pair, session in enumerate(sessions, first):
            chains[session].insert(0, pair)
        first = kernels.link_pairs(np.array(sessions, np.int64), first, heads, links)
    pairs, owners = np.empty(80, np.int64), np.empty(80, np.int64)
    count = kernels.list_pairs(heads[np.array(wanted, np.int64)], links, pairs, owners)
    expected = [(pair, place) for place, session in enumerate(wanted) for pair in chains[session]]
    assert list(zip(pairs[:count].tolist(), owners[:count].tolist(), strict=True)) == expected


ACT = st.one_of(
    st.tuples(st.just("add"), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=8)),
    st.tuples(st.just("merge"), st.permutations(range(4)).map(lambda order: order[:2])),
    st.tuples(st.just("end"), st.integers(0, 3)),
)


@settings(max_examples=60, deadline=None, phases=PHASES)
@given(st.lists(ACT, max_size=12))
def test_values_of_sessions_are_those_of_sets(acts):
    """Four sessions, whose numbers are given again when they are over or part of others."""
    sets = [set() for _ in range(4)]
    every, pane, distinct = np.arange(4), Pane(2), SessionDistinct(0, pa.int64(), 1)
    pane.reserve(4)
    distinct.begin(every, 4)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("engine.operators.session_distinct._COMPACT_MIN", 0)
        for act, given_ in acts:
            if act == "add":
                distinct.begin_batch(pa.array([value for _, value in given_], pa.int64()))
                sessions = np.array([session for session, _ in given_], np.int64)
                distinct.take_up(0, pane, np.arange(len(given_), dtype=np.int32), sessions)
                for session, value in given_:
                    sets[session].add(value)
            else:
                over = given_ if act == "end" else given_[0]
                gone = np.array([over])
                if act == "merge":
                    sets[given_[1]] |= sets[over]
                    distinct.merge(pane, gone, np.array([given_[1]]))
                else:
                    distinct.drop(pane, gone)
                sets[over] = set()
                pane.column(1)[gone] = 0
                distinct.begin(gone, 4)
            assert distinct.sets_of(0, every) == sets
            assert pane.column(1)[:4].tolist() == list(map(len, sets))
            lists = distinct.lists_of(0, every, pane.column(1)[:4]).to_pylist()
            assert list(map(sorted, lists)) == list(map(sorted, sets))
