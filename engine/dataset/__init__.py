"""The DataSet API: ``from engine.dataset import ExecutionEnvironment``. Batch programs under Flink's names."""

from typing import TYPE_CHECKING, Any

from engine.dataset.data_set import AggregateDataSet, DataSet, DataSink, SortedDataSet
from engine.dataset.environment import ExecutionEnvironment
from engine.dataset.functions import (
    CoGroupFunction,
    Collector,
    CrossFunction,
    FilterFunction,
    FlatJoinFunction,
    FlatMapFunction,
    GroupCombineFunction,
    GroupReduceFunction,
    JoinFunction,
    KeySelector,
    MapFunction,
    MapPartitionFunction,
    Partitioner,
    ReduceFunction,
    RuntimeContext,
    SinkFunction,
    WordTokenizer,
)
from engine.dataset.groupings import Grouping, SortedGrouping, UnsortedGrouping
from engine.dataset.vocabulary import Aggregation, Aggregations, JoinHint, Order, WriteMode

if TYPE_CHECKING:
    from engine.dataset.iteration import IterativeDataSet

__all__ = [
    "AggregateDataSet",
    "Aggregation",
    "Aggregations",
    "CoGroupFunction",
    "Collector",
    "CrossFunction",
    "DataSet",
    "DataSink",
    "ExecutionEnvironment",
    "FilterFunction",
    "FlatJoinFunction",
    "FlatMapFunction",
    "GroupCombineFunction",
    "GroupReduceFunction",
    "Grouping",
    "IterativeDataSet",
    "JoinFunction",
    "JoinHint",
    "KeySelector",
    "MapFunction",
    "MapPartitionFunction",
    "Order",
    "Partitioner",
    "ReduceFunction",
    "RuntimeContext",
    "SinkFunction",
    "SortedDataSet",
    "SortedGrouping",
    "UnsortedGrouping",
    "WordTokenizer",
    "WriteMode",
]


def __getattr__(name: str) -> Any:
    """Import iterations when they are asked for: most programs have none, and start sooner without."""
    if name == "IterativeDataSet":
        from engine.dataset.iteration import IterativeDataSet

        return IterativeDataSet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
