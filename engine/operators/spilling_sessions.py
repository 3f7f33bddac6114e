"""State of sessions over columns that goes to files of the local disk when it is more than its share of memory.

It begins as one ``SessionState``. Then it is cut by hash into partitions, each one of its own: of some the arrays stay
in memory, of the others they lie in files (``state/array_files``). Records wait, in memory, and the time waits with
them: in a pass partition after partition is read, takes up its records in their order, each at the time at which it
came, lets sessions fire, and is written again. So results are those of sessions in memory, but later; and a record
costs a part of a sequential read and write of everything, the smaller the more records wait. Partitions for which no
record waits, and of which no session is due, are left alone.

Folding cannot fail later: nulls that only rows can take, and sums that could leave 64 bits, are refused by
``can_hold``. When there is little enough, all of it comes back into memory. Not here: when there is a pass
(``column_session``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np
import pyarrow as pa

from engine.core.records import BATCH_ROWS_MAX, Named
from engine.operators.held_rows import HeldRows, TakenRows
from engine.operators.session_assigned import Sink
from engine.operators.session_changes import Changed, SessionChanges, increment_of
from engine.operators.session_state import Edges, SessionState
from engine.operators.session_unsent import DUE, LATE, late_rows, layers_of, metadata_of
from engine.operators.window_sums import SUM_MAX
from engine.state.array_files import ArrayFile, copy_of
from engine.state.changes import EPOCHS_MAX
from engine.state.column_chunks import empty_chunk, streams
from engine.state.hash_kernels import order_by_channel
from engine.state.hash_partitions import HashPartitions
from engine.state.noted import NotedDelta
from engine.state.spilling_slots import allow_open_files
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

Array = np.ndarray[Any, Any]

__all__ = ["SpillingSessions"]

NUM_PARTITIONS: Final = 128
#: Of the share of memory: records that wait (being taken up they need three times as much), and partitions that stay in
#: memory. With less than the last one in all of them they become one again.
_HELD_SHARE: Final = 1 / 8
_RESIDENT_SHARE: Final = 1 / 4
_RETURN_SHARE: Final = 1 / 8
#: Restoring goes to files from here on.
_RESTORED_SHARE: Final = 3 / 4
#: Sessions whose partition is found out at once.
_ROWS_MAX: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class _Rows:
    """Records of one partition in their order, with the watermark when each came."""

    columns: pa.RecordBatch
    times_ms: Array
    watermarks_ms: Array


@dataclass(slots=True)
class _Partition:
    """In memory, in a file, or empty."""

    state: SessionState | None = None
    file: ArrayFile | None = None
    #: of the state when it was last put back, in memory or not
    num_bytes: int = 0
    num_sessions: int = 0
    next_due_ms: int = TIME_MAX_MS
    #: no sum of integers is beyond it
    bound: float = 0.0
    #: of one that is not in memory: keys that had changed in each epoch when it went, and epochs that have begun since
    counts: dict[int, int] = field(default_factory=dict)
    missed: list[int] = field(default_factory=list)

    def is_due(self, watermark_ms: int) -> bool:
        return self.num_sessions > 0 and self.next_due_ms <= watermark_ms

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.file = None

    # --- what changed, without reading it

    def knows(self, since: int) -> bool:
        """Whether it is known what changed since that barrier."""
        if self.state is not None:
            return _changes_of(self.state).knows(since)
        return since in self.counts or since in self.missed

    def num_changed(self, since: int) -> int:
        """Return about how many keys changed since that barrier, which is known: rather too many."""
        counts = self.counts if self.state is None else _changes_of(self.state).counts(since)
        return sum(count for begun_by, count in counts.items() if begun_by >= since)


@dataclass(slots=True)
class _Waiting:
    """Records, by partition, that came between two watermarks, those included."""

    taken: TakenRows | None
    after_ms: int
    until_ms: int
    parts: dict[int, tuple[int, int]] = field(init=False)
    #: the partitions that have not taken up theirs
    todo: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = [] if self.taken is None else self.taken.parts()
        self.parts = {number: (begin, end) for number, begin, end in parts}

    def rows_of(self, number: int) -> _Rows | None:
        if number not in self.parts:
            return None
        taken = self.taken
        assert taken is not None
        columns, stamps, numbers = taken.of_partition(number)
        assert stamps is not None
        rows_before = np.array([place for place, _ in taken.watermarks], np.int64)
        times_ms = np.array([self.after_ms, *(time_ms for _, time_ms in taken.watermarks)], np.int64)
        which = np.searchsorted(rows_before, numbers, side="right")
        return _Rows(columns, stamps, times_ms[which])


@final
class _Kept:
    """A ``Sink`` that keeps what comes out, as rows of chunks."""

    def __init__(self, *, keeps_late: bool) -> None:
        self._keeps_late = keeps_late
        self.due: list[pa.RecordBatch] = []
        self.late: list[pa.RecordBatch] = []

    def fire(self, state: SessionState, due: Edges) -> None:
        if due.sessions.size:
            self.due.append(state.rows_of(due))

    def put_aside(self, state: SessionState, columns: pa.RecordBatch, times_ms: Array) -> None:
        if self._keeps_late:
            self.late.append(late_rows(columns, times_ms))


@final
class SpillingSessions:
    """Implements ``parts.LazyPart`` and ``parts.NotingPart``. ``state``: what is in memory, empty when it has been cut,
    with the types. ``aggregated_of``: keys and values of records that waited; ``keeps_late``: they are whole ones."""

    def __init__(
        self,
        state: SessionState,
        max_parallelism: int,
        key_groups: range,
        *,
        is_tuple: bool,
        folder: str,
        bytes_max: int,
        aggregated_of: Callable[[pa.RecordBatch], pa.RecordBatch],
        keeps_late: bool,
        gap_ms: int,
    ) -> None:
        self.state = state
        #: of what is in memory while nothing is in files
        self._changes = state.changes = SessionChanges()
        #: barriers that have been forgotten: all before one but for some
        self._forgotten: tuple[int, tuple[int, ...]] = 0, ()
        #: by barrier, whether something waited, or was to be sent, so that chunks may say so
        self._waited: dict[int, bool] = {}
        #: Called at a barrier at which something waits.
        self.on_waited: Callable[[], None] = lambda: None
        self._cut = HashPartitions(NUM_PARTITIONS, max_parallelism, key_groups, is_tuple=is_tuple)
        self._folder = folder
        self._bytes_max = bytes_max
        self._aggregated_of = aggregated_of
        self._keeps_late = keeps_late
        self._gap_ms = gap_ms
        self._partitions: list[_Partition] = []
        self._resident_bytes = 0
        self._held = HeldRows(int(bytes_max * _HELD_SHARE), self._cut.number)
        self._schema: pa.Schema | None = None
        #: whether the records that wait are Rows
        self.named: Named = False
        #: how much the records that wait can add to a sum, and when the first session of theirs could be due
        self._held_bound = 0.0
        self._held_due_ms = TIME_MAX_MS
        #: the watermark before the records that are held, and now
        self._after_ms = self._until_ms = TIME_MIN_MS
        #: what is being taken up
        self._pass: _Waiting | None = None
        self._pass_bound = 0.0

    # --- how it is

    @property
    def is_spilled(self) -> bool:
        return bool(self._partitions)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, without the records that wait."""
        return self.state.nbytes + self._resident_bytes + self._changes.nbytes

    @property
    def filled(self) -> float:
        """How full the room for records is; 1 = there has to be a pass."""
        return self._held.filled

    @property
    def is_passing(self) -> bool:
        return self._pass is not None

    @property
    def steps_left(self) -> int:
        return 0 if self._pass is None else len(self._pass.todo)

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to do that has not been done."""
        return self._pass is not None or self._held.num_rows > 0 or self.is_due()

    def is_due(self) -> bool:
        """Whether sessions may have to fire, or records be put aside, before the watermark can go on."""
        is_due = any(part.is_due(self._until_ms) for part in self._partitions)
        return is_due or (self._held.num_rows > 0 and self._held_due_ms <= self._until_ms)

    # --- from memory to files, and back

    def spill(self, watermark_ms: int) -> None:
        """Cut what is in memory into partitions."""
        allow_open_files()
        source, self.state = self.state, self.state.of_same_types()
        self.state.unsent, source.unsent = source.unsent, self.state.unsent
        self.state.others, source.others = source.others, self.state.others
        source.changes, self.state.changes = None, self._changes
        self._changes.clear()
        self._partitions = [_Partition() for _ in range(self._cut.number)]
        self._after_ms = self._until_ms = watermark_ms
        self._distribute(source)

    def _distribute(self, source: SessionState) -> None:
        every = source.in_order()
        numbers = np.empty(every.sessions.size, np.uint16)
        for at in range(0, numbers.size, _ROWS_MAX):
            part = every.part(at, at + _ROWS_MAX)
            numbers[at : at + _ROWS_MAX] = self._cut.of_rows(source.key_columns(part.sessions))
        ends, order = np.zeros(self._cut.number, np.int64), np.empty(numbers.size, np.int32)
        order_by_channel(numbers, ends, order)
        begin = 0
        for number, end in enumerate(ends.tolist()):
            if end > begin:
                self._load(number).put(source.rows_of(every.take(order[begin:end])))
                self._put_back(number)
            begin = end

    def has_little(self) -> bool:
        """Whether all of it can come back into memory; when nothing waits."""
        return sum(part.num_bytes for part in self._partitions) <= self._bytes_max * _RETURN_SHARE

    def gather(self) -> None:
        """Let all of it come back into memory."""
        for number, part in enumerate(self._partitions):
            if part.num_sessions:
                own = self._load(number)
                self.state.put(own.rows_of(own.in_order()))
        self.close()
        self._changes.clear()  # it is little

    def _load(self, number: int) -> SessionState:
        """Return a partition to be changed; ``_put_back`` follows."""
        part = self._partitions[number]
        if part.state is None:
            part.state = self._read(part)
            part.close()
            part.missed = []
        else:
            self._resident_bytes -= part.num_bytes
        return part.state

    def _read(self, part: _Partition) -> SessionState:
        """Return a new copy of what lies in the file, with the epochs that have begun since."""
        if part.file is None:
            state = self.state.of_same_types()
            state.changes = SessionChanges()
        else:
            read: SessionState = part.file.read()
            state = read.go_on(self.state)
        changes = _changes_of(state)
        for epoch in part.missed:
            changes.begin_epoch(epoch, state.nbytes)
        changes.forget_epochs(*self._forgotten)
        return state

    def _put_back(self, number: int) -> None:
        """The partition was changed: it stays in memory if there is room for it."""
        part = self._partitions[number]
        state = part.state
        assert state is not None
        state.know_next_due()  # a part that is not due is not read
        part.num_sessions, part.next_due_ms, part.bound = state.num_sessions, state.next_due_ms, state.bound()
        changes = _changes_of(state)
        if not part.num_sessions and not changes.nbytes:
            part.missed, part.counts = list(changes.counts()), {}
            part.state, part.num_bytes = None, 0
            return
        part.num_bytes = state.nbytes + changes.nbytes
        self._resident_bytes += part.num_bytes
        # The one that has just been used goes first: all are used in turn, and the longest unused one comes next.
        for other in (part, *self._partitions):
            if self._resident_bytes <= self._bytes_max * _RESIDENT_SHARE:
                break
            if other.state is not None:
                self._resident_bytes -= other.num_bytes
                other.state.trim()
                own = _changes_of(other.state)
                other.num_bytes, other.counts = other.state.nbytes + own.nbytes, own.counts()
                other.file, other.state = ArrayFile(other.state, self._folder), None

    def states(self) -> Iterator[SessionState]:
        """Yield all there is, to be read, in as many pieces as there are; each is gone when the next one comes. Nothing
        waits."""
        yield self.state
        for part in self._partitions:
            if part.num_sessions:
                yield self._peek(part)
        yield from self.state.of_other_types()

    def _peek(self, part: _Partition) -> SessionState:
        return self._read(part) if part.state is None else part.state

    def clear(self) -> None:
        """Forget everything, types too."""
        self.state.clear()
        self._changes.clear()
        self.close()

    def close(self) -> None:
        """Give the files back."""
        for part in self._partitions:
            part.close()
        self._partitions, self._resident_bytes = [], 0

    # --- records that wait

    def can_hold(self, aggregated: pa.RecordBatch) -> bool:
        """Whether these records can be taken up later for sure."""
        bound = max(part.bound for part in self._partitions) + self._held_bound + self._pass_bound
        more = self.state.bound_of_records(aggregated)
        return bound + more <= SUM_MAX and self.state.can_take_later(aggregated)

    def hold(self, columns: pa.RecordBatch, aggregated: pa.RecordBatch, times_ms: Array) -> None:
        """Let records wait. ``aggregated``: keys and values of them, for which ``can_hold`` holds."""
        self._held_bound += self.state.bound_of_records(aggregated)
        partitions = self._cut.of_rows(self.state.key_of_records(aggregated))
        kept = columns if self._keeps_late else self.state.partly(aggregated)
        if self._schema is None or self._schema.types != kept.schema.types:
            self._schema = kept.schema.remove_metadata()
        self._held.add(pa.RecordBatch.from_arrays(kept.columns, schema=self._schema), times_ms, partitions)
        due_ms = times_ms + (self._gap_ms - 1)
        if not self.state.lateness_ms:
            due_ms = due_ms[due_ms > self._until_ms]  # the others are late, or make a session longer
        self._held_due_ms = min(self._held_due_ms, int(due_ms.min(initial=TIME_MAX_MS)))

    def advance(self, watermark_ms: int) -> None:
        """Let the time go on; who asks whether anything ``is_due`` does a pass before others hear of it."""
        self._until_ms = watermark_ms
        if self._held.num_rows:
            self._held.add_watermark(watermark_ms)
        else:
            self._after_ms = watermark_ms

    def begin_pass(self) -> int:
        """Begin to take up what waits; return the number of steps."""
        self._pass = waiting = self._held_now(take=True)
        waiting.todo = [
            number
            for number, part in enumerate(self._partitions)
            if number in waiting.parts or part.is_due(waiting.until_ms)
        ]
        self._pass_bound, self._held_bound = self._held_bound, 0.0
        self._after_ms, self._held_due_ms = self._until_ms, TIME_MAX_MS
        return len(waiting.todo)

    def _held_now(self, *, take: bool) -> _Waiting:
        taken: TakenRows | None = None
        if self._held.num_rows:
            taken = self._held.take() if take else self._held.peek()
        return _Waiting(taken, self._after_ms, self._until_ms)

    def step(self, sink: Sink) -> int | None:
        """Take up what waits for one partition; return the time until which all have, when this was the last one."""
        waiting = self._pass
        assert waiting is not None
        if waiting.todo:
            number = waiting.todo[0]
            for later in waiting.todo[1:2]:
                if (file := self._partitions[later].file) is not None:
                    file.expect()
            self._catch_up(self._load(number), number, waiting, sink)
            self._put_back(number)
            del waiting.todo[0]
        if waiting.todo:
            return None
        self._pass, self._pass_bound = None, 0.0
        return waiting.until_ms

    def _catch_up(self, state: SessionState, number: int, waiting: _Waiting, sink: Sink) -> None:
        rows = waiting.rows_of(number)
        if rows is not None:
            self._take_up(state, rows, sink)
        state.advance(waiting.until_ms, sink.fire)

    def _take_up(self, state: SessionState, rows: _Rows, sink: Sink) -> None:
        """Let a partition take up records, each at the time at which it came."""
        for begin, end in _cuts(rows, is_by_time=state.lateness_ms > 0):
            watermarks_ms: int | Array = rows.watermarks_ms[begin:end]
            if state.lateness_ms:
                watermarks_ms = int(rows.watermarks_ms[begin])
                state.advance(watermarks_ms, sink.fire)
            columns = rows.columns.slice(begin, end - begin)
            aggregated = self._aggregated_of(columns) if self._keeps_late else self.state.wholly(columns)
            is_begun = state.begin_batch(aggregated, is_held=True)
            assert is_begun, "a null was held that only rows can take"
            left = state.take_up_batch(columns, aggregated, rows.times_ms[begin:end], watermarks_ms, sink)
            assert left is None, "a sum was held that leaves 64 bits"

    # --- LazyPart

    def num_entries(self) -> int:
        own = sum(part.num_sessions for part in self._partitions)
        return self.state.num_entries() + own + self._num_waiting()

    def _num_waiting(self) -> int:
        taken = 0 if self._pass is None or self._pass.taken is None else self._pass.taken.num_rows
        return self._held.num_rows + taken

    def snapshot(self, key_groups: Iterable[int]) -> dict[int, bytes]:
        return dict(self.lazy_snapshot(key_groups))

    def lazy_snapshot(self, key_groups: Iterable[int]) -> Mapping[int, bytes]:
        key_groups = list(key_groups)
        if not self._partitions:
            return self.state.snapshot(key_groups)
        others = {group: chunk for group, chunk in self.state.others.items() if group in set(key_groups)}
        held = self._held_now(take=False)
        having = [
            group
            for group in key_groups
            if group in others or any(self._has(number, held) for number in self._cut.of_group(group))
        ]
        return self._cut.lazy_chunks(
            key_groups, having, others, lambda numbers, groups: self._chunks(numbers, groups, held)
        )

    def _has(self, number: int, held: _Waiting) -> bool:
        is_passing = self._pass is not None and number in self._pass.parts and number in self._pass.todo
        return self._partitions[number].num_sessions > 0 or number in held.parts or is_passing

    def _is_behind(self, number: int, held: _Waiting) -> bool:
        """Whether something waits for a partition, the time included."""
        is_passing = self._pass is not None and number in self._pass.todo
        return is_passing or number in held.parts or self._partitions[number].is_due(held.until_ms)

    def _chunks(self, numbers: range, groups: set[int], held: _Waiting) -> dict[int, bytes]:
        """Return the chunks of key groups, all of whose keys are in these partitions: with what waits taken up."""
        open_rows: list[pa.RecordBatch] = []
        kept = _Kept(keeps_late=self._keeps_late)
        for number in numbers:
            state = self._caught_up(number, held, kept)
            if state.num_sessions:
                open_rows.append(state.rows_of(state.in_order()))
        chunks = dict.fromkeys(groups, empty_chunk(self.state.metadata()))
        chunks.update(streams(self._pieces(open_rows, groups), self.state.metadata()))
        self._add_unsent(chunks, kept, groups)
        return chunks

    def _add_unsent(self, chunks: dict[int, bytes], kept: _Kept, groups: set[int]) -> None:
        """Let the chunks of these key groups, which are there, say what may not be sent."""
        for rows, metadata, keys_in in (
            (kept.due, metadata_of(DUE), None),
            (kept.late, metadata_of(LATE, named=self.named), self._key_of_late),
        ):
            for group, stream in streams(self._pieces(rows, groups, keys_in), metadata).items():
                chunks[group] += stream

    def _caught_up(self, number: int, held: _Waiting, kept: _Kept) -> SessionState:
        """Return a partition, to be read, as it would be if nothing waited."""
        part = self._partitions[number]
        waiting = [held]
        if self._pass is not None and number in self._pass.todo:
            waiting.insert(0, self._pass)
        state = self._peek(part)
        is_changed = any(number in own.parts or part.is_due(own.until_ms) for own in waiting)
        if is_changed and state is part.state:
            state = copy_of(state).go_on(self.state)  # this may be the task itself
        for own in waiting if is_changed else ():
            self._catch_up(state, number, own, kept)
        return state

    def _pieces(
        self,
        batches: list[pa.RecordBatch],
        groups: set[int],
        keys_in: Callable[[pa.RecordBatch], list[pa.Array]] | None = None,
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        for rows in batches:
            yield from self.state.pieces(rows, groups, keys_in)

    def _key_of_late(self, rows: pa.RecordBatch) -> list[pa.Array]:
        return self.state.key_of_records(self._aggregated_of(rows.select(range(rows.num_columns - 1))))

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for group, chunk in chunks.items():
            if not self._partitions:
                self.state.restore({group: chunk})
                if self.state.is_defined and self.state.nbytes > self._bytes_max * _RESTORED_SHARE:
                    self.spill(TIME_MIN_MS)
                continue
            restored = self.state.another()
            restored.restore({group: chunk})
            if restored.others or not self.state.has_types_of(restored):
                self.state.others[group] = self.state.others.get(group, b"") + chunk
            elif restored.is_defined:
                for layer in layers_of(chunk):
                    for keys in layer.replaced_keys():
                        self._forget_keys(keys)
                    if layer.is_increment:
                        self.state.unsent.pop(group, None)
                self._distribute(restored)
                self.state.unsent |= restored.unsent

    def _forget_keys(self, keys: list[pa.Array]) -> None:
        """Forget all sessions of these keys."""
        numbers = self._cut.of_rows(keys)
        for number in np.unique(numbers).tolist():
            if self._partitions[number].num_sessions:
                rows = pa.array(np.flatnonzero(numbers == number))
                self._load(number).forget_keys([column.take(rows) for column in keys])
                self._put_back(number)

    # --- NotingPart

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> dict[int, bytes] | None:
        groups = set(key_groups)
        if self.state.others:
            return None
        if not self.state.is_defined:
            return {} if self._changes.knows(since_checkpoint_id) else None
        if self._partitions:
            chunks = self._delta_of_files(groups, since_checkpoint_id)
        else:
            changed = self._changes.delta(self.state, since_checkpoint_id)
            chunks = None if changed is None else changed.chunks(groups)
        return None if chunks is None else self._beside(chunks, groups, since_checkpoint_id)

    def _beside(self, chunks: Mapping[int, bytes], groups: Iterable[int], since: int) -> dict[int, bytes]:
        """Return the chunks of an increment, of all key groups where it has to say that what lower layers had to send
        has been sent."""
        if self._waited.get(since, True):
            return dict.fromkeys(groups, empty_chunk(increment_of(self.state))) | dict(chunks)
        return dict(chunks)

    def _delta_of_files(self, groups: set[int], since: int) -> dict[int, bytes] | None:
        """As ``_chunks``, of keys that changed; partitions in which none has, and for which nothing waits, are not
        read."""
        if not self._knows(since):
            return None
        held, kept = self._held_now(take=False), _Kept(keeps_late=self._keeps_late)
        changed: Changed | None = None
        for number, part in enumerate(self._partitions):
            if not self._is_behind(number, held) and not part.num_changed(since):
                continue
            state = self._caught_up(number, held, kept)
            own = _changes_of(state).delta(state, since)
            if own is None:
                return None
            if changed is None:
                changed = own
            else:
                changed.add(own)
        chunks = {} if changed is None else changed.chunks(groups)
        if kept.due or kept.late:
            chunks = dict.fromkeys(groups, empty_chunk(increment_of(self.state))) | chunks
            self._add_unsent(chunks, kept, groups)
        return chunks

    def _knows(self, since: int) -> bool:
        return not self.state.others and all(part.knows(since) for part in self._partitions)

    def note_delta(self, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int) -> NotedDelta | None:
        if self._partitions or self.state.others:
            return None  # what is in files is read by a child
        groups = list(key_groups)
        noted = self._changes.note(self.state, groups, since_checkpoint_id, entries_max)
        if noted is None or not self._waited.get(since_checkpoint_id, True):
            return noted
        return NotedDelta(noted.num_entries, lambda: self._beside(noted.chunks(), groups, since_checkpoint_id))

    def num_changed(self, since_checkpoint_id: int, at_most: int) -> int | None:
        if self.state.others:
            return None
        if not self._partitions:
            return self._changes.num_changed(since_checkpoint_id, at_most)
        if not self._knows(since_checkpoint_id):
            return None
        changed = sum(part.num_changed(since_checkpoint_id) for part in self._partitions) + self._num_waiting()
        return changed if changed <= at_most else None

    def begin_epoch(self, checkpoint_id: int) -> None:
        self._waited[checkpoint_id] = bool(self.state.unsent) or self.is_waiting
        if self.is_waiting:
            self.on_waited()
        while len(self._waited) > EPOCHS_MAX:
            del self._waited[min(self._waited)]
        if self.state.others:
            self._changes.clear()  # nobody knows what changes of them
        elif not self._partitions:
            self._changes.begin_epoch(checkpoint_id, self.state.nbytes)
        for part in self._partitions:
            if part.state is None:
                part.missed.append(checkpoint_id)
            else:
                _changes_of(part.state).begin_epoch(checkpoint_id, part.num_bytes)

    def forget_epochs(self, until_checkpoint_id: int, kept_ids: Container[int] = ()) -> None:
        kept = {id for id in self._waited if id >= until_checkpoint_id or id in kept_ids}
        self._waited = {id: waited for id, waited in self._waited.items() if id in kept}
        self._changes.forget_epochs(until_checkpoint_id, kept)
        self._forgotten = until_checkpoint_id, tuple(kept)
        for part in self._partitions:
            if part.state is None:
                part.missed = [epoch for epoch in part.missed if epoch in kept]
            else:
                _changes_of(part.state).forget_epochs(until_checkpoint_id, kept)


def _changes_of(state: SessionState) -> SessionChanges:
    """Return what changed in a partition."""
    assert state.changes is not None
    return state.changes


def _cuts(rows: _Rows, *, is_by_time: bool) -> Iterator[tuple[int, int]]:
    """Cut records into batches; ``is_by_time``: those of a batch came at the same time."""
    size = rows.times_ms.size
    edges = [0, size]
    rows_max = BATCH_ROWS_MAX
    if is_by_time:
        edges = [0, *(np.flatnonzero(np.diff(rows.watermarks_ms)) + 1).tolist(), size]
        rows_max //= 2
    for begin, end in itertools.pairwise(edges):
        for at in range(begin, end, rows_max):
            yield at, min(end, at + rows_max)
