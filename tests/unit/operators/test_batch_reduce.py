"""Folding to one row per key: combiners, spilled tables, missing values."""

from __future__ import annotations

import math
import os
from collections import namedtuple

import pytest

from engine.core.errors import UserCodeError
from engine.core.records import Row
from engine.operators.batch_reduce import DistinctFold, FieldsFold, FoldSpec, ReduceFold, with_field
from engine.operators.functions import ReduceFunction
from engine.operators.keys import FieldKey
from tests.testing.operator_harness import OperatorHarness


def fold(spec, *batches, memory_bytes=None):
    with OperatorHarness(spec) as harness:
        if memory_bytes is not None:
            harness.head._budget, harness.head._check_at = memory_bytes, 1
        for rows in batches:
            harness.process(rows)
        early = len(harness.output.rows)
        harness.end()
        rows = harness.output.rows
        work_dir = harness.head.ctx.work_dir
        harness.head.close()
        assert os.listdir(work_dir) == []
        return rows, early


def test_missing_values_are_left_out_unless_there_is_nothing_else():
    nan = float("nan")
    rows = [("a", None), ("a", 3), ("b", None), ("c", nan), ("c", 2.0), ("d", nan)]
    smallest, _ = fold(FoldSpec(FieldKey(0), FieldsFold((("min", 1),))), rows)
    assert smallest[:3] == [("a", 3), ("b", None), ("c", 2.0)]
    assert math.isnan(smallest[3][1])
    for kind, expected in (("min", 1), ("max", 3)):
        swapped, _ = fold(
            FoldSpec(FieldKey(0), FieldsFold(((kind, 1),))), [("a", 3), ("a", None), ("a", nan), ("a", 1)]
        )
        assert swapped == [("a", expected)]
    total, _ = fold(FoldSpec(FieldKey(0), FieldsFold((("sum", 1),))), rows[:3], [("a", 4)])
    assert total == [("a", 7), ("b", None)]


def test_a_combiner_empties_itself_when_memory_is_used_up():
    spec = FoldSpec(FieldKey(0), FieldsFold((("sum", 1),)), is_combiner=True)
    rows, early = fold(spec, *[[(i, 1) for i in range(50)]] * 4, memory_bytes=1000)
    assert early > 0
    final, _ = fold(FoldSpec(FieldKey(0), FieldsFold((("sum", 1),))), rows)
    assert sorted(final) == [(i, 4) for i in range(50)]


@pytest.mark.parametrize("memory_bytes", [1, 3000, None])
def test_the_final_fold_spills_and_merges(memory_bytes):
    batches = [[(i % 97, 1) for i in range(start, start + 20)] for start in range(0, 2000, 20)]
    rows, early = fold(FoldSpec(FieldKey(0), FieldsFold((("sum", 1),))), *batches, memory_bytes=memory_bytes)
    assert early == 0
    assert dict(rows) == {key: sum(1 for i in range(2000) if i % 97 == key) for key in range(97)}
    rows, _ = fold(FoldSpec(FieldKey(0), DistinctFold()), *batches, memory_bytes=memory_bytes)
    assert sorted(rows) == [(key, 1) for key in range(97)]


def test_pairs_keep_the_key_that_the_fold_destroys():
    def add(a, b):
        return a + b

    combined, _ = fold(FoldSpec(lambda x: x % 3, ReduceFold(add), writes_pairs=True, is_combiner=True), range(9))
    assert sorted(combined) == [(0, 9), (1, 12), (2, 15)]
    final, _ = fold(FoldSpec(lambda x: x % 3, ReduceFold(add), reads_pairs=True), combined, combined)
    assert sorted(final) == [18, 24, 30]


class Longest(ReduceFunction):
    opened = closed = 0

    def open(self, runtime_context):
        Longest.opened += 1

    def close(self):
        Longest.closed += 1

    def reduce(self, value1, value2):
        return max(value1, value2, key=len)


def test_reduce_functions_are_opened_and_closed_once():
    rows, _ = fold(FoldSpec(None, ReduceFold(Longest())), ["a", "ccc", "bb"])
    assert rows == ["ccc"]
    assert (Longest.opened, Longest.closed) == (1, 1)


def test_a_field_is_replaced_in_a_copy_of_any_kind_of_record():
    point = namedtuple("Point", "x y")
    assert with_field((1, 2), 0, 9) == (9, 2)
    assert with_field(point(1, 2), "y", 9) == point(1, 9)
    assert with_field(point(1, 2), 0, 9) == point(9, 2)
    row = Row(x=1, y=2)
    assert with_field(row, "x", 9) == Row(x=9, y=2)
    assert row == Row(x=1, y=2)
    assert with_field([1, 2], 1, 9) == [1, 9]
    assert with_field({"a": 1}, "a", 2) == {"a": 2}


def test_values_that_cannot_be_added_are_an_error_with_the_record():
    with pytest.raises(UserCodeError, match=r"(?s)TypeError.*on record: \('a', 'x'\)"):
        fold(FoldSpec(FieldKey(0), FieldsFold((("sum", 1),))), [("a", 1), ("a", "x")])
