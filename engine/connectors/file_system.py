"""PyFlink's names for files in one place: FileSource and StreamFormat here, FileSink and what it is made of elsewhere.

Not here: ``write_as_text`` (``file_sinks``), reading (``files``, ``column_files``), writing (``file_sink``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

from engine.connectors.column_files import ColumnFileSource
from engine.connectors.file_sink import FileSink, FileSinkBuilder, FileSinkSpec
from engine.connectors.file_sink_config import (
    BucketAssigner,
    BucketContext,
    OutputFileConfig,
    RollingPolicy,
    millis_of,
)
from engine.connectors.files import TextFileSource
from engine.connectors.parquet_source import ParquetSource
from engine.connectors.part_writers import Encoder
from engine.core.errors import ConfigError
from engine.formats.text import normal_charset

__all__ = [
    "BucketAssigner",
    "BucketContext",
    "DefaultRollingPolicy",
    "Encoder",
    "FileEnumeratorProvider",
    "FileSink",
    "FileSinkBuilder",
    "FileSinkSpec",
    "FileSource",
    "FileSourceBuilder",
    "FileSplitAssignerProvider",
    "OnCheckpointRollingPolicy",
    "OutputFileConfig",
    "RollingPolicy",
    "StreamFormat",
    "StreamingFileSink",
]


@final
@dataclass(frozen=True)
class StreamFormat:
    """How records are read from a file."""

    charset: str = "utf-8"

    @staticmethod
    def text_line_format(charset_name: str = "UTF-8") -> StreamFormat:
        return StreamFormat(normal_charset(charset_name))


#: PyFlink's names for what ``RollingPolicy`` makes, and for the FileSink of before 1.12.
DefaultRollingPolicy = OnCheckpointRollingPolicy = RollingPolicy
StreamingFileSink = FileSink


@final
class FileEnumeratorProvider:
    """Accepted for compatibility: files are cut where their format allows it."""

    @staticmethod
    def default_splittable_file_enumerator() -> FileEnumeratorProvider:
        return FileEnumeratorProvider()

    @staticmethod
    def default_non_splittable_file_enumerator() -> FileEnumeratorProvider:
        return FileEnumeratorProvider()


@final
class FileSplitAssignerProvider:
    """Accepted for compatibility: splits are always assigned by locality."""

    @staticmethod
    def locality_aware_split_assigner() -> FileSplitAssignerProvider:
        return FileSplitAssignerProvider()


@final
class FileSource:
    """Entry to the builder of a file source."""

    @staticmethod
    def for_record_stream_format(stream_format: Any, *paths: str) -> FileSourceBuilder:
        """``stream_format``: ``StreamFormat.text_line_format()``, a ``CsvReaderFormat`` or a ``JsonReaderFormat``."""
        if not paths:
            raise ConfigError("FileSource needs at least one path, e.g. for_record_stream_format(format, '/data/in').")
        if isinstance(stream_format, StreamFormat):
            return FileSourceBuilder(TextFileSource(tuple(paths), stream_format.charset))
        columns = getattr(stream_format, "columns", None)
        if columns is None or not hasattr(columns, "create_parser"):
            raise ConfigError(
                f"FileSource: {stream_format!r:.80} is no format; expected StreamFormat.text_line_format(), "
                "CsvReaderFormat.for_schema(schema) or JsonReaderFormat.for_row_type(type). Parquet is read with "
                "for_bulk_file_format."
            )
        return FileSourceBuilder(ColumnFileSource(tuple(paths), columns))

    @staticmethod
    def for_bulk_file_format(bulk_format: Any, *paths: str) -> FileSourceBuilder:
        """``bulk_format``: a ``ParquetColumnarRowInputFormat``."""
        if not paths:
            raise ConfigError("FileSource needs at least one path, e.g. for_bulk_file_format(format, '/data/in').")
        source_of = getattr(bulk_format, "source_of", None)
        if source_of is None:
            raise ConfigError(
                f"FileSource: {bulk_format!r:.80} is no bulk format; expected ParquetColumnarRowInputFormat(row_type). "
                "Text, CSV and JSON lines are read with for_record_stream_format."
            )
        return FileSourceBuilder(source_of(tuple(paths)))


@final
class FileSourceBuilder:
    def __init__(self, source: TextFileSource | ColumnFileSource | ParquetSource) -> None:
        self._source = source

    def monitor_continuously(self, discovery_interval: Any) -> FileSourceBuilder:
        """Look for new files for ever. ``discovery_interval``: milliseconds, timedelta or Duration."""
        if isinstance(self._source, ParquetSource):
            raise ConfigError("FileSource: monitor_continuously is not there for Parquet; its files are read once.")
        self._source = replace(self._source, monitor_interval_ms=max(1, millis_of(discovery_interval)))
        return self

    def process_static_file_set(self) -> FileSourceBuilder:
        if not isinstance(self._source, ParquetSource):
            self._source = replace(self._source, monitor_interval_ms=None)
        return self

    def set_file_enumerator(self, file_enumerator: Any) -> FileSourceBuilder:
        """Accepted for compatibility: files are cut where their format allows it."""
        return self

    def set_split_assigner(self, split_assigner: Any) -> FileSourceBuilder:
        """Accepted for compatibility: splits are always assigned by locality."""
        return self

    def build(self) -> TextFileSource | ColumnFileSource | ParquetSource:
        return self._source
