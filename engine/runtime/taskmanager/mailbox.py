"""The selector loop of a slot process: readiness of file descriptors, deadlines, and a wake-up from other threads.

It knows nothing of tasks or channels; ``slot_process`` turns it and steps its tasks in between. One thread runs it all;
only ``wake`` may be called from elsewhere.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import time
from collections.abc import Callable
from typing import Any, Final, final

__all__ = ["READ", "WRITE", "Deadline", "Mailbox"]

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE


@final
class Deadline:
    """Something to do at a time; ``cancel`` makes it nothing."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


@final
class Mailbox:
    """Times are ``time.monotonic()`` seconds."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._deadlines: list[tuple[float, int, Deadline]] = []
        self._sequence = itertools.count()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_woken = False
        self._selector.register(self._wake_fd, READ, self._on_wake)

    # --- file descriptors ----------------------------------------------------------------------------------------

    def watch(self, file: Any, events: int, on_ready: Callable[[int], None]) -> None:
        """Call ``on_ready(READ | WRITE)`` whenever the file is ready; replaces an earlier call. ``events`` 0: stop."""
        known = file in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(file)
        elif known:
            self._selector.modify(file, events, on_ready)
        else:
            self._selector.register(file, events, on_ready)

    # --- time ----------------------------------------------------------------------------------------------------

    def call_at(self, when: float, action: Callable[[], None]) -> Deadline:
        deadline = Deadline(action)
        heapq.heappush(self._deadlines, (when, next(self._sequence), deadline))
        return deadline

    def call_later(self, delay: float, action: Callable[[], None]) -> Deadline:
        return self.call_at(time.monotonic() + delay, action)

    # --- other threads -------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Make a sleeping ``turn`` return. Thread-safe and cheap when it was woken already."""
        if not self._is_woken:
            self._is_woken = True
            os.eventfd_write(self._wake_fd, 1)

    def _on_wake(self, events: int) -> None:
        os.eventfd_read(self._wake_fd)
        # Cleared before the tasks look at what the other thread left for them: nothing is missed.
        self._is_woken = False

    # --- the loop ------------------------------------------------------------------------------------------------

    def turn(self, timeout: float | None) -> None:
        """Sleep until something is ready, a deadline has come or the timeout passes, then handle all of it."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][2].action is None:
            heapq.heappop(deadlines)
        if deadlines:
            left = max(0.0, deadlines[0][0] - time.monotonic())
            timeout = left if timeout is None else min(timeout, left)
        for key, events in self._selector.select(timeout):
            # An earlier callback of this turn may have stopped watching this one.
            if key.fd in self._selector.get_map():
                key.data(events)
        if deadlines:
            now = time.monotonic()
            while deadlines and deadlines[0][0] <= now:
                action = heapq.heappop(deadlines)[2].action
                if action is not None:
                    action()

    def close(self) -> None:
        self._selector.close()
        os.close(self._wake_fd)
