"""What the tasks of one slot share. Made by ``slot_process``, or by a simulation with parts of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.core.clock import Clock
from engine.protocol.control import InitializeSlot
from engine.runtime.exchange.partition import PartitionRegistry
from engine.runtime.exchange.transport import Transport
from engine.runtime.taskmanager.mailbox import Mailbox
from engine.runtime.taskmanager.memory import SlotMemory
from engine.runtime.taskmanager.snapshot_workers import SlotSnapshotWorkers, SnapshotWorkers
from engine.runtime.taskmanager.watchdog import Watchdog

if TYPE_CHECKING:
    from engine.runtime.taskmanager.stream_task import StreamTask

__all__ = ["SlotEnvironment"]


@dataclass
class SlotEnvironment:
    init: InitializeSlot
    mailbox: Mailbox
    registry: PartitionRegistry
    transport: Transport
    clock: Clock
    memory: SlotMemory
    send: Callable[[object], None]  #: to the TaskManager; never blocks
    watchdog: Watchdog
    #: Called inside a step of the task: turn the loop and step the tasks after it, until the function says True.
    let_others_work: Callable[[StreamTask, Callable[[], bool]], None]
    job_parameters: dict[str, str] = field(default_factory=dict)
    cached_files: dict[str, str] = field(default_factory=dict)
    slot_shared: dict[str, Any] = field(default_factory=dict)
    now_ns: Callable[[], int] = time.monotonic_ns  #: decides how long a step goes on and how many records it takes
    #: how snapshots are made beside the tasks; the slot's own unless given
    snapshot_workers: SnapshotWorkers = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.snapshot_workers is None:
            self.snapshot_workers = SlotSnapshotWorkers(self.mailbox)
