"""The function of a window: what is called on its elements when it fires, under one form for all of PyFlink's kinds.

Not here: the interfaces that users implement (``operators/functions``), when windows fire (``operators/window``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol, final

from engine.core.errors import ProgramError
from engine.operators.base import OperatorContext
from engine.operators.bound_function import BoundFunction
from engine.operators.process_functions import (
    AllWindowFunction,
    ProcessAllWindowFunction,
    ProcessWindowFunction,
    WindowFunction,
)

__all__ = [
    "BoundWindowFunction",
    "CoGroupedFunction",
    "FoldedFunction",
    "JoinedFunction",
    "PassThrough",
    "WindowCall",
    "window_call",
]

_METHODS: Final = {
    WindowFunction: "apply",
    AllWindowFunction: "apply",
    ProcessWindowFunction: "process",
    ProcessAllWindowFunction: "process",
}


class WindowCall(Protocol):
    """``call`` gives the results for the elements of a window; ``context`` is a process function's context.
    ``clears``: whether ``clear`` does anything."""

    clears: bool

    def open(self, ctx: OperatorContext) -> None: ...

    def close(self) -> None: ...

    def call(self, key: Any, window: Any, context: Any, elements: Sequence[Any]) -> Iterable[Any] | None: ...

    def clear(self, context: Any) -> None:
        """The window is being dropped."""
        ...


@final
class PassThrough:
    """The elements themselves: the one result of a reduce or an aggregate."""

    clears = False

    def open(self, ctx: OperatorContext) -> None:
        pass

    def close(self) -> None:
        pass

    def call(self, key: Any, window: Any, context: Any, elements: Sequence[Any]) -> Iterable[Any]:
        return elements

    def clear(self, context: Any) -> None:
        pass


@final
class BoundWindowFunction:
    """A function object of one of PyFlink's four kinds, or a plain callable (key, window, elements)."""

    def __init__(self, function: Any) -> None:
        kind = next((kind for kind in _METHODS if isinstance(function, kind)), None)
        method = "apply" if kind is None else _METHODS[kind]
        bound = self._bound = BoundFunction(function, method)
        self.open, self.close = bound.open, bound.close
        self._clear = getattr(function, "clear", None) if method == "process" else None
        self.clears = self._clear is not None and type(function).clear is not kind.clear  # type: ignore[union-attr]
        self.call = _call_of(kind, bound.call)

    def clear(self, context: Any) -> None:
        if self._clear is not None:
            self._clear(context)


def _call_of(kind: type | None, call: Callable[..., Any]) -> Callable[..., Iterable[Any] | None]:
    """Return ``WindowCall.call`` for a function of that kind."""
    if kind is ProcessWindowFunction:
        return lambda key, window, context, elements: call(key, context, elements)
    if kind is ProcessAllWindowFunction:
        return lambda key, window, context, elements: call(context, elements)
    if kind is AllWindowFunction:
        return lambda key, window, context, elements: call(window, elements)
    return lambda key, window, context, elements: call(key, window, elements)


@final
class FoldedFunction:
    """Folds all elements at once, then calls another function: a reduce or an aggregate with an evictor."""

    def __init__(self, fold: Any, following: WindowCall) -> None:
        self._fold = fold
        self._following = following
        self.clear = following.clear
        self.clears = following.clears

    def open(self, ctx: OperatorContext) -> None:
        self._fold.open(ctx)
        self._following.open(ctx)

    def close(self) -> None:
        try:
            self._fold.close()
        finally:
            self._following.close()

    def call(self, key: Any, window: Any, context: Any, elements: Sequence[Any]) -> Iterable[Any] | None:
        accumulator = self._fold.first(elements[0])
        for element in itertools.islice(elements, 1, None):
            accumulator = self._fold.add(accumulator, element)
        return self._following.call(key, window, context, (self._fold.result(accumulator),))


class _TwoInputs:
    """Elements are (input index, record)."""

    clears = False

    def __init__(self, function: Any, method: str) -> None:
        bound = self._bound = BoundFunction(function, method)
        self.open, self.close = bound.open, bound.close

    def clear(self, context: Any) -> None:
        pass

    @staticmethod
    def _sides(elements: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        sides: tuple[list[Any], list[Any]] = ([], [])
        for input_index, record in elements:
            sides[input_index].append(record)
        return sides


@final
class CoGroupedFunction(_TwoInputs):
    """A CoGroupFunction, or a callable (records of the first, records of the second) → results."""

    def __init__(self, function: Any) -> None:
        super().__init__(function, "co_group")

    def call(self, key: Any, window: Any, context: Any, elements: Sequence[Any]) -> Iterable[Any] | None:
        results: Iterable[Any] | None = self._bound.call(*self._sides(elements))
        return results


@final
class JoinedFunction(_TwoInputs):
    """A JoinFunction or a callable (first, second) → result; a FlatJoinFunction's results are several."""

    def __init__(self, function: Any, flat: bool) -> None:
        super().__init__(function, "join")
        self._flat = flat

    def call(self, key: Any, window: Any, context: Any, elements: Sequence[Any]) -> Iterable[Any]:
        first, second = self._sides(elements)
        joined = itertools.starmap(self._bound.call, itertools.product(first, second))
        return itertools.chain.from_iterable(r for r in joined if r is not None) if self._flat else joined


def window_call(function: Any) -> WindowCall:
    """Return the form of a user's window function; None stands for: pass on what the window has."""
    if function is None:
        return PassThrough()
    if not isinstance(function, tuple(_METHODS)) and not callable(function):
        raise ProgramError(
            f"{function!r:.80} is not a window function; expected a WindowFunction, a ProcessWindowFunction "
            "or, without a key, an AllWindowFunction or ProcessAllWindowFunction."
        )
    return BoundWindowFunction(function)
