"""Flink's command-line grammar: one table of options per action, and the parser that reads it. Pure.

click and argparse cannot read it: long options with one dash (``-pyfs``), ``-Dkey=value`` in one word, options with and
without a value under the same letter in different actions, and everything after the program left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from engine.core.errors import ConfigError

__all__ = ["ACTIONS", "Action", "Option", "ParsedOptions", "parse_options"]


@dataclass(frozen=True, slots=True)
class Option:
    """``-short,--long <arg>``. ``name`` is what code asks for: the long name, else the short one."""

    short: str
    long: str
    arg: str  #: what help shows between < and >; "" for a flag
    doc: str
    repeat: bool = False
    arg_optional: bool = False
    hidden: bool = False

    @property
    def name(self) -> str:
        return self.long or self.short

    @property
    def title(self) -> str:
        names = f"-{self.short}" + (f",--{self.long}" if self.long else "")
        return f"{names} <{self.arg}>" if self.arg else names


@dataclass(frozen=True, slots=True)
class Action:
    name: str
    syntax: str
    doc: str
    options: tuple[Option, ...]
    #: options end at the first word that is none, and the rest belongs to the program
    stops_at_program: bool = False


@dataclass(slots=True)
class ParsedOptions:
    values: dict[str, list[str]] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)

    def has(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, default: str = "") -> str:
        """Return the last value given."""
        return self.values[name][-1] if name in self.values else default

    def all(self, name: str) -> list[str]:
        return self.values.get(name, [])


_HELP: Final = Option("h", "help", "", "Show the help message for the command line or the action.")
_VERBOSE: Final = Option("v", "verbose", "", "This option is deprecated and has no effect.", hidden=True)
_TARGETS: Final = "remote, local, yarn-session, yarn-per-job, yarn-application"
#: Where the cluster is; every action but info has these.
_CLUSTER: Final[tuple[Option, ...]] = (
    Option("t", "target", "arg", f"The deployment target, as execution.target: {_TARGETS}."),
    Option("e", "executor", "arg", "Deprecated: use -t.", hidden=True),
    Option("D", "", "property=value", "A configuration key and its value; may be given several times.", repeat=True),
    Option("m", "jobmanager", "arg", "Address of the JobManager (host:port), or yarn-cluster."),
    Option("z", "zookeeperNamespace", "arg", "Namespace of the ZooKeeper paths of high availability."),
    Option("yid", "yarnapplicationId", "arg", "Attach to a running YARN session."),
)
_YARN: Final[tuple[Option, ...]] = (
    Option("yn", "yarncontainer", "arg", "Number of TaskManagers that are kept; default: as many as jobs need."),
    Option("ys", "yarnslots", "arg", "Slots of a TaskManager."),
    Option("yjm", "yarnjobManagerMemory", "arg", "Memory of the JobManager's container (default unit: MB)."),
    Option("ytm", "yarntaskManagerMemory", "arg", "Memory of a TaskManager's container (default unit: MB)."),
    Option("yD", "", "property=value", "A configuration key and its value, as -D.", repeat=True),
    Option("ynm", "yarnname", "arg", "Name of the YARN application."),
    Option("yqu", "yarnqueue", "arg", "YARN queue."),
    Option("yq", "yarnquery", "", "Show YARN's resources (memory, cores) and end."),
    Option("yj", "yarnjar", "arg", "Path to Flink's jar: no effect here.", hidden=True),
    Option(
        "yt", "yarnship", "arg", "Ship a file or folder to all containers; may be given several times.", repeat=True
    ),
    Option("yz", "yarnzookeeperNamespace", "arg", "As -z."),
    Option("ynl", "yarnnodeLabel", "arg", "Node label of the containers."),
    Option("yat", "yarnapplicationType", "arg", "Type of the YARN application."),
    Option("yst", "yarnstreaming", "", "No effect.", hidden=True),
    Option("yd", "yarndetached", "", "As -d."),
    Option("yh", "yarnhelp", "", "Help on the options of YARN."),
)
_PARALLELISM: Final = Option("p", "parallelism", "parallelism", "Parallelism of operators without their own.")
_ENTRY: Final = Option(
    "c", "class", "module[:function]", "Where the program starts: package.module or package.module:function."
)
_PROGRAM: Final[tuple[Option, ...]] = (
    _ENTRY,
    _PARALLELISM,
    Option("j", "jarfile", "program", "The program; also the first word after the options.", hidden=True),
    Option(
        "a", "arguments", "arguments", "Arguments of the program; also the words after it.", repeat=True, hidden=True
    ),
    Option("py", "python", "file", "A Python script with the program's entry point."),
    Option("pym", "pyModule", "module", "A Python module with the entry point; used with -pyfs."),
    Option(
        "pyfs",
        "pyFiles",
        "files",
        "Comma-separated .py, .zip, .whl files and folders for the Python path.",
        repeat=True,
    ),
    Option(
        "pyreq", "pyRequirements", "file[#folder]", "A requirements.txt, and a folder with its packages.", repeat=True
    ),
    Option("pyarch", "pyArchives", "archives", "Comma-separated archives (file#folder) to extract.", repeat=True),
    Option("pyexec", "pyExecutable", "interpreter", "The Python interpreter of TaskManagers."),
    Option("pyclientexec", "pyClientExecutable", "interpreter", "The Python interpreter that runs the program."),
    Option("pypath", "pyPythonPath", "path", "The Python path of TaskManagers.", hidden=True),
    Option("C", "classpath", "url", "A file or folder for the Python path; may be given several times.", repeat=True),
)
_RUN: Final[tuple[Option, ...]] = (
    *_PROGRAM,
    Option("d", "detached", "", "Do not wait for the job's end."),
    Option("sae", "shutdownOnAttachedExit", "", "Cancel the job when the waiting client is interrupted (Ctrl-C)."),
    Option(
        "s",
        "fromSavepoint",
        "path",
        "Savepoint or retained checkpoint to start from, e.g. hdfs:///flink/savepoint-1537.",
    ),
    Option("n", "allowNonRestoredState", "", "Leave out state of the savepoint whose operator is gone."),
    Option("cm", "claimMode", "mode", "no_claim (leave the savepoint alone) or claim (its files are the job's)."),
    Option("rm", "restoreMode", "mode", "Deprecated: use -cm.", hidden=True),
    Option("q", "sysoutLogging", "", "No effect.", hidden=True),
    _HELP,
    _VERBOSE,
    *_CLUSTER,
    *_YARN,
)
_SAVEPOINT_TYPE: Final = Option("type", "type", "type", "canonical or native.")


def _cluster_action(name: str, syntax: str, doc: str, *options: Option) -> Action:
    return Action(name, syntax, doc, (*options, _HELP, _VERBOSE, *_CLUSTER, *_YARN))


#: Action name → action.
ACTIONS: Final[dict[str, Action]] = {
    action.name: action
    for action in (
        Action("run", "run [OPTIONS] <program> <arguments>", "runs a program.", _RUN, True),
        Action(
            "run-application",
            "run-application [OPTIONS] <program> <arguments>",
            "runs a program's main in its own cluster (with -t yarn-application).",
            _RUN,
            True,
        ),
        Action(
            "info",
            "info [OPTIONS] <program> <arguments>",
            "shows the execution plan of a program (JSON).",
            (*_PROGRAM, _HELP, _VERBOSE, *_CLUSTER),
            True,
        ),
        _cluster_action(
            "list",
            "list [OPTIONS]",
            "lists running and scheduled jobs.",
            Option("r", "running", "", "Show only running jobs and their ids."),
            Option("s", "scheduled", "", "Show only scheduled jobs and their ids."),
            Option("a", "all", "", "Show all jobs and their ids, ended ones too."),
        ),
        _cluster_action(
            "profile",
            "profile [OPTIONS] <job id>",
            "shows where the time of a running job goes.",
            Option("n", "samples", "number", "How often to look at each vertex; default 300."),
            Option("i", "interval", "milliseconds", "Time between two looks; default 10."),
            Option("o", "output", "file", "Write all stacks with their counts, for flamegraph.pl or speedscope."),
        ),
        _cluster_action(
            "stop",
            "stop [OPTIONS] <job id>",
            "stops a running job with a savepoint.",
            Option("d", "drain", "", "Send the last watermark before the savepoint."),
            Option("p", "savepointPath", "path", "Where the savepoint goes."),
            Option("detached", "detached", "", "Do not wait."),
            _SAVEPOINT_TYPE,
        ),
        _cluster_action(
            "cancel",
            "cancel [OPTIONS] <job id>",
            "cancels a running job.",
            Option("s", "withSavepoint", "folder", "Take a savepoint first. Deprecated: use stop.", arg_optional=True),
        ),
        _cluster_action(
            "savepoint",
            "savepoint [OPTIONS] <job id> [<folder>]",
            "triggers a savepoint of a job, or disposes of one.",
            Option("d", "dispose", "path", "Path of the savepoint to dispose of."),
            Option("j", "jarfile", "program", "The program."),
            Option("detached", "detached", "", "Do not wait."),
            _SAVEPOINT_TYPE,
        ),
        _cluster_action(
            "checkpoint",
            "checkpoint [OPTIONS] <job id>",
            "triggers a checkpoint of a job.",
            Option("full", "full", "", "A full checkpoint, not an incremental one."),
        ),
        _cluster_action(
            "modify",
            "modify <job id> -p <parallelism>",
            "lets a running job go on at another parallelism, through a checkpoint.",
            Option("p", "parallelism", "newParallelism", "The new parallelism of all operators without their own."),
        ),
        Action(
            "state",
            "state [OPTIONS] <savepoint or checkpoint>",
            "shows or exports the state in a savepoint or retained checkpoint; needs no cluster.",
            (
                Option("u", "uid", "operator", "The operator, by uid; or by name or id."),
                Option("s", "state", "name", "The keyed state; or timers."),
                Option("o", "to", "file", "Write it to a .parquet, .csv or .arrow file, local or on HDFS."),
                Option("l", "limit", "rows", "At most so many rows; shown: 20 without it."),
                Option("D", "", "property=value", "A configuration key and its value.", repeat=True),
                _HELP,
                _VERBOSE,
            ),
        ),
    )
}


def _find(options: Iterable[Option], word: str) -> tuple[Option, str | None] | None:
    """Return the option that a word starting with - names, and a value inside the same word; None if it names none."""
    by_name = {name: option for option in options for name in (option.short, option.long) if name}
    bare = word.lstrip("-")
    if word.startswith("--"):
        by_name = {option.long: option for option in options if option.long}
    if bare in by_name:
        return by_name[bare], None
    name, sep, value = bare.partition("=")
    if sep and name in by_name and by_name[name].arg:
        return by_name[name], value
    if word.startswith("--"):
        return None
    for prefix in ("yD", "D"):
        if prefix in by_name and bare.startswith(prefix) and sep:
            return by_name[prefix], bare[len(prefix) :]
    if bare[1:].isdigit() and bare[0] in by_name and by_name[bare[0]].arg:  # -p4
        return by_name[bare[0]], bare[1:]
    return None


def parse_options(action: Action, words: Sequence[str]) -> ParsedOptions:
    """Read the words after the action.

    Raises: ConfigError with Flink's message for an unknown option or a missing value.
    """
    parsed = ParsedOptions()
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            parsed.arguments += words[position + 1 :]
            break
        found = _find(action.options, word) if word.startswith("-") and len(word) > 1 else None
        if found is None:
            names_program = any(parsed.has(name) for name in ("python", "pyModule", "jarfile"))
            if word.startswith("-") and len(word) > 1 and not (action.stops_at_program and names_program):
                raise ConfigError(f"Unrecognized option: {word}")
            if action.stops_at_program:
                parsed.arguments += words[position:]
                break
            parsed.arguments.append(word)
            position += 1
            continue
        option, value = found
        position += 1
        if option.arg and value is None:
            if position < len(words) and not (option.arg_optional and words[position].startswith("-")):
                value = words[position]
                position += 1
            elif not option.arg_optional:
                raise ConfigError(f"Missing argument for option: {option.short}")
        if option.name in parsed.values and not option.repeat and option.arg:
            raise ConfigError(f"Option {option.title} is given twice; give it once.")
        parsed.values.setdefault(option.name, []).append(value or "")
    return parsed
