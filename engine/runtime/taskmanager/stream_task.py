"""One subtask as a step loop: take what is there, carry it through the chain, hand on what comes out.

``slot_process`` calls ``step`` whenever ``is_runnable`` says so: there is input (or the source has more), every output
has room, and the operators are ready. Nothing in here blocks; a step takes a few milliseconds. Backpressure is a step
that is not taken.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Final, final

from engine.core import user_code
from engine.core.config import Configuration
from engine.core.errors import ProgramError
from engine.core.ids import ExecutionAttemptID, OperatorID
from engine.core.options import CheckpointingOptions, JobOptions
from engine.core.records import Batch
from engine.graph.job_graph import ChainSpec
from engine.operators.base import PollResult, SourceOperator
from engine.operators.failure import at_subtask, error_info
from engine.protocol.checkpoint import (
    AwaitsCheckpoint,
    CheckpointFailureReason,
    CheckpointOptions,
    StopMode,
    TriggerCheckpoint,
)
from engine.protocol.control import (
    ErrorInfo,
    ResultPartitionDescriptor,
    RunningTask,
    TaskDeployment,
    TaskMetrics,
    TaskStateChanged,
)
from engine.protocol.lifecycle import ExecutionState
from engine.protocol.stream import END_OF_DATA, WATERMARK_MAX_MS, Watermark
from engine.runtime.exchange.gate import (
    BarrierEvent,
    BatchArrived,
    GateEvent,
    IdleChanged,
    InputEnded,
    InputGate,
    SuperstepEnded,
    WatermarkAdvanced,
)
from engine.runtime.exchange.partition import BlockingPartition, PipelinedPartition, ResultPartition
from engine.runtime.taskmanager.chain_runner import OperatorChain
from engine.runtime.taskmanager.in_flight import restored_batches
from engine.runtime.taskmanager.slot_environment import SlotEnvironment
from engine.runtime.taskmanager.snapshot_capture import StateCapture
from engine.runtime.taskmanager.step_size import StepSize
from engine.runtime.taskmanager.task_checkpoints import TaskCheckpoints, decline
from engine.runtime.taskmanager.task_contexts import TaskContexts
from engine.runtime.taskmanager.task_exit import TaskExit
from engine.runtime.taskmanager.task_input import connect_gate
from engine.runtime.taskmanager.task_metrics import TaskClock
from engine.runtime.taskmanager.task_reports import running_task
from engine.runtime.taskmanager.task_restore import TaskRegistries

__all__ = ["StreamTask"]

#: A step goes on with further batches until this much time has passed; then others have their turn.
_STEP_NS: Final = 2_000_000


class _Interrupted(BaseException):
    """Unwinds a step of a task that was cancelled meanwhile. Functions that catch Exception do not see it."""


@final
class StreamTask:
    """One attempt of one subtask: INITIALIZING → RUNNING → FINISHED | FAILED | CANCELED, each reported once."""

    def __init__(self, deployment: TaskDeployment, env: SlotEnvironment) -> None:
        self.deployment = deployment
        self.state = ExecutionState.DEPLOYING
        self._env = env
        self._chain: OperatorChain | None = None
        self._gate: InputGate | None = None
        self._exits: list[TaskExit] = []
        self._partitions: list[ResultPartition] = []
        self._source: SourceOperator | None = None
        #: The source said IDLE and nobody woke it since. Set before each poll: a wake during the poll is not lost.
        self._source_waits = False
        self._source_ended = False
        self._event_time_ended = False  #: the source's
        self._is_finished = False  #: ``finish`` of the operators has been called
        self._registries = TaskRegistries(deployment, env.init.work_dir)
        self._contexts = TaskContexts(deployment, env, self._registries, self.wake)
        self._checkpoints: TaskCheckpoints | None = None  #: once everything is open
        self._pending: BatchArrived | None = None
        self._pending_at = 0  #: rows of the pending batch that were processed
        self._step_size = StepSize(self._partitions)
        self._now_ns = env.now_ns
        self._clock = TaskClock(env.now_ns)
        self._records_in = 0
        self._batches_in = 0
        self.is_inside = False  #: code of its operators is on the stack
        self._interruption: BaseException | None = None  #: why the step that is on the stack must end
        #: messages that came while it was inside, or that wait for what a watermark makes, in their order
        self._late: list[Callable[[], None]] = []
        self._entered_ns = 0  #: when it went inside, or came back from a pause
        self._paused_ns = 0

    @property
    def attempt_id(self) -> ExecutionAttemptID:
        return self.deployment.attempt_id

    # --- start ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load, connect and open everything; on an error the task is FAILED when this returns."""
        self._enter(ExecutionState.INITIALIZING)
        restore = self.deployment.restore
        if restore is not None and restore.is_finished:
            if not any(operator.lists or operator.keyed for operator in restore.operators.values()):
                self._finish_again()
                return
            self._source_ended = self._is_finished = True
        try:
            spec = self._load()
            self._make_exits(spec)
            object_reuse = Configuration(self._env.init.config).get(JobOptions.OBJECT_REUSE)
            chain = self._chain = OperatorChain(spec, self._exits, object_reuse=object_reuse)
            if isinstance(chain.head, SourceOperator):
                self._source = chain.head
            else:
                self._gate = connect_gate(
                    self.deployment.gates, spec.operators[0].spec.inputs_first, self._env.registry, self._env.transport
                )
            hungry = sum(chained.spec.blocks or bool(chained.spec.inputs_first) for chained in spec.operators)
            memory_bytes = self._env.memory.operator_bytes(hungry)
            chain.open(lambda chained: self._contexts.of_operator(chained, memory_bytes))
            for task_exit in self._exits:
                task_exit.open(self._contexts.of_task())
            self._registries.check_all_claimed(self._env.init.config)
            self._checkpoints = self._make_checkpoints(chain)
            if self._gate is not None and restore is not None:
                context = self._contexts.of_task()
                batches = restored_batches(restore.in_flight, spec.input_keys, self.deployment, context)
                self._gate.restore(batches)
        except BaseException as error:
            self._fail(error)
            return
        self._clock.start()
        self._enter(ExecutionState.RUNNING)
        self._restore_some()

    def _restore_some(self) -> None:
        """Restore bit by bit, between steps, what no record has asked for yet."""
        if self.state is not ExecutionState.RUNNING:
            return
        try:
            is_left = self.is_inside or self._is_advancing or self._registries.restore_some()
        except BaseException as error:
            self._fail(error)
            return
        if is_left:
            self._env.mailbox.call_later(0.0, self._restore_some)

    def _finish_again(self) -> None:
        """The vertex had finished before the checkpoint: no code of it runs, those after it hear its end."""
        self._enter(ExecutionState.RUNNING)
        for descriptor in self.deployment.partitions:
            partition = self._make_partition(descriptor, self.deployment.vertex_name)
            partition.add_event(Watermark(WATERMARK_MAX_MS))
            partition.add_event(END_OF_DATA)
            partition.finish()
        self._enter(ExecutionState.FINISHED)

    def _make_checkpoints(self, chain: OperatorChain) -> TaskCheckpoints:
        env, deployment, config = self._env, self.deployment, Configuration(self._env.init.config)
        capture = StateCapture(
            self._registries.in_order(chained.operator_id for chained in chain.spec.operators),
            self._registries.key_groups,
            env.snapshot_workers,
            name=f"{deployment.vertex_id[:8]}-{deployment.subtask_index}",
            work_dir=env.init.work_dir,
            is_periodic=config.get(CheckpointingOptions.INTERVAL) > 0,
        )
        if deployment.restore is not None and config.get(CheckpointingOptions.INCREMENTAL):
            capture.adopt(deployment.restore)
        return TaskCheckpoints(
            deployment,
            chain,
            self._exits,
            self._gate,
            capture=capture,
            send=env.send,
            clock=env.clock,
            call_later=env.mailbox.call_later,
            pending_rest=self._pending_rest,
            has_finished=lambda: self._is_finished,
        )

    def _pending_rest(self) -> tuple[int, Batch] | None:
        pending = self._pending
        if pending is None:
            return None
        return pending.input_index, pending.batch.slice(self._pending_at, len(pending.batch))

    def _load(self) -> ChainSpec:
        try:
            spec = user_code.loads(self.deployment.chain)
        except (ImportError, AttributeError) as error:
            raise ProgramError(
                f"The operators of {self.deployment.vertex_name!r} cannot be loaded on this TaskManager: {error}. "
                "Ship the module with the job (-pyfs, python.files) or install it on every TaskManager "
                "(-pyreq, python.requirements)."
            ) from error
        assert isinstance(spec, ChainSpec), spec
        return spec

    def _make_exits(self, spec: ChainSpec) -> None:
        env = self._env
        for descriptor, exit_spec in zip(self.deployment.partitions, spec.exits, strict=True):
            name = spec.operators[exit_spec.operator_index].name
            partition = self._make_partition(descriptor, name)
            subtask_index = self.deployment.subtask_index
            self._exits.append(
                TaskExit(
                    partition,
                    exit_spec.partitioning,
                    name,
                    subtask_index,
                    env.mailbox.call_later,
                    env.watchdog,
                    self._pause,
                )
            )

    def _make_partition(self, descriptor: ResultPartitionDescriptor, operator_name: str) -> ResultPartition:
        env = self._env
        partition: ResultPartition
        if descriptor.blocking:
            size, folder, codec = env.memory.segment_bytes, env.init.work_dir, env.transport.codec
            partition = BlockingPartition(descriptor, size, folder, operator_name, codec)
        else:
            partition = PipelinedPartition(descriptor, env.memory.segment_bytes, operator_name)
        partition.on_error = self._fail
        self._partitions.append(partition)
        env.registry.register(partition)
        return partition

    def wake(self) -> None:
        """Thread-safe."""
        self._source_waits = False
        self._env.mailbox.wake()

    # --- what the loop asks --------------------------------------------------------------------------------------

    def is_runnable(self) -> bool:
        """Whether ``step`` has something to do and may do it."""
        if self.state is not ExecutionState.RUNNING or self.is_inside:
            return False
        assert self._chain is not None and self._checkpoints is not None  # noqa: PT018
        gate, checkpoints = self._gate, self._checkpoints
        if gate is not None and gate.error is not None:
            return True  # the step raises it
        is_advancing = self._is_advancing
        if gate is not None and gate.is_urgent and (not is_advancing or self._chain.advances.can_snapshot()):
            return True  # a barrier that overtakes records waits for neither room nor readiness
        if checkpoints.is_suspended:
            return False
        if not self._has_room():
            self._clock.wait(backpressured=True)
            return False
        # What would make one ready comes behind the snapshot that waits for the results of a watermark.
        for operator in () if is_advancing and self._late else self._chain.with_readiness:
            if not operator.is_ready():
                self._clock.wait(backpressured=True)
                return False
        if is_advancing:
            ready = True
        elif self._must_stop:
            ready = not self._holds_end
        elif gate is None:
            ready = not self._source_waits and not checkpoints.holds_source
        else:
            ready = self._pending is not None or gate.has_next()
            if gate.is_ended and not ready:
                ready = checkpoints.waits_for_end or not self._holds_end
        if not ready:
            self._clock.wait(backpressured=False)
        return ready

    def wait_for_consumers(self) -> None:
        self._clock.wait(backpressured=True)

    @property
    def _is_advancing(self) -> bool:
        """Results of a watermark are still to be made: they come before all that waits, but for notices."""
        return self._chain is not None and bool(self._chain.advances.under_way)

    @property
    def _holds_end(self) -> bool:
        """The task must stay for its checkpoints, or for what its finished operators wait for."""
        assert self._checkpoints is not None
        return self._checkpoints.holds_end or (self._is_finished and self._waits_for_checkpoint())

    def _waits_for_checkpoint(self) -> bool:
        assert self._chain is not None
        return any(operator.holds_end() for operator in self._chain.operators)

    @property
    def _must_stop(self) -> bool:
        """No more input will be read, for the source has ended or the job was stopped with a savepoint."""
        assert self._checkpoints is not None
        stopped = self._checkpoints.stopped
        return self._source_ended or stopped is StopMode.SUSPEND or (self._gate is None and stopped is StopMode.DRAIN)

    def _has_room(self) -> bool:
        for partition in self._partitions:  # noqa: SIM110 - asked before each batch
            if not partition.has_room():
                return False
        return True

    def next_timer_ms(self) -> int | None:
        """Wall-clock time at which ``fire_timers`` wants to be called."""
        if self.state is not ExecutionState.RUNNING or self._chain is None or not self._chain.with_timers:
            return None
        if self.is_inside or (self._checkpoints is not None and self._checkpoints.is_suspended):
            return None
        if self._is_advancing or not self._has_room():
            return None  # a timer emits: it waits as records do
        times = [operator.next_timer_ms() for operator in self._chain.with_timers]
        return min((time_ms for time_ms in times if time_ms is not None), default=None)

    def fire_timers(self, now_ms: int) -> None:
        self._run_inside(lambda: self._fire_timers(now_ms))
        self._source_waits = False

    def _fire_timers(self, now_ms: int) -> None:
        chain = self._chain
        assert chain is not None
        for index, operator in enumerate(chain.operators):
            if operator in chain.with_timers and not chain.advances.under_way:
                due_ms = operator.next_timer_ms()
                if due_ms is not None and due_ms <= now_ms:
                    chain.call(index, operator.on_timer, now_ms)

    def handle_event(self, operator_id: OperatorID, data: bytes) -> None:
        """An event of the operator's coordinator; late ones, of a task that has ended, are dropped."""
        if self.state is not ExecutionState.RUNNING or self._chain is None:
            return
        if self.is_inside or self._late:
            self._late.append(lambda: self.handle_event(operator_id, data))
            return
        self._run_inside(lambda: self._handle_operator_event(operator_id, data))
        self._source_waits = False

    def _handle_operator_event(self, operator_id: OperatorID, data: bytes) -> None:
        chain = self._chain
        assert chain is not None
        event = pickle.loads(data)
        for index, chained in enumerate(chain.spec.operators):
            if chained.operator_id == operator_id:
                chain.call(index, chain.operators[index].handle_event, event)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def trigger_checkpoint(self, message: TriggerCheckpoint) -> None:
        if self.is_inside or self._late or self._must_advance_before(message.options):
            self._late.append(lambda: self.trigger_checkpoint(message))
        elif self.state is not ExecutionState.RUNNING:
            ended = self.state.is_terminal()
            reason = CheckpointFailureReason.TASK_FINISHED if ended else CheckpointFailureReason.TASK_NOT_READY
            self._env.send(decline(self.deployment, message.checkpoint_id, reason, f"the task is {self.state.name}"))
        else:
            self._tell_checkpoints(lambda checkpoints: checkpoints.trigger(message))

    def _must_advance_before(self, options: CheckpointOptions) -> bool:
        """Whether a snapshot waits for what a watermark still makes; the last one does, for nothing comes behind it."""
        if not self._is_advancing or self.state is not ExecutionState.RUNNING:
            return False
        assert self._chain is not None
        return options.stop is not StopMode.NONE or not self._chain.advances.can_snapshot()

    def complete_checkpoint(self, checkpoint_id: int) -> None:
        self._tell_checkpoints(lambda checkpoints: checkpoints.complete(checkpoint_id))

    def abort_checkpoint(self, checkpoint_id: int) -> None:
        self._tell_checkpoints(lambda checkpoints: checkpoints.abort(checkpoint_id))

    def _tell_checkpoints(self, tell: Callable[[TaskCheckpoints], None]) -> None:
        """Now, or after the step that is on the stack: between two calls of operators."""
        checkpoints = self._checkpoints
        if self.state is not ExecutionState.RUNNING or checkpoints is None:
            return
        if self.is_inside or self._late:
            self._late.append(lambda: self._tell_checkpoints(tell))
            return
        self._run_inside(lambda: tell(checkpoints))
        self._source_waits = False

    def report(self) -> RunningTask:
        """Return what the next JobManager has to know. Called when no step is on the stack."""
        objection = ""
        if self._source_ended or self._is_finished or (self._gate is not None and self._gate.is_ended):
            objection = "it has come to its end"
        elif self._checkpoints is not None and self._checkpoints.is_stopping:
            objection = "it is being stopped with a savepoint"
        elif self._registries.is_restoring:
            objection = "it has not restored all of its state"
        return running_task(self.deployment, self.state, self._chain, objection)

    # --- inside and outside of operators ---------------------------------------------------------------------------

    def _run_inside(self, body: Callable[[], None]) -> None:
        # Errors of the operators end the task, not the slot.
        watchdog = self._env.watchdog
        self.is_inside = True
        self._entered_ns = self._now_ns()
        watchdog.begin()
        failure: BaseException | None = None
        try:
            body()
        except BaseException as error:  # SystemExit too: sys.exit() in a user function
            failure = error
        watchdog.end()
        self.is_inside = False
        if self._interruption is not None or failure is not None:
            self._end_interrupted(self._interruption or failure)
            return
        self._flush_exits()
        if self._late:
            late, self._late = self._late, []
            for handle in late:
                handle()

    def _end_interrupted(self, reason: BaseException | None) -> None:
        if isinstance(reason, _Interrupted):
            self.cancel()
        elif reason is not None:
            self._fail(reason)

    def _flush_exits(self) -> None:
        """Hand on what a slow function gave: its next call may last beyond the buffer timeout."""
        took_ns = self._now_ns() - self._entered_ns
        for task_exit in self._exits:
            task_exit.flush_after(took_ns)

    def _pause(self, partition: ResultPartition) -> None:
        """Called where operators emit: let others work, until the partition has room; or end the step from there."""
        if not self.is_inside:
            return  # being opened or closed
        self._flush_exits()
        self._step_size.look()
        before_ns = self._now_ns()
        self._clock.end(before_ns)
        self._clock.wait(backpressured=True)
        clock = None if self._chain is None else self._chain.clock
        whose = None if clock is None else clock.enter_nobody()
        self._env.let_others_work(self, partition.has_room)
        if clock is not None and whose is not None:
            clock.enter(whose)
        self._entered_ns = self._now_ns()
        self._clock.begin(self._entered_ns)
        self._paused_ns += self._entered_ns - before_ns
        self._env.watchdog.begin()
        if self._interruption is not None:
            raise self._interruption

    @property
    def is_interrupted(self) -> bool:
        return self._interruption is not None

    # --- the step ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Do a few milliseconds of work."""
        start_ns = self._now_ns()
        self._clock.begin(start_ns)
        gate = self._gate
        if gate is None:
            self._run_inside(lambda: self._step_source(start_ns + _STEP_NS))
        else:
            self._run_inside(lambda: self._step_input(gate, start_ns + _STEP_NS))
        self._clock.end(self._now_ns())

    def _step_source(self, until_ns: int) -> None:
        source, chain, size = self._source, self._chain, self._step_size
        assert source is not None and chain is not None  # noqa: PT018
        while chain.advances.under_way:
            chain.advances.step()
            if self._now_ns() >= until_ns or not self._has_room():
                return
        if self._must_stop:
            self._finish()
            return
        before_ns = self._now_ns()
        while True:
            self._source_waits = True
            emitted = chain.num_records_of_head()
            paused_ns = self._paused_ns
            size.begin()
            result = chain.call(0, source.poll, size.rows_max)
            now_ns = self._now_ns()
            size.observe(chain.num_records_of_head() - emitted, now_ns - before_ns - (self._paused_ns - paused_ns))
            if result is PollResult.END:
                self._source_ended = True
                if self._checkpoints is None or not self._checkpoints.holds_end:
                    self._finish()
                return
            if result is PollResult.IDLE:
                return
            self._source_waits = False
            if now_ns >= until_ns or chain.advances.under_way or not self._has_room():
                return
            before_ns = now_ns

    def _step_input(self, gate: InputGate, until_ns: int) -> None:
        if gate.error is not None:
            raise gate.error
        checkpoints, chain = self._checkpoints, self._chain
        assert checkpoints is not None and chain is not None  # noqa: PT018
        advances = chain.advances
        if gate.is_urgent and advances.can_snapshot():
            while advances.can_snapshot() and (urgent := gate.next_urgent()) is not None:
                self._handle(urgent)
            return
        if self._must_stop and not advances.under_way:
            self._finish()
            return
        while True:
            if advances.under_way:
                advances.step()
            elif self._pending is not None:
                self._process_pending()
            else:
                event = gate.next()
                if event is None:
                    if gate.is_ended:
                        self._end_of_input(checkpoints)
                    return
                self._handle(event)
                if checkpoints.is_suspended:
                    return
            if self._now_ns() >= until_ns or not self._has_room():
                return

    def _end_of_input(self, checkpoints: TaskCheckpoints) -> None:
        if checkpoints.waits_for_end:
            checkpoints.snapshot_at_end()
        if not checkpoints.holds_end:
            self._finish()

    def _handle(self, event: GateEvent) -> None:
        chain = self._chain
        assert chain is not None and self._checkpoints is not None  # noqa: PT018
        match event:
            case BatchArrived():
                self._batches_in += 1
                self._records_in += len(event.batch)
                self._pending, self._pending_at = event, 0
                self._process_pending()
            case WatermarkAdvanced(watermark_ms):
                chain.process_watermark(watermark_ms)
            case IdleChanged(idle):
                chain.process_idle(idle)
            case SuperstepEnded(superstep):
                chain.end_superstep(superstep)
            case InputEnded(input_index):
                chain.end_input(input_index)
            case _:
                barrier_event: BarrierEvent = event
                self._checkpoints.handle(barrier_event)

    def _process_pending(self) -> None:
        """Process the next part of the batch that came in, as much as fits into a step."""
        pending, chain = self._pending, self._chain
        assert pending is not None and chain is not None  # noqa: PT018
        batch, start = pending.batch, self._pending_at
        num_rows = len(batch)
        end = self._step_size.end_of(start, num_rows)
        if end == num_rows:
            self._pending = None
        self._pending_at = end
        part = batch if start == 0 and end == num_rows else batch.slice(start, end)
        before_ns = self._now_ns() - self._paused_ns
        self._step_size.begin()
        chain.process_batch(pending.input_index, part)
        self._step_size.observe(end - start, self._now_ns() - self._paused_ns - before_ns)

    # --- the end -------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """All input has ended: emit what is left, close, end the outputs. Of a suspended task nothing is left: what it
        holds is in the savepoint. Comes again when what operators waited for has happened."""
        chain = self._chain
        assert chain is not None and self._checkpoints is not None  # noqa: PT018
        if self._checkpoints.stopped is StopMode.SUSPEND:
            if self._gate is not None:
                self._gate.close()
        elif not self._is_finished:
            if self._source is not None and not self._event_time_ended:
                self._event_time_ended = True
                chain.end_event_time()  # the tasks behind hear it from their gates
            if chain.advances.under_way:
                return  # comes again when all of it is done
            chain.finish()
            self._is_finished = True
            if self._waits_for_checkpoint():
                if self._another_checkpoint_comes():
                    self._env.send(AwaitsCheckpoint(self.deployment.job_id, self.deployment.attempt_id))
                else:
                    for index, operator in enumerate(chain.operators):
                        chain.call(index, operator.release_end)
        if self._waits_for_checkpoint():
            return
        errors = chain.close()
        for task_exit in self._exits:
            task_exit.close()
        if errors:
            raise errors[0]
        accumulators = self._contexts.accumulators()
        for task_exit in self._exits:
            task_exit.end()
        self._enter(ExecutionState.FINISHED, accumulators=accumulators)

    def _another_checkpoint_comes(self) -> bool:
        config = Configuration(self._env.init.config)
        return config.get(CheckpointingOptions.INTERVAL) > 0 and config.get(CheckpointingOptions.AFTER_TASKS_FINISH)

    def cancel(self) -> None:
        """Stop now, or at the next emit when inside a step; does nothing when the task has ended."""
        if self.state.is_terminal() or (self.is_inside and self._interruption is not None):
            return
        if self._source is not None and self._interruption is None:
            try:
                self._source.cancel()
            except BaseException:
                pass  # close follows and the outcome is the same
        if self.is_inside:
            self._interruption = _Interrupted()
            return
        self._release()
        self._enter(ExecutionState.CANCELED)

    def _fail(self, error: BaseException) -> bool:
        """Return False when the task has ended before."""
        if self.state.is_terminal():
            return False
        if self.is_inside:  # the exchange found out what was wrong with an earlier record
            self._interruption = self._interruption or error
            return True
        info = at_subtask(error_info(error), self.deployment.subtask_index, self.deployment.parallelism)
        self._release()
        self._enter(ExecutionState.FAILED, info)
        return True

    def _release(self) -> None:
        """Close everything after a failure or a cancel; errors of closing are lost against the first one."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        if self._chain is not None:
            self._chain.close()
        for task_exit in self._exits:
            try:
                task_exit.close()
            except Exception:
                pass
        if self._gate is not None:
            self._gate.close()
        # Consumers hear nothing: they are cancelled by the JobManager, which knows why.
        for partition in self._partitions:
            self._env.registry.release(partition.descriptor.partition_id)
        self._pending = None

    def _enter(self, state: ExecutionState, error: ErrorInfo | None = None, accumulators: bytes = b"") -> None:
        self.state = state
        metrics = self.metrics() if state.is_terminal() else None
        deployment = self.deployment
        self._env.send(TaskStateChanged(deployment.job_id, deployment.attempt_id, state, error, accumulators, metrics))

    def metrics(self) -> TaskMetrics:
        """Return the counters as of now."""
        busy_ms, idle_ms, backpressured_ms = self._clock.milliseconds()
        return TaskMetrics(
            records_in=self._records_in,
            records_out=0 if self._chain is None else self._chain.num_records_out(),
            bytes_in=0 if self._gate is None else self._gate.bytes_in(),
            bytes_out=sum(partition.bytes_out for partition in self._partitions),
            busy_ms=busy_ms,
            idle_ms=idle_ms,
            backpressured_ms=backpressured_ms,
            batches_in=self._batches_in,
            user=self._contexts.metrics(),
            operators=() if self._chain is None else self._chain.operator_metrics(),
        )
