"""Groups: what ``data.group_by(…)`` can do next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from engine.dataset.data_set import (
    AggregateDataSet,
    DataSet,
    checked_count,
    extreme_fields,
    reduce_groups,
    require,
    to_aggregation,
)
from engine.dataset.keys import aggregation_field, as_selector, is_ascending
from engine.dataset.plan import hash_by
from engine.dataset.vocabulary import Aggregation, Order
from engine.operators.batch_reduce import ExtremeFold, ReduceFold
from engine.operators.functions import Function

__all__ = ["Grouping", "SortedGrouping", "UnsortedGrouping"]


class Grouping:
    """A DataSet and a key; ``order`` sorts the records within a group."""

    def __init__(self, data: DataSet, selector: Any, order: tuple[tuple[Any, bool], ...] = ()) -> None:
        self._data = data
        self._selector = selector
        self._order = order

    def reduce_group(self, operator: Callable[..., Any] | Function, combinable: bool = False) -> DataSet:
        """Call a function with an iterator over each group; results are returned, yielded, or collected (two
        parameters). With a ``combine`` method, or ``combinable``, groups are reduced in part before the exchange."""
        return reduce_groups(self._data, self._selector, self._order, operator, combinable)

    group_reduce = reduce_group

    def combine_group(self, operator: Callable[..., Any] | Function) -> DataSet:
        """Call a function with parts of groups, without bringing a group together first."""
        from engine.operators.batch_group import GroupCombineSpec

        require("combine_group", operator, "combine")
        return self._data.combined("GroupCombine", GroupCombineSpec(self._selector, operator, self._order))

    def first(self, n: int) -> DataSet:
        """Keep ``n`` records of each group, the first ones of a sorted group."""
        from engine.operators.batch_group import FirstInGroupSpec

        spec = FirstInGroupSpec(self._selector, checked_count(n), self._order)
        return self._data.combined(f"First {n}", spec).derive(f"First {n}", spec, hash_by(self._selector))

    def sort_group(self, field: Any, order: Order = Order.ASCENDING) -> SortedGrouping:
        """Sort the records of a group; call again to sort by a further field."""
        added = (as_selector((field,), "sort_group"), is_ascending(order, "sort_group"))
        return SortedGrouping(self._data, self._selector, (*self._order, added))


@final
class SortedGrouping(Grouping):
    """What can be done with sorted groups."""


@final
class UnsortedGrouping(Grouping):
    """Also what needs no order: reduce and aggregations."""

    def reduce(self, operator: Callable[[Any, Any], Any] | Function) -> DataSet:
        """Fold the records of each group into one."""
        return self._data.fold("Reduce", ReduceFold(require("reduce", operator, "reduce")), self._selector)

    def aggregate(self, aggregation: Aggregation | str, field: int | str) -> AggregateDataSet:
        stated = (to_aggregation(aggregation), aggregation_field(field, "aggregate"))
        return AggregateDataSet(self._data, self._selector, (stated,))

    def sum(self, field: int | str) -> AggregateDataSet:
        return self.aggregate(Aggregation.SUM, field)

    def min(self, field: int | str) -> AggregateDataSet:
        return self.aggregate(Aggregation.MIN, field)

    def max(self, field: int | str) -> AggregateDataSet:
        return self.aggregate(Aggregation.MAX, field)

    def min_by(self, *fields: int | str) -> DataSet:
        """Keep of each group the record with the smallest values of the fields."""
        fold = ExtremeFold(extreme_fields(fields, "min_by"), largest=False)
        return self._data.fold("MinBy", fold, self._selector, keeps_key=True)

    def max_by(self, *fields: int | str) -> DataSet:
        fold = ExtremeFold(extreme_fields(fields, "max_by"), largest=True)
        return self._data.fold("MaxBy", fold, self._selector, keeps_key=True)
