"""CheckpointCoordinator: single rules, then all interleavings of a small job, then seeded histories of larger ones."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from engine.checkpoint import messages as msg
from engine.checkpoint.coordinator import CheckpointCoordinator
from engine.checkpoint.model import InputLayout, JobLayout, Task
from engine.checkpoint.requests import QUEUE_MAX
from engine.checkpoint.schedule import RETRY_MS
from engine.checkpoint.settings import CheckpointSettings, checkpoint_settings
from engine.checkpoint.store import Garbage, StoredCheckpoint
from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.ids import ExecutionAttemptID
from engine.protocol.checkpoint import (
    CheckpointFailureReason,
    CheckpointKind,
    DeclineCheckpoint,
    ListStateHandle,
    OperatorStateHandles,
    StopMode,
)
from tests.unit.checkpoint.jobs import FOLDERS, JOB_ID, acknowledgement, file, keyed_checkpoint, pipeline, vertex

SETTINGS = CheckpointSettings(interval_ms=1000, timeout_ms=5000)
SAVEPOINT = "file:///savepoints/savepoint-1"


class Shell:
    """Feeds a coordinator, checks its invariants after each event, and keeps its commands."""

    def __init__(
        self, layout: JobLayout = pipeline(1, 1), settings: CheckpointSettings = SETTINGS, **arguments
    ) -> None:
        self.layout = layout
        self.coordinator = CheckpointCoordinator(layout, settings, FOLDERS, **arguments)
        self.now_ms = 0
        self.attempt = -1
        self.deleted: set[str] = set()

    def __call__(self, event: msg.Event) -> list[msg.Command]:
        commands = self.coordinator.handle(event, self.now_ms)
        self.coordinator.check_invariants()
        for command in commands:
            if isinstance(command, msg.Discard):
                self.deleted |= {*command.garbage.folders, *command.garbage.files}
        return commands

    def begin(self) -> None:
        self.attempt += 1
        self(msg.AttemptBegun(self.attempt))
        for task in self.layout.tasks():
            self(msg.TaskRunning(task))

    def at(self, now_ms: int) -> list[msg.Command]:
        self.now_ms = now_ms
        return self(msg.TimerFired())

    def ack(self, task: Task, checkpoint_id: int, *paths: str) -> list[msg.Command]:
        return self(msg.Acknowledged(acknowledgement(task, checkpoint_id, paths, attempt=self.attempt)))

    def ack_all(self, checkpoint_id: int, path: str = "") -> list[msg.Command]:
        """Bring a checkpoint from PREPARING to WRITING; return the last commands."""
        commands = self(msg.CheckpointPrepared(checkpoint_id))
        for index, task in enumerate(self.layout.tasks()):
            commands = self.ack(task, checkpoint_id, *([f"{path}-{index}"] if path else []))
        return commands

    def complete(self, checkpoint_id: int, path: str = "") -> list[msg.Command]:
        self.ack_all(checkpoint_id, path)
        return self(msg.MetadataWritten(checkpoint_id))

    def status(self, checkpoint_id: int) -> str:
        record = self.coordinator.statistics.find(checkpoint_id)
        assert record is not None
        return record.status.name


def running(layout: JobLayout = pipeline(1, 1), settings: CheckpointSettings = SETTINGS, **arguments) -> Shell:
    shell = Shell(layout, settings, **arguments)
    shell.begin()
    return shell


def only(kind: type, commands: list[msg.Command]):
    found = [command for command in commands if isinstance(command, kind)]
    assert len(found) == 1, commands
    return found[0]


def kinds(commands: list[msg.Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


# --- a checkpoint -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_goes_from_coordinators_to_sources_to_metadata_to_notices():
    shell = running()
    source, sink = shell.layout.tasks()
    assert shell.at(999) == []
    assert shell.at(1000) == [msg.PrepareCheckpoint(1)]
    trigger, release = shell(msg.CheckpointPrepared(1))
    assert (trigger.tasks, trigger.options.kind, release) == (
        (source,),
        CheckpointKind.CHECKPOINT,
        msg.ReleaseEvents(1),
    )
    assert shell.ack(sink, 1) == []
    write = only(msg.WriteMetadata, shell.ack(source, 1))
    assert write.checkpoint.folder == FOLDERS.exclusive(1)
    assert shell(msg.MetadataWritten(1)) == [msg.NotifyComplete(write.checkpoint, tuple(sorted((source, sink))))]
    assert shell.coordinator.restore_point() == write.checkpoint


def test_tasks_that_were_taken_over_hear_what_is_durable_and_what_will_never_be_then_go_on():
    former = running()
    former.at(1000)
    former.complete(1)
    stored = StoredCheckpoint(former.coordinator.restore_point(), True)
    shell = Shell(restored=[stored], counter=3)  # 2 and 3 were begun
    shell.attempt, shell.now_ms = 4, 1200
    tasks = tuple(sorted(shell.layout.tasks()))
    assert shell(msg.AttemptTakenOver(4)) == [
        msg.NotifyComplete(stored.checkpoint, tasks),
        msg.NotifyAborted(2, tasks),
        msg.NotifyAborted(3, tasks),
    ]
    assert shell.ack(tasks[0], 3, "late") == [], "nobody waits for it, and it is no file of the job's"
    assert shell.at(1999) == []
    assert shell.at(2000) == [msg.PrepareCheckpoint(4)], "an interval after the former leader's"
    assert only(msg.NotifyComplete, shell.complete(4)).checkpoint.checkpoint_id == 4
    assert shell(msg.AttemptBegun(5)) == []
    assert shell.coordinator.restore_point().checkpoint_id == 4


def test_tasks_without_any_checkpoint_can_be_taken_over():
    shell = Shell()
    shell.attempt = 0
    assert shell(msg.AttemptTakenOver(0)) == [msg.PrepareCheckpoint(1)], "nobody knows for how long there was none"


@pytest.mark.parametrize(
    ("taken_over_ms", "min_pause_ms", "due_ms"),
    [(1999, 0, 2000), (2000, 0, 2000), (60_000, 0, 60_000), (500, 0, 1500), (2000, 300, 2300), (1100, 300, 2000)],
)
def test_a_checkpoint_that_fell_due_while_nobody_led_is_taken_at_once_but_for_a_pause(
    taken_over_ms, min_pause_ms, due_ms
):
    """One is taken each second; 500 ms are before the former leader's checkpoint by the clock of this host."""
    former = running()
    former.at(1000)
    former.complete(1)
    stored = StoredCheckpoint(former.coordinator.restore_point(), True)
    settings = dataclasses.replace(SETTINGS, min_pause_ms=min_pause_ms)
    shell = Shell(settings=settings, restored=[stored], counter=1)
    shell.attempt, shell.now_ms = 4, taken_over_ms
    begun = "PrepareCheckpoint" in kinds(shell(msg.AttemptTakenOver(4)))
    assert begun == (due_ms == taken_over_ms)
    if not begun:
        assert shell.coordinator.next_timer_ms() == due_ms
        assert shell.at(due_ms - 1) == []
        assert shell.at(due_ms) == [msg.PrepareCheckpoint(2)]


def test_no_checkpoint_begins_before_all_tasks_run():
    shell = Shell()
    source, sink = shell.layout.tasks()
    shell(msg.AttemptBegun(0))
    shell(msg.TaskRunning(source))
    assert shell.at(5000) == []
    assert shell(msg.TaskRunning(sink)) == [msg.PrepareCheckpoint(1)]


def test_no_more_than_the_allowed_number_is_under_way():
    shell = running(settings=dataclasses.replace(SETTINGS, max_concurrent=2, timeout_ms=100_000))
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    assert shell.at(2000) == [msg.PrepareCheckpoint(2)]
    shell(msg.CheckpointPrepared(2))
    assert shell.at(3000) == []
    assert msg.PrepareCheckpoint(3) in shell.complete(1)


def test_the_next_checkpoint_waits_for_the_pause_after_the_last():
    shell = running(settings=dataclasses.replace(SETTINGS, min_pause_ms=700))
    shell.at(1000)
    shell.now_ms = 1900
    shell.complete(1)
    assert shell.coordinator.next_timer_ms() == 2600
    assert shell.at(2599) == []
    assert shell.at(2600) == [msg.PrepareCheckpoint(2)]


def test_periods_that_were_missed_are_not_made_up_for():
    shell = running()
    shell.at(1000)
    shell.now_ms = 4500
    assert msg.PrepareCheckpoint(2) in shell.complete(1)
    shell.complete(2)
    assert shell.coordinator.next_timer_ms() == 5500


def test_a_newer_checkpoint_subsumes_an_older_one_under_way():
    shell = running(settings=dataclasses.replace(SETTINGS, max_concurrent=2))
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    shell.at(2000)
    commands = shell.complete(2)
    assert only(msg.NotifyAborted, commands).checkpoint_id == 1
    assert (shell.status(1), shell.status(2)) == ("FAILED", "COMPLETED")


def test_a_late_checkpoint_expires_and_counts_as_a_failure():
    shell = running()
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    commands = shell.at(6000)
    assert "within execution.checkpointing.timeout (5000 ms): 2 of 2 tasks did not acknowledge" in (
        only(msg.FailJob, commands).message
    )


def test_metadata_that_is_being_written_does_not_expire():
    shell = running()
    shell.at(1000)
    shell.ack_all(1)
    shell.at(60_000)
    shell(msg.MetadataWritten(1))
    assert shell.status(1) == "COMPLETED"


def test_failures_are_tolerated_in_a_row_up_to_the_number():
    shell = running(settings=dataclasses.replace(SETTINGS, tolerable_failures=1))
    shell.at(1000)
    assert "FailJob" not in kinds(shell(msg.PrepareFailed(1, "disk full")))
    shell.at(2000)
    shell.complete(2)  # begins to count anew
    shell.at(3000)
    assert "FailJob" not in kinds(shell(msg.PrepareFailed(3, "disk full")))
    shell.at(4000)
    assert "disk full" in only(msg.FailJob, shell(msg.PrepareFailed(4, "disk full"))).message


def test_a_job_manager_that_cannot_begin_a_checkpoint_fails_no_job():
    shell = running()
    for number in range(1, 6):
        shell.at(1000 * number)
        away = msg.PrepareFailed(number, "ZooKeeper is away", CheckpointFailureReason.IO_EXCEPTION)
        assert "FailJob" not in kinds(shell(away))
        assert shell.status(number) == "FAILED"


def test_a_decline_names_the_task_and_aborts():
    shell = running()
    source, sink = shell.layout.tasks()
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    attempt_id = ExecutionAttemptID.of(sink.vertex_id, 0, 0)
    reason = CheckpointFailureReason.TASK_FAILED
    commands = shell(msg.Declined(DeclineCheckpoint(JOB_ID, attempt_id, 1, reason, "no space")))
    assert only(msg.NotifyAborted, commands).tasks == tuple(sorted((source, sink)))
    assert "task v1 (1/1) declined: no space" in only(msg.FailJob, commands).message


# --- tasks that finish ------------------------------------------------------------------------------------------------


def test_a_task_that_finishes_before_it_acknowledged_aborts_and_the_next_comes_soon():
    shell = running()
    source, sink = shell.layout.tasks()
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    assert "FailJob" not in kinds(shell(msg.TaskFinished(source)))
    assert shell.status(1) == "FAILED"
    assert shell.at(1100) == [msg.PrepareCheckpoint(2)]
    trigger, _ = shell(msg.CheckpointPrepared(2))
    assert trigger.tasks == (sink,)  # no barrier will reach it
    write = only(msg.WriteMetadata, shell.ack(sink, 2))
    assert [one.is_finished for one in write.checkpoint.vertices] == [True, False]


def test_a_task_that_finished_after_its_acknowledgement_does_not_abort():
    shell = running()
    source, sink = shell.layout.tasks()
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    shell.ack(source, 1)
    assert shell(msg.TaskFinished(source)) == []
    write = only(msg.WriteMetadata, shell.ack(sink, 1))
    assert not any(one.is_finished for one in write.checkpoint.vertices)


def test_a_task_that_finished_while_coordinators_gave_their_state_is_not_recorded_as_finished():
    shell = running()
    shell.at(1000)
    shell(msg.TaskFinished(shell.layout.tasks()[0]))  # what it left may be missing in their state
    assert shell.status(1) == "FAILED"


def test_only_those_are_triggered_whose_own_producers_have_finished():
    one = vertex("v0", 2)
    two = vertex("v1", 2, [InputLayout(one.vertex_id, ((0,), (1,)))])
    shell = running(JobLayout(JOB_ID, (one, two), True))
    a0, a1, b0, _ = shell.layout.tasks()
    shell(msg.TaskFinished(a0))
    shell.at(1000)
    trigger, _ = shell(msg.CheckpointPrepared(1))
    assert set(trigger.tasks) == {a1, b0}


def test_no_checkpoints_after_tasks_finished_when_they_are_not_wanted():
    shell = running(settings=dataclasses.replace(SETTINGS, after_tasks_finish=False))
    shell(msg.TaskFinished(shell.layout.tasks()[0]))
    assert shell.at(9000) == []


def test_union_state_of_a_vertex_that_is_half_finished_is_not_lost_silently():
    shell = running(pipeline(2))
    one, two = shell.layout.tasks()
    shell(msg.TaskFinished(one))
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    ack = acknowledgement(two, 1)
    (operator_id,) = ack.operators
    union = OperatorStateHandles(lists=ListStateHandle(file(""), has_union=True))
    commands = shell(msg.Acknowledged(dataclasses.replace(ack, operators={operator_id: union})))
    assert "WriteMetadata" not in kinds(commands)
    assert shell.status(1) == "FAILED"


def test_what_is_committed_at_the_end_is_durable_first():
    shell = running()
    for task in shell.layout.tasks():
        shell(msg.TaskFinished(task))
    assert shell(msg.AllTasksFinished()) == [msg.PrepareCheckpoint(1)]
    _, write = shell(msg.CheckpointPrepared(1, {shell.layout.vertices[0].operators[0].operator_id: b"files"}))
    assert all(one.is_finished for one in write.checkpoint.vertices)
    assert shell(msg.MetadataWritten(1)) == [msg.EndJob()]
    assert shell.coordinator.restore_point() == write.checkpoint


def test_nothing_is_committed_when_the_last_checkpoint_fails():
    shell = running()
    shell(msg.AllTasksFinished())
    shell(msg.CheckpointPrepared(1))
    assert "disk full" in only(msg.EndJobFailed, shell(msg.MetadataFailed(1, "disk full"))).message


def test_a_job_without_checkpoints_ends_at_once():
    shell = running(settings=dataclasses.replace(SETTINGS, interval_ms=0))
    assert shell(msg.AllTasksFinished()) == [msg.EndJob()]


# --- failure of the job -----------------------------------------------------------------------------------------------


def test_a_failing_job_aborts_what_is_under_way_and_begins_nothing():
    shell = running()
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    assert "NotifyAborted" in kinds(shell(msg.JobStopping()))
    assert shell.at(99_000) == []
    assert shell.coordinator.next_timer_ms() is None


def test_metadata_that_becomes_durable_before_the_restart_counts():
    shell = running()
    shell.at(1000)
    shell.ack_all(1)
    shell(msg.JobStopping())
    assert "NotifyComplete" not in kinds(shell(msg.MetadataWritten(1)))
    restored = shell.coordinator.restore_point()
    assert restored is not None
    assert restored.checkpoint_id == 1


def test_metadata_that_becomes_durable_while_the_job_winds_down_is_committed_when_no_attempt_follows():
    shell = running()
    shell.at(1000)
    shell.ack_all(1)
    shell(msg.JobStopping())
    shell(msg.MetadataWritten(1))
    (command,) = shell(msg.NoAttemptFollows())
    assert isinstance(command, msg.NotifyComplete)
    assert (command.checkpoint.checkpoint_id, command.tasks) == (1, ())
    assert shell(msg.NoAttemptFollows()) == []


def test_metadata_that_became_durable_before_a_restart_is_left_to_the_attempt_that_restores_it():
    shell = running()
    shell.at(1000)
    shell.ack_all(1)
    shell(msg.JobStopping())
    shell(msg.MetadataWritten(1))
    shell.begin()
    shell(msg.JobStopping())
    assert shell(msg.NoAttemptFollows()) == []


def test_metadata_that_becomes_durable_after_the_restart_is_deleted():
    shell = running()
    shell.at(1000)
    shell.ack_all(1, FOLDERS.shared + "/a")
    shell(msg.JobStopping())
    shell.begin()
    shell(msg.MetadataWritten(1))
    assert shell.coordinator.restore_point() is None
    assert FOLDERS.exclusive(1) in shell.deleted
    assert FOLDERS.shared + "/a-0" in shell.deleted


def test_acknowledgements_of_a_former_attempt_are_not_heard():
    shell = running()
    shell.begin()
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    for task in shell.layout.tasks():
        assert "WriteMetadata" not in kinds(shell(msg.Acknowledged(acknowledgement(task, 1, attempt=0))))


def test_ids_go_on_after_a_restart():
    shell = running()
    shell.at(1000)
    shell.complete(1)
    shell.begin()
    assert shell.at(9000) == [msg.PrepareCheckpoint(2)]


def test_a_damaged_checkpoint_gives_way_to_the_one_before():
    shell = running(settings=dataclasses.replace(SETTINGS, num_retained=2))
    for checkpoint_id in (1, 2):
        shell.at(checkpoint_id * 1000)
        shell.complete(checkpoint_id)
    told = only(msg.FailJob, shell(msg.RestoreFailed(2, "torn")))
    assert "goes on from checkpoint 1" in told.message
    assert not told.is_final
    assert shell.coordinator.restore_point().checkpoint_id == 1
    failed = only(msg.FailJob, shell(msg.RestoreFailed(1, "torn")))
    assert failed.is_final  # from the beginning it would do its work twice
    assert shell.coordinator.restore_point() is None


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_is_not_retained_is_deleted():
    shell = running()
    shell.at(1000)
    shell.complete(1, FOLDERS.shared + "/one")
    shell.at(2000)
    shell.complete(2, FOLDERS.shared + "/two")
    expected = {FOLDERS.exclusive(1), FOLDERS.shared + "/one-0", FOLDERS.shared + "/one-1"}
    assert shell.deleted == expected


def test_files_that_the_next_checkpoint_refers_to_are_kept():
    shell = running()
    shell.at(1000)
    shell.complete(1, FOLDERS.shared + "/same")
    shell.at(2000)
    shell.complete(2, FOLDERS.shared + "/same")
    assert shell.deleted == {FOLDERS.exclusive(1)}


def test_what_a_checkpoint_builds_on_is_kept_until_it_has_ended():
    settings = dataclasses.replace(SETTINGS, incremental=True, max_concurrent=2)
    shell = running(settings=settings)
    shell.at(1000)
    shell.complete(1, FOLDERS.shared + "/base")
    shell.at(2000)
    trigger, _ = shell(msg.CheckpointPrepared(2))
    assert trigger.options.base_checkpoint_id == 1
    shell.at(3000)
    trigger, _ = shell(msg.CheckpointPrepared(3))
    assert trigger.options.base_checkpoint_id == 1
    for task in shell.layout.tasks():
        shell.ack(task, 2, FOLDERS.shared + "/two")
    shell(msg.MetadataWritten(2))
    assert shell.deleted == set()  # 3 builds on 1
    for task in shell.layout.tasks():
        shell.ack(task, 3, FOLDERS.shared + "/base-0", FOLDERS.shared + "/three")
    shell(msg.MetadataWritten(3))
    assert FOLDERS.shared + "/base-0" not in shell.deleted
    assert {FOLDERS.exclusive(1), FOLDERS.exclusive(2), FOLDERS.shared + "/base-1"} <= shell.deleted


def test_a_late_acknowledgement_is_deleted_but_not_what_others_refer_to():
    shell = running()
    source, _ = shell.layout.tasks()
    shell.at(1000)
    shell.complete(1, FOLDERS.shared + "/one")
    shell.at(2000)
    shell(msg.CheckpointPrepared(2))
    shell.at(7000)
    (discard,) = shell.ack(source, 2, FOLDERS.shared + "/one-0", FOLDERS.shared + "/late")
    assert discard == msg.Discard(Garbage((FOLDERS.exclusive(2),), (FOLDERS.shared + "/late",)))


def test_a_file_that_comes_late_for_a_kept_checkpoint_goes_alone():
    shell = running()
    shell.at(1000)
    shell.complete(1, FOLDERS.shared + "/one")
    late = FOLDERS.exclusive(1) + "/late"  # where the checkpoint's metadata lies, too
    assert shell.ack(shell.layout.tasks()[0], 1, late) == [msg.Discard(Garbage((), (late,)))]


def test_an_acknowledgement_that_comes_twice_deletes_nothing():
    shell = running()
    source, _ = shell.layout.tasks()
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    shell.ack(source, 1, FOLDERS.shared + "/one")
    assert shell.ack(source, 1, FOLDERS.shared + "/one") == []
    for task in shell.layout.tasks():
        shell.ack(task, 1)
    shell(msg.MetadataWritten(1))
    assert shell.ack(source, 1, FOLDERS.shared + "/one") == []
    shell.at(2000)
    shell.complete(2)
    assert FOLDERS.shared + "/one" in shell.deleted  # it counts once


def test_files_elsewhere_are_never_deleted():
    shell = running(restored=[StoredCheckpoint(keyed_checkpoint(pipeline(1, 1)), False)])
    shell.at(1000)
    shell.complete(8)
    shell.ack(shell.layout.tasks()[0], 7, "file:///s/sp/v0-0")
    assert shell.deleted == set()


def test_a_claimed_savepoint_is_deleted_when_it_is_subsumed():
    shell = running(restored=[StoredCheckpoint(keyed_checkpoint(pipeline(1, 1)), True)])
    shell.at(1000)
    shell.complete(8)
    assert {"file:///s/sp", "file:///s/sp/v0-0"} <= shell.deleted


def test_the_end_deletes_everything_unless_it_is_retained():
    for retain in (False, True):
        shell = running()
        shell.at(1000)
        shell.complete(1, FOLDERS.shared + "/one")
        shell(msg.JobStopping())
        clean_up = only(msg.CleanUp, shell(msg.JobEnded("cancelled", retain)))
        assert (FOLDERS.exclusive(1) in shell.deleted) is not retain
        assert (FOLDERS.exclusive(1) in clean_up.retained) is retain
        assert (FOLDERS.shared + "/one-1" in clean_up.retained) is retain


def test_metadata_that_is_written_when_the_job_ends_is_cleaned_up_afterwards():
    shell = running()
    shell.at(1000)
    shell.ack_all(1, FOLDERS.shared + "/one")
    shell(msg.JobStopping())
    assert shell(msg.JobEnded("failed")) == []
    commands = shell(msg.MetadataWritten(1))
    assert kinds(commands) == ["Discard", "CleanUp"]


# --- savepoints -------------------------------------------------------------------------------------------------------


def test_a_savepoint_is_answered_and_is_no_restore_point():
    shell = running(settings=dataclasses.replace(SETTINGS, interval_ms=0))
    assert shell(msg.SavepointRequested("r", SAVEPOINT)) == [msg.PrepareCheckpoint(1)]
    trigger, _ = shell(msg.CheckpointPrepared(1))
    assert (trigger.options.kind, trigger.options.exclusive_folder) == (CheckpointKind.SAVEPOINT, SAVEPOINT)
    for task in shell.layout.tasks():
        shell.ack(task, 1, SAVEPOINT + "/x")
    # Nothing is committed: a job that goes on from a checkpoint before it would write the same again.
    assert shell(msg.MetadataWritten(1)) == [msg.AnswerRequest("r", 1, SAVEPOINT)]
    assert shell.coordinator.restore_point() is None
    assert shell.deleted == set()


def test_a_savepoint_goes_beside_a_checkpoint_that_is_under_way():
    shell = running()
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    assert shell(msg.SavepointRequested("r", SAVEPOINT)) == [msg.PrepareCheckpoint(2)]
    shell.complete(2)
    assert shell.status(1) == "IN_PROGRESS"


def test_requests_wait_for_their_turn():
    shell = running()
    shell(msg.SavepointRequested("a", SAVEPOINT))
    assert shell(msg.CheckpointRequested("b")) == []
    commands = shell.complete(1)
    assert msg.AnswerRequest("a", 1, SAVEPOINT) in commands
    assert "PrepareCheckpoint" not in kinds(commands)  # it began when 1 had been prepared
    assert msg.AnswerRequest("b", 2, FOLDERS.exclusive(2)) in shell.complete(2)


def test_a_failed_savepoint_is_told_and_leaves_nothing_and_the_job_alone():
    shell = running()
    shell(msg.SavepointRequested("r", SAVEPOINT))
    shell.ack_all(1)
    commands = shell(msg.MetadataFailed(1, "disk full"))
    assert "disk full" in only(msg.AnswerRequest, commands).error
    assert "FailJob" not in kinds(commands)
    assert shell.deleted == {SAVEPOINT}


def test_files_that_are_told_of_after_a_savepoint_was_given_up_are_deleted():
    shell = running()
    source, _ = shell.layout.tasks()
    shell(msg.SavepointRequested("r", SAVEPOINT))
    shell(msg.CheckpointPrepared(1))
    shell.at(7000)
    (discard,) = shell.ack(source, 1, SAVEPOINT + "/late", "file:///elsewhere")
    assert discard == msg.Discard(Garbage((SAVEPOINT,), (SAVEPOINT + "/late",)))


@pytest.mark.parametrize("spoil", [msg.JobStopping(), msg.AllTasksFinished(), msg.JobEnded()])
def test_requests_are_answered_when_the_job_ends(spoil):
    shell = Shell()
    shell(msg.AttemptBegun(0))
    shell(msg.SavepointRequested("r", SAVEPOINT))
    assert only(msg.AnswerRequest, shell(spoil)).error


def test_a_request_to_a_job_that_does_not_run_is_refused():
    assert "the job is not running" in only(msg.AnswerRequest, Shell()(msg.SavepointRequested("r", SAVEPOINT))).error


def test_a_request_whose_tasks_never_run_is_refused_in_time():
    shell = Shell()
    shell(msg.AttemptBegun(0))
    shell(msg.SavepointRequested("r", SAVEPOINT))
    assert shell.coordinator.next_timer_ms() == 5000
    assert "2 of 2 tasks are not running" in only(msg.AnswerRequest, shell.at(5000)).error


def test_requests_are_limited():
    shell = Shell()
    shell(msg.AttemptBegun(0))
    answers = [shell(msg.SavepointRequested(str(i), SAVEPOINT)) for i in range(QUEUE_MAX + 1)]
    assert [bool(a) for a in answers] == [False] * QUEUE_MAX + [True]


def test_a_savepoint_whose_tasks_finish_is_tried_again():
    shell = running()
    source, sink = shell.layout.tasks()
    shell(msg.SavepointRequested("r", SAVEPOINT))
    assert msg.PrepareCheckpoint(2) in shell(msg.TaskFinished(source))
    shell(msg.CheckpointPrepared(2))
    shell.ack(sink, 2)
    assert shell(msg.MetadataWritten(2)) == [msg.AnswerRequest("r", 2, SAVEPOINT)]


def test_a_stop_is_committed_and_answered_when_the_job_has_ended():
    shell = running()
    shell.at(1000)
    shell.complete(1)
    shell(msg.SavepointRequested("r", SAVEPOINT, StopMode.SUSPEND))
    commands = shell.complete(2)
    assert only(msg.NotifyComplete, commands).checkpoint.folder == SAVEPOINT
    assert "AnswerRequest" not in kinds(commands)
    assert shell.at(99_000) == []  # no checkpoint any more
    for task in shell.layout.tasks():
        shell(msg.TaskFinished(task))
    shell(msg.AllTasksFinished())
    shell(msg.CheckpointPrepared(3))
    shell(msg.MetadataWritten(3))
    assert msg.AnswerRequest("r", 2, SAVEPOINT) in shell(msg.JobEnded())
    assert SAVEPOINT not in shell.deleted


def awaited(task: Task, attempt: int = 0) -> msg.CheckpointAwaited:
    return msg.CheckpointAwaited(ExecutionAttemptID.of(task.vertex_id, task.subtask_index, attempt))


def test_tasks_that_wait_for_a_checkpoint_at_their_end_get_one_soon_and_together():
    shell = running(pipeline(1, 2), CheckpointSettings(interval_ms=600_000))
    source, *sinks = shell.layout.tasks()
    shell(msg.TaskFinished(source))
    assert shell(awaited(sinks[0], attempt=7)) == []  # of another attempt
    assert shell.coordinator.next_timer_ms() == 600_000
    shell(awaited(sinks[0]))
    shell.now_ms += RETRY_MS // 2
    assert shell(awaited(sinks[1])) == []
    assert msg.PrepareCheckpoint(1) in shell.at(RETRY_MS)
    shell(msg.CheckpointPrepared(1))
    for task in sinks:
        shell.ack(task, 1)
    assert only(msg.NotifyComplete, shell(msg.MetadataWritten(1))).tasks == tuple(sinks)
    assert shell.at(10_000) == []  # they end now


@pytest.mark.parametrize("ended", [1, 2])
def test_a_vertex_is_recorded_as_finished_when_all_its_tasks_had_come_to_their_end(ended):
    shell = running(pipeline(1, 2))
    source, *sinks = shell.layout.tasks()
    shell(msg.TaskFinished(source))
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    for task in sinks:
        ack = acknowledgement(task, 1, ("file:///c/list",), attempt=0)
        shell(msg.Acknowledged(dataclasses.replace(ack, is_finished=task.subtask_index < ended)))
    shell(msg.MetadataWritten(1))
    _, vertex_state = shell.coordinator.restore_point().vertices
    assert vertex_state.finished == ((0, 1) if ended == 2 else ())
    assert set(vertex_state.subtasks) == {0, 1}, "what they wait for has to be restored"


def test_the_pause_between_checkpoints_holds_for_those_that_are_waited_for():
    shell = running(pipeline(1, 1), CheckpointSettings(interval_ms=1000, min_pause_ms=5000))
    source, sink = shell.layout.tasks()
    shell.at(1000)
    shell.complete(1)
    shell(msg.TaskFinished(source))
    shell(awaited(sink))
    assert shell.at(5999) == []
    assert msg.PrepareCheckpoint(2) in shell.at(6000)


def test_what_comes_at_the_end_of_a_drained_job_is_made_durable_before_it_is_committed():
    shell = running()
    source, sink = shell.layout.tasks()
    shell(msg.SavepointRequested("r", SAVEPOINT, StopMode.DRAIN))
    shell.complete(1)
    shell(msg.TaskFinished(source))
    assert shell.at(50_000) == []  # none by themselves
    shell(awaited(sink))
    assert "AnswerRequest" in kinds(shell(msg.SavepointRequested("s", SAVEPOINT)))  # refused
    assert msg.PrepareCheckpoint(2) in shell.at(50_000 + RETRY_MS)
    shell(msg.CheckpointPrepared(2))
    shell.ack(sink, 2)
    assert only(msg.NotifyComplete, shell(msg.MetadataWritten(2))).tasks == (sink,)
    assert shell.coordinator.restore_point().checkpoint_id == 2
    shell(msg.TaskFinished(sink))
    shell(msg.AllTasksFinished())
    shell(msg.CheckpointPrepared(3))
    shell(msg.MetadataWritten(3))
    assert msg.AnswerRequest("r", 1, SAVEPOINT) in shell(msg.JobEnded())
    assert SAVEPOINT not in shell.deleted


def test_a_checkpoint_that_is_under_way_when_the_job_is_stopped_comes_too_late():
    shell = running()
    shell.at(1000)
    shell(msg.CheckpointPrepared(1))
    shell(msg.SavepointRequested("r", SAVEPOINT, StopMode.SUSPEND))
    shell.complete(2)
    assert shell.status(1) == "FAILED"
    for task in shell.layout.tasks():
        assert "WriteMetadata" not in kinds(shell.ack(task, 1))


def test_a_job_that_fails_while_it_stops_goes_on_from_the_savepoint():
    shell = running()
    shell(msg.SavepointRequested("r", SAVEPOINT, StopMode.DRAIN))
    shell.complete(1)
    shell(msg.JobStopping())
    assert shell.coordinator.restore_point().folder == SAVEPOINT
    commands = shell(msg.AttemptBegun(1))
    assert "goes on from there" in only(msg.AnswerRequest, commands).error


def test_a_stopped_job_whose_last_commit_fails_is_not_said_to_go_on():
    shell = running()
    shell(msg.SavepointRequested("r", SAVEPOINT, StopMode.SUSPEND))
    shell.complete(1)
    for task in shell.layout.tasks():
        shell(msg.TaskFinished(task))
    shell(msg.AllTasksFinished())
    shell(msg.CheckpointPrepared(2))
    shell(msg.MetadataWritten(2))
    shell(msg.JobStopping())
    assert "AnswerRequest" not in kinds(shell(msg.AttemptBegun(1)))
    assert only(msg.AnswerRequest, shell(msg.JobEnded())) == msg.AnswerRequest("r", 1, SAVEPOINT)


@pytest.mark.parametrize("stop", [StopMode.SUSPEND, StopMode.DRAIN])
def test_a_drain_that_fails_after_its_barriers_are_out_fails_the_job_a_suspension_does_not(stop):
    shell = running()
    shell(msg.SavepointRequested("r", SAVEPOINT, stop))
    shell.ack_all(1)
    told = kinds(shell(msg.MetadataFailed(1, "disk full")))
    assert {"NotifyAborted", "AnswerRequest"} <= set(told)
    assert ("FailJob" in told) is (stop is StopMode.DRAIN)  # event time has ended and cannot be taken back


def test_a_stop_that_fails_before_its_barriers_are_out_leaves_the_job_alone():
    shell = running()
    shell(msg.SavepointRequested("r", SAVEPOINT, StopMode.SUSPEND))
    commands = shell(msg.PrepareFailed(1, "no"))
    assert "FailJob" not in kinds(commands)
    assert shell.at(1000) == [msg.PrepareCheckpoint(2)]


def test_cancel_with_savepoint_cancels_when_it_is_complete():
    shell = running()
    shell(msg.SavepointRequested("r", SAVEPOINT, cancel=True))
    assert shell.at(1000) == []
    assert shell.complete(1) == [msg.CancelJob(), msg.AnswerRequest("r", 1, SAVEPOINT)]


def test_cancel_with_savepoint_lets_a_job_finish_whose_tasks_have_finished_meanwhile():
    shell = running()
    shell(msg.SavepointRequested("r", SAVEPOINT, cancel=True))
    shell.ack_all(1)
    for task in shell.layout.tasks():
        shell(msg.TaskFinished(task))
    shell(msg.AllTasksFinished())
    assert shell(msg.MetadataWritten(1)) == [msg.AnswerRequest("r", 1, SAVEPOINT)]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"execution.checkpointing.storage": "filesystem"}, "execution.checkpointing.dir is not set"),
        (
            {"execution.checkpointing.unaligned": "true", "execution.checkpointing.mode": "at_least_once"},
            "needs execution.checkpointing.mode EXACTLY_ONCE",
        ),
        (
            {
                "execution.checkpointing.unaligned": "true",
                "execution.checkpointing.max-concurrent-checkpoints": "2",
            },
            "allow 1 at a time",
        ),
        ({"execution.checkpointing.interval": "5"}, "at least 10 ms"),
        ({"execution.checkpointing.mode": "TWICE"}, "EXACTLY_ONCE or AT_LEAST_ONCE"),
    ],
)
def test_settings_that_cannot_be_used_are_told(config, message):
    with pytest.raises(ConfigError, match=message):
        checkpoint_settings(Configuration(config))


def test_settings_are_read_by_old_names_too():
    settings = checkpoint_settings(
        Configuration(
            {"state.checkpoints.dir": "/c", "state.backend.incremental": "true", "state.checkpoints.num-retained": "3"}
        )
    )
    assert (settings.in_memory, settings.incremental, settings.num_retained) == (False, True, 3)


# --- all interleavings ------------------------------------------------------------------------------------------------


def _interleavings(*lists):
    """Yield all merges of lists that keep each one's order."""
    if not any(lists):
        yield []
        return
    for index, one in enumerate(lists):
        if one:
            rest = [*lists[:index], one[1:], *lists[index + 1 :]]
            for tail in _interleavings(*rest):
                yield [one[0], *tail]


def test_all_orders_of_two_tasks_a_timeout_a_failure_and_the_write():
    """Two checkpoints under way at once; each task acknowledges both in order and finishes; the job fails somewhere."""
    layout = pipeline(2, has_coordinators=True)
    one, two = layout.tasks()
    settings = dataclasses.replace(SETTINGS, max_concurrent=2, incremental=True, tolerable_failures=99)
    outcomes = set()
    orders = _interleavings(
        [("ack", one, 2), ("ack", one, 3), ("finish", one)],
        [("ack", two, 2), ("ack", two, 3)],
        [("written", 2), ("written", 3)],
        [("stop",)],
    )
    for order in orders:
        shell = Shell(layout, settings)
        shell.begin()
        shell.at(1000)
        shell.complete(1, FOLDERS.shared + "/base")
        shell.at(2000)
        shell(msg.CheckpointPrepared(2))
        shell.at(3000)
        shell(msg.CheckpointPrepared(3))
        for step in order:
            match step:
                case ("ack", task, checkpoint_id):
                    paths = (f"{FOLDERS.shared}/base-{task.subtask_index}", f"{FOLDERS.shared}/{checkpoint_id}-{task}")
                    shell.ack(task, checkpoint_id, *paths)
                case ("finish", task):
                    shell(msg.TaskFinished(task))
                case ("written", checkpoint_id):
                    shell(msg.MetadataWritten(checkpoint_id))
                case ("stop",):
                    shell(msg.JobStopping())
            restored = shell.coordinator.restore_point()
            assert restored is not None
            assert not restored.files() & shell.deleted, order
            assert restored.folder not in shell.deleted, order
        shell(msg.MetadataWritten(2))
        shell(msg.MetadataWritten(3))
        outcomes.add((shell.status(2), shell.status(3)))
        shell(msg.JobEnded("failed"))
        assert f"{FOLDERS.shared}/base-0" in shell.deleted, order
    assert outcomes == set(itertools.product(("COMPLETED", "FAILED"), repeat=2))


# --- seeded histories -------------------------------------------------------------------------------------------------


class _World:
    """A job with everything that can go wrong; checks what no rule may break."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.settings = CheckpointSettings(
            interval_ms=rng.choice([0, 50, 200]),
            min_pause_ms=rng.choice([0, 0, 70]),
            timeout_ms=rng.choice([100, 1000]),
            max_concurrent=rng.choice([1, 2, 3]),
            tolerable_failures=rng.choice([0, 2, 99]),
            incremental=rng.random() < 0.5,
            num_retained=rng.choice([1, 2, 3]),
        )
        self.shell = Shell(pipeline(*(rng.randint(1, 2) for _ in range(rng.randint(1, 3)))), self.settings)
        self.open: list[msg.Event] = []  # answers that are on their way, in any order
        self.writes: list[msg.Event] = []  # the writer answers in order
        self.asked: set[str] = set()
        self.answered: list[str] = []
        self.committed = 0
        self.bases: dict[int, set[str]] = {}
        self.live: set[Task] = set()
        self.is_up = False

    def send(self, event: msg.Event) -> None:
        for command in self.shell(event):
            self._carry_out(command)
        restored = self.shell.coordinator.restore_point()
        if restored is not None and restored.kind is CheckpointKind.CHECKPOINT:
            assert not restored.files() & self.shell.deleted
            assert restored.folder not in self.shell.deleted
        assert self.committed == 0 or restored is not None
        assert restored is None or restored.checkpoint_id >= self.committed, "committed, but not what is restored"

    def _carry_out(self, command: msg.Command) -> None:
        match command:
            case msg.PrepareCheckpoint(checkpoint_id):
                failed = self.rng.random() < 0.05
                answer = msg.PrepareFailed(checkpoint_id, "no") if failed else msg.CheckpointPrepared(checkpoint_id)
                self.open.append(answer)
            case msg.TriggerTasks(checkpoint_id, _, tasks, options):
                assert set(tasks) <= self.live, "only what runs is triggered"
                for task in sorted(self.live):
                    self._acknowledge(task, checkpoint_id, options)
            case msg.WriteMetadata(checkpoint, _):
                failed = self.rng.random() < 0.1
                number = checkpoint.checkpoint_id
                self.writes.append(msg.MetadataFailed(number, "full") if failed else msg.MetadataWritten(number))
            case msg.NotifyComplete(checkpoint, _):
                assert checkpoint.checkpoint_id > self.committed, "commits go forward"
                self.committed = checkpoint.checkpoint_id
            case msg.AnswerRequest(request_id):
                self.answered.append(request_id)
            case msg.FailJob() | msg.CancelJob():
                self.open.append(msg.JobStopping())

    def _acknowledge(self, task: Task, checkpoint_id: int, options) -> None:
        attempt = self.shell.attempt
        if self.rng.random() < 0.05:
            attempt_id = ExecutionAttemptID.of(task.vertex_id, task.subtask_index, attempt)
            reason = self.rng.choice(list(CheckpointFailureReason))
            self.open.append(msg.Declined(DeclineCheckpoint(JOB_ID, attempt_id, checkpoint_id, reason)))
            return
        folder = options.shared_folder if options.incremental else options.exclusive_folder
        paths = [f"{folder}/{checkpoint_id}-{task.vertex_id[:4]}-{task.subtask_index}-{attempt}"]
        for stored in self.shell.coordinator._store.all():
            if stored.checkpoint.checkpoint_id == options.base_checkpoint_id:
                paths += sorted(stored.checkpoint.files())[:2]
        event = msg.Acknowledged(acknowledgement(task, checkpoint_id, paths, attempt=attempt))
        self.open += [event] * (2 if self.rng.random() < 0.1 else 1)

    def step(self) -> None:
        rng, shell = self.rng, self.shell
        choice = rng.random()
        if choice < 0.45 and self.open:
            event = self.open.pop(rng.randrange(len(self.open)))
            if isinstance(event, msg.JobStopping):
                self.is_up = False
            self.send(event)
        elif choice < 0.6 and self.writes:
            self.send(self.writes.pop(0))
        elif choice < 0.8:
            timer = shell.coordinator.next_timer_ms()
            shell.now_ms = max(shell.now_ms, timer if timer is not None and rng.random() < 0.5 else shell.now_ms + 20)
            self.send(msg.TimerFired())
        elif choice < 0.88 and self.is_up:
            request_id = str(len(self.asked))
            self.asked.add(request_id)
            stop = rng.choice([StopMode.NONE] * 4 + [StopMode.SUSPEND, StopMode.DRAIN])
            folder = f"file:///savepoints/{request_id}"
            savepoint = msg.SavepointRequested(request_id, folder, stop, rng.random() < 0.1)
            self.send(rng.choice([savepoint, msg.CheckpointRequested(request_id)]))
        elif choice < 0.91 and self.live and self.is_up:
            task = rng.choice(sorted(self.live))
            self.live.discard(task)
            self.send(msg.TaskFinished(task))
            if not self.live:
                self.send(msg.AllTasksFinished())
        elif choice < 0.93:
            self.is_up = False
            self.send(msg.JobStopping())
        elif choice < 0.94 and not self.is_up:
            restored = shell.coordinator.restore_point()
            if restored is not None and restored.checkpoint_id > self.committed:
                if len(shell.coordinator._store.all()) == 1:
                    self.committed = 0  # the job fails for good
                self.send(msg.RestoreFailed(restored.checkpoint_id, "torn"))
        elif not self.is_up:
            self.is_up = True
            shell.attempt += 1
            self.live = set(shell.layout.tasks())
            self.send(msg.AttemptBegun(shell.attempt))
            for task in shell.layout.tasks():
                self.send(msg.TaskRunning(task))

    def end(self) -> None:
        self.send(msg.JobStopping())
        self.committed = 0  # nothing is left to go on from, and nothing goes on
        self.send(msg.JobEnded("failed"))
        while self.writes:
            self.send(self.writes.pop(0))
        assert set(self.answered) == self.asked, "every request is answered"
        assert len(self.answered) == len(self.asked), "and once only"
        assert self.shell.coordinator.next_timer_ms() is None


@pytest.mark.parametrize("block", range(10))
def test_no_history_breaks_a_rule(block):
    for seed in range(block * 20, block * 20 + 20):
        try:
            world = _World(seed)
            for _ in range(250):
                world.step()
            world.end()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
