"""Columnar keyed state that goes to files of the local disk when it is more than its share of memory.

It begins as one ``SlotState``. When told to it is cut by hash into partitions, each a ``SlotState`` of its own: of
some the arrays stay in memory, of the others they lie in files, index included, so that one comes back as fast as it
can be read. Nothing stands still for the cut: a list of slots is made piece by piece while the state goes on, and
slots move when their partition is loaded for the first time. Nothing is slower for keys on disk than for a sequential
read and write of their partition, so the operator takes up many rows of a partition at once (``operators/held_rows``).

The files go with the process, and a forked child reads them as they were at the fork (``array_files``).
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from engine.state.array_files import ArrayFile
from engine.state.column_chunks import streams
from engine.state.hash_partitions import HashPartitions
from engine.state.noted import NotedDelta
from engine.state.slot_expiry import WRITTEN, Expiry
from engine.state.slot_state import SlotState

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["HELD_SHARE", "NUM_PARTITIONS", "SpillingSlots", "allow_open_files"]

#: Of the share of memory: what records may have that wait for a pass.
HELD_SHARE: Final = 1 / 8
#: Each costs a third of a millisecond whenever it is taken up, and open files; so there are fewer where a pass has few
#: rows for each, as rows are wide. Of a partition the pages of a pass's rows have to fit into memory.
NUM_PARTITIONS: Final = 128
_PARTITIONS_MIN: Final = 32
_ROWS_PER_PARTITION: Final = 2048
#: Enough for a slot with hundreds of such operators.
_OPEN_FILES: Final = 1 << 16
#: Slots whose partition is found out at once: their numbers within such a piece have 16 bits.
_PIECE_SLOTS: Final = 1 << 16
#: Slots that are cut for each row that comes in: while there is a cut the state grows by an eighth at most.
_CUT_PER_ROW: Final = 8


@final
class SpillingSlots:
    """Implements ``parts.LazyPart`` and ``parts.NotingPart``. ``folder``: on a local disk; ``bytes_max``: restoring
    takes so much memory at most, but for a partition and a chunk."""

    def __init__(
        self,
        max_parallelism: int,
        key_groups: range,
        *,
        is_tuple: bool,
        folder: str,
        bytes_max: int,
        expiry: Expiry | None = None,
    ) -> None:
        self._max_parallelism = max_parallelism
        self._is_tuple = is_tuple
        self._folder = folder
        self._bytes_max = bytes_max
        self._expiry = expiry
        #: all there is; when it has been cut an empty one, with the types and the note
        self.slots = SlotState(max_parallelism, is_tuple=is_tuple, expiry=expiry)
        self._partitions: list[_Partition] = []
        #: of partitions in memory, without the one that is being changed
        self._resident_bytes = 0
        #: what becomes the partitions, piece by piece, while ``slots`` goes on
        self._cutting: _CutSlots | None = None
        #: partitions of which nothing was ever loaded, and the memory that all of them together still need
        self._num_unmoved = self._unmoved_bytes = 0
        self._key_groups = key_groups
        self._cut = self._cut_into(NUM_PARTITIONS)
        #: restored from subtasks whose records were of other types, when the rest had been cut already
        self._others: list[SlotState] = []
        self._forgotten: tuple[int, tuple[int, ...]] = 0, ()

    @property
    def is_spilled(self) -> bool:
        return bool(self._partitions)

    @property
    def has_others(self) -> bool:
        """Whether there are keys of other types, with which only rows can go on."""
        return bool(self._others or self.slots.others)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.slots.nbytes + self._resident_bytes + self._unmoved_bytes

    # --- partitions

    def partitions_of(self, keys: Sequence[pa.Array]) -> Array:
        """Return the number of each row's partition, uint16."""
        return self._cut.of_rows(keys)

    def _cut_into(self, number: int) -> HashPartitions:
        return HashPartitions(number, self._max_parallelism, self._key_groups, is_tuple=self._is_tuple)

    def _num_partitions(self) -> int:
        """Return into how many what is in memory is to be cut: a power of two."""
        row_bytes = max(1, self.slots.nbytes // max(1, self.slots.num_slots))
        rows = int(self._bytes_max * HELD_SHARE) // row_bytes
        wanted = 1 << (rows // _ROWS_PER_PARTITION).bit_length()
        return min(NUM_PARTITIONS, max(_PARTITIONS_MIN, wanted))

    @property
    def is_being_cut(self) -> bool:
        """Whether ``spill`` has begun and is not over: slots must keep their numbers."""
        return self._cutting is not None

    def spill(self, num_rows: int | None = None) -> None:
        """Cut what is in memory into partitions, or go on with it by what is due with so many rows; None = all of it.
        It takes some 25 ns a key. Slots are moved when their partition is loaded for the first time. Increments have
        nothing to build on afterwards."""
        source = self.slots
        if self._cutting is None:
            allow_open_files()
            self._cut = self._cut_into(self._num_partitions())
            self._cutting = _CutSlots(source)
        cut = self._cutting
        end = source.num_slots if num_rows is None else cut.num_slots + max(1, num_rows * _CUT_PER_ROW)
        while cut.num_slots < min(end, source.num_slots):
            cut.add_piece(self.partitions_of)
        if cut.num_slots < source.num_slots:
            return
        self._cutting = None
        self.slots = self._empty()
        self.slots.others, source.others = source.others, []
        self._partitions = [_Partition() for _ in range(self._cut.number)]
        for number, part in enumerate(self._partitions):
            if cut.num_slots_of(number):
                part.unmoved = cut, number
                self._num_unmoved += 1
        self._unmoved_bytes = source.nbytes + cut.nbytes

    def _empty(self) -> SlotState:
        assert self.slots.table is not None
        made = SlotState(self._max_parallelism, is_tuple=self._is_tuple, expiry=self._expiry)
        made.define(self.slots.table.kinds, self._kinds())
        made.note = self.slots.note
        return made

    def _kinds(self) -> dict[str, pa.DataType]:
        return {name: column.kind for name, column in self.slots.columns.items() if name != WRITTEN}

    def take_longer(self, kinds: Mapping[str, pa.DataType]) -> None:
        """As ``SlotState.take_longer``."""
        self.slots.take_longer(kinds)
        for part in self._partitions:
            if part.state is not None:
                part.state.take_longer(kinds)

    def is_unmoved(self, number: int) -> bool:
        """Whether loading the partition moves its slots, which takes longer than to read it from a file."""
        return self._partitions[number].unmoved is not None

    def load(self, number: int) -> SlotState:
        """Return a partition to be changed; ``put_back`` follows."""
        part = self._partitions[number]
        self._resident_bytes -= part.held_bytes
        part.held_bytes = 0
        if part.state is None:
            part.state = self._read(part, take=True)
            part.missed = []
            if part.unmoved is not None:
                part.unmoved = None
                self._num_unmoved -= 1
                self._unmoved_bytes = self._unmoved_bytes if self._num_unmoved else 0
        return part.state

    def put_back(self, number: int, resident_max: int) -> None:
        """The partition was changed: it stays in memory if there is room for it."""
        part = self._partitions[number]
        assert part.state is not None
        part.held_bytes = part.state.nbytes
        self._resident_bytes += part.held_bytes
        # The one that has just been used goes first: all are used in turn, and the longest unused one comes next.
        for other in (part, *self._partitions):
            if self._resident_bytes <= resident_max:
                break
            if other.state is not None:
                self._resident_bytes -= other.held_bytes
                other.write(self._folder)

    def expect(self, number: int) -> None:
        """The partition will be loaded soon."""
        self._partitions[number].expect()

    def states(self) -> Iterator[SlotState]:
        """Yield all there is, to be read, in as many pieces as there are; each may be gone when the next one comes."""
        yield self.slots
        for part in self._partitions:
            if part.num_slots:
                yield self._peek(part)
        yield from (*self.slots.others, *self._others)

    def _peek(self, part: _Partition) -> SlotState:
        return self._read(part) if part.state is None else part.state

    def _read(self, part: _Partition, *, take: bool = False) -> SlotState:
        """Return a new copy of what lies in the file, or ``take`` it, with the epochs that have begun since."""
        state = part.take() if take else part.read()
        if state is None:
            state = self._empty()
            if part.unmoved is not None:
                cut, number = part.unmoved
                _put(state, cut.source, cut.slots_of(number))
        state.expiry = self._expiry
        state.take_longer(self._kinds())
        for epoch in part.missed:
            state.begin_epoch(epoch)
        state.forget_epochs(*self._forgotten)
        return state

    def clear(self) -> None:
        """Forget everything, types too."""
        self.slots.clear()
        self.close()
        self._others = []

    def close(self) -> None:
        """Give the files back."""
        for part in self._partitions:
            part.unmap()
        self._partitions, self._resident_bytes, self._cutting = [], 0, None
        self._num_unmoved = self._unmoved_bytes = 0

    # --- KeyedPart, LazyPart

    def num_entries(self) -> int:
        return (
            self.slots.num_entries()
            + sum(part.num_slots for part in self._partitions)
            + sum(other.num_slots for other in self._others)
        )

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        return dict(self.lazy_snapshot(key_groups))

    def lazy_snapshot(self, key_groups: Iterable[int]) -> Mapping[int, bytes]:
        key_groups = list(key_groups)
        if not self._partitions:
            return self.slots.snapshot(key_groups)
        others: dict[int, bytes] = {}
        for other in (*self.slots.others, *self._others):
            others |= other.snapshot(key_groups)  # a key group comes from one subtask

        def chunks(numbers: range, in_reach: set[int]) -> dict[int, bytes]:
            pieces = (
                piece for number in numbers for piece in self._pieces(self._partitions[number], in_reach, since=None)
            )
            found = streams(pieces, self.slots.metadata())
            return {group: found.get(group) or self._no_rows() for group in in_reach}

        wanted = [
            group
            for group in key_groups
            if group in others or any(self._partitions[number].num_slots for number in self._cut.of_group(group))
        ]
        return self._cut.lazy_chunks(key_groups, wanted, others, chunks)

    def _no_rows(self) -> bytes:
        """Return the chunk of a key group without any, of a partition that has those of several."""
        piece = self.slots.piece_of(np.zeros(0, np.int64))
        (chunk,) = streams([(0, piece)], self.slots.metadata()).values()
        return chunk

    def _pieces(self, part: _Partition, key_groups: Iterable[int], since: int | None) -> Iterator[tuple[int, Any]]:
        if part.num_slots and (since is None or part.num_changed(since)):
            state = self._peek(part)
            slots = np.arange(state.num_slots) if since is None else state.changed_since(since)
            assert slots is not None  # the partition knows the epoch
            yield from state.pieces(slots, key_groups)

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for group, chunk in chunks.items():
            if not self._partitions:
                self.slots.restore({group: chunk})
                if self.slots.nbytes > self._bytes_max:
                    self.spill()
                    for number in range(self._cut.number):
                        self.load(number)
                        self.put_back(number, self._bytes_max // 2)
                continue
            restored = SlotState(self._max_parallelism, is_tuple=self._is_tuple, expiry=self._expiry)
            restored.restore({group: chunk})
            if restored.has_types_of(self.slots):
                cut = _CutSlots(restored)
                while cut.num_slots < restored.num_slots:
                    cut.add_piece(self.partitions_of)
                for number in range(NUM_PARTITIONS):
                    if cut.num_slots_of(number):
                        _put(self.load(number), restored, cut.slots_of(number))
                        self.put_back(number, self._bytes_max // 2)
            elif restored.num_slots:
                self._others.append(restored)

    # --- NotingPart

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> dict[int, bytes] | None:
        if not self._partitions:
            return self.slots.snapshot_delta(key_groups, since_checkpoint_id)
        if not self._knows(since_checkpoint_id):
            return None
        key_groups = list(key_groups)
        pieces = (piece for part in self._partitions for piece in self._pieces(part, key_groups, since_checkpoint_id))
        return streams(pieces, self.slots.metadata())

    def note_delta(self, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int) -> NotedDelta | None:
        if self._partitions:
            return None  # what is on the disk is read by a child
        return self.slots.note_delta(key_groups, since_checkpoint_id, entries_max)

    def _knows(self, checkpoint_id: int) -> bool:
        return not self.has_others and all(part.knows(checkpoint_id) for part in self._partitions)

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        if not self._partitions:
            return self.slots.num_changed(since_checkpoint_id, at_most)
        if not self._knows(since_checkpoint_id):
            return None
        changed = sum(part.num_changed(since_checkpoint_id) for part in self._partitions)
        return changed if changed <= at_most else None

    def begin_epoch(self, checkpoint_id: int) -> None:
        self.slots.begin_epoch(checkpoint_id)
        for part in self._partitions:
            if part.state is None:
                part.missed.append(checkpoint_id)
            else:
                part.state.begin_epoch(checkpoint_id)

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        self.slots.forget_epochs(until_checkpoint_id, kept_ids)
        for part in self._partitions:
            if part.state is None:
                # What changed before a barrier that is forgotten counts for the next one: as ``SlotState`` does it.
                part.missed = [epoch for epoch in part.missed if epoch >= until_checkpoint_id or epoch in kept_ids]
            else:
                part.state.forget_epochs(until_checkpoint_id, kept_ids)
        known = {epoch for part in self._partitions for epoch in part.known()}
        self._forgotten = until_checkpoint_id, tuple(epoch for epoch in known if epoch in kept_ids)


def allow_open_files() -> None:
    """A mapping holds its file open, so each operator needs ``NUM_PARTITIONS`` of them; many systems begin with 1024 a
    process and allow more to those that ask."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and (soft < _OPEN_FILES or hard == resource.RLIM_INFINITY):
        wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        if wanted > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _put(target: SlotState, source: SlotState, slots: Array) -> None:
    """Put these slots into another state, where they take the place of what is there."""
    assert source.table is not None
    placed, _ = target.find(source.table.keys_of(slots))
    for name, column in source.columns.items():
        target.columns[name].put(placed, column.get(slots))


class _CutSlots:
    """The slots of a state by partition, piece by piece; those of a later piece are higher."""

    def __init__(self, source: SlotState) -> None:
        self.source = source
        #: how many have been cut
        self.num_slots = 0
        #: by piece: its first slot; what is to be added to it, those of a partition together, rising (uint16); where
        #: these begin, with one more entry for the end
        self._pieces: list[tuple[int, Array, Array]] = []
        self._counts = np.zeros(NUM_PARTITIONS, np.int64)

    @property
    def nbytes(self) -> int:
        return sum(order.nbytes + bounds.nbytes for _, order, bounds in self._pieces)

    def add_piece(self, partitions_of: Callable[[Sequence[pa.Array]], Array]) -> None:
        """Cut the next slots, one at least."""
        from engine.state.hash_kernels import order_by_channel

        table, begin = self.source.table, self.num_slots
        assert table is not None
        self.num_slots = min(self.source.num_slots, begin + _PIECE_SLOTS)
        numbers = partitions_of(table.keys_of(np.arange(begin, self.num_slots)))
        bounds, order = np.zeros(NUM_PARTITIONS + 1, np.int64), np.empty(numbers.size, np.int32)
        order_by_channel(numbers, bounds[1:], order)
        self._pieces.append((begin, order.astype(np.uint16), bounds))
        self._counts += np.diff(bounds)

    def num_slots_of(self, number: int) -> int:
        return int(self._counts[number])

    def slots_of(self, number: int) -> Array:
        """Return the slots of a partition, rising, int64."""
        parts = [
            order[bounds[number] : bounds[number + 1]].astype(np.int64) + begin for begin, order, bounds in self._pieces
        ]
        slots: Array = np.concatenate(parts)
        return slots


class _Partition:
    """One partition: in memory, in a file, not moved yet from where all of them were, or empty."""

    def __init__(self) -> None:
        self.state: SlotState | None = None
        #: of the state, when it was last put back
        self.held_bytes = 0
        #: its slots are in a state of all partitions; its number among these
        self.unmoved: tuple[_CutSlots, int] | None = None
        #: of one that is not in memory: epochs that have begun since it went there, oldest first
        self.missed: list[int] = []
        self._file: ArrayFile | None = None
        self._num_slots = 0
        self._changes: tuple[dict[int, int], int] = {}, 0

    @property
    def num_slots(self) -> int:
        if self.state is not None:
            return self.state.num_slots
        if self.unmoved is None:
            return self._num_slots
        cut, number = self.unmoved
        return cut.num_slots_of(number)

    def write(self, folder: str) -> None:
        """Put the arrays into the file, or a new one, and forget them. Room for slots to come stays: who gave it back
        would have to write everything anew for each."""
        state = self.state
        assert state is not None
        self._num_slots, self._changes = state.num_slots, state.changes_by_epoch()
        state.expiry = None  # has a clock
        self._file = ArrayFile(state, folder) if self._file is None else self._file.put_back(state)
        self.state, self.held_bytes = None, 0

    def read(self) -> SlotState | None:
        """Return a new copy of what lies in the file; None = nothing was ever here."""
        if self._file is None:
            return None
        state: SlotState = self._file.read()
        return state

    def take(self) -> SlotState | None:
        """Return what lies in the file, to be changed."""
        if self._file is None:
            return None
        state: SlotState = self._file.take()
        return state

    def unmap(self) -> None:
        """Nobody needs the file any more: what was in it has been read, or is forgotten."""
        if self._file is not None:
            self._file.close()
        self._file, self.missed = None, []

    def expect(self) -> None:
        if self._file is not None:
            self._file.expect()

    # --- what changed, without reading it

    def known(self) -> Iterable[int]:
        return [*self._changes[0], *self.missed] if self.state is None else self.state.epochs

    def knows(self, epoch: int) -> bool:
        return epoch in self.known()

    def num_changed(self, since: int) -> int:
        """Return about how many slots changed since that barrier: too many rather than too few."""
        counts, newest = self._changes if self.state is None else self.state.changes_by_epoch()
        changed = sum(count for epoch, count in counts.items() if epoch > since)
        if self.state is not None or not self.missed or self.missed[0] > since:
            changed += newest
        return min(changed, self.num_slots)
