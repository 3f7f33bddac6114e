"""State of windows over columns that goes to files of the local disk when it is more than its share of memory.

A pane (slice of time) is in memory, in ``window_state``, or in files (``spilled_panes``), cut by hash of the key. Which
goes first is said by who knows the windows: those that have fired already, then those that fire last. Records for a
pane in files wait, as columns, until a window of it fires; then its partitions are folded piece by piece, each in a
state of its own that is forgotten afterwards. So a record costs one write and one read, however large the state is, and
memory is what waits, a piece, and the panes that have stayed. Where records of a pane become many beside its keys, they
are folded earlier, a piece with each batch.

Folding cannot fail later: nulls that only rows can take, and sums that could leave 64 bits, are refused by ``hold``.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.operators import window_chunks
from engine.operators.spilled_panes import SpilledPanes
from engine.operators.window_changes import PaneNotes, WindowChanges
from engine.operators.window_chunks import Increment, WindowPiece
from engine.operators.window_firing import slots_beside
from engine.operators.window_state import WindowState
from engine.operators.window_sums import SUM_MAX
from engine.state.column_chunks import empty_chunk, streams
from engine.state.hash_partitions import HashPartitions
from engine.state.noted import NotedDelta
from engine.state.spilling_slots import allow_open_files
from engine.time.windows import TIME_MIN_MS

Array = np.ndarray[Any, Any]

__all__ = ["SpillingWindows"]

NUM_PARTITIONS: Final = 128
#: Of the share of memory: panes beside others that are in files, records that wait (being written they need three times
#: as much), and a piece that is folded.
_PANES_SHARE: Final = 3 / 8
_WAITING_SHARE: Final = 1 / 8
_PIECE_SHARE: Final = 1 / 8
#: Records that wait are written when they are so many, however large the share; a piece of a pane that goes to files is
#: of so many bytes: some ten milliseconds either way.
_WAITING_BYTES_MAX: Final = 8 << 20
_MOVED_BYTES_MAX: Final = 16 << 20
#: Slots that are looked through for a piece at most, by rows that it may have; it has half as many more at most.
_SLOTS_PER_MOVED: Final = 8
#: What a key takes in a state beside its accumulators: key, index, and a record that waits.
_BYTES_PER_KEY: Final = 96
#: Rows of columns that are noted in the time of an entry of objects.
_ROWS_PER_ENTRY: Final = 8


@final
class SpillingWindows:
    """Implements ``parts.LazyPart`` and ``parts.NotingPart``. ``state``: what is in memory. ``bytes_max``: the share of
    memory."""

    def __init__(
        self,
        state: WindowState,
        max_parallelism: int,
        key_groups: range,
        *,
        is_tuple: bool,
        folder: str,
        bytes_max: int,
    ) -> None:
        self.state = state
        self._cut = HashPartitions(NUM_PARTITIONS, max_parallelism, key_groups, is_tuple=is_tuple)
        self._bytes_max = bytes_max
        self.spilled = SpilledPanes(self._cut.number, folder, min(int(bytes_max * _WAITING_SHARE), _WAITING_BYTES_MAX))
        self._key_groups = key_groups
        self._changes = state.changes = WindowChanges(self._cut.number)
        #: panes that are in both places, on their way to files, and the first slot of each that is not there
        self._moving: dict[int, int] = {}
        #: panes that follow them, the next one last: not one by one, as what stays is compacted each time
        self._leaving: list[int] = []
        #: panes have gone while slots could not move: memory is to be given back
        self._compacts_late = False
        #: folds a pane in files, piece by piece
        self._folding: tuple[int, list[range]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.state.nbytes + self.spilled.nbytes

    def clear(self) -> None:
        """Forget everything, types too."""
        self._moving, self._leaving = {}, []
        self.state.keeps_slots = False
        self.state.clear()
        self.spilled.clear()
        self._changes.clear()

    def bound_of_sums(self) -> float:
        """Return what no sum of integers is beyond, in any pane."""
        in_memory = map(self.state.bound_of_pane, self.state.panes)
        in_files = (self.spilled.bound_of([start]) for start in self.spilled.starts())
        return max([0.0, *in_memory, *in_files])

    # --- from memory to files

    def has_too_much(self) -> bool:
        """Whether further panes have to go to files, where some are already."""
        is_over = not self._moving and not self._leaving
        return is_over and bool(self.spilled) and self.state.nbytes > self._bytes_max * _PANES_SHARE

    def make_room(self, order: Callable[[int], Any]) -> None:
        """Begin to let half of the panes go to files, the greatest by ``order`` first; each ``step`` goes on with it.
        When it is not enough it has to be done again: others may be the greatest by then."""
        left = sorted(self.state.panes, key=order)
        self._leaving = left[len(left) // 2 :]
        self.step()

    def evict(self, starts: Iterable[int]) -> None:
        """Let these panes go to files now, as far as they are in memory."""
        here = [start for start in starts if start in self.state.panes]
        for start in here:
            self._begin_to_move(start)
            while start in self._moving:
                self._move(start)
        if here:
            self._compact()

    def settle(self, starts: Iterable[int] | None = None) -> None:
        """Let what is left go to files of these panes, or of all, that are on their way."""
        self.evict(list(self._moving) if starts is None else [start for start in starts if start in self._moving])

    def _begin_to_move(self, start: int) -> None:
        if start in self._moving:
            return
        allow_open_files()
        self.spilled.add_pane(start)
        self.spilled.raise_bound(start, self.state.bound_of_pane(start), np.inf)
        self._moving[start] = 0
        self.state.keeps_slots = True

    def _move(self, start: int) -> None:
        """Let the next slots of a pane go to files; forget it when these are the last."""
        state, pane = self.state, self.state.panes[start]
        rows_max = self._rows_per_step(state)
        begin = end = self._moving[start]
        slots = np.zeros(0, np.int64)
        while end < min(pane.values.shape[0], begin + rows_max * _SLOTS_PER_MOVED) and 2 * slots.size <= rows_max:
            some = pane.slots(end, end + rows_max)
            slots, end = np.concatenate([slots, some]), min(pane.values.shape[0], end + rows_max)
        if slots.size:
            keys = state._table.keys_of(slots)
            rows = state._rows_of(start, pane, slots, keys)
            partitions = self._cut.of_rows(keys)
            self.spilled.add_folded(start, rows, partitions)
            self._changes.to_files(start, slots, partitions)
        self._moving[start] = end
        pane.give_back(begin, end)
        if end == pane.values.shape[0]:
            self._changes.forget_slots([start])
            state.drop([start])  # before slots may move: ``_compact`` looks whether they have to
            self._forget_moving(start)

    def _forget_moving(self, start: int) -> None:
        self._moving.pop(start, None)
        self.state.keeps_slots = bool(self._moving)

    def _compact(self) -> None:
        """Give memory back when panes have gone."""
        if not self.state.panes:
            self._forget_all()
        elif not self._moving:
            # A checkpoint comes between pieces of a window that fires: who goes on with it knows its slots by number,
            # and so does the note of which of them have fired.
            self._compacts_late = self.state.is_firing
            if not self._compacts_late:
                self.state.drop([], compact=True)

    def _go_on_moving(self) -> bool:
        """Do a piece of what ``make_room`` has begun; False when it is over."""
        while self._leaving and not self._moving:
            start = self._leaving.pop()
            if start in self.state.panes:
                self._begin_to_move(start)
        if not self._moving:
            return False
        self._move(next(iter(self._moving)))
        if not self._moving and not self._leaving:
            self._compact()
        return True

    def _forget_all(self) -> None:
        """Give the memory back, as soon as there is no pane; keep what was restored, and the types."""
        layout, others = self.state.layout, self.state.others
        self.state.clear()
        if layout is not None:
            self.state.define(layout.schema, layout.keys)
        self.state.others = others

    def hold(self, start: int, columns: pa.RecordBatch, rows: Array) -> bool:
        """Let these rows of a batch wait for a pane that is in files; False, and nothing is done, where only the row
        operator can take them."""
        state = self.state
        if rows.size < columns.num_rows:
            columns = columns.take(arrow_of(rows))
        if not state.can_take_later(columns):
            return False
        if not self.spilled.raise_bound(start, state.bound_of_records(columns), SUM_MAX):
            return False
        assert state.layout is not None
        partitions = self._cut.of_rows([columns.column(key) for key in state.layout.keys])
        read = [columns.column(index) for index in state.fields_read()]
        self.spilled.hold(
            start, pa.RecordBatch.from_arrays(read, names=[str(at) for at in range(len(read))]), partitions
        )
        self._changes.mark_partitions(start, partitions)
        return True

    def drop(self, starts: Iterable[int]) -> None:
        """Forget panes, wherever they are."""
        starts = set(starts)
        for start in starts:
            self._forget_moving(start)
            self._changes.drop(start, self._num_rows_of(start))
        here = starts.intersection(self.state.panes)
        if here:
            self.state.drop(here, compact=self._compacts_late)
            self._compacts_late = False
            if self.spilled and not self.state.panes:
                self._forget_all()
        self.spilled.drop(starts.intersection(self.spilled.starts()))

    def _num_rows_of(self, start: int) -> int:
        pane = self.state.panes.get(start)
        if pane is not None:
            return int(pane.values.shape[0])
        return self.spilled.num_rows_of(start) if start in self.spilled else 0

    # --- from files

    def pieces_of(self, starts: Iterable[int], within: range | None = None) -> list[range]:
        """Return partitions in pieces, of each of which these panes fit into memory."""
        return self.spilled.ranges(starts, self._rows_per_piece(self.state), within)

    def _rows_per_piece(self, state: WindowState) -> int:
        return max(1 << 10, int(self._bytes_max * _PIECE_SHARE) // self._bytes_per_key(state))

    def _rows_per_step(self, state: WindowState) -> int:
        """Return how many rows are moved, or folded, while others wait."""
        return max(1, min(self._rows_per_piece(state), _MOVED_BYTES_MAX // self._bytes_per_key(state)))

    @staticmethod
    def _bytes_per_key(state: WindowState) -> int:
        return _BYTES_PER_KEY + 8 * state._width

    def by_partition(self, columns: pa.RecordBatch) -> Iterator[tuple[range, Array]]:
        """Yield the partitions that have rows, one by one, with the numbers of these rows, rising."""
        assert self.state.layout is not None
        partitions = self._cut.of_rows([columns.column(key) for key in self.state.layout.keys])
        for partition in np.unique(partitions).tolist():
            yield range(partition, partition + 1), np.flatnonzero(partitions == partition)

    def load(self, starts: Iterable[int], partitions: range, *, with_tail: bool = True) -> WindowState:
        """Return these partitions of panes that are in files, folded, in a state of their own."""
        layout = self.state.layout
        assert layout is not None
        state = self.state.another()
        state.watermark_ms = self.state.watermark_ms
        state.define(layout.schema, layout.keys)
        for start in starts:
            if start in self.spilled:
                for rows in self.spilled.rows_of(start, partitions, with_tail=with_tail):
                    if rows.is_folded:
                        state._put(rows.columns, self.state.watermark_of(start))
                    else:
                        self._fold(state, start, rows.columns)
        return state

    def _fold(self, state: WindowState, start: int, held: pa.RecordBatch) -> None:
        layout = state.layout
        assert layout is not None
        read = dict(zip(state.fields_read(), held.columns, strict=True))
        arrays = [
            read[index] if index in read else pa.nulls(held.num_rows, kind)
            for index, kind in enumerate(layout.schema.types)
        ]
        columns = pa.RecordBatch.from_arrays(arrays, names=layout.schema.names)
        is_begun = state.begin_batch(columns, is_held=True)
        assert is_begun, "a null was held that only rows can take"
        slots = state.slots_of(columns)
        is_done = state.take_up(start, np.arange(held.num_rows, dtype=np.int32), slots)
        assert is_done, "a sum was held that leaves 64 bits"

    def write_back(self, state: WindowState, start: int, partitions: range, *, has_news: bool = False) -> None:
        """Let what was loaded of a pane, and was folded, stand for what its files have; ``flush`` came before.
        ``has_news``: other records have come to it."""
        if start not in state.panes:
            return
        if has_news:
            self._changes.mark_partitions(start, slice(partitions.start, partitions.stop))
        slots = state.panes[start].slots()
        keys = state._table.keys_of(slots)
        rows = state._rows_of(start, state.panes[start], slots, keys)
        self.spilled.replace(start, partitions, rows, self._cut.of_rows(keys))

    def step(self) -> None:
        """Go on with panes on their way to files, or fold some records of panes that have many."""
        if self._go_on_moving():
            return
        if self._folding is None:
            start = self.spilled.to_be_folded()
            if start is None:
                return
            self._folding = start, self.spilled.ranges([start], self._rows_per_step(self.state))
        start, pieces = self._folding
        if start in self.spilled and pieces:
            partitions = pieces.pop()
            if self.spilled.has_records(start, partitions):
                self.write_back(self.load([start], partitions, with_tail=False), start, partitions)
        if start not in self.spilled or not pieces:
            self._folding = None

    # --- LazyPart

    def num_entries(self) -> int:
        return self.state.num_entries() + self.spilled.num_rows

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        return dict(self.lazy_snapshot(key_groups))

    def lazy_snapshot(self, key_groups: Iterable[int]) -> Mapping[int, bytes]:
        key_groups = list(key_groups)
        if not self.spilled:
            return window_chunks.snapshot(self.state, key_groups)
        self.settle()  # in the child of a snapshot, as a rule
        wanted, starts = set(key_groups), self.spilled.starts()
        others: dict[int, bytes] = {}
        for other in self.state.others:
            others |= window_chunks.snapshot(other, wanted)
        in_memory: dict[int, list[WindowPiece]] = {}
        for piece in window_chunks.pieces(self.state, wanted):
            in_memory.setdefault(piece[0], []).append(piece)

        def pieces(within: range, in_reach: set[int]) -> Iterator[WindowPiece]:
            for group in in_reach:
                yield from in_memory.get(group, ())
            for partitions in self.pieces_of(starts, within):
                yield from self._pieces_in_files(starts, partitions, in_reach)

        def chunks(within: range, in_reach: set[int]) -> dict[int, bytes]:
            metadata = window_chunks.metadata(self.state)
            return dict.fromkeys(in_reach, empty_chunk(metadata)) | dict(streams(pieces(within, in_reach), metadata))

        having = [
            group
            for group in key_groups
            if group in others or group in in_memory or self.pieces_of(starts, self._cut.of_group(group))
        ]
        return self._cut.lazy_chunks(key_groups, having, others, chunks)

    def _pieces_in_files(self, starts: Iterable[int], partitions: range, wanted: set[int]) -> Iterator[WindowPiece]:
        """Yield the rows of these partitions, folded, in pieces of chunks."""
        assert self.state.layout is not None
        place_of_start = len(self.state.layout.keys)
        for group, rows, _ in window_chunks.pieces(self.load(starts, partitions), wanted):
            start = rows.column(place_of_start)[0].as_py()
            restored_ms = self.state.restored_groups.get(start, {}).get(group, TIME_MIN_MS)
            yield window_chunks.piece(group, rows, max(self.state.watermark_ms, restored_ms))

    # --- NotingPart

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> dict[int, bytes] | None:
        self.settle()
        notes = self._notes_since(since_checkpoint_id)
        if notes is None:
            return None
        if self.state.layout is None:
            return {}  # there was nothing ever, or ``clear`` would have forgotten the epochs
        key_groups = list(key_groups)
        pieces = self._changed_pieces(notes, set(key_groups))
        return self._increment(notes).chunks(pieces, window_chunks.metadata(self.state), key_groups)

    def note_delta(self, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int) -> NotedDelta | None:
        """The rows are copied now; what is in files is read by a child, and so are distinct values unless they are few,
        as all of a pane are looked through."""
        notes = self._notes_since(since_checkpoint_id)
        if notes is None or notes.partitions or self.state.layout is None:
            return None
        rows_max = entries_max * _ROWS_PER_ENTRY
        num_rows = notes.num_slots(rows_max) + sum(map(self.state.num_distinct, notes.slots))
        if num_rows > rows_max:
            return None
        key_groups = list(key_groups)
        copied = list(window_chunks.rows_of_panes(self.state, notes.slots_of))
        increment, metadata = self._increment(notes), window_chunks.metadata(self.state)

        def chunks() -> dict[int, bytes]:
            wanted = set(key_groups)
            pieces = (piece for rows in copied for piece in rows.pieces(wanted))
            return increment.chunks(pieces, metadata, key_groups)

        return NotedDelta(num_rows // _ROWS_PER_ENTRY, chunks)

    def _notes_since(self, checkpoint_id: int) -> PaneNotes | None:
        # Of a pane that is firing it is not noted which keys are gone.
        return None if self.state.others or self.state.fired else self._changes.since(checkpoint_id)

    def _changed_pieces(self, notes: PaneNotes, wanted: set[int]) -> Iterator[WindowPiece]:
        for rows in window_chunks.rows_of_panes(self.state, notes.slots_of):
            yield from rows.pieces(wanted)
        for start, marks in notes.partitions.items():
            for begin, end in np.flatnonzero(np.diff(marks, prepend=0, append=0)).reshape(-1, 2).tolist():
                for partitions in self.pieces_of([start], range(begin, end)):
                    yield from self._pieces_in_files([start], partitions, wanted)

    def _increment(self, notes: PaneNotes) -> Increment:
        now_ms = self.state.watermark_ms
        return Increment(now_ms, tuple(sorted(notes.gone)), is_later=now_ms > notes.watermark_ms)

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        """Rows that are gone count: they are in what the increment builds on. So do chunks that only say the time."""
        notes = self._notes_since(since_checkpoint_id)
        if notes is None:
            return None
        in_files = (self.spilled.num_rows_of(start, marks) for start, marks in notes.partitions.items())
        changed = notes.num_slots(at_most) + sum(in_files) + sum(notes.gone.values())
        changed += len(self._key_groups) if self._increment(notes).says_more else 0
        return changed if changed <= at_most else None

    def begin_epoch(self, checkpoint_id: int) -> None:
        self._changes.begin_epoch(checkpoint_id, self.state.watermark_ms, self.state.nbytes)

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self._changes.forget_epochs(until_checkpoint_id, kept_ids)

    # --- restoring

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        self._take_up_told({group: told for group, chunk in chunks.items() if (told := Increment.of(chunk))})
        for group, chunk in chunks.items():
            window_chunks.restore(self.state, group, chunk)
            self.evict(start for start in list(self.state.panes) if start in self.spilled)
            if self.state.nbytes > self._bytes_max * _PANES_SHARE:
                self.make_room(lambda start: start)
                while self._go_on_moving():
                    pass

    def _take_up_told(self, told: Mapping[int, Increment]) -> None:
        """Take up what increments of key groups say of the layers below them."""
        gone: dict[int, set[int]] = {}
        for group, increment in told.items():
            for start in increment.gone:
                gone.setdefault(start, set()).add(group)
        for state in (self.state, *self.state.others) if told else ():
            for start, groups in gone.items():
                self._forget(state, start, groups)
            for start, times_ms in state.restored_groups.items():
                for group in times_ms.keys() & told.keys():
                    times_ms[group] = max(times_ms[group], told[group].watermark_ms)
                state.restored_panes[start] = min(times_ms.values())

    def _forget(self, state: WindowState, start: int, groups: set[int]) -> None:
        """Forget what these key groups have in a restored pane."""
        times_ms = state.restored_groups.get(start, {})
        left = {group: time_ms for group, time_ms in times_ms.items() if group not in groups}
        if len(left) == len(times_ms):
            return
        if not left:  # as a rule: one subtask had all of them
            if start in state.panes:
                state.drop([start])
            else:
                self.spilled.drop([start])
            del state.restored_groups[start], state.restored_panes[start]
            return
        state.restored_groups[start] = left
        if start in state.panes:
            self._forget_in(state, start, groups)
            return
        for partitions in self.pieces_of([start]):
            loaded = self.load([start], partitions)
            self._forget_in(loaded, start, groups)
            self.write_back(loaded, start, partitions)

    @staticmethod
    def _forget_in(state: WindowState, start: int, groups: set[int]) -> None:
        slots = state.panes[start].slots()
        state.forget(start, np.setdiff1d(slots, slots_beside(state, slots, list(groups))))
