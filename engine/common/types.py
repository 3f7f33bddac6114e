"""Row and RowKind, where a PyFlink program looks for it."""

from engine.core.records import Row, RowKind

__all__ = ["Row", "RowKind"]
