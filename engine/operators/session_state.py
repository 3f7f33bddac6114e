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
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.records import Named, record_values
from engine.operators import session_kernels as kernels
from engine.operators.left_windows import FIRED, HELD, SESSIONS_PART
from engine.operators.session_assigned import Assigned, Edges, OpenSession, Sink
from engine.operators.session_calendar import FreeNumbers, SessionCalendar
from engine.operators.session_changes import SessionChanges
from engine.operators.session_distinct import SessionDistinct
from engine.operators.session_keys import KeyRenewal, SessionKeys
from engine.operators.session_unsent import Unsent, layers_of
from engine.operators.window_chunks import held_columns, shown_columns
from engine.operators.window_panes import Pane
from engine.operators.window_state import FIELDS, WindowState, other_fields
from engine.state.arrow_views import values_of
from engine.state.column_chunks import by_group, streams
from engine.state.column_hash import groups_of_rows
from engine.state.paged_array import PagedArray
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

Array = np.ndarray[Any, Any]

__all__ = ["SESSIONS_PART", "Assigned", "Edges", "OpenSession", "SessionState"]

_PANE: Final = 0
#: Fewer keys than this are never worth a compaction.
_COMPACT_MIN: Final = 1 << 16
_START, _END, _NEXT, _CHANGED = range(4)
#: Columns of merges.
_SOURCE, _TARGET, _, _GOES_FIRST = range(4)


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
        #: of what is in memory; None = nobody wants to know
        self.changes: SessionChanges | None = None
        self.clear()

    def clear(self) -> None:
        self._windows = self._empty_windows()
        self._keys: SessionKeys | None = None
        self._distinct: list[SessionDistinct] = []
        self._heads = PagedArray(np.int64)
        self._sessions = PagedArray(np.int64, 4)
        #: with a lateness, by session: whether it has fired since it was changed last
        self._fired = PagedArray(np.bool_)
        #: rows taken up so far: the number of the next one, by which sessions know when they were changed
        self._num_rows = 0
        self._free = FreeNumbers()
        self._calendar = SessionCalendar(self._gap_ms, self._lateness_ms)
        #: at no time before a session fires or is forgotten
        self.next_due_ms = TIME_MAX_MS
        self._compact_at = _COMPACT_MIN
        #: forgets keys, bit by bit
        self._renewal: KeyRenewal | None = None
        #: Restored from subtasks whose records were of other types, after the parallelism has changed: other keys.
        self.others: dict[int, bytes] = {}
        #: by key group, what was to be sent when the checkpoint was made that has been restored
        self.unsent: dict[int, Unsent] = {}

    def define(self, schema: pa.Schema, keys: Sequence[int]) -> bool:
        """Make everything for records of that schema; False when columns cannot do it."""
        layout = self._windows.layout
        if layout is not None:
            same = layout.schema.types == schema.types and layout.keys == tuple(keys)
            return bool(same) and self._windows.is_named(schema) == self.named
        if not self._windows.define(schema, keys):
            return False
        self._keys = SessionKeys(self._windows._table)
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
    def named(self) -> Named:
        """Whether the records that sessions hold are Rows."""
        return self._windows.named

    @property
    def is_defined(self) -> bool:
        return self._keys is not None

    @property
    def nbytes(self) -> int:
        by_session = self._sessions.nbytes + self._fired.nbytes + self._calendar.nbytes
        renewal = 0 if self._renewal is None else self._renewal.nbytes
        return self._windows.nbytes + self._heads.nbytes + by_session + renewal

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
        self._free.add(fresh[num_fresh:])
        made = fresh[:num_fresh]
        for distinct in self._distinct:
            distinct.begin(made, self._keys.num_slots)
        sessions, levels = of_row
        taken = sessions >= 0
        self._keys.key_slots.array[sessions[taken]] = slots[taken]
        self._mark(slots[taken])
        if self._lateness_ms:
            assert isinstance(watermark_ms, int)
            self._expect(sessions[taken], watermark_ms)
        elif num_fresh:
            self._put_on_calendar(made, self._sessions.array[made, _END] - 1)
        if self._renewal is not None:
            self._go_on_renewing(self._renewal, slots, sessions, taken)
        return Assigned(sessions, levels, merges[:num_merges], fires[:num_fires], num_levels)

    def _expect(self, changed: Array, watermark_ms: int) -> None:
        """Know when sessions that were changed are due; those that have ended have fired, or do so with the batch."""
        changed = np.unique(changed, return_index=True)[0]  # sorting: by hash it takes ten times as long
        self._fired.array[changed] = self._sessions.array[changed, _END] - 1 <= watermark_ms
        self._calendar.remove(changed)
        self._put_on_calendar(changed, self._due_of(changed))

    def _mark(self, slots: Array) -> None:
        """Sessions of these keys change."""
        if self.changes is not None:
            self.changes.mark(slots, self.num_keys)

    def _put_on_calendar(self, sessions: Array, due_ms: Array) -> None:
        assert self._keys is not None
        self._calendar.add(sessions, due_ms, self._keys.num_slots)
        self.next_due_ms = min(self.next_due_ms, int(due_ms.min(initial=TIME_MAX_MS)))

    def _fresh(self, count: int) -> Array:
        """Take so many numbers for new sessions."""
        assert self._keys is not None
        taken = self._free.take(count)
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
        self._calendar.remove(merged)
        self._sessions.array[merged] = 0
        self._free.add(merged)
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
            return self._windows.widen_all_sums() and self._merge(merges)
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
        for part in self.advance_in_parts(watermark_ms, None):
            fire(self, part)

    def advance_in_parts(self, watermark_ms: int, size: int | None) -> Iterator[Edges]:
        """As ``advance``: yield those that fire, so many at a time; None = all. Nothing may happen in between."""
        if self.next_due_ms <= watermark_ms and self.is_defined:
            due, over = self._due(watermark_ms)
            for at in range(0, due.sessions.size, size or max(1, due.sessions.size)):
                yield due.part(at, at + (size or due.sessions.size))
            if over.size:
                self.drop(over)

    def _due(self, watermark_ms: int) -> tuple[Edges, Array]:
        """Return the sessions that fire now, the first that ended first, and those that are to be dropped then."""
        assert self._keys is not None
        due = self._calendar.advance(watermark_ms, self._sessions.array, self._fired.array)
        ends = self._sessions.array[due, _END]
        fires, is_over = np.ones(due.size, np.bool_), np.ones(due.size, np.bool_)
        if self._lateness_ms:
            fires = ~self._fired.array[due]
            self._fired.array[due] = True
            self._mark(self._keys.key_slots.array[due])
            over_ms = ends - 1 + self._lateness_ms
            is_over = over_ms <= watermark_ms
            self._put_on_calendar(due[~is_over], over_ms[~is_over])
        self.next_due_ms = self._calendar.next_due_ms()
        return self.edges_of(due[fires][np.argsort(ends[fires], kind="stable")]), due[is_over]

    def know_next_due(self) -> None:
        """Let ``next_due_ms`` be no sooner than it is; all sessions are looked through."""
        self.next_due_ms = int(self._due_of(self._live()).min(initial=TIME_MAX_MS))

    def _due_of(self, sessions: Array) -> Array:
        """Return when sessions fire, or are forgotten where they have."""
        due_ms: Array = self._sessions.array[sessions, _END] - 1
        return due_ms + np.where(self._fired.array[sessions], self._lateness_ms, 0) if self._lateness_ms else due_ms

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

    @property
    def why_no_sum(self) -> str:
        """Why sums were not taken up."""
        return self._windows.why_no_sum

    @property
    def averages_decimals(self) -> bool:
        """Whether ``results`` are of no column."""
        return self._windows.averages_decimals

    def result_rows(self, due: Edges, result: Callable[[Any], Iterable[Any]]) -> tuple[list[Any], list[int]]:
        """As ``results``, in Python. ``result``: of the row operator's accumulator."""
        keys, made = self._windows.accumulators_of(_PANE, due.sessions)
        starts, ends = due.starts.tolist(), due.ends.tolist()
        rows = [(*key, *edges, *result(own)) for key, own, *edges in zip(keys, made, starts, ends, strict=True)]
        return rows, (due.ends - 1).tolist()

    def drop(self, sessions: Array) -> None:
        """Forget sessions; keys that have none too, once they are most."""
        assert self._keys is not None
        self._mark(self._keys.key_slots.array[sessions])
        kernels.unlink_sessions(sessions, self._keys.key_slots.array, self._heads.array, self._sessions.array)
        for distinct in self._distinct:
            distinct.drop(self._windows.panes[_PANE], sessions)
        self._windows.panes[_PANE].values[sessions] = 0
        self._sessions.array[sessions] = 0
        self._calendar.remove(sessions)
        self._free.add(sessions)
        if self._renewal is not None:
            self._renewal.follow(self._keys.key_slots.array[sessions], are_needed=False)
        elif self.num_keys >= self._compact_at:
            self._begin_to_renew(self._keys)
        self._forget_codes(_COMPACT_MIN)

    def _begin_to_renew(self, keys: SessionKeys) -> None:
        """Forget the keys without sessions, if they are most, bit by bit with the batches that come."""
        num_marked = 0
        if self.changes is not None:
            num_marked = self.changes.marked(self.num_keys, self.num_sessions).size
        if 2 * (self.num_sessions + num_marked) < self.num_keys:
            self._renewal = KeyRenewal(keys, self._heads, self._are_marked)
            self._compact_at = self.num_keys
        else:
            self._compact_at = max(_COMPACT_MIN, 2 * self.num_keys)

    def _are_marked(self, begin: int, end: int) -> Array:
        return np.zeros(end - begin, np.bool_) if self.changes is None else self.changes.are_marked(begin, end)

    def _go_on_renewing(self, renewal: KeyRenewal, slots: Array, sessions: Array, taken: Array) -> None:
        """``slots``: of the keys of a batch; ``sessions``: of its rows, as far as they were ``taken``."""
        assert self._keys is not None
        renewal.follow(slots)
        renewal.name(sessions[taken], slots[taken])
        if renewal.step(slots.size):
            self._heads, self._keys.key_slots, self._keys.table = renewal.heads, renewal.key_slots, renewal.table
            if self.changes is not None:
                self.changes.compact(renewal.kept())
            self._renewal = None
            self._compact_at = max(_COMPACT_MIN, 2 * self.num_keys)

    def _compact(self) -> None:
        assert self._keys is not None
        live = self._live()
        is_kept = np.zeros(self.num_keys, np.bool_)
        is_kept[self._keys.key_slots.array[live]] = True
        if self.changes is not None:
            is_kept[self.changes.marked(self.num_keys, live.size)] = True
        kept = np.flatnonzero(is_kept)
        if 2 * kept.size < self.num_keys:
            slot_of_slot = np.zeros(self.num_keys, np.int32)
            slot_of_slot[kept] = np.arange(kept.size)
            heads = self._heads.array[kept]
            self._heads.array[:] = 0
            self._heads.array[: kept.size] = heads
            self._keys.key_slots.array[live] = slot_of_slot[self._keys.key_slots.array[live]]
            self._keys.table.compact(kept)
            if self.changes is not None:
                self.changes.compact(kept)
        self._compact_at = max(_COMPACT_MIN, 2 * self.num_keys)

    def _forget_codes(self, at_least: int) -> None:
        """Forget values, by number, that no session has any more, where they are most."""
        for own in self._windows._fields:
            if own.codes is not None:
                held = self.num_sessions * sum(of is own for _, of in self._windows._accumulators)
                if own.codes.num_slots > max(at_least, 2 * held):
                    own.renew_codes(self._windows._places_of(own))

    def trim(self) -> None:
        """Give back what is reserved, before all of it goes to a file."""
        if self._keys is None:
            return
        self._renewal = None
        windows, live = self._windows, self._live()
        if live.size < self._keys.num_slots:
            self._renumber(live)
        if self.num_keys > 2 * live.size:
            self._compact()
        self._forget_codes(0)
        for own in windows._fields:
            own.forget_batch()
        windows._taken = np.zeros(0, np.int32)
        for distinct in self._distinct:
            distinct.trim(live.size)
        self._keys.table.trim()
        self._heads.trim(self.num_keys)
        for by_session in (self._sessions, self._fired, self._keys.key_slots):
            by_session.trim(live.size)
        self._calendar.trim(live.size)

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
        self._free.clear()
        self._calendar.begin_anew(self._due_of(np.arange(live.size)))

    def bound(self) -> float:
        """Return what no sum of integers of any session is beyond."""
        return self._windows.bound_of_pane(_PANE) if self.is_defined else 0.0

    def key_columns(self, sessions: Array) -> list[pa.Array]:
        assert self._keys is not None
        return self._keys.keys_of(sessions)

    def keys_of(self, sessions: Array) -> list[tuple[Any, ...]]:
        """Return the fields of each session's key."""
        return list(zip(*map(record_values, self.key_columns(sessions)), strict=True))

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
            keys = zip(*map(record_values, self._keys.keys_of(numbers)), strict=True)
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
        return self.num_sessions + len(self.others) + sum(own.num_entries() for own in self.unsent.values())

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
            "shown": shown_columns(self._windows),
        }
        if self._windows.is_users:
            metadata[HELD] = held_columns(self._windows, first=2)
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
        yield from by_group(rows, groups_of_rows(keys, self._max_parallelism, is_tuple=self._is_tuple), wanted)

    def keys_in(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """Return the columns of the key that rows of a chunk have."""
        assert self._windows.layout is not None
        return list(rows.columns[2 : 2 + len(self._windows.layout.keys)])

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for group, chunk in chunks.items():
            for layer in layers_of(chunk):
                schema = pa.ipc.read_schema(pa.py_buffer(layer.metadata[b"schema"]))
                if not self.define(schema, [int(key) for key in layer.metadata[b"keys"].split(b",")]):
                    self.others[group] = self.others.get(group, b"") + chunk  # increments behind what they build on
                    break
                held = self._windows.fields_held().encode()
                if layer.metadata.get(FIELDS, held) != held:
                    raise other_fields(schema)
                for keys in layer.replaced_keys():
                    self.forget_keys(keys)
                for batch in layer.sessions:
                    self.put(batch)
                if layer.is_increment:
                    self.unsent.pop(group, None)
                if layer.unsent:
                    self.unsent.setdefault(group, Unsent()).add(layer.unsent)

    def forget_keys(self, columns: list[pa.Array]) -> None:
        """Forget all sessions of these keys."""
        assert self._keys is not None
        slots = np.sort(self._keys.table.slots_of(columns))
        self._heads.reserve(self.num_keys)
        self.drop(self.sessions_of_keys(slots[np.flatnonzero(np.diff(slots, prepend=-1))])[0].sessions)

    def sessions_of_keys(self, slots: Array) -> tuple[Edges, Array]:
        """Return all sessions of these keys, in the order in which they were changed, and the keys that have none."""
        at = self._heads.array[slots] - 1
        gone, found = slots[at < 0], [at[:0]]
        while (at := at[at >= 0]).size:
            found.append(at)
            at = self._sessions.array[at, _NEXT] - 1
        sessions = np.concatenate(found)
        return self.edges_of(sessions[np.argsort(self._sessions.array[sessions, _CHANGED], kind="stable")]), gone

    def cut_of_keys(self) -> tuple[int, int, bool]:
        """Return how keys are cut into key groups: their columns, the maximum parallelism, whether they are tuples."""
        assert self._windows.layout is not None
        return len(self._windows.layout.keys), self._max_parallelism, self._is_tuple

    def keys_of_slots(self, slots: Array) -> list[pa.Array]:
        """Return the columns of keys."""
        assert self._keys is not None
        return self._keys.table.keys_of(slots)

    def num_distinct(self, sessions: Array) -> int:
        """Return how many distinct values these have."""
        pane = self._windows.panes[_PANE]
        return sum(int(pane.column(distinct.column)[sessions].sum()) for distinct in self._distinct)

    def put(self, batch: pa.RecordBatch) -> None:
        """Take up sessions that are rows of a chunk, in the order in which they were changed."""
        assert self._keys is not None
        assert self._windows.layout is not None
        num_keys = len(self._windows.layout.keys)
        fired = np.zeros(batch.num_rows, np.bool_)
        if batch.schema.names[-1] == FIRED:
            fired = np.asarray(batch.column(batch.num_columns - 1))
            batch = batch.select(range(batch.num_columns - 1))
        self._renewal = None
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
        self._put_on_calendar(made, self._due_of(made))
        self._keys.restored = made
        self._windows._put(pa.RecordBatch.from_arrays(batch.columns[2:], names=batch.schema.names[2:]), TIME_MIN_MS)
