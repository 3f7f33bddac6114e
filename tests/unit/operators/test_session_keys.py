"""Keys of sessions that get other slots."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from engine.operators.session_keys import KeyRenewal, SessionKeys
from engine.state.paged_array import PagedArray
from engine.state.slot_table import SlotTable


def test_each_key_that_is_needed_has_its_place_null_too():
    """Null takes its slot before the other keys of a batch."""
    keys = SessionKeys(SlotTable([pa.int64()]))
    for batch in ([1, 2], [3, None], [4, 5]):
        keys.table.slots_of([pa.array(batch, pa.int64())])
    heads = PagedArray(np.int64)
    heads.reserve(6)
    heads.array[:6] = [0, 7, 8, 9, 0, 0]
    renewal = KeyRenewal(keys, heads, lambda begin, end: np.arange(begin, end) == 5)  # the last one is marked
    assert renewal.step(1)
    kept = renewal.kept()
    assert sorted(kept.tolist()) == [1, 2, 3, 5]
    assert renewal.table.keys_of(np.arange(4)) == keys.table.keys_of(kept)
    assert renewal.heads.array[:4].tolist() == heads.array[kept].tolist()
