"""Paths as users write them, on the local file system."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.errors import ConfigError, ExternalError, InputError, OutputExistsError
from engine.core.fs import LocalFileSystem, file_system_of, list_input_files, scheme_of

FS = LocalFileSystem()


@pytest.mark.parametrize(
    ("path", "scheme"),
    [("/a", "file"), ("a:b", "file"), ("file:///a", "file"), ("file:/a", "file"), ("hdfs://h:1/a", "hdfs"),
     ("HDFS:///a", "hdfs"), ("hdfs:/a", "hdfs"), ("s3a://b/k", "s3a"), ("my-fs+x://b", "my-fs+x"), ("", "file")],
)  # fmt: skip
def test_the_scheme_of_a_path(path: str, scheme: str) -> None:
    assert scheme_of(path) == scheme


def test_an_unknown_scheme_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no file system for scheme 'ftp'; known schemes: file, hdfs"):
        file_system_of("ftp://host/a")


def test_reading_starts_at_the_offset_in_all_spellings(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123")
    for path in (f"{tmp_path}/a", f"file://{tmp_path}/a", f"file:{tmp_path}/a"):
        with file_system_of(path).open_read(path, 2) as stream:
            assert stream.read() == b"23"
    with pytest.raises(InputError, match=r"Cannot read .*/absent: No such file"):
        FS.open_read(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="Is a directory"):
        FS.open_read(str(tmp_path))


def test_writing_makes_folders_and_spares_what_exists(tmp_path: Path) -> None:
    path = str(tmp_path / "x" / "y")
    FS.open_write(path).close()
    with pytest.raises(OutputExistsError, match=r"WriteMode\.OVERWRITE"):
        FS.open_write(path)
    with FS.open_write(path, overwrite=True) as stream:
        stream.write(b"new")
    assert Path(path).read_bytes() == b"new"
    with pytest.raises(ExternalError, match=r"Cannot make folder .*/y: "):
        FS.open_write(path + "/z")


def test_status_and_list(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"12")
    (tmp_path / "a").mkdir()
    assert FS.status(str(tmp_path / "absent")) is None
    assert FS.status(str(tmp_path / "b" / "below")) is None
    first, second = FS.list(f"{tmp_path}/")
    assert (first.path, first.is_dir) == (f"{tmp_path}/a", True)
    assert (second.path, second.size_bytes, second.is_dir) == (f"{tmp_path}/b", 2, False)
    with pytest.raises(InputError, match="Cannot list"):
        FS.list(str(tmp_path / "absent"))


def test_rename_replaces_only_when_told_and_never_for_a_missing_source(tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "sub" / "t"
    source.write_text("1")
    FS.rename(str(source), str(target))
    assert target.read_text() == "1"
    source.write_text("2")
    with pytest.raises(OutputExistsError):
        FS.rename(str(source), str(target))
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    with pytest.raises(ExternalError, match="the source does not exist"):
        FS.rename(str(tmp_path / "absent"), str(folder), overwrite=True)
    assert folder.is_dir()
    FS.rename(str(source), str(folder), overwrite=True)
    assert folder.read_text() == "2"


def test_delete_says_whether_something_was_there(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    with pytest.raises(ExternalError, match="Cannot delete"):
        FS.delete(str(tmp_path / "d"))
    assert FS.delete(str(tmp_path / "d"), recursive=True)
    assert not FS.delete(str(tmp_path / "d"))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    for name in (
        "a/1.txt",
        "a/2.csv",
        "b/1.txt",
        "b/deep/3.txt",
        "b/_temporary/x.txt",
        ".hidden",
        "_SUCCESS",
        "c[1].txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(folder: Path, path: str) -> list[str]:
    return [status.path.replace("file://", "").removeprefix(f"{folder}/") for status in list_input_files(path)]


def test_a_folder_is_read_with_its_folders_but_not_its_hidden_files(inputs: Path) -> None:
    assert names(inputs, str(inputs)) == ["a/1.txt", "a/2.csv", "b/1.txt", "b/deep/3.txt", "c[1].txt"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*/1.txt", ["a/1.txt", "b/1.txt"]),
        ("?/[12].*", ["a/1.txt", "a/2.csv", "b/1.txt"]),
        ("b*", ["b/1.txt", "b/deep/3.txt"]),
        ("*", ["a/1.txt", "a/2.csv", "b/1.txt", "b/deep/3.txt", "c[1].txt"]),
        ("_S*", ["_SUCCESS"]),
        ("a/1.txt", ["a/1.txt"]),
        ("c[1].txt", ["c[1].txt"]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_patterns_match_in_any_component(inputs: Path, prefix: str, pattern: str, expected: list[str]) -> None:
    assert names(inputs, f"{prefix}{inputs}/{pattern}") == expected


def test_a_relative_pattern_begins_in_the_working_folder(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    assert [status.path for status in list_input_files("*/1.txt")] == ["./a/1.txt", "./b/1.txt"]
    assert [status.path for status in list_input_files("a/*.csv")] == ["a/2.csv"]


def test_input_that_is_not_there_is_an_error_with_its_path(inputs: Path) -> None:
    with pytest.raises(InputError, match=r"Input path .*/absent does not exist"):
        list_input_files(str(inputs / "absent"))
    with pytest.raises(InputError, match=r"Input pattern .*/\*\.gz matches nothing"):
        list_input_files(f"{inputs}/*.gz")
    with pytest.raises(InputError, match="matches nothing"):
        list_input_files(f"{inputs}/absent/*")
