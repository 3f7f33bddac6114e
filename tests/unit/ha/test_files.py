"""What only elections through files have; all else is in ``tests/contract/test_ha``."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time

import pytest

from engine.ha.files import FileElection, FileServices
from tests.testing.patience import until


def test_a_file_that_its_writer_renames_just_now_keeps_nobody_from_joining(tmp_path):
    services = FileServices(f"file://{tmp_path}", session_timeout_s=4)
    election = services.election()
    assert isinstance(election, FileElection)
    root = election._folder.root
    os.makedirs(root, exist_ok=True)
    old = os.path.join(root, ".partial-old")
    with open(old, "wb"):
        os.utime(old, (0, time.time() - 10**6))
    os.symlink("is not there", os.path.join(root, ".partial-gone"))  # as one that was renamed after it was listed
    election._remove_leftovers()
    assert ".partial-old" not in os.listdir(root)


@pytest.mark.parametrize("ends", [False, True], ids=["lives", "has ended"])
def test_a_write_that_the_kernel_had_begun_is_through_when_the_next_leader_is_told(tmp_path, ends):
    """The folder has been looked up, the locks of the file system are waited for, another one is granted leadership."""
    services = FileServices(f"file://{tmp_path}", session_timeout_s=1)
    election = services.election()
    assert isinstance(election, FileElection)
    folder = election._folder
    folder.make()
    assert folder.grant("nobody", "of-before")  # type: ignore[arg-type]
    before = os.path.join(folder.of("of-before"), "register")
    os.mkdir(before)
    looked_up = os.open(before, os.O_RDONLY)
    silent = open(os.path.join(folder.contenders, "0000000001-silent"), "w")
    fcntl.flock(silent, fcntl.LOCK_EX)
    seen: list[object] = []

    class Listener:
        def leadership_granted(self, token):
            seen.append(services.metadata().get("register"))

    async def play():
        await election.start(Listener())
        if ends:
            silent.close()
        await asyncio.to_thread(until, lambda: folder.last_token() != "of-before", "another one is granted leadership")
        granted_s = time.monotonic()
        if not ends:
            partial = os.path.join(folder.root, ".partial-late")
            with open(partial, "w") as stream:
                json.dump([1, 7], stream)
            await asyncio.sleep(0.2)
            os.rename(partial, ".value", dst_dir_fd=looked_up)
        while not seen:
            await asyncio.sleep(0.01)
        told_s = time.monotonic() - granted_s
        election._listener = None
        await election.close()
        return told_s

    told_s = asyncio.run(asyncio.wait_for(play(), 60))
    os.close(looked_up)
    silent.close()
    assert ("0000000001-silent" in election._ended) is ends, "it has begun nothing that is not through"
    if not ends:
        assert seen == [b"[1, 7]"]
        assert told_s > 0.9
