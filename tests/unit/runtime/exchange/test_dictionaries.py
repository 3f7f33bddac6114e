"""Columns in dictionaries over the exchange: each record where a plain one goes, with its values, in any shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.core.dictionaries import Tidying, is_tidy, same_values
from engine.core.records import Batch, ColumnBatch, rows_of
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.keys import ComposedKey, FieldKey
from engine.protocol.stream import END_OF_DATA, Records
from engine.runtime.exchange.partition import PipelinedPartition
from engine.runtime.exchange.partitioners import make_channel_selector
from engine.runtime.exchange.wire import Decoder, Encoder, FrameKind
from tests.testing.dictionary_forms import FORMS, encoded_batch
from tests.unit.runtime.exchange.test_partition import descriptor

NESTED = pa.struct([("a", pa.string()), ("b", pa.list_(pa.string()))])
CHANNELS = 3


def batches(*, with_nulls: bool = True, with_nested: bool = True) -> list[ColumnBatch]:
    rng, made = np.random.default_rng(3), []
    for number, num_rows in enumerate((200, 1, 90, 0, 150)):
        keys = rng.integers(0, 20, num_rows)
        texts = [None if with_nulls and key == 5 else f"ü{key}" * (key % 4) for key in keys.tolist()]
        arrays = [pa.array(texts, pa.string()), pa.array(keys)]
        if with_nested:
            inner = [None if text == "" else {"a": text, "b": [text, "x"]} for text in texts]
            arrays.append(pa.array(inner, NESTED))
        columns = pa.RecordBatch.from_arrays(arrays, names=["text", "key", "inner"][: len(arrays)])
        made.append(ColumnBatch(columns, np.arange(num_rows) + 1000 * number))
    return [batch for batch in made if len(batch)]


def in_form(given: list[ColumnBatch], form: str, places: Any = None) -> list[ColumnBatch]:
    return [
        replace(one, columns=encoded_batch(one.columns, FORMS[form], places, seed=at)) for at, one in enumerate(given)
    ]


def told(found: list[Batch]) -> list[Any]:
    return [pair for one in map(rows_of, found) for pair in zip(map(repr, one.rows), one.timestamps_ms, strict=True)]


def by_channel(given: list[ColumnBatch], key: Any, *, gathers: bool = True) -> list[list[Batch]]:
    selector = make_channel_selector(
        Partitioning(ShipStrategy.HASH, key_selector=key), CHANNELS, operator_name="", gathers=gathers
    )
    parts = [part for batch in given for part in selector.split(batch)] + list(selector.take_held())
    return [[part for channel, part in parts if channel == own] for own in range(CHANNELS)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", [FieldKey(0), FieldKey(1), ComposedKey((0, 1))], ids=repr)
@pytest.mark.parametrize("gathers", [True, False])
def test_records_go_where_plain_ones_go_in_their_order(key: Any, form: str, gathers: bool):
    given = batches()
    expected = by_channel(given, key)
    assert all(expected)
    found = by_channel(in_form(given, form), key, gathers=gathers)
    assert [told(parts) for parts in found] == [told(parts) for parts in expected]
    plain = by_channel(batches(with_nulls=False, with_nested=False), key)
    tidying, few = Tidying(), batches(with_nulls=False, with_nested=False)
    tidy = [replace(one, columns=tidying.of(one.columns)) for one in in_form(few, form, [0])]
    assert [told(parts) for parts in by_channel(tidy, key, gathers=gathers)] == [told(parts) for parts in plain]


@pytest.mark.parametrize("form", FORMS)
def test_batches_that_a_buffer_puts_together_keep_their_values(form: str):
    """Also where Arrow cannot unify dictionaries: with nulls, or with more values than the type can number."""
    partition = PipelinedPartition(descriptor(), 1 << 20)
    view = partition.open_view(0, lambda: None)
    many = [ColumnBatch(pa.record_batch([pa.array([f"{n}-{i}" for i in range(100)])], names=["f"])) for n in range(3)]
    for given in (batches(), [replace(one, timestamps_ms=np.arange(100)) for one in many]):
        for batch in in_form(given, form):
            partition.add(0, batch)
        partition.add_event(END_OF_DATA)
        found = view.poll()
        assert isinstance(found, Records)
        assert told([found.batch]) == told(list(given))
        assert view.poll() is END_OF_DATA


def over_the_wire(given: list[ColumnBatch], codec: str = "") -> tuple[list[Batch], list[FrameKind]]:
    encoder, decoder, found, kinds = Encoder("", codec), Decoder(), [], []
    for batch in given:
        for frame in encoder.encode(Records(batch)):
            kinds.append(frame.kind)
            assert sum(map(len, frame.buffers)) == frame.size_bytes
            element = decoder.decode(frame.kind, b"".join(frame.buffers))
            if element is not None:
                assert isinstance(element, Records)
                found.append(element.batch)
    return found, kinds


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("codec", ["", "lz4"])
def test_columns_come_back_over_the_wire(form: str, codec: str):
    given = batches()
    mixed = [batch for pair in zip(in_form(given, form), given, strict=True) for batch in pair]
    found, _ = over_the_wire([*mixed, *(batch.slice(3, len(batch)) for batch in mixed if len(batch) > 3)], codec)
    expected = [one for one in given for _ in range(2)]
    assert told(found) == told([*expected, *(one.slice(3, len(one)) for one in expected if len(one) > 3)])


def numbered_batches(num_values: int, num_rows: int, num_batches: int, *, shared: bool) -> list[ColumnBatch]:
    rng, values, made = np.random.default_rng(4), pa.array([f"value {at:08}" for at in range(num_values)]), []
    for number in range(num_batches):
        own = values if shared else values.take(pa.array(range(num_values)))
        numbers = pa.array(rng.integers(0, num_values, num_rows, dtype=np.int32))
        column = pa.DictionaryArray.from_arrays(numbers, own)
        columns = pa.record_batch([column, pa.array(range(num_rows), pa.int64())], names=["text", "number"])
        made.append(ColumnBatch(columns, np.arange(num_rows) + number))
    return made


def test_a_dictionary_goes_once_as_long_as_it_stays_the_same():
    given = numbered_batches(50, 200, 3, shared=True)
    found, kinds = over_the_wire([*given, given[0].slice(10, 12)])
    assert kinds == [FrameKind.SCHEMA, FrameKind.VALUES, *[FrameKind.COLUMNS] * 4]
    assert told(found) == told([*given, given[0].slice(10, 12)])
    columns = [batch.columns.column(0) for batch in found if isinstance(batch, ColumnBatch)]
    assert all(map(is_tidy, columns))
    assert all(same_values(column.dictionary, columns[0].dictionary) for column in columns)
    other = numbered_batches(50, 200, 2, shared=False)
    found, kinds = over_the_wire(other)
    assert kinds == [FrameKind.SCHEMA, *[FrameKind.VALUES, FrameKind.COLUMNS] * 2]
    assert told(found) == told(list(other))


def test_a_dictionary_goes_when_as_much_has_gone_without_it():
    """Few rows at a time: first without, then with it; and never where each batch has another one."""
    given = numbered_batches(500, 100, 9, shared=True)
    found, kinds = over_the_wire(given)
    assert told(found) == told(list(given))
    without = kinds.index(FrameKind.VALUES) - 2  # behind two schemas
    assert 4 <= without <= 8
    assert kinds == [
        FrameKind.SCHEMA,
        *[FrameKind.COLUMNS] * without,
        FrameKind.SCHEMA,
        FrameKind.VALUES,
        *[FrameKind.COLUMNS] * (9 - without),
    ]
    changing = numbered_batches(500, 100, 20, shared=False)
    found, kinds = over_the_wire(changing)
    assert told(found) == told(list(changing))
    assert FrameKind.VALUES not in kinds


def test_rows_of_the_same_dictionary_are_gathered_by_channel():
    given = numbered_batches(50, 300, 6, shared=True)
    first, gathered = by_channel(given, FieldKey(0))[0]
    assert len(gathered) > 4 * len(first)
    assert isinstance(gathered, ColumnBatch)
    assert same_values(gathered.columns.column(0).dictionary, given[0].columns.column(0).dictionary)
    one_by_one = by_channel(given, FieldKey(0), gathers=False)
    assert [told(parts) for parts in by_channel(given, FieldKey(0))] == [told(parts) for parts in one_by_one]
    assert len(by_channel(numbered_batches(50, 300, 6, shared=False), FieldKey(0))[0]) == 6


def test_a_buffer_is_not_full_of_the_values_that_its_batches_share():
    partition = PipelinedPartition(descriptor(), 8000)
    view = partition.open_view(0, lambda: None)
    given = numbered_batches(500, 20, 10, shared=True)
    for batch in given:
        partition.add(0, batch)
    assert not view.has_next()
    partition.flush()
    found = view.poll()
    assert isinstance(found, Records)
    assert told([found.batch]) == told(list(given))
