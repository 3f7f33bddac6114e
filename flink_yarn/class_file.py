"""Java class files, as far as they are changed here: the pool of constants grows, and a method is added. Pure.

What is changed in which class stands in ``skein_classes``.

Source: The Java Virtual Machine Specification, chapter 4.
"""

from __future__ import annotations

import struct
from typing import Final, final

__all__ = ["LONG", "METHOD", "NewConstants", "constant_pool", "utf8", "with_method"]

_UTF8, LONG, _DOUBLE, _CLASS, _STRING, METHOD, _NAME_AND_TYPE = 1, 5, 6, 7, 8, 10, 12
#: Bytes after the tag of a constant, by tag.
_SIZES: Final = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 18: 4}


def utf8(text: str) -> bytes:
    """Return the constant of a text."""
    data = text.encode()
    return struct.pack(">BH", _UTF8, len(data)) + data


def constant_pool(data: bytes) -> tuple[int, int, dict[int, int]]:
    """Return (the pool's count, the offset of its end, number of a constant → its offset).

    Raises: ValueError for a constant of an unknown kind.
    """
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
        number += 2 if tag in (LONG, _DOUBLE) else 1
    return count, offset, places


@final
class NewConstants:
    """Constants that are put behind those of a class, whose pool has the given count. Each method returns a number."""

    def __init__(self, count: int) -> None:
        self._next = count
        self._data = bytearray()

    def _add(self, constant: bytes, numbers: int = 1) -> int:
        number = self._next
        self._next += numbers
        self._data += constant
        return number

    def utf8(self, text: str) -> int:
        return self._add(utf8(text))

    def long(self, value: int) -> int:
        return self._add(struct.pack(">Bq", LONG, value), 2)

    def class_(self, name: str) -> int:
        return self._add(struct.pack(">BH", _CLASS, self.utf8(name)))

    def string(self, text: str) -> int:
        return self._add(struct.pack(">BH", _STRING, self.utf8(text)))

    def name_and_type(self, name: int, descriptor: int) -> int:
        return self._add(struct.pack(">BHH", _NAME_AND_TYPE, name, descriptor))

    def method(self, class_number: int, name_and_type: int) -> int:
        return self._add(struct.pack(">BHH", METHOD, class_number, name_and_type))

    def method_of(self, class_number: int, name: str, descriptor: str) -> int:
        return self.method(class_number, self.name_and_type(self.utf8(name), self.utf8(descriptor)))

    def added_to(self, data: bytes, end: int) -> bytes:
        """Return the class with these constants; ``end``: of its pool. What stands behind it moves."""
        return data[:8] + struct.pack(">H", self._next) + data[10:end] + bytes(self._data) + data[end:]


def with_method(data: bytes, method: bytes) -> bytes:
    """Return the class with one more method, behind its others."""
    _, offset, _ = constant_pool(data)
    offset += 6  # flags, this, super
    offset += 2 + 2 * _short(data, offset)  # interfaces
    offset = _after_members(data, offset)  # fields
    end = _after_members(data, offset)
    count = struct.pack(">H", _short(data, offset) + 1)
    return data[:offset] + count + data[offset + 2 : end] + method + data[end:]


def _short(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "big")


def _after_members(data: bytes, offset: int) -> int:
    """Return the offset behind the fields, or methods, whose number stands at ``offset``."""
    number, offset = _short(data, offset), offset + 2
    for _ in range(number):
        attributes, offset = _short(data, offset + 6), offset + 8
        for _ in range(attributes):
            offset += 6 + int.from_bytes(data[offset + 2 : offset + 6], "big")
    return offset
