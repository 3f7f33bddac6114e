"""Windows in a local cluster: several tasks, watermarks over exchanges, idle streams, sockets, stream and batch."""

from __future__ import annotations

import collections
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.common import Configuration, Duration, Time, Types, WatermarkStrategy
from engine.core.errors import JobExecutionError
from engine.datastream import OutputTag, RuntimeExecutionMode, StreamExecutionEnvironment
from engine.datastream.functions import ProcessAllWindowFunction, ProcessWindowFunction, SourceFunction
from engine.datastream.window import (
    EventTimeSessionWindows,
    SlidingEventTimeWindows,
    TumblingEventTimeWindows,
    TumblingProcessingTimeWindows,
)

ROOT = Path(__file__).resolve().parents[2]
EVENTS = [(f"k{number % 7}", number * 37 % 5000 - 2500) for number in range(3000)]
BY_TIME = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(10)).with_timestamp_assigner(
    lambda event, _: event[1]
)
TUMBLING = TumblingEventTimeWindows.of(Time.milliseconds(100))
MODES = [RuntimeExecutionMode.STREAMING, RuntimeExecutionMode.BATCH]


@pytest.fixture(params=MODES, ids=lambda mode: mode.name.lower())
def env(request):
    environment = StreamExecutionEnvironment.get_execution_environment(Configuration())
    environment.set_parallelism(2)
    environment.set_runtime_mode(request.param)
    return environment


@pytest.fixture
def streaming_env():
    environment = StreamExecutionEnvironment.get_execution_environment(Configuration())
    environment.set_parallelism(2)
    environment.set_runtime_mode(RuntimeExecutionMode.STREAMING)
    return environment


def collected(stream):
    with stream.execute_and_collect() as results:
        return sorted(results)


def counted(events, size, slide):
    counts = collections.Counter()
    for key, time in events:
        first = time - time % slide
        for start in range(first, time - size, -slide):
            counts[key, start] += 1
    return sorted((key, start, count) for (key, start), count in counts.items())


class Count(ProcessWindowFunction):
    def process(self, key, context, elements):
        yield key, context.window().start, len(list(elements))


class CountAll(ProcessAllWindowFunction):
    def process(self, context, elements):
        yield context.window().start, len(list(elements))


def test_windows_over_several_tasks_count_every_record_once(env):
    stream = env.from_collection(EVENTS).assign_timestamps_and_watermarks(BY_TIME).rebalance()
    sliding = SlidingEventTimeWindows.of(Time.milliseconds(200), Time.milliseconds(50))
    assert collected(stream.key_by(lambda e: e[0]).window(sliding).process(Count())) == counted(EVENTS, 200, 50)


def test_window_all_sums_what_windows_of_keys_counted(env):
    stream = env.from_collection(EVENTS).assign_timestamps_and_watermarks(BY_TIME)
    pairs = stream.map(lambda e: (e[0], 1)).key_by(lambda e: e[0]).window(TUMBLING).sum(1)
    totals = pairs.map(lambda pair: ("all", pair[1])).window_all(TUMBLING).sum(1)
    expected = collections.Counter(time - time % 100 for _, time in EVENTS)
    assert collected(totals) == sorted(("all", count) for count in expected.values())
    assert collected(stream.window_all(TUMBLING).process(CountAll())) == sorted(expected.items())


def test_in_batch_nothing_is_late_and_in_streaming_late_records_go_to_their_side(env):
    late = OutputTag("late")
    in_order = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(lambda event, _: event[1])
    events = [("a", 1), ("a", 500), *[("a", 500 + n) for n in range(20)], ("a", 2)]
    env.set_parallelism(1)
    batches = env.from_collection(events).map(lambda e: e).assign_timestamps_and_watermarks(in_order)
    # One record a batch, so that the watermark passes between them.
    counts = batches.key_by(lambda e: e[0]).window(TUMBLING).side_output_late_data(late).process(Count())
    both = counts.union(counts.get_side_output(late).map(lambda e: ("late", *e)))
    total = sum(row[2] if row[0] == "a" else 1 for row in collected(both))
    assert total == len(events)


def test_sessions_window_joins_and_interval_joins_in_a_cluster(env):
    first = env.from_collection([("a", 1), ("a", 15), ("b", 40)]).assign_timestamps_and_watermarks(BY_TIME)
    second = env.from_collection([("a", 3), ("a", 9), ("b", 90)]).assign_timestamps_and_watermarks(BY_TIME)
    gap = EventTimeSessionWindows.with_gap(Time.milliseconds(10))
    united = first.union(second).key_by(lambda e: e[0]).window(gap).process(Count())
    assert collected(united) == [("a", 1, 4), ("b", 40, 1), ("b", 90, 1)]

    def times(left, right):
        return left[1], right[1]

    def key(event):
        return event[0]

    assert collected(first.join(second).where(key).equal_to(key).window(TUMBLING).apply(times)) == [
        (1, 3),
        (1, 9),
        (15, 3),
        (15, 9),
        (40, 90),
    ]
    sizes = first.co_group(second).where(key).equal_to(key).window(TUMBLING)
    assert collected(sizes.apply(lambda left, right: [(len(left), len(right))])) == [(1, 1), (2, 2)]
    joined = first.key_by(key).interval_join(second.key_by(key))
    assert collected(joined.between(Time.milliseconds(-6), Time.milliseconds(2)).process(times)) == [(1, 3), (15, 9)]


def test_count_windows_in_a_cluster(env):
    counts = env.from_collection([("a", n) for n in range(10)]).map(lambda e: (e[0], 1)).key_by(lambda e: e[0])
    assert collected(counts.count_window(3).sum(1)) == [("a", 3)] * 3


def test_a_failing_window_function_fails_the_job_with_the_window_and_the_key(env):
    stream = env.from_collection([("a", 1)]).assign_timestamps_and_watermarks(BY_TIME).key_by(lambda e: e[0])

    class Wrong(ProcessWindowFunction):
        def process(self, key, context, elements):
            raise LookupError("nothing there")

    with pytest.raises(JobExecutionError, match=r"nothing there(.|\n)*TimeWindow\(start=0, end=100\) of key 'a'"):
        collected(stream.window(TUMBLING).process(Wrong()))


class Ticks(SourceFunction):
    """Emits one record, then nothing, until it is cancelled."""

    def __init__(self):
        self._ended = threading.Event()

    def run(self):
        yield "silent", 0
        while not self._ended.wait(0.02):
            yield from ()

    def cancel(self):
        self._ended.set()

    def __reduce__(self):
        return Ticks, ()


def test_an_idle_stream_holds_nobody_up(streaming_env):
    idle = BY_TIME.with_idleness(Duration.of_millis(50))
    silent = streaming_env.add_source(Ticks()).assign_timestamps_and_watermarks(idle)
    events = [("lively", time) for time in range(0, 60_000, 1000)]
    lively = streaming_env.from_collection(events).assign_timestamps_and_watermarks(BY_TIME)
    counts = silent.union(lively).key_by(lambda e: e[0]).window(TUMBLING).process(Count())
    with counts.execute_and_collect() as results:
        assert next(iter(results))[0] in ("silent", "lively")


def test_processing_time_windows_fire_while_the_source_waits(streaming_env):
    stream = streaming_env.add_source(Ticks()).key_by(lambda e: e[0])
    windows = TumblingProcessingTimeWindows.of(Time.milliseconds(100))
    with stream.window(windows).process(Count()).execute_and_collect() as results:
        key, _, count = next(iter(results))
    assert (key, count) == ("silent", 1)


def test_the_socket_example_counts_the_words_of_each_window():
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
        command = [sys.executable, str(ROOT / "examples" / "socket_window_word_count.py"), "--port", port]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        program = subprocess.Popen([*command, "--size", "0.3"], stdout=subprocess.PIPE, text=True, env=environment)
        try:
            connection, _ = server.accept()
            with connection:  # open until the window has fired: what is in an unfinished window is lost with the input
                connection.sendall(b"to be or not to be\n")
                counts = [read_count(program.stdout) for _ in range(4)]
            assert program.wait(120) == 0
        finally:
            program.kill()
            program.wait()
            program.stdout.close()
    assert sorted(counts) == ["(be,2)", "(not,1)", "(or,1)", "(to,2)"]


def read_count(lines):
    """Return the next line that is a count, without the subtask's number before it."""
    return next(line[line.index("(") :].strip() for line in lines if re.match(r"(\d+> )?\(\w+,\d+\)", line))


def test_row_typed_results_are_rows(streaming_env):
    class Named(ProcessWindowFunction):
        def process(self, key, context, elements):
            yield key, len(list(elements))

    stream = streaming_env.from_collection(EVENTS[:10]).assign_timestamps_and_watermarks(BY_TIME)
    row_type = Types.ROW_NAMED(["key", "count"], [Types.STRING(), Types.INT()])
    rows = (
        stream.key_by(lambda e: e[0]).window(EventTimeSessionWindows.with_gap(Time.days(1))).process(Named(), row_type)
    )
    with rows.execute_and_collect() as results:
        assert sum(row.count for row in results) == 10
