"""What an operator on columns does when its state is more than its share of managed memory.

Keyed aggregations, windows, sessions, window joins and interval joins put it into files, whatever the backend
(``state/spilling_slots``, ``spilling_windows``, ``spilling_sessions``, ``window_join_state``, ``spilling_intervals``).
Others keep theirs in memory: with ``rocksdb`` the operator hands everything to the one on rows, which keeps it on the
disk, and goes on there; with ``hashmap`` there is no other place. The log says so, once.
"""

from __future__ import annotations

import logging
from typing import Final, final

from engine.core.checkpointing_options import CheckpointingOptions
from engine.core.config import Configuration
from engine.operators.base import OperatorContext

__all__ = ["MemoryWatch"]

_log = logging.getLogger(__name__)
#: So much is left in memory in any case, however little a slot has: on rows it takes ten times the time.
_BYTES_MIN: Final = 64 << 20
_SPILL_SHARE: Final = 3 / 4


@final
class MemoryWatch:
    """Of one subtask; lives in its task's thread."""

    def __init__(self, ctx: OperatorContext) -> None:
        self._limit = max(ctx.memory_bytes, _BYTES_MIN)
        self._ctx = ctx
        self._has_told = False
        self._has_disk = Configuration(ctx.config).get(CheckpointingOptions.BACKEND) == "rocksdb"

    @property
    def limit_bytes(self) -> int:
        return self._limit

    def must_spill(self, held_bytes: int) -> bool:
        """Return whether the state has to go to files of the operator's own: while it does it needs more. Called for
        each batch."""
        if held_bytes <= self._limit * _SPILL_SHARE:
            return False
        self._tell(held_bytes, "What there is no room for goes to files in io.tmp.dirs, and records wait for others.")
        return True

    def must_leave(self, held_bytes: int) -> bool:
        """Return whether the state has to go to the disk. Called for each batch."""
        if held_bytes <= self._limit:
            return False
        if self._has_disk:
            next_step = "It goes on with RocksDB, on rows: slower, and no longer bound by memory."
        else:
            next_step = (
                "It goes on in memory; when that ends the slot is killed. Raise taskmanager.memory.process.size or the "
                "parallelism, or set state.backend.type: rocksdb."
            )
        self._tell(held_bytes, next_step)
        return self._has_disk

    def _tell(self, held_bytes: int, next_step: str) -> None:
        if self._has_told:
            return
        self._has_told = True
        _log.warning(
            "operator=%s subtask=%d holds %d MB of state on columns; its share of managed memory is %d MB. %s",
            self._ctx.operator_name,
            self._ctx.runtime_context.get_index_of_this_subtask(),
            held_bytes >> 20,
            self._limit >> 20,
            next_step,
        )
