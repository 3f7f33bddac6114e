"""Equal keys meet in one subtask, in every process and run."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import os
import subprocess
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.errors import ProgramError
from engine.core.records import Row
from engine.state.key_groups import (
    KeyToSubtask,
    key_group_of,
    key_group_range,
    stable_hash,
    subtask_of_key_group,
)

UTC, CET = dt.UTC, dt.timezone(dt.timedelta(hours=1))
Point = collections.namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Name:
    first: str
    last: str


EQUAL: list[tuple[Any, ...]] = [
    (1, 1.0, True, Decimal(1), np.int64(1), np.float32(1), np.bool_(True)),
    (0, -0.0, False, Decimal("0.00")),
    (0.5, Decimal("0.50"), np.float64(0.5)),
    (2**70, float(2**70), Decimal(2**70)),
    (float("inf"), Decimal("Infinity")),
    ("a", np.str_("a")),
    ((1, "a"), (1.0, "a"), Point(True, "a")),
    (dt.datetime(2020, 1, 1, 12, tzinfo=UTC), dt.datetime(2020, 1, 1, 13, tzinfo=CET)),
    (dt.time(12, tzinfo=UTC), dt.time(13, tzinfo=CET)),
    (dt.timedelta(hours=1), dt.timedelta(seconds=3600)),
    (Decimal("0.1"), Decimal("0.10")),
    (Name("Ada", "L"), Name("Ada", "L")),
    (Row(1, "a"), Row(1.0, "a")),
    (uuid.UUID(int=5), uuid.UUID(int=5)),
]


@pytest.mark.parametrize("same", EQUAL, ids=lambda same: type(same[0]).__name__)
def test_keys_that_are_equal_have_the_same_hash(same: tuple[Any, ...]) -> None:
    assert all(one == same[0] for one in same)
    assert len({stable_hash(one) for one in same}) == 1


def test_all_nan_go_to_one_group() -> None:
    assert len({stable_hash(x) for x in (float("nan"), -float("nan"), Decimal("NaN"), np.float32("nan"))}) == 1


@given(st.integers() | st.floats(allow_nan=False) | st.booleans() | st.decimals(allow_nan=False, places=3))
def test_numbers_that_are_equal_meet(number: Any) -> None:
    for kind in (int, float, Decimal):
        try:
            other = kind(number)
        except (OverflowError, ValueError):
            continue
        if other == number:
            assert stable_hash(other) == stable_hash(number)


@given(st.text() | st.binary() | st.none() | st.tuples(st.text(), st.integers()) | st.datetimes() | st.dates())
def test_a_hash_has_32_bits(key: Any) -> None:
    assert 0 <= stable_hash(key) < 1 << 32


@pytest.mark.parametrize("key", [object(), [1], {1}, {1: 2}, len, (1, [2])], ids=lambda key: type(key).__name__)
def test_a_key_whose_hash_differs_between_processes_is_refused(key: Any) -> None:
    with pytest.raises(ProgramError, match="cannot be a key"):
        stable_hash(key)


def test_hashes_are_the_same_in_another_process() -> None:
    text = "('a', 1, None, b'x', 2.5, '\\udc80', True, -7, 10**30)"
    code = f"from engine.state.key_groups import stable_hash; print(stable_hash({text}))"
    here = stable_hash(eval(text))
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
        )
        assert int(done.stdout) == here


def test_hashes_stay_as_they_were_released() -> None:
    """State written with these numbers must be found again."""
    assert [key_group_of(key, 128) for key in ("hello", 1, None, ("a", 1), b"x", 2.5)] == RELEASED


RELEASED = [109, 55, 120, 127, 120, 122]


def test_colours_and_their_values_are_different_keys() -> None:
    assert stable_hash(Colour.RED) == stable_hash(Colour["RED"]) != stable_hash(Colour.BLUE)


@pytest.mark.parametrize(("parallelism", "max_parallelism"), [(1, 1), (1, 128), (3, 128), (7, 128), (128, 128), (5, 7)])
def test_the_ranges_of_all_subtasks_tile_the_key_groups(parallelism: int, max_parallelism: int) -> None:
    ranges = [key_group_range(i, parallelism, max_parallelism) for i in range(parallelism)]
    assert [group for one in ranges for group in one] == list(range(max_parallelism))
    for subtask, groups in enumerate(ranges):
        assert all(subtask_of_key_group(group, parallelism, max_parallelism) == subtask for group in groups)


def test_keys_spread_over_all_subtasks() -> None:
    for keys in ([f"word{i}" for i in range(8000)], list(range(8000)), [(i, "x") for i in range(8000)]):
        counts = collections.Counter(map(KeyToSubtask(4, 128).__getitem__, keys))
        assert set(counts) == {0, 1, 2, 3}
        assert max(counts.values()) < 2 * min(counts.values())


def test_the_memo_agrees_with_the_law_and_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.state.key_groups._MEMO_SIZE_MAX", 100)
    memo = KeyToSubtask(3, 128)
    for key in range(1000):
        assert memo[key] == subtask_of_key_group(key_group_of(key, 128), 3, 128)
        assert len(memo) <= 100


@pytest.mark.parametrize("parallelism", [1, 2, 3, 200])
@pytest.mark.parametrize(
    "keys",
    [
        [0, 1, -1, 2**31, 2**32 + 5, -(2**40), 2**63 - 1, -(2**63), *range(500)],
        ["", "a", "ß", "\ud800", "x" * 300, *map(str, range(500))],
    ],
    ids=["integers", "texts"],
)
def test_keys_that_were_not_seen_before_go_where_each_alone_goes(parallelism, keys):
    memo = KeyToSubtask(parallelism, 256)
    assert memo.of_keys(keys) is None  # nothing is known of the keys yet
    alone = [memo[key] for key in keys]
    assert list(memo.of_keys(keys)) == alone
    assert list(memo.of_keys(keys)) == alone


def test_keys_of_other_types_and_known_keys_are_looked_up():
    memo = KeyToSubtask(2, 128)
    for keys in ([True, False], [1.5, 2.5], [("a", 1)], [1, "a"], [2**70], [None]):
        for key in keys:
            memo[key]
        assert memo.of_keys(keys) is None
    known = [memo[key] for key in [1, 2, 3]]
    memo.of_keys([1, 2, 3])
    memo = KeyToSubtask(2, 128)
    assert [memo[key] for key in [1, 2, 3] * 9] == known * 9
    assert memo.of_keys([1, 2, 3] * 9) is None
