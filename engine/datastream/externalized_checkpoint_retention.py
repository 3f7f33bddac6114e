"""ExternalizedCheckpointRetention, with PyFlink's name and place."""

from __future__ import annotations

import enum

__all__ = ["ExternalizedCheckpointRetention"]


class ExternalizedCheckpointRetention(enum.Enum):
    """What becomes of a job's last checkpoints when it is cancelled; all but the last keep them when it fails."""

    DELETE_ON_CANCELLATION = 0
    RETAIN_ON_CANCELLATION = 1
    NO_EXTERNALIZED_CHECKPOINTS = 2
