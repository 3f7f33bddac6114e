"""Key selectors that only pick a field are known as such; all others stay calls."""

from __future__ import annotations

import pytest

from engine.core.errors import ProgramError
from engine.datastream.functions import KeySelector, MapFunction
from engine.datastream.key_selectors import as_key_selector
from engine.operators.keys import FieldKey

FIELD = 1


@pytest.mark.parametrize(
    ("selector", "field"), [(0, 0), ("name", "name"), (lambda pair: pair[0], 0), (lambda row: row[7], 7)]
)
def test_a_field_pick_becomes_a_field_key(selector, field):
    assert as_key_selector(selector) == FieldKey(field)


@pytest.mark.parametrize(
    "selector",
    [
        lambda x: x,
        lambda x: x[-1],
        lambda x: x[FIELD],
        lambda x: x["name"],
        lambda x: x[0][1],
        lambda x, y=3: x[0],
        lambda *x: x[0],
        len,
    ],
)
def test_anything_else_stays_a_call(selector):
    assert as_key_selector(selector) is selector


def test_a_pick_inside_a_function_is_seen_too():
    assert as_key_selector(lambda pair: pair[2]) == FieldKey(2)


def test_a_key_selector_object_stays():
    class First(KeySelector):
        def get_key(self, value):
            return value[0]

    selector = First()
    assert as_key_selector(selector) is selector


class Wrong(MapFunction):
    def map(self, value):
        return value


@pytest.mark.parametrize("selector", [None, 1.5, True, Wrong()])
def test_what_cannot_select_is_refused(selector):
    with pytest.raises(ProgramError, match="key_by"):
        as_key_selector(selector)
