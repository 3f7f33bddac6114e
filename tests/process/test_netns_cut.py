"""One TaskManager cannot reach the JobManager for half a minute, while it reaches its peers: the job goes on elsewhere,
exactly once, and what was cut off ends by itself and has written nothing."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.network_cluster import NetworkCluster, running_network_cluster
from tests.process.script_cluster import wait_until
from tests.process.test_exactly_once_files import hidden, written
from tests.testing.patience import limit_once

CUT_S = 30.0
HEARTBEAT_TIMEOUT_S = 8.0
#: For noticing it, the end of processes, and a busy host.
MARGIN_S = 10.0
#: A TaskManager connects anew every few seconds.
BACK_S = 15.0
NUM_LINES = 100_000
NUM_KEYS = 37
CONFIG = """heartbeat.interval: 1000
heartbeat.timeout: 8000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 1000
restart-strategy.fixed-delay.delay: 200 ms
execution.runtime-mode: STREAMING
execution.checkpointing.interval: 300 ms
execution.checkpointing.tolerable-failed-checkpoints: 100
taskmanager.network.compression.codec: LZ4
"""

PROGRAM = """
import os, pathlib, sys, time
from engine.common import Encoder, Types
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import FileSink
from engine.datastream.functions import KeyedProcessFunction, MapFunction
from engine.state.descriptors import ValueStateDescriptor

folder = sys.argv[1]

class Slow(MapFunction):
    def open(self, runtime_context):
        self.is_slow = True

    def map(self, value):
        if self.is_slow:
            time.sleep(0.002)
            self.is_slow = not os.path.exists(f"{folder}/hurry")
        return value

class Count(KeyedProcessFunction):
    def open(self, runtime_context):
        self.count = runtime_context.get_state(ValueStateDescriptor("count", Types.LONG()))
        attempt = runtime_context.get_attempt_number()
        pathlib.Path(f"{folder}/tasks/{attempt}-{os.getpid()}").touch()

    def process_element(self, value, ctx):
        count = (self.count.value() or 0) + 1
        self.count.update(count)
        yield f"{ctx.get_current_key()} {count}"

env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(2)
keys = env.read_text_file(f"{folder}/in").map(Slow(), Types.STRING()).key_by(lambda key: key)
sink = FileSink.for_row_format(f"{folder}/out", Encoder.simple_string_encoder()).build()
keys.process(Count(), Types.STRING()).sink_to(sink)
env.execute("cut")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[NetworkCluster]:
    """Three TaskManagers with a slot each, so that a job of two has one on either and one is to spare."""
    folder = tmp_path_factory.mktemp("cut")
    config = f"{CONFIG}execution.checkpointing.dir: {folder}/checkpoints\n"
    with running_network_cluster(folder, num_taskmanagers=3, slots=1, config=config) as found:
        yield found


class Job:
    def __init__(self, cluster: NetworkCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        for name in ("in", "tasks"):
            (folder / name).mkdir()
        lines = [f"k{number * 7919 % NUM_KEYS}" for number in range(NUM_LINES)]
        for number in range(4):
            (folder / "in" / f"{number}.txt").write_text("".join(f"{line}\n" for line in lines[number::4]))
        self.expected = Counter[str]()
        for key, total in Counter(lines).items():
            self.expected.update(f"{key} {count}" for count in range(1, total + 1))
        program = folder / "cut.py"
        program.write_text(PROGRAM)
        submitted = cluster.run("flink", "run", "-d", str(program), str(folder))
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr + cluster.logs()
        self.job_id = submitted.stdout.split("JobID ")[1].split()[0]

    def tasks(self) -> list[tuple[int, str]]:
        """Return (number of the attempt, host) of every counting task whose process lives."""
        found = []
        for path in (self.folder / "tasks").iterdir():
            attempt, pid = map(int, path.name.split("-"))
            hosts = [host for host in self.cluster.network.address_by_name if self.cluster.network.is_in(host, pid)]
            found += [(attempt, host) for host in hosts]
        return sorted(found)

    def parts(self) -> set[str]:
        """Names of the files that a reader sees."""
        return {str(path) for path in (self.folder / "out").rglob("part-*")}

    def seconds_to_output(self, seen: set[str], begin: float) -> float:
        wait_until(lambda: self.parts() - seen, f"output\n{self.cluster.logs()}")
        return time.monotonic() - begin

    def state(self) -> str:
        return str(self.cluster.ask(f"/jobs/{self.job_id}")["state"])


def test_a_task_manager_cut_off_from_the_job_manager_ends_its_tasks_and_the_job_goes_on(cluster, tmp_path):
    job = Job(cluster, tmp_path)
    wait_until(lambda: len(job.parts()) >= 4, f"the first files\n{cluster.logs()}", 60)
    before = job.tasks()
    (attempt,) = {number for number, _ in before}
    hosts = [host for _, host in before]
    assert len(set(hosts)) == 2, before
    lost = hosts[0]

    cluster.network.cut("jm", lost)
    begin = time.monotonic()
    try:
        wait_until(
            lambda: not any(host == lost for _, host in job.tasks()),
            f"the tasks of {lost} have ended by themselves\n{cluster.logs()}",
            HEARTBEAT_TIMEOUT_S + MARGIN_S,
        )
        ended_s = time.monotonic() - begin
        assert ended_s < limit_once(HEARTBEAT_TIMEOUT_S + MARGIN_S)
        wait_until(lambda: len(job.tasks()) == 2, f"two tasks elsewhere\n{cluster.logs()}")
        seen = job.parts()
        output_s = job.seconds_to_output(seen, begin)
        print(f"\n{lost} cut off: its tasks ended after {ended_s:.1f} s, output again after {output_s:.1f} s")
        while time.monotonic() < begin + CUT_S:
            tasks = job.tasks()
            assert all(host != lost and number > attempt for number, host in tasks), tasks
            time.sleep(0.2)
        after = job.tasks()
    finally:
        cluster.network.heal("jm", lost)
    wait_until(lambda: cluster.ask("/overview")["slots-total"] == 3, f"{lost} is back\n{cluster.logs()}", 60)
    seen = job.parts()
    back_s = time.monotonic() - begin - CUT_S
    print(f"{lost} is back {back_s:.1f} s after that")
    assert back_s < limit_once(BACK_S)
    job.seconds_to_output(seen, time.monotonic())
    assert job.tasks() == after, "its return disturbs nobody"
    (tmp_path / "hurry").touch()
    wait_until(lambda: job.state() == "FINISHED", f"the end\n{cluster.logs()}", 120)
    assert written(tmp_path / "out") == job.expected
    assert hidden(tmp_path / "out") == []
    # What is cut off ends by its own clock: its peer may say so, and the job be restarted, just before the JobManager
    # misses the heartbeat. Nothing else may have failed.
    entries = cluster.ask(f"/jobs/{job.job_id}/exceptions")["exceptionHistory"]["entries"]
    address = cluster.network.address_by_name[lost]
    assert 1 <= len(entries) <= 2, entries
    assert all(address in json.dumps(entry) for entry in entries), entries
