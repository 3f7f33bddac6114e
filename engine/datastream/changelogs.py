"""Regular joins, top-N, deduplication, running aggregates: what has no name in PyFlink's DataStream, and what Tables
are made of.

Their results are changelogs where a result may be taken back: Rows with a RowKind (+I, -U, +U, -D).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.core.errors import ProgramError
from engine.core.type_info import BasicType, BasicTypeInfo, RowTypeInfo, TupleTypeInfo, TypeInformation, Types
from engine.datastream.field_checks import check_field
from engine.datastream.key_selectors import as_key_selector, check_key_type
from engine.graph.transformation import Edge, Partitioning, ShipStrategy, Transformation
from engine.operators.base import OperatorSpec
from engine.operators.deduplicate import FIRST, DeduplicateSpec
from engine.operators.field_aggregates import FieldAggregateOf
from engine.operators.group_aggregate import GROUP_KINDS, GroupAggregateSpec
from engine.operators.keys import ComposedKey, FieldKey, key_fields
from engine.operators.regular_join import JOIN_KINDS, Beside, RegularJoinSpec
from engine.operators.top_n import RANK, TopNSpec
from engine.time.watermarks import span_ms

if TYPE_CHECKING:
    from engine.datastream.data_stream import DataStream
    from engine.datastream.keyed_stream import KeyedStream

__all__ = ["aggregate", "deduplicate", "regular_join", "top_n"]

_INTEGERS = (BasicType.BYTE, BasicType.SHORT, BasicType.INT, BasicType.LONG, BasicType.BOOLEAN)
_FLOATS = (BasicType.FLOAT, BasicType.DOUBLE)


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
        selectors,
        how,
        output,
        condition,
        _ttl_ms("regular_join", state_ttl),
        None if output_type is None else made_type,
    )
    edges = [
        Edge(member.node, Partitioning(ShipStrategy.HASH, key), index, member.side_tag)
        for index, (stream, key) in enumerate(zip(streams, selectors, strict=True))
        for member in stream._members
    ]
    node = Transformation(name="Regular Join", spec=spec, inputs=edges, output_type=made_type)
    return DataStream(left.get_execution_environment(), node)


def top_n(
    stream: KeyedStream, n: int, by: Any, ascending: Any, *, with_rank: bool, state_ttl: Any, changelog: bool
) -> DataStream:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ProgramError(f"top_n({n!r:.80}): expected a whole number of at least 1.")
    fields = list(by) if isinstance(by, tuple | list) else [by]
    directions = list(ascending) if isinstance(ascending, tuple | list) else [ascending] * len(fields)
    if not fields or len(fields) != len(directions) or not all(isinstance(each, bool) for each in directions):
        raise ProgramError(
            "top_n(by=…, ascending=…): expected one or more fields, and one truth value, or one for each."
        )
    order = []
    for field, direction in zip(fields, directions, strict=True):
        check_field("top_n", field, stream._output_type)
        order.append((_place_of(field, stream._output_type), direction))
    selector = _by_place(stream._key_selector, stream._output_type)
    spec = TopNSpec(selector, n, tuple(order), with_rank, _names_of(stream), _ttl_ms("top_n", state_ttl))
    spec = replace(spec, retracts=bool(changelog))
    return _changelog(stream, "Top N", spec, with_rank)


def deduplicate(stream: KeyedStream, keeps: str, state_ttl: Any) -> DataStream:
    selector = _by_place(stream._key_selector, stream._output_type)
    spec = DeduplicateSpec(selector, keeps, _names_of(stream), _ttl_ms(f"{keeps}_row", state_ttl))
    if keeps == FIRST:
        return stream._keyed("First Row", spec)
    return _changelog(stream, "Last Row", spec, False)


def aggregate(stream: KeyedStream, aggregates: tuple[Any, ...], state_ttl: Any) -> DataStream:
    own = stream._output_type
    for each in aggregates:
        if not isinstance(each, FieldAggregateOf) or each.kind not in GROUP_KINDS:
            shown = each.kind if isinstance(each, FieldAggregateOf) else repr(each)
            raise ProgramError(
                f"aggregate({shown:.80}): expected one or more of count(), sum_(…), avg(…), min_(…) and max_(…) of "
                "engine.datastream.aggregates, which can take records back."
            )
        if each.field is not None:
            check_field(each.kind, each.field, own)
    if not aggregates:
        raise ProgramError("aggregate(): give one aggregate at least, e.g. aggregate(count()).")
    selector = _by_place(stream._key_selector, own)
    made_type = _aggregated_type(selector, aggregates, own)
    names = None if made_type is None else tuple(made_type.get_field_names())
    spec = GroupAggregateSpec(selector, aggregates, False, names, _ttl_ms("aggregate", state_ttl))
    made = stream._keyed("Group Aggregate", spec)
    made._node.output_type = made_type
    return made


def _aggregated_type(
    selector: Any, aggregates: tuple[FieldAggregateOf, ...], own: TypeInformation | None
) -> TupleTypeInfo | None:
    """Return the type of the key's fields and the aggregates; None where those of the records are not known."""
    if not isinstance(own, TupleTypeInfo) or not isinstance(selector, FieldKey | ComposedKey):
        return None
    names, types = list(own.get_field_names()), list(own.get_field_types())
    keys = [_index_of(field, names) for field in key_fields(selector)]
    made = [types[key] for key in keys]
    for each in aggregates:
        kind = Types.LONG() if each.field is None else types[_index_of(each.field, names)]
        basic = kind.basic_type if isinstance(kind, BasicTypeInfo) else None
        if each.kind == "count" or (each.kind == "sum" and basic in _INTEGERS):
            kind = Types.LONG()
        elif (each.kind == "avg" and basic in _INTEGERS) or (each.kind in ("sum", "avg") and basic in _FLOATS):
            kind = Types.DOUBLE()
        made.append(kind)
    named = Types.ROW_NAMED(
        list(_distinct([*(names[key] for key in keys), *(a.column_name for a in aggregates)])), made
    )
    assert isinstance(named, TupleTypeInfo)
    return named


def _index_of(field: int | str, names: list[str]) -> int:
    return names.index(field) if isinstance(field, str) else field


def _changelog(stream: KeyedStream, name: str, spec: OperatorSpec, with_rank: bool) -> DataStream:
    made = stream._keyed(name, spec)
    own = stream._output_type
    made._node.output_type = None
    if isinstance(own, TupleTypeInfo):
        types, names = list(own.get_field_types()), list(own.get_field_names())
        if with_rank:
            types, names = [*types, Types.LONG()], [*names, RANK]
        made._node.output_type = Types.ROW_NAMED(names, types)
    return made


def _names_of(stream: DataStream) -> tuple[str, ...] | None:
    """Return the names of the fields that a changelog of the stream's records has."""
    own = stream._output_type
    return tuple(own.get_field_names()) if isinstance(own, TupleTypeInfo) else None


def _place_of(field: int | str, own: TypeInformation | None) -> int | str:
    """Return a field by its place where the type says it: tuples that stand for Rows have no names."""
    return own.get_field_names().index(field) if isinstance(own, TupleTypeInfo) and isinstance(field, str) else field


def _key_of(stream: DataStream, key: Any, name: str) -> Any:
    own = stream._output_type
    if key is None:
        selector = getattr(stream, "_key_selector", None)
        if selector is None:
            raise ProgramError(f"regular_join: give {name}=…, or key the stream by key_by(…) before.")
        return _by_place(selector, own)
    if not isinstance(key, tuple | list):
        selector = as_key_selector(key)
        check_key_type(selector, None, own)
        return _by_place(selector, own)
    parts = [as_key_selector(part) for part in key]
    if not parts or not all(isinstance(part, FieldKey) for part in parts):
        raise ProgramError(f"regular_join({name}={key!r:.80}): expected fields, by index or name, or one key selector.")
    for part in parts:
        check_key_type(part, None, own)
    return ComposedKey(tuple(_place_of(part.field, own) for part in parts))


def _by_place(selector: Any, own: TypeInformation | None) -> Any:
    return FieldKey(_place_of(selector.field, own)) if isinstance(selector, FieldKey) else selector


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
