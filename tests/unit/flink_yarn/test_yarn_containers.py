"""What runs in YARN's containers decides for itself, and what is shipped to them; no YARN here."""

from __future__ import annotations

import contextlib
import json
import zipfile
from types import SimpleNamespace

import pytest

from engine.core.config import Configuration
from engine.core.errors import ConfigError, ExternalError
from engine.core.options import ClusterOptions, RestOptions
from engine.protocol.lifecycle import JobStatus
from flink_yarn import application_config, application_master
from flink_yarn.application_config import bind_host
from flink_yarn.application_end import outcome_of, shut_down
from flink_yarn.application_master import ApplicationMaster, Outcome
from flink_yarn.cluster_spec import Mode
from flink_yarn.program import Program
from flink_yarn.session_client import _program_files, _shipped
from flink_yarn.taskmanager_container import container_config


def graph(status: JobStatus, message: str = "", container: str | None = None) -> SimpleNamespace:
    failure = SimpleNamespace(message=message) if message else None
    entry = SimpleNamespace(endpoint="node1:45", resource_id=container)
    return SimpleNamespace(
        status=status, failure=failure, exceptions=[entry] if message else [], job_graph=SimpleNamespace(name="wc")
    )


@pytest.mark.parametrize(
    ("ended", "outcome"),
    [
        (graph(JobStatus.FINISHED), Outcome("SUCCEEDED", "Job 'wc' finished.")),
        (graph(JobStatus.CANCELED), Outcome("KILLED", "Job 'wc' was cancelled.")),
        (graph(JobStatus.FAILED, "the root cause"), Outcome("FAILED", "the root cause")),
        (graph(JobStatus.FAILED), Outcome("FAILED", "Job 'wc' failed.")),
        (
            graph(JobStatus.FAILED, "the root cause", "container_e17_17_0042_02_000003"),
            Outcome(
                "FAILED",
                "the root cause\nThis was on node1:45 in container_e17_17_0042_02_000003; its log: "
                "yarn logs -applicationId application_17_0042 -containerId container_e17_17_0042_02_000003",
            ),
        ),
    ],
)
def test_an_application_ends_as_its_job(ended, outcome):
    assert outcome_of(ended) == outcome


@pytest.mark.parametrize(
    ("mode", "ended", "status"),
    [
        (Mode.SESSION, [], "SUCCEEDED"),
        (Mode.PER_JOB, [graph(JobStatus.FAILED, "x")], "FAILED"),
        (Mode.PER_JOB, [], "KILLED"),
    ],
)
def test_a_cluster_that_is_stopped_says_what_that_meant(mode, ended, status):
    master = ApplicationMaster(None, Configuration(), mode, "me")
    master._ended_jobs = ended
    assert master._outcome_at_stop().status == status


@pytest.mark.parametrize(
    ("attempt", "again", "has_led", "tells_yarn"),
    [(1, "0", False, True), (1, "1", False, False), (2, "0", False, False), (1, "0", True, False)],
)
def test_a_quorum_that_does_not_answer_ends_what_has_never_led_and_is_waited_for_by_all_others(
    monkeypatch, tmp_path, attempt, again, has_led, tells_yarn
):
    """Who has just submitted it reads why at once; where jobs may be going on, the next process tries again."""
    told = []
    application = SimpleNamespace(shutdown=lambda status, text: told.append((status, text)))
    skein = SimpleNamespace(ApplicationClient=SimpleNamespace(from_current=lambda: application))
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "CONTAINER_ID": f"container_1_0001_0{attempt}_000001",
        "FLINK_RESTART": again,
        "FLINK_LOGS": str(tmp_path),
        "SKEIN_APPLICATION_ID": "application_1_0001",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(application_master, "skein_module", lambda: skein)
    monkeypatch.setattr(application_master, "configure_logging", lambda *words: None)
    monkeypatch.setattr(application_master, "bounded_output", lambda *words: contextlib.nullcontext())
    config = Configuration({"high-availability.type": "zookeeper"})
    monkeypatch.setattr(application_master, "effective_config", lambda mode, again: config)
    monkeypatch.setattr(application_master.sys, "argv", ["application_master"])

    def run(master: ApplicationMaster) -> Outcome:
        if has_led:
            master._handle = SimpleNamespace()  # type: ignore[assignment]
        raise ExternalError("ZooKeeper at zk:2181 did not answer")

    assert application_master.main(run) == (1 if tells_yarn else application_master.EXIT_CRASH)
    assert told == ([("FAILED", "ZooKeeper at zk:2181 did not answer")] if tells_yarn else [])


def test_long_diagnostics_keep_their_head_and_end():
    said: list[tuple[str, str]] = []
    application = SimpleNamespace(shutdown=lambda status, text: said.append((status, text)))
    shut_down(application, Outcome("FAILED", "head" + "x" * 10_000 + "end"))
    status, text = said[0]
    assert status == "FAILED"
    assert len(text) < 4100
    assert text.startswith("head")
    assert text.endswith("end")


def test_a_jobmanager_that_is_started_again_has_its_ports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = application_config.ports(again=False)
    assert application_config.ports(again=True) == first
    (tmp_path / "jobmanager.ports").unlink()
    assert all(application_config.ports(again=True))


def test_the_jobmanager_listens_where_its_node_is_reached(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key, value in {"NM_HOST": "localhost", "TMPDIR": "/t", "SKEIN_APPLICATION_ID": "application_1_0001"}.items():
        monkeypatch.setenv(key, value)
    (tmp_path / "flink-conf").mkdir()
    (tmp_path / "flink-conf" / "config.yaml").write_text(json.dumps({"rest.bind-port": "8081", "a": "b # c"}))
    config = application_config.effective_config(Mode.PER_JOB, again=False)
    assert config.get_string("a") == "b # c"
    assert config.get(ClusterOptions.RPC_ADDRESS) == config.get(RestOptions.ADDRESS) == "localhost"
    assert config.get(RestOptions.BIND_PORT) == str(config.get(RestOptions.PORT)) != "8081"
    assert config.get(RestOptions.SUBMIT_ENABLE) is False


def test_a_node_known_only_to_itself_is_not_opened_to_the_world(monkeypatch):
    assert bind_host("localhost") == "localhost"
    monkeypatch.setattr("socket.gethostbyname", lambda name: "10.0.0.1")
    assert bind_host("node1") == "0.0.0.0"


def test_a_taskmanager_is_known_by_its_container_and_works_in_its_folder():
    environ = {"CONTAINER_ID": "container_1", "NM_HOST": "localhost", "TMPDIR": "/c/tmp"}
    environ["SKEIN_APPLICATION_ID"] = "application_1_2"
    config = container_config(Configuration({"a": "b"}), {"host": "jm", "port": 7}, environ)
    assert (config.get(ClusterOptions.RPC_ADDRESS), config.get(ClusterOptions.RPC_PORT)) == ("jm", 7)
    assert config.get(ClusterOptions.TM_RESOURCE_ID) == "container_1"
    assert config.get(ClusterOptions.TMP_DIRS) == "/c/tmp"
    assert config.get_string("a") == "b"


def test_shipped_folders_are_packed_and_archives_are_unpacked_there(tmp_path):
    (tmp_path / "data" / "inner").mkdir(parents=True)
    (tmp_path / "data" / "inner" / "x.txt").write_text("x")
    (tmp_path / "one.txt").write_text("1")
    zipfile.ZipFile(tmp_path / "env.zip", "w").close()
    (tmp_path / "work").mkdir()
    config = Configuration(
        {
            "yarn.ship-files": f"{tmp_path}/data;{tmp_path}/one.txt;hdfs:///r/two.txt",
            "python.archives": f"{tmp_path}/env.zip#venv",
        }
    )
    found = _shipped(config, str(tmp_path / "work"))
    assert found["one.txt"] == (f"file://{tmp_path}/one.txt", False)
    assert found["two.txt"] == ("hdfs:///r/two.txt", False)
    assert found["venv"] == (f"file://{tmp_path}/env.zip", True)
    packed, is_archive = found["data"]
    assert is_archive
    assert zipfile.ZipFile(packed.removeprefix("file://")).namelist() == ["inner/x.txt"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("yarn.ship-files", "/no/such/file", "which does not exist"),
        ("python.archives", "{tmp}/a.txt", "expected a .zip"),
        ("yarn.ship-files", "{tmp}/a.txt;{tmp}/b/a.txt", "two things named 'a.txt'"),
    ],
)
def test_what_cannot_be_shipped_is_told(tmp_path, key, value, said):
    (tmp_path / "b").mkdir()
    for name in ("a.txt", "b/a.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match=said):
        _shipped(Configuration({key: value.format(tmp=tmp_path)}), str(tmp_path))


def test_a_program_travels_with_its_files(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    for name in ("main.py", "requirements.txt"):
        (tmp_path / name).write_text("")
    config = Configuration(
        {"python.files": f"{tmp_path}/package,hdfs:///lib.zip", "python.requirements": f"{tmp_path}/requirements.txt"}
    )
    files, spec = _program_files(config, Program(f"{tmp_path}/main.py", "", (), ("--x", "1")))
    assert files == {
        "program/main.py": f"{tmp_path}/main.py",
        "python-0/package/__init__.py": f"{tmp_path}/package/__init__.py",
        "requirements/requirements.txt": f"{tmp_path}/requirements.txt",
    }
    assert spec == {
        "path": "program/main.py",
        "entry": "",
        "arguments": ["--x", "1"],
        "python_files": ["python-0/package", "hdfs:///lib.zip"],
        "requirements": "requirements/requirements.txt",
    }
