"""A standalone cluster over three network namespaces of one machine, as if they were hosts: JobManager and two
TaskManagers on different addresses, started over (a stand-in for) ssh, exchanging data over TCP."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Iterator

import pytest

from tests.process.network_cluster import NetworkCluster, running_network_cluster

LINES = 6000
WORDS_PER_LINE = 20
PROGRAM = f"""
import json, sys
from engine.common import Types
from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment

env = StreamExecutionEnvironment.get_execution_environment()
env.set_runtime_mode(RuntimeExecutionMode[sys.argv[1]]).set_parallelism(4)
words = (
    env.from_sequence(1, {LINES})
    .flat_map(lambda n: [(n * 31 + i) % 500 for i in range({WORDS_PER_LINE})])
    .map(lambda n: (f"a-word-that-takes-some-room-{{n:06d}}", 1))
    .key_by(lambda pair: pair[0])
    .reduce(lambda a, b: (a[0], a[1] + b[1]))
)
last = {{}}
with words.execute_and_collect("words over the net") as rows:
    for word, count in rows:
        last[word] = max(count, last.get(word, 0))
print("COUNTS", json.dumps(last))
"""


def expected_counts() -> dict[str, int]:
    return dict(
        collections.Counter(
            f"a-word-that-takes-some-room-{(n * 31 + i) % 500:06d}"
            for n in range(1, LINES + 1)
            for i in range(WORDS_PER_LINE)
        )
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[NetworkCluster]:
    with running_network_cluster(tmp_path_factory.mktemp("netns")) as found:
        yield found


def test_daemons_start_on_the_hosts_of_masters_and_workers(cluster):
    assert cluster.started.splitlines()[0] == "Starting cluster."
    assert cluster.started.count("Starting standalonesession daemon on host") == 1
    assert cluster.started.count("Starting taskexecutor daemon on host") == 2
    for name, daemon in (("jm", "standalonesession"), ("tm1", "taskexecutor"), ("tm2", "taskexecutor")):
        (pid,) = (cluster.folder / name / "pid" / f"flink-test-{daemon}.pid").read_text().split()
        spaces = (cluster.network.namespace(name), f"/proc/{pid}/ns/net")
        assert os.stat(f"/run/netns/{spaces[0]}").st_ino == os.stat(spaces[1]).st_ino


def test_taskmanagers_have_different_addresses(cluster):
    hosts = {row["id"].split(":")[0] for row in cluster.ask("/taskmanagers")["taskmanagers"]}
    assert hosts == {"10.203.0.2", "10.203.0.3"}


@pytest.mark.parametrize("mode", ["STREAMING", "BATCH"])
def test_a_hash_exchange_between_hosts_counts_exactly(cluster, mode, tmp_path):
    program = tmp_path / "words.py"
    program.write_text(PROGRAM)
    before = {name: cluster.network.received_bytes(name) for name in ("tm1", "tm2")}
    ended = cluster.run("flink", "run", str(program), mode)
    assert ended.returncode == 0, ended.stdout + ended.stderr + cluster.logs()
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("COUNTS ")]
    assert json.loads(line.removeprefix("COUNTS ")) == expected_counts()
    # Half of the records have their key's subtask on the other host.
    crossing = LINES * WORDS_PER_LINE * len("a-word-that-takes-some-room-") // 4
    if mode == "STREAMING":
        for name in before:
            assert cluster.network.received_bytes(name) - before[name] > crossing // 8, name


def test_list_finds_the_cluster_from_its_configuration(cluster):
    ended = cluster.run("flink", "list", "-a")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0] == "Waiting for response..."
