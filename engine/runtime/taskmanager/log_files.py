"""Reads and lists a process's log files; names never lead out of the log folder."""

from __future__ import annotations

import os

from engine.core.errors import InputError

__all__ = ["list_logs", "read_log"]


def _path_of(folder: str, name: str, main_log: str) -> str:
    if name == "":
        name = main_log
    elif name == "stdout":
        name = os.path.splitext(main_log)[0] + ".out" if main_log else ""
    path = os.path.realpath(os.path.join(folder, name))
    if not folder or not name or os.path.dirname(path) != os.path.realpath(folder) or not os.path.isfile(path):
        raise InputError(f"There is no log file {name!r} here.")
    return path


def read_log(folder: str, name: str, *, main_log: str, offset: int = 0, length_max: int = 8 << 20) -> tuple[bytes, int]:
    """Return (content, size of the file): from ``offset`` on, or the last ``length_max`` bytes when it is 0.

    ``name`` "" is the main log, "stdout" the ``.out`` beside it. Raises InputError for anything not in ``folder``.
    """
    path = _path_of(folder, name, main_log)
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        stream.seek(offset if offset else max(0, size - length_max))
        return stream.read(length_max), size


def list_logs(folder: str) -> tuple[tuple[str, int, int], ...]:
    """Return (name, size in bytes, mtime in ms) of the files in the folder, sorted by name."""
    if not folder or not os.path.isdir(folder):
        return ()
    entries = sorted((entry for entry in os.scandir(folder) if entry.is_file()), key=lambda entry: entry.name)
    return tuple((e.name, e.stat().st_size, e.stat().st_mtime_ns // 1_000_000) for e in entries)
