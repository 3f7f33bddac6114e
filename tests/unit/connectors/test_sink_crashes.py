"""Sinks that commit, killed at every single step, restarted at another parallelism: a reader that looks at finished
files only sees every record once, and in the end nothing is left but finished files.

The steps are the calls of file systems (of tasks and coordinators alike; each is tried before and after it took
effect) and the points between the phases of a checkpoint. ``play`` is one job; its source is a cursor that the test
keeps with each durable checkpoint.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.connectors import file_commits
from engine.connectors.bulk_writers import JsonFormat
from engine.connectors.file_sink_config import BucketAssigner
from engine.connectors.file_sinks import CsvFileSinkSpec, TextFileSinkSpec, WriteMode
from engine.connectors.file_system import Encoder, FileSink, RollingPolicy
from engine.connectors.part_writers import LineWriter
from engine.connectors.staged_files import staging_folder
from engine.core import fs
from engine.core.errors import ExternalError, InputError, OutputExistsError
from engine.core.fs import LocalFileSystem
from engine.core.ids import JobID
from engine.core.records import ColumnBatch, RowBatch
from engine.core.type_info import Types
from engine.datastream.formats.parquet import ParquetBulkWriters
from engine.operators.base import JobOutcome, OperatorSpec
from tests.testing.checkpointed_job import CheckpointedJob, TakenCheckpoint
from tests.testing.memory_fs import Crash, CrashPoints, MemoryFileSystem

NUM_RECORDS = 22
RECORDS_PER_CHECKPOINT = 8


@dataclass
class Place:
    """A file system that can crash, and the folder to write to."""

    crashes: CrashPoints
    folder: str

    def tree(self) -> dict[str, bytes]:
        """All files by path below the folder."""
        found: dict[str, bytes] = {}
        pending = [self.folder]
        inner = self.crashes.inner
        while pending:
            for child in inner.list(pending.pop()):
                if child.is_dir:
                    pending.append(child.path)
                else:
                    with inner.open_read(child.path) as stream:
                        found[child.path[len(self.folder) + 1 :]] = stream.read()
        return found

    def visible(self) -> dict[str, bytes]:
        return {path: data for path, data in self.tree().items() if not any(p.startswith(".") for p in path.split("/"))}

    def hidden(self) -> list[str]:
        return sorted(self.tree().keys() - self.visible().keys())


@pytest.fixture
def memory(monkeypatch):
    crashes = CrashPoints(MemoryFileSystem())
    monkeypatch.setitem(fs._factories, "memory", lambda: crashes)
    monkeypatch.setitem(fs._instances, "memory", crashes)

    def fresh() -> Place:
        crashes.inner = MemoryFileSystem()
        crashes.inner.make_dirs("memory://cluster/out")
        return Place(crashes, "memory://cluster/out")

    return fresh


@pytest.fixture
def local(monkeypatch, tmp_path):
    crashes = CrashPoints(LocalFileSystem())
    monkeypatch.setitem(fs._instances, "file", crashes)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # a thousand of them take long
    folders = iter(range(100_000))

    def fresh() -> Place:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        return Place(crashes, str(folder))

    return fresh


@pytest.fixture(params=["memory", "local"])
def places(request):
    return request.getfixturevalue(request.param)


@dataclass
class World:
    """What outlives a crash: files, and the last durable checkpoint with the cursor of the source."""

    place: Place
    job: CheckpointedJob
    taken: TakenCheckpoint | None = None
    cursor: int = 0
    phases: list[str] = field(default_factory=list)
    #: name of the phase before which the process dies
    dies_at: int | None = None
    in_columns: bool = False

    def reach(self, phase: str) -> None:
        self.phases.append(phase)
        if self.dies_at is not None and len(self.phases) == self.dies_at:
            raise Crash(phase)


def record(number: int) -> Any:
    return (number, f"text {number}")


def columns_of(batch: RowBatch) -> ColumnBatch:
    return ColumnBatch(
        pa.record_batch([pa.array(values) for values in zip(*batch.rows, strict=True)], names=["a", "b"])
    )


def play(world: World, parallelism: int) -> None:
    """Run one attempt to the end of the job: checkpoints, a subtask that finishes before the others, a last commit."""
    job = world.job
    job.start(world.taken, parallelism=parallelism)
    cursor = world.cursor
    while True:
        for _ in range(RECORDS_PER_CHECKPOINT):
            running = sorted(job.harnesses.keys() - job.finished)
            if cursor < NUM_RECORDS and running:
                batch = RowBatch([record(cursor)])
                job.harnesses[running[cursor % len(running)]].process_batch(
                    columns_of(batch) if world.in_columns else batch
                )
                cursor += 1
        if cursor == NUM_RECORDS:
            for subtask in sorted(job.harnesses.keys() - job.finished)[:1]:
                job.finish(subtask)
                world.reach("a subtask finished")
        checkpoint(world, cursor)
        if cursor == NUM_RECORDS and len(job.finished) == job.parallelism:
            break
    world.reach("all finished")
    job.end(JobOutcome.FINISHED)
    world.reach("ended")


def checkpoint(world: World, cursor: int) -> None:
    job = world.job
    taken = job.snapshot_coordinators()
    for subtask in sorted(job.harnesses.keys() - job.finished):
        world.reach("some acknowledged")
        job.snapshot_subtask(taken, subtask)
    world.reach("all acknowledged")
    world.taken, world.cursor = taken, cursor
    world.reach("durable")
    job.commit(taken)
    world.reach("committed")
    if taken.checkpoint_id % 2:  # notifications may get lost
        job.notify(taken)
        world.reach("notified")


def count_records(visible: dict[str, bytes], read: Callable[[bytes], list[Any]]) -> Counter[Any]:
    return Counter(row for data in visible.values() for row in read(data))


EXPECTED = Counter(record(number) for number in range(NUM_RECORDS))


def crash_everywhere(
    places: Callable[[], Place],
    make: Callable[[str], OperatorSpec],
    read: Callable[[bytes], list[Any]],
    *,
    step: int = 1,
    parallelism: int = 2,
    commits_at_the_end: bool = False,
    in_columns: bool = False,
) -> int:
    """Play with a crash at call 1, 2, 3 … of the file system and at phase 1, 2, 3 …; return how many there were.

    ``commits_at_the_end``: nothing is visible before all have finished.
    """
    num_crashes = 0
    for kind in ("before call", "after call", "phase"):
        at = 1
        while True:
            place = places()
            job = CheckpointedJob(make(place.folder), parallelism=parallelism)
            world = World(place, job, in_columns=in_columns)
            crashes = place.crashes
            crashes.num_calls, crashes.after = 0, kind == "after call"
            crashes.crash_at = at if kind != "phase" else None
            world.dies_at = at if kind == "phase" else None
            where = f"{kind} {at}"
            try:
                play(world, parallelism)
                crashed = False
            except Crash:
                crashed = True
                num_crashes += 1
                crashes.crash_at, world.dies_at = None, None
                job.kill()
                seen = count_records(place.visible(), read)
                assert not seen or max(seen.values()) == 1, where
                assert not (commits_at_the_end and seen and "all finished" not in world.phases), where
                # With the last hidden file goes what tells another attempt that all has been done.
                is_done = commits_at_the_end and seen == EXPECTED and place.hidden() == []
                if world.phases[-1:] != ["ended"] and not is_done:
                    play(world, 1 + at % 3)
            job.dispose()  # what a killed task still had in memory comes too late
            assert count_records(place.visible(), read) == EXPECTED, (where, place.tree())
            assert place.hidden() == [], where
            if not crashed:
                break
            at += step
    return num_crashes


def text_spec(folder: str) -> OperatorSpec:
    sink = FileSink.for_row_format(folder, Encoder("utf-8")).with_rolling_policy(RollingPolicy(30, 0, 0))
    return sink.with_bucket_assigner(BucketAssigner.base_path_bucket_assigner()).build().to_spec(PRINTED)


PRINTED = Types.TUPLE([Types.INT(), Types.STRING()])


def tuple_lines(data: bytes) -> list[Any]:
    parts = (line[1:-1].split(",") for line in data.decode().splitlines())
    return [(int(number), text) for number, text in parts]


def staged_csv_spec(folder: str) -> OperatorSpec:
    return CsvFileSinkSpec(f"{folder}/out")


def csv_lines(data: bytes) -> list[Any]:
    return tuple_lines(b"".join(b"(%s)\n" % line for line in data.splitlines()))


class ByTens(BucketAssigner):
    def get_bucket_id(self, element, context):
        return f"tens={element[0] // 10}"


def json_spec(folder: str) -> OperatorSpec:
    sink = FileSink.for_bulk_format(folder, JsonFormat(("number", "text"))).with_bucket_assigner(ByTens())
    return sink.build().to_spec()


def json_lines(data: bytes) -> list[Any]:
    return [(row["number"], row["text"]) for row in map(json.loads, data.decode().splitlines())]


def parquet_spec(folder: str) -> OperatorSpec:
    row_type = Types.ROW_NAMED(["number", "text"], [Types.LONG(), Types.STRING()])
    sink = FileSink.for_bulk_format(folder, ParquetBulkWriters.for_row_type(row_type))
    return sink.with_bucket_assigner(BucketAssigner.base_path_bucket_assigner()).build().to_spec()


def parquet_rows(data: bytes) -> list[Any]:
    return [(row["number"], row["text"]) for row in pq.read_table(io.BytesIO(data)).to_pylist()]


def test_rows_of_a_file_sink_come_once_wherever_it_is_killed(places):
    assert crash_everywhere(places, text_spec, tuple_lines) > 100


def test_bulk_formats_in_buckets_come_once_wherever_the_sink_is_killed(memory):
    assert crash_everywhere(memory, json_spec, json_lines) > 100


def test_columns_of_a_file_sink_come_once_wherever_it_is_killed(memory, monkeypatch):
    monkeypatch.setattr(LineWriter, "_lines_of_rows", None)  # no detour
    for spec, read in ((text_spec, tuple_lines), (staged_csv_spec, csv_lines)):
        assert crash_everywhere(memory, spec, read, step=4, in_columns=True) > 20


def test_parquet_files_are_whole_wherever_the_sink_is_killed(memory):
    assert crash_everywhere(memory, parquet_spec, parquet_rows, step=4) > 20


def test_two_crashes_do_no_more_harm_than_one(memory):
    for first in range(5, 130, 9):
        for second in range(1, 60, 4):
            place = memory()
            job = CheckpointedJob(text_spec(place.folder), parallelism=2)
            world = World(place, job)
            for crash_at, parallelism in ((first, 2), (second, 3), (None, 1)):
                place.crashes.num_calls, place.crashes.crash_at = 0, crash_at
                try:
                    play(world, parallelism)
                    break
                except Crash:
                    job.kill()
                    assert max(count_records(place.visible(), tuple_lines).values(), default=1) == 1
            assert count_records(place.visible(), tuple_lines) == EXPECTED, (first, second)
            assert place.hidden() == []


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("mode", WriteMode)
def test_text_output_is_exact_wherever_it_is_killed(places, parallelism, mode):
    def make(folder: str) -> OperatorSpec:
        if mode is WriteMode.OVERWRITE:
            with fs.file_system_of(folder).inner.open_write(f"{folder}/out/1") as stream:  # type: ignore[attr-defined]
                stream.write(b"")
        return TextFileSinkSpec(f"{folder}/out", mode, type_info=PRINTED)

    num_crashes = crash_everywhere(places, make, tuple_lines, parallelism=parallelism, commits_at_the_end=True)
    assert num_crashes > 25


def test_text_output_is_exact_after_a_restart_at_another_parallelism(places):
    for before, after in ((1, 3), (3, 1), (2, 3)):
        place = places()
        job = CheckpointedJob(TextFileSinkSpec(f"{place.folder}/out", type_info=PRINTED), parallelism=before)
        world = World(place, job, dies_at=9)
        place.crashes.crash_at = None
        with pytest.raises(Crash):
            play(world, before)
        job.kill()
        world.dies_at = None
        play(world, after)
        assert sorted(place.visible()) == (["out"] if after == 1 else [f"out/{n + 1}" for n in range(after)])
        assert count_records(place.visible(), tuple_lines) == EXPECTED
        assert place.hidden() == []


# --- how a job may end ------------------------------------------------------------------------------------------------


def started(place: Place, *, parallelism: int = 1, spec: OperatorSpec | None = None, **kwargs: Any) -> CheckpointedJob:
    place.crashes.crash_at = None
    job = CheckpointedJob(spec or text_spec(place.folder), parallelism=parallelism, **kwargs)
    job.start()
    return job


def texts(place: Place) -> list[Any]:
    return sorted(count_records(place.visible(), tuple_lines).elements())


@pytest.mark.parametrize("publish_on_cancel", [False, True])
def test_a_cancelled_job_leaves_what_its_completed_checkpoints_committed(places, publish_on_cancel):
    place = places()
    sink = FileSink.for_row_format(place.folder, Encoder())
    spec = sink.with_bucket_assigner(ByTens()).build().to_spec(PRINTED, publish_on_cancel=publish_on_cancel)
    job = started(place, spec=spec)
    job.harnesses[0].process([record(1)])
    job.complete()
    job.harnesses[0].process([record(2)])
    aborted = job.checkpoint()
    for coordinator in job.coordinators:
        coordinator.checkpoint_aborted(aborted.checkpoint_id)
    job.harnesses[0].process([record(3)])
    job.close_tasks()
    job.end(JobOutcome.CANCELED)
    assert (texts(place), place.hidden()) == ([record(1)], [])


def test_a_cancelled_job_leaves_what_only_a_savepoint_names_for_the_job_that_goes_on_from_there(places):
    place = places()
    job = started(place)
    job.harnesses[0].process([record(1)])
    savepoint = job.savepoint()
    job.harnesses[0].process([record(2)])
    job.close_tasks()
    job.end(JobOutcome.CANCELED)
    assert texts(place) == []
    assert len(place.hidden()) == 2, "what the savepoint names, and a list of it"
    again = CheckpointedJob(text_spec(place.folder), job="another")
    again.start(savepoint)
    assert (texts(place), place.hidden()) == ([record(1)], [])


@pytest.mark.parametrize("how", ["the process died", "a task failed", "it failed for good"])
def test_what_a_savepoint_names_outlives_a_failure_before_the_next_checkpoint(places, how):
    """The job goes on from its checkpoint and writes the same again; whoever restores the savepoint has its own."""
    place = places()
    job = started(place)
    job.harnesses[0].process([record(1)])
    taken = job.complete()
    job.harnesses[0].process([record(2)])
    savepoint = job.savepoint()
    job.harnesses[0].process([record(3)])
    if how == "it failed for good":
        job.fail_for_good()
    else:
        if how == "the process died":
            job.kill()
        else:
            job.fail()
        job.start(taken)
        job.close_tasks()
        job.end(JobOutcome.CANCELED)
    assert texts(place) == [record(1)]
    again = CheckpointedJob(text_spec(place.folder), job="another")
    again.start(savepoint)
    assert (texts(place), place.hidden()) == ([record(1), record(2)], [])
    again.start(savepoint)  # committing again adds nothing
    assert texts(place) == [record(1), record(2)]


@pytest.mark.parametrize("after", [False, True])
def test_a_job_goes_on_wherever_it_is_killed_around_a_savepoint_and_that_can_be_restored(places, after):
    num_crashes = num_kept = 0
    for at in range(1, 200):
        place = places()
        job = started(place)
        job.harnesses[0].process([record(1)])
        taken = job.complete()
        crashes = place.crashes
        crashes.num_calls, crashes.after, crashes.crash_at = 0, after, at
        savepoint, cursor, crashed = None, 2, False
        try:
            job.harnesses[0].process([record(2)])
            savepoint = job.savepoint()
            job.harnesses[0].process([record(3)])
            taken, cursor = job.checkpoint(), 4
            job.commit(taken)
        except Crash:
            crashed = True
            num_crashes += 1
        crashes.crash_at = None
        if crashed:
            job.kill()
            job.start(taken)
        for number in range(cursor, 5):
            job.harnesses[0].process([record(number)])
        job.finish_all()
        job.end(JobOutcome.FINISHED)
        assert texts(place) == [record(number) for number in range(1, 5)], at
        if savepoint is not None:
            CheckpointedJob(text_spec(place.folder), job="another").start(savepoint)
            twice = [record(2)] if cursor == 2 else []  # the first job has written it again, for itself
            assert texts(place) == sorted([*(record(number) for number in range(1, 5)), *twice]), at
        job.dispose()
        # If the list was written and the savepoint did not become durable, nobody can tell: what it names stays.
        assert place.hidden() == [] or (savepoint is None and len(place.hidden()) == 2), (at, place.hidden())
        num_kept += bool(place.hidden())
        if not crashed:
            break
    assert num_crashes > 10
    assert num_kept <= 1


def test_the_list_of_a_savepoint_goes_when_a_checkpoint_has_committed_what_is_in_it(places):
    place = places()
    job = started(place)
    job.harnesses[0].process([record(1)])
    savepoint = job.savepoint()
    assert len(place.hidden()) == 2
    job.complete()
    assert (texts(place), place.hidden()) == ([record(1)], [])
    again = CheckpointedJob(text_spec(place.folder), job="another")
    again.start(savepoint)
    assert texts(place) == [record(1)]


def test_a_savepoint_that_does_not_become_durable_keeps_nothing(places):
    place = places()
    job = started(place)
    job.harnesses[0].process([record(1)])
    savepoint = job.savepoint()
    for coordinator in job.coordinators:
        coordinator.checkpoint_aborted(savepoint.checkpoint_id)
    job.fail_for_good()
    assert place.hidden() == []


FOLDER = {"execution.checkpointing.interval": "1 s", "execution.checkpointing.dir": "file:///c"}
RETAINED = {**FOLDER, "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION"}


@pytest.mark.parametrize("config", [{}, FOLDER, RETAINED], ids=["no checkpoints", "none retained", "retained"])
def test_a_job_that_failed_for_good_leaves_no_hidden_file(places, config):
    place = places()
    job = started(place, config=config)
    job.harnesses[0].process([record(1)])
    if config:
        job.complete()
    job.harnesses[0].process([record(2)])
    aborted = job.checkpoint()
    for coordinator in job.coordinators:
        coordinator.checkpoint_aborted(aborted.checkpoint_id)
    job.harnesses[0].process([record(3)])
    job.kill() if config else job.fail()
    job.start_coordinators()
    job.end(JobOutcome.FAILED)
    job.give_up(JobOutcome.FAILED)
    assert (texts(place), place.hidden()) == ([record(1)] if config else [], [])


@pytest.mark.parametrize(("config", "kept"), [(FOLDER, 0), (RETAINED, 1)], ids=["none retained", "retained"])
@pytest.mark.parametrize("outcome", [JobOutcome.FAILED, JobOutcome.CANCELED])
def test_what_a_retained_checkpoint_may_want_committed_stays(places, config, kept, outcome):
    place = places()
    job = started(place, config=config)
    job.harnesses[0].process([record(1)])
    taken = job.checkpoint()  # becomes durable when the job fails already: nobody is told
    job.fail()
    job.give_up(outcome)
    assert len(place.hidden()) == kept
    again = CheckpointedJob(text_spec(place.folder), job="another")
    again.start(taken)
    assert texts(place) == [record(1)] * kept


def test_a_commit_that_failed_for_good_can_be_made_from_the_retained_checkpoint(places, monkeypatch):
    place = places()
    job = started(place, config=RETAINED)
    job.harnesses[0].process([record(1)])
    taken = job.checkpoint()
    monkeypatch.setattr(file_commits, "_sleep", lambda seconds: None)
    with monkeypatch.context() as patched:
        patched.setattr(place.crashes.inner, "rename", _refuse)
        with pytest.raises(ExternalError):
            job.commit(taken)
    job.fail_for_good()
    again = CheckpointedJob(text_spec(place.folder), job="another")
    again.start(taken)
    assert (texts(place), place.hidden()) == ([record(1)], [])


def _refuse(*args, **kwargs):
    raise ExternalError("no")


def test_a_failed_job_keeps_what_a_durable_checkpoint_may_still_want_committed(places):
    place = places()
    job = started(place)
    job.harnesses[0].process([record(1)])
    taken = job.checkpoint()  # durable, and the job fails before anybody is told
    job.harnesses[0].process([record(2)])
    job.fail()
    assert texts(place) == []
    job.start(taken)
    assert (texts(place), place.hidden()) == ([record(1)], [])


def test_a_savepoint_that_stops_a_job_without_checkpoints_is_committed(places):
    place = places()
    job = started(place, config={})
    job.harnesses[0].process([record(1)])
    taken = job.complete()
    assert texts(place) == [record(1)]
    job.harnesses[0].process([record(2)])
    job.fail()
    job.start(taken)
    job.harnesses[0].process([record(3)])
    job.finish_all()
    job.end(JobOutcome.FINISHED)
    assert (texts(place), place.hidden()) == ([record(1), record(3)], [])


def test_an_aborted_checkpoints_parts_come_with_the_next_one(places):
    place = places()
    job = started(place, parallelism=2)
    job.harnesses[0].process([record(1)])
    aborted = job.checkpoint()
    for coordinator in job.coordinators:
        coordinator.checkpoint_aborted(aborted.checkpoint_id)
    job.harnesses[1].process([record(2)])
    assert texts(place) == []
    job.complete()
    assert texts(place) == [record(1), record(2)]


def test_nobody_elses_hidden_files_are_touched(places):
    place = places()
    inner = place.crashes.inner
    foreign = [".part-0-0.inprogress.another-job-0", ".part-0-0.pending.another-job-0", ".notes"]
    for name in foreign:
        inner.open_write(f"{place.folder}/{name}").close()
    job = started(place)
    job.harnesses[0].process([record(1)])
    job.kill()
    job.start(None)
    job.close_tasks()
    job.end(JobOutcome.CANCELED)
    assert place.hidden() == sorted(foreign)


def test_two_sinks_of_a_job_do_not_sweep_each_other(places):
    place = places()
    first, second = started(place, name="one"), started(place, name="two")
    second.harnesses[0].process([record(1)])
    taken = second.checkpoint()
    first.kill()
    first.start(None)
    second.commit(taken)
    assert texts(place) == [record(1)]


def test_part_numbers_go_on_after_a_restart_at_any_parallelism(places):
    place = places()
    job = started(place, parallelism=2)
    job.harnesses[0].process([record(1)])
    job.complete()
    job.harnesses[0].process([record(2)])
    taken = job.complete()
    job.kill()
    job.start(taken, parallelism=3)
    for subtask in range(3):
        job.harnesses[subtask].process([record(subtask)])
    job.complete()
    assert sorted(place.visible()) == ["part-0-0", "part-0-1", "part-0-2", "part-1-2", "part-2-2"]


def test_an_earlier_jobs_files_are_kept_and_committing_again_adds_nothing(places):
    place = places()
    with place.crashes.inner.open_write(f"{place.folder}/part-0-0") as stream:
        stream.write(b"(0,earlier)\n")
    job = started(place)
    job.harnesses[0].process([record(1)])
    taken = job.complete()
    for _ in range(3):
        job.kill()
        job.start(taken)
    assert sorted(place.visible()) == ["part-0-0", "part-0-1"]
    assert texts(place) == [(0, "earlier"), record(1)]


def test_a_finished_file_that_its_reader_took_away_does_not_keep_the_job_from_restarting(places, caplog):
    place = places()
    job = started(place)
    job.harnesses[0].process([record(1)])
    taken = job.complete()
    place.crashes.inner.delete(f"{place.folder}/part-0-0")
    job.kill()
    job.start(taken)
    assert "part-0-0" in caplog.text


def test_a_pending_file_that_is_gone_before_its_first_commit_is_an_error(places, monkeypatch):
    place = places()
    job = started(place)
    job.harnesses[0].process([record(1)])
    taken = job.checkpoint()
    [hidden] = place.hidden()
    place.crashes.inner.delete(f"{place.folder}/{hidden}")
    monkeypatch.setattr(file_commits, "_sleep", lambda seconds: None)
    with pytest.raises(ExternalError, match=r"part-0-0: its hidden file .*pending.* is gone"):
        job.commit(taken)


def test_a_commit_is_tried_again_before_the_job_fails(places, monkeypatch):
    place = places()
    job = started(place)
    job.harnesses[0].process([record(1)])
    taken = job.checkpoint()
    waits: list[float] = []
    monkeypatch.setattr(file_commits, "_sleep", waits.append)
    rename = place.crashes.inner.rename
    failures = iter([True, True])

    def flaky(source, target, *, overwrite=False):
        rename(source, target, overwrite=overwrite)
        if next(failures, False):
            raise ExternalError("the answer got lost")

    monkeypatch.setattr(place.crashes.inner, "rename", flaky)
    job.commit(taken)
    assert len(waits) == 1  # it had been renamed, which the second look shows
    assert texts(place) == [record(1)]


def test_text_output_of_a_cancelled_unbounded_job_ends_at_its_last_checkpoint(places):
    place = places()
    spec = TextFileSinkSpec(f"{place.folder}/out", type_info=PRINTED, publish_on_cancel=True)
    job = started(place, spec=spec)
    job.harnesses[0].process([record(1)])
    job.complete()
    job.harnesses[0].process([record(2)])
    job.close_tasks()
    job.end(JobOutcome.CANCELED)
    assert (texts(place), place.hidden()) == ([record(1)], [])


def text_output(place: Place, mode: WriteMode = WriteMode.NO_OVERWRITE, **kwargs: Any) -> OperatorSpec:
    return TextFileSinkSpec(f"{place.folder}/out", mode, type_info=PRINTED, **kwargs)


def stop(job: CheckpointedJob) -> TakenCheckpoint:
    """Stop the job with a savepoint: the tasks end without finishing."""
    taken = job.savepoint()
    job.commit(taken)
    job.notify(taken)
    job.close_tasks()
    for subtask in job.harnesses:
        for coordinator in job.coordinators:
            coordinator.subtask_finished(subtask)
    job.end(JobOutcome.FINISHED)
    return taken


def go_on(place: Place, taken: TakenCheckpoint, spec: OperatorSpec, parallelism: int, number: int) -> CheckpointedJob:
    """Let another job go on from there with one more record, to its end."""
    job = CheckpointedJob(spec, parallelism=parallelism, job=f"another {number}")
    job.start(taken)
    job.harnesses[0].process([record(number)])
    job.complete()
    job.finish_all()
    job.end(JobOutcome.FINISHED)
    job.dispose()
    return job


@pytest.mark.parametrize("config", [{}, FOLDER], ids=["no checkpoints", "checkpoints"])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 3), (3, 1)])
def test_a_job_goes_on_with_the_text_of_one_that_was_stopped(places, config, before, after):
    place = places()
    job = started(place, spec=text_output(place), parallelism=before, config=config)
    for number in range(4):
        job.harnesses[number % before].process([record(number)])
    savepoint = stop(job)
    assert texts(place) == [record(number) for number in range(4)]
    for number in (4, 5):  # as often as one likes
        go_on(place, savepoint, text_output(place), after, number)
        if number == 4:
            assert texts(place) == [record(number) for number in range(5)]
            break
    with pytest.raises(OutputExistsError):  # it is not what the savepoint knows of any more
        go_on(place, savepoint, text_output(place), after, 6)
    go_on(place, savepoint, text_output(place, WriteMode.OVERWRITE), after, 7)
    assert texts(place) == [*(record(number) for number in range(4)), record(7)]


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("after_it", [False, True])
def test_the_text_of_a_stopped_job_is_replaced_wherever_the_next_one_is_killed(places, parallelism, after_it):
    for at in range(1, 100):
        place = places()
        job = started(place, spec=text_output(place), parallelism=2)
        job.harnesses[0].process([record(1)])
        savepoint = stop(job)
        crashes = place.crashes
        again = CheckpointedJob(text_output(place), parallelism=parallelism, job="another")
        taken, crashed = savepoint, False
        crashes.num_calls, crashes.after, crashes.crash_at = 0, after_it, at
        try:
            again.start(taken)
            again.harnesses[0].process([record(2)])
            again.finish_all()
            taken = again.checkpoint()
            again.commit(taken)
            again.end(JobOutcome.FINISHED)
        except Crash:
            crashed = True
        crashes.crash_at = None
        # With the last of its own hidden files goes what tells another attempt that all has been done.
        own = staging_folder(f"{place.folder}/out", JobID.from_text("another"))
        is_done = texts(place) == [record(1), record(2)] and crashes.status(own) is None
        if crashed and not is_done:
            assert texts(place) in ([record(1)], [record(1), record(2)], []), at
            again.kill()
            again.start(taken)
            if taken is savepoint:
                again.harnesses[0].process([record(2)])
                again.finish_all()
                taken = again.checkpoint()
            again.end(JobOutcome.FINISHED)
        again.dispose()
        assert texts(place) == [record(1), record(2)], at
        if not crashed:
            assert at > 10
            break


@pytest.mark.parametrize("how", ["cancelled", "killed and cancelled", "finished", "failed for good"])
def test_a_job_goes_on_with_the_text_that_a_savepoint_names(places, how):
    place = places()
    job = started(place, spec=text_output(place), parallelism=2)
    job.harnesses[1].process([record(1)])
    taken = job.complete()
    job.harnesses[0].process([record(2)])
    savepoint = job.savepoint()
    job.harnesses[0].process([record(3)])
    match how:
        case "finished":
            job.finish_all()
            job.end(JobOutcome.FINISHED)
            assert texts(place) == [record(number) for number in (1, 2, 3)]
        case "failed for good":
            job.fail_for_good()
        case _:
            if how == "killed and cancelled":
                job.kill()
                job.start(taken)
            job.close_tasks()
            job.end(JobOutcome.CANCELED)
    mode = WriteMode.OVERWRITE if how == "finished" else WriteMode.NO_OVERWRITE
    go_on(place, savepoint, text_output(place, mode), 2, 4)
    job.dispose()
    assert texts(place) == [record(number) for number in (1, 2, 4)]


@pytest.mark.parametrize("told", [False, True], ids=["coordinator first", "task first"])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 3), (3, 1)])
def test_text_of_a_task_that_waited_at_its_end_comes_once(places, told, before, after):
    """It has finished, and something else in its chain waits for the checkpoint: its file is known by two ways."""
    place = places()
    job = started(place, spec=text_output(place), parallelism=before)
    for number in range(before):
        job.harnesses[number].process([record(number)])
    if told:
        job.harnesses[before - 1].end()
    taken = job.snapshot_coordinators()
    if not told:
        job.harnesses[before - 1].end()
    for subtask in job.harnesses:
        job.snapshot_subtask(taken, subtask)
    job.kill()
    job.start(taken, parallelism=after)
    job.finish_all()
    job.end(JobOutcome.FINISHED)
    job.dispose()
    assert texts(place) == [record(number) for number in range(before)]


@pytest.mark.parametrize(("config", "stays"), [(FOLDER, False), (RETAINED, True)], ids=["none retained", "retained"])
@pytest.mark.parametrize("how", ["cancelled", "failed for good", "cancelled while it waits"])
def test_text_stays_for_a_retained_checkpoint_and_for_nothing_else(places, config, stays, how):
    place = places()
    job = started(place, spec=text_output(place), config=config)
    job.harnesses[0].process([record(1)])
    taken = job.complete()
    job.harnesses[0].process([record(2)])
    match how:
        case "cancelled":
            job.close_tasks()
            job.end(JobOutcome.CANCELED)
        case "failed for good":
            job.fail_for_good()
        case _:
            job.fail()
            job.give_up(JobOutcome.CANCELED)
    assert bool(place.hidden()) == stays
    if not stays:
        with pytest.raises(InputError, match="which are gone"):
            go_on(place, taken, text_output(place), 1, 3)
        return
    go_on(place, taken, text_output(place), 1, 3)
    assert texts(place) == [record(1), record(3)]


def test_an_unbounded_jobs_text_is_shown_on_cancel_and_kept_for_its_retained_checkpoint(places):
    place = places()
    job = started(place, spec=text_output(place, publish_on_cancel=True), config=RETAINED)
    job.harnesses[0].process([record(1)])
    taken = job.complete()
    job.harnesses[0].process([record(2)])
    job.close_tasks()
    job.end(JobOutcome.CANCELED)
    assert texts(place) == [record(1)]
    go_on(place, taken, text_output(place), 1, 3)
    assert texts(place) == [record(1), record(3)]


def test_hidden_files_on_a_real_disk_are_brought_to_it(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    job = CheckpointedJob(text_spec(str(tmp_path)))
    job.start()
    job.harnesses[0].process([record(1)])
    assert synced == []
    job.checkpoint()
    assert synced
    job.kill()
    assert [name for name in os.listdir(tmp_path) if ".pending." in name]
