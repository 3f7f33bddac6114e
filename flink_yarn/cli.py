"""``flink``: runs programs, lists, stops and cancels jobs. This file chooses the action and turns errors into exit
codes; the actions are in ``cli_run``, ``cli_jobs``, ``cli_savepoints`` and
``cli_state``, the grammar in ``cli_options``.

Exit codes: 0 success, 1 error, 130 interrupted, 143 terminated, 129 terminal closed; a program that ends itself with
another code keeps it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from engine.core.config import Configuration, find_config_dir, load_config_dir, parse_dynamic_properties
from engine.core.errors import ConfigError, EngineError
from engine.core.fs import configure_file_systems
from engine.core.option_warnings import check_values, key_warnings
from flink_yarn.cli_config import effective_config, read_yarn_properties, yarn_properties_path
from flink_yarn.cli_help import action_help, general_help, invalid_action
from flink_yarn.cli_options import ACTIONS, Action, ParsedOptions, parse_options
from flink_yarn.cli_signals import exit_code, say

__all__ = ["main"]

_HELP_HINT: Final = "Use the help option (-h or --help) to get help on the command."
_LINE: Final = "-" * 60


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        print(general_help())
        print("Please specify an action.")
        return 1
    match words[0]:
        case "-h" | "--help":
            print(general_help())
            return 0
        case "-v" | "--version":
            print(_version())
            return 0
    action = ACTIONS.get(words[0])
    if action is None:
        print(invalid_action(words[0]))
        return 1
    try:
        return _act(action, words[1:])
    except _UsageError as error:
        print(f"{error}\n\n{_HELP_HINT}")
        return 1
    except EngineError as error:
        sys.stdout.flush()
        print(f"\n{_LINE}\n The program finished with the following exception:\n\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        say("Interrupted.", sys.stderr)
        return exit_code(interrupt)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _UsageError(Exception):
    """The command line itself is wrong."""


def _version() -> str:
    from engine import FLINK_COMPATIBLE_VERSION, __version__

    return f"Version: {__version__}, compatible with Flink {FLINK_COMPATIBLE_VERSION}"


def _act(action: Action, words: list[str]) -> int:
    try:
        parsed = parse_options(action, words)
    except ConfigError as error:
        raise _UsageError(str(error)) from None
    if parsed.has("help") or parsed.has("yarnhelp"):
        print(action_help(action))
        return 0
    try:
        config = _configuration(action, parsed)
        check_values(config)
        configure_file_systems(config.to_dict())
    except ConfigError as error:
        raise _UsageError(str(error)) from None
    return _handler(action)(parsed, config)


def _handler(action: Action) -> Callable[[ParsedOptions, Configuration], int]:
    # Imported late: -h and errors in the options must not pay for the rest.
    from flink_yarn import cli_jobs, cli_profile, cli_run, cli_savepoints, cli_state

    handlers: dict[str, Callable[[ParsedOptions, Configuration], int]] = {
        "run": cli_run.run,
        "run-application": cli_run.run,
        "info": cli_run.info,
        "list": cli_jobs.list_jobs,
        "cancel": cli_jobs.cancel,
        "stop": cli_savepoints.stop,
        "savepoint": cli_savepoints.savepoint,
        "checkpoint": cli_savepoints.checkpoint,
        "modify": cli_savepoints.modify,
        "state": cli_state.state,
        "profile": cli_profile.profile,
    }
    return handlers[action.name]


def _configuration(action: Action, parsed: ParsedOptions) -> Configuration:
    base = load_config_dir(find_config_dir())
    dynamic = parse_dynamic_properties([*parsed.all("yD"), *parsed.all("D")])
    path = yarn_properties_path(Configuration(base).add_all(dynamic), os.environ.get("USER") or _login_name())
    generic = any(parsed.has(name) for name in ("target", "executor", "jobmanager", "yarnapplicationId"))
    properties = None if generic else read_yarn_properties(path)
    config = effective_config(parsed, base, properties)
    if properties is not None and config.get_string("execution.target") == "yarn-session":
        print(f"Found Yarn properties file under {properties.path}.")
    # What the file says without effect concerns those who start something, not every look at the jobs.
    quiet = set() if action.stops_at_program else base.key_set()
    for line in key_warnings(config.key_set() - quiet):
        print(f"WARNING: {line}", file=sys.stderr)
    return config


def _login_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


if __name__ == "__main__":
    sys.exit(main())
