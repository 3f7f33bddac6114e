"""What columns can do of functions of the user's in windows: reduce functions that pick a record, folds of fields.

Keys are integers or texts, a field's or computed. Not here: how a function is taken apart (``column_folds``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.operators.compile.expressions import Kind
from engine.operators.field_aggregates import RowAggregates
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.record_choice import RecordChoice
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold

if TYPE_CHECKING:
    from engine.operators.column_folds import WindowFolds
    from engine.operators.compile.translate import Shape
    from engine.operators.computed_keys import KeyFunction

__all__ = ["folds_of", "num_nested", "place_of", "users_choice", "why_not_folded"]


def users_choice(rows: WindowSpec, shape: Shape, key: KeyFunction | None = None) -> RecordChoice | None:
    """Return how a user's reduce function picks records, or None. ``key``: of a key that is a function's."""
    if not isinstance(rows.fold, ReduceFold):
        return None
    from engine.operators.column_folds import window_choice

    return None if _key_of(rows, shape, key) is None else window_choice(rows.fold, shape)


def _key_of(rows: WindowSpec, shape: Shape, function: KeyFunction | None) -> int | None:
    """Return the column that is the key of a user's fold; None if it is no integer or text."""
    (selector,) = rows.key_selectors
    if function is not None and function.num_computed == 1:
        return len(shape.kinds) if function.kind in (Kind.INT, Kind.STR) else None
    if function is not None:
        selector = function.selector
    if not isinstance(selector, FieldKey):
        return None
    key = place_of(selector.field, shape)
    return key if 0 <= key < len(shape.kinds) and shape.kinds[key] in (Kind.INT, Kind.STR) else None


def place_of(field: int | str, shape: Shape) -> int:
    """Return which field is meant, -1 = none."""
    if isinstance(field, int):
        return field + len(shape.kinds) if field < 0 else field
    return shape.names.index(field) if shape.names is not None and field in shape.names else -1


def folds_of(rows: WindowSpec, shape: Shape, key: KeyFunction | None = None) -> WindowFolds | None:
    from engine.operators.column_folds import window_folds

    column = _key_of(rows, shape, key)
    return None if column is None else window_folds(rows.fold, shape, column)


def why_not_folded(rows: WindowSpec, shape: Shape, key: KeyFunction | None = None) -> str:
    """Return why a user's fold, for which the two above give nothing, is left to rows."""
    from engine.operators.column_folds import why_no_window_folds

    if _key_of(rows, shape, key) is None:
        return "its function is a user's, and its key is no single integer or text"
    return f"its function is not compiled ({why_no_window_folds(rows.fold, shape)})"


def num_nested(key: KeyFunction | None, rows: WindowSpec) -> int:
    """Return of how many columns the tuple is that a function gives as key, where results begin with it; 0 = of none:
    a key of several fields is several fields of a result."""
    if key is None or not isinstance(key.selector, ComposedKey):
        return 0
    is_built_in = isinstance(rows.fold, AggregateFold) and isinstance(rows.fold.given, RowAggregates)
    return len(key.selector.fields) if is_built_in else 0
