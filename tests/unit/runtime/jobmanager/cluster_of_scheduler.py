"""A world around one Scheduler: plays ResourceManager, TaskManagers, slots and coordinators with plain values."""

from __future__ import annotations

from typing import Any, TypeVar

from engine.core.ids import AllocationID, ExecutionAttemptID, ResourceID
from engine.graph.execution_graph import SlotGrant
from engine.graph.job_graph import JobGraph
from engine.protocol.control import ErrorInfo, SlotAddress, TaskStateChanged
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.runtime.jobmanager import scheduler as s
from engine.runtime.jobmanager.restart import RestartStrategy

C = TypeVar("C")

USER = ErrorInfo("ZeroDivisionError", "division by zero", "", "user")
BROKEN = ErrorInfo("ConnectionError", "connection to the producer broke", "", "external")
DIED = ErrorInfo("SlotLost", "the slot process was killed by signal 9", "", "external")
BUG = ErrorInfo("AssertionError", "bug", "", "internal")


def grant(key: s.SlotRequestKey, request: int = 1) -> SlotGrant:
    """The answer to the ``request``-th RequestSlots for one of its keys."""
    text = f"{key.slot_sharing_group}-{key.subtask_index}-{request}"
    resource_id = ResourceID(f"tm{key.subtask_index % 2}")
    return SlotGrant(AllocationID.from_text(text), resource_id, "h", SlotAddress(resource_id, "h", 1, "/u"))


class World:
    def __init__(self, job_graph: JobGraph, restarts: RestartStrategy | None = None) -> None:
        self.scheduler = s.Scheduler(job_graph, 0, restarts)
        self.now_ms = 0
        self.log: list[s.Command] = []
        #: attempts in slots, as the slots see them
        self.live: dict[ExecutionAttemptID, AllocationID] = {}

    @property
    def status(self) -> JobStatus:
        return self.scheduler.graph.status

    @property
    def failure(self) -> str | None:
        failure = self.scheduler.graph.failure
        return None if failure is None else failure.message

    def send(self, event: s.Event) -> list[s.Command]:
        """Handle an event; a slot that gets a CancelTask is only noted, the test decides what it reports."""
        self.now_ms += 1
        commands = self.scheduler.handle(event, self.now_ms)
        self.scheduler.check_invariants()
        assert not any(isinstance(c, s.JobTerminated) for c in self.log) or not commands or _only_releases(commands)
        self.log += commands
        for command in commands:
            if isinstance(command, s.Deploy):
                assert command.task.attempt_id not in self.live
                self.live[command.task.attempt_id] = command.allocation_id
        if any(isinstance(command, s.GiveUpCoordinators) for command in commands):
            assert not self.all(s.JobTerminated), "the clean-up comes before the end"
            commands = [*commands, *self.send(s.GivenUpHandled())]
        return commands

    def all(self, kind: type[C]) -> list[C]:
        return [command for command in self.log if isinstance(command, kind)]

    def grants(self) -> s.SlotsGranted:
        requests = self.all(s.RequestSlots)
        return s.SlotsGranted([(key, grant(key, len(requests))) for key in requests[-1].keys])

    def run(self) -> World:
        self.send(s.StartScheduling())
        self.send(s.CoordinatorsStarted())
        self.send(self.grants())
        return self

    def report(self, attempt_id: ExecutionAttemptID, state: ExecutionState, **fields: Any) -> list[s.Command]:
        if state.is_terminal():
            self.live.pop(attempt_id, None)
        job_id = self.scheduler.graph.job_graph.job_id
        return self.send(s.TaskStateReported(TaskStateChanged(job_id, attempt_id, state, **fields)))

    def attempts(self, name: str) -> list[ExecutionAttemptID]:
        """Ids of all subtasks of the vertex whose name begins so."""
        return [
            subtask.current.attempt_id
            for vertex in self.scheduler.graph.vertices.values()
            for subtask in vertex.subtasks
            if vertex.job_vertex.name.startswith(name)
        ]

    def states(self) -> dict[str, str]:
        return {subtask.name: subtask.current.state.name for subtask in self.scheduler.graph.all_subtasks()}

    def finish_all_live(self) -> None:
        for attempt_id in list(self.live):
            self.report(attempt_id, ExecutionState.FINISHED)

    def confirm_cancels(self) -> None:
        for cancel in self.all(s.Cancel):
            if cancel.attempt_id in self.live:
                self.report(cancel.attempt_id, ExecutionState.CANCELED)

    def fail_attempt(self, error: ErrorInfo = USER) -> list[s.Command]:
        """A task fails, the others are cancelled, the coordinators have cleaned up; return what then follows."""
        self.report(next(iter(self.live)), ExecutionState.FAILED, error=error)
        self.confirm_cancels()
        return self.end()

    def restart(self) -> list[s.Command]:
        """The time of the last RestartAfter has come; the new attempt is deployed."""
        commands = self.send(s.RestartDue(self.all(s.RestartAfter)[-1].attempt_number))
        self.send(s.CoordinatorsStarted())
        self.send(self.grants())
        return commands

    def end(self, error: ErrorInfo | None = None) -> list[s.Command]:
        return self.send(s.JobEndHandled(error))


def _only_releases(commands: list[s.Command]) -> bool:
    return all(isinstance(command, s.ReleaseSlots) for command in commands)
