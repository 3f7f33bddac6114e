"""What a program loads and starts before its first result: counted, as times say nothing on a busy machine."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from engine.runtime.taskmanager.zygote_start import Prepared
from tests.process.cluster_jobs import ROOT, until

#: Stands for pandas, and notes who asks for it.
ASKED = (
    "import os\nwith open(os.environ['ASKED'], 'a') as note:\n    note.write(f'{os.getpid()} ')\nraise ImportError\n"
)
PROGRAM = """
import sys
from engine.common import Duration, Time, Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.aggregates import avg, count, count_distinct, max_, sum_
from engine.datastream.connectors import DataGeneratorSource
from engine.datastream.window import TumblingEventTimeWindows

def made(indexes):
    from engine.core.arrow_arrays import arrow_of
    text = arrow_of(indexes % 7).cast("string")
    return text, indexes % 5, indexes / 4, indexes

env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(2)
typed = Types.ROW_NAMED(["word", "user", "amount", "ts"], [Types.STRING(), Types.LONG(), Types.DOUBLE(), Types.LONG()])
source = DataGeneratorSource.of_columns(made, 20_000, typed)
times = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(5)).with_timestamp_field("ts")
stream = env.from_source(source, times, "numbers")
def windows(stream, *aggregates):
    return stream.window(TumblingEventTimeWindows.of(Time.seconds(10))).aggregate(*aggregates)
jobs = {
    "sum by number": lambda: stream.key_by("user").sum("amount"),
    "choice by text": lambda: stream.key_by("word").max_by("amount"),
    "windows by both": lambda: windows(stream.key_by("user", "word"), count(), sum_("amount"), max_("ts")),
    "distinct": lambda: windows(stream.key_by("word"), avg("ts"), count_distinct("user")),
    "others": lambda: stream.map_batches(lambda batch: batch, typed).key_by("user").sum("amount"),
}
with jobs[sys.argv[1]]().execute_and_collect() as results:
    print(sum(1 for _ in results) > 0)
"""


def run(folder: Path, program: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(textwrap.dedent(program))
    return subprocess.run(
        [sys.executable, str(folder / "program.py"), *arguments],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "TMPDIR": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def asked_for_pandas(folder: Path, job: str) -> str:
    (folder / "pandas").mkdir()
    (folder / "pandas" / "__init__.py").write_text(ASKED)
    note = folder / "note"
    done = run(folder, PROGRAM, job, ASKED=str(note))
    assert (done.stdout, done.stderr) == ("True\n", "")
    return note.read_text() if note.exists() else ""


@pytest.mark.parametrize("job", ["sum by number", "choice by text", "windows by both", "distinct"])
def test_columns_are_aggregated_without_pandas(tmp_path, job):
    assert asked_for_pandas(tmp_path, job) == ""


def test_what_converts_in_other_ways_finds_pandas_looked_for_once_for_all_slots(tmp_path):
    assert len(set(asked_for_pandas(tmp_path, "others").split())) == 1


def test_a_program_builds_its_job_without_what_is_long_to_load(tmp_path):
    program = """
    import sys
    import engine.datastream, engine.datastream.connectors, engine.common
    heavy = {"numpy", "pyarrow", "pandas", "numba", "grpc", "starlette", "asyncio", "engine.cluster", "polars"}
    print(sorted(heavy & set(sys.modules)))
    import engine.cluster
    print(sorted((heavy - {"asyncio", "engine.cluster"}) & set(sys.modules)))
    """
    done = run(tmp_path, program)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


MAKES_ENVIRONMENT = """
import os, signal, sys
from engine.datastream import StreamExecutionEnvironment
from engine.runtime.taskmanager.zygote_start import PREPARED
env = StreamExecutionEnvironment.get_execution_environment()
print(PREPARED._started.process.pid, flush=True)
"""


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "raise SystemExit(0)"])
def test_a_program_that_executes_nothing_leaves_no_process_and_says_nothing(tmp_path, end):
    done = run(tmp_path, MAKES_ENVIRONMENT + end)
    assert done.stderr == ""
    until(lambda: not psutil.pid_exists(int(done.stdout)), "the zygote has ended")


def test_slots_are_forked_from_the_process_that_was_started_with_the_environment(tmp_path):
    program = (
        MAKES_ENVIRONMENT
        + """
stream = env.from_collection([1]).map(lambda one: os.getppid())
with stream.execute_and_collect() as results:
    print(list(results)[0])
"""
    )
    done = run(tmp_path, program)
    first, second = done.stdout.split()
    assert (first, done.stderr) == (second, "")


def test_a_plan_and_a_remote_environment_start_no_process(tmp_path):
    program = """
    from engine.datastream import StreamExecutionEnvironment
    from engine.runtime.taskmanager.zygote_start import PREPARED
    StreamExecutionEnvironment.create_remote_environment("localhost", 1)
    print(PREPARED._started)
    """
    assert run(tmp_path, program).stdout == "None\n"
    (tmp_path / "context").write_text('{"configuration": {}, "mode": "plan", "result_file": ""}')
    program = program.replace('create_remote_environment("localhost", 1)', "get_execution_environment()")
    assert run(tmp_path, program, _FLINK_CLIENT_CONTEXT=str(tmp_path / "context")).stdout == "None\n"


def change_environment(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("SOME_VARIABLE", "other")


def change_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)


def test_a_process_that_was_started_ahead_is_taken_once():
    prepared = Prepared()
    prepared.start()
    prepared.start()  # there is one
    taken = prepared.take(sys.executable)
    assert taken is not None
    assert prepared.take(sys.executable) is None
    taken.socket.close()
    assert taken.process.wait(30) == 0


@pytest.mark.parametrize("change", [change_environment, change_folder])
def test_a_process_from_before_the_program_changed_what_slots_inherit_is_not_used(change, monkeypatch, tmp_path):
    prepared = Prepared()
    prepared.start()
    process = prepared._started.process
    change(monkeypatch, tmp_path)
    assert prepared.take(sys.executable) is None
    assert process.returncode is not None


def test_slots_of_another_interpreter_have_a_process_of_their_own():
    prepared = Prepared()
    prepared.start()
    assert prepared.take("/another/python") is None
    prepared.discard()
