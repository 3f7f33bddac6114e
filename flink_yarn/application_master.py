"""What runs beside skein's Java ApplicationMaster: the JobManager with YARN's resource driver, and what it is for.

A session serves until it is stopped. A per-job cluster runs the one job that was shipped with it, an application
cluster runs the program's main here; both end as the job did, and say why. Started by the script of ``cluster_spec``
or by ``master_supervisor``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, final

from engine.cluster import JobManagerHandle, bounded_output, configure_logging, run_jobmanager
from engine.core.config import Configuration
from engine.core.errors import ConfigError, EngineError, ExternalError, JobNotFoundError
from engine.core.fs import file_system_of
from engine.core.ids import JobID
from engine.core.options import HaOptions, JobOptions, MemoryOptions, RestOptions, YarnOptions
from engine.graph.execution_graph import ExecutionGraph
from engine.ha.contracts import LeadershipLostError
from engine.protocol.lifecycle import JobStatus
from flink_yarn.application_config import PORTS_FILE, effective_config
from flink_yarn.application_end import MAIN_LOG, outcome_of, shut_down
from flink_yarn.archive import mark_used
from flink_yarn.bad_nodes import tell_skein
from flink_yarn.cluster_spec import ADDRESS_KEY, JOB_FOLDER, Mode, address_path
from flink_yarn.container_place import leader_place
from flink_yarn.high_availability import (
    Outcome,
    contender_of,
    is_highly_available,
    keep_bad_nodes,
    keep_outcome,
    kept_bad_nodes,
    kept_outcome,
)
from flink_yarn.master_supervisor import RESTART_VARIABLE
from flink_yarn.resource_driver import YarnResourceDriver, attempt_of
from flink_yarn.skein_driver import DASHBOARD_ROUTE, skein_module
from flink_yarn.yarn_client import leaving_nodes, node_health

__all__ = ["Outcome", "main"]

logger = logging.getLogger("flink_yarn.application_master")

#: An attached client asks for the result and then ends the cluster itself; it gets this long.
LINGER_S: Final = 30.0
PROGRESS_S: Final = 1.0
MASTER_LOOK_S: Final = 0.5
RETRY_S: Final = 1.0
PUBLISH_ATTEMPTS: Final = 10
ARCHIVES_MARKED_S: Final = 6 * 3600.0
MAIN_OUT: Final = "jobmanager.out"  # the name that is in the container's script
ORPHANED: Final = "YARN's ApplicationMaster (Java) has ended, and with it this JobManager."
#: The supervisor starts the JobManager again after this code, not after 0 and 1.
EXIT_CRASH: Final = 70
#: The same: this process alone was told to end, and another one goes on in its place.
EXIT_TERMINATED: Final = 128 + signal.SIGTERM


# --- the application ------------------------------------------------------------------------------------------------


@final
class ApplicationMaster:
    def __init__(self, application: Any, config: Configuration, mode: Mode, user: str) -> None:
        self._app = application
        self._config = config
        self._mode = mode
        self._user = user
        self._attached = config.get(JobOptions.ATTACHED)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: JobManagerHandle | None = None
        self._ended_jobs: list[ExecutionGraph] = []
        self._work: threading.Thread | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        #: set once it is known how the application ends
        self.outcome: Outcome | None = None
        #: YARN or a person ended this process; the application's end is not ours to tell
        self.was_killed = False
        #: nobody could begin again here: YARN's Java process has ended
        self.is_orphaned = False
        #: YARN has been told of the outcome
        self.has_ended = False
        self._is_ha = is_highly_available(config)
        self._application_id = os.environ.get("SKEIN_APPLICATION_ID", "")
        self._attempt = attempt_of(os.environ.get("CONTAINER_ID", ""))

    @property
    def has_begun(self) -> bool:
        """Whether it has ever led."""
        return self._handle is not None

    async def run(self) -> Outcome:
        """Serve until the end and return how that is."""
        self._loop = asyncio.get_running_loop()
        watching = asyncio.create_task(self._watch_master())
        try:
            await run_jobmanager(
                self._config,
                new_driver=self._new_driver,
                ready=self._ready,
                log_dir=os.environ.get("FLINK_LOGS"),
                extras={"yarn-application-id": self._application_id},
                contender=contender_of(self._application_id, self._attempt) if self._is_ha else None,
                place=leader_place(os.environ, self._why_told),
                ended=self._tell_yarn,
            )
        finally:
            watching.cancel()
            self._end_tasks()
        return self.outcome or self._outcome_at_stop()

    def _new_driver(self) -> YarnResourceDriver:
        return YarnResourceDriver(
            self._app,
            fixed=self._config.get(YarnOptions.NUM_CONTAINERS),
            user=self._user,
            worker_mb=self._config.get(MemoryOptions.TM_PROCESS) >> 20,
            attempt=self._attempt,
            failures_max=self._config.get(YarnOptions.FAILED_CONTAINERS_MAX),
            give_up=lambda reason: self._finish(Outcome("FAILED", reason)),
            avoid=tell_skein,
            node_health=node_health,
            leaving_nodes=leaving_nodes,
            recall_nodes=self._kept_bad_nodes,
            keep_nodes=self._keep_bad_nodes,
        )

    def _kept_bad_nodes(self) -> Mapping[str, int]:
        metadata = self._handle.metadata if self._handle is not None else None
        return {} if metadata is None else kept_bad_nodes(metadata)

    def _keep_bad_nodes(self, until_ms: Mapping[str, int]) -> None:
        handle = self._handle
        if handle is not None and handle.metadata is not None and handle.token is not None:
            keep_bad_nodes(handle.metadata, handle.token, until_ms)

    def _why_told(self) -> str:
        # The NodeManager, which ends the whole container then, may be quicker than our look.
        return ORPHANED if _has_lost_master() else ""

    async def _watch_master(self) -> None:
        """End with skein's Java process. Where a NodeManager has died, nobody ends us when YARN has given us up."""
        while True:
            await asyncio.sleep(MASTER_LOOK_S)
            if _has_lost_master():
                logger.warning("YARN's Java ApplicationMaster is gone: this JobManager ends")
                self.was_killed = self.is_orphaned = True
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _tell_yarn(self) -> None:
        """With high availability: the cluster has ended for good, and its leader has not been replaced. In a thread.

        Raises: LeadershipLostError, ExternalError; then what was written down is kept for the next attempt.
        """
        assert self._handle is not None
        outcome = self.outcome = self.outcome or self._outcome_at_stop()
        self._keep_outcome(outcome)
        try:
            shut_down(self._app, outcome)
        except Exception as error:
            raise ExternalError(f"YARN's ApplicationMaster cannot be told of the end: {error}.") from error
        self.has_ended = True

    def _keep_outcome(self, outcome: Outcome) -> None:
        handle = self._handle
        if handle is not None and handle.metadata is not None and handle.token is not None:
            keep_outcome(handle.metadata, handle.token, self._application_id, outcome)

    def _outcome_at_stop(self) -> Outcome:
        """Return what it means that somebody stopped the cluster."""
        if self._mode is Mode.SESSION:
            return Outcome("SUCCEEDED", "The session was stopped.")
        if self._ended_jobs:
            return outcome_of(self._ended_jobs[-1])
        return Outcome("KILLED", "The cluster was stopped before its job ended.")

    def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ready(self, handle: JobManagerHandle) -> None:
        self._end_tasks()  # of a leadership before
        self._handle = handle
        handle.dispatcher.on_job_ended = self._job_ended
        assert self._loop is not None
        if threading.current_thread() is threading.main_thread():
            self._loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        self._spawn(self._start())

    def _on_sigterm(self) -> None:
        logger.info("SIGTERM received: YARN ends this container, or somebody this process")
        self.was_killed = True
        assert self._handle is not None
        if self._is_ha:
            self._handle.stop()  # the next attempt, or the next process, goes on with the jobs
        else:
            self._handle.dispatcher.shut_down_requested.set()

    async def _start(self) -> None:
        """Tell everybody where we are, then begin with the work."""
        while True:
            try:
                return await self._begin()
            except ExternalError as error:
                if not self._is_ha:
                    return self._finish(Outcome("FAILED", str(error)))
                # The jobs of before go on meanwhile. When another one leads, this task is cancelled.
                logger.warning("%s Trying again.", error)
                await asyncio.sleep(RETRY_S)
            except EngineError as error:
                return self._finish(Outcome("FAILED", str(error)))
            except Exception as error:
                logger.exception("the application cannot start")
                return self._finish(Outcome("FAILED", f"{type(error).__name__}: {error}"))

    async def _begin(self) -> None:
        assert self._handle is not None
        if self._handle.metadata is not None:
            # An attempt before may have been killed while it told YARN of the end.
            kept = self.outcome or await asyncio.to_thread(kept_outcome, self._handle.metadata, self._application_id)
            if kept is not None:
                self._finish(kept)
                return
            await self._handle.dispatcher.recovered()
        await asyncio.to_thread(_patiently, self._publish, self._handle)
        if self._mode is Mode.PER_JOB:
            await self._submit_shipped_job(self._handle)
        elif self._mode is Mode.APPLICATION and self._work is None:
            self._work = threading.Thread(target=self._run_program, name="program", daemon=True)
            self._work.start()
        if self._mode is not Mode.SESSION:
            self._spawn(self._report_progress())
        self._spawn(self._keep_archives())

    def _publish(self, handle: JobManagerHandle) -> None:
        address = {
            "host": handle.rpc_host,
            "port": handle.rpc_port,
            "rest": handle.rest_address,
            "high-availability": self._config.get(HaOptions.TYPE),
        }
        with contextlib.suppress(Exception):  # from before a restart in place
            self._app.ui.remove_page(DASHBOARD_ROUTE)
        self._app.ui.add_page(DASHBOARD_ROUTE, f"http://{handle.rpc_host}:{handle.rest_port}", "Flink dashboard")
        self._app.kv[ADDRESS_KEY] = json.dumps(address).encode()
        path = address_path(self._application_id, os.environ["FLINK_YARN_HOME"])
        with file_system_of(path).open_write(path, overwrite=True) as stream:
            stream.write(json.dumps(address).encode())
        logger.info("clients and TaskManagers can find the JobManager: %s", address)

    async def _keep_archives(self) -> None:
        """Containers that are started later need them, too: no deployment may think that nobody uses them."""
        archives = os.environ.get("FLINK_YARN_ARCHIVES", "").split()
        while archives:
            for archive in archives:
                try:
                    await asyncio.to_thread(mark_used, file_system_of(archive), archive, int(time.time() * 1000))
                except EngineError as error:
                    logger.warning("cannot say that %s is in use: %s", archive, error)
            await asyncio.sleep(ARCHIVES_MARKED_S)

    def _finish(self, outcome: Outcome) -> None:
        """End the cluster; the first outcome stays."""
        if self.outcome is None:
            self.outcome = outcome
            logger.info("the application ends as %s: %s", outcome.status, outcome.diagnostics)
        self._spawn(self._request_end(self.outcome))

    async def _request_end(self, outcome: Outcome) -> None:
        with contextlib.suppress(EngineError):  # it is tried again when all jobs have ended
            await asyncio.to_thread(self._keep_outcome, outcome)
        assert self._handle is not None
        self._handle.dispatcher.shut_down_requested.set()

    # --- one job ----------------------------------------------------------------------------------------------------

    async def _submit_shipped_job(self, handle: JobManagerHandle) -> None:
        from engine.graph.job_graph import JobGraph
        from engine.rpc.codec import decode

        with open(os.path.join(JOB_FOLDER, "job-graph"), "rb") as stream:
            graph = decode(stream.read(), JobGraph)
        for file in graph.files:
            if handle.dispatcher.has_blob(file.sha256):
                continue
            path = os.path.join(JOB_FOLDER, file.sha256)
            copy = os.path.join(handle.dispatcher.blobs.folder, f".{file.sha256}.copy")
            await asyncio.to_thread(_copy, path, copy)
            handle.dispatcher.put_blob(copy)
        await handle.dispatcher.submit_job(graph)  # with high availability, perhaps again: it runs once
        accepted = handle.dispatcher.job(graph.job_id)
        if accepted.status.is_globally_terminal_state():
            self._job_ended(accepted)  # perhaps under an attempt before

    def _job_ended(self, graph: ExecutionGraph) -> None:
        self._ended_jobs.append(graph)
        if self._mode is Mode.PER_JOB:
            self._spawn(self._end_with(outcome_of(graph)))

    async def _end_with(self, outcome: Outcome) -> None:
        self._set_progress(1.0)
        if self._attached:
            logger.info("the job has ended (%s); its client may ask for the result", outcome.status)
            await asyncio.sleep(LINGER_S)
        else:
            await asyncio.sleep(0.5)  # who asks just now gets an answer
        self._finish(outcome)

    # --- a program's main -------------------------------------------------------------------------------------------

    def _run_program(self) -> None:
        """Run in a thread: the program is a child process and a client of this JobManager like any other."""
        assert self._loop is not None
        try:
            outcome = self._program_outcome()
        except EngineError as error:
            outcome = Outcome("FAILED", str(error))
        except Exception as error:
            logger.exception("running the program failed")
            outcome = Outcome("FAILED", f"{type(error).__name__}: {error}")
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._end_with(outcome)))

    def _program_outcome(self) -> Outcome:
        from flink_yarn.program import ProgramRun, locate_program

        assert self._handle is not None
        with open(os.path.join(JOB_FOLDER, "program.json"), encoding="utf-8") as stream:
            spec = json.load(stream)
        config = Configuration(self._config)
        config.set(JobOptions.TARGET, "remote")
        config.set(RestOptions.ADDRESS, self._handle.rpc_host).set(RestOptions.PORT, self._handle.rest_port)
        if self._is_ha:
            # It finds the leader as any client does, and the next attempt runs it again: what it has submitted before
            # must be found by its id.
            config.remove_config(YarnOptions.ID.key)
            config.set(JobOptions.JOB_IDS_FROM, self._config.get(HaOptions.CLUSTER_ID))
        config.remove_config(RestOptions.BIND_PORT.key)
        config.remove_config(JobOptions.PYTHON_CLIENT_EXECUTABLE.key)
        # The program waits for its jobs here, also when nobody waits for the application.
        config.set(JobOptions.ATTACHED, True)
        folder = os.path.abspath(JOB_FOLDER)
        local = [name if "://" in name else os.path.join(folder, name) for name in spec["python_files"]]
        config.set(JobOptions.PYTHON_FILES, ",".join(local))
        if spec.get("requirements"):
            parts = [os.path.join(folder, name) for name in spec["requirements"].split("#")]
            config.set(JobOptions.PYTHON_REQUIREMENTS, "#".join(parts))
        program = locate_program(
            path=os.path.join(folder, spec["path"]) if spec["path"] else "",
            entry=spec["entry"] if spec["path"] else "",
            module="" if spec["path"] else spec["entry"],
            arguments=spec["arguments"],
            config=config,
        )
        with ProgramRun(program, config) as child:
            code = child.wait(lambda job_id: logger.info("job=%s submitted by the program", job_id))
            error, job_ids = child.error, child.job_ids
        for job_id in job_ids:
            self._wait_for_job(job_id)
        if error:
            cancelled = self._ended_jobs and self._ended_jobs[-1].status is JobStatus.CANCELED
            return Outcome("KILLED" if cancelled else "FAILED", error)
        if code != 0:
            return Outcome("FAILED", f"The program ended with exit code {code}; see jobmanager.out of the application.")
        if not job_ids:
            return Outcome("FAILED", "The program did not submit a job. Does it call execute()?")
        ended = [self._ended_job(job_id) for job_id in job_ids]
        outcomes = [outcome_of(graph) for graph in ended if graph is not None]
        bad = [outcome for outcome in outcomes if outcome.status != "SUCCEEDED"]
        return bad[0] if bad else outcomes[-1]

    def _wait_for_job(self, job_id: str) -> None:
        """Jobs of ``execute_async`` may outlive the program's main."""
        while self._ended_job(job_id) is None and self.outcome is None:
            time.sleep(0.1)

    def _ended_job(self, job_id: str) -> ExecutionGraph | None:
        """Return the job if it has ended, perhaps under an attempt before this one."""
        for graph in self._ended_jobs:
            if str(graph.job_graph.job_id) == job_id:
                return graph
        assert self._handle is not None
        with contextlib.suppress(JobNotFoundError):
            graph = self._handle.dispatcher.job(JobID(job_id))
            return graph if graph.status.is_globally_terminal_state() else None
        return None

    # --- progress ---------------------------------------------------------------------------------------------------

    async def _report_progress(self) -> None:
        assert self._handle is not None
        shown = -1.0
        while True:
            graphs = self._handle.dispatcher.jobs()
            if graphs:
                subtasks = list(graphs[0].all_subtasks())
                done = sum(1 for subtask in subtasks if subtask.current.state.is_terminal())
                progress = done / max(1, len(subtasks))
                if progress != shown and self.outcome is None:
                    shown = progress
                    await asyncio.to_thread(self._set_progress, progress)
            await asyncio.sleep(PROGRESS_S)

    def _set_progress(self, progress: float) -> None:
        try:
            self._app.set_progress(progress)
        except Exception as error:  # a number on a page
            logger.debug("YARN was not told of the progress: %s", error)


def _patiently(publish: Callable[[JobManagerHandle], None], handle: JobManagerHandle) -> None:
    """Skein's process may refuse a call without a reason while it is still starting itself; so it is asked again."""
    for _ in range(PUBLISH_ATTEMPTS - 1):
        try:
            return publish(handle)
        except skein_module().exceptions.SkeinError as error:
            logger.warning("skein's ApplicationMaster: %s: %s. Trying again.", type(error).__name__, error)
            time.sleep(RETRY_S)
    return publish(handle)


def _has_lost_master() -> bool:
    """Return whether skein's Java process, which the script knows, is there no more."""
    pid = os.environ.get("FLINK_MASTER_PID", "0")
    return pid != "0" and not os.path.exists(f"/proc/{pid}")


def _copy(source: str, target: str) -> None:
    import shutil

    shutil.copyfile(source, target)


def main(run: Callable[[ApplicationMaster], Outcome] = lambda master: asyncio.run(master.run())) -> int:
    """Run to the application's end. Exit codes: 0 ended as told, 1 cannot start, else a crash: start it again."""
    logs = os.environ.get("FLINK_LOGS") or "."
    configure_logging(os.path.join(logs, MAIN_LOG))
    logging.getLogger("hdfs").setLevel(logging.WARNING)  # it tells each request
    mode = Mode(os.environ.get("FLINK_YARN_MODE", "session"))
    again = os.environ.get(RESTART_VARIABLE, "0") != "0"
    user = os.environ.get("HADOOP_USER_NAME", "")
    try:
        application = skein_module().ApplicationClient.from_current()
    except Exception:
        logger.exception("the JobManager cannot reach YARN's ApplicationMaster")
        return EXIT_CRASH
    config = Configuration()
    master: ApplicationMaster | None = None
    is_first = not again and attempt_of(os.environ.get("CONTAINER_ID", "")) <= 1
    try:
        config = effective_config(mode, again)
        configure_logging(os.path.join(logs, MAIN_LOG), config)
        logger.info(
            "JobManager of application %s (%s), %s",
            os.environ["SKEIN_APPLICATION_ID"],
            mode.value,
            sys.version.split()[0],
        )
        logger.info("memory of the JobManager: %s", config.get_string("jobmanager.memory.process.size"))
        master = ApplicationMaster(application, config, mode, user)
        with bounded_output(os.path.join(logs, MAIN_OUT), config):
            outcome = run(master)
    except LeadershipLostError as error:
        logger.error("the JobManager ends: %s", error)  # the application is another attempt's
        return 1
    except ConfigError as error:
        logger.error("the JobManager cannot start: %s", error)
        if "in use" in str(error):  # somebody took the port between our look and our bind
            with contextlib.suppress(OSError):
                os.unlink(PORTS_FILE)
            return EXIT_CRASH
        if is_highly_available(config) and not is_first:
            return EXIT_CRASH  # it was right before: what it names is away just now, and jobs wait for it
        shut_down(application, Outcome("FAILED", str(error)))
        return 1
    except EngineError as error:
        logger.error("the JobManager ends: %s", error)
        is_new = is_first and not (master is not None and master.has_begun)  # then somebody waits for it and sees this
        if isinstance(error, ExternalError) and is_highly_available(config) and not is_new:
            return EXIT_CRASH
        shut_down(application, Outcome("FAILED", str(error)))
        return 1
    except Exception:
        logger.exception("the JobManager died")
        return EXIT_CRASH
    if master.has_ended:
        return 0
    if master.was_killed:
        # The supervisor has heard the signal, too, when YARN ends the container, and begins nothing any more.
        return EXIT_TERMINATED if is_highly_available(config) and not master.is_orphaned else 1
    if is_highly_available(config):
        return EXIT_CRASH  # it could not tell YARN, or does not lead any more
    shut_down(application, outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
