"""An operator that is run once per round on whole inputs, with broadcast sets and inputs that stay the same.

Outside of loops there is one round: the wrapped operator is opened when its broadcast sets are complete, so that
the user's ``open`` can read them. Inside a bulk iteration each superstep is a round: a fresh operator is built,
static inputs (which do not depend on the iteration) are fed to it again from a cache, and its ``finish`` belongs to
the superstep. So every bounded operator works in loops without knowing of them. Not here: the loop itself
(``iteration``).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, final

from engine.core.metrics import Accumulator
from engine.core.records import Batch, RowBatch, rows_of
from engine.operators.base import BATCH_ONLY, CoordinatorSpec, Operator, OperatorContext, OperatorSpec, Output
from engine.operators.batch_spill import SpillableRows, chunks_of, memory_budget
from engine.operators.functions import RuntimeContext

__all__ = ["RoundContext", "RoundSpec"]


class RoundContext(RuntimeContext):
    """Flink's IterationRuntimeContext: a RuntimeContext that knows the superstep and the broadcast sets."""

    @staticmethod
    def of(outer: RuntimeContext, broadcast: dict[str, list[Any]], superstep: int) -> RoundContext:
        made = RoundContext.__new__(RoundContext)
        made.__dict__.update(outer.__dict__)
        made._broadcast_variables = broadcast
        made._superstep = superstep
        made._registered_now = set()
        return made

    _superstep: int
    _registered_now: set[str]

    def get_superstep_number(self) -> int:
        """1 for the first superstep; 0 outside of iterations."""
        return self._superstep

    def add_accumulator(self, name: str, accumulator: Accumulator) -> None:
        if name in self._accumulators and name not in self._registered_now and self._superstep > 1:
            # ``open`` runs once per superstep: what earlier ones counted goes on being counted.
            accumulator.merge(self._accumulators.pop(name))
        super().add_accumulator(name, accumulator)
        self._registered_now.add(name)


@final
@dataclass(frozen=True)
class RoundSpec(OperatorSpec):
    """``inner`` with its inputs first, then one input per name in ``broadcast``. ``static_inputs``: those that do not
    depend on the iteration; all are, outside of one (``in_loop`` False)."""

    not_checkpointed = BATCH_ONLY
    inner: OperatorSpec
    broadcast: tuple[str, ...] = ()
    in_loop: bool = False
    static_inputs: frozenset[int] = frozenset()
    num_inputs: int = field(default=1, init=False)
    inputs_first: tuple[int, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        own = self.inner.num_inputs
        total = own + len(self.broadcast)
        first = {*self.inner.inputs_first, *range(own, total)}
        if self.in_loop:
            # The runtime ends a superstep when all inputs that have not ended say so: static ones must have.
            first = set(self.static_inputs)
        object.__setattr__(self, "num_inputs", total)
        object.__setattr__(self, "blocks", self.inner.blocks or self.in_loop)
        object.__setattr__(self, "inputs_first", tuple(sorted(first)) if len(first) < total else ())

    def build(self) -> Operator:
        return _LoopOperator(self) if self.in_loop else _BroadcastOperator(self)

    def coordinator(self) -> CoordinatorSpec | None:
        return self.inner.coordinator()

    def describe(self) -> str:
        return self.inner.describe()


def _inner_context(ctx: OperatorContext, context: RoundContext, share: int) -> OperatorContext:
    inner = copy.copy(ctx)
    inner.runtime_context = context
    inner.memory_bytes = max(1, memory_budget(ctx.memory_bytes) // share)
    return inner


@final
class _BroadcastOperator(Operator):
    """One round: waits for the broadcast sets, then is the wrapped operator."""

    def __init__(self, spec: RoundSpec) -> None:
        self._spec = spec
        self._num_own = spec.inner.num_inputs
        self._sets: list[list[Any]] = [[] for _ in spec.broadcast]
        self._open_sets = set(range(len(spec.broadcast)))
        self._inner: Operator | None = None
        self._early: list[SpillableRows] = []
        self._early_ended: list[int] = []

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        share = memory_budget(ctx.memory_bytes) // 4
        self._early = [SpillableRows(ctx.work_dir, share, "early") for _ in range(self._num_own)]
        if not self._open_sets:
            self._start()

    def process_batch(self, input_index: int, batch: Batch) -> None:
        if input_index >= self._num_own:
            self._sets[input_index - self._num_own].extend(rows_of(batch).rows)
        elif self._inner is not None:
            self._inner.process_batch(input_index, batch)
        else:
            self._early[input_index].extend(rows_of(batch).rows)

    def end_input(self, input_index: int) -> None:
        if input_index >= self._num_own:
            self._open_sets.discard(input_index - self._num_own)
            if not self._open_sets and self._inner is None:
                self._start()
        elif self._inner is not None:
            self._inner.end_input(input_index)
        else:
            self._early_ended.append(input_index)

    def _start(self) -> None:
        sets = dict(zip(self._spec.broadcast, self._sets, strict=True))
        context = RoundContext.of(self.ctx.runtime_context, sets, 0)
        inner = self._spec.inner.build()
        self._inner = inner
        inner.open(_inner_context(self.ctx, context, 1), self.out)
        own_first = self._spec.inner.inputs_first
        for index in (*own_first, *(i for i in range(self._num_own) if i not in own_first)):
            for rows in chunks_of(self._early[index]):
                inner.process_batch(index, RowBatch(rows))
            self._early[index].clear()
            if index in self._early_ended:
                inner.end_input(index)

    def finish(self) -> None:
        assert self._inner is not None
        self._inner.finish()

    def handle_event(self, event: object) -> None:
        assert self._inner is not None
        self._inner.handle_event(event)

    def is_ready(self) -> bool:
        return self._inner is None or self._inner.is_ready()

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
        for rows in self._early:
            rows.clear()


@final
class _LoopOperator(Operator):
    """One round per superstep."""

    def __init__(self, spec: RoundSpec) -> None:
        self._spec = spec
        self._num_own = spec.inner.num_inputs
        own_first = spec.inner.inputs_first
        #: own inputs in the order in which the wrapped operator wants them
        self._order = (*own_first, *(i for i in range(self._num_own) if i not in own_first))
        self._dynamic_sets = any(self._num_own + i not in spec.static_inputs for i in range(len(spec.broadcast)))
        self._kept: list[SpillableRows] = []
        self._sets: list[list[Any]] = [[] for _ in spec.broadcast]
        self._inner: Operator | None = None
        #: how many of ``_order`` have been fed and ended in this round
        self._num_fed = 0
        self._superstep = 0

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        share = memory_budget(ctx.memory_bytes) // (2 * self._num_own)
        self._kept = [SpillableRows(ctx.work_dir, share, "round") for _ in range(self._num_own)]

    def process_batch(self, input_index: int, batch: Batch) -> None:
        if input_index >= self._num_own:
            self._sets[input_index - self._num_own].extend(rows_of(batch).rows)
            return
        if input_index in self._spec.static_inputs:
            self._kept[input_index].extend(rows_of(batch).rows)
            return
        if self._inner is None and not self._dynamic_sets:
            self._start()
        if self._inner is not None and self._takes_now(input_index):
            self._inner.process_batch(input_index, batch)
        else:
            self._kept[input_index].extend(rows_of(batch).rows)

    def _takes_now(self, input_index: int) -> bool:
        waits_for = self._order[self._num_fed]
        return input_index == waits_for or (
            waits_for not in self._spec.inner.inputs_first and input_index in self._order[self._num_fed :]
        )

    def _start(self) -> None:
        sets = dict(zip(self._spec.broadcast, self._sets, strict=True))
        context = RoundContext.of(self.ctx.runtime_context, sets, self._superstep + 1)
        self._inner = self._spec.inner.build()
        self._inner.open(_inner_context(self.ctx, context, 2), self.out)
        self._num_fed = 0
        while self._num_fed < self._num_own and self._order[self._num_fed] in self._spec.static_inputs:
            self._feed(self._order[self._num_fed])

    def _feed(self, input_index: int) -> None:
        """Hand over what is kept of an input and end it."""
        assert self._inner is not None
        for rows in chunks_of(self._kept[input_index]):
            self._inner.process_batch(input_index, RowBatch(rows))
        if input_index not in self._spec.static_inputs:
            self._kept[input_index].clear()
        self._inner.end_input(input_index)
        self._num_fed += 1

    def end_superstep(self, superstep: int) -> None:
        if self._inner is None:
            self._start()
        assert self._inner is not None
        while self._num_fed < self._num_own:
            self._feed(self._order[self._num_fed])
        inner, self._inner = self._inner, None
        try:
            inner.finish()
        finally:
            inner.close()
        self._superstep = superstep
        for i in range(len(self._sets)):
            if self._num_own + i not in self._spec.static_inputs:
                self._sets[i] = []
        self.out.emit_superstep_end(superstep)

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
        for rows in self._kept:
            rows.clear()
