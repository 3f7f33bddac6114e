"""StreamGraph → vertices and edges of a JobGraph: operators that need no exchange between them become one task.

Also here, because they depend on what is chained: operator and vertex ids, vertex names, the pickled chains and the
exchanges that must be blocking so that no two stages wait for each other.

Source: Flink's StreamingJobGraphGenerator (isChainable), StreamGraphHasherV2 (ids).
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from engine.core.errors import ProgramError
from engine.core.ids import IntermediateDatasetID, JobVertexID, OperatorID
from engine.core.user_code import dumps
from engine.graph.job_graph import ChainedOperator, ChainSpec, Exit, JobEdge, JobVertex, OperatorInfo
from engine.graph.stream_graph import StreamEdge, StreamGraph, StreamNode
from engine.graph.transformation import ChainingStrategy, ShipStrategy

__all__ = ["chain", "is_chainable", "operator_ids"]


def is_chainable(edge: StreamEdge) -> bool:
    """Return whether both ends may run in one task, handing records on by a call."""
    source, target = edge.source, edge.target
    groups = {source.transformation.co_location_group, target.transformation.co_location_group} - {None}
    return (
        len(target.inputs) == 1
        and target.transformation.spec.num_inputs == 1
        and edge.partitioning.strategy is ShipStrategy.FORWARD
        and source.parallelism == target.parallelism
        and source.slot_sharing_group == target.slot_sharing_group
        and source.transformation.chaining is not ChainingStrategy.NEVER
        and target.transformation.chaining is ChainingStrategy.ALWAYS
        and not edge.blocking
        and len(groups) < 2
    )


# --- ids ------------------------------------------------------------------------------------------------------------


def operator_ids(graph: StreamGraph) -> dict[StreamNode, OperatorID]:
    """Return the id of every node: from its uid, else from its place in the graph, so equal for equal programs.

    Raises: ProgramError when two operators have one uid.
    """
    ids: dict[StreamNode, OperatorID] = {}
    owner: dict[OperatorID, StreamNode] = {}
    for position, node in enumerate(graph.nodes):
        own = node.transformation
        if own.uid_hash is not None:
            operator_id = OperatorID.parse(own.uid_hash)
        elif own.uid is not None:
            operator_id = OperatorID.from_text(own.uid)
        else:
            # Like Flink: what is chained behind an operator is part of its identity, its name is not.
            num_chained = sum(graph.chaining_enabled and is_chainable(edge) for edge in node.outputs)
            inputs = ",".join(ids[edge.source] for edge in node.inputs)
            operator_id = OperatorID.from_text(f"position {position}; chained {num_chained}; inputs {inputs}")
        other = owner.setdefault(operator_id, node)
        if other is not node:
            raise ProgramError(
                f"Operators {other.name!r} and {node.name!r} have the same uid {own.uid or own.uid_hash!r}; "
                "give each operator a uid of its own."
            )
        ids[node] = operator_id
    return ids


# --- chains ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Chain:
    """A vertex in the making. ``nodes``: head first, each followed by what is chained to it."""

    head: StreamNode
    nodes: list[StreamNode] = field(default_factory=list)
    exits: list[StreamEdge] = field(default_factory=list)


def _build_chains(graph: StreamGraph) -> list[_Chain]:
    """Return the chains in topological order of their heads; a chain's only entry is its head."""

    def chains_on(edge: StreamEdge) -> bool:
        return graph.chaining_enabled and is_chainable(edge)

    def add(made: _Chain, node: StreamNode) -> None:
        pending = [node]
        while pending:
            one = pending.pop()
            made.nodes.append(one)
            made.exits.extend(edge for edge in one.outputs if not chains_on(edge))
            pending.extend(edge.target for edge in reversed(one.outputs) if chains_on(edge))

    chains = []
    for node in graph.nodes:
        if not any(chains_on(edge) for edge in node.inputs):
            made = _Chain(node)
            add(made, node)
            chains.append(made)
    return chains


def _name_of(made: _Chain, node: StreamNode) -> str:
    """Return "a -> b" for one successor in the chain, "a -> (b, c -> d)" for several."""
    inside = set(made.nodes)
    left = {id(edge) for edge in made.exits}
    parts = [_name_of(made, e.target) for e in node.outputs if e.target in inside and id(e) not in left]
    if not parts:
        return node.name
    return f"{node.name} -> {parts[0]}" if len(parts) == 1 else f"{node.name} -> ({', '.join(parts)})"


def _chain_spec(made: _Chain, ids: dict[StreamNode, OperatorID]) -> ChainSpec:
    index = {node: i for i, node in enumerate(made.nodes)}
    left = {id(edge) for edge in made.exits}
    operators = tuple(
        ChainedOperator(
            ids[node],
            node.name,
            node.transformation.spec,
            tuple((index[e.target], e.side_tag, e.input_index) for e in node.outputs if id(e) not in left),
            node.transformation.columns_of,
        )
        for node in made.nodes
    )
    exits = tuple(
        Exit(index[e.source], e.side_tag, e.partitioning, e.input_index in e.target.transformation.row_types)
        for e in made.exits
    )
    hashed = (e for e in made.head.inputs if e.partitioning.strategy is ShipStrategy.HASH)
    input_keys = {e.input_index: e.partitioning.key_selector for e in hashed}
    return ChainSpec(operators, exits, input_keys, tuple(made.head.transformation.row_types.items()))


def _pickle_chain(spec: ChainSpec, name: str) -> bytes:
    try:
        return dumps(spec, f"Task {name!r}")
    except ProgramError:
        for operator in spec.operators:  # name the operator that is to blame, if it is one
            dumps(operator.spec, f"Operator {operator.name!r}")
        for leaving in spec.exits:
            dumps(
                leaving.partitioning,
                f"The key or partitioner after operator {spec.operators[leaving.operator_index].name!r}",
            )
        raise


# --- coordinators ---------------------------------------------------------------------------------------------------


class _EnginePickler(pickle.Pickler):
    """Refuses what the JobManager could not load: it never imports user code."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) or callable(obj):
            module = str(getattr(obj, "__module__", None) or "builtins").partition(".")[0]
            if (
                module not in ("engine", "flink_yarn") and module not in sys.stdlib_module_names
            ) or module == "__main__":
                raise pickle.PicklingError(f"{obj!r} is not a class of the engine")
        return NotImplemented


def _coordinators_of(made: _Chain, ids: dict[StreamNode, OperatorID]) -> dict[OperatorID, bytes]:
    found = {}
    for node in made.nodes:
        spec = node.transformation.spec.coordinator()
        if spec is None:
            continue
        stream = io.BytesIO()
        try:
            _EnginePickler(stream, protocol=5).dump(spec)
        except Exception as error:
            raise ProgramError(
                f"Operator {node.name!r} has a part that runs in the JobManager, and that part cannot be sent there "
                f"({error}). It may hold plain values only, no classes or functions of the program."
            ) from error
        found[ids[node]] = stream.getvalue()
    return found


# --- stages that must not wait for each other -----------------------------------------------------------------------


def _regions(
    chains: list[_Chain], edges: Iterable[StreamEdge], chain_of: dict[StreamNode, _Chain]
) -> dict[_Chain, int]:
    """Return the pipelined region of each chain: those connected by exchanges that are not blocking."""
    region = {made: i for i, made in enumerate(chains)}
    for edge in edges:
        one, other = region[chain_of[edge.source]], region[chain_of[edge.target]]
        if not edge.blocking and one != other:
            region = {made: one if value == other else value for made, value in region.items()}
    return region


def _waiting_in_circles(
    region: dict[_Chain, int], edges: list[StreamEdge], chain_of: dict[StreamNode, _Chain]
) -> set[int]:
    """Return the regions that wait, over blocking exchanges, for themselves."""
    after: dict[int, set[int]] = {}
    for edge in edges:
        if edge.blocking:
            after.setdefault(region[chain_of[edge.source]], set()).add(region[chain_of[edge.target]])
    circular = set()
    for start in after:
        seen: set[int] = set()
        pending = list(after[start])
        while pending:
            one = pending.pop()
            if one not in seen:
                seen.add(one)
                pending.extend(after.get(one, ()))
        if start in seen:
            circular.add(start)
    return circular


def _cut_circles(chains: list[_Chain]) -> None:
    """Make exchanges blocking until no region waits for itself.

    Example: A → B is forward and pipelined, A ⇒ C ⇒ B is blocking. B starts when C has ended, C when A has, A ends
    only when B reads: cut A → B too. Flink merges such regions; a blocking exchange inside a region would then be read
    while it is written, which ours cannot be.
    """
    chain_of = {node: made for made in chains for node in made.nodes}
    edges = [edge for made in chains for edge in made.exits]
    while any(edge.blocking for edge in edges):
        region = _regions(chains, edges, chain_of)
        circular = _waiting_in_circles(region, edges, chain_of)
        if not circular:
            return
        inside = [edge for edge in edges if not edge.blocking and region[chain_of[edge.source]] in circular]
        cuttable = [edge for edge in inside if edge.source.is_bounded and not edge.in_loop]
        if not cuttable:
            names = sorted(made.head.name for made in chains if region[made] in circular)
            raise ProgramError(
                f"The stages that begin with {names} would wait for each other for ever: some exchanges between them "
                "are complete before they are read (infinite buffer timeout or batch), others cannot be. Use a finite "
                "buffer timeout on all of them."
            )
        for edge in cuttable:
            edge.blocking = True


# --- all together ---------------------------------------------------------------------------------------------------


def _vertex_of(made: _Chain, ids: dict[StreamNode, OperatorID]) -> JobVertex:
    name = _name_of(made, made.head)
    infos = tuple(
        OperatorInfo(
            ids[node],
            node.name,
            node.transformation.uid,
            node.transformation.description or node.name,
            node.transformation.tier,
            node.transformation.spec.preload,
            _key_kind_of(node),
        )
        for node in made.nodes
    )
    co_location_groups = [node.transformation.co_location_group for node in made.nodes]
    return JobVertex(
        vertex_id=JobVertexID(ids[made.head]),
        name=name,
        parallelism=made.head.parallelism,
        max_parallelism=made.head.max_parallelism,
        chain=_pickle_chain(_chain_spec(made, ids), name),
        operators=infos,
        slot_sharing_group=made.head.slot_sharing_group,
        co_location_group=next(filter(None, co_location_groups), None),
        coordinators=_coordinators_of(made, ids),
        is_source=not made.head.inputs,
        is_bounded=made.head.is_bounded,
        is_parallel=not any(node.transformation.forced_non_parallel for node in made.nodes),
        follows_default=all(node.transformation.parallelism is None for node in made.nodes),
    )


def _key_kind_of(node: StreamNode) -> str:
    kinds = {e.partitioning.key_kind for e in node.inputs if e.partitioning.strategy is ShipStrategy.HASH}
    return kinds.pop() if len(kinds) == 1 else ""


def _edge_of(edge: StreamEdge, exit_index: int, source: JobVertexID, target: JobVertexID) -> JobEdge:
    dataset_id = IntermediateDatasetID.from_text(f"{source} exit {exit_index}")
    return JobEdge(
        dataset_id=dataset_id,
        source_id=source,
        target_id=target,
        exit_index=exit_index,
        input_index=edge.input_index,
        ship_strategy=edge.partitioning.strategy,
        blocking=edge.blocking,
        buffer_timeout_ms=edge.buffer_timeout_ms,
    )


def chain(graph: StreamGraph) -> tuple[tuple[JobVertex, ...], tuple[JobEdge, ...]]:
    """Return the vertices in topological order and their edges, by source and exit.

    Raises: ProgramError when something cannot be pickled, uids clash, or stages would wait for each other.
    """
    ids = operator_ids(graph)
    chains = _build_chains(graph)
    _cut_circles(chains)
    vertices = [_vertex_of(made, ids) for made in chains]
    vertex_id_of = {node: vertex.vertex_id for made, vertex in zip(chains, vertices) for node in made.nodes}
    edges = [
        _edge_of(edge, i, vertex_id_of[edge.source], vertex_id_of[edge.target])
        for made in chains
        for i, edge in enumerate(made.exits)
    ]
    return tuple(vertices), tuple(edges)
