from __future__ import annotations

import collections
import dataclasses
import random

import pytest

from engine.core.errors import UserCodeError
from engine.core.records import BATCH_ROWS_MAX, Row
from engine.operators.aggregate import AGGREGATE_KINDS, CombineAggregateSpec, KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.field_aggregates import RowAggregates, avg, sum_
from engine.operators.functions import KeySelector, ReduceFunction
from engine.operators.keyed import KEYED_PART
from engine.operators.keys import FieldKey
from engine.state.descriptors import ValueStateDescriptor
from engine.state.rocksdb_backend import RocksDBKeyedStateBackend
from tests.testing.operator_harness import OperatorHarness


def run(spec, *batches):
    with OperatorHarness(spec, name="Agg") as harness:
        for batch in batches:
            harness.process(batch)
        harness.end()
    return harness.output.rows


PAIRS = [("a", 3), ("b", 1), ("a", 2), ("a", 5), ("b", 1)]


def test_streaming_sum_emits_one_result_per_record():
    expected = [("a", 3), ("b", 1), ("a", 5), ("a", 10), ("b", 2)]
    assert run(KeyedAggregateSpec(FieldKey(0), "sum", 1), PAIRS[:2], PAIRS[2:]) == expected
    assert run(KeyedAggregateSpec(lambda pair: pair[0], "sum", 1), PAIRS[:2], PAIRS[2:]) == expected


def test_final_sum_emits_the_last_result_per_key_in_order_of_first_sight():
    assert run(KeyedAggregateSpec(FieldKey(0), "sum", 1, True), PAIRS) == [("a", 10), ("b", 2)]
    assert run(KeyedAggregateSpec(lambda pair: pair[0], "sum", -1, True), PAIRS) == [("a", 10), ("b", 2)]


def test_streaming_results_keep_the_timestamps_of_their_records():
    with OperatorHarness(KeyedAggregateSpec(FieldKey(0), "sum", 1)) as harness:
        harness.process(PAIRS[:2], [5, 6])
        assert harness.output.timestamps_ms == [5, 6]


def test_min_and_max_replace_the_field_and_keep_the_first_record_else():
    rows = [("k", 3, "first"), ("k", 1, "second"), ("k", 9, "third")]
    assert run(KeyedAggregateSpec(FieldKey(0), "min", 1, True), rows) == [("k", 1, "first")]
    assert run(KeyedAggregateSpec(FieldKey(0), "max", 1, True), rows) == [("k", 9, "first")]


def test_min_by_and_max_by_take_the_whole_record_and_the_first_of_equals():
    rows = [("k", 3, "a"), ("k", 1, "b"), ("k", 1, "c"), ("k", 9, "d"), ("k", 9, "e")]
    assert run(KeyedAggregateSpec(FieldKey(0), "min_by", 1, True), rows) == [("k", 1, "b")]
    assert run(KeyedAggregateSpec(FieldKey(0), "max_by", 1, True), rows) == [("k", 9, "d")]


def test_scalars_are_aggregated_as_a_whole():
    assert run(KeyedAggregateSpec(lambda n: n % 2, "sum", 0), [1, 2, 3, 4]) == [1, 2, 4, 6]
    assert run(KeyedAggregateSpec(lambda n: 0, "max_by", 0, True), [1, 4, 3]) == [4]


def test_rows_lists_dicts_and_dataclasses_are_copied_never_changed():
    @dataclasses.dataclass
    class Point:
        k: str
        n: int

    for records, field in (
        ([Row(k="a", n=1), Row(k="a", n=2)], "n"),
        ([Row("a", 1), Row("a", 2)], 1),
        ([["a", 1], ["a", 2]], 1),
        ([{"k": "a", "n": 1}, {"k": "a", "n": 2}], "n"),
        ([Point("a", 1), Point("a", 2)], "n"),
    ):
        before = repr(records)
        results = run(KeyedAggregateSpec(lambda record: 0, "sum", field), records)
        assert repr(records) == before
        total = getattr(results[1], "n", None) if isinstance(field, str) else results[1][1]
        if isinstance(results[1], dict):
            total = results[1]["n"]
        assert total == 3
        assert type(results[1]) is type(records[0])


def test_pairs_may_be_followed_by_other_shapes():
    spec = KeyedAggregateSpec(FieldKey(0), "sum", 1, True)
    assert run(spec, [("a", 1)], [Row("a", 2), ("b", 1)], [("a", 4)]) == [("a", 7), ("b", 1)]


@pytest.mark.parametrize("emit_final", [False, True])
@pytest.mark.parametrize("selector", [FieldKey(0), lambda pair: pair[0]], ids=["field", "lambda"])
@pytest.mark.parametrize("bad", ["x", None, [1]])
def test_a_sum_of_what_is_no_number_is_one_clear_error(selector, emit_final, bad):
    for rows in ([("a", bad)], [("a", 1), ("a", bad)]):
        with pytest.raises(UserCodeError) as caught:
            run(KeyedAggregateSpec(selector, "sum", 1, emit_final), rows)
        message = str(caught.value)
        assert f"sum on field 1: value {bad!r} is not a number" in message
        assert f"'Agg' on record: ('a', {bad!r})" in message


@pytest.mark.parametrize("aggregate", [sum_(1), avg(1)], ids=lambda aggregate: aggregate.kind)
def test_a_window_does_not_add_up_texts(aggregate):
    """They would be joined: an answer, but of another question."""
    rows = RowAggregates([aggregate])
    with pytest.raises(TypeError, match=f"{aggregate.kind} on field 1: value 'x' is not a number"):
        rows.add(("a", "x"), rows.create_accumulator())


def test_a_missing_field_is_one_clear_error():
    with pytest.raises(UserCodeError, match=r"max on field 5: the record has no such field \(2 fields\)"):
        run(KeyedAggregateSpec(FieldKey(0), "max", 5), [("a", 1), ("a", 2)])


def test_values_that_do_not_compare_are_one_clear_error():
    with pytest.raises(UserCodeError, match="min on field 1: value None does not go with those before it"):
        run(KeyedAggregateSpec(FieldKey(0), "min", 1), [("a", 1), ("a", None)])


@pytest.mark.parametrize("selector", [FieldKey(0), lambda pair: pair[0]], ids=["field", "lambda"])
def test_a_key_that_cannot_be_hashed_is_named(selector):
    with pytest.raises(UserCodeError, match=r"\['x'\] of type list cannot be a key"):
        run(KeyedAggregateSpec(selector, "sum", 1), [(["x"], 1)])


def test_a_failing_key_selector_names_its_record():
    with pytest.raises(UserCodeError, match=r"IndexError(.|\n)*on record: \(\)"):
        run(KeyedAggregateSpec(lambda pair: pair[0], "sum", 1), [("a", 1), ()])


@pytest.mark.parametrize("emit_final", [False, True])
@pytest.mark.parametrize("selector", [FieldKey(0), lambda pair: pair[0]], ids=["field", "lambda"])
def test_all_nan_are_one_key_and_none_is_another(selector, emit_final):
    rows = [(float("nan"), 1), (None, 5), (float("nan"), 2), ("é", 1)]
    results = run(KeyedAggregateSpec(selector, "sum", 1, emit_final), rows, rows)
    assert [n for _, n in results[-4:]][-3:] == [10, 6, 2] if not emit_final else [n for _, n in results] == [6, 10, 2]


def test_nan_inside_a_tuple_key_is_one_key():
    rows = [("x", float("nan"), 1), ("x", float("nan"), 2)]
    assert [row[2] for row in run(KeyedAggregateSpec(lambda r: r[:2], "sum", 2), rows)] == [1, 3]


def test_reduce_sees_the_value_so_far_first():
    spec = KeyedReduceSpec(lambda s: len(s), lambda a, b: f"{a}{b}"[:2], False)
    assert run(spec, ["ab", "c", "de", "f"]) == ["ab", "c", "ab", "cf"]


def test_reduce_functions_and_key_selectors_are_opened_and_closed():
    calls = []

    class Select(KeySelector):
        def open(self, runtime_context):
            calls.append("open key")

        def get_key(self, value):
            return value[0]

        def close(self):
            calls.append("close key")

    class Add(ReduceFunction):
        def open(self, runtime_context):
            calls.append("open reduce")

        def reduce(self, value1, value2):
            return (value1[0], value1[1] + value2[1])

        def close(self):
            calls.append("close reduce")

    assert run(KeyedReduceSpec(Select(), Add(), True), PAIRS) == [("a", 10), ("b", 2)]
    assert sorted(calls) == ["close key", "close reduce", "open key", "open reduce"]


def test_a_key_error_inside_reduce_is_not_taken_for_a_new_key():
    with pytest.raises(UserCodeError, match="KeyError"):
        run(KeyedReduceSpec(FieldKey(0), lambda a, b: {}["missing"]), [("a", 1), ("a", 2)])


def test_final_results_come_in_chunks():
    spec = KeyedAggregateSpec(FieldKey(0), "sum", 1, True)
    with OperatorHarness(spec) as harness:
        harness.process([(i, 1) for i in range(40_000)])
        harness.end()
    assert len(harness.output.rows) == 40_000
    assert max(map(len, harness.output.batches)) <= BATCH_ROWS_MAX


@pytest.mark.parametrize("kind", ["sum", "min", "max", "min_by", "max_by"])
@pytest.mark.parametrize("keys_max", [3, 1000])
def test_combining_before_does_not_change_the_result(kind, keys_max):
    rng = random.Random(7)
    rows = [(rng.randrange(20), rng.randrange(100)) for _ in range(500)]
    batches = [rows[i : i + 50] for i in range(0, 500, 50)]
    combined = run(CombineAggregateSpec(FieldKey(0), kind, 1, keys_max), *batches)
    spec = KeyedAggregateSpec(FieldKey(0), kind, 1, True)
    assert sorted(run(spec, combined)) == sorted(run(spec, rows))


def test_combining_shrinks_what_repeats_and_steps_aside_when_nothing_does():
    rows = [(i % 10, 1) for i in range(1000)]
    assert sorted(run(CombineAggregateSpec(FieldKey(0), "sum", 1), rows)) == [(i, 100) for i in range(10)]
    with OperatorHarness(CombineAggregateSpec(FieldKey(0), "sum", 1, 100)) as harness:
        harness.process([(i, 1) for i in range(100)])
        harness.process([(0, 1), (0, 1)])
        assert harness.output.rows[100:] == [(0, 1), (0, 1)]


def test_combined_records_come_before_the_watermark():
    with OperatorHarness(CombineAggregateSpec(FieldKey(0), "sum", 1)) as harness:
        harness.process([("a", 1)])
        harness.watermark(5)
        assert (harness.output.rows, harness.output.watermarks_ms) == ([("a", 1)], [5])


def test_random_pairs_agree_with_a_counter():
    rng = random.Random(3)
    rows = [(rng.choice(["a", "ä", "", 1, 1.0, None]), rng.randrange(-5, 5)) for _ in range(2000)]
    expected = collections.Counter()
    for key, value in rows:
        expected[key] += value
    assert dict(run(KeyedAggregateSpec(FieldKey(0), "sum", 1, True), rows)) == dict(expected)


@pytest.mark.parametrize("emit_final", [False, True])
def test_a_sum_by_a_computed_key_keeps_the_first_record_else(emit_final):
    rows = [("apple", 1), ("pear", 10), ("avocado", 2), ("plum", 20)]
    spec = KeyedAggregateSpec(lambda pair: pair[0][0], "sum", 1, emit_final)
    assert run(spec, rows, [Row("acorn", 4)])[-2:] == (
        [("apple", 7), ("pear", 30)] if emit_final else [("pear", 30), ("apple", 7)]
    )
    assert run(spec, rows[:1], rows[1:]) == (
        [("apple", 3), ("pear", 30)] if emit_final else [("apple", 1), ("pear", 10), ("apple", 3), ("pear", 30)]
    )


ROCKSDB = {"state.backend.type": "rocksdb"}


@pytest.mark.parametrize("emit_final", [False, True])
@pytest.mark.parametrize("kind", [*AGGREGATE_KINDS, "reduce"])
def test_the_backend_rocksdb_has_the_values_so_far_and_gives_the_same(kind, emit_final):
    numbers = random.Random(f"{kind} {emit_final}")
    rows = [(numbers.choice(["a", "b", 3, (1, "x"), None]), numbers.randrange(-9, 9)) for _ in range(300)]
    if kind == "reduce":
        spec = KeyedReduceSpec(FieldKey(0), lambda a, b: (a[0], a[1] * 3 + b[1]), emit_final)
    else:
        spec = KeyedAggregateSpec(FieldKey(0), kind, 1, emit_final)
    with OperatorHarness(spec, config=ROCKSDB) as harness:
        for start in range(0, 300, 70):
            harness.process(rows[start : start + 70])
        assert isinstance(harness.contexts[0].state.keyed[KEYED_PART], RocksDBKeyedStateBackend)
        harness.end()
        found = harness.output.rows
    expected = run(spec, rows)
    assert sorted(found, key=repr) == sorted(expected, key=repr) if emit_final else found == expected


class CountsAndReduces(ReduceFunction):
    def open(self, runtime_context):
        self.seen = runtime_context.get_state(ValueStateDescriptor("seen"))

    def reduce(self, value1, value2):
        self.seen.update((self.seen.value() or 0) + 1)
        return (value1[0], value1[1] + value2[1], self.seen.value())


@pytest.mark.parametrize("config", [{}, ROCKSDB], ids=["hashmap", "rocksdb"])
def test_a_reduce_function_has_keyed_state_of_its_own_if_it_asks_for_it(config):
    spec = KeyedReduceSpec(FieldKey(0), CountsAndReduces())
    with OperatorHarness(spec, config=config) as harness:
        harness.process([("a", 1, 0), ("b", 5, 0), ("a", 2, 0)])
        harness.process([("a", 3, 0), ("b", 1, 0)])
        assert harness.output.rows == [("a", 1, 0), ("b", 5, 0), ("a", 3, 1), ("a", 6, 2), ("b", 6, 1)]
        snapshot = harness.snapshot(1)
    with OperatorHarness(spec, config=config, restored=[snapshot]) as harness:
        harness.process([("a", 1, 0), ("b", 1, 0)])
        assert harness.output.rows == [("a", 7, 3), ("b", 7, 2)]


def test_what_a_reduce_kept_in_memory_is_restored_beside_state_of_its_function():
    spec = KeyedReduceSpec(FieldKey(0), lambda a, b: (a[0], a[1] + b[1], 0))
    with OperatorHarness(spec) as harness:
        harness.process([("a", 1, 0), ("a", 2, 0)])
        snapshot = harness.snapshot(1)
    with OperatorHarness(KeyedReduceSpec(FieldKey(0), CountsAndReduces()), restored=[snapshot]) as harness:
        harness.process([("a", 4, 0)])
        assert harness.output.rows == [("a", 7, 1)]
