"""Total order and equality of any keys: None, NaN, text, numbers and tuples of them, mixed as they come.

Order: None, numbers, NaN, text, bytes, tuples and Rows, then other types by name. Equality is Python's, except that
all NaN are one key. Not here: keys → subtask (``state/key_groups``).
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final, final

from engine.core.errors import ProgramError
from engine.core.records import Row
from engine.operators.batch_keys import key_error, unhashable_key
from engine.operators.failure import user_error
from engine.operators.keys import NAN

__all__ = ["Ordering", "first_of", "keys_of", "normal_key", "order_key"]

_HARMLESS: Final = frozenset({str, int, bool, bytes, type(None)})
_NUMBERS: Final = frozenset({int, bool, float})


def normal_key(key: Any) -> Any:
    """Return the key with every NaN replaced by the one NAN; Rows become tuples."""
    kind = type(key)
    if kind in _HARMLESS:
        return key
    if kind is tuple or kind is Row:
        return tuple(map(normal_key, key))
    if isinstance(key, float | decimal.Decimal):
        return NAN if key != key else key
    return key


def keys_of(key: Callable[[Any], Any], rows: list[Any], operator_name: str) -> list[Any]:
    """Return the normalised key of each row. Raises UserCodeError that shows the row whose key cannot be had."""
    keys: list[Any] = []
    try:
        keys.extend(map(key, rows))
    except BaseException as error:
        row = rows[len(keys)]
        raise user_error(key_error(key, row, error), operator_name=operator_name, record=row) from error
    if _HARMLESS.issuperset(map(type, keys)):
        return keys
    keys = list(map(normal_key, keys))
    try:
        for own in keys:
            hash(own)
    except TypeError as error:
        number = next(i for i, own in enumerate(keys) if not _is_hashable(own))
        raise user_error(unhashable_key(keys[number]), operator_name=operator_name, record=rows[number]) from error
    return keys


def _is_hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def order_key(value: Any) -> tuple[Any, ...]:
    """Return something comparable that orders any values among each other."""
    kind = type(value)
    if kind is str:
        return (3, value)
    if kind is int or kind is bool:
        return (1, value)
    if value is None:
        return (0,)
    if isinstance(value, float | decimal.Decimal):
        return (2,) if math.isnan(value) else (1, value)
    if isinstance(value, tuple | list | Row):
        return (5, tuple(map(order_key, value)))
    if isinstance(value, bytes | bytearray):
        return (4, bytes(value))
    if isinstance(value, str):
        return (3, str(value))
    if isinstance(value, int):
        return (1, int(value))
    item = getattr(value, "item", None)
    if item is not None and kind.__module__ == "numpy":
        return order_key(value.item())
    return (6, f"{kind.__module__}.{kind.__qualname__}", value)


@final
class _Descending:
    """Turns the order of one part of a composed sort key around."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def __lt__(self, other: _Descending) -> bool:
        return bool(other.key < self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(self.key == other.key)


@final
class Ordering:
    """Sort by one or several keys, each ascending or descending; stable.

    ``fields``: (row → key, ascending). A column of one plain type is compared as it is, anything else by ``order_key``.
    """

    def __init__(self, fields: Sequence[tuple[Callable[[Any], Any], bool]]) -> None:
        assert fields, "an order needs a key"
        self._fields = tuple(fields)
        directions = {ascending for _, ascending in self._fields}
        #: all keys descending: sort backwards instead of turning each key around
        self.reverse = directions == {False}
        self._turn = len(directions) == 2

    def key(self, row: Any) -> Any:
        """Return the row's sort key, valid for any mix of types; to be used together with ``reverse``."""
        if not self._turn:
            if len(self._fields) == 1:
                return order_key(self._fields[0][0](row))
            return tuple([order_key(getter(row)) for getter, _ in self._fields])
        return tuple(
            [
                order_key(getter(row)) if ascending else _Descending(order_key(getter(row)))
                for getter, ascending in self._fields
            ]
        )

    def sort(self, rows: list[Any], operator_name: str) -> tuple[list[Any], str | None]:
        """Return the rows sorted, and the plain type of their keys ("text", "bytes", "number") if they have one."""
        if not rows:
            return rows, None
        if len(self._fields) == 1:
            keys = self._apply(self._fields[0][0], rows, operator_name)
            kind = _plain_kind(keys)
            if kind is not None:
                order = sorted(range(len(rows)), key=keys.__getitem__, reverse=self.reverse)
                return [rows[i] for i in order], kind
        keys = self._apply(self.key, rows, operator_name)
        try:
            order = sorted(range(len(rows)), key=keys.__getitem__, reverse=self.reverse)
        except TypeError as error:
            raise ProgramError(f"Operator {operator_name!r} cannot sort: {error}.") from error
        return [rows[i] for i in order], None

    def _apply(self, function: Callable[[Any], Any], rows: list[Any], operator_name: str) -> list[Any]:
        keys: list[Any] = []
        try:
            keys.extend(map(function, rows))
        except BaseException as error:
            row, told = rows[len(keys)], error
            for getter, _ in self._fields:
                if told is error:
                    told = key_error(getter, row, error, "sort key")
            raise user_error(told, operator_name=operator_name, record=row) from error
        return keys

    def merge_key(self, kinds: Iterable[str | None]) -> Callable[[Any], Any]:
        """Return the key by which runs of these kinds can be merged."""
        distinct = set(kinds)
        if len(distinct) == 1 and None not in distinct:
            return self._fields[0][0]
        return self.key


def _plain_kind(keys: list[Any]) -> str | None:
    kinds = set(map(type, keys))
    if kinds == {str}:
        return "text"
    if kinds == {bytes}:
        return "bytes"
    if kinds <= _NUMBERS and (float not in kinds or not any(key != key for key in keys)):
        return "number"
    return None


#: The first part of a (hash, row) entry.
first_of: Final = itemgetter(0)
