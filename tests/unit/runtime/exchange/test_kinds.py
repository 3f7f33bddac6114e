"""Kinds of a changelog stay beside their columns on every way between two tasks."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from engine.core.ids import IntermediateDatasetID, ResultPartitionID
from engine.core.records import ColumnBatch, kind_of, rows_of
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.keys import FieldKey
from engine.protocol.control import ResultPartitionDescriptor
from engine.protocol.stream import END_OF_DATA, Records
from engine.runtime.exchange.partition import BlockingPartition, PipelinedPartition
from engine.runtime.exchange.partitioners import make_channel_selector
from engine.runtime.exchange.wire import Decoder, Encoder
from engine.runtime.taskmanager.in_flight import decode_batches, encode_batches
from tests.unit.runtime.exchange.test_partition import drain

WAYS = {
    "numbers": lambda keys: [pa.array(keys), pa.array(keys * 0.5)],
    "nulls": lambda keys: [pa.array(keys, mask=keys % 3 == 0), pa.nulls(keys.size)],
    "texts": lambda keys: [pa.array(keys), pa.array(map(str, keys), pa.string())],
    "dictionaries": lambda keys: [pa.array(keys), pa.array(map(str, keys % 4), pa.string()).dictionary_encode()],
}


def batches(way, *, stamped=True, num=6, has_kinds=lambda number: True):
    rng = np.random.default_rng(5)
    for number in range(num):
        size = int(rng.integers(1, 40))
        keys = rng.integers(0, 50, size)
        columns = pa.RecordBatch.from_arrays(WAYS[way](keys), names=["k", "v"])
        stamps = np.arange(size) if stamped else None
        kinds = rng.integers(0, 4, size).astype(np.int8) if has_kinds(number) else None
        yield ColumnBatch(columns, stamps, named=True, kinds=kinds)


def seen(some):
    """Of each record its kind, fields, and time."""
    found = []
    for batch in some:
        rows = rows_of(batch)
        stamps = rows.timestamps_ms or [None] * len(rows)
        found += [(str(kind_of(row)), repr(row), stamp) for row, stamp in zip(rows.rows, stamps, strict=True)]
    return found


@pytest.mark.parametrize("form", [bytes, bytearray])
@pytest.mark.parametrize("stamped", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_frames_have_them(way, stamped, form):
    given = [*batches(way, stamped=stamped, num=3), *batches(way, stamped=stamped, num=2, has_kinds=bool)]
    encoder, decoder, found = Encoder(), Decoder(), []
    for batch in given:
        for frame in encoder.encode(Records(batch)):
            element = decoder.decode(frame.kind, form(b"".join(frame.buffers)))
        found.append(element.batch)
    assert seen(found) == seen(given)
    assert [batch.kinds is None for batch in found] == [batch.kinds is None for batch in given]
    assert {batch.kinds.flags.writeable for batch in found if batch.kinds is not None} == {True}  # as kernels want it
    assert seen(decode_batches(encode_batches(given, "Map"))) == seen(given)


STRATEGIES = [ShipStrategy.HASH, ShipStrategy.REBALANCE, ShipStrategy.SHUFFLE, ShipStrategy.BROADCAST]


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("strategy", [*STRATEGIES, ShipStrategy.CUSTOM], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_records_are_dealt_out_with_them(way, strategy, num, gathers):
    partitioning = Partitioning(strategy, FieldKey("k"), lambda key, channels: (key or 0) % channels)
    selector = make_channel_selector(partitioning, num, operator_name="Map", gathers=gathers)
    given = list(batches(way, has_kinds=lambda number: number != 3))  # what is gathered must not be mixed
    parts = [part for batch in given for part in selector.split(batch)] + list(selector.take_held())
    by_channel = [seen(part for channel, part in parts if channel == own) for own in range(num)]
    if strategy is ShipStrategy.BROADCAST:
        assert by_channel == [seen(given)] * num
        return
    assert sorted(itertools.chain.from_iterable(by_channel), key=repr) == sorted(seen(given), key=repr)
    if strategy is ShipStrategy.HASH:
        rows = make_channel_selector(partitioning, num, operator_name="Map")
        parts = [part for batch in given for part in rows.split(batch.to_rows())]
        assert by_channel == [seen(part for channel, part in parts if channel == own) for own in range(num)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("blocking", [False, True])
def test_batches_that_are_put_together_are_alike(way, blocking, tmp_path):
    dataset = IntermediateDatasetID.from_text("edge")
    descriptor = ResultPartitionDescriptor(ResultPartitionID.of(dataset, 0, 0), dataset, 1, blocking, 100)
    if blocking:
        partition = BlockingPartition(descriptor, 100_000, str(tmp_path))
    else:
        partition = PipelinedPartition(descriptor, 100_000)
        view = partition.open_view(0, lambda: None)
    given = list(batches(way, has_kinds=lambda number: number not in (2, 3)))
    for batch in given:
        partition.add(0, batch)
    partition.add_event(END_OF_DATA)
    partition.finish()
    if blocking:
        view = partition.open_view(0, lambda: None)
    found = drain(view)[:-1]
    assert [batch.kinds is None for batch in found] == [False, True, False]
    assert seen(found) == seen(given)
    partition.release()
