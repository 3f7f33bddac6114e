"""Programs that give a changelog to an operator that can take nothing back are refused before they run.

Only where the plan is sure: what stands between the two hands records on as they are. Behind a filter, which may have
left insertions only, and any other function, the operator itself refuses the first retraction (``without_kinds``).
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.errors import ProgramError
from engine.graph.transformation import Transformation
from engine.operators.aggregate import FieldAggregate, KeyedAggregateSpec
from engine.operators.base import OperatorSpec
from engine.operators.deduplicate import FIRST, DeduplicateSpec
from engine.operators.field_aggregates import RowAggregates
from engine.operators.regular_join import JOIN_KINDS, RegularJoinSpec
from engine.operators.timestamps import TimestampsSpec
from engine.operators.top_n import TopNSpec
from engine.operators.window import WindowSpec
from engine.operators.window_contents import AggregateFold, ReduceFold
from engine.operators.without_kinds import NOT_KEPT, NOT_TAKEN_BACK

__all__ = ["refuse_changelogs"]


def refuse_changelogs(nodes: Sequence[Transformation]) -> None:
    """Raises: ProgramError. ``nodes``: inputs before users, of a program of which it is known whether it is batch."""
    #: node → what makes it a changelog
    makers: dict[int, Transformation] = {}
    for node in nodes:
        given = [makers[edge.source.id] for edge in node.inputs if edge.source.id in makers and edge.side_tag is None]
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


def _gives_changelog(spec: OperatorSpec) -> bool:
    match spec:
        case TopNSpec():
            return not spec.emit_final
        case DeduplicateSpec():
            return spec.keeps != FIRST and not spec.emit_final
        case RegularJoinSpec():
            return any(JOIN_KINDS[spec.how])
    return False


def _refused_by(spec: OperatorSpec) -> tuple[str, str] | None:
    """Return the method that makes such an operator, and why it refuses a changelog; None = it does not."""
    match spec:
        case TopNSpec():
            return "top_n()", NOT_KEPT
        case DeduplicateSpec() if spec.keeps == FIRST:
            return "first_row()", NOT_KEPT
        case KeyedAggregateSpec():
            return f"{spec.kind}()", NOT_TAKEN_BACK
        case WindowSpec(fold=ReduceFold(given=FieldAggregate() as aggregate)):
            return f"{aggregate.kind}()", NOT_TAKEN_BACK
        case WindowSpec(fold=AggregateFold(given=RowAggregates())):
            return "aggregate()", NOT_TAKEN_BACK
    return None
