from __future__ import annotations

import pyarrow as pa
import pytest

from engine.core.records import Row, arrow_values, record_values

PAIR = pa.struct([("a", pa.int64()), ("b", pa.string())])
ROW, JSON = Row(a=1, b="x"), {"a": 1, "b": "x"}
NESTED = [
    (PAIR, [JSON, None], [ROW, None]),
    (pa.struct([("p", PAIR), ("q", pa.int64())]), [{"p": JSON, "q": 2}], [Row(p=ROW, q=2)]),
    (pa.list_(PAIR), [[JSON, None], [], None], [[ROW, None], [], None]),
    (pa.large_list(PAIR), [[JSON]], [[ROW]]),
    (pa.list_(PAIR, 1), [[JSON], None], [[ROW], None]),
    (pa.map_(pa.string(), PAIR), [[("k", JSON)], None], [{"k": ROW}, None]),
    (pa.map_(PAIR, pa.int64()), [[(JSON, 3)]], [{ROW: 3}]),
    (pa.list_(pa.int64()), [[1, None]], [[1, None]]),
]


@pytest.mark.parametrize(("kind", "plain", "records"), NESTED, ids=lambda value: str(value)[:40])
def test_structs_are_rows_and_maps_dicts_wherever_they_stand_and_back_again(kind, plain, records):
    column = pa.array(plain, kind)
    assert record_values(column) == records
    assert pa.array(arrow_values(records, kind), kind).equals(column)


def test_values_of_a_dictionary_are_rows_too():
    assert record_values(pa.DictionaryArray.from_arrays([0, None], pa.array([JSON], PAIR))) == [ROW, None]


def test_rows_without_names_are_taken_by_place_and_with_others_are_refused():
    assert list(arrow_values([Row(1, "x"), (1, "x"), JSON], PAIR)) == [JSON] * 3
    with pytest.raises(KeyError, match="no field 'b'"):
        arrow_values([Row(a=1, c="x")], PAIR)
