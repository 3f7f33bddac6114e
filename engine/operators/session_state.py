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
from typing import Any, Final, Protocol, final

import numpy as np
import pyarrow as pa

from engine.operators import session_kernels as kernels
from engine.operators.left_windows import FIRED, HELD, SESSIONS_PART
from engine.operators.session_distinct import SessionDistinct
from engine.operators.session_unsent import Unsent
from engine.operators.window_panes import Pane
from engine.operators.window_state import FIELDS, WindowState, other_fields
from engine.state.arrow_views import values_of
from engine.state.column_chunks import streams
from engine.state.column_hash import groups_of_rows
from engine.state.paged_array import PagedArray
from engine.state.slot_table import SlotTable
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

Array = np.ndarray[Any, Any]

__all__ = ["SESSIONS_PART", "Assigned", "Edges", "OpenSession", "SessionState", "Sink"]

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

    def take(self, places: Array) -> Edges:
        return Edges(self.sessions[places], self.starts[places], self.ends[places])

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


class Sink(Protocol):
    """Where what comes out goes."""

    def fire(self, state: SessionState, due: Edges) -> None:
        """These sessions give their results."""
        ...

    def put_aside(self, state: SessionState, columns: pa.RecordBatch, times_ms: Array) -> None:
        """These records came too late."""
        ...


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
        #: what was to be sent when the checkpoint was made that has been restored
        self.unsent = Unsent()

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

    def has_types_of(self, other: SessionState) -> bool:
        """Whether the records of both are of the same types; if none has come here, they are from now on."""
        layout = other._windows.layout
        return layout is None or self.define(layout.schema, layout.keys)

    @property
    def lateness_ms(self) -> int:
        return self._lateness_ms

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

    def begin_batch(self, columns: pa.RecordBatch, *, is_held: bool = False) -> bool:
        return self._windows.begin_batch(columns, is_held=is_held)

    def assign(self, columns: pa.RecordBatch, times_ms: Array, watermark_ms: int | Array) -> Assigned:
        """Find or make the session of each row, BATCH_ROWS_MAX at most, or half of it with a lateness; ``take_up`` has
        to follow. ``watermark_ms``: by row, rising, where there is no lateness: sessions that were over when a row came
        are left as they are."""
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
            np.full(slots.size, watermark_ms, np.int64) if isinstance(watermark_ms, int) else watermark_ms,
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
            assert isinstance(watermark_ms, int)
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

    def take_up_batch(
        self,
        columns: pa.RecordBatch,
        aggregated: pa.RecordBatch,
        times_ms: Array,
        watermark_ms: int | Array,
        sink: Sink,
    ) -> Assigned | None:
        """Take up the rows of a batch that has begun; ``aggregated``: their keys and values; ``watermark_ms`` as in
        ``assign``. Return what is left to be done where a sum would not fit into 64 bits."""
        assigned = self.assign(aggregated, times_ms, watermark_ms)
        late = np.flatnonzero(assigned.sessions < 0)
        if late.size:
            sink.put_aside(self, columns.take(pa.array(late)), times_ms[late])
        return None if self.take_up(assigned, sink.fire) else assigned

    def take_up(self, assigned: Assigned, fire: Callable[[SessionState, Edges], None]) -> bool:
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
                fire(self, fires)
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

    def advance(self, watermark_ms: int, fire: Callable[[SessionState, Edges], None]) -> None:
        """Let the sessions fire whose time has come, and forget those that nobody needs any more."""
        if self.next_due_ms <= watermark_ms and self.is_defined:
            due, over = self._due(watermark_ms)
            fire(self, due)
            if over.size:
                self.drop(over)

    def _due(self, watermark_ms: int) -> tuple[Edges, Array]:
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
        self._forget_codes(_COMPACT_MIN)

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

    def _forget_codes(self, at_least: int) -> None:
        """Forget values, by number, that no session has any more, where they are most."""
        for own in self._windows._fields:
            if own.codes is not None:
                held = self.num_sessions * sum(of is own for _, of in self._windows._accumulators)
                if own.codes.num_slots > max(at_least, 2 * held):
                    self._windows._compact_codes(own)

    def trim(self) -> None:
        """Give back what is reserved, before all of it goes to a file."""
        if self._keys is None:
            return
        windows, live = self._windows, self._live()
        if live.size < self._keys.num_slots:
            self._renumber(live)
        if self.num_keys > 2 * live.size:
            self._compact()
        self._forget_codes(0)
        for own in windows._fields:
            own.values = own.valid = own.column = None  # of a batch
            if own.codes is not None:
                own.codes.trim()
        windows._taken = np.zeros(0, np.int32)
        for distinct in self._distinct:
            distinct.trim(live.size)
        self._keys.table.trim()
        self._heads.trim(self.num_keys)
        for by_session in (self._sessions, self._fired, self._keys.key_slots):
            by_session.trim(live.size)

    def _renumber(self, live: Array) -> None:
        """Give sessions the numbers from 0 on."""
        assert self._keys is not None
        #: by number plus 1; 0 stays 0
        places = np.zeros(self._keys.num_slots + 1, np.int64)
        places[live + 1] = np.arange(1, live.size + 1)
        sessions = self._sessions.array[live]
        sessions[:, _NEXT] = places[sessions[:, _NEXT]]
        heads = self._heads.array[: self.num_keys]
        heads[:] = places[heads]
        self._sessions.array[: live.size] = sessions
        self._keys.key_slots.array[: live.size] = self._keys.key_slots.array[live]
        if self._lateness_ms:
            self._fired.array[: live.size] = self._fired.array[live]
        for distinct in self._distinct:
            distinct.renumber(live)
        self._windows.panes[_PANE].compact(live)
        self._keys.num_slots = live.size
        self._free = np.zeros(0, np.int64)

    def bound(self) -> float:
        """Return what no sum of integers of any session is beyond."""
        return self._windows.bound_of_pane(_PANE) if self.is_defined else 0.0

    def key_columns(self, sessions: Array) -> list[pa.Array]:
        assert self._keys is not None
        return self._keys.keys_of(sessions)

    def keys_of(self, sessions: Array) -> list[tuple[Any, ...]]:
        """Return the fields of each session's key."""
        return list(zip(*(column.to_pylist() for column in self.key_columns(sessions)), strict=True))

    # --- leaving -----------------------------------------------------------------------------------------------------

    def parts(self) -> dict[int, Any]:
        """Return the row operator's accumulator of each session that holds something, by its number."""
        if not self.is_defined:
            return {}
        return dict(zip(self._live().tolist(), self._windows.accumulators(_PANE, None)[1], strict=True))

    def of_other_types(self) -> Iterator[SessionState]:
        """Yield what was restored of records of other types."""
        for group, chunk in self.others.items():
            other = self.another()
            other.restore({group: chunk})
            yield other

    def another(self) -> SessionState:
        """Return an empty one for the same sessions, without types."""
        return SessionState(
            self._empty_windows,
            self._gap_ms,
            self._max_parallelism,
            is_tuple=self._is_tuple,
            lateness_ms=self._lateness_ms,
        )

    def of_same_types(self) -> SessionState:
        """Return an empty one for the same records."""
        made, layout = self.another(), self._windows.layout
        assert layout is not None
        made.define(layout.schema, layout.keys)
        return made

    def open_sessions(self, parts: Mapping[int, Any] | None = None) -> Iterator[OpenSession]:
        """Yield all that is held, but for other types, in the order in which it was changed. ``parts``: what sessions
        hold."""
        if self._keys is not None:
            parts = self.parts() if parts is None else parts
            numbers = np.fromiter(parts, np.int64, len(parts))
            numbers = numbers[np.argsort(self._sessions.array[numbers, _CHANGED], kind="stable")]
            keys = zip(*(column.to_pylist() for column in self._keys.keys_of(numbers)), strict=True)
            edges = self._sessions.array[numbers, :_NEXT].tolist()
            fired = self._have_fired(numbers).tolist()
            for number, key, (start, end), has_fired in zip(numbers.tolist(), keys, edges, fired, strict=True):
                yield OpenSession(key, start, end, parts[number], has_fired)

    def _have_fired(self, sessions: Array) -> Array:
        return self._fired.array[sessions] if self._lateness_ms else np.zeros(sessions.size, np.bool_)

    # --- records that are taken up later

    def can_take_later(self, columns: pa.RecordBatch) -> bool:
        """Whether ``begin_batch`` will take these rows."""
        return self._windows.can_take_later(columns)

    def bound_of_records(self, columns: pa.RecordBatch) -> float:
        """Return how much the records can add to any sum of integers at most."""
        return self._windows.bound_of_records(columns)

    def key_of_records(self, columns: pa.RecordBatch) -> list[pa.Array]:
        assert self._windows.layout is not None
        return [columns.column(key) for key in self._windows.layout.keys]

    def partly(self, columns: pa.RecordBatch) -> pa.RecordBatch:
        """Return the fields of records that are read."""
        read = self._windows.fields_read()
        return pa.RecordBatch.from_arrays([columns.column(index) for index in read], names=list(map(str, read)))

    def wholly(self, held: pa.RecordBatch) -> pa.RecordBatch:
        """Return records of which there are the fields that are read."""
        assert self._windows.layout is not None
        schema = self._windows.layout.schema
        read = dict(zip(self._windows.fields_read(), held.columns, strict=True))
        arrays = [
            read[index] if index in read else pa.nulls(held.num_rows, kind) for index, kind in enumerate(schema.types)
        ]
        return pa.RecordBatch.from_arrays(arrays, names=schema.names)

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the operator's own: ``go_on`` gives it back."""
        return {name: own for name, own in vars(self).items() if name != "_empty_windows"}

    def go_on(self, like: SessionState) -> SessionState:
        """Let what was read from a file be used as the other one is."""
        self._empty_windows = like._empty_windows
        return self

    # --- KeyedPart ---------------------------------------------------------------------------------------------------

    @property
    def num_sessions(self) -> int:
        return 0 if self._keys is None else self._keys.num_slots - self._free.size

    def num_entries(self) -> int:
        return self.num_sessions + len(self.others) + self.unsent.num_entries()

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        wanted = set(key_groups)
        chunks = {group: chunk for group, chunk in self.others.items() if group in wanted}
        if self.is_defined:
            chunks |= streams(self.pieces(self.rows_of(self.in_order()), wanted), self.metadata())
        return chunks

    def metadata(self) -> dict[str | bytes, str | bytes]:
        """Return what a chunk says of itself."""
        layout = self._windows.layout
        assert layout is not None
        metadata: dict[str | bytes, str | bytes] = {
            "schema": layout.schema.serialize().to_pybytes(),
            "keys": ",".join(map(str, layout.keys)),
            FIELDS: self._windows.fields_held(),
            "shown": self._windows.shown_columns(),
        }
        if self._windows.is_users:
            metadata[HELD] = self._windows.held_columns(first=2)
        return metadata

    def in_order(self) -> Edges:
        """Return all sessions in the order in which they were changed."""
        live = self._live()
        return self.edges_of(live[np.argsort(self._sessions.array[live, _CHANGED], kind="stable")])

    def rows_of(self, own: Edges) -> pa.RecordBatch:
        """Return what a chunk has of these sessions."""
        assert self._keys is not None
        held = self._windows._rows_of(_PANE, self._windows.panes[_PANE], own.sessions, self._keys.keys_of(own.sessions))
        edges = [pa.array(np.ascontiguousarray(column)) for column in (own.starts, own.ends)]
        fired = [pa.array(self._have_fired(own.sessions))] if self._lateness_ms else []
        names = ["start", "end", *held.schema.names, *[FIRED] * len(fired)]
        return pa.RecordBatch.from_arrays([*edges, *held.columns, *fired], names=names)

    def pieces(
        self, rows: pa.RecordBatch, wanted: set[int], keys_in: Callable[[pa.RecordBatch], list[pa.Array]] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Cut rows of chunks, or others whose key ``keys_in`` gives, by key group."""
        keys = self.keys_in(rows) if keys_in is None else keys_in(rows)
        groups = groups_of_rows(keys, self._max_parallelism, is_tuple=self._is_tuple).astype(np.int64)
        for group in sorted(wanted.intersection(np.unique(groups).tolist())):
            yield group, rows.filter(pa.array(groups == group))

    def keys_in(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """Return the columns of the key that rows of a chunk have."""
        assert self._windows.layout is not None
        return list(rows.columns[2 : 2 + len(self._windows.layout.keys)])

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
                    self.put(batch)
                self.unsent.restore(chunk)

    def put(self, batch: pa.RecordBatch) -> None:
        """Take up sessions that are rows of a chunk, in the order in which they were changed."""
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
