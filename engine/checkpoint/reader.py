"""Reads what a savepoint or retained checkpoint holds, without the program that wrote it: state is no black box.

    reader = SavepointReader.read("hdfs:///flink/savepoint-1537")
    for operator in reader.operators(): print(operator.name, [state.name for state in operator.states])
    reader.keyed_state("sessions", "count").to_pandas()

Values of classes that cannot be imported are shown with their attributes. Blocks; reads the files of one operator at a
time. Not here: how tasks restore (``restored_state``), tables of values (``state_tables``).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

from engine.checkpoint.column_tables import SESSION_SLOTS, column_entries, gone_by, is_column_part, replaced_keys
from engine.checkpoint.held_tables import held_part_of, take_up_held
from engine.checkpoint.model import CompletedCheckpoint, OperatorLayout, VertexState
from engine.checkpoint.restored_state import HandleRestoredState, read_chunks, read_file
from engine.checkpoint.state_tables import StateTable
from engine.checkpoint.storage import read_checkpoint
from engine.core.clock import SystemClock
from engine.core.errors import InputError
from engine.protocol.checkpoint import KeyedStateHandle, ListStateHandle, OperatorRestore, OperatorStateHandles
from engine.state.chunks import load_chunk, load_keyed, read_headers
from engine.state.operator_state import OperatorStateSnapshot, Redistribution
from engine.state.parts import FilePart, HostedPart
from engine.state.timers import read_timers

__all__ = ["OperatorSummary", "SavepointReader", "StateSummary"]

TIMERS: Final = "timers"
_GROUPS_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class StateSummary:
    name: str
    kind: str  #: value, list, map, reducing, aggregating; timers; list state (split, union), broadcast state; table
    num_entries: int  #: of lists and maps the number of keys
    size_bytes: int
    has_ttl: bool = False
    is_estimate: bool = False  #: increments may name an entry more than once


@dataclass(frozen=True, slots=True)
class OperatorSummary:
    uid: str | None
    name: str
    operator_id: str
    parallelism: int
    max_parallelism: int
    states: tuple[StateSummary, ...]


@final
class SavepointReader:
    """Made by ``read``. Operators are named by uid, or by name or id where that is unique."""

    def __init__(self, checkpoint: CompletedCheckpoint) -> None:
        self.checkpoint = checkpoint

    @staticmethod
    def read(path: str) -> SavepointReader:
        """Raises: InputError when nothing is there, CorruptStateError when it is damaged."""
        return SavepointReader(read_checkpoint(path))

    def operators(self) -> list[OperatorSummary]:
        """Return all operators, with what they keep; reads all keyed state to count it."""
        return [self._summary(vertex, layout) for vertex, layout in self._layouts()]

    def operator(self, operator: str) -> OperatorSummary:
        """Return one of them. Raises: InputError that names what there is when there is no such operator."""
        return self._summary(*self._find(operator))

    def _summary(self, vertex: VertexState, layout: OperatorLayout) -> OperatorSummary:
        return OperatorSummary(
            layout.uid,
            layout.name,
            layout.operator_id,
            vertex.parallelism,
            vertex.max_parallelism,
            tuple(self._states(vertex, layout)),
        )

    def keyed_state(self, operator: str, state: str) -> StateTable:
        """Return one keyed state as a table that is read when it is asked for.

        Raises: InputError that names what there is when there is no such operator or state.
        """
        vertex, layout = self._find(operator)
        kinds = {summary.name: summary for summary in self._states(vertex, layout)}
        found = kinds.get(state)
        if found is None or found.kind not in _KEYED_KINDS:
            keyed = [name for name, summary in kinds.items() if summary.kind in _KEYED_KINDS]
            known = ", ".join(map(repr, keyed)) or "none"
            raise InputError(f"{_describe(layout)} has no keyed state {state!r} here; it has {known}.")
        kind = found.kind if found.kind in ("list", "map") else "value"
        return StateTable(state, kind, found.has_ttl, lambda: self._cells(vertex, layout, state))

    def timers(self, operator: str) -> StateTable:
        """Return the timers of an operator: key, namespace (window), time and domain."""
        vertex, layout = self._find(operator)
        return StateTable(TIMERS, TIMERS, False, lambda: self._timers(vertex, layout))

    def operator_state(self, operator: str, state: str) -> list[Any]:
        """Return the elements of a list state of all subtasks, or the (key, value) of a broadcast state."""
        vertex, layout = self._find(operator)
        elements: list[Any] = []
        for snapshot in self._lists(vertex, layout):
            if state not in snapshot.states:
                continue
            mode, chunks = snapshot.states[state]
            loaded = [load_chunk(chunk, f"state {state!r}", tolerant=True) for chunk in chunks]
            if mode is Redistribution.BROADCAST:
                return [item for entries in loaded for item in entries.items()]
            elements += loaded
        return elements

    # --- operators -------------------------------------------------------------------------------------------------

    def _layouts(self) -> Iterator[tuple[VertexState, OperatorLayout]]:
        for vertex in self.checkpoint.vertices:
            for layout in vertex.operators:
                yield vertex, layout

    def _find(self, operator: str) -> tuple[VertexState, OperatorLayout]:
        for matches in (
            [pair for pair in self._layouts() if pair[1].uid == operator],
            [pair for pair in self._layouts() if pair[1].operator_id == operator],
            [pair for pair in self._layouts() if pair[1].name == operator],
        ):
            if len(matches) == 1:
                return matches[0]
            if matches:
                ids = ", ".join(layout.operator_id for _, layout in matches)
                raise InputError(f"{len(matches)} operators are named {operator!r}; name one by its id: {ids}.")
        known = ", ".join(_describe(layout) for _, layout in self._layouts())
        raise InputError(f"There is no operator {operator!r} here; there are: {known or 'none'}.")

    def _handles(self, vertex: VertexState, layout: OperatorLayout) -> Iterator[OperatorStateHandles]:
        for _, subtask in sorted(vertex.subtasks.items()):
            handles = subtask.operators.get(layout.operator_id)
            if handles is not None:
                yield handles

    def _lists(self, vertex: VertexState, layout: OperatorLayout) -> Iterator[OperatorStateSnapshot]:
        for handles in self._handles(vertex, layout):
            if handles.lists is not None:
                yield _load_lists(handles.lists)

    def _states(self, vertex: VertexState, layout: OperatorLayout) -> Iterator[StateSummary]:
        found: dict[str, StateSummary] = {}

        def add(summary: StateSummary) -> None:
            known = found.get(summary.name)
            if known is None:
                found[summary.name] = summary
                return
            found[summary.name] = StateSummary(
                known.name,
                known.kind,
                known.num_entries + summary.num_entries,
                known.size_bytes + summary.size_bytes,
                known.has_ttl,
                known.is_estimate or summary.is_estimate,
            )

        for handles in self._handles(vertex, layout):
            for handle in handles.keyed:
                for part, is_delta, chunk in _chunks(handle, vertex.max_parallelism):
                    for summary in _summaries(part, chunk, is_delta):
                        add(summary)
        for snapshot in self._lists(vertex, layout):
            for name, (mode, chunks) in snapshot.states.items():
                kind = "broadcast state" if mode is Redistribution.BROADCAST else f"list state ({mode.value})"
                add(StateSummary(name, kind, len(chunks), sum(map(len, chunks))))
        yield from found.values()

    # --- entries ---------------------------------------------------------------------------------------------------

    def _cells(self, vertex: VertexState, layout: OperatorLayout, state: str) -> Iterator[tuple[Any, Any, Any]]:
        """Yield (key, namespace, cell) of all subtasks."""

        def take_columns(chunk: bytes, cells: dict[Any, Any]) -> None:
            if is_gone := gone_by(state, chunk):
                for place in [place for place, entry in cells.items() if is_gone(entry)]:
                    del cells[place]
            if replaced := set(map(_hashable, replaced_keys(chunk))) if state == SESSION_SLOTS else None:
                for place in [place for place in cells if place[1] in replaced]:
                    del cells[place]
            for key, namespace, value in column_entries(state, chunk):
                cells[namespace, _hashable(key)] = (key, namespace, value)

        def take(chunk: bytes, cells: dict[Any, Any]) -> None:
            loaded = load_keyed(chunk, _describe(layout), state, tolerant=True).get(state)
            if loaded is None:
                return
            for namespace, keys in loaded.removed:
                for key in keys:
                    cells.pop((_hashable(namespace), _hashable(key)), None)
            for namespace, keys, values in loaded.entries:
                for key, cell in zip(keys, values, strict=True):
                    cells[_hashable(namespace), _hashable(key)] = (key, namespace, cell)

        for handles in self._handles(vertex, layout):
            for handle in handles.keyed:
                if is_column_part(handle.part):
                    if handle.part == state:
                        held = next((own for own in handles.keyed if own.part == held_part_of(state)), None)
                        yield from _merged(handle, vertex.max_parallelism, take_columns, held=held)
                elif handle.part != TIMERS:
                    yield from _merged(handle, vertex.max_parallelism, take)

    def _timers(self, vertex: VertexState, layout: OperatorLayout) -> Iterator[tuple[Any, Any, Any]]:
        def take(chunk: bytes, timers: dict[Any, Any]) -> None:
            for position, of_queue in enumerate(read_timers(chunk, _describe(layout), tolerant=True)):
                domain = ("event time", "processing time")[position % 2]
                for time_ms, key, namespace in of_queue:
                    place = (domain, time_ms, _hashable(key), _hashable(namespace))
                    if position < 2:
                        timers[place] = (key, namespace, (time_ms, domain))
                    else:
                        timers.pop(place, None)

        for handles in self._handles(vertex, layout):
            # One without chunks says that the timers are in the files of the keyed state.
            are_in_files = any(handle.part == TIMERS and not handle.layers for handle in handles.keyed)
            for handle in handles.keyed:
                if handle.part == TIMERS or (handle.files and are_in_files):
                    yield from _merged(handle, vertex.max_parallelism, take, TIMERS)


_KEYED_KINDS: Final = ("value", "list", "map", "reducing", "aggregating", "table")


def _describe(layout: OperatorLayout) -> str:
    return f"Operator {layout}"


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _load_lists(handle: ListStateHandle) -> OperatorStateSnapshot:
    snapshot: OperatorStateSnapshot = load_chunk(read_file(handle.file), "Operator state")
    return snapshot


def _summaries(part: str, chunk: bytes, is_delta: bool) -> Iterator[StateSummary]:
    if part == TIMERS:
        timers = read_timers(chunk, tolerant=True)
        yield StateSummary(TIMERS, TIMERS, sum(map(len, timers[:2])), len(chunk), is_estimate=is_delta)
        return
    if is_column_part(part):
        num_entries = sum(1 for _ in column_entries(part, chunk))
        yield StateSummary(part, "table", num_entries, len(chunk), is_estimate=is_delta)
        return
    try:
        headers = read_headers(chunk)
    except Exception:  # in a format of its operator's
        yield StateSummary(part, "unknown", 0, len(chunk))
        return
    for name, header in headers.items():
        yield StateSummary(name, header.kind, header.num_entries, header.size_bytes, header.has_ttl, is_delta)


def _chunks(handle: KeyedStateHandle, max_parallelism: int) -> Iterator[tuple[str, bool, bytes]]:
    """Yield all chunks behind a handle with the name of their part, and whether they are increments."""
    with _layers(handle, max_parallelism) as (groups, read):
        for part in (handle.part, TIMERS) if handle.files else (handle.part,):
            for is_delta, chunks in read(groups, part):
                for chunk in chunks.values():
                    yield part, is_delta, chunk


def _merged(
    handle: KeyedStateHandle,
    max_parallelism: int,
    take: Callable[[bytes, dict[Any, Any]], None],
    part: str = "",
    held: KeyedStateHandle | None = None,
) -> Iterator[Any]:
    """Yield what ``take`` leaves of the layers of each key group; not more than some groups are in memory. ``part``:
    which one of those in the handle's files; by default its own. ``held``: records that are taken up at last."""
    with _layers(handle, max_parallelism) as (groups, read):
        for start in range(groups.start, groups.stop, _GROUPS_AT_ONCE):
            entries: dict[int, dict[Any, Any]] = {}
            for _, chunks in read(range(start, min(groups.stop, start + _GROUPS_AT_ONCE)), part or handle.part):
                for group, chunk in chunks.items():
                    take(chunk, entries.setdefault(group, {}))
            if held is not None:
                _take_up_of(held, max_parallelism, range(start, min(groups.stop, start + _GROUPS_AT_ONCE)), entries)
            for group in sorted(entries):
                yield from entries[group].values()


def _take_up_of(
    held: KeyedStateHandle, max_parallelism: int, wanted: range, entries: dict[int, dict[Any, Any]]
) -> None:
    with _layers(held, max_parallelism) as (_, read):
        for _, chunks in read(wanted, held.part):
            for group, chunk in chunks.items():
                take_up_held(chunk, entries.setdefault(group, {}), _hashable)


_Read = Callable[[range, str], Iterator[tuple[bool, dict[int, bytes]]]]


@contextmanager
def _layers(handle: KeyedStateHandle, max_parallelism: int) -> Iterator[tuple[range, _Read]]:
    """Give the key groups of a part of one subtask, and what reads the chunks of some of them, layer by layer. It is
    told the part's name, as files hold timers besides."""
    groups = range(handle.key_group_start, handle.key_group_end)

    def read(wanted: range, part: str) -> Iterator[tuple[bool, dict[int, bytes]]]:
        for layer in handle.layers:
            for chunks in read_chunks(layer, wanted):
                yield layer.is_delta, chunks

    if not handle.files:
        yield groups, read
        return
    # Files of RocksDB: open a copy.
    from engine.state.rocksdb_backend import RocksDBKeyedStateBackend
    from engine.state.rocksdb_timers import RocksTimers

    with tempfile.TemporaryDirectory(prefix="flink-state-") as folder:
        backend = RocksDBKeyedStateBackend(
            SystemClock(), max_parallelism, folder=os.path.join(folder, "db"), memory_bytes=64 << 20, session="reader"
        )
        restored = HandleRestoredState(
            OperatorRestore((handle,)),
            operator_name=handle.part,
            subtask_index=0,
            parallelism=1,
            key_groups=groups,
            work_dir=os.path.join(folder, "files"),
        )
        try:
            for files, key_groups in restored.keyed_folders(handle.part, handle.format):
                backend.restore_files(files, key_groups)
            parts: dict[str, FilePart | HostedPart] = {handle.part: backend, TIMERS: RocksTimers(backend)}
            yield groups, lambda wanted, part: ((False, {g: chunk}) for g, chunk in parts[part].snapshot(wanted))
        finally:
            backend.close()
