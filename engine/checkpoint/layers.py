"""Which layers of the last checkpoint an increment builds on: pure decisions.

A part in memory is stored as one full layer and deltas on top of it. A delta has what changed since the barrier of the
layer below it. So a new one may also take the place of former deltas, by having what changed since an earlier
barrier: that costs little when the same keys change again and again, and then a full layer is never needed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from engine.protocol.checkpoint import NO_CHECKPOINT, KeyedLayer, KeyedStateHandle

__all__ = ["DELTA_SHARE_MAX", "LAYERS_MAX", "MERGED_SHARE_MAX", "LayerStack", "base_of_delta"]

#: Layers of a part; each costs an open file at restore. With less than a file's worth each they cost nothing.
LAYERS_MAX: Final = 24
#: Bytes of deltas by bytes of the full layer below them, above which all is written anew: a restore reads 1.5 times the
#: state at most.
DELTA_SHARE_MAX: Final = 0.5
#: When there are too many layers, deltas are written as one if that has at most this share of all entries.
MERGED_SHARE_MAX: Final = 0.25
#: A delta takes the place of former ones at any time if that makes it larger by at most this share and so many entries.
_GROWTH_SHARE: Final = 0.25
_GROWTH_ENTRIES: Final = 250
#: Layers, from the lowest, from which on that is tried: each try unites what has changed.
_TRIED: Final = 2


@dataclass(frozen=True, slots=True)
class LayerStack:
    """The layers of a part in one checkpoint, the full one first. ``barriers``: of each, the checkpoint that wrote it;
    NO_CHECKPOINT where that was a former attempt's, but for the last."""

    layers: tuple[KeyedLayer, ...]
    barriers: tuple[int, ...]

    @classmethod
    def restored(cls, handle: KeyedStateHandle, checkpoint_id: int) -> LayerStack:
        unknown = (NO_CHECKPOINT,) * (len(handle.layers) - 1)
        return cls(handle.layers, (*unknown, checkpoint_id) if handle.layers else ())

    @property
    def known_barriers(self) -> tuple[int, ...]:
        return tuple(barrier for barrier in self.barriers if barrier != NO_CHECKPOINT)

    def with_layer(self, layer: KeyedLayer, checkpoint_id: int) -> LayerStack:
        return LayerStack((*self.layers, layer), (*self.barriers, checkpoint_id))

    def up_to(self, barrier: int) -> LayerStack:
        """The stack as it was in the checkpoint of that barrier."""
        size = self.barriers.index(barrier) + 1
        return LayerStack(self.layers[:size], self.barriers[:size])

    def takes_delta(self) -> bool:
        """Whether another delta on top is better than a full layer."""
        if len(self.layers) >= LAYERS_MAX:
            return False
        full, *deltas = (sum(size for _, size, _ in layer.chunks.values()) for layer in self.layers)
        return sum(deltas) <= DELTA_SHARE_MAX * full


def base_of_delta(
    stack: LayerStack | None, num_entries: int, num_changed: Callable[[int, int], int | None]
) -> LayerStack | None:
    """Return what a new delta of a part builds on, all of ``stack`` or less; None = a full layer is better.

    ``num_changed(barrier, at_most)``: about how many entries changed since then; None = not known, or more than that.
    """
    if stack is None or not stack.layers or not stack.layers[0].file.path:
        return None  # what is small is written whole
    known = stack.known_barriers
    newest = num_changed(known[-1], num_entries)
    if newest is None:
        return None
    at_most = newest + int(newest * _GROWTH_SHARE) + _GROWTH_ENTRIES
    for barrier in known[:-1][:_TRIED]:
        if num_changed(barrier, at_most) is not None:
            return stack.up_to(barrier)
    if stack.takes_delta():
        return stack
    merged = stack.up_to(known[0])
    is_small = len(known) > 1 and num_changed(known[0], int(num_entries * MERGED_SHARE_MAX)) is not None
    return merged if is_small and merged.takes_delta() else None
