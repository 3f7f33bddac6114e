"""Why an operator on columns went on on rows at run time, in a few words for people: shown where its tier is.

Not here: why a plan has it on rows from the beginning (``datastream/column_types``). Pure.
"""

from __future__ import annotations

from typing import Final

from engine.core.records import Batch, ColumnBatch

__all__ = ["BEYOND_64_BITS", "NEEDS_A_VALUE", "ROUNDED_DECIMALS", "why_handed_over"]

BEYOND_64_BITS: Final = "an integer sum beyond 64 bits"
ROUNDED_DECIMALS: Final = "a sum of decimals that Python rounds, or may round"
NEEDS_A_VALUE: Final = "a null where a value is needed"
_SHOWN_MAX: Final = 80


def why_handed_over(batch: Batch, *, is_full: bool = False, needs_times: bool = False) -> str:
    """Return why this batch is not for columns. ``is_full``: the state has outgrown its memory, whatever the batch is;
    ``needs_times``: records have to have timestamps, not at the ends of time."""
    if is_full:
        return "its share of memory was full"
    if not isinstance(batch, ColumnBatch):
        return "rows came"
    if batch.scalar:
        return "single values came, not records"
    if needs_times and batch.timestamps_ms is None:
        return "records without timestamps came"
    schema = batch.columns.schema
    fields = ", ".join(f"{name} {kind}" for name, kind in zip(schema.names, schema.types, strict=True))
    shown = fields if len(fields) <= _SHOWN_MAX else fields[: _SHOWN_MAX - 1] + "…"
    of = "types, nulls or times" if needs_times else "types"
    return f"records whose {of} it does not take up, or not beside those before ({shown})"
