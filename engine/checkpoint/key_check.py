"""Looks, before a job is accepted, whether its keys are of the kind that the state was written with.

State of numbers is never found again under texts: the job would go on as if it had none. Only where the program
declares the type of its keys; where it does not, the first records tell (``state/key_types``). Reads the header of one
chunk of each state. Files of a backend's own (RocksDB) say nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.checkpoint.model import CompletedCheckpoint, JobLayout, OperatorLayout
from engine.checkpoint.restored_state import read_chunks, read_file
from engine.core.errors import EngineError, ProgramError
from engine.protocol.checkpoint import KeyedStateHandle, ListStateHandle
from engine.state.chunks import is_keyed_chunk, load_chunk, read_headers
from engine.state.key_types import ANY_KIND, never_equal
from engine.state.operator_state import OperatorStateSnapshot

__all__ = ["check_key_kinds", "state_names"]


def state_names(handle: KeyedStateHandle | ListStateHandle) -> list[str]:
    """Return what people call the states behind a handle; the part's name where its files do not tell."""
    try:
        if isinstance(handle, ListStateHandle):
            snapshot: OperatorStateSnapshot = load_chunk(read_file(handle.file), "Operator state")
            return [f"operator state {name!r}" for name in snapshot.states]
        for layer in handle.layers:
            group = min(layer.chunks, default=-1)
            for chunks in read_chunks(layer, range(group, group + 1)):
                for chunk in chunks.values():
                    if is_keyed_chunk(chunk):
                        return [f"keyed state {name!r}" for name in read_headers(chunk)]
    except EngineError:
        pass  # damaged; that the state has no place is what is to be told
    return [f"keyed state {handle.part!r}" if isinstance(handle, KeyedStateHandle) else "operator state"]


def check_key_kinds(checkpoint: CompletedCheckpoint, layout: JobLayout) -> None:
    """Raises: ProgramError that names uid, state, former and present kind of keys."""
    all_operators = [operator for vertex in layout.vertices for operator in vertex.operators]
    declared = {o.operator_id: o for o in all_operators if o.key_kind not in ("", ANY_KIND)}
    for vertex in checkpoint.vertices:
        for former in vertex.operators:
            operator = declared.get(former.operator_id)
            if operator is None:
                continue
            handles = [
                handle
                for _, subtask in sorted(vertex.subtasks.items())
                if former.operator_id in subtask.operators
                for handle in subtask.operators[former.operator_id].keyed
            ]
            _check(checkpoint, operator, handles)


def _check(checkpoint: CompletedCheckpoint, operator: OperatorLayout, handles: list[KeyedStateHandle]) -> None:
    known: set[str] = set()
    for handle in handles:
        for state, kinds in _kinds_in(handle):
            if state in known:
                continue
            known.add(state)
            if never_equal(operator.key_kind, kinds):
                raise ProgramError(
                    f"{checkpoint.folder or f'Checkpoint {checkpoint.checkpoint_id}'}: state {state!r} of operator "
                    f"{operator} was written with keys of type {' or '.join(kinds)}, and this version of the program "
                    f"has keys of type {operator.key_kind}: it would never find its state again. Key the stream as "
                    "before (and declare the type that its keys have), or give the operator another uid to start "
                    "without that state."
                )


def _kinds_in(handle: KeyedStateHandle) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the states of one chunk with the kinds of their keys."""
    for layer in handle.layers:
        for group in sorted(layer.chunks):
            for chunks in read_chunks(layer, range(group, group + 1)):
                for chunk in chunks.values():
                    if not is_keyed_chunk(chunk):
                        return  # timers, columns
                    headers = read_headers(chunk)
                    yield from ((name, h.key_kinds) for name, h in headers.items() if h.key_kinds and h.num_entries)
            return
