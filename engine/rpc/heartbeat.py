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
    """Remembers when each tracked peer was last heard. Times are monotonic milliseconds."""

    def __init__(self, timeout_ms: int) -> None:
        assert timeout_ms > 0, timeout_ms
        self._timeout_ms = timeout_ms
        self._heard_ms: dict[T, int] = {}

    def track(self, peer: T, now_ms: int) -> None:
        """Begin to watch a peer, as heard now."""
        self._heard_ms[peer] = now_ms

    def untrack(self, peer: T) -> None:
        """Forget a peer; does nothing if it is not watched."""
        self._heard_ms.pop(peer, None)

    def received(self, peer: T, now_ms: int) -> None:
        """The peer sent something. One that is not watched stays so."""
        if peer in self._heard_ms:
            self._heard_ms[peer] = max(now_ms, self._heard_ms[peer])

    def expired(self, now_ms: int) -> list[T]:
        """Return the peers that were silent for the timeout or longer, longest first; they are not watched any more."""
        silent = [peer for peer, heard_ms in self._heard_ms.items() if now_ms - heard_ms >= self._timeout_ms]
        silent.sort(key=self._heard_ms.__getitem__)
        for peer in silent:
            del self._heard_ms[peer]
        return silent

    def next_deadline_ms(self) -> int | None:
        """Return when ``expired`` can have something to say at the earliest; None when nobody is watched."""
        return min(self._heard_ms.values()) + self._timeout_ms if self._heard_ms else None
