"""Compiles the kernels that operators of the usual types need: ``python -m engine.operators.warm_up``, at set-up.

What the cache has is only loaded (a second), what it lacks compiled, on all cores; the command says how many kernels
that were, not counting those that only other kernels call. Without it each kernel is compiled by the first job on this
machine that needs it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, Final

from engine.core.clock import SystemClock
from engine.operators.warm_up import cached_code, groups, joins, keyed, sessions, tables, tops, windows, words

__all__ = ["KINDS", "PARTS", "main"]

#: Those that specs name.
KINDS: Final[tuple[Any, ...]] = (keyed, windows, sessions, joins, tops, groups, words)
#: Of about equal work, the longest first. No kernel is in two of them: numba's index of a kernel is one file, which
#: two processes must not write at a time.
PARTS: Final[tuple[tuple[Callable[[], None], ...], ...]] = (
    (windows.warm_up_operators, sessions.warm_up_operators),
    (tables.texts, tables.large_texts, tables.many_texts),
    (tables.pairs, tables.numbers),
    (
        keyed.warm_up_operators,
        joins.warm_up_operators,
        tops.warm_up_operators,
        groups.warm_up_operators,
        words.warm_up_operators,
        tables.exchange,
    ),
)


def main() -> int:
    clock = SystemClock()
    started_ms = clock.monotonic_ms()
    import numba  # noqa: F401 - once for all processes

    cached_code.quicken()
    compiled = set[str]()
    if not _all_are_cached():
        compiled = _compile_in_processes()
        # Once more here: what went wrong in another process is done now, or told.
        _warm_up()
    taken = cached_code.TAKEN
    are_there = taken.loaded | taken.compiled
    took = f"in {(clock.monotonic_ms() - started_ms) / 1000:.1f} s"
    print(
        f"{len(are_there & (compiled | taken.compiled))} kernels compiled, {len(are_there)} are in the cache, {took}."
    )
    return 0


def _all_are_cached() -> bool:
    cached_code.forbid_compiling(True)
    try:
        _warm_up()
    except cached_code.KernelMissing:
        return False
    finally:
        cached_code.forbid_compiling(False)
    return True


def _warm_up() -> None:
    for kind in KINDS:
        kind.warm_up()
    tables.large_texts()
    tables.many_texts()


def _compile_in_processes() -> set[str]:
    """Return which kernels were compiled."""
    at_a_time = len(os.sched_getaffinity(0))
    waiting, running = list(PARTS), set[int]()
    with tempfile.TemporaryFile() as compiled:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                running.add(_in_a_process(waiting.pop(0), compiled.fileno()))
            pid, _ = os.wait()
            running.discard(pid)
        compiled.seek(0)
        return set(compiled.read().decode().splitlines())


def _in_a_process(part: Iterable[Callable[[], None]], compiled: int) -> int:
    """Start it and return its id; it writes to a file, which it shares with others, what it has compiled."""
    pid = os.fork()
    if pid:
        return pid
    with contextlib.suppress(Exception):
        for warm_up in part:
            warm_up()
    os.write(compiled, "".join(f"{name}\n" for name in cached_code.TAKEN.compiled).encode())
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
