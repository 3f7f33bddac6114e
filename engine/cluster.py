"""The composition root: puts configuration, JobManager, TaskManagers and REST together, in one process or in several.

The only place that picks implementations. ``python -m engine.cluster jobmanager | taskmanager`` are the process mains;
``LocalCluster`` is a whole cluster in a thread of the client's process. Not here: any decision or protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from engine.core.clock import SystemClock
from engine.core.config import (
    Configuration,
    load_config_dir,
    parse_dynamic_properties,
)
from engine.core.errors import EngineError, ExternalError
from engine.core.fs import configure_file_systems
from engine.core.ids import FencingToken, JobID, ResourceID
from engine.core.options import ClusterOptions, HaOptions, RestOptions
from engine.graph.execution_graph import ExecutionGraph
from engine.graph.job_graph import JobGraph
from engine.ha.services import high_availability_services
from engine.jobmanager_process import JobManagerHandle, run_jobmanager, serve_rest
from engine.process_setup import (
    bounded_output,
    check_config,
    configure_logging,
    handled_signals,
    reachable_host,
    temp_dir,
)
from engine.protocol.checkpoint import StopMode
from engine.protocol.control import InitializeSlot
from engine.protocol.lifecycle import JobStatus
from engine.rpc.endpoint import InMemoryServer, JobManagerConnection, connect
from engine.runtime.jobmanager.dispatcher import Dispatcher
from engine.runtime.jobmanager.gateway import TakenCheckpoint
from engine.runtime.jobmanager.resource_manager import WorkerEvents
from engine.runtime.jobmanager.restart_notices import RESTARTS_LOGGER, TerminalHandler
from engine.runtime.taskmanager.leader_connector import LeaderConnector
from engine.runtime.taskmanager.private_folder import PrivateFolder
from engine.runtime.taskmanager.slots import SlotHandle, SlotHost
from engine.runtime.taskmanager.task_executor import (
    TaskExecutor,
    TaskExecutorSettings,
    unique_resource_id,
)
from engine.runtime.taskmanager.zygote_start import LOCAL_PRELOAD, PREPARED, child_environment

if TYPE_CHECKING:
    from engine.runtime.taskmanager.zygote import Zygote

__all__ = [
    "JobManagerHandle",
    "LocalCluster",
    "bounded_output",
    "check_config",
    "configure_logging",
    "main",
    "reachable_host",
    "run_jobmanager",
    "run_taskmanager",
]

logger = logging.getLogger("engine.cluster")
T = TypeVar("T")

#: A local cluster that has to be given up with its process gets this long.
LOCAL_CLOSE_S: Final = 5.0
LOCAL_START_S: Final = 30.0
#: Settings of jobs, by prefix: the program that makes a local cluster has them in the same configuration.
_OF_JOBS: Final = ("execution.checkpointing.", "execution.buffer-timeout", "restart-strategy")
#: Of a TaskManager, which lives long and starts many jobs, vectorised ones too.
TASKMANAGER_PRELOAD: Final = (*LOCAL_PRELOAD, "numba")
#: The same, when it is idle: kernels (some 20 MB), so that the first vectorised job need not wait for them.
TASKMANAGER_LATER: Final = tuple(f"engine.operators.warm_up.{kind}" for kind in ("keyed", "windows"))


# --- TaskManager ----------------------------------------------------------------------------------------------------


async def _start_zygote(
    python: str, preload: Sequence[str] = TASKMANAGER_PRELOAD, later: Sequence[str] = TASKMANAGER_LATER
) -> Zygote:
    from engine.runtime.taskmanager.zygote import Zygote

    # Without a path of its own, what slots print goes where this process's output goes: .out file or terminal.
    return await Zygote.start(python, child_environment(), None, preload, later)


async def _local_zygote(python: str) -> Zygote:
    from engine.runtime.taskmanager.zygote import Zygote

    started = PREPARED.take(python)
    return await (_start_zygote(python, LOCAL_PRELOAD, ()) if started is None else Zygote.adopt(started, python))


async def run_taskmanager(config: Configuration, *, log_dir: str = "", main_log: str = "", log_url: str = "") -> None:
    """Run a TaskManager until SIGTERM, SIGINT, SIGHUP, its release, or until no JobManager accepts it.

    ``log_url``: where others than the JobManager show its logs.

    Raises: ConfigError, ExternalError.
    """
    check_config(config)
    configure_file_systems(config.to_dict())
    loop = asyncio.get_running_loop()
    rpc_host, rpc_port = config.get(ClusterOptions.RPC_ADDRESS), config.get(ClusterOptions.RPC_PORT)
    services = high_availability_services(config)
    connector = None if services is None else LeaderConnector(services.retrieval())

    async def connect_to_address(timeout_s: float) -> JobManagerConnection:
        return await connect(rpc_host, rpc_port, timeout_s)

    folder = PrivateFolder("flink-tm-", temp_dir(config))
    stopping = asyncio.Event()
    executor: TaskExecutor | None = None

    def on_signal(number: int) -> None:
        stopping.set()
        if executor is not None:
            executor.stop(f"{signal.Signals(number).name} received", drain=True)

    try:
        with handled_signals(loop, on_signal):
            if not config.get(ClusterOptions.TM_HOST) and connector is not None:
                rpc_host = await _leader_host(connector, config, stopping)
            if not stopping.is_set():
                settings = _settings_of_taskmanager(config, rpc_host, rpc_port, log_dir, main_log)
                settings = dataclasses.replace(settings, log_url=log_url)
                executor = TaskExecutor(
                    settings,
                    connect=connector or connect_to_address,
                    slot_hosts=_start_zygote,
                    temp_dir=folder.path,
                    leader_replaced=None if connector is None else connector.replaced,
                )
                await executor.run()
    finally:
        if connector is not None:
            await connector.close()
        if services is not None:
            await services.close()
        folder.close()


async def _leader_host(connector: LeaderConnector, config: Configuration, stopping: asyncio.Event) -> str:
    """Return the leader's host, which tells by which of its addresses this host is reached; "" when stopped."""
    asking = asyncio.ensure_future(connector.leader_host(config.get(ClusterOptions.REGISTRATION_TIMEOUT) / 1000))
    stopped = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({asking, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not asking.done():
        asking.cancel()
        return ""
    return asking.result()


def _settings_of_taskmanager(
    config: Configuration, rpc_host: str, rpc_port: int, log_dir: str, main_log: str
) -> TaskExecutorSettings:
    host = bind_host = config.get(ClusterOptions.TM_HOST)
    if not host:
        host, bind_host = reachable_host(rpc_host, rpc_port)
    return TaskExecutorSettings(
        resource_id=ResourceID(config.get(ClusterOptions.TM_RESOURCE_ID)) or unique_resource_id(host),
        host=host,
        bind_host=config.get(ClusterOptions.TM_BIND_HOST) or bind_host,
        num_slots=config.get(ClusterOptions.NUM_SLOTS),
        config=config,
        log_dir=log_dir,
        main_log=main_log,
    )


# --- everything in this process -------------------------------------------------------------------------------------


@final
class _SharedHost:
    """A zygote that several TaskExecutors use and none of them closes."""

    def __init__(self, zygote: SlotHost) -> None:
        self._zygote = zygote

    def load(self, modules: Sequence[str]) -> None:
        self._zygote.load(modules)

    async def fork_slot(self, init: InitializeSlot) -> SlotHandle:
        return await self._zygote.fork_slot(init)

    async def wait(self) -> int:
        return await self._zygote.wait()

    async def close(self) -> None:
        pass


@final
class _LocalDriver:
    """Starts TaskExecutors in this event loop with as many slots as are missing."""

    on_demand = True
    workers_min = 0

    def __init__(self, start: Callable[[ResourceID, int], TaskExecutor]) -> None:
        self._start = start
        self._running: dict[ResourceID, tuple[TaskExecutor, asyncio.Task[None]]] = {}
        self._pending: dict[ResourceID, int] = {}
        self._count = 0
        self._events: WorkerEvents | None = None

    async def start(self, events: WorkerEvents) -> None:
        self._events = events

    def start_workers(self, num_workers: int) -> None:
        missing = num_workers - sum(self._pending.values())  # a worker is one slot here
        if missing <= 0:
            return
        self._count += 1
        resource_id = ResourceID(f"localhost:{os.getpid()}-{self._count:06x}")
        executor = self._start(resource_id, missing)
        self._pending[resource_id] = missing
        task = asyncio.get_running_loop().create_task(executor.run())
        self._running[resource_id] = (executor, task)
        task.add_done_callback(lambda ended: self._ended(resource_id, ended))

    def _ended(self, resource_id: ResourceID, task: asyncio.Task[None]) -> None:
        self._running.pop(resource_id, None)
        self._pending.pop(resource_id, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._events is not None:
            logger.error("local TaskManager failed", exc_info=error)
            self._events.workers_failed(str(error))

    def refuses(self, resource_id: ResourceID) -> str:
        return ""

    def worker_registered(self, resource_id: ResourceID) -> None:
        self._pending.pop(resource_id, None)

    def stop_worker(self, resource_id: ResourceID) -> None:
        if resource_id in self._running:
            self._running[resource_id][0].stop("it was idle")

    def workers(self) -> Sequence[ResourceID]:
        return tuple(self._running)

    async def diagnose(self, resource_id: ResourceID) -> str:
        return ""

    async def stop(self) -> None:
        running = list(self._running.values())
        for executor, _ in running:
            executor.stop("the local cluster ends")
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)


@final
class LocalCluster:
    """JobManager and TaskManagers in a background thread of this process; slots are made as jobs need them.

    Thread-safe; all methods block. Ends with the process, leaving nothing. Not a singleton by itself: ``shared`` is.
    """

    _shared: LocalCluster | None = None
    _shared_lock = threading.Lock()

    @classmethod
    def shared(cls, config: Configuration, told: Collection[str] = ()) -> LocalCluster:
        """Return this process's cluster, started with ``config`` by the first caller (``told``: see check_config)."""
        with cls._shared_lock:
            # A forked child has no thread of its parent's cluster.
            if cls._shared is None or not cls.is_there():
                cls._shared = cls(config, told)
                _end_on_signals()
            return cls._shared

    @classmethod
    def is_there(cls) -> bool:
        """Whether ``shared`` would return one that was started before."""
        shared = cls._shared
        return shared is not None and not shared._closed and shared._pid == os.getpid()

    def __init__(self, config: Configuration, told: Collection[str] = ()) -> None:
        check_config(config, told)  # warnings come to the terminal, as long as the program configures no logging
        configure_file_systems(config.to_dict())
        self._config = Configuration(config)
        # Each job brings its own: one that does not checkpoint must not because the first job of the process did.
        for key in config.key_set():
            if key.startswith(_OF_JOBS):
                self._config.remove_config(key)
        self._pid = os.getpid()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._zygotes: dict[str, asyncio.Task[Zygote]] = {}
        self._web: Any = None
        self._started: concurrent.futures.Future[Dispatcher] = concurrent.futures.Future()
        # From here on errors come as exceptions: Python must not print our log to the user's terminal as well.
        logging.getLogger("engine").addHandler(logging.NullHandler())
        restarts = logging.getLogger(RESTARTS_LOGGER)
        if not restarts.handlers:
            restarts.addHandler(TerminalHandler())
        self._thread = threading.Thread(target=self._run, name="local-cluster", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._ending = asyncio.Event()
        try:
            self._loop.run_until_complete(self._main())
        finally:
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.close()

    async def _main(self) -> None:
        self._zygote(sys.executable)
        try:
            # Whatever goes wrong with one part, the others are closed too.
            async with contextlib.AsyncExitStack() as parts:
                folder = PrivateFolder("flink-local-", temp_dir(self._config))
                parts.callback(folder.close)
                parts.push_async_callback(self._close_zygotes)
                dispatcher = await self._start_parts(parts, folder.path)
                self._started.set_result(dispatcher)
                await self._ending.wait()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _start_parts(self, parts: contextlib.AsyncExitStack, temp: str) -> Dispatcher:
        driver = _LocalDriver(lambda resource_id, slots: self._executor(resource_id, slots, temp))
        dispatcher = Dispatcher(self._config, clock=SystemClock(), driver=driver, slots_per_worker=1, temp_dir=temp)
        self._server = InMemoryServer(
            FencingToken.generate(), dispatcher.resource_manager.handle_connection, dispatcher.blobs.path
        )
        if self._config.contains(RestOptions.PORT) or self._config.contains(RestOptions.BIND_PORT):
            from engine.rest.server import create_app

            upload_dir = self._config.get(RestOptions.UPLOAD_DIR) or os.path.join(temp, "web")
            self._web = await serve_rest(create_app(dispatcher, upload_dir=upload_dir), self._config)
            parts.push_async_callback(self._web.close)
        parts.push_async_callback(self._server.close)
        parts.push_async_callback(dispatcher.close)
        await dispatcher.start()
        return dispatcher

    async def _close_zygotes(self) -> None:
        """End them, also those that are still starting: nobody else waits for these any more."""
        zygotes = list(self._zygotes.values())
        if not zygotes:
            return
        await asyncio.wait(zygotes)
        started = [task.result() for task in zygotes if not task.cancelled() and task.exception() is None]
        await asyncio.gather(*(zygote.close() for zygote in started), return_exceptions=True)

    def _executor(self, resource_id: ResourceID, num_slots: int, temp: str) -> TaskExecutor:
        settings = TaskExecutorSettings(resource_id, "localhost", "localhost", num_slots, self._config)

        async def connector(timeout_s: float) -> JobManagerConnection:
            return await self._server.connect()

        async def slot_host(python: str) -> SlotHost:
            # A slot that is given up must not take the zygote of all others with it.
            return _SharedHost(await asyncio.shield(self._zygote(python)))

        return TaskExecutor(settings, connect=connector, slot_hosts=slot_host, temp_dir=temp)

    def _zygote(self, python: str) -> asyncio.Task[Zygote]:
        known = self._zygotes.get(python)
        if known is None or (known.done() and (known.cancelled() or known.exception() is not None)):
            known = self._zygotes[python] = self._loop.create_task(_local_zygote(python))
            self._loop.create_task(self._forget_when_ended(python, known))
        return known

    async def _forget_when_ended(self, python: str, started: asyncio.Task[Zygote]) -> None:
        with contextlib.suppress(Exception):  # whoever wants a slot gets the error
            await (await asyncio.shield(started)).wait()
        if self._zygotes.get(python) is started and not self._ending.is_set():
            del self._zygotes[python]

    # --- for clients, from any thread --------------------------------------------------------------------------------

    @property
    def dispatcher(self) -> Dispatcher:
        """Raises what kept the cluster from starting."""
        return self._started.result(LOCAL_START_S)

    @property
    def rest_address(self) -> str:
        """The dashboard's URL, "" when ``rest.port`` was not configured."""
        assert self.dispatcher is not None
        return "" if self._web is None else str(self._web.address)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function or coroutine function on the loop; return its result."""

        async def call() -> Any:
            result = function(*args)
            return await result if asyncio.iscoroutine(result) else result

        if self._closed:
            raise ExternalError("The local cluster has ended with its program.")
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def submit(self, job_graph: JobGraph, files: Mapping[str, str]) -> JobID:
        """Submit a job with its files (sha256 → path; they stay where they are). Raises ProgramError."""
        dispatcher = self.dispatcher
        for sha256, path in files.items():
            if not dispatcher.has_blob(sha256):
                copy = os.path.join(dispatcher.blobs.folder, f".{sha256}.copy")
                shutil.copyfile(path, copy)
                self._call(dispatcher.put_blob, copy)
        job_id: JobID = self._call(dispatcher.submit_job, job_graph)
        return job_id

    def job_status(self, job_id: JobID) -> JobStatus:
        graph: ExecutionGraph = self._call(self.dispatcher.job, job_id)
        return graph.status

    def cancel(self, job_id: JobID) -> None:
        self._call(self.dispatcher.cancel_job, job_id)

    def trigger_savepoint(
        self, job_id: JobID, target: str | None, *, stop: StopMode, cancel: bool
    ) -> concurrent.futures.Future[TakenCheckpoint]:
        if self._closed:
            raise ExternalError("The local cluster has ended with its program.")
        work = self.dispatcher.trigger_savepoint(job_id, target, stop=stop, cancel=cancel)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def result(self, job_id: JobID, timeout_s: float) -> ExecutionGraph | None:
        """Wait for about ``timeout_s`` for the job's end; return it, or None if it still runs."""

        async def wait() -> ExecutionGraph | None:
            try:
                return await asyncio.wait_for(self.dispatcher.job_result(job_id), timeout_s or 0.001)
            except TimeoutError:
                return None

        found: ExecutionGraph | None = self._call(wait)
        return found

    def accumulators(self, job_id: JobID) -> dict[str, Any]:
        def collect() -> dict[str, Any]:
            graph = self.dispatcher.job(job_id)
            if graph.status.is_globally_terminal_state():
                return {name: value for name, (_, value) in graph.accumulator_results.items()}
            values: dict[str, Any] = {}
            for subtask in graph.all_subtasks():
                for name, value in subtask.current.metrics.user.items():
                    known = values.get(name)
                    both = isinstance(known, (int, float)) and isinstance(value, (int, float))
                    values[name] = known + value if both else value
            return values

        found: dict[str, Any] = self._call(collect)
        return found

    def coordinator_request(self, job_id: JobID, operator_id: str, request: object) -> object:
        answer: object = self._call(self.dispatcher.coordinator_request, job_id, operator_id, request)
        return answer

    def close(self) -> None:
        """End all jobs and processes; may be called again."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        atexit.unregister(self.close)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self._ending.set())
        self._thread.join(LOCAL_CLOSE_S)


def _end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the shared local cluster first, unless the program handles or ignores them itself."""

    def on_signal(number: int, frame: Any) -> None:
        if LocalCluster._shared is not None:
            LocalCluster._shared.close()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, on_signal)


# --- process mains --------------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine.cluster", allow_abbrev=False)
    parser.add_argument("process", choices=("jobmanager", "taskmanager"))
    parser.add_argument("--configDir", "-c", dest="config_dir", help="folder with config.yaml or flink-conf.yaml")
    parser.add_argument("-D", dest="properties", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--host", help="jobmanager.rpc.address (jobmanager) or taskmanager.host (taskmanager)")
    parser.add_argument("--webui-port", type=int, help="rest.port")
    parser.add_argument("--log-file", help="write logs there instead of to stderr")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one process of a cluster; return its exit code. A problem at start is one message on stderr."""
    options = _parse(arguments)
    log_file = os.path.abspath(options.log_file) if options.log_file else None
    try:
        if log_file:
            os.makedirs(os.path.dirname(log_file), exist_ok=True)
        configure_logging(log_file)
        config = load_config_dir(options.config_dir)
        config.add_all(parse_dynamic_properties(options.properties))
        if options.host:
            key = ClusterOptions.RPC_ADDRESS if options.process == "jobmanager" else ClusterOptions.TM_HOST
            config.set(key, options.host)
            if options.process == "jobmanager" and config.get(HaOptions.TYPE) != "NONE":
                config.set(RestOptions.ADDRESS, options.host)  # clients must reach this very JobManager when it leads
        if options.webui_port is not None:
            config.set(RestOptions.PORT, options.webui_port).set(RestOptions.BIND_PORT, str(options.webui_port))
        configure_logging(log_file, config)
        log_dir = os.path.dirname(log_file) if log_file else config.get(ClusterOptions.LOG_DIR)
        with bounded_output(f"{os.path.splitext(log_file)[0]}.out" if log_file else None, config):
            if options.process == "jobmanager":
                asyncio.run(run_jobmanager(config, log_dir=log_dir or None))
            else:
                asyncio.run(run_taskmanager(config, log_dir=log_dir, main_log=os.path.basename(log_file or "")))
    except (EngineError, OSError) as error:
        logger.error("the %s ends: %s", options.process, error)
        if log_file:
            print(f"The {options.process} ends: {error}", file=sys.stderr)
        return 1
    except Exception:
        logger.exception("the %s ends: internal error", options.process)
        return 1
    logger.info("the %s has ended", options.process)
    return 0


if __name__ == "__main__":
    sys.exit(main())
