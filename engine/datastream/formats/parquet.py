"""ParquetColumnarRowInputFormat and ParquetBulkWriters, where a PyFlink program looks for them."""

from __future__ import annotations

from typing import Any, final

from engine.connectors.bulk_writers import ParquetFormat, arrow_schema_of
from engine.connectors.files import absolute_path
from engine.connectors.parquet_source import ParquetSource
from engine.core.errors import ConfigError
from engine.core.type_info import BasicType, BasicTypeInfo, RowTypeInfo

__all__ = ["ParquetBulkWriters", "ParquetColumnarRowInputFormat"]


@final
class ParquetColumnarRowInputFormat:
    """Parquet for ``FileSource.for_bulk_file_format``: Rows with the type's names, read as columns.

    ``row_type``: Types.ROW_NAMED(…). A file's columns are found by its names, and become its types where no value is
    changed by that; a column that a file does not have is an error (in Flink it is null). ``is_case_sensitive``:
    False = names are the same in upper and lower case. Timestamps that are moments are read in UTC, whatever
    ``is_utc_timestamp`` is. ``hadoop_config``, ``batch_size``: accepted for compatibility.
    """

    def __init__(
        self,
        row_type: RowTypeInfo,
        hadoop_config: Any = None,
        batch_size: int = 2048,
        is_utc_timestamp: bool = False,
        is_case_sensitive: bool = True,
    ) -> None:
        if not isinstance(row_type, RowTypeInfo):
            raise ConfigError(
                f"ParquetColumnarRowInputFormat: {row_type!r:.80} is no row type; expected "
                "Types.ROW_NAMED([names], [types])."
            )
        names = row_type.get_field_names()
        if not names:
            raise ConfigError("ParquetColumnarRowInputFormat: the row type has no fields; name the columns to read.")
        seen = names if is_case_sensitive else [name.lower() for name in names]
        if len(set(seen)) < len(seen):
            raise ConfigError(f"ParquetColumnarRowInputFormat: the row type has a field twice: {', '.join(names)}.")
        for name, kind in zip(names, row_type.get_field_types(), strict=True):
            is_decimal = isinstance(kind, BasicTypeInfo) and kind.basic_type is BasicType.BIG_DEC
            if not is_decimal and kind.to_arrow() is None:
                raise ConfigError(
                    f"ParquetColumnarRowInputFormat: field {name!r} of type {kind!r} has no columnar form; declare it "
                    "as a basic type, SQL_DATE, SQL_TIME, SQL_TIMESTAMP or a list, map or row of such."
                )
        self._row_type = row_type
        self._is_case_sensitive = is_case_sensitive

    def source_of(self, paths: tuple[str, ...]) -> ParquetSource:
        """Not of PyFlink: what ``FileSource`` makes of it."""
        return ParquetSource(
            tuple(map(absolute_path, paths)),
            row_type=self._row_type,
            is_strict=True,
            is_case_sensitive=self._is_case_sensitive,
        )


@final
class ParquetBulkWriters:
    """Columnar files for ``FileSink.for_bulk_format``."""

    @staticmethod
    def for_row_type(row_type: Any, hadoop_config: Any = None, utc_timestamp: bool = False) -> ParquetFormat:
        """``row_type``: Types.ROW_NAMED(…), Types.TUPLE(…) or an Arrow schema. ``hadoop_config``: of it (a dict or a
        Configuration) ``parquet.compression`` is read. ``utc_timestamp``: timestamps are moments, in UTC."""
        schema = arrow_schema_of(row_type)
        if utc_timestamp:
            import pyarrow as pa

            fields = [
                pa.field(field.name, pa.timestamp("us", tz="UTC")) if pa.types.is_timestamp(field.type) else field
                for field in schema
            ]
            schema = pa.schema(fields)
        return ParquetFormat(schema, _compression(hadoop_config))


def _compression(hadoop_config: Any) -> str:
    to_dict = getattr(hadoop_config, "to_dict", None)
    given = to_dict() if to_dict is not None else hadoop_config or {}
    named = str(given.get("parquet.compression") or "snappy").lower()
    return "none" if named == "uncompressed" else named
