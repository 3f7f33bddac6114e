"""Commands of a user of YARN, as subprocesses, and what tests ask of YARN and of the processes of an application."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdfs.util import HdfsError

from tests.hadoop.conftest import HadoopCluster
from tests.testing.patience import DEADLINE_S, until

ROOT = Path(__file__).resolve().parents[2]
HEARTBEAT_TIMEOUT_S = 8.0  #: of all that a ``YarnUser`` starts
SMALL = ("-jm", "768", "-tm", "768")
SMALL_JOB = ("-yjm", "768", "-ytm", "768")


def get(url: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as answer:
        text = answer.read().decode()
    return json.loads(text) if text.startswith(("{", "[")) else text


def eventually(what: str, holds: Callable[[], Any], timeout_s: float = DEADLINE_S) -> Any:
    """Return the first true value of ``holds``; fail when there is none in time."""
    return until(holds, what, timeout_s, pause_s=0.1)


@dataclass(frozen=True)
class YarnUser:
    """Runs ``flink`` and ``yarn-session.sh`` with a configuration folder of its own."""

    hadoop: HadoopCluster
    folder: Path

    @classmethod
    def create(cls, hadoop: HadoopCluster, folder: Path) -> YarnUser:
        (folder / "conf").mkdir()
        (folder / "conf" / "flink-conf.yaml").write_text(
            f"yarn.properties-file.location: {folder}\n"
            f"heartbeat.interval: 2000\nheartbeat.timeout: {HEARTBEAT_TIMEOUT_S * 1000:.0f}\n"
        )
        return cls(hadoop, folder)

    @property
    def temporary(self) -> Path:
        """Where its commands put temporary files: of this user alone."""
        return self.folder / "tmp"

    @property
    def env(self) -> dict[str, str]:
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        self.temporary.mkdir(exist_ok=True)
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        # A home of our own shows what is written there; the cache stays, packing costs seconds.
        return {
            **self.hadoop.env,
            "FLINK_CONF_DIR": str(self.folder / "conf"),
            "FLINK_PYTHON": sys.executable,
            "HOME": str(home),
            "TMPDIR": str(self.temporary),
            "XDG_CACHE_HOME": cache,
            "USER": self.hadoop.user,
        }

    def run(
        self, script: str, *words: str, stdin: str = "", timeout_s: float = 240, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "scripts" / script), *words],
            env={**self.env, **env},
            input=stdin,
            text=True,
            capture_output=True,
            timeout=timeout_s,
            cwd=self.folder,
        )

    def session(self, *words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("yarn-session.sh", *words, stdin=stdin, **env)

    def flink(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("flink", *words, **env)

    def run_yarn(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Hadoop's own command."""
        return subprocess.run(["yarn", *words], env=self.env, text=True, capture_output=True, timeout=240)

    def write(self, name: str, source: str) -> str:
        path = self.folder / name
        path.write_text(source)
        return str(path)

    # --- HDFS ---

    @property
    def hdfs(self) -> Any:
        import hdfs

        return hdfs.InsecureClient(self.hadoop.webhdfs_url, user=self.hadoop.user)

    def put(self, path: str, text: str) -> str:
        for attempt in range(5):
            try:
                self.hdfs.write(path, text.encode(), overwrite=True)
                break
            except HdfsError:
                # A DataNode finds out at its next call that the NameNode was restarted by an earlier test.
                if attempt == 4:
                    raise
                time.sleep(0.5)
        return f"{self.hadoop.namenode_uri}{path}"

    def lines(self, path: str) -> list[str]:
        """Return the lines of a file, or of all files of a folder."""
        client = self.hdfs
        found: list[str] = []
        is_folder = client.status(path)["type"] == "DIRECTORY"
        for name in client.list(path) if is_folder else [""]:
            with client.read(f"{path}/{name}".rstrip("/")) as stream:
                found += stream.read().decode().splitlines()
        return found

    # --- YARN ---

    def application(self, application_id: str) -> dict[str, Any]:
        found: dict[str, Any] = get(f"{self.hadoop.rm_url}/ws/v1/cluster/apps/{application_id}")["app"]
        return found

    def application_named(self, name: str) -> dict[str, Any]:
        apps = (get(f"{self.hadoop.rm_url}/ws/v1/cluster/apps")["apps"] or {}).get("app", [])
        found = [app for app in apps if app["name"] == name]
        assert len(found) == 1, [app["name"] for app in apps]
        return found[0]

    def running_applications(self) -> list[str]:
        states = "NEW,SUBMITTED,ACCEPTED,RUNNING"
        apps = get(f"{self.hadoop.rm_url}/ws/v1/cluster/apps?states={states}")["apps"] or {}
        return [app["id"] for app in apps.get("app", [])]


def application_id_in(text: str) -> str:
    match = re.search(r"application_\d+_\d+", text)
    assert match, text
    return match[0]


def dashboard_in(text: str) -> str:
    match = re.search(r"JobManager Web Interface: (http://\S+)", text)
    assert match, text
    return match[1]


def processes_of(application_id: str, word: str = "") -> dict[int, str]:
    """Return pid → command line of all processes of an application, wherever they are."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if f"/{application_id}/".encode() in environment and word in command and state != "Z" and command:
            found[int(folder.name)] = command
    return found


def parent_of(pid: int) -> int:
    """Return 0 when the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def ancestors_of(pid: int) -> list[int]:
    """Return a process and those that it comes from, nearest first."""
    found = []
    while pid > 1:
        found.append(pid)
        pid = parent_of(pid)
    return found


def kill_process(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def skein_drivers(environment_word: str) -> list[int]:
    """Return the pids of skein's driver processes that were started with this word in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_driver = b"com.anaconda.skein.Driver" in (folder / "cmdline").read_bytes()
            if is_driver and environment_word.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


WORD_COUNT = """
import sys
from engine.common import ParameterTool
from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment

def main():
    parameters = ParameterTool.from_args(sys.argv[1:])
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_runtime_mode(RuntimeExecutionMode.BATCH)
    env.set_parallelism(2)
    lines = env.read_text_file(parameters.get("input"))
    counts = lines.flat_map(lambda line: [(word, 1) for word in line.split()]).key_by(lambda pair: pair[0]).sum(1)
    counts.map(lambda pair: f"{pair[0]} {pair[1]}").write_as_text(parameters.get("output"))
    env.execute("word count")

if __name__ == "__main__":
    main()
"""

ENDLESS = """
import time
from engine.datastream import StreamExecutionEnvironment
env = StreamExecutionEnvironment.get_execution_environment()
env.from_sequence(1, 10**12).map(lambda x: (time.sleep(0.01), x)[1]).print()
env.execute("endless")
"""

DIVISION = """
from engine.datastream import StreamExecutionEnvironment
env = StreamExecutionEnvironment.get_execution_environment()
env.from_collection([1, 2, 0, 3]).map(lambda x: 10 // x).name("Divide").print()
env.execute("division")
"""
