"""An object of arrays in a file of the local disk, to come back as fast as it can be read.

The file is unlinked and mapped: it goes with the process. What is mapped is this process's own: the arrays of an object
that has been taken out lie in the file until they are changed, and only the pages that were changed are written back.
So what an object costs is what of it is looked at, and what is changed. Mapped pages are resident only while they are
used.

A forked child reads the file as it was at the fork, whatever the task does meanwhile: what was written before a fork is
never changed, but written anew, to another file.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import io
import mmap
import os
import pickle
import tempfile
from types import ModuleType
from typing import Any, Final, final

import numpy as np

from engine.core.errors import ExternalError

__all__ = ["ArrayFile", "copy_of"]

Array = np.ndarray[Any, Any]

#: Arrays begin at multiples of it; larger ones with a page, so that changing one changes no page of another.
_ALIGNMENT: Final = 64
_PAGE: Final = mmap.PAGESIZE
#: An array of more bytes of which most pages were changed is copied so many times when it is taken out: copying it
#: costs less than a fault for each of its pages.
_COPIED_MIN: Final = 1 << 16
_COPIED_TIMES: Final = 8
_ZEROS: Final = bytes(1 << 16)
#: How often this process has forked so far.
_forks: Final = [0]


def _count_fork() -> None:
    _forks[0] += 1


os.register_at_fork(before=_count_fork)


@final
class ArrayFile:
    """``content``: can be pickled, its arrays as buffers; ``folder``: on a local disk. Raises: ExternalError."""

    def __init__(self, content: Any, folder: str) -> None:
        self._folder = folder
        self._pickled, buffers = _pickled(content)
        self._places: list[tuple[int, int]] = []
        self._mapping: mmap.mmap | None = None
        self._fd = -1
        self._base = self._size = 0
        self._num_forks = _forks[0]
        #: by array, how many times more it is copied when it is taken out, as most of its pages were changed before
        self._copied = [0] * len(buffers)
        size = 0
        for buffer in buffers:
            num_bytes = buffer.raw().nbytes
            size += -size % (_PAGE if num_bytes >= _PAGE else _ALIGNMENT)
            self._places.append((size, num_bytes))
            size += num_bytes
        self._size = size
        if not size:
            return
        try:
            with tempfile.TemporaryFile(dir=folder, prefix="slots-", buffering=0) as file:
                file.truncate(size)
                for buffer, (at, _) in zip(buffers, self._places, strict=True):
                    _write_at(file.fileno(), _without_zeros(buffer.raw()), at)
                self._mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
                self._fd = os.dup(file.fileno())
        except OSError as error:
            raise self._error(error) from error
        self._base = np.frombuffer(self._mapping, np.uint8).ctypes.data

    def _error(self, error: OSError) -> ExternalError:
        return ExternalError(
            f"Cannot put state into a file in {self._folder}: {error.strerror}. State on columns that is more than its "
            "share of managed memory is kept there; leave room in io.tmp.dirs, or raise "
            "taskmanager.memory.managed.size."
        )

    def read(self) -> Any:
        """Return a new copy of what lies in the file; nobody has taken it out."""
        buffers = []
        for at, size in self._places:
            content = np.empty(size, np.uint8)
            if size:
                content[:] = np.frombuffer(self._mapping, np.uint8, size, at)  # type: ignore[arg-type]
            buffers.append(content)
        self._let_go()
        return pickle.loads(self._pickled, buffers=buffers)

    def take(self) -> Any:
        """Return what lies in the file, to be changed; ``put_back`` follows, or ``close``."""
        whole = np.frombuffer(self._mapping or b"", np.uint8)
        buffers = [whole[at : at + size] for at, size in self._places]
        for number, times in enumerate(self._copied):
            if times:
                buffers[number] = buffers[number].copy()
                self._copied[number] -= 1
        return pickle.loads(self._pickled, buffers=buffers)

    def put_back(self, content: Any) -> ArrayFile:
        """Put what has been taken out, and changed, into the file; return the file that has it, where that has to be
        another one. Nobody uses its arrays any more. Raises: ExternalError."""
        pickled, buffers = _pickled(content)
        replaced = self._replaced([np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers])
        if self._num_forks != _forks[0] or replaced is None:
            made = ArrayFile(content, self._folder)
            self.close()
            return made
        self._pickled = pickled
        if self._mapping is not None:
            try:
                self._write_changed(replaced)
            except OSError as error:
                raise self._error(error) from error
            self._let_go()
        return self

    def _replaced(self, arrays: list[Array]) -> dict[int, Array] | None:
        """Return those of the arrays that have been put in the place of others, as large as these, by number; None =
        others have other sizes, or their places."""
        if [array.size for array in arrays] != [size for _, size in self._places]:
            return None
        found = {}
        for number, (array, (at, size)) in enumerate(zip(arrays, self._places, strict=True)):
            offset = array.__array_interface__["data"][0] - self._base
            if size and offset != at:
                if -size < offset < self._size:
                    return None
                found[number] = array
        return found

    def _write_changed(self, replaced: dict[int, Array]) -> None:
        assert self._mapping is not None
        view, is_changed = memoryview(self._mapping), _changed_pages(self._base, self._size)
        edges = np.flatnonzero(np.diff(is_changed, prepend=False, append=False)) * _PAGE
        for begin, end in edges.reshape(-1, 2).tolist():
            _write_at(self._fd, view[begin:end], begin)
        for number, (at, size) in enumerate(self._places):
            if number in replaced:
                _write_at(self._fd, replaced[number].data, at)
            elif size > _COPIED_MIN:
                pages = is_changed[at // _PAGE : -(-(at + size) // _PAGE)]
                if 2 * np.count_nonzero(pages) > pages.size:
                    self._copied[number] = _COPIED_TIMES

    def _let_go(self) -> None:
        """The file's pages are the kernel's again."""
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def expect(self) -> None:
        """It will be read soon."""
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_WILLNEED)

    def close(self) -> None:
        """Give it back, at the latest with the last of its arrays that somebody has."""
        self._mapping = None
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        self.close()


def _write_at(fd: int, content: memoryview, at: int) -> None:
    while content:
        done = os.pwrite(fd, content, at)
        content, at = content[done:], at + done


def _without_zeros(content: memoryview) -> memoryview:
    """Leave out most of the zeros at the end: room for what is to come takes none on the disk."""
    end = len(content)
    while end:
        begin = max(0, end - len(_ZEROS))
        if content[begin:end].tobytes() != _ZEROS[: end - begin]:
            break
        end = begin
    return content[:end]


def copy_of(content: Any) -> Any:
    """Return a copy of what could lie in a file."""
    pickled, buffers = _pickled(content)
    return pickle.loads(pickled, buffers=[bytearray(buffer.raw()) for buffer in buffers])


# --- which pages have been changed ------------------------------------------------------------------------------------

#: Of an entry of the kernel's page map: in memory, or swapped out; and whether it is a page of the file.
_THERE: Final = np.uint64(3 << 62)
_OF_FILE: Final = np.uint64(1 << 61)


def _changed_pages(base: int, size: int) -> Array:
    """Return which pages of a private mapping at that address are no longer the file's, one by one."""
    return _told_pages(base, size) if _knows_pages() else np.ones(-(-size // _PAGE), np.bool_)


def _told_pages(base: int, size: int) -> Array:
    num_pages = -(-size // _PAGE)
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        entries = np.frombuffer(os.pread(fd, 8 * num_pages, base // _PAGE * 8), np.uint64)
    finally:
        os.close(fd)
    is_changed: Array = (entries & _THERE != 0) & (entries & _OF_FILE == 0)
    return is_changed


@functools.cache
def _knows_pages() -> bool:
    """Whether the kernel says which pages of a private mapping have been changed; tried once."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"\1" * 3 * _PAGE)
            file.flush()
            mapping = mmap.mmap(file.fileno(), 3 * _PAGE, access=mmap.ACCESS_COPY)
            pages = np.frombuffer(mapping, np.uint8)
            pages[_PAGE] = int(pages[0]) + 1
            return _told_pages(pages.ctypes.data, 3 * _PAGE).tolist() == [False, True, False]
    except OSError:
        return False


# --- pickles ----------------------------------------------------------------------------------------------------------


def _pickled(content: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    pickled, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    pickler = pickle.Pickler(pickled, 5, buffer_callback=buffers.append)
    pickler.dispatch_table = _KERNELS
    pickler.dump(content)
    return pickled.getvalue(), buffers


def _by_name(module: ModuleType) -> tuple[Any, tuple[str]]:
    return importlib.import_module, (module.__name__,)


#: Kernels are modules, which pickles know by name only when they are told.
_KERNELS: Final = {**copyreg.dispatch_table, ModuleType: _by_name}
