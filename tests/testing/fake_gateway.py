"""A DispatcherGateway without a cluster: real ExecutionGraphs, moved by the test through their real transitions."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from engine.checkpoint.settings import CheckpointSettings
from engine.checkpoint.statistics import CheckpointStatistics
from engine.core.config import Configuration
from engine.core.errors import JobNotFoundError
from engine.core.ids import AllocationID, IntermediateDatasetID, JobID, JobVertexID, OperatorID, ResourceID
from engine.graph.execution_graph import ExceptionEntry, ExecutionGraph, SlotGrant
from engine.graph.job_graph import JobEdge, JobGraph, JobType, JobVertex, OperatorInfo
from engine.graph.transformation import ShipStrategy
from engine.ha.history import LeaderRecord
from engine.protocol.checkpoint import StopMode
from engine.protocol.control import ErrorInfo, SlotAddress, TaskManagerRegistered, TaskMetrics
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.protocol.profiling import OperatorMetrics, Stack, StacksSampled
from engine.runtime.jobmanager.gateway import CheckpointsView, ClusterOverview, TakenCheckpoint, TaskManagerView

#: States on the way to RUNNING, with the milliseconds after the start of the job at which they are entered.
_WAY = (
    (ExecutionState.SCHEDULED, 20),
    (ExecutionState.DEPLOYING, 90),
    (ExecutionState.INITIALIZING, 150),
    (ExecutionState.RUNNING, 260),
)


def word_count_job(
    name: str = "WordCount", *, parallelism: int = 2, job_type: JobType = JobType.STREAMING, joined: bool = False
) -> JobGraph:
    """Return source → flat map → sum and print; ``joined`` adds a second source that meets it in the sum."""
    names = ["Source: lines", "flat_map -> key_by", "sum -> Sink: print"]
    strategies = [(0, 1, ShipStrategy.REBALANCE), (1, 2, ShipStrategy.HASH)]
    if joined:
        names.insert(1, "Source: stop words -> filter")
        strategies = [(0, 2, ShipStrategy.REBALANCE), (2, 3, ShipStrategy.HASH), (1, 3, ShipStrategy.BROADCAST)]
    ids = [JobVertexID.from_text(vertex_name) for vertex_name in names]
    vertices = tuple(
        JobVertex(
            vertex_id=ids[index],
            name=vertex_name,
            parallelism=1 if index == 0 else parallelism,
            max_parallelism=128,
            chain=b"",
            operators=(OperatorInfo(OperatorID.from_text(vertex_name), vertex_name, None, vertex_name),),
            slot_sharing_group="default",
            co_location_group=None,
            is_source=index == 0,
            is_bounded=job_type is JobType.BATCH,
        )
        for index, vertex_name in enumerate(names)
    )
    edges = tuple(
        JobEdge(
            dataset_id=IntermediateDatasetID.from_text(f"{source}-{target}"),
            source_id=ids[source],
            target_id=ids[target],
            exit_index=0,
            input_index=0,
            ship_strategy=strategy,
            blocking=job_type is JobType.BATCH,
            buffer_timeout_ms=100,
        )
        for source, target, strategy in strategies
    )
    return JobGraph(
        job_id=JobID.from_text(name),
        name=name,
        job_type=job_type,
        vertices=vertices,
        edges=edges,
        config={"parallelism.default": str(parallelism)},
        parameters={"input": "hdfs:///texts"},
    )


def taskmanager_view(index: int = 1, *, num_slots: int = 2, slots_free: int = 1, now_ms: int = 0) -> TaskManagerView:
    registered = TaskManagerRegistered(
        resource_id=ResourceID(f"host-{index}:4000{index}-3fa2b{index}"),
        host=f"host-{index}",
        num_slots=num_slots,
        cpu_cores=4,
        physical_memory_bytes=16 << 30,
        process_memory_bytes=1728 << 20,
        slot_memory_bytes=600 << 20,
        log_dir="/var/log/engine",
        pid=4711,
        data_port=40000 + index,
    )
    return TaskManagerView(registered, slots_free, now_ms - 800, 230 << 20, {})


def start(graph: ExecutionGraph, views: Sequence[TaskManagerView]) -> None:
    """Bring a fresh job to RUNNING, its subtasks spread over the TaskManagers."""
    at = graph.start_ms
    graph.transition(JobStatus.CREATED, at + 5)
    graph.transition(JobStatus.RUNNING, at + 10)
    for owner in graph.all_subtasks():
        registered = views[owner.subtask_index % len(views)].registration
        address = SlotAddress(registered.resource_id, registered.host, registered.data_port, "")
        allocation = AllocationID.from_text(f"{graph.job_graph.job_id}{owner.subtask_index}")
        owner.current.slot = SlotGrant(allocation, registered.resource_id, registered.host, address)
        for state, delay in _WAY:
            owner.current.transition(state, at + delay)


def count(graph: ExecutionGraph, elapsed_ms: int, *, backpressured: bool = False) -> None:
    """Give every subtask the counters of a job that has run for ``elapsed_ms``."""
    for position, vertex in enumerate(graph.vertices.values()):
        for owner in vertex.subtasks:
            records = elapsed_ms * (position + 1) // len(vertex.subtasks)
            busy = (0.85, 0.55, 0.2, 0.1)[position % 4]
            blocked = 0.7 if backpressured and position == 0 else 0.0
            busy = min(busy, 1 - blocked)
            owner.current.metrics = TaskMetrics(
                records_in=records if vertex.inputs else 0,
                records_out=records * 3 if vertex.outputs else 0,
                bytes_in=records * 40 if vertex.inputs else 0,
                bytes_out=records * 120 if vertex.outputs else 0,
                busy_ms=int(elapsed_ms * busy),
                idle_ms=int(elapsed_ms * (1 - busy - blocked)),
                backpressured_ms=int(elapsed_ms * blocked),
                user={"lines": records},
                operators=(
                    OperatorMetrics("split", records * 3, records // 4, int(elapsed_ms * busy), "compiled"),
                    OperatorMetrics("key", records * 3, records // 4, 0, "interpreted (it calls print)", "split"),
                ),
            )


def end(graph: ExecutionGraph, status: JobStatus, now_ms: int, error: ErrorInfo | None = None) -> None:
    """End a running job as FINISHED, CANCELED or FAILED; the first running subtask is the one that failed."""
    running = [owner for owner in graph.all_subtasks() if not owner.current.state.is_terminal()]
    if status is JobStatus.FAILED:
        assert error is not None
        failed = running.pop(0)
        failed.current.error = error
        failed.current.transition(ExecutionState.FAILED, now_ms)
        graph.failure = error
        slot = failed.current.slot
        graph.exceptions.append(
            ExceptionEntry(
                error,
                now_ms,
                failed.name,
                f"{slot.host}:{slot.address.port}" if slot else None,
                slot.resource_id if slot else None,
            )
        )
    for owner in running:
        if status is JobStatus.FINISHED:
            owner.current.transition(ExecutionState.FINISHED, now_ms)
        else:
            owner.current.transition(ExecutionState.CANCELING, now_ms)
            owner.current.transition(ExecutionState.CANCELED, now_ms + 4)
    if status is JobStatus.FAILED:
        graph.transition(JobStatus.FAILING, now_ms)
    if status is JobStatus.CANCELED and graph.status is not JobStatus.CANCELLING:
        graph.transition(JobStatus.CANCELLING, now_ms)
    graph.transition(status, now_ms + 5)


class FakeGateway:
    """Holds what the test puts in; remembers what REST asked for."""

    def __init__(self, folder: str, config: dict[str, str] | None = None, *, now_ms: int = 1_700_000_000_000) -> None:
        self.config = Configuration(config or {})
        self.now_ms = now_ms
        self.folder = folder
        self.log_dir: str | None = None
        self.leaders: list[LeaderRecord] = []
        self.graphs: list[ExecutionGraph] = []
        self.views: list[TaskManagerView] = []
        self.taskmanager_logs: dict[str, bytes] = {}
        self.submitted: list[JobGraph] = []
        self.blobs: dict[str, bytes] = {}
        self.shut_down = False
        self.coordinator_answers: dict[str, Any] = {}
        self.checkpoint_statistics = CheckpointStatistics(10)
        #: what a look at a slot finds; None: as many looks as asked for, all but one of them in the same function
        self.stacks: dict[Stack, int] | None = None
        self.may_sample = asyncio.Event()
        self.may_sample.set()
        #: checkpoints and savepoints that were asked for; answered when ``may_answer`` is set, or refused
        self.asked: list[tuple[Any, ...]] = []
        self.may_answer = asyncio.Event()
        self.refusal: Exception | None = None

    def add_job(self, job_graph: JobGraph, *, age_ms: int = 60_000) -> ExecutionGraph:
        graph = ExecutionGraph(job_graph, self.now_ms - age_ms)
        self.graphs.insert(0, graph)
        return graph

    def add_running_job(
        self, job_graph: JobGraph, *, age_ms: int = 60_000, backpressured: bool = False
    ) -> ExecutionGraph:
        graph = self.add_job(job_graph, age_ms=age_ms)
        start(graph, self.views or [taskmanager_view()])
        count(graph, age_ms, backpressured=backpressured)
        for view in self.views:
            if any(
                o.current.slot and o.current.slot.resource_id == view.registration.resource_id
                for o in graph.all_subtasks()
            ):
                view.slots_by_job[job_graph.job_id] = 1
        return graph

    # --- DispatcherGateway ---------------------------------------------------------------------------------------

    def overview(self) -> ClusterOverview:
        statuses = [graph.status for graph in self.graphs]
        return ClusterOverview(
            num_taskmanagers=len(self.views),
            slots_total=sum(view.registration.num_slots for view in self.views),
            slots_available=sum(view.slots_free for view in self.views),
            jobs_running=sum(not status.is_globally_terminal_state() for status in statuses),
            jobs_finished=statuses.count(JobStatus.FINISHED),
            jobs_cancelled=statuses.count(JobStatus.CANCELED),
            jobs_failed=statuses.count(JobStatus.FAILED),
        )

    def jobs(self) -> Sequence[ExecutionGraph]:
        return list(self.graphs)

    def job(self, job_id: JobID) -> ExecutionGraph:
        for graph in self.graphs:
            if graph.job_graph.job_id == job_id:
                return graph
        raise JobNotFoundError(f"Job {job_id} is unknown")

    async def submit_job(self, job_graph: JobGraph) -> JobID:
        self.submitted.append(job_graph)
        self.add_job(job_graph, age_ms=0)
        return job_graph.job_id

    async def cancel_job(self, job_id: JobID) -> None:
        graph = self.job(job_id)
        if not graph.status.is_globally_terminal_state():
            end(graph, JobStatus.CANCELED, max(graph.status_timestamps.values()) + 500)
            for view in self.views:
                view.slots_by_job.pop(job_id, None)

    def checkpoints(self, job_id: JobID) -> CheckpointsView:
        is_batch = self.job(job_id).job_graph.job_type is JobType.BATCH
        return CheckpointsView(CheckpointSettings(), self.checkpoint_statistics, is_batch)

    async def trigger_checkpoint(self, job_id: JobID, incremental: bool | None) -> TakenCheckpoint:
        return await self._take(("checkpoint", job_id, incremental))

    async def trigger_savepoint(
        self, job_id: JobID, target: str | None, *, stop: StopMode = StopMode.NONE, cancel: bool = False
    ) -> TakenCheckpoint:
        return await self._take(("savepoint", job_id, target, stop, cancel))

    async def rescale_job(self, job_id: JobID, parallelism: int | Mapping[JobVertexID, int]) -> None:
        await self._take(("rescale", job_id, parallelism))

    async def dispose_savepoint(self, path: str) -> None:
        await self._take(("dispose", path))

    async def _take(self, asked: tuple[Any, ...]) -> TakenCheckpoint:
        self.asked.append(asked)
        await self.may_answer.wait()
        if self.refusal is not None:
            raise self.refusal
        return TakenCheckpoint(7, "file:///s/savepoint-1")

    async def job_result(self, job_id: JobID) -> ExecutionGraph:
        return self.job(job_id)

    async def coordinator_request(self, job_id: JobID, operator_id: str, request: object) -> object:
        return (self.coordinator_answers[operator_id], request)

    def put_blob(self, content_path: str) -> str:
        with open(content_path, "rb") as stream:
            content = stream.read()
        os.unlink(content_path)
        sha256 = hashlib.sha256(content).hexdigest()
        self.blobs[sha256] = content
        return sha256

    def has_blob(self, sha256: str) -> bool:
        return sha256 in self.blobs

    def taskmanagers(self) -> Sequence[TaskManagerView]:
        return list(self.views)

    def taskmanager(self, resource_id: ResourceID) -> TaskManagerView:
        for view in self.views:
            if view.registration.resource_id == resource_id:
                return view
        raise KeyError(resource_id)

    async def read_taskmanager_log(self, resource_id: ResourceID, name: str) -> bytes:
        self.taskmanager(resource_id)
        return self.taskmanager_logs[name]

    async def sample_stacks(
        self, resource_id: ResourceID, allocation_id: AllocationID, num_samples: int, interval_ms: int
    ) -> StacksSampled:
        self.taskmanager(resource_id)
        await self.may_sample.wait()
        stacks = self.stacks or {("op.process:1", "user.f:7"): num_samples - 1, (): 1}
        attempts = [owner.current for graph in self.jobs() for owner in graph.all_subtasks()]
        in_slot = [one.attempt_id for one in attempts if one.slot and one.slot.allocation_id == allocation_id]
        return StacksSampled(1, dict.fromkeys(in_slot, stacks), self.now_ms)

    async def list_taskmanager_logs(self, resource_id: ResourceID) -> Sequence[tuple[str, int, int]]:
        self.taskmanager(resource_id)
        return [(name, len(content), self.now_ms) for name, content in self.taskmanager_logs.items() if "." in name]

    async def shut_down_cluster(self) -> None:
        self.shut_down = True

    def rest_extras(self) -> dict[str, Any]:
        return {}
