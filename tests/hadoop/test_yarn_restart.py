"""A job on real YARN loses a container: it gets another one and begins anew by itself, what is on HDFS is exact."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import (
    SMALL_JOB,
    YarnUser,
    ancestors_of,
    dashboard_in,
    eventually,
    get,
    kill_process,
    processes_of,
)

pytestmark = pytest.mark.hadoop
LINES = [f"line {i}" for i in range(5000)]

HANGS_ONCE = """
import os, sys, time
from engine.common import RestartStrategies
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.functions import MapFunction

class HangsInTheFirstAttempt(MapFunction):
    def __init__(self, marker, last):
        self.marker, self.last = marker, last

    def open(self, runtime_context):
        self.attempt = runtime_context.get_attempt_number()

    def map(self, line):
        if self.attempt == 0 and line == self.last:
            with open(self.marker, "w") as stream:
                stream.write(str(os.getpid()))
            time.sleep(600)
        return line

source, target, marker, last = sys.argv[1:]
env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(2)
env.set_restart_strategy(RestartStrategies.fixed_delay_restart(3, 500))
env.read_text_file(source).map(HangsInTheFirstAttempt(marker, last)).write_as_text(target)
env.execute("hangs once")
"""


@pytest.fixture
def user(hadoop: HadoopCluster, tmp_path) -> YarnUser:
    return YarnUser.create(hadoop, tmp_path)


def test_a_job_whose_container_is_killed_restarts_by_itself_in_a_new_one(user, tmp_path):
    source = user.put("/restart/in/text.txt", "".join(f"{line}\n" for line in LINES))
    target, marker = f"{user.hadoop.namenode_uri}/restart/out", tmp_path / "pid"
    done = user.flink(
        "run", "-d", "-m", "yarn-cluster", *SMALL_JOB, "-ynm", "restarting", user.write("hangs.py", HANGS_ONCE),
        source, target, str(marker), LINES[-1],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search("JobID ([0-9a-f]{32})", done.stdout)
    assert found
    application_id = user.application_named("restarting")["id"]
    url = f"{dashboard_in(done.stdout)}/jobs/{found[1]}"
    eventually("the function hangs", lambda: marker.exists() and marker.read_text())
    containers = processes_of(application_id, "flink_yarn.taskmanager_container")
    victim = next(pid for pid in ancestors_of(int(marker.read_text())) if pid in containers)
    kill_process(victim)
    eventually("it restarts", lambda: get(url)["timestamps"]["RESTARTING"] > 0)
    eventually("the application has succeeded", lambda: _ended(user, application_id))
    assert user.application(application_id)["finalStatus"] == "SUCCEEDED"
    assert Counter(user.lines("/restart/out")) == Counter(LINES)
    assert sorted(user.hdfs.list("/restart")) == ["in", "out"]
    assert sorted(user.hdfs.list("/restart/out")) == ["1", "2"]
    eventually("no process is left", lambda: not processes_of(application_id))


def _ended(user: YarnUser, application_id: str) -> bool:
    return user.application(application_id)["state"] in ("FINISHED", "FAILED", "KILLED")
