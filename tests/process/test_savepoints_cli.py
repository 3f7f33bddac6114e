"""``flink savepoint``, ``stop``, ``cancel -s``, ``checkpoint`` and ``run -s`` on a real cluster: no count is lost."""

from __future__ import annotations

import os
import re
import textwrap

import pytest

from engine.core.errors import ProgramError
from tests.process.script_cluster import ScriptCluster, wait_until

PROGRAM = """
import os, sys

from engine.common import Types, WatermarkStrategy
from engine.datastream import KeyedProcessFunction, StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource
from engine.datastream.state import ValueStateDescriptor

out, uid = sys.argv[1:3]


class Count(KeyedProcessFunction):
    def open(self, runtime_context):
        self.total = runtime_context.get_state(ValueStateDescriptor("total", Types.LONG()))
        index = runtime_context.get_index_of_this_subtask()
        self.out = open(f"{out}/{os.getpid()}-{index}", "a", buffering=1)

    def process_element(self, value, ctx):
        total = (self.total.value() or 0) + 1
        self.total.update(total)
        self.out.write(f"{ctx.get_current_key()} {total}\\n")
        yield total

    def close(self):
        self.out.close()


env = StreamExecutionEnvironment.get_execution_environment()
source = DataGeneratorSource(lambda i: i % 10, None, 200)
numbers = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers").uid("numbers")
counted = numbers.key_by(lambda number: number % 10).process(Count(), Types.LONG()).uid(uid)
counted.print()
env.execute("counts")
"""
TO_FILES = """
import sys

from engine.common import Encoder, Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource, FileSink

env = StreamExecutionEnvironment.get_execution_environment()
source = DataGeneratorSource(lambda i: i, None, 200)
numbers = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers", Types.LONG()).uid("numbers")
sink = FileSink.for_row_format(sys.argv[1], Encoder.simple_string_encoder()).build()
numbers.map(str, Types.STRING()).sink_to(sink).uid("files")
env.execute("numbers")
"""
SUBMITTED = re.compile(r"Job has been submitted with JobID ([0-9a-f]{32})")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    settings = {
        "taskmanager.numberOfTaskSlots": "4",
        "execution.checkpointing.dir": str(folder / "checkpoints"),
    }
    with ScriptCluster(folder, settings) as found:
        found.start()
        yield found
        assert found.run("stop-cluster.sh").returncode == 0


class Runs:
    """Starts the program again and again; each run writes its counts to a folder of its own."""

    def __init__(self, cluster, folder) -> None:
        self.cluster = cluster
        self.folder = folder
        self.program = folder / "counts.py"
        self.program.write_text(textwrap.dedent(PROGRAM))
        self.number = 0

    def start(self, *options: str, uid: str = "count", out=None) -> tuple[str, object]:
        """Return the id of the job and the folder of its counts."""
        self.number += 1
        out = out or self.folder / f"out-{self.number}"
        out.mkdir(exist_ok=True)
        found = self.cluster.run("flink", "run", "-d", *options, str(self.program), str(out), uid)
        match = SUBMITTED.search(found.stdout)
        assert match, found
        return match[1], out

    def flink(self, *words: str):
        return self.cluster.run("flink", *words)

    def state(self, job_id: str) -> str:
        return str(self.cluster.client().job(job_id)["state"])


@pytest.fixture
def runs(cluster, tmp_path):
    yield Runs(cluster, tmp_path)
    client = cluster.client()
    for job in client.jobs():
        if job["state"] not in ("FINISHED", "CANCELED", "FAILED"):
            client.cancel(job["jid"])
    wait_until(lambda: client.overview()["slots-available"] == 4, "free slots")


def counts(out) -> list[tuple[int, int]]:
    found = []
    for path in out.iterdir():
        found += [tuple(map(int, line.split())) for line in path.read_text().splitlines() if " " in line]
    return found


def first_counts(out) -> dict[int, int]:
    """Return the lowest count of each key."""
    first: dict[int, int] = {}
    for key, total in counts(out):
        first[key] = min(total, first.get(key, total))
    return first


def last_counts(out) -> dict[int, int]:
    return dict(sorted(counts(out), key=lambda pair: pair[1]))


def wait_for_counts(out, least: int) -> None:
    wait_until(lambda: len(found := last_counts(out)) == 10 and min(found.values()) >= least, f"counts of {least}")


def test_a_savepoint_starts_a_job_that_goes_on_at_another_parallelism(runs, tmp_path):
    job_id, out = runs.start("-p", "2")
    wait_for_counts(out, 5)
    told = runs.flink("savepoint", job_id, str(tmp_path / "sp"))
    assert told.returncode == 0, told
    lines = told.stdout.splitlines()
    assert lines[:2] == [f"Triggering savepoint for job {job_id}.", "Waiting for response..."]
    pattern = rf"(file://{tmp_path}/sp/savepoint-{job_id[:6]}-[0-9a-f]{{12}})"
    path = re.fullmatch(r"Savepoint completed\. Path: " + pattern, lines[2])
    assert path, lines
    assert lines[3] == "You can resume your program from this savepoint with the run command."
    assert runs.state(job_id) == "RUNNING"
    assert runs.flink("cancel", job_id).returncode == 0
    _, again = runs.start("-p", "3", "-s", path[1])
    wait_for_counts(again, 8)
    # What had been counted at the savepoint is neither lost nor counted twice.
    assert min(first_counts(again).values()) > 1
    assert all(total <= last_counts(out)[key] + 1 for key, total in first_counts(again).items())


def test_stop_ends_the_job_exactly_at_its_savepoint(runs, tmp_path):
    job_id, out = runs.start("-p", "2")
    wait_for_counts(out, 3)
    told = runs.flink("stop", "-p", str(tmp_path / "sp"), job_id)
    assert told.returncode == 0, told
    lines = told.stdout.splitlines()
    assert lines[0] == f'Suspending job "{job_id}" with a CANONICAL savepoint.'
    assert lines[1] == f"Triggering stop-with-savepoint for job {job_id}."
    path = lines[3].removeprefix("Savepoint completed. Path: ")
    assert runs.state(job_id) == "FINISHED"
    _, again = runs.start("-p", "2", "-s", path)
    wait_for_counts(again, 5)
    assert first_counts(again) == {key: total + 1 for key, total in last_counts(out).items()}


def test_cancel_with_savepoint_and_dispose(runs, tmp_path):
    job_id, out = runs.start()
    wait_for_counts(out, 2)
    told = runs.flink("cancel", "-s", str(tmp_path / "sp"), job_id)
    assert told.returncode == 0, told
    lines = told.stdout.splitlines()
    assert lines[0].startswith("DEPRECATION WARNING")
    assert lines[1] == f"Cancelling job {job_id} with CANONICAL savepoint to {tmp_path}/sp."
    path = re.fullmatch(rf"Cancelled job {job_id}\. Savepoint stored in (.+)\.", lines[2])
    assert path, lines
    wait_until(lambda: runs.state(job_id) == "CANCELED", "CANCELED")
    told = runs.flink("savepoint", "-d", path[1])
    assert told.stdout.splitlines() == [
        f"Disposing savepoint '{path[1]}'.",
        "Waiting for response...",
        f"Savepoint '{path[1]}' disposed.",
    ]
    assert os.listdir(tmp_path / "sp") == []
    again = runs.flink("savepoint", "-d", path[1])
    assert again.returncode == 1
    assert "does not exist" in again.stderr


def test_checkpoint_is_taken_when_it_is_asked_for(runs):
    job_id, out = runs.start()
    wait_for_counts(out, 2)
    told = runs.flink("checkpoint", job_id)
    assert told.stdout.splitlines() == [
        f"Triggering checkpoint for job {job_id}.",
        "Waiting for response...",
        f"Checkpoint 1 for job {job_id} completed.",
        "You can resume your program from this checkpoint with the run command.",
    ], told


def test_state_without_a_place_is_told_with_its_uid_and_left_out_when_that_is_allowed(runs, tmp_path):
    job_id, out = runs.start()
    wait_for_counts(out, 2)
    path = runs.flink("savepoint", job_id, str(tmp_path / "sp")).stdout.split("Path: ")[1].split()[0]
    runs.flink("cancel", job_id)
    (tmp_path / "none").mkdir()
    refused = runs.flink("run", "-d", "-s", path, str(runs.program), str(tmp_path / "none"), "other")
    assert refused.returncode == 1
    assert "(uid 'count') has keyed state 'total'" in refused.stderr
    assert "--allowNonRestoredState" in refused.stderr
    _, again = runs.start("-n", "-s", path, uid="other")
    wait_for_counts(again, 2)
    assert set(first_counts(again).values()) == {1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["savepoint", "zz"], "'zz' is not a valid JobID"),
        (["savepoint", "0" * 32, "/s"], "Job 00000000000000000000000000000000 not found"),
        (["stop"], "Missing JobID"),
        (["savepoint", "-type", "odd", "0" * 32], "expected canonical or native"),
        (["savepoint", "-d", "/no/such/savepoint"], "Savepoint /no/such/savepoint does not exist"),
    ],
)
def test_bad_words_are_told(runs, words, message):
    told = runs.flink(*words)
    assert told.returncode == 1
    assert message in told.stdout + told.stderr


def test_a_savepoint_that_is_missing_is_told_at_submission(runs, tmp_path):
    told = runs.flink("run", "-d", "-s", str(tmp_path / "no"), str(runs.program), str(tmp_path), "count")
    assert told.returncode == 1
    assert f"Savepoint {tmp_path}/no does not exist." in told.stderr


def test_a_damaged_checkpoint_is_told_and_the_newest_sound_one_is_found(cluster, runs, tmp_path):
    settings = {
        "execution.checkpointing.interval": "200 ms",
        "execution.checkpointing.num-retained": "3",
        "execution.checkpointing.dir": tmp_path / "chk",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
    }
    job_id, _ = runs.start(*(word for key, value in settings.items() for word in ("-D", f"{key}={value}")))
    folder = tmp_path / "chk" / job_id
    wait_until(lambda: len(list(folder.glob("chk-*/_metadata"))) == 3, "three checkpoints")
    runs.flink("cancel", job_id)
    wait_until(lambda: runs.state(job_id) == "CANCELED", "CANCELED")
    *_, before, newest = sorted(folder.glob("chk-*"), key=lambda path: int(path.name[4:]))
    content = bytearray((newest / "_metadata").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "_metadata").write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    told = runs.flink("run", "-d", "-s", str(newest), str(runs.program), str(out), "count")
    assert told.returncode == 1
    assert f"\nfile://{newest}/_metadata is damaged: its checksum is wrong. Name file://{folder}" in told.stderr
    again, _ = runs.start("-s", str(folder))
    url = f"/jobs/{again}/checkpoints"
    wait_until(lambda: cluster.client()._json("GET", url)["latest"]["restored"], "it is restored")
    restored = cluster.client()._json("GET", url)["latest"]["restored"]
    assert restored["external_path"].endswith(before.name), restored
    logs = "".join(path.read_text() for path in cluster.log.glob("*standalonesession*.log"))
    assert f"checkpoint={newest.name[4:]} is passed over" in logs


def test_keys_of_another_type_are_refused_at_submission(runs, tmp_path):
    job_id, out = runs.start()
    wait_for_counts(out, 2)
    path = runs.flink("savepoint", job_id, str(tmp_path / "sp")).stdout.split("Path: ")[1].split()[0]
    runs.flink("cancel", job_id)
    changed = runs.program.read_text().replace("lambda number: number % 10)", "lambda n: str(n % 10), Types.STRING())")
    runs.program.write_text(changed)
    (tmp_path / "other").mkdir()
    told = runs.flink("run", "-d", "-s", path, str(runs.program), str(tmp_path / "other"), "count")
    assert told.returncode == 1, told
    assert "state 'total' of operator" in told.stderr
    assert "(uid 'count') was written with keys of type number" in told.stderr
    assert "keys of type str" in told.stderr
    assert os.listdir(tmp_path / "other") == []
    jobs = runs.cluster.client().jobs()
    assert not [job for job in jobs if job["state"] not in ("CANCELED", "FINISHED", "FAILED")], "nothing runs"


def test_keys_and_values_of_types_that_the_savepoint_does_not_have_fail_the_job(runs, tmp_path):
    job_id, out = runs.start()
    wait_for_counts(out, 2)
    path = runs.flink("savepoint", job_id, str(tmp_path / "sp")).stdout.split("Path: ")[1].split()[0]
    runs.flink("cancel", job_id)
    program = runs.program.read_text()
    runs.program.write_text(program.replace("lambda number: number % 10)", "lambda n: str(n % 10))"))
    (tmp_path / "other").mkdir()
    told = runs.flink("run", "-s", path, str(runs.program), str(tmp_path / "other"), "count")
    assert told.returncode == 1, told
    told = f"{told.stdout}{told.stderr}"
    assert "(uid 'count'): its state was written with keys of type number" in told
    assert "has keys of type str, e.g. '" in told
    runs.program.write_text(program.replace('"total", Types.LONG()', '"total", Types.STRING()'))
    told = runs.flink("run", "-s", path, str(runs.program), str(tmp_path / "other"), "count")
    assert told.returncode == 1, told
    told = f"{told.stdout}{told.stderr}"
    assert "(uid 'count'): value state 'total' is declared String, and what was restored of it holds " in told
    assert "of type int, expected String (str)" in told
    several = "lambda n: str(n % 10), Types.PICKLED_BYTE_ARRAY())"
    runs.program.write_text(program.replace("lambda number: number % 10)", several))
    _, out = runs.start("-s", path)  # on purpose: keys of any type
    wait_for_counts(out, 1)


def test_modify_lets_a_running_job_go_on_at_another_parallelism(cluster, runs):
    job_id, out = runs.start("-p", "2")
    wait_until(lambda: {key for key, total in counts(out) if total > 3} == set(range(10)), "counts of 4")
    done = runs.flink("modify", job_id, "-p", "4")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0,
        f"Rescaled job {job_id}. Its new parallelism is 4.",
    ), done
    assert {vertex["parallelism"] for vertex in cluster.client().job(job_id)["vertices"]} == {4}
    top = max(total for _, total in counts(out))
    wait_until(lambda: {key for key, total in counts(out) if total > top + 3} == set(range(10)), "further counts")
    runs.flink("cancel", job_id)
    # The checkpoint may be a little older than the last counts: those come twice, none is left out.
    for key in range(10):
        assert {total for number, total in counts(out) if number == key} >= set(range(1, top + 3))


def test_resource_requirements_of_single_vertices_rescale_a_running_job(cluster, runs):
    job_id, out = runs.start("-p", "1")
    wait_until(lambda: {key for key, total in counts(out) if total > 3} == set(range(10)), "counts of 4")
    client, url = cluster.client(), f"/jobs/{job_id}/resource-requirements"
    vertices = {vertex["name"].split(" ")[0]: vertex["id"] for vertex in client.job(job_id)["vertices"]}
    assert {bounds["parallelism"]["upperBound"] for bounds in client._json("GET", url).values()} == {1}
    keyed = vertices["KeyedProcess"]
    client._json("PUT", url, {keyed: {"parallelism": {"lowerBound": 1, "upperBound": 3}}}, timeout_s=60)
    assert {v["id"]: v["parallelism"] for v in client.job(job_id)["vertices"]} == {
        vertex_id: 3 if vertex_id == keyed else 1 for vertex_id in vertices.values()
    }
    assert client._json("GET", url)[keyed] == {"parallelism": {"lowerBound": 1, "upperBound": 3}}
    top = max(total for _, total in counts(out))
    wait_until(lambda: {key for key, total in counts(out) if total > top + 3} == set(range(10)), "further counts")
    for key in range(10):
        assert {total for number, total in counts(out) if number == key} >= set(range(1, top + 3))
    for body, said in (
        ({keyed: {"parallelism": {"upperBound": 0}}}, "expected a whole number of at least 1"),
        ({keyed: 3}, "expected {"),
        ({}, "The body is empty"),
        ({keyed: {"parallelism": {"upperBound": 1000}}}, "cannot have parallelism 1000; expected 1 to 128"),
    ):
        with pytest.raises(ProgramError, match=said):
            client._json("PUT", url, body)
    runs.flink("cancel", job_id)


def test_modify_says_what_cannot_be(cluster, runs):
    job_id, out = runs.start("-p", "2", "-D", "slot.request.timeout=10 s")
    wait_until(lambda: counts(out), "counts")
    for words, said in (
        (("-p", "5"), "goes on at its former parallelism"),
        (("-p", "200"), "cannot have parallelism 200; expected 1 to 128"),
        (("-p", "many"), "The parallelism is 'many'; expected a whole number"),
    ):
        done = runs.flink("modify", job_id, *words)
        assert done.returncode == 1, words
        assert said in done.stdout + done.stderr
    wait_until(lambda: runs.state(job_id) == "RUNNING", "the job goes on")
    assert {vertex["parallelism"] for vertex in cluster.client().job(job_id)["vertices"]} == {2}


@pytest.mark.parametrize("how", ["savepoint and cancel", "cancel -s"])
def test_what_a_sink_had_written_when_the_savepoint_was_taken_is_published_by_who_goes_on(how, cluster, runs, tmp_path):
    """No checkpoint comes between savepoint and cancel: only the savepoint knows of the files."""
    options = ("-D", "execution.checkpointing.interval=10 min")
    runs.program.write_text(textwrap.dedent(TO_FILES))
    job_id, out = runs.start("-p", "2", *options)
    wait_until(lambda: len(list(out.rglob(".part*inprogress*"))) == 2, "both write")
    if how == "savepoint and cancel":
        told = runs.flink("savepoint", job_id, str(tmp_path / "sp"))
        assert runs.flink("cancel", job_id).returncode == 0
    else:
        told = runs.flink("cancel", "-s", str(tmp_path / "sp"), job_id)
    wait_until(lambda: runs.state(job_id) == "CANCELED", "CANCELED")
    path = re.search(rf"file://{tmp_path}/sp/savepoint-\w+-\w+", told.stdout)
    assert path, told
    again, _ = runs.start("-p", "2", "-s", path[0], *options, out=out)
    wait_until(lambda: len(list(out.rglob(".part*inprogress*"))) == 2, "both write again")
    assert runs.flink("stop", "-p", str(tmp_path / "sp"), again).returncode == 0
    files = [file for file in out.rglob("*") if file.is_file()]
    assert [file.name for file in files if file.name.startswith(".")] == []
    numbers = sorted(int(line) for file in files for line in file.read_text().split())
    for index in range(2):  # the barrier met each of the two sources at its own number
        own = [number for number in numbers if number % 2 == index]
        assert own == list(range(index, index + 2 * len(own), 2))
        assert len(own) > 10
