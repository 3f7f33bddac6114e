"""When keys are of another type than those restored, and when nobody can tell."""

from __future__ import annotations

import datetime as dt
import decimal
from collections import namedtuple

import pytest

from engine.core.errors import ProgramError
from engine.state.key_types import KeyTypes, never_equal

Point = namedtuple("Point", "x y")


def watching(*restored):
    types = KeyTypes("Operator 'sum' (uid 'sums')")
    types.note(restored)
    return types


@pytest.mark.parametrize(
    ("restored", "key"),
    [
        (1, "1"),
        ("1", 1),
        ("1", b"1"),
        ((1,), 1),
        (dt.date(2024, 1, 1), dt.datetime(2024, 1, 1)),
        (decimal.Decimal(1), "1"),
    ],
)
def test_one_key_of_a_plain_type_that_was_never_there_is_enough(restored, key):
    types = watching(restored, None)
    assert types.is_open
    with pytest.raises(ProgramError) as caught:
        types.see(key)
    told = str(caught.value)
    assert told.startswith("Operator 'sum' (uid 'sums'): its state was written with keys of type ")
    assert f"keys of type {'number' if key == 1 else type(key).__name__}, e.g. {key!r}" in told
    assert "key_type=Types.PICKLED_BYTE_ARRAY()" in told


@pytest.mark.parametrize("key", [2, 2.5, False, "a"])
def test_a_key_of_any_restored_type_ends_the_watch(key):
    types = watching(1, "x")
    types.see(key)
    assert not types.is_open


def test_records_without_a_key_say_nothing():
    types = watching(1)
    for _ in range(100):
        types.see(None)
    assert types.is_open
    types = watching(None)
    types.see("a")  # perhaps only records without a key had state


def test_of_types_that_may_be_equal_many_foreign_keys_have_to_come():
    types = watching(Point(1, 2))
    for _ in range(31):
        types.see((1, 2))  # equal to a Point
    with pytest.raises(ProgramError, match=r"keys of type Point.*keys of type tuple, e\.g\. \(1, 2\)"):
        types.see((1, 2))


def test_keys_of_the_same_program_are_not_watched():
    types = KeyTypes("")
    types.note([1])
    types.note_kinds(["number"])
    assert not types.is_open


def test_kinds_that_can_never_be_equal():
    assert never_equal("str", ["number", "bytes"])
    assert not never_equal("str", ["number", "str"])
    assert not never_equal("number", ["Decimal"])
    assert not never_equal("Row", ["tuple"])
    assert not never_equal("str", ["Colour"])  # an enum that is a str, perhaps
    assert not never_equal("Colour", ["str"])
    assert not never_equal("str", [])
