"""Simulated time: everything that happens is an event at a time, and nothing happens otherwise. One seed, one history.

Whatever is random is drawn from a generator of its own name (``World.rng``), so that one more draw in one place does
not change all the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import random
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final, final

__all__ = ["SimClock", "SimulationError", "Timer", "World", "current", "running"]

#: Wall clock at simulated time 0.
EPOCH_MS: Final = 1_700_000_000_000
#: An event takes no time by itself: so many at one instant are a loop without end.
EVENTS_AT_ONCE_MAX: Final = 20_000
EVENTS_MAX: Final = 2_000_000


class SimulationError(AssertionError):
    """The simulated cluster did what it must never do."""


@final
class Timer:
    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


@final
class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0  #: seconds
        self.is_over = False
        #: Called after each event; raises SimulationError.
        self.checks: list[Callable[[], None]] = []
        self.story: list[tuple[float, str, str, str]] = []
        self.num_events = 0
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._rngs: dict[str, random.Random] = {}
        self._ids: dict[str, int] = {}
        #: What only one part of the simulation knows, e.g. the ledger of a sink.
        self.parts: dict[str, Any] = {}
        self._failures: list[BaseException] = []

    # --- chance

    def rng(self, name: str) -> random.Random:
        found = self._rngs.get(name)
        if found is None:
            found = self._rngs[name] = random.Random(f"{self.seed}/{name}")
        return found

    def next_id(self, kind: str) -> int:
        self._ids[kind] = self._ids.get(kind, 0) + 1
        return self._ids[kind]

    # --- time

    def at(self, when: float, action: Callable[[], None]) -> Timer:
        timer = Timer(action)
        heapq.heappush(self._heap, (max(when, self.now), next(self._sequence), timer))
        return timer

    def after(self, delay: float, action: Callable[[], None]) -> Timer:
        return self.at(self.now + delay, action)

    def run(self, is_done: Callable[[], bool], until: float) -> bool:
        """Let things happen until ``is_done()`` or until that time. Return whether it is done."""
        at_once = 0
        while not is_done():
            if not self._heap or self._heap[0][0] > until:
                self.now = max(self.now, until)
                return False
            when, _, timer = heapq.heappop(self._heap)
            action = timer.action
            if action is None:
                continue
            at_once = at_once + 1 if when == self.now else 0
            self.now = when
            self.num_events += 1
            if at_once > EVENTS_AT_ONCE_MAX or self.num_events > EVENTS_MAX:
                raise SimulationError(f"time stands still at {self.now:.6f}: {action}")
            action()
            for check in self.checks:
                check()
            if self._failures:
                raise self._failures[0]
        return True

    # --- what is told

    def tell(self, who: str, what: str, detail: str = "") -> None:
        self.story.append((self.now, who, what, detail))

    def fail(self, error: BaseException | str) -> None:
        """End the simulation as a failed one; safe to call from code that catches everything."""
        self._failures.append(SimulationError(error) if isinstance(error, str) else error)

    @property
    def has_failed(self) -> bool:
        return bool(self._failures)

    def digest(self) -> str:
        """Return a hash of all that happened: equal for equal histories."""
        text = "\n".join(f"{when:.9f} {who} {what} {detail}" for when, who, what, detail in self.story)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@final
class SimClock:
    def __init__(self, world: World) -> None:
        self._world = world

    def now_ms(self) -> int:
        return EPOCH_MS + int(self._world.now * 1000)

    def monotonic_ms(self) -> int:
        return int(self._world.now * 1000)


_current: World | None = None


def current() -> World:
    """Return the world that runs: for operators and coordinators, whose makers know of no simulation."""
    assert _current is not None, "no simulation runs"
    return _current


@contextlib.contextmanager
def running(world: World) -> Iterator[World]:
    """Make ``world`` the current one; ids and names come from its seed instead of the system's random numbers."""
    global _current
    assert _current is None, "simulations do not nest"
    _current = world
    rng = world.rng("ids")
    before = secrets.token_hex
    secrets.token_hex = lambda nbytes=16: f"{rng.getrandbits(8 * nbytes):0{2 * nbytes}x}"
    try:
        yield world
    finally:
        secrets.token_hex = before
        _current = None
