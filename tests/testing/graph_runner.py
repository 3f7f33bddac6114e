"""Runs a lowered DataSet program in this thread: all subtasks, exchanges, supersteps and coordinators, no processes.

It follows the operator contract as the slot runtime does (inputs that come first, supersteps aligned, end of input),
one element at a time, in an order drawn from a seed.
"""

from __future__ import annotations

import copy
import os
import random
import tempfile
from collections import deque
from collections.abc import Iterable
from typing import Any

from engine.connectors.simple import FunctionSinkSpec
from engine.core.clock import ManualClock
from engine.core.config import Configuration
from engine.core.ids import JobID, OperatorID
from engine.core.records import Batch, RowBatch, rows_of
from engine.dataset import DataSet, ExecutionEnvironment
from engine.dataset.plan import Node, lower
from engine.graph.stream_graph import StreamEdge, StreamNode, build_stream_graph
from engine.graph.transformation import ShipStrategy
from engine.operators.base import CoordinatorContext, OperatorContext, PollResult, SourceOperator
from engine.operators.functions import RuntimeContext, callable_of
from engine.operators.keys import key_function
from engine.state.key_groups import key_group_of, subtask_of_key_group

END = object()


class _Channel:
    def __init__(self, edge: StreamEdge) -> None:
        self.edge = edge
        self.elements: deque[Any] = deque()
        self.ended = False
        self.superstep = 0


class _TaskOutput:
    def __init__(self, runner: GraphRunner, node: StreamNode, subtask: int) -> None:
        self._runner = runner
        self._node = node
        self._subtask = subtask
        self._turn = subtask

    def emit(self, batch: Batch) -> None:
        self._send(None, batch)

    def emit_side(self, tag: str, batch: Batch) -> None:
        self._send(tag, batch)

    def emit_watermark(self, watermark_ms: int) -> None:
        raise AssertionError("no watermarks in batch")

    def emit_idle(self, idle: bool) -> None:
        raise AssertionError("nothing is idle in batch")

    def emit_superstep_end(self, superstep: int) -> None:
        # A side output of a loop's head is outside of the loop: supersteps are the main output's.
        self._broadcast(superstep, side_outputs=False)

    def end(self) -> None:
        self._broadcast(END, side_outputs=True)

    def _broadcast(self, element: Any, *, side_outputs: bool) -> None:
        for edge in self._node.outputs:
            if edge.side_tag is None or side_outputs:
                # A forward edge has one channel from here, whatever the parallelism.
                for channel in {id(own): own for own in self._runner.channels_from(edge, self._subtask)}.values():
                    channel.elements.append(element)

    def _send(self, tag: str | None, batch: Batch) -> None:
        rows = rows_of(batch).rows
        for edge in self._node.outputs:
            if edge.side_tag == tag and rows:
                channels = self._runner.channels_from(edge, self._subtask)
                for target, own in enumerate(self._split(edge, rows, len(channels))):
                    if own:
                        channels[target].elements.append(RowBatch(own))

    def _split(self, edge: StreamEdge, rows: list[Any], count: int) -> list[list[Any]]:
        how = edge.partitioning
        parts: list[list[Any]] = [[] for _ in range(count)]
        match how.strategy:
            case ShipStrategy.FORWARD:
                parts[self._subtask] = rows
            case ShipStrategy.BROADCAST:
                parts = [list(rows) for _ in range(count)]
            case ShipStrategy.GLOBAL:
                parts[0] = rows
            case ShipStrategy.HASH:
                key, groups = key_function(how.key_selector), edge.target.max_parallelism
                for row in rows:
                    parts[subtask_of_key_group(key_group_of(key(row), groups), count, groups)].append(row)
            case ShipStrategy.CUSTOM:
                key, partition = key_function(how.key_selector), callable_of(how.partitioner, "partition")
                for row in rows:
                    parts[partition(key(row), count)].append(row)
            case ShipStrategy.REBALANCE:
                for row in rows:
                    self._turn = (self._turn + 1) % count
                    parts[self._turn].append(row)
            case other:
                raise AssertionError(other)
        return parts


class _Task:
    def __init__(self, runner: GraphRunner, node: StreamNode, subtask: int) -> None:
        self.node = node
        self.subtask = subtask
        self.done = False
        self.is_woken = False
        self.out = _TaskOutput(runner, node, subtask)
        spec = node.transformation.spec
        if not isinstance(spec, FunctionSinkSpec):  # the sink's list is the test's own
            # Each subtask has its own copy of the user's functions, as it has in a slot.
            spec = copy.deepcopy(spec)
        self.operator = spec.build()
        self.channels = runner.channels_to(node, subtask)
        self.context = RuntimeContext(task_name=node.name, subtask_index=subtask, parallelism=node.parallelism)
        self._runner = runner

    def open(self, send_event: Any) -> None:
        runner = self._runner
        work_dir = os.path.join(runner.work_dir, f"{self.node.node_id}-{self.subtask}")
        os.makedirs(work_dir)
        ctx = OperatorContext(
            runtime_context=self.context,
            operator_id=OperatorID.from_text(str(self.node.node_id)),
            operator_name=self.node.name,
            job_id=JobID.from_text("job"),
            job_name="test",
            config={},
            clock=ManualClock(),
            work_dir=work_dir,
            memory_bytes=runner.memory_bytes,
            send_event=send_event,
            wake=lambda: None,
            slot_shared=runner.slot_shared.setdefault(self.subtask, {}),
        )
        ctx.wake = self._wake
        self.operator.open(ctx, self.out)

    def _wake(self) -> None:
        self.is_woken = True

    def step(self) -> bool:
        """Do one thing; return whether there was one."""
        if isinstance(self.operator, SourceOperator):
            match self.operator.poll(self._runner.batch_rows):
                case PollResult.END:
                    self._finish()
                case PollResult.IDLE:
                    woken, self.is_woken = self.is_woken, False
                    return woken
            return True
        first = self.node.transformation.spec.inputs_first
        waiting = {c.edge.input_index for c in self.channels if not c.ended and c.edge.input_index in first}
        ready = [c for c in self.channels if c.elements and (not waiting or c.edge.input_index in waiting)]
        ready = [c for c in ready if c.superstep == min(o.superstep for o in self.channels if not o.ended)]
        if not ready:
            return False
        self._take(self._runner.rng.choice(ready))
        return True

    def _take(self, channel: _Channel) -> None:
        element = channel.elements.popleft()
        index = channel.edge.input_index
        if element is END:
            channel.ended = True
            if all(other.ended for other in self.channels if other.edge.input_index == index):
                self.operator.end_input(index)
            if all(other.ended for other in self.channels):
                self.operator.finish()
                self._finish()
        elif isinstance(element, int):
            channel.superstep = element
            if all(other.ended or other.superstep == element for other in self.channels):
                self.operator.end_superstep(element)
        else:
            self.operator.process_batch(index, element)

    def _finish(self) -> None:
        self.done = True
        self.out.end()


class GraphRunner:
    def __init__(self, dataset: DataSet, *, memory_bytes: int = 64 << 20, batch_rows: int = 7, seed: int = 0) -> None:
        self.rows: list[Any] = []
        self.memory_bytes = memory_bytes
        self.batch_rows = batch_rows
        self.rng = random.Random(seed)
        self.slot_shared: dict[int, dict[str, Any]] = {}
        env = dataset.get_execution_environment()
        sink = Node("collect", FunctionSinkSpec(self.rows.append), dataset.inputs(), parallelism=1, is_sink=True)
        graph = build_stream_graph(lower([sink], env.get_parallelism()), Configuration(), batch=True)
        self._channels: dict[tuple[int, int, int], _Channel] = {}
        self.nodes = graph.nodes
        for node in graph.nodes:
            for edge in node.inputs:
                for source in range(edge.source.parallelism):
                    for target in range(node.parallelism):
                        if edge.partitioning.strategy is not ShipStrategy.FORWARD or source == target:
                            self._channels[id(edge), source, target] = _Channel(edge)
        self.tasks = [_Task(self, node, subtask) for node in graph.nodes for subtask in range(node.parallelism)]

    def channels_from(self, edge: StreamEdge, subtask: int) -> list[_Channel]:
        if edge.partitioning.strategy is ShipStrategy.FORWARD:
            return [self._channels[id(edge), subtask, subtask]] * edge.target.parallelism
        return [self._channels[id(edge), subtask, target] for target in range(edge.target.parallelism)]

    def channels_to(self, node: StreamNode, subtask: int) -> list[_Channel]:
        keys = [(id(edge), source, subtask) for edge in node.inputs for source in range(edge.source.parallelism)]
        return [self._channels[key] for key in keys if key in self._channels]

    def run(self) -> list[Any]:
        opened: list[_Task] = []
        try:
            with tempfile.TemporaryDirectory() as self.work_dir:
                for task in self.tasks:
                    task.open(self._event_sender(task))
                    opened.append(task)
                self._loop()
                for task in opened:
                    task.operator.close()
                opened = []
                left = [name for _, _, names in os.walk(self.work_dir) for name in names]
                assert not left, f"files left behind: {left}"
        finally:
            for task in opened:
                task.operator.close()
        return self.rows

    def _event_sender(self, task: _Task) -> Any:
        spec = task.node.transformation.spec.coordinator()
        if spec is None:
            return lambda event: None
        if not hasattr(task.node, "coordinator"):
            own = [other for other in self.tasks if other.node is task.node]
            coordinator = spec.create()
            send = lambda subtask, event: own[subtask].operator.handle_event(event)  # noqa: E731
            coordinator.start(CoordinatorContext(task.node.parallelism, JobID.from_text("job"), {}, send))
            task.node.coordinator = coordinator  # type: ignore[attr-defined]
        return lambda event: task.node.coordinator.handle_event(task.subtask, 0, event)  # type: ignore[attr-defined]

    def _loop(self) -> None:
        while open_tasks := [task for task in self.tasks if not task.done]:
            self.rng.shuffle(open_tasks)
            moved = [task.step() for task in open_tasks if not task.done]
            assert any(moved), f"nothing can move: {[(task.node.name, task.subtask) for task in open_tasks]}"

    def accumulators(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for task in self.tasks:
            for name, accumulator in task.context._accumulators.items():
                if name in merged:
                    merged[name].merge(accumulator)
                else:
                    merged[name] = accumulator
        return {name: accumulator.get_local_value() for name, accumulator in merged.items()}


def environment(parallelism: int = 2) -> ExecutionEnvironment:
    return ExecutionEnvironment(Configuration({"parallelism.default": str(parallelism)}))


def run(dataset: DataSet, **options: Any) -> list[Any]:
    """Return all records of a DataSet."""
    return GraphRunner(dataset, **options).run()


def source(env: ExecutionEnvironment, rows: Iterable[Any]) -> DataSet:
    """Return a DataSet of any rows, also of none, spread over the subtasks."""
    marker = "<not a row>"
    return env.from_collection([marker, *rows]).filter(lambda row: row != marker).set_parallelism(1).rebalance()
