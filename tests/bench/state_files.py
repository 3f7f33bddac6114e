"""How much state lies in files while a job runs: of a slot, whose files have no name, and of a folder.

``WatchedGenerator`` runs in the slots, as the function of a columnar source; ``FolderWatch`` beside a peer.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.core.metrics import Accumulator
from engine.operators.functions import MapFunction, RuntimeContext

__all__ = ["FolderWatch", "WatchedGenerator", "unnamed_bytes"]

_PERIOD_S = 0.25
_BLOCK = 512  #: of what the kernel tells, in bytes
_BATCHES = 32  #: between two looks of a slot


def unnamed_bytes() -> int:
    """Return how much of the disk those files take that have no name and that this process has open."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            path, status = os.readlink(f"/proc/self/fd/{number}"), os.stat(int(number))
        except OSError:
            continue  # it was that of the folder
        # Memory that is shared with other processes is no file.
        if stat.S_ISREG(status.st_mode) and not status.st_nlink and not path.startswith("/memfd:"):
            found[status.st_dev, status.st_ino] = status.st_blocks * _BLOCK
    return sum(found.values())


class Largest(Accumulator):
    """Of one subtask the largest value; of several their sum, as each is a slot of its own."""

    def __init__(self) -> None:
        self._value = 0

    def add(self, value: int) -> None:
        self._value = max(self._value, value)

    def get_local_value(self) -> int:
        return self._value

    def merge(self, other: Largest) -> None:
        self._value += other._value


class WatchedGenerator(MapFunction):  # type: ignore[misc]
    """Calls ``function``; the job's accumulator ``NAME`` is what lay in files at most, in bytes."""

    NAME = "state-in-files"

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._num_batches = 0
        self._largest = Largest()

    def open(self, runtime_context: RuntimeContext) -> None:
        runtime_context.add_accumulator(self.NAME, self._largest)

    def map(self, value: Any) -> Any:
        self._num_batches += 1
        if self._num_batches % _BATCHES == 0:
            self._look()
        return self._function(value)

    def close(self) -> None:
        self._look()

    def _look(self) -> None:
        self._largest.add(unnamed_bytes())


class FolderWatch:
    """While it is entered: ``bytes_max``, the most that lay in a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.bytes_max = 0

    def __enter__(self) -> FolderWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            self.bytes_max = max(self.bytes_max, _size_of(self._folder))


def _size_of(folder: Path) -> int:
    total = 0
    for inner, _, names in os.walk(folder):  # folders that go meanwhile, between two executions, are no error
        for name in names:
            try:
                total += os.path.getsize(os.path.join(inner, name))
            except FileNotFoundError:
                continue  # merged into another one meanwhile
    return total
