"""The client's side of YARN: deploys clusters, finds them again, ends them.

Used by ``yarn-session.sh``, by ``flink`` for YARN targets, and by ``executors``. What is asked of YARN is decided in
``cluster_spec``; what runs there is ``application_master``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import getpass
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from engine.client.rest_client import RestClient
from engine.core.config import Configuration
from engine.core.errors import ConfigError, ExternalError, JobExecutionError
from engine.core.fs import FileSystem, file_system_of, scheme_of
from engine.core.options import JobOptions, YarnOptions
from flink_yarn.application_leader import ApplicationLeader, JobManagerAddress, read_address
from flink_yarn.archive import mark_used, remove_unused, ship_archives
from flink_yarn.cli_signals import held_signals, raising_on_signals
from flink_yarn.cli_signals import say as say_line
from flink_yarn.cluster_spec import (
    ClusterPlan,
    LocalFiles,
    Mode,
    YarnLimits,
    address_path,
    application_spec,
    exit_message,
    plan_cluster,
    session_config,
)
from flink_yarn.hadoop_conf import HadoopConf
from flink_yarn.master_log import log4j_properties
from flink_yarn.skein_driver import JAVA_OPENS, QUICK_START, skein_module, start_driver
from flink_yarn.yarn_client import ApplicationReport, YarnClient

if TYPE_CHECKING:
    from flink_yarn.program import Program

__all__ = ["Deployment", "deploy", "deploy_application", "find_session", "kill", "print_resources", "yarn_client"]

_CONF_FILES: Final = ("core-site.xml", "hdfs-site.xml", "yarn-site.xml")
_POLL_S: Final = 0.15
#: Between RUNNING and the JobManager's address; a JobManager that is slower than this is dead.
_ADDRESS_TIMEOUT_S: Final = 120.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Deployment:
    application_id: str
    rest: RestClient
    plan: ClusterPlan

    @property
    def address(self) -> str:
        """URL of the JobManager's REST."""
        return self.rest.base_url


def yarn_client() -> YarnClient:
    """Return a client for the cluster of HADOOP_CONF_DIR. Raises ConfigError when that is not set."""
    return YarnClient(HadoopConf.load())


def hadoop_user() -> str:
    return os.environ.get("HADOOP_USER_NAME") or getpass.getuser()


def _home(conf: HadoopConf) -> str:
    prefix = conf.get("dfs.user.home.dir.prefix", "/user").rstrip("/")
    return f"hdfs://{conf.default_authority()}{prefix}/{hadoop_user()}"


# --- deploying ------------------------------------------------------------------------------------------------------


def limits_of(client: YarnClient) -> YarnLimits:
    """Ask YARN for what it can give at most."""
    memory, vcores = client.largest_container()
    if not memory:
        raise ExternalError("The YARN cluster has no running NodeManager, so no container can be started.")
    queues = client.queues()
    leaves = [queue for queue in queues if queue.is_leaf]
    stopped = {queue.name: queue.state for queue in leaves if queue.state != "RUNNING"}
    return YarnLimits(memory, vcores, tuple(queue.path for queue in leaves), stopped)


def deploy(
    config: Configuration,
    mode: Mode,
    *,
    job_files: Mapping[str, str | bytes] | None = None,
    slots_needed: int = 0,
    submitted: list[str] | None = None,
    say: Say = say_line,
) -> Deployment:
    """Start a cluster on YARN and return when its JobManager answers.

    ``job_files``: name → path or content, for a job or program that is run there. An error or Ctrl-C on the way kills
    the application again: nothing is left behind. ``submitted`` holds its id from then on until it is killed: so the
    caller, who may be interrupted before this has returned, knows what it has to end.

    Raises: ConfigError, ExternalError with one clear message.
    """
    conf = HadoopConf.load()
    client = YarnClient(conf)
    client.check_reachable()
    plan = plan_cluster(config, mode, limits=limits_of(client), slots_needed=slots_needed)
    fs = file_system_of("hdfs:/")
    _check_name_node(fs, conf)
    say(plan.describe())
    say(plan.division())
    with concurrent.futures.ThreadPoolExecutor(1) as worker, contextlib.ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="flink-yarn-")
        stack.callback(shutil.rmtree, folder, True)
        # The driver needs seconds to start; packing and uploading go on meanwhile.
        packing = worker.submit(_prepare_files, plan, conf, fs, folder, job_files or {}, say)
        validity_ms = plan.attempts_validity_ms if plan.attempts > 1 else None
        driver = stack.enter_context(start_driver(plan.application_type, validity_ms=validity_ms))
        files = packing.result()
        spec = application_spec(
            plan,
            files,
            user=hadoop_user(),
            home=_home(conf),
            java_opens=f"{JAVA_OPENS} {QUICK_START}",
            skein=skein_module(),
        )
        submitted = [] if submitted is None else submitted
        try:
            with held_signals() as held:  # an application whose id is not known yet cannot be killed
                submitted.append(_submit(driver, spec, say))
                held.raise_heard()
            application_id = submitted[0]
            with raising_on_signals():
                rest = _await_jobmanager(client, conf, fs, application_id, config, say)
        except BaseException:
            if submitted and _kill_quietly(driver, submitted[0]):
                submitted.clear()
            raise
    say(f"Found Web Interface {rest.base_url.partition('://')[2]} of application '{application_id}'.")
    return Deployment(application_id, rest, plan)


def _connection(client: YarnClient, conf: HadoopConf, application_id: str, found: JobManagerAddress) -> RestClient:
    """Return a client of the JobManager, which with high availability follows it to where the next one is."""
    leader = ApplicationLeader(client, _home(conf), application_id) if found.is_highly_available else None
    return RestClient(found.rest, leader=leader)


def _check_name_node(fs: FileSystem, conf: HadoopConf) -> None:
    """The driver's Java client would try a NameNode that is down for minutes."""
    fs.status(f"hdfs://{conf.default_authority()}/")


def _submit(driver: Any, spec: Any, say: Say) -> str:
    try:
        application_id = str(driver.submit(spec))
    except Exception as error:
        text = str(error).strip()
        raise ExternalError(f"YARN did not take the application: {text}") from None
    say(f"Submitting application master {application_id}")
    say(f"Submitted application {application_id}")
    say("Waiting for the cluster to be allocated")
    return application_id


def _await_jobmanager(
    client: YarnClient, conf: HadoopConf, fs: FileSystem, application_id: str, config: Configuration, say: Say
) -> RestClient:
    shown = ""
    deadline = float("inf")
    while True:
        report = client.application(application_id)
        if report.ended:
            raise _failed(report, config)
        if report.state == "RUNNING":
            deadline = min(deadline, time.monotonic() + _ADDRESS_TIMEOUT_S)
            found = read_address(fs, _home(conf), application_id)
            if found is not None:
                say("YARN application has been deployed successfully.")
                return _connection(client, conf, application_id, found)
        elif report.state != shown:
            shown = report.state
            say(f"Deploying cluster, current state {shown}")
        if time.monotonic() > deadline:
            raise ExternalError(
                f"The JobManager of {application_id} did not start within {_ADDRESS_TIMEOUT_S:g} s; "
                f"see its log: yarn logs -applicationId {application_id}"
            )
        time.sleep(_POLL_S)


def _failed(report: ApplicationReport, config: Configuration) -> ExternalError:
    python = config.get(JobOptions.PYTHON_EXECUTABLE)
    reason = exit_message(report.diagnostics, python) or report.diagnostics or "YARN gives no reason"
    return ExternalError(
        f"The YARN application {report.application_id} ended as {report.state} while it was deployed: {reason}\n"
        f"{report.logs}"
    )


def _kill_quietly(driver: Any, application_id: str) -> bool:
    """Return whether it has been killed; that it has not is told."""
    try:
        driver.kill_application(application_id)
        _remove_folder(application_id)
    except Exception as error:
        print(
            f"Application {application_id} may still run ({error}); end it with: "
            f"yarn application -kill {application_id}",
            file=sys.stderr,
        )
        return False
    return True


# --- files ----------------------------------------------------------------------------------------------------------


def _prepare_files(
    plan: ClusterPlan,
    conf: HadoopConf,
    fs: FileSystem,
    folder: str,
    job_files: Mapping[str, str | bytes],
    say: Say,
) -> LocalFiles:
    config = plan.config
    staging = config.get(YarnOptions.STAGING_DIR) or _home(conf)
    if scheme_of(staging) == "file":
        staging = f"hdfs://{conf.default_authority()}{staging}"
    archives = f"{staging.rstrip('/')}/.flink/archives"
    dist = ship_archives(fs, archives, say)
    now_ms = int(time.time() * 1000)
    for archive in dist:
        mark_used(fs, archive, now_ms)
    retention_ms = config.get(YarnOptions.ARCHIVES_RETENTION)
    if retention_ms > 0:
        remove_unused(fs, archives, retention_ms=retention_ms, now_ms=now_ms)
    conf_zip = os.path.join(folder, "flink-conf.zip")
    contents: dict[str, str | bytes] = {"config.yaml": json.dumps(session_config(plan).to_dict(), indent=1).encode()}
    for name in _CONF_FILES:
        path = os.path.join(conf.conf_dir or "", name)
        if os.path.isfile(path):
            contents[f"hadoop/{name}"] = path
    _write_zip(conf_zip, contents)
    job = ""
    if job_files:
        job = os.path.join(folder, "flink-job.zip")
        _write_zip(job, job_files)
    log4j = os.path.join(folder, "log4j.properties")
    with open(log4j, "w", encoding="utf-8") as stream:
        stream.write(log4j_properties(config))
    return LocalFiles(
        dist, f"file://{conf_zip}", f"file://{job}" if job else "", _shipped(config, folder), f"file://{log4j}"
    )


def _write_zip(path: str, contents: Mapping[str, str | bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, source in contents.items():
            if isinstance(source, bytes):
                archive.writestr(name, source)
            else:
                archive.write(source, name)


def _shipped(config: Configuration, folder: str) -> dict[str, tuple[str, bool]]:
    """Return what -t, yarn.ship-files, yarn.ship-archives and -pyarch bring into every container.

    Raises: ConfigError for what is missing or has a name that another one has.
    """
    found: dict[str, tuple[str, bool]] = {}

    def add(key: str, name: str, url: str, archive: bool) -> None:
        if name in found and found[name] != (url, archive):
            raise ConfigError(f"{key} ships two things named {name!r}; rename one.")
        found[name] = (url, archive)

    for text in _split(config.get(YarnOptions.SHIP_FILES)):
        path, remote = _local(YarnOptions.SHIP_FILES.key, text)
        name = os.path.basename(path.rstrip("/"))
        if not remote and os.path.isdir(path):
            packed = os.path.join(folder, f"ship-{len(found)}", f"{name}.zip")
            os.makedirs(os.path.dirname(packed))
            _write_zip(packed, _folder_contents(path))
            add(YarnOptions.SHIP_FILES.key, name, f"file://{packed}", True)
        else:
            add(YarnOptions.SHIP_FILES.key, name, path if remote else f"file://{path}", False)
    for key, texts in (
        (YarnOptions.SHIP_ARCHIVES.key, _split(config.get(YarnOptions.SHIP_ARCHIVES))),
        (JobOptions.PYTHON_ARCHIVES.key, config.get(JobOptions.PYTHON_ARCHIVES).split(",")),
    ):
        for text in filter(None, (text.strip() for text in texts)):
            source, _, target = text.partition("#")
            path, remote = _local(key, source)
            if not path.endswith((".zip", ".tar.gz", ".tgz", ".tar", ".jar")):
                raise ConfigError(f"{key} has {source!r}; expected a .zip, .tar.gz or .tgz archive.")
            add(key, target or os.path.basename(path), path if remote else f"file://{path}", True)
    return found


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.replace(",", ";").split(";") if part.strip()]


def _local(key: str, text: str) -> tuple[str, bool]:
    if scheme_of(text) != "file":
        return text, True
    path = os.path.abspath(text.removeprefix("file://"))
    if not os.path.exists(path):
        raise ConfigError(f"{key} has {text!r}, which does not exist.")
    return path, False


def _folder_contents(folder: str) -> dict[str, str | bytes]:
    found: dict[str, str | bytes] = {}
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = os.path.join(parent, name)
            found[os.path.relpath(path, folder)] = path
    return found


# --- finding and ending ---------------------------------------------------------------------------------------------


def find_session(config: Configuration) -> RestClient:
    """Return a client of the session that ``yarn.application.id`` names.

    Raises: ExternalError when it does not run, with how it ended.
    """
    application_id = config.get(YarnOptions.ID)
    if not application_id:
        raise ConfigError("Which YARN session? Start one with yarn-session.sh, or name it with -yid <application id>.")
    conf = HadoopConf.load()
    client = YarnClient(conf)
    report = client.application(application_id)
    if report.ended:
        raise ExternalError(
            f"The YARN application {application_id} has ended ({report.state}, {report.final_status}): "
            f"{report.diagnostics or 'no reason given'} Start a new session with yarn-session.sh.\n{report.logs}"
        )
    found = read_address(file_system_of("hdfs:/"), _home(conf), application_id)
    if found is None:
        raise ExternalError(
            f"The YARN application {application_id} is {report.state}, but its JobManager has not said where it is. If "
            "it was just started, try again in some seconds; if another user started it, only that user can find it."
        )
    return _connection(client, conf, application_id, found)


def kill(application_id: str, config: Configuration) -> None:
    """End an application the hard way."""
    yarn_client().check_reachable()
    with start_driver(config.get(YarnOptions.TYPE)) as driver:
        driver.kill_application(application_id)
        _remove_folder(application_id)


def _remove_folder(application_id: str) -> None:
    """Remove an application's files, which are kept on HDFS for its next attempt."""
    path = os.path.dirname(address_path(application_id, _home(HadoopConf.load())))
    file_system_of(path).delete(path, recursive=True)


def print_resources(config: Configuration) -> None:
    """Print what the YARN cluster has, as ``yarn-session.sh -q`` does."""
    client = yarn_client()
    client.check_reachable()
    nodes = [node for node in client.nodes() if node.state == "RUNNING"]
    print(f"NodeManagers in the ClusterClient {len(nodes)}", end="")
    line = f"|{'Property':<17}|{'Value':>17}"
    print(f"\n{line}\n+{'-' * 17}+{'-' * 17}")
    for node in nodes:
        print(f"|{'NodeID':<17}|{node.node_id:>17}")
        print(f"|{'Memory':<17}|{f'{node.memory_mb} MB':>17}")
        print(f"|{'vCores':<17}|{node.vcores:>17}")
        print(f"|{'HealthReport':<17}|{'':>17}")
        print(f"|{'Containers':<17}|{node.containers:>17}")
        print(f"+{'-' * 17}+{'-' * 17}")
    memory, vcores = sum(node.memory_mb for node in nodes), sum(node.vcores for node in nodes)
    print(f"Summary: totalMemory {memory} totalCores {vcores}")
    for queue in client.queues():
        if queue.is_leaf:
            used, capacity = queue.used / 100, queue.capacity / 100
            print(f"Queue: {queue.name}, Current Capacity: {used:.4g} Max Capacity: {capacity:.4g}")


# --- an application cluster -----------------------------------------------------------------------------------------


def deploy_application(config: Configuration, program: Program) -> int:
    """Run a program's main on YARN; attached, wait for the application's end. Returns the exit code."""
    files, spec = _program_files(config, program)
    config = Configuration(config)
    # Paths of this host mean nothing there; the program's files travel with it.
    for option in (JobOptions.PYTHON_FILES, JobOptions.PYTHON_REQUIREMENTS):
        config.remove_config(option.key)
    attached = config.get(JobOptions.ATTACHED)
    config.set(JobOptions.ATTACHED, False)  # nobody asks that JobManager for a result
    deployment = deploy(
        config,
        Mode.APPLICATION,
        job_files={**files, "program.json": json.dumps(spec).encode()},
        slots_needed=config.get(JobOptions.PARALLELISM),  # the least that its jobs will want
    )
    print(f"JobManager Web Interface: {deployment.address}", flush=True)
    if not attached:
        return 0
    client = yarn_client()
    report = client.wait_until_ended(deployment.application_id, float("inf"))
    print(f"Application {report.application_id} has finished with final status {report.final_status}.")
    if report.final_status != "SUCCEEDED":
        raise JobExecutionError(exit_message(report.diagnostics) or report.diagnostics or "YARN gives no reason.")
    return 0


def _program_files(config: Configuration, program: Program) -> tuple[dict[str, str | bytes], dict[str, Any]]:
    """Return the program and its Python files by their names in the container, and how to run it there."""
    from flink_yarn.program import split_list

    files: dict[str, str | bytes] = {}

    def add(path: str, prefix: str) -> str:
        name = f"{prefix}/{os.path.basename(path.rstrip('/'))}"
        if os.path.isdir(path):
            files.update({f"{name}/{inner}": source for inner, source in _folder_contents(path).items()})
        else:
            files[name] = path
        return name

    spec: dict[str, Any] = {"path": "", "entry": program.entry, "arguments": list(program.arguments)}
    if program.path:
        spec["path"] = add(program.path, "program")
    python_files = []
    for number, text in enumerate(split_list(config.get(JobOptions.PYTHON_FILES))):
        path, remote = _local(JobOptions.PYTHON_FILES.key, text)
        if remote:
            python_files.append(text)
        else:
            python_files.append(add(path, f"python-{number}"))
    spec["python_files"] = python_files
    requirements = config.get(JobOptions.PYTHON_REQUIREMENTS)
    if requirements:
        name, _, cached = requirements.partition("#")
        spec["requirements"] = add(_local(JobOptions.PYTHON_REQUIREMENTS.key, name)[0], "requirements")
        if cached:
            spec["requirements"] += "#" + add(
                _local(JobOptions.PYTHON_REQUIREMENTS.key, cached)[0], "requirements-cache"
            )
    return files, spec
