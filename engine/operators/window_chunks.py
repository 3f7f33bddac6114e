"""What a checkpoint has of windows over columns: chunks by key group, whole ones and increments.

A chunk is an Arrow IPC stream of rows (key columns, start of the pane, accumulators, values of codes, lists of distinct
values) of one key group; each batch is of one pane, and says up to when its windows have fired. An increment has the
rows of keys that changed, whole, and says besides which panes are gone, and how far the time is for all the others: a
chunk of it may have no rows at all. Not here: what changed (``window_changes``), and where state is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.operators.left_windows import HELD
from engine.operators.window_panes import Pane
from engine.operators.window_state import FIELDS, WindowState, other_fields
from engine.state.column_chunks import GONE, WATERMARK, empty_chunk, streams
from engine.state.column_hash import groups_of_rows
from engine.time.windows import TIME_MIN_MS

Array = np.ndarray[Any, Any]
#: key group, rows of a pane, what the batch says of itself
WindowPiece = tuple[int, pa.RecordBatch, dict[str, str]]
SlotsOf = Callable[[int, Pane], Array]
Metadata = dict[str | bytes, str | bytes]

__all__ = [
    "Increment",
    "PaneRows",
    "WindowPiece",
    "held_columns",
    "metadata",
    "piece",
    "pieces",
    "restore",
    "rows_of_panes",
    "shown_columns",
    "snapshot",
]

#: Rows that are sorted by key group at once, for which they are in memory twice.
_ROWS_MAX: Final = 1 << 18


def snapshot(state: WindowState, key_groups: Iterable[int]) -> dict[int, bytes]:
    """Return all that the state has of these key groups."""
    wanted = set(key_groups)
    chunks = streams(pieces(state, wanted), metadata(state)) if state.layout is not None else {}
    for other in state.others:
        chunks |= snapshot(other, wanted)  # a key group comes from one subtask
    return chunks


def metadata(state: WindowState) -> Metadata:
    """Return what a chunk says of itself."""
    assert state.layout is not None
    said: Metadata = {
        "schema": state.layout.schema.serialize().to_pybytes(),
        "keys": ",".join(map(str, state.layout.keys)),
        FIELDS: state.fields_held(),
        "shown": shown_columns(state),
    }
    if state.is_users:
        said[HELD] = held_columns(state)
    return said


def held_columns(state: WindowState, first: int = 0) -> str:
    """Return the column in which a chunk has each field of a user's accumulator; f = as the bits of a float.
    ``first``: columns that stand before those."""
    return ",".join(_held_columns(state, first))


def _held_columns(state: WindowState, first: int) -> Iterator[str]:
    assert state.layout is not None
    num_keys = first + len(state.layout.keys)
    columns = [accumulator for accumulator, _ in state._accumulators]
    if state._seeds is None:  # a record that was chosen
        of_fields = sorted((field.index, at) for at, (_, field) in enumerate(state._accumulators))
        yield from (f"{num_keys + 2 + at}{'f' if columns[at].is_float else ''}" for _, at in of_fields)
        return
    for aggregate, seed in zip(state._aggregates, state._seeds, strict=True):
        if aggregate.field is None:
            yield str(num_keys + 1)
            continue
        accumulator = state._find(aggregate.kind, state._field(state._index_of(aggregate)), seed)
        assert accumulator is not None
        yield f"{num_keys + 2 + columns.index(accumulator)}{'f' if accumulator.is_float else ''}"


def shown_columns(state: WindowState) -> str:
    """Return, for who reads a savepoint without the program (``checkpoint/column_tables``), what the columns of a chunk
    behind the number of records are called, and whether they are the bits of floats. JSON."""
    assert state.layout is not None
    names = state.layout.schema.names
    shown = [(f"{a.kind}({names[f.index]})", a.is_float and f.codes is None) for a, f in state._accumulators]
    shown += [(f"count({names[field.index]})", False) for field in state._fields]
    shown += [(f"distinct({names[distinct.index]})", False) for distinct in state._distinct]
    return json.dumps(shown)


def pieces(state: WindowState, wanted: set[int]) -> Iterator[WindowPiece]:
    """Yield all that chunks of these key groups have; a group comes often."""
    for rows in rows_of_panes(state, state.slots_left):
        yield from rows.pieces(wanted)


def rows_of_panes(state: WindowState, slots_of: SlotsOf) -> Iterator[PaneRows]:
    """Yield copies of the rows that these slots of each pane are."""
    assert state.layout is not None
    law = len(state.layout.keys), state.max_parallelism, state.is_tuple
    for start, pane in state.panes.items():
        slots = slots_of(start, pane)
        for at in range(0, slots.size, _ROWS_MAX):
            part = slots[at : at + _ROWS_MAX]
            rows = state._rows_of(start, pane, part, state._table.keys_of(part))
            yield PaneRows(rows, state.watermark_ms, dict(state.restored_groups.get(start, {})), law)


@dataclass(frozen=True)
class PaneRows:
    """Rows of a pane, as of when they were copied. ``restored_ms``: the watermark that key groups were restored with;
    ``law``: how keys are cut into key groups."""

    rows: pa.RecordBatch
    watermark_ms: int
    restored_ms: Mapping[int, int]
    law: tuple[int, int, bool]

    def pieces(self, wanted: set[int]) -> Iterator[WindowPiece]:
        """Yield them by key group; depends on nothing but themselves."""
        num_keys, max_parallelism, is_tuple = self.law
        groups = groups_of_rows(self.rows.columns[:num_keys], max_parallelism, is_tuple=is_tuple).astype(np.uint16)
        order = np.argsort(groups, kind="stable")
        groups, rows = groups[order], self.rows.take(arrow_of(order))
        begin = 0
        for end in [*(np.flatnonzero(groups[1:] != groups[:-1]) + 1).tolist(), groups.size]:
            if (group := int(groups[begin])) in wanted:
                watermark_ms = max(self.watermark_ms, self.restored_ms.get(group, TIME_MIN_MS))
                yield piece(group, rows.slice(begin, end - begin), watermark_ms)
            begin = end


def piece(group: int, rows: pa.RecordBatch, watermark_ms: int) -> WindowPiece:
    return group, rows, {"watermark": str(watermark_ms)}


@dataclass(frozen=True)
class Increment:
    """What an increment says besides the rows. ``gone``: panes; ``is_later``: the time has gone on."""

    watermark_ms: int
    gone: tuple[int, ...]
    is_later: bool

    @property
    def says_more(self) -> bool:
        """Whether it says something of key groups without rows in it."""
        return bool(self.gone) or self.is_later

    def chunks(
        self, found: Iterable[WindowPiece], state_metadata: Metadata, key_groups: Iterable[int]
    ) -> dict[int, bytes]:
        told: Metadata = {WATERMARK: str(self.watermark_ms), GONE: ",".join(map(str, self.gone))}
        chunks = streams(found, {**state_metadata, **told})
        if self.says_more:
            only_told = empty_chunk(told)
            chunks = {group: chunks.get(group, only_told) for group in key_groups}
        return chunks

    @classmethod
    def of(cls, chunk: bytes) -> Increment | None:
        """Return what the chunk of an increment says; None = it is no increment."""
        with pa.ipc.open_stream(pa.py_buffer(chunk)) as reader:
            told = reader.schema.metadata or {}
        if WATERMARK not in told:
            return None
        return cls(int(told[WATERMARK]), tuple(map(int, told[GONE].split(b","))) if told[GONE] else (), True)


def restore(state: WindowState, group: int, chunk: bytes) -> None:
    """Take up the rows of a chunk; they take the place of what there is of their keys."""
    with pa.ipc.open_stream(pa.py_buffer(chunk)) as reader:
        said = reader.schema.metadata or {}
        if b"schema" not in said:
            return  # an increment without rows
        schema = pa.ipc.read_schema(pa.py_buffer(said[b"schema"]))
        target = state.for_types(schema, tuple(int(key) for key in said[b"keys"].split(b",")))
        held = target.fields_held().encode()
        if said.get(FIELDS, held) != held:
            raise other_fields(schema)
        for batch, of_pane in reader.iter_batches_with_custom_metadata():
            target._put(batch, int(of_pane[b"watermark"]))
            start = batch.column(len(target.layout.keys))[0].as_py()  # type: ignore[union-attr]
            times_ms = target.restored_groups.setdefault(start, {})
            times_ms[group] = int(of_pane[b"watermark"])
            target.restored_panes[start] = min(times_ms.values())
