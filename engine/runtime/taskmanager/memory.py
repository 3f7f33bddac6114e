"""How the memory of a slot is divided. Pure arithmetic; who spills is the operators' business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.core.config import Configuration
from engine.core.options import MemoryOptions

__all__ = ["SlotMemory"]

#: Least that an operator is given: below this, spilling costs more than it saves.
_OPERATOR_BYTES_MIN: Final = 4 << 20
#: Tasks of a slot that are expected to sort or hash at one time: one stage's build and probe, roughly.
_TASKS_AT_ONCE: Final = 2


@dataclass(frozen=True, slots=True)
class SlotMemory:
    """Bytes of one slot by use."""

    managed_bytes: int  #: sort and hash tables of all operators in the slot
    segment_bytes: int  #: size of a full buffer

    @classmethod
    def divide(cls, memory_bytes: int, num_slots: int, config: Configuration) -> SlotMemory:
        """``memory_bytes``: what the slot's job may use in all; 0 = unknown."""
        managed = config.get(MemoryOptions.MANAGED) // max(1, num_slots)
        if not managed:
            managed = int(memory_bytes * config.get(MemoryOptions.MANAGED_FRACTION))
        return cls(managed, config.get(MemoryOptions.SEGMENT_SIZE))

    def operator_bytes(self, num_hungry: int) -> int:
        """Return the share of one operator in a chain with ``num_hungry`` operators that hold their input."""
        return max(_OPERATOR_BYTES_MIN, self.managed_bytes // (_TASKS_AT_ONCE * max(1, num_hungry)))
