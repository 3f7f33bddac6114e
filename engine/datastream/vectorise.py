"""Which operators of a program can work on columns: keyed aggregations, windows, joins and file sinks whose input
surely is columns.

Called by ``lowering`` on its copy of the graph. An operator that is named here still takes rows, should some come; the
other way round, an operator on rows takes columns too, at the price of converting them.

Columns come from sources that have them, and from a ``WordTokenizer``, or a function like it, over a text file. A
sequence of numbers becomes columns too, where functions that compile (``operators/compile``) stand between it and an
operator that gains by it: then the records of an untyped program have types after all, those that its functions give.
Rows of a declared type become columns where an operator that works on columns comes next (``typed_rows``).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.connectors.file_sink import FileSinkSpec
from engine.connectors.file_sinks import CsvFileSinkSpec, TextFileSinkSpec
from engine.connectors.files import TextFileSource
from engine.connectors.simple import SequenceSource
from engine.connectors.source import SourceSpec
from engine.connectors.stamped_source import StampedSourceSpec
from engine.core.type_info import BasicType, BasicTypeInfo, RowTypeInfo, TupleTypeInfo, TypeInformation
from engine.datastream.column_types import why_no_fields, why_not_objects, why_rows
from engine.datastream.typed_rows import typed_nodes
from engine.graph.transformation import ShipStrategy, Transformation
from engine.operators.aggregate import KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.base import OperatorSpec
from engine.operators.column_aggregate import COLUMN_KINDS, ColumnAggregateSpec, ColumnReduceSpec
from engine.operators.column_deduplicate import ColumnDeduplicateSpec, column_deduplicate
from engine.operators.column_group_aggregate import ColumnGroupAggregateSpec, column_group_aggregate
from engine.operators.column_interval_join import column_interval_join
from engine.operators.column_join import ColumnJoinSpec
from engine.operators.column_last_row import ColumnLastRowSpec
from engine.operators.column_regular_join import column_regular_join
from engine.operators.column_session import ColumnSessionSpec, column_session, sessions_on_rows
from engine.operators.column_top_n import ColumnTopNSpec, column_top_n
from engine.operators.column_window import ColumnWindowSpec, column_window, windows_on_rows
from engine.operators.column_window_join import column_window_join
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import Expression, Kind
from engine.operators.compile.flat import translate_flat
from engine.operators.compile.folds import hands_on, is_choice, translate_choice, translate_reduce
from engine.operators.compile.opened import as_opened, sets_in_open
from engine.operators.compile.tier import (
    COMPILED,
    IF_OPENED,
    IF_TYPES_ALLOW,
    ON_ROWS,
    annotated_shape,
    interpreted,
    tier_of,
)
from engine.operators.compile.translate import Fields, Shape, translate
from engine.operators.computed_keys import KeyFunction, key_function_of
from engine.operators.deduplicate import DeduplicateSpec
from engine.operators.group_aggregate import GroupAggregateSpec
from engine.operators.interval_join import IntervalJoinSpec
from engine.operators.keys import ComposedKey, FieldKey, key_fields
from engine.operators.map_batches import MapBatchesSpec
from engine.operators.record_choice import RecordChoice
from engine.operators.regular_join import RegularJoinSpec
from engine.operators.stateless import FilterSpec, FlatMapSpec, MapSpec, ProjectSpec
from engine.operators.text import TokenizeSpec, WordTokenizer, tokenizer_of
from engine.operators.timestamps import TimestampsSpec
from engine.operators.top_n import RANK, TopNSpec
from engine.operators.users_folds import place_of
from engine.operators.window import WindowSpec

__all__ = ["SEQUENCE_MIN", "vectorise"]

#: Numbers of a sequence that are worth it: loading numba and its kernels takes one to two seconds, rows some two
#: microseconds a record more than columns.
SEQUENCE_MIN = 500_000
#: They run functions on columns, as far as they compile.
_OF_FUNCTIONS = (MapSpec, FilterSpec, FlatMapSpec)
#: They may take back what a changelog takes back.
_OF_CHANGELOGS = (RegularJoinSpec, GroupAggregateSpec)
#: They take columns of objects.
_OF_OBJECTS = (
    ColumnAggregateSpec,
    ColumnDeduplicateSpec,
    ColumnJoinSpec,
    ColumnLastRowSpec,
    ColumnReduceSpec,
    ColumnSessionSpec,
    ColumnTopNSpec,
    ColumnWindowSpec,
)
#: They run on columns, as others.
_WITH_COLUMNS = (KeyedAggregateSpec, KeyedReduceSpec, TopNSpec, DeduplicateSpec, IntervalJoinSpec, RegularJoinSpec)
#: Their records are those of their input.
_KEEPING = (FilterSpec, TimestampsSpec, ColumnDeduplicateSpec)


@dataclass(frozen=True)
class _Columns:
    """What comes out of a node. ``shape``: of its records; None = not known before it runs. ``type_info``: what the
    program declares of them. ``has_kinds``: it is a changelog. ``from_rows``: they were made of rows of that type."""

    shape: Shape | None
    type_info: TypeInformation | None = None
    has_kinds: bool = False
    from_rows: bool = False


def vectorise(nodes: Sequence[Transformation]) -> None:
    """Give nodes their columnar spec where there is one; ``nodes``: inputs before users."""
    sequences = [node for node in nodes if isinstance(node.spec, SourceSpec) and _is_sequence(node.spec)]
    texts = _texts_of_tokenizers(nodes)
    taken = {node.id: _Columns(Shape((Kind.INT,), is_scalar=True)) for node in sequences}
    taken |= {node.id: _words(node.spec) for node, _ in texts}
    typed = _typed_for_columns(nodes, taken)
    plan = _planned(nodes, taken, typed)
    used = _origins(nodes, plan)
    for node, text in texts:
        if node.id in used:
            assert isinstance(node.spec, FlatMapSpec)
            assert isinstance(text.spec, SourceSpec)
            assert isinstance(text.spec.source, TextFileSource)
            text.spec = dataclasses.replace(text.spec, source=dataclasses.replace(text.spec.source, raw_chunks=True))
            tokenizer = tokenizer_of(node.spec.function)
            assert tokenizer is not None
            node.spec = TokenizeSpec(tokenizer)
    for node in sequences:
        if node.id in used:
            assert isinstance(node.spec, SourceSpec)
            assert isinstance(node.spec.source, SequenceSource)
            node.spec = dataclasses.replace(node.spec, source=dataclasses.replace(node.spec.source, columnar=True))
    if not {node.id for node in sequences} <= used:  # what those would have made possible is not so
        plan = _planned(nodes, {}, typed)
    used = _origins(nodes, plan)
    for node in nodes:
        node.columns_of = node.output_type if node.id in plan.converted else None
        node.row_types = _row_types(node, plan) if node.id in plan.specs or _hands_on(node, plan, used) else {}
        if isinstance(node.spec, TimestampsSpec | StampedSourceSpec) and node.id not in used:
            node.spec = dataclasses.replace(node.spec, keeps_columns=False)  # rows that were made for it may go on
        node.spec = plan.specs.get(node.id, node.spec)
        if isinstance(node.spec, ColumnAggregateSpec | ColumnReduceSpec) and node.row_types and node.id not in used:
            node.spec = dataclasses.replace(node.spec, rows_behind=not (node.spec.emit_final or node.spec.ttl_ms))
        node.why_rows = plan.why_rows.get(node.id, "")
        if isinstance(node.spec, _OF_FUNCTIONS):
            node.spec = dataclasses.replace(node.spec, tier=plan.tiers.get(node.id, ""))


def _is_sequence(spec: SourceSpec) -> bool:
    source = spec.source
    if not isinstance(source, SequenceSource) or source.columnar or source.end - source.start + 1 < SEQUENCE_MIN:
        return False
    return -(2**63) <= source.start <= source.end < 2**63


def _gives_columns(spec: SourceSpec | StampedSourceSpec) -> bool:
    if isinstance(spec, StampedSourceSpec):
        return isinstance(spec.source, SourceSpec) and _gives_columns(spec.source)
    return bool(getattr(spec.source, "emits_columns", False) or getattr(spec.source, "columnar", False))


@dataclass
class _Plan:
    #: node → what it runs instead
    specs: dict[int, OperatorSpec]
    #: node → columns that come out of it, None = rows
    gives: dict[int, _Columns | None]
    #: node → why it runs on rows, though it could run on columns
    why_rows: dict[int, str]
    #: map or filter → what will run its function
    tiers: dict[int, str]
    #: maps and filters of which columns may come, by types that are seen when the first ones come
    may_give: set[int]
    #: nodes whose rows become columns, by their declared type
    converted: set[int]


def _texts_of_tokenizers(nodes: Sequence[Transformation]) -> list[tuple[Transformation, Transformation]]:
    """Return the flat_maps that cut lines of a text file into words, each with the source, which nobody else reads."""
    num_users = Counter(edge.source.id for node in nodes for edge in node.inputs)
    found = []
    for node in nodes:
        if not isinstance(node.spec, FlatMapSpec):
            continue
        if len(node.inputs) != 1 or node.inputs[0].partitioning.strategy is not ShipStrategy.FORWARD:
            continue
        text = node.inputs[0].source
        if (
            isinstance(text.spec, SourceSpec)
            and isinstance(text.spec.source, TextFileSource)
            and num_users[text.id] == 1
            and tokenizer_of(node.spec.function) is not None
        ):
            found.append((node, text))
    return found


def _words(spec: OperatorSpec) -> _Columns:
    tokenizer = tokenizer_of(spec.function) if isinstance(spec, FlatMapSpec) else getattr(spec, "tokenizer", None)
    assert isinstance(tokenizer, WordTokenizer)
    return _Columns(Shape((Kind.STR, Kind.INT)) if tokenizer.pairs else Shape((Kind.STR,), is_scalar=True))


def _input_of(node: Transformation, plan: _Plan) -> _Columns | None:
    """Return the columns that come into a node; None = rows do, too."""
    given = [None if edge.side_tag is not None else plan.gives[edge.source.id] for edge in node.inputs]
    taken = [columns for columns in given if columns is not None]
    if not taken or len(taken) < len(given):
        return None
    shapes = {columns.shape for columns in taken}
    return _Columns(
        shapes.pop() if len(shapes) == 1 else None,
        taken[0].type_info if len(taken) == 1 else None,
        any(columns.has_kinds for columns in taken),
        len(taken) == 1 and taken[0].from_rows,
    )


def _why_on_rows(node: Transformation, plan: _Plan) -> str:
    """Return which of a node's inputs is rows."""
    of_rows = [
        edge.input_index for edge in node.inputs if edge.side_tag is not None or plan.gives[edge.source.id] is None
    ]
    if node.spec.num_inputs == 1 or len(set(of_rows)) > 1:
        return "its input is rows" if node.spec.num_inputs == 1 else "its inputs are rows"
    return f"its {('first', 'second')[of_rows[0]]} input is rows"


def _transformed(node: Transformation, plan: _Plan) -> _Columns | None:
    """Plan a node with inputs; return what comes out of it."""
    taken = _input_of(node, plan)
    record = None if taken is None or taken.shape is None else taken.shape.record
    spec: OperatorSpec | None = None
    key: KeyFunction | str | None = None
    if taken is not None:
        given = [plan.gives[edge.source.id] for edge in node.inputs]
        key = _key_function(node.spec, taken.shape)
        plan.why_rows[node.id] = why_rows(node.spec, _types_by_side(node, given)) or (key if type(key) is str else "")
        if not plan.why_rows[node.id]:
            plan.why_rows[node.id] = why_not_objects(node.spec, record)
        if not plan.why_rows[node.id]:
            assert not isinstance(key, str)
            planned = _joining(node, given) if node.spec.num_inputs > 1 else _columnar(node.spec, taken.shape, key)
            if isinstance(planned, str):
                plan.why_rows[node.id] = planned
            else:
                spec = planned
        if record is not None and spec is not None and not isinstance(spec, _OF_OBJECTS):
            spec, plan.why_rows[node.id] = None, f"its records are objects of {record.__name__}"
        if taken.has_kinds and spec is not None and not isinstance(node.spec, _OF_CHANGELOGS):
            spec = _with_kinds(node.spec, spec)
            if spec is None:
                plan.why_rows[node.id] = "its input is a changelog"
    if spec is not None:
        plan.specs[node.id] = spec
    elif taken is None and isinstance(node.spec, _WITH_COLUMNS) and _why_on_rows(node, plan):
        plan.why_rows[node.id] = _why_on_rows(node, plan)
    elif isinstance(node.spec, WindowSpec):
        shape, own_key = None if taken is None else taken.shape, key if isinstance(key, KeyFunction) else None
        why = "" if isinstance(key, str) else sessions_on_rows(node.spec, shape, from_rows=taken is None, key=own_key)
        why = why or plan.why_rows.get(node.id, "")
        if not why and taken is None:
            why = _why_on_rows(node, plan)
        if not why and taken is not None and node.spec.num_inputs == 1:
            why = windows_on_rows(node.spec, taken.shape, own_key)
        plan.why_rows[node.id] = why
    columns: _Columns | None = None
    if isinstance(node.spec, _OF_FUNCTIONS):
        columns, tier = _of_function(node.spec, taken)
        if taken is None and any(edge.source.id in plan.may_give for edge in node.inputs):
            tier = IF_TYPES_ALLOW
        if tier in (IF_TYPES_ALLOW, IF_OPENED):
            plan.may_give.add(node.id)
        plan.tiers[node.id] = tier
    elif taken is not None:
        columns = _emitted(node.spec if spec is None else spec, taken)
    if record is not None and not isinstance(node.spec, _OF_FUNCTIONS) and spec is None:
        columns = None  # they become objects for it
    if columns is not None and taken is not None and isinstance(spec or node.spec, _KEEPING):
        columns = dataclasses.replace(columns, type_info=taken.type_info, from_rows=taken.from_rows)
    return columns


def _planned(nodes: Sequence[Transformation], columnar: Mapping[int, _Columns], typed: Collection[int] = ()) -> _Plan:
    """``columnar``: nodes taken to give these columns, beside those that do. ``typed``: whose rows become columns."""
    plan = _Plan({}, {}, {}, {}, set(), set())
    for node in nodes:
        columns: _Columns | None = None
        if node.id in columnar:
            columns = columnar[node.id]
        elif isinstance(node.spec, TokenizeSpec):
            columns = _words(node.spec)
        elif isinstance(node.spec, SourceSpec | StampedSourceSpec):
            if _gives_columns(node.spec):
                columns = _Columns(_declared(node.output_type), node.output_type)
        elif isinstance(node.spec, MapBatchesSpec):
            columns = _Columns(_declared(node.output_type), node.output_type)
        else:
            columns = _transformed(node, plan)
        if columns is None and node.id in typed:
            columns = _Columns(_declared(node.output_type, converted=True), node.output_type, from_rows=True)
            plan.converted.add(node.id)
        plan.gives[node.id] = columns
    return plan


def _typed_for_columns(nodes: Sequence[Transformation], columnar: Mapping[int, _Columns]) -> set[int]:
    """Return the nodes whose rows had better become columns: all that read them gain by it, and at last one of them
    runs on columns, which without that would run on rows."""
    typed = typed_nodes(nodes, SEQUENCE_MIN)
    readers: dict[int, list[Transformation]] = {node.id: [] for node in nodes}
    for node in nodes:
        for edge in node.inputs:
            if edge.side_tag is None:
                readers[edge.source.id].append(node)
    while typed:
        plan = _planned(nodes, columnar, typed)
        wanted = _origins(nodes, plan)

        def takes_columns(node: Transformation, plan: _Plan = plan, wanted: set[int] = wanted) -> bool:
            return node.id in plan.specs or _hands_on(node, plan, wanted)

        in_vain = {one for one in plan.converted if one not in wanted or not all(map(takes_columns, readers[one]))}
        if not in_vain:
            return plan.converted
        typed -= in_vain
    return typed


def _row_types(node: Transformation, plan: _Plan) -> dict[int, TypeInformation]:
    """Return the type of what may come as rows, by input: of inputs whose columns are all made of rows of one type."""
    given: dict[int, list[TypeInformation | None]] = {}
    for edge in node.inputs:
        columns = None if edge.side_tag is not None else plan.gives[edge.source.id]
        is_from_rows = columns is not None and columns.from_rows
        given.setdefault(edge.input_index, []).append(columns.type_info if columns and is_from_rows else None)
    return {
        index: types[0]
        for index, types in given.items()
        if types[0] is not None and all(one == types[0] for one in types)
    }


def _types_by_side(node: Transformation, given: Sequence[_Columns | None]) -> list[TypeInformation | None]:
    """Return the declared type of each input's records, None where there is none, or several."""
    by_side: list[list[TypeInformation | None]] = [[] for _ in range(node.spec.num_inputs)]
    for edge, columns in zip(node.inputs, given, strict=True):
        by_side[edge.input_index].append(None if columns is None else columns.type_info)
    return [types[0] if types and all(one == types[0] for one in types) else None for types in by_side]


def _origins(nodes: Sequence[Transformation], plan: _Plan) -> set[int]:
    """Return the nodes whose columns reach an operator that is planned to run on columns."""
    wanted: set[int] = set()
    for node in reversed(nodes):
        if node.id in plan.specs or _hands_on(node, plan, wanted):
            wanted.update(edge.source.id for edge in node.inputs)
    return wanted


def _hands_on(node: Transformation, plan: _Plan, wanted: Collection[int]) -> bool:
    """Whether columns go in and come out, and are wanted there."""
    return node.id in wanted and plan.gives[node.id] is not None and node.id not in plan.converted


def _declared(type_info: TypeInformation | None, *, converted: bool = False) -> Shape | None:
    """Return the shape of records of a type, as far as columns of it are what the interpreter would compute with.
    ``converted``: they were rows, whose columns are of 64 bits whatever is declared."""
    if not isinstance(type_info, TupleTypeInfo):
        return None
    kinds = {BasicType.LONG: Kind.INT, BasicType.DOUBLE: Kind.FLOAT, BasicType.STRING: Kind.STR}
    if converted:
        kinds |= dict.fromkeys((BasicType.BYTE, BasicType.SHORT, BasicType.INT), Kind.INT)
        kinds |= {BasicType.FLOAT: Kind.FLOAT, BasicType.CHAR: Kind.STR}
    return Shape(
        tuple(
            kinds.get(field.basic_type, Kind.OPAQUE) if isinstance(field, BasicTypeInfo) else Kind.OPAQUE
            for field in type_info.get_field_types()
        ),
        names=tuple(type_info.get_field_names()) if isinstance(type_info, RowTypeInfo) else None,
    )


def _key_function(spec: OperatorSpec, shape: Shape | None) -> KeyFunction | str | None:
    """Return what a key selector that is a function is on columns, or why it keeps the operator on rows; None = it is
    none, or of no such operator."""
    match spec:
        case KeyedAggregateSpec(kind=kind) if kind not in COLUMN_KINDS:
            return None
        case KeyedAggregateSpec() | KeyedReduceSpec() | GroupAggregateSpec() | TopNSpec() | DeduplicateSpec():
            selector = spec.key_selector
        case WindowSpec(key_selectors=(selector,)) if selector is not None:
            pass
        case _:
            return None
    if isinstance(selector, FieldKey | ComposedKey):
        return None
    key = key_function_of(selector, shape)
    if isinstance(spec, GroupAggregateSpec) and not spec.in_place and not isinstance(key, str):
        # On columns its parts would be fields of their own.
        return "its key is a tuple that a function gives" if isinstance(key.selector, ComposedKey) else key
    return key


def _columnar(spec: OperatorSpec, shape: Shape | None, key: KeyFunction | None) -> OperatorSpec | str | None:
    """Return what to run in place of an operator whose input is columns, or why there is nothing; None = it has no form
    on columns, or others say why. ``key``: of a key that is a function."""
    match spec:
        case KeyedAggregateSpec(selector, kind) if kind in COLUMN_KINDS:
            own = selector if key is None else key.selector
            return ColumnAggregateSpec(own, kind, spec.field, spec.emit_final, key=key)
        case KeyedReduceSpec(selector):
            own = selector if key is None else key.selector
            why = _why_not_reduced(as_opened(spec.function), own, key, shape)
            return why or ColumnReduceSpec(own, spec.function, spec.emit_final, key=key)
        case GroupAggregateSpec():
            return column_group_aggregate(spec, key)
        case WindowSpec():
            return column_window(spec, shape, key=key) or column_session(spec, shape, key)
        case TopNSpec():
            return column_top_n(spec, key)
        case DeduplicateSpec():
            return column_deduplicate(spec, key)
        case FileSinkSpec() | TextFileSinkSpec() | CsvFileSinkSpec():
            return spec.on_columns()
    return None


def _why_not_reduced(function: Any, selector: Any, key: KeyFunction | None, shape: Shape | None) -> str:
    """Return why a reduce function is not folded on columns of such records, "" = it is."""
    if shape is None:
        return "the plan does not know the types of its records"
    num = len(shape.kinds)
    is_computed = key is not None and key.num_computed > 0
    places = [] if is_computed else [place_of(field, shape) for field in key_fields(selector)]
    if any(not 0 <= place < num or shape.kinds[place] not in (Kind.INT, Kind.STR) for place in places):
        return "its key is no integer and no text, or not of these only"
    try:
        translate_choice(function, shape)
    except NotCompilable as error:
        not_chosen = error
    else:
        return ""
    try:
        translation = translate_reduce(function, shape)
    except NotCompilable as error:
        return f"its function is not compiled ({not_chosen if is_choice(function) else error})"
    return "" if hands_on(translation, places) else "its function changes the key"


def _with_kinds(spec: OperatorSpec, columnar: OperatorSpec) -> OperatorSpec | None:
    """Return what to run in place of an operator whose input is columns with kinds, or None. ``columnar``: what would
    run if they had none."""
    if isinstance(columnar, ColumnLastRowSpec):
        return dataclasses.replace(columnar, retracts=True)
    if isinstance(columnar, ColumnTopNSpec) and columnar.rows.retracts:
        return columnar
    match spec:
        case TextFileSinkSpec():
            return spec.on_columns()
        case FileSinkSpec():
            return spec.on_columns(with_kinds=True)
    return None


def _joining(node: Transformation, given: Sequence[_Columns | None]) -> OperatorSpec | str | None:
    """Return what to run in place of a join whose inputs are columns, or why there is no such thing; None = it is no
    join."""
    by_side: tuple[set[Shape | None], set[Shape | None]] = (set(), set())
    for edge, columns in zip(node.inputs, given, strict=True):
        if edge.input_index < 2 and columns is not None:
            by_side[edge.input_index].add(columns.shape)
    left, right = (shapes.pop() if len(shapes) == 1 else None for shapes in by_side)
    if isinstance(node.spec, IntervalJoinSpec | RegularJoinSpec | WindowSpec):
        for side, shape, selector in zip(("first", "second"), (left, right), node.spec.key_selectors, strict=True):
            if shape is not None and shape.is_scalar:
                return f"the records of the {side} input are bare values"
            if shape is not None and (why := why_no_fields(shape.record, selector)):
                return f"of the {side} input {why}"
    match node.spec:
        case IntervalJoinSpec():
            return column_interval_join(node.spec, (left, right))
        case RegularJoinSpec():
            has_kinds = any(columns is not None and columns.has_kinds for columns in given)
            return column_regular_join(node.spec, (left, right), has_kinds=has_kinds)
        case WindowSpec():
            return column_window_join(node.spec, (left, right))
    return None


def _emitted(spec: OperatorSpec, given: _Columns) -> _Columns | None:
    """Return the columns that an operator makes of columns."""
    shape = given.shape
    match spec:
        case ProjectSpec(indexes) if shape is None or max(indexes) < len(shape.kinds):
            return _Columns(None if shape is None else Shape(tuple(shape.kinds[index] for index in indexes)))
        case ColumnJoinSpec():
            return None if spec.shape is None else _with_names(spec.shape, spec.shape.names, spec.emits_kinds)
        case ColumnLastRowSpec():
            return _with_names(shape, spec.rows.names, True)
        case ColumnTopNSpec():
            return _ranked(shape, spec.rows)
        case ColumnGroupAggregateSpec():
            made = shape if spec.rows.in_place else _grouped(shape, spec)
            return _with_names(made, spec.rows.names, not spec.rows.emit_final)
        case (
            ColumnAggregateSpec(kind="min_by" | "max_by")
            | ColumnWindowSpec(choice=RecordChoice())
            | ColumnSessionSpec(choice=RecordChoice())
        ):
            return _Columns(shape)  # they are whole records
        case ColumnAggregateSpec(kind=kind) if shape is not None and _keeps_kinds(kind, spec.field, shape):
            return _Columns(shape)
        case TimestampsSpec():
            return given
        case ColumnReduceSpec() | ColumnDeduplicateSpec():
            return _Columns(shape)
    return _Columns(None) if getattr(spec, "emits_columns", False) else None


def _keeps_kinds(kind: str, field: int | str, shape: Shape) -> bool:
    """Whether what an aggregation gives for a field is of its kind."""
    place = place_of(field, shape)
    if not 0 <= place < len(shape.kinds):
        return False
    return kind != "sum" or shape.kinds[place] in (Kind.INT, Kind.FLOAT)


def _with_names(shape: Shape | None, names: tuple[str, ...] | None, has_kinds: bool) -> _Columns:
    """``names``: of records that have none of their own, where kinds make Rows of them."""
    if shape is not None and has_kinds:
        shape = _as_rows(shape, names)
        if shape.names is None:  # Rows without names, which no function is compiled for
            shape = None
    return _Columns(shape, has_kinds=has_kinds)


def _grouped(shape: Shape | None, spec: ColumnGroupAggregateSpec) -> Shape | None:
    """Return the shape of the key's fields and their aggregates."""
    rows = spec.rows
    fields = [*key_fields(rows.key_selector), *(each.field for each in rows.aggregates if each.field is not None)]
    if shape is None or rows.names is None or not key_fields(rows.key_selector):
        return None
    if any(not 0 <= place_of(field, shape) < len(shape.kinds) for field in fields):
        return None
    kinds = [shape.kinds[place_of(field, shape)] for field in key_fields(rows.key_selector)]
    for each in rows.aggregates:
        kind = Kind.INT if each.field is None or each.kind == "count" else shape.kinds[place_of(each.field, shape)]
        if kind not in (Kind.INT, Kind.FLOAT):
            kind = Kind.OPAQUE
        kinds.append(Kind.FLOAT if each.kind == "avg" and kind is not Kind.OPAQUE else kind)
    return Shape(tuple(kinds), names=rows.names)


def _as_rows(shape: Shape, names: tuple[str, ...] | None) -> Shape:
    """Return what Rows of such records are; ``names``: of those of tuples."""
    return Shape(shape.kinds, names=(shape.names if shape.record is None else None) or names)


def _ranked(shape: Shape | None, rows: TopNSpec) -> _Columns:
    if shape is None or not rows.with_rank:
        return _with_names(shape, rows.names, True)
    names = _as_rows(shape, rows.names).names
    names = None if names is None else (*names, RANK)
    return _with_names(Shape((*shape.kinds, Kind.INT), names=names), names, True)


def _of_flat_map(spec: FlatMapSpec, given: _Columns) -> tuple[_Columns | None, str]:
    function = as_opened(spec.function)
    shape = given.shape or annotated_shape(function, "flat_map")
    if shape is None:
        return None, IF_TYPES_ALLOW
    try:
        return _Columns(translate_flat(function, shape).shape), COMPILED
    except NotCompilable as error:
        return None, _not_compiled(function, error)


def _not_compiled(function: Any, error: NotCompilable) -> str:
    """Return what will run a function that the plan cannot translate."""
    name = error.unset_attribute
    return IF_OPENED if name and sets_in_open(function, name) else interpreted(error)


def _of_function(spec: MapSpec | FilterSpec | FlatMapSpec, given: _Columns | None) -> tuple[_Columns | None, str]:
    """Return what comes out of a map, filter or flat_map, and what will run its function."""
    is_filter = isinstance(spec, FilterSpec)
    if given is None:
        return None, ON_ROWS
    if isinstance(spec, FlatMapSpec):
        return (
            (None, interpreted(NotCompilable("its input is a changelog")))
            if given.has_kinds
            else _of_flat_map(spec, given)
        )
    shape, function = given.shape, as_opened(spec.function)
    if shape is None and spec.input_type is None:
        shape = annotated_shape(function, "filter" if is_filter else "map")
        if shape is None:
            return None, IF_TYPES_ALLOW
    if shape is None:
        return _of_declared(spec, given)
    try:
        result = translate(function, shape, as_condition=is_filter).result
    except NotCompilable as error:
        if Kind.OPAQUE in shape.kinds and spec.input_type:
            return _of_declared(spec, given)
        return None, _not_compiled(function, error)
    if isinstance(result, Fields):
        kinds = tuple(item.kind for item in result.items)
        return _Columns(Shape(kinds, names=result.names, record=result.record)), COMPILED
    if isinstance(result, Expression) and not is_filter:
        return _Columns(Shape((result.kind,), is_scalar=True)), COMPILED
    return given, COMPILED  # the records are those that came


def _of_declared(spec: MapSpec | FilterSpec, given: _Columns) -> tuple[_Columns | None, str]:
    """As ``_of_function``, by the declared type of the input: it has more types than a shape, which columns compute
    with as they do with 64 bits."""
    is_filter = isinstance(spec, FilterSpec)
    tier = tier_of(as_opened(spec.function), spec.input_type, is_filter=is_filter)
    if tier != COMPILED:
        return None, tier
    return given if is_filter else _Columns(None), tier
