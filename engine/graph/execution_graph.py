"""ExecutionGraph: JobGraph × parallelism × attempts, with states and timestamps. What the scheduler decides on and what
REST shows. Pure data with guarded transitions; all changes come from ``runtime/jobmanager/scheduler``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import field
from typing import Any, Final

from engine.core.errors import IllegalTransition
from engine.core.ids import (
    AllocationID,
    ExecutionAttemptID,
    IntermediateDatasetID,
    JobVertexID,
    ResourceID,
    ResultPartitionID,
)
from engine.core.late_dataclass import dataclass
from engine.graph.job_graph import JobEdge, JobGraph, JobVertex
from engine.protocol.control import ErrorInfo, SlotAddress, TaskMetrics
from engine.protocol.lifecycle import EXECUTION_LEGAL, JOB_LEGAL, ExecutionState, JobStatus

__all__ = [
    "ExceptionEntry",
    "Execution",
    "ExecutionGraph",
    "ExecutionJobVertex",
    "ExecutionVertex",
    "SlotGrant",
]

STORY_LENGTH_MAX: Final = 200  # enough for a few restarts of one job
EXCEPTIONS_MAX: Final = 16  # default of web.exception-history-size
ATTEMPTS_MAX: Final = 17  # the current one and jobmanager.execution.attempts-history-size of Flink


@dataclass(frozen=True, slots=True)
class SlotGrant:
    """A slot that the job holds."""

    allocation_id: AllocationID
    resource_id: ResourceID
    host: str
    address: SlotAddress
    log_url: str = ""  #: of its TaskManager's logs where others than the JobManager show them


@dataclass(slots=True)
class Execution:
    """One attempt of one subtask."""

    attempt_id: ExecutionAttemptID
    attempt_number: int
    created_ms: int
    state: ExecutionState = ExecutionState.CREATED
    #: state → time at which it was entered, 0 if never: as REST shows it
    timestamps: dict[ExecutionState, int] = field(default_factory=dict)
    slot: SlotGrant | None = None
    error: ErrorInfo | None = None
    metrics: TaskMetrics = field(default_factory=TaskMetrics)
    #: cloudpickled dict of accumulators; set when the attempt has ended
    accumulators: bytes = b""

    def transition(self, target: ExecutionState, now_ms: int) -> None:
        """Enter ``target``; raises IllegalTransition if there is no such edge."""
        if target not in EXECUTION_LEGAL[self.state]:
            story = [f"{state.name}@{at}" for state, at in self.timestamps.items()]
            raise IllegalTransition(self.attempt_id, self.state, target, story=story)
        self.state = target
        self.timestamps[target] = now_ms

    @property
    def end_ms(self) -> int:
        return max((self.timestamps.get(s, 0) for s in ExecutionState if s.is_terminal()), default=0)


@dataclass(slots=True)
class ExecutionVertex:
    """One subtask with its current and its last former attempts, numbers rising."""

    job_vertex: JobVertex
    subtask_index: int
    attempts: list[Execution]

    @property
    def current(self) -> Execution:
        return self.attempts[-1]

    def find(self, attempt_number: int) -> Execution | None:
        """Return the attempt with that number; None if there was none or it is forgotten."""
        # Numbers have gaps: a restart of other regions counts too.
        return next((attempt for attempt in reversed(self.attempts) if attempt.attempt_number == attempt_number), None)

    @property
    def name(self) -> str:
        return f"{self.job_vertex.name} ({self.subtask_index + 1}/{self.job_vertex.parallelism})"


@dataclass(slots=True)
class ExecutionJobVertex:
    job_vertex: JobVertex
    subtasks: list[ExecutionVertex]
    inputs: list[JobEdge]
    outputs: list[JobEdge]

    def aggregate_state(self) -> ExecutionState:
        """Return the state that REST shows for the whole vertex. Source: Flink's ExecutionJobVertex."""
        states = [subtask.current.state for subtask in self.subtasks]
        for state in (
            ExecutionState.FAILED,
            ExecutionState.CANCELING,
            ExecutionState.CANCELED,
        ):
            if state in states:
                return state
        if all(state is ExecutionState.FINISHED for state in states):
            return ExecutionState.FINISHED
        for state in (
            ExecutionState.INITIALIZING,
            ExecutionState.RUNNING,
            ExecutionState.DEPLOYING,
            ExecutionState.SCHEDULED,
        ):
            if state in states:
                return state
        if ExecutionState.FINISHED in states:
            return ExecutionState.RUNNING
        return ExecutionState.CREATED


@dataclass(frozen=True, slots=True)
class ExceptionEntry:
    error: ErrorInfo
    timestamp_ms: int
    task_name: str | None = None
    endpoint: str | None = None  #: "host:port" of the TaskManager
    resource_id: ResourceID | None = None
    log_url: str = ""  #: as in SlotGrant


class ExecutionGraph:
    """One run of a JobGraph."""

    def __init__(self, job_graph: JobGraph, now_ms: int, first_attempt: int = 0) -> None:
        """``first_attempt``: number of the first attempts; greater than those that another JobManager made."""
        self.job_graph = job_graph
        self.status = JobStatus.INITIALIZING
        self.status_timestamps: dict[JobStatus, int] = {JobStatus.INITIALIZING: now_ms}
        self.exceptions: deque[ExceptionEntry] = deque(maxlen=EXCEPTIONS_MAX)
        self.failure: ErrorInfo | None = None
        #: It has ended, but that is not durable yet: until then nobody is told its result.
        self.is_result_pending = False
        #: merged user accumulators, name → Accumulator as seen at the end (values already plain): name → (type, value)
        self.accumulator_results: dict[str, tuple[str, Any]] = {}
        self.story: deque[str] = deque(maxlen=STORY_LENGTH_MAX)
        self.vertices: dict[JobVertexID, ExecutionJobVertex] = {}
        self._build_vertices()
        self.new_attempts(first_attempt, now_ms)

    def _build_vertices(self) -> None:
        job_graph, former = self.job_graph, self.vertices
        self.vertices = {}
        for vertex in job_graph.vertices:
            known = former[vertex.vertex_id].subtasks if former else []
            histories = [subtask.attempts for subtask in known] + [[] for _ in range(vertex.parallelism)]
            subtasks = [ExecutionVertex(vertex, i, histories[i]) for i in range(vertex.parallelism)]
            self.vertices[vertex.vertex_id] = ExecutionJobVertex(
                vertex,
                subtasks,
                [edge for edge in job_graph.edges if edge.target_id == vertex.vertex_id],
                [edge for edge in job_graph.edges if edge.source_id == vertex.vertex_id],
            )

    def rescale(self, job_graph: JobGraph) -> None:
        """The next attempts are those of ``job_graph``, the same job at another parallelism (``graph/rescale``). No
        attempt may be live. What subtasks that are no more had done is forgotten."""
        self.job_graph = job_graph
        self._build_vertices()

    def new_attempts(self, attempt_number: int, now_ms: int, vertices: Collection[JobVertexID] | None = None) -> None:
        """Give every subtask (of ``vertices``) a new current attempt; the oldest former ones are forgotten."""
        for subtask in self.all_subtasks():
            if vertices is not None and subtask.job_vertex.vertex_id not in vertices:
                continue
            attempt_id = ExecutionAttemptID.of(subtask.job_vertex.vertex_id, subtask.subtask_index, attempt_number)
            attempt = Execution(attempt_id, attempt_number, now_ms)
            attempt.timestamps[ExecutionState.CREATED] = now_ms
            subtask.attempts.append(attempt)
            del subtask.attempts[:-ATTEMPTS_MAX]

    def take_over(self, attempt_number: int, now_ms: int) -> None:
        """The attempts are those of this number, which another JobManager made, instead of the first ones here."""
        for subtask in self.all_subtasks():
            subtask.attempts.clear()
        self.new_attempts(attempt_number, now_ms)

    def transition(self, target: JobStatus, now_ms: int) -> None:
        """Enter ``target``; raises IllegalTransition if there is no such edge."""
        if target not in JOB_LEGAL[self.status]:
            raise IllegalTransition(self.job_graph.job_id, self.status, target, story=list(self.story))
        self.story.append(f"{now_ms} job {self.status.name} → {target.name}")
        self.status = target
        self.status_timestamps[target] = now_ms

    def all_subtasks(self) -> list[ExecutionVertex]:
        return [subtask for vertex in self.vertices.values() for subtask in vertex.subtasks]

    def find_attempt(self, attempt_id: ExecutionAttemptID) -> tuple[ExecutionVertex, Execution] | None:
        """Return the subtask and attempt with that id, also a former one; None if unknown."""
        parts = attempt_id.rsplit("_", 2)
        if len(parts) != 3 or not parts[1].isdigit() or not parts[2].isdigit():
            return None
        vertex_id, subtask, number = parts
        vertex = self.vertices.get(JobVertexID(vertex_id))
        if vertex is None or int(subtask) >= len(vertex.subtasks):
            return None
        owner = vertex.subtasks[int(subtask)]
        attempt = owner.find(int(number))
        return None if attempt is None else (owner, attempt)

    @property
    def start_ms(self) -> int:
        return self.status_timestamps[JobStatus.INITIALIZING]

    @property
    def end_ms(self) -> int:
        """Time at which the job ended, -1 while it has not."""
        return self.status_timestamps[self.status] if self.status.is_globally_terminal_state() else -1

    def partition_id(self, dataset_id: IntermediateDatasetID, producer: ExecutionVertex) -> ResultPartitionID:
        return ResultPartitionID.of(dataset_id, producer.subtask_index, producer.current.attempt_number)


def channels_of(edge: JobEdge, num_producers: int, num_consumers: int, consumer: int) -> list[tuple[int, int]]:
    """Return (producer subtask, subpartition index at that producer) of each channel of one consumer, producers rising.

    All-to-all: every producer has one subpartition per consumer. Pointwise: producer p feeds a run of consumers (or a
    run of producers feeds one); a producer's subpartitions are numbered from 0 in order of its consumers.
    """
    if not edge.ship_strategy.is_pointwise:
        return [(producer, consumer) for producer in range(num_producers)]
    found = []
    for producer in range(num_producers):
        targets = consumers_of_pointwise(producer, num_producers, num_consumers)
        if consumer in targets:
            found.append((producer, consumer - targets.start))
    return found


def consumers_of_pointwise(producer: int, num_producers: int, num_consumers: int) -> range:
    """Return the consumers that a producer feeds over FORWARD or RESCALE. Every consumer has at least one producer.

    Source: Flink's VertexInputInfoComputationUtils (even distribution both ways).
    """
    if num_producers <= num_consumers:
        start = (producer * num_consumers + num_producers - 1) // num_producers
        end = ((producer + 1) * num_consumers + num_producers - 1) // num_producers
        return range(start, end)
    consumer = producer * num_consumers // num_producers
    return range(consumer, consumer + 1)


def num_subpartitions(edge: JobEdge, producer: int, num_producers: int, num_consumers: int) -> int:
    if not edge.ship_strategy.is_pointwise:
        return num_consumers
    return len(consumers_of_pointwise(producer, num_producers, num_consumers))
