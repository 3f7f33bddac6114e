"""Whose rows may become columns for an operator behind that works on columns: those of a declared type, in long jobs.

Made in Python, checked value by value (``operators/row_columns``), 50 ns a field: less than what the same operator
saves, if batches have some hundreds of records. Small ones cross exchanges as rows. A stream without end is long; not
where input is short: numba and its kernels take longer to load than rows of it take.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from engine.connectors.column_files import ColumnFileSource
from engine.connectors.column_generator import ColumnGeneratorSource
from engine.connectors.csv_source import DelimitedFileSource, SkipFirstLineSource
from engine.connectors.files import TextFileSource
from engine.connectors.generator import DataGeneratorSpec
from engine.connectors.parquet_source import ParquetSource
from engine.connectors.simple import CollectionSpec, SequenceSource
from engine.connectors.source import SourceSpec
from engine.connectors.stamped_source import StampedSourceSpec
from engine.core.errors import EngineError
from engine.core.fs import list_input_files
from engine.graph.transformation import Transformation
from engine.operators.base import OperatorSpec
from engine.operators.row_columns import column_kinds

__all__ = ["typed_nodes"]

#: Bytes of local files from which on it is worth it. How long a file elsewhere is nobody asks: it is one.
_FILES_MIN: Final = 32 << 20
#: Of a collection that the program has pickled.
_PICKLED_MIN: Final = 8 << 20


def typed_nodes(nodes: Sequence[Transformation], num_rows_min: int) -> set[int]:
    """Return the nodes whose rows may become columns. ``nodes``: inputs before users; ``num_rows_min``: how many rows
    make a job long."""
    #: nodes of which a source is long
    long: set[int] = set()
    for node in nodes:
        if node.spec.num_inputs == 0:
            is_long = not node.is_bounded_source or _is_long(node.spec, num_rows_min)
        else:
            is_long = any(edge.source.id in long for edge in node.inputs)
        if is_long:
            long.add(node.id)
    return {node.id for node in nodes if node.id in long and column_kinds(node.output_type)}


def _is_long(spec: OperatorSpec, num_rows_min: int) -> bool:
    match spec:
        case StampedSourceSpec():
            return _is_long(spec.source, num_rows_min)
        case CollectionSpec(bytes() as pickled):
            return len(pickled) >= _PICKLED_MIN
        case CollectionSpec(rows):
            return len(rows) >= num_rows_min
        case DataGeneratorSpec(count=int() as count):
            return count >= num_rows_min
        case SourceSpec():
            return _is_long_source(spec.source, num_rows_min)
    return False


def _is_long_source(source: Any, num_rows_min: int) -> bool:
    match source:
        case SequenceSource():
            return source.end - source.start + 1 >= num_rows_min
        case ColumnGeneratorSource(count=int() as count):
            return count >= num_rows_min
        case SkipFirstLineSource():
            return _have_bytes(source.lines.paths)
        case TextFileSource() | DelimitedFileSource() | ColumnFileSource() | ParquetSource():
            return _have_bytes(source.paths)
    return False


def _have_bytes(paths: Iterable[str]) -> bool:
    size = 0
    for path in paths:
        if "://" in path.removeprefix("file://"):
            return True
        try:
            size += sum(file.size_bytes for file in list_input_files(path))
        except (EngineError, OSError):
            continue  # the job will say it
        if size >= _FILES_MIN:
            return True
    return False
