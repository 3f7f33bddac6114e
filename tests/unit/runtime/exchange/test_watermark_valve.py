"""The cases of Flink's StatusWatermarkValveTest, and those of channels that end."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.protocol.stream import WATERMARK_MAX_MS
from engine.runtime.exchange.watermark_valve import (
    NEVER_MS,
    CombinedWatermark,
    IdleChanged,
    StatusWatermarkValve,
    WatermarkAdvanced,
)

IDLE, ACTIVE, END = "idle", "active", "end"


class Valve:
    """``say(channel, word…)``: a watermark, IDLE, ACTIVE or END; returns numbers and IDLE or ACTIVE that are told."""

    def __init__(self, num_channels: int) -> None:
        self.valve = StatusWatermarkValve(num_channels)

    def say(self, channel: int, *words: Any) -> list[Any]:
        told: list[Any] = []
        for word in words:
            if word in (IDLE, ACTIVE):
                told += self.valve.status(channel, word == IDLE)
            elif word == END:
                told += self.valve.end(channel)
            else:
                told += self.valve.watermark(channel, word)
        return [
            one.watermark_ms if isinstance(one, WatermarkAdvanced) else IDLE if one.idle else ACTIVE for one in told
        ]


def test_one_channel_is_followed_forwards_only():
    valve = Valve(1)
    assert valve.say(0, 0, 25, 18, 25, 42) == [0, 25, 42]


def test_one_channel_that_toggles_is_told_at_each_change():
    valve = Valve(1)
    assert valve.say(0, ACTIVE) == []
    assert valve.say(0, IDLE, IDLE) == [IDLE]
    assert valve.say(0, ACTIVE, ACTIVE) == [ACTIVE]


def test_what_an_idle_channel_says_of_event_time_is_not_heard():
    valve = Valve(1)
    assert valve.say(0, 25, IDLE, 50) == [25, IDLE]
    assert valve.say(0, ACTIVE, 50) == [ACTIVE, 50]


def test_nothing_is_told_before_all_channels_have_a_watermark():
    valve = Valve(3)
    assert valve.say(0, 0) + valve.say(1, 0) == []
    assert valve.say(2, 0) == [0]


def test_the_least_of_all_channels_is_told_whenever_it_grows():
    valve = Valve(3)
    assert valve.say(0, 0) + valve.say(1, 0) + valve.say(2, 0) == [0]
    assert valve.say(0, 12) + valve.say(2, 8, 10) == []
    assert valve.say(1, 15) == [10]
    assert valve.say(2, 17) == [12]
    assert valve.say(0, 20) == [15]


def test_watermarks_that_go_back_are_not_heard():
    valve = Valve(3)
    assert valve.say(0, 25) + valve.say(1, 10) + valve.say(2, 17) == [10]
    assert valve.say(0, 12) + valve.say(1, 8) + valve.say(2, 15) == []


def test_two_channels_that_toggle_are_idle_together_and_active_alone():
    valve = Valve(2)
    assert valve.say(0, ACTIVE) + valve.say(1, ACTIVE, IDLE) == []
    assert valve.say(0, IDLE) == [IDLE]
    assert valve.say(0, IDLE) + valve.say(1, IDLE) == []
    assert valve.say(1, ACTIVE) == [ACTIVE]
    assert valve.say(0, ACTIVE) == []


def test_an_idle_channel_is_left_out():
    valve = Valve(3)
    assert valve.say(0, 15) + valve.say(1, 10) == []
    assert valve.say(2, IDLE) == [10]
    assert valve.say(1, 18) == [15]
    assert valve.say(0, 20) == [18]


def test_each_channel_that_becomes_idle_may_let_event_time_go_on():
    valve = Valve(3)
    assert valve.say(0, 25) + valve.say(1, 10) + valve.say(2, 17) == [10]
    assert valve.say(1, IDLE) == [17]
    assert valve.say(2, IDLE) == [25]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_when_all_are_idle_the_greatest_watermark_is_told_in_whatever_order(order):
    valve = Valve(3)
    told = valve.say(0, 10) + valve.say(1, 5) + valve.say(2, 3)
    for channel in order:
        told += valve.say(channel, IDLE)
    assert told[0] == 3
    assert told[-1] == IDLE
    assert told.count(IDLE) == 1
    assert told[-2] == 10


def test_the_last_one_to_become_idle_need_not_have_caught_up():
    valve = Valve(3)
    assert valve.say(0, 100) + valve.say(1, 50) + valve.say(2, 70) == [50]
    assert valve.say(1, IDLE) == [70]
    assert valve.say(1, ACTIVE, 60) == []
    assert valve.say(0, IDLE) + valve.say(2, IDLE) == []
    assert valve.say(1, IDLE) == [100, IDLE]


def test_a_channel_that_comes_back_holds_nobody_up_until_it_has_caught_up():
    valve = Valve(3)
    assert valve.say(0, 10) + valve.say(1, 7) + valve.say(2, 3) == [3]
    assert valve.say(2, IDLE) == [7]
    assert valve.say(2, ACTIVE, 5) == []
    assert valve.say(1, 8) == [8]  # not held at 5
    assert valve.say(2, 9) == []  # caught up
    assert valve.say(1, 12) == [9]


def test_nothing_is_told_when_no_active_channel_has_caught_up():
    valve = Valve(3)
    assert valve.say(0, 10) + valve.say(1, 7) == []
    assert valve.say(2, IDLE) == [7]
    assert valve.say(2, ACTIVE) == []
    assert valve.say(0, IDLE) + valve.say(1, IDLE) == []


def test_an_active_channel_that_has_not_caught_up_may_become_idle_again():
    valve = Valve(2)
    assert valve.say(0, 7) + valve.say(1, 10) == [7]
    assert valve.say(0, IDLE) == [10]
    assert valve.say(0, ACTIVE, 9, IDLE) == []


def test_a_channel_that_comes_back_ahead_of_all_others_lets_event_time_go_on():
    valve = Valve(3)
    assert valve.say(0, 10) + valve.say(1, 7) + valve.say(2, IDLE) == [7]
    assert valve.say(2, ACTIVE) + valve.say(0, IDLE) + valve.say(1, IDLE) == []
    assert valve.say(0, ACTIVE) == [10]
    assert valve.say(2, IDLE) == []


def test_what_was_told_on_coming_back_is_not_told_again_when_all_are_idle():
    valve = Valve(3)
    assert valve.say(0, 10) + valve.say(1, 20) + valve.say(2, 30) == [10]
    assert valve.say(2, IDLE) == []
    assert valve.say(0, IDLE) == [20]
    assert valve.say(0, ACTIVE) + valve.say(1, IDLE) == []
    assert valve.say(2, ACTIVE) == [30]
    assert valve.say(0, IDLE) + valve.say(2, IDLE) == [IDLE]


# --- channels that end ------------------------------------------------------------------------------------------------


def test_a_channel_at_the_end_of_time_stays_active_and_holds_nobody_up():
    valve = Valve(2)
    assert valve.say(0, 5) + valve.say(1, WATERMARK_MAX_MS, END) == [5]
    assert valve.say(0, IDLE) == [WATERMARK_MAX_MS]  # as in Flink: the others are not waited for


def test_a_channel_that_ends_without_event_time_is_left_out():
    valve = Valve(3)
    assert valve.say(0, 10) + valve.say(1, 3) == []
    assert valve.say(2, END) == [3]
    assert valve.say(1, IDLE) == [10]
    assert valve.say(0, IDLE) == [IDLE]
    assert valve.say(2, ACTIVE) == []


@pytest.mark.parametrize("last", [IDLE, END])
def test_the_last_one_may_leave_by_ending_too(last):
    valve = Valve(2)
    assert valve.say(0, 10) + valve.say(1, 4) == [4]
    assert valve.say(0, IDLE) == []
    assert valve.say(1, last) == [10, IDLE]


# --- several inputs ---------------------------------------------------------------------------------------------------


def test_inputs_are_combined_without_those_that_are_idle_and_by_the_greatest_when_all_are():
    combined = CombinedWatermark([0, 1])
    assert combined.take(0, [WatermarkAdvanced(10)]) == []
    assert combined.take(1, [WatermarkAdvanced(5)]) == [WatermarkAdvanced(5)]
    assert combined.take(1, [IdleChanged(True)]) == [WatermarkAdvanced(10)]
    assert combined.take(1, [IdleChanged(False)]) == []
    assert combined.take(0, [WatermarkAdvanced(20)]) == []  # held at 5: inputs do not catch up, channels do
    assert combined.take(0, [IdleChanged(True)]) == []
    assert combined.take(1, [WatermarkAdvanced(6), IdleChanged(True)]) == [WatermarkAdvanced(20), IdleChanged(True)]
    assert combined.take(0, [IdleChanged(False)]) == [IdleChanged(False)]


# --- always -----------------------------------------------------------------------------------------------------------

WORDS = st.one_of(st.integers(0, 20), st.sampled_from([IDLE, ACTIVE, END]))


@given(st.lists(st.tuples(st.integers(0, 2), WORDS), max_size=40))
def test_event_time_never_goes_back_and_idleness_is_told_in_turns(story):
    valve = Valve(3)
    ended: set[int] = set()
    told: list[Any] = []
    idle = [False] * 3
    greatest = NEVER_MS
    for channel, word in story:
        if channel in ended:
            continue
        if word == END:
            ended.add(channel)
        elif word in (IDLE, ACTIVE):
            idle[channel] = word == IDLE
        elif not idle[channel]:
            greatest = max(greatest, word)
        told += valve.say(channel, word)
    watermarks = [one for one in told if one not in (IDLE, ACTIVE)]
    assert watermarks == sorted(set(watermarks))
    assert all(one <= greatest for one in watermarks)
    statuses = [one for one in told if one in (IDLE, ACTIVE)]
    assert statuses == [IDLE, ACTIVE] * (len(statuses) // 2) + [IDLE] * (len(statuses) % 2)
    if len(ended) < 3:
        nobody = all(idle[channel] or channel in ended for channel in range(3))
        assert (statuses[-1:] == [IDLE]) is nobody
        if nobody and greatest > NEVER_MS:
            assert watermarks[-1] == greatest
