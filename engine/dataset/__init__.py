"""The DataSet API: ``from engine.dataset import ExecutionEnvironment``. Batch programs under Flink's names."""

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
)
from engine.dataset.groupings import Grouping, SortedGrouping, UnsortedGrouping
from engine.dataset.iteration import IterativeDataSet
from engine.dataset.vocabulary import Aggregation, Aggregations, JoinHint, Order, WriteMode

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
    "WriteMode",
]
