"""Records as lines of CSV, by the rules of Flink's CsvOutputFormat: nothing is quoted unless it is asked for.

Pure. Not here: how records print (``core/printing``), files (``connectors/file_sinks``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.core.printing import format_typed
from engine.core.records import Row

__all__ = ["csv_line_formatter"]


def csv_line_formatter(
    field_delimiter: str = ",", row_delimiter: str = "\n", *, quote_strings: bool = False
) -> Callable[[Any], str]:
    """Return record → line with its delimiter. Fields as Java prints them, None as nothing; strings in double quotes
    if ``quote_strings`` (quotes in them doubled). The function raises TypeError for what is no tuple or Row."""

    def quoted(value: Any) -> str:
        if isinstance(value, str):
            return '"' + value.replace('"', '""') + '"'
        return "" if value is None else format_typed(value)

    def plain(value: Any) -> str:
        if type(value) is str:
            return value
        return "" if value is None else format_typed(value)

    field = quoted if quote_strings else plain

    def line(record: Any) -> str:
        if not isinstance(record, (tuple, Row, list)):
            raise TypeError(
                f"write_as_csv needs tuples or Rows, got {record!r:.80} of type {type(record).__name__}. "
                "Use write_as_text, or map to a tuple first."
            )
        return field_delimiter.join(map(field, record)) + row_delimiter

    return line
