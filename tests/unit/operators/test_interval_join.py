"""The interval join against all pairs."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.errors import ProgramError, UserCodeError
from engine.operators.interval_join import IntervalJoinSpec, ProcessJoinFunction
from engine.operators.keys import FieldKey
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS
from tests.testing.operator_harness import OperatorHarness

KEYS = (FieldKey(0), FieldKey(0))


def pair_of(left, right):
    return left, right


NEAR = st.integers(-20, 20)
LIMITS = st.integers(TIME_MIN_MS + 1, TIME_MIN_MS + 12) | st.integers(TIME_MAX_MS - 12, TIME_MAX_MS)
TIMES = st.one_of(NEAR, NEAR, NEAR, LIMITS)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from("ab"), TIMES) | TIMES, max_size=25),
    st.integers(-8, 8),
    st.integers(0, 8),
)
@example([(0, "a", 5), 5, (1, "a", 5), (1, "a", 4)], 0, 0)
def test_the_pairs_are_those_near_each_other_and_nothing_is_kept_for_ever(steps, lower, width):
    spec = IntervalJoinSpec(KEYS, lower, lower + width, pair_of, ("late", "late"))
    kept = ([], [])
    uppers = max(0, lower + width), max(0, -lower)
    expected, late = [], []
    watermark, seen = None, []
    with OperatorHarness(spec) as harness:
        for number, step in enumerate(steps):
            if isinstance(step, int):
                watermark = step if watermark is None else max(watermark, step)
                harness.watermark(watermark)
                for own, upper in zip(kept, uppers, strict=True):  # a partner that is not late cannot come any more
                    own[:] = [record for record in own if record[2] + upper > watermark]
                continue
            side, key, time = step
            record = key, number, time
            harness.process([record], [time], input_index=side)
            if watermark is not None and time < watermark:
                late.append(record)
                continue
            # One at the very watermark is not called late, though its partners may have gone. So does Flink.
            pairs = [(record, other) if side == 0 else (other, record) for other in kept[1 - side]]
            expected += [(a, b) for a, b in pairs if a[0] == b[0] and lower <= b[2] - a[2] <= lower + width]
            kept[side].append(record)
            seen.append(record)
        harness.watermark(TIME_MAX_MS)
        assert sorted(harness.output.rows) == sorted(expected)
        stamps = harness.output.timestamps_ms
        assert stamps == [max(a[2], b[2]) for a, b in harness.output.rows]
        assert sorted(r for batch in harness.output.side.get("late", []) for r in batch.rows) == sorted(late)
        if all(record[2] < TIME_MAX_MS - 99 for record in seen):
            assert not harness.head.backend.snapshot(range(128))  # the others are kept up to the end of time


def test_a_function_sees_both_times():
    class Times(ProcessJoinFunction):
        def process_element(self, left, right, ctx):
            yield ctx.get_left_timestamp(), ctx.get_right_timestamp(), ctx.get_timestamp()

    with OperatorHarness(IntervalJoinSpec(KEYS, -5, 5, Times())) as harness:
        harness.process([("a",)], [3])
        harness.process([("a",)], [1], input_index=1)
        assert (harness.output.rows, harness.output.timestamps_ms) == ([(3, 1, 3)], [3])


def test_failures_name_the_pair_and_records_need_timestamps():
    with OperatorHarness(IntervalJoinSpec(KEYS, 0, 0, lambda left, right: 1 / 0)) as harness:
        harness.process([("a", 1)], [3])
        with pytest.raises(UserCodeError, match=r"on record: \(\('a', 1\), \('a', 2\)\)"):
            harness.process([("a", 2)], [3], input_index=1)
        with pytest.raises(ProgramError, match="assign_timestamps_and_watermarks"):
            harness.process([("a", 2)])
