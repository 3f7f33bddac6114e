"""Which peers have been silent for too long. Pure: the caller brings the time.

Not here: sending heartbeats (``resource_manager``, ``task_executor``).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar, final

__all__ = ["HeartbeatMonitor"]

T = TypeVar("T", bound=Hashable)


@final
class HeartbeatMonitor(Generic[T]):
    """Remembers when each tracked peer was last heard. Times are monotonic milliseconds.

    ``look_ms``: the caller asks ``expired`` so often. When it comes later than that, it was stopped itself (a machine
    that was suspended, a process that got no time), and heartbeats may wait to be read: silence of that time says
    nothing. Then each peer has ``grace_ms`` more, an interval in which it sends again. Once: who stays silent is given
    up after the timeout and this, also by a caller that is always late.
    """

    def __init__(self, timeout_ms: int, *, look_ms: int, grace_ms: int) -> None:
        assert timeout_ms > 0, timeout_ms
        assert look_ms > 0, look_ms
        self._timeout_ms = timeout_ms
        self._late_ms = 2 * look_ms
        self._grace_ms = grace_ms
        self._heard_ms: dict[T, int] = {}
        #: peers that have been given more time since they were heard → until when
        self._spared_ms: dict[T, int] = {}
        self._looked_ms: int | None = None

    def track(self, peer: T, now_ms: int) -> None:
        """Begin to watch a peer, as heard now."""
        self._heard_ms[peer] = now_ms
        self._spared_ms.pop(peer, None)

    def untrack(self, peer: T) -> None:
        """Forget a peer; does nothing if it is not watched."""
        self._heard_ms.pop(peer, None)
        self._spared_ms.pop(peer, None)

    def received(self, peer: T, now_ms: int) -> None:
        """The peer sent something. One that is not watched stays so."""
        if peer in self._heard_ms:
            self._heard_ms[peer] = max(now_ms, self._heard_ms[peer])
            self._spared_ms.pop(peer, None)

    def expired(self, now_ms: int) -> list[T]:
        """Return the peers that were silent for the timeout or longer, longest first; they are not watched any more."""
        if self._looked_ms is not None and now_ms - self._looked_ms > self._late_ms:
            for peer in self._heard_ms:
                self._spared_ms.setdefault(peer, now_ms + self._grace_ms)
        self._looked_ms = now_ms
        silent = [peer for peer in self._heard_ms if now_ms >= self._deadline_ms(peer)]
        silent.sort(key=self._heard_ms.__getitem__)
        for peer in silent:
            self.untrack(peer)
        return silent

    def next_deadline_ms(self) -> int | None:
        """Return when ``expired`` can have something to say at the earliest; None when nobody is watched."""
        return min(map(self._deadline_ms, self._heard_ms), default=None)

    def _deadline_ms(self, peer: T) -> int:
        deadline_ms = self._heard_ms[peer] + self._timeout_ms
        return max(deadline_ms, self._spared_ms.get(peer, deadline_ms))
