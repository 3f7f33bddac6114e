"""Steps that last: a record that becomes millions, functions that turn slow. Memory stays flat, others go on."""

from __future__ import annotations

import itertools
import threading
import time

import psutil
import pytest

from engine.cluster import LocalCluster
from engine.common import Configuration
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.functions import FlatMapFunction
from tests.process.cluster_jobs import engine_processes, until
from tests.testing.patience import best_of

#: What buffers, a batch under way on either side and pages touched for the first time may take, of both slots.
GROWTH_MAX_MB = 40  # pages of 2 MB round each of them up; two million integers are 80


@pytest.fixture(scope="module", autouse=True)
def no_cluster_is_left():
    yield
    LocalCluster.shared(Configuration()).close()


@pytest.fixture
def env():
    return StreamExecutionEnvironment.get_execution_environment(Configuration()).set_parallelism(2)


class MemoryPeak(threading.Thread):
    """The largest memory private to the descendants of this process, in MB, over the smallest one seen with slots."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._done = threading.Event()
        self._seen: dict[int, list[float]] = {}
        self.start()

    def run(self) -> None:
        while not self._done.wait(0.05):
            for pid in engine_processes():
                try:
                    self._seen.setdefault(pid, []).append(psutil.Process(pid).memory_full_info().uss / 2**20)
                except psutil.Error:
                    pass  # ended meanwhile

    def growth_mb(self) -> float:
        self._done.set()
        self.join()
        return sum(max(sizes) - min(sizes) for sizes in self._seen.values())


def summed(stream):
    """Return number and sum of the records of a stream, added up in one task."""
    counted = stream.map(lambda n: (0, 1, n)).key_by(lambda one: one[0])
    with counted.reduce(lambda a, b: (0, a[1] + b[1], a[2] + b[2])).execute_and_collect() as results:
        return max(result[1:] for result in results)


def multiples_of_100_000(env, count):
    """Return those up to ``count``, found among as many records that are made of one."""
    stream = env.from_collection([1]).flat_map(lambda _: (n for n in range(count))).rebalance().map(lambda n: n + 1)
    with stream.filter(lambda n: n % 100_000 == 0).execute_and_collect() as results:
        return sorted(results)


def test_a_record_that_becomes_millions_takes_little_memory_across_an_exchange(env):
    for _ in range(2):  # what a first job imports, and the pages that its slots then share, are not what is measured
        assert multiples_of_100_000(env, 200_000) == [100_000, 200_000]

    def growth_mb() -> float:
        peak = MemoryPeak()
        assert multiples_of_100_000(env, 2_000_000) == list(range(100_000, 2_000_001, 100_000))
        return peak.growth_mb()

    best_of(growth_mb, GROWTH_MAX_MB, "growth of all slots, MB")


def test_fan_out_behind_fan_out_comes_to_an_end(env):
    """Each task waits inside a step for the next, in both slots at once."""
    wide = env.from_collection(range(4)).rebalance().flat_map(lambda n: (n for _ in range(60)))
    wider = wide.rebalance().flat_map(lambda n: (n for _ in range(5000))).rebalance()
    assert summed(wider.map(lambda n: n)) == (1_200_000, 6 * 300_000)


def test_a_step_that_emits_for_ever_can_be_cancelled(env, tmp_path):
    closed = tmp_path / "closed"

    class Endless(FlatMapFunction):
        def flat_map(self, value):
            return itertools.count()

        def close(self):
            closed.touch()

    env.configure(Configuration({"task.cancellation.timeout": "1 min"}))  # no slot is killed that would end by itself

    def cancel() -> float:
        closed.unlink(missing_ok=True)
        env.from_collection([1]).flat_map(Endless()).rebalance().map(lambda n: n).add_sink(lambda n: None)
        client = env.execute_async("endless")
        time.sleep(1.5)
        begin = time.monotonic()
        client.cancel().result()
        until(closed.exists, "the function is closed: its slot was not killed", 50)
        return time.monotonic() - begin

    best_of(cancel, 1.0, "seconds until an endless step is closed")


def test_a_failure_behind_a_step_that_emits_for_ever_fails_the_job(env):
    def fail_late(n):
        return 1 // (n - 300_000)

    env.from_collection([1]).flat_map(lambda _: itertools.count()).rebalance().map(fail_late).add_sink(lambda n: None)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        env.execute("fails")


def arrival_gaps(stream):
    times = []
    with stream.execute_and_collect() as results:
        for value in results:
            if value >= 0:
                times.append(time.monotonic())
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def test_results_slower_than_the_buffer_timeout_come_one_by_one(env):
    def slow(value):
        time.sleep(0.2)
        return value

    env.set_parallelism(1)

    def num_at_once() -> float:
        gaps = arrival_gaps(env.from_collection(range(10)).map(slow).rebalance().map(lambda v: v))
        assert len(gaps) == 9
        return sum(gap < 0.05 for gap in gaps)

    best_of(num_at_once, 1, "results that came with the one before")


@pytest.mark.parametrize("timeout", [0, 100])
def test_a_function_that_turns_slow_gives_back_each_result(env, timeout):
    def turns_slow(value):
        if value >= 0:
            time.sleep(0.2)
        return value

    env.set_parallelism(1).set_buffer_timeout(timeout)

    def longest_gap() -> float:
        numbers = env.from_collection(range(-40_000, 10))
        gaps = arrival_gaps(numbers.map(turns_slow).rebalance().filter(lambda v: v >= -2))
        assert len(gaps) == 9
        print(gaps)
        # The first are noticed late: two may come at once.
        return max(gaps) if sum(gap < 0.05 for gap in gaps) <= 1 else float("inf")

    best_of(longest_gap, 0.7, "longest time without a result, s")


@pytest.mark.parametrize("kind", ["map", "filter", "flat_map"])
def test_a_loop_that_is_cut_loses_and_doubles_nothing(env, kind):
    def slow_at_times(value):
        if value % 997 == 0:
            time.sleep(0.04)
        return True

    stream = env.from_collection(range(20_000), None)
    stream = {
        "map": lambda: stream.map(lambda n: slow_at_times(n) and n),
        "filter": lambda: stream.filter(slow_at_times),
        "flat_map": lambda: stream.flat_map(lambda n: [n] if slow_at_times(n) else None),
    }[kind]()
    with stream.rebalance().map(lambda n: n).execute_and_collect() as results:
        assert sorted(results) == list(range(20_000))


def test_the_record_at_which_a_slow_function_fails_is_named(env):
    def fails(value):
        if value == 1234:
            time.sleep(0.2)
            raise ValueError("too slow")
        return value

    env.set_parallelism(1).from_collection(range(5000)).map(fails).add_sink(lambda n: None)
    with pytest.raises(Exception, match="on record: 1234"):
        env.execute("fails")
