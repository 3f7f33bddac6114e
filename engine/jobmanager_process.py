"""The JobManager's process: alone, or as one contender of several of which one leads (``engine/ha``).

A Dispatcher and the server for TaskManagers live as long as one leadership; the web server lives as long as the process
and passes requests on to whoever leads. Not here: what a leader takes over (``dispatcher``), how it is elected
(``engine/ha``), the processes' mains (``cluster``).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, final

from engine.core.clock import SystemClock
from engine.core.config import Configuration
from engine.core.errors import ConfigError, EngineError, ExternalError
from engine.core.fs import configure_file_systems
from engine.core.ids import FencingToken
from engine.core.late_dataclass import dataclass
from engine.core.options import ClusterOptions, HaOptions, RestOptions
from engine.ha.contracts import (
    Contender,
    HighAvailabilityServices,
    LeaderElection,
    LeaderInformation,
    LeadershipLostError,
    MetadataStore,
)
from engine.ha.history import LeaderHistory, LeaderRecord
from engine.ha.job_store import FencedJobStore
from engine.ha.services import high_availability_services
from engine.process_setup import check_config, handled_signals, temp_dir
from engine.rpc.endpoint import GrpcServer
from engine.runtime.jobmanager.dispatcher import Dispatcher
from engine.runtime.jobmanager.io_thread import IoThread
from engine.runtime.jobmanager.resource_manager import ResourceDriver
from engine.runtime.taskmanager.private_folder import PrivateFolder

__all__ = ["JobManagerHandle", "LeaderPlace", "run_jobmanager", "serve_rest"]

logger = logging.getLogger("engine.cluster")

#: A leader that could not begin lets others try for so long before it contends again.
PAUSE_S: Final = 1.0
#: For a last word in the history of leaders; others wait for our place meanwhile.
LAST_WORD_S: Final = 0.5


@dataclass(frozen=True)
class LeaderPlace:
    """Where a JobManager runs, as far as the deployment knows: YARN."""

    container: str
    log_url: str
    former_end: str = ""  #: why the process before this one in the same container has ended, "" if there was none
    #: says why this one was told to end, "" when nobody knows
    why_told: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class JobManagerHandle:
    """A JobManager that is ready for clients and TaskManagers."""

    dispatcher: Dispatcher
    rpc_host: str
    rpc_port: int
    rest_address: str  #: "http://host:port", "" without REST
    rest_port: int  #: 0 without REST
    #: ends the process as SIGTERM does: with high availability, jobs go on under another JobManager
    stop: Callable[[], None] = lambda: None
    #: of this leadership; None without high availability
    metadata: MetadataStore | None = None
    token: FencingToken | None = None


async def serve_rest(app: Any, config: Configuration) -> Any:
    """Let an application of ``engine/rest`` listen where the configuration says; return its RestHandle."""
    from engine.rest.server import serve

    advertised = config.get(RestOptions.ADDRESS) or config.get(ClusterOptions.RPC_ADDRESS)
    return await serve(
        app,
        bind_address=config.get(RestOptions.BIND_ADDRESS) or advertised,
        port_range=config.get(RestOptions.BIND_PORT) or str(config.get(RestOptions.PORT)),
        advertised_address=advertised,
    )


async def run_jobmanager(
    config: Configuration,
    *,
    rest: bool = True,
    driver: ResourceDriver | None = None,
    ready: Callable[[JobManagerHandle], None] | None = None,
    log_dir: str | None = None,
    extras: dict[str, Any] | None = None,
    new_driver: Callable[[], ResourceDriver] | None = None,
    contender: Contender | None = None,
    ended: Callable[[], None] | None = None,
    place: LeaderPlace | None = None,
) -> None:
    """Run a JobManager until SIGTERM, SIGINT, SIGHUP or a request to shut the cluster down.

    ``ready`` is called when clients and TaskManagers can connect, before the driver is started; with high availability
    each time that this process begins to lead. Then ``new_driver`` makes the driver of each leadership, ``contender``
    says who stands for election, and ``ended`` is called, in a thread, when the cluster has ended for good: before what
    it has written down for its next leader is deleted. ``place`` is what the history of leaders tells of this process.
    Raises: ConfigError, ExternalError when it cannot start (port in use).
    """
    check_config(config)
    configure_file_systems(config.to_dict())
    services = high_availability_services(config, contender)
    if services is not None:
        _ports(config.get(HaOptions.JOBMANAGER_PORT))  # not only when it is elected
    folder = PrivateFolder("flink-jm-", config.get(RestOptions.TMP_DIR) or temp_dir(config))
    signalled = asyncio.Event()

    def on_signal(number: int) -> None:
        logger.info("%s received: the JobManager ends", signal.Signals(number).name)
        signalled.set()

    try:
        with handled_signals(asyncio.get_running_loop(), on_signal):
            parts = _Parts(
                config, folder.path, signalled, log_dir, extras, ready, new_driver or (lambda: driver), place=place
            )
            if services is None:
                await _run_alone(parts, rest=rest)
            else:
                await _Contending(parts, services, ended or (lambda: None)).run(rest=rest)
    finally:
        folder.close()


@dataclass(frozen=True)
class _Parts:
    """What a JobManager is made of, whoever leads."""

    config: Configuration
    folder: str
    signalled: asyncio.Event
    log_dir: str | None
    extras: dict[str, Any] | None
    ready: Callable[[JobManagerHandle], None] | None
    new_driver: Callable[[], ResourceDriver | None]
    place: LeaderPlace | None = None

    def dispatcher(
        self,
        job_store: FencedJobStore | None = None,
        history: LeaderHistory | None = None,
        *,
        tasks_may_run: bool = False,
    ) -> Dispatcher:
        return Dispatcher(
            self.config,
            clock=SystemClock(),
            driver=self.new_driver(),
            log_dir=self.log_dir,
            extras=self.extras,
            temp_dir=self.folder,
            job_store=job_store,
            history=history,
            tasks_may_run=tasks_may_run,
        )

    @property
    def rpc_host(self) -> str:
        return self.config.get(ClusterOptions.RPC_ADDRESS)

    @property
    def upload_dir(self) -> str:
        return self.config.get(RestOptions.UPLOAD_DIR) or os.path.join(self.folder, "web")

    @contextlib.asynccontextmanager
    async def server(self, token: FencingToken, dispatcher: Dispatcher, port_range: str) -> AsyncIterator[GrpcServer]:
        """Listen for TaskManagers while the block runs. Raises ExternalError when no port is free."""
        server = GrpcServer(token, dispatcher.resource_manager.handle_connection, dispatcher.blobs.path)
        try:
            await _listen(server, self.config.get(ClusterOptions.JM_BIND_HOST) or self.rpc_host, port_range)
            logger.info("JobManager listens for TaskManagers at %s:%d", self.rpc_host, server.port)
            yield server
        finally:
            await server.close()

    def tell_ready(
        self,
        dispatcher: Dispatcher,
        server: GrpcServer,
        web: Any,
        metadata: MetadataStore | None = None,
        token: FencingToken | None = None,
    ) -> None:
        if self.ready is not None:
            address, port = (web.address, web.port) if web else ("", 0)
            stop = self.signalled.set
            self.ready(JobManagerHandle(dispatcher, self.rpc_host, server.port, address, port, stop, metadata, token))


def _ports(port_range: str) -> list[int]:
    """Raises ConfigError."""
    from engine.rest.server import ports_of

    return ports_of(port_range, HaOptions.JOBMANAGER_PORT.key)


async def _listen(server: GrpcServer, host: str, port_range: str) -> None:
    ports = _ports(port_range)
    for port in ports:
        try:
            await server.start(host, port)
            return
        except ExternalError as error:
            if len(ports) == 1:
                raise
            if port == ports[-1]:
                raise ExternalError(
                    f"{HaOptions.JOBMANAGER_PORT.key} is {port_range}, but none of these ports is free on {host}: "
                    f"{error} Name a wider range, or 0 for any port."
                ) from error


async def _first_of(*events: asyncio.Event) -> None:
    """Return when one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


# --- one JobManager -------------------------------------------------------------------------------------------------


async def _run_alone(parts: _Parts, *, rest: bool) -> None:
    dispatcher = parts.dispatcher()
    stopping = dispatcher.shut_down_requested
    web: Any = None
    try:
        port = str(parts.config.get(ClusterOptions.RPC_PORT))
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(parts.server(FencingToken.generate(), dispatcher, port))
            if rest:
                from engine.rest.server import create_app

                web = await serve_rest(create_app(dispatcher, upload_dir=parts.upload_dir), parts.config)
                stack.push_async_callback(web.close)
                logger.info("Rest endpoint listening at %s", web.address)

            async def close() -> None:
                asked = stopping.is_set() and not parts.signalled.is_set()
                stopping.set()  # no more jobs
                await dispatcher.close(stop_workers=asked)

            stack.push_async_callback(close)
            parts.tell_ready(dispatcher, server, web)
            await dispatcher.start()
            await _first_of(stopping, parts.signalled)
    except BaseException:
        dispatcher.blobs.close()  # also when it never listened
        raise


def _warm_up() -> None:
    """Import what a leader needs first: a failover need not wait for it (0.2 s)."""
    import grpc.aio  # noqa: F401


async def _note_end(history: LeaderHistory, diary: IoThread, why: str) -> None:
    now_ms = SystemClock().now_ms()
    with contextlib.suppress(EngineError, TimeoutError):
        await asyncio.wait_for(diary.run(lambda: history.end(now_ms, why)), LAST_WORD_S)


# --- one of several -------------------------------------------------------------------------------------------------


class _End(enum.Enum):
    """How a leadership ended."""

    SIGNALLED = "this process was told to end"
    SHUT_DOWN = "the cluster was told to end"
    REVOKED = "another one may lead"
    FAILED = "it could not begin"


@final
class _Standing:
    """What the election says of this process (ElectionListener)."""

    def __init__(self) -> None:
        self.token: FencingToken | None = None
        self.failure: EngineError | None = None
        #: Set when something was said since it was cleared.
        self.changed = asyncio.Event()

    def leadership_granted(self, token: FencingToken) -> None:
        logger.info("this JobManager is elected, token %s", token[:8])
        self.token = token
        self.changed.set()

    def leadership_revoked(self, reason: str) -> None:
        logger.warning("this JobManager does not lead any more: %s", reason)
        self.token = None
        self.changed.set()

    def election_failed(self, error: EngineError) -> None:
        self.token, self.failure = None, error
        self.changed.set()


@final
class _Contending:
    def __init__(self, parts: _Parts, services: HighAvailabilityServices, ended: Callable[[], None]) -> None:
        self._parts = parts
        self._ended = ended
        self._services = services
        self._standing = _Standing()
        self._election: LeaderElection = services.election()
        self._rest: Any = None
        self._web: Any = None
        self._has_led = False
        self._former_end = parts.place.former_end if parts.place is not None else ""

    async def run(self, *, rest: bool) -> None:
        """Contend, lead when it is granted, stand by in between. Raises ConfigError, ExternalError, and what the
        election fails with for good."""
        try:
            if rest:
                from engine.rest.standby import StandbyRest

                self._rest = StandbyRest(self._services.retrieval(), upload_dir=self._parts.upload_dir)
                self._web = await serve_rest(self._rest, self._parts.config)
                logger.info("Rest endpoint listening at %s", self._web.address)
            await self._join()
            while not self._parts.signalled.is_set():
                token = self._standing.token
                if token is None:
                    if self._standing.failure is not None:
                        raise self._standing.failure
                    logger.info("this JobManager stands by")
                    _warm_up()
                    await self._wait_for_news()
                    continue
                end = await self._lead(token)
                logger.info("the leadership %s has ended: %s", token[:8], end.value)
                if end in (_End.SIGNALLED, _End.SHUT_DOWN):
                    break
                if end is _End.FAILED or self._standing.token is token:
                    await self._contend_anew()
        finally:
            await self._election.close()
            if self._web is not None:
                await self._web.close()
            await self._services.close()

    async def _join(self) -> None:
        """Stand for election; given up when this process is told to end, however long the service does not answer."""
        joining = asyncio.create_task(self._election.start(self._standing))
        signalled = asyncio.create_task(self._parts.signalled.wait())
        await asyncio.wait({joining, signalled}, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        if joining.done():
            joining.result()
        else:
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)

    async def _wait_for_news(self) -> None:
        await _first_of(self._standing.changed, self._parts.signalled)
        self._standing.changed.clear()

    async def _contend_anew(self) -> None:
        """Leave the election, so that others are elected, and join behind them."""
        await self._election.close()
        self._standing = _Standing()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._parts.signalled.wait(), PAUSE_S)
            return
        self._election = self._services.election()
        await self._join()

    async def _lead(self, token: FencingToken) -> _End:
        """Lead until that ends. Raises ExternalError when no port is free."""
        store = FencedJobStore(self._services.metadata(), self._services.storage_dir, token)
        history = LeaderHistory(self._services.metadata(), token)
        # TaskManagers that a deployment starts for its JobManager alone end with it.
        tasks_may_run = self._parts.place is None or bool(self._parts.place.former_end) or self._has_led
        self._has_led = True
        dispatcher = self._parts.dispatcher(store, history, tasks_may_run=tasks_may_run)
        diary = IoThread("leader-history")
        try:
            ports = self._parts.config.get(HaOptions.JOBMANAGER_PORT)
            async with self._parts.server(token, dispatcher, ports) as server:
                working = asyncio.create_task(self._work(token, dispatcher, server))
                noting = asyncio.create_task(self._note_leadership(history, diary, token, dispatcher, server.port))
                try:
                    end = await self._until_end(token, dispatcher, working)
                    if end is _End.SHUT_DOWN:
                        await self._shut_down(token, dispatcher)
                finally:
                    # First of all nothing is done any more; only then somebody else is let in, at once.
                    working.cancel()
                    await asyncio.gather(working, return_exceptions=True)
                    await dispatcher.suspend()
                    if self._rest is not None:
                        await self._rest.stand_by()
                    if self._parts.signalled.is_set():
                        if noting.done() and not dispatcher.leadership_lost.is_set():
                            place = self._parts.place
                            why = place.why_told() if place is not None else ""
                            await _note_end(history, diary, why or "It was told to end.")
                        await self._election.close()
                    noting.cancel()
                return end
        finally:
            diary.abandon()
            await dispatcher.suspend()

    async def _note_leadership(
        self, history: LeaderHistory, diary: IoThread, token: FencingToken, dispatcher: Dispatcher, port: int
    ) -> None:
        place = self._parts.place or LeaderPlace("", "")
        address = self._web.address if self._web is not None else f"{self._parts.rpc_host}:{port}"
        now_ms = SystemClock().now_ms()
        record = LeaderRecord(token, address, now_ms, container=place.container, log_url=place.log_url)
        former_end, self._former_end = self._former_end, ""
        try:
            dispatcher.leaders = await diary.run(lambda: history.begin(record, former_end))
        except EngineError as error:  # nothing but this history depends on it
            logger.warning("that this JobManager leads is not written down: %s", error)

    async def _work(self, token: FencingToken, dispatcher: Dispatcher, server: GrpcServer) -> None:
        """Take over, then tell everybody."""
        self._parts.tell_ready(dispatcher, server, self._web, self._services.metadata(), token)
        await dispatcher.start()
        rest_address = self._web.address if self._web is not None else ""
        information = LeaderInformation(token, self._parts.rpc_host, server.port, rest_address)
        if self._rest is not None:
            self._rest.lead(dispatcher)
        await self._election.publish(information)
        logger.info("this JobManager leads: %s:%d, %s", self._parts.rpc_host, server.port, rest_address or "no REST")

    async def _until_end(self, token: FencingToken, dispatcher: Dispatcher, working: asyncio.Task[None]) -> _End:
        events = (dispatcher.shut_down_requested, dispatcher.leadership_lost, self._parts.signalled)
        while True:
            if self._parts.signalled.is_set():
                return _End.SIGNALLED
            if self._standing.token is not token or dispatcher.leadership_lost.is_set():
                return _End.REVOKED
            if working.done():
                error = working.exception()
                if isinstance(error, LeadershipLostError):
                    return _End.REVOKED
                if isinstance(error, ConfigError):
                    raise error
                if error is not None:
                    logger.error("this JobManager cannot lead: %s", error, exc_info=error)
                    return _End.FAILED
                if dispatcher.shut_down_requested.is_set():
                    return _End.SHUT_DOWN
            heard = events if working.done() else events[1:]  # it ends in order, once it has begun
            news = asyncio.ensure_future(_first_of(*heard, self._standing.changed))
            waits = {news} if working.done() else {news, working}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            self._standing.changed.clear()

    async def _shut_down(self, token: FencingToken, dispatcher: Dispatcher) -> None:
        """The cluster ends for good: its jobs, its workers, and what a next leader would have needed."""
        await dispatcher.close(stop_workers=True)
        if not dispatcher.leadership_lost.is_set() and self._standing.token is token:
            try:
                await asyncio.to_thread(self._ended)
                await asyncio.get_running_loop().run_in_executor(None, self._services.clean_up, token)
            except EngineError as error:
                logger.warning("what the cluster has written down for its next leader is left behind: %s", error)
