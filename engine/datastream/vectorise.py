"""Which operators of a program can work on columns: keyed aggregations and windows whose input surely is columns.

Called by ``lowering`` on its copy of the graph. An operator that is named here still takes rows, should some come; the
other way round, an operator on rows takes columns too, at the price of converting them.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.connectors.source import SourceSpec
from engine.connectors.stamped_source import StampedSourceSpec
from engine.graph.transformation import Transformation
from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.column_aggregate import COLUMN_KINDS, ColumnAggregateSpec
from engine.operators.column_window import column_window
from engine.operators.keys import ComposedKey, FieldKey
from engine.operators.stateless import MapBatchesSpec, ProjectSpec
from engine.operators.window import WindowSpec

__all__ = ["vectorise"]


def vectorise(nodes: Sequence[Transformation]) -> None:
    """Give nodes their columnar spec where there is one; ``nodes``: inputs before users."""
    has_columns: dict[int, bool] = {}
    for node in nodes:
        gets_columns = bool(node.inputs) and all(
            has_columns[edge.source.id] and edge.side_tag is None for edge in node.inputs
        )
        if gets_columns:
            _use_columns(node)
        has_columns[node.id] = _emits_columns(node, gets_columns)


def _emits_columns(node: Transformation, gets_columns: bool) -> bool:
    spec = node.spec
    if isinstance(spec, StampedSourceSpec):
        if not spec.emits_columns:
            return False
        spec = spec.source
    if isinstance(spec, SourceSpec):
        return bool(getattr(spec.source, "emits_columns", False))
    if isinstance(spec, MapBatchesSpec):
        return True
    return gets_columns and (isinstance(spec, ProjectSpec) or bool(getattr(spec, "emits_columns", False)))


def _use_columns(node: Transformation) -> None:
    spec = node.spec
    if isinstance(spec, KeyedAggregateSpec) and spec.kind in COLUMN_KINDS:
        selector = spec.key_selector
        if isinstance(selector, FieldKey | ComposedKey):
            node.spec = ColumnAggregateSpec(selector, spec.kind, spec.field, spec.emit_final)
    elif isinstance(spec, WindowSpec):
        columnar = column_window(spec)
        if columnar is not None:
            node.spec = columnar
