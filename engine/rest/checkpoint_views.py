"""Flink's JSON of checkpoints, built from CheckpointStatistics. Pure: ``now_ms`` comes in, dicts go out.

Source: the message classes under Flink's ``runtime/rest/messages/checkpoints``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from engine.checkpoint.model import Task
from engine.checkpoint.statistics import CheckpointRecord, CheckpointStatus, RestoreRecord, SubtaskRecord
from engine.core.config import Configuration
from engine.core.ids import JobVertexID
from engine.core.options import CheckpointingOptions
from engine.protocol.checkpoint import CheckpointKind
from engine.runtime.jobmanager.gateway import CheckpointsView

__all__ = ["checkpoint_config", "checkpoint_details", "checkpoints", "vertex_checkpoint"]

Json = dict[str, Any]

_QUANTILES: Final = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999))
#: What Flink says of a job without periodic checkpoints.
_NEVER_MS: Final = (1 << 63) - 1


def checkpoint_config(view: CheckpointsView, config: Configuration) -> Json:
    """Return ``/jobs/:jobid/checkpoints/config``."""
    settings = view.settings
    return {
        "mode": "at_least_once" if settings.at_least_once else "exactly_once",
        "interval": settings.interval_ms or _NEVER_MS,
        "timeout": settings.timeout_ms,
        "min_pause": settings.min_pause_ms,
        "max_concurrent": settings.max_concurrent,
        "externalization": {
            "enabled": settings.retain_on_failure,
            "delete_on_cancellation": not settings.retain_on_cancellation,
        },
        "state_backend": "EmbeddedRocksDBStateBackend"
        if config.get(CheckpointingOptions.BACKEND) == "rocksdb"
        else "HashMapStateBackend",
        "checkpoint_storage": "JobManagerCheckpointStorage" if settings.in_memory else "FileSystemCheckpointStorage",
        "unaligned_checkpoints": settings.unaligned,
        "tolerable_failed_checkpoints": settings.tolerable_failures,
        "aligned_checkpoint_timeout": settings.aligned_timeout_ms,
        "checkpoints_after_tasks_finish": settings.after_tasks_finish,
        "state_changelog_enabled": False,
        "changelog_storage": None,
        "changelog_periodic_materialization_interval": None,
    }


def checkpoints(view: CheckpointsView, now_ms: int) -> Json:
    """Return ``/jobs/:jobid/checkpoints``."""
    statistics = view.statistics
    completed = [one for one in statistics.history() if one.status is CheckpointStatus.COMPLETED]
    return {
        "counts": {
            "restored": statistics.num_restored,
            "total": statistics.num_in_progress + statistics.num_completed + statistics.num_failed,
            "in_progress": statistics.num_in_progress,
            "completed": statistics.num_completed,
            "failed": statistics.num_failed,
        },
        "summary": {
            "checkpointed_size": _summary(one.written_bytes for one in completed),
            "state_size": _summary(one.state_bytes for one in completed),
            "end_to_end_duration": _summary(one.duration_ms(now_ms) for one in completed),
            "alignment_buffered": _summary(0 for _ in completed),
            "processed_data": _summary(0 for _ in completed),
            "persisted_data": _summary(one.in_flight_bytes for one in completed),
        },
        "latest": {
            "completed": _or_none(statistics.latest_completed, now_ms),
            "savepoint": _or_none(statistics.latest_savepoint, now_ms),
            "failed": _or_none(statistics.latest_failed, now_ms),
            "restored": _restored(statistics.latest_restored),
        },
        "history": [_checkpoint(one, now_ms) for one in statistics.history()],
    }


def checkpoint_details(record: CheckpointRecord, now_ms: int) -> Json:
    """Return ``/jobs/:jobid/checkpoints/details/:checkpointid``."""
    tasks = {vertex_id: _vertex(record, vertex_id, now_ms) for vertex_id in record.parallelism}
    return {**_checkpoint(record, now_ms), "tasks": tasks}


def vertex_checkpoint(record: CheckpointRecord, vertex_id: JobVertexID, now_ms: int) -> Json:
    """Return ``/jobs/:jobid/checkpoints/details/:checkpointid/subtasks/:vertexid``."""
    acknowledged = _subtasks_of(record, vertex_id)
    subtasks: list[Json] = [
        _subtask(record, index, acknowledged[index])
        if index in acknowledged
        else {"className": "pending", "index": index, "status": "pending_or_failed"}
        for index in range(record.parallelism[vertex_id])
    ]
    rows = list(acknowledged.values())

    def over(value: Callable[[SubtaskRecord], int]) -> Json:
        return _summary(map(value, rows))

    return {
        **_vertex(record, vertex_id, now_ms),
        "summary": {
            "checkpointed_size": over(lambda one: one.metrics.written_bytes),
            "state_size": over(lambda one: one.metrics.state_bytes),
            "end_to_end_duration": over(lambda one: one.ack_ms - record.trigger_ms),
            "checkpoint_duration": {
                "sync": over(lambda one: one.metrics.sync_ms),
                "async": over(lambda one: one.metrics.async_ms),
            },
            "alignment": {
                "buffered": over(lambda one: 0),
                "processed": over(lambda one: 0),
                "persisted": over(lambda one: one.metrics.in_flight_bytes),
                "duration": over(lambda one: one.metrics.alignment_ms),
            },
            "start_delay": over(lambda one: one.metrics.start_delay_ms),
        },
        "subtasks": subtasks,
    }


def _or_none(record: CheckpointRecord | None, now_ms: int) -> Json | None:
    return None if record is None else _checkpoint(record, now_ms)


def _checkpoint(record: CheckpointRecord, now_ms: int) -> Json:
    is_savepoint = record.kind is CheckpointKind.SAVEPOINT
    row: Json = {
        "className": record.status.value,
        "id": record.checkpoint_id,
        "status": record.status.name,
        "is_savepoint": is_savepoint,
        "savepointFormat": "CANONICAL" if is_savepoint else None,
        "trigger_timestamp": record.trigger_ms,
        "latest_ack_timestamp": record.latest_ack_ms,
        "checkpointed_size": record.written_bytes,
        "state_size": record.state_bytes,
        "end_to_end_duration": record.duration_ms(now_ms),
        "alignment_buffered": 0,
        "processed_data": 0,
        "persisted_data": record.in_flight_bytes,
        "num_subtasks": sum(record.parallelism.values()),
        "num_acknowledged_subtasks": len(record.subtasks) + record.num_finished,
        "checkpoint_type": _type(record),
        "tasks": {},
    }
    if record.status is CheckpointStatus.COMPLETED:
        row |= {"external_path": record.folder or "<checkpoint-not-externally-addressable>"}
        row |= {"discarded": record.is_discarded}
    elif record.status is CheckpointStatus.FAILED:
        row |= {"failure_timestamp": record.end_ms, "failure_message": record.failure}
    return row


def _type(record: CheckpointRecord) -> str:
    if record.kind is CheckpointKind.SAVEPOINT:
        return "SYNC_SAVEPOINT" if record.is_stop else "SAVEPOINT"
    is_unaligned = any(subtask.metrics.unaligned for subtask in record.subtasks.values())
    return "UNALIGNED_CHECKPOINT" if is_unaligned else "CHECKPOINT"


def _restored(record: RestoreRecord | None) -> Json | None:
    if record is None:
        return None
    return {
        "id": record.checkpoint_id,
        "restore_timestamp": record.restored_ms,
        "is_savepoint": record.is_savepoint,
        "external_path": record.folder,
    }


def _subtasks_of(record: CheckpointRecord, vertex_id: JobVertexID) -> Mapping[int, SubtaskRecord]:
    tasks = (Task(vertex_id, index) for index in range(record.parallelism[vertex_id]))
    return {task.subtask_index: record.subtasks[task] for task in tasks if task in record.subtasks}


def _vertex(record: CheckpointRecord, vertex_id: JobVertexID, now_ms: int) -> Json:
    rows = list(_subtasks_of(record, vertex_id).values())
    latest = max((row.ack_ms for row in rows), default=-1)
    is_done = len(rows) == record.parallelism[vertex_id]
    status = CheckpointStatus.COMPLETED if is_done else record.status
    return {
        "id": record.checkpoint_id,
        "status": status.name,
        "latest_ack_timestamp": latest,
        "checkpointed_size": sum(row.metrics.written_bytes for row in rows),
        "state_size": sum(row.metrics.state_bytes for row in rows),
        "end_to_end_duration": max(0, latest - record.trigger_ms) if rows else -1,
        "alignment_buffered": 0,
        "processed_data": 0,
        "persisted_data": sum(row.metrics.in_flight_bytes for row in rows),
        "num_subtasks": record.parallelism[vertex_id],
        "num_acknowledged_subtasks": len(rows),
    }


def _subtask(record: CheckpointRecord, index: int, row: SubtaskRecord) -> Json:
    metrics = row.metrics
    return {
        "className": "completed",
        "index": index,
        "status": "completed",
        "ack_timestamp": row.ack_ms,
        "end_to_end_duration": row.ack_ms - record.trigger_ms,
        "checkpointed_size": metrics.written_bytes,
        "state_size": metrics.state_bytes,
        "checkpoint": {"sync": metrics.sync_ms, "async": metrics.async_ms},
        "alignment": {
            "buffered": 0,
            "processed": 0,
            "persisted": metrics.in_flight_bytes,
            "duration": metrics.alignment_ms,
        },
        "start_delay": metrics.start_delay_ms,
        "unaligned_checkpoint": metrics.unaligned,
        "aborted": False,
    }


def _summary(values: Iterable[int]) -> Json:
    ordered: Sequence[int] = sorted(values)
    if not ordered:
        return {"min": 0, "max": 0, "avg": 0} | {name: 0.0 for name, _ in _QUANTILES}
    quantiles = {name: float(ordered[max(0, math.ceil(q * len(ordered)) - 1)]) for name, q in _QUANTILES}
    return {"min": ordered[0], "max": ordered[-1], "avg": sum(ordered) // len(ordered)} | quantiles
