"""The command line's grammar: every spelling that Flink's users type, and what wrong ones are told."""

from __future__ import annotations

import pytest

from engine.core.errors import ConfigError
from flink_yarn.cli_help import action_help, general_help, invalid_action
from flink_yarn.cli_options import ACTIONS, parse_options


def parse(line: str):
    action, *words = line.split()
    return parse_options(ACTIONS[action], words)


def test_short_and_long_names_are_the_same_option():
    for line in (
        "run -p 4 x.py",
        "run --parallelism 4 x.py",
        "run --parallelism=4 x.py",
        "run -p=4 x.py",
        "run -p4 x.py",
    ):
        assert parse(line).get("parallelism") == "4", line


def test_a_long_name_may_have_one_dash():
    assert parse("run -parallelism 4 x.py").get("parallelism") == "4"
    assert parse("run -detached x.py").has("detached")


def test_dynamic_properties_are_read_in_one_word_and_in_two():
    parsed = parse("run -Da=1 -D b=2=3 -yDc=4 -yD d=5 x.py")
    assert parsed.all("D") == ["a=1", "b=2=3"]
    assert parsed.all("yD") == ["c=4", "d=5"]


def test_what_follows_the_program_belongs_to_it():
    parsed = parse("run -p 2 job.py -p 3 --input x -d")
    assert parsed.get("parallelism") == "2"
    assert parsed.arguments == ["job.py", "-p", "3", "--input", "x", "-d"]
    assert not parsed.has("detached")


def test_with_py_the_first_unknown_word_belongs_to_the_program():
    parsed = parse("run -py job.py -d --input x -p 3")
    assert (parsed.get("python"), parsed.has("detached")) == ("job.py", True)
    assert parsed.arguments == ["--input", "x", "-p", "3"]


def test_two_dashes_end_the_options():
    assert parse("run -py job.py -- -d").arguments == ["-d"]


def test_options_of_other_actions_may_stand_anywhere():
    parsed = parse("cancel 0123 -m host:8081")
    assert (parsed.arguments, parsed.get("jobmanager")) == (["0123"], "host:8081")


def test_one_letter_means_different_things_in_different_actions():
    assert parse("list -s -a").values == {"scheduled": [""], "all": [""]}
    assert parse("run -s path x.py").get("fromSavepoint") == "path"
    assert parse("cancel 0123 -s").get("withSavepoint", "?") == ""
    assert parse("stop -p dir 0123").get("savepointPath") == "dir"


def test_every_option_of_yarn_cluster_is_read():
    line = (
        "run -m yarn-cluster -yn 2 -ys 4 -yjm 1024 -ytm 4096 -ynm n -yqu q -yz z -ynl l -yat t -yt a -yt b -yst -yd j"
    )
    parsed = parse(line)
    assert parsed.get("yarncontainer") == "2"
    assert parsed.all("yarnship") == ["a", "b"]
    assert parsed.has("yarnstreaming")
    assert parsed.has("yarndetached")
    assert parsed.arguments == ["j"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run -bogus x.py", "Unrecognized option: -bogus"),
        ("list --bogus", "Unrecognized option: --bogus"),
        ("run --d x.py", "Unrecognized option: --d"),
        ("run -p", "Missing argument for option: p"),
        ("run -p 1 -p 2 x.py", "Option -p,--parallelism <parallelism> is given twice; give it once."),
    ],
)
def test_wrong_options_are_told(line, message):
    with pytest.raises(ConfigError) as caught:
        parse(line)
    assert str(caught.value) == message


@pytest.mark.parametrize("action", ACTIONS.values(), ids=lambda action: action.name)
def test_no_action_has_an_option_twice(action):
    names = [name for option in action.options for name in {option.short, option.long} if name]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("action", ACTIONS.values(), ids=lambda action: action.name)
def test_help_names_every_option_that_is_not_hidden_and_fits_a_terminal(action):
    text = action_help(action)
    for option in action.options:
        assert (option.title in text) == (not option.hidden), option
    assert max(map(len, text.splitlines())) <= 100


def test_general_help_has_all_actions():
    assert all(f'Action "{name}"' in general_help() for name in ACTIONS)


def test_an_unknown_action_is_told_in_flinks_words():
    assert invalid_action("bogus").splitlines()[0] == '"bogus" is not a valid action.'
