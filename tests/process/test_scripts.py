"""The cluster scripts: what they print, which files they keep, what happens when a daemon cannot start."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request

import pytest

from tests.process.script_cluster import ROOT, ScriptCluster, alive, free_ports, wait_until

HOST = socket.gethostname()


@pytest.fixture
def cluster(tmp_path):
    with ScriptCluster(tmp_path / "cluster") as found:
        yield found


def test_a_cluster_starts_and_stops_with_flinks_lines(cluster):
    started = cluster.run("start-cluster.sh")
    assert (started.returncode, started.stderr) == (0, ""), cluster.logs()
    assert started.stdout.splitlines() == [
        "Starting cluster.",
        f"Starting standalonesession daemon on host {HOST}.",
        f"Starting taskexecutor daemon on host {HOST}.",
    ]
    (jobmanager,), (taskmanager,) = cluster.pids("standalonesession"), cluster.pids("taskexecutor")
    for name in ("standalonesession", "taskexecutor"):
        assert (cluster.log / f"flink-test-{name}-0-{HOST}.log").exists()
        assert (cluster.log / f"flink-test-{name}-0-{HOST}.out").exists()
    stopped = cluster.run("stop-cluster.sh")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert stopped.stdout.splitlines() == [
        f"Stopping taskexecutor daemon (pid: {taskmanager}) on host {HOST}.",
        f"Stopping standalonesession daemon (pid: {jobmanager}) on host {HOST}.",
    ]
    assert not alive(jobmanager)
    assert not alive(taskmanager)
    assert list(cluster.pid.iterdir()) == []
    assert list((cluster.folder / "tmp").iterdir()) == []


def test_stopping_what_does_not_run_says_so(cluster):
    stopped = cluster.run("stop-cluster.sh")
    assert stopped.returncode == 0
    assert stopped.stdout.splitlines() == [
        f"No taskexecutor daemon to stop on host {HOST}.",
        f"No standalonesession daemon to stop on host {HOST}.",
    ]


def test_a_second_taskmanager_is_announced_and_has_files_of_its_own(cluster):
    cluster.start()
    second = cluster.run("taskmanager.sh", "start", "-Dtaskmanager.numberOfTaskSlots=3", "-D", "env.x=1")
    assert second.stdout.splitlines() == [
        f"[INFO] 1 instance(s) of taskexecutor are already running on {HOST}.",
        f"Starting taskexecutor daemon on host {HOST}.",
    ]
    client = cluster.client()
    wait_until(lambda: client.overview()["slots-total"] == 5, cluster.logs())
    assert (cluster.log / f"flink-test-taskexecutor-1-{HOST}.log").exists()
    first, last = cluster.pids("taskexecutor")
    stopped = cluster.run("taskmanager.sh", "stop")
    assert stopped.stdout == f"Stopping taskexecutor daemon (pid: {last}) on host {HOST}.\n"
    assert cluster.pids("taskexecutor") == [first]
    stopped = cluster.run("taskmanager.sh", "stop-all")
    assert stopped.stdout == f"Stopping taskexecutor daemon (pid: {first}) on host {HOST}.\n"
    assert not cluster.pid_file("taskexecutor").exists()


def test_a_jobmanager_takes_host_and_port_and_runs_in_the_foreground(cluster):
    port = cluster.rest_port
    process = cluster.popen("jobmanager.sh", "start-foreground", "127.0.0.1", port, "-Dheartbeat.interval=1s")
    try:
        config = cluster.client

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answers, "REST")
        assert config().overview()["taskmanagers"] == 0
        process.terminate()
        _, errors = process.communicate(timeout=120)
        assert "Rest endpoint listening at http://127.0.0.1" in errors
    finally:
        process.kill()
        process.communicate()


def test_several_masters_start_with_high_availability_and_a_job_outlives_the_whole_cluster(tmp_path):
    first, second = free_ports(2)
    settings = {
        "high-availability.type": "filesystem",
        "high-availability.storageDir": f"file://{tmp_path}/ha",
        "high-availability.zookeeper.client.session-timeout": "4 s",
        "rest.port": first,
    }
    with ScriptCluster(tmp_path / "cluster", settings) as cluster:
        (cluster.conf / "masters").write_text(f"localhost\nlocalhost:{second}\n")
        started = cluster.run("start-cluster.sh")
        assert started.returncode == 0, started.stderr
        lines = started.stdout.splitlines()
        assert lines[0] == "Starting HA cluster with 2 masters."
        assert [line.split(" daemon")[0] for line in lines if line.startswith("Starting standalonesession")] == [
            "Starting standalonesession"
        ] * 2
        assert len(cluster.pids("standalonesession")) == 2
        wait_until(lambda: "No running jobs." in cluster.run("flink", "list").stdout, "flink list answers")
        for port in (first, second):
            wait_until(lambda port=port: taskmanagers_at(port) == 1, "the TaskManager is known")
        program = tmp_path / "program.py"
        program.write_text(ENDLESS)
        submitted = cluster.run("flink", "run", "-d", "-py", program)
        job_id = re.search("JobID ([0-9a-f]{32})", submitted.stdout)[1]
        wait_until(lambda: f"{job_id} : endless (RUNNING)" in cluster.run("flink", "list").stdout, "the job runs")
        stopped = cluster.run("stop-cluster.sh")
        assert stopped.returncode == 0, stopped.stderr
        assert stopped.stdout.count("Stopping standalonesession daemon") == 2
        assert cluster.pids("standalonesession") == []
        assert cluster.run("start-cluster.sh").returncode == 0
        wait_until(lambda: f"{job_id} : endless (RUNNING)" in cluster.run("flink", "list").stdout, "it runs again")
        cancelled = cluster.run("flink", "cancel", job_id)
        assert cancelled.returncode == 0, cancelled.stderr
        assert f"{job_id} : endless (CANCELED)" in cluster.run("flink", "list", "-a").stdout
        assert cluster.run("stop-cluster.sh").returncode == 0


def taskmanagers_at(port: int) -> int:
    with urllib.request.urlopen(f"http://localhost:{port}/overview", timeout=60) as answer:
        return int(json.load(answer)["taskmanagers"])


ENDLESS = """
from engine.datastream import StreamExecutionEnvironment
env = StreamExecutionEnvironment.get_execution_environment()
env.from_sequence(1, 10**9).map(lambda n: n).print()
env.execute("endless")
"""


def test_a_port_in_use_is_told_and_fails_the_start(cluster):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", cluster.rest_port))
        taken.listen()
        started = cluster.run("start-cluster.sh")
    assert started.returncode == 1
    assert "The standalonesession daemon on host" in started.stderr
    assert str(cluster.rest_port) in started.stderr
    assert "Traceback" not in started.stderr
    assert cluster.pids("standalonesession") == []
    assert cluster.pids("taskexecutor") == []


def test_a_bad_value_fails_the_start_before_anything_runs(cluster):
    with open(cluster.conf / "flink-conf.yaml", "a", encoding="utf-8") as stream:
        stream.write("heartbeat.timeout: soon\n")
    started = cluster.run("start-cluster.sh")
    assert started.returncode == 1
    assert started.stderr == (
        "ERROR: heartbeat.timeout is 'soon'; expected a duration such as 500 ms, 10 s, 5 min, 1 h.\n"
    )


def test_an_unknown_key_warns_and_starts(cluster):
    with open(cluster.conf / "flink-conf.yaml", "a", encoding="utf-8") as stream:
        stream.write("heartbeat.timeoutt: 1 s\n")
    started = cluster.run("jobmanager.sh", "start")
    assert started.returncode == 0, cluster.logs()
    assert "heartbeat.timeoutt is unknown and has no effect. Did you mean heartbeat.timeout?" in started.stderr


def test_the_log_level_comes_from_the_log_configuration(cluster):
    (cluster.conf / "log.properties").write_text("rootLogger.level = DEBUG\n")
    assert cluster.run("jobmanager.sh", "start").returncode == 0, cluster.logs()
    log = (cluster.log / f"flink-test-standalonesession-0-{HOST}.log").read_text()
    assert " DEBUG " in log


def test_a_pid_that_now_belongs_to_somebody_else_is_left_alone(cluster):
    cluster.pid.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        cluster.pid_file("taskexecutor").write_text(f"{other.pid}\n")
        stopped = cluster.run("taskmanager.sh", "stop")
        assert stopped.stdout == f"No taskexecutor daemon (pid: {other.pid}) is running anymore on {HOST}.\n"
        assert other.poll() is None
        other.communicate(b"\n")
    assert not cluster.pid_file("taskexecutor").exists()


@pytest.mark.parametrize("words", [[], ["restart"], ["start", "host"]])
def test_wrong_words_print_the_usage(cluster, words):
    ended = cluster.run("taskmanager.sh", *words)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Usage: taskmanager.sh ")


def test_other_hosts_are_reached_by_ssh_with_the_settings_of_this_one(cluster, tmp_path):
    calls = tmp_path / "calls"
    fake = tmp_path / "ssh"
    fake.write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >>{calls}\n[[ "$*" != *bad* ]]\n')
    fake.chmod(0o755)
    (cluster.conf / "workers").write_text("good\nbad\n")
    with open(cluster.conf / "flink-conf.yaml", "a", encoding="utf-8") as stream:
        stream.write("env.ssh.opts: -p 22 -q\n")
    started = cluster.run("start-cluster.sh", FLINK_SSH=str(fake))
    assert started.returncode == 1
    assert "ERROR: 'taskmanager.sh' on host bad failed." in started.stderr
    lines = sorted(calls.read_text().splitlines())
    assert len(lines) == 2
    assert lines[1].startswith("-n -p 22 -q good -- env ")
    assert f"FLINK_CONF_DIR={cluster.conf}" in lines[1]
    assert lines[1].rstrip().endswith(f"/bin/bash -l {ROOT}/scripts/taskmanager.sh start")


def test_python_is_found_or_its_lack_is_told(cluster, tmp_path):
    ended = cluster.run("flink", "--version", FLINK_PYTHON="/none/python")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "FLINK_PYTHON is '/none/python', which is no program" in ended.stderr


def test_scripts_work_from_any_folder_and_through_a_link(cluster, tmp_path):
    link = tmp_path / "flink"
    link.symlink_to(ROOT / "scripts" / "flink")
    ended = subprocess.run([link, "--version"], env=cluster.environment, capture_output=True, text=True, cwd="/")
    assert ended.stdout.startswith("Version: "), ended.stderr


@pytest.mark.parametrize("name", sorted(os.listdir(ROOT / "scripts")))
def test_scripts_are_valid_bash(name):
    subprocess.run(["bash", "-n", ROOT / "scripts" / name], check=True)
