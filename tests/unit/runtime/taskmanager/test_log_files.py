"""Log files are read from the log folder and from nowhere else."""

from __future__ import annotations

import pytest

from engine.core.errors import InputError
from engine.runtime.taskmanager.log_files import list_logs, read_log


@pytest.fixture
def folder(tmp_path):
    logs = tmp_path / "log"
    logs.mkdir()
    (logs / "tm.log").write_text("0123456789")
    (logs / "tm.out").write_text("printed")
    (tmp_path / "secret").write_text("secret")
    (logs / "link").symlink_to(tmp_path / "secret")
    return str(logs)


def test_the_main_log_and_its_out_file_have_names_of_their_own(folder):
    assert read_log(folder, "", main_log="tm.log") == (b"0123456789", 10)
    assert read_log(folder, "stdout", main_log="tm.log") == (b"printed", 7)


def test_the_end_of_a_long_log_comes_first(folder):
    assert read_log(folder, "tm.log", main_log="", length_max=4) == (b"6789", 10)
    assert read_log(folder, "tm.log", main_log="", offset=2, length_max=3) == (b"234", 10)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link", "none.log", ".", "..", "a/../../secret"])
def test_names_that_lead_elsewhere_are_refused(folder, name):
    with pytest.raises(InputError, match="no log file"):
        read_log(folder, name, main_log="tm.log")


def test_without_a_log_folder_there_is_nothing(folder):
    with pytest.raises(InputError):
        read_log("", "", main_log="")
    assert list_logs("") == ()


def test_files_are_listed_by_name_with_their_sizes(folder):
    assert [(name, size) for name, size, _ in list_logs(folder)] == [("link", 6), ("tm.log", 10), ("tm.out", 7)]
