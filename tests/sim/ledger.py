"""The ledger in which the sinks of simulated jobs commit, and these sinks."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

from engine.core.errors import ExternalError
from engine.core.records import Batch, rows_of
from engine.operators.base import (
    CoordinatorContext,
    CoordinatorSpec,
    JobOutcome,
    Operator,
    OperatorCoordinator,
    OperatorSpec,
)
from tests.sim import generations
from tests.sim.results import Results
from tests.sim.world import current

__all__ = ["Ledger", "LedgerSink"]


@final
class Ledger:
    """What sinks have committed: by line of jobs, by part, once each however often it is committed."""

    def __init__(self, results: Results) -> None:
        self.parts_by_line: dict[str, dict[str, list[Any]]] = {}
        self._results = results

    def commit(self, line: str, name: str, rows: list[Any]) -> None:
        known = self.parts_by_line.setdefault(line, {})
        if name in known:
            if known[name] != rows:
                generations.fail(f"part {name} is committed again with other rows")
            return
        known[name] = rows
        current().tell("ledger", "commit", f"{line} {name}: {len(rows)} rows")
        self._results.add(line, rows)


@dataclass(frozen=True)
class LedgerSink(OperatorSpec):
    line: str
    may_refuse: bool = False  #: a commit may fail; without checkpoints that would be the end of the job

    def build(self) -> Operator:
        return _LedgerSink()

    def coordinator(self) -> CoordinatorSpec:
        return _CommitterSpec(self.line, self.may_refuse)


@final
class _LedgerSink(Operator):
    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        runtime = ctx.runtime_context
        self._prefix = f"{runtime.get_index_of_this_subtask()}-{current().next_id('sinks')}"
        self._rows: list[Any] = []
        self._num_parts = 0
        #: finished and not known to be committed: since which checkpoint it is offered, and the part
        self._parts: list[tuple[int, tuple[str, list[Any]]]] = []

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._rows += rows_of(batch).rows

    def _cut(self, checkpoint_id: int) -> None:
        if self._rows:
            self._parts.append((checkpoint_id, (f"{self._prefix}-{self._num_parts}", self._rows)))
            self._num_parts += 1
            self._rows = []

    def prepare_commit(self, checkpoint_id: int) -> object | None:
        self._cut(checkpoint_id)
        if self._parts:
            parts = [f"{name} of {since}: {[row[2] for row in rows]}" for since, (name, rows) in self._parts]
            slot = self.ctx.slot_shared["sim"]
            current().tell(slot.name, "offers", f"{self.ctx.job_id[:4]} {checkpoint_id}: {parts}")
        return [part for _, part in self._parts] or None

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        self._parts = [(since, part) for since, part in self._parts if since > checkpoint_id]

    def finish(self) -> None:
        self._cut(1 << 60)
        self.ctx.send_event(("left", [part for _, part in self._parts]))


@dataclass(frozen=True)
class _CommitterSpec(CoordinatorSpec):
    line: str
    may_refuse: bool
    can_resume = True

    def create(self) -> OperatorCoordinator:
        return _Committer(self)


@final
class _Committer(OperatorCoordinator):
    def __init__(self, spec: _CommitterSpec) -> None:
        self._spec = spec
        self._left: list[Any] = []
        self._restored: list[Any] = []

    def restore(self, state: bytes, committables: Mapping[int, object]) -> None:
        self._left = pickle.loads(state) if state else []
        self._restored = [part for parts in committables.values() for part in parts]  # type: ignore[attr-defined]

    def start(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        generations.starts_once(ctx, "committer")
        self._ledger: Ledger = current().parts["ledger"]
        self._commit(self._restored)

    def resume(self, ctx: CoordinatorContext, reports: Mapping[int, object]) -> None:
        super().start(ctx)
        generations.resumes(ctx, "committer")
        self._ledger = current().parts["ledger"]
        self._commit(self._restored)

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        generations.check_same("committer, attempt", attempt_number, self.ctx.attempt_number)
        match event:
            case ("left", parts):
                self._left += parts
            case _:
                raise AssertionError(event)

    def snapshot(self, checkpoint_id: int) -> bytes:
        return pickle.dumps(self._left)

    def checkpoint_completed(self, checkpoint_id: int, committables: Mapping[int, object]) -> None:
        self._commit([part for parts in committables.values() for part in parts])  # type: ignore[attr-defined]

    def _commit(self, parts: Iterable[tuple[str, list[Any]]]) -> None:
        for name, rows in parts:
            refuses = self._spec.may_refuse and current().now < current().parts["disturbance"].commits_fail_until
            if refuses and current().rng("commits").random() < 0.5:
                raise ExternalError("The ledger refuses a part.")
            self._ledger.commit(self._spec.line, name, rows)

    def job_ended(self, outcome: JobOutcome) -> None:
        newest = current().parts["newest attempts"][self.ctx.job_id, "committer"]
        this = (current().parts["acting leader"], self.ctx.attempt_number)
        if newest != this:
            generations.fail(f"the committer of {this} is told of the job's end after that of {newest} has started")
        if outcome is JobOutcome.FINISHED:
            self._commit(self._left)
