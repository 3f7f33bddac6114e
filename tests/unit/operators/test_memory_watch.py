"""Operators on columns whose state is more than its share of memory go to RocksDB, on rows, and give what they gave.

Those that go to files: ``test_spilling_aggregate``, ``test_spilling_windows``, ``test_spilling_sessions``.
"""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from engine.core.records import ColumnBatch
from engine.operators import memory_watch
from engine.operators.column_deduplicate import column_deduplicate
from engine.operators.deduplicate import FIRST, DeduplicateSpec
from engine.operators.keyed import KEYED_PART
from engine.operators.keys import FieldKey
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import Case
from tests.unit.operators.test_restore import ROCKSDB
from tests.unit.operators.test_restore_columns import PHASES, TIMED_SCRIPTS, disturbed, undisturbed

KEY = FieldKey(0)
FIRST_ROWS = DeduplicateSpec(KEY, FIRST)
OPERATORS = {
    "first rows": (column_deduplicate(FIRST_ROWS), FIRST_ROWS),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_what_leaves_memory_after_the_first_batch_goes_on_exactly(name, monkeypatch):
    """With crashes and without, before and after it has left; more than a first batch is never left."""
    columnar, rows = OPERATORS[name]
    monkeypatch.setattr(memory_watch.MemoryWatch, "must_leave", lambda self, held_bytes: held_bytes > 0)

    @settings(max_examples=8, deadline=None, phases=PHASES)
    @given(TIMED_SCRIPTS)
    def check(script):
        assert disturbed(Case((columnar,), script, (KEY,)), ROCKSDB) == undisturbed(Case((rows,), script, (KEY,)))

    check()


def batch_of(start: int, num_rows: int) -> ColumnBatch:
    keys = np.arange(start, start + num_rows)
    return ColumnBatch(
        pa.record_batch([pa.array(keys), pa.array(keys * 2)], names=["k", "v"]), np.zeros(num_rows, np.int64)
    )


@pytest.mark.parametrize("backend", ["hashmap", "rocksdb"])
@pytest.mark.parametrize("name", OPERATORS)
def test_only_rocksdb_has_another_place_for_state_and_the_log_says_so_once(name, backend, monkeypatch, caplog):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    columnar, _ = OPERATORS[name]
    config = {"state.backend.type": backend}
    with caplog.at_level(logging.WARNING), OperatorHarness(columnar, config=config, memory_bytes=60_000) as harness:
        harness.process_batch(batch_of(0, 10))
        assert not harness.head._is_on_rows
        for start in range(10, 6000, 1500):
            harness.process_batch(batch_of(start, 1500))
        parts = harness.contexts[0].state.keyed
        assert (parts[KEYED_PART].num_entries() > 0) == harness.head._is_on_rows == (backend == "rocksdb")
        assert (harness.head._state.num_entries() > 0) == (backend == "hashmap")
    (told,) = [record.getMessage() for record in caplog.records if record.name == memory_watch.__name__]
    assert "its share of managed memory" in told
    assert ("goes on with RocksDB" in told) == (backend == "rocksdb")


def test_little_state_stays_in_memory_however_little_there_is(caplog):
    with OperatorHarness(OPERATORS["first rows"][0], config=ROCKSDB, memory_bytes=1) as harness:
        for start in range(0, 4500, 1500):
            harness.process_batch(batch_of(start, 1500))
        assert not harness.head._is_on_rows
    assert [record for record in caplog.records if record.name == memory_watch.__name__] == []
