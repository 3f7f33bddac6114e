"""Decides what one job does next: which slots it asks for, which tasks are deployed or cancelled, when it has ended.

Pure: events in, commands out; the JobMaster (``job_master``) carries the commands out in their order. All changes of
the ExecutionGraph happen here. Not here: where slots come from (``slot_manager``), what runs in the JobManager for
single operators (``coordinators``).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from engine.core.config import Configuration
from engine.core.errors import Domain
from engine.core.ids import AllocationID, ExecutionAttemptID, JobVertexID
from engine.core.options import ClusterOptions
from engine.graph.execution_graph import (
    ExceptionEntry,
    ExecutionGraph,
    ExecutionVertex,
    SlotGrant,
)
from engine.graph.job_graph import JobGraph
from engine.operators.base import JobOutcome
from engine.protocol.control import ErrorInfo, TaskMetrics, TaskStateChanged
from engine.protocol.lifecycle import EXECUTION_LEGAL, ExecutionState, JobStatus
from engine.runtime.jobmanager.deployment import task_deployment
from engine.runtime.jobmanager.failover import RegionRestart, Regions
from engine.runtime.jobmanager.restart import NoRestart, RestartStrategy
from engine.runtime.jobmanager.scheduling import (
    Adopt,
    Cancel,
    CancelRequested,
    Command,
    CoordinatorFailed,
    CoordinatorsStarted,
    Deploy,
    EndCoordinators,
    Event,
    GivenUpHandled,
    GiveUpCoordinators,
    JobEndHandled,
    JobStatusChanged,
    JobTerminated,
    MetricsReported,
    NotifySubtaskFinished,
    ReleaseSlots,
    RequestSlots,
    RescaleRequested,
    RestartAfter,
    RestartDue,
    SlotRequestKey,
    SlotsGranted,
    SlotsLost,
    SlotsUnavailable,
    StartCoordinators,
    StartScheduling,
    TasksTakenOver,
    TaskStateReported,
)

# --- the decider ----------------------------------------------------------------------------------------------------


class _Slots(enum.Enum):
    NONE = "none"
    REQUESTED = "requested"
    HELD = "held"
    RELEASED = "released"


class _Coordinators(enum.Enum):
    CREATED = "created"
    STARTING = "starting"
    STARTED = "started"
    ENDING = "ending"
    ENDED = "ended"
    GIVEN_UP = "given up"  #: the answer is awaited, then the job has ended


#: States of an attempt that is, or may be, in its slot.
_IN_SLOT: Final = frozenset(
    {
        ExecutionState.DEPLOYING,
        ExecutionState.INITIALIZING,
        ExecutionState.RUNNING,
        ExecutionState.CANCELING,
    }
)
_NOT_STARTED: Final = frozenset({ExecutionState.CREATED, ExecutionState.SCHEDULED})
_ENDED: Final = frozenset({_Coordinators.ENDING, _Coordinators.ENDED, _Coordinators.GIVEN_UP})
_WINDING_DOWN: Final = frozenset({JobStatus.FAILING, JobStatus.CANCELLING})
_FAILED: Final = frozenset({JobStatus.FAILING, JobStatus.FAILED, JobStatus.RESTARTING})
_OUTCOMES: Final = {
    JobStatus.RUNNING: JobOutcome.FINISHED,
    JobStatus.FAILING: JobOutcome.FAILED,
    JobStatus.CANCELLING: JobOutcome.CANCELED,
}


_RESCALING: Final = ErrorInfo("JobRescaled", "The job goes on at another parallelism.", "", "external")


class Scheduler:
    """``handle(event, now_ms) -> list[Command]``; ``now_ms`` is wall-clock time, it becomes the timestamps in REST.

    A job asks for all its slots at once, keeps them to its end, and deploys a pipelined region when all that it reads
    over blocking exchanges is complete. A failure that concerns some regions only restarts these, while the job is
    RUNNING and the others go on (``failover``). Any other ends the attempt: its tasks are cancelled, its slots given
    back, its coordinators clean up. Then the restart strategy decides between a new attempt of everything and FAILED.
    """

    def __init__(
        self,
        job_graph: JobGraph,
        now_ms: int,
        restarts: RestartStrategy | None = None,
        *,
        recovers: bool = False,
        first_attempt: int = 0,
    ) -> None:
        """``recovers``: the job takes checkpoints, so a commit that failed half-way is made good by another attempt."""
        self.graph = ExecutionGraph(job_graph, now_ms, first_attempt)
        self._recovers = recovers
        self._restarts = restarts or NoRestart()
        self._attempt_number = first_attempt
        self._failed_ms = 0
        self._failure_is_loss = False  #: what the job fails of is the loss of a process
        #: Whether a new attempt could end differently and does no harm: not if its failure is final, or a commit began
        #: that no checkpoint knows of.
        self._may_restart = True
        #: While the job fails: it was asked to end, so it is not restarted.
        self._cancel_requested = False
        #: A request for slots is unanswered, perhaps one of a former attempt.
        self._request_open = False
        self._slots = _Slots.NONE
        self._coordinators = _Coordinators.CREATED
        #: Slots that the job holds and that are not lost.
        self._grants: dict[SlotRequestKey, SlotGrant] = {}
        self._grace_ms = Configuration(job_graph.config).get(ClusterOptions.CANCELLATION_TIMEOUT)
        self._now_ms = now_ms
        self._commands: list[Command] = []
        self._failover = Regions(job_graph)
        #: Those that are not deployed yet, in topological order of their first vertices.
        self._regions = dict(self._failover.vertices)
        #: Some regions are being restarted; only while the job is RUNNING.
        self._partial: RegionRestart | None = None
        #: The job ends its attempt only to go on at another parallelism.
        self._rescaled: JobGraph | None = None
        #: What the job was before, until it runs at its new parallelism.
        self._before_rescale: JobGraph | None = None
        #: The restart strategy has said no to a failure that is being handled.
        self._gave_up = False

    def handle(self, event: Event, now_ms: int) -> list[Command]:
        """Return what to do now, in order. Events that come too late or twice change nothing."""
        self._now_ms = now_ms
        self._commands = []
        match event:
            case SlotsGranted(grants):
                self._on_slots_granted(grants)
            case MetricsReported(metrics):
                self._on_metrics(metrics)
            case _ if not self.graph.status.is_terminal_state():
                self._handle_live(event)
        return self._commands

    def _handle_live(self, event: Event) -> None:
        match event:
            case StartScheduling():
                self._start()
            case TasksTakenOver(attempt_number, grants):
                self._take_over(attempt_number, grants)
            case SlotsUnavailable(error):
                self._on_slots_unavailable(error)
            case CoordinatorsStarted():
                if self._coordinators is _Coordinators.STARTING:
                    self._coordinators = _Coordinators.STARTED
                    self._run_if_ready()
            case CoordinatorFailed(error, is_final):
                self._fail(error, is_final=is_final)
            case TaskStateReported(report):
                self._on_report(report)
            case SlotsLost(allocation_ids, error):
                self._on_slots_lost(frozenset(allocation_ids), error)
            case CancelRequested():
                self._on_cancel()
            case JobEndHandled(error):
                self._on_end_handled(error)
            case GivenUpHandled():
                if self._coordinators is _Coordinators.GIVEN_UP:
                    failed = self.graph.status is JobStatus.FAILING
                    self._terminate(JobStatus.FAILED if failed else JobStatus.CANCELED)
            case RescaleRequested(job_graph):
                self._on_rescale(job_graph)
            case RestartDue(number):
                if self.graph.status is JobStatus.RESTARTING and number == self._attempt_number + 1:
                    self._restart()
                elif self._partial is not None and number == self._attempt_number + 1:
                    self._partial.is_due = True
                    self._go_on_with_regions()
            case _:
                raise AssertionError(event)

    # --- start ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self.graph.status is not JobStatus.INITIALIZING:
            return
        self._begin_attempt()

    def _take_over(self, attempt_number: int, grants: Sequence[tuple[SlotRequestKey, SlotGrant]]) -> None:
        if self.graph.status is not JobStatus.INITIALIZING:
            return
        self._attempt_number = attempt_number
        self.graph.take_over(attempt_number, self._now_ms)
        self._regions = {}
        self._grants = dict(grants)
        self._slots, self._coordinators = _Slots.HELD, _Coordinators.STARTED
        self._enter(JobStatus.CREATED)
        self._enter(JobStatus.RUNNING)
        subtasks = self.graph.all_subtasks()
        for subtask in subtasks:
            attempt = subtask.current
            attempt.slot = self._grant_of(subtask)
            for state in (ExecutionState.SCHEDULED, ExecutionState.DEPLOYING, ExecutionState.RUNNING):
                attempt.transition(state, self._now_ms)
            task = task_deployment(self.graph, subtask, self._grant_of)
            self._commands.append(Adopt(attempt.slot.allocation_id, task))
        message = f"Another JobManager leads. All {len(subtasks)} tasks run on under it; none was restarted."
        error = ErrorInfo("TasksTakenOver", message, "", "external")
        self.graph.exceptions.append(_exception_entry(error, None, self._now_ms))

    def _begin_attempt(self) -> None:
        self._enter(JobStatus.CREATED)
        for vertices in self._regions.values():
            if self._inputs_complete(vertices):
                self._mark_scheduled(vertices)
        # Both at once: finding the input and forking slot processes take time, and neither needs the other.
        self._coordinators = _Coordinators.STARTING
        self._slots = _Slots.REQUESTED
        self._commands.append(StartCoordinators(self._attempt_number))
        self._request_missing_slots()  # unless a request of the attempt before is still to be answered

    def _slot_keys(self) -> tuple[SlotRequestKey, ...]:
        width: dict[str, int] = {}
        for vertex in self.graph.job_graph.vertices:
            group = vertex.slot_sharing_group
            width[group] = max(width.get(group, 0), vertex.parallelism)
        return tuple(SlotRequestKey(group, index) for group in sorted(width) for index in range(width[group]))

    def _on_slots_granted(self, grants: Sequence[tuple[SlotRequestKey, SlotGrant]]) -> None:
        self._request_open = False
        is_wanted = self.graph.status is JobStatus.CREATED or self._partial is not None
        if self._slots is not _Slots.REQUESTED or not is_wanted:
            held = {grant.allocation_id for grant in self._grants.values()}
            self._release([grant for _, grant in grants if grant.allocation_id not in held], "the job has ended")
            return
        self._grants.update(grants)
        if not self._request_missing_slots():  # the request may have been one of before, for some slots only
            self._slots = _Slots.HELD
            self._run_if_ready()

    def _request_missing_slots(self) -> bool:
        """Ask for slots that the job does not hold; return whether there are any."""
        missing = tuple(key for key in self._slot_keys() if key not in self._grants)
        if missing and not self._request_open:
            self._request_open = True
            self._commands.append(RequestSlots(missing))
        return bool(missing)

    def _on_slots_unavailable(self, error: ErrorInfo) -> None:
        self._request_open = False
        if self._slots is _Slots.REQUESTED:
            self._slots = _Slots.RELEASED
            if self._before_rescale is not None and self.graph.status is JobStatus.CREATED:
                self.graph.exceptions.append(_exception_entry(error, None, self._now_ms))
                self._go_over_to(self._before_rescale)
                return
            self._fail(error, is_final=error.domain == Domain.USER.value)

    def _run_if_ready(self) -> None:
        if self._slots is not _Slots.HELD or self._coordinators is not _Coordinators.STARTED:
            return
        if self.graph.status is JobStatus.CREATED:
            self._before_rescale = None
            self._enter(JobStatus.RUNNING)
            self._deploy_ready_regions()
        elif self._partial is not None and self._partial.is_starting:
            self._partial = None
            self._deploy_ready_regions()

    def _enter(self, status: JobStatus) -> None:
        self._partial = None
        self.graph.transition(status, self._now_ms)
        self._commands.append(JobStatusChanged(status))

    # --- deployment -------------------------------------------------------------------------------------------------

    def _inputs_complete(self, vertices: Sequence[JobVertexID]) -> bool:
        """Whether everything that a region reads over blocking exchanges has been written."""
        producers = {e.source_id for vertex_id in vertices for e in self.graph.vertices[vertex_id].inputs if e.blocking}
        return all(self._is_finished(vertex_id) for vertex_id in producers)

    def _is_finished(self, vertex_id: JobVertexID) -> bool:
        subtasks = self.graph.vertices[vertex_id].subtasks
        return all(subtask.current.state is ExecutionState.FINISHED for subtask in subtasks)

    def _mark_scheduled(self, vertices: Sequence[JobVertexID]) -> None:
        for subtask in self._subtasks_of(vertices):
            if subtask.current.state is ExecutionState.CREATED:
                subtask.current.transition(ExecutionState.SCHEDULED, self._now_ms)

    def _subtasks_of(self, vertices: Iterable[JobVertexID]) -> list[ExecutionVertex]:
        return [subtask for vertex_id in vertices for subtask in self.graph.vertices[vertex_id].subtasks]

    def _deploy_ready_regions(self) -> None:
        if self._partial is not None:
            return  # when its slots and coordinators are there
        for region, vertices in list(self._regions.items()):
            if self._inputs_complete(vertices):
                del self._regions[region]
                self._mark_scheduled(vertices)
                for subtask in self._subtasks_of(vertices):
                    self._deploy(subtask)

    def _grant_of(self, subtask: ExecutionVertex) -> SlotGrant:
        return self._grants[SlotRequestKey(subtask.job_vertex.slot_sharing_group, subtask.subtask_index)]

    def _deploy(self, subtask: ExecutionVertex) -> None:
        attempt = subtask.current
        attempt.slot = self._grant_of(subtask)
        attempt.transition(ExecutionState.DEPLOYING, self._now_ms)
        self._commands.append(Deploy(attempt.slot.allocation_id, task_deployment(self.graph, subtask, self._grant_of)))

    # --- reports ----------------------------------------------------------------------------------------------------

    def _on_metrics(self, metrics: Mapping[ExecutionAttemptID, TaskMetrics]) -> None:
        for attempt_id, counters in metrics.items():
            found = self.graph.find_attempt(attempt_id)
            # The report of a terminal state carried the last word.
            if found is not None and not found[1].state.is_terminal():
                found[1].metrics = counters

    def _on_report(self, report: TaskStateChanged) -> None:
        found = self.graph.find_attempt(report.attempt_id)
        if found is None or found[1] is not found[0].current or found[1].state not in _IN_SLOT:
            return
        subtask, attempt = found
        before = attempt.state
        if report.state not in EXECUTION_LEGAL[before]:
            return  # e.g. RUNNING crossed our CancelTask on the way
        if report.state is ExecutionState.CANCELING:
            return
        attempt.transition(report.state, self._now_ms)
        attempt.accumulators = report.accumulators or attempt.accumulators
        attempt.metrics = report.metrics or attempt.metrics
        attempt.error = report.error
        match report.state:
            case ExecutionState.FINISHED:
                self._on_finished(subtask)
            case ExecutionState.FAILED:
                self._fail(report.error or _unexplained(subtask, "failed without an error"), subtask)
            case ExecutionState.CANCELED if before is not ExecutionState.CANCELING:
                self._fail(report.error or _unexplained(subtask, "ended as cancelled, nobody asked for it"), subtask)
        self._end_if_done()
        self._go_on_with_regions()

    def _on_finished(self, subtask: ExecutionVertex) -> None:
        if self.graph.status is JobStatus.RUNNING:
            self._commands.append(NotifySubtaskFinished(subtask.job_vertex.vertex_id, subtask.subtask_index))
            self._deploy_ready_regions()

    def _on_slots_lost(self, allocation_ids: frozenset[AllocationID], error: ErrorInfo) -> None:
        lost = {key for key, grant in self._grants.items() if grant.allocation_id in allocation_ids}
        if not lost:
            return
        is_needed = any(self._is_needed(key) for key in lost)
        witness: ExecutionVertex | None = None
        for key in lost:
            del self._grants[key]
        for subtask in self.graph.all_subtasks():
            attempt = subtask.current
            if _key_of(subtask) not in lost or attempt.state not in _IN_SLOT:
                continue
            witness = witness or subtask
            if attempt.state is ExecutionState.CANCELING:
                attempt.transition(ExecutionState.CANCELED, self._now_ms)
            else:
                attempt.error = error
                attempt.transition(ExecutionState.FAILED, self._now_ms)
        if witness is not None or (is_needed and self.graph.status not in _WINDING_DOWN):
            self._fail(error, witness, is_slot_loss=True)
        self._end_if_done()
        self._go_on_with_regions()

    def _is_needed(self, key: SlotRequestKey) -> bool:
        """Whether a slot still has work to do or holds output that somebody has yet to read."""
        for vertex in self.graph.vertices.values():
            if vertex.job_vertex.slot_sharing_group != key.slot_sharing_group:
                continue
            if key.subtask_index >= len(vertex.subtasks):
                continue
            if vertex.subtasks[key.subtask_index].current.state is not ExecutionState.FINISHED:
                return True
            if not all(self._is_finished(edge.target_id) for edge in vertex.outputs):
                return True
        return False

    # --- the end ----------------------------------------------------------------------------------------------------

    def _fail(
        self,
        error: ErrorInfo,
        subtask: ExecutionVertex | None = None,
        *,
        is_slot_loss: bool = False,
        is_final: bool = False,
    ) -> None:
        status = self.graph.status
        if status in (JobStatus.CANCELLING, JobStatus.RESTARTING):
            return  # whatever goes wrong while a job is cancelled, it ends as cancelled
        if not is_final and self._fails_only_regions(error, subtask, is_slot_loss):
            return
        if status in (JobStatus.CREATED, JobStatus.RUNNING):
            self.graph.failure = error
            self._failure_is_loss = is_slot_loss
            self._failed_ms = self._now_ms
            self._may_restart = (self._recovers or self._coordinators not in _ENDED) and not self._gave_up
            self._enter(JobStatus.FAILING)
            self._cancel_tasks()
        elif status is JobStatus.FAILING and self._is_deeper(error, is_slot_loss):
            self.graph.failure = error
            self._failure_is_loss = is_slot_loss
        self._may_restart = self._may_restart and not is_final
        if self.graph.failure is error or len(self.graph.exceptions) < (self.graph.exceptions.maxlen or 0):
            self.graph.exceptions.append(_exception_entry(error, subtask, self._now_ms))
        self._end_if_done()

    # --- restart of regions -----------------------------------------------------------------------------------------

    def _fails_only_regions(self, error: ErrorInfo, subtask: ExecutionVertex | None, is_slot_loss: bool) -> bool:
        """Begin the restart of the regions that a failure concerns, or widen the one under way; False: all fails."""
        partial = self._partial
        if self.graph.status is not JobStatus.RUNNING or len(self._failover) == 1 or self._recovers:
            return False  # what a checkpoint holds is one state of the whole job
        if (subtask is None and not is_slot_loss) or (partial is not None and partial.is_starting):
            return False  # whose coordinator it was is not known; what is half started is hard to stop
        if self._coordinators is not _Coordinators.STARTED:
            return False
        regions = self._regions_to_restart() | (set() if partial is None else partial.regions)
        if len(regions) == len(self._failover):
            return False
        is_new = partial is None or regions != partial.regions
        delay_ms = self._restarts.delay_ms(self._now_ms, is_loss=is_slot_loss) if is_new else 0
        if delay_ms is None:
            self._gave_up = True
            return False
        self.graph.exceptions.append(_exception_entry(error, subtask, self._now_ms))
        if partial is None:
            self._partial = RegionRestart(regions)
            self._commands.append(RestartAfter(self._attempt_number + 1, delay_ms))
        else:
            partial.regions = regions
        self._cancel_tasks(self._failover.vertices_of(regions))
        return True

    def _regions_to_restart(self) -> set[JobVertexID]:
        """Return the regions that have to run again, as all attempts and slots are now."""
        held = {grant.allocation_id for grant in self._grants.values()}
        failed, started, incomplete, lost = [], [], [], []
        for vertex_id, vertex in self.graph.vertices.items():
            attempts = [subtask.current for subtask in vertex.subtasks]
            states = {attempt.state for attempt in attempts}
            if ExecutionState.FAILED in states:
                failed.append(vertex_id)
            if not states <= _NOT_STARTED:
                started.append(vertex_id)
            if states != {ExecutionState.FINISHED}:
                incomplete.append(vertex_id)
            elif any(attempt.slot and attempt.slot.allocation_id not in held for attempt in attempts):
                lost.append(vertex_id)
        return self._failover.to_restart(failed, started=started, incomplete=incomplete, lost=lost)

    def _go_on_with_regions(self) -> None:
        """Start the regions anew as soon as the delay is over and nothing of them is live."""
        partial = self._partial
        if partial is None or partial.is_starting or not partial.is_due:
            return
        vertices = self._failover.vertices_of(partial.regions)
        if not all(subtask.current.state.is_terminal() for subtask in self._subtasks_of(vertices)):
            return
        partial.is_starting = True
        if self._request_missing_slots():
            self._slots = _Slots.REQUESTED
        if vertices:  # none: a slot was lost whose tasks had not begun
            self._begin_attempt_of(vertices)
        self._run_if_ready()

    def _begin_attempt_of(self, vertices: Sequence[JobVertexID]) -> None:
        self._attempt_number += 1
        self.graph.new_attempts(self._attempt_number, self._now_ms, vertices)
        waiting = self._regions.keys() | {self._failover.of_vertex[vertex_id] for vertex_id in vertices}
        self._regions = {region: found for region, found in self._failover.vertices.items() if region in waiting}
        for region in self._regions.values():
            if self._inputs_complete(region):
                self._mark_scheduled(region)
        self._coordinators = _Coordinators.STARTING
        self._commands.append(StartCoordinators(self._attempt_number, tuple(vertices)))

    # --- winding down -----------------------------------------------------------------------------------------------

    def _is_deeper(self, error: ErrorInfo, is_slot_loss: bool) -> bool:
        """Whether an error that came later explains the one that is stored.

        When a task or slot dies, its neighbours report a broken connection, perhaps before its own report is here.
        """
        stored = self.graph.failure
        return stored is not None and stored.domain == "external" and (error.domain != "external" or is_slot_loss)

    def _cancel_tasks(self, vertices: Iterable[JobVertexID] | None = None) -> None:
        for subtask in self.graph.all_subtasks() if vertices is None else self._subtasks_of(vertices):
            attempt = subtask.current
            if attempt.state in (ExecutionState.CREATED, ExecutionState.SCHEDULED):
                attempt.transition(ExecutionState.CANCELED, self._now_ms)
            elif attempt.state in _IN_SLOT and attempt.state is not ExecutionState.CANCELING:
                assert attempt.slot is not None
                attempt.transition(ExecutionState.CANCELING, self._now_ms)
                self._commands.append(Cancel(attempt.slot.allocation_id, attempt.attempt_id))

    def _on_cancel(self) -> None:
        match self.graph.status:
            case JobStatus.INITIALIZING:
                self._cancel_tasks()
                self._terminate(JobStatus.CANCELED)
            case JobStatus.CREATED | JobStatus.RUNNING if self._coordinators is not _Coordinators.ENDING:
                self._enter(JobStatus.CANCELLING)
                self._cancel_tasks()
                self._end_if_done()
            case JobStatus.FAILING:
                self._cancel_requested = True
            case JobStatus.RESTARTING:
                self._terminate_cancelled()
            # Else it is being cancelled already, or all tasks are done and only the commit is left: too late.

    def _end_if_done(self) -> None:
        """When no task is live and none will be: give the slots back and let the coordinators commit or clean up."""
        status = self.graph.status
        if self._coordinators in _ENDED or self._partial is not None:
            return
        if status is not JobStatus.RUNNING and status not in _WINDING_DOWN:
            return
        if not all(subtask.current.state.is_terminal() for subtask in self.graph.all_subtasks()):
            return
        outcome = _OUTCOMES[status]
        self._release(list(self._grants.values()), f"the job has {outcome.value}")
        self._grants = {}
        self._slots = _Slots.RELEASED
        self._coordinators = _Coordinators.ENDING
        self._commands.append(EndCoordinators(outcome))

    def _release(self, grants: Sequence[SlotGrant], reason: str) -> None:
        if grants:
            self._commands.append(ReleaseSlots(tuple(g.allocation_id for g in grants), reason, self._grace_ms))

    def _on_end_handled(self, error: ErrorInfo | None) -> None:
        if self._coordinators is not _Coordinators.ENDING:
            return
        self._coordinators = _Coordinators.ENDED
        if error is not None:
            self._fail(error)
        match self.graph.status:
            case JobStatus.RUNNING:
                self._terminate(JobStatus.FINISHED)
            case JobStatus.FAILING:
                self._restart_or_fail()
            case _:
                self._terminate(JobStatus.CANCELED)

    def _on_rescale(self, job_graph: JobGraph) -> None:
        if self.graph.status is not JobStatus.RUNNING or self._partial is not None:
            return
        if self._coordinators is not _Coordinators.STARTED:
            return  # the job is done but for its commit
        self._go_over_to(job_graph)

    def _go_over_to(self, job_graph: JobGraph) -> None:
        self._rescaled = job_graph
        self.graph.failure = _RESCALING
        self._failed_ms = self._now_ms
        self._may_restart = True
        self._enter(JobStatus.FAILING)
        self._cancel_tasks()
        self._end_if_done()

    def _restart_or_fail(self) -> None:
        if self.graph.failure is _RESCALING and self._may_restart:
            delay_ms: int | None = 0  # nothing has failed
        else:
            self._rescaled = None  # something has: first of all back to what ran before
            is_loss = self._failure_is_loss
            delay_ms = self._restarts.delay_ms(self._failed_ms, is_loss=is_loss) if self._may_restart else None
        if delay_ms is None:
            self._give_up(JobOutcome.FAILED)
        elif self._cancel_requested:
            self._terminate_cancelled()
        else:
            self._enter(JobStatus.RESTARTING)
            # The time that it took to end the attempt is part of the delay.
            delay_ms = max(0, self._failed_ms + delay_ms - self._now_ms)
            self._commands.append(RestartAfter(self._attempt_number + 1, delay_ms))

    def _terminate_cancelled(self) -> None:
        """Nothing is left to be wound down, the last attempt has failed."""
        self.graph.failure = None
        self._enter(JobStatus.CANCELLING)
        self._give_up(JobOutcome.CANCELED)

    def _give_up(self, outcome: JobOutcome) -> None:
        """The coordinators have kept what another attempt might have wanted."""
        self._coordinators = _Coordinators.GIVEN_UP
        self._commands.append(GiveUpCoordinators(outcome))

    def _restart(self) -> None:
        self._attempt_number += 1
        self.graph.failure = None
        if self._rescaled is not None:
            self._before_rescale = self.graph.job_graph
            self.graph.rescale(self._rescaled)
            self._rescaled = None
        self.graph.new_attempts(self._attempt_number, self._now_ms)
        self._regions = dict(self._failover.vertices)
        self._begin_attempt()

    def _terminate(self, status: JobStatus) -> None:
        self._enter(status)
        self._commands.append(JobTerminated(status))

    # --- invariants -------------------------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself. For tests; cheap."""
        status = self.graph.status
        attempts = [subtask.current for subtask in self.graph.all_subtasks()]
        states = {attempt.state for attempt in attempts}
        held = {grant.allocation_id for grant in self._grants.values()}
        assert len(held) == len(self._grants), "a slot serves one key"
        for attempt in attempts:
            assert attempt.state not in _IN_SLOT or (attempt.slot and attempt.slot.allocation_id in held), attempt
        if status in (JobStatus.INITIALIZING, JobStatus.CREATED):
            assert states <= {ExecutionState.CREATED, ExecutionState.SCHEDULED}, states
        if status is JobStatus.RUNNING and self._coordinators is _Coordinators.STARTED:
            assert states & _IN_SLOT or self._partial, "nothing runs and nothing will"
        if status in _WINDING_DOWN:
            assert not states & {ExecutionState.CREATED, ExecutionState.SCHEDULED, ExecutionState.RUNNING}, states
        if status.is_terminal_state() or self._coordinators in _ENDED:
            assert all(state.is_terminal() for state in states), states
            assert not held, "a job that is done holds no slot"
        if status is JobStatus.RESTARTING:
            assert self._coordinators is _Coordinators.ENDED, "the attempt before was not cleaned up"
        assert max(attempt.attempt_number for attempt in attempts) == self._attempt_number
        for vertices in self._failover.vertices.values():
            numbers = {subtask.current.attempt_number for subtask in self._subtasks_of(vertices)}
            assert len(numbers) == 1, "a region restarts as a whole"
        if status is JobStatus.FINISHED:
            assert states == {ExecutionState.FINISHED}, states
        assert (self.graph.failure is not None) == (status in _FAILED), status
        for vertex in self.graph.vertices.values():
            if not self._partial and any(subtask.current.state in _IN_SLOT for subtask in vertex.subtasks):
                assert self._inputs_complete([vertex.job_vertex.vertex_id]), f"{vertex.job_vertex.name} was too early"


def _key_of(subtask: ExecutionVertex) -> SlotRequestKey:
    return SlotRequestKey(subtask.job_vertex.slot_sharing_group, subtask.subtask_index)


def _unexplained(subtask: ExecutionVertex, what: str) -> ErrorInfo:
    return ErrorInfo("InternalError", f"Task {subtask.name} {what}.", "", "internal")


def _exception_entry(error: ErrorInfo, subtask: ExecutionVertex | None, now_ms: int) -> ExceptionEntry:
    slot = None if subtask is None else subtask.current.slot
    return ExceptionEntry(
        error,
        now_ms,
        None if subtask is None else subtask.name,
        None if slot is None else f"{slot.host}:{slot.address.port}",
        None if slot is None else slot.resource_id,
        "" if slot is None else slot.log_url,
    )
