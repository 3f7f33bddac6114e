"""CheckpointingMode, with PyFlink's name and place."""

from __future__ import annotations

import enum

__all__ = ["CheckpointingMode"]


class CheckpointingMode(enum.Enum):
    EXACTLY_ONCE = 0
    #: barriers hold nothing up; after a failure some records may count twice
    AT_LEAST_ONCE = 1
