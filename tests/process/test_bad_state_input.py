"""Wrong use of checkpoints, savepoints, parallelism and windows with ``flink run``: one clear message in the terminal,
exit code 1, and nothing is left running."""

from __future__ import annotations

import re

import pytest

from tests.process.script_cluster import ScriptCluster, wait_until

PROGRAM = '''
import random, sys

from engine.common import Duration, Time, Types, WatermarkStrategy
from engine.datastream import KeyedProcessFunction, StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource
from engine.datastream.state import ValueStateDescriptor
from engine.datastream.window import TumblingEventTimeWindows

how = sys.argv[1]


class Keep(KeyedProcessFunction):
    """Keeps some bytes for each key."""

    def __init__(self, size):
        self.size = size

    def open(self, runtime_context):
        self.kept = runtime_context.get_state(ValueStateDescriptor("kept", Types.PICKLED_BYTE_ARRAY()))

    def process_element(self, value, ctx):
        self.kept.update(random.randbytes(self.size))
        yield 1


env = StreamExecutionEnvironment.get_execution_environment()
source = DataGeneratorSource(int, 100_000, 1000)
numbers = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers", Types.LONG()).uid("numbers")
window = TumblingEventTimeWindows.of(Time.seconds(1))
if how == "window without a key":
    numbers.window(window)
elif how == "no timestamps":
    numbers.key_by(lambda n: n % 10).window(window).reduce(lambda a, b: a + b).uid("window").print()
elif how == "watermarks without timestamps":
    strategy = WatermarkStrategy.for_bounded_out_of_orderness(Duration.of_seconds(1))
    timed = numbers.assign_timestamps_and_watermarks(strategy)
    timed.key_by(lambda n: n % 10).window(window).reduce(lambda a, b: a + b).print()
else:
    if how == "more than the maximum":
        env.set_max_parallelism(4).set_parallelism(8)
    size = 10_000 if how == "large" else 1
    numbers.key_by(lambda n: n, Types.LONG()).process(Keep(size), Types.LONG()).uid(how).print()
env.execute(how)
'''
SECOND = ("-D", "execution.checkpointing.interval=300ms", "-D", "restart-strategy.type=none")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad-state")
    with ScriptCluster(folder, {"taskmanager.numberOfTaskSlots": "2"}) as found:
        found.start()
        (folder / "program.py").write_text(PROGRAM)
        (folder / "file").touch()
        yield found
        assert found.run("stop-cluster.sh").returncode == 0


def refused(cluster, how: str, *options: str) -> str:
    """Run the program and return what the terminal shows."""
    told = cluster.run("flink", "run", *options, str(cluster.folder / "program.py"), how)
    assert told.returncode == 1, told
    assert "Traceback" not in told.stderr
    client = cluster.client()
    ended = ("CANCELED", "FINISHED", "FAILED")
    wait_until(lambda: all(job["state"] in ended for job in client.jobs()), "nothing runs")
    wait_until(lambda: client.overview()["slots-available"] == 2, "free slots")
    return told.stderr


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        (
            "small",
            (*SECOND, "-D", "execution.checkpointing.dir=file:///proc/none"),
            r"Folder file:///proc/none \(execution\.checkpointing\.dir\) cannot be written: .* Name a folder",
        ),
        ("small", ("-s", "/no/such"), r"Savepoint /no/such does not exist\."),
        ("small", ("-s", "{folder}/file"), r"file is a file; expected the folder of a savepoint"),
        ("small", ("-s", "{folder}/log"), r"is no savepoint or checkpoint.*: it has no file _metadata"),
        ("more than the maximum", (), r"has parallelism 8, more than its maximum parallelism 4; lower the one"),
        (
            "large",
            (*SECOND, "-D", "execution.checkpointing.storage=jobmanager"),
            r"The state of the task has \d+ bytes, and the JobManager keeps at most 5242880 bytes of each task .*Set",
        ),
        ("window without a key", (), r"window\(…\) needs a key: call key_by\(…\) before it, or window_all"),
        ("no timestamps", (), r"got a record without a timestamp\. Call assign_timestamps_and_watermarks\(\)"),
        ("watermarks without timestamps", (), r"got a record without a timestamp\. Call assign_timestamps_and_"),
    ],
)
def test_what_cannot_be_is_told_in_the_terminal(cluster, how, options, message):
    told = refused(cluster, how, *(option.format(folder=cluster.folder) for option in options))
    assert re.search(message, told), told


def test_a_savepoint_of_another_job_or_for_too_many_subtasks_is_refused(cluster, tmp_path):
    program = str(cluster.folder / "program.py")
    submitted = cluster.run("flink", "run", "-d", program, "small")
    job_id = submitted.stdout.split("JobID ")[1].split()[0]
    wait_until(lambda: cluster.client().job(job_id)["state"] == "RUNNING", "RUNNING")
    path = cluster.run("flink", "savepoint", job_id, str(tmp_path)).stdout.split("Path: ")[1].split()[0]
    cluster.run("flink", "cancel", job_id)
    told = refused(cluster, "another", "-s", path)
    assert "holds state that the program has no place for: operator 'KeyedProcess' (uid 'small') has" in told
    told = refused(cluster, "small", "-s", path, "-p", "200")
    assert "was taken with a maximum parallelism of 128" in told
    assert "(uid 'small') cannot be restored with a parallelism of 200" in told
