"""Spilling, sorting and grouping beyond the memory budget."""

from __future__ import annotations

import datetime as dt
import os
from decimal import Decimal

import pytest

from engine.core.errors import ProgramError, UserCodeError
from engine.operators.batch_group import GroupTable
from engine.operators.batch_order import Ordering, keys_of, normal_key, order_key
from engine.operators.batch_sort import ExternalSorter
from engine.operators.batch_spill import SpillableRows, rows_bytes, write_run
from engine.operators.keys import FieldKey


def sorter(tmp_path, *fields, memory_bytes=2000):
    return ExternalSorter(Ordering(fields), work_dir=str(tmp_path), memory_bytes=memory_bytes, operator_name="Sort")


def test_a_list_continues_on_disk_and_can_be_read_twice_and_cleared(tmp_path):
    rows = SpillableRows(str(tmp_path), memory_bytes=1000)
    for start in range(0, 300, 10):
        rows.extend(list(range(start, start + 10)))
    assert rows.is_spilled
    assert list(rows) == list(rows) == list(range(300))
    assert len(rows) == 300
    rows.extend([300])
    assert list(rows)[-1] == 300
    rows.clear()
    assert list(rows) == []
    assert os.listdir(tmp_path) == []


def test_a_record_that_cannot_be_pickled_leaves_no_file(tmp_path):
    with pytest.raises(ProgramError, match="a spilled record"):
        write_run(str(tmp_path), "x", [1, (i for i in ())])
    assert os.listdir(tmp_path) == []


def test_the_estimate_of_memory_follows_what_records_hold():
    assert rows_bytes([("a" * 1000, 1)] * 10) > 10_000
    assert rows_bytes([{"k": ["x" * 100] * 100}] * 10) > 100_000
    assert rows_bytes([]) == 0


def test_a_sort_of_more_runs_than_can_be_merged_at_once_is_stable(tmp_path):
    own = sorter(tmp_path, (FieldKey(0), True), memory_bytes=500)
    rows = [(i * 7 % 10, i) for i in range(2000)]
    for start in range(0, len(rows), 10):
        own.add(rows[start : start + 10])
    assert own.num_runs > 64
    assert list(own.sorted()) == sorted(rows, key=lambda row: row[0])
    own.close()
    assert os.listdir(tmp_path) == []


def test_runs_of_different_key_types_merge_in_the_total_order(tmp_path):
    own = sorter(tmp_path, (FieldKey(0), True), memory_bytes=1)
    for keys in ([3, 1], ["b", "a"], [None], [2.5, float("nan")], [b"x"]):
        own.add([(key,) for key in keys])
    assert [repr(key) for (key,) in own.sorted()] == ["None", "1", "2.5", "3", "nan", "'a'", "'b'", "b'x'"]
    own.close()


def test_many_runs_of_two_key_types_are_merged_in_several_passes(tmp_path):
    own = sorter(tmp_path, (FieldKey(0), True), memory_bytes=1)
    for i in range(150):
        own.add([(i % 70,)])
        own.add([(f"{i:03}",)])
    result = [key for (key,) in own.sorted()]
    assert result == sorted(i % 70 for i in range(150)) + [f"{i:03}" for i in range(150)]
    own.close()


def test_what_cannot_be_compared_is_an_error_that_names_the_operator(tmp_path):
    own = sorter(tmp_path, (FieldKey(0), True))
    own.add([({"a": 1},), ({"b": 2},)])
    with pytest.raises(ProgramError, match="'Sort' cannot sort"):
        list(own.sorted())
    other = sorter(tmp_path, (FieldKey(4), True))
    other.add([(1,)])
    with pytest.raises(UserCodeError, match=r"'Sort' on record: \(1,\)"):
        list(other.sorted())


def test_keys_order_by_value_across_number_types_and_inside_tuples():
    ordered = [None, -1, Decimal("0.5"), 1.5, float("inf"), float("nan"), "a", b"a", (1, None), (1, 2)]
    assert sorted([ordered[i] for i in (5, 9, 0, 3, 8, 1, 7, 2, 6, 4)], key=order_key) == ordered
    assert order_key(dt.date(2020, 1, 1)) < order_key(dt.date(2020, 1, 2))


def test_all_nans_are_one_key_also_inside_tuples():
    keys = keys_of(FieldKey(0), [(float("nan"),), ((1, float("nan")),), ((1, float("nan")),)], "X")
    assert keys[1] == keys[2]
    assert keys[0] is normal_key(float("nan"))


@pytest.mark.parametrize("memory_bytes", [1, 1000, 1 << 20])
def test_keys_with_one_hash_stay_apart(tmp_path, memory_bytes):
    assert hash(-1) == hash(-2)
    table = GroupTable(FieldKey(0), work_dir=str(tmp_path), memory_bytes=memory_bytes, operator_name="Group")
    rows = [(key, i) for i in range(20) for key in (-1, -2, "x")]
    for row in rows:
        table.add([row])
    assert table.is_spilled == (memory_bytes < 1 << 20)
    found = {key: list(own) for key, own in table.groups()}
    assert found == {key: [row for row in rows if row[0] == key] for key in (-1, -2, "x")}
    table.close()
    assert os.listdir(tmp_path) == []


def test_a_spilled_group_is_read_lazily_and_may_be_left(tmp_path):
    table = GroupTable(FieldKey(0), work_dir=str(tmp_path), memory_bytes=1, operator_name="Group")
    for i in range(100):
        table.add([(i % 3, i)])
    assert sorted(next(own)[0] for _, own in table.groups()) == [0, 1, 2]
    table.close()
