"""What chunks of sessions on columns are made of, and what these had to send when a checkpoint was made of files.

A chunk has a stream of sessions, and behind it others that readers of sessions do not see. Records for sessions in
files wait, and so does the time: who makes a checkpoint takes them up, and may send nothing; so what fires then, and
what came too late, are such streams: only of the last layer, as the task has gone on behind the barriers of those below
it. An increment has the keys that have no session any more in another one. Where increments are kept as they are, in
one chunk, each is a layer behind those that it builds on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.record_class import class_from, class_pickle
from engine.core.records import ColumnBatch, Named
from engine.state.column_chunks import GONE_KEYS, INCREMENT, KIND

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["DUE", "LATE", "Layer", "Unsent", "late_rows", "layers_of", "metadata_of"]

#: Kinds of streams: sessions that fire, in the columns of a chunk, and records that came too late.
DUE: Final = b"due"
LATE: Final = b"late"
_NAMED: Final = b"named"
#: What is said under that name, but for objects of a class, which is there itself, pickled.
_TUPLES: Final = b"0"
_ROWS: Final = b"1"


@final
class Unsent:
    """To be sent before anything else. ``due``: rows of chunks."""

    def __init__(self) -> None:
        self.due: list[pa.RecordBatch] = []
        self.late: list[ColumnBatch] = []

    def __bool__(self) -> bool:
        return bool(self.due or self.late)

    def num_entries(self) -> int:
        return sum(map(len, self.late)) + sum(rows.num_rows for rows in self.due)

    def add(self, other: Unsent) -> None:
        self.due += other.due
        self.late += other.late


def metadata_of(kind: bytes, *, named: Named = False) -> dict[bytes, bytes]:
    """Return what a stream of this kind says of itself."""
    return {KIND: kind, _NAMED: class_pickle(named) if isinstance(named, type) else (_TUPLES, _ROWS)[named]}


def _named_in(said: dict[bytes, bytes]) -> Named:
    told = said.get(_NAMED, _TUPLES)
    return told == _ROWS if told in (_TUPLES, _ROWS) else class_from(told)


def late_rows(columns: pa.RecordBatch, times_ms: Array) -> pa.RecordBatch:
    """Return records that came too late as a stream has them: event times behind their fields."""
    import pyarrow as pa

    arrays = [*columns.columns, pa.array(times_ms, pa.int64())]
    return pa.RecordBatch.from_arrays(arrays, names=[*columns.schema.names, "time"])


def _late_batch(rows: pa.RecordBatch, named: Named) -> ColumnBatch:
    import pyarrow as pa

    *columns, times_ms = rows.columns
    own = pa.RecordBatch.from_arrays(columns, names=rows.schema.names[:-1])
    return ColumnBatch(own, times_ms.to_numpy(zero_copy_only=False), named=named)


@final
@dataclass(slots=True)
class Layer:
    """``schema``: of its sessions, with what the chunk says of itself; ``gone``: keys without sessions."""

    schema: pa.Schema
    sessions: list[pa.RecordBatch]
    gone: list[pa.RecordBatch] = field(default_factory=list)
    unsent: Unsent = field(default_factory=Unsent)

    @property
    def metadata(self) -> dict[bytes, bytes]:
        return self.schema.metadata or {}

    @property
    def is_increment(self) -> bool:
        """Whether what lower layers had to send has been sent, or is here again."""
        return INCREMENT in self.metadata

    def replaced_keys(self) -> Iterator[list[pa.Array]]:
        """Yield the columns of keys of which lower layers have nothing to say, if it is an increment."""
        if self.is_increment:
            num_keys = self.metadata[b"keys"].count(b",") + 1
            for rows in self.sessions:
                yield rows.columns[2 : 2 + num_keys]
            for rows in self.gone:
                yield rows.columns


def layers_of(chunk: bytes) -> Iterator[Layer]:
    """Yield the layers of a chunk, the lowest first."""
    import pyarrow as pa

    source, layer = pa.BufferReader(chunk), None
    while source.tell() < len(chunk):
        reader = pa.ipc.open_stream(source)
        batches, said = list(reader), reader.schema.metadata or {}
        kind = said.get(KIND)
        if kind is None:
            if layer is not None:
                yield layer
            layer = Layer(reader.schema, batches)
            continue
        assert layer is not None
        if kind == GONE_KEYS:
            layer.gone += batches
        elif kind == DUE:
            layer.unsent.due += batches
        else:
            layer.unsent.late += (_late_batch(rows, _named_in(said)) for rows in batches)
    if layer is not None:
        yield layer
