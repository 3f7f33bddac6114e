"""Function classes of the DataSet API, where a program looks for them."""

from engine.operators.batch_functions import Collector
from engine.operators.functions import (
    CoGroupFunction,
    CrossFunction,
    FilterFunction,
    FlatJoinFunction,
    FlatMapFunction,
    Function,
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
from engine.operators.rounds import RoundContext as IterationRuntimeContext

__all__ = [
    "CoGroupFunction",
    "Collector",
    "CrossFunction",
    "FilterFunction",
    "FlatJoinFunction",
    "FlatMapFunction",
    "Function",
    "GroupCombineFunction",
    "GroupReduceFunction",
    "IterationRuntimeContext",
    "JoinFunction",
    "KeySelector",
    "MapFunction",
    "MapPartitionFunction",
    "Partitioner",
    "ReduceFunction",
    "RuntimeContext",
    "SinkFunction",
]
