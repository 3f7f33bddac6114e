"""Columns in dictionaries go through every operator on columns as plain ones do, and give the same, in order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.core.dictionaries import Tidying, is_tidy, plain_columns, same_values
from engine.core.records import Batch, ColumnBatch, rows_of
from engine.operators import memory_watch
from engine.operators.base import OperatorSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.column_deduplicate import column_deduplicate
from engine.operators.deduplicate import FIRST, LAST, DeduplicateSpec
from engine.operators.keys import ComposedKey, FieldKey
from engine.runtime.exchange.column_hash import KnownChannels, subtask_of_rows
from tests.process.kernel_runs import joins, keyed, sessions, tops, windows
from tests.testing.dictionary_forms import FORMS, encoded, encoded_batch
from tests.testing.operator_harness import OperatorHarness

SPECS = {kind.__name__: list(kind()) for kind in (keyed, windows, sessions, joins, tops)}
CASES = [(kind, number) for kind, specs in SPECS.items() for number in range(len(specs))]
FORM_NAMES = list(FORMS)
NESTED = pa.struct([("text", pa.string()), ("texts", pa.list_(pa.string()))])


def batches(seed: int, *, with_nested: bool = False) -> list[ColumnBatch]:
    rng, made = np.random.default_rng(seed), []
    for start, num_rows in enumerate((40, 30, 1, 60, 0, 25)):
        keys = rng.integers(0, 12, num_rows)
        names = [None if key == 5 else "-0.0" if key == 3 else f"ü{key}" * (key % 4) for key in keys.tolist()]
        values = rng.integers(-3, 9, num_rows)
        arrays = [pa.array(keys), pa.array(values), pa.array(keys / 4), pa.array(names, pa.string())]
        if with_nested:
            texts = zip(keys.tolist(), names, strict=True)
            rows = [None if key == 7 else {"text": name, "texts": [name, "x"] * (key % 3)} for key, name in texts]
            arrays.append(pa.array(rows, NESTED))
        columns = pa.RecordBatch.from_arrays(arrays, names=["k", "v", "x", "name", "nested"][: len(arrays)])
        made.append(ColumnBatch(columns, 100 * (start // 2) + np.sort(rng.integers(0, 100, num_rows))))
    return made


def outcome(spec: OperatorSpec, given: list[ColumnBatch], memory_bytes: int = 64 << 20) -> tuple[list[Any], list[bool]]:
    """Return what comes out over a restore, in its order, and whether it is columns."""
    found: list[Batch] = []
    taken = None
    for part in (given[:3], given[3:]):
        with OperatorHarness(spec, restored=None if taken is None else [taken], memory_bytes=memory_bytes) as harness:
            for number, batch in enumerate(part):
                harness.process_batch(batch, input_index=number % spec.num_inputs)
            if taken is None:
                harness.watermark(150)
                taken = harness.snapshot(1)
            else:
                harness.watermark(1 << 40)
                harness.end()
            found += harness.output.batches
    records = [(row, stamp) for batch in found for row, stamp in told(batch)]
    return records, [isinstance(batch, ColumnBatch) for batch in found]


def told(batch: Batch) -> list[Any]:
    rows = rows_of(batch)
    return list(zip(map(repr, rows.rows), rows.timestamps_ms or [None] * len(rows.rows), strict=True))


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_an_operator_takes_dictionaries_as_it_takes_plain_columns(kind: str, number: int):
    spec, seed = SPECS[kind][number], number
    given = batches(seed)
    expected = outcome(spec, given)
    assert expected[0]
    form = FORMS[FORM_NAMES[number % len(FORMS)]]
    mixed = [
        batch if at == 3 else replace(batch, columns=encoded_batch(batch.columns, form, seed=at))
        for at, batch in enumerate(given)
    ]
    assert outcome(spec, mixed) == expected
    only_texts = _tidy(given)
    assert any(is_tidy(batch.columns.column(3)) for batch in only_texts)
    assert outcome(spec, only_texts) == expected


@pytest.mark.parametrize("form", FORM_NAMES)
@pytest.mark.parametrize(
    "spec",
    [ColumnAggregateSpec(FieldKey(3), "max_by", 1), column_deduplicate(DeduplicateSpec(FieldKey(0), LAST))],
    ids=["max_by", "last row"],
)
def test_dictionaries_inside_of_records_are_kept_as_their_values(spec: Any, form: str):
    given = batches(1, with_nested=True)
    hidden = [replace(b, columns=encoded_batch(b.columns, FORMS[form], [3, 4])) for b in given]
    assert outcome(spec, hidden) == outcome(spec, given)


@pytest.mark.parametrize("form", FORM_NAMES)
def test_values_are_the_same_with_and_without_dictionaries(form: str):
    for batch in batches(2, with_nested=True):
        columns = encoded_batch(batch.columns, FORMS[form])
        for made in (columns, plain_columns(columns), Tidying().of(columns)):
            assert told(ColumnBatch(made)) == told(ColumnBatch(batch.columns))
        assert plain_columns(columns).schema.types == batch.columns.schema.types


def test_only_texts_of_few_values_keep_their_dictionary_and_the_same_one_is_one_array():
    texts = pa.array(["a", "b", None, "a"] * 5)
    many = pa.array([f"t{at}" for at in range(20)])
    columns = pa.record_batch([texts.dictionary_encode(), many.dictionary_encode()], names=["few", "many"])
    tidying, names = Tidying(), ["few", "many"]
    first = tidying.of(columns)
    assert [is_tidy(column) for column in first.columns] == [True, False]
    again = tidying.of(pa.record_batch([encoded(texts, FORMS["int64"]), many.dictionary_encode()], names=names))
    assert [is_tidy(column) for column in again.columns] == [True, True]  # what comes again is worth keeping
    copies = [tidying.of(pa.record_batch([texts, many.dictionary_encode()], names=names)) for _ in range(2)]
    assert same_values(*(one.column(1).dictionary for one in copies))


def test_texts_that_are_only_keys_stay_in_their_dictionary():
    texts = pa.array(["a", "b", None, "a"] * 5)
    columns = Tidying().of(pa.record_batch([texts.dictionary_encode(), pa.array(range(20))], names=["key", "n"]))
    with OperatorHarness(ColumnAggregateSpec(FieldKey(0), "sum", 1)) as harness:
        for batch in (columns, columns, plain_columns(columns)):
            harness.process_batch(ColumnBatch(batch))
        kinds = [is_tidy(batch.columns.column(0)) for batch in harness.output.batches]  # type: ignore[union-attr]
    assert kinds == [False, True, False]  # the first one says what the records are


def _tidy(given: list[ColumnBatch]) -> list[ColumnBatch]:
    tidying = Tidying()
    return [replace(b, columns=tidying.of(encoded_batch(b.columns, FORMS["tidy"], [3]))) for b in given]


def _some(batch: ColumnBatch, is_kept: Any) -> ColumnBatch:
    rows = np.flatnonzero(is_kept)
    assert batch.timestamps_ms is not None
    return replace(batch, columns=batch.columns.take(rows), timestamps_ms=batch.timestamps_ms[rows])


def rescaled(spec: OperatorSpec, given: list[ColumnBatch]) -> list[list[Any]]:
    """Return what two subtasks give that are restored from an increment on the snapshot of one."""
    with OperatorHarness(spec) as harness:
        for batch in given[:2]:
            harness.process_batch(batch)
        taken = harness.snapshot(1)
        harness.process_batch(given[2])
        taken = harness.snapshot(2, since=taken)
        assert taken.num_deltas
    found = []
    for subtask in range(2):
        with OperatorHarness(spec, subtask_index=subtask, parallelism=2, restored=[taken]) as harness:
            groups = harness.runtime_context.get_max_number_of_parallel_subtasks()
            known = KnownChannels()
            for batch in given[3:]:
                own = subtask_of_rows([batch.columns.column(3)], 2, groups, is_tuple=False, known=known) == subtask
                harness.process_batch(_some(batch, own))
            harness.watermark(1 << 40)
            harness.end()
            found.append([pair for batch in harness.output.batches for pair in told(batch)])
    return found


@pytest.mark.parametrize(
    "spec",
    [
        ColumnAggregateSpec(FieldKey(3), "sum", 1),
        ColumnAggregateSpec(ComposedKey((0, 3)), "min_by", 1),
        *[spec for spec in (*SPECS["windows"], *SPECS["sessions"]) if repr(FieldKey(3)) in repr(spec)][::3],
        column_deduplicate(DeduplicateSpec(FieldKey(3), FIRST)),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_state_of_dictionaries_is_restored_by_two_subtasks_as_that_of_plain_columns(spec: Any):
    given = [batch for batch in batches(7) if len(batch)]
    given[:3] = [_some(batch, batch.columns.column(0).to_numpy() < 7) for batch in given[:3]]  # others are new then
    expected = rescaled(spec, given)
    assert all(expected)
    assert rescaled(spec, _tidy(given)) == expected


@pytest.mark.parametrize(
    "spec",
    [
        ColumnAggregateSpec(FieldKey(3), "sum", 1),
        *[spec for spec in (*SPECS["windows"], *SPECS["sessions"]) if repr(FieldKey(3)) in repr(spec)][::3],
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_dictionaries_are_taken_while_state_lies_in_files(spec: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    given = batches(8)
    expected = outcome(spec, given, 500)
    assert expected[0]
    assert outcome(spec, _tidy(given), 500) == expected
