"""Finding programs and hosts: what can be run, and what is told about the rest."""

from __future__ import annotations

import sys
import zipfile

import pytest

from engine.core.config import Configuration
from engine.core.errors import ConfigError, ProgramError
from engine.operators.compile.source import tree_of
from flink_yarn.cli_script_settings import hosts_of, log_level, masters_of
from flink_yarn.program import locate_program, uploaded_id
from flink_yarn.program_main import kind_of, run


def locate(path: str, entry: str = "", **config: str):
    return locate_program(path=path, entry=entry, module="", arguments=["a"], config=Configuration(config))


def archive(path, *names: str):
    with zipfile.ZipFile(path, "w") as stream:
        for name in names:
            stream.writestr(name, "")
    return str(path)


def test_a_script_is_run_by_its_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "job.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert locate("job.py").path == str(tmp_path / "job.py")
    assert locate(f"file://{tmp_path}/job.py").path == str(tmp_path / "job.py")


def test_a_missing_file_is_told():
    with pytest.raises(ProgramError, match=r"The program file does not exist: none\.py"):
        locate("none.py")


@pytest.mark.parametrize("name", ["job.jar", "job.zip"])
def test_a_java_program_gets_a_clear_answer(tmp_path, name):
    path = archive(tmp_path / name, "META-INF/MANIFEST.MF", "org/Main.class")
    with pytest.raises(ProgramError, match="is a Java program; this engine runs Python programs"):
        locate(path)


def test_an_archive_without_main_needs_an_entry(tmp_path):
    path = archive(tmp_path / "job.zip", "pkg/__init__.py")
    with pytest.raises(ProgramError, match=r"has no __main__\.py, so there is no main to run; name it with -c"):
        locate(path)
    assert locate(path, "pkg.main").entry == "pkg.main"


def test_an_archive_with_main_needs_no_entry(tmp_path):
    assert locate(archive(tmp_path / "job.pyz", "__main__.py")).is_archive


def test_other_files_are_no_programs(tmp_path):
    (tmp_path / "job.txt").write_text("")
    with pytest.raises(ProgramError, match=r"is not a program that can be run; expected a \.py file"):
        locate(str(tmp_path / "job.txt"))
    (tmp_path / "job.zip").write_text("no zip")
    with pytest.raises(ProgramError, match="damaged"):
        locate(str(tmp_path / "job.zip"))


def test_python_files_are_on_the_programs_path(tmp_path):
    package = tmp_path / "lib" / "pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "plain").mkdir()
    (tmp_path / "job.py").write_text("")
    files = f"{package},{tmp_path / 'plain'},{tmp_path / 'job.py'}"
    found = locate(str(tmp_path / "job.py"), **{"python.files": files})
    assert found.python_path == (str(tmp_path / "lib"), str(tmp_path / "plain"), str(tmp_path))


def test_an_uploaded_program_is_known_by_its_id(tmp_path):
    assert uploaded_id("0123456789abcdef0123456789abcdef_job.py") != ""
    assert uploaded_id("01234567-89ab-cdef-0123-456789abcdef_job.py") != ""
    assert uploaded_id("job.py") == ""


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("def main(): pass\nif __name__ == '__main__':\n    main()", "script"),
        ("x = 1\ndef main(): pass", "main"),
        ("from a import b\nb.execute()", "script"),
        ('"""Doc."""\nimport a\nX = 1\ndef helper(): pass', ""),
        ("", ""),
    ],
)
def test_what_a_module_does_when_it_is_run(source, kind):
    assert kind_of(source) == kind


def test_hosts_are_read_without_comments(tmp_path):
    (tmp_path / "workers").write_text("# three\nhost1\n\n  host2  # second\nhost1\n")
    assert hosts_of(str(tmp_path), "workers", "slaves") == ["host1", "host2", "host1"]


def test_the_old_name_of_the_workers_file_is_read(tmp_path):
    (tmp_path / "slaves").write_text("old\n")
    assert hosts_of(str(tmp_path), "workers", "slaves") == ["old"]
    (tmp_path / "workers").write_text("new\n")
    assert hosts_of(str(tmp_path), "workers", "slaves") == ["new"]


def test_without_a_file_there_is_this_host(tmp_path):
    assert hosts_of(str(tmp_path), "workers", "slaves") == ["localhost"]
    assert hosts_of(None, "workers") == ["localhost"]


def test_masters_of_one_host_get_web_ports_of_their_own_with_high_availability(tmp_path):
    (tmp_path / "masters").write_text("host1\nhost2:9000\nhost1\nhost1:8081\n")
    assert masters_of(str(tmp_path), Configuration()) == ["host1", "host2:9000", "host1", "host1:8081"]
    config = Configuration({"high-availability.type": "zookeeper"})
    assert masters_of(str(tmp_path), config) == ["host1:8082", "host2:9000", "host1:8083", "host1:8081"]


def test_the_log_level_is_read_from_our_file_or_from_flinks(tmp_path):
    assert log_level(str(tmp_path)) == log_level(None) == "INFO"
    (tmp_path / "log4j.properties").write_text("# Flink's\nrootLogger.level = warn\nrootLogger.appenderRef.x = y\n")
    assert log_level(str(tmp_path)) == "WARN"
    (tmp_path / "log.properties").write_text("rootLogger.level = DEBUG\n")
    assert log_level(str(tmp_path)) == "DEBUG"


def test_a_log_level_that_is_none_is_told(tmp_path):
    (tmp_path / "log.properties").write_text("rootLogger.level = LOUD\n")
    with pytest.raises(ConfigError, match=r"rootLogger.level is 'LOUD'; expected DEBUG, INFO, WARN, ERROR"):
        log_level(str(tmp_path))


def test_functions_of_a_program_are_compiled_as_their_own_file_says(tmp_path, monkeypatch):
    """Those of a file that was compiled otherwise, as with annotations that are texts, would never work on columns."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    (tmp_path / "job.py").write_text("def f(r: tuple) -> int:\n    return r[0] + 1\n\n\ng = lambda r: r[0] + 1\n")
    run(str(tmp_path / "job.py"), "")
    program = sys.modules["__main__"]
    assert program.f.__annotations__ == {"r": tuple, "return": int}
    assert [tree_of(function) is not None for function in (program.f, program.g)] == [True, True]
