"""CSV line → tuple of typed fields, as a flat_map function: a bad line is an error, or is left out when lenient.

Not here: reading the lines (``connectors/csv_source``), writing CSV (``connectors/file_sinks``).
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.errors import InputError
from engine.core.type_info import BasicType, BasicTypeInfo
from engine.operators.functions import FlatMapFunction

__all__ = ["CsvFormat", "ParseCsvLine", "field_kind"]

_KINDS: Final = ("str", "int", "float", "bool", "bytes")
_BASIC: Final[dict[BasicType, str]] = {
    BasicType.STRING: "str",
    BasicType.CHAR: "str",
    BasicType.BYTE: "int",
    BasicType.SHORT: "int",
    BasicType.INT: "int",
    BasicType.LONG: "int",
    BasicType.BIG_INT: "int",
    BasicType.FLOAT: "float",
    BasicType.DOUBLE: "float",
    BasicType.BOOLEAN: "bool",
}


def field_kind(wanted: Any) -> str:
    """Return the kind of a column: from a Python type, a ``Types.…()``, or a value of the type (``INT``, ``STRING``).

    Raises: TypeError for anything else.
    """
    if isinstance(wanted, BasicTypeInfo) and wanted.basic_type in _BASIC:
        return _BASIC[wanted.basic_type]
    name = wanted.__name__ if isinstance(wanted, type) else type(wanted).__name__
    if name in _KINDS:
        return name
    raise TypeError(f"read_csv: {wanted!r} is not a column type; expected str, int, float, bool, bytes or Types.…().")


def _boolean(text: str) -> bool:
    match text.strip().lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise ValueError


_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": _boolean,
    "bytes": lambda text: text.encode(),
}


@final
@dataclass(frozen=True)
class CsvFormat:
    field_delimiter: str = ","
    #: kinds of the included columns, in order; empty = all columns as text
    kinds: tuple[str, ...] = ()
    #: True per column of the file that is included; empty = the first columns
    included: tuple[bool, ...] = ()
    quote: str | None = None
    comment_prefix: str | None = None
    lenient: bool = False


@final
class ParseCsvLine(FlatMapFunction):
    def __init__(self, csv_format: CsvFormat) -> None:
        self._format = csv_format
        included = csv_format.included or (True,) * len(csv_format.kinds)
        self._positions = [i for i, wanted in enumerate(included) if wanted]

    def flat_map(self, value: str) -> list[tuple[Any, ...]]:
        if not value or (self._format.comment_prefix and value.startswith(self._format.comment_prefix)):
            return []
        try:
            return [self._parse(value)]
        except InputError:
            if self._format.lenient:
                return []
            raise

    def _parse(self, line: str) -> tuple[Any, ...]:
        fields = self._split(line)
        kinds = self._format.kinds
        if not kinds and not self._positions:
            return tuple(fields)
        values = []
        for number, position in enumerate(self._positions):
            kind = kinds[number] if kinds else "str"
            if position >= len(fields):
                raise InputError(f"read_csv: the line has {len(fields)} fields, field {position} is wanted as {kind}.")
            try:
                values.append(_PARSERS[kind](fields[position]))
            except ValueError:
                raise InputError(f"read_csv: field {position} is {fields[position]!r}, expected {kind}.") from None
        return tuple(values)

    def _split(self, line: str) -> list[str]:
        own = self._format
        if own.quote is None:
            return line.split(own.field_delimiter)
        if len(own.field_delimiter) == 1:
            return next(csv.reader([line], delimiter=own.field_delimiter, quotechar=own.quote), [])
        raise InputError(
            f"read_csv: quoted fields need a field delimiter of one character, not {own.field_delimiter!r}."
        )
