"""Checkpoints and savepoints on real HDFS, of jobs on real YARN: exact when a container is killed, and moved on."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import (
    SMALL,
    YarnUser,
    ancestors_of,
    application_id_in,
    dashboard_in,
    eventually,
    get,
    kill_process,
    processes_of,
)

pytestmark = pytest.mark.hadoop
NUM_KEYS = 16_000
#: More than 5000 keys in each of two subtasks: written by a forked child, too.
LINES = [f"{number * 7919 % NUM_KEYS}" for number in range(3 * NUM_KEYS)]

PROGRAM = """
import os, sys, time

from engine.common import Encoder, Types, WatermarkStrategy
from engine.datastream import KeyedProcessFunction, StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource, FileSink
from engine.datastream.connectors.file_system import BucketAssigner
from engine.datastream.functions import MapFunction
from engine.datastream.state import ValueStateDescriptor

source, target, marks = sys.argv[1:]


class Slow(MapFunction):
    # slow until the file "hurry" is there

    def map(self, value):
        if not os.path.exists(f"{marks}/hurry"):
            time.sleep(0.002)
        return int(value)


class Count(KeyedProcessFunction):
    def open(self, runtime_context):
        self.total = runtime_context.get_state(ValueStateDescriptor("total", Types.LONG()))
        pid = os.getpid()
        open(f"{marks}/runs-{pid}", "w").close()
        os.register_at_fork(after_in_parent=lambda: open(f"{marks}/forks-{pid}", "w").close())

    def process_element(self, value, ctx):
        total = (self.total.value() or 0) + 1
        self.total.update(total)
        yield f"{ctx.get_current_key()} {total}"


env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(2)
if source == "endless":
    generator = DataGeneratorSource(lambda number: number * 7919 % 16000, None, 3000)
    numbers = env.from_source(generator, WatermarkStrategy.no_watermarks(), "numbers", Types.LONG()).uid("numbers")
else:
    numbers = env.read_text_file(source).map(Slow(), Types.LONG())
counted = numbers.key_by(lambda number: number, Types.LONG()).process(Count(), Types.STRING()).uid("count")
sink = FileSink.for_row_format(target, Encoder.simple_string_encoder())
sink = sink.with_bucket_assigner(BucketAssigner.base_path_bucket_assigner()).build()
counted.sink_to(sink).uid("files")
env.execute("counts")
"""

CONFIG = """
execution.runtime-mode: STREAMING
execution.checkpointing.interval: 500 ms
execution.checkpointing.dir: hdfs:///checkpointed/chk
execution.checkpointing.tolerable-failed-checkpoints: 100
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 10
restart-strategy.fixed-delay.delay: 200 ms
"""


@pytest.fixture(scope="module")
def user(hadoop: HadoopCluster, tmp_path_factory: pytest.TempPathFactory) -> YarnUser:
    user = YarnUser.create(hadoop, tmp_path_factory.mktemp("checkpoints"))
    with (user.folder / "conf" / "flink-conf.yaml").open("a") as stream:
        stream.write(CONFIG)
    user.write("counts.py", PROGRAM)
    return user


@pytest.fixture(scope="module")
def session(user: YarnUser) -> Iterator[tuple[str, str]]:
    """Two containers with a slot each: (application id, dashboard's address)."""
    done = user.session("-n", "2", "-s", "1", *SMALL, "-nm", "checkpoints", "-d")
    assert done.returncode == 0, done.stdout + done.stderr
    application_id = application_id_in(done.stdout)
    yield application_id, dashboard_in(done.stdout)
    user.session("-id", application_id, stdin="stop\n")


class Jobs:
    """Runs the program; ``marks``: where its processes leave their pids."""

    def __init__(self, user: YarnUser, session: tuple[str, str], marks: Path) -> None:
        self.user = user
        self.application_id, self.dashboard = session
        self.marks = marks

    def run(self, *words: str, source: str, target: str) -> str:
        uri = f"{self.user.hadoop.namenode_uri}{target}"
        program = str(self.user.folder / "counts.py")
        return self.id_in(self.flink("run", "-d", *words, program, source, uri, str(self.marks)))

    def flink(self, *words: str) -> str:
        done = self.user.flink(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @staticmethod
    def id_in(text: str) -> str:
        found = re.search("JobID ([0-9a-f]{32})", text)
        assert found, text
        return found[1]

    def state(self, job_id: str) -> str:
        return str(get(f"{self.dashboard}/jobs/{job_id}")["state"])

    def checkpoints(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = get(f"{self.dashboard}/jobs/{job_id}/checkpoints")
        return found

    def until_checkpointed(self, job_id: str, more: int) -> None:
        was = self.checkpoints(job_id)["counts"]["completed"]
        eventually("checkpoints", lambda: self.checkpoints(job_id)["counts"]["completed"] >= was + more, 60)

    def pids(self, kind: str) -> set[int]:
        return {int(path.name.partition("-")[2]) for path in self.marks.glob(f"{kind}-*")}

    def totals(self, savepoint: str) -> dict[int, int]:
        """What ``flink state`` says that a savepoint holds."""
        path = self.user.folder / "total.csv"
        self.flink("state", savepoint, "-u", "count", "-s", "total", "-o", str(path))
        with path.open(newline="") as stream:
            return {int(row["key"]): int(row["value"]) for row in csv.DictReader(stream)}

    def savepoint_in(self, text: str) -> str:
        found = re.search(rf"Savepoint completed\. Path: ({self.user.hadoop.namenode_uri}\S+|hdfs://\S+)", text)
        assert found, text
        return found[1]


@pytest.fixture
def jobs(user: YarnUser, session: tuple[str, str], tmp_path: Path) -> Jobs:
    (tmp_path / "marks").mkdir()
    return Jobs(user, session, tmp_path / "marks")


def everything(user: YarnUser, path: str) -> list[str]:
    """All files below a folder, hidden ones too."""
    found = [f"{folder}/{name}" for folder, _, names in user.hdfs.walk(path) for name in names]
    return sorted(name.removeprefix(f"{path}/") for name in found)


def written(user: YarnUser, path: str) -> Counter[str]:
    """The lines of a folder's finished files; there are no others."""
    names = user.hdfs.list(path)
    assert [name for name in names if not name.startswith("part-")] == []
    return Counter(user.lines(path))


def all_counts(totals: dict[int, int]) -> Counter[str]:
    return Counter(f"{key} {number}" for key, total in totals.items() for number in range(1, total + 1))


def test_a_job_whose_container_is_killed_goes_on_from_hdfs_and_writes_each_record_once(user, jobs):
    for number in range(6):
        user.put(f"/checkpointed/in/{number}.txt", "".join(f"{line}\n" for line in LINES[number::6]))
    source = f"{user.hadoop.namenode_uri}/checkpointed/in"
    job_id = jobs.run(source=source, target="/checkpointed/out")
    eventually("a child writes state", lambda: jobs.pids("forks"))
    jobs.until_checkpointed(job_id, 2)
    latest = jobs.checkpoints(job_id)["latest"]["completed"]
    assert latest["external_path"].startswith("hdfs://")
    counted, containers = jobs.pids("runs"), processes_of(jobs.application_id, "flink_yarn.taskmanager_container")
    victim = next(pid for pid in ancestors_of(min(counted)) if pid in containers)
    kill_process(victim)
    eventually("others count", lambda: jobs.pids("runs") - counted, 60)
    (jobs.marks / "hurry").touch()
    eventually("the job has finished", lambda: jobs.state(job_id) == "FINISHED", 120)
    found = jobs.checkpoints(job_id)
    assert found["counts"]["restored"] >= 1
    assert found["latest"]["restored"]["id"] >= latest["id"]
    assert written(user, "/checkpointed/out") == all_counts(Counter(map(int, LINES)))
    eventually("no checkpoint is left", lambda: user.hdfs.list("/checkpointed/chk") == [])
    assert sorted(user.hdfs.list("/checkpointed")) == ["chk", "in", "out"]


def test_a_savepoint_on_hdfs_starts_a_job_that_stops_with_another(user, jobs):
    savepoints = f"{user.hadoop.namenode_uri}/saved/points"
    first = jobs.run(source="endless", target="/saved/out-1")
    eventually("a child writes state", lambda: jobs.pids("forks"))
    jobs.until_checkpointed(first, 1)
    saved = jobs.savepoint_in(jobs.flink("savepoint", first, savepoints))
    assert saved.startswith(f"{savepoints}/savepoint-{first[:6]}-")
    jobs.until_checkpointed(first, 1)
    jobs.flink("cancel", first)
    eventually("CANCELED", lambda: jobs.state(first) == "CANCELED")
    listed = " ".join(jobs.flink("state", saved).split())
    totals = jobs.totals(saved)
    assert f"total value {len(totals)}" in listed
    assert len(totals) > 10_000
    # What the first job wrote: all that the savepoint has counted, and what came after it.
    assert not all_counts(totals) - written(user, "/saved/out-1")

    # A savepoint can be moved.
    user.hdfs.makedirs("/saved/moved")
    user.hdfs.rename(saved.removeprefix(user.hadoop.namenode_uri), "/saved/moved/it")
    saved = f"{user.hadoop.namenode_uri}/saved/moved/it"
    assert jobs.totals(saved) == totals
    second = jobs.run("-s", saved, source="endless", target="/saved/out-2")
    jobs.until_checkpointed(second, 2)
    last = jobs.savepoint_in(jobs.flink("stop", "-p", savepoints, second))
    assert jobs.state(second) == "FINISHED"
    grown = jobs.totals(last)
    assert sum(grown.values()) > sum(totals.values())
    assert written(user, "/saved/out-2") == all_counts(grown) - all_counts(totals)

    assert user.hdfs.list("/saved/points") == [last.rpartition("/")[2]]
    assert [name for name in everything(user, "/saved/points") if ".inprogress" in name] == []
    eventually("no checkpoint is left", lambda: everything(user, "/checkpointed/chk") == [])
    for path in (saved, last):
        jobs.flink("savepoint", "-d", path)
    assert user.hdfs.list("/saved/points") == user.hdfs.list("/saved/moved") == []
