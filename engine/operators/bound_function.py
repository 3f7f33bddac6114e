"""A user's function inside an operator: which method is called, its ``open`` and ``close``, its failures.

Whoever calls it catches ``BaseException``: ``sys.exit()`` in a function fails the task as any other exception does, and
its user wants to know where.

Not here: the interfaces that users implement (``operators/functions``) and how failures read (``operators/failure``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from engine.core.errors import EngineError
from engine.operators.base import OperatorContext
from engine.operators.checkpointed_function import CheckpointedFunction, initialize
from engine.operators.failure import NO_RECORD, user_error
from engine.operators.functions import Function, callable_of

__all__ = ["BoundFunction"]


@final
class BoundFunction:
    """``call`` is the plain callable to use in loops; ``error`` wraps what it raised."""

    def __init__(self, function: Any, method: str) -> None:
        self.call: Callable[..., Any] = callable_of(function, method)
        self.function = function  #: as the user gave it
        self.operator_name = ""
        self._opened = False

    def open(self, ctx: OperatorContext) -> None:
        """Open a Function object in the task; raises UserCodeError when its ``open`` raises."""
        self.operator_name = ctx.operator_name
        self._opened = True
        if isinstance(self.function, CheckpointedFunction):
            initialize(self.function, ctx, self.error)
        if isinstance(self.function, Function):
            try:
                self.function.open(ctx.runtime_context)
            except BaseException as error:
                raise self.error(error) from error

    def close(self) -> None:
        if self._opened and isinstance(self.function, Function):
            self._opened = False
            try:
                self.function.close()
            except BaseException as error:
                raise self.error(error) from error

    def error(self, error: BaseException, record: Any = NO_RECORD) -> EngineError:
        """Return what to raise for an exception of the function on ``record``."""
        return user_error(error, operator_name=self.operator_name, record=record)
