"""How long tests wait, and how they judge a time or a size, on a machine that has other work to do. Not a test.

A deadline is no claim: it says when to give up, and costs nothing where what is waited for comes. It is long here, and
longer the more the machine has to do. A limit that *is* the claim, as "a cancel takes less than two seconds", is held
to the best of some samples: one stall of the machine says nothing of the engine, the same in each of three does.
Neither is for what must be exact: lost or doubled records, an order, or what is left behind is wrong the first time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

__all__ = ["DEADLINE_S", "GIVE_UP_S", "best_of", "limit_once", "patience", "until"]

#: After which something that should have happened within a second or so is given up, on an idle machine.
DEADLINE_S: Final = 60.0
#: The least of all deadlines: a machine may stand still for some seconds.
_DEADLINE_MIN_S: Final = 30.0
#: For processes, threads and futures that end at once: a ``timeout`` that only a test that hangs runs into.
GIVE_UP_S: Final = 120.0
_STALL_S: Final = 5.0
#: More is a machine on which the whole suite would not come to its end.
_PATIENCE_MAX: Final = 6.0


def patience() -> float:
    """Return by what times and deadlines are multiplied on a machine that has more to do than it has cores for."""
    return min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), _PATIENCE_MAX)


def limit_once(aim_s: float) -> float:
    """Return what to hold a time to that cannot be measured again, as it is part of a story of minutes: the aim on a
    machine with so much to do, and one moment in which it stands still."""
    return aim_s * patience() + _STALL_S


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S, *, pause_s: float = 0.02) -> Any:
    """Return the first true value of ``condition()``; fail when there is none in time."""
    begin = time.monotonic()
    while not (value := condition()):
        waited_s = time.monotonic() - begin
        assert waited_s < max(deadline_s, _DEADLINE_MIN_S) * patience(), f"not within {waited_s:.0f} s: {what}"
        time.sleep(pause_s)
    return value


def best_of(measure: Callable[[], float], limit: float, what: str, *, times: int = 3) -> float:
    """Return the first sample below the limit; fail when none of so many is. All of them are printed."""
    samples: list[float] = []
    while len(samples) < times and not (samples and samples[-1] < limit):
        samples.append(measure())
    told = f"{what}: {', '.join(f'{sample:.3g}' for sample in samples)}, limit {limit:g}, load {os.getloadavg()[0]:.1f}"
    print(f"\n{told}", flush=True)
    assert samples[-1] < limit, told
    return samples[-1]
