"""Counters of a running task: where its time goes, and what its functions count."""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, final

from engine.core.errors import UserCodeError
from engine.core.metrics import Accumulator
from engine.operators.functions import RuntimeContext

__all__ = ["TaskClock", "merged_accumulators", "user_metrics"]


class _Spending(enum.Enum):
    BUSY = "busy"
    IDLE = "idle"
    BACKPRESSURED = "backpressured"


@final
class TaskClock:
    """Divides the time since ``start`` into busy, idle and backpressured. Between steps the last reason counts."""

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._spent_ns = dict.fromkeys(_Spending, 0)
        self._spending = _Spending.IDLE
        self._marked_ns = 0

    def start(self) -> None:
        self._marked_ns = self._now_ns()

    def wait(self, *, backpressured: bool) -> None:
        """The task cannot be stepped now, for this reason."""
        spending = _Spending.BACKPRESSURED if backpressured else _Spending.IDLE
        if spending is not self._spending:
            self._turn(spending, self._now_ns())

    def begin(self, now_ns: int) -> None:
        """A step begins."""
        self._turn(_Spending.BUSY, now_ns)

    def end(self, now_ns: int) -> None:
        self._turn(_Spending.IDLE, now_ns)

    def _turn(self, spending: _Spending, now_ns: int) -> None:
        self._spent_ns[self._spending] += now_ns - self._marked_ns
        self._marked_ns = now_ns
        self._spending = spending

    def milliseconds(self) -> tuple[int, int, int]:
        """Return busy, idle and backpressured time."""
        if self._marked_ns:
            self._turn(self._spending, self._now_ns())
        busy, idle, backpressured = (self._spent_ns[kind] // 1_000_000 for kind in _Spending)
        return busy, idle, backpressured


def user_metrics(contexts: Sequence[tuple[str, RuntimeContext]]) -> dict[str, Any]:
    """Return {operator.metric: JSON-able value} of all operators."""
    values: dict[str, Any] = {}
    for operator_name, context in contexts:
        try:
            snapshot = context.get_metrics_group().snapshot()
        except Exception:
            continue  # a gauge of the user's raised: its metric is missing, the job goes on
        for name, value in snapshot.items():
            values[f"{operator_name}.{name}"] = _json_able(value)
    return values


def _json_able(value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value


def merged_accumulators(contexts: Sequence[tuple[str, RuntimeContext]]) -> bytes:
    """Return the cloudpickled {name: Accumulator} of all operators of the chain; b"" if there are none.

    Raises: UserCodeError when two operators use one name for accumulators that do not merge.
    """
    merged: dict[str, Accumulator] = {}
    for operator_name, context in contexts:
        for name, accumulator in context._accumulators.items():
            if name not in merged:
                merged[name] = accumulator
                continue
            if type(merged[name]) is not type(accumulator):
                raise UserCodeError(
                    f"Accumulator {name!r} is a {type(accumulator).__name__} in operator {operator_name!r} but a "
                    f"{type(merged[name]).__name__} in another operator; use another name."
                )
            merged[name].merge(accumulator)
    if not merged:
        return b""
    import cloudpickle

    return bytes(cloudpickle.dumps(merged, 5))
