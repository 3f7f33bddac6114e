"""Which HDFS client is used, and what is said when it cannot be."""

from __future__ import annotations

import sys

import pytest

from engine.core import fs
from engine.core.errors import ConfigError, ExternalError
from engine.core.fs import configure_file_systems, file_system_of
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.hdfs import HdfsFileSystem
from flink_yarn.hdfs_libhdfs import prepare_environment

CONF = HadoopConf({"fs.defaultFS": "hdfs://localhost:1"}, "/etc/hadoop/conf")


@pytest.fixture
def clean_settings(monkeypatch):
    monkeypatch.setattr(fs, "_settings", {})
    monkeypatch.setattr(fs, "_instances", {})
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("YARN_CONF_DIR", raising=False)


@pytest.fixture
def hadoop_home(tmp_path):
    """Folders that look like a Hadoop with libhdfs and a Java."""
    for name in ("hadoop/lib/native/libhdfs.so", "java/lib/server/libjvm.so"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    command = tmp_path / "hadoop" / "bin" / "hadoop"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\necho "/jars/hadoop-common.jar:$*"\n')
    command.chmod(0o755)
    return {
        "HADOOP_HOME": str(tmp_path / "hadoop"),
        "JAVA_HOME": str(tmp_path / "java"),
        "PATH": str(tmp_path / "none"),
    }


def test_libhdfs_gets_the_environment_that_it_asks_for(hadoop_home):
    prepare_environment(CONF, hadoop_home)
    home = hadoop_home["HADOOP_HOME"]
    assert hadoop_home["ARROW_LIBHDFS_DIR"] == f"{home}/lib/native"
    assert hadoop_home["CLASSPATH"] == "/etc/hadoop/conf:/jars/hadoop-common.jar:classpath --glob"
    assert "-Xrs" in hadoop_home["LIBHDFS_OPTS"]


def test_what_libhdfs_is_told_already_stays(hadoop_home):
    told = {"CLASSPATH": "/own/hadoop-common-3.jar", "LIBHDFS_OPTS": "-Xmx1g"}
    environ = {**hadoop_home, **told}
    prepare_environment(CONF, environ)
    assert {key: environ[key] for key in told} == told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"HADOOP_HOME": ""}, "libhdfs.so is missing: neither HADOOP_HOME nor ARROW_LIBHDFS_DIR is set"),
        (
            {"ARROW_LIBHDFS_DIR": "/nowhere", "HADOOP_HOME": "/no"},
            r"not in /nowhere, /no/lib/native, /no/lib\. Set HADOOP",
        ),
        ({"JAVA_HOME": ""}, r"libjvm.so is missing: there is no Java\. Set JAVA_HOME"),
        ({"JAVA_HOME": "/no/java"}, "libjvm.so is missing: /no/java has none"),
    ],
)
def test_what_libhdfs_lacks_is_named_with_the_way_out(hadoop_home, changes, message):
    with pytest.raises(ConfigError, match=f"fs.hdfs.client is libhdfs, but .*{message}.* webhdfs, which needs neither"):
        prepare_environment(CONF, {**hadoop_home, **changes})


def test_missing_classes_of_hadoop_are_named(hadoop_home, tmp_path):
    (tmp_path / "hadoop" / "bin" / "hadoop").unlink()
    with pytest.raises(ConfigError, match="Hadoop's classes are missing: there is no command `hadoop` in HADOOP_HOME"):
        prepare_environment(CONF, hadoop_home)


def test_the_native_client_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "hdfs_native", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[hdfs-native\]'"):
        HdfsFileSystem(CONF, "native").status("hdfs:///x")


@pytest.mark.parametrize("client", ["native", "webhdfs"])
def test_a_cluster_that_is_not_there_is_told_at_once(client):
    if client == "native":
        pytest.importorskip("hdfs_native")
    with pytest.raises(ExternalError, match="does not answer"):
        HdfsFileSystem(CONF, client).status("hdfs:///x")


def test_the_option_chooses_the_client_also_when_it_changes(clean_settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdfs_native", None)
    configure_file_systems({"fs.hdfs.client": "native", "parallelism.default": "4"})
    with pytest.raises(ConfigError, match=r"fs\.hdfs\.client is native"):
        file_system_of("hdfs://localhost:1/x").status("hdfs://localhost:1/x")
    configure_file_systems({"parallelism.default": "5"})
    with pytest.raises(ExternalError, match="does not answer"):
        file_system_of("hdfs://localhost:1/x").status("hdfs://localhost:1/x")


def test_file_systems_stay_when_other_options_change(clean_settings):
    configure_file_systems({"fs.x": "1", "parallelism.default": "4"})
    before = file_system_of("hdfs://localhost:1/x")
    configure_file_systems({"fs.x": "1", "parallelism.default": "5"})
    assert file_system_of("hdfs://localhost:1/x") is before


def test_addresses_of_a_nameservice_come_from_the_configuration():
    conf = HadoopConf(
        {
            "dfs.nameservices": "other, main",
            "dfs.ha.namenodes.main": "a, b",
            "dfs.namenode.rpc-address.main.a": "one:9000",
            "dfs.namenode.rpc-address.main.b": "two",
        },
        "/conf",
    )
    assert conf.rpc_addresses("main") == [("one", 9000), ("two", 8020)]
    assert conf.rpc_addresses("host:1") == [("host", 1)]
    with pytest.raises(ConfigError, match=r"Nameservice other has no dfs\.ha\.namenodes\.other"):
        conf.rpc_addresses("other")
