"""ParameterTool reads arguments as Flink's does."""

from __future__ import annotations

import pytest

from engine.common import ParameterTool
from engine.core.errors import ConfigError


def test_arguments_come_as_pairs_flags_and_equations():
    tool = ParameterTool.from_args(["--input", "hdfs:///in", "-n", "-3", "--verbose", "--rate=2.5", "--last"])
    assert tool.get("input") == "hdfs:///in"
    assert tool.get_int("n") == -3
    assert tool.get_boolean("verbose") is True
    assert tool.get_float("rate") == 2.5
    assert tool.has("last")
    assert tool.get("last", "default") == "default"


def test_an_argument_without_a_key_is_refused():
    with pytest.raises(ConfigError, match=r"^Argument 'stray' belongs to no key; expected --key value pairs\.$"):
        ParameterTool.from_args(["stray"])


def test_a_missing_required_key_says_how_to_give_it():
    with pytest.raises(ConfigError, match=r"No data for required key 'input'; give it as --input VALUE\."):
        ParameterTool.from_args([]).get_required("input")


def test_a_bad_number_names_key_value_and_expectation():
    with pytest.raises(ConfigError, match=r"^--n is 'x'; expected a whole number\.$"):
        ParameterTool.from_args(["--n", "x"]).get_int("n")


def test_properties_files_and_maps_merge(tmp_path):
    path = tmp_path / "job.properties"
    path.write_text("# comment\nrate = 10\nurl: http://host:1/x=y\n\n! other\n")
    tool = ParameterTool.from_properties_file(str(path)).merge_with(ParameterTool.from_map({"rate": 20}))
    assert tool.to_map() == {"rate": "20", "url": "http://host:1/x=y"}
    assert tool.get_configuration().get_integer("rate", 0) == 20
