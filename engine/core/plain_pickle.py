"""Values of engine classes and plain types ⇄ bytes: pickle, read back by an unpickler that admits nothing else.

Whoever wrote the bytes can therefore make a process build data, but not call a function, import a foreign module or
touch user code. Used for messages (``rpc/codec``) and for what coordinators keep in checkpoints.
Not here: user code and records (``core/user_code``).
"""

from __future__ import annotations

import enum
import io
import pickle
from typing import Any, Final

__all__ = ["dump_plain", "load_plain"]

#: Foreign classes whose construction does nothing but hold a value.
_SAFE: Final[frozenset[tuple[str, str]]] = frozenset(
    {("builtins", name) for name in ("set", "frozenset", "bytearray", "complex", "range", "slice", "object")}
    | {("collections", name) for name in ("deque", "OrderedDict", "defaultdict", "Counter")}
    | {("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")}
    | {("decimal", "Decimal"), ("uuid", "UUID")}
)
#: Layers that hold data. Shells (clusters, processes, servers) are never built by a message.
_DATA_LAYERS: Final[tuple[str, ...]] = (
    "engine.core.",
    "engine.formats.",
    "engine.time.",
    "engine.state.",
    "engine.protocol.",
    "engine.checkpoint.",
    "engine.operators.",
    "engine.connectors.",
    "engine.graph.",
)


def _enum_member(enum_class: Any, name: str) -> enum.Enum:
    """Stand in for ``getattr``, by which members of enums were pickled up to Python 3.11.3 (Debian 12 has 3.11.2)."""
    if not (isinstance(enum_class, type) and issubclass(enum_class, enum.Enum)):
        raise pickle.UnpicklingError("builtins.getattr is not a class that a message may hold")
    return enum_class[name]


class _EngineUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        if (module, name) in _SAFE:
            return super().find_class(module, name)
        # A dotted name would walk through attributes ("os.system" of a module that imports os).
        if module.startswith(_DATA_LAYERS) and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__.startswith(_DATA_LAYERS):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is not a class that a message may hold")


def dump_plain(value: object) -> bytes:
    """Return ``value`` as bytes; it must be made of engine classes and plain values."""
    return pickle.dumps(value, protocol=5)


def load_plain(data: bytes | memoryview) -> Any:
    """Return the value. Raises almost anything when the bytes are damaged, pickle.UnpicklingError when they hold a
    class that they may not hold."""
    return _EngineUnpickler(io.BytesIO(data)).load()
