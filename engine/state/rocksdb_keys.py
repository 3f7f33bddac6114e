"""Keys, namespaces and map keys as bytes for RocksDB: equal values give equal bytes, in every process and run.

A pickle would not do: 1, 1.0 and True are one key, and equal tuples may have different pickles. What is encoded ends
where its bytes say, so that rows of one key and namespace have a common beginning that no other has. Values of rarer
types (dates, Decimals, dataclasses, windows of the user's) are a digest; the value itself stands in a row of its own,
see ``KeyCodec.rare``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import hashlib
import io
import math
import pickle
import struct
import uuid
from collections.abc import Callable
from typing import Any, Final, final

from engine.core.errors import ProgramError
from engine.core.records import Row
from engine.state.key_groups import NAN
from engine.time.windows import CountWindow, GlobalWindow, TimeWindow

__all__ = ["KeyCodec"]

_INT: Final = struct.Struct(">cq")
_FLOAT: Final = struct.Struct(">cd")
_SIZED: Final = struct.Struct(">cI")
_SPAN: Final = struct.Struct(">cqq")
_DIGEST_SIZE: Final = 16
#: Digests known to be stored; forgotten all at once.
_RARE_MAX: Final = 1 << 16


@final
class KeyCodec:
    """``store_rare(digest, value)``: keep a value of a rare type under its digest; ``load_rare``: find it again."""

    def __init__(self, store_rare: Callable[[bytes, Any], None], load_rare: Callable[[bytes], Any]) -> None:
        self._store_rare = store_rare
        self._load_rare = load_rare
        self._stored: set[bytes] = set()

    def encode(self, value: Any) -> bytes:
        """Raises: ProgramError for a value that has no bytes equal in every process."""
        kind = type(value)
        if kind is str:
            text = value.encode("utf-8", "surrogatepass")
            return _SIZED.pack(b"s", len(text)) + text
        if kind is int:
            return _encode_int(value)
        if value is None:
            return b"n"
        if kind is TimeWindow:
            return _SPAN.pack(b"W", value.start, value.end)
        if kind is bytes:
            return _SIZED.pack(b"b", len(value)) + value
        if kind is float:
            return _encode_float(value)
        if kind is CountWindow:
            return _INT.pack(b"C", value.id)
        if kind is GlobalWindow:
            return b"G"
        if isinstance(value, tuple):
            return _SIZED.pack(b"t", len(value)) + b"".join(map(self.encode, value))
        return self._encode_other(value)

    def _encode_other(self, value: Any) -> bytes:
        if isinstance(value, bool):
            return _encode_int(int(value))
        if isinstance(value, decimal.Decimal):
            plain = _plain_number(value)
            if plain is not None:
                return self.encode(plain)
        elif isinstance(value, (str, int, float)) and not isinstance(value, enum.Enum):
            base = next(base for base in (str, int, float) if isinstance(value, base))
            return self.encode(base.__str__(value) if base is str else base(value))  # type: ignore[call-arg]
        elif type(value).__module__ == "numpy" and hasattr(value, "item"):
            return self.encode(value.item())
        digest = hashlib.blake2b(self._identity(value), digest_size=_DIGEST_SIZE).digest()
        if digest not in self._stored:
            self._store_rare(digest, value)
            if len(self._stored) >= _RARE_MAX:
                self._stored.clear()
            self._stored.add(digest)
        return b"u" + digest

    def _identity(self, value: Any) -> bytes:
        """Return bytes that are equal for equal values of a rare type."""
        name = type(value).__qualname__
        match value:
            case decimal.Decimal():
                return f"Decimal {value.normalize()}".encode()
            case dt.datetime():
                return f"datetime {(value.astimezone(dt.UTC) if value.tzinfo else value).isoformat()}".encode()
            case dt.time() if value.tzinfo is not None and value.utcoffset() is not None:
                offset = value.utcoffset() or dt.timedelta()
                since = dt.timedelta(0, (value.hour * 60 + value.minute) * 60 + value.second, value.microsecond)
                return f"aware time {since - offset!r}".encode()
            case dt.date() | dt.time() | dt.timedelta():
                return f"{name} {value!r}".encode()
            case enum.Enum():
                return f"enum {name}.{value.name}".encode()
            case uuid.UUID():
                return b"uuid " + value.bytes
            case Row():
                names = tuple(value.as_dict()) if value.has_field_names() else None
                return b"Row " + self.encode((names, value.get_row_kind().name, tuple(value)))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = tuple(getattr(value, field.name) for field in dataclasses.fields(value))
            return f"dataclass {name} ".encode() + self.encode(fields)
        return f"object {name} ".encode() + _plain_pickle(value)

    def decode(self, data: bytes, position: int = 0) -> tuple[Any, int]:
        """Return the value that begins at ``position``, and where it ends."""
        tag = data[position : position + 1]
        match tag:
            case b"s" | b"b" | b"I":
                _, size = _SIZED.unpack_from(data, position)
                start = position + _SIZED.size
                content = data[start : start + size]
                if tag == b"b":
                    return content, start + size
                text = content.decode("utf-8", "surrogatepass")
                return (text if tag == b"s" else int(text)), start + size
            case b"i":
                return _INT.unpack_from(data, position)[1], position + _INT.size
            case b"f":
                return _FLOAT.unpack_from(data, position)[1], position + _FLOAT.size
            case b"W":
                return TimeWindow(*_SPAN.unpack_from(data, position)[1:]), position + _SPAN.size
            case b"C":
                return CountWindow(_INT.unpack_from(data, position)[1]), position + _INT.size
            case b"t":
                _, size = _SIZED.unpack_from(data, position)
                position += _SIZED.size
                parts = []
                for _ in range(size):
                    part, position = self.decode(data, position)
                    parts.append(part)
                return tuple(parts), position
            case b"u":
                end = position + 1 + _DIGEST_SIZE
                return self._load_rare(data[position + 1 : end]), end
        return {b"n": None, b"N": NAN, b"G": GlobalWindow.get()}[tag], position + 1


def _encode_int(value: int) -> bytes:
    if -(1 << 63) <= value < (1 << 63):
        return _INT.pack(b"i", value)
    text = repr(value).encode()
    return _SIZED.pack(b"I", len(text)) + text


def _encode_float(value: float) -> bytes:
    if value.is_integer():  # 1.0 == 1
        return _encode_int(int(value))
    return b"N" if math.isnan(value) else _FLOAT.pack(b"f", value)


def _plain_number(value: decimal.Decimal) -> int | float | None:
    """Return the int or float that is equal to a Decimal, or None."""
    if value.is_nan():
        return NAN
    if value.is_finite() and value == value.to_integral_value():
        return int(value)
    as_float = float(value)
    return as_float if math.isinf(as_float) or decimal.Decimal(as_float) == value else None


def _plain_pickle(value: Any) -> bytes:
    """A pickle without references to what came before: equal for objects of equal content."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 5)
    pickler.fast = True
    try:
        pickler.dump(value)
    except Exception as error:
        raise ProgramError(
            f"{value!r:.80} of type {type(value).__name__} cannot be a key, window or key of a map in the rocksdb "
            f"backend: {error}. Use str, bytes, numbers, dates, tuples or dataclasses of these."
        ) from error
    return stream.getvalue()
