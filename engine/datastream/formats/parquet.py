"""ParquetBulkWriters, where a PyFlink program looks for it."""

from __future__ import annotations

from typing import Any, final

from engine.connectors.bulk_writers import ParquetFormat, arrow_schema_of

__all__ = ["ParquetBulkWriters"]


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
