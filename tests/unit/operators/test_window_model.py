"""Every kind of window with every trigger that suits it, with and without lateness, against windows kept as lists.

The model knows nothing of state, timers' order or groups of records: it looks through all its windows after each step.
Times before 1970 and at both ends of 64 bits are among those that come.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.clock import ManualClock
from engine.operators.keys import FieldKey
from engine.operators.process_functions import WindowFunction
from engine.operators.window import WindowSpec
from engine.operators.window_functions import CoGroupedFunction, JoinedFunction, window_call
from engine.time.assigners import (
    CountSlidingWindowAssigner,
    CountTumblingWindowAssigner,
    DynamicEventTimeSessionWindows,
    DynamicProcessingTimeSessionWindows,
    EventTimeSessionWindows,
    GlobalWindows,
    ProcessingTimeSessionWindows,
    SlidingEventTimeWindows,
    SlidingProcessingTimeWindows,
    TumblingEventTimeWindows,
    TumblingProcessingTimeWindows,
)
from engine.time.evictors import CountEvictor, DeltaEvictor, TimeEvictor
from engine.time.triggers import (
    ContinuousEventTimeTrigger,
    ContinuousProcessingTimeTrigger,
    CountTrigger,
    DeltaTrigger,
    EventTimeTrigger,
    ProcessingTimeTrigger,
    PurgingTrigger,
)
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS, GlobalWindow
from tests.testing.operator_harness import OperatorHarness

KEY = FieldKey(0)
EVERYTHING = (TIME_MIN_MS, TIME_MAX_MS + 1)


# --- triggers, as what they are said to do ------------------------------------------------------------------------


class OnTime:
    """EventTimeTrigger, and with ``at_once`` False ProcessingTimeTrigger."""

    def __init__(self, at_once=True):
        self.at_once = at_once

    def begin(self):
        return None

    def element(self, memory, value, time, window, now):
        if self.at_once and window[1] - 1 <= now:
            return memory, True, set()
        return memory, False, {window[1] - 1}

    def due(self, memory, at, window, now):
        return memory, at == window[1] - 1, set()

    def merged(self, memories, window, now):
        return None, {window[1] - 1} if window[1] - 1 > now else set()


class EveryCount:
    def __init__(self, count):
        self.count = count

    def begin(self):
        return 0

    def element(self, memory, value, time, window, now):
        return (0, True, set()) if memory + 1 >= self.count else (memory + 1, False, set())

    def due(self, memory, at, window, now):
        return memory, False, set()

    def merged(self, memories, window, now):
        return sum(memories), set()


class EveryInterval:
    """Remembers when it fires next."""

    def __init__(self, interval, by_clock=False):
        self.interval = interval
        self.by_clock = by_clock

    def begin(self):
        return None

    def element(self, memory, value, time, window, now):
        end = window[1] - 1
        if not self.by_clock and end <= now:
            return memory, True, set()
        times = set() if self.by_clock else {end}
        if memory is None:
            time = now + 1 if self.by_clock else time
            memory = min(time - time % self.interval + self.interval, end)
            times.add(memory)
        return memory, False, times

    def due(self, memory, at, window, now):
        end = window[1] - 1
        if memory == at and at < end:
            following = min(at + self.interval, end)
            if now == end == TIME_MAX_MS:
                following = end  # time is over: not every interval to its end
            return following, True, {following}
        return memory, at == end and (not self.by_clock or memory == at), set()

    def merged(self, memories, window, now):
        known = [memory for memory in memories if memory is not None]
        times = {min(known)} if known else set()
        if not self.by_clock and window[1] - 1 > now:
            times.add(window[1] - 1)
        return min(known, default=None), times


class FarFromLast:
    def __init__(self, threshold):
        self.threshold = threshold

    def begin(self):
        return None

    def element(self, memory, value, time, window, now):
        if memory is None:
            return value, False, set()
        return (value, True, set()) if abs(value - memory) > self.threshold else (memory, False, set())

    def due(self, memory, at, window, now):
        return memory, False, set()


# --- windows as lists -------------------------------------------------------------------------------------------------


class Model:
    """``assign``: (value, time) → spans. ``now``: the watermark, or the clock's last full millisecond."""

    def __init__(self, assign, trigger, *, purges=False, lateness=0, event_time=True, merges=False, cleans=True):
        self.assign, self.trigger, self.purges, self.lateness = assign, trigger, purges, lateness
        self.event_time, self.merges, self.cleans = event_time, merges, cleans
        self.now = TIME_MIN_MS
        self.values: dict[tuple, list] = {}  # by (key, span)
        self.memory: dict[tuple, object] = {}
        self.timers: set[tuple] = set()  # (time, (key, span))
        self.fired: list = []
        self.late: list = []

    def cleanup(self, window):
        end = window[1][1] - 1
        return min(end + self.lateness, TIME_MAX_MS) if self.event_time else end

    def add(self, record, time):
        key, value = record[0], record[1]
        dropped = True
        for span in self.assign(value, time):
            window = (key, (span[0], min(span[1], TIME_MAX_MS + 1)))
            if self.merges:
                window = self.merge(window)
            if self.event_time and self.cleanup(window) <= self.now:
                continue
            dropped = False
            self.values.setdefault(window, []).append((value, time))
            memory = self.memory.get(window, self.trigger.begin())
            self.memory[window], fires, times = self.trigger.element(memory, value, time, window[1], self.now)
            self.timers |= {(at, window) for at in times}
            if fires:
                self.fire(window)
        if dropped and self.event_time and time + self.lateness <= self.now:
            self.late.append(record)

    def merge(self, new):
        key, (start, end) = new
        others = [
            window for window in self.values if window[0] == key and window[1][0] <= end and window[1][1] >= start
        ]
        start, end = min([start, *(w[1][0] for w in others)]), max([end, *(w[1][1] for w in others)])
        result = (key, (start, end))
        if not others or others == [result]:
            return result
        memory, times = self.trigger.merged([self.memory[window] for window in others], result[1], self.now)
        values = [value for window in sorted(others) for value in self.values[window]]
        for window in others:
            self.forget(window)
        self.values[result], self.memory[result] = values, memory
        self.timers |= {(at, result) for at in times}
        return result

    def forget(self, window):
        del self.values[window], self.memory[window]
        self.timers = {timer for timer in self.timers if timer[1] != window}

    def fire(self, window):
        if self.values[window]:
            (start, end) = window[1]
            self.fired.append((window[0], start, end, sorted(value for value, _ in self.values[window])))
        if self.purges:
            self.values[window] = []

    def advance(self, now):
        self.now = max(self.now, now)
        # Timers whose time has come, and those that they bring about.
        while due := sorted(timer for timer in self.timers if timer[0] <= self.now):
            at, window = due[0]
            self.timers.discard(due[0])
            self.clean_up(before=at)
            if window not in self.values:
                continue
            memory, fires, times = self.trigger.due(self.memory[window], at, window[1], self.now)
            self.memory[window] = memory
            self.timers |= {(following, window) for following in times}
            if fires:
                self.fire(window)
        self.clean_up(before=self.now + 1)

    def clean_up(self, before):
        if self.cleans:
            for window in [window for window in self.values if self.cleanup(window) < before]:
                self.forget(window)


def sliding(size, slide, offset):
    return lambda value, time: [
        (start, start + size) for start in range(time - size + 1, time + 1) if (start - offset) % slide == 0
    ]


def session(gap_of):
    return lambda value, time: [(time, time + gap_of(value))]


def everything(value, time):
    return [EVERYTHING]


# --- what is tried ----------------------------------------------------------------------------------------------------

NEAR = st.integers(-40, 40)
LIMITS = st.integers(TIME_MIN_MS + 1, TIME_MIN_MS + 25) | st.integers(TIME_MAX_MS - 25, TIME_MAX_MS)
TIMES = st.one_of(NEAR, NEAR, NEAR, LIMITS)
#: Watermarks stay behind the end of time, where nothing would be left to see.
WATERMARKS = st.one_of(NEAR, NEAR, NEAR, st.integers(TIME_MIN_MS + 1, TIME_MIN_MS + 25))
RECORD = st.tuples(st.sampled_from("ab"), st.integers(0, 9))
STEPS = st.lists(
    st.lists(st.tuples(RECORD, TIMES), min_size=1, max_size=6) | WATERMARKS | st.just("restart"), max_size=14
)

#: name → (engine's, model's), from a number
EVENT_WINDOWS = {
    "tumbling": lambda n: (TumblingEventTimeWindows(n, n // 2), sliding(n, n, n // 2), False),
    "sliding": lambda n: (SlidingEventTimeWindows(2 * n, n + 1, -(n // 3)), sliding(2 * n, n + 1, -(n // 3)), False),
    "with gaps": lambda n: (SlidingEventTimeWindows(n, 2 * n, 0), sliding(n, 2 * n, 0), False),
    "sessions": lambda n: (EventTimeSessionWindows(n), session(lambda value: n), True),
    "dynamic sessions": lambda n: (
        DynamicEventTimeSessionWindows(lambda row: 1 + n * row[1]),
        session(lambda value: 1 + n * value),
        True,
    ),
}
EVENT_TRIGGERS = {
    "event time": lambda n: (EventTimeTrigger(), OnTime()),
    "count": lambda n: (CountTrigger(n), EveryCount(n)),
    "continuous": lambda n: (ContinuousEventTimeTrigger(n), EveryInterval(n)),
    "delta": lambda n: (DeltaTrigger(n, lambda old, new: abs(new[1] - old[1])), FarFromLast(n)),
}


class Collect(WindowFunction):
    def apply(self, key, window, inputs):
        start, end = EVERYTHING if isinstance(window, GlobalWindow) else window
        yield key, start, min(end, TIME_MAX_MS + 1), sorted(row[1] for row in inputs)


def spec_of(assigner, trigger, purges, **settings):
    return WindowSpec(
        (KEY,), assigner, PurgingTrigger.of(trigger) if purges else trigger, window_call(Collect()), **settings
    )


def restarted(harness, spec, clock=None):
    watermark = harness.head.timers.current_watermark
    taken = harness.snapshot(1)
    harness.__exit__()
    harness = OperatorHarness(spec, restored=[taken], clock=clock).__enter__()
    harness.head.timers.current_watermark = watermark  # it comes again at once; the model knows it already
    return harness


def advance(harness, model, watermark):
    if watermark > model.now:  # gates hand on no other
        harness.watermark(watermark)
        model.advance(watermark)


def compare(harness, model):
    """What came since the last time is the same on both sides."""
    late = [row for batch in harness.output.side.get("late", []) for row in batch.rows]
    assert sorted(harness.output.rows) == sorted(model.fired)
    assert sorted(late) == sorted(model.late)
    harness.output.batches.clear()
    harness.output.side.clear()
    model.fired, model.late = [], []


def check_event_time(spec, model, steps):
    harness = OperatorHarness(spec).__enter__()
    try:
        for step in [*steps, TIME_MAX_MS]:
            if step == "restart":
                harness = restarted(harness, spec)
                continue
            if isinstance(step, int):
                advance(harness, model, step)
            else:
                harness.process([record for record, _ in step], [time for _, time in step])
                for record, time in step:
                    model.add(record, time)
            compare(harness, model)
    finally:
        harness.__exit__()


CASES = [
    (windows, trigger)
    for windows, trigger in itertools.product(EVENT_WINDOWS, EVENT_TRIGGERS)
    if not ("sessions" in windows and trigger == "delta")  # it cannot merge
]


@pytest.mark.parametrize(("windows", "trigger"), CASES)
def test_windows_of_event_time(windows, trigger):
    @settings(deadline=None, max_examples=30)
    @given(STEPS, st.integers(1, 12), st.integers(1, 6), st.integers(0, 15), st.booleans())
    def check(steps, size, count, lateness, purges):
        assigner, assign, merges = EVENT_WINDOWS[windows](size)
        own, slow = EVENT_TRIGGERS[trigger](count)
        spec = spec_of(assigner, own, purges, allowed_lateness_ms=lateness, late_tag="late")
        check_event_time(spec, Model(assign, slow, purges=purges, lateness=lateness, merges=merges), steps)

    check()


@pytest.mark.parametrize("trigger", EVENT_TRIGGERS)
def test_one_window_of_everything(trigger):
    @settings(deadline=None, max_examples=30)
    @given(
        st.lists(st.lists(st.tuples(RECORD, NEAR), min_size=1, max_size=6) | NEAR | st.just("restart"), max_size=14),
        st.integers(1, 6),
        st.booleans(),
    )
    def check(steps, count, purges):
        own, slow = EVENT_TRIGGERS[trigger](count)
        spec = spec_of(GlobalWindows(), own, purges)
        model = Model(everything, slow, purges=purges, event_time=False, cleans=False)
        harness = OperatorHarness(spec).__enter__()
        for step in steps:
            if step == "restart":
                harness = restarted(harness, spec)
            elif isinstance(step, int):
                advance(harness, model, step)
            else:
                harness.process([record for record, _ in step], [time for _, time in step])
                for record, time in step:
                    model.add(record, time)
            compare(harness, model)
        harness.__exit__()

    check()


# --- by the clock -----------------------------------------------------------------------------------------------------

CLOCK_WINDOWS = {
    "tumbling": lambda n: (TumblingProcessingTimeWindows(n, n // 2), sliding(n, n, n // 2), False),
    "sliding": lambda n: (SlidingProcessingTimeWindows(2 * n, n + 1, 0), sliding(2 * n, n + 1, 0), False),
    "sessions": lambda n: (ProcessingTimeSessionWindows(n), session(lambda value: n), True),
    "dynamic sessions": lambda n: (
        DynamicProcessingTimeSessionWindows(lambda row: 1 + n * row[1]),
        session(lambda value: 1 + n * value),
        True,
    ),
}
CLOCK_TRIGGERS = {
    "processing time": lambda n: (ProcessingTimeTrigger(), OnTime(at_once=False)),
    "count": lambda n: (CountTrigger(n), EveryCount(n)),
    "continuous": lambda n: (ContinuousProcessingTimeTrigger(n), EveryInterval(n, by_clock=True)),
}


@pytest.mark.parametrize(("windows", "trigger"), list(itertools.product(CLOCK_WINDOWS, CLOCK_TRIGGERS)))
def test_windows_of_the_clock(windows, trigger):
    @settings(deadline=None, max_examples=30)
    @given(
        st.lists(st.lists(RECORD, min_size=1, max_size=5) | st.integers(1, 15) | st.just("restart"), max_size=14),
        st.integers(1, 12),
        st.integers(1, 6),
        st.booleans(),
    )
    def check(steps, size, count, purges):
        assigner, assign, merges = CLOCK_WINDOWS[windows](size)
        own, slow = CLOCK_TRIGGERS[trigger](count)
        clock = ManualClock(1000)
        spec = spec_of(assigner, own, purges)
        model = Model(assign, slow, purges=purges, event_time=False, merges=merges)
        model.advance(clock.now_ms() - 1)
        harness = OperatorHarness(spec, clock=clock).__enter__()
        for step in [*steps, 500]:
            if step == "restart":
                harness = restarted(harness, spec, clock)
            elif isinstance(step, int):
                for _ in range(step):  # the task fires timers as soon as they are due
                    clock.advance(1)
                    due_ms = harness.head.next_timer_ms()
                    if due_ms is not None and due_ms <= clock.now_ms():
                        harness.head.on_timer(clock.now_ms())
                    model.advance(clock.now_ms() - 1)
            else:
                harness.process(step)
                for record in step:
                    model.add(record, clock.now_ms())
            compare(harness, model)
        harness.__exit__()

    check()


# --- by number --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(RECORD, max_size=30), st.integers(1, 6), st.integers(1, 6), st.integers(0, 30))
def test_windows_by_number_are_runs_of_the_elements_of_a_key(records, size, slide, cut):
    tumbling, sliding_by = CountTumblingWindowAssigner.of(size), CountSlidingWindowAssigner.of(size, slide)
    for assigner, step in ((tumbling, size), (sliding_by, slide)):
        spec = WindowSpec((KEY,), assigner, assigner.get_default_trigger(None), window_call(Runs()))
        harness = OperatorHarness(spec).__enter__()
        harness.process(records[:cut])
        fired = harness.output.rows
        harness = restarted(harness, spec)
        harness.process(records[cut:])
        fired += harness.output.rows
        expected = []
        for key in "ab":
            own = [value for name, value in records if name == key]
            expected += [(key, own[at : at + size]) for at in range(0, len(own) - size + 1, step)]
        assert sorted(fired) == sorted(expected)
        harness.__exit__()


class Runs(WindowFunction):
    def apply(self, key, window, inputs):
        yield key, [row[1] for row in inputs]


# --- evictors ---------------------------------------------------------------------------------------------------------


def newest(elements, span):
    return [e for e in elements if e[1] > max(time for _, time in elements) - span]


def nearest(elements, threshold):
    return [e for e in elements if abs(e[0] - elements[-1][0]) < threshold]


EVICTORS = {
    "count": (CountEvictor.of, lambda elements, n: elements[max(0, len(elements) - n) :]),
    "time": (TimeEvictor, newest),
    "delta": (lambda n, after: DeltaEvictor.of(n, lambda a, b: abs(a[1] - b[1]), after), nearest),
}


@pytest.mark.parametrize("evictor", EVICTORS)
@pytest.mark.parametrize("after", [False, True])
def test_evictors_before_and_after_the_function(evictor, after):
    make, kept = EVICTORS[evictor]

    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.tuples(RECORD, NEAR), max_size=25), st.integers(1, 5), st.integers(1, 8))
    def check(records, count, size):
        spec = WindowSpec(
            (KEY,), GlobalWindows(), CountTrigger.of(count), window_call(Runs()), evictor=make(size, after)
        )
        expected, contents, seen = [], {"a": [], "b": []}, {"a": 0, "b": 0}
        for (key, value), time in records:
            contents[key].append((value, time))
            seen[key] += 1
            if seen[key] % count == 0:
                stays = kept(contents[key], size)
                shown = contents[key] if after else stays
                contents[key] = stays
                if shown:
                    expected.append((key, [v for v, _ in shown]))
        with OperatorHarness(spec) as harness:
            harness.process([record for record, _ in records], [time for _, time in records])
            assert harness.output.rows == expected

    check()


# --- two inputs -------------------------------------------------------------------------------------------------------

TWO = st.lists(
    st.tuples(st.integers(0, 1), st.lists(st.tuples(RECORD, TIMES), min_size=1, max_size=5))
    | WATERMARKS
    | st.just("restart"),
    max_size=12,
)


@pytest.mark.parametrize("windows", EVENT_WINDOWS)
def test_window_joins_and_co_groups_are_the_pairs_and_sides_of_each_window(windows):
    @settings(deadline=None, max_examples=30)
    @given(TWO, st.integers(1, 12), st.integers(0, 15))
    def check(steps, size, lateness):
        assigner, assign, merges = EVENT_WINDOWS[windows](size)
        joined = JoinedFunction(lambda left, right: (left, right), False)
        grouped = CoGroupedFunction(lambda left, right: [(sorted(left), sorted(right))])
        sides_of = {joined: itertools.product, grouped: lambda left, right: [(sorted(left), sorted(right))]}
        for function, shown in sides_of.items():
            spec = WindowSpec((KEY, KEY), assigner, EventTimeTrigger(), function, allowed_lateness_ms=lateness)
            model = Model(lambda value, time: assign(value[1][1], time), OnTime(), lateness=lateness, merges=merges)
            harness = OperatorHarness(spec).__enter__()
            for step in [*steps, TIME_MAX_MS]:
                if step == "restart":
                    harness = restarted(harness, spec)
                elif isinstance(step, int):
                    advance(harness, model, step)
                else:
                    side, records = step
                    harness.process([r for r, _ in records], [t for _, t in records], input_index=side)
                    for record, time in records:
                        model.add((record[0], (side, record)), time)
                expected = []
                for _, _, _, values in model.fired:
                    sides = [[record for side, record in values if side == wanted] for wanted in (0, 1)]
                    expected += list(shown(*sides))
                assert sorted(harness.output.rows) == sorted(expected)
                harness.output.batches.clear()
                model.fired = []
            harness.__exit__()

    check()
