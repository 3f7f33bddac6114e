"""Notices steps that take too long, at no cost for those that do not: a thread that sleeps and looks.

It changes nothing but a flag, which the task reads when it emits, and the end of the loop over rows that is running.
"""

from __future__ import annotations

import threading
import time
from typing import Final, final

from engine.operators.row_loop import RowLoop

__all__ = ["Watchdog"]

#: A step is late after one to two of these. Each look takes the interpreter lock, for milliseconds on a busy host.
_INTERVAL: Final = 0.1
#: The same for so many looks after a late step.
_CLOSE_INTERVAL: Final = 0.025
_CLOSE_LOOKS: Final = 80
#: Looks at an idle slot before it sleeps until there is a step.
_IDLE_LOOKS: Final = 20


@final
class Watchdog:
    """``is_late``: the step that runs has gone on for long, and others should have a turn."""

    def __init__(self, row_loop: RowLoop) -> None:
        self.is_late = False
        self._row_loop = row_loop
        self._is_running = False
        self._serial = 0
        self._is_asleep = False
        self._woken = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def begin(self) -> None:
        """A step begins, or goes on after others had their turn."""
        self.is_late = False
        self._serial += 1
        self._is_running = True
        if self._is_asleep:
            self._woken.set()

    def end(self) -> None:
        self._is_running = False
        self.is_late = False

    def _run(self) -> None:
        seen = -1
        idle_looks = close_looks = 0
        while True:
            time.sleep(_CLOSE_INTERVAL if close_looks else _INTERVAL)
            close_looks = max(0, close_looks - 1)
            if self._is_running:
                idle_looks = 0
                if self._serial == seen:
                    self.is_late = True
                    self._row_loop.cut()
                    close_looks = _CLOSE_LOOKS
                seen = self._serial
                continue
            idle_looks += 1
            if idle_looks >= _IDLE_LOOKS:
                idle_looks = 0
                self._is_asleep = True
                if not self._is_running:  # asked again: the step may have begun before it could see us asleep
                    self._woken.wait()
                self._is_asleep = False
                self._woken.clear()
