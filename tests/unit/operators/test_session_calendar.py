"""The calendar of sessions against a dict of times."""

from __future__ import annotations

import random

import numpy as np
import pytest

from engine.operators.session_calendar import FreeNumbers, SessionCalendar
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS

FAR_MS = 1 << 61


@pytest.mark.parametrize("gap_ms", [1, 40, 5000, 1 << 40])
@pytest.mark.parametrize("lateness_ms", [0, 700])
def test_what_is_due_is_what_a_dict_of_times_says(gap_ms, lateness_ms):
    rng = random.Random(gap_ms + lateness_ms)
    steps = [1, gap_ms // 300 + 1, gap_ms, 40 * gap_ms, 500 * gap_ms]
    num_due = 0
    for _ in range(12):
        calendar = SessionCalendar(gap_ms, lateness_ms)
        sessions, fired = np.zeros((64, 4), np.int64), np.zeros(64, np.bool_)
        free, now_ms = list(range(64)), rng.choice([-FAR_MS, -50, 10**12])
        dues: dict[int, int] = {}

        def due_of(session, sessions=sessions, fired=fired):
            return int(sessions[session, 1]) - 1 + (lateness_ms if fired[session] else 0)

        for _ in range(60):
            own = [free.pop(rng.randrange(len(free))) for _ in range(rng.randrange(4)) if free]
            for session in own:
                sessions[session, 1] = now_ms + rng.choice([-3, 2, *steps]) + rng.randrange(3)
                fired[session] = rng.random() < 0.5 and lateness_ms > 0
                dues[session] = due_of(session)
            calendar.add(np.array(own, np.int64), np.array([dues[one] for one in own], np.int64), 64)
            for session in [one for one in dues if rng.random() < 0.1]:
                sessions[session, 1] += rng.choice(steps)  # it became longer, and nobody says so
                dues[session] = due_of(session)
            gone = [one for one in dues if rng.random() < 0.05]
            calendar.remove(np.array([*gone, *free, 1 << 30], np.int64))
            for session in gone:
                del dues[session]
            if rng.random() < 0.1:  # those that are left get other numbers
                left = sorted(dues)
                sessions[: len(left)], fired[: len(left)] = sessions[left].copy(), fired[left].copy()
                calendar.trim(len(left))
                dues = {number: dues[one] for number, one in enumerate(left)}
                calendar.begin_anew(np.array(list(dues.values()), np.int64))
            assert calendar.next_due_ms() <= max(now_ms, min(dues.values(), default=TIME_MAX_MS))
            now_ms += rng.choice([0, *steps])
            expected = sorted(one for one, due_ms in dues.items() if due_ms <= now_ms)
            assert calendar.advance(now_ms, sessions, fired).tolist() == expected
            num_due += len(expected)
            for session in expected:
                del dues[session]
            free = [one for one in range(64) if one not in dues]
        assert calendar.advance(TIME_MAX_MS, sessions, fired).tolist() == sorted(dues)
        assert calendar.next_due_ms() == TIME_MAX_MS
    assert num_due > 100


def test_a_watermark_looks_at_no_more_than_a_32nd_of_sessions_that_come_evenly():
    gap_ms, num = 3_600_000, 64_000
    dues_ms = np.arange(num) * gap_ms // num + 10**12
    sessions = np.zeros((num, 4), np.int64)
    sessions[:, 1] = dues_ms + 1
    calendar = SessionCalendar(gap_ms, 0)
    calendar.advance(10**12 - 1, sessions, np.zeros(0, np.bool_))
    calendar.add(np.arange(num), dues_ms, num)
    sizes = np.diff(np.flatnonzero(np.diff(_lists_of(calendar), prepend=-2, append=-2)))
    assert 0 < sizes.max() <= num // 32


def _lists_of(calendar):
    """Return the list of each session, by number, as far as lists go."""
    lists = np.full(calendar._links.capacity, -1)
    for number, head in enumerate(calendar._heads.tolist()):
        while head:
            lists[head - 1] = number
            head = int(calendar._links.array[head - 1, 1])
    return lists[lists >= 0]


def test_the_calendar_begins_before_all_times():
    calendar = SessionCalendar(10, 0)
    calendar.add(np.array([0, 1]), np.array([-FAR_MS + 9, FAR_MS + 9]), 2)
    sessions = np.array([[0, -FAR_MS + 10, 0, 0], [0, FAR_MS + 10, 0, 0]])
    assert calendar.advance(TIME_MIN_MS, sessions, np.zeros(0, np.bool_)).tolist() == []
    assert calendar.advance(-FAR_MS + 9, sessions, np.zeros(0, np.bool_)).tolist() == [0]
    assert calendar.advance(FAR_MS + 8, sessions, np.zeros(0, np.bool_)).tolist() == []
    assert calendar.advance(FAR_MS + 9, sessions, np.zeros(0, np.bool_)).tolist() == [1]


def test_numbers_are_given_again_those_first_that_came_last():
    free = FreeNumbers()
    free.add(np.array([1, 2]))
    free.add(np.array([3, 4, 5]))
    assert free.take(2).tolist() == [3, 4]
    free.add(np.array([3]))
    assert free.take(3).tolist() == [3, 5, 1]
    assert free.take(9).tolist() == [2]
    assert free.size == 0
