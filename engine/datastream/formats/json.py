"""JsonBulkWriters: JSON lines for ``FileSink.for_bulk_format``. PyFlink has none; named after its siblings."""

from __future__ import annotations

from typing import Any, final

from engine.connectors.bulk_writers import JsonFormat, field_names_of

__all__ = ["JsonBulkWriters"]


@final
class JsonBulkWriters:
    @staticmethod
    def for_row_type(row_type: Any = None) -> JsonFormat:
        """One object a line with the fields of ``row_type``; without it each record as it is (dict → object, tuple →
        array, named Row → object)."""
        return JsonFormat(None if row_type is None else tuple(field_names_of(row_type)))
