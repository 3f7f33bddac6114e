"""What slots say while nobody leads, and what of it the next leader hears."""

from __future__ import annotations

import asyncio

import pytest

from engine.core.ids import AllocationID, ExecutionAttemptID, JobID, ResourceID, SlotID
from engine.protocol.control import (
    DeployTask,
    ErrorInfo,
    ReportTasks,
    RunningTask,
    SlotAddress,
    SlotFreed,
    TaskDeployment,
    TasksReported,
    TaskStateChanged,
)
from engine.protocol.fingerprint import fingerprint
from engine.protocol.lifecycle import ExecutionState
from engine.runtime.taskmanager import slots as slots_module
from engine.runtime.taskmanager.slots import Slot, SlotReports

JOB = JobID("a" * 32)
ADDRESS = SlotAddress(ResourceID("tm"), "h", 1, "/u")
ATTEMPT = ExecutionAttemptID(f"{'b' * 32}_0_4")
TASK = TaskDeployment(JOB, "job", ATTEMPT, "b" * 32, "count", 0, 1, 128, 4, b"chain", (), ())  # type: ignore[arg-type]
BOOM = ErrorInfo("ValueError", "boom", "")


class Handle:
    pid = 0
    address = ADDRESS

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send(self, message: object) -> None:
        self.sent.append(message)


class World:
    def __init__(self, *names: str) -> None:
        self.slots = {}
        for number, name in enumerate(names):
            slot = Slot(AllocationID(name), SlotID(f"tm_{number}"), JOB, "", 1.0, Handle())  # type: ignore[arg-type]
            slot.deployed(DeployTask(slot.allocation_id, TASK))
            slot.state_changed(TaskStateChanged(JOB, ATTEMPT, ExecutionState.RUNNING))
            self.slots[slot.allocation_id] = slot
        self.reports = SlotReports(self.slots)

    def answer(self, name: str) -> None:
        slot = self.slots[AllocationID(name)]
        (asked,) = [message for message in slot.handle.sent if isinstance(message, ReportTasks)][-1:]
        task = RunningTask(ATTEMPT, ExecutionState.RUNNING, reports={"op": b"said"})  # type: ignore[dict-item]
        self.reports.answered(slot, TasksReported(asked.request_id, (task,)))

    def keep(self, name: str, message: object) -> None:
        self.reports.keep(self.slots[AllocationID(name)], message)


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 60))


def test_only_what_comes_behind_an_answer_reaches_the_next_leader():
    async def scenario():
        world = World("one", "two")
        asking = asyncio.ensure_future(world.reports.ask())
        await asyncio.sleep(0)
        world.keep("one", "before its answer")
        world.answer("one")
        world.keep("one", "behind its answer")
        world.keep("two", "before its answer")
        await asyncio.sleep(0)
        assert not asking.done()
        world.answer("two")
        held = await asking
        assert [(slot.allocation_id, slot.address) for slot in held] == [("one", ADDRESS), ("two", ADDRESS)]
        (task,) = held[0].tasks
        assert task == RunningTask(ATTEMPT, ExecutionState.RUNNING, fingerprint(TASK), "", {"op": b"said"})
        world.keep("two", "behind its answer")
        assert world.reports.take_unsent() == ["behind its answer", "behind its answer"]
        assert world.reports.take_unsent() == []

    run(scenario())


def test_who_asks_again_begins_anew():
    async def scenario():
        world = World("one")
        asking = asyncio.ensure_future(world.reports.ask())
        await asyncio.sleep(0)
        world.answer("one")
        await asking
        world.keep("one", "for a leader that did not accept us")
        asking = asyncio.ensure_future(world.reports.ask())
        await asyncio.sleep(0)
        world.keep("one", "before its answer")
        late = TasksReported(1, ())
        world.reports.answered(world.slots[AllocationID("one")], late)
        await asyncio.sleep(0)
        assert not asking.done(), "that was the answer to the first question"
        world.answer("one")
        await asking
        assert world.reports.take_unsent() == []

    run(scenario())


@pytest.mark.parametrize(
    ("happens", "state", "objection"),
    [
        (lambda slot: slot.cancelled(ATTEMPT), ExecutionState.RUNNING, "it is being cancelled"),
        (
            lambda slot: slot.state_changed(TaskStateChanged(JOB, ATTEMPT, ExecutionState.FAILED, BOOM)),
            ExecutionState.FAILED,
            "boom",
        ),
        (
            lambda slot: slot.state_changed(TaskStateChanged(JOB, ATTEMPT, ExecutionState.FINISHED)),
            ExecutionState.FINISHED,
            "",
        ),
    ],
)
def test_what_the_taskmanager_knows_counts_whatever_the_slot_says(happens, state, objection):
    async def scenario():
        world = World("one")
        happens(world.slots[AllocationID("one")])
        asking = asyncio.ensure_future(world.reports.ask())
        await asyncio.sleep(0)
        world.answer("one")
        ((task,),) = [slot.tasks for slot in await asking]
        assert (task.state, task.objection, task.reports) == (state, objection, {})

    run(scenario())


def test_a_slot_that_does_not_answer_is_told_of_with_an_objection(monkeypatch):
    monkeypatch.setattr(slots_module, "REPORT_S", 0.02)

    async def scenario():
        world = World("one")
        ((task,),) = [slot.tasks for slot in await world.reports.ask()]
        assert task.objection == "its slot did not say what it holds"
        world.keep("one", "later")
        assert world.reports.take_unsent() == ["later"], "the leader knows of this slot"

    run(scenario())


def test_a_slot_that_ends_meanwhile_is_not_waited_for_and_one_that_is_being_freed_is_told_of():
    async def scenario():
        world = World("one", "two")
        world.slots[AllocationID("two")].freeing = True
        asking = asyncio.ensure_future(world.reports.ask())
        await asyncio.sleep(0)
        one = world.slots.pop(AllocationID("one"))
        world.reports.keep(one, "lost before anybody was told of it")
        world.reports.slot_ended()
        (held,) = await asking
        assert (held.allocation_id, held.address) == ("two", None)
        freed = SlotFreed(held.allocation_id, held.slot_id)
        world.keep("two", freed)
        assert world.reports.take_unsent() == [freed]

    run(scenario())
