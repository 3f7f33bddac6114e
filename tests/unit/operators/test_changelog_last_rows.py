"""Last rows of a changelog on columns: what rows give, in that order, from any checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from engine.operators.column_group_aggregate import column_group_aggregate
from engine.operators.column_last_row import ColumnLastRowSpec
from engine.operators.deduplicate import LAST, DeduplicateSpec
from engine.operators.field_aggregates import count, sum_
from engine.operators.group_aggregate import GroupAggregateSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.stateless import MapSpec
from engine.operators.top_n import TopNSpec
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Rows
from tests.unit.operators.test_column_groups import (
    KEY,
    SCHEMA,
    batches,
    deleted,
    inserted,
    play,
    scripts,
)
from tests.unit.operators.test_regular_join import shown
from tests.unit.operators.test_restore import FULL, INCREMENTAL, ROCKSDB, Run, batch_of, straight
from tests.unit.operators.test_restore_columns import PHASES, disturbed, undisturbed

SPECS = {
    "by a field": DeduplicateSpec(KEY, LAST),
    "tuple": DeduplicateSpec(ComposedKey(("k", "name")), LAST),
    "float": DeduplicateSpec(FieldKey("x"), LAST),
    "at the end": DeduplicateSpec(KEY, LAST, emit_final=True),
}


def on_columns(rows):
    return ColumnLastRowSpec(rows, retracts=True)


@pytest.mark.parametrize("name", SPECS)
def test_columns_give_what_rows_give_in_that_order(name):
    rows = SPECS[name]

    @settings(max_examples=30, deadline=None, phases=PHASES)
    @given(batches())
    def check(steps):
        ours = play(on_columns(rows), steps, is_columns=True)
        assert ours[:2] == play(rows, steps, is_columns=False)[:2]
        assert not ours[2]

    check()


@pytest.mark.parametrize("config", [FULL, INCREMENTAL, ROCKSDB], ids=["full", "incremental", "rocksdb"])
@pytest.mark.parametrize("name", ["by a field", "at the end"])
def test_results_after_any_script_are_those_of_rows(name, config):
    rows = SPECS[name]

    @settings(max_examples=12, deadline=None, phases=PHASES)
    @given(scripts())
    def check(script):
        golden = undisturbed(Case((rows, MapSpec(shown)), script, (KEY,)))
        assert disturbed(Case((on_columns(rows), MapSpec(shown)), script, (KEY,)), config) == golden

    check()


@pytest.mark.parametrize("emit_final", [False, True])
def test_keys_whose_records_are_gone_are_forgotten(monkeypatch, emit_final):
    monkeypatch.setattr("engine.operators.last_records._GONE_MIN", 20)
    rows = DeduplicateSpec(KEY, LAST, emit_final=emit_final)
    steps = []
    for at in range(0, 400, 20):
        some = [(key, key, 0.5, None, f"n{key}", 1) for key in range(at, at + 20)]
        steps += [(inserted(*some), False), (deleted(*some[:19], *some[:3]) + inserted(some[0]), False)]
    assert play(on_columns(rows), steps, is_columns=True) == play(rows, steps, is_columns=False)
    with OperatorHarness(on_columns(rows), MapSpec(shown)) as harness:
        for some, _ in steps:
            harness.process_batch(batch_of(some, None, SCHEMA))
        assert harness.operators[0]._state.slots.num_slots < 100
        harness.end()
        if emit_final:  # in the order in which the keys came, or came again
            texts = [text for _, _, text in harness.output.rows]
            assert texts == [text for _, _, text in told(rows, steps)]


@pytest.mark.parametrize("kind", ["last rows", "groups"])
def test_what_was_forgotten_does_not_come_back_from_an_older_layer(monkeypatch, kind):
    for module in ("last_records", "group_slots"):
        monkeypatch.setattr(f"engine.operators.{module}._GONE_MIN", 5)
    rows = SPECS["by a field"] if kind == "last rows" else GroupAggregateSpec(KEY, (count(), sum_("v")))
    columnar = on_columns(rows) if kind == "last rows" else column_group_aggregate(rows)
    some = [(key, key, 0.5, None, "a", 1) for key in range(30)]
    steps = [
        Rows(inserted(*some), schema=SCHEMA),
        Rows(deleted(*some[:25]), schema=SCHEMA),
        Rows(inserted(*some), schema=SCHEMA),
    ]
    run = Run(Case((columnar, MapSpec(shown)), [], (KEY,)), INCREMENTAL, None)
    run.start(1)
    run.play([steps[0], MARK, steps[1], MARK])
    assert run.harnesses[0].operators[0]._state.slots.num_slots == 5
    run.start(1)
    run.play(steps[2:])
    assert run.finish() == straight(Case((rows, MapSpec(shown)), steps, (KEY,)))


@pytest.mark.parametrize("kind", ["last rows", "top"])
def test_checkpoints_of_what_batch_jobs_keep_on_rows_have_all_that_changed(kind):
    order = ((1, True),)
    rows = SPECS["at the end"] if kind == "last rows" else TopNSpec(KEY, 1, order, emit_final=True, retracts=True)
    some = [(key, key, 0.5, None, "a", 1) for key in range(30)]
    steps = [Rows(inserted(*some)), Rows(deleted(*some[:3]) + inserted((4, -5, 0.5, None, "b", 1)))]
    run = Run(Case((rows, MapSpec(shown)), [], (KEY,)), INCREMENTAL, None)
    run.start(1)
    run.play([steps[0], MARK, steps[1], MARK])
    run.start(1)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), steps, (KEY,)))


def told(rows, steps):
    with OperatorHarness(rows, MapSpec(shown)) as harness:
        for some, _ in steps:
            harness.process(some)
        harness.end()
        return harness.output.rows


def test_rows_go_on_where_columns_have_left_off():
    rows = SPECS["by a field"]
    some = [(key % 6, key, key / 8, None, "a", key) for key in range(20)]
    before, later = [Rows(inserted(*some), schema=SCHEMA)], [Rows(deleted(*some[:3]), schema=SCHEMA)]
    after = [Rows(deleted(*some[4:5]) + inserted(*some[:5]))]
    run = Run(Case((on_columns(rows), MapSpec(shown)), [], (KEY,)), INCREMENTAL, None)
    run.start(1)
    run.play([*before, MARK, *later, MARK])
    assert run.num_deltas == 2
    run.case = Case((rows, MapSpec(shown)), [], (KEY,))
    run.start(2)
    run.play([MARK])
    run.start(1)
    run.play(after)
    assert run.finish() == straight(Case((rows, MapSpec(shown)), [*before, *later, *after], (KEY,)))


def test_a_changelog_that_the_plan_did_not_know_of_goes_to_rows():
    rows = SPECS["by a field"]
    with OperatorHarness(ColumnLastRowSpec(rows)) as harness:
        harness.process_batch(batch_of(inserted((1, 2, 0.5, None, "a", 1)), None, SCHEMA))
        assert not harness.head._is_on_rows
        batch = batch_of(deleted((1, 2, 0.5, None, "a", 1)), None, SCHEMA)
        assert np.count_nonzero(batch.kinds) == 1
        harness.process_batch(batch)
        assert harness.head.tier("planned").startswith("on rows: a changelog came, of which the plan did not know")
        assert len(harness.output.rows) == 2
