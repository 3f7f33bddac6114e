"""Values of rows in RocksDB as bytes. Classes of the user's program that cannot be imported are stored once, by name,
instead of with every value. Not here: keys (``rocksdb_keys``), chunks (``chunks``).
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from typing import Any, final

import cloudpickle

from engine.core.errors import ProgramError
from engine.state.chunks import dump_chunk, load_chunk

__all__ = ["ValueCodec"]

#: How a pickle with a class by name begins; no plain pickle does.
_NAMED = b"\x00"


@final
class ValueCodec:
    """``store_class(name, bytes)``: keep a class; ``load_class``: find its bytes again. ``owner``: for messages."""

    def __init__(
        self, store_class: Callable[[str, bytes], None], load_class: Callable[[str], bytes], owner: str
    ) -> None:
        self._store_class = store_class
        self._load_class = load_class
        self._owner = owner
        #: name → class, of those stored or loaded
        self._classes: dict[str, type] = {}
        #: types of values that plain pickle cannot do
        self._by_name: set[type] = set()

    def dumps(self, value: Any) -> bytes:
        """Raises what pickle raises."""
        if type(value) not in self._by_name:
            try:
                return pickle.dumps(value, 5)
            except Exception:
                if not isinstance(value, (tuple, list, dict)):
                    self._by_name.add(type(value))
        stream = io.BytesIO()
        _Pickler(stream, self).dump(value)
        return _NAMED + stream.getvalue()

    def loads(self, data: bytes, state_name: str) -> Any:
        try:
            if data[:1] == _NAMED:
                return _Unpickler(io.BytesIO(data[1:]), self).load()
            return pickle.loads(data)
        except ProgramError:
            raise
        except Exception:
            return load_chunk(data, f"{self._owner}: state {state_name!r}")  # says what is wrong

    def name_of(self, kind: type) -> str | None:
        """Return the name under which a class is stored, or None when it can be imported."""
        name = f"{kind.__module__}.{kind.__qualname__}"
        known = self._classes.get(name)
        if known is kind:
            return name
        found: Any = sys.modules.get(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is kind:
            return None
        self._store_class(name, dump_chunk(kind, f"class {name}"))
        self._classes[name] = kind
        return name

    def class_of(self, name: str) -> type:
        if name not in self._classes:
            self._classes[name] = load_chunk(self._load_class(name), f"{self._owner}: class {name}")
        return self._classes[name]


@final
class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, stream: io.BytesIO, codec: ValueCodec) -> None:
        super().__init__(stream, protocol=5)
        self._codec = codec

    def persistent_id(self, value: Any) -> str | None:
        return self._codec.name_of(value) if isinstance(value, type) else None


@final
class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, codec: ValueCodec) -> None:
        super().__init__(stream)
        self._codec = codec

    def persistent_load(self, name: Any) -> type:
        return self._codec.class_of(name)
