"""What user functions hold: the kinds of state under PyFlink's names. Interfaces only.

How a state is named and typed stands in ``descriptors``; where its values are kept, in ``heap_backend`` and
``operator_state``.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = [
    "AggregatingState",
    "AppendingState",
    "BroadcastState",
    "ListState",
    "MapState",
    "MergingState",
    "ReadOnlyBroadcastState",
    "ReducingState",
    "State",
    "ValueState",
]


class State(abc.ABC):
    """One state of a function. Keyed states mean the current key; each key has its own value."""

    def __class_getitem__(cls, parameters: Any) -> Any:
        """``ValueState[int]``, as PyFlink's programs write it."""
        return cls

    @abc.abstractmethod
    def clear(self) -> None:
        """Forget the value of the current key."""


class ValueState(State):
    @abc.abstractmethod
    def value(self) -> Any:
        """Return the value, or None when there is none."""

    @abc.abstractmethod
    def update(self, value: Any) -> None:
        """Set the value; None forgets it."""


class AppendingState(State):
    @abc.abstractmethod
    def get(self) -> Any: ...

    @abc.abstractmethod
    def add(self, value: Any) -> None: ...


class MergingState(AppendingState):
    pass


class ReducingState(MergingState):
    """``get`` returns what the reduce function made of all values added, or None when there was none."""


class AggregatingState(MergingState):
    """``get`` returns the result of the aggregate function over all values added, or None when there was none."""


class ListState(MergingState):
    """``get`` returns the elements in the order in which they were added; an empty iterable when there are none."""

    @abc.abstractmethod
    def update(self, values: Iterable[Any]) -> None:
        """Replace all elements."""

    @abc.abstractmethod
    def add_all(self, values: Iterable[Any]) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        return iter(self.get())


class ReadOnlyBroadcastState(State):
    """A map that every subtask has; read by ``process_element``."""

    @abc.abstractmethod
    def get(self, key: Any) -> Any:
        """Return the value of ``key``, or None."""

    @abc.abstractmethod
    def contains(self, key: Any) -> bool: ...

    @abc.abstractmethod
    def items(self) -> Iterable[tuple[Any, Any]]: ...

    @abc.abstractmethod
    def keys(self) -> Iterable[Any]: ...

    @abc.abstractmethod
    def values(self) -> Iterable[Any]: ...

    @abc.abstractmethod
    def is_empty(self) -> bool: ...

    def __getitem__(self, key: Any) -> Any:
        return self.get(key)

    def __contains__(self, key: Any) -> bool:
        return self.contains(key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())


class BroadcastState(ReadOnlyBroadcastState):
    @abc.abstractmethod
    def put(self, key: Any, value: Any) -> None: ...

    @abc.abstractmethod
    def put_all(self, dict_value: dict[Any, Any]) -> None: ...

    @abc.abstractmethod
    def remove(self, key: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: Any) -> None:
        self.remove(key)


class MapState(BroadcastState):
    """A map for each key; same methods as a broadcast state."""
