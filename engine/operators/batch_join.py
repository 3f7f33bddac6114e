"""Joins of two bounded inputs: hash join (inner and outer) that spills by partitions, and cross product.

Source: grace hash join. The build side is read first; when it outgrows the budget both sides are cut by a hash of
the key into files, and each pair of files is joined alone, cut again if it is still too large. A single key that
does not fit (or the deepest cut) is joined in pieces of the build side, the probe side being read once for each
piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, final

from engine.core.errors import Domain, EngineError
from engine.core.records import Batch, rows_of
from engine.operators.base import BATCH_ONLY, Operator, OperatorContext, OperatorSpec, Output
from engine.operators.batch_functions import Collector, bound, takes_collector
from engine.operators.batch_keys import BoundKeys, missing_field
from engine.operators.batch_order import keys_of
from engine.operators.batch_spill import SpillableRows, chunks_of, memory_budget, rows_bytes
from engine.operators.functions import FlatJoinFunction
from engine.state.key_groups import mix32

__all__ = ["CrossSpec", "HashJoinSpec", "Projection"]

KeyFunction = Callable[[Any], Any]
_FAN_OUT: Final = 16  # four bits of a 32-bit hash for each depth
_DEPTH_MAX: Final = 4
_SALT: Final = 0x5BD1E995


@final
@dataclass(frozen=True)
class Projection:
    """Result of a join without a function: chosen fields. ``fields``: (side 0 or 1, index; None = whole record)."""

    fields: tuple[tuple[int, int | str | None], ...]

    def __call__(self, first: Any, second: Any) -> tuple[Any, ...]:
        values: list[Any] = []
        for side, index in self.fields:
            row = second if side else first
            try:
                values.append(row if index is None or row is None else row[index])
            except (LookupError, TypeError) as error:
                name = "project_second" if side else "project_first"
                raise missing_field(f"{name}({index!r}):", row) from error
        return tuple(values)


def _pair(first: Any, second: Any) -> tuple[Any, Any]:
    return (first, second)


@final
class _PairFunction:
    """Calls the user's join or cross function; results go to the collector."""

    def __init__(self, function: Any, methods: tuple[str, ...], ctx: OperatorContext, out: Output) -> None:
        self.collector = Collector(out)
        self._function = bound(_pair if function is None else function, *methods)
        self._ctx = ctx
        self._call = self._function.call
        self._with_collector = function is not None and takes_collector(self._call, 2)
        self._is_flat = isinstance(function, FlatJoinFunction)

    def open(self) -> None:
        self._function.open(self._ctx)

    def __call__(self, first: Any, second: Any) -> None:
        try:
            if self._with_collector:
                self._call(first, second, self.collector)
                return
            result = self._call(first, second)
            if not self._is_flat:
                self.collector.collect(result)
            elif result is not None:
                self.collector.collect_all(result)
        except BaseException as error:
            if error is self.collector.emit_error:
                raise
            if isinstance(error, EngineError) and error.domain is not Domain.USER:
                raise
            raise self._function.error(error, (first, second)) from error

    def close(self) -> None:
        self._function.close()


@final
@dataclass(frozen=True)
class HashJoinSpec(OperatorSpec):
    """Equi-join of input 0 and input 1. ``keep_first``/``keep_second``: rows without a partner come out with None."""

    not_checkpointed = BATCH_ONLY
    first_key: Any
    second_key: Any
    function: Any = None
    keep_first: bool = False
    keep_second: bool = False
    #: the input that is held in the hash table
    build_side: int = 1
    num_inputs: int = field(default=2, init=False)
    inputs_first: tuple[int, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs_first", (self.build_side,))

    def build(self) -> Operator:
        return _HashJoin(self)

    def describe(self) -> str:
        return f"hash join, build side: input {self.build_side}"


@final
class _BuildTable:
    """The build rows of one partition by key, and which keys have met a partner."""

    def __init__(self) -> None:
        self.rows_by_key: dict[Any, list[Any]] = {}
        self.matched: set[Any] = set()

    def add(self, keys: Iterable[Any], rows: list[Any]) -> None:
        table = self.rows_by_key
        for key, row in zip(keys, rows, strict=True):
            found = table.get(key)
            if found is None:
                table[key] = [row]
            else:
                found.append(row)


@final
class _HashJoin(Operator):
    def __init__(self, spec: HashJoinSpec) -> None:
        self._build_side = spec.build_side
        self._spec = spec
        self._bound: BoundKeys | None = None
        self._keys: tuple[KeyFunction, ...] = ()
        self._keeps_build = spec.keep_second if spec.build_side else spec.keep_first
        self._keeps_probe = spec.keep_first if spec.build_side else spec.keep_second
        self._table = _BuildTable()
        self._bytes = 0
        self._parts: list[_Partition] | None = None
        self._files: list[SpillableRows] = []
        self._join: _PairFunction | None = None
        self._build_ended = False
        #: probe rows that came before the build side had ended; only when the runtime could not order the inputs
        self._early: SpillableRows | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._budget = memory_budget(ctx.memory_bytes)
        self._bound = BoundKeys(ctx)
        self._keys = tuple(self._bound.bind(key) for key in (self._spec.first_key, self._spec.second_key))
        self._join = _PairFunction(self._spec.function, ("join",), ctx, out)
        self._join.open()

    # --- input -----------------------------------------------------------------------------------------------------

    def process_batch(self, input_index: int, batch: Batch) -> None:
        rows = rows_of(batch).rows
        if not rows:
            return
        if input_index == self._build_side:
            self._add_build(rows)
        elif not self._build_ended:
            if self._early is None:
                self._early = self._new_file("early", self._budget // 4)
            self._early.extend(rows)
        else:
            self._add_probe(rows)

    def end_input(self, input_index: int) -> None:
        if input_index != self._build_side:
            return
        self._build_ended = True
        if self._early is not None:
            for rows in chunks_of(self._early):
                self._add_probe(rows)
            self._early.clear()

    def _key_of(self, side: int, rows: list[Any]) -> list[Any]:
        return keys_of(self._keys[side], rows, self.ctx.operator_name)

    def _add_build(self, rows: list[Any]) -> None:
        keys = self._key_of(self._build_side, rows)
        if self._parts is not None:
            _distribute(self._parts, keys, rows, 0, is_build=True)
            return
        self._table.add(keys, rows)
        self._bytes += rows_bytes(rows) + 64 * len(rows)
        if self._bytes > self._budget:
            self._parts = self._new_parts()
            for key, held in self._table.rows_by_key.items():
                _distribute(self._parts, [key] * len(held), held, 0, is_build=True)
            self._table, self._bytes = _BuildTable(), 0

    def _add_probe(self, rows: list[Any]) -> None:
        assert self._join is not None
        keys = self._key_of(1 - self._build_side, rows)
        if self._parts is not None:
            _distribute(self._parts, keys, rows, 0, is_build=False)
            return
        self._probe(self._table, keys, rows)
        self._join.collector.flush()

    # --- joining ---------------------------------------------------------------------------------------------------

    def _emit_pair(self, build_row: Any, probe_row: Any) -> None:
        assert self._join is not None
        if self._build_side:
            self._join(probe_row, build_row)
        else:
            self._join(build_row, probe_row)

    def _probe(self, table: _BuildTable, keys: list[Any], rows: list[Any]) -> None:
        emit = self._emit_pair
        rows_by_key = table.rows_by_key
        for key, row in zip(keys, rows, strict=True):
            partners = rows_by_key.get(key)
            if partners is None:
                if self._keeps_probe:
                    emit(None, row)
                continue
            if self._keeps_build:
                table.matched.add(key)
            for partner in partners:
                emit(partner, row)

    def _emit_unmatched(self, table: _BuildTable) -> None:
        if self._keeps_build:
            for key, rows in table.rows_by_key.items():
                if key not in table.matched:
                    for row in rows:
                        self._emit_pair(row, None)

    def finish(self) -> None:
        assert self._join is not None
        if self._parts is None:
            self._emit_unmatched(self._table)
        else:
            parts, self._parts = self._parts, None
            for part in parts:
                self._join_partition(part, 0)
        self._join.collector.flush()

    def _join_partition(self, part: _Partition, depth: int) -> None:
        fits = part.build_bytes <= self._budget
        if not fits and depth < _DEPTH_MAX and not part.has_one_hash:
            parts = self._new_parts()
            for side, rows_of_side in ((self._build_side, part.build), (1 - self._build_side, part.probe)):
                for rows in chunks_of(rows_of_side):
                    keys = self._key_of(side, rows)
                    _distribute(parts, keys, rows, depth + 1, is_build=side == self._build_side)
            part.clear()
            for inner in parts:
                self._join_partition(inner, depth + 1)
            return
        if fits:
            table = _BuildTable()
            for rows in chunks_of(part.build):
                table.add(self._key_of(self._build_side, rows), rows)
            for rows in chunks_of(part.probe):
                self._probe(table, self._key_of(1 - self._build_side, rows), rows)
            self._emit_unmatched(table)
        else:
            self._join_in_pieces(part)
        part.clear()

    def _join_in_pieces(self, part: _Partition) -> None:
        """Join a build side that cannot be cut: piece by piece, each against the whole probe side."""
        probe_side = 1 - self._build_side
        build_keys: set[Any] = set()
        for piece in self._pieces(part.build):
            table = _BuildTable()
            table.add(self._key_of(self._build_side, piece), piece)
            build_keys.update(table.rows_by_key)
            for rows in chunks_of(part.probe):
                keys = self._key_of(probe_side, rows)
                kept = [(key, row) for key, row in zip(keys, rows, strict=True) if key in table.rows_by_key]
                self._probe(table, [key for key, _ in kept], [row for _, row in kept])
            self._emit_unmatched(table)
        if self._keeps_probe:
            for rows in chunks_of(part.probe):
                for key, row in zip(self._key_of(probe_side, rows), rows, strict=True):
                    if key not in build_keys:
                        self._emit_pair(None, row)

    def _pieces(self, rows: SpillableRows) -> Iterator[list[Any]]:
        piece: list[Any] = []
        size = 0
        for chunk in chunks_of(rows, 256):
            piece.extend(chunk)
            size += rows_bytes(chunk)
            if size > self._budget:
                yield piece
                piece, size = [], 0
        if piece:
            yield piece

    # --- files -----------------------------------------------------------------------------------------------------

    def _new_file(self, prefix: str, memory_bytes: int) -> SpillableRows:
        file = SpillableRows(self.ctx.work_dir, max(1, memory_bytes), prefix)
        self._files.append(file)
        return file

    def _new_parts(self) -> list[_Partition]:
        share = self._budget // (4 * _FAN_OUT)
        return [_Partition(self._new_file("build", share), self._new_file("probe", share)) for _ in range(_FAN_OUT)]

    def close(self) -> None:
        try:
            if self._join is not None:
                self._join.close()
        finally:
            for file in self._files:
                file.clear()
            self._files, self._table = [], _BuildTable()
            if self._bound is not None:
                self._bound.close()


@final
class _Partition:
    """Both sides' rows whose keys fall into one part."""

    def __init__(self, build: SpillableRows, probe: SpillableRows) -> None:
        self.build = build
        self.probe = probe
        self.build_bytes = 0
        self._hashes: set[int] = set()

    @property
    def has_one_hash(self) -> bool:
        """All build keys have one hash: cutting again is of no use."""
        return len(self._hashes) <= 1

    def add_build(self, rows: list[Any], hashes: Iterable[int]) -> None:
        self.build.extend(rows)
        self.build_bytes += rows_bytes(rows) + 64 * len(rows)
        for own in hashes:
            if len(self._hashes) > 1:
                break
            self._hashes.add(own)

    def clear(self) -> None:
        self.build.clear()
        self.probe.clear()


def _distribute(parts: list[_Partition], keys: list[Any], rows: list[Any], depth: int, *, is_build: bool) -> None:
    rows_of_part: list[list[Any]] = [[] for _ in parts]
    hashes_of_part: list[list[int]] = [[] for _ in parts]
    for key, row in zip(keys, rows, strict=True):
        own = hash(key)
        # Other bits at each depth, else a part would fall into one part again; salted, as the exchange that brought the
        # rows here has looked at the bits of the plain mix.
        number = (mix32((own ^ (own >> 32) ^ _SALT) & 0xFFFFFFFF) >> (4 * depth)) % _FAN_OUT
        rows_of_part[number].append(row)
        hashes_of_part[number].append(own)
    for part, own_rows, hashes in zip(parts, rows_of_part, hashes_of_part, strict=True):
        if not own_rows:
            continue
        if is_build:
            part.add_build(own_rows, hashes)
        else:
            part.probe.extend(own_rows)


@final
@dataclass(frozen=True)
class CrossSpec(OperatorSpec):
    """Every pair of a row of input 0 and one of input 1. ``build_side``: the input kept, to be sent to all subtasks."""

    not_checkpointed = BATCH_ONLY
    function: Any = None
    build_side: int = 1
    num_inputs: int = field(default=2, init=False)
    inputs_first: tuple[int, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs_first", (self.build_side,))

    def build(self) -> Operator:
        return _Cross(self)

    def describe(self) -> str:
        return f"nested loop, kept side: input {self.build_side}"


@final
class _Cross(Operator):
    def __init__(self, spec: CrossSpec) -> None:
        self._spec = spec
        self._kept: SpillableRows | None = None
        self._early: SpillableRows | None = None
        self._function: _PairFunction | None = None
        self._build_ended = False

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._kept = SpillableRows(ctx.work_dir, ctx.memory_bytes, "cross")
        self._early = SpillableRows(ctx.work_dir, memory_budget(ctx.memory_bytes) // 4, "early")
        self._function = _PairFunction(self._spec.function, ("cross",), ctx, out)
        self._function.open()

    def process_batch(self, input_index: int, batch: Batch) -> None:
        assert self._kept is not None
        assert self._early is not None
        rows = rows_of(batch).rows
        if input_index == self._spec.build_side:
            self._kept.extend(rows)
        elif not self._build_ended:
            self._early.extend(rows)
        else:
            self._cross(rows)

    def end_input(self, input_index: int) -> None:
        if input_index == self._spec.build_side:
            assert self._early is not None
            self._build_ended = True
            for rows in chunks_of(self._early):
                self._cross(rows)
            self._early.clear()

    def _cross(self, rows: list[Any]) -> None:
        assert self._kept is not None
        assert self._function is not None
        function = self._function
        # A spilled side is read once per batch of the other, not once per row.
        outer = ((kept, row) for kept in self._kept for row in rows) if self._kept.is_spilled else None
        if outer is None:
            outer = ((kept, row) for row in rows for kept in self._kept)
        for kept, row in outer:
            if self._spec.build_side:
                function(row, kept)
            else:
                function(kept, row)
        function.collector.flush()

    def close(self) -> None:
        if self._function is not None:
            self._function.close()
        for rows in (self._kept, self._early):
            if rows is not None:
                rows.clear()
