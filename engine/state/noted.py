"""Increments that are noted at the barrier and made into bytes later, in another thread, while the task goes on.

What is noted must not change any more. Numbers, texts and tuples of them cannot; of lists and maps of these a copy is
noted. Whatever else a program keeps could be changed in place by the next record, so a part with such values is not
noted at all: its increment is made in a forked child.
"""

from __future__ import annotations

import datetime as dt
import decimal
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.records import Row

__all__ = ["CONSTANT", "UNSETTLED", "NotedDelta", "Settler"]

#: Exact types whose objects nobody can change.
CONSTANT: Final = frozenset(
    (str, int, float, bool, bytes, complex, type(None), dt.datetime, dt.date, dt.time, dt.timedelta, decimal.Decimal)
)

UNSETTLED: Final[Any] = object()

#: Containers inside of containers; deeper ones are rare, and a loop must end.
_DEPTH_MAX: Final = 4
_CONTAINERS: Final = frozenset((tuple, list, dict, OrderedDict, Row))
#: Numbers and texts in a container that are looked at in the time of an entry.
_ELEMENTS_PER_ENTRY: Final = 16


@dataclass(frozen=True, slots=True)
class NotedDelta:
    """What changed, as of the barrier. ``num_entries``: what noting it has cost, elements of containers included.
    ``chunks`` makes the increment's chunks by key group; called once, in any thread."""

    num_entries: int
    chunks: Callable[[], Mapping[int, bytes]]


@final
class Settler:
    """Makes values constant that are not. ``entries_max``: the time that it may take, in entries."""

    def __init__(self, entries_max: int) -> None:
        self._elements_left = entries_max * _ELEMENTS_PER_ENTRY

    @property
    def entries_left(self) -> int:
        return self._elements_left // _ELEMENTS_PER_ENTRY

    def settled(self, value: Any, depth: int = _DEPTH_MAX) -> Any:
        """Return the value, or a copy as of now if it could be changed; UNSETTLED when that cannot be told or takes too
        long."""
        kind = type(value)
        if kind in CONSTANT:
            return value
        if kind not in _CONTAINERS or not depth:
            return UNSETTLED
        self._elements_left -= len(value)
        if self._elements_left < 0:
            return UNSETTLED
        if kind is dict or kind is OrderedDict:
            if not CONSTANT.issuperset(map(type, value)):
                return UNSETTLED  # keys
            parts = self._parts(value.values(), depth)
            return UNSETTLED if parts is None else kind(zip(value, parts, strict=True))
        parts = self._parts(value, depth)
        if parts is None:
            return UNSETTLED
        if kind is tuple:
            return value if parts is value else tuple(parts)
        if kind is list:
            return value.copy() if parts is value else parts
        rebuild, (fields, _, row_kind) = value.__reduce__()
        return rebuild(fields, parts, row_kind)

    def _parts(self, values: Any, depth: int) -> Any:
        """Return the values if all are constant, or a list of what stands for each; None = cannot be told."""
        if CONSTANT.issuperset(map(type, values)):
            return values
        self._elements_left -= (_ELEMENTS_PER_ENTRY // 2) * len(values)  # these are looked at one by one
        parts = [self.settled(part, depth - 1) for part in values]
        return None if any(part is UNSETTLED for part in parts) else parts
