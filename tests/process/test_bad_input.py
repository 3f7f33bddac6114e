"""What a program's author reads when something is wrong: one message with operator, record and their own lines."""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from engine.cluster import LocalCluster
from engine.common import Configuration
from engine.core.errors import JobExecutionError, OutputExistsError, ProgramError
from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment, WriteMode
from engine.datastream.functions import FlatMapFunction, MapFunction, SinkFunction, SourceFunction
from tests.process.cluster_jobs import ROOT, engine_processes, until
from tests.process.script_cluster import free_ports


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


def failure_of(stream) -> str:
    """Return the message of the job that ends with the stream; nothing of the engine's own code may be in it."""
    with pytest.raises(JobExecutionError) as caught:
        collected(stream)
    message = str(caught.value)
    assert "/engine/" not in message
    return message


# --- functions that raise ---------------------------------------------------------------------------------------------


def raising(error: BaseException):
    def function(value):
        raise error

    return function


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(), RecursionError("deep")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("method", ["map", "filter", "flat_map", "add_sink"])
def test_whatever_a_function_raises_is_told_with_operator_record_and_line(env, method, error):
    stream = getattr(env.from_collection(["seen"]), method)(raising(error))
    with pytest.raises(JobExecutionError) as caught:
        env.execute() if method == "add_sink" else collected(stream)
    message = str(caught.value)
    assert message.startswith(type(error).__name__)
    assert " on record: 'seen'" in message
    assert "in operator '" in message
    assert "raise error" in message
    assert "/engine/" not in message


class Numbers(SourceFunction):
    def run(self):
        yield 1
        sys.exit(4)


def test_a_source_that_exits_fails_the_job_instead_of_ending_the_stream(env):
    message = failure_of(env.add_source(Numbers(), "Numbers"))
    assert "SystemExit: 4" in message
    assert "Numbers" in message


def test_a_generator_that_raises_midway_is_told(env):
    def numbers(value):
        yield value
        raise ValueError("midway")

    message = failure_of(env.from_collection([7]).flat_map(numbers))
    assert "ValueError: midway\n  in operator 'Flat Map' on record: 7" in message


@pytest.mark.parametrize(("value", "told"), [("ab", "cut into characters"), (5, "expected an iterable of records")])
def test_flat_map_must_return_records(env, value, told):
    assert told in failure_of(env.from_collection([value]).flat_map(lambda v: v))


class Unprintable:
    def __repr__(self):
        raise ValueError("no text")


def test_records_that_cannot_be_shown_do_not_hide_the_error(env):
    unprintable = env.from_collection([1]).map(lambda _: Unprintable())
    unprintable.print()
    with pytest.raises(JobExecutionError, match=r"ValueError: no text\n  in operator 'Sink: Print.*Unprintable"):
        env.execute()
    assert failure_of(unprintable.map(raising(TypeError("wrong")))).startswith("TypeError: wrong\n  in operator 'Map'")


def test_a_message_of_megabytes_is_cut(env):
    message = failure_of(env.from_collection([1]).map(raising(ValueError("x" * 5_000_000))))
    assert len(message) < 20_000
    assert "in operator 'Map' on record: 1" in message


@pytest.mark.parametrize("code", [0, 5])
def test_a_function_that_ends_its_process_fails_the_job(env, code):
    with pytest.raises(JobExecutionError, match=f"ended with exit code {code}: user code ended it"):
        collected(env.from_collection([1]).map(lambda _: os._exit(code)))


def test_a_crash_in_native_code_is_told(env):
    def crash(_):
        import ctypes

        ctypes.string_at(0)

    with pytest.raises(JobExecutionError, match=r"SIGSEGV.*native library"):
        collected(env.from_collection([1]).map(crash))


def test_too_much_memory_is_an_error_of_the_function(env):
    def allocate(_):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        return len(bytearray(4 << 30))

    assert "MemoryError\n  in operator 'Map' on record: 1" in failure_of(env.from_collection([1]).map(allocate))


class Lifecycle(MapFunction):
    """Notes its end in a file; raises in the method that it is told."""

    def __init__(self, folder: Path, name: str, bad: str = ""):
        self.folder, self.name, self.bad = folder, name, bad

    def open(self, runtime_context):
        self.subtask = runtime_context.get_index_of_this_subtask()
        if self.bad == "open":
            raise OSError("no model")

    def map(self, value):
        if self.bad == "map":
            raise ValueError(value)
        return value

    def close(self):
        (self.folder / f"{self.name}{self.subtask}").touch()
        if self.bad == "close":
            raise OSError("no way out")


def test_all_functions_are_closed_when_one_fails(env, tmp_path):
    env.set_parallelism(1)
    stream = env.from_collection([1]).map(Lifecycle(tmp_path, "a")).map(Lifecycle(tmp_path, "b", "map"))
    failure_of(stream.rebalance().map(Lifecycle(tmp_path, "c")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a0", "b0", "c0"]


@pytest.mark.parametrize(("method", "told"), [("open", "no model"), ("close", "no way out")])
def test_open_and_close_that_raise_fail_the_job(env, tmp_path, method, told):
    message = failure_of(env.from_collection([1]).map(Lifecycle(tmp_path, "a", method)))
    assert f"OSError: {told}\n  in operator 'Map'" in message


def test_a_sink_that_raises_fails_the_job(env):
    class Full(SinkFunction):
        def invoke(self, value, context=None):
            raise OSError("disk is full")

    env.from_collection([1]).add_sink(Full()).name("Full")
    with pytest.raises(JobExecutionError, match=r"disk is full\n  in operator 'Sink: Full' on record: 1"):
        env.execute()


# --- programs that cannot become a job ----------------------------------------------------------------------------


def test_errors_while_building_have_neither_causes_nor_frames_of_the_engine(env):
    lock = threading.Lock()
    env.from_collection([1]).map(lambda v: (lock, v)).print()
    with pytest.raises(ProgramError, match=r"Operator 'Map'.*variable 'lock' is a _thread\.lock.*open\(\)") as caught:
        env.execute()
    assert caught.value.__cause__ is None
    assert len(list(itertools.islice(_frames(caught.value.__traceback__), 9))) == 2  # here, and execute()


def _frames(traceback):
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def test_a_function_must_not_refer_to_the_environment(env):
    env.from_collection([1]).map(lambda _: env).print()
    with pytest.raises(ProgramError, match=r"variable 'env' is a .*exist in the program only"):
        env.execute()


def test_an_async_function_is_refused(env):
    async def later(value):
        return value

    with pytest.raises(ProgramError, match=r"map\(later\): an async function"):
        env.from_collection([1]).map(later)


class Stubborn(FlatMapFunction):
    def flat_map(self, value):
        return [value]

    def __getstate__(self):
        raise ValueError("I stay here")


def test_a_pickling_method_of_the_user_is_shown(env):
    env.from_collection([1]).flat_map(Stubborn()).print()
    with pytest.raises(ProgramError, match=r'(?s)I stay here.*raise ValueError\("I stay here"\)'):
        env.execute()


def test_more_subtasks_than_key_groups_are_refused(env):
    env.set_max_parallelism(2)
    env.set_parallelism(4)
    env.from_collection([(1, 1)]).key_by(lambda pair: pair[0]).sum(1).print()
    with pytest.raises(ProgramError, match="parallelism 4, more than its maximum parallelism 2"):
        env.execute()


def test_batch_cannot_read_an_endless_source(env):
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    env.socket_text_stream("localhost", 1).print()
    with pytest.raises(ProgramError, match="UNBOUNDED source"):
        env.execute()


# --- input, output, keys, records -----------------------------------------------------------------------------------


def test_a_socket_that_refuses_is_told(env):
    (port,) = free_ports(1)
    assert f"localhost:{port}: Connection refused" in failure_of(env.socket_text_stream("localhost", port))


@pytest.mark.parametrize("as_folder", [False, True])
def test_an_existing_output_is_left_as_it_is(env, tmp_path, as_folder):
    out = tmp_path / "out"
    if as_folder:
        out.mkdir()
    kept = out / "1" if as_folder else out
    kept.write_text("keep")
    env.from_collection([1]).write_as_text(str(out), WriteMode.NO_OVERWRITE)
    with pytest.raises((JobExecutionError, OutputExistsError), match=r"exists.*OVERWRITE"):
        env.execute()
    assert kept.read_text() == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("place", ["/proc/nowhere/out", "/sys/out"])
def test_an_output_that_cannot_be_written_is_named_before_any_work(env, place):
    env.from_collection([1]).map(lambda v: os._exit(9)).write_as_text(place)
    with pytest.raises(JobExecutionError, match=f"Output path {place} cannot be written: "):
        env.execute()


def test_a_failed_job_leaves_no_half_output(env, tmp_path):
    env.from_sequence(1, 100_000).map(lambda n: 1 // (n - 90_000)).write_as_text(str(tmp_path / "out"))
    with pytest.raises(JobExecutionError):
        env.execute()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", [[1], {"a": 1}, {1}, object()], ids=["list", "dict", "set", "object"])
def test_a_key_that_cannot_be_one_is_told(env, key):
    message = failure_of(env.from_collection([("row", 1)]).key_by(lambda _: key).sum(1))
    assert f"of type {type(key).__name__} cannot be a key" in message
    assert "on record: ('row', 1)" in message


@pytest.mark.parametrize(
    ("rows", "field", "told"),
    [([(1, 1)], 5, "no such field"), ([(1, 1), (1, "a")], 1, "value 'a' is not a number")],
    ids=["missing field", "text among numbers"],
)
def test_sums_of_what_cannot_be_summed_are_told(env, rows, field, told):
    assert told in failure_of(env.from_collection(rows * 2).key_by(lambda pair: pair[0]).sum(field))


@pytest.mark.parametrize(
    ("key", "told"),
    [(7, "key field 7: the record has fields 0 to 1"), ("name", "key field 'name': the record has fields 0 to 1")],
)
def test_a_key_field_that_records_lack_is_named(env, key, told):
    message = failure_of(env.from_collection([("a", 1), ("b", 2)]).map(lambda v: v).key_by(key).sum(1))
    assert told in message
    assert "on record: ('" in message


def test_records_that_cannot_leave_a_task_are_told(env):
    stream = env.from_collection([1, 2, 3, 4]).map(lambda v: (v, threading.Lock()))
    for sent in (stream.rebalance(), stream.key_by(0), stream.set_buffer_timeout(0).rebalance()):
        message = failure_of(sent.map(lambda pair: pair[0]))
        assert "cannot pickle '_thread.lock' object" in message
        assert "emitted by operator 'Map'" in message
        assert re.search(r"record: \([1-4], <unlocked _thread.lock", message)
    message = failure_of(stream)
    assert "TypeError: the record cannot be pickled and sent to the client" in message
    assert "on record: (1, <unlocked _thread.lock" in message


# --- a program as a whole --------------------------------------------------------------------------------------------


def run(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "program.py").write_text(textwrap.dedent(text))
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, str(tmp_path / "program.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)


def test_a_failed_program_shows_its_lines_and_the_message_and_little_else(tmp_path):
    done = run(
        tmp_path,
        """
        from engine.datastream import StreamExecutionEnvironment
        env = StreamExecutionEnvironment.get_execution_environment()
        env.from_collection([2, 0]).map(lambda n: 10 // n).print()
        env.execute()
        """,
    )
    assert done.returncode == 1
    assert done.stdout == "5\n"
    assert "ZeroDivisionError: integer division or modulo by zero\n  in operator 'Map' on record: 0" in done.stderr
    assert len(done.stderr.splitlines()) < 15
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_program_whose_job_is_restarted_says_so_and_why(tmp_path):
    done = run(
        tmp_path,
        """
        from engine.common import RestartStrategies
        from engine.datastream import StreamExecutionEnvironment
        env = StreamExecutionEnvironment.get_execution_environment()
        env.set_restart_strategy(RestartStrategies.fixed_delay_restart(3, 10))
        env.from_collection([2, 0]).map(lambda n: 10 // n).add_sink(lambda n: None)
        env.execute("tens")
        """,
    )
    assert done.returncode == 1
    notices = re.findall(r"Job 'tens' has failed and is restarted in \d+ ms, attempt (\d): (.*)", done.stderr)
    cause = "ZeroDivisionError: integer division or modulo by zero"
    assert notices == [("1", cause), ("2", f"{cause} (2 times)")]
    assert done.stderr.count("in operator 'Map' on record: 0") == 2, "of the first failure and of the job's end"


def test_many_jobs_in_one_process_leave_nothing_behind(env):
    def state() -> tuple[int, int, int]:
        # The coordinators of remembered jobs (web.history) keep their threads, to answer their clients.
        threads = [thread for thread in threading.enumerate() if not thread.name.startswith("coordinators-")]
        return len(os.listdir("/proc/self/fd")), len(threads), len(engine_processes())

    def once() -> None:
        assert sorted(collected(env.from_collection([1, 2]).rebalance().map(lambda v: v + 1))) == [2, 3]

    for _ in range(5):
        once()
    before = state()
    for _ in range(25):
        once()
    until(lambda: all(now <= then + 2 for now, then in zip(state(), before, strict=True)), f"{before} again")


def test_a_server_that_closes_ends_the_stream_without_an_error(env):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            connection.sendall(b"one\ntwo")
            connection.close()

        threading.Thread(target=serve).start()
        lines = env.socket_text_stream("127.0.0.1", server.getsockname()[1])
        assert collected(lines) == ["one", "two"]


# --- several outputs --------------------------------------------------------------------------------------------------


def test_when_one_of_two_outputs_cannot_be_published_neither_is(env, tmp_path):
    free, taken = tmp_path / "free", tmp_path / "taken"

    def take(number):
        taken.mkdir(exist_ok=True)  # somebody else's, while the job runs
        return number

    numbers = env.from_sequence(1, 10).map(take)
    numbers.write_as_text(str(free))
    numbers.write_as_text(str(taken))
    with pytest.raises(JobExecutionError, match=r"Output path .*/taken exists now; when the job began it did not"):
        env.execute()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]
    assert list(taken.iterdir()) == []
