"""Which event-time windows have a form on columns: tumbling, sliding and cumulating, with built-in aggregates, and with
functions of the user's that fold field by field or pick a record. What runs them is ``column_window_operator``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from engine.operators.aggregate import FieldAggregate
from engine.operators.base import Operator, OperatorSpec
from engine.operators.computed_keys import KeyFunction
from engine.operators.field_aggregates import FieldAggregateOf, RowAggregates
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.record_choice import RecordChoice
from engine.operators.users_folds import folds_of, num_nested, users_choice, why_not_folded
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.window_functions import PassThrough
from engine.operators.window_slices import slices_of
from engine.time.triggers import EventTimeTrigger

if TYPE_CHECKING:
    import numpy as np

    from engine.operators.compile.translate import Shape

    Array = np.ndarray[Any, Any]
    #: row, pane, windows that fire
    _Late = tuple[int, int, list[tuple[int, int]]]

__all__ = ["ColumnWindowSpec", "column_window", "windows_on_rows"]

#: Panes of windows that a record may be in: each costs some 20 us a batch, which few records on rows do not.
_WINDOWS_MAX: Final = 64


@final
@dataclass(frozen=True)
class ColumnWindowSpec(OperatorSpec):
    """``rows``: the same windows on rows, for what columns cannot do. ``keeps_record``: results are the first record of
    the window with the one aggregate in place of its field; else (key…, start, end, aggregates…)."""

    key_selector: FieldKey | ComposedKey
    aggregates: tuple[FieldAggregateOf, ...]
    rows: WindowSpec
    keeps_record: bool = False
    #: what a user's fold begins with; its results are rows
    seeds: tuple[int | float | None, ...] | None = None
    #: the record of a window is the one that is chosen so, not the first one
    choice: RecordChoice | None = None
    #: overlapping windows do not share slices
    by_window: bool = False
    #: the function that ``key_selector`` stands for, if it does
    key: KeyFunction | None = None
    preload = ("engine.operators.warm_up.windows",)

    @property
    def emits_columns(self) -> bool:
        return not self.fires_on_rows and not num_nested(self.key, self.rows)

    @property
    def fires_on_rows(self) -> bool:
        """Whether what a window holds is handed to the row operator, which calls functions of the user's."""
        return self.seeds is not None or (self.choice is not None and not isinstance(self.rows.function, PassThrough))

    @property
    def is_users(self) -> bool:
        """Whether it folds or chooses by a function of the user's."""
        return self.seeds is not None or (self.choice is not None and not isinstance(_given(self.rows), FieldAggregate))

    def build(self) -> Operator:
        from engine.operators.column_window_operator import ColumnWindowOperator

        return ColumnWindowOperator(self)

    def describe(self) -> str:
        where = "accumulators by slot and window" if self.by_window else "accumulators by slot"
        how = "compiled on columns, else interpreted" if self.is_users else "vectorised"
        computed = "" if self.key is None else self.key.describe()
        return f"{how}, {self.rows.assigner!r}, {where}{computed}"


def column_window(
    rows: WindowSpec, shape: Shape | None = None, windows_max: int = _WINDOWS_MAX, key: KeyFunction | None = None
) -> ColumnWindowSpec | None:
    """Return the columnar form of a window operator; None if there is none. ``key``: what the key selector is on
    columns, where it is a function."""
    selectors = rows.key_selectors if key is None else (key.selector,)
    fold = rows.fold
    slices = slices_of(rows.assigner)
    if slices is None:
        return None
    if len(selectors) != 1 or not isinstance(selectors[0], FieldKey | ComposedKey) or rows.evictor is not None:
        return None
    if type(rows.trigger) is not EventTimeTrigger:
        return None
    # What depends on the order of records is not known of several slices.
    by_window = slices.size_ms != slices.slice_ms
    if isinstance(fold, AggregateFold) and isinstance(fold.given, RowAggregates):
        kinds = {aggregate.kind for aggregate in fold.given.aggregates}
        # Each late record would have the distinct values of all slices counted together again.
        by_window &= bool(kinds & {"first", "last"}) or ("count_distinct" in kinds and rows.allowed_lateness_ms > 0)
        if by_window and slices.windows_of_slice > windows_max:
            return None
        return ColumnWindowSpec(selectors[0], fold.given.aggregates, rows, by_window=by_window, key=key)
    if by_window and slices.windows_of_slice > windows_max:
        return None
    if isinstance(fold, ReduceFold) and isinstance(fold.given, FieldAggregate):
        kind, field = fold.given.kind, fold.given.field
        if not isinstance(rows.function, PassThrough):
            return None
        if kind in ("min_by", "max_by"):
            return _choosing(rows, RecordChoice.of_kind(kind, field), by_window, key)
        aggregates = (FieldAggregateOf(kind, field),)
        return ColumnWindowSpec(selectors[0], aggregates, rows, keeps_record=True, by_window=by_window, key=key)
    if fold is None or shape is None or rows.function.clears:
        return None
    choice = users_choice(rows, shape, key)
    if choice is not None:
        return _choosing(rows, choice, by_window, key)
    folds = folds_of(rows, shape, key)
    if folds is None:
        return None
    return ColumnWindowSpec(selectors[0], folds.aggregates, rows, seeds=folds.seeds, by_window=by_window, key=key)


def windows_on_rows(rows: WindowSpec, shape: Shape | None, key: KeyFunction | None = None) -> str:
    """Return why windows without a columnar form have none, in a few words for who reads the plan."""
    if column_window(rows, shape, sys.maxsize, key) is not None:
        return f"a record is in more than {_WINDOWS_MAX} windows, whose results depend on its order"
    (selector,) = rows.key_selectors
    if selector is None:
        return "it has no key"
    if rows.evictor is not None:
        return "it has an evictor"
    if slices_of(rows.assigner) is None:
        is_event_time = rows.assigner.is_event_time()
        return f"its windows are {type(rows.assigner).__name__}" if is_event_time else "its time is the clock's"
    if type(rows.trigger) is not EventTimeTrigger:
        return f"its trigger is {type(rows.trigger).__name__}"
    if rows.fold is None:
        return "its function sees every record"
    if rows.function.clears:
        return "its window function has a clear()"
    if isinstance(rows.fold, ReduceFold) and isinstance(rows.fold.given, FieldAggregate):
        return "its results go through a window function"
    return "the plan does not know the types of its records" if shape is None else why_not_folded(rows, shape, key)


def _given(rows: WindowSpec) -> Any:
    return rows.fold.given if isinstance(rows.fold, ReduceFold) else None


def _choosing(rows: WindowSpec, choice: RecordChoice, by_window: bool, key: KeyFunction | None) -> ColumnWindowSpec:
    (selector,) = rows.key_selectors if key is None else (key.selector,)
    assert isinstance(selector, FieldKey | ComposedKey)
    aggregates = (FieldAggregateOf("min", choice.field),)
    return ColumnWindowSpec(selector, aggregates, rows, True, choice=choice, by_window=by_window, key=key)
