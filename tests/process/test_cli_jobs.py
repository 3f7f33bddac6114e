"""``flink run``, ``list``, ``cancel`` and ``info`` on a real standalone cluster of two slots."""

from __future__ import annotations

import json
import os
import re
import signal
import textwrap
import zipfile

import pytest

from tests.process.script_cluster import ScriptCluster, wait_until

HEAD = """
from engine.common import Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource

env = StreamExecutionEnvironment.get_execution_environment()
"""
COUNT = (
    HEAD
    + """
words = env.from_collection(["to be or not to be"] * 10, Types.STRING()).flat_map(lambda l: [(w, 1) for w in l.split()])
words.key_by(lambda pair: pair[0]).reduce(lambda a, b: (a[0], a[1] + b[1])).print()
env.execute("counts")
print("after the job")
"""
)
ENDLESS = (
    HEAD
    + """
env.from_source(DataGeneratorSource(lambda i: i, None, 200), WatermarkStrategy.no_watermarks(), "numbers").print()
env.execute("endless")
"""
)
SUBMITTED = re.compile(r"Job has been submitted with JobID ([0-9a-f]{32})")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ScriptCluster(tmp_path_factory.mktemp("cli")) as found:
        found.start()
        yield found
        stopped = found.run("stop-cluster.sh")
        assert stopped.returncode == 0
        assert list((found.folder / "tmp").iterdir()) == []


@pytest.fixture
def write(cluster, tmp_path):
    def write_program(text: str, name: str = "job.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    yield write_program
    client = cluster.client()
    for job in client.jobs():
        if job["state"] not in ("FINISHED", "CANCELED", "FAILED"):
            client.cancel(job["jid"])
    wait_until(lambda: client.overview()["slots-available"] == 2, "free slots")


def state_of(cluster, job_id: str) -> str:
    return str(cluster.client().job(job_id)["state"])


def start_endless(cluster, write, *options: str):
    """Start an attached run; return the process and the id of its running job."""
    process = cluster.popen("flink", "run", *options, write(ENDLESS))
    match = SUBMITTED.fullmatch(process.stdout.readline().strip())
    assert match, process.communicate()
    wait_until(lambda: state_of(cluster, match[1]) == "RUNNING", "RUNNING")
    return process, match[1]


def test_an_attached_run_prints_flinks_lines_and_ends_with_the_job(cluster, write):
    ended = cluster.flink("run", "-p", "2", write(COUNT))
    assert (ended.returncode, ended.stderr) == (0, ""), cluster.logs()
    lines = ended.stdout.splitlines()
    job_id = SUBMITTED.fullmatch(lines[0])[1]
    assert "after the job" in lines
    lines.remove("after the job")
    assert lines[1:3] == ["Program execution finished", f"Job with JobID {job_id} has finished."]
    assert re.fullmatch(r"Job Runtime: \d+ ms", lines[3])
    printed = re.compile(r"^\d> \('to', 20\)$|^\d> \(to,20\)$", re.MULTILINE)
    wait_until(lambda: printed.search(cluster.out()), "what the job has printed")
    assert state_of(cluster, job_id) == "FINISHED"


def test_a_job_is_listed_and_cancelled(cluster, write):
    process, job_id = start_endless(cluster, write)
    with process:
        listed = cluster.flink("list")
        assert listed.returncode == 0
        lines = listed.stdout.splitlines()
        assert lines[:2] == [
            "Waiting for response...",
            "------------------ Running/Restarting Jobs -------------------",
        ]
        assert re.fullmatch(rf"\d\d\.\d\d\.\d{{4}} \d\d:\d\d:\d\d : {job_id} : endless \(RUNNING\)", lines[2])
        assert lines[3:] == ["-" * 62, "No scheduled jobs."]
        cancelled = cluster.flink("cancel", job_id)
        assert cancelled.stdout == f"Cancelling job {job_id}.\nCancelled job {job_id}.\n"
        assert cancelled.returncode == 0
        assert state_of(cluster, job_id) == "CANCELED"
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert f"Job {job_id} was cancelled." in errors
        assert "Program execution finished" not in output
    again = cluster.flink("cancel", job_id)
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, f"Cancelled job {job_id}.")
    everything = cluster.flink("list", "-a").stdout
    assert "---------------------- Terminated Jobs -----------------------" in everything
    assert f"{job_id} : endless (CANCELED)" in everything


BURNING = (
    HEAD
    + """
def burn(i):
    return sum(range(20_000)) + i

source = DataGeneratorSource(lambda i: i, None, 1_000_000)
numbers = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers")
numbers.map(burn).filter(lambda i: i < 0).print()
env.execute("burning")
"""
)


def test_a_running_job_is_profiled_operator_by_operator_and_line_by_line(cluster, write, tmp_path):
    run = cluster.flink("run", "-d", str(write(BURNING)))
    job_id = SUBMITTED.search(run.stdout).group(1)
    path = tmp_path / "stacks.txt"
    wait_until(lambda: "interpreted" in cluster.flink("profile", "-n", "1", job_id).stdout, "the first metrics")
    profile = cluster.flink("profile", "-n", "50", "-i", "10", "-o", str(path), job_id)
    cluster.flink("cancel", job_id)
    assert profile.returncode == 0, profile.stdout + profile.stderr
    assert re.search(r"^  Map +\d+ +\d+ +\d+ +\d+\.\d\d s +interpreted \(rows\)$", profile.stdout, re.M), profile.stdout
    assert re.search(r"^  Filter .*\(above\) +interpreted \(rows\), in the loop of Map$", profile.stdout, re.M)
    assert re.search(r"^ +\d+\.\d %  .*\bburn:\d+$", profile.stdout, re.M), profile.stdout
    assert re.search(r"^Source: numbers -> Map.*;.*burn:\d+ \d+$", path.read_text(), re.M), path.read_text()


def test_an_unknown_job_cannot_be_cancelled(cluster):
    ended = cluster.flink("cancel", "0" * 32)
    assert ended.returncode == 1
    assert "0" * 32 in ended.stderr
    assert "Cancelled" not in ended.stdout


def test_an_interrupted_run_leaves_its_job_and_says_so(cluster, write):
    process, job_id = start_endless(cluster, write)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == f"Interrupted. Job {job_id} goes on; end it with: flink cancel {job_id}\n"
    assert state_of(cluster, job_id) == "RUNNING"


def test_with_sae_an_interrupted_run_cancels_its_job(cluster, write):
    process, job_id = start_endless(cluster, write, "-sae")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the program gets it too
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"Cancelled job {job_id}." in output
    wait_until(lambda: state_of(cluster, job_id) == "CANCELED", "CANCELED")


def test_a_detached_run_does_not_wait(cluster, write):
    process = cluster.popen("flink", "run", "-d", write(ENDLESS))
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.terminate()
        process.communicate()
    assert (process.returncode, errors) == (0, "")
    job_id = SUBMITTED.fullmatch(output.strip())[1]
    wait_until(lambda: state_of(cluster, job_id) == "RUNNING", "RUNNING")


def test_a_function_that_raises_shows_the_users_frame_operator_and_record(cluster, write):
    text = HEAD + 'env.from_collection([2, 1, 0]).map(lambda x: 1 / x).name("divide").print()\nenv.execute("bad")\n'
    ended = cluster.flink("run", write(text))
    assert ended.returncode == 1
    assert "The program finished with the following exception:" in ended.stderr
    assert "ZeroDivisionError: division by zero" in ended.stderr
    assert "divide" in ended.stderr
    assert "record: 0" in ended.stderr
    assert "/engine/" not in ended.stderr


def test_a_function_that_cannot_be_pickled_is_told(cluster, write):
    text = HEAD + "import threading\nlock = threading.Lock()\n"
    text += "env.from_collection([1]).map(lambda x: lock.locked()).print()\nenv.execute()\n"
    ended = cluster.flink("run", write(text))
    assert ended.returncode == 1
    assert "lock" in ended.stderr
    assert cluster.client().overview()["jobs-running"] == 0


def test_a_missing_input_is_told(cluster, write):
    ended = cluster.flink("run", write(HEAD + 'env.read_text_file("/none/input.txt").print()\nenv.execute()\n'))
    assert ended.returncode == 1
    assert "/none/input.txt" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_too_few_slots_fail_the_job_with_the_numbers_and_a_later_one_runs(cluster, write):
    ended = cluster.flink("run", "-D", "slot.request.timeout=5 s", "-p", "5", write(COUNT))
    assert ended.returncode == 1
    assert re.search(r"\b5\b.*\b2\b", ended.stderr, re.DOTALL), ended.stderr
    assert "taskmanager.numberOfTaskSlots" in ended.stderr
    assert cluster.flink("run", "-p", "2", write(COUNT)).returncode == 0


def test_info_prints_a_plan_without_a_job(cluster, write):
    before = len(cluster.client().jobs())
    ended = cluster.flink("info", write(COUNT))
    assert ended.returncode == 0, ended.stderr
    plan = json.loads(ended.stdout.split("\n")[1])
    assert plan["nodes"]
    assert len(cluster.client().jobs()) == before


def test_an_archive_with_late_imports_runs_on_the_cluster(cluster, write, tmp_path):
    body = HEAD + (
        "\ndef main():\n"
        "    def touch(x):\n        from pkg.late import add\n        return add(x)\n"
        "    rows = env.from_collection([1, 2, 3]).map(touch).execute_and_collect(limit=3)\n"
        "    print('ROWS', sorted(rows))\n"
    )
    with zipfile.ZipFile(tmp_path / "job.zip", "w") as stream:
        stream.writestr("pkg/__init__.py", "")
        stream.writestr("pkg/job.py", body)
        stream.writestr("pkg/late.py", "def add(x):\n    return x + 1000\n")
    ended = cluster.flink("run", "-c", "pkg.job", tmp_path / "job.zip")
    assert "ROWS [1001, 1002, 1003]" in ended.stdout, ended.stderr


def test_python_files_and_archives_reach_the_functions(cluster, write, tmp_path):
    (tmp_path / "lib" / "tools").mkdir(parents=True)
    (tmp_path / "lib" / "tools" / "__init__.py").write_text("def double(x):\n    return 2 * x\n")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as stream:
        stream.writestr("offset.txt", "100")
    text = HEAD + (
        "def apply(x):\n    import tools\n"
        "    return tools.double(x) + int(open('data/offset.txt').read())\n"
        "print('ROWS', sorted(env.from_collection([1, 2]).map(apply).execute_and_collect(limit=2)))\n"
    )
    options = ("-pyfs", tmp_path / "lib" / "tools", "-pyarch", f"{tmp_path / 'data.zip'}#data")
    ended = cluster.flink("run", *options, write(text))
    assert "ROWS [102, 104]" in ended.stdout, ended.stderr


def test_an_uploaded_program_runs_by_its_id(cluster, write):
    client = cluster.client()
    program_id = client.upload_program(str(write(COUNT)))
    ended = cluster.flink("run", "-p", "2", program_id, "--input", "x")
    assert ended.returncode == 0, ended.stderr
    job_id = SUBMITTED.match(ended.stdout)[1]
    assert f"Job with JobID {job_id} has finished." in ended.stdout
    assert state_of(cluster, job_id) == "FINISHED"
    client.delete_program(program_id)
    gone = cluster.flink("run", program_id)
    assert gone.returncode == 1
    assert "not found" in gone.stderr


def test_a_local_target_needs_no_cluster(cluster, write):
    ended = cluster.flink("run", "-t", "local", write(COUNT))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"\('to', 20\)|\(to,20\)", ended.stdout)
    assert "after the job" in ended.stdout
    job_id = SUBMITTED.search(ended.stdout)[1]
    assert f"Program execution finished\nJob with JobID {job_id} has finished.\nJob Runtime: " in ended.stdout
    assert ended.stdout.count("Program execution finished") == 1


def test_an_interrupted_local_run_ends_everything_that_it_started(cluster, write):
    process = cluster.popen("flink", "run", "-t", "local", write(ENDLESS))
    assert SUBMITTED.fullmatch(next(line for line in process.stdout if "submitted" in line).strip())
    next(line for line in process.stdout if re.fullmatch(r"\d+", line.strip()))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (130, "Interrupted.\n")

    def is_gone() -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(is_gone, "end of all processes of the run")
