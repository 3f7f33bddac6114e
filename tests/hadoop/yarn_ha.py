"""A job on YARN with high availability that must be exact whatever is killed, and how soon its output goes on. Not a
test."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdfs.util import HdfsError

from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import YarnUser, eventually, get, parent_of, processes_of
from tests.testing.patience import limit_once

__all__ = [
    "ExactJob",
    "environment_of",
    "ha_user",
    "java_master",
    "job_id_in",
    "job_state",
    "jobmanager_process",
    "jobmanager_processes",
    "node_host_of",
    "node_manager_of",
    "processes_on",
    "rest",
    "taskmanagers",
    "zookeeper_nodes",
]

NUM_KEYS = 500
NUM_LINES = 160_000

#: Slow until the file "hurry" is there; counts by key.
PROGRAM = """
import os, sys, time

from engine.common import Encoder, Types
from engine.datastream import KeyedProcessFunction, StreamExecutionEnvironment
from engine.datastream.connectors import FileSink
from engine.datastream.connectors.file_system import BucketAssigner
from engine.datastream.functions import MapFunction
from engine.datastream.state import ValueStateDescriptor

source, target, marks, name = sys.argv[1:]


class Slow(MapFunction):
    def map(self, value):
        if not os.path.exists(f"{marks}/hurry"):
            time.sleep(0.006)  # longer for all lines than a test has
        return int(value)


class Count(KeyedProcessFunction):
    def open(self, runtime_context):
        self.total = runtime_context.get_state(ValueStateDescriptor("total", Types.LONG()))

    def process_element(self, value, ctx):
        total = (self.total.value() or 0) + 1
        self.total.update(total)
        yield f"{ctx.get_current_key()} {total}"


with open(f"{marks}/mains-{os.getpid()}", "w"):
    pass
env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(2)
numbers = env.read_text_file(source).map(Slow(), Types.LONG())
counted = numbers.key_by(lambda number: number, Types.LONG()).process(Count(), Types.STRING())
sink = FileSink.for_row_format(target, Encoder.simple_string_encoder())
counted.sink_to(sink.with_bucket_assigner(BucketAssigner.base_path_bucket_assigner()).build())
env.execute(name)
"""

CONFIG = """
high-availability.type: zookeeper
high-availability.zookeeper.quorum: {quorum}
high-availability.storageDir: hdfs:///ha
execution.runtime-mode: STREAMING
execution.checkpointing.interval: 500 ms
execution.checkpointing.dir: hdfs:///ha-checkpoints
execution.checkpointing.tolerable-failed-checkpoints: 1000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 1000
restart-strategy.fixed-delay.delay: 200 ms
"""


def ha_user(hadoop: HadoopCluster, folder: Path) -> YarnUser:
    user = YarnUser.create(hadoop, folder)
    with (folder / "conf" / "flink-conf.yaml").open("a") as stream:
        stream.write(CONFIG.format(quorum=hadoop.zookeeper))
    user.write("exact.py", PROGRAM)
    return user


# --- processes ------------------------------------------------------------------------------------------------------


def jobmanager_process(application_id: str) -> int:
    (pid,) = jobmanager_processes(application_id)
    return pid


def jobmanager_processes(application_id: str) -> list[int]:
    """Those that a supervisor, which has the same command line, has forked; more than one where two attempts live."""
    found = processes_of(application_id, "-m flink_yarn.master_supervisor")
    parents = {pid: parent_of(pid) for pid in found}
    supervisors = {pid for pid, parent in parents.items() if parent not in parents}
    return [pid for pid, parent in parents.items() if parent in supervisors]


def java_master(application_id: str) -> int:
    found = processes_of(application_id, "skein.ApplicationMaster")
    (pid,) = [pid for pid, command in found.items() if "/bin/java " in command and "bash" not in command]
    return pid


def taskmanagers(application_id: str) -> set[int]:
    return set(processes_of(application_id, "-m flink_yarn.taskmanager_container"))


def environment_of(pid: int) -> dict[str, str]:
    """Return the variables with which a process was started; {} when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def node_manager_of(hadoop: HadoopCluster, pid: int) -> str:
    """Return the NodeManager (nm1, nm2) that started a container's process."""
    port = int(environment_of(pid)["NM_PORT"])
    (name,) = [name for name, said in hadoop.daemons().items() if port in said["ports"].values()]
    return name


def node_host_of(pid: int) -> str:
    """Return the host, in YARN's words, of the NodeManager that started a container's process; "" when it has ended."""
    return environment_of(pid).get("NM_HOST", "")


def processes_on(hadoop: HadoopCluster, node_manager: str) -> list[int]:
    """Return the pids of all containers' processes of a NodeManager."""
    port = str(hadoop.daemons()[node_manager]["ports"]["rpc"])
    folders = Path("/proc").glob("[0-9]*")
    return [int(folder.name) for folder in folders if environment_of(int(folder.name)).get("NM_PORT") == port]


def zookeeper_nodes(hadoop: HadoopCluster, path: str) -> list[str]:
    """Return the children of a node; [] when there is none."""
    from kazoo.client import KazooClient

    client = KazooClient(hadoop.zookeeper)
    client.start(timeout=60)
    try:
        return sorted(client.get_children(path)) if client.exists(path) else []
    finally:
        client.stop()
        client.close()


# --- the job --------------------------------------------------------------------------------------------------------


@dataclass
class ExactJob:
    """``marks``: a folder of this host."""

    user: YarnUser
    marks: Path
    name: str
    measured: list[str] = field(default_factory=list)
    num_lines: int = NUM_LINES

    def __post_init__(self) -> None:
        self.marks.mkdir(exist_ok=True)
        lines = [f"{number * 7919 % NUM_KEYS}" for number in range(self.num_lines)]
        for number in range(4):
            self.user.put(f"/{self.name}/in/{number}.txt", "".join(f"{line}\n" for line in lines[number::4]))

    @property
    def words(self) -> list[str]:
        """The program and its arguments, for ``flink run``."""
        root = f"{self.user.hadoop.namenode_uri}/{self.name}"
        return [str(self.user.folder / "exact.py"), f"{root}/in", f"{root}/out", str(self.marks), self.name]

    def files(self) -> set[str]:
        """Names of the files that a reader sees."""
        try:
            names = self.user.hdfs.list(f"/{self.name}/out")
        except HdfsError:
            return set()
        return {name for name in names if name.startswith("part-")}

    @staticmethod
    def most_by_subtask(files: set[str]) -> int:
        return max(Counter(name.split("-")[1] for name in files).values(), default=0)

    def until_output(self) -> None:
        eventually("the first files are finished", lambda: len(self.files()) >= 4, 90)

    def hurry(self) -> None:
        (self.marks / "hurry").touch()

    def num_mains(self) -> int:
        return len(list(self.marks.glob("mains-*")))

    def survive(self, what: str, fault: Callable[[], Any], aim_s: float, *, noticed: Callable[[], bool]) -> float:
        """Do something bad; return after how many seconds there is output that was made since, or fail.

        ``noticed``: what the engine may finish of before comes to an end with this.
        """
        begin = time.monotonic()
        fault()
        eventually(f"{what}: it is noticed", noticed, 60)
        before = self.files()
        eventually(f"{what}: a checkpoint of before is committed", lambda: self.files() - before, 90)
        committed = time.monotonic() - begin
        # A subtask closes one file a checkpoint: its second one was made since.
        eventually(f"{what}: new output", lambda: self.most_by_subtask(self.files() - before) >= 2, 60)
        made = time.monotonic() - begin
        line = f"{what}: committed after {committed:.1f} s, made after {made:.1f} s, load {os.getloadavg()[0]:.1f}"
        print(f"\n{line}", flush=True)
        self.measured.append(line)
        assert made < limit_once(aim_s), line
        return made

    def check_exact(self) -> None:
        """All results are there, once, in finished files; nothing else is."""
        folder = f"/{self.name}/out"
        hidden = [name for name in self.user.hdfs.list(folder) if not name.startswith("part-")]
        assert hidden == []
        written = Counter(self.user.lines(folder))
        by_key = Counter(number * 7919 % NUM_KEYS for number in range(self.num_lines))
        expected = Counter(f"{key} {count}" for key, total in by_key.items() for count in range(1, total + 1))
        missing, extra = expected - written, written - expected
        assert not missing and not extra, f"{missing.total()} missing, {extra.total()} too many"  # noqa: PT018


def job_id_in(text: str) -> str:
    found = re.search("JobID ([0-9a-f]{32})", text)
    assert found, text
    return found[1]


def job_state(user: YarnUser, application_id: str, job_id: str) -> str:
    """Return "" while nobody answers for it."""
    found = rest(user, application_id, f"/jobs/{job_id}")
    return str(found["state"]) if found else ""


def rest(user: YarnUser, application_id: str, path: str) -> Any:
    """Ask the application's JobManager, wherever it is now; None when it does not answer."""
    file = f"/user/{user.hadoop.user}/.skein/{application_id}/jobmanager.json"
    try:
        with user.hdfs.read(file) as stream:
            address = json.loads(stream.read())["rest"]
        return get(f"{address}{path}")
    except (HdfsError, OSError, ValueError):
        return None
