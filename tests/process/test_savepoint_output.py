"""What sinks have written when a savepoint is taken or a job ends for good, on a real cluster: who goes on from there
has it once, and nothing is left that nobody can want."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from engine.common import Encoder, Types, WatermarkStrategy
from engine.connectors.sink import Committer, Sink, SinkWriter
from engine.core.errors import JobExecutionError
from engine.datastream import MapFunction
from engine.datastream.connectors import DataGeneratorSource, FileSink
from tests.process.cluster_jobs import StandaloneCluster, until
from tests.process.counting_jobs import (
    CountOfKey,
    all_counts,
    client_of,
    completed,
    counting,
    environment,
    kill_slot,
    left_hidden,
    processes,
    state,
    totals_of,
    written,
)

TOTAL = 2_000
LONG = 3_000  #: lasts for 10 s at 300 a second
RARE = {"execution.checkpointing.interval": "10 min"}
OFTEN = {"execution.checkpointing.interval": "200 ms"}
RESTORE = "execution.state-recovery.path"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = StandaloneCluster(tmp_path_factory.mktemp("cluster"), taskmanagers=1, heartbeat_interval="500")
    yield cluster
    cluster.close()


@pytest.fixture
def client(cluster):
    with client_of(cluster, 2) as client:
        yield client


class Texts(MapFunction):
    """``fails``: when this file is there, it raises. ``seen``: a file that it makes at its 150th record."""

    def __init__(self, fails: Path | None, seen: Path | None) -> None:
        self._fails, self._seen, self._count = fails, seen, 0

    def map(self, value):
        self._count += 1
        if self._fails and self._fails.exists():
            raise ValueError("it was to fail")
        if self._seen and self._count == 150:
            self._seen.touch()
        return str(value)


def numbers(env, *, total: int = TOTAL, rate: float = 400, fails: Path | None = None, seen: Path | None = None):
    source = DataGeneratorSource(int, total, rate)
    stream = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers", Types.LONG()).uid("numbers")
    return stream.map(Texts(fails, seen), Types.STRING()).uid("texts")


def lines(out: Path) -> list[int]:
    return sorted(int(line) for line, count in written(out.parent).items() for _ in range(count))


def begin_text(cluster, tmp_path, **settings: str):
    env = environment(cluster, 2, settings)
    stream = numbers(env, total=LONG, rate=300, seen=tmp_path / "seen")
    stream.write_as_text(str(tmp_path / "text" / "out")).uid("text")
    return env.execute_async("text")


@pytest.mark.parametrize("drain", [False, True], ids=["stop", "drain"])
@pytest.mark.parametrize("interval", [{}, OFTEN], ids=["no checkpoints", "checkpoints"])
def test_the_text_of_a_job_that_was_stopped_is_there_and_another_job_goes_on_with_it(
    drain, interval, cluster, client, tmp_path
):
    out = tmp_path / "text" / "out"
    job = begin_text(cluster, tmp_path, **interval)
    until((tmp_path / "seen").exists, "some text")
    savepoint = job.stop_with_savepoint(drain, str(tmp_path / "sp")).result(120)
    assert state(client, job) == "FINISHED"
    shown = lines(out)
    assert 100 < len(shown) < LONG
    assert len(set(shown)) == len(shown)
    begin_text(cluster, tmp_path, **interval, **{RESTORE: savepoint}).get_job_execution_result().result(120)
    if not drain:
        assert lines(out) == list(range(LONG))
    assert len(left_hidden(out.parent)) < 8, "only what the savepoint needs"


def test_files_of_a_savepoint_outlive_a_restart_before_the_next_checkpoint(cluster, client, marks, tmp_path):
    def begin(**settings: str):
        env = environment(cluster, 1, {**RARE, **settings})
        return counting(env, CountOfKey(marks), tmp_path / "out", key_of=lambda n: n % 7, count=TOTAL, rate=400)

    job = begin()
    until(lambda: processes(marks), "it counts")
    time.sleep(1)
    savepoint = job.trigger_savepoint(str(tmp_path / "sp")).result(120)
    kill_slot(client, job, marks)
    job.cancel().result(120)
    until(lambda: state(client, job) == "CANCELED", "CANCELED")
    assert not written(tmp_path / "out")
    begin(**{RESTORE: savepoint}).get_job_execution_result().result(120)
    assert written(tmp_path / "out") == all_counts(totals_of(range(TOTAL), lambda n: n % 7))
    assert left_hidden(tmp_path / "out") == []


@pytest.mark.parametrize("restarts", [0, 1])
@pytest.mark.parametrize("retained", [False, True], ids=["none retained", "retained"])
def test_a_job_that_failed_for_good_leaves_no_hidden_file(restarts, retained, cluster, client, tmp_path):
    settings = {
        **OFTEN,
        "execution.checkpointing.dir": str(tmp_path / "chk"),
        "restart-strategy.fixed-delay.attempts": str(restarts),
        "restart-strategy.type": "fixed-delay" if restarts else "none",
    }
    if retained:
        settings["execution.checkpointing.externalized-checkpoint-retention"] = "RETAIN_ON_CANCELLATION"
    env = environment(cluster, 2, settings)
    texts = numbers(env, total=10**6, fails=tmp_path / "fail")
    texts.sink_to(FileSink.for_row_format(str(tmp_path / "files"), Encoder.simple_string_encoder()).build())
    texts.write_as_text(str(tmp_path / "text" / "out"))
    job = env.execute_async("fails")
    until(lambda: completed(client, job) >= 3, "checkpoints")
    (tmp_path / "fail").touch()
    with pytest.raises(JobExecutionError, match="it was to fail"):
        job.get_job_execution_result().result(120)
    assert left_hidden(tmp_path / "files") == []
    # A retained checkpoint can be restored, so the text that it knows of stays.
    assert bool(left_hidden(tmp_path / "text")) == retained
    assert not (tmp_path / "text" / "out").exists()


class Ledger(Sink):
    """Commits lines by renaming files. Its last line comes when the input has ended: "end <subtask>"."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def create_writer(self, context):
        return _LedgerWriter(self.folder, context.runtime_context.get_index_of_this_subtask())

    def create_committer(self):
        return _LedgerCommitter()


class _LedgerWriter(SinkWriter):
    def __init__(self, folder: str, index: int) -> None:
        self.folder, self.index = folder, index
        self.lines: list[str] = []

    def write(self, element, context):
        self.lines.append(element)

    def flush(self, end_of_input):
        if end_of_input:
            self.lines.append(f"end {self.index}")

    def prepare_commit(self):
        taken, self.lines = self.lines, []
        target = Path(self.folder, f"{self.index}-{time.monotonic_ns()}")
        if taken:
            target.with_name("." + target.name).write_text("".join(f"{line}\n" for line in taken))
        return [str(target)] if taken else []


class _LedgerCommitter(Committer):
    def commit(self, committables):
        for target in map(Path, committables):
            pending = target.with_name("." + target.name)
            if pending.exists():
                pending.rename(target)


class FailsOnceAtItsEnd(Sink):
    """The other sink of the job: at its end it gives the ledger time to commit, then fails, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def create_writer(self, context):
        return _FailingWriter(self.folder)


class _FailingWriter(SinkWriter):
    def __init__(self, folder: str) -> None:
        self.failed = Path(folder, ".failed")

    def write(self, element, context):
        pass

    def flush(self, end_of_input):
        if end_of_input and not self.failed.exists():
            time.sleep(1.5)
            self.failed.touch()
            raise ValueError("it was to fail")


def test_the_end_of_a_bounded_job_does_not_wait_for_the_next_checkpoint(cluster, client, tmp_path):
    env = environment(cluster, 2, RARE)
    (tmp_path / "out").mkdir()
    numbers(env, total=200).sink_to(Ledger(tmp_path / "out"))
    started = time.monotonic()
    env.execute_async("ledger").get_job_execution_result().result(120)
    assert time.monotonic() - started < 300  # the next one comes after 600
    assert sorted(written(tmp_path / "out")) == sorted([*map(str, range(200)), "end 0", "end 1"])


def test_a_drained_job_that_fails_at_its_very_end_has_committed_nothing_twice(cluster, client, tmp_path):
    env = environment(cluster, 1, OFTEN)
    out = tmp_path / "out"
    out.mkdir()
    texts = numbers(env, total=LONG * 4)
    texts.sink_to(Ledger(out)).uid("ledger")
    texts.sink_to(FailsOnceAtItsEnd(out)).uid("fails").slot_sharing_group("fails")
    job = env.execute_async("ledger")
    until(lambda: completed(client, job) >= 2, "two checkpoints")
    # The answer waits for the end, which is made again from the checkpoint behind the drain.
    assert job.stop_with_savepoint(True, str(tmp_path / "sp")).result(120).startswith(f"file://{tmp_path / 'sp'}/")
    until(lambda: state(client, job) == "FINISHED", "FINISHED")
    found = written(out)
    assert (out / ".failed").exists()
    # It ends where it was drained, and that end comes once.
    assert found["end 0"] == 1
    assert sorted(found - Counter({"end 0": 1}), key=int) == [str(number) for number in range(sum(found.values()) - 1)]
    assert sum(found.values()) < LONG * 4
