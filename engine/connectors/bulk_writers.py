"""Formats of ``FileSink.for_bulk_format``: Parquet by columns, CSV with a schema, JSON one object a line.

A row type gives names and types of the fields; records are tuples, Rows or dicts. Columns that come as Arrow stay so,
and are written as their rows would be (``formats/column_lines``).
Not here: PyFlink's factories (``datastream/formats``), CSV as ``write_as_csv`` has it (``formats/rows``).
"""

from __future__ import annotations

import base64
import csv
import datetime as dt
import decimal
import functools
import io
import json
import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final, final

from engine.connectors.part_writers import LineWriter, PartWriter, make_durable
from engine.core.dictionaries import plain_columns
from engine.core.errors import ConfigError, ExternalError, ProgramError
from engine.core.fs import give_up
from engine.core.records import Batch, ColumnBatch, Row, arrow_values, rows_of
from engine.core.type_info import TupleTypeInfo, TypeInformation
from engine.formats.column_lines import ColumnLines, CsvColumnLines, JsonColumnLines
from engine.operators.failure import user_error

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CsvFormat", "CsvOptions", "JsonFormat", "ParquetFormat", "arrow_schema_of", "field_names_of"]

#: Rows of a row group, as far as one epoch has them. Source: 1 M rows or so is what readers are tuned for.
_ROW_GROUP_ROWS: Final = 1 << 19
#: What csv writes: fields with one of its characters are quoted, and readers take each of them for a line's end.
_LINE_END: Final = "\r\n"
#: Stands around the digits of a decimal number that no float has, until the quotes around it are taken away.
_EXACT: Final = f"\x7f{secrets.token_hex(8)}\x7f"
_EXACT_NUMBER: Final = re.compile(f'"{_EXACT}([^"]*?){_EXACT}"')
_COMPRESSIONS: Final = ("snappy", "gzip", "zstd", "lz4", "brotli", "none")


def field_names_of(row_type: Any) -> list[str]:
    """Return the field names of a RowTypeInfo, TupleTypeInfo or Arrow schema. Raises ProgramError for others."""
    if isinstance(row_type, TupleTypeInfo):
        return row_type.get_field_names()
    names = getattr(row_type, "names", None)
    if isinstance(names, list):
        return names
    raise ProgramError(
        f"{row_type!r} is no row type; expected Types.ROW_NAMED([names], [types]), Types.TUPLE([types]) or an Arrow "
        "schema."
    )


def arrow_schema_of(row_type: Any) -> pa.Schema:
    """Return the Arrow schema of a row type. Raises ProgramError naming the field that has no column type."""
    import pyarrow as pa

    if isinstance(row_type, pa.Schema):
        return row_type
    names = field_names_of(row_type)
    fields = []
    for name, field_type in zip(names, row_type.get_field_types(), strict=True):
        arrow_type = field_type.to_arrow()
        if arrow_type is None:
            raise ProgramError(
                f"Field {name!r} of type {field_type!r} has no columnar form; declare it as a basic type, SQL_DATE, "
                "SQL_TIMESTAMP or a list, map or row of such, or give an Arrow schema."
            )
        fields.append(pa.field(name, arrow_type))
    return pa.schema(fields)


def values_of(record: Any, names: Sequence[str]) -> Iterable[Any]:
    """Return a record's values in the order of the fields. Raises TypeError when it does not have these fields."""
    if isinstance(record, Mapping):
        return [record[name] for name in names]
    if isinstance(record, Row) and record.has_field_names():
        return record.get_fields_by_names(list(names))
    if isinstance(record, (tuple, list, Row)):
        if len(record) != len(names):
            raise TypeError(f"the record has {len(record)} fields; the row type has {len(names)}: {', '.join(names)}.")
        return record
    raise TypeError(f"expected a tuple, Row or dict with the fields {', '.join(names)}, got {type(record).__name__}.")


# --- Parquet ----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class ParquetFormat:
    schema: Any
    compression: str = "snappy"
    writes_columns: ClassVar = True

    def __post_init__(self) -> None:
        if self.compression.lower() not in _COMPRESSIONS:
            known = ", ".join(_COMPRESSIONS)
            raise ConfigError(f"parquet.compression is {self.compression!r}; expected one of {known}.")

    def create(self, stream: IO[bytes], type_info: TypeInformation | None) -> PartWriter:
        return _ParquetWriter(stream, self.schema, self.compression.lower())


@final
class _ParquetWriter:
    """Gathers batches into row groups; the footer is written at the end, so a file is whole or none."""

    def __init__(self, stream: IO[bytes], schema: pa.Schema, compression: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._stream = stream
        self._schema = schema
        self._sink = pa.PythonFile(stream, mode="w")
        self._writer = pq.ParquetWriter(self._sink, schema, compression=compression)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self.num_bytes = 0

    def write(self, batch: Batch, operator_name: str) -> None:
        columns = self._columns_of(batch) if isinstance(batch, ColumnBatch) else None
        if columns is None:
            columns = self._from_rows(rows_of(batch).rows, operator_name)
        self._waiting.append(columns)
        self._waiting_rows += columns.num_rows
        self.num_bytes += columns.nbytes
        if self._waiting_rows >= _ROW_GROUP_ROWS:
            self._write_group()

    def _columns_of(self, batch: ColumnBatch) -> pa.RecordBatch | None:
        import pyarrow as pa

        if batch.kinds is not None:  # what becomes of kinds rows say
            return None
        columns = plain_columns(batch.columns).columns
        if batch.named:  # as with Rows on rows, names count, not places
            places = [batch.columns.schema.get_field_index(name) for name in self._schema.names]
            if -1 in places:
                return None
            columns = [columns[place] for place in places]
        if [column.type for column in columns] != self._schema.types:
            return None
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _from_rows(self, rows: list[Any], operator_name: str) -> pa.RecordBatch:
        import pyarrow as pa

        names = self._schema.names
        try:
            columns = list(zip(*(values_of(row, names) for row in rows), strict=True)) or [()] * len(names)
            types = self._schema.types
            arrays = [pa.array(arrow_values(own, kind), kind) for own, kind in zip(columns, types, strict=True)]
        except Exception:
            self._blame(rows, operator_name)
            raise
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _blame(self, rows: list[Any], operator_name: str) -> None:
        """Raise the error of the first record that cannot be written."""
        import pyarrow as pa

        for row in rows:
            name, value = "", None
            try:
                pairs = list(zip(self._schema.names, values_of(row, self._schema.names), strict=True))
                for (name, value), kind in zip(pairs, self._schema.types, strict=True):  # noqa: B007 - for the error
                    pa.array(arrow_values([value], kind), kind)
            except Exception as error:
                what = f"field {name!r} cannot be written as {self._schema.field(name).type}: " if name else ""
                reason = TypeError(f"{what}{error}")
                raise user_error(reason, operator_name=operator_name, record=row) from error

    def _write_group(self) -> None:
        import pyarrow as pa

        if self._waiting:
            table = pa.Table.from_batches(self._waiting, schema=self._schema)
            self._waiting, self._waiting_rows = [], 0
            self._guarded(lambda: self._writer.write_table(table, row_group_size=table.num_rows))

    def close(self) -> None:
        self._write_group()
        self._guarded(self._writer.close)
        self._guarded(lambda: make_durable(self._stream))
        self._guarded(self._stream.close)

    def abandon(self) -> None:
        self._waiting = []
        self._guarded(lambda: give_up(self._stream))

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except OSError as error:
            raise ExternalError(f"Cannot write {getattr(self._stream, 'name', 'output')}: {error}.") from error


# --- lines ------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class CsvOptions:
    """Of a CsvSchema, with its defaults."""

    column_separator: str = ","
    line_separator: str = "\n"
    quote_char: str | None = '"'
    escape_char: str | None = None
    null_value: str = ""
    array_separator: str = ";"
    use_header: bool = False
    #: of columns that have one of their own, by place
    array_separators: tuple[tuple[int, str], ...] = ()


@final
@dataclass(frozen=True)
class CsvFormat:
    """Fields are quoted where they hold a separator, a quote or a line break."""

    names: tuple[str, ...]
    options: CsvOptions = CsvOptions()

    @property
    def writes_columns(self) -> bool:
        return CsvColumnLines.is_for(self._specials())

    def create(self, stream: IO[bytes], type_info: TypeInformation | None) -> PartWriter:
        line_of = self._line_of()
        header = line_of(self.names) if self.options.use_header else ""
        return LineWriter(stream, line_of, "utf-8", header, self._columns())

    def _specials(self) -> str:
        """Return the characters that csv quotes or escapes."""
        own = self.options
        return own.column_separator + (own.quote_char or "") + (own.escape_char or "") + _LINE_END

    def _separators(self) -> list[str]:
        """Return the separator within arrays, by column."""
        own_separators = dict(self.options.array_separators)
        return [own_separators.get(index, self.options.array_separator) for index in range(len(self.names))]

    def _field(self) -> Callable[[Any, str], Any]:
        """Return what makes of (value, separator within arrays) what the csv writer gets."""
        null_value = self.options.null_value

        def field(value: Any, separator: str) -> Any:
            if value is None:
                return null_value
            if isinstance(value, bool):
                return "true" if value else "false"
            if isinstance(value, (bytes, bytearray)):
                return base64.b64encode(value).decode()
            if isinstance(value, (list, tuple)):
                return separator.join(str(field(item, separator)) for item in value)
            return value

        return field

    def _line_of(self) -> Callable[[Any], str]:
        line_separator, names = self.options.line_separator, self.names
        field, separators, write = self._field(), self._separators(), self._writer()

        def line_of(record: Any) -> str:
            return write(map(field, values_of(record, names), separators)) + line_separator

        return line_of

    def _writer(self) -> Callable[[Iterable[Any]], str]:
        """Return what makes a line of fields, without its end."""
        options = self.options
        text = io.StringIO()
        writer = csv.writer(
            text,
            delimiter=options.column_separator,
            lineterminator=_LINE_END,
            quotechar=options.quote_char,
            escapechar=options.escape_char,
            quoting=csv.QUOTE_NONE if options.quote_char is None else csv.QUOTE_MINIMAL,
        )

        def write(fields: Iterable[Any]) -> str:
            text.seek(0)
            text.truncate()
            writer.writerow(fields)
            return text.getvalue().removesuffix(_LINE_END)

        return write

    def _columns(self) -> ColumnLines | None:
        options = self.options
        # A mark that is escaped is left to rows, as is one without quotes.
        quote = options.quote_char if options.escape_char is None else None
        specials = self._specials()
        if not CsvColumnLines.is_for(specials):
            return None
        separator = options.column_separator
        try:
            if len(self.names) == 1:
                null = self._writer()([options.null_value])
            else:
                null = self._writer()([options.null_value, "-"]).removesuffix(f"{separator}-")
        except csv.Error:
            return None
        of_values = tuple(functools.partial(_text_of_field, self._field(), own) for own in self._separators())
        return CsvColumnLines(self.names, separator, options.line_separator, quote, specials, null, of_values)


def _text_of_field(field: Callable[[Any, str], Any], separator: str, value: Any) -> str:
    return str(field(value, separator))


@final
@dataclass(frozen=True)
class JsonFormat:
    """One JSON value a line: an object of the fields, or without ``names`` whatever the record is."""

    names: tuple[str, ...] | None = None
    writes_columns: ClassVar = True

    def create(self, stream: IO[bytes], type_info: TypeInformation | None) -> PartWriter:
        names = self.names
        encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_json_value, separators=(",", ":"))
        encode = encoder.encode

        def text_of(value: Any) -> str:
            try:
                text = encode(value)
            except ValueError:  # JSON has no such numbers; what contains itself fails again
                text = encode(_with_named_numbers(value))
            return _EXACT_NUMBER.sub(r"\1", text) if _EXACT in text else text

        def line_of(record: Any) -> str:
            return text_of(record if names is None else dict(zip(names, values_of(record, names), strict=True))) + "\n"

        return LineWriter(stream, line_of, columns=JsonColumnLines(names, text_of))


def _with_named_numbers(value: Any) -> Any:
    """Return a value whose NaN and infinities are texts, as Flink writes them: "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _with_named_numbers(field) for key, field in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_named_numbers(element) for element in value]
    return value if isinstance(value, (str, int, float, bytes)) or value is None else _of_other(value)


def _of_other(value: Any) -> Any:
    return _with_named_numbers(_json_value(value))


def _json_value(value: Any) -> Any:
    """Source: Flink's JSON format: times in SQL form, bytes in base64, decimals as numbers."""
    match value:
        case Row():
            return value.as_dict() if value.has_field_names() else list(value)
        case dt.datetime():
            return value.isoformat(sep=" ")
        case dt.date() | dt.time():
            return value.isoformat()
        case decimal.Decimal() if not value.is_finite():
            return float(value)
        case decimal.Decimal():
            if value == value.to_integral_value():
                return int(value)
            near = float(value)
            return near if decimal.Decimal(repr(near)) == value else f"{_EXACT}{value}{_EXACT}"
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
        case set() | frozenset():
            return list(value)
    to_list = getattr(value, "tolist", None)  # numpy
    if to_list is not None:
        return to_list()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: {value!r:.80}.")
