"""Which records a second consumer gets as copies."""

from __future__ import annotations

import datetime
import threading

import pyarrow as pa
import pytest

from engine.core.records import ColumnBatch, Row, RowBatch
from engine.operators.row_copies import private_copy


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return self.x == other.x


def local_class():
    class Local(Point):  # no module has it: it cannot be pickled
        pass

    return Local


@pytest.mark.parametrize(
    "rows",
    [[1, "a", None, 2.5, b"x", True], [("a", 1), ("b", datetime.date(2024, 1, 1))], [], [()]],
    ids=["values", "tuples", "none", "empty"],
)
def test_what_cannot_be_changed_is_shared(rows):
    batch = RowBatch(rows, [0] * len(rows))
    assert private_copy(batch) is batch


def test_columns_are_shared():
    batch = ColumnBatch(pa.record_batch({"a": [1]}))
    assert private_copy(batch) is batch


@pytest.mark.parametrize(
    "row",
    [[1], {"a": 1}, ("a", [1]), Row(1, "a"), Point(1), local_class()(1), {1}, bytearray(b"x"), (1, (2, [3]))],
    ids=lambda row: type(row).__name__,
)
def test_what_can_be_changed_is_copied(row):
    batch = RowBatch([1, row], [5, 6])
    found = private_copy(batch)
    assert (found.rows, found.timestamps_ms) == (batch.rows, [5, 6])
    assert found.rows[1] is not row


def test_what_has_no_copy_stays_shared():
    lock = threading.Lock()
    assert private_copy(RowBatch([lock])).rows == [lock]
