"""What becomes of operators whose input is a changelog: those that can take records back do, all others are refused.

A running sum, min or max becomes an aggregation that takes back (``group_aggregate``), a top-N one that keeps all
records; their results are changelogs again. What can take nothing back is refused before the program runs.

Only where the plan is sure: what stands between the two hands records on as they are. Behind a filter, which may have
left insertions only, and any other function, an operator is what it was, and refuses the first retraction itself
(``without_kinds``), unless the program says that records are taken back (``aggregate``, ``top_n(changelog=True)``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from engine.core.errors import ProgramError
from engine.core.type_info import TupleTypeInfo
from engine.graph.transformation import Transformation
from engine.operators.aggregate import FieldAggregate, KeyedAggregateSpec
from engine.operators.base import OperatorSpec
from engine.operators.deduplicate import FIRST, DeduplicateSpec
from engine.operators.field_aggregates import FieldAggregateOf, RowAggregates
from engine.operators.group_aggregate import GROUP_KINDS, GroupAggregateSpec
from engine.operators.regular_join import JOIN_KINDS, RegularJoinSpec
from engine.operators.timestamps import TimestampsSpec
from engine.operators.top_n import TopNSpec
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.without_kinds import NOT_KEPT, NOT_TAKEN_BACK

__all__ = ["plan_changelogs"]


def plan_changelogs(nodes: Sequence[Transformation]) -> None:
    """Raises: ProgramError. ``nodes``: inputs before users, of a program of which it is known whether it is batch."""
    #: node → what makes it a changelog
    makers: dict[int, Transformation] = {}
    for node in nodes:
        given = [makers[edge.source.id] for edge in node.inputs if edge.source.id in makers and edge.side_tag is None]
        if given:
            node.spec = _taking_back(node)
        refused = _refused_by(node.spec) if given else None
        if refused is not None:
            method, why = refused
            raise ProgramError(
                f"{method} behind {given[0].name!r}, which gives a changelog: its input must be plain records, and "
                f"some of these take others back. {why}"
            )
        if _gives_changelog(node.spec):
            makers[node.id] = node
        elif given and isinstance(node.spec, TimestampsSpec | RegularJoinSpec):
            makers[node.id] = given[0]


def _taking_back(node: Transformation) -> OperatorSpec:
    """Return what runs in place of an operator behind a changelog: what takes back, or the operator itself."""
    spec, own = node.spec, node.output_type
    match spec:
        case KeyedAggregateSpec() if spec.kind in GROUP_KINDS:
            names = tuple(own.get_field_names()) if isinstance(own, TupleTypeInfo) else None
            aggregates = (FieldAggregateOf(spec.kind, spec.field),)
            return GroupAggregateSpec(
                spec.key_selector, aggregates, True, names, spec.ttl_ms or None, emit_final=spec.emit_final
            )
        case TopNSpec():
            return dataclasses.replace(spec, retracts=True)
    return spec


def _gives_changelog(spec: OperatorSpec) -> bool:
    match spec:
        case TopNSpec() | GroupAggregateSpec():
            return not spec.emit_final
        case DeduplicateSpec():
            return spec.keeps != FIRST and not spec.emit_final
        case RegularJoinSpec():
            return any(JOIN_KINDS[spec.how])
    return False


def _refused_by(spec: OperatorSpec) -> tuple[str, str] | None:
    """Return the method that makes such an operator, and why it refuses a changelog; None = it does not."""
    match spec:
        case DeduplicateSpec() if spec.keeps == FIRST:
            return "first_row()", NOT_KEPT
        case KeyedAggregateSpec():
            return f"{spec.kind}()", NOT_TAKEN_BACK
        case WindowSpec(fold=ReduceFold(given=FieldAggregate() as aggregate)):
            return f"{aggregate.kind}()", NOT_TAKEN_BACK
        case WindowSpec(fold=AggregateFold(given=RowAggregates())):
            return "aggregate()", NOT_TAKEN_BACK
    return None
