"""Flink's JSON of jobs, vertices and subtasks, built from ExecutionGraphs. Pure: ``now_ms`` comes in, dicts go out.

Not here: clusters and TaskManagers (``cluster_views``), and requests (the handlers).
Source: the message classes under Flink's ``runtime/rest/messages``; the field names are a contract with its clients.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from engine.core.config import Configuration
from engine.core.options import CheckpointingOptions, JobOptions
from engine.graph.execution_graph import (
    ExceptionEntry,
    Execution,
    ExecutionGraph,
    ExecutionJobVertex,
    ExecutionVertex,
)
from engine.graph.job_graph import JobType
from engine.protocol.control import ErrorInfo, TaskMetrics
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.runtime.jobmanager.restart import restart_strategy

__all__ = [
    "aggregated",
    "container_logs_command",
    "error_text",
    "exceptions",
    "job_config",
    "job_details",
    "job_overview",
    "plan",
    "subtask",
    "vertex_details",
    "vertex_subtask_times",
    "vertex_taskmanagers",
]

Json = dict[str, Any]

#: What Flink writes where an attempt has no slot yet.
UNASSIGNED: Final = "(unassigned)"
#: States whose time is shown as ``status-duration``.
_TIMED_STATES: Final = (
    ExecutionState.CREATED,
    ExecutionState.SCHEDULED,
    ExecutionState.DEPLOYING,
    ExecutionState.INITIALIZING,
    ExecutionState.RUNNING,
)


# --- jobs -------------------------------------------------------------------------------------------------------------


def job_overview(graph: ExecutionGraph, now_ms: int) -> Json:
    """Return one row of ``/jobs/overview``."""
    states = Counter(vertex.current.state for vertex in graph.all_subtasks())
    return {
        "jid": graph.job_graph.job_id,
        "name": graph.job_graph.name,
        "start-time": graph.start_ms,
        "end-time": graph.end_ms,
        "duration": (graph.end_ms if graph.end_ms >= 0 else now_ms) - graph.start_ms,
        "state": graph.status.name,
        "last-modification": _last_modification(graph),
        "tasks": {"total": states.total(), **{state.name.lower(): states[state] for state in ExecutionState}},
        "pending-operators": 0,
        "jobType": graph.job_graph.job_type.value,
        "schedulerType": "Default",
    }


def job_details(graph: ExecutionGraph, now_ms: int) -> Json:
    """Return ``/jobs/:jobid``."""
    vertices = [_vertex_row(vertex, now_ms) for vertex in graph.vertices.values()]
    counts = Counter(row["status"] for row in vertices)
    return {
        "jid": graph.job_graph.job_id,
        "name": graph.job_graph.name,
        "isStoppable": False,
        "state": graph.status.name,
        "job-type": graph.job_graph.job_type.value,
        "start-time": graph.start_ms,
        "end-time": graph.end_ms,
        "duration": (graph.end_ms if graph.end_ms >= 0 else now_ms) - graph.start_ms,
        "maxParallelism": max((vertex.max_parallelism for vertex in graph.job_graph.vertices), default=-1),
        "now": now_ms,
        "timestamps": {status.name: graph.status_timestamps.get(status, 0) for status in JobStatus},
        "vertices": vertices,
        "status-counts": {state.name: counts[state.name] for state in ExecutionState},
        "pending-operators": 0,
        "schedulerType": "Default",
        "plan": plan(graph),
    }


def plan(graph: ExecutionGraph) -> Json:
    """Return the plan that came with the job, completed where it left something out."""
    job = graph.job_graph
    nodes = [_complete_node(node) for node in job.plan.get("nodes", ())] or _plan_nodes(graph)
    return {"jid": job.job_id, "name": job.name, "type": job.job_type.value, "nodes": nodes}


def _complete_node(node: Json) -> Json:
    return {"operator": "", "operator_strategy": "", "description": "", "optimizer_properties": {}, **node}


def _plan_nodes(graph: ExecutionGraph) -> list[Json]:
    nodes = []
    for vertex in graph.vertices.values():
        node: Json = {"id": vertex.job_vertex.vertex_id, "parallelism": vertex.job_vertex.parallelism}
        node["description"] = vertex.job_vertex.name
        if vertex.inputs:
            node["inputs"] = [
                {
                    "num": number,
                    "id": edge.source_id,
                    "ship_strategy": edge.ship_strategy.name,
                    "exchange": "blocking" if edge.blocking else "pipelined_bounded",
                }
                for number, edge in enumerate(vertex.inputs)
            ]
        nodes.append(_complete_node(node))
    return nodes


def _last_modification(graph: ExecutionGraph) -> int:
    times = list(graph.status_timestamps.values())
    times += [max(vertex.current.timestamps.values(), default=0) for vertex in graph.all_subtasks()]
    return max(times)


def job_config(graph: ExecutionGraph, cluster: Configuration) -> Json:
    """Return ``/jobs/:jobid/config``: the cluster's configuration with the job's laid over it decides."""
    effective = Configuration(cluster).add_all(graph.job_graph.config)
    restarts = restart_strategy(effective, takes_checkpoints=_takes_checkpoints(graph, effective))
    return {
        "jid": graph.job_graph.job_id,
        "name": graph.job_graph.name,
        "execution-config": {
            "restart-strategy": restarts.describe(),
            "job-parallelism": effective.get(JobOptions.PARALLELISM),
            "object-reuse-mode": effective.get(JobOptions.OBJECT_REUSE),
            "user-config": dict(graph.job_graph.parameters),
        },
    }


def _takes_checkpoints(graph: ExecutionGraph, effective: Configuration) -> bool:
    return graph.job_graph.job_type is JobType.STREAMING and effective.get(CheckpointingOptions.INTERVAL) > 0


def error_text(error: ErrorInfo) -> str:
    """Return message and trace as one text; the message comes first and is not repeated."""
    trace = error.trace.strip("\n")
    if not trace or trace in error.message:
        return error.message
    return f"{error.message}\n{trace}"


def exceptions(graph: ExecutionGraph, max_exceptions: int) -> Json:
    """Return ``/jobs/:jobid/exceptions``, newest first."""
    entries = list(graph.exceptions)
    if not entries and graph.failure is not None:
        entries = [ExceptionEntry(graph.failure, max(graph.status_timestamps.values()))]
    entries.sort(key=lambda entry: entry.timestamp_ms, reverse=True)
    shown = entries[:max_exceptions]
    return {
        "exceptionHistory": {
            "entries": [_exception(entry) for entry in shown],
            "truncated": len(shown) < len(entries),
        }
    }


def _labels(entry: ExceptionEntry) -> dict[str, str]:
    """Return what Flink's enrichers of failures could say: on YARN the container and where its log is."""
    if entry.resource_id is None or not entry.log_url:
        return {}
    labels = {"container": entry.resource_id, "log": entry.log_url}
    command = container_logs_command(entry.resource_id)
    return {**labels, "command": command} if command else labels


def container_logs_command(container_id: str) -> str:
    """Return the command that shows the logs of a YARN container once its application has ended; "" if it is none."""
    match = re.fullmatch(r"container_(?:e\d+_)?(\d+_\d+)_\d+_\d+", container_id)
    return f"yarn logs -applicationId application_{match[1]} -containerId {container_id}" if match else ""


def _exception(entry: ExceptionEntry) -> Json:
    return {
        "exceptionName": entry.error.type_name,
        "stacktrace": error_text(entry.error),
        "timestamp": entry.timestamp_ms,
        "taskName": entry.task_name,
        "endpoint": entry.endpoint,
        "taskManagerId": entry.resource_id,
        "failureLabels": _labels(entry),
        "concurrentExceptions": [],
    }


# --- vertices ---------------------------------------------------------------------------------------------------------


def _sum_metrics(attempts: Iterable[Execution]) -> TaskMetrics:
    total = TaskMetrics()
    for attempt in attempts:
        metrics = attempt.metrics
        total.records_in += metrics.records_in
        total.records_out += metrics.records_out
        total.bytes_in += metrics.bytes_in
        total.bytes_out += metrics.bytes_out
        total.busy_ms += metrics.busy_ms
        total.idle_ms += metrics.idle_ms
        total.backpressured_ms += metrics.backpressured_ms
    return total


def _io_metrics(metrics: TaskMetrics, *, complete: bool) -> Json:
    return {
        "read-bytes": metrics.bytes_in,
        "read-bytes-complete": complete,
        "write-bytes": metrics.bytes_out,
        "write-bytes-complete": complete,
        "read-records": metrics.records_in,
        "read-records-complete": complete,
        "write-records": metrics.records_out,
        "write-records-complete": complete,
        "accumulated-backpressured-time": metrics.backpressured_ms,
        "accumulated-idle-time": metrics.idle_ms,
        "accumulated-busy-time": float(metrics.busy_ms),
    }


def _start_end_duration(attempts: Sequence[Execution], now_ms: int) -> tuple[int, int, int]:
    """Return start, end and duration of attempts taken together, -1 for what has not happened."""
    starts = [attempt.timestamps.get(ExecutionState.DEPLOYING, 0) for attempt in attempts]
    start = min((time for time in starts if time > 0), default=-1)
    ended = bool(attempts) and all(attempt.state.is_terminal() for attempt in attempts)
    end = max(attempt.end_ms for attempt in attempts) if ended else -1
    duration = ((end if end > 0 else now_ms) - start) if start > 0 else -1
    return start, end, duration


def _state_counts(attempts: Iterable[Execution]) -> Json:
    counts = Counter(attempt.state for attempt in attempts)
    return {state.name: counts[state] for state in ExecutionState}


def _current(vertex: ExecutionJobVertex) -> list[Execution]:
    return [subtask.current for subtask in vertex.subtasks]


def _vertex_row(vertex: ExecutionJobVertex, now_ms: int) -> Json:
    attempts = _current(vertex)
    start, end, duration = _start_end_duration(attempts, now_ms)
    return {
        "id": vertex.job_vertex.vertex_id,
        "slotSharingGroupId": vertex.job_vertex.slot_sharing_group,
        "name": vertex.job_vertex.name,
        "maxParallelism": vertex.job_vertex.max_parallelism,
        "parallelism": vertex.job_vertex.parallelism,
        "status": vertex.aggregate_state().name,
        "start-time": start,
        "end-time": end,
        "duration": duration,
        "tasks": _state_counts(attempts),
        "metrics": _io_metrics(
            _sum_metrics(attempts), complete=all(attempt.state.is_terminal() for attempt in attempts)
        ),
    }


def status_durations(attempt: Execution, now_ms: int) -> dict[str, int]:
    """Return how long the attempt was in each state, -1 for states that it never entered."""
    entered = sorted((time, state.name) for state, time in attempt.timestamps.items() if time > 0)
    order = [state.name for state in ExecutionState]
    entered.sort(key=lambda pair: (pair[0], order.index(pair[1])))
    ends = [time for time, _ in entered[1:]] + [now_ms]
    durations = {name: end - time for (time, name), end in zip(entered, ends, strict=True)}
    return {state.name: durations.get(state.name, -1) for state in _TIMED_STATES}


def endpoint(attempt: Execution) -> str:
    """Return "host:port" of the slot's data server."""
    return f"{attempt.slot.host}:{attempt.slot.address.port}" if attempt.slot else UNASSIGNED


def subtask(owner: ExecutionVertex, attempt: Execution, now_ms: int) -> Json:
    """Return one attempt, as in ``/jobs/:jobid/vertices/:vertexid/subtasks/:subtaskindex``."""
    start, end, duration = _start_end_duration([attempt], now_ms)
    return {
        "subtask": owner.subtask_index,
        "status": attempt.state.name,
        "attempt": attempt.attempt_number,
        "endpoint": endpoint(attempt),
        "start-time": start,
        "end-time": end,
        "duration": duration,
        "metrics": _io_metrics(attempt.metrics, complete=attempt.state.is_terminal()),
        "taskmanager-id": attempt.slot.resource_id if attempt.slot else UNASSIGNED,
        "status-duration": status_durations(attempt, now_ms),
        "other-concurrent-attempts": [],
    }


def vertex_details(vertex: ExecutionJobVertex, now_ms: int) -> Json:
    """Return ``/jobs/:jobid/vertices/:vertexid``: the table of subtasks."""
    rows = [subtask(owner, owner.current, now_ms) for owner in vertex.subtasks]
    return {
        "id": vertex.job_vertex.vertex_id,
        "name": vertex.job_vertex.name,
        "parallelism": vertex.job_vertex.parallelism,
        "maxParallelism": vertex.job_vertex.max_parallelism,
        "now": now_ms,
        "subtasks": rows,
        "aggregated": _aggregated_rows(rows),
    }


def _aggregated_rows(rows: Sequence[Json]) -> Json:
    names = [name for name in rows[0]["metrics"] if not name.endswith("-complete")] if rows else []
    return {
        "metrics": {name: aggregated([row["metrics"][name] for row in rows]) for name in names},
        "status-duration": {
            state.name: aggregated([row["status-duration"][state.name] for row in rows]) for state in _TIMED_STATES
        },
    }


def aggregated(values: Sequence[float]) -> dict[str, int]:
    """Return minimum, maximum, average, sum, median and percentiles (nearest rank) as whole numbers."""
    ordered = sorted(values)
    if not ordered:
        return dict.fromkeys(("min", "max", "avg", "sum", "median", "p25", "p75", "p95"), 0)

    def percentile(percent: int) -> int:
        return int(ordered[min(len(ordered) - 1, max(0, -(-percent * len(ordered) // 100) - 1))])

    return {
        "min": int(ordered[0]),
        "max": int(ordered[-1]),
        "avg": int(sum(ordered) / len(ordered)),
        "sum": int(sum(ordered)),
        "median": percentile(50),
        "p25": percentile(25),
        "p75": percentile(75),
        "p95": percentile(95),
    }


def vertex_subtask_times(vertex: ExecutionJobVertex, now_ms: int) -> Json:
    """Return ``/jobs/:jobid/vertices/:vertexid/subtasktimes``: when each subtask entered each state."""
    rows = []
    for owner in vertex.subtasks:
        _, _, duration = _start_end_duration([owner.current], now_ms)
        rows.append(
            {
                "subtask": owner.subtask_index,
                "endpoint": endpoint(owner.current),
                "duration": duration,
                "timestamps": {state.name: owner.current.timestamps.get(state, 0) for state in ExecutionState},
            }
        )
    return {"id": vertex.job_vertex.vertex_id, "name": vertex.job_vertex.name, "now": now_ms, "subtasks": rows}


def vertex_taskmanagers(vertex: ExecutionJobVertex, now_ms: int) -> Json:
    """Return ``/jobs/:jobid/vertices/:vertexid/taskmanagers``: subtasks grouped by where they run."""
    groups: dict[str, list[ExecutionVertex]] = {}
    for owner in vertex.subtasks:
        slot = owner.current.slot
        groups.setdefault(slot.resource_id if slot else UNASSIGNED, []).append(owner)
    rows = []
    for resource_id, owners in groups.items():
        attempts = [owner.current for owner in owners]
        start, end, duration = _start_end_duration(attempts, now_ms)
        group = ExecutionJobVertex(vertex.job_vertex, owners, [], [])
        slot = attempts[0].slot
        rows.append(
            {
                "endpoint": slot.host if slot else UNASSIGNED,
                "taskmanager-id": resource_id,
                "status": group.aggregate_state().name,
                "start-time": start,
                "end-time": end,
                "duration": duration,
                "metrics": _io_metrics(
                    _sum_metrics(attempts), complete=all(attempt.state.is_terminal() for attempt in attempts)
                ),
                "status-counts": _state_counts(attempts),
                "aggregated": _aggregated_rows([subtask(owner, owner.current, now_ms) for owner in owners]),
            }
        )
    return {"id": vertex.job_vertex.vertex_id, "name": vertex.job_vertex.name, "now": now_ms, "taskmanagers": rows}
