"""Handlers that show where a running job's time goes: Flink's flame graph of a vertex, and its operators one by one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.core.errors import ExternalError
from engine.core.ids import AllocationID, ExecutionAttemptID, ResourceID
from engine.core.options import RestOptions
from engine.graph.execution_graph import Execution, ExecutionJobVertex
from engine.protocol.lifecycle import ExecutionState
from engine.protocol.profiling import OperatorMetrics, Stack
from engine.rest.context import BadRequest, Forbidden, Unavailable, context_of, integer_parameter, vertex_of

__all__ = ["ROUTES", "flame_graph", "operator_rows"]

_NUM_SAMPLES_MAX: Final = 10_000
_DURATION_MAX_MS: Final = 60_000
_TYPES: Final = ("full", "on_cpu", "off_cpu")
_NOT_RUNNING: Final = "(not running: idle, backpressured or another subtask's turn)"


def flame_graph(samples: Iterable[Mapping[Stack, int]], graph_type: str) -> dict[str, Any]:
    """Return Flink's tree of ``name``, ``value`` (samples that went through) and ``children``."""
    root: dict[str, Any] = {"name": "root", "value": 0, "children": {}}
    for stacks in samples:
        for stack, count in stacks.items():
            if (stack and graph_type == "off_cpu") or (not stack and graph_type == "on_cpu"):
                continue
            node = root
            node["value"] += count
            for frame in stack or (_NOT_RUNNING,):
                node = node["children"].setdefault(frame, {"name": frame, "value": 0, "children": {}})
                node["value"] += count
    return _listed(root)


def _listed(node: dict[str, Any]) -> dict[str, Any]:
    children = sorted(node["children"].values(), key=lambda child: -child["value"])
    return {"name": node["name"], "value": node["value"], "children": [_listed(child) for child in children]}


def _running(vertex: ExecutionJobVertex, subtask_index: int | None) -> list[Execution]:
    if subtask_index is not None and subtask_index >= len(vertex.subtasks):
        raise BadRequest(f"subtaskindex is {subtask_index}; the vertex has {len(vertex.subtasks)} subtasks.")
    attempts = [owner.current for owner in vertex.subtasks if subtask_index in (None, owner.subtask_index)]
    return [attempt for attempt in attempts if attempt.state is ExecutionState.RUNNING and attempt.slot is not None]


async def get_flame_graph(request: Request) -> Response:
    """``type``: full, on_cpu, off_cpu; ``subtaskindex``; and ours: ``samples``, ``interval`` in ms. Answers when the
    samples have been taken (5 s unless told otherwise)."""
    config = context_of(request).gateway.config
    if not config.get(RestOptions.FLAMEGRAPH_ENABLED):
        raise Forbidden("Flame graphs are switched off: rest.flamegraph.enabled is false on this cluster.")
    graph_type = request.query_params.get("type", "full").lower()
    if graph_type not in _TYPES:
        raise BadRequest(f"type is {graph_type!r}; expected one of {', '.join(_TYPES)}.")
    num_samples = integer_parameter(request, "samples", config.get(RestOptions.FLAMEGRAPH_SAMPLES), 1)
    interval_ms = integer_parameter(request, "interval", config.get(RestOptions.FLAMEGRAPH_DELAY), 1)
    if num_samples > _NUM_SAMPLES_MAX or num_samples * interval_ms > _DURATION_MAX_MS:
        raise BadRequest(f"{num_samples} samples every {interval_ms} ms; at most {_DURATION_MAX_MS // 1000} s, please.")
    subtask_index = None
    if "subtaskindex" in request.query_params:
        subtask_index = integer_parameter(request, "subtaskindex", 0, 0)
    attempts = _running(vertex_of(request), subtask_index)
    wanted: set[ExecutionAttemptID] = {attempt.attempt_id for attempt in attempts}
    slots: set[tuple[ResourceID, AllocationID]] = {
        (attempt.slot.resource_id, attempt.slot.allocation_id) for attempt in attempts if attempt.slot is not None
    }
    gateway = context_of(request).gateway
    try:
        answers = await asyncio.gather(
            *(gateway.sample_stacks(resource_id, slot, num_samples, interval_ms) for resource_id, slot in sorted(slots))
        )
    except (KeyError, ExternalError) as error:
        raise Unavailable(f"A slot of the vertex did not answer: {error}") from None
    samples = [stacks for answer in answers for attempt, stacks in answer.samples.items() if attempt in wanted]
    end_ms = max((answer.end_ms for answer in answers), default=context_of(request).clock.now_ms())
    return JSONResponse({"endTimestamp": end_ms, "data": flame_graph(samples, graph_type)})


def operator_rows(vertex: ExecutionJobVertex) -> list[dict[str, Any]]:
    """Return what each operator of the vertex did, all subtasks taken together."""
    of_subtasks = [owner.current.metrics.operators for owner in vertex.subtasks if owner.current.metrics.operators]
    return [_operator_row(position) for position in zip(*of_subtasks, strict=False)]


def _operator_row(subtasks: tuple[OperatorMetrics, ...]) -> dict[str, Any]:
    num_records = sum(one.records_out for one in subtasks)
    num_batches = sum(one.batches_out for one in subtasks)
    tiers = Counter(one.tier for one in subtasks)
    return {
        "name": subtasks[0].name,
        "records-out": num_records,
        "batches-out": num_batches,
        "batch-size": round(num_records / num_batches, 1) if num_batches else 0.0,
        "busy-time": sum(one.busy_ms for one in subtasks),
        "tier": tiers.most_common(1)[0][0],
        "fused-with": subtasks[0].fused_with,
    }


async def get_operators(request: Request) -> Response:
    vertex = vertex_of(request)
    metrics = [owner.current.metrics for owner in vertex.subtasks]
    return JSONResponse(
        {
            "id": vertex.job_vertex.vertex_id,
            "name": vertex.job_vertex.name,
            "records-in": sum(one.records_in for one in metrics),
            "batches-in": sum(one.batches_in for one in metrics),
            "busy-time": sum(one.busy_ms for one in metrics),
            "idle-time": sum(one.idle_ms for one in metrics),
            "backpressured-time": sum(one.backpressured_ms for one in metrics),
            "operators": operator_rows(vertex),
        }
    )


_VERTEX: Final = "/jobs/{jobid}/vertices/{vertexid}"
ROUTES = [
    Route(_VERTEX + "/flamegraph", get_flame_graph),
    Route(_VERTEX + "/operators", get_operators),
]
