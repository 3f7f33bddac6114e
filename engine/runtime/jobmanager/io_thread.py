"""One thread of a job for what blocks on a file system; calls happen in the order in which they were asked for."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias, TypeVar, final

from engine.core.errors import ExternalError

__all__ = ["IoThread", "Worker", "WorkerFactory", "WorkerThread"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ABANDONED: Final = "This JobManager does not lead any more; ask the one that does."


class Worker(Protocol):
    """Makes calls one after the other, in order."""

    def submit(self, call: Callable[[], object]) -> None: ...

    def close(self) -> None:
        """End when all that was submitted is done."""
        ...


#: name for logs → a worker
WorkerFactory: TypeAlias = Callable[[str], Worker]


@final
class WorkerThread:
    """A daemon: a file system that hangs must not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def submit(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def close(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


@final
class IoThread:
    """All methods are called on the event loop. The thread starts with the first call."""

    def __init__(self, name: str, new_worker: WorkerFactory = WorkerThread) -> None:
        self._name = name
        self._new_worker = new_worker
        self._loop = asyncio.get_running_loop()
        self._worker: Worker | None = None
        self._is_abandoned = False
        self._waiting: dict[asyncio.Future[Any], None] = {}

    def submit(self, call: Callable[[], T], done: Callable[[T | Exception], None] | None = None) -> None:
        """Run ``call`` in the thread, then ``done`` with its result, or the exception that it raised, on the loop."""
        if self._is_abandoned:
            return
        if self._worker is None:
            self._worker = self._new_worker(self._name)

        def work() -> None:
            result: T | Exception
            if self._is_abandoned:
                return
            try:
                result = call()
            except Exception as error:
                result = error
            if done is not None:
                self._on_loop(self._tell, done, result)
            elif isinstance(result, Exception):
                logger.warning("thread=%s: %s", self._name, result)

        self._worker.submit(work)

    async def run(self, call: Callable[[], T]) -> T:
        """Return the result of ``call``, which runs in the thread. Raises what it raises, ExternalError when the thread
        is abandoned."""
        answer: asyncio.Future[T] = self._loop.create_future()
        if self._is_abandoned:
            raise ExternalError(_ABANDONED)

        def done(result: T | Exception) -> None:
            if answer.done():
                return
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        self._waiting[answer] = None
        try:
            self.submit(call, done)
            return await answer
        finally:
            del self._waiting[answer]

    def close(self) -> None:
        """End the thread when it has done what it was asked for."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def abandon(self) -> None:
        """Make no further call, and tell nobody of the one under way."""
        self._is_abandoned = True
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(ExternalError(_ABANDONED))
        self.close()

    def _tell(self, done: Callable[[Any], None], result: Any) -> None:
        if not self._is_abandoned:
            done(result)

    def _on_loop(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: the process is ending
            logger.debug("thread=%s: the event loop has ended", self._name)
