"""Records that are columns and that a function of the user's sees as rows for once: they stay columns, unless it
changes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.core.records import ColumnBatch, RowBatch

__all__ = ["shown"]


def shown(batch: ColumnBatch) -> tuple[RowBatch, Callable[[], bool]]:
    """Return the records as rows, and what says afterwards whether the columns are still the same records. Nobody can
    tell of what lies in lists, maps and structs: of these the answer is no."""
    import pyarrow as pa

    rows = batch.to_rows()
    if any(map(pa.types.is_nested, batch.columns.schema.types)):
        return rows, lambda: False
    if not batch.named and batch.kinds is None:
        return rows, lambda: True  # tuples
    before = _contents(rows)
    return rows, lambda: before == _contents(rows)


def _contents(batch: RowBatch) -> list[Any]:
    return [(row.get_row_kind(), tuple(row)) for row in batch.rows]
