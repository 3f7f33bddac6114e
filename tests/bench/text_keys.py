"""What a record of a keyed count by a text costs, part by part: ``python -m tests.bench text_keys [--keys 100 10000]``.

Nanoseconds of CPU a record, best of some rounds, in batches of 16,384 records (text of 16 bytes, int64) of which each
key comes as often as another (``--skew``: the n-th of them as often as 1 / n). Texts come plain, or in dictionaries as
Parquet keeps them. read: out of a Parquet file; hash: the subtask of each record; cut: its way into the part of one of
two subtasks; wire: parts to bytes and back; find: the slot of each key; fold: sum and result.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.connectors.parquet_source import ParquetSource
from engine.connectors.source import Source
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.keys import FieldKey
from engine.runtime.exchange.channels import Records
from engine.runtime.exchange.column_hash import KnownChannels, subtask_of_rows
from engine.runtime.exchange.partitioners import make_channel_selector
from engine.runtime.exchange.wire import Decoder, Encoder
from engine.state.slot_table import SlotTable
from tests.bench.stats import record
from tests.testing.operator_harness import OperatorHarness

CHANNELS, GROUPS = 2, 128
PARTS = ("read", "hash", "cut", "wire", "find", "fold")


def texts(num_keys: int) -> pa.Array:
    """Return different texts of 16 bytes."""
    numbers = np.arange(num_keys, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return pa.array(np.char.mod("%016x", numbers))


def batches(num_keys: int, num_batches: int, skew: bool) -> list[ColumnBatch]:
    rng = np.random.default_rng(1)
    keys, size = texts(num_keys), num_batches * BATCH_ROWS_MAX
    if skew:
        codes = np.minimum(np.exp(rng.random(size) * np.log(num_keys)).astype(np.int32), num_keys - 1)
    else:
        codes = rng.integers(0, num_keys, size, dtype=np.int32)
    made = []
    for at in range(0, size, BATCH_ROWS_MAX):
        column = keys.take(pa.array(codes[at : at + BATCH_ROWS_MAX]))
        ones = pa.array(np.ones(BATCH_ROWS_MAX, np.int64))
        made.append(ColumnBatch(pa.record_batch([column, ones], names=["key", "count"])))
    return made


class _Task:
    operator_name = "bench"

    def wake(self) -> None:
        pass


def drained(source: Source) -> list[Batch]:
    enumerator, reader = source.create_enumerator(), source.create_reader()
    enumerator.start(1)
    reader.open(_Task())  # type: ignore[arg-type]
    found = []
    while (split := enumerator.next_split(0, "nowhere")) is not None:
        reader.add_split(split)
    while not reader.is_drained():
        if (batch := reader.poll(BATCH_ROWS_MAX)) is not None:
            found.append(batch)
    reader.close()
    return found


def best_ns(work: Callable[[], Any], num_records: int, rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        begin_ns = time.thread_time_ns()
        work()
        best = min(best, time.thread_time_ns() - begin_ns)
    return best / num_records


def measure(
    num_keys: int, *, encoded: bool, skew: bool, rounds: int, num_batches: int, folder: Path
) -> dict[str, float]:
    given = batches(num_keys, num_batches, skew)
    size = num_batches * BATCH_ROWS_MAX
    path = folder / f"{num_keys}-{encoded}-{skew}.parquet"
    with pq.ParquetWriter(path, given[0].columns.schema, use_dictionary=encoded) as writer:
        writer.write_table(pa.Table.from_batches([batch.columns for batch in given]))
    source = ParquetSource((str(path),))
    found = {"read": best_ns(lambda: drained(source), size, rounds)}
    given = [batch for batch in drained(source) if isinstance(batch, ColumnBatch)]
    key = FieldKey(0)

    def hashed() -> None:
        known = KnownChannels()
        for batch in given:
            subtask_of_rows([batch.columns.column(0)], CHANNELS, GROUPS, is_tuple=False, known=known)

    def cut() -> list[tuple[int, Batch]]:
        selector = make_channel_selector(
            Partitioning(ShipStrategy.HASH, key_selector=key),
            CHANNELS,
            operator_name="bench",
            max_parallelism=GROUPS,
            gathers=True,
        )
        parts = [part for batch in given for part in selector.split(batch)]
        return parts + list(selector.take_held())

    parts = cut()

    def wired() -> list[ColumnBatch]:
        came = []
        for channel in range(CHANNELS):
            encoder, decoder = Encoder(), Decoder()
            for own, part in parts:
                if own == channel:
                    for frame in encoder.encode(Records(part)):
                        element = decoder.decode(frame.kind, b"".join(frame.buffers))
                        if isinstance(element, Records):
                            assert isinstance(element.batch, ColumnBatch)
                            came.append(element.batch)
        return came

    came = wired()
    found["hash"] = best_ns(hashed, size, rounds)
    found["cut"] = best_ns(cut, size, rounds) - found["hash"]
    found["wire"] = best_ns(wired, size, rounds)
    table = SlotTable([pa.string()])

    def find() -> None:
        for batch in came:
            table.find([batch.columns.column(0)])

    find()
    found["find"] = best_ns(find, size, rounds)
    with OperatorHarness(ColumnAggregateSpec(key, "sum", 1), memory_bytes=1 << 40) as harness:

        def aggregate() -> None:
            for batch in came:
                harness.process_batch(batch)
            harness.output.batches.clear()
            harness.output.story.clear()

        aggregate()
        found["fold"] = best_ns(aggregate, size, rounds) - found["find"]
    return {**found, "all": sum(found.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[100, 1000, 10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--skew", action="store_true", help="few keys are most of the records")
    options = parser.parse_args()
    gc.disable()
    print("     keys  texts       " + "".join(f"{part:>7}" for part in (*PARTS, "all")))
    with tempfile.TemporaryDirectory() as folder:
        for num_keys in options.keys:
            for encoded in (False, True):
                found = measure(
                    num_keys,
                    encoded=encoded,
                    skew=options.skew,
                    rounds=options.rounds,
                    num_batches=options.batches,
                    folder=Path(folder),
                )
                way = "dictionary" if encoded else "plain"
                print(
                    f"{num_keys:9,}  {way:12}" + "".join(f"{found[part]:7.1f}" for part in (*PARTS, "all")), flush=True
                )
                record({"keys": num_keys, "texts": way, **found})


if __name__ == "__main__":
    main()
