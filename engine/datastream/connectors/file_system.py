"""File source and sink, where a PyFlink program looks for it."""

from engine.connectors.file_system import (
    BucketAssigner,
    BucketContext,
    Encoder,
    FileSink,
    FileSource,
    OutputFileConfig,
    RollingPolicy,
    StreamFormat,
)

__all__ = [
    "BucketAssigner",
    "BucketContext",
    "Encoder",
    "FileSink",
    "FileSource",
    "OutputFileConfig",
    "RollingPolicy",
    "StreamFormat",
]
