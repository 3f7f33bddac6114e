"""A slot: one process, one job, one thread. Turns the mailbox, steps the tasks, talks to its TaskManager.

Forked by ``zygote``; ends itself at FreeSlot or as soon as its TaskManager is gone. The loop is ``SlotProcess.run``.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final, final

from engine.core.clock import SystemClock
from engine.core.config import Configuration
from engine.core.errors import EngineError
from engine.core.fs import configure_file_systems
from engine.core.ids import ExecutionAttemptID
from engine.core.options import ClusterOptions
from engine.operators.failure import error_info
from engine.operators.row_loop import RowLoop
from engine.protocol.checkpoint import (
    CheckpointFailureReason,
    DeclineCheckpoint,
    NotifyCheckpointAborted,
    NotifyCheckpointComplete,
    TriggerCheckpoint,
)
from engine.protocol.control import (
    CancelTask,
    DeployTask,
    FreeSlot,
    InitializeSlot,
    ReportTasks,
    SendOperatorEvent,
    SlotAddress,
    SlotReady,
    SlotReport,
    TasksReported,
)
from engine.protocol.lifecycle import ExecutionState
from engine.protocol.profiling import SampleStacks, Stack, StacksSampled
from engine.runtime.exchange.partition import PartitionRegistry
from engine.runtime.exchange.transport import Transport, bind_data_sockets
from engine.runtime.taskmanager.mailbox import Mailbox
from engine.runtime.taskmanager.memory import SlotMemory
from engine.runtime.taskmanager.slot_control import ControlSocket
from engine.runtime.taskmanager.slot_environment import SlotEnvironment
from engine.runtime.taskmanager.stack_sampler import StackSampler
from engine.runtime.taskmanager.step_order import StepOrder
from engine.runtime.taskmanager.stream_task import StreamTask
from engine.runtime.taskmanager.user_files import SITE_FOLDER_KEY, prepare_files
from engine.runtime.taskmanager.watchdog import Watchdog

__all__ = ["SlotProcess", "slot_main"]

_REPORT_INTERVAL: Final = 1.0
#: How long an I/O thread may keep the interpreter lock. Python's 5 ms would be added to each hop.
_SWITCH_INTERVAL: Final = 0.0005
_GC_THRESHOLDS: Final = (20_000, 50, 100)
#: key of the job's global parameters in its configuration, as JSON
_PARAMETERS_KEY: Final = "pipeline.global-job-parameters"


@final
class SlotProcess:
    """Everything that lives as long as the slot."""

    def __init__(self, control: ControlSocket, mailbox: Mailbox) -> None:
        self._control = control
        self._mailbox = mailbox
        self._env: SlotEnvironment
        self._tasks: list[StreamTask] = []  #: in topological order
        self._order = StepOrder()
        self._freed_at: float | None = None
        self._reports_asked: int | None = None
        #: filled by a sampling thread
        self._sampled: deque[tuple[int, dict[ExecutionAttemptID | None, Counter[Stack]]]] = deque()

    def initialize(self, init: InitializeSlot) -> None:
        """Prepare files and sockets, then say SlotReady.

        Raises: EngineError when files are missing or sockets cannot be bound.
        """
        os.makedirs(init.work_dir, exist_ok=True)
        os.chdir(init.work_dir)
        cached_files = prepare_files(
            init.job.files, init.files_dir, init.work_dir, init.config.get(SITE_FOLDER_KEY, "")
        )
        unix, tcp = bind_data_sockets(init.unix_path, init.data_bind_host, init.data_port)
        address = SlotAddress(init.resource_id, init.data_host, tcp.getsockname()[1], init.unix_path)
        registry = PartitionRegistry()
        config = Configuration(init.config)
        codec = config.get(ClusterOptions.EXCHANGE_CODEC).lower()
        codec = "" if codec == "none" else codec
        transport = Transport(self._mailbox, init.job.job_id, registry, address, codec=codec)
        transport.listen(unix, tcp)
        configure_file_systems(init.config)
        slot_shared: dict[str, Any] = {}
        watchdog = Watchdog(RowLoop.of(slot_shared))
        watchdog.start()
        env = SlotEnvironment(
            init=init,
            mailbox=self._mailbox,
            registry=registry,
            transport=transport,
            clock=SystemClock(),
            memory=SlotMemory.divide(init.memory_bytes, config.get(ClusterOptions.NUM_SLOTS), config),
            send=self._control.send,
            watchdog=watchdog,
            let_others_work=self._let_others_work,
            slot_shared=slot_shared,
            job_parameters=_job_parameters(init.config),
            cached_files=cached_files,
        )
        self.begin(env)

    def begin(self, env: SlotEnvironment) -> None:
        """Say SlotReady; from now on tasks may be deployed."""
        self._env = env
        self._control.send(SlotReady(env.init.allocation_id, env.transport.address))
        self._mailbox.call_later(_REPORT_INTERVAL, self._report)

    def run(self) -> None:
        """The loop. Returns when the slot is freed or its TaskManager is gone."""
        while not self._must_end():
            self.turn_once(self._sleep(self._tasks))
        self._end()

    def turn_once(self, timeout: float | None) -> None:
        """Handle what there is, waiting for it if need be, then let each task that can do a step."""
        self._turn(timeout)
        if not self._must_end():
            self._answer_report()
            self._work(self._tasks)

    def _answer_report(self) -> None:
        """Here no step is on the stack: all tasks answer at one moment, behind all that was sent to them."""
        request_id, self._reports_asked = self._reports_asked, None
        if request_id is not None:
            told = tuple(task.report() for task in self._tasks if not task.state.is_terminal())
            self._control.send(TasksReported(request_id, told))

    def _must_end(self) -> bool:
        return self._control.is_closed or self._freed_at is not None

    def _turn(self, timeout: float | None) -> None:
        control = self._control
        self._mailbox.turn(timeout)
        while control.messages:
            self._handle(control.messages.popleft())
        while self._sampled:
            self._send_sampled()

    def _work(self, tasks: Sequence[StreamTask]) -> None:
        self._fire_timers(tasks)
        for task in tasks:
            if task.is_runnable():
                if self._order.holds(task):
                    task.wait_for_consumers()
                else:
                    task.step()
        self._env.transport.pump()

    def _let_others_work(self, inside: StreamTask, is_enough: Callable[[], bool]) -> None:
        """A task is inside a step that emits more than its consumers take, or that lasts: go on for the others.

        Only those after it in ``_tasks`` are stepped, which is in topological order in every slot. So whatever a task
        on top of the stack waits for can run: no consumer of it lies beneath it, here or in another slot.
        """
        timeout: float | None = 0.0
        while True:
            self._turn(timeout)
            if self._must_end():
                for task in self._tasks:
                    task.cancel()
                return
            if inside.is_interrupted:
                return
            others = self._tasks[self._tasks.index(inside) + 1 :]
            self._work(others)
            if self._must_end() or is_enough():
                return
            timeout = self._sleep(others)

    def _sleep(self, tasks: Sequence[StreamTask]) -> float | None:
        """Return how long nothing will be to do, as far as the tasks know; None = until the mailbox knows more."""
        next_timer_ms: int | None = None
        for task in tasks:
            if task.is_runnable():
                return 0.0
            timer_ms = task.next_timer_ms()
            if timer_ms is not None and (next_timer_ms is None or timer_ms < next_timer_ms):
                next_timer_ms = timer_ms
        if next_timer_ms is None:
            return None
        return max(0.0, (next_timer_ms - self._env.clock.now_ms()) / 1000)

    def _fire_timers(self, tasks: Sequence[StreamTask]) -> None:
        now_ms = 0
        for task in tasks:
            timer_ms = task.next_timer_ms()
            if timer_ms is not None:
                now_ms = now_ms or self._env.clock.now_ms()
                if timer_ms <= now_ms:
                    task.fire_timers(now_ms)

    def _handle(self, message: object) -> None:
        match message:
            case DeployTask(_, deployment):
                task = StreamTask(deployment, self._env)
                self._tasks = self._order.arrange(self._tasks, task)
                task.start()
                if threading.active_count() > 2:  # more than the watchdog, which is in no hurry
                    sys.setswitchinterval(_SWITCH_INTERVAL)
            case CancelTask(_, attempt_id):
                for task in self._tasks_of(attempt_id):
                    task.cancel()
            case SendOperatorEvent(_, attempt_id, operator_id, event):
                for task in self._tasks_of(attempt_id):
                    task.handle_event(operator_id, event)
            case TriggerCheckpoint(_, attempt_id, checkpoint_id):
                tasks = self._tasks_of(attempt_id)
                for task in tasks:
                    task.trigger_checkpoint(message)
                if not tasks:
                    job_id = self._env.init.job.job_id
                    reason = CheckpointFailureReason.TASK_FINISHED
                    self._control.send(DeclineCheckpoint(job_id, attempt_id, checkpoint_id, reason))
            case NotifyCheckpointComplete(_, attempt_id, checkpoint_id):
                for task in self._tasks_of(attempt_id):
                    task.complete_checkpoint(checkpoint_id)
            case NotifyCheckpointAborted(_, attempt_id, checkpoint_id):
                for task in self._tasks_of(attempt_id):
                    task.abort_checkpoint(checkpoint_id)
            case SampleStacks():
                self._sample(message)
            case ReportTasks(request_id):
                self._reports_asked = request_id
            case FreeSlot():
                self._freed_at = time.monotonic()
            case _:
                raise AssertionError(f"a slot does not understand {message!r}")

    def _tasks_of(self, attempt_id: ExecutionAttemptID) -> list[StreamTask]:
        """Return the task of the attempt, none when it has ended and reported so."""
        return [task for task in self._tasks if task.attempt_id == attempt_id]

    def _sample(self, request: SampleStacks) -> None:
        """Look at what this thread does, from another one; the answer is sent from this one."""

        def running() -> ExecutionAttemptID | None:
            # Of tasks that are inside each other the last one is on top.
            inside = [task.attempt_id for task in self._tasks if task.is_inside]
            return inside[-1] if inside else None

        def done(seen: dict[ExecutionAttemptID | None, Counter[Stack]]) -> None:
            self._sampled.append((request.request_id, seen))
            self._mailbox.wake()

        sampler = StackSampler(threading.get_ident(), running, StreamTask._run_inside.__code__)
        sampler.start(request.num_samples, request.interval_ms / 1000, done)

    def _send_sampled(self) -> None:
        request_id, seen = self._sampled.popleft()
        total = sum(count for stacks in seen.values() for count in stacks.values())
        samples: dict[ExecutionAttemptID, dict[Stack, int]] = {}
        for task in self._tasks:
            stacks = dict(seen.get(task.attempt_id, {}))
            not_running = total - sum(stacks.values())
            samples[task.attempt_id] = {**stacks, (): not_running} if not_running else stacks
        self._control.send(StacksSampled(request_id, samples, self._env.clock.now_ms()))

    def _report(self) -> None:
        metrics = {task.attempt_id: task.metrics() for task in self._tasks if task.state is ExecutionState.RUNNING}
        if metrics:
            self._control.send(SlotReport(self._env.init.allocation_id, metrics))
        # Ended tasks have reported for the last time.
        for task in self._tasks:
            if task.state.is_terminal():
                self._order.forget(task)
        self._tasks = [task for task in self._tasks if not task.state.is_terminal()]
        self._mailbox.call_later(_REPORT_INTERVAL, self._report)

    def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._env.transport.close()
        self._env.registry.release_all()


def _job_parameters(config: dict[str, str]) -> dict[str, str]:
    text = config.get(_PARAMETERS_KEY, "")
    if not text.startswith("{"):
        return {}
    return {str(key): str(value) for key, value in json.loads(text).items()}


def slot_main(sock: socket.socket) -> int:
    """Run a slot in this freshly forked process; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # what a function prints shows at once
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # else all slots of this zygote would draw the same numbers
    # Batches of rows make many objects and few cycles: collect them more rarely than Python's 700 allocations.
    gc.set_threshold(*_GC_THRESHOLDS)
    mailbox = Mailbox()
    control = ControlSocket(sock, mailbox)
    slot = SlotProcess(control, mailbox)
    while not control.messages:
        if control.is_closed:
            return 0
        mailbox.turn(None)
    init = control.messages.popleft()
    assert isinstance(init, InitializeSlot), init
    _set_title(f"slot-{init.slot_index}")
    try:
        slot.initialize(init)
    except (EngineError, OSError) as error:
        control.send(error_info(error))
        control.drain()
        return 1
    slot.run()
    control.drain()
    return 0


def _set_title(title: str) -> None:
    """Name the process as ``ps -o comm`` and ``top`` show it."""
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write(title[:15])
    except OSError:
        pass  # not Linux, or no /proc
