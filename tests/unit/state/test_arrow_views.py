from __future__ import annotations

import gc

import numpy as np
import pyarrow as pa

from engine.state.arrow_views import kernel_view, text_views, values_of


def test_arrays_for_kernels_are_of_one_kind_whatever_holds_their_memory():
    """numba compiles once more for arrays that may not be written to."""
    made_here = pa.array(np.arange(9))
    received = pa.Array.from_buffers(pa.int64(), 9, [None, pa.py_buffer(np.arange(9).tobytes())])
    for column in (made_here, received, received.slice(2, 5)):
        values = values_of(column)
        assert values.flags.writeable
        assert values.tolist() == column.to_pylist()
    texts = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"ab")])
    assert [part.flags.writeable for part in text_views(texts)] == [True, True]


def test_a_view_for_kernels_is_no_copy_and_keeps_the_memory():
    memory = bytes(range(64)) * 1000
    given = np.frombuffer(memory, np.uint8)
    view = kernel_view(given)
    assert np.shares_memory(view, given)
    assert kernel_view(view) is view
    expected = memory[-100:]
    del memory, given
    gc.collect()
    assert view[-100:].tobytes() == expected
    assert kernel_view(np.frombuffer(b"", np.int64)).size == 0
