"""What kernels ask of the machine and numba has no word for: loads of several bytes, bits of 64 bytes, fetching ahead.

Each becomes one instruction or a few, for whichever processor. Importing this module imports numba. Kernels that use
these are made by ``kernel``: numba's cache looks at the file of a kernel alone, and would not notice a change of this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba.extending
from llvmlite import ir
from numba.core import cgutils, types

__all__ = ["kernel", "lowest_bit", "marks_of_64", "prefetch", "set_word_at", "word_at"]

_BYTE: Final = ir.IntType(8)
_WORD: Final = ir.IntType(64)
_NUM_LANES: Final = 64
_OWN_STAMP: Final = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return ``numba.njit`` for kernels that use what is in this file: without the lock of the interpreter, cached."""

    def made(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(nogil=True, cache=True, **options)(function)
        _let_cache_depend_on_this_file(dispatcher)
        return dispatcher

    return made


def _let_cache_depend_on_this_file(dispatcher: Any) -> None:
    """The stamp by which an index of the cache is known to be stale says what this file is, too."""
    cache: Any = getattr(dispatcher, "_cache", None)
    if not (hasattr(cache, "_cache_file") and hasattr(cache, "_impl")):
        return  # numba does not compile, or has another cache: it looks at the file of the kernel alone
    stamp = (cache._impl.locator.get_source_stamp(), _OWN_STAMP)
    cache._impl.locator.get_source_stamp = lambda: stamp
    cache._cache_file._source_stamp = stamp


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    view = context.make_array(kind)(context, builder, array)
    return builder.gep(view.data, [index])


def _make_prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Begin to fetch the cache line of ``array[index]``; nothing waits for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, word = _BYTE.as_pointer(), ir.IntType(32)
        address = builder.bitcast(_address(context, builder, signature.args[0], *arguments), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        # To be read, kept in all caches, data.
        builder.call(function, [address, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


def _make_word_at(typing_context: Any, array: Any, index: Any) -> Any:
    """Return the 8 bytes of ``array`` (uint8, contiguous) from ``index`` on as uint64, the first the lowest. They must
    be there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments)
        return builder.load(builder.bitcast(address, _WORD.as_pointer()), align=1)

    return types.uint64(array, index), generate


def _make_set_word_at(typing_context: Any, array: Any, index: Any, word: Any) -> Any:
    """Write a uint64 to the 8 bytes of ``array`` from ``index`` on, as ``word_at`` reads it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], builder.bitcast(address, _WORD.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, index, types.uint64), generate


def _make_lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Return the place of the lowest bit that is set in a uint64 other than 0, int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


def _make_marks_of_64(typing_context: Any, array: Any, index: Any, ranges: Any) -> Any:
    """Return which of the 64 bytes of ``array`` (uint8, contiguous) from ``index`` on, which must be there, are in one
    of two ranges: bit k of a uint64 says it of byte k. ``ranges``: four uint8, twice (first, number of others)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, ranges = arguments
        lanes = ir.VectorType(_BYTE, _NUM_LANES)
        address = _address(context, builder, signature.args[0], array, index)
        found = builder.load(builder.bitcast(address, lanes.as_pointer()), align=1)
        nowhere = ir.Constant(lanes, ir.Undefined)
        to_all = ir.Constant(ir.VectorType(ir.IntType(32), _NUM_LANES), [0] * _NUM_LANES)

        def lanes_of(place: int) -> Any:
            one = builder.insert_element(nowhere, builder.extract_value(ranges, place), ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(one, nowhere, to_all)

        def are_within(place: int) -> Any:
            return builder.icmp_unsigned("<=", builder.sub(found, lanes_of(place)), lanes_of(place + 1))

        return builder.bitcast(builder.or_(are_within(0), are_within(2)), _WORD)

    return types.uint64(array, index, types.UniTuple(types.uint8, 4)), generate


prefetch: Any = numba.extending.intrinsic(_make_prefetch)
word_at: Any = numba.extending.intrinsic(_make_word_at)
set_word_at: Any = numba.extending.intrinsic(_make_set_word_at)
lowest_bit: Any = numba.extending.intrinsic(_make_lowest_bit)
marks_of_64: Any = numba.extending.intrinsic(_make_marks_of_64)
