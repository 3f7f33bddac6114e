"""Event time that goes on in pieces, in the operators of one chain (``Operator.advance_watermark``).

A watermark that closes a window of millions of keys would hold up everything else of its slot for seconds. What it
makes is emitted piece by piece instead, between which the slot's loop does what it does between records: it steps other
tasks, waits until the outputs have room, cancels. The task reads nothing from its input meanwhile; what an operator of
its own chain emits all the same (a source with several watermarks in one poll) waits for ``end``, which does the rest
at once.
Source: Flink's MailboxWatermarkProcessor.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Generator, Sequence
from typing import Final, NoReturn, final

from engine.operators.base import Operator
from engine.runtime.taskmanager.operator_clock import OperatorClock

__all__ = ["WatermarkAdvances"]

_END: Final = object()


@final
class WatermarkAdvances:
    """``operators``: of the chain, filled by who builds it; ``blame``: raises an error again with the operator's
    name."""

    def __init__(
        self, operators: Sequence[Operator], clock: OperatorClock, blame: Callable[[Exception, int], NoReturn]
    ) -> None:
        self._operators = operators
        self._clock = clock
        self._blame = blame
        #: by operator; only its end may be looked for while it is empty: nearly always
        self.under_way: dict[int, Generator[None, None, None]] = {}

    def begin(self, index: int, watermark_ms: int) -> None:
        """Let an operator know the time, and do the first piece: mostly there is nothing more. Errors are the caller's
        to blame."""
        pieces = self._operators[index].advance_watermark(watermark_ms)
        if pieces is not None and next(pieces, _END) is None:
            self.under_way[index] = pieces

    def step(self) -> None:
        """Do a piece of what the last operator has under way: those before it emit to it."""
        index = max(self.under_way)
        before = self._clock.enter(index)
        try:
            next(self.under_way[index])
        except StopIteration:
            del self.under_way[index]
        except Exception as error:
            self._blame(error, index)
        finally:
            self._clock.enter(before)

    def end(self, index: int) -> None:
        """Do at once what an operator has under way, if it has: something comes that goes behind it."""
        if index not in self.under_way:
            return
        before = self._clock.enter(index)
        try:
            collections.deque(self.under_way[index], maxlen=0)
        except Exception as error:
            self._blame(error, index)
        finally:
            self._clock.enter(before)
        del self.under_way[index]

    def end_all(self) -> None:
        while self.under_way:
            self.end(max(self.under_way))

    def can_snapshot(self) -> bool:
        """Whether a snapshot may be taken now."""
        return all(self._operators[index].can_snapshot_between() for index in self.under_way)

    def close(self) -> None:
        """Give up what is under way. Raises what the operators raise."""
        while self.under_way:
            self.under_way.popitem()[1].close()
