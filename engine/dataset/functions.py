"""Function classes of the DataSet API, where a program looks for them."""

from typing import TYPE_CHECKING, Any

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
from engine.operators.text import WordTokenizer

if TYPE_CHECKING:
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
    "WordTokenizer",
]


def __getattr__(name: str) -> Any:
    """Import what only iterations need when it is asked for."""
    if name == "IterationRuntimeContext":
        from engine.operators.rounds import RoundContext

        return RoundContext
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
