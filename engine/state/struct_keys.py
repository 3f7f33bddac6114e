"""Keys that are Rows within records, as columns: their fields are the key, and whether there is a Row at all.

So a struct is looked up as a key of several columns is. Not here: the index itself (``slot_table``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, final

from engine.state.arrow_views import is_int64_like, is_text_like

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["KeyParts", "can_be_row_key"]

#: Columns that a struct may become: there is a bit of an int64 for each column of a key.
_PARTS_MAX: Final = 16


def can_be_row_key(kind: pa.DataType) -> bool:
    """Whether a column of this type can be (a part of) a key, be it a struct or not.

    Not a struct with floats in it: 0.0 and -0.0 are one key, and results have that of the first record of each.
    """
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return is_int64_like(kind) or is_text_like(kind)
    if not kind.num_fields or len(list(_kinds_of(kind))) > _PARTS_MAX:
        return False
    return all(field.nullable and can_be_row_key(field.type) and not pa.types.is_floating(field.type) for field in kind)


def _kinds_of(kind: pa.DataType) -> Iterator[pa.DataType]:
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        yield kind
        return
    yield pa.bool_()
    for field in kind:
        yield from _kinds_of(field.type)


def _parts_of(column: pa.Array) -> Iterator[pa.Array]:
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        yield column
        return
    yield column.is_valid()
    for field in column.flatten():  # with the nulls of the struct
        yield from _parts_of(field)


def _whole(kind: pa.DataType, parts: Iterator[pa.Array]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(kind):
        return next(parts)
    is_null = pc.invert(next(parts))
    fields = [_whole(field.type, parts) for field in kind]
    return pa.StructArray.from_arrays(fields, fields=list(kind), mask=is_null)


@final
class KeyParts:
    """Takes columns of keys apart and puts them together again. ``kinds``: the types of the parts."""

    def __init__(self, kinds: Sequence[pa.DataType]) -> None:
        self._kinds = kinds
        self.kinds = [part for kind in kinds for part in _kinds_of(kind)]
        self._is_flat = self.kinds == list(kinds)

    def of(self, columns: Sequence[pa.Array]) -> Sequence[pa.Array]:
        return columns if self._is_flat else [part for column in columns for part in _parts_of(column)]

    def whole(self, parts: list[pa.Array]) -> list[pa.Array]:
        if self._is_flat:
            return parts
        left = iter(parts)
        return [_whole(kind, left) for kind in self._kinds]
