"""Built-in aggregates of windows: ``from engine.datastream.aggregates import avg, count, sum_``."""

from engine.operators.field_aggregates import avg, count, count_distinct, first, last, max_, min_, sum_

__all__ = ["avg", "count", "count_distinct", "first", "last", "max_", "min_", "sum_"]
