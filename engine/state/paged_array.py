"""Arrays that grow without being copied: one entry a slot, pages of the operating system behind it.

New entries are zero and take no memory until they are touched. Growing moves page tables, not content, so it does not
pause; and memory is private, so a forked child keeps the content as of the fork.
"""

from __future__ import annotations

import mmap
from typing import Any, Final, final

import numpy as np

__all__ = ["PagedArray", "zeros"]

#: Below this an array is an ordinary one, copied when it grows.
_PAGED_BYTES_MIN: Final = 1 << 20
#: Large arrays grow by an eighth: at most so much is address space only.
_GROWTH: Final = 8
#: From here on large pages are asked for: random access to many megabytes is bound by the TLB.
_HUGE_BYTES_MIN: Final = 4 << 20
#: Memory is given back in large pages.
_GIVEN_BACK: Final = 2 << 20


def _mapping(num_bytes: int) -> mmap.mmap:
    mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(mapping, num_bytes)
    return mapping


def _advise(mapping: mmap.mmap, num_bytes: int) -> None:
    if num_bytes >= _HUGE_BYTES_MIN and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without them


def zeros(size: int, dtype: Any) -> np.ndarray[Any, Any]:
    """Return an array of zeros that takes memory as it is touched."""
    num_bytes = size * np.dtype(dtype).itemsize
    if num_bytes < _PAGED_BYTES_MIN:
        return np.zeros(size, dtype)
    return np.frombuffer(_mapping(num_bytes), dtype, size)


@final
class PagedArray:
    """``array``: the entries there is room for; fetch it anew after each ``reserve``, keep no view of it."""

    def __init__(self, dtype: Any, width: int | None = None) -> None:
        """``width``: values an entry, in an array of (entries, width); None = one value, in a plain array."""
        self._dtype = np.dtype(dtype)
        self._is_flat = width is None
        self._width = width or 1
        self._mapping: mmap.mmap | None = None
        self.array: np.ndarray[Any, Any] = self._shaped(np.zeros(0, self._dtype))

    def _shaped(self, flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return flat if self._is_flat else flat.reshape(-1, self._width)

    @property
    def capacity(self) -> int:
        return int(self.array.shape[0])

    @property
    def nbytes(self) -> int:
        return int(self.array.nbytes)

    def reserve(self, size: int) -> None:
        """Make room for at least ``size`` entries; what is there stays."""
        if size <= self.capacity:
            return
        entry = self._dtype.itemsize * self._width
        wanted = max(size, self.capacity + max(64, self.capacity // _GROWTH))
        if wanted * entry < _PAGED_BYTES_MIN:
            wanted = max(size, 2 * self.capacity, 64)
        num_bytes = wanted * entry
        if num_bytes < _PAGED_BYTES_MIN:
            self._copy_into(np.zeros(wanted * self._width, self._dtype))
            return
        num_bytes = -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        mapping = self._mapping
        if mapping is not None:
            self.array = self._shaped(np.zeros(0, self._dtype))  # a mapping with views cannot be resized
            try:
                mapping.resize(num_bytes)
                _advise(mapping, num_bytes)
                self.array = self._view(mapping, num_bytes // entry)
                return
            except (BufferError, SystemError, OSError):
                # Somebody keeps a view, or the platform cannot: Linux does not where parts of the mapping have been
                # advised in different ways, as ``taskmanager/huge_pages`` may do.
                self.array = self._view(mapping, len(mapping) // entry)
        mapping = _mapping(num_bytes)
        self._copy_into(np.frombuffer(mapping, self._dtype, num_bytes // entry * self._width))
        self._mapping = mapping

    def give_back(self, begin: int, end: int) -> None:
        """Give the memory of these entries to the system, as far as it is of whole pages: they are zero then. Those
        before ``begin`` have been given back already. To free all of a large array at once takes 0.2 ms a MB."""
        entry = self._dtype.itemsize * self._width
        first, last = begin * entry // _GIVEN_BACK * _GIVEN_BACK, end * entry // _GIVEN_BACK * _GIVEN_BACK
        if self._mapping is not None and last > first:
            self._mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    def trim(self, size: int) -> None:
        """Keep but the first entries."""
        self.array = self.array[:size]

    def __getstate__(self) -> tuple[Any, ...]:
        return self._dtype, self._is_flat, self._width, self.array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """The array is that of the pickle's buffer: an ordinary one until it grows."""
        self._dtype, self._is_flat, self._width, self.array = state
        self._mapping = None

    def _view(self, mapping: mmap.mmap, entries: int) -> np.ndarray[Any, Any]:
        return self._shaped(np.frombuffer(mapping, self._dtype, entries * self._width))

    def _copy_into(self, flat: np.ndarray[Any, Any]) -> None:
        shaped = self._shaped(flat)
        shaped[: self.capacity] = self.array
        self.array = shaped
