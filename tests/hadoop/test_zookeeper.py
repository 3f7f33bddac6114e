"""High availability through a real ZooKeeper: the contract, and what only ZooKeeper does: sessions, lost connections,
lost answers, servers that die, other clusters under the same id."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from engine.core import fs
from engine.core.config import Configuration
from engine.core.errors import ConfigError, ExternalError
from engine.core.ids import FencingToken
from engine.graph.job_graph import JobGraph, JobType
from engine.ha.contracts import HighAvailabilityServices, LeaderElection, LeadershipLostError
from engine.ha.job_store import FencedJobStore
from engine.ha.services import high_availability_services
from engine.ha.zookeeper import ZooKeeperServices
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs import HdfsFileSystem
from tests.hadoop.conftest import HadoopCluster, running_cluster
from tests.testing.ha_contract import (
    TIMEOUT_S,
    Contender,
    HaContract,
    HaProcessContract,
    address,
    cluster_of,
    run,
)
from tests.testing.patience import best_of, limit_once, patience
from tests.testing.zookeeper_proxy import CREATE, MULTI, ZooKeeperProxy
from tests.unit.checkpoint.jobs import JOB_ID
from tests.unit.checkpoint.test_storage import checkpoint_in

pytestmark = pytest.mark.hadoop

SESSION_TIMEOUT_S = 4.0  # a session must not end because the machine stands still for a moment


class ZooKeeperBackend:
    session_timeout_s = SESSION_TIMEOUT_S

    def __init__(self, quorum: str, folder: Path, **settings: str) -> None:
        self.quorum = quorum
        self.config: dict[str, str] = {
            "high-availability.type": "zookeeper",
            "high-availability.zookeeper.quorum": quorum,
            "high-availability.storageDir": f"file://{folder}",
            "high-availability.cluster-id": f"/test-{FencingToken.generate()[:8]}",
            "high-availability.zookeeper.client.session-timeout": f"{self.session_timeout_s} s",
            **{key.replace("_", "-"): value for key, value in settings.items()},
        }

    @property
    def base(self) -> str:
        return "/flink" + self.config["high-availability.cluster-id"]

    def services(self, **changed: str) -> ZooKeeperServices:
        services = high_availability_services(Configuration({**self.config, **changed}))
        assert isinstance(services, ZooKeeperServices)
        return services

    async def expire(self, services: HighAvailabilityServices, election: LeaderElection) -> None:
        """Close the session through another connection."""
        assert isinstance(services, ZooKeeperServices)
        session = services.connection.client.client_id
        if session is not None:
            await asyncio.to_thread(end_session, self.quorum, session)


def end_session(quorum: str, session: tuple[int, bytes]) -> None:
    for _ in range(20):  # the owner may be quicker to take its session back
        other = KazooClient(quorum, client_id=session)
        other.start(timeout=60)
        had_it = other.client_id is not None and other.client_id[0] == session[0]
        other.stop()
        other.close()
        if not had_it:
            return


@contextlib.contextmanager
def client_of(quorum: str) -> Iterator[KazooClient]:
    client = KazooClient(quorum)
    client.start(timeout=60)
    try:
        yield client
    finally:
        client.stop()
        client.close()


@pytest.fixture
def backend(zookeeper: HadoopCluster, tmp_path: Path) -> ZooKeeperBackend:
    return ZooKeeperBackend(zookeeper.zookeeper, tmp_path / "ha")


class TestZooKeeper(HaContract, HaProcessContract):
    num_many = 520  # more than one transaction
    killed_within_s = SESSION_TIMEOUT_S + 4


@contextlib.asynccontextmanager
async def behind_proxy(backend: ZooKeeperBackend) -> AsyncIterator[tuple[ZooKeeperProxy, ZooKeeperServices]]:
    proxy = await ZooKeeperProxy(backend.quorum).start()
    services = backend.services(**{"high-availability.zookeeper.quorum": f"127.0.0.1:{proxy.port}"})
    try:
        yield proxy, services
    finally:
        await services.close()
        await proxy.close()


async def leader_of(services: HighAvailabilityServices) -> tuple[Contender, FencingToken]:
    contender = Contender()
    await services.election().start(contender)
    return contender, await contender.granted()


async def until(holds: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.02)


# --- the connection --------------------------------------------------------------------------------------------------


def test_a_short_loss_of_the_connection_costs_nothing(backend: ZooKeeperBackend) -> None:
    async def play() -> None:
        async with behind_proxy(backend) as (proxy, services):
            contender, token = await leader_of(services)
            for _ in range(3):
                proxy.cut()
                await until(lambda: not services.connection.is_connected)
                await asyncio.to_thread(services.metadata().put, token, "x", b"through a loss")
            assert contender.story == ["granted"]

    run(play())


def test_without_tolerance_a_lost_connection_ends_the_leadership(backend: ZooKeeperBackend) -> None:
    backend.config["high-availability.zookeeper.client.tolerate-suspended-connections"] = "false"

    async def play() -> None:
        async with behind_proxy(backend) as (proxy, services):
            contender, token = await leader_of(services)
            proxy.cut()
            assert await contender.granted(times=2) != token
            assert contender.story == ["granted", "revoked", "granted"]

    run(play())


def test_a_leader_that_is_cut_off_steps_down_when_its_session_is_over(backend: ZooKeeperBackend) -> None:
    """Nobody tells it that the session has ended: the connection is silent."""

    async def play() -> None:
        async with behind_proxy(backend) as (proxy, services), cluster_of(backend) as cluster:
            contender, token = await leader_of(services)
            other = await cluster.join()
            proxy.mute()
            began_s = time.monotonic()
            await other.granted()
            await contender.until(lambda: contender.story == ["granted", "revoked"])
            # It notices the silence after two thirds of the session, and has to wait for a whole one.
            assert time.monotonic() - began_s < limit_once(2 * SESSION_TIMEOUT_S + 4)
            assert f"{SESSION_TIMEOUT_S:g} s" in contender.reason
            proxy.unmute()
            with pytest.raises(LeadershipLostError):
                await asyncio.to_thread(services.metadata().put, token, "x", b"late")
            await cluster.election(other).close()
            await contender.granted(times=2)

    run(play())


def test_closing_takes_less_than_two_seconds_when_nobody_answers(backend: ZooKeeperBackend) -> None:
    backend.config["high-availability.zookeeper.client.session-timeout"] = "30 s"  # kazoo waits a part of it

    async def play() -> float:
        backend.config["high-availability.cluster-id"] = f"/test-{FencingToken.generate()[:8]}"
        async with behind_proxy(backend) as (proxy, services):
            contender, token = await leader_of(services)
            retrieval = services.retrieval()
            waiting = asyncio.create_task(retrieval.replaced(token))
            await asyncio.sleep(0.1)
            proxy.mute()
            writing = asyncio.create_task(asyncio.to_thread(services.metadata().put, token, "x", b"never"))
            await asyncio.sleep(0.1)
            began_s = time.monotonic()
            await services.close()
            with pytest.raises(ExternalError):  # at once, too: a thread that waits would hold up the process's end
                await writing
            with pytest.raises(ExternalError):
                await waiting
            took_s = time.monotonic() - began_s
            assert contender.story == ["granted", "revoked"]
            return took_s

    best_of(lambda: run(play()), 2.5, "seconds until all is closed")


def test_a_write_that_was_on_its_way_when_another_was_elected_is_refused(backend: ZooKeeperBackend) -> None:
    """The session lives on, so only the fence refuses it."""

    async def play() -> None:
        async with behind_proxy(backend) as (proxy, services), cluster_of(backend) as cluster:
            contender, token = await leader_of(services)
            await asyncio.to_thread(services.metadata().put, token, "x", b"old")
            other = await cluster.join()
            proxy.hold(MULTI)
            late = asyncio.create_task(asyncio.to_thread(services.metadata().put, token, "x", b"late"))
            await proxy.held.wait()
            await asyncio.to_thread(remove_latch, backend, services)
            await cluster.put(other, "x", b"new", await other.granted())
            proxy.release()
            with pytest.raises(LeadershipLostError):
                await late
            assert await cluster.get(other, "x") == b"new"
            await contender.until(lambda: contender.story == ["granted", "revoked"])

    run(play())


def remove_latch(backend: ZooKeeperBackend, services: ZooKeeperServices) -> None:
    """As an operator would; the session lives on."""
    with client_of(backend.quorum) as client:
        for name in client.get_children(backend.base + "/leader/latch"):
            if f"-{services._elections[0]._id}-" in name:
                client.delete(f"{backend.base}/leader/latch/{name}")


def test_a_grant_that_was_on_its_way_when_another_was_elected_is_not_made(backend: ZooKeeperBackend) -> None:
    async def play() -> None:
        async with behind_proxy(backend) as (proxy, services), cluster_of(backend) as cluster:
            proxy.hold(MULTI)
            contender = Contender()
            await services.election().start(contender)
            await proxy.held.wait()
            other = await cluster.join()
            await asyncio.to_thread(remove_latch, backend, services)
            token = await other.granted()
            proxy.release()
            await asyncio.sleep(0.5)
            await cluster.put(other, "x", b"still the leader", token)
            assert (contender.story, other.story) == ([], ["granted"])

    run(play())


def test_a_place_in_the_queue_whose_answer_was_lost_is_found_again(backend: ZooKeeperBackend) -> None:
    async def play() -> None:
        async with behind_proxy(backend) as (proxy, services), cluster_of(backend) as cluster:
            await asyncio.to_thread(services.prepare)
            contender = Contender()
            with client_of(backend.quorum) as client:
                leader, _ = await cluster.leader()
                proxy.lose_answer_of(CREATE)
                with contextlib.suppress(ExternalError):
                    await services.election().start(contender)
                assert proxy.has_lost
                await until(lambda: services.connection.is_connected)
                if not services._elections[-1]._task:
                    await services._elections[-1].start(contender)
                await cluster.election(leader).close()
                await contender.granted()
                assert len(client.get_children(backend.base + "/leader/latch")) == 1

    run(play())


@pytest.mark.parametrize("when", ["grant", "write"])
def test_a_transaction_whose_answer_was_lost_is_done_once_more(backend: ZooKeeperBackend, when: str) -> None:
    async def play() -> None:
        async with behind_proxy(backend) as (proxy, services):
            if when == "grant":
                proxy.lose_answer_of(MULTI)
            _, token = await leader_of(services)
            if when == "write":
                proxy.lose_answer_of(MULTI)
            await asyncio.to_thread(services.metadata().put, token, "x", b"value")
            assert proxy.has_lost
            assert await asyncio.to_thread(services.metadata().get, "x") == b"value"
            with client_of(backend.quorum) as client:
                assert client.get_children(backend.base + "/leader/fence") == [token]

    run(play())


def test_a_retrieval_sees_the_next_leader_through_lost_connections(backend: ZooKeeperBackend) -> None:
    async def play() -> None:
        async with behind_proxy(backend) as (proxy, services), cluster_of(backend) as cluster:
            first, token = await cluster.leader()
            await cluster.election(first).publish(address(token))
            retrieval = services.retrieval()
            assert (await retrieval.leader(TIMEOUT_S)).token == token
            waiting = asyncio.create_task(retrieval.replaced(token))
            await asyncio.sleep(0.1)
            proxy.cut()
            await cluster.election(first).close()
            second, second_token = await cluster.leader()
            await cluster.election(second).publish(address(second_token))
            await asyncio.wait_for(waiting, TIMEOUT_S)
            assert (await retrieval.leader(TIMEOUT_S, other_than=token)).token == second_token

    run(play())


# --- servers that die ------------------------------------------------------------------------------------------------


def test_a_server_that_is_killed_and_comes_back_does_not_cost_the_leadership(
    zookeeper: HadoopCluster, tmp_path: Path
) -> None:
    backend = ZooKeeperBackend(zookeeper.zookeeper, tmp_path / "ha")
    backend.config["high-availability.zookeeper.client.session-timeout"] = "15 s"

    async def play() -> None:
        async with cluster_of(backend) as cluster:
            contender, token = await cluster.leader()
            await asyncio.to_thread(zookeeper.daemon, "kill9", "zk1")
            writing = asyncio.create_task(cluster.put(contender, "x", b"while it was away", token))
            retrieval = cluster.services().retrieval()
            waiting = asyncio.create_task(retrieval.leader(TIMEOUT_S))
            await asyncio.sleep(0.5)
            await asyncio.to_thread(zookeeper.daemon, "start", "zk1")
            await writing
            await cluster.election(contender).publish(address(token))
            assert (await waiting).token == token
            assert contender.story == ["granted"]

    run(play())


def test_without_any_server_the_leader_steps_down_ends_quickly_and_another_goes_on_later(
    zookeeper: HadoopCluster, backend: ZooKeeperBackend
) -> None:
    backend.config["high-availability.zookeeper.client.retry-wait"] = "300 ms"

    async def play() -> None:
        async with cluster_of(backend) as cluster:
            leader, token = await cluster.leader()
            other = await cluster.join()
            await cluster.put(leader, "x", b"kept", token)
            retrieval = cluster.services().retrieval()
            await asyncio.to_thread(zookeeper.daemon, "kill9", "zk1")
            try:
                await leader.until(lambda: leader.story == ["granted", "revoked"])
                with pytest.raises(ExternalError, match=backend.quorum):
                    await retrieval.leader(0.2)
                late = asyncio.create_task(cluster.get(other, "x"))
                await asyncio.sleep(0.1)
                began_s = time.monotonic()
                await cluster.services_of(leader).close()
                assert time.monotonic() - began_s < limit_once(2)
            finally:
                await asyncio.to_thread(zookeeper.daemon, "start", "zk1")
            assert await late == b"kept"
            await other.granted()

    run(play())


def test_a_quorum_survives_the_loss_of_its_leader(tmp_path: Path, hadoop_jars: None) -> None:
    with running_cluster("--only-zookeeper", "--zookeeper", "3") as zookeepers:
        backend = ZooKeeperBackend(zookeepers.zookeeper, tmp_path / "ha")
        backend.config["high-availability.zookeeper.client.session-timeout"] = "10 s"

        async def play() -> None:
            async with cluster_of(backend) as cluster:
                contender, token = await cluster.leader()
                for turn in range(2):
                    name = next(name for name in ("zk1", "zk2", "zk3") if mode_of(zookeepers, name) == "leader")
                    await asyncio.to_thread(zookeepers.daemon, "kill9", name)
                    began_s = time.monotonic()
                    await cluster.put(contender, "x", str(turn).encode(), token)
                    print(f"\nquorum leader killed: next write after {time.monotonic() - began_s:.2f} s")
                    await asyncio.to_thread(zookeepers.daemon, "start", name)
                assert await cluster.get(contender, "x") == b"1"
                assert contender.story == ["granted"]

        run(play())


def mode_of(zookeepers: HadoopCluster, name: str) -> str:
    client = KazooClient(f"127.0.0.1:{zookeepers.daemons()[name]['ports']['client']}")
    client.start(timeout=60)
    try:
        answer = client.command(b"srvr")
        return next(line.partition(": ")[2].strip() for line in answer.splitlines() if line.startswith("Mode: "))
    finally:
        client.stop()
        client.close()


# --- bad input -------------------------------------------------------------------------------------------------------


async def started(services: ZooKeeperServices) -> None:
    try:
        await services.election().start(Contender())
    finally:
        await services.close()


def test_a_quorum_that_does_not_answer_is_named(backend: ZooKeeperBackend) -> None:
    backend.config["high-availability.zookeeper.quorum"] = "127.0.0.1:1"
    backend.config["high-availability.zookeeper.client.connection-timeout"] = "500 ms"
    backend.config["high-availability.zookeeper.client.retry-wait"] = "100 ms"

    async def play() -> None:
        with pytest.raises(ExternalError, match=r"127\.0\.0\.1:1 .*quorum.* did not answer within 0\.5 s"):
            await started(backend.services())
        services = backend.services()
        with pytest.raises(ExternalError, match=r"127\.0\.0\.1:1"):
            await asyncio.to_thread(services.metadata().get, "x")
        with pytest.raises(ExternalError, match=r"127\.0\.0\.1:1 .* did not answer within 0\.2 s"):
            await services.retrieval().leader(0.2)
        began_s = time.monotonic()
        await services.close()
        assert time.monotonic() - began_s < limit_once(2)

    run(play())


def tree(client: KazooClient, path: str) -> dict[str, bytes]:
    found = {path: client.get(path)[0]}
    for child in client.get_children(path):
        found.update(tree(client, f"{path}/{child}"))
    return found


@pytest.mark.parametrize(
    "other", [{"high-availability.storageDir": "file://{}/other"}, {"yarn.application.id": "application_1_1"}]
)
def test_two_clusters_with_one_id_are_told_apart_and_nothing_is_changed(
    backend: ZooKeeperBackend, other: dict[str, str], tmp_path: Path
) -> None:
    other = {key: value.format(tmp_path) for key, value in other.items()}

    async def play() -> None:
        async with cluster_of(backend) as cluster:
            await cluster.leader()
            with client_of(backend.quorum) as client:
                before = tree(client, backend.base)
                with pytest.raises(ConfigError, match="belongs to another cluster") as caught:
                    await started(backend.services(**other))
                assert backend.config["high-availability.cluster-id"] in str(caught.value)
                assert tree(client, backend.base) == before
        assert not (tmp_path / "other").exists()

    run(play())


def test_a_storage_folder_that_cannot_be_written_is_named_before_anything_is_made(
    backend: ZooKeeperBackend, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")

    async def play() -> None:
        with pytest.raises(ConfigError, match=r"file/ha/test-.*high-availability\.storageDir.*cannot be written"):
            await started(backend.services(**{"high-availability.storageDir": f"file://{tmp_path}/file/ha"}))
        with client_of(backend.quorum) as client:
            assert client.exists(backend.base) is None
        await started(backend.services())  # the mistake can be mended

    run(play())


def test_only_who_has_the_credentials_gets_at_the_nodes_of_a_creator(backend: ZooKeeperBackend) -> None:
    own = {
        "high-availability.zookeeper.client.acl": "creator",
        "high-availability.zookeeper.client.authorization": "digest:'flink:a,word'",
        "high-availability.zookeeper.path.root": f"/root-{FencingToken.generate()[:8]}",
    }
    backend.config |= own
    wrong = {"high-availability.zookeeper.client.authorization": "digest:'flink:another'"}

    async def play() -> None:
        async with cluster_of(backend) as cluster:
            contender, token = await cluster.leader()
            await cluster.put(contender, "x", b"secret", token)
            await cluster.election(contender).publish(address(token))
            assert (await cluster.services().retrieval().leader(TIMEOUT_S)).token == token
            for election in (True, False):
                stranger = backend.services(**wrong)
                with pytest.raises(ConfigError, match="refuses access"):
                    if election:
                        await stranger.election().start(Contender())
                    else:
                        await asyncio.to_thread(stranger.metadata().get, "x")
                await stranger.close()
            stranger = backend.services(**wrong)
            with pytest.raises(ConfigError, match="refuses access"):
                await stranger.retrieval().leader(TIMEOUT_S)
            await stranger.close()

    run(play())


def test_credentials_of_a_kind_that_the_server_does_not_know_are_refused_at_once(backend: ZooKeeperBackend) -> None:
    backend.config["high-availability.zookeeper.client.authorization"] = "nonsense:word"

    async def play() -> None:
        began_s = time.monotonic()
        with pytest.raises(ConfigError, match="refuses access"):
            await started(backend.services())
        assert time.monotonic() - began_s < limit_once(10)
        services = backend.services()
        with pytest.raises(ConfigError, match="refuses access"):
            await asyncio.to_thread(services.metadata().get, "x")
        with pytest.raises(ConfigError, match="refuses access"):
            await services.retrieval().leader(TIMEOUT_S)
        await services.close()

    run(play())


# --- nodes that others remove, nodes that are left -------------------------------------------------------------------


def test_a_cluster_whose_nodes_are_removed_under_it_makes_them_again(backend: ZooKeeperBackend) -> None:
    async def play() -> None:
        async with cluster_of(backend) as cluster:
            contender, token = await cluster.leader()
            with client_of(backend.quorum) as client:
                client.delete(backend.base, recursive=True)
            assert await contender.granted(times=2) != token
            await cluster.put(contender, "x", b"again", contender.tokens[1])
            with pytest.raises(LeadershipLostError):
                await cluster.put(contender, "x", b"late", token)

    run(play())


def test_a_cluster_that_has_ended_leaves_no_node(backend: ZooKeeperBackend) -> None:
    async def play() -> None:
        async with cluster_of(backend) as cluster:
            contender, token = await cluster.leader()
            await cluster.put(contender, "jobs/x", b"value", token)
            await cluster.election(contender).publish(address(token))
            await asyncio.to_thread(cluster.services_of(contender).clean_up, token)
        with client_of(backend.quorum) as client:
            assert client.exists(backend.base) is None

    run(play())


# --- with HDFS --------------------------------------------------------------------------------------------------------


def test_jobs_files_and_checkpoints_on_hdfs_outlive_their_leader(
    hadoop: HadoopCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HADOOP_USER_NAME", hadoop.user)
    hdfs = HdfsFileSystem(HadoopConf.load({"HADOOP_CONF_DIR": str(hadoop.conf_dir)}), "webhdfs")
    monkeypatch.setitem(fs._instances, "hdfs", hdfs)
    backend = ZooKeeperBackend(hadoop.zookeeper, tmp_path)
    backend.config["high-availability.storageDir"] = f"hdfs:///ha-{FencingToken.generate()[:8]}"
    content = os.urandom(3_000_000)
    sha256, local = hashlib.sha256(content).hexdigest(), tmp_path / "local"
    local.write_bytes(content)
    job = JobGraph(JOB_ID, "job", JobType.STREAMING, (), (), {"a": "b"})
    inline = dataclasses.replace(checkpoint_in("", 4, str(tmp_path / "state")), folder="")

    def write(services: ZooKeeperServices, token: FencingToken) -> None:
        store = FencedJobStore(services.metadata(), services.storage_dir, token)
        store.put_job(job, {sha256: str(local)})
        store.put_job(job, {sha256: str(local)})
        store.put_checkpoint(dataclasses.replace(inline, checkpoint_id=3), 2)
        store.put_checkpoint(inline, 2)

    def read(services: ZooKeeperServices, token: FencingToken) -> None:
        store = FencedJobStore(services.metadata(), services.storage_dir, token)
        assert [store.job(job_id) for job_id in store.job_ids()] == [job]
        store.fetch_blob(sha256, str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == content
        stored = [status.path for status in hdfs.list(f"{services.storage_dir}/jobs/{JOB_ID}")]
        hdfs.delete(next(path for path in stored if "/checkpoint-4-" in path), recursive=True)
        found = store.checkpoints(JOB_ID)
        assert (found.counter, [one.checkpoint_id for one in found.checkpoints]) == (4, [3])
        store.remove_job(JOB_ID)
        assert hdfs.list(f"{services.storage_dir}/jobs") == []
        services.clean_up(token)
        assert hdfs.status(services.storage_dir) is None

    async def play() -> None:
        async with cluster_of(backend) as cluster:
            for use in (write, read):
                contender, token = await cluster.leader()
                services = cluster.services_of(contender)
                assert isinstance(services, ZooKeeperServices)
                await asyncio.to_thread(use, services, token)
                await services.close()

    run(play())


# --- figures ---------------------------------------------------------------------------------------------------------


def test_a_fenced_write_takes_milliseconds(backend: ZooKeeperBackend) -> None:
    async def play() -> None:
        async with cluster_of(backend) as cluster:
            contender, token = await cluster.leader()
            store, times = cluster.metadata(contender), []

            def write() -> None:
                for number in range(300):
                    began_s = time.perf_counter()
                    store.put(token, "jobs/x/checkpoints", b"%d" % number)
                    times.append(time.perf_counter() - began_s)

            await asyncio.to_thread(write)
            times.sort()
            print(f"\nfenced write: median {times[150] * 1000:.2f} ms, 99 % {times[297] * 1000:.2f} ms")
            assert times[150] < 0.1 * patience()

    run(play())
