"""The operator behind map, filter and flat_map on rows: it runs its own step, or those of a whole run of its chain.

A columnar batch is turned into rows here, at the entrance of the user's function. Records keep their event times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

from engine.core.records import BATCH_ROWS_MAX, Batch, RowBatch, rows_of
from engine.operators.base import Operator, OperatorContext, Output
from engine.operators.bound_function import BoundFunction
from engine.operators.row_loop import RowLoop, Rows
from engine.operators.row_steps import RowStep, RowSteps, StepKind

__all__ = ["RowOperator"]


@final
class RowOperator(Operator):
    """``functions``: one per input, methods of one object if there are several."""

    def __init__(self, kind: StepKind, functions: tuple[BoundFunction, ...]) -> None:
        self._functions = functions
        self._steps = tuple(RowSteps([RowStep(kind, function)]) for function in functions)
        #: runs behind this one in the same loop; what it emits is what the run emits
        self._successor: RowOperator | None = None
        #: told how many records each operator of the run but the last has given to the next one
        self._tellers: tuple[Callable[[int], None], ...] = ()

    def fuse(self, successor: RowOperator, tell: Callable[[int], None]) -> None:
        """Run ``successor`` and what is fused with it in this operator's loop. Called before ``open``, tail of the
        chain first. ``successor`` is still opened and closed, and handed watermarks, as before; batches pass it by.

        ``tell`` is called with the number of records that pass from one to the other.
        """
        (own,), (others,) = self._steps, successor._steps
        self._steps = (RowSteps([*own.steps, *others.steps]),)
        self._successor = successor
        self._tellers = (tell, *successor._tellers)

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._loop = RowLoop.of_context(ctx)
        #: of the last operator of the run
        self._target: Output = out if self._successor is None else self._successor._target
        self._functions[0].open(ctx)
        for function in self._functions[1:]:  # one object behind both inputs: it is opened once
            function.operator_name = ctx.operator_name

    def process_batch(self, input_index: int, batch: Batch) -> None:
        batch = rows_of(batch)
        steps = self._steps[input_index]
        while batch.rows:
            rows = self._loop.begin(batch.rows)
            steps.run(rows, batch.timestamps_ms, self._emitter(rows))
            self._loop.end()
            batch = batch.slice(rows.taken(), len(batch.rows))

    def _emitter(self, rows: Rows) -> Callable[[list[Any], list[int] | None, Sequence[int]], None]:
        loop = self._loop

        def emit(results: list[Any], stamps: list[int] | None, counts: Sequence[int]) -> None:
            loop.end()
            for tell, count in zip(self._tellers, counts):
                tell(count)
            self._emit(RowBatch(results, stamps))
            loop.current = rows  # others may have had a turn

        return emit

    def _emit(self, batch: RowBatch) -> None:
        if len(batch) <= 2 * BATCH_ROWS_MAX:
            self._target.emit(batch)
            return
        for start in range(0, len(batch), BATCH_ROWS_MAX):
            self._target.emit(batch.slice(start, start + BATCH_ROWS_MAX))

    def close(self) -> None:
        self._functions[0].close()
