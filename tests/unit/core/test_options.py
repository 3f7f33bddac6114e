"""Options: the generated files are fresh, values are checked, keys without effect are told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.core.config import (
    Configuration,
    find_config_dir,
    load_config_dir,
    parse_config_text,
    parse_dynamic_properties,
)
from engine.core.errors import ConfigError
from engine.core.option_warnings import NOT_SUPPORTED_YET, check_values, key_warnings
from engine.core.options import ClusterOptions, JobOptions, MemoryOptions, RestOptions, all_options
from engine.core.options_docs import configuration_page, configuration_template

ROOT = Path(__file__).resolve().parents[3]
REFRESH = "run: python -m engine.core.options_docs"


def test_the_configuration_page_is_fresh():
    assert (ROOT / "docs" / "CONFIGURATION.md").read_text() == configuration_page(), REFRESH


def test_the_configuration_template_is_fresh():
    assert (ROOT / "conf" / "flink-conf.yaml").read_text() == configuration_template(), REFRESH


def test_the_template_says_the_defaults():
    text = "\n".join(
        line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line
        for line in configuration_template().splitlines()
    )
    config = Configuration(parse_config_text(text, "flink-conf.yaml"))
    differing = [o.key for o in all_options() if config.contains(o) and config.get(o) != o.default]
    assert differing == []
    assert len(config.key_set()) == len([o for o in all_options() if not o.key.startswith("$internal.")])


def test_no_key_is_declared_twice():
    keys = [key for option in all_options() for key in (option.key, *option.older_keys)]
    assert len(keys) == len(set(keys))


def test_a_key_that_is_read_is_not_listed_as_unsupported():
    assert {option.key for option in all_options()} & NOT_SUPPORTED_YET == set()


def test_known_and_free_keys_are_silent():
    keys = ["rest.port", "web.port", "env.java.opts", "flink.hadoop.dfs.replication", "$internal.x"]
    assert key_warnings(keys) == []


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("paralelism.default", "parallelism.default"),
        ("rest.prot", "rest.port"),
        ("taskmanager.numberOfTaskSlot", "taskmanager.numberOfTaskSlots"),
        ("execution.checkpointing.intervall", "execution.checkpointing.interval"),
    ],
)
def test_a_misspelt_key_warns_with_the_nearest_one(key, near):
    (line,) = key_warnings([key])
    assert line == f"Configuration key {key} is unknown and has no effect. Did you mean {near}?"


def test_a_key_like_no_other_warns_without_a_hint():
    assert key_warnings(["my.own.thing"]) == ["Configuration key my.own.thing is unknown and has no effect."]


@pytest.mark.parametrize("key", ["state.changelog.enabled", "kubernetes.hostnetwork.enabled"])
def test_flinks_keys_without_effect_are_told_as_not_supported_yet(key):
    assert key_warnings([key]) == [f"Configuration key {key} is not supported yet and has no effect."]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("parallelism.default", "many", "parallelism.default is 'many'; expected a whole number."),
        ("parallelism.default", "0", "parallelism.default is '0'; expected a whole number of at least 1."),
        ("web.port", "70000", "web.port is '70000'; expected a port from 0 (any free one) to 65535."),
        ("heartbeat.timeout", "soon", "heartbeat.timeout is 'soon'; expected a duration such as 500 ms, 10 s"),
        ("jobmanager.heap.size", "1x", "jobmanager.heap.size is '1x'; expected a memory size such as 512m"),
        ("web.submit.enable", "maybe", "web.submit.enable is 'maybe'; expected true or false."),
    ],
)
def test_a_bad_value_says_key_value_and_expectation(key, value, message):
    with pytest.raises(ConfigError) as caught:
        check_values(Configuration({key: value}))
    assert str(caught.value).startswith(message)


def test_old_names_are_read():
    config = Configuration({"taskmanager.heap.mb": "2048", "web.port": "9", "jobmanager.heap.size": "1g"})
    assert config.get(MemoryOptions.TM_PROCESS) == 2048 << 20
    assert config.get(MemoryOptions.JM_PROCESS) == 1 << 30
    assert config.get(RestOptions.PORT) == 9


def test_the_folder_is_the_named_one_or_the_one_beside_the_code(tmp_path):
    assert find_config_dir({"FLINK_CONF_DIR": str(tmp_path)}) == str(tmp_path)
    assert find_config_dir({}) == str(ROOT / "conf")


def test_a_named_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"FLINK_CONF_DIR is .*none.*; expected a folder"):
        find_config_dir({"FLINK_CONF_DIR": str(tmp_path / "none")})


def test_nested_and_flat_files_say_the_same(tmp_path):
    (tmp_path / "flink-conf.yaml").write_text("# old\ntaskmanager.numberOfTaskSlots: 3 # three\nrest.port: 9\n")
    flat = load_config_dir(str(tmp_path))
    (tmp_path / "config.yaml").write_text("taskmanager:\n  numberOfTaskSlots: 3\nrest.port: 9\n")
    os.remove(tmp_path / "flink-conf.yaml")
    assert flat == load_config_dir(str(tmp_path))
    assert flat.get(ClusterOptions.NUM_SLOTS) == 3


def test_config_yaml_is_read_instead_of_the_old_file(tmp_path):
    (tmp_path / "flink-conf.yaml").write_text("parallelism.default: 1\n")
    (tmp_path / "config.yaml").write_text("parallelism:\n  default: 2\n")
    assert load_config_dir(str(tmp_path)).get(JobOptions.PARALLELISM) == 2


def test_a_line_that_is_no_pair_names_file_and_line(tmp_path):
    (tmp_path / "flink-conf.yaml").write_text("rest.port: 9\nnonsense\n")
    with pytest.raises(ConfigError, match=r"flink-conf.yaml, line 2: 'nonsense'; expected 'key: value'"):
        load_config_dir(str(tmp_path))


def test_dynamic_properties_take_the_first_equals_sign():
    assert parse_dynamic_properties(["a=b=c", "flag", "x = 1"]) == {"a": "b=c", "flag": "true", "x": "1"}


def test_a_dynamic_property_without_key_is_an_error():
    with pytest.raises(ConfigError, match="has no key"):
        parse_dynamic_properties(["=1"])
