"""The slot book: who gets slots, who waits, when workers come and go."""

from __future__ import annotations

import itertools
import random
from typing import Any, TypeVar

import pytest

from engine.core.ids import AllocationID, JobID, ResourceID, SlotID
from engine.protocol.control import (
    AllocateSlot,
    ErrorInfo,
    FreeSlot,
    HeldSlot,
    JobInformation,
    SlotAddress,
    SlotAllocated,
    SlotAllocationFailed,
    SlotFreed,
    SlotLost,
    TaskManagerRegistered,
)
from engine.runtime.jobmanager import slot_manager as book
from engine.runtime.jobmanager.scheduler import SlotRequestKey

C = TypeVar("C")
GONE = ErrorInfo("SlotLost", "gone", "", "external")


def job(name: str, **config: str) -> JobInformation:
    settings = {key.replace("__", "."): value for key, value in config.items()}
    return JobInformation(JobID.from_text(name), name, settings)


def keys(number: int) -> tuple[SlotRequestKey, ...]:
    return tuple(SlotRequestKey("default", index) for index in range(number))


class World:
    """Plays the TaskManagers: they do what they are told when the test says so."""

    def __init__(self, **settings: Any) -> None:
        numbers = itertools.count()
        self.book = book.SlotManager(
            request_timeout_ms=1000,
            worker_idle_timeout_ms=100,
            new_allocation_id=lambda: AllocationID(f"a{next(numbers)}"),
            **settings,
        )
        self.now_ms = 0
        self.log: list[book.Command] = []
        self.pending: list[tuple[ResourceID, AllocateSlot | FreeSlot]] = []
        #: what runs in each slot, as its TaskManager knows it
        self.running: dict[SlotID, AllocationID] = {}

    def send(self, event: book.Event) -> list[book.Command]:
        commands = self.book.handle(event, self.now_ms)
        self.book.check_invariants()
        self.log += commands
        self.pending += [(c.resource_id, c.message) for c in commands if isinstance(c, book.SendToTaskManager)]
        return commands

    def all(self, kind: type[C]) -> list[C]:
        return [command for command in self.log if isinstance(command, kind)]

    def add(self, name: str, num_slots: int = 2, held: Any = ()) -> list[book.Command]:
        registered = TaskManagerRegistered(ResourceID(name), "h", num_slots, 1, 1, 1, 1, "", 1, 1, held)
        return self.send(book.TaskManagerAdded(registered))

    def request(self, information: JobInformation, number: int) -> list[book.Command]:
        return self.send(book.SlotsRequested(information, keys(number)))

    def answer(self, index: int = 0) -> None:
        """The TaskManager has done what it was told."""
        resource_id, message = self.pending.pop(index)
        match message:
            case AllocateSlot(allocation_id, slot_id):
                assert slot_id not in self.running, "two processes in one slot"
                self.running[slot_id] = allocation_id
                address = SlotAddress(resource_id, "h", 1, "/u")
                self.send(SlotAllocated(allocation_id, slot_id, address))
            case FreeSlot(allocation_id):
                slot_id = next((s for s, a in self.running.items() if a == allocation_id), SlotID("?"))
                self.running.pop(slot_id, None)
                self.send(SlotFreed(allocation_id, slot_id))

    def settle(self) -> None:
        while self.pending:
            self.answer()

    def later(self, delta_ms: int) -> list[book.Command]:
        self.now_ms += delta_ms
        return self.send(book.Tick())

    def grants(self, information: JobInformation) -> list[list[str]]:
        granted = [grant for grant in self.all(book.GrantSlots) if grant.job_id == information.job_id]
        return [[g.allocation_id for _, g in grant.grants] for grant in granted]


A, B, D = job("a"), job("b"), job("d")


# --- serving --------------------------------------------------------------------------------------------------------


def test_a_job_gets_its_slots_when_all_their_processes_are_there() -> None:
    world = World()
    world.add("tm", 2)
    world.request(A, 2)
    assert [message.slot_id for _, message in world.pending] == ["tm_0", "tm_1"]  # type: ignore[union-attr]
    world.answer()
    assert world.grants(A) == []
    world.answer()
    (granted,) = world.all(book.GrantSlots)
    assert [key for key, _ in granted.grants] == list(keys(2))
    assert granted.grants[0][1].address.resource_id == "tm"


def test_slots_of_earlier_taskmanagers_are_filled_first() -> None:
    world = World()
    world.add("one", 2)
    world.add("two", 2)
    world.request(A, 3)
    assert [resource_id for resource_id, _ in world.pending] == ["one", "one", "two"]


def test_a_job_that_does_not_fit_holds_nothing_and_a_later_one_that_fits_passes() -> None:
    world = World()
    world.add("tm", 2)
    assert world.request(A, 3) == []
    world.request(B, 2)
    world.settle()
    assert world.grants(A) == []
    assert world.grants(B) == [["a0", "a1"]]
    world.add("more", 1)
    assert world.pending == []
    world.send(book.JobEnded(B.job_id))
    world.settle()
    assert len(world.grants(A)[0]) == 3


def test_first_come_first_served() -> None:
    world = World()
    world.request(A, 2)
    world.request(B, 2)
    world.add("tm", 2)
    world.settle()
    assert (len(world.grants(A)), len(world.grants(B))) == (1, 0)


def test_a_released_slot_is_used_again_only_when_its_process_is_gone() -> None:
    world = World()
    world.add("tm", 1)
    world.request(A, 1)
    world.settle()
    world.request(B, 1)
    world.send(book.SlotsReleased([AllocationID("a0")], "done", 7))
    assert [message for _, message in world.pending] == [FreeSlot(AllocationID("a0"), "done", 7)]
    assert world.send(book.SlotsReleased([AllocationID("a0")])) == []
    world.settle()
    assert world.grants(B) == [["a1"]]


def test_a_withdrawn_request_leaves_nothing_behind() -> None:
    world = World()
    world.add("tm", 2)
    world.request(A, 2)
    world.answer()
    world.send(book.JobEnded(A.job_id))
    world.settle()
    assert world.grants(A) == []
    assert world.book.num_free_slots == 2
    assert world.running == {}


# --- waiting in vain ------------------------------------------------------------------------------------------------


def test_a_job_that_waited_too_long_is_told_what_is_missing_and_what_to_change() -> None:
    world = World()
    world.add("one", 2)
    world.add("two", 1)
    world.request(B, 1)
    world.settle()
    world.request(A, 5)
    assert world.later(999) == []
    (rejected,) = world.later(1)
    assert isinstance(rejected, book.RejectSlots)
    assert rejected.error.type_name == "NoResourceAvailableError"
    assert rejected.error.message == (
        "Job 'a' did not get its slots within 1 s (slot.request.timeout): it needs 5 slots, the cluster has 3 slots on "
        "2 TaskManagers, 2 of them free. Lower the parallelism of the job (-p, parallelism.default), raise "
        "taskmanager.numberOfTaskSlots, start more TaskManagers, or wait for other jobs to end."
    )
    world.add("three", 5)
    assert world.pending == []


def test_a_job_whose_processes_start_too_slowly_is_told_so() -> None:
    world = World()
    world.add("tm", 2)
    world.request(A, 2)
    rejected = next(command for command in world.later(1000) if isinstance(command, book.RejectSlots))
    assert "needs 2 slots, which were assigned, but not all of their processes were ready" in rejected.error.message


def test_a_job_may_bring_its_own_timeout() -> None:
    world = World()
    world.request(job("a", slot__request__timeout="5 ms"), 1)
    assert world.later(5) != []
    (rejected,) = world.request(job("b", slot__request__timeout="soon"), 1)
    assert "slot.request.timeout is 'soon'" in rejected.error.message  # type: ignore[union-attr]


def test_a_slot_process_that_cannot_be_made_is_tried_again_then_is_the_error() -> None:
    world = World()
    world.add("tm", 2)
    world.request(A, 2)
    for _ in range(book.ALLOCATION_ATTEMPTS_MAX):
        assert world.all(book.RejectSlots) == []
        _, message = world.pending.pop(0)
        world.send(SlotAllocationFailed(message.allocation_id, SlotID("tm_0"), GONE))
    assert [rejected.error for rejected in world.all(book.RejectSlots)] == [GONE]
    world.settle()
    assert world.book.num_free_slots == 2


# --- losses ---------------------------------------------------------------------------------------------------------


def test_a_lost_slot_is_reported_to_its_job_and_can_be_used_again() -> None:
    world = World()
    world.add("tm", 1)
    world.request(A, 1)
    world.settle()
    world.running.clear()
    assert world.send(SlotLost(AllocationID("a0"), SlotID("tm_0"), GONE)) == [
        book.SlotsOfJobLost(A.job_id, (AllocationID("a0"),), GONE)
    ]
    world.request(B, 1)
    world.settle()
    assert world.grants(B) == [["a1"]]


def test_a_lost_taskmanager_is_reported_to_each_job_once() -> None:
    world = World()
    world.add("tm", 3)
    world.request(A, 2)
    world.request(B, 1)
    world.settle()
    assert world.send(book.TaskManagerRemoved(ResourceID("tm"), GONE)) == [
        book.SlotsOfJobLost(A.job_id, (AllocationID("a0"), AllocationID("a1")), GONE),
        book.SlotsOfJobLost(B.job_id, (AllocationID("a2"),), GONE),
    ]
    assert world.book.num_slots == 0


def test_a_job_that_loses_a_slot_before_its_grant_gets_another_one() -> None:
    world = World()
    world.add("one", 1)
    world.add("two", 2)
    world.request(A, 2)
    world.answer()
    world.send(book.TaskManagerRemoved(ResourceID("one"), GONE))
    world.settle()
    assert world.all(book.SlotsOfJobLost) == []
    assert len(world.grants(A)) == 1
    assert {grant.resource_id for _, grant in world.all(book.GrantSlots)[0].grants} == {"two"}


def test_two_half_served_jobs_do_not_wait_for_each_other() -> None:
    world = World()
    world.add("one", 2)
    world.add("two", 2)
    world.request(A, 2)
    world.request(B, 2)
    world.send(SlotAllocationFailed(AllocationID("a0"), SlotID("one_0"), GONE))
    world.send(book.TaskManagerRemoved(ResourceID("two"), GONE))
    world.pending = [(r, m) for r, m in world.pending if r != "two" and m.allocation_id != "a0"]
    world.settle()
    assert len(world.grants(A)) == 1


def test_late_news_about_unknown_things_changes_nothing() -> None:
    world = World()
    strange, slot_id = AllocationID("x"), SlotID("tm_0")
    for event in (
        SlotAllocated(strange, slot_id, SlotAddress(ResourceID("tm"), "h", 1, "/u")),
        SlotAllocationFailed(strange, slot_id, GONE),
        SlotFreed(strange, slot_id),
        SlotLost(strange, slot_id, GONE),
        book.SlotsReleased([strange]),
        book.JobEnded(A.job_id),
        book.TaskManagerRemoved(ResourceID("tm"), GONE),
    ):
        assert world.send(event) == []


def test_a_new_taskmanager_that_holds_a_slot_of_an_unknown_job_must_free_it_first() -> None:
    world = World()
    world.request(A, 2)
    world.add("tm", 2, held=(HeldSlot(AllocationID("old"), SlotID("tm_1"), JobID.generate()),))
    assert [message.allocation_id for _, message in world.pending] == ["old"]
    world.settle()
    assert len(world.grants(A)) == 1


def test_a_taskmanager_that_comes_back_is_compared_with_the_book() -> None:
    world = World()
    world.add("tm", 2)
    world.request(A, 2)
    world.settle()
    world.running.pop(SlotID("tm_1"))
    commands = world.add("tm", 2, held=(HeldSlot(AllocationID("a0"), SlotID("tm_0"), A.job_id),))
    (lost,) = commands
    assert isinstance(lost, book.SlotsOfJobLost)
    assert lost.allocation_ids == ("a1",)


# --- workers on demand ----------------------------------------------------------------------------------------------


def test_missing_slots_are_told_as_a_level_when_it_changes() -> None:
    world = World(on_demand=True)
    assert world.request(A, 3) == [book.RequestWorkers(3)]
    assert world.request(B, 2) == [book.RequestWorkers(5)]
    assert world.later(1) == []
    assert world.add("one", 2)[0] == book.RequestWorkers(3), "the later job that fits has them"
    assert world.add("two", 2)[0] == book.RequestWorkers(1)
    assert world.add("three", 2)[0] == book.RequestWorkers(0)
    world.settle()
    assert (len(world.grants(A)), len(world.grants(B))) == (1, 1)


def test_slots_that_are_being_freed_are_not_asked_for_again() -> None:
    world = World(on_demand=True)
    world.add("tm", 2)
    world.request(A, 2)
    world.settle()
    world.send(book.JobEnded(A.job_id))
    assert not any(isinstance(command, book.RequestWorkers) for command in world.request(B, 2))


def test_no_more_slots_are_started_than_allowed() -> None:
    world = World(on_demand=True, slots_max=4)
    world.add("tm", 2)
    assert world.request(A, 9) == [book.RequestWorkers(2)]


def test_without_a_driver_nobody_is_asked_for_workers() -> None:
    world = World()
    world.request(A, 2)
    world.add("tm", 2)
    world.settle()
    world.send(book.JobEnded(A.job_id))
    world.settle()
    world.later(10_000)
    assert world.all(book.RequestWorkers) + world.all(book.ReleaseWorker) == []


def test_idle_workers_beyond_the_minimum_are_released_after_the_timeout() -> None:
    world = World(on_demand=True, workers_min=1)
    for name in ("one", "two", "three"):
        world.add(name, 1)
    world.request(A, 1)
    world.settle()
    assert world.later(99) == []
    assert world.later(1) == [book.ReleaseWorker(ResourceID("three")), book.ReleaseWorker(ResourceID("two"))]
    assert world.later(100) == []
    world.send(book.JobEnded(A.job_id))
    world.settle()
    assert world.later(1000) == []
    world.request(B, 2)
    assert world.pending == [], "a released worker gets nothing new"


def test_a_worker_that_a_waiting_job_will_need_is_not_released() -> None:
    world = World(on_demand=True)
    world.add("tm", 1)
    world.request(A, 2)
    assert world.later(500) == []


def test_idle_time_counts_from_the_end_of_the_last_job() -> None:
    world = World(on_demand=True)
    world.add("tm", 1)
    world.request(A, 1)
    world.settle()
    world.later(5000)
    world.send(book.JobEnded(A.job_id))
    world.settle()
    assert world.later(99) == []
    assert world.later(1) == [book.ReleaseWorker(ResourceID("tm"))]


# --- everything, in any order ---------------------------------------------------------------------------------------


def random_step(world: World, rng: random.Random, jobs: list[JobInformation], alive: set[str]) -> None:
    match rng.randrange(12):
        case 0 | 1:
            world.request(rng.choice(jobs), rng.randint(1, 4))
        case 2:
            world.send(book.JobEnded(rng.choice(jobs).job_id))
        case 3:
            name = f"tm{rng.randrange(3)}"
            if name not in alive:
                alive.add(name)
                world.add(name, rng.randint(1, 3))
        case 4 if alive and rng.random() < 0.4:
            name = rng.choice(sorted(alive))
            alive.discard(name)
            world.pending = [(resource_id, message) for resource_id, message in world.pending if resource_id != name]
            world.running = {slot: a for slot, a in world.running.items() if not slot.startswith(name)}
            world.send(book.TaskManagerRemoved(ResourceID(name), GONE))
        case 5 if world.running and rng.random() < 0.5:
            slot_id, allocation_id = rng.choice(sorted(world.running.items()))
            del world.running[slot_id]
            world.pending = [(r, m) for r, m in world.pending if m.allocation_id != allocation_id]
            world.send(SlotLost(allocation_id, slot_id, GONE))
        case 6:
            granted = [g.allocation_id for c in world.all(book.GrantSlots)[-3:] for _, g in c.grants]
            world.send(book.SlotsReleased(rng.sample(granted, min(1, len(granted)))))
        case 7:
            world.now_ms += rng.choice([1, 50, 400])
            world.send(book.Tick())
        case _ if world.pending:
            # Messages of one TaskManager are answered in order.
            first_of = {resource_id: i for i, (resource_id, _) in reversed(list(enumerate(world.pending)))}
            world.answer(rng.choice(sorted(first_of.values())))


@pytest.mark.parametrize("on_demand", [False, True])
def test_whatever_happens_the_book_stays_right_and_everybody_is_answered(on_demand: bool) -> None:
    for seed in range(300):
        rng = random.Random(f"{on_demand}{seed}")
        world = World(on_demand=on_demand, workers_min=1)
        jobs, alive = [job(name) for name in "abc"], set[str]()
        for _ in range(60):
            random_step(world, rng, jobs, alive)
        for one in jobs:
            world.send(book.JobEnded(one.job_id))
        world.settle()
        assert world.running == {}, seed
        late = job("late")
        world.add("fresh", 2)
        world.request(late, 2)
        world.settle()
        assert len(world.grants(late)) == 1, seed
