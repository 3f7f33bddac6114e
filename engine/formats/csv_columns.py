"""CSV → columns of the schema's types: by Arrow where it surely gives what the schema means, else value by value.

The two ways give the same columns; only the slow one knows which record is malformed, and can leave it out. Values are
Flink's (Jackson's), but for booleans: what is neither true nor false is malformed, not false. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.type_info import BasicType, BasicTypeInfo, RowTypeInfo, SqlTimeTypeInfo, TypeInformation
from engine.formats.column_values import ColumnParser, MalformedRecord
from engine.formats.csv_records import CsvDialect, CsvRecord, records_in, records_of_stream
from engine.formats.text import lines_of_range
from engine.formats.typed_texts import decimal_of_text, time_of_text

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CsvColumn", "CsvColumns", "CsvKind", "DecimalKind"]

_BLANKS: Final = " \t"  # that Arrow, too, takes off numbers
_WHOLE_NUMBER: Final = re.compile(r"[+-]?[0-9]+")
_NUMBER: Final = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|nan|inf(inity)?)", re.IGNORECASE)
_BOOLEANS: Final = {"true": True, "false": False}
_INTEGER_BITS: Final = {BasicType.BYTE: 8, BasicType.SHORT: 16, BasicType.INT: 32, BasicType.LONG: 64}
_FLOATS: Final = (BasicType.FLOAT, BasicType.DOUBLE)


@final
@dataclass(frozen=True, slots=True)
class DecimalKind:
    """Decimals of ``scale`` digits behind the point and ``precision`` in all."""

    precision: int
    scale: int


CsvKind = BasicType | SqlTimeTypeInfo | DecimalKind


@final
@dataclass(frozen=True, slots=True)
class CsvColumn:
    """``kind``: of the values, or with ``array_separator`` of the elements; "" = the only element is the value."""

    name: str
    kind: CsvKind
    array_separator: str | None = None

    @property
    def type_info(self) -> TypeInformation:
        from engine.core.type_info import Types

        match self.kind:
            case SqlTimeTypeInfo():
                own: TypeInformation = self.kind
            case DecimalKind():
                own = Types.BIG_DEC()
            case _:
                own = BasicTypeInfo(self.kind)
        if self.array_separator is None:
            return own
        return Types.BASIC_ARRAY(own) if isinstance(own, BasicTypeInfo) else Types.OBJECT_ARRAY(own)

    @property
    def arrow_type(self) -> pa.DataType:
        import pyarrow as pa

        match self.kind:
            case DecimalKind(precision, scale):
                own = pa.decimal128(precision, scale)
            case SqlTimeTypeInfo():
                own = self.kind.to_arrow()
            case _:
                own = BasicTypeInfo(self.kind).to_arrow()
        return own if self.array_separator is None else pa.list_(own)


@final
@dataclass(frozen=True)
class CsvColumns:
    """A ColumnFormat. ``null_value``: the text that is null, also in quotes; None = none is."""

    columns: tuple[CsvColumn, ...]
    dialect: CsvDialect = field(default_factory=CsvDialect)
    null_value: str | None = None
    num_header_records: int = 0
    #: the first record must name the columns
    is_header_strict: bool = False
    #: more fields than columns are no error
    allows_more_fields: bool = False
    ignores_errors: bool = False

    @property
    def row_type(self) -> RowTypeInfo:
        return RowTypeInfo([column.type_info for column in self.columns], [column.name for column in self.columns])

    @property
    def is_by_line(self) -> bool:
        return self.dialect.is_by_line and self.num_header_records <= 1  # a header lies in the first split

    def records_of_stream(self, chunks: Iterable[bytes], start: int) -> Iterator[tuple[int, bytes, bool]]:
        if not self.dialect.is_by_line:
            return records_of_stream(chunks, start, self.dialect)
        return ((start + offset, data, True) for offset, data in lines_of_range(chunks, 0, 1 << 62))

    def without_header(self, data: bytes, num_seen: int) -> tuple[bytes, int]:
        end = 0
        for record, _ in records_in(data, self.dialect):
            if num_seen == 0 and self.is_header_strict:
                self._check_header(record, data)
            num_seen += 1
            end = record.end + 1
            if num_seen == self.num_header_records:
                break
        return data[end:], num_seen

    def _check_header(self, record: CsvRecord, data: bytes) -> None:
        names = [field.decode("utf-8", "replace").strip() for field in record.fields]
        wanted = [column.name for column in self.columns]
        if names[: len(wanted)] != wanted or (len(names) > len(wanted) and not self.allows_more_fields):
            reason = f"the header must name the columns {', '.join(wanted)} (set_strict_headers)"
            raise MalformedRecord(record.start, data[record.start : record.end], reason)

    def create_parser(self) -> ColumnParser:
        return _Parser(self)


@final
class _Parser:
    def __init__(self, csv: CsvColumns) -> None:
        import pyarrow as pa
        import pyarrow.csv as pa_csv

        self._csv = csv
        dialect = csv.dialect
        self._fields = [pa.field(column.name, column.arrow_type) for column in csv.columns]
        nulls = [] if csv.null_value is None else [csv.null_value]
        # Names may come twice in no schema, but a place is what counts: the file's own names do not matter.
        self._names = [str(index) for index in range(len(csv.columns))]
        self._parse_options = pa_csv.ParseOptions(
            delimiter=dialect.separator.decode(),
            quote_char=False if dialect.quote is None else dialect.quote.decode(),
            newlines_in_values=True,
        )
        self._convert_options = pa_csv.ConvertOptions(
            column_types={
                name: pa.string() if column.array_separator is not None else own.type
                for name, column, own in zip(self._names, csv.columns, self._fields, strict=True)
            },
            null_values=nulls,
            true_values=["true", "True", "TRUE"],
            false_values=["false", "False", "FALSE"],
            strings_can_be_null=bool(nulls),
        )
        kinds = {column.kind for column in csv.columns}
        #: what Arrow takes for numbers, and we do not
        self._suspicious = ([b"0x", b"0X"] if kinds & _INTEGER_BITS.keys() else []) + (
            [b"n(", b"N("] if kinds & {*_FLOATS} else []
        )
        if any(isinstance(kind, SqlTimeTypeInfo) for kind in kinds):
            self._suspicious.append(b"0000-")  # the year 0 is none of Python's

    def parse(self, data: bytes, is_whole: bool) -> pa.RecordBatch:
        return (self._by_arrow(data) if is_whole or self._is_closed(data) else None) or self._by_value(data)

    def _is_closed(self, data: bytes) -> bool:
        quote = self._csv.dialect.quote
        return quote is None or quote not in data

    # --- the fast way -------------------------------------------------------------------------------------------------

    def _by_arrow(self, data: bytes) -> pa.RecordBatch | None:
        """Return the columns, or None when it is not sure that they are what ``_by_value`` returns."""
        import pyarrow as pa
        import pyarrow.csv as pa_csv

        dialect = self._csv.dialect
        if dialect.escape is not None and dialect.escape in data:
            return None
        if dialect.may_have_comments(data):
            if b"\r" in data or not self._is_closed(data):
                return None
            data = re.sub(rb"(?m)^" + re.escape(dialect.comment or b"") + rb".*\n?", b"", data)
        # The second bytes are looked for first: they are rare, and one byte is found several times as fast as two.
        if any(mark[1:] in data and mark in data for mark in self._suspicious) or not data.strip(b"\r\n"):
            return None
        options = pa_csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=self._names)
        try:
            table = pa_csv.read_csv(pa.BufferReader(data), options, self._parse_options, self._convert_options)
        except pa.ArrowInvalid:
            return None
        arrays = [self._whole(column) for column in table.columns]
        try:
            for index, column in enumerate(self._csv.columns):
                if column.array_separator is not None:
                    arrays[index] = self._arrays_of(column, self._fields[index].type, arrays[index].to_pylist())
        except ValueError:
            return None
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(self._fields))

    @staticmethod
    def _whole(column: pa.ChunkedArray) -> pa.Array:
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    # --- the slow way -------------------------------------------------------------------------------------------------

    def _by_value(self, data: bytes) -> pa.RecordBatch:
        """Return the columns; some 2 MB/s. Raises: MalformedRecord."""
        import pyarrow as pa

        csv = self._csv
        values: list[list[Any]] = [[] for _ in csv.columns]
        converters = [self._converter(column) for column in csv.columns]
        for record, _ in records_in(data, csv.dialect):
            try:
                row = self._row(record, converters)
            except ValueError as error:  # UnicodeDecodeError, too
                if csv.ignores_errors:
                    continue
                raise MalformedRecord(record.start, data[record.start : record.end], str(error)) from error
            for own, value in zip(values, row, strict=True):
                own.append(value)
        arrays = []
        for column, arrow_field, own in zip(csv.columns, self._fields, values, strict=True):
            if column.array_separator is not None:
                arrays.append(self._arrays_of(column, arrow_field.type, own))
            else:
                arrays.append(_array(column.kind, arrow_field.type, own))
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(self._fields))

    def _row(self, record: CsvRecord, converters: list[Callable[[str], Any]]) -> list[Any]:
        csv = self._csv
        num, expected = len(record.fields), len(csv.columns)
        if not record.is_closed:
            raise ValueError("a quoted value does not end")
        if num < expected or (num > expected and not csv.allows_more_fields):
            raise ValueError(f"it has {num} fields, the schema has {expected} columns")
        row = []
        for column, content, convert in zip(csv.columns, record.fields, converters, strict=False):
            try:
                text = content.decode()
                row.append(None if text == csv.null_value else convert(text))
            except ValueError as error:
                raise ValueError(f"column {column.name!r}: {error}") from error
        return row

    def _converter(self, column: CsvColumn) -> Callable[[str], Any]:
        convert = _converter_of(column.kind)
        if column.array_separator is None:
            return convert

        def check(text: str) -> str:
            for element in self._elements(column, text):
                if element is not None:
                    convert(element)
            return text

        return check

    def _elements(self, column: CsvColumn, text: str) -> list[str | None]:
        if not text:
            return []
        elements = text.split(column.array_separator) if column.array_separator else [text]
        null = self._csv.null_value
        return [None if element == null else element for element in elements]

    def _arrays_of(self, column: CsvColumn, data_type: Any, texts: list[str | None]) -> pa.Array:
        """Return a column of lists. Raises: ValueError."""
        import pyarrow as pa

        convert = _converter_of(column.kind)
        lists = [None if text is None else self._elements(column, text) for text in texts]
        flat = [item if item is None else convert(item) for items in lists if items is not None for item in items]
        offsets, end = [], 0
        for items in lists:
            offsets.append(None if items is None else end)
            end += len(items or ())
        values = _array(column.kind, data_type.value_type, flat)
        return pa.ListArray.from_arrays(pa.array([*offsets, end], pa.int32()), values)


def _converter_of(kind: CsvKind) -> Callable[[str], Any]:
    """Return what turns a text into what ``_array`` takes. It raises ValueError with the reason."""
    if isinstance(kind, SqlTimeTypeInfo | DecimalKind):
        convert = (
            time_of_text(kind) if isinstance(kind, SqlTimeTypeInfo) else decimal_of_text(kind.precision, kind.scale)
        )
        # Arrow's reader of CSV takes blanks off numbers, dates and times of day, not off timestamps.
        blanks = "" if isinstance(kind, SqlTimeTypeInfo) and kind.kind == "TIMESTAMP" else _BLANKS
        return lambda text: convert(text.strip(blanks))
    if kind in _INTEGER_BITS:
        limit = 1 << (_INTEGER_BITS[kind] - 1)

        def whole_number(text: str) -> int:
            text = text.strip(_BLANKS)
            if not _WHOLE_NUMBER.fullmatch(text) or len(text) > 40 or not -limit <= int(text) < limit:
                raise ValueError(f"{text!r:.80} is no whole number from {-limit} to {limit - 1}")
            return int(text)

        return whole_number
    if kind in _FLOATS:

        def number(text: str) -> str:
            text = text.strip(_BLANKS)
            if not _NUMBER.fullmatch(text):
                raise ValueError(f"{text!r:.80} is no number")
            return text.removeprefix("+")

        return number
    if kind is BasicType.BOOLEAN:

        def boolean(text: str) -> bool:
            value = _BOOLEANS.get(text.strip(_BLANKS).lower())
            if value is None:
                raise ValueError(f"{text!r:.80} is neither true nor false")
            return value

        return boolean
    return str


def _array(kind: CsvKind, data_type: pa.DataType, values: list[Any]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    if kind in _FLOATS:
        return pc.cast(pa.array(values, pa.string()), data_type)  # rounds as Arrow's reader does
    return pa.array(values, data_type)
