"""Reading Hadoop's client configuration."""

from __future__ import annotations

import pytest

from engine.core.errors import ConfigError
from flink_yarn.hadoop_conf import HadoopConf


def conf(tmp_path, **files: dict[str, str]) -> HadoopConf:
    for name, values in files.items():
        rows = "".join(f"<property><name>{k}</name><value>{v}</value></property>" for k, v in values.items())
        (tmp_path / f"{name.replace('_', '-')}.xml").write_text(f"<configuration>{rows}</configuration>")
    return HadoopConf.load({"HADOOP_CONF_DIR": str(tmp_path)})


def test_later_files_win_and_variables_are_expanded(tmp_path):
    found = conf(tmp_path, core_site={"a": "1", "b": "${a}-${missing}"}, yarn_site={"a": "2"})
    assert found.get("a") == "2"
    assert found.get("b") == "2-${missing}"
    assert found.get("c", "d") == "d"


def test_variables_that_go_round_end(tmp_path):
    assert "${" in conf(tmp_path, core_site={"a": "${b}", "b": "${a}"}).get("a")


def test_yarn_conf_dir_serves_when_the_other_is_not_set(tmp_path):
    conf(tmp_path, core_site={"a": "1"})
    assert HadoopConf.load({"YARN_CONF_DIR": str(tmp_path)}).get("a") == "1"
    assert HadoopConf.load({}).conf_dir is None


def test_a_folder_that_is_none_and_a_file_that_is_no_xml_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"HADOOP_CONF_DIR is .*not a folder"):
        HadoopConf.load({"HADOOP_CONF_DIR": str(tmp_path / "x")})
    (tmp_path / "core-site.xml").write_text("<configuration>")
    with pytest.raises(ConfigError, match=r"core-site.xml is not XML"):
        HadoopConf.load({"HADOOP_CONF_DIR": str(tmp_path)})


def test_the_default_file_system_must_be_hdfs(tmp_path):
    assert conf(tmp_path, core_site={"fs.defaultFS": "hdfs://nn:8020"}).default_authority() == "nn:8020"
    with pytest.raises(ConfigError, match=r"fs.defaultFS is 's3://x'"):
        conf(tmp_path, core_site={"fs.defaultFS": "s3://x"}).default_authority()
    with pytest.raises(ConfigError, match="HADOOP_CONF_DIR is not set"):
        HadoopConf.load({}).default_authority()


def test_a_plain_name_node_is_found_by_its_http_address_or_by_the_default_port(tmp_path):
    values = {"fs.defaultFS": "hdfs://nn:8020", "dfs.namenode.http-address": "nn:5070"}
    found = conf(tmp_path, core_site=values)
    assert found.name_nodes("nn:8020").http_urls == ("http://nn:5070",)
    assert found.name_nodes("nn").http_urls == ("http://nn:5070",)  # 8020 is the default
    assert found.name_nodes("other:8020").http_urls == ("http://other:9870",)


def test_a_nameservice_has_all_its_name_nodes(tmp_path):
    found = conf(
        tmp_path,
        hdfs_site={
            "dfs.nameservices": "prod",
            "dfs.ha.namenodes.prod": "a, b",
            "dfs.namenode.http-address.prod.a": "one:9870",
            "dfs.namenode.http-address.prod.b": "two:9870",
        },
    )
    assert found.name_nodes("prod").http_urls == ("http://one:9870", "http://two:9870")


def test_a_nameservice_without_addresses_names_the_keys(tmp_path):
    found = conf(tmp_path, hdfs_site={"dfs.nameservices": "prod"})
    with pytest.raises(ConfigError, match=r"dfs.ha.namenodes.prod"):
        found.name_nodes("prod")


def test_secure_web_addresses_are_used_when_the_policy_says_so(tmp_path):
    values = {
        "dfs.nameservices": "p",
        "dfs.ha.namenodes.p": "a",
        "dfs.http.policy": "HTTPS_ONLY",
        "dfs.namenode.https-address.p.a": "one:9871",
    }
    assert conf(tmp_path, hdfs_site=values).name_nodes("p").http_urls == ("https://one:9871",)
