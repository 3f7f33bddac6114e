"""Hosts that are network namespaces of one machine, and a standalone cluster on them, started over (a stand-in for)
ssh. Not a test."""

from __future__ import annotations

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
from tests.testing.patience import GIVE_UP_S

__all__ = ["Network", "NetworkCluster", "running_network_cluster"]

#: An address of a network card that does not exist.
NOBODY = "02:00:00:00:00:99"


def command(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=GIVE_UP_S)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


class Network:
    """Namespaces on one bridge, which lies in a namespace of its own: removing the namespaces removes everything."""

    def __init__(self, folder: Path, num_taskmanagers: int = 2) -> None:
        self.folder = folder
        self._prefix = f"flink{os.getpid()}"
        taskmanagers = {f"tm{number}": f"10.203.0.{number + 1}" for number in range(1, num_taskmanagers + 1)}
        self.address_by_name = {"jm": "10.203.0.1", **taskmanagers}

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

    def inode(self, name: str) -> int:
        return os.stat(f"/run/netns/{self.namespace(name)}").st_ino

    def is_in(self, name: str, pid: int) -> bool:
        """Whether a process lives, on this host."""
        try:
            return os.stat(f"/proc/{pid}/ns/net").st_ino == self.inode(name)
        except OSError:  # also of one that has ended and was not waited for
            return False

    def cut(self, one: str, other: str) -> None:
        """Let nothing through between two hosts: each sends to a card that is nobody's, and is told nothing."""
        for name, peer in ((one, other), (other, one)):
            there = (self.address_by_name[peer], "lladdr", NOBODY, "nud", "permanent", "dev", "eth0")
            command("ip", "-n", self.namespace(name), "neigh", "replace", *there)

    def heal(self, one: str, other: str) -> None:
        for name, peer in ((one, other), (other, one)):
            command("ip", "-n", self.namespace(name), "neigh", "del", self.address_by_name[peer], "dev", "eth0")

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
    """Not started yet. ``config``: lines beside those that it needs."""

    def __init__(self, network: Network, *, slots: int = 2, config: str = "") -> None:
        self.network = network
        self.folder = network.folder
        self.started = ""  #: what the script said
        conf = self.folder / "conf"
        conf.mkdir()
        (self.folder / "tmp").mkdir()
        jobmanager = network.address_by_name["jm"]
        (conf / "config.yaml").write_text(
            f"jobmanager.rpc.address: {jobmanager}\ntaskmanager.numberOfTaskSlots: {slots}\n"
            f"io.tmp.dirs: {self.folder}/tmp\n{config}"
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
            timeout=GIVE_UP_S,
            stdin=subprocess.DEVNULL,
        )

    def ask(self, path: str) -> dict:
        """Return the JSON of the JobManager's REST, asked from its namespace."""
        address = self.network.address_by_name["jm"]
        code = (
            f"import urllib.request as r; print(r.urlopen('http://{address}:8081{path}', timeout=60).read().decode())"
        )
        space = self.network.namespace("jm")
        return json.loads(command("ip", "netns", "exec", space, sys.executable, "-c", code))

    def pids(self) -> list[int]:
        return [int(pid) for path in self.folder.glob("*/pid/*.pid") for pid in path.read_text().split()]

    def logs(self) -> str:
        paths = sorted(self.folder.glob("*/log/*"))
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in paths)


@contextlib.contextmanager
def running_network_cluster(
    folder: Path, *, num_taskmanagers: int = 2, slots: int = 2, config: str = ""
) -> Iterator[NetworkCluster]:
    """A cluster on hosts of its own, which ends when the block does; a clear skip where there can be none."""
    missing = "needs root" if os.geteuid() != 0 else "" if shutil.which("ip") else "needs iproute2's ip"
    if missing:
        assert os.environ.get("CI") != "true", f"network namespaces: {missing}; CI must run these tests"
        pytest.skip(f"network namespaces: {missing}")
    network = Network(folder, num_taskmanagers)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(network.remove)
        network.build()
        found = NetworkCluster(network, slots=slots, config=config)
        cleanup.callback(lambda: [end_group(pid) for pid in found.pids()])
        started = found.run("start-cluster.sh")
        assert started.returncode == 0, started.stdout + started.stderr + found.logs()
        found.started = started.stdout
        num_slots = num_taskmanagers * slots
        wait_until(lambda: found.ask("/overview")["slots-available"] == num_slots, f"free slots\n{found.logs()}")
        yield found
        stopped = found.run("stop-cluster.sh")
        assert stopped.returncode == 0, stopped.stderr
        assert stopped.stdout.count("Stopping taskexecutor daemon") == num_taskmanagers, stopped.stdout
        assert stopped.stdout.count("Stopping standalonesession daemon") == 1
        assert found.pids() == []
        assert os.listdir(found.folder / "tmp") == []
