"""CPU seconds of a process and everything that it has started, read from outside, also of what has ended meanwhile.

The kernel keeps two sums a process: its own time, and that of children which ended and were waited for (with theirs in
turn). So the sum of both over the living tree loses nothing: a child's time moves to its parent when it is reaped. Two
ways out of the tree are closed: orphans come to the root once it is their reaper (``adopt_orphans``), and nobody in
the tree may ignore SIGCHLD (then the kernel forgets the child's time). Exact to a clock tick (10 ms) a number.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Stat", "adopt_orphans", "descendants_cpu_s", "parse_stat", "settled_cpu_s", "tree_cpu_s", "tree_ticks"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
#: A tree counts as settled when it used at most this much CPU time for so long.
_QUIET_S, _QUIET_TICKS = 0.15, 2


@dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat says of a process; times in clock ticks."""

    pid: int
    parent: int
    own: int
    reaped: int


def parse_stat(text: str) -> Stat:
    """Read the line of /proc/PID/stat. The name in brackets may itself have blanks and brackets."""
    head, _, tail = text.rpartition(")")
    fields = tail.split()  # from the third on: state, parent, …; utime is the fourteenth
    user, system, user_reaped, system_reaped = map(int, fields[11:15])
    return Stat(int(head.split(" ", 1)[0]), int(fields[1]), user + system, user_reaped + system_reaped)


def tree_ticks(stats: Mapping[int, Stat], root: int) -> int:
    """Return the ticks of ``root`` with all descendants, living and reaped. Raises: KeyError when it is not there."""
    children: dict[int, list[int]] = {}
    for stat in stats.values():
        children.setdefault(stat.parent, []).append(stat.pid)
    total, left = 0, [root]
    while left:
        pid = left.pop()
        total += stats[pid].own + stats[pid].reaped
        left += children.get(pid, [])
    return total


def _read_stats() -> dict[int, Stat]:
    stats = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stream:
                    stats[int(name)] = parse_stat(stream.read())
            except OSError:
                continue  # it ended
    return stats


def tree_cpu_s(root: int | None = None) -> float:
    """Return the CPU seconds of ``root`` (None: this process) and of all that it has started."""
    before = _read_stats()
    while True:
        # A process that is reaped between two reads would count twice or not at all.
        after = _read_stats()
        if before.keys() == after.keys():
            return tree_ticks(after, os.getpid() if root is None else root) / _TICKS_PER_S
        before = after


def descendants_cpu_s() -> float:
    """Return the CPU seconds of all that this process has started, its own left out."""
    own = os.times()
    return tree_cpu_s() - own.user - own.system


def settled_cpu_s(timeout_s: float = 5.0) -> float:
    """Return ``tree_cpu_s`` of this process once nothing in the tree works any more, or the time is up."""
    end = time.monotonic() + timeout_s
    last = tree_cpu_s()
    while True:
        time.sleep(_QUIET_S)
        now = tree_cpu_s()
        # Two ticks are what reading costs.
        if now - last <= _QUIET_TICKS / _TICKS_PER_S or time.monotonic() > end:
            return now
        last = now


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that they stay in the tree."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
