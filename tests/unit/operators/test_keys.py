from __future__ import annotations

import decimal
import math
import pickle
from typing import NamedTuple

import numpy as np
import pytest

from engine.core.errors import UserCodeError
from engine.core.records import Row
from engine.operators.aggregate import KeyedReduceSpec
from engine.operators.functions import KeySelector
from engine.operators.keys import NAN, ComposedKey, FieldKey, canonical_key, key_error, key_function, key_name
from engine.operators.process import ProcessSpec
from engine.operators.window import WindowSpec
from engine.operators.window_contents import ReduceFold
from engine.operators.window_functions import window_call
from engine.time.assigners import TumblingEventTimeWindows
from engine.time.triggers import EventTimeTrigger
from tests.testing.operator_harness import OperatorHarness


class Pair(NamedTuple):
    word: str
    n: int


@pytest.mark.parametrize(
    ("selector", "record", "key"),
    [
        (FieldKey(1), ("a", 2), 2),
        (FieldKey(0), Row("a", 2), "a"),
        (FieldKey("n"), Row(w="a", n=2), 2),
        (FieldKey("n"), {"n": 2}, 2),
        (FieldKey("n"), Pair("a", 2), 2),
        (ComposedKey((1, 0)), ("a", 2), (2, "a")),
        (ComposedKey((0,)), ("a", 2), ("a",)),
        (ComposedKey(("n", "w")), Row(w="a", n=2), (2, "a")),
        (lambda r: r[0], ("a", 2), "a"),
    ],
)
def test_key_function_gives_the_key(selector, record, key):
    assert key_function(selector)(record) == key
    if isinstance(selector, (FieldKey, ComposedKey)):
        assert pickle.loads(pickle.dumps(selector))(record) == key


def test_a_key_selector_object_is_called_by_its_method():
    class Select(KeySelector):
        def get_key(self, value):
            return value + 1

    assert key_function(Select())(1) == 2
    assert key_name(Select()) == "Select"
    assert key_name(FieldKey(0)) == "field 0"


@pytest.mark.parametrize(
    "nan", [float("nan"), -float("nan"), np.float64("nan"), np.float32("nan"), decimal.Decimal("nan")]
)
def test_every_nan_becomes_the_same_key(nan):
    assert canonical_key(nan) is NAN
    assert canonical_key(("a", (nan, 1))) == ("a", (NAN, 1))
    assert canonical_key(Row("a", nan))[1] is NAN


@pytest.mark.parametrize("key", ["a", 1, None, 1.5, (1, "x"), b"x", math.inf])
def test_other_keys_stay_as_they_are(key):
    assert canonical_key(key) is key


class Point:
    def __init__(self) -> None:
        self.x = 1


@pytest.mark.parametrize(
    ("selector", "record", "text"),
    [
        (FieldKey(7), ("a", 2), "key field 7: the record has fields 0 to 1"),
        (ComposedKey((0, 2)), ("a", 2), "key field 2: the record has fields 0 to 1"),
        (FieldKey(1), ("a",), "key field 1: the record has only field 0"),
        (FieldKey("name"), ("a", 2), "key field 'name': the record has fields 0 to 1, without names"),
        (FieldKey("name"), Row(w="a", n=2), "key field 'name': the record has fields 'w', 'n'"),
        (FieldKey("name"), {"w": 1}, "key field 'name': the record has fields 'w'"),
        (FieldKey("name"), Pair("a", 2), "key field 'name': the record has fields 'word', 'n'"),
        (FieldKey("name"), Point(), "key field 'name': the record has fields 'x'"),
        (FieldKey(0), 5, "key field 0: the record is a value of type int and has no such field"),
    ],
)
def test_a_missing_key_field_is_named_with_what_the_record_has(selector, record, text):
    with pytest.raises((LookupError, AttributeError, TypeError)) as failure:
        key_function(selector)(record)
    assert str(key_error(failure.value, selector, record)) == text


def test_errors_of_selectors_of_the_user_stay_as_they_are():
    error = KeyError("mine")
    assert key_error(error, lambda row: row["mine"], {}) is error


class Unstable:
    """Told apart by where it lies in memory."""


@pytest.mark.parametrize("key", [Unstable(), frozenset("ab"), ("a", Unstable()), Row(frozenset())])
@pytest.mark.parametrize(
    "spec",
    [
        lambda selector: KeyedReduceSpec(selector, lambda a, b: a),
        lambda selector: ProcessSpec(lambda value: value, selector, method="map"),
        lambda selector: WindowSpec(
            (selector,), TumblingEventTimeWindows(5, 0), EventTimeTrigger(), window_call(None), ReduceFold(max)
        ),
    ],
)
def test_a_key_that_differs_between_processes_is_refused_without_an_exchange_too(spec, key):
    """With one subtask nobody hashes it before; its state would not be found again after a restore."""
    error = pytest.raises(UserCodeError, match=r"its hash is not the same in every process(.|\n)*on record: 5")
    with OperatorHarness(spec(lambda row: key)) as harness, error:
        harness.process([5], [1])


def test_of_later_batches_the_first_key_is_looked_at():
    with OperatorHarness(KeyedReduceSpec(lambda row: row, lambda a, b: a)) as harness:
        for number in range(100):
            harness.process([number, str(number), ("pair", number)])
        with pytest.raises(UserCodeError, match="not the same in every process"):
            harness.process([Unstable()])
