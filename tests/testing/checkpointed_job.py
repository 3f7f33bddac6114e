"""Runs a chain with its coordinators through checkpoints, crashes and restarts, without processes.

What the runtime does, in one thread: coordinators are snapshotted before tasks, committables travel pickled, a
completed checkpoint is told to coordinators and then to tasks, a restart begins with ``restore`` and ``start`` of new
coordinators and opens new subtasks on the checkpoint. A test says when each step happens, and what a crash leaves out.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any

from engine.core import user_code
from engine.core.clock import Clock
from engine.core.ids import JobID, OperatorID
from engine.core.plain_pickle import dump_plain, load_plain
from engine.operators.base import (
    CoordinatorContext,
    JobOutcome,
    OperatorCoordinator,
    OperatorSpec,
    PollResult,
    SourceOperator,
)
from engine.state.operator_state import OperatorStateSnapshot, Redistribution, redistribute
from tests.testing.operator_harness import OperatorHarness, SubtaskSnapshot


@dataclass
class TakenCheckpoint:
    """What is durable when a checkpoint is: lists have one entry an operator."""

    checkpoint_id: int
    parallelism: int
    coordinators: list[bytes]
    #: subtasks that had finished have none
    subtasks: dict[int, SubtaskSnapshot] = field(default_factory=dict)
    committables: list[dict[int, bytes]] = field(default_factory=list)

    def committables_of(self, index: int) -> dict[int, object]:
        return {subtask: load_plain(data) for subtask, data in self.committables[index].items()}


class _Harness(OperatorHarness):
    """Deals lists out as the JobManager does: a subtask keeps its own while the parallelism stays."""

    former_parallelism = 0

    def _deal(self, lists: list[OperatorStateSnapshot]) -> OperatorStateSnapshot:
        has_union = any(mode is Redistribution.UNION for own in lists for mode, _ in own.states.values())
        if self._parallelism == self.former_parallelism == len(lists) and not has_union:
            return lists[self.subtask_index]
        return redistribute(lists, self._parallelism)[self.subtask_index]


class CheckpointedJob:
    """One chain as a job; the test works on its ``harnesses`` (by subtask) and ``coordinators`` (by operator)."""

    def __init__(
        self,
        *specs: OperatorSpec,
        parallelism: int = 1,
        config: dict[str, str] | None = None,
        clock: Clock | None = None,
        name: str = "Test",
        job: str = "job",
    ) -> None:
        self._specs = specs
        self._shipped = _shipped(specs)
        self._config = {"execution.checkpointing.interval": "1 s"} if config is None else config
        self._clock = clock
        self._name = name
        self._job = job
        self.parallelism = parallelism
        self.attempt_number = -1
        self.harnesses: dict[int, OperatorHarness] = {}
        self.coordinators: list[OperatorCoordinator | None] = []
        self.finished: set[int] = set()
        self._next_id = 1
        self._abandoned: list[OperatorHarness] = []

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self, checkpoint: TakenCheckpoint | None = None, *, parallelism: int | None = None) -> None:
        """Start an attempt, afresh or from a checkpoint."""
        self.attempt_number += 1
        self.parallelism = parallelism or self.parallelism
        self.harnesses, self.finished = {}, set()
        self.start_coordinators(checkpoint)
        if checkpoint is not None and not checkpoint.subtasks:
            self.finished = set(range(self.parallelism))
            return
        for subtask in range(self.parallelism):
            self._open(subtask, checkpoint)

    def start_coordinators(self, checkpoint: TakenCheckpoint | None = None) -> None:
        self.coordinators = []
        for index, spec in enumerate(self._specs):
            made = spec.coordinator()
            coordinator = None
            if made is not None:
                coordinator = load_plain(dump_plain(made)).create()
                if checkpoint is not None:
                    coordinator.restore(checkpoint.coordinators[index], checkpoint.committables_of(index))
                coordinator.start(self._coordinator_context(index))
            self.coordinators.append(coordinator)

    def _coordinator_context(self, index: int) -> CoordinatorContext:
        def send(subtask: int, event: object) -> None:
            if subtask in self.harnesses and subtask not in self.finished:
                self.harnesses[subtask].operators[index].handle_event(load_plain(dump_plain(event)))

        return CoordinatorContext(
            self.parallelism,
            JobID.from_text(self._job),
            self._config,
            send,
            self.attempt_number,
            operator_id=OperatorID.from_text(f"{self._name}-{index}"),
        )

    def _open(self, subtask: int, checkpoint: TakenCheckpoint | None) -> None:
        harness = _Harness(
            *pickle.loads(self._shipped),
            subtask_index=subtask,
            parallelism=self.parallelism,
            attempt_number=self.attempt_number,
            clock=self._clock,
            name=self._name,
            job=self._job,
            coordinators=self.coordinators,
            config=self._config,
            restored=None if checkpoint is None else [taken for _, taken in sorted(checkpoint.subtasks.items())],
        )
        harness.former_parallelism = 0 if checkpoint is None else checkpoint.parallelism
        self.harnesses[subtask] = harness
        harness.__enter__()

    def kill(self) -> None:
        """All tasks and coordinators are gone at once: nothing is closed, nothing is told."""
        self._abandoned += self.harnesses.values()
        self.harnesses, self.coordinators = {}, []

    def fail(self) -> None:
        """A task fails, the others are cancelled, coordinators are told; another attempt may follow."""
        self.close_tasks()
        self.end(JobOutcome.FAILED)

    def fail_for_good(self) -> None:
        self.fail()
        self.give_up(JobOutcome.FAILED)

    def give_up(self, outcome: JobOutcome) -> None:
        """No attempt follows the last one, which has failed."""
        for coordinator in self.coordinators:
            if coordinator is not None:
                coordinator.given_up(outcome)

    def close_tasks(self) -> None:
        for subtask, harness in self.harnesses.items():
            if subtask not in self.finished:
                harness.__exit__()

    def finish(self, subtask: int) -> None:
        """The subtask's input has ended."""
        harness = self.harnesses[subtask]
        harness.end()
        harness.__exit__()
        self.finished.add(subtask)
        for coordinator in self.coordinators:
            if coordinator is not None:
                coordinator.subtask_finished(subtask)

    def finish_all(self) -> None:
        for subtask in sorted(self.harnesses.keys() - self.finished):
            self.finish(subtask)

    def end(self, outcome: JobOutcome) -> None:
        for coordinator in self.coordinators:
            if coordinator is not None:
                coordinator.job_ended(outcome)

    def dispose(self) -> None:
        """End threads and files of killed attempts, when the test has looked at what they left."""
        for harness in [*self._abandoned, *self.harnesses.values()]:
            harness._coordinators = [None] * len(self._specs)
            try:
                harness.__exit__()
            except Exception:
                pass

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def snapshot_coordinators(self) -> TakenCheckpoint:
        taken = TakenCheckpoint(self._next_id, self.parallelism, [])
        self._next_id += 1
        for coordinator in self.coordinators:
            taken.coordinators.append(b"" if coordinator is None else coordinator.snapshot(taken.checkpoint_id))
        taken.committables = [{} for _ in self._specs]
        return taken

    def snapshot_subtask(self, taken: TakenCheckpoint, subtask: int) -> None:
        harness = self.harnesses[subtask]
        taken.subtasks[subtask] = harness.snapshot(taken.checkpoint_id)
        for index, operator in enumerate(harness.operators):
            committable = operator.prepare_commit(taken.checkpoint_id)
            if committable is not None:
                taken.committables[index][subtask] = dump_plain(committable)

    def checkpoint(self) -> TakenCheckpoint:
        """Take a checkpoint of all that runs; it is durable when this returns, and nobody knows."""
        taken = self.snapshot_coordinators()
        for subtask in sorted(self.harnesses.keys() - self.finished):
            self.snapshot_subtask(taken, subtask)
        return taken

    def savepoint(self) -> TakenCheckpoint:
        """Take a savepoint: nothing is committed for it, and no task hears that it is complete."""
        taken = self.checkpoint()
        for index, coordinator in enumerate(self.coordinators):
            if coordinator is not None:
                coordinator.savepoint_taken(taken.checkpoint_id, taken.committables_of(index))
        return taken

    def commit(self, taken: TakenCheckpoint) -> None:
        for index, coordinator in enumerate(self.coordinators):
            if coordinator is not None:
                coordinator.checkpoint_completed(taken.checkpoint_id, taken.committables_of(index))

    def notify(self, taken: TakenCheckpoint) -> None:
        for subtask in sorted(self.harnesses.keys() - self.finished):
            for operator in self.harnesses[subtask].operators:
                operator.notify_checkpoint_complete(taken.checkpoint_id)

    def complete(self) -> TakenCheckpoint:
        taken = self.checkpoint()
        self.commit(taken)
        self.notify(taken)
        return taken

    # --- sources -----------------------------------------------------------------------------------------------------

    def poll(self, subtask: int, rows_max: int) -> PollResult:
        """Poll a source once; it finishes when that was the end."""
        source = self.harnesses[subtask].head
        assert isinstance(source, SourceOperator)
        result = source.poll(rows_max)
        if result is PollResult.END:
            self.finish(subtask)
        return result

    def rows(self) -> list[Any]:
        return [row for _, harness in sorted(self.harnesses.items()) for row in harness.output.rows]


def _shipped(specs: tuple[OperatorSpec, ...]) -> bytes:
    """By reference where that can be done: a test sees what the objects of its classes do to its module."""
    try:
        return pickle.dumps(specs)
    except Exception:
        return user_code.dumps(specs, "The chain")
