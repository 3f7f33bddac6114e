"""Keys that an operator on columns has seen: in a slot table, and for one on rows that goes on with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, final

from engine.operators.base import OperatorContext
from engine.operators.computed_keys import python_keys
from engine.operators.keys import ComposedKey

if TYPE_CHECKING:
    from engine.state.slot_state import SlotState

__all__ = ["SEEN_PART", "LeftKeys", "keys_in", "state_of"]

#: Name of the part of state in checkpoints, for good.
SEEN_PART: Final = "seen-keys"
#: Keys that become Python objects at once.
_KEYS_MAX: Final = 1 << 16


def state_of(ctx: OperatorContext, key_selector: Any) -> SlotState:
    """Return a table of keys without values, registered and restored."""
    from engine.state.slot_state import SlotState

    max_parallelism = ctx.runtime_context.get_max_number_of_parallel_subtasks()
    state = SlotState(max_parallelism, is_tuple=isinstance(key_selector, ComposedKey))
    ctx.state.add_keyed(SEEN_PART, state)
    return state


def keys_in(state: SlotState, *, is_tuple: bool) -> Iterator[Any]:
    """Yield the keys as Python objects."""
    import numpy as np

    for each in (state, *state.others):
        for at in range(0, each.num_slots, _KEYS_MAX):
            assert each.table is not None
            columns = each.table.keys_of(np.arange(at, min(at + _KEYS_MAX, each.num_slots)))
            yield from python_keys(columns, is_tuple=is_tuple)


@final
class LeftKeys:
    """What an operator on columns has left in a checkpoint, for one on rows."""

    def __init__(self, ctx: OperatorContext, key_selector: Any) -> None:
        self._state = state_of(ctx, key_selector)
        self._is_tuple = isinstance(key_selector, ComposedKey)

    def take(self) -> Iterator[Any]:
        """Yield, and forget, the keys."""
        yield from keys_in(self._state, is_tuple=self._is_tuple)
        self._state.clear()
