"""What is asked of YARN for a configuration."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from flink_yarn.cluster_spec import (
    EXIT_NO_PYTHON,
    LocalFiles,
    Mode,
    YarnLimits,
    application_spec,
    exit_message,
    plan_cluster,
    session_config,
)
from flink_yarn.master_log import log4j_properties

MINOR = sys.version_info.minor
FILES = LocalFiles(
    ("hdfs://nn:1/engine.zip", "hdfs://nn:1/packages.zip"),
    "file:///tmp/conf.zip",
    "",
    {"data": ("file:///tmp/data.zip", True), "words.txt": ("hdfs://nn:1/words.txt", False)},
)


def config(**values: str) -> Configuration:
    names = {
        "n": "$internal.yarn.num-taskmanagers",
        "s": "taskmanager.numberOfTaskSlots",
        "jm": "jobmanager.memory.process.size",
        "tm": "taskmanager.memory.process.size",
        "qu": "yarn.application.queue",
    }
    return Configuration({names.get(key, key): value for key, value in values.items()})


def spec_of(plan, files=FILES):
    skein = pytest.importorskip("skein")
    return application_spec(plan, files, user="alice", home="hdfs://nn:1/user/alice", java_opens="--x", skein=skein)


def test_the_options_of_a_session_become_containers():
    plan = plan_cluster(config(n="2", s="3", jm="1024m", tm="2g"), Mode.SESSION)
    assert plan.describe() == (
        "Cluster specification: "
        "ClusterSpecification{masterMemoryMB=1024, taskManagerMemoryMB=2048, slotsPerTaskManager=3}"
    )
    spec = spec_of(plan)
    service = spec.services["taskmanager"]
    assert (spec.master.resources.memory, spec.master.resources.vcores) == (1024, 1)
    assert (service.resources.memory, service.resources.vcores, service.instances) == (2048, 3, 2)
    assert (service.max_restarts, service.allow_failures) == (0, True)
    assert (spec.name, spec.queue, spec.max_attempts) == ("Flink session cluster", "default", 1)


def test_the_masters_memory_is_divided_and_the_division_is_told():
    plan = plan_cluster(config(jm="1024m"), Mode.SESSION)
    assert plan.jobmanager_mb == 704
    assert "320 MB are for YARN's Java ApplicationMaster (skein) and 704 MB for the JobManager" in plan.division()
    assert session_config(plan).get_string("jobmanager.memory.process.size") == "704m"


def test_without_n_containers_come_on_demand_and_a_jobs_first_ones_at_once():
    plan = plan_cluster(config(s="2"), Mode.PER_JOB, slots_needed=5)
    assert plan.on_demand
    assert spec_of(plan).services["taskmanager"].instances == 3
    assert spec_of(plan_cluster(config(s="2"), Mode.SESSION)).services["taskmanager"].instances == 0


@pytest.mark.parametrize(
    ("values", "limits", "said"),
    [
        ({"jm": "300m"}, YarnLimits(), r"-jm.* has 300 MB; expected at least 512 MB"),
        ({"tm": "256m", "s": "2"}, YarnLimits(), r"-tm.* has 256 MB; expected at least 320 MB for 2 slots"),
        ({"tm": "9g"}, YarnLimits(8192), r"-tm.* is to have 9216 MB, but the largest container .* has 8192 MB"),
        ({"jm": "9g"}, YarnLimits(8192), r"-jm.* is to have 9216 MB, but the largest container .* has 8192 MB"),
        ({"s": "9", "tm": "2g"}, YarnLimits(8192, 8), r"9 virtual cores, but the largest container .* has 8"),
        ({"qu": "x"}, YarnLimits(queues=("root.a", "root.b")), r"YARN has no queue 'x'.*it has: a, b"),
        ({"qu": "a"}, YarnLimits(queues=("root.a",), stopped_queues={"a": "STOPPED"}), r"'a' is STOPPED"),
        ({"n": "-1"}, YarnLimits(), r"\(-n\) is -1"),
        ({"yarn.application-attempts": "0"}, YarnLimits(), "yarn.application-attempts is 0"),
        ({"yarn.tags": "größe"}, YarnLimits(), "expected ASCII"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_submitted(values, limits, said):
    with pytest.raises(ConfigError, match=said):
        plan_cluster(config(**values), Mode.SESSION, limits=limits)


@pytest.mark.parametrize("queue", ["a", "root.a"])
def test_a_queue_may_be_named_by_its_path(queue):
    assert plan_cluster(config(qu=queue), Mode.SESSION, limits=YarnLimits(queues=("root.a",))).queue == queue


def test_addresses_and_folders_of_the_client_do_not_travel():
    plan = plan_cluster(
        config(
            **{
                "jobmanager.rpc.address": "laptop",
                "rest.port": "9",
                "io.tmp.dirs": "/x",
                "execution.target": "yarn-per-job",
                "env.log.dir": "/l",
                "parallelism.default": "7",
            }
        ),
        Mode.SESSION,
    )
    assert session_config(plan).to_dict().keys() == {
        "parallelism.default",
        "jobmanager.memory.process.size",
        "taskmanager.memory.process.size",
    }


def test_everybody_gets_engine_configuration_and_shipped_files_and_the_master_the_job():
    skein = pytest.importorskip("skein")
    plan = plan_cluster(config(), Mode.PER_JOB)
    spec = spec_of(plan, LocalFiles(FILES.dist, FILES.conf, "file:///tmp/job.zip", FILES.shipped))
    common = {"flink-engine.zip", "flink-packages.zip", "flink-conf", "data", "words.txt"}
    assert spec.services["taskmanager"].files.keys() == common
    assert spec.master.files.keys() == common | {"flink-job"}
    assert spec.master.files["flink-engine.zip"].visibility is skein.model.FileVisibility.PRIVATE
    assert spec.master.files["flink-engine.zip"].type is skein.model.FileType.FILE
    assert spec.master.files["data"].type is skein.model.FileType.ARCHIVE
    assert spec.master.env["JDK_JAVA_OPTIONS"] == "--x"
    assert spec.master.env["FLINK_YARN_MODE"] == "per-job"
    assert '"$dist:$PWD/data:$PWD"' in spec.master.script


def test_users_may_set_the_environment_of_containers():
    plan = plan_cluster(
        config(**{"containerized.master.env.A": "1", "containerized.taskmanager.env.B": "2"}), Mode.SESSION
    )
    spec = spec_of(plan)
    assert spec.master.env["A"] == "1"
    assert "B" not in spec.master.env
    assert spec.services["taskmanager"].env["B"] == "2"


def test_labels_tags_attempts_and_acls_reach_yarn():
    plan = plan_cluster(
        config(
            **{
                "yarn.application.node-label": "gpu",
                "yarn.tags": "a, b",
                "yarn.application-attempts": "3",
                "yarn.view.acls": "ann,bob staff",
            }
        ),
        Mode.SESSION,
    )
    spec = spec_of(plan)
    assert (spec.node_label, spec.tags, spec.max_attempts) == ("gpu", {"a", "b"}, 3)
    assert (spec.acls.enable, spec.acls.view_users, spec.acls.view_groups) == (True, ["ann", "bob"], ["staff"])


@pytest.mark.parametrize("mode", list(Mode))
def test_the_scripts_are_bash(mode):
    spec = spec_of(plan_cluster(config(), mode))
    for script in (spec.master.script, spec.services["taskmanager"].script):
        done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
        assert done.stderr == ""


def run_script(script, tmp_path, python):
    """Run a container's script with a made-up interpreter; return (exit code, what it wrote)."""
    (tmp_path / "log").mkdir()
    program = tmp_path / "python"
    program.write_text(f"#!/bin/bash\n{python}\n")
    program.chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "LOG_DIRS": str(tmp_path / "log"), "LOCAL_DIRS": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, timeout=120)
    return done.returncode, "".join(path.read_text() for path in (tmp_path / "log").glob("*.out"))


@pytest.mark.parametrize(
    ("python", "code", "said"),
    [
        ("echo 3.7", 107, f"has Python 3.7, but the engine was packed for Python 3.{MINOR}"),
        ("exit 1", 99, f"has no Python .*, but the engine was packed for Python 3.{MINOR}"),
    ],
)
def test_another_python_on_the_node_is_told_first_thing(tmp_path, python, code, said):
    import re

    plan = plan_cluster(config(**{"python.executable": str(tmp_path / "python")}), Mode.SESSION)
    found, text = run_script(spec_of(plan).master.script, tmp_path, python)
    assert found == code
    assert re.search(said, text)
    assert "-pyexec" in text
    message = exit_message(f"Application driver failed with exit code {code}, see logs for more information.")
    assert f"packed for Python 3.{MINOR}" in message


def test_an_interpreter_that_is_not_in_the_archive_is_named():
    message = exit_message(f"Application driver failed with exit code {EXIT_NO_PYTHON}, see logs", "venv/bin/python4")
    assert message.startswith("The interpreter 'venv/bin/python4' (-pyexec, python.executable) cannot be run on YARN's")


def test_other_ends_of_the_master_have_no_message_of_ours():
    assert exit_message("Application driver failed with exit code 1, see logs") == ""
    assert exit_message("killed by user") == ""


@pytest.mark.parametrize(
    ("mode", "ha", "is_supervised"),
    [(Mode.SESSION, "NONE", True), (Mode.PER_JOB, "NONE", False), (Mode.PER_JOB, "zookeeper", True)],
)
def test_only_a_jobmanager_whose_jobs_would_not_silently_begin_anew_is_supervised(tmp_path, mode, ha, is_supervised):
    # The made-up interpreter answers the version, "unpacks", and says what it is to run and who its parent's parent is.
    python = f'case "$*" in *version_info*) echo 3.{MINOR};; *zipfile*) echo /x;;'
    python += " *) echo ran $* ${FLINK_MASTER_PID:-none}; exit 137;; esac"
    settings = {"python.executable": str(tmp_path / "python"), "high-availability.type": ha}
    code, text = run_script(spec_of(plan_cluster(config(**settings), mode)).master.script, tmp_path, python)
    assert code == 137
    module = "flink_yarn.master_supervisor" if is_supervised else "flink_yarn.application_master"
    assert text == f"ran -P -m {module} {os.getpid() if is_supervised else 'none'}\n"


def test_the_java_application_master_logs_within_the_bounds_of_all_logs():
    spec = spec_of(plan_cluster(config(), Mode.SESSION), dataclasses.replace(FILES, master_log4j="file:///tmp/log4j"))
    assert spec.master.log_config.source == "file:///tmp/log4j"
    assert spec_of(plan_cluster(config(), Mode.SESSION)).master.log_config is None
    said = log4j_properties(Configuration({"env.log.max-size": "1 mb", "env.log.max": "3"})).splitlines()
    assert "log4j.appender.file.MaxFileSize=1048576" in said
    assert "log4j.appender.file.MaxBackupIndex=3" in said
    assert "log4j.appender.file.File=${skein.log.directory}/applicationmaster.log" in said
