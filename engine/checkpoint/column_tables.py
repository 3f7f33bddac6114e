"""Entries of columnar state out of the chunks of a checkpoint, without the operators that wrote them.

What operators on columns keep has no names of the program's: a table is called as its part of state is. Each chunk is
one Arrow stream, of joins one a side. Not here: tables of entries (``state_tables``), which chunks there are
(``reader``).
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from engine.core.records import record_values
from engine.state.column_chunks import GONE, GONE_KEYS, INCREMENT, KIND
from engine.state.slot_expiry import WRITTEN
from engine.time.windows import TimeWindow

if TYPE_CHECKING:
    import pyarrow

__all__ = ["SESSION_SLOTS", "WINDOW_SLOTS", "Entry", "column_entries", "gone_by", "is_column_part", "replaced_keys"]

#: The part with windows.
WINDOW_SLOTS: Final = "window-slots"
#: That with sessions.
SESSION_SLOTS: Final = "session-slots"
#: key, namespace, value
Entry = tuple[Any, Any, Any]

#: The part with records of joins, and what it calls their sides.
JOINED: Final = "join-records"
_SIDES: Final = ("left", "right")
#: Of a join's chunk, before each of its two streams.
_LENGTH: Final = struct.Struct("<q")
#: The last column of sessions that may be late (``operators/left_windows``).
_FIRED: Final = "fired"
#: A column of this name alone is a value, not a record of fields.
_VALUE: Final = "value"


def is_column_part(part: str) -> bool:
    return part in _READERS


def column_entries(part: str, chunk: bytes) -> Iterator[Entry]:
    """Yield what a chunk of a part for which ``is_column_part`` holds has.

    Keyed aggregates: key, None, the value so far or its fields. Windows: the start of the slice of time as namespace,
    or that of the window (of a cumulating one, of its last step) where each has a pane of its own. Sessions: their
    window. Joins: the record's number and its side, with time and fields. Top-N: the record's number
    in its key group, with fields. Last rows: key, None, fields. Keys that were seen have the value True. Records that
    waited at the barrier, and results that had not been sent: number, which of both, fields. Pairs of joins that had
    not been sent: number, "pair", fields of both sides.
    """
    return _READERS[part](chunk)


def gone_by(part: str, chunk: bytes) -> Callable[[Entry], bool] | None:
    """Return what says which entries of layers below the chunk are gone, if it is an increment that does."""
    if part == WINDOW_SLOTS:
        gone = _gone_slices(chunk)
        return None if not gone else lambda entry: entry[1] in gone
    if part == JOINED and chunk:
        (size,) = _LENGTH.unpack_from(chunk)
        if size < 0:
            floors_ms, starts, (slice_ms, offset), _ = json.loads(chunk[_LENGTH.size : _LENGTH.size - size])

            def is_gone(entry: Entry) -> bool:
                _, side, record = entry
                time_ms = record["time"]
                is_below = floors_ms is not None and time_ms <= floors_ms[_SIDES.index(side)]
                return is_below or time_ms - (time_ms - offset) % slice_ms in starts

            return is_gone
    return None


def _gone_slices(chunk: bytes) -> frozenset[int]:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(chunk)) as reader:
        gone = (reader.schema.metadata or {}).get(GONE)
    return frozenset(map(int, gone.split(b","))) if gone else frozenset()


def replaced_keys(chunk: bytes) -> Iterator[Any]:
    """Yield the keys of which nothing is left in layers below the chunk, if it is an increment of sessions."""
    import pyarrow as pa

    source, num_keys = pa.BufferReader(chunk), 0
    while source.tell() < len(chunk):
        reader = pa.ipc.open_stream(source)
        said = reader.schema.metadata or {}
        if INCREMENT in said:
            num_keys = said[b"keys"].count(b",") + 1
        for batch in reader:
            if INCREMENT in said or said.get(KIND) == GONE_KEYS:
                columns = batch.columns[2 : 2 + num_keys] if INCREMENT in said else batch.columns
                yield from map(_key, _rows(columns))


def _batches(chunk: bytes | memoryview) -> Iterator[tuple[pyarrow.RecordBatch, Mapping[bytes, bytes]]]:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(chunk)) as reader:
        metadata = reader.schema.metadata or {}
        for batch in reader:
            yield batch, metadata


def _rows(columns: list[pyarrow.Array]) -> Iterator[tuple[Any, ...]]:
    return zip(*map(record_values, columns), strict=True)


def _key(parts: tuple[Any, ...]) -> Any:
    return parts[0] if len(parts) == 1 else parts


def _slots(chunk: bytes) -> Iterator[Entry]:
    for batch, metadata in _batches(chunk):
        num_keys = int(metadata[b"keys"])
        if WRITTEN in batch.schema.names:
            batch = batch.drop_columns([WRITTEN])
        names = batch.schema.names[num_keys:]
        for row in _rows(batch.columns):
            values = row[num_keys:]
            yield _key(row[:num_keys]), None, values[0] if names == [_VALUE] else dict(zip(names, values, strict=True))


def _windows(chunk: bytes) -> Iterator[Entry]:
    for batch, metadata in _batches(chunk):
        num_keys = metadata[b"keys"].count(b",") + 1
        columns, names = _accumulators(batch.columns[num_keys:], metadata)
        for row in _rows([*batch.columns[:num_keys], *columns]):
            start, *values = row[num_keys:]
            yield _key(row[:num_keys]), start, dict(zip(names, values, strict=True))


def _sessions(chunk: bytes) -> Iterator[Entry]:
    for batch, metadata in _batches(chunk):
        if batch.schema.names[-1] == _FIRED:
            batch = batch.select(range(batch.num_columns - 1))
        num_keys = metadata[b"keys"].count(b",") + 1
        columns, names = _accumulators(batch.columns[2 + num_keys :], metadata)
        for row in _rows([*batch.columns[: 2 + num_keys], *columns]):
            start, end, *keys = row[: 2 + num_keys]
            yield _key(tuple(keys)), TimeWindow(start, end), dict(zip(names, row[3 + num_keys :], strict=True))


def _accumulators(
    columns: list[pyarrow.Array], metadata: Mapping[bytes, bytes]
) -> tuple[list[pyarrow.Array], list[str]]:
    """Return the columns behind the keys, and the names of those behind the first, which is the slice of time."""
    import pyarrow as pa

    named = json.loads(metadata.get(b"shown", b"[]"))
    shown, names = columns[:2], ["records"]
    for at, column in enumerate(columns[2:]):
        name, is_float = named[at] if at < len(named) else (f"c{at}", False)
        shown.append(pa.array(column.to_numpy().view("float64")) if is_float else column)
        names.append(name)
    return shown, names


def _joined(chunk: bytes) -> Iterator[Entry]:
    at = number = 0
    while at < len(chunk):
        (size,) = _LENGTH.unpack_from(chunk, at)
        at += _LENGTH.size
        if size < 0:  # what an increment says of the layers below it
            at -= size
            continue
        side, number = _SIDES[number % 2], number + 1
        if size:
            for batch, _ in _batches(memoryview(chunk)[at : at + size]):
                names = batch.schema.names[2:]
                for time_ms, arrival, *values in _rows(batch.columns):
                    yield arrival, side, {"time": time_ms, **dict(zip(names, values, strict=True))}
        at += size


def _pairs(chunk: bytes) -> Iterator[Entry]:
    import pyarrow as pa

    numbers = itertools.count()
    for batch, metadata in _batches(chunk):
        names = [(side, pa.ipc.read_schema(pa.py_buffer(metadata[side.encode()])).names) for side in _SIDES]
        fields = [f"{side}.{name}" for side, own in names for name in own]
        for values in _rows(batch.columns):
            yield next(numbers), "pair", dict(zip(fields, values[: len(fields)], strict=True))


def _top(chunk: bytes) -> Iterator[Entry]:
    numbers = itertools.count()
    for batch, _ in _batches(chunk):
        for row in _rows(batch.columns):
            yield next(numbers), None, dict(zip(batch.schema.names, row, strict=True))


def _seen(chunk: bytes) -> Iterator[Entry]:
    for key, namespace, _ in _slots(chunk):
        yield key, namespace, True


def _last(chunk: bytes) -> Iterator[Entry]:
    import pyarrow as pa

    for batch, metadata in _batches(chunk):
        schema = pa.ipc.read_schema(pa.py_buffer(metadata[b"note"]))
        keys = [int(field) for field in schema.metadata[b"key-fields"].split(b",")]
        held = batch.schema.names
        # What a key cannot tell, and all else, stands in columns of its own.
        places = [held.index(f"c{index}") if f"c{index}" in held else keys.index(index) for index in range(len(schema))]
        for row in _rows(batch.columns):
            yield _key(row[: len(keys)]), None, dict(zip(schema.names, (row[place] for place in places), strict=True))


def _held(chunk: bytes) -> Iterator[Entry]:
    for batch, metadata in _batches(chunk):
        how = json.loads(metadata[b"how"])
        *columns, _, numbers, are_results = map(record_values, batch.columns)
        for at, (number, is_result) in enumerate(zip(numbers, are_results, strict=True)):
            record = {name: columns[index][at] for index, name in enumerate(how["fields"])}
            yield number, "result" if is_result else "record", record


_READERS: Final[Mapping[str, Callable[[bytes], Iterator[Entry]]]] = {
    "slots": _slots,
    "slots-held": _held,
    WINDOW_SLOTS: _windows,
    SESSION_SLOTS: _sessions,
    JOINED: _joined,
    "join-pairs": _pairs,
    "top-records": _top,
    "seen-keys": _seen,
    "last-records": _last,
}
