"""Flink's JSON of the cluster, its configuration and its TaskManagers. Pure; see ``views`` for jobs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from engine import __version__
from engine.core.config import Configuration
from engine.core.ids import JobID, ResourceID
from engine.core.options import RestOptions
from engine.graph.execution_graph import ExecutionGraph
from engine.ha.history import LeaderRecord
from engine.runtime.jobmanager.gateway import ClusterOverview, TaskManagerView

__all__ = [
    "assigned_tasks",
    "configuration",
    "dashboard_configuration",
    "leader",
    "overview",
    "taskmanager",
    "taskmanager_details",
]

Json = dict[str, Any]

_MIB = 1 << 20
#: Parts of keys whose values are never shown. Source: Flink's GlobalConfiguration.SENSITIVE_KEYS.
_SENSITIVE = (
    "password",
    "secret",
    "fs.azure.account.key",
    "apikey",
    "api-key",
    "auth-params",
    "service-key",
    "token",
    "basic-auth",
    "jaas.config",
    "http-headers",
    "zookeeper.client.authorization",  # not in Flink's list, though it holds a password
)


def overview(view: ClusterOverview) -> Json:
    """Return ``/overview``."""
    return {
        "taskmanagers": view.num_taskmanagers,
        "taskmanagers-blocked": 0,
        "slots-total": view.slots_total,
        "slots-available": view.slots_available,
        "slots-free-and-blocked": 0,
        "jobs-running": view.jobs_running,
        "jobs-finished": view.jobs_finished,
        "jobs-cancelled": view.jobs_cancelled,
        "jobs-failed": view.jobs_failed,
        "flink-version": __version__,
        "flink-commit": "",
    }


def dashboard_configuration(config: Configuration, extras: Json, now_ms: int) -> Json:
    """Return ``/config``: what the dashboard must know before it can show anything."""
    local = time.localtime(now_ms / 1000)
    return {
        **extras,
        "refresh-interval": config.get(RestOptions.REFRESH_INTERVAL),
        "timezone-name": local.tm_zone,
        "timezone-offset": local.tm_gmtoff * 1000,
        "flink-version": __version__,
        "flink-revision": "",
        "features": {
            "web-submit": config.get(RestOptions.SUBMIT_ENABLE),
            "web-cancel": config.get(RestOptions.CANCEL_ENABLE),
            "web-rescale": False,
            "web-history": False,
        },
    }


def configuration(config: Configuration) -> list[Json]:
    """Return ``/jobmanager/config``; values of secret keys are hidden."""
    return [
        {"key": key, "value": "******" if any(part in key.lower() for part in _SENSITIVE) else value}
        for key, value in sorted(config.to_dict().items())
    ]


def leader(record: LeaderRecord) -> Json:
    """Return one row of ``/jobmanager/leaders``; ``until`` is -1 for the one that leads."""
    return {
        "address": record.address,
        "since": record.since_ms,
        "until": record.until_ms or -1,
        "reason": record.why_ended,
        "container": record.container,
        "log": record.log_url,
    }


def assigned_tasks(graphs: Iterable[ExecutionGraph], resource_id: ResourceID) -> dict[JobID, int]:
    """Return the number of living tasks of each job on a TaskManager."""
    counts: dict[JobID, int] = {}
    for graph in graphs:
        if graph.status.is_globally_terminal_state():
            continue
        for owner in graph.all_subtasks():
            attempt = owner.current
            if attempt.slot and attempt.slot.resource_id == resource_id and not attempt.state.is_terminal():
                counts[graph.job_graph.job_id] = counts.get(graph.job_graph.job_id, 0) + 1
    return counts


def _resource(view: TaskManagerView, num_slots: int) -> Json:
    registered = view.registration
    share = num_slots / registered.num_slots if registered.num_slots else 0.0
    return {
        "cpuCores": round(registered.cpu_cores * share, 3),
        "taskHeapMemory": registered.slot_memory_bytes * num_slots // _MIB,
        "taskOffHeapMemory": 0,
        "managedMemory": 0,
        "networkMemory": 0,
        "extendedResources": {},
    }


def taskmanager(view: TaskManagerView, num_tasks: int) -> Json:
    """Return one row of ``/taskmanagers``. Memory that Python has no notion of is 0; tasks' memory is "taskHeap"."""
    registered = view.registration
    slots_bytes = registered.slot_memory_bytes * registered.num_slots
    return {
        "id": registered.resource_id,
        "path": f"{registered.host}/{registered.pid}",
        "dataPort": registered.data_port,
        "jmxPort": -1,
        "timeSinceLastHeartbeat": view.last_heartbeat_ms,
        "slotsNumber": registered.num_slots,
        "freeSlots": view.slots_free,
        "assignedTasks": num_tasks,
        "totalResource": _resource(view, registered.num_slots),
        "freeResource": _resource(view, view.slots_free),
        "hardware": {
            "cpuCores": registered.cpu_cores,
            "physicalMemory": registered.physical_memory_bytes,
            "freeMemory": registered.process_memory_bytes,
            "managedMemory": 0,
        },
        "memoryConfiguration": {
            "frameworkHeap": 0,
            "taskHeap": slots_bytes,
            "frameworkOffHeap": 0,
            "taskOffHeap": 0,
            "networkMemory": 0,
            "managedMemory": 0,
            "jvmMetaspace": 0,
            "jvmOverhead": max(0, registered.process_memory_bytes - slots_bytes),
            "totalFlinkMemory": slots_bytes,
            "totalProcessMemory": registered.process_memory_bytes,
        },
        "blocked": False,
    }


def taskmanager_details(view: TaskManagerView, tasks_by_job: dict[JobID, int]) -> Json:
    """Return ``/taskmanagers/:taskmanagerid``; "heapUsed" is the resident memory of the process and its slots."""
    allocated = []
    for job_id, num_slots in view.slots_by_job.items():
        tasks = tasks_by_job.get(job_id, 0)
        # How tasks spread over the slots of one job is not known here: evenly, the rest in front.
        for index in range(num_slots):
            share = tasks // num_slots + (1 if index < tasks % num_slots else 0)
            allocated.append({"jobId": job_id, "resource": _resource(view, 1), "assignedTasks": share})
    zero = dict.fromkeys(
        (
            "nonHeapUsed",
            "nonHeapCommitted",
            "nonHeapMax",
            "directCount",
            "directUsed",
            "directMax",
            "mappedCount",
            "mappedUsed",
            "mappedMax",
            "nettyShuffleMemorySegmentsAvailable",
            "nettyShuffleMemorySegmentsUsed",
            "nettyShuffleMemorySegmentsTotal",
            "nettyShuffleMemoryAvailable",
            "nettyShuffleMemoryUsed",
            "nettyShuffleMemoryTotal",
        ),
        0,
    )
    return {
        **taskmanager(view, sum(tasks_by_job.values())),
        "allocatedSlots": allocated,
        "metrics": {
            "heapUsed": view.rss_bytes,
            "heapCommitted": view.rss_bytes,
            "heapMax": view.registration.process_memory_bytes,
            **zero,
            "garbageCollectors": [],
        },
    }
