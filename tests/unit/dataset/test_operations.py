"""Every operation of the DataSet API against a slow obvious model, in memory and spilling, at several parallelisms."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.records import Row
from engine.dataset import Aggregation, JoinHint, Order
from tests.testing.graph_runner import environment, run, source

KEYS = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from(["a", "é", "日本", ""]), st.just(float("nan")))
PAIRS = st.lists(st.tuples(KEYS, st.integers(-100, 100)), max_size=40)
INTEGERS = st.lists(st.integers(-20, 20), max_size=40)
#: (parallelism, memory): 300 bytes make every operator spill after a batch or two.
MODES = st.sampled_from([(1, 64 << 20), (3, 64 << 20), (1, 300), (3, 300)])
quick = settings(max_examples=25, deadline=None)


def canon(value: Any) -> Any:
    """A value that compares and hashes as the engine's keys do."""
    if isinstance(value, float) and math.isnan(value):
        return "<NaN>"
    if isinstance(value, tuple | list):
        return tuple(canon(part) for part in value)
    return value


def bag(rows: Any) -> Counter[Any]:
    return Counter(map(canon, rows))


def groups(rows: Any, key: Any = lambda row: row[0]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = defaultdict(list)
    for row in rows:
        found[canon(key(row))].append(row)
    return found


@quick
@given(INTEGERS, MODES)
def test_map_filter_and_flat_map_in_both_styles(numbers, mode):
    data = source(environment(mode[0]), numbers)

    def twice(value, collector):
        collector.collect(value)
        collector.collect(-value)

    assert bag(run(data.map(lambda x: x + 1), memory_bytes=mode[1])) == bag(x + 1 for x in numbers)
    assert bag(run(data.filter(lambda x: x % 2))) == bag(x for x in numbers if x % 2)
    expected = bag(y for x in numbers for y in (x, -x))
    assert bag(run(data.flat_map(twice))) == expected
    assert bag(run(data.flat_map(lambda x: [x, -x]))) == expected


@quick
@given(PAIRS, MODES)
def test_sum_min_and_max_per_key(rows, mode):
    data = source(environment(mode[0]), rows)
    result = run(data.group_by(0).aggregate(Aggregation.SUM, 1), memory_bytes=mode[1])
    assert bag(result) == bag((key, sum(row[1] for row in own)) for key, own in groups(rows).items())
    assert bag(run(data.group_by(0).min(1), memory_bytes=mode[1])) == bag(
        (key, min(row[1] for row in own)) for key, own in groups(rows).items()
    )
    assert bag(run(data.group_by(0).max(1), memory_bytes=mode[1])) == bag(
        (key, max(row[1] for row in own)) for key, own in groups(rows).items()
    )


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(), st.integers(), st.integers()), max_size=30), MODES)
def test_several_aggregations_are_computed_in_one_step(rows, mode):
    data = source(environment(mode[0]), rows)
    result = run(data.group_by(0).sum(1).and_agg(Aggregation.MIN, 2).and_max(3), memory_bytes=mode[1])
    assert bag(result) == bag(
        (key, sum(r[1] for r in own), min(r[2] for r in own), max(r[3] for r in own))
        for key, own in groups(rows).items()
    )


@quick
@given(INTEGERS, MODES)
def test_reduce_with_a_function_that_changes_what_the_key_came_from(numbers, mode):
    result = run(
        source(environment(mode[0]), numbers).group_by(lambda x: x % 3).reduce(lambda a, b: a + b),
        memory_bytes=mode[1],
    )
    assert bag(result) == bag(sum(own) for own in groups(numbers, lambda x: x % 3).values())


@quick
@given(INTEGERS, MODES)
def test_reduce_and_aggregate_of_everything(numbers, mode):
    data = source(environment(mode[0]), numbers)
    assert run(data.reduce(lambda a, b: a + b), memory_bytes=mode[1]) == ([sum(numbers)] if numbers else [])
    total = run(data.map(lambda x: (x, x)).sum(0).and_agg("max", 1))
    assert total == ([(sum(numbers), max(numbers))] if numbers else [])


@quick
@given(PAIRS, MODES)
def test_reduce_group_sees_each_group_once_and_whole(rows, mode):
    def gather(values, collector):
        own = list(values)
        collector.collect((own[0][0], sorted(value for _, value in own)))

    result = run(source(environment(mode[0]), rows).group_by(0).reduce_group(gather), memory_bytes=mode[1])
    expected = [(key, sorted(value for _, value in own)) for key, own in groups(rows).items()]
    assert bag(result) == bag(expected)


@quick
@given(PAIRS, MODES)
def test_reduce_group_may_leave_values_unread(rows, mode):
    result = run(
        source(environment(mode[0]), rows).group_by(0).reduce_group(lambda values: [next(values)[0]]),
        memory_bytes=mode[1],
    )
    assert bag(result) == bag(groups(rows))


@quick
@given(PAIRS, MODES)
def test_combinable_reduce_group_gives_the_same(rows, mode):
    def add(values):
        own = list(values)
        yield (own[0][0], sum(value for _, value in own))

    data = source(environment(mode[0]), rows).group_by(0)
    result = run(data.reduce_group(add, combinable=True), memory_bytes=mode[1])
    assert bag(result) == bag((key, sum(row[1] for row in own)) for key, own in groups(rows).items())
    parts = run(data.combine_group(add), memory_bytes=mode[1])
    assert sum(value for _, value in parts) == sum(value for _, value in rows)


@quick
@given(PAIRS, MODES, st.booleans())
def test_sort_group_orders_the_values_of_a_group(rows, mode, ascending):
    order = Order.ASCENDING if ascending else Order.DESCENDING
    result = run(
        source(environment(mode[0]), rows)
        .group_by(0)
        .sort_group(1, order)
        .reduce_group(lambda values: [tuple(value for _, value in values)]),
        memory_bytes=mode[1],
    )
    expected = [tuple(sorted((r[1] for r in own), reverse=not ascending)) for own in groups(rows).values()]
    assert bag(result) == bag(expected)


@quick
@given(PAIRS, st.integers(1, 3), MODES)
def test_first_n_of_all_of_a_group_and_of_a_sorted_group(rows, n, mode):
    data = source(environment(mode[0]), rows)
    result = run(data.first(n))
    assert len(result) == min(n, len(rows))
    assert not bag(result) - bag(rows)
    sizes = Counter(canon(key) for key, _ in run(data.group_by(0).first(n)))
    assert sizes == {key: min(n, len(own)) for key, own in groups(rows).items()}
    smallest = run(data.group_by(0).sort_group(1).first(n), memory_bytes=mode[1])
    assert bag(smallest) == bag(
        (key, value) for key, own in groups(rows).items() for value in sorted(row[1] for row in own)[:n]
    )


@quick
@given(PAIRS, MODES)
def test_distinct_by_field_and_by_whole_record(rows, mode):
    data = source(environment(mode[0]), rows)
    assert bag(row[0] for row in run(data.distinct(0), memory_bytes=mode[1])) == bag(groups(rows))
    assert bag(run(data.distinct(), memory_bytes=mode[1])) == bag(set(map(canon, rows)))


@quick
@given(PAIRS, st.integers(-5, 5), MODES)
def test_min_by_and_max_by_keep_a_whole_record(rows, salt, mode):
    rows = [(key, value, index) for index, (key, value) in enumerate(rows)]
    for row in run(source(environment(mode[0]), rows).group_by(0).min_by(1), memory_bytes=mode[1]):
        assert bag([row]) <= bag(rows)
        assert row[1] == min(own[1] for own in groups(rows)[canon(row[0])])
    best = run(source(environment(mode[0]), rows).max_by(1, 2))
    assert [row[1:] for row in best] == ([max(row[1:] for row in rows)] if rows else [])


JOINS = {
    "join": (False, False),
    "left_outer_join": (True, False),
    "right_outer_join": (False, True),
    "full_outer_join": (True, True),
}


def model_join(first, second, keep_first, keep_second):
    pairs = [(a, b) for a in first for b in second if canon(a[0]) == canon(b[0])]
    if keep_first:
        pairs += [(a, None) for a in first if canon(a[0]) not in groups(second)]
    if keep_second:
        pairs += [(None, b) for b in second if canon(b[0]) not in groups(first)]
    return bag(pairs)


@pytest.mark.parametrize("kind", JOINS)
@quick
@given(PAIRS, PAIRS, MODES)
def test_joins_pair_equal_keys(kind, first, second, mode):
    env = environment(mode[0])
    joined = getattr(source(env, first), kind)(source(env, second)).where(0).equal_to(0)
    assert bag(run(joined, memory_bytes=mode[1])) == model_join(first, second, *JOINS[kind])


@pytest.mark.parametrize("hint", JoinHint)
@quick
@given(PAIRS, PAIRS, MODES)
def test_join_hints_do_not_change_the_result(hint, first, second, mode):
    env = environment(mode[0])
    joined = source(env, first).join(source(env, second), hint).where(0).equal_to(lambda row: row[0])
    result = run(joined.using(lambda a, b: (a, b)), memory_bytes=mode[1])
    assert bag(result) == model_join(first, second, False, False)


def test_join_of_one_key_larger_than_memory_is_complete():
    env = environment(2)
    first, second = [(1, i) for i in range(60)], [(1, -i) for i in range(50)] + [(2, 0)]
    for kind, keeps in JOINS.items():
        joined = getattr(source(env, first), kind)(source(env, second)).where(0).equal_to(0)
        assert bag(run(joined, memory_bytes=400)) == model_join(first, second, *keeps)


def test_join_functions_may_give_one_or_many_results_and_projections_pick_fields():
    env = environment(2)
    first, second = source(env, [(1, "a"), (2, "b")]), source(env, [(1, "x"), (1, "y")])
    joined = first.join(second).where(0).equal_to(0)

    def both(a, b, collector):
        collector.collect(a[1])
        collector.collect(b[1])

    assert bag(run(joined.using(lambda a, b: a[1] + b[1]))) == bag(["ax", "ay"])
    assert bag(run(joined.using(both))) == bag(["a", "x", "a", "y"])
    assert bag(run(joined.project_first(1).project_second(1))) == bag([("a", "x"), ("a", "y")])
    assert bag(run(joined.project_second().project_first(0))) == bag([((1, "x"), 1), ((1, "y"), 1)])


@quick
@given(PAIRS, PAIRS, MODES)
def test_co_group_meets_the_groups_of_both_sides(first, second, mode):
    def gather(left, right):
        return [(sorted(value for _, value in left), sorted(value for _, value in right))]

    env = environment(mode[0])
    result = run(
        source(env, first).co_group(source(env, second)).where(0).equal_to(0).using(gather), memory_bytes=mode[1]
    )
    left, right = groups(first), groups(second)
    expected = [
        (sorted(r[1] for r in left.get(key, ())), sorted(r[1] for r in right.get(key, ()))) for key in {*left, *right}
    ]
    assert bag(result) == bag(expected)


@quick
@given(INTEGERS, INTEGERS, MODES)
def test_cross_and_union(first, second, mode):
    env = environment(mode[0])
    one, other = source(env, first), source(env, second)
    expected = bag((a, b) for a in first for b in second)
    assert bag(run(one.cross(other), memory_bytes=mode[1])) == expected
    assert bag(run(one.cross_with_huge(other).using(lambda a, b: (a, b)), memory_bytes=mode[1])) == expected
    assert bag(run(one.union(other).union(one))) == bag(first + second + first)


@quick
@given(st.lists(st.tuples(KEYS, KEYS), max_size=30), MODES, st.booleans(), st.booleans())
def test_sort_partition_gives_a_total_order_of_any_keys(rows, mode, up_0, up_1):
    def rank(value):
        if value is None:
            return (0, 0)
        if isinstance(value, str):
            return (3, value)
        return (2, 0) if math.isnan(value) else (1, value)

    order = {True: Order.ASCENDING, False: Order.DESCENDING}
    data = source(environment(mode[0]), rows).map(lambda row: row).set_parallelism(1)
    result = run(data.sort_partition(0, order[up_0]).sort_partition(1, order[up_1]), memory_bytes=mode[1])
    expected = sorted(rows, key=lambda row: rank(row[1]), reverse=not up_1)
    expected.sort(key=lambda row: rank(row[0]), reverse=not up_0)
    assert list(map(canon, result)) == list(map(canon, expected))
    single = run(data.sort_partition(lambda row: row[1], order[up_1]), memory_bytes=mode[1])
    assert [canon(row[1]) for row in single] == [
        canon(row[1]) for row in sorted(rows, key=lambda row: rank(row[1]), reverse=not up_1)
    ]


@quick
@given(INTEGERS, MODES)
def test_map_partition_runs_once_per_subtask(numbers, mode):
    result = run(
        source(environment(mode[0]), numbers).map_partition(lambda values: [sum(values)]), memory_bytes=mode[1]
    )
    assert len(result) == mode[0]
    assert sum(result) == sum(numbers)


@quick
@given(INTEGERS, MODES)
def test_count_and_zip_with_index(numbers, mode):
    data = source(environment(mode[0]), numbers)
    assert sum(count for _, count in run(data.count_elements_per_partition())) == len(numbers)
    numbered = run(data.zip_with_index(), memory_bytes=mode[1])
    assert sorted(index for index, _ in numbered) == list(range(len(numbers)))
    assert bag(value for _, value in numbered) == bag(numbers)


def test_partitioning_brings_keys_together():
    data = source(environment(3), [(i % 5, i) for i in range(50)])

    def keys_here(values):
        return [{key for key, _ in values}]

    for partitioned in (data.partition_by_hash(0), data.partition_custom(lambda key, n: key % n, 0)):
        found = [key for keys in run(partitioned.map_partition(keys_here)) for key in keys]
        assert sorted(found) == [0, 1, 2, 3, 4]
    sizes = run(data.map(lambda row: row).set_parallelism(1).rebalance().map_partition(lambda v: [len(list(v))]))
    assert max(sizes) - min(sizes) <= 1


def test_rows_with_names_are_grouped_and_summed_by_name():
    rows = [Row(word="a", n=1), Row(word="b", n=2), Row(word="a", n=3)]
    result = run(source(environment(2), rows).group_by("word").sum("n"))
    assert sorted((row.word, row.n) for row in result) == [("a", 4), ("b", 2)]
    tuples = run(source(environment(2), [("a", 1), ("a", 2)]).group_by("f0").sum("f1"))
    assert tuples == [("a", 3)]


def test_project_and_several_keys():
    data = source(environment(2), [(1, "a", 5), (1, "a", 6), (1, "b", 7)])
    assert bag(run(data.project(2, 0))) == bag([(5, 1), (6, 1), (7, 1)])
    assert bag(run(data.group_by(0, 1).sum(2))) == bag([(1, "a", 11), (1, "b", 7)])
    assert reduce(lambda a, b: a + b, [row[2] for row in run(data.group_by(1).max(2))]) == 13
