"""What a TaskManager knows of its slot processes, and what it finds out of them when its JobManager is gone.

Not here: making, supervising and ending them (``task_executor``).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Final, Protocol, final

from engine.core.ids import AllocationID, ExecutionAttemptID, JobID, SlotID
from engine.core.late_dataclass import dataclass
from engine.protocol.control import (
    DeployTask,
    HeldSlot,
    InitializeSlot,
    ReportTasks,
    RunningTask,
    SlotAddress,
    TaskMetrics,
    TasksReported,
    TaskStateChanged,
)
from engine.protocol.fingerprint import fingerprint
from engine.protocol.lifecycle import ExecutionState

__all__ = ["KnownTask", "Slot", "SlotHandle", "SlotHost", "SlotReports"]

#: So long slots are waited for to say what they hold; one amid a long step of a function is not taken over.
REPORT_S: Final = 2.0


class SlotHandle(Protocol):
    """A live slot process, see ``zygote.SlotHandle``."""

    @property
    def pid(self) -> int: ...

    @property
    def address(self) -> SlotAddress: ...

    def send(self, message: Any) -> None: ...

    async def receive(self) -> Any | None: ...

    async def wait(self) -> int: ...

    def kill(self) -> None: ...


class SlotHost(Protocol):
    """Makes slot processes, see ``zygote.Zygote``."""

    def load(self, modules: Sequence[str]) -> None:
        """Have slots that are made from now on find these modules imported; never fails, at worst they do not."""
        ...

    async def fork_slot(self, init: InitializeSlot) -> SlotHandle:
        """Raises ExternalError."""
        ...

    async def wait(self) -> int:
        """Return when the host has ended and can make no more slots."""
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class KnownTask:
    name: str
    fingerprint: str
    state: ExecutionState = ExecutionState.DEPLOYING
    #: why it could not go on under another JobMaster, as far as the TaskManager knows
    objection: str = ""


@dataclass(slots=True)
class Slot:
    allocation_id: AllocationID
    slot_id: SlotID
    job_id: JobID
    work_dir: str
    cancellation_s: float
    handle: SlotHandle | None = None
    freeing: bool = False
    #: set when a task did not answer a cancel in time
    killed_for_cancel: bool = False
    #: all that were deployed here
    tasks: dict[ExecutionAttemptID, KnownTask] = field(default_factory=dict)
    metrics: dict[ExecutionAttemptID, TaskMetrics] = field(default_factory=dict)

    @property
    def live(self) -> dict[ExecutionAttemptID, str]:
        """Return tasks that have not ended, and what to call them."""
        return {id_: task.name for id_, task in self.tasks.items() if not task.state.is_terminal()}

    def deployed(self, message: DeployTask) -> None:
        task = message.task
        name = f"{task.vertex_name} ({task.subtask_index + 1}/{task.parallelism})"
        self.tasks[task.attempt_id] = KnownTask(name, fingerprint(task))

    def cancelled(self, attempt_id: ExecutionAttemptID) -> None:
        self.tasks[attempt_id].objection = "it is being cancelled"

    def state_changed(self, message: TaskStateChanged) -> None:
        known = self.tasks.get(message.attempt_id)
        if known is not None:
            known.state = message.state
            if message.error is not None:
                known.objection = message.error.message


@final
class SlotReports:
    """What slots say for the next leader: what they hold, and all that they send from then on. What they sent before
    and no leader has heard is lost, and the next one has to do without."""

    def __init__(self, slots: Mapping[AllocationID, Slot]) -> None:
        self._slots = slots
        self._request_id = 0
        self._answers: dict[AllocationID, tuple[RunningTask, ...]] = {}
        #: slots of which the next leader is told
        self._told: frozenset[AllocationID] = frozenset()
        self._unsent: list[Any] = []
        self._news = asyncio.Event()

    async def ask(self) -> tuple[HeldSlot, ...]:
        """Return what all slots hold. May be cancelled, and called again."""
        self._request_id += 1
        self._answers, self._unsent, self._told = {}, [], frozenset()
        asked = [slot for slot in self._slots.values() if slot.handle is not None and not slot.freeing]
        for slot in asked:
            assert slot.handle is not None
            slot.handle.send(ReportTasks(self._request_id))
        try:
            async with asyncio.timeout(REPORT_S):
                while any(slot.allocation_id in self._slots.keys() - self._answers.keys() for slot in asked):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        self._told = frozenset(self._slots)
        return tuple(self._held(slot) for slot in self._slots.values())

    def answered(self, slot: Slot, answer: TasksReported) -> None:
        if answer.request_id == self._request_id:
            self._answers[slot.allocation_id] = answer.tasks
            self._news.set()

    def slot_ended(self) -> None:
        self._news.set()

    def keep(self, slot: Slot, message: Any) -> None:
        """The slot says something while nobody leads."""
        if slot.allocation_id in self._answers or slot.allocation_id in self._told:
            self._unsent.append(message)

    def take_unsent(self) -> list[Any]:
        """Return what slots have said behind their answers, in order. From now on it goes to the leader at once."""
        unsent, self._unsent = self._unsent, []
        return unsent

    def _held(self, slot: Slot) -> HeldSlot:
        address = None if slot.handle is None or slot.freeing else slot.handle.address
        answers = {task.attempt_id: task for task in self._answers.get(slot.allocation_id, ())}
        tasks = tuple(self._running_task(id_, known, answers.get(id_)) for id_, known in slot.tasks.items())
        return HeldSlot(slot.allocation_id, slot.slot_id, slot.job_id, address, tasks)

    @staticmethod
    def _running_task(attempt_id: ExecutionAttemptID, known: KnownTask, answer: RunningTask | None) -> RunningTask:
        if known.state.is_terminal() or known.objection:
            return RunningTask(attempt_id, known.state, known.fingerprint, known.objection)
        if answer is None:
            return RunningTask(attempt_id, known.state, known.fingerprint, "its slot did not say what it holds")
        return dataclasses.replace(answer, fingerprint=known.fingerprint)
