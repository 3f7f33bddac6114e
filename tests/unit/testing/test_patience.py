"""What waits and aims mean on a busy machine."""

from __future__ import annotations

import pytest

from tests.testing import patience
from tests.testing.patience import best_of, limit_once, until


@pytest.fixture
def load(monkeypatch):
    """Set how much the machine has to do, for each of its cores."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    def busy(times: float) -> None:
        monkeypatch.setattr("os.getloadavg", lambda: (times * 2, 0.0, 0.0))

    busy(0)
    return busy


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have been slept through."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("time.monotonic", lambda: sum(slept))
    return slept


@pytest.mark.parametrize(("times", "expected"), [(0.1, 1), (1, 1), (2.5, 2.5), (100, 6)])
def test_patience_grows_with_the_load_up_to_a_bound(load, times, expected):
    load(times)
    assert patience.patience() == expected


@pytest.mark.parametrize(("times", "expected_s"), [(0, 15), (3, 35)])
def test_what_is_measured_once_has_the_aim_times_the_load_and_a_stall(load, times, expected_s):
    load(times)
    assert limit_once(10) == expected_s


def test_what_is_waited_for_is_returned_as_soon_as_it_is_there(load, clock):
    answers = [None, 0, "it"]
    assert until(lambda: answers.pop(0), "it", 5, pause_s=1) == "it"
    assert clock == [1, 1]


@pytest.mark.parametrize(
    ("deadline_s", "times", "expected_s"), [(5, 0, 30), (100, 0, 100), (5, 3, 90)], ids=["stall", "own", "busy"]
)
def test_a_wait_is_given_up_in_time_with_what_did_not_come(load, clock, deadline_s, times, expected_s):
    load(times)
    with pytest.raises(AssertionError, match=f"not within {expected_s} s: the end"):
        until(lambda: False, "the end", deadline_s, pause_s=1)


@pytest.mark.parametrize(
    ("samples", "taken"), [([1.0], 1), ([3.0, 1.0, 9.0], 2), ([3.0, 3.0, 1.0], 3)], ids=["first", "second", "third"]
)
def test_the_first_sample_within_the_limit_is_enough_and_all_are_told(load, capsys, samples, taken):
    left = list(samples)
    assert best_of(lambda: left.pop(0), 2.0, "seconds to the end") == 1.0
    assert len(samples) - len(left) == taken
    assert f"seconds to the end: {', '.join(f'{one:g}' for one in samples[:taken])}, limit 2" in capsys.readouterr().out


def test_what_no_sample_keeps_fails_with_all_of_them(load):
    left = [5.0, 4.0, 3.0, 1.0]
    with pytest.raises(AssertionError, match="seconds to the end: 5, 4, 3, limit 2"):
        best_of(lambda: left.pop(0), 2.0, "seconds to the end")


def test_what_is_wrong_with_a_sample_is_not_tried_again(load):
    calls = []

    def lose() -> float:
        calls.append(1)
        raise AssertionError("a record is lost")

    with pytest.raises(AssertionError, match="a record is lost"):
        best_of(lose, 2.0, "seconds")
    assert len(calls) == 1
