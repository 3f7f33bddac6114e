"""CsvSchema, CsvReaderFormat and CsvBulkWriters, where a PyFlink program looks for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, final

from engine.connectors.bulk_writers import CsvFormat, CsvOptions
from engine.core.errors import ConfigError
from engine.core.type_info import BasicType, BasicTypeInfo, SqlTimeTypeInfo
from engine.formats.csv_columns import CsvColumn, CsvColumns, CsvKind, DecimalKind
from engine.formats.csv_records import CsvDialect

__all__ = ["CsvBulkWriters", "CsvReaderFormat", "CsvSchema", "CsvSchemaBuilder"]

_NUMBERS: Final = (
    BasicType.BYTE,
    BasicType.SHORT,
    BasicType.INT,
    BasicType.LONG,
    BasicType.FLOAT,
    BasicType.DOUBLE,
)
#: What Flink makes of a BigDecimal whose digits are not told.
_BIG_DECIMAL: Final = DecimalKind(38, 18)
_DIGITS_MAX: Final = 38
_ELEMENTS: Final = (*_NUMBERS, BasicType.STRING, BasicType.BOOLEAN)


@final
@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    kind: CsvKind
    is_array: bool = False
    array_separator: str | None = None  #: None = the schema's


@final
@dataclass(frozen=True, slots=True)
class _ReadOptions:
    null_value: str | None = None
    allow_comments: bool = False
    skip_first_data_row: bool = False
    strict_headers: bool = False
    any_property_name: str | None = None


@final
class CsvSchema:
    """Names and types of the columns, and how lines are written and read."""

    def __init__(self, columns: tuple[_Column, ...], options: CsvOptions, reading: _ReadOptions) -> None:
        self._columns = columns
        self._options = options
        self._reading = reading

    @staticmethod
    def builder() -> CsvSchemaBuilder:
        return CsvSchemaBuilder()

    def size(self) -> int:
        return len(self._columns)

    def _written(self) -> CsvFormat:
        separators = tuple(
            (index, column.array_separator)
            for index, column in enumerate(self._columns)
            if column.array_separator is not None
        )
        return CsvFormat(
            tuple(column.name for column in self._columns), replace(self._options, array_separators=separators)
        )

    def _read(self) -> CsvColumns:
        """Raises: ConfigError."""
        options, reading = self._options, self._reading

        def mark(char: str | None, method: str) -> bytes | None:
            if char is not None and (not char.isascii() or char in "\r\n"):
                raise ConfigError(f"{method}({char!r}): to read CSV, expected one ASCII character.")
            return None if char is None else char.encode()

        separator = mark(options.column_separator, "set_column_separator")
        assert separator is not None
        dialect = CsvDialect(
            separator,
            mark(options.quote_char, "set_quote_char"),
            mark(options.escape_char, "set_escape_char"),
            b"#" if reading.allow_comments else None,
        )
        marks = [dialect.separator, dialect.quote, dialect.escape]
        given = [char for char in marks if char is not None]
        if len(set(given)) < len(given):
            raise ConfigError("CsvSchema: column separator, quote and escape must be different characters.")
        columns = []
        for column in self._columns:
            own = options.array_separator if column.array_separator is None else column.array_separator
            columns.append(CsvColumn(column.name, column.kind, own if column.is_array else None))
        return CsvColumns(
            tuple(columns),
            dialect,
            reading.null_value,
            num_header_records=options.use_header + reading.skip_first_data_row,
            is_header_strict=options.use_header and reading.strict_headers,
            allows_more_fields=reading.any_property_name is not None,
        )


@final
class CsvSchemaBuilder:
    """PyFlink's builder. Types are ``Types.…()``; what PyFlink's table package calls ``DataTypes`` is not there."""

    def __init__(self) -> None:
        self._columns: list[_Column] = []
        self._options = CsvOptions()
        self._reading = _ReadOptions()

    def build(self) -> CsvSchema:
        names = [column.name for column in self._columns]
        if not names:
            raise ConfigError("CsvSchema has no columns; add them, e.g. CsvSchema.builder().add_string_column('id').")
        if len(set(names)) < len(names):
            raise ConfigError(f"CsvSchema has a column twice: {', '.join(names)}.")
        return CsvSchema(tuple(self._columns), self._options, self._reading)

    def add_string_column(self, name: str) -> CsvSchemaBuilder:
        return self._column(_Column(name, BasicType.STRING))

    def add_number_column(self, name: str, number_type: Any = None) -> CsvSchemaBuilder:
        """``number_type``: BYTE, SHORT, INT, LONG, FLOAT, DOUBLE or BIG_DEC of ``Types``; LONG if none is given.

        BIG_DEC has 18 of its 38 digits behind the point, as in Flink; ``pyarrow.decimal128(12, 2)`` says other numbers
        of digits. Further digits are rounded half up.
        """
        decimal = _decimal_of(number_type)
        if decimal is not None:
            return self._column(_Column(name, decimal))
        return self._column(_Column(name, _kind_of(number_type, BasicType.LONG, _NUMBERS, "add_number_column")))

    def add_boolean_column(self, name: str) -> CsvSchemaBuilder:
        return self._column(_Column(name, BasicType.BOOLEAN))

    def add_temporal_column(self, name: str, temporal_type: Any) -> CsvSchemaBuilder:
        """``temporal_type``: SQL_DATE, SQL_TIME or SQL_TIMESTAMP of ``Types``; texts are ISO's, to the microsecond.

        Not in PyFlink, whose programs read such columns as strings.
        """
        if not isinstance(temporal_type, SqlTimeTypeInfo):
            raise ConfigError(
                f"add_temporal_column: {temporal_type!r:.80} is not a type of this column; expected one of "
                "Types.SQL_DATE(), Types.SQL_TIME(), Types.SQL_TIMESTAMP()."
            )
        return self._column(_Column(name, temporal_type))

    def add_array_column(self, name: str, separator: str = ";", element_type: Any = None) -> CsvSchemaBuilder:
        """``element_type``: a number type, BOOLEAN or STRING of ``Types``; STRING if none is given."""
        kind = _kind_of(element_type, BasicType.STRING, _ELEMENTS, "add_array_column")
        return self._column(_Column(name, kind, True, separator))

    def add_columns_from(self, schema: CsvSchema) -> CsvSchemaBuilder:
        self._columns += schema._columns
        return self

    def clear_columns(self) -> CsvSchemaBuilder:
        self._columns = []
        return self

    def _column(self, column: _Column) -> CsvSchemaBuilder:
        self._columns.append(column)
        return self

    def set_column_separator(self, char: str) -> CsvSchemaBuilder:
        return self._with(column_separator=_one(char, "set_column_separator"))

    def set_line_separator(self, separator: str) -> CsvSchemaBuilder:
        """Of lines that are written; what is read may end with ``\\n``, ``\\r\\n`` or ``\\r``."""
        return self._with(line_separator=separator)

    def set_array_element_separator(self, separator: str) -> CsvSchemaBuilder:
        """Set it for array columns that have none of their own."""
        return self._with(array_separator=separator)

    def remove_array_element_separator(self, index: int) -> CsvSchemaBuilder:
        """Let the array column at this place have no separator of its own."""
        self._columns[index] = replace(self._columns[index], array_separator=None)
        return self

    def disable_array_element_separator(self) -> CsvSchemaBuilder:
        return self._with(array_separator="")

    def set_quote_char(self, char: str) -> CsvSchemaBuilder:
        return self._with(quote_char=_one(char, "set_quote_char"))

    def disable_quote_char(self) -> CsvSchemaBuilder:
        return self._with(quote_char=None)

    def set_escape_char(self, char: str) -> CsvSchemaBuilder:
        return self._with(escape_char=_one(char, "set_escape_char"))

    def disable_escape_char(self) -> CsvSchemaBuilder:
        return self._with(escape_char=None)

    def set_null_value(self, null_value: str) -> CsvSchemaBuilder:
        """Set the text that is null. Without, null is written as nothing, and nothing is read as null."""
        self._reading = replace(self._reading, null_value=null_value)
        return self._with(null_value=null_value)

    def set_use_header(self, use: bool = True) -> CsvSchemaBuilder:
        return self._with(use_header=use)

    def _with(self, **changes: Any) -> CsvSchemaBuilder:
        self._options = replace(self._options, **changes)
        return self

    # For readers only.

    def set_allow_comments(self, allow: bool = True) -> CsvSchemaBuilder:
        """Let lines that begin with ``#`` be no records."""
        return self._reads(allow_comments=allow)

    def set_any_property_name(self, name: str) -> CsvSchemaBuilder:
        """Let records have more fields than the schema has columns; they are left out."""
        return self._reads(any_property_name=name)

    def set_skip_first_data_row(self, skip: bool = True) -> CsvSchemaBuilder:
        return self._reads(skip_first_data_row=skip)

    def set_strict_headers(self, strict: bool = True) -> CsvSchemaBuilder:
        """With ``set_use_header``: the header must name the columns, in their order."""
        return self._reads(strict_headers=strict)

    def _reads(self, **changes: Any) -> CsvSchemaBuilder:
        self._reading = replace(self._reading, **changes)
        return self

    def size(self) -> int:
        return len(self._columns)


def _kind_of(given: Any, default: BasicType, known: tuple[BasicType, ...], method: str) -> BasicType:
    if given is None:
        return default
    if isinstance(given, BasicTypeInfo) and given.basic_type in known:
        return given.basic_type
    names = ", ".join(f"Types.{kind.name}()" for kind in known)
    raise ConfigError(f"{method}: {given!r:.80} is not a type of this column; expected one of {names}.")


def _decimal_of(given: Any) -> DecimalKind | None:
    """Return the kind of decimals that are meant, by ``Types`` or by Arrow's type; None = no decimals."""
    if isinstance(given, BasicTypeInfo):
        return _BIG_DECIMAL if given.basic_type is BasicType.BIG_DEC else None
    precision, scale = getattr(given, "precision", None), getattr(given, "scale", None)
    if not (isinstance(precision, int) and isinstance(scale, int)):
        return None
    if precision > _DIGITS_MAX or not 0 <= scale <= precision:
        raise ConfigError(
            f"add_number_column: {given!r:.80} is not a type of this column; expected a decimal of at most "
            f"{_DIGITS_MAX} digits, from none to all of them behind the point."
        )
    return DecimalKind(precision, scale)


def _one(char: str, method: str) -> str:
    if not isinstance(char, str) or len(char) != 1:
        raise ConfigError(f"{method}({char!r}): expected one character.")
    return char


@final
@dataclass(frozen=True)
class CsvReaderFormat:
    """CSV for ``FileSource.for_record_stream_format``: Rows with the schema's names, read as columns.

    Files are UTF-8. With quotes or an escape character a newline may be part of a value, so that a file is read by one
    reader, as in Flink; with ``disable_quote_char()`` large files are read in parallel.
    """

    columns: CsvColumns

    @staticmethod
    def for_schema(schema: CsvSchema) -> CsvReaderFormat:
        return CsvReaderFormat(schema._read())

    def with_ignore_parse_errors(self) -> CsvReaderFormat:
        """Leave out records that are malformed (Flink's ``withIgnoreParseErrors``)."""
        return CsvReaderFormat(replace(self.columns, ignores_errors=True))


@final
class CsvBulkWriters:
    @staticmethod
    def for_schema(schema: CsvSchema) -> CsvFormat:
        return schema._written()
