"""What columns can do of functions of the user's in windows: reduce functions that pick a record, folds of fields.

Keys are one field of integers or texts. Not here: how a function is taken apart (``column_folds``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.operators.compile.expressions import Kind
from engine.operators.keys import FieldKey
from engine.operators.record_choice import RecordChoice
from engine.operators.window import WindowSpec
from engine.operators.window_contents import ReduceFold

if TYPE_CHECKING:
    from engine.operators.column_folds import WindowFolds
    from engine.operators.compile.translate import Shape

__all__ = ["folds_of", "users_choice"]


def users_choice(rows: WindowSpec, shape: Shape) -> RecordChoice | None:
    """Return how a user's reduce function picks records, or None."""
    if not isinstance(rows.fold, ReduceFold):
        return None
    from engine.operators.column_folds import window_choice

    return None if _key_of(rows, shape) is None else window_choice(rows.fold, shape)


def _key_of(rows: WindowSpec, shape: Shape) -> int | None:
    """Return the field that is the key of a user's fold; None if it is no integer or text."""
    (selector,) = rows.key_selectors
    if not isinstance(selector, FieldKey) or not isinstance(selector.field, int):
        return None
    key = selector.field
    return key if 0 <= key < len(shape.kinds) and shape.kinds[key] in (Kind.INT, Kind.STR) else None


def folds_of(rows: WindowSpec, shape: Shape) -> WindowFolds | None:
    from engine.operators.column_folds import window_folds

    key = _key_of(rows, shape)
    return None if key is None else window_folds(rows.fold, shape, key)
