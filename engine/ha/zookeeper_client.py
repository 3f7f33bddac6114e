"""One process's connection to ZooKeeper: settings, a session that comes back, requests with time-outs and retries.

kazoo's threads end here: state changes, watches and answers come to subscribers on their event loop. What is stored and
who leads: ``zookeeper``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, final

from kazoo import exceptions, security
from kazoo.client import KazooClient, TransactionRequest
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler
from kazoo.protocol.states import KazooState, KeeperState
from kazoo.retry import KazooRetry

from engine.core.config import Configuration
from engine.core.errors import ConfigError, EngineError, ExternalError
from engine.core.options import HaOptions

__all__ = ["LOST_CONNECTION", "ConnectionState", "ZooKeeperConnection", "ZooKeeperSettings", "zookeeper_settings"]

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.05  # how soon a blocking request sees that the connection is back, or that it was closed
_RECONNECT_S_MAX: Final = 1.0  # between two rounds over the servers
_CLOSE_S: Final = 1.3  # saying good-bye must not take longer: the server ends the session later by itself

ConnectionState = KazooState
#: What a request ends with when the connection or the session is lost: whether it took effect is not known.
LOST_CONNECTION: Final = (
    exceptions.ConnectionLoss,
    exceptions.SessionExpiredError,
    exceptions.OperationTimeoutError,
    exceptions.ConnectionClosedError,
    exceptions.SessionMovedError,
)
_REFUSED: Final = (exceptions.NoAuthError, exceptions.AuthFailedError, exceptions.InvalidACLError)


@dataclass(frozen=True, slots=True)
class ZooKeeperSettings:
    quorum: str  #: host:port,host:port
    path: str  #: node of the cluster: /flink/default
    session_timeout_s: float = 60.0
    connection_timeout_s: float = 15.0
    retry_wait_s: float = 5.0
    max_retry_attempts: int = 3
    is_acl_creator: bool = False
    authorization: tuple[tuple[str, str], ...] = field(default=(), repr=False)  #: (scheme, credential): secret
    tolerates_suspended: bool = True


def zookeeper_settings(config: Configuration, cluster_id: str) -> ZooKeeperSettings:
    """Return the settings of the cluster ``cluster_id`` (a relative path). Raises ConfigError."""
    quorum = ",".join(part.strip() for part in config.get(HaOptions.QUORUM).split(",") if part.strip())
    if not re.fullmatch(
        r"(\[[0-9a-fA-F:.]+\]|[^\s:,/\[\]]+)(:\d{1,5})?(,(\[[0-9a-fA-F:.]+\]|[^\s:,/\[\]]+)(:\d{1,5})?)*", quorum
    ):
        raise ConfigError(
            f"{HaOptions.QUORUM.key} is {config.get(HaOptions.QUORUM)!r}; expected ZooKeeper's servers, such as "
            "host1:2181,host2:2181."
        )
    authorization = _authorization(config.get(HaOptions.AUTHORIZATION))
    is_creator = config.get(HaOptions.ACL) == "creator"
    if is_creator and not authorization:
        raise ConfigError(
            f"{HaOptions.ACL.key} is creator but {HaOptions.AUTHORIZATION.key} is not set; expected credentials such "
            "as digest:'user:password', or else nobody could change the nodes."
        )
    root = "/".join(part for part in config.get(HaOptions.PATH_ROOT).split("/") if part)
    return ZooKeeperSettings(
        quorum=quorum,
        path=f"/{root}/{cluster_id}" if root else f"/{cluster_id}",
        session_timeout_s=config.get(HaOptions.SESSION_TIMEOUT) / 1000,
        connection_timeout_s=config.get(HaOptions.CONNECTION_TIMEOUT) / 1000,
        retry_wait_s=config.get(HaOptions.RETRY_WAIT) / 1000,
        max_retry_attempts=config.get(HaOptions.MAX_RETRY_ATTEMPTS),
        is_acl_creator=is_creator,
        authorization=authorization,
        tolerates_suspended=config.get(HaOptions.TOLERATE_SUSPENDED),
    )


def _authorization(text: str) -> tuple[tuple[str, str], ...]:
    """Return (scheme, credential) of ``digest:'user:word',…``."""
    entry = re.compile(r"\s*([A-Za-z0-9_-]+):(?:'([^']*)'|\"([^\"]*)\"|([^,'\"]+))\s*(?:,|$)")
    found, position = [], 0
    while position < len(text.strip()):
        match = entry.match(text.strip(), position)
        if match is None:  # without the text: it is a secret
            raise ConfigError(
                f"{HaOptions.AUTHORIZATION.key} cannot be understood; expected scheme:credential, such as "
                "digest:'user:password'."
            )
        found.append((match[1], next(group for group in match.groups()[1:] if group is not None)))
        position = match.end()
    return tuple(found)


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """kazoo waits a whole session for a server that does not answer at all; the others would be asked too late."""

    def __init__(self, connect_s: float) -> None:
        super().__init__()
        self._connect_s = connect_s

    def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["timeout"] = min(kwargs.get("timeout") or self._connect_s, self._connect_s)
        return super().create_connection(*args, **kwargs)


@final
class ZooKeeperConnection:
    """Thread-safe. Connects at the first request; from then on kazoo reconnects by itself, with new sessions if need
    be, until ``close``."""

    def __init__(self, settings: ZooKeeperSettings) -> None:
        self.settings = settings
        num_servers = settings.quorum.count(",") + 1
        quiet = logging.getLogger(f"{__name__}.kazoo")
        quiet.setLevel(logging.ERROR)  # it warns at each attempt to connect; changes are logged here, once
        handler = _Handler(min(settings.session_timeout_s, settings.connection_timeout_s) / num_servers)
        self.client = KazooClient(
            hosts=settings.quorum,
            timeout=settings.session_timeout_s,
            handler=handler,
            default_acl=security.CREATOR_ALL_ACL if settings.is_acl_creator else None,
            auth_data=list(settings.authorization),
            connection_retry=KazooRetry(
                max_tries=-1,
                delay=0.05,
                max_delay=min(settings.retry_wait_s, _RECONNECT_S_MAX),
                sleep_func=handler.sleep_func,
            ),
            logger=quiet,
        )
        self.client.add_listener(self._state_changed)
        self._lock = threading.Lock()
        self._is_started = False
        self.is_closed = False
        #: the server has refused the credentials: kazoo does not connect again
        self.is_refused = False
        self._subscribers: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[KazooState], None]]] = {}

    def __str__(self) -> str:
        return f"ZooKeeper at {self.settings.quorum} ({HaOptions.QUORUM.key})"

    # --- connection --------------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return bool(self.client.connected) and not self.is_closed

    def begin(self) -> None:
        """Start connecting, unless that was done. Does not wait."""
        with self._lock:
            if not self._is_started and not self.is_closed:
                self._is_started = True
                self.client.start_async()

    def subscribe(self, on_state: Callable[[KazooState], None]) -> Callable[[], None]:
        """Call ``on_state`` on the running event loop at each change of the connection; return how to end that."""
        key = object()
        self._subscribers[key] = (asyncio.get_running_loop(), on_state)
        return lambda: self._subscribers.pop(key, None) and None

    def _state_changed(self, state: KazooState) -> None:
        """In kazoo's thread."""
        if self.client.client_state == KeeperState.AUTH_FAILED:
            self.is_refused = True
        if not self.is_closed:
            level = logging.INFO if state == KazooState.CONNECTED else logging.WARNING
            logger.log(level, "%s: connection %s", self, state)
        self._tell(state)

    def _tell(self, state: KazooState) -> None:
        for loop, on_state in list(self._subscribers.values()):
            post(loop, on_state, state)

    async def connected(self, timeout_s: float) -> None:
        """Return when there is a connection. Raises ExternalError."""
        changed = asyncio.Event()
        unsubscribe = self.subscribe(lambda state: changed.set())
        self.begin()
        try:
            async with asyncio.timeout(timeout_s):
                while not self.client.connected:
                    self.check_open()
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            raise self.no_answer(timeout_s) from None
        finally:
            unsubscribe()

    def no_answer(self, timeout_s: float) -> ExternalError:
        return ExternalError(
            f"{self} did not answer within {timeout_s:g} s. Check that its servers run and can be reached from here."
        )

    async def close(self) -> None:
        """End the session and all threads, within about ``_CLOSE_S``. Never raises; may be called again."""
        with self._lock:
            was_open = self._is_started and not self.is_closed
            self.is_closed = True
        if not was_open:
            return
        self._tell(KazooState.LOST)  # kazoo would, but only once it has said good-bye to the server
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def stop() -> None:
            try:
                self.client.stop()
                self.client.close()
            except Exception as error:  # kazoo's, about threads that do not end in time
                logger.debug("%s: closing: %s", self, error)
            post(loop, done.set)

        threading.Thread(target=stop, name="zookeeper-close", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await done.wait()

    # --- requests ----------------------------------------------------------------------------------------------------

    def call(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Do one of kazoo's operations (``get``, ``create``…) and wait for its answer; again when the connection is
        lost, so it must be idempotent. Blocks.

        Raises: kazoo's exceptions that are answers (NoNodeError…), ConfigError when refused, ExternalError.
        """
        return self._call(lambda: getattr(self.client, operation + "_async")(*args, **kwargs))

    def commit(self, build: Callable[[TransactionRequest], None]) -> list[Any]:
        """As ``call``, for a transaction; return the result of each operation, exceptions among them."""

        def send() -> Any:
            transaction = self.client.transaction()
            build(transaction)
            return transaction.commit_async()

        results: list[Any] = self._call(send)
        return results

    def _call(self, send: Callable[[], Any]) -> Any:
        self.begin()
        settings = self.settings
        error: Exception | None = None
        with self.translated():
            for attempt in range(settings.max_retry_attempts + 1):
                # A connection that never was is waited for longer than one that comes back.
                wait_s = settings.retry_wait_s if attempt else settings.connection_timeout_s
                if not self._wait_connected(wait_s):
                    error = self.no_answer(wait_s)
                    continue
                try:
                    return self._answer(send())
                except LOST_CONNECTION as lost:
                    error = lost
            raise ExternalError(
                f"{self}: the connection was lost {settings.max_retry_attempts + 1} times; whether the last request "
                f"took effect is not known ({error!r})."
            ) from error

    def _wait_connected(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not self.client.connected:
            self.check_open()
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_POLL_S)
        return True

    def _answer(self, result: Any) -> Any:
        deadline_s = time.monotonic() + self.settings.connection_timeout_s
        while not result.wait(_POLL_S * 10):
            self.check_open()
            if time.monotonic() > deadline_s:
                raise self.no_answer(self.settings.connection_timeout_s)
        return result.get(block=False)

    def check_open(self) -> None:
        """Raises: ConfigError, ExternalError when there will be no connection any more."""
        if self.is_refused:
            raise self.refused(exceptions.AuthFailedError())
        if self.is_closed:
            raise ExternalError(f"{self}: the connection was closed.")

    async def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Do one of kazoo's operations, once. Raises kazoo's exceptions; OperationTimeoutError without an answer."""
        return await self.answer(getattr(self.client, operation + "_async")(*args, **kwargs))

    async def answer(self, result: Any) -> Any:
        """As ``ask``, for what one of kazoo's ``…_async`` has returned."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any) -> None:
            if not future.done():
                error = result.exception
                future.set_exception(error) if error is not None else future.set_result(result.get(block=False))

        result.rawlink(lambda result: post(loop, settle, result))
        try:
            async with asyncio.timeout(self.settings.connection_timeout_s):
                return await future
        except TimeoutError:
            raise exceptions.OperationTimeoutError("no answer in time") from None

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what kazoo raises into errors of ours, apart from answers such as NoNodeError."""
        try:
            yield
        except EngineError:
            raise
        except _REFUSED as error:
            raise self.refused(error) from error
        except (*LOST_CONNECTION, KazooTimeoutError) as error:
            raise ExternalError(f"{self}: the connection was lost ({error!r}).") from error

    def refused(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"{self} refuses access to {self.settings.path} ({type(error).__name__}); expected "
            f"{HaOptions.AUTHORIZATION.key} with the credentials that the nodes were made with, or another "
            f"{HaOptions.CLUSTER_ID.key}."
        )


def post(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any) -> None:
    """Call on the event loop, from another thread; a loop that is closed has nobody to be told."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)
