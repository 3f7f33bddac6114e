"""Lists of hidden files that a savepoint names: beside them, so that they outlive attempts, jobs and JobManagers.

A savepoint commits nothing, and the job goes on as if it had not been. So what is hidden and unknown to the job's last
checkpoint may still be wanted by whoever restores the savepoint, wherever that has been moved to. Before a savepoint
becomes durable its hidden files are listed here, and clean-up leaves those that are listed alone.
Not here: who writes and publishes them (``file_commits``, ``staged_files``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final, final

from engine.connectors.part_writers import make_durable
from engine.core.errors import ExternalError
from engine.core.fs import FileSystem
from engine.core.plain_pickle import dump_plain, load_plain

__all__ = ["KeptFiles", "file_name", "is_unfinished_list", "remove_outdated_lists"]

_KIND: Final = "kept"
_UNFINISHED: Final = "-new"


def file_name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


@final
class KeptFiles:
    """The lists of one sink of one job, in ``folder``. ``mark``: in the names of its files and in nobody else's."""

    def __init__(self, fs: FileSystem, folder: str, mark: str, attempt_number: int) -> None:
        self._fs = fs
        self._folder = folder
        self._mark = mark
        self._attempt_number = attempt_number
        #: of this attempt: checkpoint id → path of its list
        self._lists: dict[int, str] = {}

    def keep(self, checkpoint_id: int, paths: Iterable[str]) -> None:
        """List files, durably."""
        paths = tuple(paths)
        if not paths:
            return
        target = f"{self._folder}/.savepoint-{checkpoint_id}.{_KIND}.{self._mark}-{self._attempt_number}"
        with contextlib.closing(self._fs.open_write(target + _UNFINISHED, overwrite=True)) as stream:
            stream.write(dump_plain(paths))
            make_durable(stream)
        self._fs.rename(target + _UNFINISHED, target, overwrite=True)
        self._lists[checkpoint_id] = target

    def forget(self, checkpoint_id: int) -> None:
        """There is no such savepoint."""
        path = self._lists.pop(checkpoint_id, None)
        if path is not None:
            self._fs.delete(path)

    def forget_until(self, checkpoint_id: int) -> None:
        """All that this attempt's savepoints up to this number name has been published."""
        for listed in [listed for listed in self._lists if listed <= checkpoint_id]:
            self.forget(listed)

    def names(self) -> set[str]:
        """Return the names of all listed files, also of former attempts, and of the lists themselves."""
        kept: set[str] = set()
        for path in _lists_in(self._fs, self._folder):
            if f".{_KIND}.{self._mark}-" in path:
                kept.add(file_name(path))
                kept.update(map(file_name, _listed(self._fs, path)))
        return kept


def is_unfinished_list(name: str, mark: str) -> bool:
    """Whether it was begun when the process died: its savepoint has not become durable."""
    return name.startswith(".savepoint-") and f".{_KIND}.{mark}-" in name and name.endswith(_UNFINISHED)


def remove_outdated_lists(fs: FileSystem, folder: str) -> None:
    """Remove lists, of whatever job, none of whose files is there any more: they were published."""
    for path in _lists_in(fs, folder):
        if not any(fs.status(listed) is not None for listed in _listed(fs, path)):
            fs.delete(path)


def _lists_in(fs: FileSystem, folder: str) -> list[str]:
    if fs.status(folder) is None:
        return []
    names = (file_name(child.path) for child in fs.list(folder) if not child.is_dir)
    found = (name for name in names if name.startswith(".savepoint-") and f".{_KIND}." in name)
    return [f"{folder}/{name}" for name in found if not name.endswith(_UNFINISHED)]


def _listed(fs: FileSystem, path: str) -> tuple[str, ...]:
    with contextlib.closing(fs.open_read(path)) as stream:
        content = stream.read()
    try:
        paths: tuple[str, ...] = load_plain(content)
    except Exception as error:
        raise ExternalError(
            f"{path} is damaged. It lists hidden files that a savepoint names: delete it if that is not needed."
        ) from error
    return paths
