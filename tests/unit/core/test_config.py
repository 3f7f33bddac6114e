"""Configuration values: Flink's syntax, and errors that say key, value and expectation."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.config import (
    ConfigOption,
    Configuration,
    duration_ms,
    format_memory,
    integer,
    load_config_dir,
    memory_bytes,
    parse_config_text,
    parse_dynamic_properties,
)
from engine.core.errors import ConfigError

PORT = ConfigOption(
    "rest.port", integer, 8081, "Port.", ("web.port",), check=(lambda v: 0 <= v <= 65535, "a port from 0 to 65535")
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500", 500), ("500ms", 500), (" 10 s ", 10_000), ("1.5 s", 1500), ("1 min", 60_000), ("2h", 7_200_000),
     ("1 d", 86_400_000), ("3000 µs", 3), ("5 MIN", 300_000)],
)  # fmt: skip
def test_durations_are_read_as_flink_writes_them(text: str, expected: int) -> None:
    assert duration_ms(text) == expected


@pytest.mark.parametrize("text", ["", "s", "ten s", "-1 s", "1 parsec", "1 s s"])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="500 ms, 10 s"):
        duration_ms(text)


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [("1024m", "b", 1 << 30), ("2 gb", "b", 2 << 30), ("1024", "m", 1 << 30), ("64", "b", 64), ("1 TB", "b", 1 << 40)],
)
def test_memory_sizes_are_read_as_flink_writes_them(text: str, unit: str, expected: int) -> None:
    assert memory_bytes(text, unit) == expected


def test_memory_sizes_survive_the_way_back() -> None:
    for size in (0, 1, 1 << 10, 1500, 3 << 20, 1 << 30, (1 << 30) + 1):
        assert memory_bytes(format_memory(size)) == size


@pytest.mark.parametrize("text", ["", "m", "1.5g", "-1m", "1 parsec"])
def test_what_is_no_memory_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="512m"):
        memory_bytes(text)


def test_an_option_is_read_from_its_key_else_an_older_one_else_its_default() -> None:
    assert Configuration().get(PORT) == 8081
    assert Configuration({"web.port": "1"}).get(PORT) == 1
    assert Configuration({"web.port": "1", "rest.port": "2"}).get(PORT) == 2
    assert Configuration({"web.port": "1"}).contains(PORT)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rest.port": "many"}, "rest.port is 'many'; expected a whole number."),
        ({"web.port": "70000"}, "web.port is '70000'; expected a port from 0 to 65535."),
    ],
)
def test_a_bad_value_is_an_error_with_key_value_and_expectation(values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Configuration(values).get(PORT)
    assert str(caught.value) == message


def test_pyflinks_getters_and_setters() -> None:
    config = Configuration()
    config.set_integer("i", 3).set_boolean("b", True).set_float("f", 0.5).set_bytearray("y", bytearray(b"\x01"))
    assert config.get_integer("i", 0) == 3
    assert config.get_boolean("b", False) is True
    assert config.get_float("f", 0) == 0.5
    assert config.get_bytearray("y", bytearray()) == bytearray(b"\x01")
    assert config.get_string("none", "default") == "default"
    assert config.to_dict()["b"] == "true"
    assert config.key_set() == {"i", "b", "f", "y"}
    assert config.remove_config("i")
    assert not config.remove_config("i")
    with pytest.raises(ConfigError, match="b is 'true'; expected a whole number"):
        config.get_integer("b", 0)


def test_configurations_are_copied_and_merged() -> None:
    first = Configuration({"a": 1})
    second = Configuration(first).add_all({"b": "2"}, "x.")
    assert first.to_dict() == {"a": "1"}
    assert second.to_dict() == {"a": "1", "x.b": "2"}
    assert Configuration({"a": "1"}) == first
    assert Configuration.parse_list_value("a;b; c") == Configuration.parse_list_value("[a, b, c]") == ["a", "b", "c"]


def test_dynamic_properties() -> None:
    assert parse_dynamic_properties(["a=1", "b", "c=x=y", " d = 2 "]) == {"a": "1", "b": "true", "c": "x=y", "d": "2"}
    with pytest.raises(ConfigError, match=r"-D=1 has no key; expected -Dkey=value"):
        parse_dynamic_properties(["=1"])


def test_the_flat_file_of_flink_1_is_read() -> None:
    text = '# comment\n\njobmanager.rpc.address: host\n  rest.port: 8081 # why\nenv.java.opts: "-Da: b"\nempty:\n'
    assert parse_config_text(text, "flink-conf.yaml") == {
        "jobmanager.rpc.address": "host",
        "rest.port": "8081",
        "env.java.opts": "-Da: b",
        "empty": "",
    }
    with pytest.raises(ConfigError, match=r"flink-conf.yaml, line 2: 'nonsense'; expected 'key: value'"):
        parse_config_text("a: b\nnonsense\n", "flink-conf.yaml")


def test_real_yaml_is_flattened() -> None:
    text = (
        "rest:\n  port: 8081\n  bind-address: 0.0.0.0\nparallelism.default: 2\nweb.submit.enable: true\nlist: [a, b]\n"
    )
    assert parse_config_text(text, "config.yaml") == {
        "rest.port": "8081",
        "rest.bind-address": "0.0.0.0",
        "parallelism.default": "2",
        "web.submit.enable": "true",
        "list": "a;b",
    }
    with pytest.raises(ConfigError, match=r"config\.yaml is not YAML"):
        parse_config_text("a: [", "config.yaml")
    with pytest.raises(ConfigError, match="holds a list"):
        parse_config_text("- a", "config.yaml")


def test_config_yaml_is_preferred_and_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    assert load_config_dir(None) == load_config_dir(str(tmp_path)) == Configuration()
    (tmp_path / "flink-conf.yaml").write_text("a: old")
    assert load_config_dir(str(tmp_path)).get_string("a") == "old"
    (tmp_path / "config.yaml").write_text("a: new")
    assert load_config_dir(str(tmp_path)).get_string("a") == "new"
    (tmp_path / "config.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"Cannot read configuration file .*config\.yaml"):
        load_config_dir(str(tmp_path))
    with pytest.raises(ConfigError, match="does not exist; set FLINK_CONF_DIR"):
        load_config_dir(str(tmp_path / "absent"))
