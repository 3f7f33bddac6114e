"""Regular joins, top-N and deduplication: what has no name in PyFlink's DataStream, and what Tables are made of.

Their results are changelogs where a result may be taken back: Rows with a RowKind (+I, -U, +U, -D).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.core.errors import ProgramError
from engine.core.type_info import RowTypeInfo, TupleTypeInfo, TypeInformation, Types
from engine.datastream.key_selectors import as_key_selector
from engine.graph.transformation import Edge, Partitioning, ShipStrategy, Transformation
from engine.operators.keys import ComposedKey
from engine.operators.regular_join import JOIN_KINDS, Beside, RegularJoinSpec
from engine.time.watermarks import span_ms

if TYPE_CHECKING:
    from engine.datastream.data_stream import DataStream

__all__ = ["regular_join"]


def regular_join(
    streams: tuple[DataStream, DataStream],
    keys: tuple[Any, Any],
    how: str,
    *,
    output: Any,
    condition: Any,
    state_ttl: Any,
    output_type: TypeInformation | None,
) -> DataStream:
    from engine.datastream.data_stream import DataStream

    left, right = streams
    if not isinstance(right, DataStream):
        raise ProgramError(f"regular_join({right!r:.80}): expected the other DataStream.")
    if how not in JOIN_KINDS:
        raise ProgramError(f"regular_join(how={how!r:.80}): expected one of {', '.join(JOIN_KINDS)}.")
    for name, function in (("output", output), ("condition", condition)):
        if function is not None and not callable(function):
            raise ProgramError(f"regular_join({name}={function!r:.80}): expected a function (left, right) → …")
    selectors = _key_of(left, keys[0], "left_key"), _key_of(right, keys[1], "right_key")
    made_type = output_type
    if output is None:
        output, made_type = _beside(left, right, any(JOIN_KINDS[how]))
    spec = RegularJoinSpec(
        selectors, how, output, condition, _ttl_ms("regular_join", state_ttl), None if output_type is None else made_type
    )
    edges = [
        Edge(member.node, Partitioning(ShipStrategy.HASH, key), index, member.side_tag)
        for index, (stream, key) in enumerate(zip(streams, selectors, strict=True))
        for member in stream._members
    ]
    node = Transformation(name="Regular Join", spec=spec, inputs=edges, output_type=made_type)
    return DataStream(left.get_execution_environment(), node)


def _key_of(stream: DataStream, key: Any, name: str) -> Any:
    if isinstance(key, tuple | list) and key:
        parts = [as_key_selector(part) for part in key]
        return ComposedKey(tuple(part.field for part in parts))
    if key is not None:
        return as_key_selector(key)
    selector = getattr(stream, "_key_selector", None)
    if selector is None:
        raise ProgramError(f"regular_join: give {name}=…, or key the stream by key_by(…) before.")
    return selector


def _ttl_ms(method: str, span: Any) -> int | None:
    if span is None:
        return None
    ttl_ms = span_ms(span, f"{method}(state_ttl=…)")
    if ttl_ms <= 0:
        raise ProgramError(f"{method}(state_ttl=…): expected more than 0 ms, got {ttl_ms}.")
    return ttl_ms


def _beside(left: DataStream, right: DataStream, is_changelog: bool) -> tuple[Beside, TypeInformation]:
    """Return what puts the fields of both records side by side, and the type of that."""
    types = left._output_type, right._output_type
    first, second = types
    if not isinstance(first, TupleTypeInfo) or not isinstance(second, TupleTypeInfo):
        raise ProgramError(
            "regular_join: the types of the streams' fields are not known, so give what a pair becomes by output="
            "lambda left, right: …; in an outer join one of the two may be None."
        )
    fields = [*first.get_field_types(), *second.get_field_types()]
    sizes = len(first.get_field_types()), len(second.get_field_types())
    if not any(isinstance(own, RowTypeInfo) for own in types):
        names = tuple(f"f{index}" for index in range(len(fields)))
        made: TypeInformation = Types.ROW(fields) if is_changelog else Types.TUPLE(fields)
        return Beside(sizes, names if is_changelog else None), made
    names = _distinct([*first.get_field_names(), *second.get_field_names()])
    return Beside(sizes, names), Types.ROW_NAMED(list(names), fields)


def _distinct(names: list[str]) -> tuple[str, ...]:
    """Return the names with a 0 (or several) behind those that were there before, as in Flink's SQL."""
    seen: dict[str, None] = {}
    for name in names:
        while name in seen:
            name += "0"
        seen[name] = None
    return tuple(seen)
