"""Connectors where a PyFlink program looks for them."""

from engine.datastream.connectors.data_generator import DataGeneratorSource
from engine.datastream.connectors.discarding_sink import DiscardingSink
from engine.datastream.connectors.file_system import FileSink, FileSource, StreamFormat
from engine.datastream.connectors.number_seq import NumberSequenceSource

__all__ = ["DataGeneratorSource", "DiscardingSink", "FileSink", "FileSource", "NumberSequenceSource", "StreamFormat"]
