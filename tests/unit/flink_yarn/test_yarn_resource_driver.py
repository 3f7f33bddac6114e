"""The driver that keeps as many containers as are wanted, against a fake of skein's client."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from engine.core.errors import ExternalError
from flink_yarn import bad_nodes, resource_driver
from flink_yarn.resource_driver import YarnResourceDriver, attempt_of
from flink_yarn.yarn_client import LeavingNodes
from tests.testing.patience import DEADLINE_S


class FakeSkein:
    """Containers start when ``start`` is called, and end when ``end`` is."""

    def __init__(self) -> None:
        self.containers: list[SimpleNamespace] = []
        self.killed: list[str] = []
        self.broken = False
        self.looks = 0  #: how often it was asked what runs

    def _container(self) -> SimpleNamespace:
        number = len(self.containers)
        found = SimpleNamespace(
            id=f"taskmanager_{number}",
            state="REQUESTED",
            yarn_container_id="",
            yarn_node_http_address="",
            exit_message="",
        )
        self.containers.append(found)
        return found

    def add_container(self, service, env=None):
        if self.broken:
            raise RuntimeError("no connection")
        return self._container()

    def get_containers(self, services=None, states=None):
        self.looks += "RUNNING" in states
        if self.broken:
            raise RuntimeError("no connection")
        return [c for c in self.containers if c.state in states]

    def kill_container(self, id):
        self.killed.append(id)
        self._by_id(id).state = "KILLED"

    def _by_id(self, id):
        return next(c for c in self.containers if c.id == id)

    def start(self, number, host="node"):
        self.containers[number].state = "RUNNING"
        self.containers[number].yarn_node_http_address = f"{host}:1"
        self.containers[number].yarn_container_id = f"container_{number}"

    def end(self, number, message="exit 1"):
        self.containers[number].state = "FAILED"
        self.containers[number].exit_message = message

    def active(self):
        return sum(c.state in ("REQUESTED", "RUNNING") for c in self.containers)


class Events:
    def __init__(self) -> None:
        self.lost: list[tuple[str, str]] = []
        self.failed: list[str] = []
        self.left: list[tuple[tuple[str, ...], str]] = []

    def workers_leave(self, resource_ids, reason):
        self.left.append((resource_ids, reason))

    def worker_lost(self, resource_id, reason):
        self.lost.append((resource_id, reason))

    def workers_failed(self, reason):
        self.failed.append(reason)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(resource_driver, "POLL_S", 0.01)
    monkeypatch.setattr(resource_driver, "RELEASE_GRACE_S", 0.02)
    monkeypatch.setattr(resource_driver, "LEAVING_LOOK_S", 0.02)


async def until(holds):
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.005)


async def looked(skein):
    """Wait until the driver has seen what is there now, and has done what it does about it."""
    goal = skein.looks + 3  # one may be under way, and what follows the second is done before the third
    await until(lambda: skein.looks >= goal)


async def settled(skein):
    """Wait until the driver has looked some times more."""
    before = -1
    while before != len(skein.containers):
        before = len(skein.containers)
        await asyncio.sleep(0.1)
        await looked(skein)


def scenario(body, *, fixed=0, containers=0, **options):
    async def run():
        skein, events = FakeSkein(), Events()
        for _ in range(containers):
            skein._container()
        driver = YarnResourceDriver(skein, fixed=fixed, user="u", worker_mb=1024, **options)
        driver._log_tail = lambda container: ""
        await driver.start(events)
        try:
            await body(driver, skein, events)
        finally:
            await driver.stop()

    asyncio.run(run())


def test_containers_are_asked_for_until_the_level_is_reached_and_no_more():
    async def body(driver, skein, events):
        driver.start_workers(2)
        await until(lambda: skein.active() == 2)
        await settled(skein)
        assert len(skein.containers) == 2
        skein.start(0)
        driver.worker_registered("container_0")
        driver.start_workers(1)  # the other one is still on its way
        await settled(skein)
        assert len(skein.containers) == 2

    scenario(body)


def test_requests_that_nobody_needs_any_more_are_taken_back():
    async def body(driver, skein, events):
        driver.start_workers(3)
        await until(lambda: skein.active() == 3)
        skein.start(0)
        driver.start_workers(0)
        await until(lambda: len(skein.killed) == 2)
        assert "taskmanager_0" not in skein.killed  # it runs: it goes when it is idle

    scenario(body)


def test_containers_that_came_with_the_master_are_kept_until_the_job_says_what_it_needs():
    async def body(driver, skein, events):
        await settled(skein)
        assert skein.killed == []
        driver.start_workers(2)
        await settled(skein)
        assert (len(skein.containers), skein.killed) == (2, [])

    scenario(body, containers=2)


def test_a_fixed_number_is_restored_and_the_loss_is_told_with_its_reason():
    async def body(driver, skein, events):
        for number in (0, 1):
            skein.start(number)
            driver.worker_registered(f"container_{number}")
        await settled(skein)
        skein.end(0, "[2026-01-02 03:04:05.678]Container killed on request. Exit code is 137")
        await until(lambda: events.lost)
        assert events.lost == [("container_0", "YARN says: Container killed on request. Exit code is 137")]
        assert await driver.diagnose("container_0") == events.lost[0][1]
        await until(lambda: len(skein.containers) == 3)

    scenario(body, fixed=2, containers=2)


def test_a_released_container_is_no_loss_and_is_not_replaced():
    async def body(driver, skein, events):
        driver.start_workers(1)
        await until(lambda: skein.active() == 1)
        skein.start(0)
        driver.worker_registered("container_0")
        driver.start_workers(0)
        driver.stop_worker("container_0")
        await until(lambda: skein.killed == ["taskmanager_0"])
        await settled(skein)
        assert (events.lost, len(skein.containers)) == ([], 1)

    scenario(body)


def test_containers_that_never_register_fail_the_waiting_jobs_instead_of_going_on_for_ever():
    async def body(driver, skein, events):
        driver.start_workers(1)
        for number in range(3):
            await until(lambda n=number: len(skein.containers) > n)
            await looked(skein)
            skein.start(number, host=f"node{number % 2}")
            await looked(skein)
            skein.end(number, "no Python")
        await until(lambda: events.failed)
        assert "3 containers in a row ended before they registered" in events.failed[0]
        assert "no Python" in events.failed[0]

    scenario(body)


def test_a_node_on_which_containers_do_not_start_is_avoided_and_is_not_taken_for_all_nodes():
    told = []

    async def body(driver, skein, events):
        driver.start_workers(1)
        for number in range(2):
            await until(lambda n=number: len(skein.containers) > n)
            assert told == [frozenset()]
            skein.start(number, host="bad")
            await looked(skein)
            skein.end(number, "no Python")
        await until(lambda: told == [frozenset(), {"bad"}])
        await until(lambda: len(skein.containers) > 2)
        skein.start(2, host="bad")  # it was on its way
        await looked(skein)
        skein.end(2, "no Python")
        await until(lambda: len(skein.containers) > 3)
        skein.start(3, host="good")
        await looked(skein)
        driver.worker_registered("container_3")
        await settled(skein)
        assert (events.failed, told) == ([], [frozenset(), {"bad"}])

    scenario(body, avoid=told.append)


def test_a_node_on_which_a_taskmanager_registers_begins_anew():
    told = []

    async def body(driver, skein, events):
        driver.start_workers(1)
        for number, registers in enumerate([False, True, False]):
            await until(lambda n=number: len(skein.containers) > n)
            skein.start(number)
            if registers:
                driver.worker_registered(f"container_{number}")  # perhaps before the next look
            await settled(skein)
            skein.end(number, "exit 1")
        await until(lambda: len(skein.containers) > 3)
        await settled(skein)
        assert told == [frozenset()]

    scenario(body, avoid=told.append)


def test_the_only_node_is_asked_again_and_then_the_failures_are_told(monkeypatch):
    monkeypatch.setattr(bad_nodes, "PATIENCE_S", 0.2)
    told = []

    async def body(driver, skein, events):
        driver.start_workers(1)
        for number in range(3):
            await until(lambda n=number: len(skein.containers) > n)
            if number == 2:
                assert events.failed == []
                await until(lambda: told == [frozenset(), {"bad"}, frozenset()])
            skein.start(number, host="bad")
            await looked(skein)
            skein.end(number, "no Python")
        await until(lambda: events.failed)

    scenario(body, avoid=told.append)


def test_what_is_known_of_bad_nodes_is_kept_for_the_next_jobmanager():
    kept: dict[str, int] = {}
    told = []

    async def body(driver, skein, events):
        driver.start_workers(1)
        for number in range(2):
            await until(lambda n=number: len(skein.containers) > n)
            skein.start(number, host="bad")
            await looked(skein)
            skein.end(number, "no Python")
        await until(lambda: kept)

    async def next_one(driver, skein, events):
        await until(lambda: told)
        assert told == [{"bad"}]

    scenario(body, keep_nodes=kept.update)
    (until_ms,) = kept.values()
    assert 0 < until_ms / 1000 - time.time() <= bad_nodes.AVOID_S
    scenario(next_one, recall_nodes=lambda: kept, avoid=told.append)
    told.clear()
    past = {"bad": int(time.time() * 1000) - 1}
    scenario(
        lambda driver, skein, events: until(lambda: told == [frozenset()]), recall_nodes=lambda: past, avoid=told.append
    )


def test_a_store_that_does_not_answer_keeps_no_container_from_being_asked_for():
    def refuse(*words: object) -> dict[str, int]:
        raise ExternalError("no ZooKeeper")

    async def body(driver, skein, events):
        driver.start_workers(1)
        await until(lambda: skein.active() == 1)

    scenario(body, recall_nodes=refuse, keep_nodes=refuse)


def test_taskmanagers_leave_a_node_that_is_being_decommissioned_together_and_that_is_no_failure():
    nodes = [LeavingNodes()]

    async def body(driver, skein, events):
        for number, host in enumerate(("going", "going", "staying")):
            skein.start(number, host=host)
            driver.worker_registered(f"container_{number}")
        await settled(skein)
        assert events.left == []
        nodes[0] = LeavingNodes(frozenset({"going:1"}), (1023, 2048))
        await until(lambda: events.left)
        await settled(skein)
        told = ("container_0", "container_1"), "the node going is being decommissioned"
        assert events.left == [told], "they are told once"
        for number in (0, 1):
            skein.containers[number].state = "SUCCEEDED"
        await until(lambda: len(skein.containers) == 5)
        assert [name for name, _ in events.lost] == ["container_0", "container_1"]
        assert gave_up == []

    gave_up: list[str] = []
    scenario(
        body, fixed=3, containers=3, leaving_nodes=lambda: nodes[0], failures_max=0, give_up=gave_up.append
    )  # fmt: skip


def test_taskmanagers_stay_on_a_leaving_node_until_others_have_room_for_them_all(caplog):
    nodes = [LeavingNodes(frozenset({"going:1"}), (1024, 1000))]

    async def body(driver, skein, events):
        for number in (0, 1):
            skein.start(number, host="going")
            driver.worker_registered(f"container_{number}")
        await until(lambda: "have no room for its 2 TaskManagers of 1024 MB" in caplog.text)
        await settled(skein)
        assert events.left == []
        assert caplog.text.count("no room") == 1
        nodes[0] = LeavingNodes(frozenset({"going:1"}), (1024, 1024))
        await until(lambda: events.left)

    scenario(body, fixed=2, containers=2, leaving_nodes=lambda: nodes[0])


def test_what_yarn_says_of_a_lost_node_is_told_with_the_loss():
    async def body(driver, skein, events):
        skein.start(0, host="full")
        driver.worker_registered("container_0")
        await settled(skein)
        skein.end(0, "Container released on a *lost* node")
        await until(lambda: events.lost)
        assert events.lost[0][1] == (
            "YARN says: Container released on a *lost* node. Node full:9 is UNHEALTHY: no space."
        )

    scenario(body, fixed=1, containers=1, node_health=lambda host: f"Node {host}:9 is UNHEALTHY: no space.")


def test_preempted_containers_that_had_not_registered_say_nothing_of_the_next_one():
    async def body(driver, skein, events):
        driver.start_workers(1)
        for number in range(5):
            await until(lambda n=number: len(skein.containers) > n)
            skein.start(number)
            await looked(skein)
            skein.end(number, "Container preempted by scheduler")
        await until(lambda: len(skein.containers) > 5)
        assert events.failed == []

    scenario(body)


def test_skein_that_does_not_answer_for_a_while_is_asked_again():
    async def body(driver, skein, events):
        skein.broken = True
        driver.start_workers(1)
        await looked(skein)
        skein.broken = False
        await until(lambda: skein.active() == 1)

    scenario(body)


def test_the_last_words_of_a_container_come_without_the_node_managers_frame():
    text = "Container: c\n***\nLogType:t.out\nLogContents:\nfirst\nlast words\n\nEnd of LogType:t.out\n***\n"
    assert resource_driver._last_line(text) == "last words"
    assert resource_driver._last_line("plain\nlast\n") == "last"
    assert resource_driver._last_line("") == ""


# --- what must end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container_id", "attempt"),
    [
        ("container_1410901177871_0001_01_000005", 1),
        ("container_e17_1410901177871_0001_12_000005", 12),
        ("taskmanager_3", 0),
    ],
)
def test_the_attempt_of_a_container_is_in_its_id(container_id, attempt):
    assert attempt_of(container_id) == attempt


def test_containers_of_another_attempt_are_refused():
    driver = YarnResourceDriver(FakeSkein(), fixed=0, user="me", worker_mb=1024, attempt=2)
    assert "attempt 1" in driver.refuses("container_1_0001_01_000002")
    assert driver.refuses("container_1_0001_02_000002") == ""


def test_a_container_that_yarn_has_ended_is_refused_and_one_that_only_lost_its_connection_is_not():
    async def body(driver, skein, events):
        await until(lambda: skein.active() == 2)
        for number in (0, 1):
            skein.start(number)
            driver.worker_registered(f"container_{number}")
        diagnosing = asyncio.ensure_future(driver.diagnose("container_0"))
        await until(lambda: skein.active() == 3)  # another one is asked for at once
        assert driver.refuses("container_0") == ""
        driver.worker_registered("container_0")
        await until(lambda: skein.killed == ["taskmanager_2"])
        diagnosing.cancel()
        skein.end(1, "Container released on a *lost* node")
        await until(lambda: events.lost)
        assert "lost* node" in driver.refuses("container_1")

    scenario(body, fixed=2)


def test_the_application_ends_after_too_many_failures_of_containers_and_lost_nodes_do_not_count():
    async def run():
        skein, reasons = FakeSkein(), []
        driver = YarnResourceDriver(skein, fixed=1, user="u", worker_mb=1024, failures_max=2, give_up=reasons.append)
        await driver.start(Events())
        try:
            for number, message in enumerate(["exit 1", "Container preempted by scheduler", "exit 2", "exit 3"]):
                await until(lambda: len(skein.containers) > number)  # noqa: B023 - at once
                skein.start(number)
                driver.worker_registered(f"container_{number}")
                await settled(skein)
                assert reasons == []
                skein.end(number, message)
            await until(lambda: reasons)
        finally:
            await driver.stop()
        assert reasons[0].startswith("3 TaskManager containers have failed")
        assert "exit 3" in reasons[0]

    asyncio.run(run())
