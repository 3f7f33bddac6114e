"""High availability through ZooKeeper. Connection and settings: ``zookeeper_client``;
values: ``zookeeper_metadata``.

Below ``<path root>/<cluster id>``:

====================================  =================================================================================
``leader/latch/<session>-…-<n>``      one per contender, ephemeral and numbered: the lowest number leads; who it is
``leader/fence``                      the token granted last
``leader/fence/<token>``              the only child: exists as long as no other token was granted
``leader/connection_info``            JSON: where the leader is
``metadata/…``                        the values
``fingerprint``                       JSON: which cluster this is, so that two with one id notice it
====================================  =================================================================================

A grant is one transaction: our latch still exists, the fence has not changed since we looked, its child is replaced.
Each write is one transaction with a check that ``leader/fence/<its token>`` exists. As tokens are never used again, a
deposed leader's write fails whenever it is sent, and whatever happens to the nodes meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any, Final, final

from kazoo.exceptions import (
    AuthFailedError,
    InvalidACLError,
    KazooException,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
)

from engine.checkpoint.storage import check_writable
from engine.core.errors import ConfigError, EngineError, ExternalError
from engine.core.fs import file_system_of
from engine.core.ids import FencingToken
from engine.core.options import HaOptions
from engine.ha.contracts import (
    Contender,
    ElectionListener,
    LeaderInformation,
    LeadershipLostError,
    leader_from_json,
    leader_to_json,
)
from engine.ha.zookeeper_client import LOST_CONNECTION, ConnectionState, ZooKeeperConnection, ZooKeeperSettings, post
from engine.ha.zookeeper_metadata import Nodes, ZooKeeperMetadata, failure_of

__all__ = ["ZooKeeperServices"]

logger = logging.getLogger(__name__)

_RETRY_S: Final = 0.2  # before the next look after a request of the election has failed
_LEAVE_S: Final = 0.5  # for removing our latch: the end of the session does it, too


def _number(latch: str) -> int:
    return int(latch.rpartition("-")[2])


@final
class ZooKeeperElection:
    """Level-triggered: whatever happens wakes ``_run``, which looks at the queue and does what is to be done."""

    def __init__(self, services: ZooKeeperServices) -> None:
        self._services = services
        self._connection = services.connection
        self._nodes = services.nodes
        self._listener: ElectionListener | None = None
        self._id = FencingToken.generate()[:12]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self._token: FencingToken | None = None
        #: name of the latch that we were granted with, and the transaction that made it: names come again
        self._latch: tuple[str, int] = ("", 0)
        #: the latch of ours whose neighbours were looked at
        self._checked: tuple[str, int] = ("", 0)
        #: counts how often we had to assume that others see us gone
        self._losses = 0
        self._loss_timer: asyncio.TimerHandle | None = None

    async def start(self, listener: ElectionListener) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._unsubscribe = self._connection.subscribe(self._state_changed)
        try:
            await self._connection.connected(self._connection.settings.connection_timeout_s)
            await asyncio.to_thread(self._services.prepare)
            with self._connection.translated():
                await self._own_latch()
        except BaseException:
            self._unsubscribe()
            raise
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def publish(self, information: LeaderInformation) -> None:
        write = self._services.metadata().write
        await asyncio.to_thread(write, information.token, self._nodes.leader, leader_to_json(information))

    async def close(self) -> None:
        self._unsubscribe()
        if self._loss_timer is not None:
            self._loss_timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
            with contextlib.suppress(TimeoutError, KazooException):
                async with asyncio.timeout(_LEAVE_S):
                    if self._connection.is_connected:
                        await self._remove_latches()
        self._revoke("it has left the election")

    # --- the connection ----------------------------------------------------------------------------------------------

    def _state_changed(self, state: ConnectionState) -> None:
        settings = self._connection.settings
        if self._loss_timer is not None:
            self._loss_timer.cancel()
            self._loss_timer = None
        if state == ConnectionState.LOST:
            self._lost("its session with ZooKeeper has ended")
        elif state == ConnectionState.SUSPENDED:
            if not settings.tolerates_suspended:
                self._lost("its connection to ZooKeeper is lost")
            else:
                # As long as there is no connection, nobody tells us that the session has expired.
                self._loss_timer = asyncio.get_running_loop().call_later(
                    settings.session_timeout_s,
                    self._lost,
                    f"its connection to ZooKeeper has been lost for {settings.session_timeout_s:g} s",
                )
        self._wake.set()

    def _lost(self, reason: str) -> None:
        self._losses += 1
        self._revoke(reason)
        self._wake.set()

    def _revoke(self, reason: str) -> None:
        if self._token is not None and self._listener is not None:
            logger.info("leadership revoked: %s", reason)
            self._token = None
            self._listener.leadership_revoked(reason)

    # --- the queue ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        assert self._listener is not None
        while True:
            self._wake.clear()
            try:
                if self._connection.is_connected:
                    await self._look()
                elif self._connection.is_refused:
                    raise AuthFailedError
            except (NoAuthError, AuthFailedError, InvalidACLError) as error:
                self._revoke("ZooKeeper refuses it")
                self._listener.election_failed(self._connection.refused(error))
                return
            except NoNodeError:  # somebody removed the cluster's nodes
                await asyncio.sleep(_RETRY_S)
                with contextlib.suppress(EngineError, KazooException):
                    await asyncio.to_thread(self._services.make_nodes)
                continue
            except EngineError as error:
                self._revoke("another one has replaced it")
                self._listener.election_failed(error)
                return
            except KazooException as error:
                logger.debug("election in %s: %r", self._nodes.latch, error)
                await asyncio.sleep(_RETRY_S)
                continue
            await self._wake.wait()

    async def _look(self) -> None:
        ask = self._connection.ask
        latch, made_by = await self._own_latch()
        if self._token is not None:
            if (latch, made_by) != self._latch:
                self._revoke("its place in the queue was removed")
            else:
                return
        losses = self._losses
        ahead = [name for name in await self._latches() if _number(name) < _number(latch)]
        if not ahead:
            await self._take(latch, made_by, losses)
        elif await ask("exists", f"{self._nodes.latch}/{ahead[-1]}", watch=self._woken):
            return  # its end wakes us
        else:
            self._wake.set()

    async def _take(self, latch: str, made_by: int, losses: int) -> None:
        """Grant us a new token, in one transaction that proves that we are the first."""
        assert self._listener is not None
        ask, fence = self._connection.ask, self._nodes.fence
        token = FencingToken.generate()
        earlier, stat = await ask("get_children", fence, include_data=True)
        transaction = self._connection.client.transaction()
        transaction.check(f"{self._nodes.latch}/{latch}", -1)
        transaction.set_data(fence, token.encode(), version=stat.version)
        for name in earlier:
            transaction.delete(f"{fence}/{name}")
        transaction.create(f"{fence}/{token}")
        failure = failure_of(await self._connection.answer(transaction.commit_async()))
        if isinstance(failure, NoAuthError):
            raise failure
        if failure is not None or losses != self._losses:
            self._wake.set()  # we lost our place meanwhile
            return
        self._token, self._latch = token, (latch, made_by)
        logger.info("leadership granted: token=%s latch=%s", token, latch)
        self._listener.leadership_granted(token)

    async def _own_latch(self) -> tuple[str, int]:
        """Return our latch in this session, made if need be, and the transaction that made it; its end wakes us."""
        ask, folder = self._connection.ask, self._nodes.latch
        session = self._connection.client.client_id
        if session is None:
            raise LOST_CONNECTION[0]()
        # A create whose answer was lost is found again by its name. One of an earlier session ends with that.
        prefix = f"{session[0]:016x}-{self._id}-"
        while True:
            own = [name for name in await self._latches() if name.startswith(prefix)]
            if not own:
                value = b"" if self._services.contender is None else self._services.contender.to_json()
                await ask("create", f"{folder}/{prefix}", value, ephemeral=True, sequence=True)
                continue
            stat = await ask("exists", f"{folder}/{own[0]}", watch=self._woken)
            if stat is not None:
                if (own[0], stat.czxid) != self._checked and self._services.contender is not None:
                    await self._replace_others(self._services.contender, own[0])
                    self._checked = own[0], stat.czxid
                return own[0], stat.czxid

    async def _replace_others(self, contender: Contender, own: str) -> None:
        """Remove the places of those whom we replace. Raises LeadershipLostError when we are replaced, ConfigError when
        the cluster belongs to another deployment."""
        for name in await self._latches():
            path = f"{self._nodes.latch}/{name}"
            try:
                value, _ = await self._connection.ask("get", path)
            except NoNodeError:
                continue
            if name == own or not value:
                continue
            other = json.loads(value)
            if other["deployment"] == contender.deployment:
                if other["attempt"] > contender.attempt:
                    raise LeadershipLostError(
                        f"Attempt {other['attempt']} of {contender.deployment} replaces this one."
                    )
            elif not await asyncio.to_thread(contender.has_ended, other["deployment"]):
                if _number(name) > _number(own):
                    continue  # it will notice us
                raise ConfigError(
                    f"{HaOptions.CLUSTER_ID.key}: {self._nodes.base} in {self._connection} belongs to "
                    f"{other['deployment']}, which runs; this is {contender.deployment}. Give one of them another "
                    f"{HaOptions.CLUSTER_ID.key} (-z). Nothing was changed."
                )
            logger.info("the place of attempt %d of %s is removed", other["attempt"], other["deployment"])
            with contextlib.suppress(NoNodeError):
                await self._connection.ask("delete", path)

    async def _latches(self) -> list[str]:
        found = await self._connection.ask("get_children", self._nodes.latch)
        return sorted(found, key=_number)

    async def _remove_latches(self) -> None:
        for name in await self._latches():
            if f"-{self._id}-" in name:
                with contextlib.suppress(NoNodeError):
                    path = f"{self._nodes.latch}/{name}"
                    await self._connection.ask("delete", path)

    def _woken(self, event: Any) -> None:
        """A watch, in kazoo's thread. One method, so that kazoo keeps it once however often it is given."""
        assert self._loop is not None
        post(self._loop, self._wake.set)


@final
class ZooKeeperRetrieval:
    def __init__(self, services: ZooKeeperServices) -> None:
        self._connection = services.connection
        self._path = services.nodes.leader
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    async def leader(self, timeout_s: float, *, other_than: FencingToken | str = "") -> LeaderInformation:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                return await self._published(other_than)
        if not self._connection.is_connected:
            raise self._connection.no_answer(timeout_s)
        raise ExternalError(f"No JobManager was elected within {timeout_s:g} s ({self._connection}, {self._path}).")

    async def replaced(self, token: FencingToken) -> None:
        await self._published(token)

    async def _published(self, other_than: str) -> LeaderInformation:
        """Wait for one without this token, through lost connections."""
        self._loop = asyncio.get_running_loop()
        unsubscribe = self._connection.subscribe(lambda state: self._notify())
        self._connection.begin()
        try:
            while True:
                changed = self._changed
                if self._connection.is_connected:
                    found = await self._read()
                    if found is not None and found.token != other_than:
                        return found
                else:
                    self._connection.check_open()
                await changed.wait()
        finally:
            unsubscribe()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _on_change(self, event: Any) -> None:
        """A watch, in kazoo's thread. One method, so that kazoo keeps it once however often it is given."""
        assert self._loop is not None
        post(self._loop, self._notify)

    async def _read(self) -> LeaderInformation | None:
        ask = self._connection.ask
        while True:
            try:
                content, _ = await ask("get", self._path, watch=self._on_change)
                return leader_from_json(content, self._path)
            except NoNodeError:
                if await ask("exists", self._path, watch=self._on_change) is None:
                    return None
            except (NoAuthError, AuthFailedError) as error:
                raise self._connection.refused(error) from error
            except LOST_CONNECTION:
                if not self._connection.is_connected:
                    return None  # woken when it is back
                await asyncio.sleep(_RETRY_S)

    async def close(self) -> None:
        pass


@final
class ZooKeeperServices:
    """``deployment``: kind of cluster, part of its fingerprint."""

    def __init__(
        self,
        settings: ZooKeeperSettings,
        storage_dir: str,
        *,
        deployment: str = "standalone",
        contender: Contender | None = None,
    ) -> None:
        self.contender = contender
        self.connection = ZooKeeperConnection(settings)
        self.nodes = Nodes(settings.path)
        self._storage_dir = storage_dir
        self._fingerprint = {"storageDir": storage_dir, "deployment": deployment}
        self._metadata = ZooKeeperMetadata(self.connection, self.nodes)
        self._elections: list[ZooKeeperElection] = []
        self._is_cleaned_up = False

    @property
    def storage_dir(self) -> str:
        return self._storage_dir

    def election(self) -> ZooKeeperElection:
        self._elections.append(ZooKeeperElection(self))
        return self._elections[-1]

    def retrieval(self) -> ZooKeeperRetrieval:
        return ZooKeeperRetrieval(self)

    def metadata(self) -> ZooKeeperMetadata:
        return self._metadata

    # --- beginning and end of a cluster ------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Look whether we may use this cluster's nodes and folder, and make them. Blocks. Raises ConfigError,
        ExternalError; then nothing was changed."""
        self._check_fingerprint()
        check_writable(self._storage_dir, HaOptions.STORAGE_DIR.key, FencingToken.generate())
        self.make_nodes()
        self._check_fingerprint()  # somebody else may have been quicker

    def make_nodes(self) -> None:
        for path in self.nodes.made():
            self.connection.call("ensure_path", path)
        content = json.dumps(self._fingerprint).encode()
        with contextlib.suppress(NodeExistsError):
            self.connection.call("create", self.nodes.fingerprint, content)

    def _check_fingerprint(self) -> None:
        try:
            content = self.connection.call("get", self.nodes.fingerprint)[0]
        except NoNodeError:
            return
        if content != json.dumps(self._fingerprint).encode():
            raise ConfigError(
                f"{HaOptions.CLUSTER_ID.key}: {self.nodes.base} in {self.connection} belongs to another cluster, with "
                f"{content.decode(errors='replace')}; this one has {json.dumps(self._fingerprint)}. Give one of them "
                f"another {HaOptions.CLUSTER_ID.key}; or delete {self.nodes.fingerprint} if that cluster is gone for "
                "good. Nothing was changed."
            )

    def clean_up(self, token: FencingToken) -> None:
        self._metadata.delete_nodes(token, [self.nodes.metadata, self.nodes.leader, self.nodes.fingerprint])
        self._is_cleaned_up = True
        file_system_of(self._storage_dir).delete(self._storage_dir, recursive=True)

    async def close(self) -> None:
        for election in self._elections:
            await election.close()
        if self._is_cleaned_up and self.connection.is_connected:
            with contextlib.suppress(TimeoutError, KazooException):
                async with asyncio.timeout(_LEAVE_S):
                    await self._remove_cluster()
        await self.connection.close()

    async def _remove_cluster(self) -> None:
        """Remove the cluster's empty nodes; those of others in the election keep them, as they are not empty then."""
        ask, nodes = self.connection.ask, self.nodes
        await ask("delete", nodes.latch)
        tokens = await ask("get_children", nodes.fence)
        leader = nodes.fence.rpartition("/")[0]
        for path in (*(f"{nodes.fence}/{token}" for token in tokens), nodes.fence, leader, nodes.base):
            await ask("delete", path)
