"""Temporary files of a test run in memory, where there is plenty: none has to outlive the machine, and a disk may take
milliseconds to make a folder or to make a file durable, which the tests do very often.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

__all__ = ["temporary_files_in_memory"]

SHARED_MEMORY: Final = Path("/dev/shm")
#: Short: sockets lie below, and their paths have at most 107 characters.
_PREFIX: Final = "te-"
#: Less is for the processes under test.
_FREE_MIN: Final = 8 << 30
_AVAILABLE_MIN: Final = 16 << 30


@contextlib.contextmanager
def temporary_files_in_memory() -> Iterator[None]:
    """Let ``tempfile`` and programs that heed TMPDIR, of this process and its children, use a folder in memory."""
    if "TMPDIR" in os.environ or not _is_fit():
        yield
        return
    _remove_left_over()
    folder = SHARED_MEMORY / f"{_PREFIX}{os.getpid()}"
    folder.mkdir(mode=0o700)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # it is looked up again
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        tempfile.tempdir = None
        shutil.rmtree(folder, ignore_errors=True)


def _is_fit() -> bool:
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return False
    if found.f_flag & os.ST_NOEXEC or not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return False  # scripts and libraries are run from there
    return found.f_bavail * found.f_frsize >= _FREE_MIN and psutil.virtual_memory().available >= _AVAILABLE_MIN


def _remove_left_over() -> None:
    """Of runs that were killed."""
    for folder in SHARED_MEMORY.glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX)
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
