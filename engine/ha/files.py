"""High availability on one machine, without ZooKeeper: contenders, leader and values are files below the storage dir.

Not for a network file system, and not for JobManagers on several machines: that is ``zookeeper``.

====================================  =================================================================================
``ha/contenders/<number>-<random>``   one per contender, in order of arrival: locked while its process lives, touched as
                                      a sign of life
``ha/of-<token>/tree-<n>``            all that is written down (``fenced_folder``)
``<tree>/.leader``                    JSON: where the leader is
``<tree>/<name>/.value``              the metadata
====================================  =================================================================================

The leader's death frees its contender's file at once: the next one is elected within ``POLL_S``. A leader that is
paused keeps its file locked, so it is also deposed when it has given no sign of life for the session time-out, by the
watcher's clock; when it wakes it finds its file gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, final

from engine.checkpoint.storage import check_writable
from engine.core.errors import ConfigError, EngineError, ExternalError
from engine.core.ids import FencingToken
from engine.core.options import HaOptions
from engine.ha.contracts import (
    VALUE_BYTES_MAX,
    ElectionListener,
    LeaderInformation,
    check_name,
    leader_from_json,
    leader_to_json,
)
from engine.ha.fenced_folder import FencedFolder, entries

__all__ = ["FileServices"]

logger = logging.getLogger(__name__)

POLL_S: Final = 0.1  # how often contenders look at each other: a few system calls
_CLOSE_S: Final = 1.5  # close() must be done within 2 s, also when the disk hangs
_VALUE: Final = ".value"
_LEADER: Final = ".leader"
_LEFTOVER_S: Final = 3600.0  # no writer takes so long


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def _as_external(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExternalError(f"{what}: {error}.") from error


@final
class FileElection:
    """All of it happens in a thread of its own, so that a busy event loop does not cost the leadership."""

    def __init__(self, folder: FencedFolder, session_timeout_s: float) -> None:
        self._folder = folder
        self._timeout_s = session_timeout_s
        self._listener: ElectionListener | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._done: asyncio.Event | None = None
        # --- of the thread
        self._name = ""
        self._descriptor = -1
        self._touched_s = 0.0
        #: contender → (its last sign of life, when we saw that first)
        self._seen: dict[str, tuple[int, float]] = {}
        # --- of the event loop
        self._token: FencingToken | None = None

    async def start(self, listener: ElectionListener) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        started: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="ha-election", daemon=True)
        self._thread.start()
        await started

    async def publish(self, information: LeaderInformation) -> None:
        def write() -> None:
            with _as_external("The leader's address cannot be written"):
                self._folder.replace(information.token, _LEADER, leader_to_json(information))

        await asyncio.to_thread(write)

    def stop(self) -> None:
        """Do not stand in the queue again. Thread-safe."""
        self._stop.set()

    async def close(self) -> None:
        self.stop()
        if self._thread is not None and self._done is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._done.wait()
        self._revoked("it has left the election")

    # --- on the event loop -------------------------------------------------------------------------------------------

    def _call(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(function, *args)

    def _granted(self, token: FencingToken) -> None:
        assert self._listener is not None
        if not self._stop.is_set():
            self._token = token
            self._listener.leadership_granted(token)

    def _revoked(self, reason: str) -> None:
        if self._token is not None and self._listener is not None:
            self._token = None
            self._listener.leadership_revoked(reason)

    def _failed(self, error: EngineError) -> None:
        assert self._listener is not None
        self._revoked(str(error))
        self._listener.election_failed(error)

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _run(self, started: asyncio.Future[None]) -> None:
        def answer(error: Exception | None) -> None:
            if not started.done():
                started.set_result(None) if error is None else started.set_exception(error)

        assert self._done is not None
        try:
            check_writable(self._folder.uri, HaOptions.STORAGE_DIR.key, FencingToken.generate())
            with _as_external(f"Cannot join the election in {self._folder.root}"):
                self._join()
        except Exception as error:
            self._call(answer, error)
            self._call(self._done.set)
            return
        self._call(answer, None)
        leads = False
        try:
            while not self._stop.is_set():
                leads = self._step(leads)
                self._stop.wait(POLL_S)
            self._leave()
        except (OSError, EngineError) as error:
            if self._stop.is_set():  # the cluster was cleaned up
                return
            # The folder is gone or the disk is broken: nothing that we do as the leader would last.
            self._call(self._failed, ConfigError(f"The election in {self._folder.root} cannot go on: {error}."))
        finally:
            self._call(self._done.set)

    def _step(self, leads: bool) -> bool:
        """Return whether we lead after this look at the others."""
        if not self._is_in_queue():
            if leads:
                self._call(self._revoked, f"it gave no sign of life for {self._timeout_s:g} s and was deposed")
            self._leave()
            self._join()
            leads = False
        now_s = time.monotonic()
        if now_s - self._touched_s > min(self._timeout_s / 5, 1.0):
            os.utime(self._descriptor)
            self._touched_s = now_s
        if leads:
            return True
        before = self._folder.last_token()
        if before is None:
            return False  # the cluster is being cleaned up
        # What follows is decided for the token before: it cannot be replaced by what was decided for an earlier one.
        ahead = [name for name in self._queue() if name < self._name]
        self._seen = {name: sign for name, sign in self._seen.items() if name in ahead}
        if any(not self._has_expired(name) for name in ahead) or not self._is_in_queue():
            return False
        for name in ahead:
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(self._folder.contenders, name))
        token = FencingToken.generate()
        if not self._folder.grant(before, token):
            return False
        self._call(self._granted, token)
        return True

    def _queue(self) -> list[str]:
        return sorted(name for name in os.listdir(self._folder.contenders) if not name.startswith("."))

    def _join(self) -> None:
        """Stand at the end of the queue."""
        self._folder.make()
        self._remove_leftovers()
        hidden = os.path.join(self._folder.contenders, f".{FencingToken.generate()[:12]}")
        self._descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(self._descriptor, f"pid {os.getpid()}\n".encode())
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)  # before others can see it
        # Two that come at the same time may get one number; then chance decides. Whoever was paused here for long
        # may stand before the leader, and is elected in its place.
        last = max((int(name.partition("-")[0]) for name in self._queue()), default=0)
        self._name = f"{last + 1:010}-{os.path.basename(hidden)[1:]}"
        os.rename(hidden, os.path.join(self._folder.contenders, self._name))
        self._touched_s = time.monotonic()

    def _remove_leftovers(self) -> None:
        """Remove what others left half-written, or half-removed, when they were killed."""
        for entry in os.scandir(self._folder.root):
            if entry.name.startswith((".partial-", ".trash-")):
                with contextlib.suppress(FileNotFoundError):  # a writer has renamed it meanwhile
                    if time.time() - entry.stat().st_mtime <= _LEFTOVER_S:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.remove(entry.path)

    def _leave(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self._folder.contenders, self._name))
        os.close(self._descriptor)

    def _is_in_queue(self) -> bool:
        return os.fstat(self._descriptor).st_nlink > 0

    def _has_expired(self, name: str) -> bool:
        """Return whether another contender's process has ended, or gave no sign of life for too long."""
        path = os.path.join(self._folder.contenders, name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True  # nobody holds it: its process is gone
        except BlockingIOError:
            touched_ns, now_s = os.fstat(descriptor).st_mtime_ns, time.monotonic()
            # Only our own clock counts: how long the same sign has been seen.
            if self._seen.get(name, (0, 0.0))[0] != touched_ns:
                self._seen[name] = (touched_ns, now_s)
            return now_s - self._seen[name][1] > self._timeout_s
        finally:
            os.close(descriptor)


@final
class FileRetrieval:
    def __init__(self, folder: FencedFolder) -> None:
        self._folder = folder

    async def leader(self, timeout_s: float, *, other_than: FencingToken | str = "") -> LeaderInformation:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    found = self._published()
                    if found is not None and found.token != other_than:
                        return found
                    await asyncio.sleep(POLL_S)
        raise ExternalError(
            f"No JobManager was elected within {timeout_s:g} s (high-availability.type: filesystem, "
            f"{self._folder.root})."
        )

    async def replaced(self, token: FencingToken) -> None:
        while True:
            found = self._published()
            if found is not None and found.token != token:
                return
            await asyncio.sleep(POLL_S)

    def _published(self) -> LeaderInformation | None:
        with _as_external(f"The leader's address in {self._folder.root} cannot be read"):
            content = self._folder.look(lambda folder: _read(os.path.join(folder, _LEADER)))
        return None if content is None else leader_from_json(content, f"{self._folder.root}/of-*/tree-*/{_LEADER}")

    async def close(self) -> None:
        pass


@final
class FileMetadata:
    def __init__(self, folder: FencedFolder) -> None:
        self._folder = folder
        #: Of this process's writes: one must not remove the empty folder that another is about to write to.
        self._lock = threading.Lock()

    def put(self, token: FencingToken, name: str, value: bytes) -> None:
        assert 0 < len(value) <= VALUE_BYTES_MAX, f"{name} has {len(value)} bytes"
        with _as_external(f"{name} cannot be written to {self._folder.root}"), self._lock:
            self._folder.replace(token, f"{check_name(name)}/{_VALUE}", value)

    def delete(self, token: FencingToken, name: str) -> None:
        with _as_external(f"{name} cannot be deleted from {self._folder.root}"), self._lock:
            self._folder.remove(token, check_name(name))

    def get(self, name: str) -> bytes | None:
        with _as_external(f"{name} cannot be read from {self._folder.root}"):
            return self._folder.look(lambda folder: _read(os.path.join(folder, *check_name(name).split("/"), _VALUE)))

    def list(self, name: str) -> list[str]:
        with _as_external(f"{name} cannot be listed in {self._folder.root}"):
            found = self._folder.look(lambda folder: entries(os.path.join(folder, *name.split("/"))))
        return sorted(entry for entry in found or () if not entry.startswith("."))


@final
class FileServices:
    """``session_timeout_s``: a leader without a sign of life for so long is deposed."""

    def __init__(self, storage_dir: str, *, session_timeout_s: float) -> None:
        self._folder = FencedFolder(storage_dir)
        self._session_timeout_s = session_timeout_s
        self._elections: list[FileElection] = []

    @property
    def storage_dir(self) -> str:
        return self._folder.uri

    def election(self) -> FileElection:
        self._elections.append(FileElection(self._folder, self._session_timeout_s))
        return self._elections[-1]

    def retrieval(self) -> FileRetrieval:
        return FileRetrieval(self._folder)

    def metadata(self) -> FileMetadata:
        return FileMetadata(self._folder)

    def clean_up(self, token: FencingToken) -> None:
        with _as_external(f"{self._folder.uri} cannot be cleaned up"):
            self._folder.end(token)
            for election in self._elections:
                election.stop()
            trash = f"{self._folder.root}.trash-{FencingToken.generate()}"
            os.rename(self._folder.root, trash)
            shutil.rmtree(trash, ignore_errors=True)
            shutil.rmtree(self._folder.uri.removeprefix("file://"), ignore_errors=True)

    async def close(self) -> None:
        for election in self._elections:
            await election.close()
