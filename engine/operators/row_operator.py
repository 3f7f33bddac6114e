"""The operator behind map, filter and flat_map: it runs its own step, or those of a whole run of its chain.

Rows go through one generated loop (``row_steps``). Columns go through the steps that compile to expressions
(``compile``), as far as they do, and become rows at the entrance of the first function that does not; a batch in doubt
becomes rows where the doubt arose. Records keep their event times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch, RowBatch, rows_of
from engine.operators.base import Operator, OperatorContext, Output
from engine.operators.bound_function import BoundFunction
from engine.operators.row_loop import RowLoop, Rows
from engine.operators.row_steps import RowStep, RowSteps, StepKind

if TYPE_CHECKING:
    from engine.operators.compile.column_steps import ColumnFunction

__all__ = ["RowOperator"]


@final
class RowOperator(Operator):
    """``functions``: one per input, methods of one object if there are several."""

    takes_kinds = True  # a function that is called gets Rows of them
    takes_objects = True

    def __init__(self, kind: StepKind, functions: tuple[BoundFunction, ...]) -> None:
        self._functions = functions
        #: by input
        self._steps: tuple[tuple[RowStep, ...], ...] = tuple((RowStep(kind, function),) for function in functions)
        #: runs behind this one in the same loop; what it emits is what the run emits
        self._successor: RowOperator | None = None
        #: told how many records each operator of the run but the last has given to the next one
        self._tellers: tuple[Callable[[int], None], ...] = ()
        #: by input: for columns, a function per step; made when the first columns come
        self._column_functions: dict[int, tuple[ColumnFunction, ...]] = {}
        self._loops: dict[tuple[int, int], RowSteps] = {}

    def fuse(self, successor: RowOperator, tell: Callable[[int], None]) -> None:
        """Run ``successor`` and what is fused with it in this operator's loop. Called before ``open``, tail of the
        chain first. ``successor`` is still opened and closed, and handed watermarks, as before; batches pass it by.

        ``tell`` is called with the number of records that pass from one to the other.
        """
        (own,), (others,) = self._steps, successor._steps
        self._steps = ((*own, *others),)
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
        at = 0
        if isinstance(batch, ColumnBatch):
            batch, at = self._through_columns(input_index, batch)
            if at == len(self._steps[input_index]):
                self._emit_columns(batch)
                return
        self._through_loop(input_index, rows_of(batch), at)

    # --- rows

    def _through_loop(self, input_index: int, batch: RowBatch, at: int) -> None:
        """Take rows through the steps from ``at`` on."""
        steps = self._loops.get((input_index, at))
        if steps is None:
            steps = self._loops[input_index, at] = RowSteps(self._steps[input_index][at:])
        while batch.rows:
            rows = self._loop.begin(batch.rows)
            steps.run(rows, batch.timestamps_ms, functools.partial(self._emit, rows, self._tellers[at:]))
            self._loop.end()
            batch = batch.slice(rows.taken(), len(batch.rows))

    def _emit(
        self,
        rows: Rows,
        tellers: Sequence[Callable[[int], None]],
        results: list[Any],
        stamps: list[int] | None,
        counts: Sequence[int],
    ) -> None:
        self._loop.end()
        for tell, count in zip(tellers, counts, strict=True):
            tell(count)
        batch = RowBatch(results, stamps)
        if len(batch) <= 2 * BATCH_ROWS_MAX:
            self._target.emit(batch)
        else:
            for start in range(0, len(batch), BATCH_ROWS_MAX):
                self._target.emit(batch.slice(start, start + BATCH_ROWS_MAX))
        self._loop.current = rows  # others may have had a turn

    # --- columns

    def _through_columns(self, input_index: int, batch: ColumnBatch) -> tuple[ColumnBatch, int]:
        """Take columns through the first steps; return what came out and how many steps that were."""
        functions = self._column_functions.get(input_index)
        if functions is None:
            functions = self._column_functions[input_index] = self._compiled(input_index)
        at = 0
        for function in functions:
            if not len(batch):
                break
            result = function.apply(batch)
            if result is None:
                break
            batch = result
            if at < len(self._tellers):
                self._tellers[at](len(batch))
            at += 1
        return batch, (at if len(batch) else len(functions))

    def _emit_columns(self, batch: ColumnBatch) -> None:
        if len(batch) > 2 * BATCH_ROWS_MAX:
            for start in range(0, len(batch), BATCH_ROWS_MAX):
                self._target.emit(batch.slice(start, min(start + BATCH_ROWS_MAX, len(batch))))
        elif len(batch):
            self._target.emit(batch)

    def _compiled(self, input_index: int) -> tuple[ColumnFunction, ...]:
        from engine.operators.compile.column_steps import ColumnFunction

        return tuple(
            ColumnFunction(
                step.function.function,
                is_filter=step.kind is StepKind.FILTER,
                is_flat=step.kind is StepKind.FLAT_MAP,
            )
            for step in self._steps[input_index]
        )

    # --- watching

    def tiers(self) -> list[str]:
        """Return what ran each step of the run, by what was seen so far."""
        functions = self._column_functions.get(0)
        if functions is None:
            return ["interpreted (rows)"] * len(self._steps[0])
        return [function.tier() for function in functions]

    def close(self) -> None:
        self._functions[0].close()
