"""Operators on columns that went on on rows tell why."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pyarrow as pa
import pytest

from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch, RowBatch
from engine.datastream.aggregates import sum_
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.column_deduplicate import column_deduplicate
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_session import column_session
from engine.operators.column_top_n import column_top_n
from engine.operators.column_window import column_window
from engine.operators.deduplicate import FIRST, LAST, DeduplicateSpec
from engine.operators.handed_over import why_handed_over
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import FieldKey
from engine.operators.top_n import TopNSpec
from engine.time.assigners import EventTimeSessionWindows
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.test_column_window import ASSIGNERS, built_in, columns

KEY = FieldKey(0)
SESSIONS = EventTimeSessionWindows(10)
SPECS = {
    "first": lambda: column_deduplicate(DeduplicateSpec(KEY, FIRST)),
    "last": lambda: column_deduplicate(DeduplicateSpec(KEY, LAST)),
    "top": lambda: column_top_n(TopNSpec(KEY, 2, ((1, False),))),
    "window": lambda: column_window(built_in(ASSIGNERS["tumbling"], [sum_(1)])),
    "session": lambda: column_session(built_in(SESSIONS, [sum_(1)])),
    "interval": lambda: column_interval_join(
        IntervalJoinSpec((KEY, KEY), -5, 5, lambda left, right: left, (None, None)), (None, None)
    ),
}
ROW = (1, 2, 0.5, "a")


@pytest.mark.parametrize("name", SPECS)
def test_rows_that_came_are_told_and_stay_the_reason(name):
    with OperatorHarness(SPECS[name]()) as harness:
        harness.process_batch(columns([ROW], [5]))
        assert harness.head.tier("planned") == "planned"
        harness.process_batch(RowBatch([ROW], [6]))
        harness.process_batch(columns([ROW], [7]))
        assert harness.head.tier("planned") == "on rows: rows came (planned: planned)"


@pytest.mark.parametrize("name", ["window", "session"])
def test_a_sum_beyond_64_bits_is_told(name):
    with OperatorHarness(SPECS[name]()) as harness:
        harness.process_batch(columns([(1, 2**63 - 1, 0.5, "a")], [5]))
        harness.process_batch(columns([(1, 2**63 - 1, 0.5, "a")], [6]))
        assert harness.head.tier("").startswith("on rows: an integer sum beyond 64 bits")


@pytest.mark.parametrize(("name", "value"), [("sum", 10**30), ("sum", None), ("window", 10**30)])
def test_decimals_of_many_digits_are_no_null(name, value):
    spec = ColumnAggregateSpec(KEY, "sum", 1) if name == "sum" else SPECS[name]()
    values = [pa.array([1, 1]), pa.array([5, value], pa.decimal128(38, 0))]
    batch = ColumnBatch(pa.RecordBatch.from_arrays(values, names=["k", "v"]), np.array([1, 2]))
    told = "a sum of decimals that Python rounds" if value else "a null where a value is needed"
    with OperatorHarness(spec) as harness:
        with contextlib.suppress(UserCodeError):
            harness.process_batch(batch)
        assert harness.head.tier("").startswith(f"on rows: {told}")


@pytest.mark.parametrize("name", SPECS)
def test_records_of_other_types_are_told_with_their_fields(name):
    given = columns([ROW], [5])
    other = ColumnBatch(given.columns.select([3, 1, 2, 0]), given.timestamps_ms)
    with OperatorHarness(SPECS[name]()) as harness:
        harness.process_batch(given)
        harness.process_batch(other)
        assert re.match(r"on rows: records whose types.* not beside those before \(.* string, ", harness.head.tier(""))


def test_memory_that_is_full_is_told_whatever_came():
    assert why_handed_over(RowBatch([ROW], [5]), is_full=True) == "its share of memory was full"
    given = columns([ROW], [5])
    assert why_handed_over(ColumnBatch(given.columns), needs_times=True) == "records without timestamps came"
