"""User functions of the DataSet API in their two styles: results returned, or handed to a collector.

``def f(values): return [...]`` / ``yield`` and ``def f(values, collector): collector.collect(x)`` both work; which
one is meant is told by the number of parameters. How functions are opened, closed and blamed: ``bound_function``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, final

from engine.core.errors import Domain, EngineError
from engine.core.records import RowBatch
from engine.operators.base import OperatorContext, Output
from engine.operators.batch_spill import CHUNK_ROWS
from engine.operators.bound_function import BoundFunction
from engine.operators.functions import FlatMapFunction, Function, RuntimeContext

__all__ = [
    "Collector",
    "FlatMapWithCollector",
    "MultiResultFunction",
    "bound",
    "method_of",
    "takes_collector",
]


@final
class Collector:
    """Receives a function's results and sends them on in chunks."""

    __slots__ = ("_out", "emit_error", "rows")

    def __init__(self, out: Output | None = None) -> None:
        self._out = out
        self.rows: list[Any] = []
        #: raised behind the output while the function was running: not the function's fault
        self.emit_error: BaseException | None = None

    def collect(self, record: Any) -> None:
        self.rows.append(record)
        if len(self.rows) >= CHUNK_ROWS and self._out is not None:
            self.flush()

    def collect_all(self, records: Iterable[Any]) -> None:
        rows = self.rows
        for record in records:
            rows.append(record)
            if len(rows) >= CHUNK_ROWS and self._out is not None:
                self.flush()
                rows = self.rows

    def flush(self) -> None:
        """Send on what is held; the operator calls it at the end."""
        if self.rows:
            assert self._out is not None
            rows, self.rows = self.rows, []
            try:
                self._out.emit(RowBatch(rows))
            except BaseException as error:
                self.emit_error = error
                raise

    def close(self) -> None:
        """Java's Collector has it; nothing to do."""


def method_of(function: Any, *methods: str) -> Callable[..., Any]:
    """Return the first of ``methods`` that a Function object has, or the plain callable itself.

    Raises: TypeError that names what was expected.
    """
    if isinstance(function, Function):
        for method in methods:
            bound = getattr(function, method, None)
            if bound is not None:
                return bound  # type: ignore[no-any-return]
        wanted = " or ".join(f"{method}()" for method in methods)
        raise TypeError(f"{type(function).__name__} has no method {wanted}; pass the matching Function class.")
    if callable(function):
        return function  # type: ignore[no-any-return]
    wanted = " or ".join(f"{method}()" for method in methods)
    raise TypeError(f"Expected a function or an object with {wanted}, got {function!r}.")


def takes_collector(function: Callable[..., Any], num_values: int) -> bool:
    """Return whether a function of ``num_values`` inputs wants a collector as one parameter more."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins without a signature
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    return len(required) == num_values + 1


def bound(function: Any, *methods: str) -> BoundFunction:
    """Return the function of an operator, to be called by the first of ``methods`` that it has."""
    method_of(function, *methods)
    return BoundFunction(function, next((own for own in methods if getattr(function, own, None)), methods[0]))


@final
class MultiResultFunction:
    """A function of one or two inputs with any number of results, in either style, bound to an operator's output."""

    def __init__(
        self, function: Any, methods: tuple[str, ...], num_values: int, ctx: OperatorContext, out: Output
    ) -> None:
        self._function = bound(function, *methods)
        self._call = self._function.call
        self._with_collector = takes_collector(self._call, num_values)
        self._ctx = ctx
        self.collector = Collector(out)

    def open(self) -> None:
        self._function.open(self._ctx)

    def __call__(self, *values: Any, record: Any) -> None:
        """Call the function; its results go to the collector. ``record`` is what an error shows."""
        try:
            if self._with_collector:
                self._call(*values, self.collector)
            else:
                results = self._call(*values)
                if results is not None:
                    self.collector.collect_all(results)
        except BaseException as error:
            if error is self.collector.emit_error:
                raise
            if isinstance(error, EngineError) and error.domain is not Domain.USER:
                raise
            raise self._function.error(error, record) from error

    def close(self) -> None:
        self._function.close()


@final
class FlatMapWithCollector(FlatMapFunction):
    """Makes a flat_map function that takes (value, collector) one that returns its results."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def open(self, runtime_context: RuntimeContext) -> None:
        if isinstance(self._function, Function):
            self._function.open(runtime_context)
        self._call = method_of(self._function, "flat_map")

    def flat_map(self, value: Any) -> list[Any]:
        collector = Collector()
        self._call(value, collector)
        return collector.rows

    def close(self) -> None:
        if isinstance(self._function, Function):
            self._function.close()
