"""What a window holds between its first element and its end: all elements, or one accumulator. Kept in keyed state.

A ``Contents`` means the backend's current key and the window that ``use`` named. Not here: which window that is, and
when it is evaluated (``operators/window``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, final

from engine.core.errors import EngineError
from engine.operators.aggregate import FieldAggregate
from engine.operators.base import OperatorContext
from engine.operators.bound_function import BoundFunction
from engine.operators.functions import AggregateFunction
from engine.state.backend import KeyedStateBackend
from engine.state.descriptors import ListStateDescriptor, ValueStateDescriptor
from engine.state.heap_states import HeapValueState, Table
from engine.time.evictors import TimestampedValue

__all__ = ["AccumulatorContents", "AggregateFold", "Contents", "ElementContents", "Fold", "ReduceFold", "left_of"]

_STATE_NAME = "$window-contents"


class Fold(Protocol):
    """Makes one value of many. Every method may raise what the user's function raises; ``error`` wraps it."""

    given: Any  #: as the user gave it

    def open(self, ctx: OperatorContext) -> None: ...

    def close(self) -> None: ...

    def first(self, value: Any) -> Any:
        """Return the accumulator of one value."""
        ...

    def add(self, accumulator: Any, value: Any) -> Any: ...

    def merge(self, first: Any, second: Any) -> Any: ...

    def result(self, accumulator: Any) -> Any: ...

    def error(self, error: BaseException, record: Any) -> EngineError: ...


@final
class ReduceFold:
    """A ReduceFunction, a callable of two values, or a built-in aggregation of a field."""

    def __init__(self, function: Any) -> None:
        self.given = function
        self._function = function if isinstance(function, FieldAggregate) else BoundFunction(function, "reduce")
        self.add = self.merge = self._function.call
        self.error = self._function.error

    def open(self, ctx: OperatorContext) -> None:
        self._function.open(ctx)

    def close(self) -> None:
        self._function.close()

    def first(self, value: Any) -> Any:
        if isinstance(self._function, FieldAggregate):
            self._function.check_first(value)
        return value

    def result(self, accumulator: Any) -> Any:
        return accumulator


@final
class AggregateFold:
    """An AggregateFunction."""

    def __init__(self, function: AggregateFunction) -> None:
        self.given = function
        self._function = function
        self._bound = BoundFunction(function, "add")
        self.merge = function.merge
        self.result = function.get_result
        self.error = self._bound.error

    def open(self, ctx: OperatorContext) -> None:
        self._bound.open(ctx)

    def close(self) -> None:
        self._bound.close()

    def first(self, value: Any) -> Any:
        return self._function.add(value, self._function.create_accumulator())

    def add(self, accumulator: Any, value: Any) -> Any:
        return self._function.add(value, accumulator)


class Contents(Protocol):
    def open(self, ctx: OperatorContext, backend: KeyedStateBackend) -> None: ...

    def close(self) -> None: ...

    def use(self, window: Any) -> None:
        """From now on this window is meant."""
        ...

    def add(self, elements: Sequence[Any]) -> bool:
        """Take up elements, at least one. Return False when it is known that the window held something before.

        Raises: UserCodeError naming the element on which the function failed.
        """
        ...

    def elements(self) -> Sequence[Any] | None:
        """Return what the window's function sees, or None when there is nothing."""
        ...

    def replace(self, elements: Sequence[Any]) -> None:
        """Keep these instead (after eviction)."""
        ...

    def clear(self) -> None: ...

    def merge_in(self, accumulator: Any) -> None:
        """Add an accumulator that was made elsewhere."""
        ...

    def merge(self, target: Any, sources: Iterable[Any]) -> None:
        """Move what the windows ``sources`` hold into the window ``target``; changes which window is meant."""
        ...


@final
class ElementContents:
    """All elements, in the order in which they came."""

    def open(self, ctx: OperatorContext, backend: KeyedStateBackend) -> None:
        self._state = backend.list_state(ListStateDescriptor(_STATE_NAME))
        self.use = self._state.set_current_namespace
        self.clear = self._state.clear

    def close(self) -> None:
        pass

    def add(self, elements: Sequence[Any]) -> bool:
        self._state.add_all(elements)
        return True

    def elements(self) -> Sequence[Any] | None:
        return list(self._state.get() or ()) or None

    def replace(self, elements: Sequence[Any]) -> None:
        if elements:
            self._state.update(elements)
        else:
            self._state.clear()

    def merge_in(self, accumulator: Any) -> None:
        raise AssertionError("this window holds elements")

    def merge(self, target: Any, sources: Iterable[Any]) -> None:
        self._state.merge_namespaces(target, sources)


@final
class AccumulatorContents:
    """One accumulator; in a tuple, since a function may well make None of its values."""

    def __init__(self, fold: Fold) -> None:
        self._fold = fold

    def open(self, ctx: OperatorContext, backend: KeyedStateBackend) -> None:
        self._fold.open(ctx)
        self._state = backend.value_state(ValueStateDescriptor(_STATE_NAME))
        self.use = self._state.set_current_namespace
        self.clear = self._state.clear

    @property
    def table(self) -> Table | None:
        """Window → key → (accumulator,), where the backend has it in memory."""
        return self._state.table if type(self._state) is HeapValueState else None

    def close(self) -> None:
        self._fold.close()

    def add(self, elements: Sequence[Any]) -> bool:
        held = self._state.value()
        add = self._fold.add
        remaining = iter(elements)
        element = None
        try:
            if held is None:
                element = next(remaining)
                accumulator = self._fold.first(element)
            else:
                accumulator = held[0]
            for element in remaining:
                accumulator = add(accumulator, element)
        except Exception as error:
            raise self._fold.error(error, element) from error
        self._state.update((accumulator,))
        return held is None

    def elements(self) -> Sequence[Any] | None:
        held = self._state.value()
        if held is None:
            return None
        try:
            return (self._fold.result(held[0]),)
        except Exception as error:
            raise self._fold.error(error, held[0]) from error

    def replace(self, elements: Sequence[Any]) -> None:
        raise AssertionError("a window with an evictor holds elements")

    def merge_in(self, accumulator: Any) -> None:
        held = self._state.value()
        self._state.update((accumulator if held is None else self._fold.merge(held[0], accumulator),))

    def merge(self, target: Any, sources: Iterable[Any]) -> None:
        state = self._state
        state.set_current_namespace(target)
        merged = state.value()
        for source in sources:
            state.set_current_namespace(source)
            held = state.value()
            if held is None:
                continue
            state.clear()
            try:
                merged = held if merged is None else (self._fold.merge(merged[0], held[0]),)
            except Exception as error:
                raise self._fold.error(error, held[0]) from error
        state.set_current_namespace(target)
        if merged is not None:
            state.update(merged)


def left_of(elements: Any, method: str) -> list[Any]:
    """Return what an evictor left. Raises TypeError for what is not a collection of elements of the window."""
    kept = list(elements) if isinstance(elements, Iterable) else None
    if kept is None or not all(isinstance(element, TimestampedValue) for element in kept):
        raise TypeError(
            f"{method}() returned {elements!r:.80}; expected those of the given elements that stay in the window"
        )
    return kept
