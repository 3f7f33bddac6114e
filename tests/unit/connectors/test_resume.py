"""Coordinators of an attempt whose tasks run on though the JobManager that started them is gone."""

from __future__ import annotations

import os
from typing import Any

import pytest

from engine.connectors.column_generator import ColumnGeneratorSource
from engine.connectors.csv_source import DelimitedFileSource
from engine.connectors.file_commits import IN_PROGRESS, PENDING, PartsCoordinatorSpec, PendingPart, hidden_name, mark_of
from engine.connectors.files import TextFileSource
from engine.connectors.simple import SequenceSource
from engine.connectors.source import NoMoreSplits, RequestSplit, Source, SourceSpec, SplitAssigned, SplitsReceived
from engine.connectors.staged_files import Segment, StagedFilesSpec, WriteMode, segment_path
from engine.core.errors import ExternalError
from engine.core.ids import JobID, OperatorID
from engine.operators.base import CoordinatorContext, JobOutcome, OperatorCoordinator

JOB, OPERATOR = JobID("a" * 32), OperatorID("b" * 32)
CHECKPOINTED = {"execution.checkpointing.interval": "1 s"}


class Hosted:
    def __init__(self, coordinator: OperatorCoordinator, parallelism: int = 2, restored_from: int = 0) -> None:
        self.sent: list[tuple[int, Any]] = []
        self.coordinator = coordinator
        self.ctx = CoordinatorContext(
            parallelism,
            JOB,
            CHECKPOINTED,
            lambda subtask, event: self.sent.append((subtask, event)),
            3,
            OPERATOR,
            restored_from,
        )


def sources(tmp_path) -> list[Source]:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(f"{number}\n" * 10)
    return [
        SequenceSource(0, 99),
        ColumnGeneratorSource(None, 1 << 20),
        TextFileSource((str(folder),)),
        DelimitedFileSource((str(folder),), "\n"),
    ]


def all_splits(source: Source) -> list[Any]:
    former = Hosted(SourceSpec(source).coordinator().create())
    former.coordinator.start(former.ctx)
    while not former.sent or not isinstance(former.sent[-1][1], NoMoreSplits):
        former.coordinator.handle_event(0, 3, RequestSplit("h"))
    return [event.split for _, event in former.sent[:-1]]


def drained(hosted: Hosted) -> list[Any]:
    """Return the splits that were or are handed out."""
    while not hosted.sent or not isinstance(hosted.sent[-1][1], NoMoreSplits):
        hosted.coordinator.handle_event(0, 3, RequestSplit("h"))
    return [event.split for _, event in hosted.sent if isinstance(event, SplitAssigned)]


@pytest.mark.parametrize("number", range(4))
def test_each_split_is_handed_out_once_whoever_does_it(number, tmp_path):
    source = sources(tmp_path)[number]
    splits = all_splits(source)
    assert len(splits) >= 2
    spec = SourceSpec(source).coordinator()
    assert spec.can_resume
    for taken in range(len(splits) + 1):
        hosted = Hosted(spec.create())
        received = tuple((0, split) for split in splits[:taken])
        reports = {0: SplitsReceived("h", False, received[::2]), 1: SplitsReceived("h", True, received[1::2])}
        hosted.coordinator.resume(hosted.ctx, reports)
        assert len(hosted.sent) == 1, "what was asked in vain is answered"
        assert hosted.sent[0][0] == 1
        assert drained(hosted) == splits[taken:]


def test_splits_that_the_checkpoint_knows_as_handed_out_are_not_counted_again(tmp_path):
    source = SequenceSource(0, 99)
    splits = all_splits(source)
    former = Hosted(SourceSpec(source).coordinator().create())
    former.coordinator.start(former.ctx)
    former.coordinator.handle_event(0, 3, RequestSplit("h"))
    state = former.coordinator.snapshot(7)  # one of two is handed out
    hosted = Hosted(SourceSpec(source).coordinator().create(), restored_from=7)
    hosted.coordinator.restore(state, {})
    reports = {0: SplitsReceived("h", False, ((6, splits[0]),)), 1: SplitsReceived("h", False, ((7, splits[1]),))}
    hosted.coordinator.resume(hosted.ctx, reports)
    assert drained(hosted) == []


@pytest.mark.parametrize("what", ["unknown", "twice", "silent"])
def test_readers_whose_splits_are_in_doubt_are_not_taken_over(what):
    splits = all_splits(SequenceSource(0, 99))
    other = all_splits(SequenceSource(0, 98))
    reports = {0: SplitsReceived("h", False, ((0, splits[0]),)), 1: SplitsReceived("h", False, ())}
    if what == "unknown":
        reports[1] = SplitsReceived("h", False, ((0, other[1]),))
    elif what == "twice":
        reports[1] = reports[0]
    else:
        del reports[1]
    hosted = Hosted(SourceSpec(SequenceSource(0, 99)).coordinator().create())
    with pytest.raises(ExternalError):
        hosted.coordinator.resume(hosted.ctx, reports)


# --- files ----------------------------------------------------------------------------------------------------------


def hidden(folder, state: str, number: int) -> PendingPart:
    name = hidden_name("part-0", number, state, mark_of(JOB, OPERATOR), 3)
    (folder / name).write_text(f"{number}\n")
    return PendingPart(str(folder / name), str(folder), "part-0", number, "")


def test_parts_of_the_newest_checkpoint_are_committed_and_what_tasks_write_stays(tmp_path):
    committed = hidden(tmp_path, PENDING, 0)
    os.rename(committed.pending, committed.target(0))  # by the former leader, who then was lost
    owed, later, open_part = (
        hidden(tmp_path, PENDING, 1),
        hidden(tmp_path, PENDING, 2),
        hidden(tmp_path, IN_PROGRESS, 3),
    )
    spec = PartsCoordinatorSpec(str(tmp_path), False)
    assert spec.can_resume
    hosted = Hosted(spec.create(), restored_from=5)
    hosted.coordinator.restore(b"", {0: (committed, owed)})
    hosted.coordinator.resume(hosted.ctx, {})
    names = sorted(os.listdir(tmp_path))
    assert [name for name in names if not name.startswith(".")] == ["part-0-0", "part-0-1"]
    assert sorted(name for name in names if name.startswith(".")) == sorted(
        os.path.basename(part.pending) for part in (later, open_part)
    )
    # The next checkpoint offers again what tasks do not know to be committed.
    hosted.coordinator.snapshot(9)
    hosted.coordinator.checkpoint_completed(9, {0: (committed, owed, later)})
    assert (tmp_path / "part-0-2").read_text() == "2\n"
    hosted.coordinator.job_ended(JobOutcome.CANCELED)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")], "nobody told where it was"


def test_segments_that_running_tasks_write_stay(tmp_path):
    spec = StagedFilesSpec(str(tmp_path / "out"), WriteMode.NO_OVERWRITE, False)
    assert spec.can_resume
    former = Hosted(spec.create(), parallelism=1)
    former.coordinator.start(former.ctx)
    known, new = (segment_path(str(tmp_path / "out"), JOB, 0, 3, number) for number in (0, 1))
    for path in (known, new):
        with open(path, "w", encoding="utf-8") as stream:
            stream.write("line\n")
    committables = {0: (Segment(known, 5),)}
    resumed = Hosted(spec.create(), parallelism=1, restored_from=2)
    resumed.coordinator.restore(b"", committables)
    resumed.coordinator.resume(resumed.ctx, {})
    assert os.path.exists(known)
    assert os.path.exists(new)
    restarted = Hosted(spec.create(), parallelism=1, restored_from=2)
    restarted.coordinator.restore(b"", committables)
    restarted.coordinator.start(restarted.ctx)
    assert os.path.exists(known)
    assert not os.path.exists(new)


def test_a_coordinator_without_resume_refuses():
    with pytest.raises(NotImplementedError, match="cannot go on with running tasks"):
        OperatorCoordinator().resume(Hosted(OperatorCoordinator()).ctx, {})
