"""Loads the kernels of columnar operators ahead: named by their specs, imported by a zygote before it forks slots.

Kernels lie in numba's cache, but each process that loads them pays for numba itself (0.5 s of CPU time) and some
10 ms a kernel. Only the usual types are loaded: what is missing here is loaded where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["warm_up"]


def warm_up() -> None:
    """Exchange, aggregate and window a few rows with a key of int64."""
    import numpy as np
    import pyarrow as pa

    from engine.state.hash_kernels import channels_of_ints, order_by_channel

    keys = np.arange(4)
    channels = np.empty(4, np.uint16)
    channels_of_ints(keys, 128, 2, channels)
    order_by_channel(channels, np.zeros(2, np.int64), np.empty(4, np.int32))
    for kind in (pa.int64(), pa.float64()):
        columns = pa.record_batch([pa.array(keys), pa.array(keys, kind)], names=["k", "v"])
        _aggregate(columns)
        _windows(columns)


def _aggregate(columns: pa.RecordBatch) -> None:
    import numpy as np

    from engine.operators import column_kernels as kernels
    from engine.state.arrow_views import values_of
    from engine.state.slot_state import SlotState

    key, value = columns.columns
    state = SlotState(128, is_tuple=False)
    state.define([key.type], {"v": value.type})
    slots, _ = state.find([key])
    state.mark(slots)
    column: Any = state.columns["v"]
    held = column.values.array
    after = np.empty(slots.size, held.dtype)
    add = kernels.running_sum_of_floats if held.dtype == np.float64 else kernels.running_sum_of_ints
    for kernel in (add, kernels.running_min, kernels.running_max):
        kernel(slots, values_of(value), held, after)


def _windows(columns: pa.RecordBatch) -> None:
    import numpy as np

    from engine.operators import column_kernels as kernels
    from engine.operators.field_aggregates import FieldAggregateOf
    from engine.operators.window_state import WindowState

    num_rows = columns.num_rows
    pane_of_row = np.empty(num_rows, np.int32)
    kernels.panes_of_times(np.arange(num_rows), 0, (10, 0), np.empty(32, np.int64), 0, pane_of_row)
    aggregates = [FieldAggregateOf(kind, 1) for kind in ("count", "sum", "min", "max")]
    state = WindowState(128, aggregates, False, False)
    assert state.define(columns.schema, [0])
    state.begin_batch(columns)
    rows, slots = np.arange(num_rows, dtype=np.int32), state.slots_of(columns)
    state.take_up(0, rows, slots)
    values = columns.column(1).to_numpy()
    for kernel in (kernels.lower_to, kernels.raise_to):
        kernel(rows, slots, values, np.zeros((num_rows, 2), values.dtype)[:, 0])
