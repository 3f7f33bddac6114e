"""The archives that bring the engine to YARN's nodes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import zipfile

import pytest

from engine.core.errors import ExternalError
from engine.core.fs import LocalFileSystem
from flink_yarn.archive import (
    ArchiveEntry,
    content_hash,
    engine_entries,
    mark_used,
    pack,
    package_entries,
    remove_unused,
    requirement_closure,
    ship_archives,
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
    assert not [name for name in names if name.endswith(".pyc") or name.startswith("tests")]


def test_packages_travel_without_what_only_developers_need():
    names = [e.name for e in package_entries()]
    tops = {name.split("/")[0] for name in names}
    assert {"numpy", "pyarrow", "grpc", "skein", "hdfs", "starlette", "uvicorn", "cloudpickle", "yaml"} <= tops
    assert not {"cryptography", "cffi", "pip", "pytest", "mypy", "ruff", "engine"} & tops
    assert [name for name in names if name.startswith("skein/java/")] == []
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


@pytest.fixture
def two_archives(tmp_path, monkeypatch):
    """Archives of one small file each, a cache folder of the test's own, and the folder they are shipped to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("flink_yarn.archive.package_entries", lambda: [entry(tmp_path, "p.py", "1")])
    monkeypatch.setattr("flink_yarn.archive.engine_entries", lambda: [entry(tmp_path, "e.py", "1")])
    return tmp_path / "cache" / "engine" / "archives", tmp_path / "hdfs"


def test_archives_are_packed_and_uploaded_once_and_only_the_newest_stay_in_the_cache(
    tmp_path, monkeypatch, two_archives
):
    cache, target = two_archives
    said: list[str] = []
    for number in range(5):
        monkeypatch.setattr("flink_yarn.archive.engine_entries", lambda n=number: [entry(tmp_path, "e.py", str(n))])
        engine, packages = ship_archives(LocalFileSystem(), str(target), said.append)
        assert ship_archives(LocalFileSystem(), str(target), said.append) == [engine, packages]
    assert said == [
        f"Packing the engine's Python packages for YARN's nodes and uploading them to {target}; this is done once."
    ]
    assert len(list(cache.glob("engine-*.zip"))) == 3
    assert zipfile.ZipFile(packages).namelist()[0] == "p.py"
    assert (cache / os.path.basename(packages)).read_bytes() == open(packages, "rb").read()
    assert [p for folder in (cache, target) for p in folder.iterdir() if p.name.startswith(".")] == []


def test_a_cached_archive_is_uploaded_to_another_cluster_and_one_cut_short_again(tmp_path, two_archives):
    _, target = two_archives
    said: list[str] = []
    for folder in (target, tmp_path / "other"):
        _, packages = ship_archives(LocalFileSystem(), str(folder), said.append)
    assert said[-1] == f"Uploading packages (0.0 MB) to {tmp_path / 'other'}; this is done once."
    whole = open(packages, "rb").read()
    with open(packages, "wb") as stream:
        stream.write(whole[:10])  # by somebody else: not ours by its size
    ship_archives(LocalFileSystem(), str(tmp_path / "other"), said.append)
    assert open(packages, "rb").read() == whole


def test_what_another_client_has_uploaded_is_not_packed_again(tmp_path, monkeypatch, two_archives):
    _, target = two_archives
    first = ship_archives(LocalFileSystem(), str(target))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh"))
    assert ship_archives(LocalFileSystem(), str(target)) == first
    assert not (tmp_path / "fresh").exists()


def test_an_upload_that_fails_leaves_nothing_there_and_the_packed_archive_here(tmp_path, monkeypatch, two_archives):
    cache, target = two_archives

    class FullFile(io.BytesIO):
        def write(self, data):
            raise ExternalError("the disk is full")

    monkeypatch.setattr(LocalFileSystem, "open_write", lambda *args, **kwargs: FullFile())
    with pytest.raises(ExternalError, match="the disk is full"):
        ship_archives(LocalFileSystem(), str(target))
    assert len(list(cache.glob("engine-*.zip"))) == 1
    assert not target.exists()


def test_packing_that_fails_leaves_nothing_here_and_there(tmp_path, monkeypatch, two_archives):
    cache, target = two_archives
    missing = ArchiveEntry("gone.py", tmp_path / "gone.py", "1")
    monkeypatch.setattr("flink_yarn.archive.engine_entries", lambda: [entry(tmp_path, "e.py", "1"), missing])
    with pytest.raises(FileNotFoundError):
        ship_archives(LocalFileSystem(), str(target))
    assert list(cache.iterdir()) == []
    assert list(target.iterdir()) == []


def test_a_cache_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch, two_archives):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ExternalError, match=r"Cannot write the cache folder .* Set XDG_CACHE_HOME"):
        ship_archives(LocalFileSystem(), str(two_archives[1]))


DAY_MS = 86_400_000


def age(path, days):
    seconds = time.time() - days * 86_400
    os.utime(path, (seconds, seconds))


def test_archives_that_nobody_has_used_for_long_are_removed_and_nothing_else(tmp_path):
    def make(name, days):
        (tmp_path / name).write_text("")
        age(tmp_path / name, days)

    old, marked, new = (f"packages-{digit * 32}.zip" for digit in "abc")
    for name, days in (
        (old, 40),
        (f"{old}.used", 31),
        (marked, 40),
        (f"{marked}.used", 29),
        (new, 29),
        (f"engine-{'d' * 32}.zip", 31),
        ("packages-of-mine.zip", 100),
        ("notes", 100),
        (".uploading-me-1-packages-x.zip", 2),
        (".uploading-me-2-packages-x.zip", 0),
    ):
        make(name, days)
    now_ms = int(time.time() * 1000)
    removed = remove_unused(LocalFileSystem(), str(tmp_path), retention_ms=30 * DAY_MS, now_ms=now_ms)
    assert sorted(removed) == [".uploading-me-1-packages-x.zip", f"engine-{'d' * 32}.zip", old]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [marked, f"{marked}.used", new, "packages-of-mine.zip", "notes", ".uploading-me-2-packages-x.zip"]
    )


def test_the_use_of_an_archive_is_marked_once_a_day_and_leaves_it_as_it_is(tmp_path):
    archive = tmp_path / "engine-1.zip"
    archive.write_text("x")
    age(archive, 50)
    before = archive.stat().st_mtime_ns
    now_ms = int(time.time() * 1000)
    mark_used(LocalFileSystem(), str(archive), now_ms)
    marker = tmp_path / "engine-1.zip.used"
    age(marker, 0.9)
    recent = marker.stat().st_mtime_ns
    mark_used(LocalFileSystem(), str(archive), now_ms)
    assert marker.stat().st_mtime_ns == recent
    age(marker, 1.1)
    mark_used(LocalFileSystem(), str(archive), now_ms)
    assert marker.stat().st_mtime > time.time() - 60
    assert archive.stat().st_mtime_ns == before


def test_compiled_kernels_go_along_but_jobs_that_add_some_change_no_name(tmp_path, monkeypatch):
    cache = tmp_path / "engine" / "__pycache__"
    cache.mkdir(parents=True)
    (tmp_path / "flink_yarn").mkdir()
    source = tmp_path / "engine" / "kernels.py"
    source.write_text("")
    monkeypatch.setattr("flink_yarn.archive._engine_home", lambda: tmp_path)
    without = content_hash(engine_entries())
    version = f"py{sys.version_info[0]}{sys.version_info[1]}"
    index, code = (cache / f"kernels.add-7.{version}.{end}" for end in ("nbi", "1.nbc"))
    index.touch()
    code.touch()
    (cache / "kernels.add-7.py27.nbi").touch()  # another Python's
    (cache / f"kernels.add-3.{version}.nbi").touch()  # from before the last change of the source
    os.utime(cache / f"kernels.add-3.{version}.nbi", (0, 0))
    entries = engine_entries()
    assert {entry.path for entry in entries} == {source, index, code}
    (cache / f"kernels.add-7.{version}.2.nbc").touch()
    assert content_hash(engine_entries()) == content_hash(entries) != without
