"""State of an interval join over columns that goes to files of the local disk when it is more than its share of memory.

It begins as one ``IntervalState``. Then all records lie in segments (``join_segments``), each of which has records that
came one after the other; a record is written once, and goes with its segment when the time has passed all of it.
Records that come wait, in memory, for others; then they become a segment themselves, and a *pass* looks for the
partners of all of them at once, a range of keys with each step. So a record costs a part of a sequential read of the
keys and times of everything, the smaller the more records wait; and pairs come later, those of a key in the order in
which they come in memory. Watermarks have their place among the records that wait: what they remove is removed for who
came behind them only. When there is little enough, all of it comes back into memory. Not here: when there is a pass
(``column_interval_join``).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.core.records import BATCH_ROWS_MAX
from engine.operators.column_interval_join import IntervalState
from engine.operators.join_marks import JoinMark, JoinMarks
from engine.operators.join_segments import FoundPairs, PairFinder, Removals, Segment, sorted_segment, written
from engine.operators.join_state import (
    JoinPlace,
    SideRecords,
    Told,
    chunks_of,
    key_columns,
    layer_of,
    records_in,
    told_of,
)
from engine.state.noted import NotedDelta
from engine.state.spilling_slots import allow_open_files
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

Array = np.ndarray[Any, Any]

__all__ = ["SpillingIntervals"]

NUM_PARTITIONS: Final = 128
#: Of the share of memory: records that wait (being sorted they need three times as much), and what may come back.
_HELD_SHARE: Final = 1 / 8
_RETURN_SHARE: Final = 1 / 8
#: Restoring goes to files from here on.
_RESTORED_SHARE: Final = 3 / 4
#: Records of a pass in one step of it; of a segment that is made from what was in memory, or from others.
_STEP_ROWS: Final = 1 << 14
_SEGMENT_ROWS: Final = 1 << 17
#: Rows of columns that are noted in the time of an entry of objects.
_ROWS_PER_ENTRY: Final = 8


@final
class _Held:
    """One side's records that wait, in order of arrival."""

    def __init__(self) -> None:
        self.batches: list[tuple[pa.RecordBatch, Array, Array, Array]] = []

    def segment(self) -> Segment | None:
        """Return them as a segment in memory; None = there are none."""
        if not self.batches:
            return None
        columns, codes, times_ms, arrivals = zip(*self.batches, strict=True)
        return sorted_segment(columns, *(np.concatenate(own) for own in (codes, times_ms, arrivals)))


@final
class _Pass:
    """``sought``: the segments of the records that are looked for partners for; ``todo``: ranges of codes, the last one
    first; ``until_ms``: the watermark behind them."""

    def __init__(self, finder: PairFinder, sought: list[tuple[int, Segment]], until_ms: int) -> None:
        self.finder = finder
        self.sought = sought
        self.until_ms = until_ms
        self.todo = finder.cuts(_STEP_ROWS)[::-1] if sought else []


@final
class SpillingIntervals:
    """Implements ``parts.LazyPart`` and ``parts.NotingPart``. ``memory``: what is in memory, empty while there are
    files, with the types. ``bounds``: of each side, earliest and latest partner relative to its own record."""

    def __init__(self, place: JoinPlace, bounds: tuple[tuple[int, int], tuple[int, int]]) -> None:
        self._place = place
        self._bounds = bounds
        self._cut = place.partitions(NUM_PARTITIONS)
        self._marks = JoinMarks()
        #: of each side: number by arrival of the first row in memory
        self._first_arrivals = [0, 0]
        #: what is being restored from one former subtask: its key groups, and where it begins, by side: rows in memory,
        #: or segments
        self._origin: set[int] = set()
        self._origin_begins = (0, 0)
        self._last_restored = -1
        #: of rows in memory: side, begin, end, and up to which times they are gone
        self._gone: list[tuple[int, int, int, int]] = []
        self.memory = self._empty()
        self.is_spilled = False
        self.watermark_ms = TIME_MIN_MS
        self._forget_files()

    def _empty(self) -> IntervalState:
        memory = IntervalState(self._place.max_parallelism, self._place.fields, is_tuple=self._place.is_tuple)
        memory.on_renumbered = self._marks.clear  # the next snapshot is a full one: most of the last is gone
        return memory

    def _forget_files(self) -> None:
        self.is_spilled = False
        self.segments: tuple[list[Segment], list[Segment]] = [], []
        self._held = _Held(), _Held()
        self._held_rows = self._held_bytes = 0
        self._num_arrived = 0
        self._removals = Removals((max(0, self._bounds[0][1]), max(0, self._bounds[1][1])))
        self._pass: _Pass | None = None

    def clear(self) -> None:
        """Forget everything, types too."""
        self._marks.clear()
        self.memory.clear()
        self._forget_files()

    # --- how it is

    @property
    def others(self) -> dict[int, bytes]:
        return self.memory.others

    def define(self, side: int, schema: pa.Schema) -> bool:
        return self.memory.define(side, schema)

    def schema_of(self, side: int) -> pa.Schema | None:
        own = self.memory.sides[side]
        return None if own is None else own.store.schema

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.memory.nbytes + self._held_bytes

    @property
    def filled(self) -> float:
        """How full the room for records is; 1 = there has to be a pass."""
        return self._held_bytes / (self._place.bytes_max * _HELD_SHARE)

    @property
    def is_passing(self) -> bool:
        return self._pass is not None

    @property
    def steps_left(self) -> int:
        return 0 if self._pass is None else len(self._pass.todo)

    @property
    def is_waiting(self) -> bool:
        """Whether pairs may have to be found before the watermark can go on."""
        return self._pass is not None or self._held_rows > 0

    def _key_columns(self, side: int, columns: pa.RecordBatch) -> list[pa.Array]:
        own, table = self.memory.sides[side], self.memory.table
        assert own is not None
        assert table is not None
        return key_columns(columns, own.keys, table.kinds)

    # --- from memory to files, and back

    def spill(self) -> None:
        """Let all that is in memory go to files."""
        allow_open_files()
        self._forget_gone()
        source, self.memory = self.memory, self._empty()
        self.is_spilled = True
        self.memory.others, source.others = source.others, self.memory.others
        marks, begins = [0, 0], [0, 0]
        for number, side in enumerate(source.sides):
            if side is None:
                continue
            self.memory.define(number, side.store.schema)
            first = self._first_arrivals[number]
            live = side.live()
            # Not beyond where what is being restored begins.
            edge = int(np.searchsorted(live, self._origin_begins[number]))
            for begin, end in ((0, edge), (edge, live.size)):
                if begin == edge:
                    begins[number] = len(self.segments[number])
                for at in range(begin, end, _SEGMENT_ROWS):
                    part = live[at : min(at + _SEGMENT_ROWS, end)]
                    columns = side.store.records(part)
                    codes = self._cut.codes_of_rows(self._key_columns(number, columns))
                    self._add(number, sorted_segment([columns], codes, side.store.times_ms[part], first + part))
            marks[number] = first + side.mark
            self._num_arrived = max(self._num_arrived, first + side.store.num_rows)
        self._origin_begins, self._first_arrivals = (begins[0], begins[1]), [0, 0]
        if self.watermark_ms != TIME_MIN_MS:
            self._removals.add(0, self.watermark_ms, (marks[0], marks[1]))

    def _add(self, side: int, segment: Segment) -> None:
        self.segments[side].append(written(segment, self._place.folder))

    def has_little(self) -> bool:
        """Whether all of it can come back into memory; when nothing waits."""
        nbytes = sum(segment.nbytes for side in self.segments for segment in side)
        return nbytes <= self._place.bytes_max * _RETURN_SHARE

    def gather(self) -> None:
        """Let all of it come back into memory."""
        for side, own in enumerate(self.memory.sides):
            if own is None:
                continue
            for segment in self.segments[side]:
                rows = self._live(side, segment)
                rows = rows[np.argsort(segment.arrivals[rows], kind="stable")]
                columns = segment.columns.take(arrow_of(rows))
                self.memory.append(side, columns, segment.times_ms[rows], self.memory.slots_of(side, columns))
        self.memory.watermark_ms = self.watermark_ms
        self._forget_files()
        self._marks.clear()  # it is little

    def _live(self, side: int, segment: Segment, part: slice = slice(None), *, arrival: int = TIME_MAX_MS) -> Array:
        """Return the rows of a segment, or of a part of it, that are there still, or were when the record of this
        number came."""
        mark, floor_ms = self._removals.now(side, arrival)
        times_ms = segment.times_ms[part]
        is_live = (times_ms > segment.floor_ms) & ((times_ms > floor_ms) | (segment.arrivals[part] >= mark))
        return np.flatnonzero(is_live) + (part.start or 0)

    # --- records that wait

    def hold(self, side: int, columns: pa.RecordBatch, times_ms: Array) -> None:
        """Let records wait, which are not late."""
        own = self.memory.sides[side]
        assert own is not None
        columns = pa.RecordBatch.from_arrays(columns.columns, schema=own.store.schema)
        codes = self._cut.codes_of_rows(self._key_columns(side, columns))
        arrivals = np.arange(self._num_arrived, self._num_arrived + times_ms.size)
        self._held[side].batches.append((columns, codes, times_ms, arrivals))
        self._num_arrived += times_ms.size
        self._held_rows += times_ms.size
        self._held_bytes += columns.nbytes + 3 * times_ms.nbytes

    def advance(self, watermark_ms: int) -> None:
        """Let the time go on; others hear of it when nothing ``is_waiting``."""
        self.watermark_ms = max(self.watermark_ms, watermark_ms)
        self._marks.num_watermarks += 1
        if not self.is_spilled:
            self.memory.watermark_ms = self.watermark_ms
            self.memory.remove_until(self._removals.floors_at(watermark_ms))
            return
        self._removals.add(self._num_arrived, watermark_ms)
        if not self.is_waiting:
            self._tidy()

    def begin_pass(self) -> int:
        """Begin to look for the partners of what waits; return the number of steps."""
        sought = self._write_held()
        kept = list(self.segments[0]), list(self.segments[1])
        self._pass = _Pass(self._finder(sought, kept, self._removals.take()), sought, self.watermark_ms)
        return len(self._pass.todo)

    def _write_held(self) -> list[tuple[int, Segment]]:
        sought = []
        for side, held in enumerate(self._held):
            if (segment := held.segment()) is not None:
                self._add(side, segment)
                sought.append((side, segment))
        self._held, self._held_rows, self._held_bytes = (_Held(), _Held()), 0, 0
        return sought

    def _finder(
        self,
        sought: Sequence[tuple[int, Segment]],
        kept: tuple[Sequence[Segment], Sequence[Segment]],
        removals: Removals,
    ) -> PairFinder:
        assert self.memory.table is not None
        return PairFinder(sought, kept, self._bounds, removals, self._key_columns, self.memory.table.kinds)

    def step(self, emit: Callable[[FoundPairs], None]) -> int | None:
        """Find the pairs of some keys; return the time until which all have come, when this was the last step."""
        own = self._pass
        assert own is not None
        if own.todo:
            for found in own.finder.pairs_of(own.todo[-1]):
                emit(found)
            own.todo.pop()
        if own.todo:
            return None
        self._pass = None
        self._tidy()
        return own.until_ms

    def _tidy(self) -> None:
        """Forget what no record that waits or comes can have as a partner, and let small segments become one."""
        for side, segments in enumerate(self.segments):
            mark, floor_ms = self._removals.now(side, self._first_held())
            for segment in segments:
                if segment.last_arrival < mark:
                    segment.floor_ms = max(segment.floor_ms, floor_ms)
            segments[:] = [segment for segment in segments if not segment.is_gone()]
            while len(segments) > 1 and _are_small(segments[-2], segments[-1]):
                last = segments.pop()
                self._replace(side, len(segments) - 1, [segments[-1], last])
            for number, segment in enumerate(segments):
                if segment.is_mostly_gone():
                    self._replace(side, number, [segment])
                    break

    def _first_held(self) -> int:
        """Return the number of the first record that waits, or of any that comes."""
        return min((int(held.batches[0][3][0]) for held in self._held if held.batches), default=self._num_arrived)

    def _replace(self, side: int, number: int, some: list[Segment]) -> None:
        """Let the records of these segments, as far as they are there still, be in one."""
        rows = [self._live(side, segment, arrival=self._first_held()) for segment in some]
        parts = list(zip(some, rows, strict=True))
        codes = np.concatenate([segment.codes[rows] for segment, rows in parts])
        times_ms = np.concatenate([segment.times_ms[rows] for segment, rows in parts])
        arrivals = np.concatenate([segment.arrivals[rows] for segment, rows in parts])
        columns = [segment.columns.take(arrow_of(rows)) for segment, rows in parts]
        one = sorted_segment(columns, codes, times_ms, arrivals)
        self.segments[side][number] = written(one, self._place.folder)

    # --- all there is

    def records(self) -> Iterator[SideRecords]:
        """Yield all that is kept, each side's records of a key in order of arrival; nothing waits."""
        if not self.is_spilled:
            yield from self.memory.records()
            return
        sizes = np.zeros(self._cut.number, np.int64)
        for partition in range(self._cut.number):
            codes = self._cut.codes_of(range(partition, partition + 1))
            sizes[partition] = sum(np.diff(s.between(codes))[0] for side in self.segments for s in side)
        begin = 0
        for end in range(1, self._cut.number + 1):
            if end == self._cut.number or sizes[begin : end + 1].sum() > _SEGMENT_ROWS:
                yield from self._records_of(range(begin, end), self._all())
                begin = end
        for chunk in self.memory.others.values():
            yield from records_in(chunk)

    def _all(self) -> tuple[list[Segment], list[Segment]]:
        """Return all segments and what waits, as one."""
        left, right = (
            [*segments, *([] if (segment := held.segment()) is None else [segment])]
            for segments, held in zip(self.segments, self._held, strict=True)
        )
        return left, right

    def _records_of(
        self, partitions: range, kept: tuple[list[Segment], list[Segment]], since: tuple[int, int] = (0, 0)
    ) -> Iterator[SideRecords]:
        """Yield the records of these partitions in order of arrival, those from these numbers on, by side."""
        codes = self._cut.codes_of(partitions)
        for side, segments in enumerate(kept):
            found = []
            for segment in segments:
                if segment.last_arrival < since[side]:
                    continue
                rows = self._live(side, segment, slice(*segment.between(codes)))
                rows = rows[segment.arrivals[rows] >= since[side]]
                if rows.size:
                    found.append((segment.columns.take(arrow_of(rows)), segment.times_ms[rows], segment.arrivals[rows]))
                segment.let_go()
            if not found:
                continue
            columns, times_ms, arrivals = zip(*found, strict=True)
            every = np.concatenate(arrivals)
            order = np.argsort(every, kind="stable")
            together, times = pa.concat_batches(columns).take(arrow_of(order)), np.concatenate(times_ms)[order]
            for at in range(0, order.size, BATCH_ROWS_MAX):
                part = slice(at, at + BATCH_ROWS_MAX)
                own = together.slice(at, BATCH_ROWS_MAX)
                yield SideRecords(side, own, times[part], every[order[part]], self.watermark_ms)

    def _records_in_memory(self, since: tuple[int, int] = (0, 0)) -> Iterator[SideRecords]:
        for number, side in enumerate(self.memory.sides):
            if side is None:
                continue
            first = self._first_arrivals[number]
            live = side.live()
            live = live[np.searchsorted(live, since[number] - first) :]
            for at in range(0, live.size, BATCH_ROWS_MAX):
                part = live[at : at + BATCH_ROWS_MAX]
                columns, times_ms = side.store.records(part), side.store.times_ms[part]
                yield SideRecords(number, columns, times_ms, first + part, self.watermark_ms)

    # --- what has not been sent

    def num_unsent(self) -> int:
        """Return how many entries would have to be read to know the pairs that have not been sent."""
        return self.num_entries() if self.is_waiting else 0

    def unsent(
        self, key_groups: Sequence[int], make: Callable[[Iterable[tuple[int, FoundPairs]]], dict[int, bytes]]
    ) -> Mapping[int, bytes]:
        """Return chunks of the pairs of all that waits, made when they are asked for. ``make``: makes those of pairs of
        which the key group is told."""
        if not self.is_waiting:
            return {}
        kept = self._all()
        finders = [] if self._pass is None else [(self._pass.finder, self._pass.todo[::-1])]
        held = [(side, own) for side, segments in enumerate(kept) for own in segments[len(self.segments[side]) :]]
        if held:
            every = self._cut.codes_of(range(self._cut.number))
            finders.append((self._finder(held, kept, self._removals), [every]))
        sought = [own for _, own in held] + ([] if self._pass is None else [own for _, own in self._pass.sought])
        having = [group for group in key_groups if self._has(group, (sought, []))]

        def pieces(numbers: range, groups: set[int]) -> Iterator[tuple[int, FoundPairs]]:
            first, last = self._cut.codes_of(numbers)
            for finder, ranges in finders:
                for begin, end in ranges:
                    codes = max(begin, first), min(end, last)
                    if codes[0] < codes[1]:
                        for found in finder.pairs_of(codes):
                            yield from self._by_group(found, groups)

        return self._cut.lazy_chunks(
            key_groups, having, {}, lambda numbers, groups: dict.fromkeys(groups, b"") | make(pieces(numbers, groups))
        )

    def _by_group(self, found: FoundPairs, wanted: set[int]) -> Iterator[tuple[int, FoundPairs]]:
        """Cut pairs by key group."""
        groups = self._groups(0, found.sides[0])[found.order]
        for group in np.unique(groups).tolist():
            if group in wanted:
                yield group, FoundPairs(found.sides, found.times_ms, found.order[groups == group])

    def _groups(self, side: int, columns: pa.RecordBatch) -> Array:
        own = self.memory.sides[side]
        assert own is not None
        return self._place.groups_of([columns.column(key) for key in own.keys])

    # --- LazyPart

    def num_entries(self) -> int:
        in_files = sum(segment.num_rows for side in self.segments for segment in side)
        return self.memory.num_entries() + in_files + self._held_rows

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        return dict(self.lazy_snapshot(key_groups))

    def lazy_snapshot(self, key_groups: Iterable[int]) -> Mapping[int, bytes]:
        key_groups = list(key_groups)
        if not self.is_spilled:
            chunks = chunks_of(self._grouped(self._records_in_memory()), key_groups)
            return chunks | {group: chunk for group, chunk in self.others.items() if group in set(key_groups)}
        kept = self._all()
        others = {group: chunk for group, chunk in self.memory.others.items() if group in set(key_groups)}
        having = [group for group in key_groups if group in others or self._has(group, kept)]
        return self._cut.lazy_chunks(
            key_groups,
            having,
            others,
            lambda numbers, groups: (
                dict.fromkeys(groups, b"") | chunks_of(self._grouped(self._records_of(numbers, kept)), groups)
            ),
        )

    def _has(self, group: int, kept: tuple[list[Segment], list[Segment]]) -> bool:
        codes = self._cut.codes_of(self._cut.of_group(group))
        return any(begin < end for side in kept for begin, end in (segment.between(codes) for segment in side))

    def _grouped(self, some: Iterable[SideRecords]) -> Iterator[tuple[SideRecords, Array]]:
        for records in some:
            yield records, self._groups(records.side, records.columns)

    # --- NotingPart

    def _arrived(self) -> tuple[int, int]:
        """Return the number of the next record, by side."""
        if self.is_spilled:
            return self._num_arrived, self._num_arrived
        left, right = (
            first + (0 if side is None else side.store.num_rows)
            for first, side in zip(self._first_arrivals, self.memory.sides, strict=True)
        )
        return left, right

    def _mark_of(self, checkpoint_id: int) -> JoinMark | None:
        return None if self.others else self._marks.of(checkpoint_id)

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> dict[int, bytes] | None:
        mark = self._mark_of(since_checkpoint_id)
        if mark is None:
            return None
        every = range(self._cut.number)
        some = (
            self._records_of(every, self._all(), mark.arrived)
            if self.is_spilled
            else self._records_in_memory(mark.arrived)
        )
        return self._increment(self._told(mark), key_groups, some)

    def _told(self, mark: JoinMark) -> Told:
        """Return what an increment says of what it builds on: all of that came before the watermarks since."""
        if mark.num_watermarks == self._marks.num_watermarks:
            return Told()
        return Told(self._removals.floors_at(self.watermark_ms), watermark_ms=self.watermark_ms)

    def _increment(self, told: Told, key_groups: Iterable[int], some: Iterable[SideRecords]) -> dict[int, bytes]:
        groups = list(key_groups)
        layers = chunks_of(self._grouped(some), groups)
        return {group: told.chunk(layers.get(group, b"")) for group in groups}

    def note_delta(self, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int) -> NotedDelta | None:
        mark = self._mark_of(since_checkpoint_id)
        if mark is None or self.is_spilled:
            return None
        num_rows = sum(self._arrived()) - sum(mark.arrived)
        if num_rows > entries_max * _ROWS_PER_ENTRY:
            return None
        copied, told, groups = list(self._records_in_memory(mark.arrived)), self._told(mark), list(key_groups)
        return NotedDelta(num_rows // _ROWS_PER_ENTRY, lambda: self._increment(told, groups, copied))

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        """Records that are gone count: they are in what the increment builds on."""
        mark = self._mark_of(since_checkpoint_id)
        if mark is None:
            return None
        added = max(own - before for own, before in zip(self._arrived(), mark.arrived, strict=True))
        if not self.is_spilled:
            added = sum(self._arrived()) - sum(mark.arrived)
        changed = added + max(0, mark.num_entries + added - self.num_entries())
        return changed if changed <= at_most else None

    def begin_epoch(self, checkpoint_id: int) -> None:
        self._marks.begin(checkpoint_id, self._arrived(), self.num_entries())

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self._marks.forget(until_checkpoint_id, kept_ids)

    # --- restoring

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        told = {group: own for group, chunk in chunks.items() if (own := told_of(chunk)) is not None}
        self._begin_layer(chunks.keys())
        if told:
            self._take_up_told(next(iter(told.values())))  # of one former subtask: each says the same
        for group, chunk in chunks.items():
            self._restore(group, chunk)

    def _begin_layer(self, groups: Iterable[int]) -> None:
        """Of several former subtasks, the layers come one after the other; an increment has all of its key groups."""
        if self._origin.isdisjoint(groups):
            if self.is_spilled:
                self._write_held()
            self._origin, self._origin_begins = set(), self._places()
        self._origin.update(groups)

    def _places(self) -> tuple[int, int]:
        if self.is_spilled:
            return len(self.segments[0]), len(self.segments[1])
        left, right = (0 if side is None else side.store.num_rows for side in self.memory.sides)
        return left, right

    def _take_up_told(self, told: Told) -> None:
        """Forget what is gone of the layers below."""
        if told.floors_ms is None:
            return
        if self.is_spilled:
            self._write_held()
            for segments, begin, floor_ms in zip(self.segments, self._origin_begins, told.floors_ms, strict=True):
                for segment in segments[begin:]:
                    segment.floor_ms = max(segment.floor_ms, floor_ms)
            return
        for side, (begin, end) in enumerate(zip(self._origin_begins, self._places(), strict=True)):
            self._gone.append((side, begin, end, told.floors_ms[side]))

    def _forget_gone(self) -> None:
        """Forget what is gone of the rows in memory, of all layers at once."""
        gone, self._gone = self._gone, []
        begins = list(self._origin_begins)
        for number, side in enumerate(self.memory.sides):
            mine = [own for own in gone if own[0] == number]
            if side is None or not mine:
                continue
            is_left = np.ones(side.store.num_rows, np.bool_)
            for _, begin, end, floor_ms in mine:
                is_left[begin:end] &= side.store.times_ms[begin:end] > floor_ms
            if not is_left.all():
                begins[number] = int(np.count_nonzero(is_left[: begins[number]]))
                side.store.keep(np.flatnonzero(is_left))
        if not self.is_spilled:
            self._origin_begins = begins[0], begins[1]

    def _restore(self, group: int, chunk: bytes) -> None:
        found = layer_of(chunk)[1]
        self._last_restored = max([self._last_restored, *(int(records.arrivals.max()) for records in found)])
        is_known = group not in self.others
        if not (is_known and all(self.define(records.side, records.columns.schema) for records in found)):
            self.others[group] = self.others.get(group, b"") + chunk
            return
        for records in found:
            if self.is_spilled:
                self.hold(records.side, records.columns, records.times_ms)
            else:
                slots = self.memory.slots_of(records.side, records.columns)
                self.memory.append(records.side, records.columns, records.times_ms, slots)
        if self.is_spilled and self.filled >= 1:
            self._write_held()
        elif not self.is_spilled and self.memory.nbytes > self._place.bytes_max * _RESTORED_SHARE:
            self.spill()

    def settle(self) -> None:
        """All has been restored: none of it has to be looked for partners for. Numbers go on behind those in the
        checkpoint, on which increments may build."""
        if self.is_spilled:
            self._write_held()
            self._num_arrived = max(self._num_arrived, self._last_restored + 1)
        else:
            self._forget_gone()
            rows = self._places()
            self._first_arrivals = [max(0, self._last_restored + 1 - own) for own in rows]
        self._origin, self._origin_begins = set(), (0, 0)


def _are_small(before: Segment, last: Segment) -> bool:
    """Whether two segments are to become one: as in a binary counter, so that a record is written a few times only."""
    sizes = before.num_rows, last.num_rows
    return sizes[0] < 2 * sizes[1] and sum(sizes) <= _SEGMENT_ROWS
