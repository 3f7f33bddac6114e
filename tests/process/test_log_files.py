"""Log and .out files of real daemons stay within their bounds, whoever prints, and however much."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.process.script_cluster import ScriptCluster, wait_until
from tests.unit.core.test_rolling_file import content_of, files_of

SIZE, BACKUPS = 16 << 10, 3

#: Each subtask prints 400 KB itself and through a child process; the last words are looked for.
PRINTING = """
import os, subprocess, sys
from engine.datastream import StreamExecutionEnvironment

def talk(number):
    for line in range(5000):
        print(f"<{number} says line {line:05d} of many, which is quite long enough to fill files {line:05d}>")
    sys.stderr.write(f"<{number} complains {'a lot ' * 20}>\\n")
    subprocess.run(["echo", f"<{number} has a child that prints>"])
    print(f"<{number} says its last word>")
    return number

env = StreamExecutionEnvironment.get_execution_environment()
env.from_collection(list(range(4))).map(talk).print()
env.execute("talkative")
"""


#: The JobManager's log has a few lines of each job.
SEVERAL = """
from engine.datastream import StreamExecutionEnvironment

env = StreamExecutionEnvironment.get_execution_environment()
for number in range(8):
    env.from_collection([number]).map(str).print()
    env.execute(f"one of several, number {number}")
"""


@pytest.fixture
def cluster(tmp_path):
    config = {"env.log.max-size": SIZE, "env.log.max": BACKUPS}
    with ScriptCluster(tmp_path / "cluster", config) as found:
        yield found


def out_of(cluster: ScriptCluster, daemon: str = "taskexecutor") -> Path:
    (path,) = cluster.log.glob(f"flink-test-{daemon}-0-*.out")
    return path


def writers_of(cluster: ScriptCluster, daemon: str = "taskexecutor") -> list[int]:
    """Return the processes through which the daemon prints."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            path = str(out_of(cluster, daemon)).encode()
            if any(word.endswith(b"rolling_file.py") for word in words) and path in words:
                found.append(int(folder.name))
    return found


def test_what_functions_print_is_bounded_and_its_end_is_kept(cluster, tmp_path):
    cluster.start()
    (tmp_path / "job.py").write_text(PRINTING)
    ended = cluster.flink("run", "-p", "2", tmp_path / "job.py")
    assert ended.returncode == 0, ended.stdout + ended.stderr + cluster.logs()
    path = out_of(cluster)
    wait_until(lambda: "<3 says its last word>" in content_of(path), "the last words")
    files = files_of(path)
    assert len(files) == BACKUPS + 1
    assert sum(one.stat().st_size for one in files) <= (BACKUPS + 1) * SIZE
    lines = [line for line in content_of(path).splitlines() if line.startswith("<")]
    assert "<3 has a child that prints>" in lines
    said = [line for line in lines if re.fullmatch(r"<3 says line (\d{5}) of many, .* files \1>", line)]
    assert len(said) > 200
    # What is kept is kept without a gap, up to the end.
    assert [int(line[13:18]) for line in said] == list(range(5000 - len(said), 5000))
    # The dashboard reads the newest of these files.
    (taskmanager,) = cluster.client().taskmanagers()
    listed = cluster.get(f"/taskmanagers/{taskmanager['id']}/logs")["logs"]
    assert {one["name"] for one in listed} >= {one.name for one in files}


def test_a_writer_of_output_that_is_killed_is_replaced_and_ends_with_its_daemon(cluster, tmp_path):
    cluster.start()
    before = writers_of(cluster)
    assert len(before) == 1
    os.kill(before[0], signal.SIGKILL)
    (tmp_path / "job.py").write_text(PRINTING)
    ended = cluster.flink("run", "-p", "2", tmp_path / "job.py")
    assert ended.returncode == 0, ended.stdout + ended.stderr + cluster.logs()
    wait_until(lambda: "<3 says its last word>" in content_of(out_of(cluster)), "the last word")
    after = writers_of(cluster)
    assert len(after) == 1
    assert after != before
    assert cluster.run("stop-cluster.sh").returncode == 0
    wait_until(lambda: not writers_of(cluster) and not writers_of(cluster, "standalonesession"), "no writer is left")


def test_logs_of_daemons_are_rolled_while_they_run_and_start_anew_with_each_start(tmp_path):
    config = {"env.log.max-size": 1024, "env.log.max": 2, "env.log.level": "DEBUG"}
    with ScriptCluster(tmp_path / "cluster", config) as cluster:
        cluster.start()
        (tmp_path / "job.py").write_text(SEVERAL)
        ended = cluster.flink("run", tmp_path / "job.py")
        assert ended.returncode == 0, ended.stdout + ended.stderr + cluster.logs()
        (path,) = cluster.log.glob("flink-test-standalonesession-0-*.log")
        wait_until(lambda: len(files_of(path)) == 3, "the JobManager's log is rolled twice")
        assert cluster.run("stop-cluster.sh").returncode == 0
        wait_until(lambda: not writers_of(cluster, "standalonesession"), "it has ended")
        assert all(one.stat().st_size <= 1024 for one in files_of(path))
        ended = [one.read_text() for one in files_of(path)]
        assert " has ended" in ended[-1]
        assert cluster.run("jobmanager.sh", "start").returncode == 0
        assert len(files_of(path)) == 3
        assert "has ended" not in path.read_text()


def test_what_a_daemon_says_last_is_in_its_out_file_when_it_has_ended(cluster):
    cluster.start()
    failed = cluster.run("jobmanager.sh", "start")  # its port is taken
    assert failed.returncode == 1
    assert "The jobmanager ends: " in failed.stderr, failed.stderr
    assert subprocess.run(["grep", "-c", "in use", *map(str, cluster.log.glob("*-1-*.out"))], check=True)
