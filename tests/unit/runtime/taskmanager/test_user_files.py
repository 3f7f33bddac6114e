"""A job's files in a slot."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.core.errors import InputError
from engine.protocol.control import UserFile
from engine.runtime.taskmanager.user_files import prepare_files


@pytest.fixture(autouse=True)
def _path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    files, work = tmp_path / "files", tmp_path / "work"
    files.mkdir()
    work.mkdir()
    return files, work


def user_file(name: str, kind: str, target: str = "") -> UserFile:
    return UserFile(name, "0" * 64, 1, kind, target)


def test_modules_are_on_the_path_before_requirements(folders: tuple[Path, Path]):
    files, work = folders
    (files / "lib").mkdir()
    for name in ("job.py", "lib/more.py", "pack.zip", "requirements.txt"):
        (files / name).write_bytes(b"")
    given = [user_file("job.py", "module"), user_file("lib/more.py", "module"), user_file("pack.zip", "module")]
    given.append(user_file("requirements.txt", "requirements"))
    prepare_files(given, str(files), str(work), "/somewhere/site")
    assert sys.path[:4] == [str(files), str(files / "lib"), str(files / "pack.zip"), "/somewhere/site"]


def test_archives_are_extracted_with_their_modes(folders: tuple[Path, Path]):
    files, work = folders
    with zipfile.ZipFile(files / "env.zip", "w") as archive:
        entry = zipfile.ZipInfo("bin/run")
        entry.external_attr = 0o755 << 16
        archive.writestr(entry, "#!/bin/sh\n")
    with tarfile.open(files / "words.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("a/words.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    given = [user_file("env.zip", "archive", "venv"), user_file("words.tar.gz", "archive")]
    prepare_files(given, str(files), str(work))
    assert os.access(work / "venv/bin/run", os.X_OK)
    assert (work / "words.tar.gz/a/words.txt").read_bytes() == b"abc"


def test_other_files_are_found_in_the_work_folder_and_cached_ones_by_name(folders: tuple[Path, Path]):
    files, work = folders
    (files / "dict.txt").write_text("x")
    (files / "c0ffee").write_text("y")
    cached = prepare_files(
        [user_file("dict.txt", "file"), user_file("c0ffee", "cache", "stopwords")], str(files), str(work)
    )
    assert (work / "dict.txt").read_text() == "x"
    assert cached == {"stopwords": str(files / "c0ffee")}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil"])
def test_no_file_leaves_the_work_folder(folders: tuple[Path, Path], name: str):
    files, work = folders
    (files / "x").write_text("x")
    with pytest.raises(InputError, match="outside"):
        prepare_files([user_file("x", "file", name)], str(files), str(work))


def test_missing_files_and_broken_archives_say_so(folders: tuple[Path, Path]):
    files, work = folders
    with pytest.raises(InputError, match=r"gone\.py is missing"):
        prepare_files([user_file("gone.py", "module")], str(files), str(work))
    (files / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"bad\.zip cannot be extracted"):
        prepare_files([user_file("bad.zip", "archive")], str(files), str(work))
    assert list(work.iterdir()) == []


def test_archives_are_extracted_by_pythons_without_filters(folders: tuple[Path, Path], monkeypatch):
    files, work = folders
    monkeypatch.delattr(tarfile, "data_filter", raising=False)

    def extractall(archive, path):
        for member in archive.getmembers():
            archive.extract(member, path)

    monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)
    with tarfile.open(files / "words.tar", "w") as archive:
        info = tarfile.TarInfo("words.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    prepare_files([user_file("words.tar", "archive")], str(files), str(work))
    assert (work / "words.tar/words.txt").read_bytes() == b"abc"
