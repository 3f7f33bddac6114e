"""State as bytes and back: one chunk is what a part of state holds for one key group.

A chunk of keyed state is a header (which states, of what kind, how many entries, keys of which types) and a pickle for
each state, so that a value that cannot be read names its state, and a listing reads no value. Timers and elements of
operator state are single pickles. Classes of the user's program that other processes cannot import go by value; when
they come back, the program's own class of that name is taken if there is one, so that new code works on old state.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any, Final, final

from engine.core import user_code
from engine.core.errors import ProgramError
from engine.core.late_dataclass import dataclass

__all__ = [
    "LazyChunks",
    "StateChunk",
    "StateHeader",
    "UnknownValue",
    "dump_chunk",
    "dump_keyed",
    "is_keyed_chunk",
    "key_kinds_of",
    "load_chunk",
    "load_keyed",
    "read_headers",
]

_MAGIC: Final = b"KEYS"
_VERSION: Final = 1
#: magic, version, size of the header
_PREFIX: Final = struct.Struct("<4sHI")
#: Names of key types that a header lists; a state whose keys are of more types than that says nothing about them.
_KEY_KINDS_MAX: Final = 8


@dataclass(slots=True)
class StateChunk:
    """One state in one key group. ``entries``: (namespace, keys, cells); ``removed``: (namespace, keys), in deltas."""

    kind: str
    has_ttl: bool
    entries: list[tuple[Any, list[Any], list[Any]]] = field(default_factory=list)
    removed: list[tuple[Any, list[Any]]] = field(default_factory=list)

    def num_entries(self) -> int:
        return sum(len(keys) for _, keys, _ in self.entries)


@dataclass(frozen=True, slots=True)
class StateHeader:
    """What a chunk says about a state before any value is read. ``key_kinds``: names of the keys' types."""

    kind: str
    has_ttl: bool
    num_entries: int
    num_removed: int
    key_kinds: tuple[str, ...]
    size_bytes: int


# --- pickles ----------------------------------------------------------------------------------------------------------


def dump_chunk(content: Any, what: str) -> bytes:
    """Raises: ProgramError that names ``what`` when something in it cannot be pickled."""
    try:
        return pickle.dumps(content, 5)
    except Exception:  # classes of the user's program are not importable here: they go by value
        return user_code.dumps_value(content, what)


def load_chunk(data: bytes | memoryview, what: str = "state", *, start: int = 0, tolerant: bool = False) -> Any:
    """``start``: where the pickle begins; bytes are not copied. ``tolerant``: for a class that is gone make one that
    only shows what its values hold.

    Raises: ProgramError that names ``what`` when a class is gone or has changed too much.
    """
    try:
        stream = io.BytesIO(data)
        stream.seek(start)
        return _Unpickler(stream, tolerant).load()
    except Exception as error:
        raise ProgramError(
            f"{what} cannot be restored: {type(error).__name__}: {error}. A class that its values need was renamed, "
            "moved or changed in this version of the program. Keep the old name as an alias of the new class, or let "
            "the class take the old form in __setstate__; to start without this state, give the state another name."
        ) from error


class UnknownValue:
    """Stands for a value whose class is not there; has its attributes, and what it was made with as ``arguments``."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __new__(cls, *arguments: Any) -> UnknownValue:
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update(part)

    def __repr__(self) -> str:
        shown = [*map(repr, self.arguments), *(f"{k}={v!r}" for k, v in vars(self).items() if k != "arguments")]
        return f"{type(self).__name__}({', '.join(shown)})"


@final
class _Unpickler(pickle.Unpickler):
    """Classes that were pickled by value become the program's own ones where it has them."""

    def __init__(self, file: io.BytesIO, tolerant: bool) -> None:
        super().__init__(file)
        self._tolerant = tolerant
        self._adopted: set[type] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("cloudpickle"):
            match name:
                case "_make_skeleton_class":
                    return self._skeleton_class
                case "_make_skeleton_enum":
                    return self._skeleton_enum
                case "_class_setstate":
                    return self._class_setstate
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            if not self._tolerant:
                raise
            return type(name.rpartition(".")[2], (UnknownValue,), {"__module__": module})

    def _skeleton_class(self, maker: Any, name: str, bases: Any, settings: dict[str, Any], *rest: Any) -> Any:
        known = _class_of_program(settings.get("__module__"), name, settings.get("__qualname__"), rest[0])
        if known is not None:
            self._adopted.add(known)
            return known
        return _cloudpickle()._make_skeleton_class(maker, name, bases, settings, *rest)

    def _skeleton_enum(self, bases: Any, name: str, qualname: str, members: Any, module: str, *rest: Any) -> Any:
        known = _class_of_program(module, name, qualname, rest[0])
        if known is not None:
            self._adopted.add(known)
            return known
        return _cloudpickle()._make_skeleton_enum(bases, name, qualname, members, module, *rest)

    def _class_setstate(self, made: Any, state: Any) -> Any:
        return made if made in self._adopted else _cloudpickle()._class_setstate(made, state)


def _cloudpickle() -> Any:
    import cloudpickle.cloudpickle

    return cloudpickle.cloudpickle


def _class_of_program(module: Any, name: str, qualname: str | None, tracker_id: Any) -> type | None:
    """Return the class that was meant, if this process has it, or the one of that name: of an importable module, or one
    that came by value."""
    tracked = _cloudpickle()._DYNAMIC_CLASS_TRACKER_BY_ID
    same = tracked.get(tracker_id)
    if isinstance(same, type):
        return same
    if "<locals>" not in (qualname or name):
        found = getattr(sys.modules.get(module), name, None)
        if isinstance(found, type) and found.__module__ == module:
            return found
    # The first that came is the program's: later ones would have been adopted.
    for known in list(tracked.values()):
        is_named = isinstance(known, type) and known.__name__ == name and known.__module__ == module
        if is_named and qualname in (None, known.__qualname__):
            return known
    return None


@final
class LazyChunks(Mapping[int, bytes]):
    """Chunks by key group that are made when they are asked for, each time anew."""

    def __init__(self, groups: Mapping[int, Any], dump: Callable[[Any], bytes]) -> None:
        self._groups = groups
        self._dump = dump

    def __getitem__(self, group: int) -> bytes:
        return self._dump(self._groups[group])

    def __iter__(self) -> Iterator[int]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)


# --- keyed state ------------------------------------------------------------------------------------------------------


def dump_keyed(states: Mapping[str, StateChunk], owner: str) -> bytes:
    """Raises: ProgramError that names state and key when a value cannot be pickled. ``owner``: whose state it is."""
    header: dict[str, tuple[str, bool, int, int, tuple[str, ...], int]] = {}
    blobs: list[bytes] = []
    for name, chunk in states.items():
        try:
            blob = dump_chunk((chunk.entries, chunk.removed), f"{owner}: state {name!r}")
        except ProgramError as error:
            raise _unpicklable(name, chunk, owner) or error from error
        num_removed = sum(len(keys) for _, keys in chunk.removed)
        header[name] = (chunk.kind, chunk.has_ttl, chunk.num_entries(), num_removed, _key_kinds(chunk), len(blob))
        blobs.append(blob)
    head = pickle.dumps(header, 5)
    return b"".join([_PREFIX.pack(_MAGIC, _VERSION, len(head)), head, *blobs])


def _key_kinds(chunk: StateChunk) -> tuple[str, ...]:
    kinds: set[type] = set()
    for _, keys, _ in chunk.entries:
        kinds.update(map(type, keys))
    return key_kinds_of(kinds)


def key_kinds_of(kinds: Iterable[type]) -> tuple[str, ...]:
    """Return names for the types of keys; numbers are one kind, as equal ones are one key. () = too many to tell."""
    names = {"number" if kind in (int, float, bool) else kind.__name__ for kind in kinds}
    return tuple(sorted(names)) if len(names) <= _KEY_KINDS_MAX else ()


def _unpicklable(name: str, chunk: StateChunk, owner: str) -> ProgramError | None:
    """Find the entry that cannot be pickled, to name its key."""
    for namespace, keys, cells in chunk.entries:
        for key, cell in zip(keys, cells, strict=True):
            try:
                dump_chunk(cell, "the value")
            except ProgramError as error:
                where = f"key {user_code.describe_record(key)}" + ("" if namespace is None else f" in {namespace!r}")
                return ProgramError(
                    f"{owner}: state {name!r}, {where}: no checkpoint can be taken, as {error}: "
                    f"{user_code.describe_record(cell)}. Keep plain values in state, or objects that consist of them; "
                    "connections, locks and generators belong into open()."
                )
    return None


def is_keyed_chunk(data: bytes) -> bool:
    """Whether a chunk is of keyed state, and not of another part."""
    return data[: len(_MAGIC)] == _MAGIC


def read_headers(data: bytes | memoryview, owner: str = "Keyed state") -> dict[str, StateHeader]:
    """Return what is in a chunk without reading a value."""
    return {name: header for name, header, _ in _parts(data, owner)}


def load_keyed(
    data: bytes | memoryview, owner: str, only: str | None = None, *, tolerant: bool = False
) -> dict[str, StateChunk]:
    """Raises: ProgramError that names the state when its values need a class that is gone. ``only``: of all states.
    ``tolerant``: as in ``load_chunk``."""
    states = {}
    for name, header, start in _parts(data, owner):
        if only is None or name == only:
            entries, removed = load_chunk(data, f"{owner}: state {name!r}", start=start, tolerant=tolerant)
            states[name] = StateChunk(header.kind, header.has_ttl, entries, removed)
    return states


def _parts(data: bytes | memoryview, owner: str) -> Iterator[tuple[str, StateHeader, int]]:
    """Yield the states: name, header, and where its pickle begins."""
    view = memoryview(data)
    if len(view) < _PREFIX.size:
        raise ProgramError(f"{owner}: a chunk of {len(view)} bytes is no keyed state: the file is torn.")
    magic, version, head_size = _PREFIX.unpack_from(view)
    if magic != _MAGIC or version != _VERSION:
        seen = f"version {version}" if magic == _MAGIC else f"it begins with {bytes(magic)!r}"
        raise ProgramError(
            f"{owner}: the format of its keyed state is not known here ({seen}, expected version {_VERSION}): "
            "it was written by another release of the engine."
        )
    start = _PREFIX.size + head_size
    for name, fields in pickle.loads(view[_PREFIX.size : start]).items():
        header = StateHeader(*fields)
        yield name, header, start
        start += header.size_bytes
