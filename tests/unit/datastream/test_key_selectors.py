"""Key selectors that only pick a field are known as such; all others stay calls."""

from __future__ import annotations

import collections.abc
import dataclasses

import pytest

from engine.core.errors import ProgramError
from engine.core.type_info import Types
from engine.datastream.functions import KeySelector, MapFunction
from engine.datastream.key_selectors import as_key_selector, check_key_type
from engine.operators.column_fields import picked_timestamp_field
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


def by_list(row) -> list[int]:
    return [1]


class ByDict(KeySelector):
    def get_key(self, value) -> dict:
        return {}


class Mutable:
    pass


def by_object(row) -> Mutable:
    return Mutable()


@dataclasses.dataclass(frozen=True)
class Point:
    x: int


def by_dataclass(row) -> Point:
    return Point(1)


def by_sequence(row) -> collections.abc.Sequence:
    return (1,)


def by_text(row) -> str:
    return "a"


@pytest.mark.parametrize(
    ("selector", "key_type", "seen"),
    [
        (lambda row: row, Types.LIST(Types.INT()), "ListTypeInfo"),
        (lambda row: row, Types.TUPLE([Types.INT(), Types.MAP(Types.STRING(), Types.INT())]), "MapTypeInfo"),
        (FieldKey(1), None, "ListTypeInfo"),
        (FieldKey("items"), None, "ListTypeInfo"),
        (by_list, None, "list"),
        (ByDict(), None, "dict"),
        (by_object, None, "Mutable"),
    ],
)
def test_a_key_whose_declared_type_cannot_be_one_is_refused_when_the_job_is_built(selector, key_type, seen):
    record = Types.ROW_NAMED(["name", "items"], [Types.STRING(), Types.LIST(Types.INT())])
    with pytest.raises(ProgramError, match=f"key is of type {seen}.*cannot be a key: it is not hashable"):
        check_key_type(selector, key_type, record)


@pytest.mark.parametrize(
    ("selector", "key_type"),
    [
        *((FieldKey(0), None), (FieldKey("name"), Types.STRING()), (FieldKey(-2), None), (lambda row: row[1], None)),
        *((by_dataclass, None), (by_sequence, None), (by_text, None)),
    ],
)
def test_other_keys_are_not_refused(selector, key_type):
    record = Types.ROW_NAMED(["name", "items"], [Types.STRING(), Types.LIST(Types.INT())])
    check_key_type(selector, key_type, record)


@pytest.mark.parametrize("field", [2, -3, "nobody"])
def test_a_field_that_the_declared_records_lack_is_refused_when_the_job_is_built(field):
    record = Types.ROW_NAMED(["name", "items"], [Types.STRING(), Types.INT()])
    with pytest.raises(ProgramError, match=rf"key_by\({field!r}\): the stream"):
        check_key_type(FieldKey(field), None, record)


def test_a_lambda_of_a_file_without_future_imports_picks_as_well():
    """What a file imports from ``__future__`` is in the flags of its functions."""
    scope: dict = {}
    exec(compile("pick = lambda x: x[3]", "program.py", "exec", dont_inherit=True), scope)
    assert as_key_selector(scope["pick"]) == FieldKey(3)
    exec(compile("stamp = lambda value, at: value[2]", "program.py", "exec", dont_inherit=True), scope)
    assert picked_timestamp_field(scope["stamp"]) == 2
