"""Bulk iterations against loops in plain Python."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import ProgramError, UserCodeError
from engine.core.metrics import IntCounter
from engine.dataset import MapFunction
from tests.testing.graph_runner import GraphRunner, environment, run, source

MODES = st.sampled_from([(1, 64 << 20), (3, 64 << 20), (3, 300)])
quick = settings(max_examples=15, deadline=None)


@quick
@given(st.lists(st.integers(-9, 9), max_size=20), st.integers(1, 5), MODES, st.integers(0, 99))
def test_a_map_is_applied_once_per_superstep(numbers, supersteps, mode, seed):
    loop = source(environment(mode[0]), numbers).iterate(supersteps)
    result = loop.close_with(loop.map(lambda x: x * 2 + 1))
    expected = numbers
    for _ in range(supersteps):
        expected = [x * 2 + 1 for x in expected]
    assert sorted(run(result, memory_bytes=mode[1], seed=seed)) == sorted(expected)


@quick
@given(st.integers(0, 5), MODES, st.integers(0, 99))
def test_the_loop_ends_when_the_criterion_is_empty(start, mode, seed):
    loop = source(environment(mode[0]), [start, start + 3]).iterate(50)
    step = loop.map(lambda x: x + 1)
    result = loop.close_with(step, step.filter(lambda x: x < 10))
    # The criterion is looked at after a superstep: at least one is done.
    expected = [start, start + 3]
    while True:
        expected = [x + 1 for x in expected]
        if not any(x < 10 for x in expected):
            break
    assert sorted(run(result, memory_bytes=mode[1], seed=seed)) == expected


EDGES = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=15)


@quick
@given(EDGES, MODES, st.integers(0, 99))
def test_connected_components_by_join_with_static_edges(edges, mode, seed):
    env = environment(mode[0])
    both_ways = source(env, edges + [(b, a) for a, b in edges])
    labels = source(env, [(v, v) for v in range(9)]).iterate(10)
    neighbours = labels.join(both_ways).where(0).equal_to(0).using(lambda label, edge: (edge[1], label[1]))
    result = labels.close_with(labels.union(neighbours).group_by(0).min(1))

    expected = {v: v for v in range(9)}
    for _ in range(9):
        for a, b in edges:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert dict(run(result, memory_bytes=mode[1], seed=seed)) == expected


class Nearest(MapFunction):
    def open(self, runtime_context):
        self.centroids = runtime_context.get_broadcast_variable("centroids")

    def map(self, value):
        return (min(self.centroids, key=lambda c: (abs(c - value), c)), value, 1)


@quick
@given(st.lists(st.integers(0, 100), min_size=2, max_size=20), MODES, st.integers(0, 99))
def test_k_means_with_the_centroids_as_dynamic_broadcast_set(points, mode, seed):
    env = environment(mode[0])
    loop = source(env, [0, 100]).iterate(4)
    assigned = source(env, points).map(Nearest()).with_broadcast_set(loop, "centroids")
    moved = assigned.group_by(0).sum(1).and_sum(2).map(lambda row: row[1] // row[2])
    centroids = [0, 100]
    for _ in range(4):
        members = [(min(centroids, key=lambda c: (abs(c - p), c)), p) for p in points]
        centroids = [
            sum(p for c, p in members if c == own) // sum(1 for c, _ in members if c == own)
            for own in dict.fromkeys(c for c, _ in members)
        ]
    assert sorted(run(loop.close_with(moved), memory_bytes=mode[1], seed=seed)) == sorted(centroids)


def test_static_records_are_united_anew_in_each_superstep():
    env = environment(2)
    loop = source(env, [1]).iterate(3)
    result = loop.close_with(loop.union(source(env, [10])).map(lambda x: x + 1))
    assert sorted(run(result)) == [4, 11 + 0, 12, 13]


def test_both_sides_of_a_join_may_change_in_each_superstep():
    env = environment(3)
    rows = [(key, 1) for key in range(6)]
    for memory_bytes in (300, 64 << 20):
        loop = source(env, rows).iterate(4)
        joined = loop.join(loop.map(lambda row: row)).where(0).equal_to(0).using(lambda a, b: (a[0], a[1] + b[1]))
        assert sorted(run(loop.close_with(joined), memory_bytes=memory_bytes)) == [(key, 16) for key in range(6)]


def test_a_union_with_static_records_is_exchanged_by_key():
    env = environment(3)
    loop = source(env, [(key, 0) for key in range(6)]).iterate(2)
    both = loop.union(source(env, [(key, 1) for key in range(6)])).partition_by_hash(0)
    summed = both.map_partition(lambda rows: sorted(sum_by_key(rows).items()))
    assert sorted(run(loop.close_with(summed))) == [(key, 2) for key in range(6)]


def sum_by_key(rows):
    sums = {}
    for key, value in rows:
        sums[key] = sums.get(key, 0) + value
    return sums


def test_the_result_of_one_iteration_may_start_another():
    loop = source(environment(2), [1, 2]).iterate(2)
    second = loop.close_with(loop.map(lambda x: x + 1)).iterate(3)
    assert sorted(run(second.close_with(second.map(lambda x: x * 10)))) == [3000, 4000]


class CountingMap(MapFunction):
    def open(self, runtime_context):
        self.superstep = runtime_context.get_superstep_number()
        self.calls = IntCounter()
        runtime_context.add_accumulator("calls", self.calls)

    def map(self, value):
        self.calls.add(1)
        return (*value, self.superstep)


def test_functions_are_opened_in_each_superstep_and_know_its_number():
    loop = source(environment(2), [(0,), (0,)]).iterate(3)
    runner = GraphRunner(loop.close_with(loop.map(CountingMap())))
    assert runner.run() == [(0, 1, 2, 3)] * 2
    assert runner.accumulators() == {"calls": 6}


def test_an_error_in_the_loop_names_operator_and_record():
    loop = source(environment(2), [1]).iterate(9)
    with pytest.raises(UserCodeError, match=r"(?s)ZeroDivisionError.*'Invert' on record: 0"):
        run(loop.close_with(loop.map(lambda x: x - 1).filter(lambda x: 1 / x or True).name("Invert")))


def test_programs_with_broken_iterations_are_refused():
    env = environment()
    data = source(env, [1])
    loop = data.iterate(2)
    with pytest.raises(ProgramError, match="never closed"):
        run(loop.map(lambda x: x))
    with pytest.raises(ProgramError, match="does not depend on the iteration"):
        run(data.iterate(2).close_with(data.map(lambda x: x)))
    with pytest.raises(ProgramError, match="at least 1"):
        data.iterate(0)
    outer = data.iterate(2)
    inner = outer.map(lambda x: x).iterate(2)
    with pytest.raises(ProgramError, match="cannot be nested"):
        run(outer.close_with(inner.close_with(inner.map(lambda x: x))))
    used = data.iterate(2)
    step = used.map(lambda x: x)
    used.close_with(step)
    with pytest.raises(ProgramError, match="inside an iteration"):
        run(step)
    with pytest.raises(ProgramError, match="already called"):
        used.close_with(step)
