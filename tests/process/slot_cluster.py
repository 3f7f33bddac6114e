"""Real slots without a TaskManager or JobManager: forks them from a zygote, deploys a small graph, gathers reports."""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.core import user_code
from engine.core.ids import (
    AllocationID,
    ExecutionAttemptID,
    IntermediateDatasetID,
    JobID,
    JobVertexID,
    OperatorID,
    ResourceID,
    ResultPartitionID,
    SlotID,
)
from engine.graph.execution_graph import channels_of, num_subpartitions
from engine.graph.job_graph import ChainedOperator, ChainSpec, Exit, JobEdge
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.base import OperatorSpec
from engine.protocol.checkpoint import (
    AcknowledgeCheckpoint,
    CheckpointOptions,
    DeclineCheckpoint,
    NotifyCheckpointAborted,
    NotifyCheckpointComplete,
    TaskRestore,
    TriggerCheckpoint,
)
from engine.protocol.control import (
    CancelTask,
    DeployTask,
    ErrorInfo,
    FreeSlot,
    InitializeSlot,
    InputChannelDescriptor,
    InputGateDescriptor,
    JobInformation,
    OperatorEventSent,
    ResultPartitionDescriptor,
    SendOperatorEvent,
    SlotReport,
    TaskDeployment,
    TaskStateChanged,
)
from engine.protocol.lifecycle import ExecutionState
from engine.runtime.taskmanager.zygote import SlotHandle, Zygote
from tests.testing.patience import DEADLINE_S, GIVE_UP_S, patience

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@dataclass
class Vertex:
    name: str
    specs: Sequence[OperatorSpec]
    parallelism: int = 1

    @property
    def vertex_id(self) -> JobVertexID:
        return JobVertexID.from_text(self.name)


@dataclass
class Wire:
    source: str
    target: str
    strategy: ShipStrategy = ShipStrategy.FORWARD
    key_selector: Any = None
    partitioner: Any = None
    input_index: int = 0
    blocking: bool = False
    buffer_timeout_ms: int = 100


@dataclass
class Story:
    """What the slots reported."""

    states: dict[ExecutionAttemptID, list[ExecutionState]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[ExecutionAttemptID, ErrorInfo] = field(default_factory=dict)
    last: dict[ExecutionAttemptID, TaskStateChanged] = field(default_factory=dict)
    events: list[tuple[ExecutionAttemptID, Any]] = field(default_factory=list)
    reports: list[SlotReport] = field(default_factory=list)
    acknowledged: dict[tuple[ExecutionAttemptID, int], AcknowledgeCheckpoint] = field(default_factory=dict)
    declined: dict[tuple[ExecutionAttemptID, int], DeclineCheckpoint] = field(default_factory=dict)


class SlotCluster:
    """``async with SlotCluster(hosts=["127.0.0.1", "127.0.0.1"]) as cluster``: one slot per host entry."""

    def __init__(self, hosts: Sequence[str] = ("127.0.0.1", "127.0.0.1"), config: dict[str, str] | None = None) -> None:
        self.hosts = hosts
        self.config = config or {}
        self.preload: tuple[str, ...] = ()
        self.job_id = JobID.generate()
        self.story = Story()
        self.slots: list[SlotHandle] = []
        self._changed = asyncio.Event()
        self._listeners: list[asyncio.Task[None]] = []
        self._where: dict[ExecutionAttemptID, SlotHandle] = {}
        self.attempt_number = 0
        #: what subtasks of the next deployment start from, by vertex name and subtask
        self.restores: dict[tuple[str, int], TaskRestore] = {}

    async def __aenter__(self) -> SlotCluster:
        self._folder = tempfile.TemporaryDirectory(prefix="slots")
        self.stdout_path = os.path.join(self._folder.name, "slots.out")
        env = {**os.environ, "PYTHONPATH": ROOT}
        self.zygote = await Zygote.start(sys.executable, env, self.stdout_path, self.preload)
        try:
            for index, host in enumerate(self.hosts):
                await self.add_slot(index, host)
        except BaseException:
            await self.zygote.close()
            raise
        return self

    async def add_slot(self, index: int, host: str, job_id: JobID | None = None) -> SlotHandle:
        resource_id = ResourceID(f"tm-{host}-{index}")
        self.work_dir = os.path.join(self._folder.name, f"work{index}")
        slot = await self.zygote.fork_slot(
            InitializeSlot(
                allocation_id=AllocationID.generate(),
                slot_id=SlotID.of(resource_id, 0),
                slot_index=index,
                resource_id=resource_id,
                job=JobInformation(job_id or self.job_id, "test job", self.config),
                work_dir=self.work_dir,
                files_dir=self._folder.name,
                data_host=host,
                data_bind_host=host,
                data_port=0,
                unix_path=os.path.join(self._folder.name, f"{secrets.token_hex(4)}.sock"),
                memory_bytes=256 << 20,
                config=self.config,
            )
        )
        self.slots.append(slot)
        self._listeners.append(asyncio.create_task(self._listen(slot)))
        return slot

    async def __aexit__(self, *exc: object) -> None:
        for slot in self.slots:
            slot.send(FreeSlot(AllocationID.generate(), "test is over"))
        await asyncio.wait_for(asyncio.gather(*(slot.wait() for slot in self.slots)), GIVE_UP_S)
        await self.zygote.close()
        await asyncio.gather(*self._listeners)
        self._folder.cleanup()

    async def _listen(self, slot: SlotHandle) -> None:
        while (message := await slot.receive()) is not None:
            match message:
                case TaskStateChanged():
                    self.story.states[message.attempt_id].append(message.state)
                    self.story.last[message.attempt_id] = message
                    if message.error is not None:
                        self.story.errors[message.attempt_id] = message.error
                case OperatorEventSent():
                    self.story.events.append((message.attempt_id, pickle.loads(message.event)))
                case SlotReport():
                    self.story.reports.append(message)
                case AcknowledgeCheckpoint():
                    self.story.acknowledged[message.attempt_id, message.checkpoint_id] = message
                case DeclineCheckpoint():
                    self.story.declined[message.attempt_id, message.checkpoint_id] = message
            self._changed.set()

    async def until(self, condition: Callable[[], bool], timeout: float = DEADLINE_S) -> None:
        async def wait() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        timeout = max(timeout, DEADLINE_S) * patience()
        try:
            await asyncio.wait_for(wait(), timeout)
        except TimeoutError:
            raise AssertionError(f"not within {timeout} s; {self.story.states} {self.story.errors}") from None

    # --- deploying

    def attempt(self, name: str, subtask: int = 0) -> ExecutionAttemptID:
        return ExecutionAttemptID.of(JobVertexID.from_text(name), subtask, self.attempt_number)

    def deploy(
        self,
        vertices: Sequence[Vertex],
        wires: Sequence[Wire],
        slot_of: Callable[[str, int], int] | None = None,
        only: Sequence[str] | None = None,
    ) -> list[ExecutionAttemptID]:
        """Deploy all (or ``only`` the named) vertices; by default subtask i goes to slot i modulo their number."""
        place = slot_of or (lambda name, subtask: subtask % len(self.slots))
        by_name = {vertex.name: vertex for vertex in vertices}
        attempts = []
        for vertex in vertices:
            if only is not None and vertex.name not in only:
                continue
            for subtask in range(vertex.parallelism):
                deployment = self._deployment(vertex, subtask, by_name, wires, place)
                slot = self.slots[place(vertex.name, subtask)]
                self._where[deployment.attempt_id] = slot
                slot.send(DeployTask(AllocationID.generate(), deployment))
                attempts.append(deployment.attempt_id)
        return attempts

    def deployment(self, vertex: Vertex) -> TaskDeployment:
        """Return the deployment of a vertex that stands alone."""
        return self._deployment(vertex, 0, {vertex.name: vertex}, [], lambda name, subtask: 0)

    def _deployment(
        self,
        vertex: Vertex,
        subtask: int,
        by_name: dict[str, Vertex],
        wires: Sequence[Wire],
        place: Callable[[str, int], int],
    ) -> TaskDeployment:
        outgoing = [wire for wire in wires if wire.source == vertex.name]
        operators = tuple(
            ChainedOperator(
                OperatorID.from_text(f"{vertex.name}{i}"),
                type(spec).__name__ if i else vertex.name,
                spec,
                ((i + 1, None, 0),) if i + 1 < len(vertex.specs) else (),
            )
            for i, spec in enumerate(vertex.specs)
        )
        exits = tuple(
            Exit(len(operators) - 1, None, Partitioning(wire.strategy, wire.key_selector, wire.partitioner))
            for wire in outgoing
        )
        partitions = tuple(
            ResultPartitionDescriptor(
                ResultPartitionID.of(dataset_of(wire), subtask, self.attempt_number),
                dataset_of(wire),
                num_subpartitions(edge_of(wire), subtask, vertex.parallelism, by_name[wire.target].parallelism),
                wire.blocking,
                wire.buffer_timeout_ms,
            )
            for wire in outgoing
        )
        gates = tuple(
            InputGateDescriptor(
                wire.input_index,
                dataset_of(wire),
                tuple(
                    InputChannelDescriptor(
                        ResultPartitionID.of(dataset_of(wire), producer, self.attempt_number),
                        subpartition,
                        self.slots[place(wire.source, producer)].address,
                    )
                    for producer, subpartition in channels_of(
                        edge_of(wire), by_name[wire.source].parallelism, vertex.parallelism, subtask
                    )
                ),
            )
            for wire in wires
            if wire.target == vertex.name
        )
        return TaskDeployment(
            job_id=self.job_id,
            job_name="test job",
            attempt_id=self.attempt(vertex.name, subtask),
            vertex_id=vertex.vertex_id,
            vertex_name=vertex.name,
            subtask_index=subtask,
            parallelism=vertex.parallelism,
            max_parallelism=128,
            attempt_number=self.attempt_number,
            chain=user_code.dumps(
                ChainSpec(
                    operators,
                    exits,
                    {
                        wire.input_index: wire.key_selector
                        for wire in wires
                        if wire.target == vertex.name and wire.strategy is ShipStrategy.HASH
                    },
                ),
                "the chain",
            ),
            gates=gates,
            partitions=partitions,
            restore=self.restores.get((vertex.name, subtask)),
        )

    async def run(
        self,
        vertices: Sequence[Vertex],
        wires: Sequence[Wire],
        slot_of: Callable[[str, int], int] | None = None,
        timeout: float = 60,
    ) -> Story:
        """Deploy, wait until every task has ended."""
        attempts = self.deploy(vertices, wires, slot_of)
        await self.until(lambda: all(self.has_ended(attempt) for attempt in attempts), timeout)
        return self.story

    def has_ended(self, attempt: ExecutionAttemptID) -> bool:
        return any(state.is_terminal() for state in self.story.states[attempt])

    def cancel(self, attempt: ExecutionAttemptID) -> None:
        self._where[attempt].send(CancelTask(AllocationID.generate(), attempt))

    def trigger(self, attempt: ExecutionAttemptID, checkpoint_id: int, options: CheckpointOptions) -> None:
        now_ms = int(time.time() * 1000)
        message = TriggerCheckpoint(AllocationID.generate(), attempt, checkpoint_id, now_ms, options)
        self._where[attempt].send(message)

    def complete(self, attempt: ExecutionAttemptID, checkpoint_id: int) -> None:
        self._where[attempt].send(NotifyCheckpointComplete(AllocationID.generate(), attempt, checkpoint_id))

    def abort(self, attempt: ExecutionAttemptID, checkpoint_id: int) -> None:
        self._where[attempt].send(NotifyCheckpointAborted(AllocationID.generate(), attempt, checkpoint_id))

    def send_event(self, attempt: ExecutionAttemptID, operator: str, event: object) -> None:
        self._where[attempt].send(
            SendOperatorEvent(AllocationID.generate(), attempt, OperatorID.from_text(operator), pickle.dumps(event))
        )


def dataset_of(wire: Wire) -> IntermediateDatasetID:
    return IntermediateDatasetID.from_text(f"{wire.source}→{wire.target}#{wire.input_index}")


def edge_of(wire: Wire) -> JobEdge:
    return JobEdge(
        dataset_of(wire),
        JobVertexID.from_text(wire.source),
        JobVertexID.from_text(wire.target),
        0,
        wire.input_index,
        wire.strategy,
        wire.blocking,
        wire.buffer_timeout_ms,
    )
