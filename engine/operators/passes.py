"""When records that wait for state in files are taken up: in passes over the files, a step at a time.

While the next records gather, each batch of them takes the pass on by as much as they have filled their room; what has
waited for long is taken up in turns, by a timer. So there is no pause. Not here: what a pass does
(``spilling_sessions``, ``spilling_intervals``), and what it is that must not wait (the operator).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, final

from engine.core.clock import Clock

__all__ = ["PassedState", "Passes"]

#: Records, and the time, wait for so long at least, and for so many times what the last pass took, unless there is no
#: room for more.
_WAIT_MIN_MS: Final = 20
_WAIT_FACTOR: Final = 3
#: So long a pass goes on when it is time to, before it is the turn of others.
_TURN_MS: Final = 5


class PassedState(Protocol):
    """State in files, or in memory, where nothing ever waits for it."""

    @property
    def filled(self) -> float:
        """How full the room for records is; 1 = there has to be a pass."""
        ...

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to do that has not been done."""
        ...

    @property
    def is_passing(self) -> bool: ...

    @property
    def steps_left(self) -> int: ...

    def begin_pass(self) -> int:
        """Begin to take up what waits; return the number of steps."""
        ...

    def step(self, sink: Any) -> int | None:
        """Do the next step; return the time until which all has been taken up, when this was the last one."""
        ...


@final
class Passes:
    """``sink``: for the state's steps; ``on_over``: called behind each pass with the time until which all that came has
    been taken up: hands on that time, and asks for the next pass by ``be_due``."""

    def __init__(self, state: PassedState, clock: Clock, sink: Any, on_over: Callable[[int], None]) -> None:
        self._state = state
        self._clock = clock
        self._sink = sink
        self._on_over = on_over
        #: when to begin with a pass, or to go on
        self.due_ms: int | None = None
        self._wait_ms = _WAIT_MIN_MS
        #: steps of the pass, and the time that they took
        self._num_steps = self._spent_ms = 0

    def be_due(self) -> None:
        """See to it that nothing waits for long."""
        if self.due_ms is None:
            self.due_ms = self._clock.now_ms() + self._wait_ms

    def go_on(self) -> None:
        """Records have been added to those that wait."""
        state = self._state
        while state.is_passing and self._num_steps - state.steps_left < state.filled * self._num_steps:
            self.step()
        if not state.is_passing and state.filled >= 1:
            self.begin()

    def begin(self) -> None:
        begin_ms = self._clock.monotonic_ms()
        self._num_steps = self._state.begin_pass()
        self._spent_ms = self._clock.monotonic_ms() - begin_ms

    def step(self) -> None:
        """Go on with the pass."""
        begin_ms = self._clock.monotonic_ms()
        until_ms = self._state.step(self._sink)
        self._spent_ms += self._clock.monotonic_ms() - begin_ms
        if until_ms is not None:
            self.due_ms = None
            self._wait_ms = max(_WAIT_MIN_MS, _WAIT_FACTOR * self._spent_ms)
            self._on_over(until_ms)

    def take_up_all(self) -> None:
        """Take up all that waits."""
        while self._state.is_waiting:
            if not self._state.is_passing:
                self.begin()
            self.step()

    def take_turn(self) -> None:
        """It is time: begin with a pass, or go on with it for a while."""
        if not self._state.is_passing and self._state.is_waiting:
            self.begin()
        end_ms = self._clock.monotonic_ms() + _TURN_MS
        while self._state.is_passing and self._clock.monotonic_ms() <= end_ms:
            self.step()
        if self._state.is_passing:
            self.due_ms = self._clock.now_ms() + _TURN_MS  # others have a turn
