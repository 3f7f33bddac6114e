"""An object of arrays in a file of the local disk, to come back as fast as it can be read.

The file is unlinked and mapped: it goes with the process, and a forked child reads it as it was at the fork, whatever
the task does meanwhile. A mapped file is resident only while it is read.
"""

from __future__ import annotations

import importlib
import io
import mmap
import pickle
import tempfile
from types import ModuleType
from typing import Any, Final, final

import numpy as np

from engine.core.errors import ExternalError

__all__ = ["ArrayFile", "copy_of"]

#: Arrays begin at multiples of it.
_ALIGNMENT: Final = 64


@final
class ArrayFile:
    """``content``: can be pickled, its arrays as buffers; ``folder``: on a local disk. Raises: ExternalError."""

    def __init__(self, content: Any, folder: str) -> None:
        pickled, buffers = _pickled(content)
        self._pickled = pickled
        self._places: list[tuple[int, int]] = []
        self._mapping: mmap.mmap | None = None
        try:
            with tempfile.TemporaryFile(dir=folder, prefix="slots-") as file:
                at = 0
                for buffer in buffers:
                    raw = buffer.raw()
                    at += file.write(bytes(-at % _ALIGNMENT))
                    self._places.append((at, raw.nbytes))
                    at += file.write(raw)
                file.flush()
                if at:
                    self._mapping = mmap.mmap(file.fileno(), at, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except OSError as error:
            raise ExternalError(
                f"Cannot put state into a file in {folder}: {error.strerror}. State on columns that is more than its "
                "share of managed memory is kept there; leave room in io.tmp.dirs, or raise "
                "taskmanager.memory.managed.size."
            ) from error

    def read(self) -> Any:
        """Return a new copy of what lies in the file."""
        buffers = []
        for at, size in self._places:
            content = np.empty(size, np.uint8)
            if size:
                content[:] = np.frombuffer(self._mapping, np.uint8, size, at)  # type: ignore[arg-type]
            buffers.append(content)
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)  # the file's pages are the kernel's again
        return pickle.loads(self._pickled, buffers=buffers)

    def expect(self) -> None:
        """It will be read soon."""
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_WILLNEED)

    def close(self) -> None:
        """Give it back: what was in it has been read, or is forgotten."""
        if self._mapping is not None:
            self._mapping.close()
        self._mapping = None


def copy_of(content: Any) -> Any:
    """Return a copy of what could lie in a file."""
    pickled, buffers = _pickled(content)
    return pickle.loads(pickled, buffers=[bytearray(buffer.raw()) for buffer in buffers])


def _pickled(content: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    pickled, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(pickled, 5, buffer_callback=buffers.append).dump(content)
    return pickled.getvalue(), buffers


class _Pickler(pickle.Pickler):
    """Kernels are modules, which pickles know by name only when they are told."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ModuleType):
            return importlib.import_module, (obj.__name__,)
        return NotImplemented
