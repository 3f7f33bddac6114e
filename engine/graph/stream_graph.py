"""Transformations → StreamGraph: every default filled in, stream or batch decided, every edge with its exchange.

``build_job_graph`` is the way from a program's nodes to a JobGraph; ``graph/chaining`` does the second half. Not here:
what a node computes (``operators``), how vertices are scheduled (``runtime/jobmanager/scheduler``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import field
from typing import Final

from engine.core.config import Configuration
from engine.core.errors import ProgramError
from engine.core.ids import JobID
from engine.core.late_dataclass import dataclass
from engine.core.options import CheckpointingOptions, JobOptions
from engine.graph.job_graph import JobGraph, JobType
from engine.graph.transformation import (
    DEFAULT_SLOT_SHARING_GROUP,
    BufferTimeout,
    Edge,
    Partitioning,
    ShipStrategy,
    Transformation,
)
from engine.protocol.control import UserFile
from engine.state.key_groups import MAX_PARALLELISM_DEFAULT, MAX_PARALLELISM_MAX

__all__ = ["StreamEdge", "StreamGraph", "StreamNode", "build_job_graph", "build_stream_graph"]

DEFAULT_JOB_NAME: Final = "Flink Streaming Job"


@dataclass(eq=False)
class StreamEdge:
    source: StreamNode
    target: StreamNode
    input_index: int
    side_tag: str | None
    partitioning: Partitioning
    buffer_timeout_ms: int  #: never BufferTimeout.INFINITE: such an edge is blocking
    blocking: bool = False
    #: lies on a loop of an iteration, so both ends must run at the same time
    in_loop: bool = False


@dataclass(eq=False)
class StreamNode:
    """A transformation with nothing left open. ``node_id`` counts from 1 in order of the program's statements."""

    node_id: int
    transformation: Transformation
    parallelism: int
    max_parallelism: int
    slot_sharing_group: str = DEFAULT_SLOT_SHARING_GROUP
    is_bounded: bool = True  #: all sources that feed it are
    inputs: list[StreamEdge] = field(default_factory=list)
    outputs: list[StreamEdge] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As plans show it: "Source: lines", "Map", "Sink: Print"."""
        own = self.transformation
        return f"{own.kind}: {own.name}" if own.kind else own.name


@dataclass(frozen=True)
class StreamGraph:
    job_type: JobType
    nodes: tuple[StreamNode, ...]  #: in topological order, ties by ``node_id``
    chaining_enabled: bool


def default_max_parallelism(parallelism: int) -> int:
    """Return the power of two above 1.5 × parallelism, within [128, 32768]. Source: Flink's KeyGroupRangeAssignment."""
    wanted = parallelism + parallelism // 2
    return min(max(1 << (wanted - 1).bit_length(), MAX_PARALLELISM_DEFAULT), MAX_PARALLELISM_MAX)


# --- nodes ----------------------------------------------------------------------------------------------------------


def _reachable(ends: Iterable[Transformation]) -> list[Transformation]:
    """Return all transformations that lead to ``ends``, producers before consumers, ties in order of the program."""
    found: dict[int, Transformation] = {}
    pending = list(ends)
    while pending:
        one = pending.pop()
        if one.id not in found:
            found[one.id] = one
            pending.extend(edge.source for edge in one.inputs)
    missing = {one.id: len({edge.source.id for edge in one.inputs}) for one in found.values()}
    consumers: dict[int, set[int]] = {}
    for one in found.values():
        for edge in one.inputs:
            consumers.setdefault(edge.source.id, set()).add(one.id)
    ready = sorted(node_id for node_id, count in missing.items() if count == 0)
    order: list[Transformation] = []
    while ready:
        node_id = ready.pop(0)
        order.append(found[node_id])
        for consumer in consumers.get(node_id, ()):
            missing[consumer] -= 1
            if missing[consumer] == 0:
                ready.append(consumer)
        ready.sort()
    if len(order) < len(found):
        names = [one.name for one in found.values() if missing[one.id] > 0]
        raise ProgramError(f"The operators {names} feed each other in a circle; loops are made with iterate().")
    return order


def _check_inputs(one: Transformation) -> None:
    wanted, seen = one.spec.num_inputs, {edge.input_index for edge in one.inputs}
    if seen != set(range(wanted)):
        raise ProgramError(f"Operator {one.name!r} has inputs {sorted(seen)}; expected 0 to {wanted - 1}.")


def _parallelism_of(one: Transformation, config: Configuration) -> int:
    if one.forced_non_parallel:
        if one.parallelism not in (None, 1):
            raise ProgramError(
                f"Operator {one.name!r} cannot run in parallel, its parallelism is set to {one.parallelism}; remove "
                "set_parallelism() or set it to 1."
            )
        return 1
    parallelism = config.get(JobOptions.PARALLELISM) if one.parallelism is None else one.parallelism
    if not 1 <= parallelism <= MAX_PARALLELISM_MAX:
        raise ProgramError(
            f"Operator {one.name!r} has parallelism {parallelism}; expected a number from 1 to {MAX_PARALLELISM_MAX}."
        )
    return parallelism


def _max_parallelism_of(one: Transformation, parallelism: int, config: Configuration) -> int:
    stated = one.max_parallelism
    if stated is None:
        stated = config.get(JobOptions.MAX_PARALLELISM)
        if stated == -1:
            return default_max_parallelism(parallelism)
    if not 1 <= stated <= MAX_PARALLELISM_MAX:
        raise ProgramError(
            f"Operator {one.name!r} has maximum parallelism {stated}; expected a number from 1 to "
            f"{MAX_PARALLELISM_MAX}."
        )
    if parallelism > stated:
        raise ProgramError(
            f"Operator {one.name!r} has parallelism {parallelism}, more than its maximum parallelism {stated}; lower "
            "the one or raise the other (set_max_parallelism, pipeline.max-parallelism)."
        )
    return stated


def _slot_sharing_group_of(node: StreamNode) -> str:
    """The node's own group, else the one that all its inputs have, else the default one."""
    if node.transformation.slot_sharing_group is not None:
        return node.transformation.slot_sharing_group
    groups = {edge.source.slot_sharing_group for edge in node.inputs}
    return groups.pop() if len(groups) == 1 else DEFAULT_SLOT_SHARING_GROUP


def _check_co_location(nodes: Sequence[StreamNode]) -> None:
    first_by_group: dict[str, StreamNode] = {}
    for node in nodes:
        group = node.transformation.co_location_group
        if group is None:
            continue
        first = first_by_group.setdefault(group, node)
        for what, one, other in (
            ("parallelism", first.parallelism, node.parallelism),
            ("slot sharing group", first.slot_sharing_group, node.slot_sharing_group),
        ):
            if one != other:
                raise ProgramError(
                    f"Operators {first.name!r} and {node.name!r} must run side by side (co-location group {group!r}), "
                    f"but have different values of {what}: {one!r} and {other!r}. Give them the same."
                )


# --- edges ----------------------------------------------------------------------------------------------------------


def _partitioning_of(edge: Edge, source: StreamNode, target: StreamNode) -> Partitioning:
    chosen = edge.partitioning
    if chosen.strategy is not ShipStrategy.FORWARD or source.parallelism == target.parallelism:
        return chosen
    if chosen.is_default:
        return dataclasses.replace(chosen, strategy=ShipStrategy.REBALANCE)
    raise ProgramError(
        f"forward() between {source.name!r} (parallelism {source.parallelism}) and {target.name!r} (parallelism "
        f"{target.parallelism}) needs equal parallelism; use rebalance() or rescale(), or set_parallelism()."
    )


def _buffer_timeout_of(source: StreamNode, config: Configuration) -> int:
    timeout_ms = source.transformation.buffer_timeout_ms
    if timeout_ms is None:
        if not config.get(JobOptions.BUFFER_TIMEOUT_ENABLED):
            return BufferTimeout.FULL_BUFFERS
        return config.get(JobOptions.BUFFER_TIMEOUT)
    if timeout_ms < BufferTimeout.FULL_BUFFERS:
        raise ProgramError(
            f"Operator {source.name!r} has buffer timeout {timeout_ms} ms; expected -1 (send only full buffers), "
            "0 (send at once) or more."
        )
    return timeout_ms


def _connect(edge: Edge, source: StreamNode, target: StreamNode, config: Configuration) -> None:
    timeout_ms = _buffer_timeout_of(source, config)
    infinite = timeout_ms == BufferTimeout.INFINITE
    made = StreamEdge(
        source,
        target,
        edge.input_index,
        edge.side_tag,
        _partitioning_of(edge, source, target),
        BufferTimeout.FULL_BUFFERS if infinite else timeout_ms,
        blocking=infinite,
    )
    source.outputs.append(made)
    target.inputs.append(made)


def _ancestors(node: StreamNode) -> set[StreamNode]:
    found: set[StreamNode] = set()
    pending = [node]
    while pending:
        one = pending.pop()
        for edge in one.inputs:
            if edge.source not in found:
                found.add(edge.source)
                pending.append(edge.source)
    return found


def _mark_loops(nodes: Sequence[StreamNode]) -> None:
    """Mark the edges on paths between co-located nodes: the head and tail of an iteration talk in their slot, unseen by
    the graph, so everything between them runs at the same time."""
    members: dict[str, list[StreamNode]] = {}
    for node in nodes:
        if node.transformation.co_location_group is not None:
            members.setdefault(node.transformation.co_location_group, []).append(node)
    for group in members.values():
        upstream = {node: _ancestors(node) for node in group}
        before_tail = set().union(*upstream.values()) | set(group)
        for node in nodes:
            for edge in node.inputs:
                from_head = any(edge.source is head or head in _ancestors(edge.source) for head in group)
                edge.in_loop = edge.in_loop or (from_head and node in before_tail)


def _apply_batch(nodes: Sequence[StreamNode], config: Configuration) -> None:
    """In a batch job every exchange that moves records between subtasks is complete before it is read."""
    all_blocking = config.get(JobOptions.BATCH_SHUFFLE_MODE) == "ALL_EXCHANGES_BLOCKING"
    for node in nodes:
        for edge in node.inputs:
            edge.buffer_timeout_ms = BufferTimeout.FULL_BUFFERS
            if all_blocking and edge.partitioning.strategy is not ShipStrategy.FORWARD:
                edge.blocking = True


def _block_build_sides(nodes: Sequence[StreamNode]) -> None:
    """Block an input that must be read first when another one comes from the same producer: that producer would wait
    for room on the other edge for ever."""
    for node in nodes:
        first = node.transformation.spec.inputs_first
        if not first or not node.is_bounded:
            continue
        others = [edge.source for edge in node.inputs if edge.input_index not in first]
        shared = set(others).union(*(_ancestors(other) for other in others))
        for edge in node.inputs:
            if edge.input_index in first and ({edge.source} | _ancestors(edge.source)) & shared:
                edge.blocking = True


def _settle_blocking(nodes: Sequence[StreamNode]) -> None:
    for edge in (edge for node in nodes for edge in node.inputs):
        if edge.in_loop:
            edge.blocking = False
        if edge.blocking and not edge.source.is_bounded:
            raise ProgramError(
                f"The exchange from {edge.source.name!r} to {edge.target.name!r} has an infinite buffer timeout, so it "
                "is complete before it is read, but its input is unbounded and never completes. Set a finite buffer "
                "timeout (set_buffer_timeout, execution.buffer-timeout.interval) or bound the source."
            )


# --- the graph ------------------------------------------------------------------------------------------------------


def _is_batch(nodes: Sequence[StreamNode], config: Configuration, batch: bool | None) -> bool:
    mode = config.get(JobOptions.RUNTIME_MODE) if batch is None else ("BATCH" if batch else "STREAMING")
    unbounded = [node.name for node in nodes if not node.inputs and not node.is_bounded]
    if mode == "BATCH" and unbounded:
        raise ProgramError(
            f"Detected an UNBOUNDED source ({', '.join(unbounded)}) with 'execution.runtime-mode' set to 'BATCH'. This "
            "combination is not allowed; set 'execution.runtime-mode' to STREAMING or AUTOMATIC, or bound the source."
        )
    return mode == "BATCH" or (mode == "AUTOMATIC" and not unbounded)


def build_stream_graph(
    sinks_and_ends: Sequence[Transformation], config: Configuration, batch: bool | None = None
) -> StreamGraph:
    """Return the graph of all that leads to ``sinks_and_ends``. ``batch`` overrides execution.runtime-mode.

    Raises: ProgramError when the program cannot become a job.
    """
    if not sinks_and_ends:
        raise ProgramError("No operators defined in streaming topology. Cannot execute. Add a source and a sink first.")
    order = _reachable(sinks_and_ends)
    rank = {one_id: i for i, one_id in enumerate(sorted(one.id for one in order), 1)}
    node_of: dict[int, StreamNode] = {}
    for one in order:
        _check_inputs(one)
        parallelism = _parallelism_of(one, config)
        node = StreamNode(rank[one.id], one, parallelism, _max_parallelism_of(one, parallelism, config))
        node_of[one.id] = node
        for edge in one.inputs:
            _connect(edge, node_of[edge.source.id], node, config)
        node.slot_sharing_group = _slot_sharing_group_of(node)
        node.is_bounded = all(e.source.is_bounded for e in node.inputs) if node.inputs else one.is_bounded_source
    nodes = tuple(node_of.values())
    _check_co_location(nodes)
    is_batch = _is_batch(nodes, config, batch)
    if is_batch:
        _apply_batch(nodes, config)
    _mark_loops(nodes)
    _block_build_sides(nodes)
    _settle_blocking(nodes)
    return StreamGraph(JobType.BATCH if is_batch else JobType.STREAMING, nodes, config.get(JobOptions.CHAINING))


def build_job_graph(
    sinks_and_ends: Sequence[Transformation],
    *,
    job_name: str,
    config: Configuration,
    job_id: JobID | None = None,
    files: tuple[UserFile, ...] = (),
    parameters: dict[str, str] | None = None,
    batch: bool | None = None,
) -> JobGraph:
    """Return the JobGraph of a program. The same program gives the same vertex and operator ids in every run.

    Raises: ProgramError when the program cannot become a job (what and how to mend it), ConfigError for bad values.
    """
    from engine.graph.chaining import chain
    from engine.graph.plan import job_plan

    stream_graph = build_stream_graph(sinks_and_ends, config, batch)
    vertices, edges = chain(stream_graph)
    job_config = config.to_dict()
    if stream_graph.job_type is JobType.BATCH:
        job_config[CheckpointingOptions.INTERVAL.key] = "0"  # whatever the cluster says: none are taken
    job_graph = JobGraph(
        job_id=job_id or JobID.generate(),
        name=job_name or config.get(JobOptions.NAME) or DEFAULT_JOB_NAME,
        job_type=stream_graph.job_type,
        vertices=vertices,
        edges=edges,
        config=job_config,
        files=files,
        parameters=dict(parameters or {}),
    )
    return dataclasses.replace(job_graph, plan=job_plan(job_graph))
