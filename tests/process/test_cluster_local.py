"""A cluster in the program's own process: as a user's script starts it, and what is left when the script has ended."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import pytest

from engine.client.executors import execute_async
from engine.cluster import LocalCluster
from engine.core.config import Configuration
from engine.core.errors import ConfigError, JobCancelledError, JobExecutionError, ProgramError
from engine.protocol.lifecycle import JobStatus
from tests.process.cluster_jobs import ROOT, children_of, engine_processes, is_alive, operator_id, program, until
from tests.testing.patience import best_of

PROLOGUE = """
import os, sys, time
from engine.client.executors import execute_async
from engine.core.config import Configuration
from tests.process.cluster_jobs import operator_id, program
"""


def start(script: str, temp: Path, **popen) -> subprocess.Popen[str]:
    path = temp / "script.py"
    path.write_text(PROLOGUE + textwrap.dedent(script))
    scratch = temp / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(scratch)}
    return subprocess.Popen(
        [sys.executable, str(path)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen
    )


def left_over(temp: Path) -> list[Path]:
    return list((temp / "tmp").iterdir())


@pytest.fixture(scope="module")
def config():
    yield Configuration({"taskmanager.memory.process.size": "512m"})
    LocalCluster.shared(Configuration()).close()


def submit(graph, config, files=None):
    return execute_async(graph, files or {}, config)


def test_settings_of_the_first_job_are_not_those_of_all_jobs():
    settings = {"execution.checkpointing.interval": "1 s", "restart-strategy.type": "none", "rest.address": "localhost"}
    cluster = LocalCluster(Configuration().add_all(settings))
    try:
        assert set(settings) & cluster.dispatcher.config.key_set() == {"rest.address"}
    finally:
        cluster.close()


def test_a_script_prints_its_rows_and_leaves_nothing(tmp_path):
    script = start(
        """
        graph = program(lambda n: n * 2, collect=True)
        job = execute_async(graph, {}, Configuration())
        print(sorted(row for rows in job.collect_batches(operator_id(graph)) for row in rows))
        """,
        tmp_path,
    )
    out, err = script.communicate(timeout=120)
    assert (script.returncode, out, err) == (0, "[2, 4, 6]\n", "")
    assert left_over(tmp_path) == []


def test_what_a_function_prints_comes_to_the_terminal(tmp_path):
    script = start(
        """
        def show(n):
            print("saw", n)
            return n
        execute_async(program(show), {}, Configuration()).get_job_execution_result().result()
        """,
        tmp_path,
    )
    out, _ = script.communicate(timeout=120)
    assert out.splitlines() == ["saw 1", "saw 2", "saw 3"]


def test_a_script_that_raises_shows_its_error_only_and_leaves_nothing(tmp_path):
    script = start(
        """
        job = execute_async(program(lambda n: 1 // (n - 2)), {}, Configuration())
        job.get_job_execution_result().result()
        """,
        tmp_path,
    )
    _, err = script.communicate(timeout=120)
    assert script.returncode == 1
    assert err.rstrip().count("ZeroDivisionError") == 1
    assert left_over(tmp_path) == []


def test_a_job_that_fails_while_its_slot_is_made_leaves_nothing(tmp_path):
    script = start(
        """
        import asyncio
        import engine.cluster as cluster

        start_zygote = cluster._local_zygote
        async def start_slowly(*arguments):
            await asyncio.sleep(3)
            return await start_zygote(*arguments)
        cluster._local_zygote = start_slowly

        from engine.datastream import StreamExecutionEnvironment
        env = StreamExecutionEnvironment.get_execution_environment()
        env.read_text_file("/no/such/file").print()
        env.execute()
        """,
        tmp_path,
    )
    _, err = script.communicate(timeout=120)
    assert script.returncode == 1
    assert err.count("Traceback") == 1, err
    assert "Input path /no/such/file does not exist." in err
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("vectorised", [True, False])
def test_slots_find_kernels_loaded_when_the_job_has_operators_on_columns(tmp_path, vectorised):
    script = start(
        f"""
        from engine.common import Types, WatermarkStrategy
        from engine.datastream import StreamExecutionEnvironment
        from engine.datastream.connectors import DataGeneratorSource, DiscardingSink

        def made(indexes):
            print(["numba" in sys.modules, "engine.operators.warm_up.keyed" in sys.modules], flush=True)
            return indexes, indexes

        env = StreamExecutionEnvironment.get_execution_environment()
        env.set_parallelism(1)
        typed = Types.TUPLE([Types.LONG(), Types.LONG()])
        source = DataGeneratorSource.of_columns(made, 3, typed)
        stream = env.from_source(source, WatermarkStrategy.no_watermarks(), "source")
        if {vectorised}:
            stream = stream.key_by(0).sum(1)
        stream.sink_to(DiscardingSink())
        env.execute()
        """,
        tmp_path,
    )
    out, err = script.communicate(timeout=120)
    assert (script.returncode, err) == (0, "")
    assert set(out.splitlines()) == {str([vectorised, vectorised])}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything_within_a_few_seconds(tmp_path, number):
    folders = itertools.count()

    def end_one() -> float:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        script = start(
            """
            def sleep(n):
                print("sleeping", flush=True)
                time.sleep(600)
            execute_async(program(sleep), {}, Configuration()).get_job_execution_result().result()
            """,
            folder,
            start_new_session=True,
        )
        assert script.stdout is not None
        assert script.stdout.readline() == "sleeping\n"
        family = children_of(script.pid)
        assert len(family) >= 2
        begun = time.monotonic()
        script.send_signal(number)
        script.communicate(timeout=120)
        took = time.monotonic() - begun
        assert script.returncode == -number
        until(lambda: not any(is_alive(pid) for pid in family), "children ended")
        assert left_over(folder) == []
        return took

    best_of(end_one, 4, "seconds until a script has ended")


def test_a_killed_script_leaves_no_process(tmp_path):
    script = start(
        """
        def sleep(n):
            print("sleeping", flush=True)
            time.sleep(600)
        execute_async(program(sleep), {}, Configuration()).get_job_execution_result().result()
        """,
        tmp_path,
    )
    assert script.stdout is not None
    assert script.stdout.readline() == "sleeping\n"
    family = children_of(script.pid)
    script.kill()
    script.communicate()
    until(lambda: not any(is_alive(pid) for pid in family), "children ended")


def test_the_folder_of_a_killed_script_is_removed_by_the_next_cluster(tmp_path):
    script = start(
        """
        execute_async(program(lambda n: n), {}, Configuration()).get_job_execution_result().result()
        if len(sys.argv) == 1:
            os.kill(os.getpid(), 9)
        """,
        tmp_path,
    )
    script.communicate(timeout=120)
    assert left_over(tmp_path) != []
    next_script = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), "end"],
        env={**os.environ, "PYTHONPATH": ROOT, "TMPDIR": str(tmp_path / "tmp")},
        timeout=120,
    )
    assert next_script.returncode == 0
    assert left_over(tmp_path) == []


def test_the_first_result_comes_quickly_in_a_fresh_process(tmp_path):
    """On an idle machine it takes 0.4 s, of which an interpreter with numpy and pyarrow needs half."""
    folders = itertools.count()

    def ratio() -> float:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        begun = time.monotonic()
        subprocess.run([sys.executable, "-c", "import numpy, pyarrow, asyncio, cloudpickle"], check=True, timeout=120)
        bare = time.monotonic() - begun
        script = start(
            """
            graph = program(lambda n: n, collect=True)
            begun = time.monotonic()
            job = execute_async(graph, {}, Configuration())
            next(iter(job.collect_batches(operator_id(graph))))
            print(time.monotonic() - begun)
            """,
            folder,
        )
        out, err = script.communicate(timeout=120)
        assert script.returncode == 0, err
        return float(out) / bare

    best_of(ratio, 3.0, "time to the first result over that of an interpreter", times=10)


def test_jobs_of_growing_parallelism_get_the_slots_that_they_need(config):
    for parallelism in (1, 4, 2, 6):
        graph = program(lambda n: n, 100, parallelism=parallelism, collect=True)
        job = submit(graph, config)
        rows = sorted(row for rows in job.collect_batches(operator_id(graph)) for row in rows)
        assert rows == list(range(1, 101))


def test_jobs_run_at_once_and_are_cancelled_one_by_one(config):
    def sleep(n):
        time.sleep(600)

    jobs = [submit(program(sleep), config) for _ in range(2)]
    for job in jobs:
        until(lambda job=job: job.get_job_status().result() is JobStatus.RUNNING, "running")
        job.cancel().result()
        with pytest.raises(JobCancelledError):
            job.get_job_execution_result().result(120)


def test_the_zygote_may_die_and_a_later_job_runs(config):
    graph = program(lambda n: n, collect=True)
    assert list(submit(graph, config).collect_batches(operator_id(graph)))
    zygotes = engine_processes()
    for pid in zygotes:
        with contextlib.suppress(ProcessLookupError):  # a slot ends with its zygote
            os.kill(pid, signal.SIGKILL)
    graph = program(lambda n: n, collect=True)
    rows = [row for rows in submit(graph, config).collect_batches(operator_id(graph)) for row in rows]
    assert rows == [1, 2, 3]


def test_a_submitted_job_without_its_file_is_refused(config, tmp_path):
    import dataclasses

    from engine.protocol.control import UserFile

    graph = dataclasses.replace(program(lambda n: n), files=(UserFile("a.txt", "0" * 64, 1, "file"),))
    with pytest.raises(ProgramError, match=r"a\.txt"):
        submit(graph, config)


def test_files_are_in_the_slot_under_their_names(config, tmp_path):
    import dataclasses
    import hashlib

    from engine.protocol.control import UserFile

    source = tmp_path / "answer.py"
    source.write_text("ANSWER = 42\n")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()

    def look(n):
        import answer

        return answer.ANSWER

    graph = program(look, (1,), collect=True)
    graph = dataclasses.replace(graph, files=(UserFile("answer.py", digest, 12, "module"),))
    job = submit(graph, config, {digest: str(source)})
    assert list(job.collect_batches(operator_id(graph))) == [[42]]


def test_requirements_that_cannot_be_installed_fail_the_job_with_pips_words(config, tmp_path):
    import dataclasses
    import hashlib

    from engine.protocol.control import UserFile

    source = tmp_path / "requirements.txt"
    source.write_text(f"{tmp_path}/no-such-package.whl\n")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    file = UserFile("requirements.txt", digest, source.stat().st_size, "requirements")
    graph = dataclasses.replace(program(lambda n: n), files=(file,))
    with pytest.raises(JobExecutionError, match=r"(?s)python\.requirements.*no-such-package"):
        submit(graph, config, {digest: str(source)}).get_job_execution_result().result(120)


def test_requirements_are_installed_for_the_job(config, tmp_path):
    import dataclasses
    import hashlib
    import zipfile

    from engine.protocol.control import UserFile

    wheel = tmp_path / "tinything-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinything.py", "VALUE = 'tiny'\n")
        archive.writestr("tinything-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n")
        archive.writestr(
            "tinything-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinything-1.0.dist-info/RECORD", "")
    source = tmp_path / "requirements.txt"
    source.write_text(f"{wheel}\n")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()

    def look(n):
        import tinything

        return tinything.VALUE

    file = UserFile("requirements.txt", digest, source.stat().st_size, "requirements")
    graph = dataclasses.replace(program(look, (1,), collect=True), files=(file,))
    job = submit(graph, config, {digest: str(source)})
    assert list(job.collect_batches(operator_id(graph))) == [["tiny"]]


def test_idle_slots_go_and_come_again():
    cluster = LocalCluster(Configuration({"resourcemanager.taskmanager-timeout": "200 ms"}))
    try:
        for _ in range(2):
            job_id = cluster.submit(program(abs), {})
            graph = until(lambda job_id=job_id: cluster.result(job_id, 0.1), "the job's end")
            assert graph.status is JobStatus.FINISHED
            until(lambda: not cluster.dispatcher.taskmanagers(), "idle TaskManager released")
    finally:
        cluster.close()


def test_an_unknown_key_is_told_on_the_terminal(tmp_path):
    script = start(
        """
        config = Configuration({"paralelism.default": "2"})
        execute_async(program(abs), {}, config).get_job_execution_result().result()
        """,
        tmp_path,
    )
    _, err = script.communicate(timeout=120)
    assert (
        err == "Configuration key paralelism.default is unknown and has no effect. Did you mean parallelism.default?\n"
    )


def test_an_interpreter_that_is_missing_fails_the_job_by_name(config):
    import dataclasses

    graph = program(lambda n: n)
    graph = dataclasses.replace(graph, config={**graph.config, "python.executable": "/no/such/python"})
    with pytest.raises(JobExecutionError, match="/no/such/python"):
        submit(graph, config).get_job_execution_result().result(120)


def test_rest_is_served_when_its_port_is_configured():
    cluster = LocalCluster(Configuration({"rest.port": "0"}))
    try:
        with urllib.request.urlopen(f"{cluster.rest_address}/overview", timeout=60) as answer:
            assert answer.status == 200
    finally:
        cluster.close()


def test_a_bad_value_is_an_error_of_the_caller():
    with pytest.raises(ConfigError, match=r"heartbeat\.timeout is 'long'"):
        LocalCluster(Configuration({"heartbeat.timeout": "long"}))
