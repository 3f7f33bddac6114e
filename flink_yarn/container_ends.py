"""Why a container has ended, told from YARN's words, and what follows from it. Pure.

skein passes on the diagnostics but not the exit status. Where there is a negative status, the words are YARN's own and
tell the same; a positive one is the exit code of our process, for which skein has one sentence.

Source: ``ContainerExitStatus`` of Hadoop (2.8 to 3.4), and the texts of its schedulers and NodeManager.
"""

from __future__ import annotations

import enum
import re
from typing import Final

__all__ = ["ContainerEnd", "end_of"]


class ContainerEnd(enum.Enum):
    """Who or what has ended a container, with the exit statuses that YARN has for it."""

    #: -102 the scheduler gave its resources to another queue; -108 to a guaranteed container
    PREEMPTED = "preempted"
    #: -100 its node is lost, decommissioned, unhealthy, or has begun anew; or nobody started it in time
    NODE_LOST = "node lost"
    #: -101 its node has no healthy disk left
    DISKS_FAILED = "disks failed"
    #: -105 the ApplicationMaster, -106 the ResourceManager, -107 the end of the application
    ENDED_BY_YARN = "ended by YARN"
    #: it did so itself: its exit code, a signal, -103 and -104 too much memory, -109 too much in its logs
    FAILED = "failed"

    @property
    def is_own_fault(self) -> bool:
        """Whether it counts towards ``yarn.maximum-failed-containers-per-interval``."""
        return self is ContainerEnd.FAILED or self is ContainerEnd.DISKS_FAILED

    @property
    def speaks_against_its_node(self) -> bool:
        """Whether the next one had better be on another node, if this one had not got as far as registering."""
        return self is ContainerEnd.FAILED or self is ContainerEnd.DISKS_FAILED


#: The first that is found counts.
_WORDS: Final = (
    (ContainerEnd.DISKS_FAILED, r"disks failed"),
    (ContainerEnd.PREEMPTED, r"preempt|killed to make room for guaranteed"),
    (
        ContainerEnd.NODE_LOST,
        r"\*lost\* node|unusable node|unhealthy node|decommission|expired since it was unused|resync|NM shutdown",
    ),
    (
        ContainerEnd.ENDED_BY_YARN,
        r"killed by (the )?(ApplicationMaster|ResourceManager)|application-finish event|released by application|"
        r"of a completed application",
    ),
)
_ENDS: Final = tuple((end, re.compile(words, re.IGNORECASE)) for end, words in _WORDS)


def end_of(message: str) -> ContainerEnd:
    """Return what YARN's diagnostics of an ended container mean; ``FAILED`` for words that are not known."""
    return next((end for end, words in _ENDS if words.search(message)), ContainerEnd.FAILED)
