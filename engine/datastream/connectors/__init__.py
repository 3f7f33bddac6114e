"""Connectors where a PyFlink program looks for them."""

from engine.connectors.sink import Committer, Sink, SinkContext, SinkWriter
from engine.datastream.connectors.data_generator import DataGeneratorSource
from engine.datastream.connectors.discarding_sink import DiscardingSink
from engine.datastream.connectors.file_system import FileSink, FileSource, StreamFormat
from engine.datastream.connectors.number_seq import NumberSequenceSource

__all__ = [
    "Committer",
    "DataGeneratorSource",
    "DiscardingSink",
    "FileSink",
    "FileSource",
    "NumberSequenceSource",
    "Sink",
    "SinkContext",
    "SinkWriter",
    "StreamFormat",
]
