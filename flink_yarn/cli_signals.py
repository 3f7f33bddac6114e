"""What ends an attached command: SIGINT, SIGTERM and, unless it was started under nohup, the end of its terminal.

Each becomes a KeyboardInterrupt that knows its signal, so that clean-up is the same and the exit code tells which it
was. Between two lines an exception comes too soon or too late for whoever has to clean up; there they are held.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import types
from collections.abc import Iterator
from typing import Any, Final, TextIO, final

__all__ = [
    "ENDING_SIGNALS",
    "EndedBySignal",
    "HeldSignals",
    "exit_code",
    "held_signals",
    "raise_on_signals",
    "raising_on_signals",
    "say",
]

#: Besides SIGINT, which raises KeyboardInterrupt by itself.
ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


@final
class EndedBySignal(KeyboardInterrupt):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def raise_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise EndedBySignal; SIGINT raises KeyboardInterrupt by itself."""
    signal.signal(signal.SIGTERM, _raise)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _raise)


@contextlib.contextmanager
def raising_on_signals() -> Iterator[None]:
    """As ``raise_on_signals``, for a block. Outside the main thread nothing is changed: our caller has the signals."""
    before: dict[int, Any] = {}
    try:
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, _raise)
    except ValueError:
        pass
    try:
        yield
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)


@final
class HeldSignals:
    """What was heard while signals are held; see ``held_signals``."""

    def __init__(self) -> None:
        self._heard: list[int] = []
        self._is_released = False

    def hear(self, number: int, frame: types.FrameType | None) -> None:
        if self._is_released:
            self._is_released = False  # whoever cleans up now is left in peace
            raise _interrupt(number)
        self._heard.append(number)

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Within it signals raise at once, those of before at its beginning. It belongs into a ``try``."""
        self._is_released = True
        try:
            self.raise_heard()
            yield
        finally:
            self._is_released = False

    def raise_heard(self) -> None:
        if self._heard:
            raise _interrupt(self._heard.pop(0))


@contextlib.contextmanager
def held_signals() -> Iterator[HeldSignals]:
    """Let SIGINT, SIGTERM and SIGHUP wait: they raise within ``released()`` only, and are forgotten at the end of the
    block. Outside the main thread nothing is changed."""
    held = HeldSignals()
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, *ENDING_SIGNALS):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, held.hear)
    try:
        yield held
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)


def _interrupt(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else EndedBySignal(number)


def _raise(number: int, frame: types.FrameType | None) -> None:
    raise EndedBySignal(number)


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return what a shell would show of a process that died of the signal."""
    return 128 + (interrupt.number if isinstance(interrupt, EndedBySignal) else signal.SIGINT)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line; a terminal or a reader that has gone away keeps nobody from going on or from cleaning up."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
