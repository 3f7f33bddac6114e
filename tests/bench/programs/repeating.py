"""Executes a program's job several times in one process and prints what each execution used, as Flink's programs do.

    RESULT rep=1 warm cpu=1.234 secs=0.987 span=1.302

``cpu``: of the whole process tree, slots that ended included, from before the execution until all is quiet after it.
``secs``: the execution, ``span``: with the waits for quiet around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tests.bench.process_cpu import adopt_orphans, settled_cpu_s


def options_of(words: Sequence[str]) -> dict[str, str]:
    """``["collect", "reps=2"]`` → ``{"collect": "", "reps": "2"}``."""
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def repeat(execute: Callable[[], object], repetitions: int) -> None:
    """Call ``execute`` so many times; once: just call it."""
    if repetitions == 1:
        execute()
        return
    adopt_orphans()
    for number in range(repetitions):
        begun = time.monotonic()
        before_s = settled_cpu_s()
        started = time.monotonic()
        execute()
        secs = time.monotonic() - started
        cpu_s = settled_cpu_s() - before_s
        kind = "warm" if number else "cold"
        span = time.monotonic() - begun
        print(f"RESULT rep={number} {kind} cpu={cpu_s:.3f} secs={secs:.3f} span={span:.3f}", flush=True)
