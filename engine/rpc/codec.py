"""Bytes ⇄ protocol objects, of engine classes and plain values only (``core/plain_pickle``).

What users wrote stays opaque bytes until a slot process loads it. Not here: user code (``core/user_code``).
"""

from __future__ import annotations

from typing import TypeVar

from engine.core.errors import ExternalError
from engine.core.plain_pickle import dump_plain, load_plain
from engine.protocol.control import Envelope

__all__ = ["decode", "decode_envelope", "encode"]

T = TypeVar("T")


def encode(value: object) -> bytes:
    """Return ``value`` as bytes; it must be made of engine classes and plain values."""
    return dump_plain(value)


def decode(data: bytes | memoryview, expected: type[T]) -> T:
    """Return the object in ``data``.

    Raises: ExternalError when the bytes are damaged, hold a class that a message may not hold, or no ``expected``.
    """
    try:
        value = load_plain(data)
    except Exception as error:  # damaged bytes raise almost anything
        raise ExternalError(
            f"Received {len(data)} bytes that are not a valid {expected.__name__}: {error}. "
            "Client, JobManager and TaskManagers must run the same release."
        ) from error
    if not isinstance(value, expected):
        raise ExternalError(f"Received a {type(value).__name__}; expected a {expected.__name__}.")
    return value


def decode_envelope(data: bytes) -> Envelope:
    """Return the Envelope in ``data``. Raises ExternalError."""
    return decode(data, Envelope)
