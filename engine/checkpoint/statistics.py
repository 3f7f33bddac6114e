"""What REST and dashboard show of a job's checkpoints: counts, the last ones, and how each subtask did. Pure data.

Written by the coordinator. Source: Flink's CheckpointStatsTracker.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import field
from typing import final

from engine.checkpoint.model import Task
from engine.core.ids import JobVertexID
from engine.core.late_dataclass import dataclass
from engine.protocol.checkpoint import CheckpointKind, CheckpointMetrics

__all__ = ["CheckpointRecord", "CheckpointStatistics", "CheckpointStatus", "RestoreRecord", "SubtaskRecord"]


class CheckpointStatus(enum.Enum):
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SubtaskRecord:
    ack_ms: int  #: wall clock
    metrics: CheckpointMetrics


@dataclass(slots=True)
class CheckpointRecord:
    """Times are of the wall clock; -1 = not yet."""

    checkpoint_id: int
    kind: CheckpointKind
    trigger_ms: int
    #: number of subtasks by vertex
    parallelism: Mapping[JobVertexID, int]
    is_stop: bool = False
    status: CheckpointStatus = CheckpointStatus.IN_PROGRESS
    end_ms: int = -1
    latest_ack_ms: int = -1
    subtasks: dict[Task, SubtaskRecord] = field(default_factory=dict)
    #: of the subtasks that had finished before
    num_finished: int = 0
    folder: str = ""
    is_discarded: bool = False
    failure: str = ""

    @property
    def state_bytes(self) -> int:
        return sum(subtask.metrics.state_bytes for subtask in self.subtasks.values())

    @property
    def written_bytes(self) -> int:
        return sum(subtask.metrics.written_bytes for subtask in self.subtasks.values())

    @property
    def in_flight_bytes(self) -> int:
        return sum(subtask.metrics.in_flight_bytes for subtask in self.subtasks.values())

    def duration_ms(self, now_ms: int) -> int:
        return (now_ms if self.end_ms < 0 else self.end_ms) - self.trigger_ms


@dataclass(frozen=True, slots=True)
class RestoreRecord:
    checkpoint_id: int
    restored_ms: int
    is_savepoint: bool
    folder: str


@final
class CheckpointStatistics:
    def __init__(self, history_max: int) -> None:
        self._history_max = history_max
        #: oldest first; those in progress are never forgotten
        self._records: OrderedDict[int, CheckpointRecord] = OrderedDict()
        self.num_completed = 0
        self.num_failed = 0
        self.num_restored = 0
        self.latest_completed: CheckpointRecord | None = None
        self.latest_savepoint: CheckpointRecord | None = None
        self.latest_failed: CheckpointRecord | None = None
        self.latest_restored: RestoreRecord | None = None

    def history(self) -> list[CheckpointRecord]:
        """Return those that are remembered, newest first."""
        return list(reversed(self._records.values()))

    def find(self, checkpoint_id: int) -> CheckpointRecord | None:
        kept = (self.latest_completed, self.latest_savepoint, self.latest_failed)
        others = (record for record in kept if record is not None and record.checkpoint_id == checkpoint_id)
        return self._records.get(checkpoint_id) or next(others, None)

    @property
    def num_in_progress(self) -> int:
        return sum(record.status is CheckpointStatus.IN_PROGRESS for record in self._records.values())

    def began(self, record: CheckpointRecord) -> None:
        self._records[record.checkpoint_id] = record
        self._forget()

    def acknowledged(self, checkpoint_id: int, task: Task, metrics: CheckpointMetrics, now_ms: int) -> None:
        record = self._records[checkpoint_id]
        record.subtasks[task] = SubtaskRecord(now_ms, metrics)
        record.latest_ack_ms = now_ms

    def completed(self, checkpoint_id: int, folder: str, now_ms: int) -> None:
        record = self._records[checkpoint_id]
        record.status, record.end_ms, record.folder = CheckpointStatus.COMPLETED, now_ms, folder
        self.num_completed += 1
        if record.kind is CheckpointKind.SAVEPOINT:
            self.latest_savepoint = record
        else:
            self.latest_completed = record
        self._forget()

    def failed(self, checkpoint_id: int, message: str, now_ms: int) -> None:
        record = self._records[checkpoint_id]
        record.status, record.end_ms, record.failure = CheckpointStatus.FAILED, now_ms, message
        self.num_failed += 1
        self.latest_failed = record
        self._forget()

    def discarded(self, checkpoint_id: int) -> None:
        record = self.find(checkpoint_id)
        if record is not None:
            record.is_discarded = True

    def restored(self, record: RestoreRecord) -> None:
        self.num_restored += 1
        self.latest_restored = record

    def _forget(self) -> None:
        ended = [i for i, record in self._records.items() if record.status is not CheckpointStatus.IN_PROGRESS]
        for checkpoint_id in ended[: max(0, len(ended) - self._history_max)]:
            del self._records[checkpoint_id]
