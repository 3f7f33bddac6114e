"""The help texts of ``flink`` and of its actions. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Final

from flink_yarn.cli_options import ACTIONS, Action, Option

__all__ = ["action_help", "general_help", "invalid_action"]

_WIDTH: Final = 100
_INDENT: Final = 44


def _rows(options: Iterable[Option]) -> list[str]:
    lines = []
    for option in options:
        if option.hidden:
            continue
        title = f"     {option.title}"
        text = textwrap.wrap(option.doc, _WIDTH - _INDENT) or [""]
        if len(title) >= _INDENT:
            lines.append(title)
            title = ""
        lines.append(f"{title:<{_INDENT}}{text[0]}")
        lines += [" " * _INDENT + line for line in text[1:]]
    return lines


def action_help(action: Action) -> str:
    """Return what ``flink <action> -h`` prints."""
    own = [option for option in action.options if not option.short.startswith("y") or option.short == "yid"]
    yarn = [option for option in action.options if option.short.startswith("y") and option.short != "yid"]
    lines = [f'Action "{action.name}" {action.doc}', "", f"  Syntax: {action.syntax}"]
    lines += [f'  "{action.name}" action options:', *_rows(own)]
    if yarn:
        lines += ["  Options for yarn-cluster mode:", *_rows(yarn)]
    return "\n".join(lines) + "\n"


def general_help() -> str:
    """Return what ``flink -h`` prints."""
    head = "./flink <ACTION> [OPTIONS] [ARGUMENTS]\n\nThe following actions are available:\n"
    return head + "\n" + "\n".join(action_help(action) for action in ACTIONS.values())


def invalid_action(name: str) -> str:
    """Return what an unknown action prints, in Flink's words."""
    names = [f'"{action}"' for action in ACTIONS]
    return (
        f'"{name}" is not a valid action.\n\n'
        f"Valid actions are {', '.join(names[:-1])}, or {names[-1]}.\n\n"
        "Specify the version option (-v or --version) to print Flink version.\n\n"
        "Specify the help option (-h or --help) to get help on the command."
    )
