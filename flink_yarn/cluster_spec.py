"""Configuration → what is asked of YARN: memory, cores, files, environment, scripts of both kinds of container. Pure.

``plan_cluster`` validates and divides, ``application_spec`` puts it into skein's form. Where files lie is handed in;
packing, uploading and submitting are in ``session_client``.
"""

from __future__ import annotations

import enum
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.options import ClusterOptions, HaOptions, JobOptions, MemoryOptions, YarnOptions

__all__ = [
    "ADDRESS_KEY",
    "CONF_FOLDER",
    "EXIT_NO_PYTHON",
    "EXIT_PYTHON_MINOR",
    "JOB_FOLDER",
    "SERVICE",
    "ClusterPlan",
    "LocalFiles",
    "Mode",
    "YarnLimits",
    "address_path",
    "application_spec",
    "exit_message",
    "plan_cluster",
    "session_config",
]

SERVICE: Final = "taskmanager"
#: Key of skein's key-value store under which TaskManagers find the JobManager.
ADDRESS_KEY: Final = "jobmanager"
#: Folders in a container's working directory.
#: The engine and the packages that it needs, see ``archive``.
DIST_FILES: Final = ("flink-engine.zip", "flink-packages.zip")
CONF_FOLDER: Final = "flink-conf"
JOB_FOLDER: Final = "flink-job"

#: skein's ApplicationMaster is a JVM with -Xmx128M; with its code, threads and buffers it stays below this.
SKEIN_MB: Final = 320
#: The least that a JobManager runs in.
JOBMANAGER_MB_MIN: Final = 192
#: The least for supervisor and zygote, and per slot.
TASKMANAGER_MB_BASE: Final = 192
TASKMANAGER_MB_PER_SLOT: Final = 64

#: Exit codes of a container's script before any of our Python runs. 100 + n: the node's Python is 3.n.
EXIT_NO_PYTHON: Final = 99
EXIT_PYTHON_MINOR: Final = 100


#: Unpacks the engine beside the file that the NodeManager keeps for all containers of the user, once per node; that the
#: NodeManager unpacks it itself costs a process per file where Hadoop has no native library. Prints the folders.
_UNPACK: Final = """\
import fcntl, os, shutil, sys, zipfile
targets = []
for name in sys.argv[1:]:
    source = os.path.realpath(name)
    places = [os.path.dirname(source), os.environ["FLINK_LOCAL"], os.getcwd()]
    place = next(p for p in places if os.access(p, os.W_OK))
    target = os.path.join(place, "flink-" + os.path.basename(source)[:-4])
    # User code is told from installed code by this name.
    targets.append(os.path.join(target, "site-packages"))
    with open(os.path.join(place, ".unpacking"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(target):
            shutil.rmtree(target + ".part", ignore_errors=True)
            with zipfile.ZipFile(source) as archive:
                archive.extractall(os.path.join(target + ".part", "site-packages"))
            os.rename(target + ".part", target)
print(":".join(targets))
"""


#: Hadoop's own default, which Flink takes too.
ATTEMPTS_WITH_HA: Final = 2


class Mode(enum.Enum):
    SESSION = "session"
    PER_JOB = "per-job"
    APPLICATION = "application"


@dataclass(frozen=True)
class YarnLimits:
    """What the cluster can give at most; 0 and () mean that it is not known."""

    memory_mb: int = 0
    vcores: int = 0
    queues: tuple[str, ...] = ()
    #: queue → state, for those that are not RUNNING
    stopped_queues: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClusterPlan:
    mode: Mode
    name: str
    queue: str
    application_type: str
    node_label: str
    tags: tuple[str, ...]
    attempts: int
    attempts_validity_ms: int  #: failed attempts of longer ago do not count; -1 = all count
    master_mb: int  #: of the whole container
    jobmanager_mb: int  #: of it, for the JobManager
    master_vcores: int
    taskmanager_mb: int
    taskmanager_vcores: int
    slots: int
    #: TaskManagers that are always there; 0 = they come and go with the jobs
    taskmanagers: int
    #: TaskManagers that are asked for together with the master, since its job will need them
    first_taskmanagers: int
    config: Configuration

    @property
    def on_demand(self) -> bool:
        return self.taskmanagers == 0

    def describe(self) -> str:
        """Return Flink's line about the cluster."""
        return (
            f"Cluster specification: ClusterSpecification{{masterMemoryMB={self.master_mb}, "
            f"taskManagerMemoryMB={self.taskmanager_mb}, slotsPerTaskManager={self.slots}}}"
        )

    def division(self) -> str:
        """Return how the master's container is divided."""
        return (
            f"Of the {self.master_mb} MB of the ApplicationMaster's container, {self.master_mb - self.jobmanager_mb} "
            f"MB are for YARN's Java ApplicationMaster (skein) and {self.jobmanager_mb} MB for the JobManager."
        )


@dataclass(frozen=True)
class LocalFiles:
    """What is shipped: container name → URL (``hdfs://``, ``file://``)."""

    dist: Sequence[str]  #: the archives of ``archive.ship_archives``, in their order
    conf: str
    job: str = ""
    #: name in the container → (URL, is an archive to be unpacked)
    shipped: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    master_log4j: str = ""  #: how the Java ApplicationMaster logs; "" = as skein does


# --- planning -------------------------------------------------------------------------------------------------------


def _megabytes(size_bytes: int) -> int:
    return math.ceil(size_bytes / (1 << 20))


def plan_cluster(
    config: Configuration, mode: Mode, *, limits: YarnLimits = YarnLimits(), slots_needed: int = 0
) -> ClusterPlan:
    """Return what to ask for. ``slots_needed``: of the job that the cluster is for, when that is known.

    Raises: ConfigError that says which value is wrong and the least (or most) that works.
    """
    slots = config.get(ClusterOptions.NUM_SLOTS)
    taskmanagers = config.get(YarnOptions.NUM_CONTAINERS)
    if taskmanagers < 0:
        raise ConfigError(f"The number of TaskManagers (-n) is {taskmanagers}; expected at least 1.")
    master_mb = _megabytes(config.get(MemoryOptions.JM_PROCESS))
    least = SKEIN_MB + JOBMANAGER_MB_MIN
    if master_mb < least:
        raise ConfigError(
            f"The JobManager's container (-jm, {MemoryOptions.JM_PROCESS.key}) has {master_mb} MB; expected at least "
            f"{least} MB: {SKEIN_MB} for YARN's Java ApplicationMaster and {JOBMANAGER_MB_MIN} for the JobManager."
        )
    taskmanager_mb = _megabytes(config.get(MemoryOptions.TM_PROCESS))
    least = TASKMANAGER_MB_BASE + slots * TASKMANAGER_MB_PER_SLOT
    if taskmanager_mb < least:
        raise ConfigError(
            f"A TaskManager's container (-tm, {MemoryOptions.TM_PROCESS.key}) has {taskmanager_mb} MB; expected at "
            f"least {least} MB for {slots} slot{'s' if slots > 1 else ''}."
        )
    vcores = config.get(YarnOptions.TM_VCORES)
    plan = ClusterPlan(
        mode=mode,
        name=_name(config, mode),
        queue=config.get(YarnOptions.QUEUE),
        application_type=config.get(YarnOptions.TYPE),
        node_label=config.get(YarnOptions.NODE_LABEL),
        tags=tuple(tag.strip() for tag in re.split("[,;]", config.get(YarnOptions.TAGS)) if tag.strip()),
        attempts=_attempts(config),
        attempts_validity_ms=config.get(YarnOptions.ATTEMPTS_VALIDITY),
        master_mb=master_mb,
        jobmanager_mb=master_mb - SKEIN_MB,
        master_vcores=config.get(YarnOptions.JM_VCORES),
        taskmanager_mb=taskmanager_mb,
        taskmanager_vcores=vcores if vcores > 0 else slots,
        slots=slots,
        taskmanagers=taskmanagers,
        first_taskmanagers=taskmanagers or -(-slots_needed // slots),
        config=config,
    )
    _check_plan(plan)
    _check_limits(plan, limits)
    return plan


def _attempts(config: Configuration) -> int:
    """With high availability one failure of the ApplicationMaster is survived unless somebody says otherwise."""
    if config.contains(YarnOptions.ATTEMPTS) or config.get(HaOptions.TYPE) == "NONE":
        return config.get(YarnOptions.ATTEMPTS)
    return ATTEMPTS_WITH_HA


def _name(config: Configuration, mode: Mode) -> str:
    if config.contains(YarnOptions.NAME) or mode is Mode.SESSION:
        return config.get(YarnOptions.NAME)
    return "Flink per-job cluster" if mode is Mode.PER_JOB else "Flink Application Cluster"


def _check_plan(plan: ClusterPlan) -> None:
    if plan.attempts < 1:
        raise ConfigError(f"{YarnOptions.ATTEMPTS.key} is {plan.attempts}; expected at least 1.")
    if plan.master_vcores < 1:
        raise ConfigError(f"{YarnOptions.JM_VCORES.key} is {plan.master_vcores}; expected at least 1.")
    for tag in plan.tags:
        if not tag.isascii():
            raise ConfigError(f"{YarnOptions.TAGS.key} has {tag!r}; expected ASCII: YARN takes nothing else.")


def _check_limits(plan: ClusterPlan, limits: YarnLimits) -> None:
    for what, option, size in (
        ("The JobManager's container (-jm", MemoryOptions.JM_PROCESS, plan.master_mb),
        ("A TaskManager's container (-tm", MemoryOptions.TM_PROCESS, plan.taskmanager_mb),
    ):
        if limits.memory_mb and size > limits.memory_mb:
            raise ConfigError(
                f"{what}, {option.key}) is to have {size} MB, but the largest container of this YARN cluster has "
                f"{limits.memory_mb} MB. Ask for less, or raise yarn.scheduler.maximum-allocation-mb or "
                "yarn.nodemanager.resource.memory-mb."
            )
    if limits.vcores and plan.taskmanager_vcores > limits.vcores:
        raise ConfigError(
            f"A TaskManager's container is to have {plan.taskmanager_vcores} virtual cores, but the largest container "
            f"of this YARN cluster has {limits.vcores}. Use fewer slots (-s), or set {YarnOptions.TM_VCORES.key}."
        )
    known = {queue for path in limits.queues for queue in (path, path.rsplit(".", 1)[-1])}
    if known and plan.queue not in known:
        raise ConfigError(
            f"YARN has no queue {plan.queue!r} (-qu, {YarnOptions.QUEUE.key}) to which applications can be submitted; "
            f"it has: {', '.join(sorted({path.rsplit('.', 1)[-1] for path in limits.queues}))}."
        )
    state = limits.stopped_queues.get(plan.queue)
    if state:
        raise ConfigError(f"The queue {plan.queue!r} is {state}; it takes no applications now.")


def session_config(plan: ClusterPlan) -> Configuration:
    """Return the configuration that the containers get: ours, with each process's own memory."""
    config = Configuration(plan.config)
    for key in ("jobmanager.heap.size", "jobmanager.heap.mb", "taskmanager.heap.size", "taskmanager.heap.mb"):
        config.remove_config(key)
    config.set(MemoryOptions.JM_PROCESS, f"{plan.jobmanager_mb}m")
    config.set(MemoryOptions.TM_PROCESS, f"{plan.taskmanager_mb}m")
    # Addresses and folders of the client's host mean nothing on a node.
    for option in (
        ClusterOptions.RPC_ADDRESS,
        ClusterOptions.RPC_PORT,
        ClusterOptions.JM_BIND_HOST,
        ClusterOptions.TM_HOST,
        ClusterOptions.TM_BIND_HOST,
        ClusterOptions.TM_RESOURCE_ID,
        ClusterOptions.LOG_DIR,
        ClusterOptions.TMP_DIRS,
        JobOptions.TARGET,
        JobOptions.PYTHON_CLIENT_EXECUTABLE,
    ):
        for key in (option.key, *option.older_keys):
            config.remove_config(key)
    for key in ("rest.address", "rest.bind-address", "rest.port", "web.port", "web.tmpdir", "web.upload.dir"):
        config.remove_config(key)
    return config


# --- skein's form ---------------------------------------------------------------------------------------------------


def _script(command: str, output: str, *, python: str, shipped: Sequence[str], watches_parent: bool = False) -> str:
    """Return the bash script of a container.

    Nothing of ours can run in another Python, so that is checked first; the exit code tells which one was found.
    """
    minor = sys.version_info.minor
    candidates = [python] if python else [f"python3.{minor}", "python3"]
    words = " ".join(shlex.quote(word) for word in candidates)
    wanted = f"Python 3.{minor}"
    path = ":".join(["$dist", *(f"$PWD/{name}" for name in shipped), "$PWD"])
    dist_files = " ".join(DIST_FILES)
    mend = "Install it there, or bring an interpreter with -pyexec and -pyarch."
    lines = [
        "set -u",
        "export FLINK_LOGS=${LOG_DIRS%%,*} FLINK_LOCAL=${LOCAL_DIRS%%,*}",
        f'exec >>"$FLINK_LOGS/{output}" 2>&1',
        "unset PYTHONHOME PYTHONSTARTUP",
        "python= seen= code=",
        f"for candidate in {words}; do",
        '  found=$("$candidate" -c \'import sys; print("%d.%d" % sys.version_info[:2])\' 2>/dev/null) || continue',
        '  seen="${seen:+$seen and }$found"',
        f'  if [[ $found == 3.{minor} ]]; then python=$(command -v "$candidate"); break; fi',
        f"  [[ $found == 3.* ]] && code=$(({EXIT_PYTHON_MINOR} + ${{found#3.}}))",
        "done",
        "if [[ -z $python && -z $seen ]]; then",
        f'  echo "The node $(hostname) has no Python ({words}), but the engine was packed for {wanted}. {mend}"',
        f"  exit {EXIT_NO_PYTHON}",
        "elif [[ -z $python ]]; then",
        f'  echo "The node $(hostname) has Python $seen, but the engine was packed for {wanted}. {mend}"',
        f"  exit ${{code:-{EXIT_NO_PYTHON}}}",
        "fi",
        f'dist=$("$python" -I -c {shlex.quote(_UNPACK)} {dist_files}) || exit {EXIT_NO_PYTHON - 1}',
        f'export PYTHONPATH="{path}" PYTHONNOUSERSITE=1 PYTHONUNBUFFERED=1 FLINK_PYTHON="$python"',
        f'export FLINK_CONF_DIR="$PWD/{CONF_FOLDER}" NUMBA_CACHE_DIR="$FLINK_LOCAL/numba-cache" TMPDIR="$PWD/tmp"',
        f'if [[ -d $PWD/{CONF_FOLDER}/hadoop ]]; then export HADOOP_CONF_DIR="$PWD/{CONF_FOLDER}/hadoop"; fi',
        'mkdir -p "$TMPDIR"',
        "unset YARN_CONF_DIR",
    ]
    if watches_parent:
        lines.append("export FLINK_MASTER_PID=$PPID")
    lines.append(f'exec "$python" -P -m {command}')
    return "\n".join(lines) + "\n"


def address_path(application_id: str, home: str) -> str:
    """Return the file on HDFS in which clients find the JobManager; skein removes its folder with the application."""
    return f"{home.rstrip('/')}/.skein/{application_id}/jobmanager.json"


def exit_message(diagnostics: str, python: str = "") -> str:
    """Return one clear message for what skein says of a master script that ended before our Python ran, else "".

    ``python``: the interpreter that was asked for with -pyexec.
    """
    match = re.search(r"driver failed with exit code (\d+)", diagnostics)
    if not match:
        return ""
    code, minor = int(match[1]), sys.version_info.minor
    mend = f"Install Python 3.{minor} there, or bring an interpreter with -pyexec and -pyarch."
    if code == EXIT_NO_PYTHON and python:
        return (
            f"The interpreter {python!r} (-pyexec, {JobOptions.PYTHON_EXECUTABLE.key}) cannot be run on YARN's node. A "
            "relative path begins with the folder of an archive: -pyarch venv.tar.gz#venv -pyexec venv/bin/python."
        )
    if code == EXIT_NO_PYTHON:
        return f"YARN's node has no Python, but the engine was packed for Python 3.{minor}. {mend}"
    if EXIT_PYTHON_MINOR < code < EXIT_PYTHON_MINOR + 27:
        seen = code - EXIT_PYTHON_MINOR
        return f"YARN's node has Python 3.{seen}, but the engine was packed for Python 3.{minor}. {mend}"
    return ""


def application_spec(plan: ClusterPlan, files: LocalFiles, *, user: str, home: str, java_opens: str, skein: Any) -> Any:
    """Return the ``skein.ApplicationSpec``; ``home``: the user's folder on HDFS, ``skein``: the module."""
    config = plan.config
    python = config.get(JobOptions.PYTHON_EXECUTABLE)

    def file(url: str, archive: bool, visibility: str = "application") -> Any:
        return skein.File(url, type="archive" if archive else "file", visibility=visibility)

    common = {name: file(url, False, "private") for name, url in zip(DIST_FILES, files.dist, strict=True)}
    common[CONF_FOLDER] = file(files.conf, True)
    for name, (url, is_archive) in files.shipped.items():
        common[name] = file(url, is_archive)
    master_files = dict(common)
    if files.job:
        master_files[JOB_FOLDER] = file(files.job, True)
    on_path = [
        name for name, (url, is_archive) in files.shipped.items() if is_archive or name.endswith((".zip", ".whl"))
    ]
    environment = {"HADOOP_USER_NAME": user, "FLINK_YARN_MODE": plan.mode.value, "FLINK_YARN_HOME": home}
    environment["FLINK_YARN_ATTEMPTS"] = str(plan.attempts)
    environment["FLINK_YARN_ARCHIVES"] = " ".join(files.dist)
    prefixes: dict[str, dict[str, str]] = {"containerized.master.env.": {}, "containerized.taskmanager.env.": {}}
    for key, value in config.to_dict().items():
        for prefix, extra in prefixes.items():
            if key.startswith(prefix):
                extra[key[len(prefix) :]] = value
    service = skein.Service(
        resources=skein.Resources(memory=f"{plan.taskmanager_mb} MiB", vcores=plan.taskmanager_vcores),
        script=_script(
            "flink_yarn.taskmanager_container",
            "taskmanager.out",
            python=python,
            shipped=on_path,
        ),
        instances=plan.first_taskmanagers,
        files=common,
        env={**environment, **prefixes["containerized.taskmanager.env."]},
        max_restarts=0,  # the resource driver replaces what is lost
        allow_failures=True,
    )
    # A JobManager that dies is started again in place: no container notices more than a broken connection. But without
    # what is kept for the next JobManager, a job would silently begin anew.
    restarts = plan.mode is Mode.SESSION or plan.config.get(HaOptions.TYPE) != "NONE"
    master = skein.Master(
        resources=skein.Resources(memory=f"{plan.master_mb} MiB", vcores=plan.master_vcores),
        script=_script(
            "flink_yarn.master_supervisor" if restarts else "flink_yarn.application_master",
            "jobmanager.out",
            python=python,
            shipped=on_path,
            watches_parent=restarts,
        ),
        files=master_files,
        env={**environment, "JDK_JAVA_OPTIONS": java_opens, **prefixes["containerized.master.env."]},
        log_level="INFO",
        log_config=file(files.master_log4j, False) if files.master_log4j else None,
    )
    return skein.ApplicationSpec(
        name=plan.name,
        queue=plan.queue,
        node_label=plan.node_label,
        tags=set(plan.tags),
        max_attempts=plan.attempts,
        services={SERVICE: service},
        master=master,
        acls=_acls(config, skein),
    )


def _acls(config: Configuration, skein: Any) -> Any:
    """Return skein's form of Flink's yarn.view.acls and yarn.modify.acls ("user1,user2 group1,group2", "*")."""
    view, modify = config.get_string("yarn.view.acls", "") or "", config.get_string("yarn.modify.acls", "") or ""
    if not view and not modify:
        return skein.ACLs()

    def part(text: str, index: int) -> list[str]:
        words = text.split(" ")
        return [name for name in (words[index] if len(words) > index else "").split(",") if name]

    return skein.ACLs(
        enable=True,
        view_users=part(view, 0),
        view_groups=part(view, 1),
        modify_users=part(modify, 0),
        modify_groups=part(modify, 1),
        ui_users=part(view, 0),
    )
