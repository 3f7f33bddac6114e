"""A job's files on a TaskManager: fetched once, and gone some time after the last job that needs them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from engine.core.ids import JobID
from engine.protocol.control import JobInformation, UserFile
from engine.runtime.taskmanager import slot_files
from engine.runtime.taskmanager.slot_files import SlotFiles

CONTENT = b"content"
FILE = UserFile("a.py", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "module")
ONE, TWO = JobID.from_text("one"), JobID.from_text("two")


class Blobs:
    fetched = 0

    async def fetch_blob(self, sha256: str, target: str) -> None:
        self.fetched += 1
        Path(target).write_bytes(CONTENT)


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture
def files(tmp_path: Path) -> SlotFiles:
    return SlotFiles(str(tmp_path))


def prepare(files: SlotFiles, blobs: Blobs, job_id: JobID, target: Path) -> None:
    job = JobInformation(job_id, "job", {}, (FILE,))
    asyncio.run(files.prepare(job, str(target), blobs, ""))


def kept(tmp_path: Path) -> list[str]:
    return os.listdir(tmp_path / "blobs")


def test_a_file_of_two_jobs_is_fetched_once_and_goes_with_the_last(
    files: SlotFiles, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_files, "UNUSED_KEPT_S", -1.0)
    prepare(files, blobs, ONE, tmp_path / "first")
    prepare(files, blobs, TWO, tmp_path / "second")
    assert blobs.fetched == 1
    files.release(ONE)
    files.sweep()
    assert kept(tmp_path) == [FILE.sha256]
    files.release(TWO)
    files.sweep()
    assert kept(tmp_path) == []
    assert (tmp_path / "second" / "a.py").read_bytes() == CONTENT
    prepare(files, blobs, ONE, tmp_path / "third")
    assert blobs.fetched == 2


def test_the_same_program_run_again_finds_its_files(files: SlotFiles, blobs: Blobs, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        prepare(files, blobs, ONE, tmp_path / folder)
        files.release(ONE)
        files.sweep()
    assert blobs.fetched == 1


def test_installed_requirements_go_too(
    files: SlotFiles, blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def install(command: list[str], job_name: str) -> None:
        os.makedirs(os.path.join(command[command.index("--target") + 1], "package"))

    async def scenario() -> None:
        job = JobInformation(ONE, "job", {}, (UserFile("r.txt", FILE.sha256, len(CONTENT), "requirements"),))
        site = await files.prepare(job, str(tmp_path / "slot"), blobs, "")
        files.sweep()
        assert os.path.isdir(site)
        files.release(ONE)
        files.sweep()
        assert not os.path.exists(site)
        await asyncio.get_running_loop().shutdown_default_executor()

    monkeypatch.setattr(slot_files, "UNUSED_KEPT_S", -1.0)
    monkeypatch.setattr(slot_files, "_run_pip", install)
    asyncio.run(scenario())
    assert os.listdir(tmp_path / "sites") == []
