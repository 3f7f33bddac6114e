"""Operations that outlive their request: a trigger id at once, the result when it is asked for.

Source: Flink's AsynchronousOperationHandlers.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.clock import Clock
from engine.operators.failure import error_info
from engine.protocol.control import ErrorInfo
from engine.rest.context import BadRequest, NotFound, Unavailable

__all__ = ["Operations"]

#: A result is kept so long after it is there, as rest.async.store-duration in Flink.
KEPT_MS: Final = 5 * 60_000
#: Operations under way or kept at the same time; more are a mistake of a client.
OPERATIONS_MAX: Final = 1000


@dataclass(eq=False)
class _Operation:
    task: asyncio.Task[Any]
    ended_ms: int | None = None


@final
class Operations:
    """Of one kind each: ``scope`` keeps those of one job or path from the others. On the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._operations: dict[tuple[str, str], _Operation] = {}

    def trigger(self, scope: str, trigger_id: object, work: Callable[[], Coroutine[Any, Any, Any]]) -> str:
        """Start ``work`` and return its id. With an id that is known already nothing is started: the client repeats
        itself. Raises BadRequest, Unavailable."""
        self._forget()
        if trigger_id is None:
            trigger_id = secrets.token_hex(16)
        if not isinstance(trigger_id, str) or not re.fullmatch("[0-9a-f]{32}", trigger_id):
            raise BadRequest(f"triggerId is {trigger_id!r}; expected 32 hexadecimal digits.")
        if (scope, trigger_id) in self._operations:
            return trigger_id
        if len(self._operations) >= OPERATIONS_MAX:
            raise Unavailable(f"{OPERATIONS_MAX} operations are under way already; try again later.")
        operation = _Operation(asyncio.ensure_future(work()))
        operation.task.add_done_callback(lambda task: self._ended(operation))
        self._operations[scope, trigger_id] = operation
        return trigger_id

    def result(
        self, scope: str, trigger_id: str, shown: Callable[[Any], dict[str, Any]], failed: Callable[[ErrorInfo], Any]
    ) -> dict[str, Any]:
        """Return the answer to a poll. Raises NotFound."""
        operation = self._operations.get((scope, trigger_id))
        if operation is None:
            raise NotFound(f"Operation not found under key: {trigger_id}")
        if not operation.task.done():
            return {"status": {"id": "IN_PROGRESS"}, "operation": None}
        error = asyncio.CancelledError() if operation.task.cancelled() else operation.task.exception()
        if error is not None:
            return {"status": {"id": "COMPLETED"}, "operation": failed(error_info(error))}
        return {"status": {"id": "COMPLETED"}, "operation": shown(operation.task.result())}

    def close(self) -> None:
        for operation in self._operations.values():
            operation.task.cancel()

    def _ended(self, operation: _Operation) -> None:
        operation.ended_ms = self._clock.monotonic_ms()
        if not operation.task.cancelled():
            operation.task.exception()  # seen, also when nobody asks for it

    def _forget(self) -> None:
        oldest = self._clock.monotonic_ms() - KEPT_MS
        old = [key for key, one in self._operations.items() if one.ended_ms is not None and one.ended_ms < oldest]
        for key in old:
            del self._operations[key]
