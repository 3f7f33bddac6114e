"""Regular joins on columns of which records go: changelogs as inputs, conditions of outer joins, times to live.

Whatever comes, columns give what rows give, in that order.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from engine.core.clock import ManualClock
from engine.core.records import ColumnBatch, Row, RowKind, rows_of
from engine.operators import record_equality, regular_join_state
from engine.operators.regular_join import JOIN_KINDS, Beside
from engine.operators.stateless import MapSpec
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows, Wait
from tests.unit.operators.test_regular_join import ROUTES, greater, join, on_columns, shown
from tests.unit.operators.test_restore import FULL, INCREMENTAL, ROCKSDB, Run, straight
from tests.unit.operators.test_restore_columns import subtask_of

NAN = float("nan")
INNER = pa.struct([("p", pa.int64()), ("q", pa.float64())])
LEFT = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("name", pa.string())])
RIGHT = pa.schema([("k", pa.int64()), ("x", pa.float64()), ("w", pa.int64())])
SCHEMAS = (LEFT, RIGHT)
NAMED = Beside((3, 3), tuple("abcdef"))


def called(left, right):
    return [left, right]


def asked(left, right):
    """Is not compiled for."""
    return [left[1]] >= [right[2]]


#: name → what a join is made of
JOINS = {
    "plain": {},
    "by a tuple": {"keys": "tuple"},
    "compiled": {"condition": greater},
    "asked": {"condition": asked},
    "ttl": {"ttl_ms": 10},
    "ttl, compiled": {"ttl_ms": 10, "condition": greater},
    "called": {"output": called, "condition": asked},
}


def made(how, name):
    return join(how, **{"output": NAMED, **JOINS[name]})


def row_of(rng, side):
    key = rng.choice([None, 0, 0, 1, 2])
    small = rng.randint(-2, 2)
    if side == 0:
        return (key, small, rng.choice([None, "", "ä"]))
    return (key, rng.choice([0.0, -0.0, 1.5, None, NAN]), small)


def script(seed, *, has_kinds, waits=True, num_steps=14):
    """Return steps (side, [(kind, row)], has times, ms to wait before); some take back what is not there."""
    rng = random.Random(seed)
    there = ([], [])
    steps = []
    for _ in range(num_steps):
        side = rng.randint(0, 1)
        rows = []
        plain = not has_kinds or rng.random() < 0.3
        for _ in range(rng.randint(0, 7)):
            if not plain and rng.random() < 0.45:
                if there[side] and rng.random() < 0.8:
                    row = there[side].pop(rng.randrange(len(there[side])))
                else:
                    row = row_of(rng, side)
                rows.append((rng.choice([RowKind.UPDATE_BEFORE, RowKind.DELETE]), row))
            else:
                row = row_of(rng, side)
                there[side].append(row)
                rows.append((RowKind.INSERT if plain else rng.choice([RowKind.INSERT, RowKind.UPDATE_AFTER]), row))
        steps.append((side, rows, rng.random() < 0.5, rng.choice([0, 0, 4, 9]) if waits else 0))
    return steps


def batch_of(side, rows, stamped=False, schema=None, named=True):
    schema = schema or SCHEMAS[side]
    arrays = [pa.array([row[i] for _, row in rows], kind) for i, kind in enumerate(schema.types)]
    kinds = np.array([kind.value for kind, _ in rows], np.int8)
    return ColumnBatch(
        pa.RecordBatch.from_arrays(arrays, schema=schema),
        np.arange(len(rows)) if stamped else None,
        named=named,
        kinds=kinds if kinds.any() else None,
    )


def play(spec, steps, *, is_rows, named=True, stays=True):
    """Return the results of each step, in order."""
    seen = []
    clock = ManualClock(1000)
    with OperatorHarness(spec, MapSpec(shown), clock=clock) as harness:
        for side, rows, stamped, wait in steps:
            clock.advance(wait)
            batch = batch_of(side, rows, stamped, named=named)
            harness.process_batch(rows_of(batch) if is_rows else batch, input_index=side)
            seen.append((harness.output.rows, harness.output.timestamps_ms))
            harness.output.batches.clear()
        if not is_rows:
            assert harness.operators[0]._is_on_rows is not stays
    return seen


@pytest.mark.parametrize("name", JOINS)
@pytest.mark.parametrize("how", JOIN_KINDS)
def test_columns_give_what_rows_give_in_that_order(how, name):
    rows = made(how, name)
    spec = on_columns(rows)
    for seed in range(12):
        steps = script(seed, has_kinds=seed % 4 > 0)
        assert play(spec, steps, is_rows=False) == play(rows, steps, is_rows=True), seed


@pytest.mark.parametrize("how", ["inner", "full"])
def test_records_whose_hashes_are_the_same_are_told_apart(how, monkeypatch):
    def all_the_same(columns):
        hashes, can_match = record_equality.hashes_of_records(columns)
        return np.zeros_like(hashes), can_match

    monkeypatch.setattr(regular_join_state, "hashes_of_records", all_the_same)
    rows = made(how, "plain")
    for seed in range(6):
        steps = script(seed, has_kinds=True)
        assert play(on_columns(rows), steps, is_rows=False) == play(rows, steps, is_rows=True), seed


@pytest.mark.parametrize(("output", "stays"), [(Beside((3, 3)), True), (called, False)])
@pytest.mark.parametrize("how", JOIN_KINDS)
def test_rows_without_names(how, output, stays):
    rows = join(how, output)
    for seed in range(6):
        steps = script(seed, has_kinds=True)
        ours = play(on_columns(rows), steps, is_rows=False, named=False, stays=stays)
        assert ours == play(rows, steps, is_rows=True, named=False), seed


@pytest.mark.parametrize("name", ["plain", "compiled", "ttl"])
@pytest.mark.parametrize("how", JOIN_KINDS)
def test_many_changes_come_in_portions_and_what_is_gone_is_given_back(how, name, monkeypatch):
    monkeypatch.setattr("engine.operators.column_regular_join.BATCH_ROWS_MAX", 3)
    monkeypatch.setattr("engine.operators.regular_join_state._COMPACT_MIN", 4)
    monkeypatch.setattr("engine.operators.regular_join_state._ROWS_MAX", 5)
    monkeypatch.setattr("engine.operators.column_interval_join._COMPACT_MIN", 4)
    rows = made(how, name)
    kept = []
    forget = regular_join_state.RegularState.forget_gone

    def forgetting(state):
        before = sum(state._num_rows())
        forget(state)
        kept.append(sum(state._num_rows()) < before)

    monkeypatch.setattr(regular_join_state.RegularState, "forget_gone", forgetting)
    for seed in range(3):
        steps = script(seed, has_kinds=True, num_steps=30)
        assert play(on_columns(rows), steps, is_rows=False) == play(rows, steps, is_rows=True), seed
    assert any(kept)


TYPES = {
    "int": (pa.int32(), [1, 2, None]),
    "float": (pa.float32(), [0.0, -0.0, NAN, None]),
    "bool": (pa.bool_(), [True, False, None]),
    "text": (pa.large_string(), ["", "a", None]),
    "bytes": (pa.binary(2), [b"ab", b"cd", None]),
    "decimal": (pa.decimal128(30, 2), [0, 1, None]),
    "time": (pa.timestamp("us"), [0, 1, None]),
    "struct": (INNER, [{"p": 1, "q": 0.0}, {"p": 1, "q": -0.0}, {"p": None, "q": NAN}, {"p": None, "q": None}, None]),
}


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_taken_back_is_equal_as_python_says(kind, monkeypatch):
    """And none of them, a NaN neither, is looked for record by record."""
    monkeypatch.setattr(regular_join_state.RegularState, "_find_removed_exactly", None)
    type_, values = TYPES[kind]
    schema = pa.schema([("k", pa.int64()), ("v", type_), ("i", pa.int64())])
    for value in values:
        for other in values:
            found = []
            for is_rows in (False, True):
                spec = join("inner", NAMED)
                with OperatorHarness(spec if is_rows else on_columns(spec), MapSpec(shown)) as harness:
                    for side, kind_, given in (
                        (0, RowKind.INSERT, value),
                        (0, RowKind.DELETE, other),
                        (1, RowKind.INSERT, value),
                    ):
                        batch = batch_of(side, [(kind_, (1, given, 1))], schema=schema)
                        harness.process_batch(rows_of(batch) if is_rows else batch, input_index=side)
                    found.append(harness.output.rows)
            assert found[0] == found[1], (value, other)


# --- crashes, other parallelism, rows ---------------------------------------------------------------------------------


def as_steps(steps, *, of_rows=()):
    """As material of ``test_restore``; ``of_rows``: numbers of steps that come as rows."""
    for number, (side, rows, _, wait) in enumerate(steps):
        if wait:
            yield Wait(wait)
        if rows:
            made = []
            for kind, values in rows:
                row = Row(**dict(zip(SCHEMAS[side].names, values, strict=True)))
                row.set_row_kind(kind)
                made.append(row)
            yield Rows(made, None, side, None if number in of_rows else SCHEMAS[side])


def disturbed(run, steps, rng, way):
    """Play with barriers, crashes and other parallelisms; ``way``: of specs that take turns."""
    turn = 0
    run.start(1)
    for step in steps:
        run.play([step])
        if rng.random() < 0.3:
            run.play([MARK])
            if rng.random() < 0.6:
                turn += 1
                run.case = replace(run.case, specs=way[turn % len(way)])
                run.start(rng.randint(1, 3))
    return run.finish()


CONFIGS = {"full": FULL, "incremental": INCREMENTAL, "rocksdb": ROCKSDB}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["plain", "compiled", "ttl, compiled"])
@pytest.mark.parametrize("how", JOIN_KINDS)
def test_joins_after_crashes_are_those_of_rows(how, name, config, monkeypatch):
    monkeypatch.setattr("engine.operators.regular_join_state._COMPACT_MIN", 4)
    monkeypatch.setattr("engine.operators.column_interval_join._COMPACT_MIN", 4)
    rows = made(how, name)
    for seed in range(3):
        steps = list(as_steps(script(seed, has_kinds=seed % 3 > 0)))
        golden = straight(Case((rows, MapSpec(shown)), steps, ROUTES))
        specs = (on_columns(rows), MapSpec(shown))
        run = Run(Case(specs, [], ROUTES), CONFIGS[config], None)
        assert disturbed(run, steps, random.Random(seed), [specs]) == golden, seed


@pytest.mark.parametrize("name", ["plain", "compiled"])
@pytest.mark.parametrize("how", JOIN_KINDS)
def test_rows_take_over_where_rows_come_and_where_they_restore(how, name):
    rows = made(how, name)
    columns_, on_rows = (on_columns(rows), MapSpec(shown)), (rows, MapSpec(shown))
    for seed in range(4):
        steps = script(seed, has_kinds=True, waits=False)
        of_rows = range(9, 20) if seed % 2 else ()
        script_ = list(as_steps(steps, of_rows=of_rows))
        golden = straight(Case(on_rows, script_, ROUTES))
        run = Run(Case(columns_, [], ROUTES), INCREMENTAL, None)
        way = [columns_] if of_rows else [columns_, columns_, on_rows, columns_]
        assert disturbed(run, script_, random.Random(seed), way) == golden, seed


@pytest.mark.parametrize("name", ["plain", "compiled", "ttl"])
@pytest.mark.parametrize("how", JOIN_KINDS)
def test_state_that_outgrows_its_memory_goes_to_the_disk(how, name, monkeypatch):
    monkeypatch.setattr("engine.operators.column_join.MemoryWatch.must_leave", lambda watch, held: held > 4000)
    rows = made(how, name)
    steps = list(as_steps(script(3, has_kinds=True, waits=False, num_steps=20)))
    specs = (on_columns(rows), MapSpec(shown))
    run = Run(Case(specs, [], ROUTES), ROCKSDB, None)
    run.start(1)
    run.play(steps)
    assert run.harnesses[0].operators[0]._is_on_rows
    assert run.finish() == straight(Case((rows, MapSpec(shown)), steps, ROUTES))


def test_a_time_to_live_that_is_new_begins_with_the_restore():
    """What had none is as if written then; where there is none any more, nothing expires."""
    steps = list(as_steps([(0, [(RowKind.INSERT, (1, 1, "a"))], False, 0)]))
    later = list(as_steps([(1, [(RowKind.INSERT, (1, 0.5, 1))], False, 0)]))
    found = []
    for waits, expected in (((50, 9), 1), ((50, 10), 0)):
        run = Run(Case((on_columns(made("inner", "plain")), MapSpec(shown)), [], ROUTES), FULL, None)
        run.start(1)
        run.play([*steps, Wait(waits[0]), MARK])
        run.case = Case((on_columns(made("inner", "ttl")), MapSpec(shown)), [], ROUTES)
        run.start(1)
        run.play([Wait(waits[1]), *later, MARK])
        assert sum(run.results.values()) == expected
        run.case = Case((on_columns(made("inner", "plain")), MapSpec(shown)), [], ROUTES)
        run.start(1)
        run.play([Wait(100), *steps])
        found.append(sum(run.finish().values()))
    assert found == [2, 1]


def test_what_has_expired_is_in_no_snapshot():
    run = Run(Case((on_columns(made("left", "ttl")), MapSpec(shown)), [], ROUTES), FULL, None)
    run.start(1)
    run.play([*as_steps([(0, [(RowKind.INSERT, (key, 1, "a")) for key in range(50)], False, 0)]), Wait(10), MARK])
    run.start(1)
    assert run.harnesses[0].operators[0]._state.num_entries() == 0


INSERT, BEFORE, AFTER, DELETE = RowKind


def deltas_of(monkeypatch):
    """Return a list that gets the bytes of each increment that there is."""
    sizes = []
    snapshot_delta = regular_join_state.RegularState.snapshot_delta

    def noting(state, *arguments):
        delta = snapshot_delta(state, *arguments)
        if delta is not None:
            sizes.append(sum(map(len, delta.values())))
        return delta

    monkeypatch.setattr(regular_join_state.RegularState, "snapshot_delta", noting)
    return sizes


LIVES = {"columns": (True, 1), "columns, two": (True, 2), "rows": (False, 2)}


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("name", ["plain", "compiled", "ttl, compiled"])
@pytest.mark.parametrize("how", JOIN_KINDS)
def test_increments_have_what_came_and_what_went(how, name, life, monkeypatch):
    sizes = deltas_of(monkeypatch)
    rows = made(how, name)
    columns_, on_rows = (on_columns(rows), MapSpec(shown)), (rows, MapSpec(shown))
    first = [
        (0, [*((INSERT, (key, 1, "a")) for key in [*range(40), 50]), (INSERT, (50, -9, "z"))], False, 0),
        (1, [(INSERT, (key % 45, 0.5, key % 3)) for key in range(80)], False, 0),
        (0, [(BEFORE, (3, 1, "a")), (AFTER, (3, 2, "a"))], False, 0),
    ]
    changes = [
        (1, [(DELETE, (4, 0.5, 1)), (INSERT, (5, 0.5, 1)), (INSERT, (41, 0.5, 0)), (INSERT, (50, 0.5, 0))], False, 3),
        (0, [(DELETE, (6, 1, "a")), (INSERT, (41, 3, "b")), (DELETE, (41, 3, "b")), (INSERT, (7, 0, "c"))], False, 3),
    ]
    again = [(1, [(DELETE, (5, 0.5, 1)), (DELETE, (7, 0.5, 1))], False, 0), (0, [(DELETE, (7, 0, "c"))], False, 0)]
    ends = [
        (1, [(DELETE, (50, 0.5, 0)), (INSERT, (50, 0.5, -9))], False, 5),
        (0, [(kind, (key, 1, "a")) for key in range(45) for kind in (DELETE, INSERT)], False, 0),
        (1, [(DELETE, (key % 45, 0.5, key % 3)) for key in range(80)], False, 0),
        (0, [(DELETE, (key, 1, "a")) for key in range(45)], False, 0),
    ]
    run = Run(Case(columns_, [], ROUTES), INCREMENTAL, None)
    run.start(1)
    for steps in (first, changes, again):
        run.play([*as_steps(steps), MARK])
    assert len(sizes) == 2
    full = sum(map(len, run.harnesses[0].operators[0]._state.snapshot(range(128)).values()))
    assert 0 < max(sizes) < full / 3
    is_on_columns, parallelism = LIVES[life]
    run.case = Case(columns_ if is_on_columns else on_rows, [], ROUTES)
    run.start(parallelism)
    if is_on_columns:
        run.play([MARK])  # rows have other numbers now
        assert len(sizes) == 2
        run.play([MARK])
        assert len(sizes) == 2 + parallelism
        run.start(1)
    run.play(as_steps(ends))
    assert run.finish() == straight(Case(on_rows, list(as_steps([*first, *changes, *again, *ends])), ROUTES))


@pytest.mark.parametrize("how", ["inner", "full"])
def test_where_rows_are_numbered_anew_a_checkpoint_is_full(how, monkeypatch):
    monkeypatch.setattr("engine.operators.regular_join_state._COMPACT_MIN", 4)
    monkeypatch.setattr("engine.operators.column_interval_join._COMPACT_MIN", 4)
    sizes = deltas_of(monkeypatch)
    rows = made(how, "plain")
    first = [(0, [(INSERT, (key, 1, "a")) for key in range(20)] + [(DELETE, (3, 1, "a"))], False, 0)]
    passing = [(kind, (key, 5, "c")) for key in range(20) for kind in (INSERT, DELETE)]
    leaving = [(DELETE, (key, 1, "a")) for key in range(15)]
    gone = [(0, [*passing, *leaving, *((INSERT, (key, 2, "b")) for key in (4, 9))], False, 0)]
    ends = [(1, [(INSERT, (key, 0.5, 1)) for key in range(20)], False, 0)]
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], ROUTES), INCREMENTAL, None)
    run.start(1)
    run.play([*as_steps(first), MARK, *as_steps(gone), MARK])
    assert not sizes
    run.play([MARK])
    assert len(sizes) == 1
    run.start(1)
    run.play(as_steps(ends))
    assert run.finish() == straight(Case((rows, MapSpec(shown)), list(as_steps([*first, *gone, *ends])), ROUTES))


@pytest.mark.parametrize("how", ["inner", "full"])
def test_increments_of_others_types_stand_for_what_they_build_on(how, monkeypatch):
    """Of two subtasks the second one has right records of other types, since its increment."""
    sizes = deltas_of(monkeypatch)
    rows = made(how, "plain")
    narrow = RIGHT.set(2, pa.field("w", pa.int32()))
    numbers, others = ([key for key in range(30) if subtask_of(key, 2) == index] for index in range(2))

    def step(side, kind, keys, values, schema=None):
        (made_,) = as_steps([(side, [(kind, (key, *values)) for key in keys], False, 0)])
        return replace(made_, schema=schema or SCHEMAS[side])

    first = [
        step(0, INSERT, numbers, (1, "a")),
        step(1, INSERT, numbers, (0.5, 1)),
        step(0, AFTER, others, (1, "a")),
        step(0, INSERT, others, (2, "b")),
        step(0, DELETE, numbers[:2], (1, "a")),
        step(0, DELETE, others[:2], (2, "b")),
    ]
    second = [
        step(1, INSERT, others, (0.5, 1), narrow),
        step(0, DELETE, others[2:4], (1, "a")),
        step(0, INSERT, others[:1], (4, "c")),
    ]
    ends = [step(1, INSERT, numbers + others, (1.5, 2), None), step(0, DELETE, numbers + others, (1, "a"))]
    specs = (on_columns(rows), MapSpec(shown))
    run = Run(Case(specs, [], ROUTES), INCREMENTAL, None)
    run.start(2)
    run.play([*first, MARK, *second, MARK])
    assert len(sizes) == 2
    run.start(1)
    assert run.harnesses[0].operators[0]._state.others
    run.play([MARK])
    run.start(1)
    run.play(ends)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), [*first, *second, *ends], ROUTES))
