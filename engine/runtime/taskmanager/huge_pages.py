"""Keeps a slot's memory in 2 MB pages, so that a fork copies hundreds of entries instead of hundreds of thousands.

A fork of 1 GB in pages of 4 kB takes 30 ms of CPU time on a virtual machine, in huge pages 1 to 2 ms. Objects above 512
bytes come from the C library, which asks for huge pages when it is told at the start of the process (``MALLOC_HUGE``).
Smaller ones lie in Python's own pieces of 1 MB, which the kernel does not make huge by itself, and what task or child
write to while both live falls apart into small pages. So a thread merges them, a little at a time, while no child
lives. Linux 6.1 or newer; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from typing import Final, final

__all__ = ["MALLOC_HUGE", "HugePages", "with_huge_malloc"]

#: Environment of a process whose C library is to ask for huge pages; glibc 2.35 or newer, others do not look at it.
MALLOC_HUGE: Final = "GLIBC_TUNABLES"
_HUGE_TUNABLE: Final = "glibc.malloc.hugetlb"

_HUGE: Final = 2 << 20
_MADV_HUGEPAGE: Final = 14
_MADV_COLLAPSE: Final = 25
#: Below this a fork takes a few milliseconds whatever the pages are.
_RSS_BYTES_MIN: Final = 96 << 20
#: After so much growth all is looked through again.
_GROWTH_BYTES_MIN: Final = 32 << 20
_LOOK_INTERVAL: Final = 0.5
#: Merged in one call. Each takes the interpreter lock once, and a fork may have to wait for a page of it.
_CALL_BYTES: Final = 4 * _HUGE
#: Share of a core that merging may take. One page is 2 to 4 ms: keeps up with a growth of 200 MB/s.
_SHARE: Final = 0.3


@final
class HugePages:
    """``start`` it once there may be large snapshots; ``pause`` while children live."""

    def __init__(self) -> None:
        self._is_started = False
        self._may_run = threading.Event()
        self._is_due = True  #: pages may have fallen apart since all were looked through

    def start(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._may_run.set()
            threading.Thread(target=self._run, name="huge-pages", daemon=True).start()

    def pause(self) -> None:
        self._may_run.clear()

    def resume(self) -> None:
        self._is_due = True
        self._may_run.set()

    def _run(self) -> None:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        merged_bytes = 0
        while True:
            time.sleep(_LOOK_INTERVAL)
            self._may_run.wait()
            rss_bytes = _rss_bytes()
            if rss_bytes < _RSS_BYTES_MIN or not (self._is_due or rss_bytes > merged_bytes + _GROWTH_BYTES_MIN):
                continue
            self._is_due = False
            merged_bytes = rss_bytes
            for start, end in list(_regions()):
                madvise(start, end - start, _MADV_HUGEPAGE)  # what is added there is huge from the beginning
                for address in range(start, end, _CALL_BYTES):
                    self._may_run.wait()
                    before = time.thread_time()
                    # The region may be gone meanwhile: an error then, which means nothing.
                    madvise(address, min(_CALL_BYTES, end - address), _MADV_COLLAPSE)
                    took = time.thread_time() - before
                    if took > 0.0001:  # it was not huge before
                        time.sleep(took * (1 / _SHARE - 1))


def with_huge_malloc(tunables: str) -> str:
    """Return the value of ``MALLOC_HUGE`` for a process that would have had this one; what it says stays."""
    return tunables if _HUGE_TUNABLE in tunables else ":".join(filter(None, (tunables, f"{_HUGE_TUNABLE}=1")))


def _regions() -> Iterator[tuple[int, int]]:
    """Yield the writable anonymous regions as whole huge pages."""
    with open("/proc/self/maps", encoding="ascii") as maps:
        for line in maps:
            place, access, _, _, inode, *name = line.split()
            if access != "rw-p" or inode != "0" or (name and name[0] != "[heap]"):
                continue
            start, end = (int(part, 16) for part in place.split("-"))
            start, end = -(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE
            if start < end:
                yield start, end


def _rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
