"""Where a slot's memory lies: in pages of 2 MB from the beginning, or soon after, so that a fork is short."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.runtime.taskmanager.huge_pages import MALLOC_HUGE, with_huge_malloc
from tests.process.slot_cluster import ROOT, SlotCluster

#: A kernel that never gives such pages, or gives them to everyone, leaves nothing to see.
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
FILL = """
import json, os, sys, time
from engine.runtime.taskmanager.huge_pages import HugePages
value_bytes, megabytes, merges = map(int, sys.argv[1:])

def huge_mb():
    with open("/proc/self/smaps_rollup") as stream:
        return next(int(line.split()[1]) >> 10 for line in stream if line.startswith("AnonHugePages"))

if merges:
    HugePages().start()
kept = [bytes(value_bytes) for _ in range((megabytes << 20) // (value_bytes + 33))]
at_once = huge_mb()
end = time.monotonic() + 200
while merges and huge_mb() < megabytes // 2 and time.monotonic() < end:
    time.sleep(0.1)
print(json.dumps([at_once, huge_mb()]))
"""


def filled(value_bytes: int, megabytes: int, *, merges: bool = False, tunables: str = "") -> tuple[int, int]:
    """Return how many MB are in huge pages: after so many values were made, and in the end."""
    words = [sys.executable, "-c", FILL, *map(str, (value_bytes, megabytes, int(merges)))]
    environment = {**os.environ, "PYTHONPATH": ROOT, MALLOC_HUGE: tunables}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=True)
    at_once, at_end = json.loads(done.stdout)
    return at_once, at_end


def test_values_are_in_huge_pages_from_the_beginning():
    with_it, without = filled(2048, 64, tunables=with_huge_malloc(""))[0], filled(2048, 64)[0]
    assert (with_it > 48 and without < 16) is ("[madvise]" in MODE), (with_it, without)


def test_small_objects_are_merged_while_they_grow():
    assert (filled(100, 160, merges=True)[1] >= 80) is ("[never]" not in MODE)


def test_the_processes_of_slots_are_told():
    async def body() -> None:
        async with SlotCluster(("127.0.0.1",)) as cluster:
            environment = Path(f"/proc/{cluster.zygote.pid}/environ").read_bytes().split(b"\0")
            assert f"{MALLOC_HUGE}={with_huge_malloc('')}".encode() in environment

    asyncio.run(body())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_what_the_user_has_told_the_c_library_stays(given, expected):
    assert with_huge_malloc(given) == expected
