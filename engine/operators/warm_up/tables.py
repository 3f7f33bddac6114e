"""Tables of keys and the exchange: what all columnar operators have in common."""

from __future__ import annotations

from functools import cache
from typing import Any

from engine.core.arrow_arrays import arrow_of
from engine.operators.warm_up import cached_code

__all__ = ["exchange", "large_texts", "many_texts", "numbers", "pairs", "texts", "warm_up"]

#: More than a new table has room for, so that it grows.
_NUM_KEYS = 4096


@cache
def warm_up() -> None:
    """Find numbers, texts, and pairs."""
    cached_code.quicken()
    exchange()
    numbers()
    texts()
    pairs()


def exchange() -> None:
    import numpy as np

    from engine.state.hash_kernels import (
        channels_of_hashes,
        channels_of_ints,
        count_by_channel,
        order_by_channel,
        write_rows,
    )
    from engine.state.slot_kernels import mark_blocks

    keys = np.arange(_NUM_KEYS)
    channels = np.empty(keys.size, np.uint16)
    channels_of_ints(keys, 128, 2, channels)
    channels_of_hashes(keys.view(np.uint64), 128, 2, channels)
    places = np.empty(keys.size, np.int32)
    order_by_channel(channels, np.zeros(2, np.int64), places)
    begin, end, rows = np.array([0, keys.size]), np.array([keys.size, 2 * keys.size]), np.zeros(2, np.int64)
    count_by_channel(channels, rows)
    write_rows(channels, begin, end, rows, places, np.zeros((0, 3), np.int64))
    mark_blocks(np.zeros(2, np.int32), 3, np.zeros(1, np.uint8))


def numbers() -> None:
    _find([_keys()])


def texts() -> None:
    import pyarrow as pa

    from engine.state import column_hash

    column_hash.warm_up(pa.string())
    _find([_keys().cast(pa.string())])
    _find([_keys().cast(pa.string())], encoded=True)


def large_texts() -> None:
    """Of columns with offsets of 64 bits, which are rare: a fifth of all kernels, so slots load them if need be."""
    import pyarrow as pa

    from engine.state import column_hash

    column_hash.warm_up(pa.large_string())
    _find([_keys().cast(pa.large_string())])


def many_texts() -> None:
    """Of tables with more than 4 GiB of texts, which are rarer still."""
    import pyarrow as pa

    _find([_keys().cast(pa.string())], is_wide=True)


def pairs() -> None:
    _find([_keys(), _keys()])


def _keys() -> Any:
    import numpy as np

    return arrow_of(np.arange(_NUM_KEYS))


def _find(columns: list[Any], *, encoded: bool = False, is_wide: bool = False) -> None:
    import numpy as np

    from engine.state.slot_table import SlotTable

    table = SlotTable([column.type for column in columns])
    if is_wide:
        table.widen()
    columns = [column.dictionary_encode() for column in columns] if encoded else columns
    for _ in range(2):  # new ones, then known ones
        slots = table.slots_of(columns)
    for some in (slots[:2], slots[:2].astype(np.int64)):
        table.keys_of(some)
