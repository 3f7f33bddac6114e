"""Tables of keys and the exchange: what all columnar operators have in common."""

from __future__ import annotations

from functools import cache

__all__ = ["warm_up"]

#: More than a new table has room for, so that it grows.
_NUM_KEYS = 4096


@cache
def warm_up() -> None:
    """Find numbers, texts, and pairs of both."""
    import numpy as np
    import pyarrow as pa

    from engine.state import column_hash
    from engine.state.hash_kernels import channels_of_ints, order_by_channel
    from engine.state.slot_kernels import mark_blocks
    from engine.state.slot_table import SlotTable

    keys = np.arange(_NUM_KEYS)
    channels = np.empty(keys.size, np.uint16)
    channels_of_ints(keys, 128, 2, channels)
    order_by_channel(channels, np.zeros(2, np.int64), np.empty(keys.size, np.int32))
    column_hash.warm_up()
    numbers = pa.array(keys)
    texts = numbers.cast(pa.string())
    for columns in ([numbers], [texts], [texts.cast(pa.large_string())], [numbers, numbers]):
        table = SlotTable([column.type for column in columns])
        for _ in range(2):  # new ones, then known ones
            slots = table.slots_of(columns)
        for some in (slots[:2], slots[:2].astype(np.int64)):
            table.keys_of(some)
    mark_blocks(slots, 3, np.zeros(_NUM_KEYS, np.uint8))
