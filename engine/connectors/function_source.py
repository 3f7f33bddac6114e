"""Sources that users write: a ``SourceFunction`` runs in a thread of its own and may sleep or wait for the world.

It can rewind when it has ``snapshot_state`` and ``restore_state``: the state behind each record travels with the record
from the thread to the task, so a checkpoint has the state behind the last record that was emitted, however far the
function is ahead. One without them begins anew after a restart; that is said in the plan and once in the log.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.records import RowBatch
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output, PollResult, SourceOperator
from engine.operators.bound_function import BoundFunction
from engine.operators.functions import Function, SourceFunction
from engine.state.descriptors import ListStateDescriptor

__all__ = ["FunctionSourceSpec"]

_log = logging.getLogger(__name__)

#: Records that a user's source may be ahead of the task.
_AHEAD_MAX: Final = 10_000


@final
@dataclass(frozen=True)
class FunctionSourceSpec(OperatorSpec):
    """``function``: SourceFunction, or a callable that returns an iterable. Runs in subtask 0."""

    function: Any
    num_inputs = 0

    def build(self) -> Operator:
        return _FunctionSourceOperator(BoundFunction(self.function, "run"), self.function)

    def describe(self) -> str:
        return "interpreted" if _can_rewind(self.function) else "interpreted, begins anew after a restart"


def _can_rewind(function: Any) -> bool:
    return isinstance(function, SourceFunction) and type(function).snapshot_state is not SourceFunction.snapshot_state


@final
class _FunctionSourceOperator(SourceOperator):
    def __init__(self, run: BoundFunction, function: Any) -> None:
        self._run = run
        self._function = function
        self._rewinds = _can_rewind(function)
        #: (record, the function's state behind it)
        self._records: deque[tuple[Any, Any]] = deque()
        #: behind the last record that was emitted; empty before the first one of an attempt that starts afresh
        self._state: list[Any] = []
        self._room = threading.Event()
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._kept = ctx.state.operator_states().get_list_state(ListStateDescriptor("SourceFunctionState"))
        self._state = self._kept.get()
        self._run.open(ctx)
        is_first = ctx.runtime_context.get_index_of_this_subtask() == 0
        # Of several subtasks the one that was given the state goes on.
        if not self._state and not is_first:
            self._ended = True
            return
        self._restore()
        self._thread = threading.Thread(target=self._read, name=f"source {ctx.operator_name}", daemon=True)
        self._thread.start()

    def _restore(self) -> None:
        if self._state and self._rewinds:
            try:
                self._function.restore_state(self._state[-1])
            except BaseException as error:
                raise self._run.error(error) from error
        elif self.ctx.state.is_restored and not self._rewinds:
            _log.warning(
                "source %r begins anew: %s has no snapshot_state(), so no checkpoint knows where it was. What it gives "
                "again is processed again.",
                self.ctx.operator_name,
                type(self._function).__name__,
            )

    def _read(self) -> None:
        records = self._records
        state_of: Callable[[], Any] = self._function.snapshot_state if self._rewinds else _no_state
        try:
            for record in self._run.call():
                if self._stopped:
                    return
                was_empty = not records
                records.append((record, state_of()))
                if was_empty:
                    self.ctx.wake()
                while len(records) >= _AHEAD_MAX and not self._stopped:
                    self._room.clear()
                    if len(records) >= _AHEAD_MAX:
                        self._room.wait(1.0)
        except BaseException as error:  # sys.exit() would end this thread alone, and the stream as if it were complete
            self._error = error
        finally:
            self._ended = True
            self.ctx.wake()

    def poll(self, rows_max: int) -> PollResult:
        # Read before the queue: what was added before the end is then surely seen.
        ended = self._ended
        records = self._records
        taken = [records.popleft() for _ in range(min(rows_max, len(records)))]
        if len(records) < _AHEAD_MAX // 2:
            self._room.set()
        if taken:
            if self._rewinds:
                self._state = [taken[-1][1]]
            self.out.emit(RowBatch([record for record, _ in taken]))
            return PollResult.MORE if records or self._ended else PollResult.IDLE
        if not ended:
            return PollResult.IDLE
        if self._error is not None:
            raise self._run.error(self._error) from self._error
        return PollResult.END

    def snapshot_state(self, checkpoint_id: int) -> None:
        self._kept.update(self._state)

    def cancel(self) -> None:
        self._stop()

    def close(self) -> None:
        self._stop()
        if self._thread is not None:
            # A user's source that sleeps is left behind: the thread is a daemon of a process that ends soon.
            self._thread.join(0.2)
        self._run.close()

    def _stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._room.set()
        if isinstance(self._function, Function):
            cancel: Callable[[], None] | None = getattr(self._function, "cancel", None)
            if cancel is not None:
                cancel()


def _no_state() -> None:
    return None
