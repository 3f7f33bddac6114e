"""What keeps retractions out of operators whose results have no place for a kind: they would come out as insertions."""

from __future__ import annotations

from engine.core.errors import ProgramError
from engine.core.records import ROW_KINDS, Batch, ColumnBatch, Row, RowKind, kind_of

__all__ = ["check_has_no_kinds"]


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
