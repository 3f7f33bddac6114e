"""``yarn-session.sh``: starts a session cluster on YARN, attaches to one, stops it, or shows what YARN has.

Deploying is in ``session_client``; this file is options, Flink's lines, the properties file and the interactive end.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Sequence
from typing import Final

from engine.client.rest_client import RestClient
from engine.core.config import Configuration, find_config_dir, load_config_dir, parse_dynamic_properties
from engine.core.errors import ConfigError, EngineError, ExternalError
from engine.core.fs import configure_file_systems
from engine.core.option_warnings import check_values, key_warnings
from engine.core.options import ClusterOptions, HaOptions, JobOptions, MemoryOptions, YarnOptions
from flink_yarn.cli_config import yarn_properties_path
from flink_yarn.cli_options import Action, Option, ParsedOptions, parse_options
from flink_yarn.cli_signals import EndedBySignal, HeldSignals, exit_code, held_signals, raising_on_signals, say
from flink_yarn.cluster_spec import ClusterPlan, Mode
from flink_yarn.session_client import deploy, find_session, kill, print_resources, yarn_client

__all__ = ["main", "session_configuration", "write_properties"]

_OPTIONS: Final = (
    Option("at", "applicationType", "arg", "Set a custom application type for the application on YARN."),
    Option("D", "", "property=value", "Use value for given property; may be given several times.", repeat=True),
    Option("d", "detached", "", "If present, runs the cluster in detached mode."),
    Option("h", "help", "", "Help for the YARN session CLI."),
    Option("id", "applicationId", "arg", "Attach to a running YARN session."),
    Option("j", "jar", "arg", "Path to Flink's jar: no effect here.", hidden=True),
    Option("jm", "jobManagerMemory", "arg", "Memory for the JobManager's container (default unit: MB)."),
    Option("m", "jobmanager", "arg", "Set to yarn-cluster to use YARN execution mode: no effect here.", hidden=True),
    Option("n", "container", "arg", "Number of TaskManagers that are kept; default: as many as jobs need."),
    Option("nl", "nodeLabel", "arg", "Specify YARN node label for the YARN application."),
    Option("nm", "name", "arg", "Set a custom name for the application on YARN."),
    Option("q", "query", "", "Display available YARN resources (memory, cores)."),
    Option("qu", "queue", "arg", "Specify YARN queue."),
    Option("s", "slots", "arg", "Number of slots per TaskManager."),
    Option("st", "streaming", "", "No effect.", hidden=True),
    Option("t", "ship", "arg", "Ship a file or folder to all containers; may be given several times.", repeat=True),
    Option("tm", "taskManagerMemory", "arg", "Memory per TaskManager container (default unit: MB)."),
    Option("z", "zookeeperNamespace", "arg", "Namespace of the ZooKeeper paths of high availability."),
)
_ACTION: Final = Action("yarn-session", "yarn-session.sh [OPTIONS]", "starts a session cluster on YARN.", _OPTIONS)
_PLAIN: Final = {
    "container": YarnOptions.NUM_CONTAINERS.key,
    "slots": ClusterOptions.NUM_SLOTS.key,
    "name": YarnOptions.NAME.key,
    "queue": YarnOptions.QUEUE.key,
    "applicationType": YarnOptions.TYPE.key,
    "nodeLabel": YarnOptions.NODE_LABEL.key,
    "zookeeperNamespace": HaOptions.CLUSTER_ID.key,
    "applicationId": YarnOptions.ID.key,
}
_MEMORY: Final = {"jobManagerMemory": MemoryOptions.JM_PROCESS.key, "taskManagerMemory": MemoryOptions.TM_PROCESS.key}
_HELP_TEXT: Final = """\
Available commands:
help - show these commands
stop - stop the YARN session"""
#: How long the slots of -n may take; a busy queue is no error, so then only a line is printed.
_SLOTS_TIMEOUT_S: Final = 120.0
_STOP_TIMEOUT_S: Final = 20.0
#: Of the options below, those that later commands should know are written into the properties file.
_SHARED_KEYS: Final = (HaOptions.CLUSTER_ID.key,)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 for an error, 128 + n when signal n interrupted it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = parse_options(_ACTION, words)
        if parsed.has("help"):
            print("Usage:\n   Optional")
            print("\n".join(f"     {o.title:<40}{o.doc}" for o in _OPTIONS if not o.hidden))
            return 0
        if parsed.arguments:
            raise ConfigError(f"Unexpected {parsed.arguments[0]!r}; yarn-session.sh takes only options, -h shows them.")
        config = session_configuration(parsed, load_config_dir(find_config_dir()))
        check_values(config)
        configure_file_systems(config.to_dict())
        for line in key_warnings(config.key_set()):
            print(f"WARNING: {line}", file=sys.stderr)
        with raising_on_signals():
            return _run(parsed, config)
    except EngineError as error:
        sys.stdout.flush()
        print(f"Error while running the YARN session: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        say("Interrupted.", sys.stderr)
        return exit_code(interrupt)


def session_configuration(parsed: ParsedOptions, base: Configuration) -> Configuration:
    """Return the configuration with the options laid over it; ``-D`` wins.

    Raises: ConfigError for a value that cannot be used.
    """
    config = Configuration(base)
    config.remove_config(YarnOptions.ID.key)
    for name, key in _PLAIN.items():
        if parsed.has(name):
            config.set(key, parsed.get(name))
    for name, key in _MEMORY.items():
        if parsed.has(name):
            text = parsed.get(name)
            config.set(key, f"{text}m" if text.isdigit() else text)
    if parsed.has("ship"):
        config.set(YarnOptions.SHIP_FILES, ";".join(parsed.all("ship")))
    if parsed.has("container") and not re.fullmatch(r"[1-9]\d*", parsed.get("container")):
        raise ConfigError(f"-n is {parsed.get('container')!r}; expected the number of TaskManagers, at least 1.")
    config.add_all(parse_dynamic_properties(parsed.all("D")))
    config.set(JobOptions.ATTACHED, not parsed.has("detached"))
    return config


def _run(parsed: ParsedOptions, config: Configuration) -> int:
    if parsed.has("query"):
        print_resources(config)
        return 0
    if config.get(YarnOptions.ID):
        return _attach(config, config.get(YarnOptions.ID), detached=parsed.has("detached"))
    with held_signals() as held:
        return _start(parsed, config, held)


def _start(parsed: ParsedOptions, config: Configuration, held: HeldSignals) -> int:
    """Start a session. From its submission on, a signal at any moment either ends it again or is told of it later."""
    path = _properties_path(config)
    submitted: list[str] = []
    try:
        with held.released():
            deployment = deploy(config, Mode.SESSION, submitted=submitted)
            application_id = deployment.application_id
            shared = {key: config.to_dict()[key] for key in _SHARED_KEYS if config.contains_key(key)}
            write_properties(path, application_id, shared)
            _await_slots(deployment.rest, deployment.plan)
    except BaseException:
        for started in submitted:
            _remove_properties(path, started)
            kill(started, config)
        raise
    say(f"JobManager Web Interface: {deployment.address}")
    if parsed.has("detached"):
        _print_how_to_stop(application_id)
        return 0
    return _serve_terminal(deployment.rest, config, application_id, held)


def _await_slots(client: RestClient, plan: ClusterPlan) -> None:
    """Wait until the TaskManagers of -n have registered all their slots."""
    wanted = plan.taskmanagers * plan.slots
    if not wanted:
        return
    deadline = time.monotonic() + _SLOTS_TIMEOUT_S
    while True:
        total = int(client.overview()["slots-total"])
        if total >= wanted:
            say(f"All {wanted} slots of {plan.taskmanagers} TaskManagers are registered.")
            return
        if time.monotonic() > deadline:
            print(
                f"WARNING: {total} of {wanted} slots are registered after {_SLOTS_TIMEOUT_S:g} s; YARN may have no "
                "more room now. The session runs, the others join when there is room.",
                file=sys.stderr,
            )
            return
        time.sleep(0.1)


# --- the properties file --------------------------------------------------------------------------------------------


def _properties_path(config: Configuration) -> str:
    import getpass

    return yarn_properties_path(config, os.environ.get("USER") or getpass.getuser())


def write_properties(path: str, application_id: str, dynamic: dict[str, str]) -> None:
    """Write the file by which ``flink`` finds the session; only its owner may read it."""
    text = (
        "#Generated YARN properties file\n"
        f"applicationID={application_id}\n"
        f"dynamicPropertiesString={'@@'.join(f'{key}={value}' for key, value in dynamic.items())}\n"
    )
    temporary = f"{path}.{os.getpid()}"
    try:
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(number, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, path)
    except OSError as error:
        print(
            f"WARNING: Cannot write {path} ({error.strerror}); name the session with -yid {application_id}.",
            file=sys.stderr,
        )


def _remove_properties(path: str, application_id: str) -> None:
    """Remove the file if it is about this session."""
    with contextlib.suppress(OSError):
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        if application_id in text:
            os.unlink(path)


# --- attached -------------------------------------------------------------------------------------------------------


def _print_how_to_stop(application_id: str) -> None:
    say(
        "The Flink YARN session cluster has been started in detached mode. In order to stop Flink gracefully, use the "
        "following command:\n"
        f'$ echo "stop" | ./bin/yarn-session.sh -id {application_id}\n'
        "If this should not be possible, then you can also kill Flink via YARN's web interface or via:\n"
        f"$ yarn application -kill {application_id}\n"
        "Note that killing Flink might not clean up all job artifacts and temporary files.",
    )


def _attach(config: Configuration, application_id: str, *, detached: bool) -> int:
    if not re.fullmatch(r"application_\d+_\d+", application_id):
        raise ConfigError(f"-id is {application_id!r}; expected application_<time>_<number>.")
    client = find_session(config)
    address = client.base_url
    say(f"Found Web Interface {address.partition('://')[2]} of application '{application_id}'.")
    say(f"JobManager Web Interface: {address}")
    if detached:
        _print_how_to_stop(application_id)
        return 0
    with held_signals() as held:
        return _serve_terminal(client, config, application_id, held)


def _serve_terminal(client: RestClient, config: Configuration, application_id: str, held: HeldSignals) -> int:
    """Read commands until the session is to be stopped, or has ended by itself. From then on signals do not disturb any
    more: shell and kernel both tell of a terminal that has gone."""
    try:
        with held.released():
            if not _obey_terminal(config, application_id):
                return 0
    except KeyboardInterrupt:
        say("Interrupted: the session is stopped.", sys.stderr)
    _stop(client, config, application_id)
    return 0


def _obey_terminal(config: Configuration, application_id: str) -> bool:
    """Return whether the session is to be stopped: not, when there is no more input."""
    yarn, is_terminal = yarn_client(), sys.stdin.isatty()
    if is_terminal:
        say(_HELP_TEXT)
    checked = time.monotonic()
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], 1.0)
        if ready:
            line = _read_line(is_terminal)
            if not line:
                # Flink's client goes on without a terminal; one that was piped has said all it had to say.
                say(f"No more input; the session goes on. Stop it with -id {application_id}.")
                return False
            match line.strip():
                case "stop" | "quit" | "exit":
                    return True
                case "help":
                    say(_HELP_TEXT)
                case "":
                    pass
                case other:
                    say(f"Unknown command '{other}'. Showing help:\n{_HELP_TEXT}")
        if time.monotonic() - checked > 5:
            report = yarn.wait_until_ended(application_id, 0.0)
            checked = time.monotonic()
            if report.ended:
                _remove_properties(_properties_path(config), application_id)
                raise ExternalError(
                    f"The session {application_id} has ended ({report.state}): "
                    f"{report.diagnostics or 'no reason given'}\n{report.logs}"
                )


def _read_line(is_terminal: bool) -> str:
    """Return "" at the end of input. Raises EndedBySignal if the terminal has gone away: its signal is on the way."""
    try:
        line = sys.stdin.readline()
        has_gone = not line and is_terminal and not sys.stdin.isatty()
    except OSError:
        line, has_gone = "", True
    if has_gone and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        raise EndedBySignal(signal.SIGHUP)
    return line


def _stop(client: RestClient, config: Configuration, application_id: str) -> None:
    say("Shutting down the cluster.")
    _remove_properties(_properties_path(config), application_id)
    yarn = yarn_client()
    try:
        client.shut_down()
        report = yarn.wait_until_ended(application_id, _STOP_TIMEOUT_S)
    except ExternalError:
        report = yarn.application(application_id)
    if not report.ended:
        kill(application_id, config)
        report = yarn.wait_until_ended(application_id, _STOP_TIMEOUT_S)
    say(f"Application {application_id} finished with state {report.state} and final state {report.final_status}.")


if __name__ == "__main__":
    sys.exit(main())
