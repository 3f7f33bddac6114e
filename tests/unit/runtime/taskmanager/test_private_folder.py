"""A process's temporary folder is gone after its end, whoever else still writes there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from engine.runtime.taskmanager.private_folder import PrivateFolder


def test_a_file_that_comes_while_the_folder_is_removed_is_removed_too(tmp_path: Path, monkeypatch):
    folder = PrivateFolder("own-", str(tmp_path))
    Path(folder.path, "late").write_text("x")
    rmdir, late = os.rmdir, threading.Event()

    def rmdir_after_a_write(path: str, **options: object) -> None:
        if not late.is_set():
            late.set()
            Path(folder.path, "later").write_text("x")
        rmdir(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rmdir", rmdir_after_a_write)
    folder.close()
    assert late.is_set()
    assert list(tmp_path.iterdir()) == []


def test_folders_of_dead_processes_are_swept_and_those_of_others_stay(tmp_path: Path):
    living = PrivateFolder("own-", str(tmp_path))
    dead = tmp_path / "own-dead"
    dead.mkdir()
    (dead / ".lock").touch()
    (tmp_path / "other").mkdir()
    made = PrivateFolder("own-", str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([Path(living.path), Path(made.path), tmp_path / "other"])
    living.close()
    made.close()
