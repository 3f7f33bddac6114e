"""The benchmarks of columns run, on little."""

from __future__ import annotations

import pytest

from tests.bench import smokes, state_memory, text_sinks


def test_every_way_to_write_columns_gives_the_same_bytes():
    for name in text_sinks.FORMATS:
        text_sinks.check(name, text_sinks.ways_of(name, 2000))


def test_the_memory_of_a_count_is_measured():
    found = state_memory.measure(50_000, "int")
    assert 16 < found["reserved"] < 24 + 8


@pytest.mark.parametrize("part", ["pauses", "spill", "window-spill", "join-spill", "session-spill"])
def test_state_beyond_its_share_is_measured_while_it_lies_in_files(part):
    assert smokes.PARTS[part]() == 0
