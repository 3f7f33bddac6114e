"""Ship strategies: which channel gets which record, for rows and for columns."""

from __future__ import annotations

import datetime as dt
import decimal
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import ProgramError, UserCodeError
from engine.core.records import Batch, ColumnBatch, RowBatch, record_values, rows_of
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.functions import KeySelector, Partitioner, RuntimeContext
from engine.operators.keys import ComposedKey, FieldKey
from engine.runtime.exchange.column_hash import hash_of_column, subtask_of_rows
from engine.runtime.exchange.partitioners import ChannelSelector, default_max_parallelism, make_channel_selector
from engine.state.key_groups import key_group_of, stable_hash, subtask_of_key_group


def selector_of(
    strategy: ShipStrategy,
    num: int,
    key: Any = None,
    partitioner: Any = None,
    subtask: int = 0,
    max_parallelism: int = 0,
) -> ChannelSelector:
    partitioning = Partitioning(strategy, key, partitioner)
    return make_channel_selector(
        partitioning, num, operator_name="Map", subtask_index=subtask, max_parallelism=max_parallelism
    )


def split(selector: ChannelSelector, batch: Batch) -> dict[int, list[Any]]:
    parts = selector.split(batch)
    assert len({channel for channel, _ in parts}) == len(parts)
    return {channel: rows_of(part).rows for channel, part in parts}


def test_rebalance_goes_round_record_by_record_over_batches():
    selector = selector_of(ShipStrategy.REBALANCE, 3, subtask=4)
    assert split(selector, RowBatch([0, 1, 2, 3])) == {1: [0, 3], 2: [1], 0: [2]}
    assert split(selector, RowBatch([4, 5])) == {2: [4], 0: [5]}


def test_rebalance_of_columns_gives_each_channel_as_many_rows_as_of_records():
    rows, columns = selector_of(ShipStrategy.REBALANCE, 3), selector_of(ShipStrategy.REBALANCE, 3)
    for size in (1, 5, 7, 2):
        of_rows = {c: len(part) for c, part in rows.split(RowBatch(list(range(size))))}
        parts = columns.split(ColumnBatch(pa.record_batch({"x": list(range(size))}), np.arange(size)))
        assert {c: len(part) for c, part in parts} == of_rows
        assert sorted(row[0] for _, part in parts for row in rows_of(part).rows) == list(range(size))
        assert all(part.timestamps_ms.tolist() == [row[0] for row in rows_of(part).rows] for _, part in parts)


def test_broadcast_and_global_and_one_channel():
    batch = RowBatch([1, 2])
    assert selector_of(ShipStrategy.BROADCAST, 3).split(batch) == [(0, batch), (1, batch), (2, batch)]
    assert split(selector_of(ShipStrategy.GLOBAL, 3), batch) == {0: [1, 2]}
    fails = selector_of(ShipStrategy.HASH, 1, key=lambda row: 1 // 0)
    assert fails.split(batch)[0][1] is batch  # no key is computed for a single consumer


def test_shuffle_spreads_by_the_subtasks_own_seed():
    batch = RowBatch(list(range(1000)))
    first, again, other = (split(selector_of(ShipStrategy.SHUFFLE, 4, subtask=s), batch) for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert min(map(len, first.values())) > 200
    assert sorted(row for part in first.values() for row in part) == batch.rows


def test_hash_sends_each_key_where_its_key_group_lives():
    selector = selector_of(ShipStrategy.HASH, 3, key=lambda row: row[0], max_parallelism=200)
    rows = [(f"k{i % 50}", i) for i in range(500)]
    for channel, part in split(selector, RowBatch(rows)).items():
        for row in part:
            assert subtask_of_key_group(key_group_of(row[0], 200), 3, 200) == channel


def test_timestamps_stay_with_their_rows():
    for strategy in (ShipStrategy.HASH, ShipStrategy.REBALANCE, ShipStrategy.SHUFFLE):
        selector = selector_of(strategy, 3, key=lambda row: row)
        parts = selector.split(RowBatch(list(range(100)), list(range(100))))
        assert all(part.rows == part.timestamps_ms for _, part in parts)


def test_custom_partitioner_gets_key_and_number_of_partitions():
    class ByRest(Partitioner):
        def open(self, runtime_context: RuntimeContext) -> None:
            self.opened = True

        def partition(self, key: int, num_partitions: int) -> int:
            assert self.opened
            return key % num_partitions

    class Half(KeySelector):
        def get_key(self, value: int) -> int:
            return value // 2

    selector = selector_of(ShipStrategy.CUSTOM, 2, key=Half(), partitioner=ByRest())
    selector.open(RuntimeContext(task_name="t"))
    assert split(selector, RowBatch([0, 1, 2, 3, 4])) == {0: [0, 1, 4], 1: [2, 3]}


@pytest.mark.parametrize("channel", [-1, 2, None, 0.5, "a"])
@pytest.mark.parametrize("num", [1, 2])
def test_a_partitioner_out_of_range_is_a_user_error_even_with_one_channel(channel: Any, num: int):
    selector = selector_of(ShipStrategy.CUSTOM, num, partitioner=lambda key, n: channel if key == 3 else 0)
    with pytest.raises(UserCodeError, match=r"in operator 'Map'"):
        selector.split(RowBatch([1, 2, 3]))


def test_errors_of_selectors_and_keys_name_the_record():
    with pytest.raises(UserCodeError, match=r"ZeroDivisionError(.|\n)*on record: 0"):
        selector_of(ShipStrategy.HASH, 2, key=lambda row: 1 // row).split(RowBatch([3, 2, 0, 1]))
    with pytest.raises(UserCodeError, match=r"cannot be a key(.|\n)*on record: 'b'"):
        selector_of(ShipStrategy.HASH, 2, key=lambda row: {1} if row == "b" else row).split(RowBatch(["a", "b"]))


def test_range_partitioning_has_a_clear_answer():
    with pytest.raises(ProgramError, match="CUSTOM"):
        selector_of(ShipStrategy.RANGE, 2)


@pytest.mark.parametrize(("parallelism", "expected"), [(1, 128), (85, 128), (86, 256), (200, 512), (30_000, 32_768)])
def test_default_number_of_key_groups_is_flinks(parallelism: int, expected: int):
    assert default_max_parallelism(parallelism) == expected


# --- columns follow the law of rows --------------------------------------------------------------------------

COLUMNS = [
    pa.array([f"w{i}" for i in range(200)]),
    pa.array(["ü€😀", "", None, "a" * 1000] * 50),
    pa.array(["x", None] * 3),
    pa.array([f"w{i}" for i in range(200)], pa.large_string()),
    pa.array([b"\x00\xff", b"", None] * 50),
    pa.array([bytes(range(at, at * 7 % 256, 3)) or b"\xff" * (at % 41) for at in range(250)]),  # each length
    pa.array([f"w{i}" for i in range(200)])[17:150],
    pa.array(["p", "q", None] * 50).dictionary_encode(),
    pa.array([0, 1, -1, None, 2**31, -(2**31), 2**63 - 1, -(2**63)] * 10),
    pa.array([1, 2, 250, None], pa.uint8()),
    pa.array([1, 2**63, 2**64 - 1, None], pa.uint64()),
    pa.array([-5, 7, None], pa.int32()),
    pa.array([1.0, 1.5, -0.0, float("nan"), float("inf"), None, 1e300]),
    pa.array([True, False, None]),
    pa.array([dt.date(2020, 1, 1), None]),
    pa.array([dt.datetime(2020, 1, 1, 12, 30), None]),
    pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.00"), None]),
    pa.array([None, None], pa.null()),
    pa.array([{"a": 1, "b": {"c": "x"}}, {"a": None, "b": None}, {"a": 2, "b": {"c": None}}, None] * 30)[1:],
    pa.DictionaryArray.from_arrays([0, 1, None], pa.array([{"a": 1}, {"a": 2}])),
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: f"{column.type}-{len(column)}")
def test_hash_of_a_column_is_the_hash_of_its_values(column: pa.Array):
    assert hash_of_column(column).tolist() == list(map(stable_hash, record_values(column)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text() | st.none(), min_size=64, max_size=100))
def test_text_kernel_agrees_with_the_scalar_law(texts: list[str | None]):
    texts = [text if text is None else text.encode("utf-8", "ignore").decode() for text in texts]
    assert hash_of_column(pa.array(texts, pa.string())).tolist() == [stable_hash(text) for text in texts]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
@pytest.mark.parametrize("num_values", [3, 200])
def test_texts_in_a_dictionary_are_hashed_as_texts_by_the_kernel_or_not(kind, num_values):
    """With nulls among rows and values, values that no row has, and a slice of the rows."""
    values = pa.array([None if at == 1 else f"ä{at}" for at in range(num_values)]).cast(kind)
    codes = pa.array([None if at % 7 == 0 else at * at % (num_values - 1) for at in range(300)], pa.int16())
    column = pa.DictionaryArray.from_arrays(codes, values).slice(5)
    assert hash_of_column(column).tolist() == list(map(stable_hash, record_values(column)))


@pytest.mark.parametrize("key", [FieldKey(0), FieldKey("b"), FieldKey(-1), ComposedKey((0, "b")), lambda row: row[1]])
def test_columns_go_where_rows_go_and_stay_columns(key: Any):
    columns = pa.record_batch({"a": [f"w{i % 37}" for i in range(300)], "b": [i % 11 for i in range(300)]})
    batch = ColumnBatch(columns, np.arange(300))
    by_name = {FieldKey("b"): lambda row: row[1], ComposedKey((0, "b")): lambda row: (row[0], row[1])}
    of_rows = split(selector_of(ShipStrategy.HASH, 5, key=by_name.get(key, key)), batch.to_rows())
    parts = selector_of(ShipStrategy.HASH, 5, key=key).split(batch)
    assert all(isinstance(part, ColumnBatch) for _, part in parts)
    assert {channel: rows_of(part).rows for channel, part in parts} == of_rows
    stamps = Counter(stamp for _, part in parts for stamp in part.timestamps_ms.tolist())
    assert stamps == Counter(range(300))


def test_columns_keyed_by_a_function_go_where_rows_go_when_most_keys_are_new():
    key = lambda row: row[1] + 1  # noqa: E731 - no field
    of_columns, of_rows = (selector_of(ShipStrategy.HASH, 5, key=key) for _ in range(2))
    for start in (0, 300, 600):
        batch = ColumnBatch(pa.record_batch({"a": list(range(300)), "b": list(range(start, start + 300))}))
        assert split(of_columns, batch) == split(of_rows, batch.to_rows())


class Length(KeySelector):
    unit = 2

    def get_key(self, value: Any) -> Any:
        return len(value[0]) // self.unit


@pytest.mark.parametrize(
    ("key", "is_compiled"),
    [
        (lambda row: row[1] % 3, True),
        (lambda row: (row[1] % 3, row[0]), True),
        (lambda row: (row[1] + 1,), True),
        (lambda row: row[0].upper(), True),
        (lambda row: row[1] > 5, True),
        (lambda row: (row[1] - 2) / 4 * 0.0, True),  # 0.0 and -0.0 are one key
        (lambda row: (row[2], row[1] * 2.0), True),  # with None
        (Length(), True),
        (lambda row: 1000 // (row[1] + 1) if row[1] < 10 else str(row[1] / 3), False),
        (lambda row: row, True),  # and then its fields are asked for on rows
    ],
)
def test_keys_that_functions_compute_of_columns_are_those_of_rows(key: Any, is_compiled: bool):
    of_columns, of_rows = (selector_of(ShipStrategy.HASH, 5, key=key) for _ in range(2))
    columns = {
        "a": [f"w{'x' * (i % 7)}{i % 37}" for i in range(300)],
        "b": [i % 11 for i in range(300)],
        "c": [None if i % 5 else i for i in range(300)],
    }
    batch = ColumnBatch(pa.record_batch(columns))
    assert split(of_columns, batch) == split(of_rows, batch.to_rows())
    assert bool(of_columns._computed.num_compiled) is is_compiled  # type: ignore[attr-defined]


def test_a_key_that_cannot_be_one_is_told_as_of_rows_when_it_comes_from_columns():
    batch = ColumnBatch(pa.record_batch({"a": [1, 0], "b": pa.array([[1], [2]], pa.list_(pa.int64()))}))
    with pytest.raises(UserCodeError, match=r"unhashable|cannot be a key|list"):
        selector_of(ShipStrategy.HASH, 2, key=lambda row: (row[0], row[1])).split(batch)
    with pytest.raises(UserCodeError, match="ZeroDivisionError"):
        selector_of(ShipStrategy.HASH, 2, key=lambda row: 5 // row[0]).split(batch)


def test_scalar_columns_are_keyed_by_their_values():
    batch = ColumnBatch(pa.record_batch({"line": [f"w{i}" for i in range(100)]}), scalar=True)
    of_rows = split(selector_of(ShipStrategy.HASH, 3, key=lambda row: row), batch.to_rows())
    assert split(selector_of(ShipStrategy.HASH, 3, key=lambda row: row), batch) == of_rows


def test_subtask_of_rows_matches_key_groups():
    words = pa.array([f"w{i}" for i in range(500)])
    subtasks = subtask_of_rows([words], 7, 128, is_tuple=False).tolist()
    assert subtasks == [subtask_of_key_group(key_group_of(word, 128), 7, 128) for word in words.to_pylist()]
    pairs = subtask_of_rows([words, words], 7, 128, is_tuple=True).tolist()
    expected = [subtask_of_key_group(key_group_of((word, word), 128), 7, 128) for word in words.to_pylist()]
    assert pairs == expected
