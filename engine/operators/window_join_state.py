"""State of a window join on columns: each slice of time (pane) has both sides' records as they came.

A pane is in memory, or in files where there is no room for it (``spilled_records``), cut by hash of the key. Which goes
first is said by who knows the windows. Nothing is read before a window fires; then it is read partition by partition,
so memory is what waits, a piece, and the panes that have stayed. Not here: windows and pairs (``column_window_join``).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.operators.column_fields import are_alike, column_index, is_named, named_schema
from engine.operators.join_marks import JoinMark, JoinMarks
from engine.operators.join_state import (
    JoinPlace,
    SideRecords,
    Told,
    chunks_of,
    key_columns,
    key_kinds,
    layer_of,
    records_in,
    told_of,
)
from engine.operators.slice_records import KeyIndex, SliceRecords, are_small, joined
from engine.operators.spilled_records import SpilledRecords
from engine.operators.window_slices import Slices
from engine.state.chunks import LazyChunks
from engine.state.noted import NotedDelta
from engine.state.spilling_slots import allow_open_files
from engine.time.windows import TIME_MIN_MS

Array = np.ndarray[Any, Any]

__all__ = ["WindowContent", "WindowJoinState"]

NUM_PARTITIONS: Final = 128
#: A batch that late records look for their keys in gets an index from so many rows on; it is made anew for fewer.
_INDEXED_ROWS_MIN: Final = 1024
#: Of the share of memory: panes beside others that are in files, or of one window that is joined in one go; what is
#: left of them when some have to go; records that wait (being written they need three times as much); a piece that is
#: joined.
_PANES_SHARE: Final = 3 / 8
_LEFT_SHARE: Final = 1 / 4
_WAITING_SHARE: Final = 1 / 8
_PIECE_SHARE: Final = 1 / 8
#: Rows of columns that are noted in the time of an entry of objects.
_ROWS_PER_ENTRY: Final = 8


@final
@dataclass(frozen=True, slots=True)
class WindowContent:
    """One side's records of a window. ``order``: rows in order of arrival, None = as they are; ``is_new``: which have
    come since the window fired, None = all."""

    columns: pa.RecordBatch
    order: Array | None
    is_new: Array | None


@final
class WindowJoinState:
    """Implements ``parts.LazyPart`` and ``parts.NotingPart``."""

    def __init__(self, place: JoinPlace, slices: Slices) -> None:
        self._place = place
        self._slices = slices
        self._cut = place.partitions(NUM_PARTITIONS)
        self.spilled = SpilledRecords(self._cut.number, place.folder, int(place.bytes_max * _WAITING_SHARE))
        self._marks = JoinMarks()
        #: what is being restored: of which former subtask, and its key groups
        self._origin, self._origin_groups = 1, set[int]()
        self._watermark_ms = TIME_MIN_MS
        self.clear()

    @property
    def watermark_ms(self) -> int:
        return self._watermark_ms

    @watermark_ms.setter
    def watermark_ms(self, watermark_ms: int) -> None:
        self._marks.num_watermarks += watermark_ms > self._watermark_ms
        self._watermark_ms = watermark_ms

    def clear(self) -> None:
        self._marks.clear()
        #: start → records by side
        self.panes: dict[int, tuple[list[SliceRecords], list[SliceRecords]]] = {}
        self._panes_bytes = 0
        self.spilled.clear()
        self.schemas: list[pa.Schema | None] = [None, None]
        self.keys: list[list[int]] = [[], []]
        self.kinds: list[pa.DataType] | None = None
        self.num_arrived = 0
        #: Restored from subtasks whose records were of other types, after the parallelism has changed: other keys.
        self.others: dict[int, bytes] = {}
        #: panes with restored records, for which no record has come since
        self.returned: set[int] = set()

    def define(self, side: int, schema: pa.Schema) -> bool:
        """Note the types of a side; False when columns cannot do it."""
        known = self.schemas[side]
        if known is not None:
            return are_alike(known, schema)
        fields = [column_index(schema, field) for field in self._place.fields[side]]
        kinds = key_kinds(schema, fields)
        if kinds is None or self.kinds not in (None, kinds):
            return False
        self.schemas[side], self.keys[side], self.kinds = named_schema(schema, is_named(schema)), fields, kinds
        return True

    def key_columns(self, side: int, columns: pa.RecordBatch) -> list[pa.Array]:
        assert self.kinds is not None
        return key_columns(columns, self.keys[side], self.kinds)

    # --- panes

    def __contains__(self, start: int) -> bool:
        return start in self.panes or start in self.spilled

    def starts(self) -> list[int]:
        return [*self.panes, *self.spilled.starts()]

    def fired_of(self, start: int) -> set[int]:
        """Return up to when windows of a pane's records had fired when they were restored."""
        if start in self.spilled:
            return self.spilled.fired_of(start)
        return {some.fired_ms for kept in self.panes[start] for some in kept}

    def append(
        self,
        side: int,
        start: int,
        columns: pa.RecordBatch,
        times_ms: Array,
        arrivals: Array,
        fired_ms: int,
        origin: int = 0,
    ) -> None:
        """The columns are the state's own from now on."""
        own = pa.RecordBatch.from_arrays(columns.columns, schema=self.schemas[side])
        some = SliceRecords(own, times_ms, arrivals, fired_ms, origin)
        if start in self.spilled:
            self._hold(side, start, some)
            return
        if start not in self.panes:
            self.panes[start] = [], []
        kept = self.panes[start][side]
        kept.append(some)
        self._panes_bytes += some.nbytes
        while len(kept) > 1 and are_small(kept[-2], kept[-1]):
            last = kept.pop()
            before, kept[-1] = kept[-1], SliceRecords(*joined([kept[-1], last]), last.fired_ms, last.origin)
            self._panes_bytes += kept[-1].nbytes - before.nbytes - last.nbytes

    def drop(self, starts: Iterable[int]) -> None:
        """Forget panes, wherever they are."""
        for start in starts:
            self._marks.note_gone(start)
            if start in self.spilled:
                self.spilled.drop([start])
            else:
                self._panes_bytes -= _bytes_of(self.panes.pop(start))
            self.returned.discard(start)

    # --- between memory and files

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._panes_bytes + self.spilled.nbytes

    def has_too_much(self) -> bool:
        """Whether panes have to go to files, where some are already."""
        return bool(self.spilled) and self._panes_bytes > self._place.bytes_max * _PANES_SHARE

    def make_room(self, order: Callable[[int], Any]) -> None:
        """Let panes go to files, the greatest by ``order`` first, until there is room in memory again."""
        left = sorted(self.panes, key=order)
        while left and self._panes_bytes > self._place.bytes_max * _LEFT_SHARE:
            self.evict([left.pop()])

    def evict(self, starts: Iterable[int]) -> None:
        """Let these panes go to files, as far as they are in memory."""
        allow_open_files()
        for start in starts:
            pane = self.panes.pop(start, ([], []))
            self._panes_bytes -= _bytes_of(pane)
            for side, kept in enumerate(pane):
                kept.reverse()
                while kept:
                    self._hold(side, start, kept.pop())

    def _hold(self, side: int, start: int, some: SliceRecords) -> None:
        self.spilled.hold(side, start, some, self._cut.of_rows(self.key_columns(side, some.columns)))

    # --- windows

    def pieces_of(self, window: tuple[int, int]) -> list[range | None]:
        """Return the pieces in which a window is joined: partitions that fit into memory, None = all in one go."""
        starts = [start for start in self._slices.slices_of(window) if start in self]
        in_files = any(start in self.spilled for start in starts)
        size = sum(_bytes_of(self.panes[start]) for start in starts if start in self.panes)
        if not in_files and size <= self._place.bytes_max * _PANES_SHARE:
            return [None]
        self.evict(starts)
        return list(self.spilled.pieces_of(starts, int(self._place.bytes_max * _PIECE_SHARE)))

    def content_of(
        self, side: int, window: tuple[int, int], partitions: range | None, lateness_ms: int
    ) -> WindowContent | None:
        """Return one side's records of a window that is about to fire, None = there are none."""
        kept, num_panes = [], 0
        for start in self._slices.slices_of(window):
            if start in self:
                found = list(self.records_at(side, start, partitions))
                num_panes += bool(found)
                kept += found
        max_ms = window[1] - 1
        kept = [some for some in kept if some.fired_ms < max_ms + lateness_ms]
        if not kept:
            return None
        columns, _, arrivals = joined(kept)
        is_new = None
        if any(some.fired_ms >= max_ms for some in kept):
            is_new = np.repeat([some.fired_ms < max_ms for some in kept], [some.times_ms.size for some in kept])
        is_in_order = num_panes == 1 and (partitions is None or len(kept) == 1)
        return WindowContent(columns, None if is_in_order else np.argsort(arrivals, kind="stable"), is_new)

    def records_at(self, side: int, start: int, partitions: range | None) -> Iterator[SliceRecords]:
        """Yield one side's records of a pane. ``partitions``: of which, where it is in files."""
        if start in self.panes:
            yield from self.panes[start][side]
        elif start in self.spilled and partitions is not None:
            yield from self.spilled.records_of(side, start, partitions)

    def records_of_keys(self, side: int, start: int, keys: list[pa.Array], partitions: list[int]) -> list[SliceRecords]:
        """Return one side's records of these keys in a pane; ``partitions``: that the keys are of."""
        found = []
        if start in self.panes:
            for some in self.panes[start][side]:
                if some.index is None and some.times_ms.size >= _INDEXED_ROWS_MIN:
                    self._panes_bytes += some.keep_index(self._index(side, some))
                found.append(some.take((some.index or self._index(side, some)).rows_of(keys)))
        elif start in self.spilled:
            for piece in self.spilled.pieces_of([start], int(self._place.bytes_max * _PIECE_SHARE)):
                inside = [partition for partition in partitions if partition in piece]
                if inside:
                    for some in self.spilled.records_of(side, start, range(inside[0], inside[-1] + 1)):
                        found.append(some.take(self._index(side, some).rows_of(keys)))
        return [some for some in found if some.times_ms.size]

    def _index(self, side: int, some: SliceRecords) -> KeyIndex:
        assert self.kinds is not None
        return KeyIndex(self.kinds, self.key_columns(side, some.columns))

    def partitions_of(self, keys: list[pa.Array]) -> list[int]:
        """Return the partitions that have some of these keys, rising."""
        return np.unique(self._cut.of_rows(keys)).tolist()  # type: ignore[no-any-return]

    # --- all there is

    def records(self) -> Iterator[Iterator[SideRecords]]:
        """Yield all that is kept, piece by piece: each side's records of a key are in one of them, in order of arrival
        within a slice."""
        yield self._records_of(None, self.panes)
        starts = self.spilled.starts()
        for partitions in self.spilled.pieces_of(starts, int(self._place.bytes_max * _PIECE_SHARE)):
            yield self._records_of(partitions, starts)
        for chunk in self.others.values():
            yield records_in(chunk)

    def _records_of(self, partitions: range | None, starts: Iterable[int], since: int = 0) -> Iterator[SideRecords]:
        """``since``: the number by arrival of the first one that is wanted."""
        for side in range(2):
            for start in sorted(starts):
                for some in self.records_at(side, start, partitions):
                    if since:
                        rows = np.flatnonzero(some.arrivals >= since)
                        if not rows.size:
                            continue
                        some = some if rows.size == some.times_ms.size else some.take(rows)
                    fired_ms = max(self.watermark_ms, some.fired_ms)
                    yield SideRecords(side, some.columns, some.times_ms, some.arrivals, fired_ms)

    # --- LazyPart

    def num_entries(self) -> int:
        kept = (some for pane in self.panes.values() for side in pane for some in side)
        return sum(some.times_ms.size for some in kept) + self.spilled.num_rows + len(self.others)

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        return dict(self.lazy_snapshot(key_groups))

    def lazy_snapshot(self, key_groups: Iterable[int]) -> Mapping[int, bytes]:
        wanted, starts = set(key_groups), self.spilled.starts()
        chunks = chunks_of(self._grouped(self._records_of(None, self.panes)), wanted)
        chunks |= {group: chunk for group, chunk in self.others.items() if group in wanted}
        if not starts:
            return chunks
        made: dict[int, bytes] = {}

        def chunk_of(group: int) -> bytes:
            if group not in made:
                made.clear()
                within = self._cut.of_group(group)
                in_reach = {other for other in wanted if self._cut.of_group(other) == within}
                made.update(dict.fromkeys(in_reach, b""))
                made.update(chunks_of(self._grouped(self._records_of(within, starts)), in_reach))
            return chunks.get(group, b"") + made[group]

        sizes = self.spilled.bytes_by_partition(starts)
        in_files = {group for group in wanted if any(sizes[partition] for partition in self._cut.of_group(group))}
        return LazyChunks({group: group for group in sorted(in_files | chunks.keys())}, chunk_of)

    def _grouped(self, some: Iterable[SideRecords]) -> Iterator[tuple[SideRecords, Array]]:
        for records in some:
            keys = [records.columns.column(key) for key in self.keys[records.side]]
            yield records, self._place.groups_of(keys)

    # --- NotingPart

    def _mark_of(self, checkpoint_id: int) -> JoinMark | None:
        return None if self.others else self._marks.of(checkpoint_id)

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> dict[int, bytes] | None:
        mark = self._mark_of(since_checkpoint_id)
        if mark is None:
            return None
        return self._increment(self._told(mark), key_groups, self._since(mark))

    def _since(self, mark: JoinMark) -> Iterator[SideRecords]:
        """Yield what has come since a barrier; slices in files of which nothing has are not read."""
        first, _ = mark.arrived
        yield from self._records_of(None, self.panes, first)
        starts = [start for start in self.spilled.starts() if self.spilled.last_arrival(start) >= first]
        for partitions in self.spilled.pieces_of(starts, int(self._place.bytes_max * _PIECE_SHARE)):
            yield from self._records_of(partitions, starts, first)

    def _told(self, mark: JoinMark) -> Told:
        """Return what an increment says of what it builds on."""
        watermark_ms = self.watermark_ms if mark.num_watermarks != self._marks.num_watermarks else TIME_MIN_MS
        slices = self._slices.slice_ms, self._slices.offset_ms
        return Told(None, self._marks.gone_since(mark), slices, watermark_ms)

    def _increment(self, told: Told, key_groups: Iterable[int], some: Iterable[SideRecords]) -> dict[int, bytes]:
        groups = list(key_groups)
        layers = chunks_of(self._grouped(some), groups)
        return {group: told.chunk(layers.get(group, b"")) for group in groups}

    def note_delta(self, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int) -> NotedDelta | None:
        mark = self._mark_of(since_checkpoint_id)
        if mark is None or self.spilled:
            return None
        num_rows = self.num_arrived - mark.arrived[0]
        if num_rows > entries_max * _ROWS_PER_ENTRY:
            return None
        copied, told, groups = list(self._since(mark)), self._told(mark), list(key_groups)
        return NotedDelta(num_rows // _ROWS_PER_ENTRY, lambda: self._increment(told, groups, copied))

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        """Records that are gone count: they are in what the increment builds on."""
        mark = self._mark_of(since_checkpoint_id)
        if mark is None:
            return None
        added = self.num_arrived - mark.arrived[0]
        changed = added + max(0, mark.num_entries + added - self.num_entries())
        return changed if changed <= at_most else None

    def begin_epoch(self, checkpoint_id: int) -> None:
        self._marks.begin(checkpoint_id, (self.num_arrived, self.num_arrived), self.num_entries())

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self._marks.forget(until_checkpoint_id, kept_ids)

    # --- restoring

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        told = next((own for chunk in chunks.values() if (own := told_of(chunk)) is not None), None)
        # Of several former subtasks, the layers come one after the other; an increment has all of its key groups.
        if self._origin_groups.isdisjoint(chunks):
            self._origin, self._origin_groups = self._origin + 1, set()
        self._origin_groups.update(chunks)
        if told is not None:
            self._take_up_told(told)
        for group, chunk in chunks.items():
            found = layer_of(chunk)[1]
            is_known = group not in self.others
            if not (is_known and all(self.define(records.side, records.columns.schema) for records in found)):
                self.others[group] = self.others.get(group, b"") + chunk
                continue
            for records in found:
                self._restore(records)
            if self._panes_bytes > self._place.bytes_max * _PANES_SHARE:
                self.make_room(lambda start: start)

    def _take_up_told(self, told: Told) -> None:
        """Take up what an increment says of the layers below, of the same former subtask."""
        for start in told.gone:
            if start in self.spilled:
                self.spilled.drop_origin(start, self._origin)
            elif start in self.panes:
                pane = self.panes[start]
                self._panes_bytes -= _bytes_of(pane)
                for kept in pane:
                    kept[:] = [some for some in kept if some.origin != self._origin]
                self._panes_bytes += _bytes_of(pane)
                if not any(pane):
                    del self.panes[start]
            if start not in self:
                self.returned.discard(start)
        for kept in (kept for pane in self.panes.values() for kept in pane):
            for some in kept:
                if some.origin == self._origin:
                    some.fired_ms = max(some.fired_ms, told.watermark_ms)
        self.spilled.note_fired(self._origin, told.watermark_ms)

    def _restore(self, records: SideRecords) -> None:
        size, offset = self._slices.slice_ms, self._slices.offset_ms
        times_ms = records.times_ms
        starts = times_ms - (times_ms - offset) % size
        for start in np.unique(starts).tolist():
            rows = np.flatnonzero(starts == start)
            columns, arrivals = records.columns.take(arrow_of(rows)), records.arrivals[rows]
            self.append(records.side, start, columns, times_ms[rows], arrivals, records.watermark_ms, self._origin)
            self.returned.add(start)
            self.num_arrived = max(self.num_arrived, int(arrivals[-1]) + 1)


def _bytes_of(pane: tuple[list[SliceRecords], list[SliceRecords]]) -> int:
    return sum(some.nbytes for kept in pane for some in kept)
