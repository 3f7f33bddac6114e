"""Columns → lines of CSV, of JSON and of printed records, equal byte for byte to what rows of them are written as.

A layout says what stands before, between and behind the texts of a record's fields; there is one for each formatter of
rows. Where it is not sure that the bytes are the same, or a value cannot be written, there are no bytes: the caller
goes by rows, which define what is right and name the record. Pure. Not here: the text of a value (``column_texts``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from engine.core.arrow_arrays import arrow_of
from engine.core.late_dataclass import dataclass
from engine.core.printing import format_typed, record_formatter
from engine.core.records import ROW_KINDS, ColumnBatch
from engine.core.type_info import PickledBytesTypeInfo, TupleTypeInfo, TypeInformation
from engine.formats.column_texts import (
    TextStyle,
    bytes_of_texts,
    joined,
    plain_texts,
    texts_in_json,
    texts_in_quotes,
    texts_in_repr,
    texts_of,
    texts_or_nulls,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Array = np.ndarray[Any, Any]

__all__ = ["ColumnLines", "CsvColumnLines", "JsonColumnLines", "PrintedColumnLines", "TypedCsvColumnLines"]

#: What Java prints without an exponent.
_JAVA_FLOATS: Final = (1e-3, 1e7)
#: A value of a typed stream, as ``format_typed`` has it.
_TYPED: Final = TextStyle("null", "true", "false", format_typed, plain_texts, _JAVA_FLOATS, "T")
#: A value within a tuple of an untyped stream.
_REPR: Final = TextStyle("None", "True", "False", repr, texts_in_repr, time_separator=None)
#: A record of an untyped stream.
_UNTYPED: Final = TextStyle("None", "True", "False", record_formatter(None), plain_texts)


class ColumnLines(Protocol):
    def lines_of(self, batch: ColumnBatch) -> bytes | None:
        """Return the lines of all records in UTF-8, None where it takes rows to write them, or to say why it cannot."""
        ...


def _of_plain(lines_of: Callable[[ColumnBatch], pa.Array | None], batch: ColumnBatch) -> bytes | None:
    """As ``_encoded``, for a format that has no place for a kind: what is a changelog goes by rows."""
    return None if batch.kinds is not None else _encoded(lines_of, batch)


def _encoded(lines_of: Callable[[ColumnBatch], pa.Array | None], batch: ColumnBatch) -> bytes | None:
    """Return the bytes of lines that are a column. Whatever is wrong with a value, rows say what it is."""
    import pyarrow as pa

    if not len(batch):
        return b""
    try:
        lines = lines_of(batch)
        if lines is None:
            return None
        found = bytes_of_texts(lines)
        if not found.isascii():
            found.decode()  # a column of texts that are none
        return found
    except (ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException):
        return None


def _fields_in_order(batch: ColumnBatch, names: Sequence[str]) -> list[pa.Array] | None:
    """Return the columns of a record type's fields, by name where records have names; None if they are others."""
    columns: list[pa.Array] = batch.columns.columns
    if batch.scalar:
        return None
    if not batch.named:
        return columns if len(columns) == len(names) else None
    places = [batch.columns.schema.get_field_index(name) for name in names]  # -1 for one that is there twice, too
    return None if -1 in places else [columns[place] for place in places]


def _line(texts: Sequence[pa.Array], begin: pa.Array | str, between: str, end: str) -> pa.Array:
    parts: list[pa.Array | str] = [] if isinstance(begin, str) and not begin else [begin]
    for text in texts:
        parts += [text, between]
    parts[-1] = end
    return joined(parts)


# --- CSV --------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class CsvColumnLines:
    """As Python's csv writer with minimal quoting."""

    names: tuple[str, ...]
    separator: str
    line_separator: str
    #: None = what needs quotes goes by rows
    quote: str | None
    #: characters for which a field is quoted
    specials: str
    #: how the writer writes a null
    null: str
    #: of each column: the text of a value that Arrow does not write, before it is quoted
    of_values: tuple[Callable[[Any], str], ...]

    @staticmethod
    def is_for(specials: str) -> bool:
        """Return whether no number or truth value is ever quoted."""
        return specials.isascii() and not any(mark.isalnum() or mark in "+-." for mark in specials)

    def lines_of(self, batch: ColumnBatch) -> bytes | None:
        return _of_plain(self._lines_of, batch)

    def _lines_of(self, batch: ColumnBatch) -> pa.Array | None:
        columns = _fields_in_order(batch, self.names)
        if columns is None:
            return None
        texts = [self._field(column, of_value) for column, of_value in zip(columns, self.of_values, strict=True)]
        return _line(texts, "", self.separator, self.line_separator)

    def _field(self, column: pa.Array, of_value: Callable[[Any], str]) -> pa.Array:
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = texts_or_nulls(column, TextStyle("", "true", "false", of_value, plain_texts))
        kind = column.type
        is_never_quoted = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        # A null looks as the writer writes it, which is quoted already.
        return pc.fill_null(texts if is_never_quoted else self._quoted(texts), self.null)

    def _quoted(self, texts: pa.Array) -> pa.Array:
        """Return texts of fields. Raises ValueError for what cannot be one without a quote."""
        import pyarrow.compute as pc

        found = bytes_of_texts(texts)
        wanting = None
        for mark in self.specials:
            if mark.encode() in found:
                has_mark = pc.match_substring(texts, mark)
                wanting = has_mark if wanting is None else pc.or_(wanting, has_mark)
        if len(self.names) == 1:  # an empty line is no record
            is_empty = pc.equal(texts, "")
            wanting = is_empty if wanting is None else pc.or_(wanting, is_empty)
        if wanting is None or not pc.any(wanting).as_py():
            return texts
        if self.quote is None:
            raise ValueError("a field needs a quote")
        inner = pc.replace_substring(texts, self.quote, self.quote * 2) if self.quote.encode() in found else texts
        return pc.if_else(wanting, joined([self.quote, inner, self.quote]), texts)


@final
@dataclass(frozen=True)
class TypedCsvColumnLines:
    """As ``formats/rows.csv_line_formatter``."""

    field_delimiter: str
    row_delimiter: str
    quotes_strings: bool

    def lines_of(self, batch: ColumnBatch) -> bytes | None:
        return _of_plain(self._lines_of, batch)

    def _lines_of(self, batch: ColumnBatch) -> pa.Array | None:
        if batch.scalar:
            return None
        style = replace(_TYPED, null="", of_texts=texts_in_quotes if self.quotes_strings else plain_texts)
        texts = [texts_of(column, style) for column in batch.columns.columns]
        return _line(texts, "", self.field_delimiter, self.row_delimiter) if texts else None


# --- JSON -------------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class JsonColumnLines:
    """``names``: of the object's fields; None = records are what they are. ``encode``: any value as JSON."""

    names: tuple[str, ...] | None
    encode: Callable[[Any], str]

    def lines_of(self, batch: ColumnBatch) -> bytes | None:
        return _of_plain(self._lines_of, batch)

    def _lines_of(self, batch: ColumnBatch) -> pa.Array | None:
        names = self.names
        if names is None and batch.named:
            names = tuple(batch.columns.schema.names)
        columns = batch.columns.columns if names is None else _fields_in_order(batch, names)
        if not columns or (names is not None and len(set(names)) < len(names)):
            return None
        style = TextStyle("null", "true", "false", self.encode, texts_in_json, time_quote='"')
        texts = [texts_of(column, style) for column in columns]
        if names is None:
            return joined([texts[0], "\n"]) if batch.scalar else _line(texts, "[", ",", "]\n")
        parts: list[pa.Array | str] = []
        begin = "{"
        for name, text in zip(names, texts, strict=True):
            parts += [f"{begin}{self.encode(name)}:", text]
            begin = ","
        return joined([*parts, "}\n"])


# --- printed records --------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class PrintedColumnLines:
    """As ``core/printing.record_formatter``, a line each."""

    type_info: TypeInformation | None

    def lines_of(self, batch: ColumnBatch) -> bytes | None:
        return _encoded(self._lines_of, batch)

    def _lines_of(self, batch: ColumnBatch) -> pa.Array | None:
        columns = batch.columns.columns
        if not columns:
            return None
        own = self.type_info
        is_untyped = own is None or isinstance(own, PickledBytesTypeInfo)
        if batch.scalar:
            return joined([texts_of(columns[0], _UNTYPED if is_untyped else self._style(own)), "\n"])
        is_row = batch.named or batch.kinds is not None
        if is_untyped and not is_row:
            texts = [texts_of(column, _REPR) for column in columns]
            return _line(texts, "(", ", ", ",)\n" if len(columns) == 1 else ")\n")
        types: list[TypeInformation] = own.get_field_types() if isinstance(own, TupleTypeInfo) else []
        is_of_type = len(types) == len(columns)
        styles = list(map(self._style, types)) if is_of_type else [_TYPED] * len(columns)
        texts = [texts_of(column, style) for column, style in zip(columns, styles, strict=True)]
        if is_row or (is_of_type and type(own) is not TupleTypeInfo):
            return _line(texts, "+I[" if batch.kinds is None else _kinds_of(batch.kinds), ", ", "]\n")
        return _line(texts, "(", ",", ")\n")

    @staticmethod
    def _style(own: TypeInformation | None) -> TextStyle:
        """Return how a value of a type looks: one within others knows nothing of pickles."""
        return replace(_TYPED, of_value=record_formatter(own)) if isinstance(own, TupleTypeInfo) else _TYPED


def _kinds_of(kinds: Array) -> pa.Array:
    """Return what a Row of each kind begins with."""
    import pyarrow as pa

    return pa.array([f"{kind}[" for kind in ROW_KINDS], pa.string()).take(arrow_of(kinds))
