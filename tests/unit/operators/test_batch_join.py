"""The hash join when its build side outgrows memory, and when inputs come in an unexpected order."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.operators.batch_join import HashJoinSpec
from engine.operators.keys import FieldKey
from tests.testing.operator_harness import OperatorHarness

ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=60)


def join(first, second, keep_first, keep_second, build_side, memory_bytes, build_first=True, may_cut_keys=True):
    spec = HashJoinSpec(FieldKey(0), FieldKey(0), keep_first=keep_first, keep_second=keep_second, build_side=build_side)
    assert spec.inputs_first == (build_side,)
    with OperatorHarness(spec) as harness:
        harness.head._budget = memory_bytes
        if not may_cut_keys:
            harness.head._join_in_pieces = None
        order = (build_side, 1 - build_side) if build_first else (1 - build_side, build_side)
        for index in order:
            rows = second if index else first
            for start in range(0, len(rows), 5):
                harness.process(rows[start : start + 5], input_index=index)
            harness.head.end_input(index)
        harness.head.finish()
        spilled = harness.head._files != []
        work_dir = harness.head.ctx.work_dir
        result = Counter(harness.output.rows)
        harness.head.close()
        assert os.listdir(work_dir) == []
    return result, spilled


def model(first, second, keep_first, keep_second):
    pairs = [(a, b) for a in first for b in second if a[0] == b[0]]
    pairs += [(a, None) for a in first if keep_first and a[0] not in {b[0] for b in second}]
    pairs += [(None, b) for b in second if keep_second and b[0] not in {a[0] for a in first}]
    return Counter(pairs)


@settings(max_examples=40, deadline=None)
@given(ROWS, ROWS, st.booleans(), st.booleans(), st.integers(0, 1), st.sampled_from([1, 700, 1 << 20]), st.booleans())
def test_every_kind_of_join_gives_the_same_with_any_memory(first, second, left, right, build, memory, build_first):
    result, _ = join(first, second, left, right, build, memory, build_first)
    assert result == model(first, second, left, right)


@pytest.mark.parametrize("build_side", [0, 1])
def test_a_large_build_side_is_cut_into_files_more_than_once(build_side):
    first, second = [(i, 0) for i in range(400)], [(i, 1) for i in range(200, 600)]
    # Distinct keys can always be cut further: the costly join in pieces is not needed.
    result, spilled = join(first, second, True, True, build_side, 2000, may_cut_keys=False)
    assert spilled
    assert result == model(first, second, True, True)
