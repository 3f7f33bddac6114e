"""The archives that bring the engine to YARN's nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest

from engine.core.errors import ExternalError
from engine.core.fs import LocalFileSystem
from flink_yarn.archive import (
    ArchiveEntry,
    content_hash,
    engine_entries,
    local_archives,
    pack,
    package_entries,
    requirement_closure,
    upload_archive,
)


def entry(tmp_path, name, text, stamp=None):
    path = tmp_path / name.replace("/", "_")
    path.write_text(text)
    return ArchiveEntry(name, path, stamp or text)


def test_the_closure_has_requirements_of_requirements_and_no_extras():
    names = {distribution.metadata["Name"].lower() for distribution in requirement_closure(["hdfs", "no-such-thing"])}
    assert {"hdfs", "requests", "urllib3", "docopt"} <= names
    assert "pysocks" not in names  # an extra of requests
    assert "no-such-thing" not in names


def test_the_engine_travels_without_byte_code_of_this_host():
    names = [e.name for e in engine_entries()]
    assert "engine/__init__.py" in names
    assert "flink_yarn/application_master.py" in names
    assert "engine/rest/web/index.html" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_packages_travel_without_what_only_developers_need():
    names = [e.name for e in package_entries()]
    tops = {name.split("/")[0] for name in names}
    assert {"numpy", "pyarrow", "grpc", "skein", "hdfs", "starlette", "uvicorn", "cloudpickle", "yaml"} <= tops
    assert not {"pip", "pytest", "mypy", "ruff", "engine"} & tops
    bad = [
        name for name in names if "/tests/" in name or name.endswith((".h", ".a", ".pyx")) or "flight" in name.lower()
    ]
    assert [name for name in bad if name.startswith(("numpy/", "pyarrow/")) and not name.endswith(".py")] == []


def test_the_name_goes_by_content_and_python(tmp_path, monkeypatch):
    one, two = entry(tmp_path, "a.py", "1"), entry(tmp_path, "b.py", "2")
    assert content_hash([one, two]) == content_hash([one, two])
    assert content_hash([one, two]) != content_hash([one])
    assert content_hash([one]) != content_hash([entry(tmp_path, "a.py", "1", "other")])
    before = content_hash([one])
    monkeypatch.setattr(sys.implementation, "cache_tag", "cpython-399")
    assert content_hash([one]) != before


def test_packing_twice_gives_the_same_bytes(tmp_path):
    entries = [
        entry(tmp_path, "p/__init__.py", ""),
        entry(tmp_path, "p/m.py", "x = 1\n"),
        entry(tmp_path, "p/d.txt", "d"),
    ]
    for name in ("1.zip", "2.zip"):
        with open(tmp_path / name, "wb") as stream:
            pack(entries, stream)
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_what_was_packed_runs_from_byte_code_whatever_the_sources_time_is(tmp_path):
    with open(tmp_path / "a.zip", "wb") as stream:
        pack([entry(tmp_path, "packed_module.py", "print('hello from', __name__)\n")], stream)
    target = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(target)
    os.utime(target / "packed_module.py", (0, 0))
    cached = next((target / "__pycache__").iterdir())
    before = cached.read_bytes()
    (target / "packed_module.py").write_text("syntax error that nobody reads(\n")
    done = subprocess.run(
        [sys.executable, "-c", "import packed_module"],
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "hello from packed_module\n", done.stderr
    assert cached.read_bytes() == before


def test_a_source_that_is_no_python_is_packed_without_byte_code(tmp_path):
    with open(tmp_path / "a.zip", "wb") as stream:
        pack([entry(tmp_path, "template.py", "{{ not python }} (")], stream)
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == ["template.py"]


def test_archives_are_packed_once_and_only_the_newest_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("flink_yarn.archive.package_entries", lambda: [entry(tmp_path, "p.py", "1")])
    said: list[str] = []
    for number in range(5):
        monkeypatch.setattr("flink_yarn.archive.engine_entries", lambda n=number: [entry(tmp_path, "e.py", str(n))])
        engine, packages = local_archives(said.append)
        assert local_archives(said.append) == [engine, packages]
    folder = tmp_path / "cache" / "engine" / "archives"
    assert said == ["Packing the engine's Python packages for YARN's nodes; this is done once."]
    assert len(list(folder.glob("engine-*.zip"))) == 3
    assert engine.exists()
    assert [p for p in folder.iterdir() if p.name.startswith(".")] == []


def test_a_cache_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("flink_yarn.archive.engine_entries", list)
    with pytest.raises(ExternalError, match=r"Cannot write the cache folder .* Set XDG_CACHE_HOME"):
        local_archives()


def test_an_archive_is_uploaded_once_and_is_never_seen_half(tmp_path):
    archive = tmp_path / "packages-1.zip"
    archive.write_bytes(b"x" * 1000)
    target, said, fs = tmp_path / "hdfs", [], LocalFileSystem()
    path = upload_archive(archive, fs, str(target), say=said.append)
    assert path == f"{target}/packages-1.zip"
    assert upload_archive(archive, fs, str(target), say=said.append) == path
    assert len(said) == 1
    (target / "packages-1.zip").write_bytes(b"cut")  # by somebody else: not ours by its size
    upload_archive(archive, fs, str(target), say=said.append)
    assert (target / "packages-1.zip").read_bytes() == archive.read_bytes()
    assert [p.name for p in target.iterdir()] == ["packages-1.zip"]
