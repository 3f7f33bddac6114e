"""Windows of a user's fold that an operator on columns has left in a checkpoint, for the one on rows that follows it.

Whether windows are kept by columns is decided when the program is built, by its functions; see ``after_columns``. Only
the folds of users are taken over: for built-in aggregates the program says by itself what the columns are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.errors import ProgramError
from engine.core.records import RowKind, record_values, row_of_kind
from engine.operators.column_fields import is_named, own_fields
from engine.operators.computed_keys import own_records
from engine.operators.left_chunks import LeftChunks
from engine.operators.session_unsent import layers_of
from engine.state.column_chunks import GONE, WATERMARK
from engine.state.key_groups import canonical_key

if TYPE_CHECKING:
    import pyarrow as pa

    from engine.core.records import ColumnBatch

__all__ = ["FIRED", "HELD", "SESSIONS_PART", "WINDOW_SLOTS_PART", "LeftSessions", "LeftWindows"]

#: The columnar operator's part of state.
WINDOW_SLOTS_PART: Final = "window-slots"
#: That of the one for sessions. Both are names in checkpoints, for good.
SESSIONS_PART: Final = "session-slots"
#: In the metadata of a chunk: the column of each field that a fold's accumulator has; f = as the bits of a float.
HELD: Final = b"held"
#: The last column of sessions that may be late: whether they have fired. A name in checkpoints, too.
FIRED: Final = "fired"


@final
class LeftWindows(LeftChunks):
    def __init__(self, operator_name: str) -> None:
        super().__init__()
        self._operator_name = operator_name

    def take(self) -> Iterator[tuple[int, list[Any], list[Any], int]]:
        """Yield, and forget, what windows hold: (start, keys, accumulators, watermark up to which they have fired).

        Raises: ProgramError when it is not known what an accumulator is.
        """
        for chunk in self.take_chunks():
            panes: dict[int, dict[Any, Any]] = {}
            times_ms: dict[int, int] = {}
            for layer in _streams_in(chunk):
                said = layer.schema.metadata or {}
                if WATERMARK in said:  # an increment on what came before
                    for start in map(int, said[GONE].split(b",") if said[GONE] else ()):
                        panes.pop(start, None)
                    times_ms = {start: max(time_ms, int(said[WATERMARK])) for start, time_ms in times_ms.items()}
                if b"schema" not in said:
                    continue
                for batch, of_pane, made in _held_in(layer, self._operator_name):
                    start = batch.column(1)[0].as_py()
                    times_ms[start] = int(of_pane[b"watermark"])
                    keys = map(canonical_key, record_values(batch.column(0)))
                    panes.setdefault(start, {}).update(zip(keys, made, strict=True))
            for start, held in panes.items():
                yield start, list(held), list(held.values()), times_ms[start]


@final
class LeftSessions(LeftChunks):
    def __init__(self, operator_name: str) -> None:
        super().__init__()
        self._operator_name = operator_name

    def take(self) -> Iterator[tuple[Any, int, int, Any, bool]]:
        """Yield, and forget, what open sessions hold: (key, start, end, accumulator, whether it has fired), in the
        order of their changes.

        Raises: ProgramError when it is not known what an accumulator is.
        """
        for chunk in self.take_chunks():
            held: dict[Any, list[tuple[Any, int, int, Any, bool]]] = {}
            for layer in layers_of(chunk):
                for columns in layer.replaced_keys():
                    for key in map(canonical_key, record_values(columns[0])):
                        held.pop(key, None)
                accumulators_of = _accumulators_of(layer.schema, self._operator_name)
                for batch in layer.sessions:
                    is_told = batch.schema.names[-1] == FIRED
                    fired = record_values(batch.column(batch.num_columns - 1)) if is_told else [False] * batch.num_rows
                    for session in zip(*_keys_and_edges(batch), accumulators_of(batch), fired, strict=True):
                        held.setdefault(session[0], []).append(session)
            yield from itertools.chain.from_iterable(held.values())

    def unsent(self) -> tuple[list[tuple[Any, int, int, Any]], list[ColumnBatch]]:
        """Return what was due when the checkpoint was made, (key, start, end, accumulator), and what was too late."""
        due: list[tuple[Any, int, int, Any]] = []
        late: list[ColumnBatch] = []
        for chunk in self.chunks():
            layers = list(layers_of(chunk))
            first = max((number for number, layer in enumerate(layers) if layer.is_increment), default=0)
            for layer in layers[first:]:
                late += map(own_records, layer.unsent.late)
                accumulators_of = _accumulators_of(layer.schema, self._operator_name)
                for batch in layer.unsent.due:
                    due += zip(*_keys_and_edges(batch), accumulators_of(batch), strict=True)
        return due, late


def _keys_and_edges(batch: pa.RecordBatch) -> tuple[list[Any], list[int], list[int]]:
    starts, ends, keys = (record_values(batch.column(index)) for index in range(3))
    return list(map(canonical_key, keys)), starts, ends


def _streams_in(chunk: bytes) -> Iterator[pa.RecordBatchStreamReader]:
    """Yield the layers of a chunk, to be read to their ends."""
    import pyarrow as pa

    source = pa.BufferReader(chunk)
    while source.tell() < source.size():
        with pa.ipc.open_stream(source) as reader:
            yield reader
            for _ in reader:
                pass


def _held_in(layer: pa.RecordBatchStreamReader, operator_name: str) -> Iterator[tuple[pa.RecordBatch, Any, list[Any]]]:
    """Yield each batch of a stream with its metadata and the accumulators in it."""
    accumulators_of = _accumulators_of(layer.schema, operator_name)
    for batch, of_pane in layer.iter_batches_with_custom_metadata():
        yield batch, of_pane, accumulators_of(batch)


def _accumulators_of(chunk: pa.Schema, operator_name: str) -> Callable[[pa.RecordBatch], list[Any]]:
    """Return what gives the accumulators of the rows of such a chunk."""
    import pyarrow as pa

    metadata = chunk.metadata or {}
    held = metadata.get(HELD)
    if held is None:
        raise ProgramError(
            f"Operator {operator_name!r}: its windows were kept by columns, for built-in aggregates; with another "
            "function they cannot go on. Give the operator another uid to begin afresh."
        )
    schema = pa.ipc.read_schema(pa.py_buffer(metadata[b"schema"]))
    num_fields = own_fields(schema.names)
    names = tuple(schema.names[:num_fields]) if is_named(schema) else None
    fields = held.decode().split(",")
    if num_fields < len(schema):  # records with computed keys behind them
        fields = fields[:num_fields]

    def accumulators_of(batch: pa.RecordBatch) -> list[Any]:
        made: list[Any] = list(zip(*(_values(batch, field) for field in fields), strict=True))
        return made if names is None else [row_of_kind(RowKind.INSERT, r, names) for r in made]

    return accumulators_of


def _values(batch: pa.RecordBatch, field: str) -> list[Any]:
    column = batch.column(int(field.removesuffix("f")))
    if not field.endswith("f"):
        return record_values(column)
    floats: list[Any] = column.to_numpy().view("float64").tolist()
    return floats
