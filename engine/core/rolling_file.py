"""A file that is written at its end and rolled at a bound: ``x.log`` becomes ``x.log.1``, that one ``x.log.2``, …

Any number of processes may write to one file. Logs are written by ``process_setup.RollingHandler``; what a daemon, its
slots and users' functions print goes through a process of its own, which is this file as a program:

    python -I -S rolling_file.py PATH SIZE_BYTES_MAX BACKUPS_MAX < what is printed

It ends when nobody can print any more. Imports nothing of the engine: as a program it is to start at once and be small.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
from typing import Final, final

__all__ = ["RollingFile", "main"]

_CHUNK_BYTES: Final = 1 << 16
#: The rest of a line that has been printed in part is waited for so long before the part is written.
_LINE_S: Final = 0.2
_INPUT: Final = 0


@final
class RollingFile:
    """``path`` and at most ``backups_max`` older files, none larger than ``size_bytes_max``. Not thread-safe."""

    def __init__(self, path: str, *, size_bytes_max: int, backups_max: int) -> None:
        """Nothing is opened yet. Backups beyond ``backups_max``, of a time when more were kept, are deleted."""
        assert size_bytes_max >= 1
        assert backups_max >= 1
        self.path = os.path.abspath(path)
        self._size_max = size_bytes_max
        self._backups_max = backups_max
        self._descriptor = -1
        self._delete_old()

    def write(self, content: bytes) -> None:
        """Append whole lines. They stay together in one file, but for what is larger than a file may be.

        Raises: OSError when it cannot be written, such as a full disk; a part of it may be there.
        """
        while content:
            end = len(content)
            if end > self._size_max:
                end = content.rfind(b"\n", 0, self._size_max) + 1 or self._size_max
            part, content = content[:end], content[end:]
            self._lock()
            try:
                while self._size() + len(part) > self._size_max:
                    self._roll()
                    self._lock()  # somebody else may have filled the new one already
                while part:
                    part = part[os.write(self._descriptor, part) :]
            finally:
                self._unlock()

    def close(self) -> None:
        """May be called again; ``write`` opens the file anew."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _lock(self) -> None:
        """Hold the lock of the file that has the name now.

        Who rolls holds the lock of the file with the name, and gives the name away last: whoever makes the next one
        finds all backups in their places.
        """
        while True:
            if self._descriptor < 0:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._descriptor = os.open(self.path, flags, 0o644)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self.path), os.fstat(self._descriptor)):
                    return
            self.close()

    def _unlock(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _roll(self) -> None:
        for number in range(self._backups_max - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self.path}.{number}", f"{self.path}.{number + 1}")
        os.rename(self.path, f"{self.path}.1")

    def _delete_old(self) -> None:
        folder, name = os.path.split(self.path)
        with contextlib.suppress(OSError):
            for other in os.listdir(folder):
                number = other.removeprefix(name + ".")
                if number != other and number.isdigit() and int(number) > self._backups_max:
                    os.unlink(os.path.join(folder, other))


def main(arguments: list[str] | None = None) -> int:
    """Write standard input into a rolling file until its end. Arguments: path, size in bytes, number of backups."""
    path, size, backups = sys.argv[1:] if arguments is None else arguments
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the daemon; its last words are still to come
    file = RollingFile(path, size_bytes_max=int(size), backups_max=int(backups))
    lost = 0
    begun = b""  # of a line
    while True:
        if begun and not select.select([_INPUT], [], [], _LINE_S)[0]:
            whole, begun, is_end = begun, b"", False
        else:
            read = os.read(_INPUT, _CHUNK_BYTES)
            at = len(begun) + read.rfind(b"\n") + 1 if b"\n" in read else 0
            text, is_end = begun + read, not read
            if is_end or len(text) > _CHUNK_BYTES:
                at = len(text)
            whole, begun = text[:at], text[at:]
        try:
            if lost and whole:
                file.write(b"[%d bytes could not be written here]\n" % lost)
                lost = 0
            file.write(whole)
        except OSError:  # a full disk: whoever prints must not wait for it, nor fail
            lost += len(whole)
        if is_end:
            return 0


if __name__ == "__main__":
    sys.exit(main())
