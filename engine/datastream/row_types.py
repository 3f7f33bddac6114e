"""Streams of type ROW carry Rows, also when a program supplies tuples: PyFlink converts them at the next operator.

``Types.ROW_NAMED(["id", "info"], …)`` over ``(1, "x")`` gives records with ``.id`` and ``.info``. Only ROW types pay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, final

from engine.connectors.column_generator import ColumnGeneratorSource
from engine.connectors.parquet_source import ParquetSource
from engine.core.type_info import RowTypeInfo, TypeInformation
from engine.operators.functions import RuntimeContext, callable_of
from engine.operators.row_output import RowMap, RowOutput, row_maker

__all__ = ["rows_of_type", "source_of_type", "with_row_output"]


def rows_of_type(rows: Iterable[Any], type_info: TypeInformation | None) -> list[Any]:
    """Return the records as a stream of that type carries them."""
    if not isinstance(type_info, RowTypeInfo):
        return list(rows)
    return list(map(row_maker(type_info), rows))


def source_of_type(source: Any, type_info: TypeInformation | None) -> Any:
    """Return a source of columns that gives Rows where a ROW type is declared of its stream; others as they are."""
    match source:
        case ParquetSource(row_type=None) if isinstance(type_info, RowTypeInfo):
            return dataclasses.replace(source, row_type=type_info)
        case ColumnGeneratorSource(type_info=None) if isinstance(type_info, RowTypeInfo):
            return dataclasses.replace(source, type_info=type_info)
    return source


def with_row_output(function: Any, method: str, output_type: TypeInformation | None) -> Any:
    """Return ``function``, or one whose results are Rows when the output type is ROW."""
    if not isinstance(output_type, RowTypeInfo):
        return function
    return {"map": RowMap, "flat_map": _RowFlatMap}[method](function, output_type)


@final
class _RowFlatMap(RowOutput):
    def open(self, runtime_context: RuntimeContext) -> None:
        super().open(runtime_context)
        self._call = callable_of(self.function, "flat_map")

    def flat_map(self, value: Any) -> Iterator[Any] | None:
        results = self._call(value)
        return None if results is None else map(self._make, results)
