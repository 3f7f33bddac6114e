"""One application a job on real YARN: it ends as its job did and says why. Sessions whose containers come and go."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter

import pytest

from tests.hadoop.conftest import HadoopCluster
from tests.hadoop.yarn_commands import (
    DIVISION,
    ENDLESS,
    ROOT,
    SMALL,
    SMALL_JOB,
    WORD_COUNT,
    YarnUser,
    application_id_in,
    dashboard_in,
    eventually,
    get,
    processes_of,
    skein_drivers,
)

pytestmark = pytest.mark.hadoop
TEXT = "\n".join(f"whether tis nobler in the mind to suffer {i % 5}" for i in range(2000)) + "\n"


@pytest.fixture
def user(hadoop: HadoopCluster, tmp_path) -> YarnUser:
    return YarnUser.create(hadoop, tmp_path)


def test_a_job_that_finishes_makes_its_application_succeed(user):
    source = user.put("/job/in/text.txt", TEXT)
    target = f"{user.hadoop.namenode_uri}/job/counts"
    done = user.flink(
        "run", "-m", "yarn-cluster", "-ys", "2", *SMALL_JOB, "-ynm", "counting", "-c", "word_count",
        user.write("word_count.py", WORD_COUNT), "--input", source, "--output", target,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("Job has been submitted with JobID [0-9a-f]{32}", done.stdout)
    assert "Program execution finished" in done.stdout
    counts = Counter({word: int(count) for word, count in (line.split() for line in user.lines("/job/counts"))})
    assert counts == Counter(TEXT.split())
    report = user.application_named("counting")
    assert (report["state"], report["finalStatus"], report["applicationType"]) == (
        "FINISHED",
        "SUCCEEDED",
        "Apache Flink",
    )
    assert report["diagnostics"] == "Job 'word count' finished."
    eventually("no process is left", lambda: not processes_of(report["id"]))
    assert skein_drivers(str(user.folder)) == []


def test_a_job_that_fails_tells_its_root_cause_to_yarn_and_to_the_user(user):
    done = user.flink("run", "-t", "yarn-per-job", *SMALL_JOB, "-ynm", "failing", user.write("division.py", DIVISION))
    assert done.returncode == 1
    for text in (done.stderr, user.application_named("failing")["diagnostics"]):
        assert "ZeroDivisionError: integer division or modulo by zero" in text
        assert "in operator 'Divide' on record: 0" in text
    report = user.application_named("failing")
    assert (report["state"], report["finalStatus"]) == ("FINISHED", "FAILED")
    read_the_logs_of_what_has_ended(user, report)


def read_the_logs_of_what_has_ended(user: YarnUser, report: dict) -> None:
    """No process of the application is left: its logs are on HDFS, and what YARN says leads there."""
    command = re.search(r"its log: (yarn logs -applicationId (\S+) -containerId (\S+))", report["diagnostics"])
    assert command, report["diagnostics"]
    assert command[2] == report["id"]
    began = time.monotonic()
    (folder,) = user.hdfs.list(f"/tmp/logs/{user.hadoop.user}")

    def collected() -> bool:
        """Each node writes one file, and renames it when all its containers are in it."""
        for bucket in user.hdfs.list(f"/tmp/logs/{user.hadoop.user}/{folder}"):
            path = f"/tmp/logs/{user.hadoop.user}/{folder}/{bucket}"
            if report["id"] in user.hdfs.list(path):
                names = user.hdfs.list(f"{path}/{report['id']}")
                return bool(names) and not any(name.endswith(".tmp") for name in names)
        return False

    eventually("YARN has collected the logs", collected)
    shown = user.run_yarn(*command[1].split()[1:])
    assert shown.returncode == 0, shown.stderr
    assert "LogType:taskmanager.log" in shown.stdout
    assert "ZeroDivisionError: integer division or modulo by zero" in shown.stdout, shown.stdout
    print(f"\nlogs of an ended application read after {time.monotonic() - began:.1f} s")

    # What a page of the dashboard, kept open or written down, led to: the node sends us to where the logs are now.
    node = re.search(rf"Container: {command[3]} on (\S+)_(\d+)", shown.stdout)
    assert node, shown.stdout
    found = get(f"{user.hadoop.rm_url}/ws/v1/cluster/nodes/{node[1]}:{node[2]}")["node"]
    master = re.sub(r"\d+$", "000001", command[3])
    user.hadoop.daemon("start", "ls")
    try:
        for address, container, words in (
            (found["nodeHTTPAddress"], command[3], "ZeroDivisionError: integer division or modulo by zero"),
            (report["amHostHttpAddress"], master, "INFO skein.ApplicationMaster: "),
        ):
            page = get(f"http://{address}/node/containerlogs/{container}/{user.hadoop.user}")
            assert words in page
            assert ("applicationmaster.log" in page) == (container == master)
    finally:
        user.hadoop.daemon("stop", "ls")


def test_a_cancelled_job_makes_its_application_killed(user):
    done = user.flink(
        "run", "-d", "-m", "yarn-cluster", *SMALL_JOB, "-ynm", "cancelled", user.write("endless.py", ENDLESS)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    job_id = re.search("JobID ([0-9a-f]{32})", done.stdout)
    assert job_id
    application_id = user.application_named("cancelled")["id"]
    dashboard = dashboard_in(done.stdout)
    eventually("it runs", lambda: get(f"{dashboard}/jobs/{job_id[1]}")["state"] == "RUNNING")
    ended = user.flink("cancel", "-yid", application_id, job_id[1])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = eventually("it has ended", lambda: _ended(user, application_id))
    assert (report["state"], report["finalStatus"]) == ("FINISHED", "KILLED")
    assert report["diagnostics"] == "Job 'endless' was cancelled."
    eventually("no process is left", lambda: not processes_of(application_id))


def _ended(user: YarnUser, application_id: str) -> dict | None:
    report = user.application(application_id)
    return report if report["state"] in ("FINISHED", "FAILED", "KILLED") else None


def test_an_interrupted_client_cancels_its_job_when_asked_to(user):
    program = user.write("endless.py", ENDLESS)
    client = subprocess.Popen(
        [
            str(ROOT / "scripts" / "flink"),
            "run",
            "-sae",
            "-m",
            "yarn-cluster",
            *SMALL_JOB,
            "-ynm",
            "interrupted",
            program,
        ],
        env=user.env,
        cwd=user.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert client.stdout is not None
    for line in client.stdout:
        if line.startswith("Job has been submitted"):
            break
    client.send_signal(signal.SIGINT)
    rest, _ = client.communicate(timeout=120)
    assert client.returncode == 130, rest
    assert "Cancelled job" in rest
    application_id = user.application_named("interrupted")["id"]
    report = eventually("it has ended", lambda: _ended(user, application_id))
    assert report["finalStatus"] == "KILLED"


def test_an_application_runs_the_programs_main_on_yarn(user):
    source = user.put("/application/in/text.txt", TEXT)
    target = f"{user.hadoop.namenode_uri}/application/counts"
    program = user.write("word_count.py", WORD_COUNT)
    done = user.flink(
        "run-application", "-t", "yarn-application", *SMALL_JOB, "-ynm", "main there",
        program, "--input", source, "--output", target,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counts = Counter({word: int(count) for word, count in (line.split() for line in user.lines("/application/counts"))})
    assert counts == Counter(TEXT.split())
    assert user.application_named("main there")["finalStatus"] == "SUCCEEDED"


def test_output_without_permission_fails_with_one_clear_message(user):
    source = user.put("/guarded/in/text.txt", TEXT)
    user.hdfs.makedirs("/user/alice")
    user.hdfs.set_owner("/user/alice", owner="alice")
    target = f"{user.hadoop.namenode_uri}/guarded/counts"
    done = user.run(
        "flink", "run", "-m", "yarn-cluster", *SMALL_JOB, "-ynm", "guarded",
        user.write("word_count.py", WORD_COUNT), "--input", source, "--output", target, HADOOP_USER_NAME="alice",
    )  # fmt: skip
    assert done.returncode == 1
    assert "Permission denied: user=alice, access=WRITE" in done.stderr
    assert "/guarded" in done.stderr
    assert "Traceback" not in done.stderr
    assert user.hdfs.list("/guarded") == ["in"]
    report = user.application_named("guarded")
    assert (report["user"], report["finalStatus"]) == ("alice", "FAILED")


def test_a_client_interrupted_while_it_deploys_leaves_no_application(user):
    client = subprocess.Popen(
        [str(ROOT / "scripts" / "yarn-session.sh"), "-n", "1", *SMALL, "-d"],
        env=user.env,
        cwd=user.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert client.stdout is not None
    application_id = ""
    for line in client.stdout:
        if line.startswith("Submitted application "):
            application_id = application_id_in(line)
            break
    assert application_id
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=120)
    assert client.returncode != 0
    assert eventually("it is killed", lambda: _ended(user, application_id))["finalStatus"] == "KILLED"
    assert skein_drivers(str(user.folder)) == []
    assert list(user.temporary.iterdir()) == []
    eventually("no process is left", lambda: not processes_of(application_id))


def test_containers_come_and_go_with_the_slots_that_jobs_ask_for(user):
    (user.folder / "ship").mkdir()
    (user.folder / "ship" / "shipped_words.py").write_text("WORDS = ['shipped']\n")
    done = user.session(
        "-s", "2", *SMALL, "-nm", "on demand", "-d", "-Dresourcemanager.taskmanager-timeout=10 s",
        "-t", str(user.folder / "ship"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    application_id, dashboard = application_id_in(done.stdout), dashboard_in(done.stdout)
    try:
        assert get(f"{dashboard}/overview")["taskmanagers"] == 0
        target = f"{user.hadoop.namenode_uri}/demand/counts"
        source = user.put("/demand/in/text.txt", TEXT)
        ran = user.flink("run", user.write("word_count.py", WORD_COUNT), "--input", source, "--output", target)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert get(f"{dashboard}/overview")["taskmanagers"] == 1
        shipped = user.write(
            "shipped.py",
            "import sys\n"
            "from engine.datastream import StreamExecutionEnvironment\n"
            "env = StreamExecutionEnvironment.get_execution_environment()\n"
            "words = env.from_collection([1]).flat_map(lambda _: __import__('shipped_words').WORDS)\n"
            "words.write_as_text(sys.argv[1])\n"
            "env.execute('shipped')\n",
        )
        ran = user.flink("run", shipped, f"{user.hadoop.namenode_uri}/demand/shipped")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert user.lines("/demand/shipped") == ["shipped"]
        eventually("its container is given back", lambda: user.application(application_id)["runningContainers"] == 1)
        assert get(f"{dashboard}/overview")["taskmanagers"] == 0
    finally:
        user.session("-id", application_id, stdin="stop\n")
    assert user.application(application_id)["finalStatus"] == "SUCCEEDED"


def test_a_node_with_another_python_is_told_with_both_versions(user):
    other = user.folder / "python-of-the-node"
    other.write_text("#!/bin/sh\necho 3.7\n")
    other.chmod(0o755)
    done = user.session("-n", "1", *SMALL, "-nm", "wrong python", "-d", f"-Dpython.executable={other}")
    assert done.returncode == 1
    assert f"has Python 3.7, but the engine was packed for Python 3.{sys.version_info.minor}" in done.stderr
    assert user.application_named("wrong python")["finalStatus"] == "FAILED"


@pytest.fixture(scope="module")
def own_interpreter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A virtual environment of the user's, packed: it has a module that nothing else here has."""
    folder = tmp_path_factory.mktemp("own-venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--copies", folder / "venv"], check=True)
    (site,) = (folder / "venv").glob("lib/python3*/site-packages")
    (site / "only_in_the_venv.py").write_text("ANSWER = 42\n")
    archive = folder / "mine.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder / "venv", ".")
    shutil.rmtree(folder / "venv")  # what containers find there is what they have unpacked
    return str(archive)


WHERE = """
import sys
import tarfile
import time
from engine.datastream import StreamExecutionEnvironment

def places(number):
    import only_in_the_venv, sys
    return f"{number} {only_in_the_venv.ANSWER} {sys.executable}"

env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(2)
env.from_sequence(1, 4).map(places).write_as_text(sys.argv[1])
env.execute("where")
"""


@pytest.mark.parametrize("target", ["yarn-per-job", "yarn-application"])
def test_a_job_runs_in_containers_with_the_interpreter_that_the_user_brings(user, own_interpreter, target):
    output = f"/job/where-{target}"
    done = user.flink(
        "run", "-t", target, "-ys", "1", *SMALL_JOB, "-ynm", f"own {target}",
        "-pyarch", f"{own_interpreter}#mine", "-pyexec", "mine/bin/python",
        user.write("where.py", WHERE), f"{user.hadoop.namenode_uri}{output}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert user.application_named(f"own {target}")["finalStatus"] == "SUCCEEDED"
    rows = sorted(line.split(" ", 2) for line in user.lines(output))
    assert [row[:2] for row in rows] == [[str(number), "42"] for number in range(1, 5)]
    for _, _, executable in rows:
        assert re.search(r"/container_\w+/mine/bin/python$", executable)


def test_an_archive_without_the_interpreter_is_told(user, own_interpreter):
    done = user.flink(
        "run", "-m", "yarn-cluster", *SMALL_JOB, "-ynm", "no interpreter",
        "-pyarch", f"{own_interpreter}#mine", "-pyexec", "mine/bin/python9",
        user.write("where.py", WHERE), f"{user.hadoop.namenode_uri}/job/nowhere",
    )  # fmt: skip
    assert done.returncode == 1
    assert "mine/bin/python9" in done.stderr
    assert user.running_applications() == []
