"""Keyed rolling reduce and aggregates on rows whose keys are forgotten when no record has come for a while.

The value so far is a value state with a time to live, in the backend that the job has; as ``aggregate`` otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from engine.core.errors import EngineError
from engine.core.records import Batch, RowBatch, rows_of
from engine.operators.base import Operator, OperatorContext, Output
from engine.operators.keyed import Keys, open_keyed_state
from engine.state.descriptors import StateTtlConfig, ValueStateDescriptor

if TYPE_CHECKING:
    from engine.operators.aggregate import FieldAggregate
    from engine.operators.bound_function import BoundFunction

__all__ = ["ExpiringReduceOperator"]


@final
class ExpiringReduceOperator(Operator):
    """``reducer``: as that of ``_KeyedReduceOperator``. Emits a result for each record."""

    def __init__(self, key_selector: Any, reducer: FieldAggregate | BoundFunction, ttl_ms: int) -> None:
        self._keys = Keys(key_selector)
        self._reducer: Any = reducer
        self._ttl_ms = ttl_ms
        self._backend: Any = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        from engine.operators.aggregate import STATE_NAME

        super().open(ctx, out)
        self._keys.open(ctx)
        self._reducer.open(ctx)
        self._backend = open_keyed_state(ctx)
        descriptor = ValueStateDescriptor(STATE_NAME)
        descriptor.enable_time_to_live(StateTtlConfig(self._ttl_ms))
        self._state = self._backend.value_state(descriptor)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        from engine.operators.aggregate import FieldAggregate

        batch = rows_of(batch)
        state, reduce = self._state, self._reducer.call
        results: list[Any] = []
        for key, row in zip(self._keys.of(batch.rows), batch.rows, strict=True):
            try:
                self._backend.set_current_key(key)
                so_far = state.value()
                if so_far is None and isinstance(self._reducer, FieldAggregate):
                    self._reducer.check_first(row)
                result = row if so_far is None else reduce(so_far, row)
            except EngineError:
                raise
            except BaseException as error:
                self._keys.check(key, row)
                raise self._reducer.error(error, row) from error
            state.update(result)
            results.append(result)
        self.out.emit(RowBatch(results, batch.timestamps_ms))

    def close(self) -> None:
        try:
            if self._backend is not None:
                self._backend.close()
        finally:
            self._keys.close()
            self._reducer.close()
