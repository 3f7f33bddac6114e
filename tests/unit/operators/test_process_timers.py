"""Timers of process functions against sets: both domains, deleted, registered while others fire, restored."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.operators.keys import FieldKey
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import KeyedProcessFunction, TimeDomain
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS
from tests.testing.operator_harness import OperatorHarness

DOMAINS = ("event", "processing")
COMMANDS = st.lists(
    st.tuples(
        st.just("record"),
        st.sampled_from("ab"),
        st.lists(
            st.tuples(st.sampled_from(["register", "delete"]), st.sampled_from(DOMAINS), st.integers(-30, 30)),
            max_size=4,
        ),
    )
    | st.tuples(st.just("watermark"), st.integers(-30, 30) | st.sampled_from([TIME_MIN_MS + 1, TIME_MAX_MS - 1]))
    | st.tuples(st.just("clock"), st.integers(1, 12))
    | st.just(("restart",)),
    max_size=20,
)


class Alarms(KeyedProcessFunction):
    """Does what its records say; a timer whose time is a multiple of five registers another."""

    def process_element(self, value, ctx):
        for what, domain, time in value[1]:
            getattr(ctx.timer_service(), f"{what}_{domain}_time_timer")(time)

    def on_timer(self, timestamp, ctx):
        domain = "event" if ctx.time_domain() is TimeDomain.EVENT_TIME else "processing"
        if timestamp % 5 == 0:
            getattr(ctx.timer_service(), f"register_{domain}_time_timer")(timestamp + 1)
        yield domain, ctx.get_current_key(), timestamp


@settings(deadline=None)
@given(COMMANDS)
def test_timers_of_both_domains_fire_as_sets_do_also_across_restarts(commands):
    clock = ManualClock(-20)
    model = {domain: set() for domain in DOMAINS}
    reached = {"event": TIME_MIN_MS, "processing": clock.now_ms()}
    spec = ProcessSpec(Alarms(), FieldKey(0))
    harness = OperatorHarness(spec, clock=clock).__enter__()

    def due(domain):
        fired = []
        while timers := sorted(timer for timer in model[domain] if timer[0] <= reached[domain]):
            model[domain].discard(timers[0])
            time, key = timers[0]
            fired.append((domain, key, time))
            if time % 5 == 0:
                model[domain].add((time + 1, key))
        return fired

    for command in [*commands, ("watermark", TIME_MAX_MS)]:
        expected = []
        match command:
            case "record", key, orders:
                harness.process([(key, orders)])
                for what, domain, time in orders:
                    (model[domain].add if what == "register" else model[domain].discard)((time, key))
            case "watermark", time if time > reached["event"]:
                harness.watermark(time)
                reached["event"] = time
                expected = due("event")
            case "clock", millis:
                clock.advance(millis)
                harness.head.on_timer(clock.now_ms())
                reached["processing"] = clock.now_ms()
                expected = due("processing")
            case ("restart",):
                taken = harness.snapshot(1)
                harness.__exit__()
                harness = OperatorHarness(spec, restored=[taken], clock=clock).__enter__()
        assert sorted(harness.output.rows) == sorted(expected)
        assert [row[2] for row in harness.output.rows] == sorted(row[2] for row in harness.output.rows)
        harness.output.batches.clear()
        next_ms = min((time for time, _ in model["processing"]), default=None)
        assert harness.head.next_timer_ms() == next_ms
    harness.__exit__()
