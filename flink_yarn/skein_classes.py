"""What is changed in three of skein's classes. Pure: bytes of a class file → bytes of one.

Written for skein 0.8.2; each change looks for the very bytes that it knows and raises ValueError for all others.

- ``Driver``, ``Driver$DriverImpl``: the application type.
- ``Driver``: it sets a priority of 0, which is the default; in its place it sets the interval in which attempts that
  failed count (``yarn.application-attempt-failures-validity-interval``).
- ``ApplicationMaster``: on its way out it unregisters the application, so that YARN does not try again, if it has
  SUCCEEDED or this was the last attempt by its own count; now, if it was ended on purpose, as whatever. Of failures
  YARN decides, which may not count those of long ago; an attempt that is cut off must not delete what the next one
  needs. An application that has one attempt is unregistered, and its folder deleted, whatever ends it.
- ``ApplicationMaster``: it talks to the ResourceManager every 5 s, or every second while it waits for containers. That
  is how late it hears of a lost container, and how late it asks for another one; now it is 1 s and 0.25 s.

Source: The Java Virtual Machine Specification, chapter 4.4 (constant pool) and 6.5 (instructions).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Final

__all__ = ["VERSION", "class_changes"]

#: of these changes; copies of the jar made by others are not used
VERSION: Final = 4
_UTF8, _LONG, _DOUBLE, _METHOD, _NAME_AND_TYPE = 1, 5, 6, 10, 12
#: Bytes after the tag of a constant, by tag.
_SIZES: Final = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 18: 4}
_NOP: Final = b"\x00"
#: aload_0; getfield finalStatus; getstatic SUCCEEDED; if_acmpeq +8
_IF_SUCCEEDED: Final = bytes.fromhex("2a b40109 b203c7 a50008")
#: aload_0; getfield exitCode; ifeq +8: 0 is the code of an end that was asked for
_IF_ENDED_ON_PURPOSE: Final = bytes.fromhex("2a b40102") + 3 * _NOP + bytes.fromhex("990008")
#: iload_2 (this attempt); iload_1 (of so many); if_icmplt +139
_IF_NOT_LAST: Final = bytes.fromhex("1c 1b a1008b")
#: goto +139
_IF_FAILED: Final = 2 * _NOP + bytes.fromhex("a7008b")
#: sipush 5000, sipush 1000: milliseconds
_IDLE_HEARTBEAT: Final = bytes.fromhex("111388")
_QUICKER_IDLE_HEARTBEAT: Final = bytes.fromhex("1103e8")
_PENDING_HEARTBEAT: Final = struct.pack(">Bq", _LONG, 1000)
_QUICKER_PENDING_HEARTBEAT: Final = struct.pack(">Bq", _LONG, 250)
#: iconst_0; invokestatic Priority.newInstance; invokevirtual ApplicationSubmissionContext.setPriority
_SET_PRIORITY: Final = bytes.fromhex("03 b802e8 b602ec")
_SET_PRIORITY_INDEX: Final = 0x02EC


def class_changes(application_type: str, validity_ms: int | None) -> dict[str, Callable[[bytes], bytes]]:
    """Return entry of the jar → its change, which raises ValueError for a class that is not the one we know.

    ``validity_ms``: failed attempts of longer ago do not count, -1 = all count; None when there is one attempt.
    """
    rename = functools.partial(_rename_constant, old="skein", new=application_type)

    def driver(data: bytes) -> bytes:
        return rename(data) if validity_ms is None else _set_validity(rename(data), validity_ms)

    def master(data: bytes) -> bytes:
        data = _replace_once(data, _IF_SUCCEEDED, _IF_ENDED_ON_PURPOSE, "the test for SUCCEEDED")
        if validity_ms is not None:
            data = _replace_once(data, _IF_NOT_LAST, _IF_FAILED, "the test for the last attempt")
        return _beat_quicker(data)

    return {
        "com/anaconda/skein/Driver.class": driver,
        "com/anaconda/skein/Driver$DriverImpl.class": rename,
        "com/anaconda/skein/ApplicationMaster.class": master,
    }


def _replace_once(data: bytes, old: bytes, new: bytes, what: str) -> bytes:
    if data.count(old) != 1:
        raise ValueError(f"{what} is there {data.count(old)} times; expected once")
    return data.replace(old, new)


def _utf8(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">BH", _UTF8, len(data)) + data


def _rename_constant(data: bytes, old: str, new: str) -> bytes:
    # Nothing points into the bytes of a text.
    return _replace_once(data, _utf8(old), _utf8(new), f"the constant {old!r}")


def _beat_quicker(data: bytes) -> bytes:
    data = _replace_once(data, _IDLE_HEARTBEAT, _QUICKER_IDLE_HEARTBEAT, "the interval of heartbeats")
    return _replace_once(data, _PENDING_HEARTBEAT, _QUICKER_PENDING_HEARTBEAT, "that while containers are wanted")


def _set_validity(data: bytes, validity_ms: int) -> bytes:
    """Replace ``context.setPriority(Priority.newInstance(0))``, seven bytes of code, by
    ``context.setAttemptFailuresValidityInterval(validity_ms)``."""
    count, end, places = _constant_pool(data)
    tag, class_index = struct.unpack_from(">BH", data, places.get(_SET_PRIORITY_INDEX, 0))
    if tag != _METHOD:
        raise ValueError("setPriority is not where we know it")
    new = b"".join(
        (
            _utf8("setAttemptFailuresValidityInterval"),
            _utf8("(J)V"),
            struct.pack(">BHH", _NAME_AND_TYPE, count, count + 1),
            struct.pack(">BHH", _METHOD, class_index, count + 2),
            struct.pack(">Bq", _LONG, validity_ms),  # takes two numbers
        )
    )
    data = data[:8] + struct.pack(">H", count + 6) + data[10:end] + new + data[end:]
    # ldc2_w; invokevirtual; nop
    code = struct.pack(">BHBH", 0x14, count + 4, 0xB6, count + 3) + _NOP
    return _replace_once(data, _SET_PRIORITY, code, "setting the priority")


def _constant_pool(data: bytes) -> tuple[int, int, dict[int, int]]:
    """Return (the pool's count, the offset of its end, number of a constant → its offset)."""
    count = int.from_bytes(data[8:10], "big")
    offset, number, places = 10, 1, {}
    while number < count:
        tag = data[offset]
        places[number] = offset
        if tag == _UTF8:
            offset += 3 + int.from_bytes(data[offset + 1 : offset + 3], "big")
        elif tag in _SIZES:
            offset += 1 + _SIZES[tag]
        else:
            raise ValueError(f"constant {number} has the tag {tag}")
        number += 2 if tag in (_LONG, _DOUBLE) else 1
    return count, offset, places
