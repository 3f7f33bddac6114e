"""State of session windows over columns: a number for each open session, in a chain by key; accumulators by number.

The accumulators are those of ``window_state`` with sessions in place of keys: one pane, in which a slot is a session.
What sessions hold when they become one depends on their order, first and last values and chosen records do: on rows
the session goes second that was changed last. So does it here; a batch in which sessions become one is taken up in
levels, each of which has merges and then rows that no longer depend on each other.

A session that has fired may be kept for records that are late: each of those lets it fire again, or, where it does not
end before the time now, wait for its new end.

A chunk is an Arrow IPC stream of rows (start, end, then the columns of a pane) of one key group, in the order in which
the sessions were changed; with a lateness, whether they have fired is the last column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.operators import session_kernels as kernels
from engine.operators.left_windows import FIRED, HELD, SESSIONS_PART
from engine.operators.session_distinct import SessionDistinct
from engine.operators.window_panes import Pane
from engine.operators.window_state import FIELDS, WindowState, other_fields
from engine.state.arrow_views import values_of
from engine.state.column_hash import groups_of_rows
from engine.state.paged_array import PagedArray
from engine.state.slot_table import SlotTable
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

Array = np.ndarray[Any, Any]

__all__ = ["SESSIONS_PART", "Assigned", "OpenSession", "SessionState"]

_PANE: Final = 0
#: Fewer keys than this are never worth a compaction.
_COMPACT_MIN: Final = 1 << 16
_START, _END, _NEXT, _CHANGED = range(4)
#: Columns of merges.
_SOURCE, _TARGET, _AT_LEVEL, _GOES_FIRST = range(4)
#: Columns of fires, before start and end.
_ROW, _OF_LEVEL = range(2)


@final
@dataclass(frozen=True, slots=True)
class OpenSession:
    """``fields``: of the key; ``accumulator``: the row operator's; ``has_fired``: and is kept for late records."""

    fields: tuple[Any, ...]
    start: int
    end: int
    accumulator: Any
    has_fired: bool


@final
@dataclass(frozen=True, slots=True)
class Edges:
    """Sessions with what they begin and end at, maybe not for long."""

    sessions: Array
    starts: Array
    ends: Array

    def part(self, begin: int, end: int) -> Edges:
        return Edges(self.sessions[begin:end], self.starts[begin:end], self.ends[begin:end])

    def lists(self) -> tuple[list[int], list[int], list[int]]:
        return self.sessions.tolist(), self.starts.tolist(), self.ends.tolist()


@final
@dataclass(slots=True)
class Assigned:
    """Which session each row of a batch is in, and which become one or fire meanwhile: as ``assign_sessions`` tells
    it."""

    #: by row, -1 = too late
    sessions: Array
    levels: Array
    merges: Array
    fires: Array
    num_levels: int
    #: what has been done: two steps a level, its merges and then its rows
    step: int = field(default=0)

    def merges_of(self, level: int) -> Array:
        return self.merges[self.merges[:, _AT_LEVEL] == level]

    def rows_of(self, level: int) -> Array:
        return np.flatnonzero(self.levels == level).astype(np.int32)

    def fires_of(self, level: int) -> Edges:
        own = self.fires[self.fires[:, _OF_LEVEL] == level]
        return Edges(self.sessions[own[:, _ROW]], own[:, 2], own[:, 3])

    def steps_left(self) -> Iterator[tuple[Array, Array, Edges]]:
        """Yield (rows to be taken up, merges to be done before, sessions that fire afterwards), level by level, from
        ``step`` on."""
        for level in range(self.step // 2, self.num_levels):
            merges = self.merges_of(level)
            yield self.rows_of(level), merges[:0] if 2 * level < self.step else merges, self.fires_of(level)


@final
class _SessionKeys:
    """Stands where ``WindowState`` has its table of keys: gives the key of each session."""

    def __init__(self, table: SlotTable) -> None:
        self.table = table
        #: by session
        self.key_slots = PagedArray(np.int32)
        self.num_slots = 0  #: of sessions
        self.restored: Array = np.zeros(0, np.int64)

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + self.key_slots.nbytes

    def keys_of(self, sessions: Array) -> list[pa.Array]:
        return self.table.keys_of(self.key_slots.array[sessions])

    def slots_of(self, columns: Sequence[pa.Array]) -> Array:
        """Return the sessions whose accumulators are being restored."""
        return self.restored


@final
class SessionState:
    """Implements ``parts.KeyedPart``. ``windows``: makes an empty state of accumulators."""

    def __init__(
        self,
        windows: Callable[[], WindowState],
        gap_ms: int,
        max_parallelism: int,
        *,
        is_tuple: bool,
        lateness_ms: int = 0,
    ) -> None:
        self._empty_windows = windows
        self._max_parallelism = max_parallelism
        self._gap_ms = gap_ms
        self._lateness_ms = lateness_ms
        self._is_tuple = is_tuple
        self.clear()

    def clear(self) -> None:
        self._windows = self._empty_windows()
        self._keys: _SessionKeys | None = None
        self._distinct: list[SessionDistinct] = []
        self._heads = PagedArray(np.int64)
        self._sessions = PagedArray(np.int64, 4)
        #: with a lateness, by session: whether it has fired since it was changed last
        self._fired = PagedArray(np.bool_)
        #: rows taken up so far: the number of the next one, by which sessions know when they were changed
        self._num_rows = 0
        #: numbers of sessions that are over, to be given again
        self._free: Array = np.zeros(0, np.int64)
        #: at no time before a session fires or is forgotten
        self.next_due_ms = TIME_MAX_MS
        self._compact_at = _COMPACT_MIN
        #: Restored from subtasks whose records were of other types, after the parallelism has changed: other keys.
        self.others: dict[int, bytes] = {}

    def define(self, schema: pa.Schema, keys: Sequence[int]) -> bool:
        """Make everything for records of that schema; False when columns cannot do it."""
        layout = self._windows.layout
        if layout is not None:
            same = layout.schema.types == schema.types and layout.keys == tuple(keys)
            return bool(same) and self._windows.is_named(schema) == self.named
        if not self._windows.define(schema, keys):
            return False
        self._keys = _SessionKeys(self._windows._table)
        self._windows._table = self._keys  # type: ignore[assignment]
        self._windows.panes[_PANE] = Pane(self._windows._width)
        self._distinct = [SessionDistinct(own.index, own._kinds[1], own.column) for own in self._windows._distinct]
        self._windows._distinct = self._distinct  # type: ignore[assignment]
        return True

    @property
    def named(self) -> bool:
        """Whether the records that sessions hold are Rows."""
        return self._windows.named

    @property
    def is_defined(self) -> bool:
        return self._keys is not None

    @property
    def nbytes(self) -> int:
        return self._windows.nbytes + self._heads.nbytes + self._sessions.nbytes + self._fired.nbytes

    @property
    def num_keys(self) -> int:
        return 0 if self._keys is None else self._keys.table.num_slots

    # --- records -----------------------------------------------------------------------------------------------------

    def begin_batch(self, columns: pa.RecordBatch) -> bool:
        return self._windows.begin_batch(columns)

    def assign(self, columns: pa.RecordBatch, times_ms: Array, watermark_ms: int) -> Assigned:
        """Find or make the session of each row, BATCH_ROWS_MAX at most, or half of it with a lateness; ``take_up`` has
        to follow."""
        assert self._keys is not None
        assert self._windows.layout is not None
        slots = self._keys.table.slots_of([columns.column(key) for key in self._windows.layout.keys])
        self._heads.reserve(self.num_keys)
        fresh = self._fresh(slots.size)
        # Each row merges one other session at most: two that lie a gap apart have room for no third between.
        of_row = np.empty(slots.size, np.int64), np.empty(slots.size, np.int16)
        merges, fires = np.empty((2, slots.size, 4), np.int64)
        num_fresh, num_merges, num_fires, num_levels = kernels.assign_sessions(
            slots,
            times_ms,
            np.full(slots.size, watermark_ms, np.int64),
            (self._gap_ms, self._lateness_ms, self._num_rows),
            self._heads.array,
            self._sessions.array,
            fresh,
            of_row,
            merges,
            fires,
        )
        self._num_rows += slots.size
        self._free = np.concatenate([fresh[num_fresh:], self._free])
        made = fresh[:num_fresh]
        for distinct in self._distinct:
            distinct.begin(made, self._keys.num_slots)
        sessions, levels = of_row
        taken = sessions >= 0
        self._keys.key_slots.array[sessions[taken]] = slots[taken]
        if self._lateness_ms:
            self._expect(sessions[taken], watermark_ms)
        elif num_fresh:
            self.next_due_ms = min(self.next_due_ms, int(self._sessions.array[made, _END].min()) - 1)
        return Assigned(sessions, levels, merges[:num_merges], fires[:num_fires], num_levels)

    def _expect(self, changed: Array, watermark_ms: int) -> None:
        """Know when sessions that were changed are due; those that have ended have fired, or do so with the batch."""
        ends = self._sessions.array[changed, _END]
        fired = ends - 1 <= watermark_ms
        self._fired.array[changed] = fired
        due_ms = ends - 1 + np.where(fired, self._lateness_ms, 0)
        self.next_due_ms = min(self.next_due_ms, int(due_ms.min(initial=TIME_MAX_MS)))

    def _fresh(self, count: int) -> Array:
        """Take so many numbers for new sessions."""
        assert self._keys is not None
        taken, self._free = self._free[:count], self._free[count:]
        first, missing = self._keys.num_slots, count - taken.size
        if missing:
            taken = np.concatenate([taken, np.arange(first, first + missing, dtype=np.int64)])
            self._keys.num_slots += missing
            self._sessions.reserve(self._keys.num_slots)
            self._keys.key_slots.reserve(self._keys.num_slots)
            if self._lateness_ms:
                self._fired.reserve(self._keys.num_slots)
        self._windows.panes[_PANE].reserve(self._keys.num_slots)
        return taken

    def take_up(self, assigned: Assigned, fire: Callable[[Edges], None]) -> bool:
        """Take up the rows of the batch and make one of sessions that touch; let those ``fire`` that rows are late for.
        False when a sum would not fit into 64 bits: then ``assigned`` knows what is left to be done, and ``parts`` what
        has been."""
        sessions = assigned.sessions
        for rows, merges, fires in assigned.steps_left():
            if merges.size and not self._merge(merges):
                return False
            assigned.step += 1
            if rows.size and not self._windows.take_up(_PANE, rows, sessions):
                return False
            assigned.step += 1
            if fires.sessions.size:
                fire(fires)
        merged = assigned.merges[:, _SOURCE]
        self._sessions.array[merged] = 0
        self._free = np.concatenate([merged, self._free])
        return True

    def _merge(self, merges: Array) -> bool:
        """Give what sessions hold to those that they are part of; False, and nothing is done, as ``take_up`` says."""
        values = self._windows.panes[_PANE].values
        sources, targets = merges[:, _SOURCE], merges[:, _TARGET]
        goes_first = merges[:, _GOES_FIRST] > 0
        into = values[np.where(goes_first, sources, targets)]
        try:
            self._windows.merge(into, values[np.where(goes_first, targets, sources)], np.arange(sources.size))
        except OverflowError:
            return False
        for distinct in self._distinct:
            into[:, distinct.column] = values[targets, distinct.column]  # its values have no order, and come now
        values[targets] = into
        for distinct in self._distinct:
            distinct.merge(self._windows.panes[_PANE], sources, targets)
        values[sources] = 0
        return True

    # --- time --------------------------------------------------------------------------------------------------------

    def _live(self) -> Array:
        return self._windows.panes[_PANE].slots() if self.is_defined else np.zeros(0, np.int64)

    def due(self, watermark_ms: int) -> tuple[Edges, Array]:
        """Return the sessions that fire now, the first that ended first, and those that are to be dropped then."""
        live = self._live()
        ends = self._sessions.array[live, _END]
        has_ended = ends - 1 <= watermark_ms
        fires, is_over = has_ended, has_ended
        if self._lateness_ms:
            fires = has_ended & ~self._fired.array[live]
            is_over = ends - 1 + self._lateness_ms <= watermark_ms
            self._fired.array[live[fires]] = True
            # What was restored may have fired, though the time has not come again.
            has_ended = self._fired.array[live]
        due_ms = ends[~is_over] - 1 + np.where(has_ended[~is_over], self._lateness_ms, 0)
        self.next_due_ms = int(due_ms.min(initial=TIME_MAX_MS))
        return self.edges_of(live[fires][np.argsort(ends[fires], kind="stable")]), live[is_over]

    def edges_of(self, sessions: Array) -> Edges:
        return Edges(sessions, *(self._sessions.array[sessions, column] for column in (_START, _END)))

    def results(self, due: Edges) -> tuple[pa.RecordBatch, Array]:
        """Return the records of these sessions and their event times."""
        values = self._windows.panes[_PANE].values
        made = self._windows.results((due.starts, due.ends), due.sessions, values)  # type: ignore[arg-type]
        return made, due.ends - 1

    def folded(self, due: Edges) -> tuple[list[Any], list[int]]:
        """Return what a user's fold has made of these sessions, and its event times."""
        made = self._windows.held(due.sessions, self._windows.panes[_PANE].values)[1]
        return made, (due.ends - 1).tolist()

    def drop(self, sessions: Array) -> None:
        """Forget sessions; keys that have none too, once they are most."""
        assert self._keys is not None
        kernels.unlink_sessions(sessions, self._keys.key_slots.array, self._heads.array, self._sessions.array)
        for distinct in self._distinct:
            distinct.drop(self._windows.panes[_PANE], sessions)
        self._windows.panes[_PANE].values[sessions] = 0
        self._sessions.array[sessions] = 0
        self._free = np.concatenate([sessions, self._free])
        if self.num_keys >= self._compact_at:
            self._compact()

    def _compact(self) -> None:
        assert self._keys is not None
        live = self._live()
        kept = np.unique(self._keys.key_slots.array[live])
        if 2 * kept.size < self.num_keys:
            slot_of_slot = np.zeros(self.num_keys, np.int32)
            slot_of_slot[kept] = np.arange(kept.size)
            heads = self._heads.array[kept]
            self._heads.array[:] = 0
            self._heads.array[: kept.size] = heads
            self._keys.key_slots.array[live] = slot_of_slot[self._keys.key_slots.array[live]]
            self._keys.table.compact(kept)
        self._compact_at = max(_COMPACT_MIN, 2 * self.num_keys)

    def keys_of(self, sessions: Array) -> list[tuple[Any, ...]]:
        """Return the fields of each session's key."""
        assert self._keys is not None
        return list(zip(*(column.to_pylist() for column in self._keys.keys_of(sessions)), strict=True))

    # --- leaving -----------------------------------------------------------------------------------------------------

    def parts(self) -> dict[int, Any]:
        """Return the row operator's accumulator of each session that holds something, by its number."""
        if not self.is_defined:
            return {}
        return dict(zip(self._live().tolist(), self._windows.accumulators(_PANE, None)[1], strict=True))

    def open_sessions(self, parts: Mapping[int, Any] | None = None) -> Iterator[OpenSession]:
        """Yield all that is held, in the order in which it was changed. ``parts``: what sessions hold."""
        if self._keys is not None:
            parts = self.parts() if parts is None else parts
            numbers = np.fromiter(parts, np.int64, len(parts))
            numbers = numbers[np.argsort(self._sessions.array[numbers, _CHANGED], kind="stable")]
            keys = zip(*(column.to_pylist() for column in self._keys.keys_of(numbers)), strict=True)
            edges = self._sessions.array[numbers, :_NEXT].tolist()
            fired = self._have_fired(numbers).tolist()
            for number, key, (start, end), has_fired in zip(numbers.tolist(), keys, edges, fired, strict=True):
                yield OpenSession(key, start, end, parts[number], has_fired)
        for group, chunk in self.others.items():
            other = SessionState(
                self._empty_windows,
                self._gap_ms,
                self._max_parallelism,
                is_tuple=self._is_tuple,
                lateness_ms=self._lateness_ms,
            )
            other.restore({group: chunk})
            yield from other.open_sessions()

    def _have_fired(self, sessions: Array) -> Array:
        return self._fired.array[sessions] if self._lateness_ms else np.zeros(sessions.size, np.bool_)

    # --- KeyedPart ---------------------------------------------------------------------------------------------------

    def num_entries(self) -> int:
        return (0 if self._keys is None else self._keys.num_slots - self._free.size) + len(self.others)

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        wanted = set(key_groups)
        chunks = {group: chunk for group, chunk in self.others.items() if group in wanted}
        layout = self._windows.layout
        if layout is None or self._keys is None:
            return chunks
        metadata = {
            "schema": layout.schema.serialize().to_pybytes(),
            "keys": ",".join(map(str, layout.keys)),
            FIELDS: self._windows.fields_held(),
            "shown": self._windows.shown_columns(),
        }
        if self._windows.is_users:
            metadata[HELD] = self._windows.held_columns(first=2)
        live = self._live()
        live = live[np.argsort(self._sessions.array[live, _CHANGED], kind="stable")]
        keys = self._keys.keys_of(live)
        held = self._windows._rows_of(_PANE, self._windows.panes[_PANE], live, keys)
        edges = [pa.array(np.ascontiguousarray(self._sessions.array[live, column])) for column in (_START, _END)]
        names = ["start", "end", *held.schema.names]
        fired = [pa.array(self._have_fired(live))] if self._lateness_ms else []
        rows = pa.RecordBatch.from_arrays([*edges, *held.columns, *fired], names=[*names, FIRED] if fired else names)
        rows = rows.replace_schema_metadata(metadata)
        groups = groups_of_rows(keys, self._max_parallelism, is_tuple=self._is_tuple).astype(np.int64)
        for group in sorted(wanted.intersection(np.unique(groups).tolist())):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_batch(rows.filter(pa.array(groups == group)))
            chunks[group] = sink.getvalue().to_pybytes()
        return chunks

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for group, chunk in chunks.items():
            with pa.ipc.open_stream(pa.py_buffer(chunk)) as reader:
                metadata = reader.schema.metadata or {}
                schema = pa.ipc.read_schema(pa.py_buffer(metadata[b"schema"]))
                if not self.define(schema, [int(key) for key in metadata[b"keys"].split(b",")]):
                    self.others[group] = chunk
                    continue
                held = self._windows.fields_held().encode()
                if metadata.get(FIELDS, held) != held:
                    raise other_fields(schema)
                for batch in reader:
                    self._put(batch)

    def _put(self, batch: pa.RecordBatch) -> None:
        assert self._keys is not None
        assert self._windows.layout is not None
        num_keys = len(self._windows.layout.keys)
        fired = np.zeros(batch.num_rows, np.bool_)
        if batch.schema.names[-1] == FIRED:
            fired = np.asarray(batch.column(batch.num_columns - 1))
            batch = batch.select(range(batch.num_columns - 1))
        slots = self._keys.table.slots_of(batch.columns[2 : 2 + num_keys])
        self._heads.reserve(self.num_keys)
        made = self._fresh(slots.size)
        for distinct in self._distinct:
            distinct.begin(made, self._keys.num_slots)
        starts, ends = values_of(batch.column(0)), values_of(batch.column(1))
        kernels.link_sessions(slots, starts, ends, made, self._num_rows, self._heads.array, self._sessions.array)
        self._num_rows += made.size
        self._keys.key_slots.array[made] = slots
        if self._lateness_ms:
            self._fired.array[made] = fired
        due_ms = ends - 1 + np.where(fired, self._lateness_ms, 0)
        self.next_due_ms = min(self.next_due_ms, int(due_ms.min(initial=TIME_MAX_MS)))
        self._keys.restored = made
        self._windows._put(pa.RecordBatch.from_arrays(batch.columns[2:], names=batch.schema.names[2:]), TIME_MIN_MS)
