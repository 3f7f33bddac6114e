"""CheckpointedFunction: a function with state that belongs to no key. Flink's interface; PyFlink has none.

Not to be confused with keyed state, which needs no method of its own. Called by ``bound_function``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

from engine.core.errors import ProgramError
from engine.core.late_dataclass import dataclass
from engine.operators.functions import KeyedStateStore
from engine.state.operator_state import OperatorStateStore

if TYPE_CHECKING:
    from engine.operators.base import OperatorContext

__all__ = ["CheckpointedFunction", "FunctionInitializationContext", "FunctionSnapshotContext", "initialize"]


@final
@dataclass(frozen=True)
class FunctionInitializationContext:
    """Where a function finds what a checkpoint has of it."""

    _is_restored: bool
    _operator_states: OperatorStateStore
    _keyed_states: Any

    def is_restored(self) -> bool:
        """Return whether the job goes on from a checkpoint that knows this operator."""
        return self._is_restored

    def get_operator_state_store(self) -> OperatorStateStore:
        """``get_list_state``: elements are dealt out when the parallelism changes; ``get_union_list_state``: every
        subtask gets all; ``get_broadcast_state``: a map that is the same in all subtasks."""
        return self._operator_states

    def get_keyed_state_store(self) -> KeyedStateStore:
        """Return the keyed state. Raises: ProgramError when the stream has no key."""
        if self._keyed_states._keyed_state is None:
            raise ProgramError("There is no keyed state: the stream is not keyed. Call key_by(...) before.")
        store: KeyedStateStore = self._keyed_states
        return store


@final
@dataclass(frozen=True)
class FunctionSnapshotContext:
    checkpoint_id: int

    def get_checkpoint_id(self) -> int:
        return self.checkpoint_id


class CheckpointedFunction(abc.ABC):
    """Implement it beside the interface of the function: ``class Buffer(SinkFunction, CheckpointedFunction)``."""

    @abc.abstractmethod
    def initialize_state(self, context: FunctionInitializationContext) -> None:
        """Ask for the states, and take up what is in them. Called once in each attempt, before ``open``."""

    @abc.abstractmethod
    def snapshot_state(self, context: FunctionSnapshotContext) -> None:
        """Bring the states up to date: a checkpoint is taken now."""


def initialize(
    function: CheckpointedFunction, ctx: OperatorContext, blame: Callable[[BaseException], Exception]
) -> None:
    """Give a function its states, and let it be asked at each checkpoint. ``blame`` makes the error to raise of what it
    raised."""

    def snapshot(checkpoint_id: int) -> None:
        try:
            function.snapshot_state(FunctionSnapshotContext(checkpoint_id))
        except BaseException as error:
            raise blame(error) from error

    ctx.state.before_snapshot.append(snapshot)
    context = FunctionInitializationContext(ctx.state.is_restored, ctx.state.operator_states(), ctx.runtime_context)
    try:
        function.initialize_state(context)
    except BaseException as error:
        raise blame(error) from error
