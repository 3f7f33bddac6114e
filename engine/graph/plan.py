"""Plans as JSON: of a JobGraph (REST's ``/jobs/:id/plan``, ``flink info``) and of a program (``get_execution_plan``).

Both forms are Flink's (JsonPlanGenerator, JSONGenerator).
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from engine.core.config import Configuration
from engine.graph.job_graph import JobGraph, JobVertex
from engine.graph.stream_graph import StreamEdge, StreamGraph, StreamNode, build_stream_graph
from engine.graph.transformation import Transformation

__all__ = ["execution_plan_json", "job_plan"]


def job_plan(job_graph: JobGraph) -> dict[str, Any]:
    """Return the plan that REST shows, JSON-able."""
    return {
        "jid": str(job_graph.job_id),
        "name": job_graph.name,
        "type": job_graph.job_type.value,
        "nodes": [_vertex_plan(job_graph, vertex) for vertex in job_graph.vertices],
    }


def _vertex_plan(job_graph: JobGraph, vertex: JobVertex) -> dict[str, Any]:
    node: dict[str, Any] = {
        "id": str(vertex.vertex_id),
        "parallelism": vertex.parallelism,
        "operator": "",
        "operator_strategy": "",
        "description": html.escape(vertex.name),
        "optimizer_properties": {},
    }
    inputs = [
        {
            "num": num,
            "id": str(edge.source_id),
            "ship_strategy": edge.ship_strategy.value,
            "exchange": "blocking" if edge.blocking else "pipelined_bounded",
        }
        for num, edge in enumerate(edge for edge in job_graph.edges if edge.target_id == vertex.vertex_id)
    ]
    if inputs:
        node["inputs"] = inputs
    return node


def execution_plan_json(
    program: StreamGraph | Sequence[Transformation],
    config: Configuration | None = None,
    *,
    batch: bool | None = None,
) -> str:
    """Return the plan of a program before chaining, as ``get_execution_plan()`` gives it."""
    if not isinstance(program, StreamGraph):
        program = build_stream_graph(program, config or Configuration(), batch)
    return json.dumps({"nodes": [_node_plan(node) for node in program.nodes]}, indent=2)


def _node_plan(node: StreamNode) -> dict[str, Any]:
    kind = "Data Source" if not node.inputs else "Data Sink" if node.transformation.is_sink else "Operator"
    plan: dict[str, Any] = {
        "id": node.node_id,
        "type": node.name,
        "pact": kind,
        "contents": node.transformation.description or node.name,
        "parallelism": node.parallelism,
    }
    tier = node.transformation.tier
    if tier:
        plan["tier"] = tier
    if node.inputs:
        plan["predecessors"] = [_predecessor(edge) for edge in node.inputs]
    return plan


def _predecessor(edge: StreamEdge) -> dict[str, Any]:
    side = "first" if edge.input_index == 0 and edge.target.transformation.spec.num_inputs > 1 else "second"
    return {"id": edge.source.node_id, "ship_strategy": edge.partitioning.strategy.value, "side": side}
