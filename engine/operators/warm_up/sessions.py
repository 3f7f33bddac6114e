"""Session windows: chains of sessions, and the accumulators of windows."""

from __future__ import annotations

from engine.operators.warm_up import tables, windows

__all__ = ["warm_up", "warm_up_operators"]


def warm_up() -> None:
    tables.warm_up()
    warm_up_operators()


def warm_up_operators() -> None:
    import numpy as np

    from engine.operators import session_kernels as kernels
    from engine.operators.session_calendar import SessionCalendar

    windows.warm_up_accumulators("int64")
    slots, times_ms, numbers = np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int64)
    heads, sessions = np.zeros(1, np.int64), np.zeros((2, 4), np.int64)
    out = np.empty(1, np.int64), np.empty(2, np.int64)
    of_row = np.empty(1, np.int64), np.empty(1, np.int16)
    merges, fires = np.empty((1, 4), np.int64), np.empty((1, 4), np.int64)
    kernels.assign_sessions(
        slots, times_ms, times_ms.copy(), (5, 0, 0), heads, sessions, numbers, of_row, merges, fires
    )
    kernels.unlink_sessions(numbers, slots, heads, sessions)
    kernels.link_sessions(slots, times_ms, times_ms, numbers, 0, heads, sessions)
    kernels.link_pairs(numbers, 0, heads, numbers.copy())
    kernels.list_pairs(heads, numbers, *out)
    calendar = SessionCalendar(5, 0)
    calendar.add(numbers, times_ms, 1)
    calendar.remove(numbers)
    calendar.advance(-1, sessions, np.zeros(1, np.bool_))
    calendar.next_due_ms()
