"""Which nodes no TaskManager is asked for on, because those that were started there ended before they registered.

A pure decider (``BadNodes``) and the way its answer takes to YARN (``tell_skein``). YARN itself avoids nodes that are
lost, unhealthy or decommissioned; what it does not know is that a healthy node has, say, no Python, no space for an
archive, or no way to the JobManager. Such a node looks idle to the scheduler, which gives us the next container there.

Source: Hadoop's ``AMRMClient.updateBlacklist``; MapReduce's RMContainerRequestor for when to give in.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Final, final

from flink_yarn.skein_classes import AGAIN_FOLDER, AVOID_FOLDER

__all__ = ["BadNodes", "tell_skein"]

#: So many containers of a node that end before they register, within the interval, and it is avoided.
FAILURES_MAX: Final = 2
FAILURES_INTERVAL_S: Final = 600.0
AVOID_S: Final = 1800.0  # then it may have been mended
#: So long containers may be missing while nodes are avoided: perhaps only these have room. Twice as long next time.
PATIENCE_S: Final = 10.0
PATIENCE_MAX_S: Final = 640.0
#: So many are kept for the next JobManager.
KEPT_MAX: Final = 500


@dataclass(slots=True)
class _Node:
    failed_at_s: deque[float] = field(default_factory=lambda: deque(maxlen=FAILURES_MAX))
    avoided_until_s: float = 0.0
    #: It was avoided before and asked again since: one more failure is enough.
    is_on_probation: bool = False


@final
class BadNodes:
    """Hosts are YARN's names of nodes; times are of one clock that never goes back, in seconds."""

    def __init__(self) -> None:
        #: All and only nodes with a failure since their last TaskManager that registered.
        self._nodes: dict[str, _Node] = {}
        self._missing_since_s: float | None = None
        self._patience_s = PATIENCE_S

    def failed(self, host: str, now_s: float) -> bool:
        """A container ended before it registered. Returns whether its node is avoided from now on."""
        node = self._nodes.setdefault(host, _Node())
        node.failed_at_s.append(now_s)
        recent = [at for at in node.failed_at_s if at > now_s - FAILURES_INTERVAL_S]
        if len(recent) < FAILURES_MAX and not node.is_on_probation:
            return False
        was_avoided = node.avoided_until_s > now_s
        node.avoided_until_s = now_s + AVOID_S
        self._missing_since_s = None  # requests for other nodes begin now
        return not was_avoided

    def registered(self, host: str) -> None:
        """A TaskManager of this node has found the JobManager: nothing is wrong with it."""
        self._nodes.pop(host, None)

    def missing(self, is_missing: bool, now_s: float) -> frozenset[str]:
        """Called at each look with whether YARN owes us containers that no node was found for.

        Returns the nodes that are to be asked again, as there seem to be no others: all that are avoided, or none.
        """
        avoided = self.avoided(now_s)
        if not is_missing or not avoided:
            self._missing_since_s = None
            return frozenset()
        if self._missing_since_s is None:
            self._missing_since_s = now_s
        if now_s < self._missing_since_s + self._patience_s:
            return frozenset()
        self._missing_since_s = None
        self._patience_s = min(2 * self._patience_s, PATIENCE_MAX_S)
        for host in avoided:
            self._nodes[host].avoided_until_s = 0.0
            self._nodes[host].is_on_probation = True
        return avoided

    def avoided(self, now_s: float) -> frozenset[str]:
        return frozenset(host for host, node in self._nodes.items() if node.avoided_until_s > now_s)

    def seconds_left(self, now_s: float) -> dict[str, float]:
        """Return host → for how long it is avoided yet; the longest first, and not more than a few hundred."""
        left = {host: node.avoided_until_s - now_s for host, node in self._nodes.items()}
        rows = sorted(((host, seconds) for host, seconds in left.items() if seconds > 0), key=lambda row: -row[1])
        return dict(rows[:KEPT_MAX])

    def recall(self, seconds_left: Mapping[str, float], now_s: float) -> None:
        """Go on with what ``seconds_left`` has told another one, perhaps by another clock."""
        for host, seconds in seconds_left.items():
            if seconds > 0 and host not in self._nodes:
                self._nodes[host] = _Node(avoided_until_s=now_s + min(seconds, AVOID_S))

    def may_be_the_only_fault(self, hosts: Set[str], now_s: float) -> bool:
        """Whether containers that failed on just these hosts say nothing of others: it is one, avoided for the first
        time."""
        nodes = [self._nodes.get(host) for host in hosts]
        return len(nodes) == 1 and all(
            node is not None and node.avoided_until_s > now_s and not node.is_on_probation for node in nodes
        )


def tell_skein(avoided: Set[str], folder: str = ".") -> None:
    """Write down for skein's ApplicationMaster which nodes to avoid; all others of before it may ask again.

    ``folder``: the working directory of its container. Raises OSError.
    """
    avoid, again = os.path.join(folder, AVOID_FOLDER), os.path.join(folder, AGAIN_FOLDER)
    for path in (avoid, again):
        os.makedirs(path, exist_ok=True)
    for host in sorted(set(os.listdir(avoid)) - avoided):
        os.replace(os.path.join(avoid, host), os.path.join(again, host))
    for host in sorted(avoided):
        again_too = os.path.join(again, host)
        if os.path.exists(again_too):
            os.replace(again_too, os.path.join(avoid, host))
        else:
            with open(os.path.join(avoid, host), "w", encoding="utf-8"):
                pass
