"""Operators with state for the tests of checkpoints in slots: a source that rewinds, counts by key, a slow snapshot."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.core.errors import ExternalError
from engine.core.records import Batch, RowBatch, rows_of
from engine.operators.base import Operator, OperatorSpec, PollResult, SourceOperator
from engine.state.chunks import dump_chunk, load_chunk
from engine.state.descriptors import ListStateDescriptor
from engine.state.key_groups import key_group_of
from engine.state.noted import NotedDelta

MAX_PARALLELISM = 128


@dataclass(frozen=True)
class Rewinding(OperatorSpec):
    """Emits the numbers of its share of ``count`` in small batches; holds at ``hold_at`` of them until "go" comes.
    The positions of all shares are a list state: any number of subtasks takes them up."""

    count: int
    hold_at: int
    rows_max: int = 500
    num_inputs = 0

    def build(self) -> Operator:
        return _Rewinding(self)


class _Rewinding(SourceOperator):
    def __init__(self, spec: Rewinding) -> None:
        self._spec = spec
        self._is_held = True
        self._hold_at = spec.hold_at

    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        context = ctx.runtime_context
        step, first = context.get_number_of_parallel_subtasks(), context.get_index_of_this_subtask()
        self._positions = ctx.state.operator_states().get_list_state(ListStateDescriptor("positions", None))
        #: (next number, step, how many were emitted)
        self._shares = list(self._positions.get()) if ctx.state.is_restored else [(first, step, 0)]
        if ctx.state.is_restored:
            self._is_held = False

    def handle_event(self, event: object) -> None:
        match event:
            case ("hold", int(until)):
                self._hold_at = until
            case _:
                self._is_held = False

    def snapshot_state(self, checkpoint_id: int) -> None:
        self._positions.update(self._shares)

    def poll(self, rows_max: int) -> PollResult:
        spec = self._spec
        for index, (start, step, emitted) in enumerate(self._shares):
            size = min(rows_max, spec.rows_max, len(range(start, spec.count, step)))
            if self._is_held:
                size = min(size, self._hold_at - emitted)
            if size <= 0:
                continue
            self.out.emit(RowBatch(list(range(start, start + size * step, step))))
            self._shares[index] = (start + size * step, step, emitted + size)
            return PollResult.MORE
        if self._is_held:
            return PollResult.IDLE
        return PollResult.END


class Counts:
    """A part: key → count, with what changed by epoch."""

    def __init__(self, snapshot_s: float = 0.0) -> None:
        self.counts: dict[Any, int] = {}
        self._snapshot_s = snapshot_s
        self._changed: list[tuple[int, set[Any]]] = []

    def count(self, key: Any) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1
        if self._changed:
            self._changed[-1][1].add(key)

    def num_entries(self) -> int:
        return len(self.counts)

    def snapshot(self, key_groups: Iterable[int]) -> Mapping[int, bytes]:
        if self._snapshot_s:
            time.sleep(self._snapshot_s)
        return self._chunks(self.counts, key_groups)

    def _chunks(self, keys: Iterable[Any], key_groups: Iterable[int]) -> Mapping[int, bytes]:
        groups: dict[int, dict[Any, int]] = {group: {} for group in key_groups}
        for key in keys:
            groups[key_group_of(key, MAX_PARALLELISM)][key] = self.counts[key]
        return {group: dump_chunk(counts, "counts") for group, counts in groups.items() if counts}

    def restore(self, chunks: Mapping[int, bytes]) -> None:
        for chunk in chunks.values():
            self.counts.update(load_chunk(chunk))

    def snapshot_delta(self, key_groups: Iterable[int], since_checkpoint_id: int) -> Mapping[int, bytes] | None:
        if all(begun_by != since_checkpoint_id for begun_by, _ in self._changed):
            return None
        epochs = [keys for begun_by, keys in self._changed if begun_by >= since_checkpoint_id]
        return self._chunks(set().union(*epochs), key_groups)

    def begin_epoch(self, checkpoint_id: int) -> None:
        self._changed.append((checkpoint_id, set()))

    def forget_epochs(self, until_checkpoint_id: int) -> None:
        self._changed = [epoch for epoch in self._changed if epoch[0] >= until_checkpoint_id]


class NotingCounts(Counts):
    """Notes small increments. Counts are numbers, so what was copied at the barrier stays."""

    def note_delta(self, key_groups: Iterable[int], since_checkpoint_id: int, entries_max: int) -> NotedDelta | None:
        epochs = [keys for begun_by, keys in self._changed if begun_by >= since_checkpoint_id]
        noted = Counts()
        noted.counts = {key: self.counts[key] for key in set().union(*epochs)}
        if len(noted.counts) > entries_max:
            return None
        return NotedDelta(len(noted.counts), lambda: noted.snapshot(key_groups))


@dataclass(frozen=True)
class CountByKey(OperatorSpec):
    """Counts ``number % num_keys``; tells the counts at the end, and "closed" when that was not to be."""

    num_keys: int
    snapshot_s: float = 0.0
    part: str = "counts"
    row_s: float = 0.0  #: how long a record takes
    notes: bool = False
    loses_in_snapshots: bool = False  #: it raises when it is to hand over what it has

    def build(self) -> Operator:
        return _CountByKey(self)


class _CountByKey(Operator):
    def __init__(self, spec: CountByKey) -> None:
        self._spec = spec
        self._is_finished = False

    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        self._part = (NotingCounts if self._spec.notes else Counts)(self._spec.snapshot_s)
        ctx.state.add_keyed(self._spec.part, self._part)
        self.ctx.send_event(("opened", len(self._part.counts), min(self._part.counts.values(), default=0)))

    def process_batch(self, input_index: int, batch: Batch) -> None:
        num_keys = self._spec.num_keys
        if self._spec.row_s:
            time.sleep(self._spec.row_s * len(batch))
        for row in rows_of(batch).rows:
            self._part.count(row % num_keys)

    def snapshot_state(self, checkpoint_id: int) -> None:
        if self._spec.loses_in_snapshots:
            self._part.counts.clear()
            raise ExternalError("The disk is full.")

    def process_watermark(self, watermark_ms: int) -> None:
        self.ctx.send_event(("watermark", watermark_ms))

    def prepare_commit(self, checkpoint_id: int) -> object | None:
        return ("commit", checkpoint_id)

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        self.ctx.send_event(("complete", checkpoint_id))

    def notify_checkpoint_aborted(self, checkpoint_id: int) -> None:
        self.ctx.send_event(("aborted", checkpoint_id))

    def finish(self) -> None:
        self._is_finished = True
        self.ctx.send_event(("counts", self._part.counts))

    def close(self) -> None:
        if not self._is_finished:
            self.ctx.send_event(("closed", len(self._part.counts)))
