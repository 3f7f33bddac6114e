"""What only elections through files have; all else is in ``tests/contract/test_ha``."""

from __future__ import annotations

import os
import time

from engine.ha.files import FileElection, FileServices


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
