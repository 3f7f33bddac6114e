"""Pairs that an interval join in files had not found yet when a checkpoint was made: a part of state of its own.

Records wait there for others (``spilling_intervals``), and nothing is done at a barrier. Who makes the checkpoint finds
their pairs, and may send nothing; so they are written, both records of each, and whoever goes on sends their results
before anything else: on columns, in memory or in files, or on rows. The records themselves are among those of the join,
as if they had not waited. A chunk is an Arrow IPC stream, in order: the left record's fields, the right one's, and both
event times; its metadata has the schemas of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.records import BATCH_ROWS_MAX, ColumnBatch
from engine.operators.column_fields import is_named, own_columns

if TYPE_CHECKING:
    import pyarrow as pa

    from engine.operators.join_segments import FoundPairs
    from engine.operators.spilling_intervals import SpillingIntervals

__all__ = ["PAIRS_PART", "UnsentPairs", "pairs_in", "rows_of_pairs"]

#: Name of the part in checkpoints, for good.
PAIRS_PART: Final = "join-pairs"
_SIDES: Final = ("left", "right")


@final
class UnsentPairs:
    """Implements ``parts.LazyPart``. Restored ones are kept until ``take``, which comes before the next snapshot."""

    def __init__(self, state: SpillingIntervals) -> None:
        self._state = state
        self._restored: list[bytes] = []

    def __bool__(self) -> bool:
        """Whether there is something to take."""
        return bool(self._restored)

    def take(self) -> Iterator[FoundPairs]:
        """Yield, and forget, what was restored."""
        chunks, self._restored = self._restored, []
        for chunk in chunks:
            yield from pairs_in(chunk)

    # --- LazyPart

    def num_entries(self) -> int:
        return self._state.num_unsent()

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        return {group: chunk for group, chunk in self.lazy_snapshot(key_groups).items() if chunk}

    def lazy_snapshot(self, key_groups: Iterable[int]) -> Mapping[int, bytes]:
        assert not self._restored, "pairs were not sent before a snapshot"
        return self._state.unsent(list(key_groups), self._streams)

    def _streams(self, pieces: Iterable[tuple[int, FoundPairs]]) -> dict[int, bytes]:
        """Return the chunks of these pairs, of which the key group is told."""
        from engine.state.column_chunks import streams

        schemas = [self._state.schema_of(side) for side in range(2)]
        metadata = {name: own.serialize().to_pybytes() for name, own in zip(_SIDES, schemas, strict=True) if own}
        return streams(_rows(pieces), metadata)

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        self._restored += filter(None, chunks.values())


def _rows(pieces: Iterable[tuple[int, FoundPairs]]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield pairs as rows of chunks."""
    import pyarrow as pa

    from engine.core.arrow_arrays import arrow_of

    for group, found in pieces:
        arrays: list[Any] = []
        for side in found.sides:
            arrays += side.take(arrow_of(found.order)).columns
        arrays += [arrow_of(times_ms[found.order]) for times_ms in found.times_ms]
        yield group, pa.RecordBatch.from_arrays(arrays, names=[str(at) for at in range(len(arrays))])


def pairs_in(chunk: bytes) -> Iterator[FoundPairs]:
    """Yield the pairs of a chunk, in their order."""
    import numpy as np
    import pyarrow as pa

    from engine.operators.join_segments import FoundPairs
    from engine.state.arrow_views import values_of

    with pa.ipc.open_stream(pa.py_buffer(chunk)) as reader:
        schemas = [pa.ipc.read_schema(pa.py_buffer(reader.schema.metadata[side.encode()])) for side in _SIDES]
        for batch in reader:
            ends = len(schemas[0]), len(schemas[0]) + len(schemas[1])
            left = pa.RecordBatch.from_arrays(batch.columns[: ends[0]], schema=schemas[0])
            right = pa.RecordBatch.from_arrays(batch.columns[ends[0] : ends[1]], schema=schemas[1])
            times_ms = values_of(batch.column(ends[1])), values_of(batch.column(ends[1] + 1))
            yield FoundPairs((left, right), times_ms, np.arange(batch.num_rows))


def rows_of_pairs(chunk: bytes) -> Iterator[tuple[list[tuple[Any, Any]], list[tuple[int, int]]]]:
    """Yield the pairs of a chunk as Python objects, and the event times of both records, batch by batch."""
    for found in pairs_in(chunk):
        for at in range(0, found.order.size, BATCH_ROWS_MAX):
            left, right = (
                ColumnBatch(own_columns(own.slice(at, BATCH_ROWS_MAX)), named=is_named(own.schema)).to_rows().rows
                for own in found.sides
            )
            left_ms, right_ms = (own[at : at + BATCH_ROWS_MAX].tolist() for own in found.times_ms)
            yield list(zip(left, right, strict=True)), list(zip(left_ms, right_ms, strict=True))
