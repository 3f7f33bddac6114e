"""The DataStream API under PyFlink's names: ``from engine.datastream import StreamExecutionEnvironment``."""

from engine.connectors.file_sinks import WriteMode
from engine.datastream.data_stream import CloseableIterator, ConnectedStreams, DataStream, DataStreamSink
from engine.datastream.environment import StreamExecutionEnvironment
from engine.datastream.execution_mode import RuntimeExecutionMode
from engine.datastream.functions import (
    AggregateFunction,
    CoFlatMapFunction,
    CoMapFunction,
    FilterFunction,
    FlatMapFunction,
    Function,
    KeySelector,
    MapFunction,
    Partitioner,
    ReduceFunction,
    RuntimeContext,
    SinkFunction,
    SourceFunction,
)
from engine.datastream.keyed_stream import KeyedStream
from engine.datastream.output_tag import OutputTag
from engine.datastream.slot_sharing_group import MemorySize, SlotSharingGroup
from engine.graph.transformation import BufferTimeout

__all__ = [
    "AggregateFunction",
    "BufferTimeout",
    "CloseableIterator",
    "CoFlatMapFunction",
    "CoMapFunction",
    "ConnectedStreams",
    "DataStream",
    "DataStreamSink",
    "FilterFunction",
    "FlatMapFunction",
    "Function",
    "KeySelector",
    "KeyedStream",
    "MapFunction",
    "MemorySize",
    "OutputTag",
    "Partitioner",
    "ReduceFunction",
    "RuntimeContext",
    "RuntimeExecutionMode",
    "SinkFunction",
    "SlotSharingGroup",
    "SourceFunction",
    "StreamExecutionEnvironment",
    "WriteMode",
]
