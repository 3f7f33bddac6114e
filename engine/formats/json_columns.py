"""JSON lines → columns of a row type: by Arrow where it surely gives what the type means, else value by value.

The two ways give the same columns; only the slow one knows which line is malformed, and can leave it out. Values are
those of Flink's JSON format: a field that is missing is null, one too many is left out, numbers may stand in quotes,
and a text column takes any value as its JSON. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.type_info import (
    BasicType,
    BasicTypeInfo,
    MapTypeInfo,
    RowTypeInfo,
    SqlTimeTypeInfo,
    TupleTypeInfo,
    TypeInformation,
)
from engine.formats.column_values import ColumnParser, MalformedRecord
from engine.formats.text import lines_of_range
from engine.formats.typed_texts import time_of_text

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["JsonColumns"]

_WHOLE_NUMBER: Final = re.compile(r"\s*([+-]?[0-9]+)(\.0*)?\s*")
_NUMBER: Final = re.compile(r"\s*[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|nan|inf(inity)?)\s*", re.IGNORECASE)
_INTEGER_BITS: Final = {BasicType.BYTE: 8, BasicType.SHORT: 16, BasicType.INT: 32, BasicType.LONG: 64}


@final
@dataclass(frozen=True)
class JsonColumns:
    """A ColumnFormat. ``row_type``: of basic types, dates and times, arrays, maps and rows of such."""

    row_type: RowTypeInfo
    ignores_errors: bool = False
    num_header_records = 0
    is_by_line = True

    def records_of_stream(self, chunks: Iterable[bytes], start: int) -> Iterator[tuple[int, bytes, bool]]:
        return ((start + offset, data, True) for offset, data in lines_of_range(chunks, 0, 1 << 62))

    def without_header(self, data: bytes, num_seen: int) -> tuple[bytes, int]:
        return data, num_seen

    def create_parser(self) -> ColumnParser:
        return _Parser(self)


@final
class _Parser:
    def __init__(self, own: JsonColumns) -> None:
        import pyarrow as pa

        self._own = own
        fields = own.row_type.arrow_fields()
        assert fields is not None, "the format was made of a row type that has columns"
        self._schema = pa.schema(fields)
        #: Arrow reads texts, from which times are made as in the slow way.
        self._read = pa.schema(
            [pa.field(field.name, pa.string() if _is_time(field.type) else field.type) for field in fields]
        )
        self._is_for_arrow = all(map(_is_for_arrow, self._read.types))

    def parse(self, data: bytes, is_whole: bool) -> pa.RecordBatch:
        return (self._by_arrow(data) if self._is_for_arrow else None) or self._by_value(data)

    def _by_arrow(self, data: bytes) -> pa.RecordBatch | None:
        """Return the columns, or None when it is not sure that they are what ``_by_value`` returns."""
        import pyarrow as pa
        import pyarrow.json as pa_json

        # Arrow looks for values, not for lines: every line must begin with an object, and be no more than that. (A
        # null is a row of nulls to it, and as the first one crashes it: 26.0.)
        num_lines = data.count(b"\n") + (not data.endswith(b"\n"))
        if not data.startswith(b"{") or data.count(b"\n{") + 1 != num_lines or not _is_utf8(data):
            return None
        options = pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1)
        parse_options = pa_json.ParseOptions(explicit_schema=self._read, unexpected_field_behavior="ignore")
        try:
            table = pa_json.read_json(pa.BufferReader(data), options, parse_options)
            if table.num_rows != num_lines:
                return None
            arrays = []
            for column, field in zip(table.columns, self._schema, strict=True):
                array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
                arrays.append(array.cast(field.type) if array.type != field.type else array)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # it makes no times of day of texts: 26.0
            return None
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _by_value(self, data: bytes) -> pa.RecordBatch:
        """Return the columns; some 3 MB/s. Raises: MalformedRecord."""
        import pyarrow as pa

        row_type = self._own.row_type
        names = row_type.get_field_names()
        converters = [_converter(kind) for kind in row_type.get_field_types()]
        values: list[list[Any]] = [[] for _ in names]
        offset = 0
        for line in data.split(b"\n"):
            start, offset = offset, offset + len(line) + 1
            if not line.strip():
                continue
            try:
                row = _row(line, names, converters)
            except ValueError as error:  # of JSON and UTF-8, too
                if self._own.ignores_errors:
                    continue
                raise MalformedRecord(start, line, str(error)) from error
            for own, value in zip(values, row, strict=True):
                own.append(value)
        arrays = [pa.array(own, kind) for own, kind in zip(values, self._schema.types, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_time(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_temporal(kind))


def _is_for_arrow(kind: pa.DataType) -> bool:
    """Return whether Arrow reads this type from what Flink reads it from: not maps, nor times within others."""
    import pyarrow as pa

    if pa.types.is_map(kind) or _is_time(kind):
        return False
    return all(_is_for_arrow(kind.field(index).type) for index in range(kind.num_fields))


# --- one line ---------------------------------------------------------------------------------------------------------


@final
class _Number(str):
    """A number as it was written."""

    __slots__ = ()


def _row(line: bytes, names: list[str], converters: list[Callable[[Any], Any]]) -> list[Any]:
    text = line.decode()
    record = json.loads(text, parse_float=_Number, parse_int=_Number, parse_constant=_Number)
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    return _fields(record, names, converters)


def _fields(record: dict[str, Any], names: list[str], converters: list[Callable[[Any], Any]]) -> list[Any]:
    row = []
    for name, convert in zip(names, converters, strict=True):
        value = record.get(name)
        try:
            row.append(None if value is None else convert(value))
        except ValueError as error:
            raise ValueError(f"field {name!r}: {error}") from error
    return row


def _converter(kind: TypeInformation) -> Callable[[Any], Any]:
    """Return what makes a value of a JSON value that is not null. It raises ValueError with the reason."""
    if isinstance(kind, BasicTypeInfo):
        return _basic(kind.basic_type)
    if isinstance(kind, SqlTimeTypeInfo):
        return _time(kind)
    if isinstance(kind, MapTypeInfo):
        key, value = _converter(kind.key_type_info), _converter(kind.value_type_info)
        return lambda found: [
            (key(k), None if v is None else value(v)) for k, v in _checked(found, dict, "object").items()
        ]
    if isinstance(kind, TupleTypeInfo):
        names, converters = kind.get_field_names(), [_converter(own) for own in kind.get_field_types()]
        return lambda found: dict(zip(names, _fields(_checked(found, dict, "object"), names, converters), strict=True))
    element = _converter(kind.element_type)  # type: ignore[attr-defined]
    return lambda found: [None if item is None else element(item) for item in _checked(found, list, "array")]


def _checked(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{_json_of(value):.80} is no {name}")
    return value


def _basic(kind: BasicType) -> Callable[[Any], Any]:
    if kind in _INTEGER_BITS:
        limit = 1 << (_INTEGER_BITS[kind] - 1)

        def whole_number(value: Any) -> int:
            found = _WHOLE_NUMBER.fullmatch(value) if isinstance(value, str) and len(value) < 40 else None
            number = float(value) if found is None and isinstance(value, _Number) else None
            if number is not None and number.is_integer() and abs(number) < 1 << 53:  # 1e3
                return _in_range(int(number), limit)
            if found is None:
                raise ValueError(f"{_json_of(value):.80} is no whole number")
            return _in_range(int(found[1]), limit)

        return whole_number
    if kind in (BasicType.FLOAT, BasicType.DOUBLE):
        single = kind is BasicType.FLOAT

        def number(value: Any) -> float:
            if not isinstance(value, str) or not _NUMBER.fullmatch(value):
                raise ValueError(f"{_json_of(value):.80} is no number")
            return _single(value) if single else float(value)

        return number
    if kind is BasicType.BOOLEAN:

        def boolean(value: Any) -> bool:
            if isinstance(value, str):
                value = {"true": True, "false": False}.get(value.strip().lower(), value)
            return bool(_checked(value, bool, "boolean"))

        return boolean

    def text(value: Any) -> str:
        found = str(value) if isinstance(value, str) else _json_of(value)
        found.encode()  # half a surrogate pair is no text
        return found

    return text


def _in_range(number: int, limit: int) -> int:
    if not -limit <= number < limit:
        raise ValueError(f"{number} is not from {-limit} to {limit - 1}")
    return number


def _single(text: str) -> float:
    """Round as Arrow's reader does, not twice."""
    import pyarrow as pa

    return float(pa.scalar(text.strip().removeprefix("+")).cast(pa.float32()).as_py())


def _time(kind: SqlTimeTypeInfo) -> Callable[[Any], Any]:
    convert = time_of_text(kind)

    def time(value: Any) -> Any:
        if not isinstance(value, str) or isinstance(value, _Number):
            raise ValueError(f"{_json_of(value):.80} is no time")
        return convert(str(value))

    return time


def _json_of(value: Any) -> str:
    match value:
        case _Number():
            return str(value)
        case dict():
            return "{" + ",".join(f"{json.dumps(key)}:{_json_of(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ",".join(map(_json_of, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
