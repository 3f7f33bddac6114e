"""What every implementation of ``engine/ha/contracts`` must do, as test classes to be derived from.

``HaContract`` works within one process; ``HaProcessContract`` kills and pauses real ones. A derived class gives the
fixture ``backend``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from engine.core.errors import EngineError, ExternalError
from engine.core.ids import FencingToken
from engine.ha.contracts import (
    VALUE_BYTES_MAX,
    HighAvailabilityServices,
    LeaderElection,
    LeaderInformation,
    LeadershipLostError,
    MetadataStore,
)
from tests.testing.ha_contender import Register
from tests.testing.patience import best_of, limit_once

TIMEOUT_S = 60.0


class HaBackend(Protocol):
    #: what a process needs to take part, None where only this process can
    config: dict[str, str] | None
    session_timeout_s: float

    def services(self) -> HighAvailabilityServices:
        """Return what another process of the same cluster would have."""
        ...

    async def expire(self, services: HighAvailabilityServices, election: LeaderElection) -> None:
        """End the contender's session behind its back."""
        ...


class Contender:
    """Records what it is told."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.tokens: list[FencingToken] = []
        self.reason = ""
        self.error: EngineError | None = None
        self.leads = False
        self._changed = asyncio.Event()

    def leadership_granted(self, token: FencingToken) -> None:
        self.tokens.append(token)
        self._told("granted", leads=True)

    def leadership_revoked(self, reason: str) -> None:
        self.reason = reason
        self._told("revoked", leads=False)

    def election_failed(self, error: EngineError) -> None:
        self.error = error
        self._told("failed", leads=False)

    def _told(self, what: str, *, leads: bool) -> None:
        self.story.append(what)
        self.leads = leads
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not holds():
                await self._changed.wait()

    async def granted(self, times: int = 1) -> FencingToken:
        await self.until(lambda: len(self.tokens) >= times)
        return self.tokens[times - 1]


class Cluster:
    """Contenders and the services of each, for one test."""

    def __init__(self, backend: HaBackend) -> None:
        self.backend = backend
        self._services: list[HighAvailabilityServices] = []
        self._of: dict[Contender, tuple[HighAvailabilityServices, LeaderElection]] = {}

    def services(self) -> HighAvailabilityServices:
        self._services.append(self.backend.services())
        return self._services[-1]

    async def join(self) -> Contender:
        services, contender = self.services(), Contender()
        election = services.election()
        self._of[contender] = (services, election)
        await election.start(contender)
        return contender

    async def leader(self) -> tuple[Contender, FencingToken]:
        contender = await self.join()
        return contender, await contender.granted()

    def election(self, contender: Contender) -> LeaderElection:
        return self._of[contender][1]

    def metadata(self, contender: Contender) -> MetadataStore:
        return self._of[contender][0].metadata()

    def services_of(self, contender: Contender) -> HighAvailabilityServices:
        return self._of[contender][0]

    async def expire(self, contender: Contender) -> None:
        await self.backend.expire(*self._of[contender])

    async def put(self, contender: Contender, name: str, value: bytes, token: FencingToken) -> None:
        await asyncio.to_thread(self.metadata(contender).put, token, name, value)

    async def get(self, contender: Contender, name: str) -> bytes | None:
        return await asyncio.to_thread(self.metadata(contender).get, name)

    async def close(self) -> None:
        await asyncio.gather(*(services.close() for services in self._services))


@contextlib.asynccontextmanager
async def cluster_of(backend: HaBackend) -> AsyncIterator[Cluster]:
    cluster = Cluster(backend)
    try:
        yield cluster
    finally:
        await cluster.close()


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, 300))


def scenario(body: Callable[[Any, Cluster], Awaitable[None]]) -> Callable[[Any, HaBackend], None]:
    """Make a test of an async method that takes a Cluster."""

    def test(self: Any, backend: HaBackend) -> None:
        async def play() -> None:
            async with cluster_of(backend) as cluster:
                await body(self, cluster)

        run(play())

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


def address(token: FencingToken, port: int = 6123) -> LeaderInformation:
    return LeaderInformation(token, "jobmanager-host", port, "http://jobmanager-host:8081")


class HaContract:
    num_many = 20

    # --- election ----------------------------------------------------------------------------------------------------

    @scenario
    async def test_leadership_goes_round_in_order_of_arrival_with_tokens_of_its_own(self, cluster: Cluster) -> None:
        contenders = [await cluster.join() for _ in range(3)]
        for contender in contenders:
            await contender.granted()
            assert [one.leads for one in contenders].count(True) == 1
            await cluster.election(contender).close()
        assert [one.story for one in contenders] == [["granted", "revoked"]] * 3
        assert len({one.tokens[0] for one in contenders}) == 3

    @scenario
    async def test_a_leader_whose_session_ends_is_told_and_stands_at_the_end(self, cluster: Cluster) -> None:
        first, first_token = await cluster.leader()
        second = await cluster.join()
        await cluster.expire(first)
        second_token = await second.granted()
        await first.until(lambda: first.story == ["granted", "revoked"])
        assert first.reason
        await asyncio.sleep(0.3)
        await cluster.election(second).close()
        assert len({first_token, second_token, await first.granted(times=2)}) == 3

    @scenario
    async def test_a_lone_leader_whose_session_ends_is_elected_anew(self, cluster: Cluster) -> None:
        contender, token = await cluster.leader()
        await cluster.expire(contender)
        assert await contender.granted(times=2) != token
        assert contender.story == ["granted", "revoked", "granted"]
        with pytest.raises(LeadershipLostError):
            await cluster.put(contender, "x", b"old", token)
        await cluster.put(contender, "x", b"new", contender.tokens[1])

    @scenario
    async def test_a_contender_that_leaves_before_its_turn_holds_up_nobody(self, cluster: Cluster) -> None:
        first, second, third = [await cluster.join() for _ in range(3)]
        await first.granted()
        await cluster.election(second).close()
        await cluster.election(first).close()
        await third.granted()
        assert second.story == []

    @scenario
    async def test_closing_twice_and_before_the_start_is_harmless(self, cluster: Cluster) -> None:
        await cluster.services().election().close()
        contender, _ = await cluster.leader()
        for _ in range(2):
            began_s = time.monotonic()
            await cluster.election(contender).close()
            await cluster.services_of(contender).close()
            assert time.monotonic() - began_s < limit_once(2)
        assert contender.story == ["granted", "revoked"]

    # --- the leader's address ----------------------------------------------------------------------------------------

    @scenario
    async def test_what_the_leader_publishes_is_found(self, cluster: Cluster) -> None:
        contender, token = await cluster.leader()
        await cluster.election(contender).publish(address(token))
        assert await cluster.services().retrieval().leader(TIMEOUT_S) == address(token)
        await cluster.election(contender).publish(address(token, 7000))
        retrieval = cluster.services().retrieval()
        assert (await retrieval.leader(TIMEOUT_S)).rpc_port == 7000
        await retrieval.close()

    @scenario
    async def test_without_a_leader_the_wait_ends_and_says_for_what(self, cluster: Cluster) -> None:
        retrieval = cluster.services().retrieval()
        with pytest.raises(ExternalError, match=r"elected within 0\.3 s"):
            await retrieval.leader(0.3)
        contender, token = await cluster.leader()
        await cluster.election(contender).publish(address(token))
        with pytest.raises(ExternalError):
            await retrieval.leader(0.3, other_than=token)

    @scenario
    async def test_those_who_wait_see_the_next_leader(self, cluster: Cluster) -> None:
        first, first_token = await cluster.leader()
        second = await cluster.join()
        retrieval = cluster.services().retrieval()
        waiting = asyncio.create_task(retrieval.leader(TIMEOUT_S))
        await asyncio.sleep(0.2)
        await cluster.election(first).publish(address(first_token))
        assert (await waiting).token == first_token
        replaced = asyncio.create_task(retrieval.replaced(first_token))
        others = asyncio.create_task(retrieval.leader(TIMEOUT_S, other_than=first_token))
        await cluster.expire(first)
        second_token = await second.granted()
        await asyncio.sleep(0.3)
        assert not replaced.done()  # only gone
        await cluster.election(second).publish(address(second_token))
        await asyncio.wait_for(replaced, TIMEOUT_S)
        assert (await others) == address(second_token)

    @scenario
    async def test_a_deposed_leader_publishes_nothing(self, cluster: Cluster) -> None:
        first, first_token = await cluster.leader()
        second = await cluster.join()
        await cluster.expire(first)
        second_token = await second.granted()
        await cluster.election(second).publish(address(second_token))
        with pytest.raises(LeadershipLostError):
            await cluster.election(first).publish(address(first_token))
        assert (await cluster.services().retrieval().leader(TIMEOUT_S)).token == second_token

    # --- values ------------------------------------------------------------------------------------------------------

    @scenario
    async def test_values_are_found_by_everybody(self, cluster: Cluster) -> None:
        contender, token = await cluster.leader()
        other = cluster.services().metadata()
        values = {
            "a": b"1",
            "jobs/x/graph": b"\x00\xff",
            "jobs/x": b"of a name that others are below",
            "jobs/y/z": b"2",
        }
        for name, value in values.items():
            await cluster.put(contender, name, value, token)
        assert {name: await asyncio.to_thread(other.get, name) for name in values} == values
        assert await asyncio.to_thread(other.list, "") == ["a", "jobs"]
        assert await asyncio.to_thread(other.list, "jobs") == ["x", "y"]
        assert await asyncio.to_thread(other.list, "jobs/x") == ["graph"]
        for nothing in ("jobs", "b", "jobs/y", "jobs/x/graph/deeper"):
            assert await asyncio.to_thread(other.get, nothing) is None
        for nothing in ("a", "none", "jobs/none"):
            assert await asyncio.to_thread(other.list, nothing) == []
        large = os.urandom(VALUE_BYTES_MAX)
        await cluster.put(contender, "a", large, token)
        assert await cluster.get(contender, "a") == large

    @scenario
    async def test_deleting_takes_all_below_and_leaves_no_empty_names(self, cluster: Cluster) -> None:
        contender, token = await cluster.leader()
        store = cluster.metadata(contender)

        def play() -> None:
            for name in ("jobs/x", "jobs/x/graph", "jobs/x/deep/er", "jobs/xy/graph", "one/two/three"):
                store.put(token, name, b"value")
            store.delete(token, "jobs/x")
            assert store.list("jobs") == ["xy"]
            assert store.get("jobs/x") is None
            assert store.get("jobs/x/deep/er") is None
            store.delete(token, "one/two/three")
            assert store.list("") == ["jobs"]
            store.delete(token, "never/was")
            store.put(token, "one/two/three", b"again")
            assert store.get("one/two/three") == b"again"

        await asyncio.to_thread(play)

    @scenario
    async def test_many_values_go_at_once(self, cluster: Cluster) -> None:
        contender, token = await cluster.leader()
        store = cluster.metadata(contender)

        def play() -> None:
            for number in range(self.num_many):
                store.put(token, f"many/{number}", b"value")
            assert len(store.list("many")) == self.num_many
            store.delete(token, "many")
            assert store.list("") == []

        await asyncio.to_thread(play)

    @scenario
    async def test_a_deposed_leader_writes_nothing(self, cluster: Cluster) -> None:
        first, first_token = await cluster.leader()
        await cluster.put(first, "x", b"first's", first_token)
        second = await cluster.join()
        await cluster.expire(first)
        await second.granted()
        for contender in (first, second):  # whoever sends it
            store = cluster.metadata(contender)
            for write in (
                lambda store=store: store.put(first_token, "x", b"too late"),
                lambda store=store: store.put(first_token, "new", b"too late"),
                lambda store=store: store.delete(first_token, "x"),
                lambda store=store: store.delete(first_token, "none"),
                lambda contender=contender: cluster.services_of(contender).clean_up(first_token),
            ):
                with pytest.raises(LeadershipLostError):
                    await asyncio.to_thread(write)
        assert await cluster.get(second, "x") == b"first's"
        assert await cluster.get(second, "new") is None

    @scenario
    async def test_writes_under_way_when_another_is_elected_do_not_come_through_later(self, cluster: Cluster) -> None:
        for _ in range(5):
            first = await cluster.join()
            token = await first.granted()
            second = await cluster.join()
            store, refused = cluster.metadata(first), threading.Event()

            def write(
                store: MetadataStore = store, token: FencingToken = token, refused: threading.Event = refused
            ) -> None:
                deadline_s = time.monotonic() + TIMEOUT_S
                while time.monotonic() < deadline_s:
                    try:
                        store.put(token, "x", b"old")
                    except ExternalError:  # not known what became of it: the same again
                        continue
                    except LeadershipLostError:
                        refused.set()
                        return

            writers = [threading.Thread(target=write) for _ in range(3)]
            for writer in writers:
                writer.start()
            await asyncio.sleep(0.05)
            await cluster.expire(first)
            await cluster.put(second, "x", b"new", await second.granted())
            seen = {await cluster.get(second, "x") for _ in range(20)}
            for writer in writers:
                await asyncio.to_thread(writer.join)
            assert refused.is_set()
            assert seen | {await cluster.get(second, "x")} == {b"new"}
            await cluster.election(first).close()
            await cluster.election(second).close()

    @pytest.mark.parametrize("seed", range(3))
    def test_no_write_is_overtaken_by_one_of_an_earlier_leader(self, backend: HaBackend, seed: int) -> None:
        """Leaders write growing numbers, through sessions that end at random moments; see ``Register``."""

        async def play() -> None:
            rng, stop = random.Random(seed), threading.Event()
            async with cluster_of(backend) as cluster:
                contenders = [await cluster.join() for _ in range(3)]
                registers: list[Register] = []

                def lead(contender: Contender) -> None:
                    seen = 0
                    while not stop.is_set():
                        if len(contender.tokens) > seen:
                            seen = len(contender.tokens)
                            register = Register(cluster.metadata(contender), contender.tokens[-1])
                            registers.append(register)
                            register.write_until_refused(stop)
                        stop.wait(0.002)

                threads = [threading.Thread(target=lead, args=(contender,)) for contender in contenders]
                for thread in threads:
                    thread.start()
                try:
                    deadline_s = time.monotonic() + 2 * TIMEOUT_S
                    for number in itertools.count():
                        written = sum(register.num_written for register in registers)
                        if number >= 12 and written > 20 and len(registers) > 5:
                            break
                        assert time.monotonic() < deadline_s, (written, len(registers))
                        await asyncio.sleep(rng.uniform(0.0, 0.25))
                        leaders = [one for one in contenders if one.leads]
                        if leaders:
                            await cluster.expire(rng.choice(leaders))
                finally:
                    stop.set()
                    for thread in threads:
                        await asyncio.to_thread(thread.join)
                assert [register.violation for register in registers if register.violation] == [], f"seed {seed}"

        run(play())

    # --- the end -----------------------------------------------------------------------------------------------------

    @scenario
    async def test_cleaning_up_leaves_nothing(self, cluster: Cluster) -> None:
        contender, token = await cluster.leader()
        services = cluster.services_of(contender)
        folder = Path(services.storage_dir.removeprefix("file://"))
        (folder / "jobs" / "x").mkdir(parents=True)
        await cluster.put(contender, "jobs/x/graph", b"value", token)
        await asyncio.to_thread(services.clean_up, token)
        await asyncio.sleep(0.3)
        assert not folder.exists()  # nor comes again
        other = cluster.services().metadata()
        assert await asyncio.to_thread(other.get, "jobs/x/graph") is None
        assert await asyncio.to_thread(other.list, "") == []
        await services.close()

    @scenario
    async def test_a_cluster_that_was_cleaned_up_can_begin_again(self, cluster: Cluster) -> None:
        contender, token = await cluster.leader()
        await cluster.put(contender, "x", b"value", token)
        await asyncio.to_thread(cluster.services_of(contender).clean_up, token)
        await cluster.services_of(contender).close()
        again, token = await cluster.leader()
        assert await cluster.get(again, "x") is None
        await cluster.put(again, "x", b"new", token)
        assert await cluster.get(again, "x") == b"new"


# --- with processes ---------------------------------------------------------------------------------------------------


class ContenderProcess:
    """``ha_contender`` as a process, and what it has said."""

    def __init__(self, config: dict[str, str]) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.testing.ha_contender", json.dumps(config)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self.lines.append((time.monotonic(), line.strip()))

    def said(self, word: str) -> list[str]:
        return [line for _, line in self.lines if line.startswith(word)]

    def wait_for(self, word: str, times: int = 1) -> float:
        """Return when it said it for the n-th time."""
        deadline_s = time.monotonic() + 2 * TIMEOUT_S
        while time.monotonic() < deadline_s:
            found = [at_s for at_s, line in self.lines if line.startswith(word)]
            if len(found) >= times:
                return found[times - 1]
            assert self._popen.poll() is None, self.lines
            time.sleep(0.005)
        raise AssertionError(f"{word!r} was not said {times} times: {self.lines}")

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def end(self) -> None:
        for number in (signal.SIGCONT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                self._popen.send_signal(number)
        self._popen.wait()
        self._reader.join()
        assert self._popen.stdout is not None
        self._popen.stdout.close()


@contextlib.contextmanager
def processes(backend: HaBackend) -> Iterator[Callable[[], ContenderProcess]]:
    assert backend.config is not None
    started: list[ContenderProcess] = []

    def start() -> ContenderProcess:
        started.append(ContenderProcess(backend.config or {}))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.end()
    violations = [line for process in started for line in process.said("violation")]
    assert violations == [], [process.lines for process in started]


class HaProcessContract:
    #: from the leader's death to the next one's first write, on a busy machine
    killed_within_s: float

    def test_a_killed_leader_is_followed_in_time(self, backend: HaBackend) -> None:
        def followed_s() -> float:
            with processes(backend) as start:
                first = start()
                first.wait_for("wrote")
                second = start()
                second.wait_for("joined")
                killed_s = time.monotonic()
                first.send(signal.SIGKILL)
                return second.wait_for("wrote") - killed_s

        best_of(followed_s, self.killed_within_s, "seconds until another one writes")

    def test_a_paused_leader_is_deposed_and_changes_nothing_when_it_wakes(self, backend: HaBackend) -> None:
        with processes(backend) as start:
            first = start()
            first.wait_for("wrote")
            second = start()
            second.wait_for("joined")
            first.send(signal.SIGSTOP)
            second.wait_for("wrote")
            first.send(signal.SIGCONT)
            first.wait_for("refused")
            first.wait_for("revoked")
            second.send(signal.SIGKILL)
            first.wait_for("granted", times=2)

    @pytest.mark.parametrize("seed", range(2))
    def test_leaders_killed_and_paused_at_random_never_undo_what_a_later_one_wrote(
        self, backend: HaBackend, seed: int
    ) -> None:
        rng = random.Random(seed)
        with processes(backend) as start:
            alive = [start() for _ in range(3)]
            for process in alive:
                process.wait_for("joined")
            for _ in range(5):
                time.sleep(rng.uniform(0.2, 1.0))
                victim = max(
                    alive, key=lambda process: max([0.0, *(s for s, line in process.lines if "granted" in line)])
                )
                if rng.random() < 0.5:
                    victim.send(signal.SIGKILL)
                    alive.remove(victim)
                    alive.append(start())
                    continue
                victim.send(signal.SIGSTOP)
                time.sleep(backend.session_timeout_s + rng.uniform(0, 1.5))
                victim.send(signal.SIGCONT)
            fresh = start()
            fresh.wait_for("joined")
            for process in alive:
                process.send(signal.SIGKILL)
            fresh.wait_for("wrote")
