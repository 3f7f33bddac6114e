"""External sort, and the operators that sort a partition.

Memory is bounded: rows collect until the budget is used up, are sorted, written as a run, and the runs are merged.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.records import Batch, RowBatch, rows_of
from engine.operators.base import BATCH_ONLY, Operator, OperatorContext, OperatorSpec, Output
from engine.operators.batch_keys import BoundKeys
from engine.operators.batch_order import Ordering
from engine.operators.batch_spill import Run, chunks_of, memory_budget, rows_bytes, write_run

__all__ = ["ExternalSorter", "SortPartitionSpec"]

#: Runs merged at once: each takes one block of memory and one open file.
_FAN_IN_MAX: Final = 64


@final
class ExternalSorter:
    """Stable sort of rows that may not fit into memory. Add all, then read ``sorted`` once, then ``close``."""

    def __init__(self, ordering: Ordering, *, work_dir: str, memory_bytes: int, operator_name: str) -> None:
        self._ordering = ordering
        self._work_dir = work_dir
        self._budget = memory_budget(memory_bytes)
        self._name = operator_name
        self._rows: list[Any] = []
        self._bytes = 0
        #: oldest first, each with the plain kind of its keys
        self._runs: list[tuple[Run, str | None]] = []

    @property
    def num_runs(self) -> int:
        return len(self._runs)

    def add(self, rows: list[Any]) -> None:
        self._rows.extend(rows)
        self._bytes += rows_bytes(rows)
        if self._bytes > self._budget:
            self.spill()

    def spill(self) -> None:
        """Write what is in memory as one sorted run."""
        if not self._rows:
            return
        rows, kind = self._ordering.sort(self._rows, self._name)
        self._rows, self._bytes = [], 0
        self._runs.append((write_run(self._work_dir, "sort", rows), kind))

    def sorted(self) -> Iterator[Any]:
        """Return all rows in order; equal ones in the order in which they were added."""
        rows, kind = self._ordering.sort(self._rows, self._name)
        self._rows = rows
        if not self._runs:
            return iter(rows)
        self._reduce_runs()
        kinds = {own for _, own in self._runs} | ({kind} if rows else set())
        sources: list[Iterable[Any]] = [*(run for run, _ in self._runs), rows]
        return heapq.merge(*sources, key=self._ordering.merge_key(kinds), reverse=self._ordering.reverse)

    def _reduce_runs(self) -> None:
        while len(self._runs) > _FAN_IN_MAX:
            # Neighbours only, and their place is kept: the sort stays stable.
            merged: list[tuple[Run, str | None]] = []
            for start in range(0, len(self._runs), _FAN_IN_MAX):
                part = self._runs[start : start + _FAN_IN_MAX]
                kinds = {kind for _, kind in part}
                key = self._ordering.merge_key(kinds)
                rows = heapq.merge(*(run for run, _ in part), key=key, reverse=self._ordering.reverse)
                merged.append((write_run(self._work_dir, "sort", rows), kinds.pop() if len(kinds) == 1 else None))
                for run, _ in part:
                    run.delete()
            self._runs = merged

    def close(self) -> None:
        for run, _ in self._runs:
            run.delete()
        self._runs, self._rows, self._bytes = [], [], 0


@final
@dataclass(frozen=True)
class SortPartitionSpec(OperatorSpec):
    """Sort each subtask's records by ``fields``: (key selector, ascending)."""

    not_checkpointed = BATCH_ONLY
    fields: tuple[tuple[Any, bool], ...]
    blocks = True

    def build(self) -> Operator:
        return _SortPartition(self)

    def describe(self) -> str:
        return "external sort"


@final
class _SortPartition(Operator):
    def __init__(self, spec: SortPartitionSpec) -> None:
        self._spec = spec
        self._sorter: ExternalSorter | None = None
        self._keys: BoundKeys | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._keys = BoundKeys(ctx)
        self._sorter = ExternalSorter(
            Ordering(self._keys.bind_order(self._spec.fields)),
            work_dir=ctx.work_dir,
            memory_bytes=ctx.memory_bytes,
            operator_name=ctx.operator_name,
        )

    def process_batch(self, input_index: int, batch: Batch) -> None:
        assert self._sorter is not None
        self._sorter.add(rows_of(batch).rows)

    def finish(self) -> None:
        assert self._sorter is not None
        for rows in chunks_of(self._sorter.sorted()):
            self.out.emit(RowBatch(rows))

    def close(self) -> None:
        if self._sorter is not None:
            self._sorter.close()
        if self._keys is not None:
            self._keys.close()
