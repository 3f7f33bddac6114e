"""Failures become data that says operator, record and the user's own frames."""

from __future__ import annotations

from typing import Any

from engine.core.errors import ConfigError, UserCodeError
from engine.operators.failure import at_subtask, error_info, user_error


def divide(pair: Any) -> float:
    return 1 / pair[1]


def caught(function: Any, *arguments: Any) -> Exception:
    try:
        function(*arguments)
    except Exception as error:
        return error
    raise AssertionError("did not raise")


def test_a_user_error_says_operator_record_and_frames() -> None:
    error = user_error(caught(divide, ("a", 0)), operator_name="Map", record=("a", 0))
    lines = str(error).splitlines()
    assert lines[0] == "ZeroDivisionError: division by zero"
    assert lines[1] == "  in operator 'Map' on record: ('a', 0)"
    assert any("return 1 / pair[1]" in line for line in lines)


def test_without_a_record_only_the_operator_is_named() -> None:
    error = user_error(caught(divide, ("a", 0)), operator_name="Map")
    assert str(error).splitlines()[1] == "  in operator 'Map'"


def test_of_several_subtasks_the_one_that_failed_is_named_behind_its_operator() -> None:
    info = error_info(user_error(caught(divide, ("a", 0)), operator_name="Map", record=("a", 0)))
    told = at_subtask(info, 1, 4).message.splitlines()
    assert told[1:3] == ["  in operator 'Map' on record: ('a', 0)", "  in subtask 2 of 4"]
    assert any("return 1 / pair[1]" in line for line in told[3:])
    assert at_subtask(info, 0, 1) is info
    assert at_subtask(error_info(ConfigError("no")), 2, 3).message == "no\n  in subtask 3 of 3"
    ours = error_info(AssertionError("a bug"))
    assert at_subtask(ours, 1, 4) is ours


def test_a_user_error_is_wrapped_once() -> None:
    error = user_error(caught(divide, ("a", 0)), operator_name="Map", record=1)
    assert user_error(error, operator_name="Outer", record=2) is error


def test_error_info_of_a_user_error_has_the_original_type() -> None:
    info = error_info(user_error(caught(divide, ("a", 0)), operator_name="Map", record=("a", 0)))
    assert (info.type_name, info.domain) == ("ZeroDivisionError", "user")
    assert "in operator 'Map'" in info.message
    assert "return 1 / pair[1]" in info.trace


def test_error_info_knows_domains() -> None:
    assert error_info(ConfigError("bad")).domain == "user"
    assert error_info(caught(divide, ("a", 0))).domain == "user"
    assert error_info(OSError(28, "No space left on device")).domain == "external"
    assert error_info(AssertionError("bug")).domain == "internal"
    assert error_info(UserCodeError("plain")).type_name == "UserCodeError"


def test_a_text_of_megabytes_is_cut_in_the_middle():
    error = error_info(user_error(ValueError("begin" + "x" * 1_000_000 + "end"), operator_name="Map", record=1))
    assert len(error.message) < 20_000
    assert len(error.trace) < 20_000
    assert error.message.startswith("ValueError: beginxxx")
    assert "characters left out" in error.message
    assert "xxxend\n  in operator 'Map' on record: 1" in error.message
