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

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.arrow_arrays import arrow_of
from engine.operators.spilled_panes import SpilledPanes
from engine.operators.window_state import WindowPiece, WindowState
from engine.state.chunks import LazyChunks
from engine.state.column_chunks import empty_chunk, streams
from engine.state.hash_partitions import HashPartitions
from engine.state.spilling_slots import allow_open_files

Array = np.ndarray[Any, Any]

__all__ = ["SUM_MAX", "SpillingWindows"]

NUM_PARTITIONS: Final = 128
#: Of the share of memory: panes beside others that are in files, what is left of them when some have to go, records
#: that wait (being written they need three times as much), and a piece that is folded.
_PANES_SHARE: Final = 3 / 8
_LEFT_SHARE: Final = 1 / 4
_WAITING_SHARE: Final = 1 / 8
_PIECE_SHARE: Final = 1 / 8
#: A sum of integers that may come so near to 64 bits is left to rows; reckoned with floats.
SUM_MAX: Final = float(1 << 62)
#: What a key takes in a state beside its accumulators: key, index, and a record that waits.
_BYTES_PER_KEY: Final = 96


@final
class SpillingWindows:
    """Implements ``parts.LazyPart``. ``state``: what is in memory. ``bytes_max``: the share of memory."""

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
        self.spilled = SpilledPanes(self._cut.number, folder, int(bytes_max * _WAITING_SHARE))
        #: folds a pane in files, piece by piece
        self._folding: tuple[int, list[range]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.state.nbytes + self.spilled.nbytes

    def clear(self) -> None:
        """Forget everything, types too."""
        self.state.clear()
        self.spilled.clear()

    # --- from memory to files

    def has_too_much(self) -> bool:
        """Whether panes have to go to files, where some are already."""
        return bool(self.spilled) and self.state.nbytes > self._bytes_max * _PANES_SHARE

    def make_room(self, order: Callable[[int], Any]) -> None:
        """Let panes go to files, the greatest by ``order`` first, until there is room in memory again."""
        left = sorted(self.state.panes, key=order)
        while left and self.state.nbytes > self._bytes_max * _LEFT_SHARE:
            stay = len(left) // 2  # not one by one: what is left is compacted each time
            self.evict(left[stay:])
            del left[stay:]

    def evict(self, starts: Iterable[int]) -> None:
        """Let these panes go to files, as far as they are in memory."""
        allow_open_files()
        state = self.state
        here = [start for start in starts if start in state.panes]
        for start in here:
            self.spilled.add_pane(start)
            self.spilled.raise_bound(start, state.bound_of_pane(start), np.inf)
            slots = state.panes[start].slots()
            piece = self._rows_per_piece(state)
            for at in range(0, slots.size, piece):
                part = slots[at : at + piece]
                keys = state._table.keys_of(part)
                rows = state._rows_of(start, state.panes[start], part, keys)
                self.spilled.add_folded(start, rows, self._cut.of_rows(keys))
        if len(here) == len(state.panes):
            self._forget_all()
        elif here:
            state.drop(here, compact=True)

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
        return True

    def drop(self, starts: Iterable[int]) -> None:
        """Forget panes, wherever they are."""
        starts = set(starts)
        here = starts.intersection(self.state.panes)
        if here:
            self.state.drop(here)
            if self.spilled and not self.state.panes:
                self._forget_all()
        self.spilled.drop(starts.intersection(self.spilled.starts()))

    # --- from files

    def pieces_of(self, starts: Iterable[int], within: range | None = None) -> list[range]:
        """Return partitions in pieces, of each of which these panes fit into memory."""
        return self.spilled.ranges(starts, self._rows_per_piece(self.state), within)

    def _rows_per_piece(self, state: WindowState) -> int:
        return max(1 << 10, int(self._bytes_max * _PIECE_SHARE) // (_BYTES_PER_KEY + 8 * state._width))

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
        is_begun = state.begin_batch(columns)
        assert is_begun, "a null was held that only rows can take"
        slots = state.slots_of(columns)
        is_done = state.take_up(start, np.arange(held.num_rows, dtype=np.int32), slots)
        assert is_done, "a sum was held that leaves 64 bits"

    def write_back(self, state: WindowState, start: int, partitions: range) -> None:
        """Let what was loaded of a pane, and has changed, stand for what its files have; ``flush`` came before."""
        if start not in state.panes:
            return
        slots = state.panes[start].slots()
        keys = state._table.keys_of(slots)
        rows = state._rows_of(start, state.panes[start], slots, keys)
        self.spilled.replace(start, partitions, rows, self._cut.of_rows(keys))

    def step(self) -> None:
        """Fold some records of panes that have many."""
        if self._folding is None:
            start = self.spilled.to_be_folded()
            if start is None:
                return
            self._folding = start, self.pieces_of([start])
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
            return self.state.snapshot(key_groups)
        wanted, starts = set(key_groups), self.spilled.starts()
        others: dict[int, bytes] = {}
        for other in self.state.others:
            others |= other.snapshot(wanted)
        in_memory: dict[int, list[WindowPiece]] = {}
        for piece in self.state.pieces(wanted):
            in_memory.setdefault(piece[0], []).append(piece)
        made: dict[int, bytes] = {}

        def pieces(within: range, in_reach: set[int]) -> Iterator[WindowPiece]:
            for group in in_reach:
                yield from in_memory.get(group, ())
            for partitions in self.pieces_of(starts, within):
                for group, rows, _ in (loaded := self.load(starts, partitions)).pieces(in_reach):
                    start = rows.column(self._place_of_start()).take([0])[0].as_py()
                    yield self.state.piece(group, rows, start)
                del loaded

        def chunk_of(group: int) -> bytes:
            if group not in made:
                made.clear()
                within = self._cut.of_group(group)
                in_reach = {other for other in key_groups if self._cut.of_group(other) == within}
                made.update(dict.fromkeys(in_reach, empty_chunk(self.state.metadata())))
                made.update(streams(pieces(within, in_reach), self.state.metadata()))
            return others.get(group) or made[group]

        having = [
            group
            for group in key_groups
            if group in others or group in in_memory or self.pieces_of(starts, self._cut.of_group(group))
        ]
        return LazyChunks({group: group for group in having}, chunk_of)

    def _place_of_start(self) -> int:
        assert self.state.layout is not None
        return len(self.state.layout.keys)

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for group, chunk in chunks.items():
            self.state.restore({group: chunk})
            self.evict(start for start in list(self.state.panes) if start in self.spilled)
            if self.state.nbytes > self._bytes_max * _PANES_SHARE:
                self.make_room(lambda start: start)
