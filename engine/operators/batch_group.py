"""Groups of a bounded input: collected by key, sorted within a group if asked, given to a function one by one.

In memory a dict of lists; past the budget runs sorted by the key's hash, merged, so that no group and no input has
to fit into memory. Operators: group_reduce, combine_group, first(n) of a group. Aggregations with a small result
per key are in ``batch_reduce``; two inputs in ``batch_co_group``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, final

from engine.core.records import Batch, RowBatch, rows_of
from engine.operators.base import BATCH_ONLY, Operator, OperatorContext, OperatorSpec, Output
from engine.operators.batch_functions import MultiResultFunction
from engine.operators.batch_keys import BoundKeys
from engine.operators.batch_order import Ordering, keys_of, normal_key
from engine.operators.batch_sort import ExternalSorter
from engine.operators.batch_spill import memory_budget, rows_bytes

__all__ = ["FirstInGroupSpec", "GroupCombineSpec", "GroupReduceSpec", "GroupTable"]

KeyFunction = Callable[[Any], Any]
OrderFields = Sequence[tuple[KeyFunction, bool]]


@final
class GroupTable:
    """All rows of an input by key. Add all, then read ``groups`` once, then ``close``."""

    def __init__(
        self,
        key: KeyFunction,
        *,
        work_dir: str,
        memory_bytes: int,
        operator_name: str,
        order: OrderFields = (),
    ) -> None:
        self._key = key
        self._name = operator_name
        self._order = Ordering(order) if order else None
        self._budget = memory_budget(memory_bytes)
        self._rows_by_key: dict[Any, list[Any]] = {}
        self._bytes = 0
        # Entries are (hash of key, row). The built-in hash() will do: runs never leave this process.
        within = [(_on_row(getter), ascending) for getter, ascending in order]
        self._sorter = ExternalSorter(
            Ordering([(_hash_of_entry, True), *within]),
            work_dir=work_dir,
            memory_bytes=self._budget,
            operator_name=operator_name,
        )
        self._spilled = False

    @property
    def is_full(self) -> bool:
        """The budget is used up: add would spill (or the caller empties the table first)."""
        return self._bytes > self._budget

    @property
    def is_spilled(self) -> bool:
        return self._spilled

    def add(self, rows: list[Any]) -> None:
        if not rows:
            return
        if self.is_full:
            self._spill()
        table = self._rows_by_key
        for key, row in zip(keys_of(self._key, rows, self._name), rows, strict=True):
            group = table.get(key)
            if group is None:
                table[key] = [row]
            else:
                group.append(row)
        self._bytes += rows_bytes(rows)

    def _spill(self) -> None:
        self._spilled = True
        for key, rows in self._rows_by_key.items():
            self._sorter.add([(hash(key), row) for row in rows])
        self._sorter.spill()
        self._rows_by_key, self._bytes = {}, 0

    def groups(self) -> Iterator[tuple[Any, Iterator[Any]]]:
        """Yield (key, its rows). Rows not read before the next group is asked for are skipped."""
        if self._spilled:
            self._spill()
            yield from self._merged()
            return
        table, self._rows_by_key, self._bytes = self._rows_by_key, {}, 0
        while table:  # give memory back group by group, oldest key first
            key = next(iter(table))
            rows = table.pop(key)
            if self._order is not None:
                rows, _ = self._order.sort(rows, self._name)
            yield key, iter(rows)

    def _merged(self) -> Iterator[tuple[Any, Iterator[Any]]]:
        entries = _Peekable(self._sorter.sorted())
        while entries:
            own_hash = entries.head[0]
            # Different keys may share a hash (-1 and -2 do): rows of others wait aside until the first key is done.
            aside: dict[Any, list[Any]] = {}
            key = normal_key(self._key(entries.head[1]))
            rows = self._rows_of_key(entries, own_hash, key, aside)
            yield key, rows
            deque(rows, maxlen=0)
            for other, waiting in aside.items():
                yield other, iter(waiting)

    def _rows_of_key(self, entries: _Peekable, own_hash: int, key: Any, aside: dict[Any, list[Any]]) -> Iterator[Any]:
        while entries and entries.head[0] == own_hash:
            row = entries.pop()[1]
            own = normal_key(self._key(row))
            if own is key or own == key:
                yield row
            else:
                aside.setdefault(own, []).append(row)

    def close(self) -> None:
        self._rows_by_key = {}
        self._sorter.close()


def _hash_of_entry(entry: tuple[int, Any]) -> int:
    return entry[0]


def _on_row(getter: KeyFunction) -> KeyFunction:
    return lambda entry: getter(entry[1])


_NOTHING: Final[Any] = object()


@final
class _Peekable:
    """An iterator whose next element can be looked at; false when there is none."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._advance()

    def _advance(self) -> None:
        self.head = next(self._iterator, _NOTHING)

    def __bool__(self) -> bool:
        return self.head is not _NOTHING

    def pop(self) -> Any:
        head = self.head
        self._advance()
        return head


@final
@dataclass(frozen=True)
class GroupReduceSpec(OperatorSpec):
    """Call ``function(rows of a group)`` for each key; without a key for all rows of the subtask as one group."""

    not_checkpointed = BATCH_ONLY
    key: Any  #: key selector, or None
    function: Any
    order: tuple[tuple[Any, bool], ...] = ()
    methods: tuple[str, ...] = ("reduce", "reduce_group")
    #: without a key: call the function also when there are no rows (map_partition)
    call_on_empty: bool = False
    blocks = True

    def build(self) -> Operator:
        return _GroupReduce(self)

    def describe(self) -> str:
        return "sorted groups" if self.order else "groups"


def _everything(row: Any) -> None:
    return None


@final
class _BoundTables:
    """Makes the GroupTables of one operator, one or (in a combiner) several after each other, all by the same key."""

    def __init__(self, key: Any, order: tuple[tuple[Any, bool], ...], ctx: OperatorContext) -> None:
        self._ctx = ctx
        self._keys = BoundKeys(ctx)
        self._table: GroupTable | None = None
        try:
            self._key = _everything if key is None else self._keys.bind(key)
            self._order = self._keys.bind_order(order)
        except BaseException:
            self._keys.close()
            raise

    def new(self) -> GroupTable:
        ctx = self._ctx
        self._table = GroupTable(
            self._key,
            work_dir=ctx.work_dir,
            memory_bytes=ctx.memory_bytes,
            operator_name=ctx.operator_name,
            order=self._order,
        )
        return self._table

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
        self._keys.close()


@final
class _GroupReduce(Operator):
    def __init__(self, spec: GroupReduceSpec) -> None:
        self._spec = spec
        self._tables: _BoundTables | None = None
        self._table: GroupTable | None = None
        self._function: MultiResultFunction | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        spec = self._spec
        self._tables = _BoundTables(spec.key, spec.order, ctx)
        self._table = self._tables.new()
        self._function = MultiResultFunction(spec.function, spec.methods, 1, ctx, out)
        self._function.open()

    def process_batch(self, input_index: int, batch: Batch) -> None:
        assert self._table is not None
        self._table.add(rows_of(batch).rows)

    def finish(self) -> None:
        assert self._table is not None
        assert self._function is not None
        none_yet = True
        for key, rows in self._table.groups():
            none_yet = False
            self._function(rows, record=_GroupOf(key, self._spec.key is None))
        if none_yet and self._spec.call_on_empty:
            self._function(iter(()), record=_GroupOf(None, True))
        self._function.collector.flush()

    def close(self) -> None:
        _close_both(self._function, self._tables)


def _close_both(function: MultiResultFunction | None, tables: _BoundTables | None) -> None:
    try:
        if function is not None:
            function.close()
    finally:
        if tables is not None:
            tables.close()


@final
class _GroupOf:
    """What an error shows instead of a record, as the function was called on a whole group."""

    def __init__(self, key: Any, is_all: bool) -> None:
        self._key = key
        self._is_all = is_all

    def __repr__(self) -> str:
        return "<all records of the partition>" if self._is_all else f"<group of key {self._key!r}>"


@final
@dataclass(frozen=True)
class GroupCombineSpec(OperatorSpec):
    """Like GroupReduceSpec, but a group may come in several parts: memory is emptied by calling the function."""

    not_checkpointed = BATCH_ONLY
    key: Any  #: key selector, or None
    function: Any
    order: tuple[tuple[Any, bool], ...] = ()
    methods: tuple[str, ...] = ("combine",)

    def build(self) -> Operator:
        return _GroupCombine(self)

    def describe(self) -> str:
        return "partial groups"


@final
class _GroupCombine(Operator):
    def __init__(self, spec: GroupCombineSpec) -> None:
        self._spec = spec
        self._tables: _BoundTables | None = None
        self._function: MultiResultFunction | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._tables = _BoundTables(self._spec.key, self._spec.order, ctx)
        self._table = self._tables.new()
        self._function = MultiResultFunction(self._spec.function, self._spec.methods, 1, ctx, out)
        self._function.open()

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._table.add(rows_of(batch).rows)
        if self._table.is_full:
            self._combine()

    def _combine(self) -> None:
        assert self._tables is not None
        assert self._function is not None
        for key, rows in self._table.groups():
            self._function(rows, record=_GroupOf(key, self._spec.key is None))
        self._function.collector.flush()
        self._table = self._tables.new()

    def finish(self) -> None:
        self._combine()

    def close(self) -> None:
        _close_both(self._function, self._tables)


@final
@dataclass(frozen=True)
class FirstInGroupSpec(OperatorSpec):
    """Keep the first ``n`` rows of each group; without a key of the subtask."""

    not_checkpointed = BATCH_ONLY
    key: Any  #: key selector, or None
    n: int
    order: tuple[tuple[Any, bool], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", bool(self.order))

    def build(self) -> Operator:
        return _FirstInGroup(self) if not self.order else _FirstSorted(self)


@final
class _FirstInGroup(Operator):
    """Without an order: counts per key, rows pass at once."""

    def __init__(self, spec: FirstInGroupSpec) -> None:
        self._spec = spec
        self._n = spec.n
        self._keys: BoundKeys | None = None
        self._key: KeyFunction | None = None
        self._seen_by_key: dict[Any, int] = {}

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        if self._spec.key is not None:
            self._keys = BoundKeys(ctx)
            self._key = self._keys.bind(self._spec.key)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        rows = rows_of(batch).rows
        seen_by_key = self._seen_by_key
        if self._key is None:
            seen = seen_by_key.get(None, 0)
            if seen < self._n:
                kept = rows[: self._n - seen]
                seen_by_key[None] = seen + len(kept)
                self.out.emit(RowBatch(kept))
            return
        kept = []
        for key, row in zip(keys_of(self._key, rows, self.ctx.operator_name), rows, strict=True):
            seen = seen_by_key.get(key, 0)
            if seen < self._n:
                seen_by_key[key] = seen + 1
                kept.append(row)
        if kept:
            self.out.emit(RowBatch(kept))

    def close(self) -> None:
        if self._keys is not None:
            self._keys.close()


@final
class _FirstSorted(Operator):
    def __init__(self, spec: FirstInGroupSpec) -> None:
        self._spec = spec
        self._tables: _BoundTables | None = None
        self._table: GroupTable | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._tables = _BoundTables(self._spec.key, self._spec.order, ctx)
        self._table = self._tables.new()

    def process_batch(self, input_index: int, batch: Batch) -> None:
        assert self._table is not None
        self._table.add(rows_of(batch).rows)

    def finish(self) -> None:
        assert self._table is not None
        kept: list[Any] = []
        for _, rows in self._table.groups():
            kept.extend(islice(rows, self._spec.n))
            if len(kept) >= 4096:
                self.out.emit(RowBatch(kept))
                kept = []
        if kept:
            self.out.emit(RowBatch(kept))

    def close(self) -> None:
        if self._tables is not None:
            self._tables.close()
