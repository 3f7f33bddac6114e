"""Columnar keyed state: a slot table and columns of values, as a part that checkpoints take and restore.

A chunk is the rows of one key group as an Arrow IPC stream: key columns ``k0…``, then the value columns by name. An
increment has only the rows of slots that changed: a bit for each eight slots and epoch remembers which.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from engine.core.errors import ProgramError
from engine.state.block_marks import grown_marks, marked_slots, moved_marks, num_marked
from engine.state.changes import EPOCHS_MAX
from engine.state.column_chunks import streams
from engine.state.column_hash import groups_of_rows
from engine.state.noted import NotedDelta
from engine.state.paged_array import zeros
from engine.state.short_decimals import is_short_for
from engine.state.slot_columns import StateColumn, state_column
from engine.state.slot_expiry import WRITTEN, Expiry
from engine.state.slot_table import SlotTable

if TYPE_CHECKING:
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["SlotState"]

#: Slots that share a mark "changed": the values of eight fill one cache line, so marking finds it loaded.
_MARK_SHIFT: Final = 3
#: Rows of columns that are noted in the time of an entry of objects.
_ROWS_PER_ENTRY: Final = 8
#: Rows that are turned into columns at once while a snapshot is made.
_ROWS_MAX: Final = 1 << 18
#: Fewer slots are not looked through for expired ones, but at the end of an epoch.
_LOOK_MIN: Final = 1 << 16


def _are_alike(note: bytes, other: bytes) -> bool:
    """Whether records are of one kind (tuples, Rows, objects of a class), which the metadata of notes say: names differ
    where streams of tuples were united."""
    if note == other or not note or not other:
        return note == other
    import pyarrow as pa

    one, two = (pa.ipc.read_schema(pa.py_buffer(each)).metadata for each in (note, other))
    return bool(one == two)


def _are_one(
    held: Mapping[str, pa.DataType], note: bytes, others: Mapping[str, pa.DataType], other_note: bytes
) -> bool:
    """Whether these columns are of one state: of the same kinds, or, where the records have the same, some of decimals
    that a former version had in 18 digits."""
    if not _are_alike(note, other_note) or held.keys() != others.keys():
        return False
    differ = [(kind, others[name]) for name, kind in held.items() if kind != others[name]]
    if not differ:
        return True
    import pyarrow as pa

    are_short = all(is_short_for(one, other) or is_short_for(other, one) for one, other in differ)
    kinds = [pa.ipc.read_schema(pa.py_buffer(each)).types for each in (note, other_note) if each]
    return are_short and len(kinds) == 2 and bool(kinds[0] == kinds[1])


@final
class SlotState:
    """State of one operator: made empty; ``define`` says its types when the first batch, or a restored chunk, comes.

    ``is_tuple``: the key is a tuple of its columns even if it is a single one (``ComposedKey``). ``expiry``: slots that
    are not written for a while are forgotten.
    """

    def __init__(self, max_parallelism: int, *, is_tuple: bool, expiry: Expiry | None = None) -> None:
        self._max_parallelism = max_parallelism
        self.expiry = expiry
        #: when expired slots are looked for: at so many slots, or at this time when an epoch ends
        self._look_at_slots = _LOOK_MIN
        self._look_at_ms = 0
        self._is_tuple = is_tuple
        self.table: SlotTable | None = None
        self.columns: dict[str, StateColumn] = {}
        #: what the operator wants to find again beside the slots, e.g. the records' schema
        self.note = b""
        #: Restored from subtasks whose records were of other types, after the parallelism has changed: other keys.
        self.others: list[SlotState] = []
        self._dirty: Array = np.zeros(0, np.uint8)
        #: by checkpoint: what changed before its barrier and after the one before
        self._epochs: dict[int, Array] = {}

    def define(self, key_kinds: Sequence[pa.DataType], columns: Mapping[str, pa.DataType]) -> None:
        """Make the table and its columns. Raises: ProgramError when restored state has other types."""
        if self.expiry is not None:
            import pyarrow as pa

            columns = {**columns, WRITTEN: pa.int64()}
        if self.table is None:
            self.table = SlotTable(key_kinds)
            self.columns = {name: state_column(kind) for name, kind in columns.items()}
            return
        self.take_longer(columns)
        have = [*map(str, self.table.kinds), *(f"{name}: {column.kind}" for name, column in self.columns.items())]
        want = [*map(str, key_kinds), *(f"{name}: {kind}" for name, kind in columns.items())]
        if have != want:
            raise ProgramError(
                f"The state has the columns {have}, but the records need {want}. State cannot change its types: give "
                "the operator another uid to begin afresh, or turn the records into the former types before it."
            )

    def take_longer(self, kinds: Mapping[str, pa.DataType]) -> None:
        """Let columns of these have decimals of any digits: state of former versions had 18 at most of what is added
        or compared."""
        for name, column in self.columns.items():
            if name in kinds and is_short_for(column.kind, kinds[name]):
                column.kind = kinds[name]

    @property
    def num_slots(self) -> int:
        return 0 if self.table is None else self.table.num_slots

    @property
    def nbytes(self) -> int:
        table = 0 if self.table is None else self.table.nbytes
        return table + sum(column.nbytes for column in self.columns.values()) + self._dirty.nbytes

    def find(self, keys: Sequence[pa.Array]) -> tuple[Array, Array]:
        """Return the slot of each row and the rows that made new slots, with room for them in all columns."""
        assert self.table is not None
        slots, first = self.table.find(keys)
        if first.size:
            for column in self.columns.values():
                column.reserve(self.table.num_slots)
        return slots, first

    def find_prepared(self, keys: Any, num_rows: int) -> tuple[Array, Array]:
        """As ``find``, of keys of one column without nulls as the table looks them up (``SlotTable.find_prepared``)."""
        assert self.table is not None
        slots, first = self.table.find_prepared(keys, num_rows)
        if first.size:
            for column in self.columns.values():
                column.reserve(self.table.num_slots)
        return slots, first

    def mark(self, slots: Array) -> None:
        """Remember that these slots change in this epoch."""
        from engine.state.slot_kernels import mark_blocks

        self._dirty = grown_marks(self._dirty, self.num_slots, _MARK_SHIFT)
        mark_blocks(slots, _MARK_SHIFT, self._dirty)

    # --- time to live

    def _written(self) -> Array:
        column: Any = self.columns[WRITTEN]
        written: Array = column.values.array
        return written

    def touch(self, slots: Array, first: Array) -> Array:
        """Slots were found and are written now: return the rows that begin a slot, which are ``first`` and, of each
        slot whose value has expired, the first one."""
        return first if self.expiry is None else self.expiry.begun(self._written(), slots, first)

    def unexpired(self, slots: Array) -> Array:
        """Return those of the slots whose value has not expired."""
        if self.expiry is None or not slots.size:
            return slots
        return slots[~self.expiry.has_expired(self._written()[slots])]

    def give_back_expired(self, *, is_epoch_over: bool = False) -> bool:
        """Forget the expired slots if they are most; return whether slots have got other numbers. Cheap when there is
        nothing to do; 50 ns for each slot that stays otherwise."""
        if self.expiry is None or self.table is None:
            return False
        now_ms = self.expiry.now_ms()
        if self.num_slots < self._look_at_slots and not (is_epoch_over and now_ms >= self._look_at_ms):
            return False
        kept = self.unexpired(np.arange(self.num_slots))
        if moved := 2 * kept.size < self.num_slots:
            self._compact(kept)
        self._look_at_slots = max(_LOOK_MIN, 2 * self.num_slots)
        self._look_at_ms = now_ms + self.expiry.ttl_ms
        return moved

    def _compact(self, kept: Array) -> None:
        assert self.table is not None
        self.table.compact(kept)
        for column in self.columns.values():
            column.compact(kept)
        self._dirty = moved_marks(self._dirty, kept, _MARK_SHIFT)
        self._epochs = {epoch: moved_marks(mark, kept, _MARK_SHIFT) for epoch, mark in self._epochs.items()}

    # ---

    def forget_changes(self) -> None:
        """Let the next checkpoint be a full one: what increments would be added to has other columns, or slots."""
        self._epochs = {}

    def forget_others(self, kept: Array) -> None:
        """Have but these slots, rising, which get numbers from 0 on. The next checkpoint is a full one."""
        self._compact(kept)
        self.forget_changes()

    def trim(self) -> None:
        """Give back what was reserved for slots to come: nothing can be added any more."""
        if self.table is not None:
            self.table.trim()
        for column in self.columns.values():
            column.trim(self.num_slots)

    def clear(self) -> None:
        """Forget everything, types too."""
        self.table, self.columns, self.note, self.others = None, {}, b"", []
        self._dirty, self._epochs = np.zeros(0, np.uint8), {}

    # --- KeyedPart, NotingPart ---------------------------------------------------------------------------------------

    def num_entries(self) -> int:
        return self.num_slots + sum(other.num_slots for other in self.others)

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        key_groups = list(key_groups)
        chunks = self._chunks(np.arange(self.num_slots), key_groups)
        for other in self.others:
            chunks |= other.snapshot(key_groups)  # a key group comes from one subtask
        return chunks

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> dict[int, bytes] | None:
        slots = self.changed_since(since_checkpoint_id)
        return None if slots is None else self._chunks(slots, key_groups)

    def note_delta(self, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int) -> NotedDelta | None:
        """The rows are copied now; columns cost less than objects."""
        slots = self.changed_since(since_checkpoint_id)
        if slots is None or slots.size > entries_max * _ROWS_PER_ENTRY:
            return None
        noted, metadata = list(self.pieces(slots, key_groups)), self.metadata()
        return NotedDelta(slots.size // _ROWS_PER_ENTRY, lambda: streams(noted, metadata))

    def changed_since(self, checkpoint_id: int) -> Array | None:
        """Return the slots that changed since that barrier; None = cannot tell."""
        changed = self.changed_blocks(checkpoint_id)
        return None if changed is None else marked_slots(changed, self.num_slots, _MARK_SHIFT)

    def changed_blocks(self, checkpoint_id: int) -> Array | None:
        if checkpoint_id not in self._epochs or self.others:
            return None
        marks = [self._dirty, *(mark for epoch, mark in self._epochs.items() if epoch > checkpoint_id)]
        changed = np.zeros((self.num_slots >> _MARK_SHIFT) + 1, np.uint8)
        for mark in marks:
            size = min(mark.size, changed.size)
            changed[:size] |= mark[:size]
        return changed

    @property
    def epochs(self) -> list[int]:
        """Barriers since which it is known what changed."""
        return list(self._epochs)

    def changes_by_epoch(self) -> tuple[dict[int, int], int]:
        """Return about how many slots changed before each barrier that is known, and how many since the last one."""
        counts = {epoch: num_marked(mark, _MARK_SHIFT) for epoch, mark in self._epochs.items()}
        return counts, num_marked(self._dirty, _MARK_SHIFT)

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        changed = self.changed_blocks(since_checkpoint_id)
        num_slots = 0 if changed is None else num_marked(changed, _MARK_SHIFT)
        return None if changed is None or num_slots > at_most else num_slots

    def begin_epoch(self, checkpoint_id: int) -> None:
        self._epochs[checkpoint_id] = self._dirty
        while len(self._epochs) > EPOCHS_MAX:
            del self._epochs[min(self._epochs)]  # what builds on it is a full one
        self._dirty = zeros(self._dirty.size, np.uint8)

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        kept: dict[int, Array] = {}
        carried = np.zeros(0, np.uint8)  #: marks of forgotten epochs, which the next one that is kept takes over
        for epoch, mark in self._epochs.items():
            size = min(mark.size, carried.size)
            larger, smaller = (mark, carried) if mark.size >= carried.size else (carried, mark)
            larger[:size] |= smaller[:size]
            if epoch >= until_checkpoint_id or epoch in kept_ids:
                kept[epoch], carried = larger, np.zeros(0, np.uint8)
            else:
                carried = larger
        self._epochs = kept

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        import pyarrow as pa

        for chunk in chunks.values():
            with pa.ipc.open_stream(pa.py_buffer(chunk)) as reader:
                metadata = reader.schema.metadata or {}
                num_keys = int(metadata[b"keys"])
                kinds = reader.schema.types
                names = reader.schema.names[num_keys:]
                held = dict(zip(names, kinds[num_keys:], strict=True))
                held.pop(WRITTEN, None)
                state = self._for_types(kinds[:num_keys], held, metadata[b"note"])
                state.note = metadata[b"note"]
                for batch in reader:
                    slots, first = state.find(batch.columns[:num_keys])
                    state.touch(slots, first)  # as of now, where the checkpoint does not know it
                    for name, column in zip(names, batch.columns[num_keys:], strict=True):
                        if name in state.columns:
                            state.columns[name].put(slots, column)

    def _for_types(
        self, key_kinds: Sequence[pa.DataType], columns: Mapping[str, pa.DataType], note: bytes
    ) -> SlotState:
        """Return what holds rows of these types and such records: this or one of the others."""
        for state in (self, *self.others):
            if state.table is None:
                break
            held = {name: column.kind for name, column in state.columns.items() if name != WRITTEN}
            if state.table.kinds == list(key_kinds) and _are_one(held, state.note, columns, note):
                columns = {
                    name: kind if is_short_for(held[name], kind) else held[name] for name, kind in columns.items()
                }
                break
        else:
            state = SlotState(self._max_parallelism, is_tuple=self._is_tuple, expiry=self.expiry)
            self.others.append(state)
        state.define(key_kinds, columns)
        return state

    def has_types_of(self, other: SlotState) -> bool:
        if self.table is None or other.table is None or self.others or self.table.kinds != other.table.kinds:
            return False
        held, others = ({name: column.kind for name, column in own.columns.items()} for own in (self, other))
        return _are_one(held, self.note, others, other.note)

    def _chunks(self, slots: Array, key_groups: Iterable[int]) -> dict[int, bytes]:
        return streams(self.pieces(slots, key_groups), self.metadata())

    def metadata(self) -> dict[str, str | bytes]:
        return {"keys": str(0 if self.table is None else len(self.table.kinds)), "note": self.note}

    def pieces(self, slots: Array, key_groups: Iterable[int]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield copies of the slots' rows by key group; a group may come several times."""
        if self.table is None:
            return
        wanted = np.zeros(self._max_parallelism, np.bool_)
        wanted[list(key_groups)] = True
        for start in range(0, slots.size, _ROWS_MAX):
            yield from self._rows_by_group(self.unexpired(slots[start : start + _ROWS_MAX]), wanted)

    def piece_of(self, slots: Array) -> pa.RecordBatch:
        """Return a copy of the slots' rows, as they are in chunks."""
        import pyarrow as pa

        assert self.table is not None
        keys = self.table.keys_of(slots)
        names = [*(f"k{i}" for i in range(len(keys))), *self.columns]
        arrays = [*keys, *(column.get(slots) for column in self.columns.values())]
        return pa.RecordBatch.from_arrays(arrays, names=names)

    def _rows_by_group(self, slots: Array, wanted: Array) -> Iterator[tuple[int, pa.RecordBatch]]:
        assert self.table is not None
        keys = self.table.keys_of(slots)
        groups = groups_of_rows(keys, self._max_parallelism, is_tuple=self._is_tuple).astype(np.int64)
        order = np.argsort(groups, kind="stable")
        groups = groups[order]
        rows = self.piece_of(slots[order])
        ends = np.flatnonzero(np.diff(groups, append=-1)) + 1
        begin = 0
        for end in ends.tolist():
            group = int(groups[begin])
            if wanted[group]:
                yield group, rows.slice(begin, end - begin)
            begin = end
