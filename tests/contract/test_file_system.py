"""What every FileSystem must do. ``file_systems`` gives (file system, empty folder) for each implementation."""

from __future__ import annotations

import pytest

from engine.core import fs
from engine.core.errors import EngineError, InputError, OutputExistsError
from engine.core.fs import LocalFileSystem, list_input_files
from tests.testing.memory_fs import MemoryFileSystem

#: Names of fixtures, each of which returns (file system, path of an empty folder that the test may fill).
FILE_SYSTEMS = ["local_folder", "memory_folder"]


@pytest.fixture
def local_folder(tmp_path):
    return LocalFileSystem(), str(tmp_path)


@pytest.fixture
def memory_folder(monkeypatch):
    memory = MemoryFileSystem()
    memory.make_dirs("memory://tests/folder")
    monkeypatch.setitem(fs._factories, "memory", lambda: memory)
    monkeypatch.setitem(fs._instances, "memory", memory)
    return memory, "memory://tests/folder"


@pytest.fixture(params=FILE_SYSTEMS)
def file_systems(request):
    return request.getfixturevalue(request.param)


def write(fs, path, data, **kwargs):
    with fs.open_write(path, **kwargs) as stream:
        stream.write(data)


def read(fs, path, offset=0):
    with fs.open_read(path, offset) as stream:
        pieces = []
        while piece := stream.read(1 << 16):
            pieces.append(piece)
        return b"".join(pieces)


def test_a_file_is_read_as_it_was_written_from_any_offset(file_systems):
    fs, folder = file_systems
    data = bytes(range(256)) * 5000
    write(fs, f"{folder}/a", data)
    assert read(fs, f"{folder}/a") == data
    assert read(fs, f"{folder}/a", 1_000_001) == data[1_000_001:]
    assert read(fs, f"{folder}/a", len(data)) == b""


def test_an_empty_file_is_a_file(file_systems):
    fs, folder = file_systems
    write(fs, f"{folder}/empty", b"")
    assert read(fs, f"{folder}/empty") == b""
    assert fs.status(f"{folder}/empty").size_bytes == 0


def test_parent_folders_are_made(file_systems):
    fs, folder = file_systems
    write(fs, f"{folder}/x/y/z", b"1")
    assert fs.status(f"{folder}/x/y").is_dir


def test_an_existing_file_is_replaced_only_when_asked_for(file_systems):
    fs, folder = file_systems
    write(fs, f"{folder}/a", b"old")
    with pytest.raises(OutputExistsError, match="/a exists"):
        write(fs, f"{folder}/a", b"new")
    assert read(fs, f"{folder}/a") == b"old"
    write(fs, f"{folder}/a", b"new", overwrite=True)
    assert read(fs, f"{folder}/a") == b"new"


@pytest.mark.parametrize("name", ["missing", "missing/deeper"])
def test_what_is_missing_is_an_input_error_with_its_path(file_systems, name):
    fs, folder = file_systems
    assert fs.status(f"{folder}/{name}") is None
    with pytest.raises(InputError, match=name):
        fs.open_read(f"{folder}/{name}").read(1)
    with pytest.raises(InputError, match=name):
        fs.list(f"{folder}/{name}")
    assert fs.delete(f"{folder}/{name}") is False


def test_status_tells_files_from_folders(file_systems):
    fs, folder = file_systems
    write(fs, f"{folder}/a", b"123")
    found = fs.status(f"{folder}/a")
    assert (found.path, found.size_bytes, found.is_dir) == (f"{folder}/a", 3, False)
    assert found.modified_ms > 1_500_000_000_000
    assert fs.status(folder).is_dir


def test_a_listing_is_sorted_and_has_whole_paths(file_systems):
    fs, folder = file_systems
    for name in ("b", "a", ".hidden", "ü"):
        write(fs, f"{folder}/{name}", b"")
    fs.make_dirs(f"{folder}/dir/sub")
    paths = [child.path for child in fs.list(folder)]
    assert paths == [f"{folder}/{name}" for name in (".hidden", "a", "b", "dir", "ü")]


def test_making_a_folder_twice_is_no_error(file_systems):
    fs, folder = file_systems
    fs.make_dirs(f"{folder}/d")
    fs.make_dirs(f"{folder}/d")
    assert fs.status(f"{folder}/d").is_dir


def test_rename_moves_files_and_folders_and_makes_the_parents(file_systems):
    fs, folder = file_systems
    write(fs, f"{folder}/from/a", b"1")
    fs.rename(f"{folder}/from", f"{folder}/deep/to")
    assert fs.status(f"{folder}/from") is None
    assert read(fs, f"{folder}/deep/to/a") == b"1"


def test_rename_replaces_only_when_asked_for(file_systems):
    fs, folder = file_systems
    write(fs, f"{folder}/new", b"new")
    write(fs, f"{folder}/old", b"old")
    with pytest.raises(OutputExistsError, match="/old exists"):
        fs.rename(f"{folder}/new", f"{folder}/old")
    fs.rename(f"{folder}/new", f"{folder}/old", overwrite=True)
    assert (read(fs, f"{folder}/old"), fs.status(f"{folder}/new")) == (b"new", None)


def test_rename_replaces_a_folder_by_a_file(file_systems):
    fs, folder = file_systems
    write(fs, f"{folder}/new", b"new")
    write(fs, f"{folder}/old/1", b"old")
    fs.rename(f"{folder}/new", f"{folder}/old", overwrite=True)
    assert read(fs, f"{folder}/old") == b"new"


def test_renaming_what_is_missing_is_an_error_with_its_path(file_systems):
    fs, folder = file_systems
    with pytest.raises(EngineError, match="nothing"):
        fs.rename(f"{folder}/nothing", f"{folder}/target")


def test_a_full_folder_is_deleted_only_recursively(file_systems):
    fs, folder = file_systems
    write(fs, f"{folder}/d/a", b"")
    with pytest.raises(EngineError, match="/d"):
        fs.delete(f"{folder}/d")
    assert fs.delete(f"{folder}/d", recursive=True) is True
    assert fs.status(f"{folder}/d") is None


def test_globs_match_in_any_component(file_systems):
    fs, folder = file_systems
    for name in ("2024/a.txt", "2024/b.csv", "2025/c.txt", "2025/sub/d.txt"):
        write(fs, f"{folder}/{name}", b"")
    found = [status.path[len(folder) :] for status in fs.glob(f"{folder}/20*/*.txt")]
    assert found == ["/2024/a.txt", "/2025/c.txt"]
    assert [status.path[len(folder) :] for status in fs.glob(f"{folder}/202[45]/?.csv")] == ["/2024/b.csv"]
    assert fs.glob(f"{folder}/none*/x") == []


def test_input_files_are_found_below_a_folder_but_hidden_ones(file_systems):
    fs, folder = file_systems
    for name in ("b", "a/1", ".x/1", "_SUCCESS"):
        write(fs, f"{folder}/{name}", b"")
    assert [file.path[len(folder) :] for file in list_input_files(folder)] == ["/a/1", "/b"]
    assert [file.path[len(folder) :] for file in list_input_files(f"{folder}/*")] == ["/a/1", "/b"]


def test_block_hosts_are_names_or_nothing(file_systems):
    fs, folder = file_systems
    write(fs, f"{folder}/a", b"123")
    assert all(isinstance(host, str) for host in fs.block_hosts(f"{folder}/a", 0, 3))
