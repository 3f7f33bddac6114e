"""CsvSchema and CsvBulkWriters, where a PyFlink program looks for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

from engine.connectors.bulk_writers import CsvFormat, CsvOptions
from engine.core.errors import ConfigError

__all__ = ["CsvBulkWriters", "CsvSchema", "CsvSchemaBuilder"]


@final
class CsvSchema:
    """Names of the columns, and how lines are written. Types are not needed for writing."""

    def __init__(self, names: tuple[str, ...], options: CsvOptions) -> None:
        self._names = names
        self._options = options

    @staticmethod
    def builder() -> CsvSchemaBuilder:
        return CsvSchemaBuilder()

    def size(self) -> int:
        return len(self._names)


@final
class CsvSchemaBuilder:
    """PyFlink's builder. What only matters to readers is accepted and has no effect."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._options = CsvOptions()

    def build(self) -> CsvSchema:
        if not self._names:
            raise ConfigError("CsvSchema has no columns; add them, e.g. CsvSchema.builder().add_string_column('id').")
        if len(set(self._names)) < len(self._names):
            raise ConfigError(f"CsvSchema has a column twice: {', '.join(self._names)}.")
        return CsvSchema(tuple(self._names), self._options)

    def _column(self, name: str) -> CsvSchemaBuilder:
        self._names.append(name)
        return self

    def add_string_column(self, name: str) -> CsvSchemaBuilder:
        return self._column(name)

    def add_number_column(self, name: str, number_type: Any = None) -> CsvSchemaBuilder:
        return self._column(name)

    def add_boolean_column(self, name: str) -> CsvSchemaBuilder:
        return self._column(name)

    def add_array_column(self, name: str, separator: str = ";", element_type: Any = None) -> CsvSchemaBuilder:
        self._options = replace(self._options, array_separator=separator)
        return self._column(name)

    def add_columns_from(self, schema: CsvSchema) -> CsvSchemaBuilder:
        self._names += schema._names
        return self

    def clear_columns(self) -> CsvSchemaBuilder:
        self._names = []
        return self

    def set_column_separator(self, char: str) -> CsvSchemaBuilder:
        return self._with(column_separator=_one(char, "set_column_separator"))

    def set_line_separator(self, separator: str) -> CsvSchemaBuilder:
        return self._with(line_separator=separator)

    def set_array_element_separator(self, separator: str) -> CsvSchemaBuilder:
        return self._with(array_separator=separator)

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
        return self._with(null_value=null_value)

    def set_use_header(self, use: bool = True) -> CsvSchemaBuilder:
        return self._with(use_header=use)

    def _with(self, **changes: Any) -> CsvSchemaBuilder:
        self._options = replace(self._options, **changes)
        return self

    # For readers only.

    def set_allow_comments(self, allow: bool = True) -> CsvSchemaBuilder:
        return self

    def set_any_property_name(self, name: str) -> CsvSchemaBuilder:
        return self

    def set_skip_first_data_row(self, skip: bool = True) -> CsvSchemaBuilder:
        return self

    def set_strict_headers(self, strict: bool = True) -> CsvSchemaBuilder:
        return self

    def size(self) -> int:
        return len(self._names)


def _one(char: str, method: str) -> str:
    if not isinstance(char, str) or len(char) != 1:
        raise ConfigError(f"{method}({char!r}): expected one character.")
    return char


@final
class CsvBulkWriters:
    @staticmethod
    def for_schema(schema: CsvSchema) -> CsvFormat:
        return CsvFormat(schema._names, schema._options)
