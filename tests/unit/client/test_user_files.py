"""Files that travel with a job: what is shipped, under which name, and equal bytes for equal content."""

from __future__ import annotations

import os
import zipfile

import pytest

from engine.client.user_files import collect_user_files
from engine.core.config import Configuration
from engine.core.errors import ConfigError


def collect(**config: object):
    return collect_user_files(Configuration({key.replace("_", "."): str(value) for key, value in config.items()}))


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "pkg"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__" / "x.pyc").write_text("")
    (folder / "__init__.py").write_text("")
    (folder / "part.py").write_text("X = 1")
    return folder


def test_a_module_travels_as_it_is(tmp_path):
    (tmp_path / "m.py").write_text("X = 1")
    files, paths = collect(python_files=tmp_path / "m.py")
    assert [(file.name, file.kind, file.size_bytes) for file in files] == [("m.py", "module", 5)]
    assert paths == {files[0].sha256: str(tmp_path / "m.py")}


def test_a_package_folder_stays_importable_by_its_name(package):
    files, paths = collect(python_files=package)
    assert (files[0].name, files[0].kind) == ("pkg.zip", "module")
    assert zipfile.ZipFile(paths[files[0].sha256]).namelist() == ["pkg/__init__.py", "pkg/part.py"]


def test_the_content_of_a_plain_folder_is_put_on_the_path(package):
    files, paths = collect(python_files=package.parent)
    assert "pkg/part.py" in zipfile.ZipFile(paths[files[0].sha256]).namelist()


def test_equal_folders_give_equal_bytes(package):
    first = collect(python_files=package)[0]
    os.utime(package / "part.py", (1, 1))
    assert collect(python_files=package)[0] == first
    (package / "part.py").write_text("X = 2")
    assert collect(python_files=package)[0] != first


def test_requirements_travel_with_their_packages(tmp_path):
    (tmp_path / "r.txt").write_text("a")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a.whl").write_text("w")
    files, _ = collect(python_requirements=f"{tmp_path}/r.txt#{tmp_path}/wheels")
    assert [(file.name, file.kind, file.target) for file in files] == [
        ("requirements.txt", "requirements", ""),
        ("requirements-packages/a.whl", "requirements-cache", "requirements-packages"),
    ]


def test_an_archive_is_extracted_to_the_named_folder(tmp_path):
    (tmp_path / "v.zip").write_text("z")
    files, _ = collect(python_archives=f"{tmp_path}/v.zip#venv,{tmp_path}/v.zip")
    assert [(file.name, file.kind, file.target) for file in files] == [
        ("v.zip", "archive", "venv"),
        ("v.zip-v.zip", "archive", "v.zip"),
    ]


def test_cached_files_keep_their_registered_names(tmp_path):
    (tmp_path / "d.txt").write_text("d")
    files, _ = collect_user_files(Configuration(), [("words", str(tmp_path / "d.txt"))])
    assert [(file.name, file.kind, file.target) for file in files] == [("cache/words/d.txt", "cache", "words")]


def test_one_file_named_twice_travels_once(tmp_path):
    (tmp_path / "m.py").write_text("")
    assert len(collect(python_files=f"{tmp_path}/m.py,{tmp_path}/m.py")[0]) == 1


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("python_files", "/none.py", "python.files has '/none.py', which does not exist; expected a file or folder"),
        ("python_requirements", "/none.txt", "python.requirements has '/none.txt', which does not exist"),
        ("python_archives", "/etc/passwd", "python.archives has '/etc/passwd'; expected an archive: .zip"),
    ],
)
def test_what_cannot_be_shipped_is_told_with_its_key(key, text, message):
    with pytest.raises(ConfigError) as caught:
        collect(**{key: text})
    assert str(caught.value).startswith(message)


def test_two_different_files_of_one_name_are_an_error(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.py").write_text(folder)
    with pytest.raises(ConfigError, match=r"another file with the name m\.py is shipped already"):
        collect(python_files=f"{tmp_path}/a/m.py,{tmp_path}/b/m.py")


def test_an_archive_may_not_leave_the_jobs_folder(tmp_path):
    (tmp_path / "v.zip").write_text("z")
    with pytest.raises(ConfigError, match="expected a plain folder name"):
        collect(python_archives=f"{tmp_path}/v.zip#../up")
