"""A stream beside a broadcast stream: who may read and write what."""

from __future__ import annotations

import pytest

from engine.core.clock import ManualClock
from engine.core.errors import UserCodeError
from engine.operators.broadcast import BroadcastProcessSpec
from engine.operators.keys import FieldKey
from engine.operators.process_functions import BroadcastProcessFunction, KeyedBroadcastProcessFunction
from engine.state.descriptors import MapStateDescriptor, ValueStateDescriptor
from tests.testing.operator_harness import OperatorHarness

RULES = MapStateDescriptor("rules")
OTHER = MapStateDescriptor("other")


class Threshold(BroadcastProcessFunction):
    def process_element(self, value, ctx):
        limit = ctx.get_broadcast_state(RULES).get("limit")
        if limit is not None and value > limit:
            yield value, limit, ctx.timestamp(), ctx.current_watermark(), ctx.current_processing_time()

    def process_broadcast_element(self, value, ctx):
        ctx.get_broadcast_state(RULES).put("limit", value)
        yield "limit", value, ctx.timestamp()


def test_broadcast_elements_change_the_state_that_records_read():
    with OperatorHarness(BroadcastProcessSpec(Threshold(), (RULES,)), clock=ManualClock(9)) as harness:
        harness.process([100], [1])
        harness.process([10], [2], input_index=1)
        harness.watermark(2)
        harness.process([11, 10], [3, 4])
    assert harness.output.rows == [("limit", 10, 2), (11, 10, 3, 2, 9)]
    assert harness.output.timestamps_ms == [2, 3]


class Remembering(KeyedBroadcastProcessFunction):
    def open(self, runtime_context):
        self.total = runtime_context.get_state(ValueStateDescriptor("total"))

    def process_element(self, value, ctx):
        self.total.update((self.total.value() or 0) + value[1])
        ctx.timer_service().register_event_time_timer(ctx.timestamp() + 5)
        return ()

    def process_broadcast_element(self, value, ctx):
        if value == "misuse":
            self.total.value()
        ctx.get_broadcast_state(RULES)[value] = True

    def on_timer(self, timestamp, ctx):
        yield ctx.get_current_key(), self.total.value(), sorted(ctx.get_broadcast_state(RULES)), ctx.time_domain().name


def test_the_keyed_form_has_state_and_timers_for_records_and_none_for_broadcast_elements():
    with OperatorHarness(BroadcastProcessSpec(Remembering(), (RULES,), FieldKey(0))) as harness:
        harness.process([("a", 1), ("a", 2), ("b", 7)], [1, 1, 2])
        harness.process(["x", "y"], input_index=1)
        harness.watermark(6)
        assert harness.output.rows == [("a", 3, ["x", "y"], "EVENT_TIME")]
        with pytest.raises(UserCodeError, match=r"no current key(.|\n)*on record: 'misuse'"):
            harness.process(["misuse"], input_index=1)


class Misuse(BroadcastProcessFunction):
    def __init__(self, use):
        self.use = use

    def process_element(self, value, ctx):
        self.use(ctx)

    def process_broadcast_element(self, value, ctx):
        self.use(ctx)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda ctx: ctx.get_broadcast_state(RULES).put(1, 2), r"Change it in process_broadcast_element\(\)"),
        (lambda ctx: ctx.get_broadcast_state(OTHER), r"no broadcast state 'other'; declared with broadcast\(.*'rules'"),
        (lambda ctx: ctx.get_broadcast_state("rules"), "expected a MapStateDescriptor"),
        (lambda ctx: ctx.timer_service().register_event_time_timer(1), "Timers need a keyed stream"),
    ],
)
def test_wrong_use_is_explained(use, message):
    with (
        OperatorHarness(BroadcastProcessSpec(Misuse(use), (RULES,))) as harness,
        pytest.raises(UserCodeError, match=message),
    ):
        harness.process([1])
