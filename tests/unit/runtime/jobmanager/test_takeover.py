"""May a new leader go on with what runs? Every single thing that does not fit has to be found, in whatever order."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from engine.core.ids import AllocationID, ExecutionAttemptID, JobID, ResourceID, SlotID
from engine.graph.job_graph import JobGraph
from engine.graph.rescale import rescaled
from engine.protocol.control import HeldSlot, RunningTask, SlotAddress, SlotLost, TaskManagerRegistered
from engine.protocol.fingerprint import fingerprint
from engine.protocol.lifecycle import ExecutionState, JobStatus
from engine.runtime.jobmanager import scheduler as s
from engine.runtime.jobmanager import slot_manager
from engine.runtime.jobmanager.restart import FixedDelay
from engine.runtime.jobmanager.slot_manager import SlotManager
from engine.runtime.jobmanager.takeover import (
    IN_FLIGHT_MAX,
    Former,
    ReportedSlot,
    Restart,
    TakeOver,
    Wait,
    judge,
    why_not,
)
from tests.unit.graph.programs import HASH, build, join, sink, source, word_count
from tests.unit.runtime.jobmanager.cluster_of_scheduler import DIED, World

ATTEMPT = 3
GOOD = Former(
    attempt_number=ATTEMPT,
    has_published=False,
    is_over=False,
    takes_checkpoints=True,
    has_blocking_edges=False,
    counter=7,
    newest_checkpoint=5,
    is_savepoint=False,
    has_problems=False,
    coordinators=(("sink", True),),
)


def graphs() -> list[JobGraph]:
    left, right = source("left", parallelism=2), source("right", parallelism=3)
    joined = join("join", (left, HASH), (right, HASH), parallelism=2)
    return [build(word_count()), build(sink("print", source("all", parallelism=1))), build(sink("print", joined))]


def reported(graph: JobGraph, attempt_number: int = ATTEMPT) -> list[ReportedSlot]:
    """What TaskManagers would say of the job if all is well."""
    world = World(graph)
    world.scheduler = s.Scheduler(graph, 0, first_attempt=attempt_number)
    world.run()
    grants = {grant.allocation_id: grant for _, grant in world.grants().grants}
    slots: dict[AllocationID, list[RunningTask]] = {}
    for deploy in world.all(s.Deploy):
        task = RunningTask(deploy.task.attempt_id, ExecutionState.RUNNING, fingerprint(deploy.task))
        slots.setdefault(deploy.allocation_id, []).append(task)
    return [
        ReportedSlot(
            HeldSlot(id_, SlotID(f"tm_{number}"), graph.job_id, grants[id_].address, tuple(tasks)), grants[id_]
        )
        for number, (id_, tasks) in enumerate(slots.items())
    ]


@pytest.mark.parametrize("graph", graphs(), ids=["chain", "one task", "join"])
def test_all_that_was_deployed_and_runs_is_taken_over_in_whatever_order_it_is_reported(graph):
    slots = reported(graph)
    for order in itertools.islice(itertools.permutations(slots), 24):
        for number in range(len(order)):
            assert isinstance(judge(graph, ATTEMPT, order[:number]), Wait)
        verdict = judge(graph, ATTEMPT, order)
        assert isinstance(verdict, TakeOver)
        assert {grant for _, grant in verdict.grants} == {slot.grant for slot in slots}
        assert [key for key, _ in verdict.grants] == sorted(key for key, _ in verdict.grants)


# --- everything that may be wrong with one slot or one task ---------------------------------------------------------


def with_task(slots: list[ReportedSlot], at: int, index: int, **changes: object) -> list[ReportedSlot]:
    held = slots[at].held
    tasks = [dataclasses.replace(t, **changes) if i == index else t for i, t in enumerate(held.tasks)]  # type: ignore[arg-type]
    return with_slot(slots, at, tasks=tuple(tasks))


def with_slot(slots: list[ReportedSlot], at: int, **changes: object) -> list[ReportedSlot]:
    changed = dataclasses.replace(slots[at], held=dataclasses.replace(slots[at].held, **changes))  # type: ignore[arg-type]
    return [*slots[:at], changed, *slots[at + 1 :]]


def moved(slots: list[ReportedSlot], at: int, index: int) -> list[ReportedSlot]:
    """One task runs in another slot than those with which it shares one."""
    task = slots[at].held.tasks[index]
    other = (at + 1) % len(slots)
    slots = with_slot(slots, at, tasks=tuple(t for t in slots[at].held.tasks if t is not task))
    return with_slot(slots, other, tasks=(*slots[other].held.tasks, task))


def wrongs(slots: list[ReportedSlot]) -> Iterator[tuple[str, list[ReportedSlot]]]:
    """Yield all variants of which one thing is wrong."""
    for at, slot in enumerate(slots):
        yield "slot is not ready", [*slots[:at], dataclasses.replace(slot, grant=None), *slots[at + 1 :]]
        yield "slot is missing", [*slots[:at], *slots[at + 1 :]]
        yield "slot is empty", with_slot(slots, at, tasks=())
        yield "slot is another job's", with_slot(slots, at, job_id=JobID.generate())
        if slot.grant is None:
            continue
        other_id = AllocationID.generate()
        twice = dataclasses.replace(
            slot,
            held=dataclasses.replace(slot.held, allocation_id=other_id),
            grant=dataclasses.replace(slot.grant, allocation_id=other_id),
        )
        yield "slot is there twice", [*slots, twice]
        elsewhere = dataclasses.replace(slot.grant.address, port=slot.grant.address.port + 1)
        grant = dataclasses.replace(slot.grant, address=elsewhere)
        if any(len(other.held.tasks) > 1 or len(slots) > 1 for other in slots):  # else nobody connects to it
            yield "slot is elsewhere", [*slots[:at], dataclasses.replace(slot, grant=grant), *slots[at + 1 :]]
        for index, task in enumerate(slot.held.tasks):
            for state in ExecutionState:
                if state is not ExecutionState.RUNNING:
                    yield f"task is {state}", with_task(slots, at, index, state=state)
            yield "task objects", with_task(slots, at, index, objection="it is being cancelled")
            yield "task is another", with_task(slots, at, index, fingerprint="other")
            vertex, _, subtask = task.attempt_id.rpartition("_")[0].rpartition("_")
            for attempt_id in (f"{vertex}_{subtask}_2", f"{vertex}_99_3", f"{'0' * 32}_0_3", "what"):
                changed = ExecutionAttemptID(attempt_id)
                yield f"task is attempt {attempt_id[-5:]}", with_task(slots, at, index, attempt_id=changed)
            without = tuple(other for other in slot.held.tasks if other is not task)
            yield "task is missing", with_slot(slots, at, tasks=without)
            yield "task is there twice", with_slot(slots, at, tasks=(*slot.held.tasks, task))
            if len(slots) > 1:
                yield "task is moved", moved(slots, at, index)


@pytest.mark.parametrize("graph", graphs(), ids=["chain", "one task", "join"])
def test_one_thing_that_does_not_fit_is_enough_to_restart(graph):
    found = 0
    for what, slots in wrongs(reported(graph)):
        found += 1
        verdict = judge(graph, ATTEMPT, slots)
        waits = what in ("slot is missing", "task is missing") and isinstance(verdict, Wait)
        assert waits or isinstance(verdict, Restart), (what, verdict)
    assert found > 20


def test_whatever_is_wrong_with_many_things_at_once_nothing_is_taken_over():
    rng = random.Random(35)
    for _ in range(300):
        graph = rng.choice(graphs())
        slots = reported(graph)
        for _ in range(rng.randint(1, 3)):
            # What is there twice may be put right by what is missing.
            ways = [changed for what, changed in wrongs(slots) if "twice" not in what]
            slots = rng.choice(ways) if ways else slots
        rng.shuffle(slots)
        heard: list[ReportedSlot] = []
        for slot in slots:
            heard.append(slot)
            assert not isinstance(judge(graph, ATTEMPT, heard), TakeOver)


def test_another_job_graph_than_the_one_that_runs_is_restarted():
    graph = build(word_count())
    slots = reported(graph)
    vertices = [vertex for vertex in graph.vertices if vertex.is_parallel]
    changed: list[JobGraph] = [rescaled(graph, {vertex.vertex_id: vertex.parallelism + 1 for vertex in vertices})]
    for vertex in graph.vertices:
        other: list[Callable[[], object]] = [
            lambda v=vertex: dataclasses.replace(v, chain=v.chain + b"!"),  # type: ignore[misc]
            lambda v=vertex: dataclasses.replace(v, max_parallelism=v.max_parallelism + 1),  # type: ignore[misc]
        ]
        for make in other:
            new = [make() if one is vertex else one for one in graph.vertices]
            changed.append(dataclasses.replace(graph, vertices=tuple(new)))  # type: ignore[arg-type]
    for one in changed:
        verdict = judge(one, ATTEMPT, slots)
        assert not isinstance(verdict, TakeOver), verdict


def test_what_operators_report_reaches_the_coordinators_that_there_are():
    graph = build(word_count())
    first = graph.vertices[0]
    operator_id = first.operators[0].operator_id
    slots = reported(graph)
    for at, slot in enumerate(slots):
        for index, task in enumerate(slot.held.tasks):
            reports = {operator_id: task.attempt_id.encode()}
            slots = with_task(slots, at, index, reports=reports)
    verdict = judge(graph, ATTEMPT, slots)
    assert isinstance(verdict, TakeOver)
    assert verdict.reports == {}, "nobody hears it"
    vertices = [dataclasses.replace(v, coordinators={operator_id: b""}) if v is first else v for v in graph.vertices]
    verdict = judge(dataclasses.replace(graph, vertices=tuple(vertices)), ATTEMPT, slots)
    assert isinstance(verdict, TakeOver)
    expected = {i: f"{first.vertex_id}_{i}_{ATTEMPT}".encode() for i in range(first.parallelism)}
    assert verdict.reports == {operator_id: expected}


# --- what is written down -------------------------------------------------------------------------------------------


def test_what_is_written_down_has_to_fit_in_all_respects():
    assert why_not(GOOD) == ""
    assert why_not(dataclasses.replace(GOOD, newest_checkpoint=0)) == ""
    bad: dict[str, list[object]] = {
        "attempt_number": [-1],
        "has_published": [True],
        "is_over": [True],
        "takes_checkpoints": [False],
        "has_blocking_edges": [True],
        "is_savepoint": [True],
        "has_problems": [True],
        "counter": [5 + IN_FLIGHT_MAX + 1],
        "coordinators": [(("collect", False),), (("sink", True), ("collect", False))],
    }
    for number in range(1, len(bad) + 1):
        for names in itertools.combinations(bad, number):
            for values in itertools.product(*(bad[name] for name in names)):
                former = dataclasses.replace(GOOD, **dict(zip(names, values, strict=True)))  # type: ignore[arg-type]
                assert why_not(former), (names, values)


def test_too_many_checkpoints_under_way_are_a_reason_and_one_less_is_none():
    assert why_not(dataclasses.replace(GOOD, counter=5 + IN_FLIGHT_MAX)) == ""
    assert why_not(dataclasses.replace(GOOD, counter=6 + IN_FLIGHT_MAX)) != ""


def test_a_fingerprint_tells_deployments_apart_and_forgets_where_they_began():
    graph = build(word_count())
    world = World(graph).run()
    deployments = [deploy.task for deploy in world.all(s.Deploy)]
    assert len({fingerprint(task) for task in deployments}) == len(deployments)
    task = deployments[-1]
    assert fingerprint(dataclasses.replace(task, restore=None)) == fingerprint(task)
    for change in ({"chain": b"x"}, {"parallelism": 7}, {"gates": ()}, {"attempt_number": 9}, {"job_id": "0" * 32}):
        assert fingerprint(dataclasses.replace(task, **change)) != fingerprint(task)  # type: ignore[arg-type]


# --- what follows ---------------------------------------------------------------------------------------------------


def taken_over(graph: JobGraph) -> World:
    verdict = judge(graph, ATTEMPT, reported(graph))
    assert isinstance(verdict, TakeOver)
    world = World(graph, FixedDelay(2, 100))
    world.scheduler = s.Scheduler(graph, 0, FixedDelay(2, 100), recovers=True, first_attempt=ATTEMPT + 1)
    adopted = [
        command for command in world.send(s.TasksTakenOver(ATTEMPT, verdict.grants)) if isinstance(command, s.Adopt)
    ]
    world.live = {command.task.attempt_id: command.allocation_id for command in adopted}
    return world


@pytest.mark.parametrize("graph", graphs(), ids=["chain", "one task", "join"])
def test_a_job_that_was_taken_over_goes_on_as_if_it_had_been_deployed_here(graph):
    world = taken_over(graph)
    assert world.status is JobStatus.RUNNING
    assert set(world.states().values()) == {"RUNNING"}
    assert {attempt_id.rsplit("_", 1)[1] for attempt_id in world.live} == {str(ATTEMPT)}
    assert not world.all(s.Deploy)
    assert not world.all(s.RestartAfter)
    (entry,) = world.scheduler.graph.exceptions
    assert entry.error.type_name == "TasksTakenOver"
    world.finish_all_live()
    assert world.end()[-1] == s.JobTerminated(JobStatus.FINISHED)


@pytest.mark.parametrize("graph", graphs(), ids=["chain", "one task", "join"])
def test_its_next_attempt_has_the_next_number(graph):
    world = taken_over(graph)
    world.fail_attempt()
    world.restart()
    assert world.status is JobStatus.RUNNING
    assert {deploy.task.attempt_number for deploy in world.all(s.Deploy)} == {ATTEMPT + 1}
    assert all(len(subtask.attempts) == 2 for subtask in world.scheduler.graph.all_subtasks())


def test_it_can_be_cancelled_and_loses_slots_as_any_other():
    world = taken_over(build(word_count()))
    world.send(s.CancelRequested())
    world.confirm_cancels()
    assert world.end()[-1] == s.JobTerminated(JobStatus.CANCELED)
    world = taken_over(build(word_count()))
    world.send(s.SlotsLost([next(iter(world.live.values()))], DIED))
    assert world.status is JobStatus.FAILING


def test_the_slot_book_holds_what_is_expected_and_frees_the_rest():
    book = SlotManager(request_timeout_ms=1000, worker_idle_timeout_ms=100)
    expected, strange, slot_key = JobID.generate(), JobID.generate(), s.SlotRequestKey("default", 0)
    address = SlotAddress(ResourceID("tm"), "h", 1, "/u")
    held = (
        HeldSlot(AllocationID("kept"), SlotID("tm_0"), expected, address),
        HeldSlot(AllocationID("of another"), SlotID("tm_1"), strange, address),
        HeldSlot(AllocationID("being made"), SlotID("tm_2"), expected, None),
    )
    registered = TaskManagerRegistered(ResourceID("tm"), "h", 4, 1, 1, 1, 1, "", 1, 1, held)

    def send(event: object) -> list[object]:
        commands = book.handle(event, 0)  # type: ignore[arg-type]
        book.check_invariants()
        return [getattr(command, "message", command) for command in commands]

    freed = send(slot_manager.TaskManagerAdded(registered, frozenset({expected})))
    assert [message.allocation_id for message in freed] == ["of another", "being made"]  # type: ignore[attr-defined]
    assert book.num_free_slots == 1
    assert send(slot_manager.SlotsTakenOver({AllocationID("kept"): slot_key})) == []
    (lost,) = send(SlotLost(AllocationID("kept"), SlotID("tm_0"), DIED))
    assert (lost.job_id, lost.allocation_ids) == (expected, ("kept",))  # type: ignore[attr-defined]
    send(slot_manager.TaskManagerRemoved(ResourceID("tm"), DIED))
    send(slot_manager.TaskManagerAdded(registered, frozenset({expected})))
    (message,) = send(slot_manager.JobEnded(expected))
    assert message.allocation_id == "kept"  # type: ignore[attr-defined]
