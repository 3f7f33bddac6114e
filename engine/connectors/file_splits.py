"""Which files a source reads, cut into byte ranges; the enumerator that finds and hands them out in the JobManager.

Reading is ``files``.
"""

from __future__ import annotations

import glob
import socket
import time
from collections import deque
from collections.abc import Collection
from typing import Final, final

from engine.connectors.source import Split, SplitEnumerator, without_assigned
from engine.core.errors import EngineError, InputError
from engine.core.fs import FileStatus, file_system_of, list_input_files
from engine.core.late_dataclass import dataclass
from engine.formats.compression import compression_of

__all__ = ["FileEnumerator", "FileSplit", "FilesToRead", "NothingYet", "split_size_of"]

SPLIT_BYTES_MIN: Final = 1 << 20
SPLIT_BYTES_MAX: Final = 64 << 20
#: Splits a reader should get on average, so that the last ones even out.
_SPLITS_PER_READER: Final = 4
#: Splits whose hosts are asked for; beyond, a listing would take longer than it saves.
_LOCATED_SPLITS_MAX: Final = 10_000


@final
@dataclass(frozen=True, slots=True)
class FileSplit:
    """The lines that begin in bytes [start, end) of a file; ``end`` None = all from ``start`` on, whatever its size.

    A file that cannot be entered midway (compressed, UTF-16…) has ``end`` None and is read from its beginning; then
    ``start`` counts the bytes of its text, decompressed and in UTF-8. After a checkpoint a line begins at ``start``.
    """

    split_id: str
    path: str
    start: int
    end: int | None


@final
@dataclass(frozen=True, slots=True)
class NothingYet:
    """Instead of a split, when monitoring: ask again after the interval."""

    split_id: str
    interval_ms: int


def split_size_of(total_bytes: int, parallelism: int) -> int:
    return max(SPLIT_BYTES_MIN, min(SPLIT_BYTES_MAX, -(-total_bytes // (_SPLITS_PER_READER * parallelism))))


def _cut(file: FileStatus, split_size: int, splittable: bool) -> list[FileSplit]:
    if not splittable or compression_of(file.path) is not None:
        return [FileSplit(file.path, file.path, 0, None)]
    size = file.size_bytes
    starts = range(0, size, split_size)
    return [FileSplit(f"{file.path}:{start}", file.path, start, min(start + split_size, size)) for start in starts]


@final
@dataclass(frozen=True, slots=True)
class FilesToRead:
    """State of the enumerator: what is not handed out yet, and when monitoring which paths are known."""

    splits: tuple[FileSplit, ...]
    seen: frozenset[str]


@final
class FileEnumerator(SplitEnumerator):
    """``splittable``: plain files may be cut at any byte. ``monitor_interval_ms``: look for new files for ever."""

    def __init__(self, paths: tuple[str, ...], *, splittable: bool, monitor_interval_ms: int | None) -> None:
        self._paths = paths
        self._splittable = splittable
        self._monitor_interval_ms = monitor_interval_ms
        self._seen: set[str] = set()
        #: not handed out yet, in order of the files; a dict because one from the middle is taken when it is local
        self._splits: dict[str, FileSplit] = {}
        self._ids_by_host: dict[str, deque[str]] = {}
        self._own_names: set[str] = set()
        self._listed_s = 0.0

    def start(self, parallelism: int) -> None:
        self._prepare(parallelism)
        self._find()

    def _prepare(self, parallelism: int) -> None:
        self._parallelism = parallelism
        self._own_names = {"localhost", "127.0.0.1", "::1", socket.gethostname().lower()}

    def snapshot(self) -> FilesToRead:
        monitors = self._monitor_interval_ms is not None
        return FilesToRead(tuple(self._splits.values()), frozenset(self._seen) if monitors else frozenset())

    def restore(self, state: object, parallelism: int) -> None:
        assert isinstance(state, FilesToRead), state
        self._prepare(parallelism)
        self._seen = set(state.seen)
        self._splits = {split.split_id: split for split in state.splits}
        self._locate()

    def assigned(self, splits: Collection[Split]) -> None:
        left = without_assigned(self._splits.values(), splits)
        self._splits = {split.split_id: split for split in left}

    def _find(self) -> None:
        listed = {file.path: file for path in self._paths for file in self._list(path)}
        files = [file for file in listed.values() if file.path not in self._seen]
        self._listed_s = time.monotonic()
        self._seen.update(file.path for file in files)
        size = split_size_of(sum(file.size_bytes for file in files), self._parallelism)
        for file in files:
            if file.size_bytes:
                self._splits.update((split.split_id, split) for split in _cut(file, size, self._splittable))
        self._locate()

    def _list(self, path: str) -> list[FileStatus]:
        if self._monitor_interval_ms is None or not glob.has_magic(path):
            return list_input_files(path)
        try:
            return list_input_files(path)
        except InputError:
            return []  # nothing matches yet

    def _locate(self) -> None:
        """Ask where the splits lie, unless the file system says of the first one that it does not know."""
        for number, split in enumerate(self._splits.values()):
            if number >= _LOCATED_SPLITS_MAX:
                return
            length = (split.end or split.start + 1) - split.start
            try:
                hosts = file_system_of(split.path).block_hosts(split.path, split.start, length)
            except EngineError:
                return  # only a hint is lost; reading says what is wrong
            if not hosts and number == 0:
                return
            for host in hosts:
                self._ids_by_host.setdefault(self._plain(host), deque()).append(split.split_id)

    def _plain(self, host: str) -> str:
        host = host.lower().rstrip(".")
        if host in self._own_names:
            return "localhost"
        # node7 and node7.example.org are one host; addresses stay whole.
        return host if host.replace(".", "").isdigit() or ":" in host else host.split(".")[0]

    def next_split(self, subtask_index: int, host: str) -> Split | None:
        interval_ms = self._monitor_interval_ms
        if not self._splits and interval_ms is not None:
            if (time.monotonic() - self._listed_s) * 1000 >= interval_ms:
                self._find()
            if not self._splits:
                return NothingYet("", interval_ms)
        local = self._ids_by_host.get(self._plain(host))
        while local:
            split = self._splits.pop(local.popleft(), None)
            if split is not None:
                return split
        if not self._splits:
            return None
        return self._splits.pop(next(iter(self._splits)))
