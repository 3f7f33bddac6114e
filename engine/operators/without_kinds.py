"""What keeps retractions out of operators that cannot take anything back: what is taken back would be one record more.

At build time where the plan is sure that a changelog comes (``datastream/retractions``), else when the first such
record does.
"""

from __future__ import annotations

from typing import Final

from engine.core.errors import ProgramError
from engine.core.records import ROW_KINDS, Batch, ColumnBatch, Row, RowKind, kind_of

__all__ = ["NOT_KEPT", "NOT_TAKEN_BACK", "check_has_no_kinds", "check_is_plain"]

#: Why top-N and first rows refuse them.
NOT_KEPT: Final = "Records that are no longer kept cannot take the place of one that is taken back."
#: Why aggregates do.
NOT_TAKEN_BACK: Final = (
    "It would be counted as one record more. Use aggregate() of a keyed stream, which takes records back, or reduce() "
    "or process(), whose functions see Rows with their kind."
)


def check_is_plain(row: Row, method: str, why: str) -> None:
    """Raises: ProgramError for a record that is not an insertion. ``why``: it cannot be taken."""
    kind = row.get_row_kind()
    if kind is not RowKind.INSERT:
        raise ProgramError(
            f"{method} got a record of kind {kind}: its input must be plain records, not a changelog. {why}"
        )


def check_has_no_kinds(batch: Batch, method: str, results: str) -> None:
    """Raises: ProgramError for a batch with a record that is not an insertion. ``results``: what has no kind."""
    if isinstance(batch, ColumnBatch):
        found = {ROW_KINDS[kind] for kind in ([] if batch.kinds is None else batch.kinds.tolist())}
    else:
        found = set(map(kind_of, batch.rows)) if Row in set(map(type, batch.rows)) else set()
    others = sorted(map(str, found - {RowKind.INSERT}))
    if others:
        raise ProgramError(
            f"{method} got records of kind {' and '.join(others)}: its results are {results}, which have no kind, so "
            "what is taken back would be inserted. Use map() or filter() before, which see Rows with their kind."
        )
