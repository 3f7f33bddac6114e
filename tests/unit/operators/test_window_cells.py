"""The quick way through the window operator: what checkpoints hold and what comes out are those of the long one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.operators.functions import AggregateFunction
from engine.operators.keyed import KEYED_PART, TIMERS_PART
from engine.operators.keys import FieldKey
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import window_call
from engine.state.chunks import load_keyed
from engine.state.timers import read_timers
from engine.time.assigners import SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.cumulating_windows import CumulatingEventTimeWindows
from engine.time.triggers import EventTimeTrigger, PurgingTrigger
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.restore_cases import MARK, Case, Collect, Mean, PerWindow, Rows, Watermark
from tests.unit.operators.test_restore import FULL, INCREMENTAL, Run, straight

QUICK, LONG = EventTimeTrigger(), PurgingTrigger(EventTimeTrigger())
ASSIGNERS = {
    "tumbling": TumblingEventTimeWindows(10, 3),
    "sliding": SlidingEventTimeWindows(10, 4, 0),
    "with gaps": SlidingEventTimeWindows(4, 10, 1),
    "cumulating": CumulatingEventTimeWindows(20, 5),
}
FOLDS = {"reduce": ReduceFold(lambda a, b: (a[0], a[1] + b[1])), "aggregate": AggregateFold(Mean())}
NAN = float("nan")


def spec_of(assigner, fold, trigger, function=None):
    return WindowSpec((FieldKey(0),), assigner, trigger, window_call(function or Collect()), fold=fold, late_tag="late")


KEYS = st.one_of(st.integers(0, 4), st.sampled_from(["a", NAN, float("nan"), None, (1, NAN)]))
BATCHES = st.lists(st.tuples(KEYS, st.integers(-9, 9), st.integers(-5, 60)), min_size=1, max_size=8).map(
    lambda rows: Rows([row[:2] for row in rows], [row[2] for row in rows])
)
#: records, watermarks, and barriers after which the job goes on at that parallelism, on the way that it was not on
STEPS = st.lists(st.one_of(BATCHES, BATCHES, st.integers(0, 60).map(Watermark), st.sampled_from([1, 2])), max_size=12)


def in_order(steps):
    times = iter(sorted(step.time_ms for step in steps if isinstance(step, Watermark)))
    return [Watermark(next(times)) if isinstance(step, Watermark) else step for step in steps]


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_both_ways_go_on_with_what_the_other_has_left(assigner, fold, config):
    @settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(STEPS, st.booleans())
    def check(steps, begins_quick):
        script = [*in_order(steps), Watermark(TIME_MAX_MS)]
        ways = [spec_of(ASSIGNERS[assigner], FOLDS[fold], trigger) for trigger in (QUICK, LONG)]
        golden = straight(Case((ways[1],), [step for step in script if not isinstance(step, int)]))
        run = Run(Case((ways[not begins_quick],), script), config, None)
        run.start(1)
        for number, step in enumerate(script):
            if isinstance(step, int):
                run.play([MARK])
                watermark_ms = run.watermark_ms
                run.play(doomed for doomed in script[number + 1 : number + 2] if isinstance(doomed, Rows))
                run.watermark_ms = watermark_ms
                run.case = replace(run.case, specs=(ways[run.case.specs == (ways[0],)],))
                run.start(step)
            else:
                run.play([step])
        assert run.finish() == golden

    check()


@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_a_checkpoint_does_not_know_which_way_its_windows_went(assigner):
    found = []
    for trigger in (QUICK, LONG):
        with OperatorHarness(spec_of(ASSIGNERS[assigner], FOLDS["reduce"], trigger)) as harness:
            harness.process([(n % 3, n) for n in range(40)], list(range(40)))
            harness.watermark(11)
            parts = harness.contexts[0].state.keyed
            cells = set()
            for data in parts[KEYED_PART].snapshot(range(128)).values():
                for namespace, keys, values in load_keyed(data, "")["$window-contents"].entries:
                    cells |= {(namespace, *cell) for cell in zip(keys, values, strict=True)}
            timers = [read_timers(data) for data in parts[TIMERS_PART].snapshot(range(128)).values()]
            found.append((cells, {timer for lists in timers for timer in lists[0]}, parts[TIMERS_PART].num_entries()))
    assert found[0] == found[1]
    assert found[0][0]


@pytest.mark.parametrize(
    "settings_of_long_way",
    [{"allowed_lateness_ms": 5}, {"trigger": LONG}, {"fold": None}],
    ids=lambda settings_of_long_way: next(iter(settings_of_long_way)),
)
def test_only_what_fires_once_and_at_once_goes_the_quick_way(settings_of_long_way):
    quick = spec_of(ASSIGNERS["tumbling"], FOLDS["reduce"], QUICK)
    for spec, is_quick in ((quick, True), (replace(quick, **settings_of_long_way), False)):
        with OperatorHarness(spec) as harness:
            assert (harness.head._cells is not None) is is_quick


def test_windows_that_had_fired_already_keep_to_the_long_way():
    """The program allowed lateness before; what has fired must not fire again."""
    before = replace(spec_of(ASSIGNERS["tumbling"], FOLDS["reduce"], QUICK), allowed_lateness_ms=50)
    script = [Rows([("a", 1), ("b", 2)], [4, 5]), Watermark(20), Rows([("c", 3)], [40]), MARK]
    run = Run(Case((before,), script), FULL, None)
    run.start(1)
    run.play(script)
    run.case = Case((replace(before, allowed_lateness_ms=0),), script)
    run.start(1)
    assert run.harnesses[0].head._cells is None
    run.play([Watermark(TIME_MAX_MS)])
    assert len(run.finish()) == 3


class Opened(AggregateFunction):
    def open(self, runtime_context):
        self.context = runtime_context

    def create_accumulator(self):
        return 0

    def add(self, value, accumulator):
        return accumulator + value[1]

    def get_result(self, accumulator):
        return accumulator

    def merge(self, acc_a, acc_b):
        return acc_a + acc_b


def test_a_function_that_may_have_keyed_state_is_called_with_its_key():
    with OperatorHarness(spec_of(ASSIGNERS["tumbling"], AggregateFold(Opened()), QUICK)) as harness:
        assert harness.head._cells is None


def test_a_process_function_keeps_state_by_window_and_clears_it():
    with OperatorHarness(spec_of(ASSIGNERS["tumbling"], FOLDS["reduce"], QUICK, PerWindow())) as harness:
        harness.process([("a", 1), ("b", 2), ("a", 3)], [4, 5, 6])
        harness.watermark(100)
        assert harness.output.rows == [("a", 3, 1, 1, [("a", 4)]), ("b", 3, 1, 1, [("b", 2)])]
        entries = harness.contexts[0].state.keyed[KEYED_PART]._tables
        assert not entries["fired"].spaces
        assert entries["total"].spaces
