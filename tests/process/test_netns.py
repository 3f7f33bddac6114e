"""A standalone cluster over three network namespaces of one machine, as if they were hosts: JobManager and two
TaskManagers on different addresses, started over (a stand-in for) ssh, exchanging data over TCP."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.script_cluster import SCRIPTS, end_group, wait_until

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


def command(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


class Network:
    """Namespaces on one bridge, which lies in a namespace of its own: removing the namespaces removes everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prefix = f"flink{os.getpid()}"
        self.address_by_name = {"jm": "10.203.0.1", "tm1": "10.203.0.2", "tm2": "10.203.0.3"}

    def namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def build(self) -> None:
        switch = self.namespace("switch")
        command("ip", "netns", "add", switch)
        command("ip", "-n", switch, "link", "add", "bridge0", "type", "bridge")
        command("ip", "-n", switch, "link", "set", "bridge0", "up")
        for number, (name, address) in enumerate(self.address_by_name.items()):
            space = self.namespace(name)
            command("ip", "netns", "add", space)
            peer = ("peer", "name", "eth0", "netns", space)
            command("ip", "-n", switch, "link", "add", f"port{number}", "type", "veth", *peer)
            command("ip", "-n", switch, "link", "set", f"port{number}", "master", "bridge0", "up")
            command("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            command("ip", "-n", space, "link", "set", "eth0", "up")
            command("ip", "-n", space, "link", "set", "lo", "up")

    def remove(self) -> None:
        for name in (*self.address_by_name, "switch"):
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True)

    def received_bytes(self, name: str) -> int:
        return int(
            command("ip", "netns", "exec", self.namespace(name), "cat", "/sys/class/net/eth0/statistics/rx_bytes")
        )

    def write_ssh(self) -> Path:
        """A program that takes ssh's words and runs the command in the namespace of the address; what each host has
        for itself (pid and log files) is told by the environment."""
        cases = "\n".join(
            f"    {address}) space={self.namespace(name)} name={name} ;;"
            for name, address in self.address_by_name.items()
        )
        path = self.folder / "ssh"
        path.write_text(
            textwrap.dedent("""\
            #!/bin/bash
            while [[ $1 == -* ]]; do shift; done
            host=$1
            shift
            [[ $1 == -- ]] && shift
            case $host in
            CASES
                *) echo "ssh: no such host $host" >&2; exit 255 ;;
            esac
            export FLINK_PID_DIR=FOLDER/$name/pid FLINK_LOG_DIR=FOLDER/$name/log
            exec ip netns exec "$space" bash -c "$*"
            """)
            .replace("CASES", cases)
            .replace("FOLDER", str(self.folder))
        )
        path.chmod(0o755)
        return path


class NetworkCluster:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.folder = network.folder
        conf = self.folder / "conf"
        conf.mkdir()
        (self.folder / "tmp").mkdir()
        jobmanager = network.address_by_name["jm"]
        (conf / "config.yaml").write_text(
            f"jobmanager.rpc.address: {jobmanager}\ntaskmanager.numberOfTaskSlots: 2\nio.tmp.dirs: {self.folder}/tmp\n"
        )
        (conf / "masters").write_text(f"{jobmanager}:8081\n")
        workers = [address for name, address in network.address_by_name.items() if name != "jm"]
        (conf / "workers").write_text("".join(f"{address}\n" for address in workers))
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("FLINK_", "_FLINK", "PYTHON"))},
            "FLINK_CONF_DIR": str(conf),
            "FLINK_PYTHON": sys.executable,
            "FLINK_IDENT_STRING": "test",
            "FLINK_SSH": str(network.write_ssh()),
            "TMPDIR": str(self.folder / "tmp"),
        }

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.network.namespace("jm"), str(SCRIPTS / script), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
            stdin=subprocess.DEVNULL,
        )

    def ask(self, path: str) -> dict:
        """Return the JSON of the JobManager's REST, asked from its namespace."""
        address = self.network.address_by_name["jm"]
        code = f"import urllib.request as r; print(r.urlopen('http://{address}:8081{path}', timeout=5).read().decode())"
        space = self.network.namespace("jm")
        return json.loads(command("ip", "netns", "exec", space, sys.executable, "-c", code))

    def pids(self) -> list[int]:
        return [int(pid) for path in self.folder.glob("*/pid/*.pid") for pid in path.read_text().split()]

    def logs(self) -> str:
        paths = sorted(self.folder.glob("*/log/*"))
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in paths)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[NetworkCluster]:
    missing = "needs root" if os.geteuid() != 0 else "" if shutil.which("ip") else "needs iproute2's ip"
    if missing:
        assert os.environ.get("CI") != "true", f"network namespaces: {missing}; CI must run these tests"
        pytest.skip(f"network namespaces: {missing}")
    network = Network(tmp_path_factory.mktemp("netns"))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(network.remove)
        network.build()
        found = NetworkCluster(network)
        cleanup.callback(lambda: [end_group(pid) for pid in found.pids()])
        started = found.run("start-cluster.sh")
        assert started.returncode == 0, started.stdout + started.stderr + found.logs()
        found.started = started.stdout
        wait_until(lambda: found.ask("/overview")["slots-available"] == 4, f"four slots\n{found.logs()}")
        yield found
        stopped = found.run("stop-cluster.sh")
        assert stopped.returncode == 0, stopped.stderr
        assert stopped.stdout.count("Stopping taskexecutor daemon") == 2, stopped.stdout
        assert stopped.stdout.count("Stopping standalonesession daemon") == 1
        assert found.pids() == []
        assert os.listdir(found.folder / "tmp") == []


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
