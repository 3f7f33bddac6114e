"""A process's own temporary folder: removed at its end, and by the next process if it was killed.

The folder is locked while its process lives (``flock``: the kernel lets go of it with the process, and it works across
containers that share a disk). Folders of dead processes are swept when a new one is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from typing import Final, final

__all__ = ["PrivateFolder"]

_LOCK: Final = ".lock"
_REMOVALS_MAX: Final = 40
_REMOVAL_PAUSE_S: Final = 0.05


@final
class PrivateFolder:
    """``path`` exists from here to ``close``. ``prefix`` tells the sweep which siblings are of the same kind."""

    def __init__(self, prefix: str, parent: str | None) -> None:
        parent = parent or tempfile.gettempdir()
        os.makedirs(parent, exist_ok=True)
        _sweep(prefix, parent)
        self.path = tempfile.mkdtemp(prefix=prefix, dir=parent)
        unlocked = os.path.join(self.path, f"{_LOCK}.new")
        self._lock = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Only now is it seen by sweeps: one that is not locked yet must not look abandoned.
        os.rename(unlocked, os.path.join(self.path, _LOCK))

    @property
    def lock_fd(self) -> int:
        """A child process that inherits this keeps the folder from being swept while it lives."""
        return self._lock

    def close(self) -> None:
        """Remove the folder with all that is in it; may be called again."""
        for _ in range(_REMOVALS_MAX):
            shutil.rmtree(self.path, ignore_errors=True)
            if not os.path.lexists(self.path):
                break
            time.sleep(_REMOVAL_PAUSE_S)  # a child that is just ending has put something there meanwhile
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _sweep(prefix: str, parent: str) -> None:
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                _remove_if_abandoned(entry.path)


def _remove_if_abandoned(path: str) -> None:
    try:
        lock = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # another user's, or being made or removed just now
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    else:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
