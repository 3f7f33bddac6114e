"""The checkpoint half of a task: what triggers, barriers and notifications do to its operators, in which order.

A source snapshots when it is told, other tasks when their gate says so; tasks whose producers had finished are told
too, and snapshot at the end of their input. The order at a snapshot is that of ``operators/base``. All calls come from
the slot's loop, between the calls of operators. Not here: state (``snapshot_capture``), alignment (``exchange/gate``).
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, final

from engine.checkpoint.alignment import AbandonCheckpoint, EndCapture, NoteFirstBarrier, TakeSnapshot
from engine.checkpoint.state_files import StateTooLargeError
from engine.core.clock import Clock
from engine.core.errors import EngineError, ExternalError, ProgramError
from engine.core.ids import OperatorID
from engine.core.records import Batch
from engine.graph.job_graph import ChainSpec
from engine.protocol.checkpoint import (
    AcknowledgeCheckpoint,
    CheckpointFailureReason,
    CheckpointMetrics,
    DeclineCheckpoint,
    StopMode,
    TriggerCheckpoint,
)
from engine.protocol.control import TaskDeployment
from engine.protocol.stream import CancelBarrier, CheckpointBarrier
from engine.runtime.exchange.gate import BarrierEvent, InputGate
from engine.runtime.taskmanager.chain_runner import OperatorChain
from engine.runtime.taskmanager.in_flight import encode_batches
from engine.runtime.taskmanager.snapshot_capture import Consumer, StateCapture, TaskSnapshot
from engine.runtime.taskmanager.task_exit import TaskExit

__all__ = ["TaskCheckpoints", "decline"]

#: Checkpoints whose first barrier has come and whose snapshot has not; enough for any number at a time.
_NOTED_MAX: Final = 64


@dataclass(slots=True)
class _Timing:
    """When things happened to one checkpoint; monotonic nanoseconds."""

    start_delay_ms: int
    first_barrier_ns: int
    snapshot: TaskSnapshot | None = None
    metrics: CheckpointMetrics = field(default_factory=CheckpointMetrics)
    captured_ns: int = 0
    is_finished: bool = False


def decline(
    deployment: TaskDeployment, checkpoint_id: int, reason: CheckpointFailureReason, message: str = ""
) -> DeclineCheckpoint:
    return DeclineCheckpoint(deployment.job_id, deployment.attempt_id, checkpoint_id, reason, message)


@final
class TaskCheckpoints:
    """``gate``: None for a source."""

    def __init__(
        self,
        deployment: TaskDeployment,
        chain: OperatorChain,
        exits: Sequence[TaskExit],
        gate: InputGate | None,
        *,
        capture: StateCapture,
        send: Callable[[object], None],
        clock: Clock,
        call_later: Callable[[float, Callable[[], None]], object],
        pending_rest: Callable[[], tuple[int, Batch] | None],
        has_finished: Callable[[], bool],
    ) -> None:
        self._deployment = deployment
        self._chain = chain
        self._exits = exits
        self._gate = gate
        self._capture = capture
        self._send = send
        self._clock = clock
        self._call_later = call_later
        self._newest_timed = 0  #: the last checkpoint whose timeout runs or ran in the gate
        if gate is not None:
            gate.on_timed_barrier = self._arm_gate_timeout
        self._pending_rest = pending_rest  #: what the task has taken from its gate and not processed
        self._has_finished = has_finished  #: ``finish`` of its operators has been called
        self._noted: dict[int, _Timing] = {}
        #: Snapshotted, neither acknowledged nor declined.
        self._under_way: dict[int, _Timing] = {}
        self._at_end: dict[int, CheckpointBarrier] = {}
        #: The savepoint whose outcome says whether the task stops, and how.
        self._stop: tuple[int, StopMode] | None = None
        #: NONE until the savepoint to stop with is complete.
        self.stopped: StopMode = StopMode.NONE

    # --- what the task asks ------------------------------------------------------------------------------------------

    @property
    def is_suspended(self) -> bool:
        """Nothing may come behind the barrier until it is known whether its savepoint completes."""
        return self._stop is not None and self._stop[1] is StopMode.SUSPEND

    @property
    def holds_source(self) -> bool:
        return self._stop is not None

    @property
    def is_stopping(self) -> bool:
        return self._stop is not None or self.stopped is not StopMode.NONE

    @property
    def holds_end(self) -> bool:
        """The task must stay: a snapshot of it is being written, or it may be stopped another way."""
        return bool(self._under_way) or self._stop is not None

    @property
    def waits_for_end(self) -> bool:
        return bool(self._at_end)

    # --- what the JobManager says ------------------------------------------------------------------------------------

    def trigger(self, message: TriggerCheckpoint) -> None:
        barrier = CheckpointBarrier(message.checkpoint_id, message.timestamp_ms, message.options)
        if self._gate is None or self._gate.is_ended:
            self._note(barrier)
            self._snapshot(barrier)
        else:
            self._at_end[message.checkpoint_id] = barrier

    def snapshot_at_end(self) -> None:
        """The input has ended: take the snapshots that wait for it."""
        at_end, self._at_end = self._at_end, {}
        for _, barrier in sorted(at_end.items()):
            self._note(barrier)
            self._snapshot(barrier)

    def complete(self, checkpoint_id: int) -> None:
        chain = self._chain
        for index, operator in enumerate(chain.operators):
            chain.call(index, operator.notify_checkpoint_complete, checkpoint_id)
        if self._stop is not None and self._stop[0] == checkpoint_id:
            self.stopped, self._stop = self._stop[1], None

    def abort(self, checkpoint_id: int) -> None:
        """Raises: ExternalError when the task cannot go on as if nothing had been."""
        self._noted.pop(checkpoint_id, None)
        self._at_end.pop(checkpoint_id, None)
        if self._gate is not None:
            self._gate.abort_checkpoint(checkpoint_id)
        self._discard(checkpoint_id)
        chain = self._chain
        for index, operator in enumerate(chain.operators):
            chain.call(index, operator.notify_checkpoint_aborted, checkpoint_id)
        if self._stop is not None and self._stop[0] == checkpoint_id:
            mode, self._stop = self._stop[1], None
            if mode is StopMode.DRAIN:
                raise ExternalError(
                    f"Savepoint {checkpoint_id} did not complete, but the end of event time has been sent already: the "
                    "job can only go on from an earlier checkpoint."
                )

    def close(self) -> None:
        """The task fails or is cancelled: whatever is under way is not wanted."""
        for checkpoint_id in list(self._under_way):
            self._discard(checkpoint_id)

    # --- what the gate says ------------------------------------------------------------------------------------------

    def handle(self, event: BarrierEvent) -> None:
        match event:
            case NoteFirstBarrier(barrier):
                self._note(barrier)
            case TakeSnapshot(barrier):
                self._snapshot(barrier, awaits_in_flight=barrier.options.unaligned)
            case EndCapture(checkpoint_id):
                self._end_capture(checkpoint_id)
            case AbandonCheckpoint(checkpoint_id, reason, message):
                self._noted.pop(checkpoint_id, None)
                self._discard(checkpoint_id)
                self._cancel_behind(checkpoint_id)
                if reason is not None:
                    self._send(decline(self._deployment, checkpoint_id, reason, message))

    def _note(self, barrier: CheckpointBarrier) -> None:
        delay_ms = max(0, self._clock.now_ms() - barrier.timestamp_ms)
        self._noted[barrier.checkpoint_id] = _Timing(delay_ms, time.monotonic_ns())
        while len(self._noted) > _NOTED_MAX:
            del self._noted[next(iter(self._noted))]
        self._arm_gate_timeout(barrier)

    def _arm_timeout(self, barrier: CheckpointBarrier, act: Callable[[int], None]) -> None:
        """Call ``act`` when an aligned checkpoint has lasted so long that it is to go on unaligned."""
        options = barrier.options
        if options.aligned_timeout_ms and not options.unaligned:
            left_ms = max(0, barrier.timestamp_ms + options.aligned_timeout_ms - self._clock.now_ms())
            self._call_later(left_ms / 1000, lambda: act(barrier.checkpoint_id))

    def _arm_gate_timeout(self, barrier: CheckpointBarrier) -> None:
        """When the first barrier is received from another slot, or read; a later one may be too late already."""
        if self._gate is None:
            return
        due_ms = barrier.timestamp_ms + barrier.options.aligned_timeout_ms
        if barrier.checkpoint_id > self._newest_timed:
            self._newest_timed = barrier.checkpoint_id
            self._arm_timeout(barrier, self._gate.time_out_alignment)
        elif barrier.options.aligned_timeout_ms and self._clock.now_ms() >= due_ms:
            self._gate.time_out_alignment(barrier.checkpoint_id)

    def _overtake(self, checkpoint_id: int) -> None:
        for task_exit in self._exits:
            task_exit.partition.overtake(checkpoint_id)

    def _end_capture(self, checkpoint_id: int) -> None:
        assert self._gate is not None
        batches = self._gate.take_captured(checkpoint_id)
        timing = self._under_way.get(checkpoint_id)
        if timing is None or timing.snapshot is None:
            return  # declined meanwhile
        by_input: dict[int, list[Batch]] = {}
        for input_index, batch in batches:
            by_input.setdefault(input_index, []).append(batch)
        spec = self._chain.spec
        head = spec.operators[0]
        timing.metrics = replace(
            timing.metrics, alignment_ms=(time.monotonic_ns() - timing.first_barrier_ns) // 1_000_000
        )
        consumer = Consumer(head.operator_id, self._deployment.subtask_index, list(by_input), spec.input_keys)

        def encode() -> dict[int, bytes]:
            return {index: encode_batches(part, head.name) for index, part in by_input.items()}

        self._capture.write_in_flight(timing.snapshot, encode, consumer)

    def _cancel_behind(self, checkpoint_id: int) -> None:
        for task_exit in self._exits:
            task_exit.emit_event(CancelBarrier(checkpoint_id))

    # --- the snapshot ------------------------------------------------------------------------------------------------

    def _snapshot(self, barrier: CheckpointBarrier, *, awaits_in_flight: bool = False) -> None:
        checkpoint_id, options = barrier.checkpoint_id, barrier.options
        timing = self._noted.pop(checkpoint_id, None) or _Timing(0, time.monotonic_ns())
        if any(descriptor.blocking for descriptor in self._deployment.partitions):
            message = f"{self._deployment.vertex_name} gives its results in batch mode, which has no checkpoints"
            self._send(decline(self._deployment, checkpoint_id, CheckpointFailureReason.TASK_NOT_READY, message))
            return
        start_ns = time.monotonic_ns()
        chain = self._chain
        if awaits_in_flight and self._gate is not None and (rest := self._pending_rest()) is not None:
            self._gate.capture(checkpoint_id, *rest)
        if options.stop is StopMode.DRAIN and self._gate is None:
            chain.end_event_time()
            chain.advances.end_all()
        for index, operator in enumerate(chain.operators):
            chain.call(index, operator.prepare_snapshot, checkpoint_id)
        for task_exit in self._exits:
            task_exit.emit_event(barrier)
        self._arm_timeout(barrier, self._overtake)
        if options.stop is StopMode.SUSPEND or (options.stop is StopMode.DRAIN and self._gate is None):
            self._stop = (checkpoint_id, options.stop)
        self._under_way[checkpoint_id] = timing
        timing.is_finished = self._has_finished()
        try:
            _refuse_uncheckpointed(chain.spec)
        except ProgramError as error:
            self._refuse(checkpoint_id, error)
            return
        committables = self._ask_operators(checkpoint_id)
        try:
            timing.metrics = CheckpointMetrics(
                start_delay_ms=timing.start_delay_ms,
                alignment_ms=(start_ns - timing.first_barrier_ns) // 1_000_000,
                unaligned=options.unaligned,
            )
            timing.snapshot = self._capture.capture(
                checkpoint_id, options, committables, self._on_captured, awaits_in_flight=awaits_in_flight
            )
        except Exception as error:
            self._refuse(checkpoint_id, error)
            return
        now_ns = time.monotonic_ns()
        timing.captured_ns = now_ns
        timing.metrics = replace(timing.metrics, sync_ms=(now_ns - start_ns) // 1_000_000)
        if timing.snapshot.has_ended:
            self._on_captured(timing.snapshot, timing.snapshot.error)

    def _ask_operators(self, checkpoint_id: int) -> dict[OperatorID, bytes]:
        """Have the operators bring their state up to date; return what they offer to be committed.

        Raises: what they raise, and the task fails: the operator may have lost what it was about to hand over (a sink
        whose file could not be closed), so it must not go on and offer the rest to the next checkpoint.
        """
        chain = self._chain
        for index, operator in enumerate(chain.operators):
            chain.call(index, operator.snapshot_state, checkpoint_id)
        committables: dict[OperatorID, bytes] = {}
        for index, operator in enumerate(chain.operators):
            committable = chain.call(index, operator.prepare_commit, checkpoint_id)
            if committable is not None:
                committables[chain.spec.operators[index].operator_id] = pickle.dumps(committable, 5)
        return committables

    def _refuse(self, checkpoint_id: int, error: Exception) -> None:
        self._under_way.pop(checkpoint_id, None)
        self._send(decline(self._deployment, checkpoint_id, *_reason(error)))

    def _on_captured(self, snapshot: TaskSnapshot, error: BaseException | None) -> None:
        """All is written, or something went wrong."""
        timing = self._under_way[snapshot.checkpoint_id]
        if timing.snapshot is None:
            return  # at once, within the capture, whose caller goes on
        if error is None:
            self._acknowledge(timing)
            return
        del self._under_way[snapshot.checkpoint_id]
        self._capture.discard(snapshot)
        self._send(decline(self._deployment, snapshot.checkpoint_id, *_reason(error)))

    def _acknowledge(self, timing: _Timing) -> None:
        snapshot = timing.snapshot
        assert snapshot is not None
        del self._under_way[snapshot.checkpoint_id]
        metrics = replace(
            timing.metrics,
            async_ms=(time.monotonic_ns() - timing.captured_ns) // 1_000_000,
            state_bytes=snapshot.state_bytes(),
            written_bytes=snapshot.written_bytes,
            in_flight_bytes=sum(handle.file.size_bytes for handle in snapshot.in_flight),
        )
        deployment = self._deployment
        operator_ids = [chained.operator_id for chained in self._chain.spec.operators]
        self._send(
            AcknowledgeCheckpoint(
                deployment.job_id,
                deployment.attempt_id,
                snapshot.checkpoint_id,
                snapshot.operators(operator_ids),
                tuple(snapshot.in_flight),
                metrics,
                timing.is_finished,
            )
        )
        self._capture.acknowledged(snapshot)

    def _discard(self, checkpoint_id: int) -> None:
        timing = self._under_way.pop(checkpoint_id, None)
        if timing is not None and timing.snapshot is not None:
            self._capture.discard(timing.snapshot)


def _refuse_uncheckpointed(chain: ChainSpec) -> None:
    """Raises: ProgramError when an operator keeps something that no checkpoint would have."""
    for chained in chain.operators:
        if chained.spec.not_checkpointed:
            raise ProgramError(f"Operator {chained.name!r} cannot be checkpointed: {chained.spec.not_checkpointed}.")


def _reason(error: BaseException) -> tuple[CheckpointFailureReason, str]:
    text = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
    if isinstance(error, StateTooLargeError):
        return CheckpointFailureReason.STATE_TOO_LARGE, text
    if isinstance(error, (OSError, ExternalError)):
        return CheckpointFailureReason.STORAGE_FAILED, text
    return CheckpointFailureReason.TASK_FAILED, text
