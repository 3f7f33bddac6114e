"""JSON lines for FileSource and FileSink. PyFlink has neither; named after their siblings of CSV and Parquet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

from engine.connectors.bulk_writers import JsonFormat, arrow_schema_of, field_names_of
from engine.core.errors import ProgramError
from engine.core.type_info import RowTypeInfo
from engine.formats.json_columns import JsonColumns

__all__ = ["JsonBulkWriters", "JsonReaderFormat"]


@final
class JsonBulkWriters:
    @staticmethod
    def for_row_type(row_type: Any = None) -> JsonFormat:
        """One object a line with the fields of ``row_type``; without it each record as it is (dict → object, tuple →
        array, named Row → object)."""
        return JsonFormat(None if row_type is None else tuple(field_names_of(row_type)))


@final
@dataclass(frozen=True)
class JsonReaderFormat:
    """JSON lines for ``FileSource.for_record_stream_format``: Rows with the type's names, read as columns."""

    columns: JsonColumns

    @staticmethod
    def for_row_type(row_type: RowTypeInfo) -> JsonReaderFormat:
        """``row_type``: Types.ROW_NAMED([names], [types]). A field that a line lacks is None, others are left out."""
        if not isinstance(row_type, RowTypeInfo):
            raise ProgramError(f"{row_type!r:.80} is no row type; expected Types.ROW_NAMED([names], [types]).")
        arrow_schema_of(row_type)  # each type must be a column's
        return JsonReaderFormat(JsonColumns(row_type))

    def with_ignore_parse_errors(self) -> JsonReaderFormat:
        """Leave out lines that are malformed."""
        return JsonReaderFormat(replace(self.columns, ignores_errors=True))
