"""How streams behave in time, in memory and in shape: steady results, flat fan-out, wide and deep jobs, odd records."""

from __future__ import annotations

import collections
import itertools
import math
import os
import resource
import statistics
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import pytest

from engine.cluster import LocalCluster
from engine.common import Configuration, WatermarkStrategy
from engine.core.errors import ProgramError
from engine.datastream import BufferTimeout, StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource
from engine.datastream.functions import MapFunction
from tests.process.cluster_jobs import ROOT
from tests.testing.patience import best_of

NO_WATERMARKS = WatermarkStrategy.no_watermarks()


@pytest.fixture(scope="module", autouse=True)
def no_cluster_is_left():
    yield
    LocalCluster.shared(Configuration()).close()


@pytest.fixture
def env():
    environment = StreamExecutionEnvironment.get_execution_environment(Configuration())
    return environment.set_parallelism(2)


def collected(stream):
    with stream.execute_and_collect() as results:
        return list(results)


def first_of(pair):
    return pair[0]


# --- time -----------------------------------------------------------------------------------------------------------


def test_results_of_a_slow_function_come_one_after_the_other(env):
    """Not all at the end: a record waits for the buffer timeout and for the records in work, no longer."""

    def slow(value):
        time.sleep(0.1)
        return value

    env.set_parallelism(1)

    def longest_gap() -> float:
        """All at the end would be no gap, but no time between the first and the last either."""
        times = []
        with env.from_collection(range(20)).map(slow).rebalance().map(lambda v: v).execute_and_collect() as results:
            for _ in results:
                times.append(time.monotonic())
        assert len(times) == 20
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return max(gaps) if times[-1] - times[0] > 1.2 else float("inf")

    best_of(longest_gap, 0.7, "longest time without a result, s")


@pytest.mark.parametrize(("timeout", "most"), [(0, 0.02), (50, 0.09)])
def test_the_buffer_timeout_bounds_the_delay_at_a_low_rate(env, timeout, most):
    env.set_buffer_timeout(timeout)

    def delay_s() -> float:
        source = DataGeneratorSource(lambda _: time.time(), 60, 60)
        stamps = env.from_source(source, NO_WATERMARKS, "Stamps").rebalance().map(lambda then: time.time() - then)
        return statistics.median(collected(stamps))

    best_of(delay_s, most, "median of the delay, s", times=5)


@pytest.mark.parametrize("timeout", [0, 1, -1, BufferTimeout.INFINITE])
def test_no_buffer_timeout_loses_a_record(env, timeout):
    env.set_buffer_timeout(timeout)
    counted = env.from_sequence(1, 20_000).key_by(lambda n: n % 7).map(lambda n: n % 7).rebalance()
    assert collections.Counter(collected(counted)) == collections.Counter(n % 7 for n in range(1, 20_001))


# --- memory ---------------------------------------------------------------------------------------------------------


class Peak(MapFunction):
    """Writes the peak of its process's memory into a file when it closes."""

    def __init__(self, path: Path):
        self.path = path

    def map(self, value):
        return value

    def close(self):
        self.path.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))


def test_one_record_may_become_ten_million_in_flat_memory(env, tmp_path):
    env.set_parallelism(1)
    many = env.from_collection([1]).flat_map(lambda _: range(10_000_000)).map(Peak(tmp_path / "peak"))
    assert collected(many.filter(lambda n: n == 9_999_999)) == [9_999_999]
    assert int((tmp_path / "peak").read_text()) < 150


# --- shapes ---------------------------------------------------------------------------------------------------------


def test_two_hundred_streams_are_united(env):
    first, *others = [env.from_collection([number]) for number in range(200)]
    assert sorted(collected(first.union(*others).map(lambda n: n))) == list(range(200))


def test_sixty_operators_in_a_row(env):
    stream = env.from_collection(range(100))
    for _ in range(60):
        stream = stream.map(lambda n: n + 1)
    assert sorted(collected(stream)) == list(range(60, 160))


def test_many_tasks_on_few_cores(env):
    env.set_parallelism(16)
    pairs = env.from_sequence(1, 1000).map(lambda n: (n % 10, 1)).key_by(first_of).sum(1)
    assert collections.Counter(first for first, _ in collected(pairs)) == dict.fromkeys(range(10), 100)


def test_streams_of_nothing_end(env, tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    assert collected(env.from_collection([]).key_by(lambda v: v).map(lambda v: v)) == []
    assert collected(env.read_text_file(str(tmp_path / "empty"))) == []
    assert collected(env.read_text_file(str(tmp_path / "folder"))) == []
    assert collected(env.from_sequence(5, 4)) == []


def test_what_is_no_collection_is_refused(env):
    with pytest.raises(ProgramError, match=r"from_collection\(5\): expected a list"):
        env.from_collection(5)


# --- records --------------------------------------------------------------------------------------------------------


def test_odd_keys_meet_their_equals(env):
    nan = float("nan")
    keys = [None, nan, float("nan"), "ключ", "\ud800", "", b"x", (1, None), -0.0, 1, 1.0, True, math.inf]
    rows = [(key, 1) for key in keys for _ in range(3)]
    totals: dict[str, int] = {}
    for key, count in collected(env.from_collection(rows).rebalance().key_by(first_of).sum(1)):
        totals[repr(key)] = max(count, totals.get(repr(key), 0))
    assert totals.pop("nan") == 6
    assert max(totals.pop(equal, 0) for equal in ("1", "1.0", "True")) == 9
    assert set(totals.values()) == {3}
    assert len(totals) == 8


def test_keys_of_several_types_are_kept_apart(env):
    rows = collected(env.from_collection([(1, 1), ("1", 1), (None, 1), (1, 1)]).key_by(first_of).sum(1))
    assert collections.Counter(map(repr, rows)) == collections.Counter(["(1, 1)", "('1', 1)", "(None, 1)", "(1, 2)"])


def test_a_record_of_fifty_megabytes_passes_an_exchange(env):
    big = env.from_collection([50]).map(lambda n: "x" * (n << 20)).rebalance().map(lambda text: (len(text), 1))
    assert collected(big.key_by(first_of).sum(1)) == [(50 << 20, 1)]


def test_lambdas_and_objects_of_local_classes_pass_an_exchange(env):
    def make(value):
        class Local:
            pass

        made = Local()
        made.call = lambda: value + 1
        return made

    assert sorted(collected(env.from_collection([1, 2, 3]).map(make).rebalance().map(lambda o: o.call()))) == [2, 3, 4]


def test_functions_may_use_processes_threads_and_event_loops(env):
    def busy(value):
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        with ThreadPoolExecutor(2) as pool:
            doubled = next(pool.map(lambda v: v * 2, [value]))
        return asyncio.run(asyncio.sleep(0, doubled))

    assert sorted(collected(env.from_collection([1, 2]).map(busy))) == [2, 4]


# --- programs -------------------------------------------------------------------------------------------------------


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a program in its folder; it must leave nothing in its folder for temporary files."""
    temp = folder / "temporary"
    temp.mkdir()
    (folder / "program.py").write_text(
        "import sys, time\n"
        "from engine.datastream import StreamExecutionEnvironment\n"
        "env = StreamExecutionEnvironment.get_execution_environment().set_parallelism(2)\n" + textwrap.dedent(text)
    )
    environment = {**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(temp)}
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=folder)
    assert list(temp.iterdir()) == []
    return done


def test_modules_and_packages_beside_the_program_travel_with_it(tmp_path):
    """Two programs at once, whose modules have the same names."""
    done = {}

    def one(name: str) -> None:
        folder = tmp_path / name
        (folder / "pack").mkdir(parents=True)
        (folder / "side.py").write_text(
            f"NAME = {name!r}\nclass Tagged:\n    def __init__(self, v): self.v, self.name = v, NAME\n"
        )
        (folder / "pack" / "__init__.py").touch()
        (folder / "pack" / "deep.py").write_text("import side\ndef untag(t): return (t.v, t.name, side.NAME)\n")
        done[name] = run(
            folder,
            """
            import pack.deep, side
            stream = env.from_sequence(1, 2).map(side.Tagged).rebalance().map(pack.deep.untag)
            print(sorted(stream.execute_and_collect()))
            """,
        )

    threads = [threading.Thread(target=one, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "ab":
        assert done[name].stderr == ""
        assert done[name].stdout == f"{[(n, name, name) for n in (1, 2)]}\n"


def test_folders_archives_and_cached_files_are_where_the_program_said(env, tmp_path):
    (tmp_path / "lib" / "qa_folder_package").mkdir(parents=True)
    (tmp_path / "lib" / "qa_folder_package" / "__init__.py").write_text("VALUE = 3\n")
    with zipfile.ZipFile(tmp_path / "modules.zip", "w") as archive:
        archive.writestr("qa_zip_module.py", "VALUE = 4\n")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("words.txt", "hello")
    (tmp_path / "model.bin").write_text("model")
    env.add_python_file(str(tmp_path / "lib"))
    env.add_python_file(str(tmp_path / "modules.zip"))
    env.add_python_archive(str(tmp_path / "data.zip"), "data")
    env.register_cached_file(str(tmp_path / "model.bin"), "model")

    class Reads(MapFunction):
        def open(self, runtime_context):
            self.model = Path(runtime_context.get_cached_file("model")).read_text()

        def map(self, value):
            import qa_folder_package
            import qa_zip_module

            return qa_folder_package.VALUE + qa_zip_module.VALUE, self.model, Path("data/words.txt").read_text()

    assert collected(env.from_collection([1]).map(Reads())) == [(7, "model", "hello")]


def test_leaving_a_loop_over_endless_results_ends_the_program(tmp_path):
    done = run(
        tmp_path,
        """
        from engine.common import WatermarkStrategy
        from engine.datastream.connectors import DataGeneratorSource
        source = DataGeneratorSource(lambda i: i, None, 2000)
        for value in env.from_source(source, WatermarkStrategy.no_watermarks(), "n").execute_and_collect():
            if value > 5:
                break
        print("done")
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_an_error_of_the_program_itself_ends_its_jobs(tmp_path):
    done = run(
        tmp_path,
        """
        env.socket_text_stream("localhost", 1, max_retry=-1).print()
        env.execute_async()
        time.sleep(0.5)
        raise ValueError("mine")
        """,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: mine\n")
    assert done.stderr.count("Traceback") == 1


def test_a_reader_that_leaves_the_pipe_is_one_clear_error(tmp_path):
    (tmp_path / "inner.py").write_text(
        "from engine.datastream import StreamExecutionEnvironment\n"
        "env = StreamExecutionEnvironment.get_execution_environment()\n"
        "env.from_sequence(1, 1000000).print()\nenv.execute()\n"
    )
    environment = {**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(tmp_path)}
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "inner.py")], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.readline()
    program.stdout.close()
    error = program.stderr.read().decode()
    program.stderr.close()
    assert program.wait(120) == 1
    assert "Operator 'Sink: Print to Std. Out' cannot write to standard output: Broken pipe." in error
