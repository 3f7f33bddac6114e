"""Which operators share a task, what they and their vertices are called, and their ids."""

from __future__ import annotations

import pickle
import threading

import pytest

from engine.core.errors import ProgramError
from engine.core.user_code import loads
from engine.graph.job_graph import ChainSpec, JobGraph
from engine.graph.transformation import ChainingStrategy, Edge, ShipStrategy, Transformation
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.keys import FieldKey
from tests.unit.graph.programs import (
    DEFAULT,
    HASH,
    REBALANCE,
    NoCoordinatorSpec,
    NoSpec,
    build,
    join,
    op,
    sink,
    source,
    word_count,
)


def names(graph: JobGraph) -> list[str]:
    return [vertex.name for vertex in graph.vertices]


def chain_of(graph: JobGraph, index: int = 0) -> ChainSpec:
    chain = loads(graph.vertices[index].chain)
    assert isinstance(chain, ChainSpec)
    return chain


def test_forward_neighbours_share_a_task_named_as_in_flink() -> None:
    assert names(build(sink("print", op("map", source("lines"))))) == ["Source: lines -> map -> Sink: print"]


def test_branches_stand_in_brackets() -> None:
    lines = source("lines")
    graph = build(sink("a", op("map", lines)), sink("b", op("filter", lines)))
    assert names(graph) == ["Source: lines -> (map -> Sink: a, filter -> Sink: b)"]


def test_a_branch_that_is_not_chained_is_not_in_the_name() -> None:
    lines = source("lines")
    graph = build(sink("a", op("map", lines)), sink("b", (lines, HASH)))
    assert names(graph) == ["Source: lines -> map -> Sink: a", "Sink: b"]


def test_word_count_is_two_exchanges_three_tasks() -> None:
    graph = build(word_count())
    assert names(graph) == ["Source: lines", "flat_map", "sum -> Sink: print"]
    assert [edge.ship_strategy for edge in graph.edges] == [ShipStrategy.REBALANCE, ShipStrategy.HASH]


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("an exchange", lambda a: op("b", (a, REBALANCE))),
        ("another parallelism", lambda a: op("b", a, parallelism=2)),
        ("another slot sharing group", lambda a: op("b", a, slot_sharing_group="x")),
        ("a head", lambda a: op("b", a, chaining=ChainingStrategy.HEAD)),
        ("a loner", lambda a: op("b", a, chaining=ChainingStrategy.NEVER)),
        ("a union", lambda a: op("b", a, source("other"))),
        ("two inputs", lambda a: join("b", (a, DEFAULT), (source("other"), DEFAULT))),
    ],
)
def test_a_chain_ends_at(what: str, make: object) -> None:
    chained = build(op("b", op("a", source())))
    assert names(chained) == ["Source: in -> a -> b"]
    graph = build(make(op("a", source())))  # type: ignore[operator]
    assert "Source: in -> a" in names(graph), what
    assert "b" in names(graph)


def test_a_loner_has_no_successor_in_its_task() -> None:
    assert names(build(op("b", op("a", source(), chaining=ChainingStrategy.NEVER)))) == ["Source: in", "a", "b"]


def test_a_head_takes_successors() -> None:
    assert names(build(op("b", op("a", source(), chaining=ChainingStrategy.HEAD)))) == ["Source: in", "a -> b"]


def test_an_operator_of_two_inputs_heads_a_chain() -> None:
    both = join("join", (source("l"), DEFAULT), (source("r"), DEFAULT))
    assert names(build(op("map", both))) == ["Source: l", "Source: r", "join -> map"]


def test_operators_of_different_co_location_groups_do_not_share_a_task() -> None:
    head = op("head", (source(), HASH), co_location_group="one")
    assert names(build(op("tail", head, co_location_group="two"))) == ["Source: in", "head", "tail"]


def test_branches_are_listed_in_order_of_the_program() -> None:
    lines = source("lines")
    graph = build(sink("a", op("map", lines)), sink("b", op("filter", lines)))
    listed = [operator.name for operator in chain_of(graph).operators]
    assert listed == ["Source: lines", "map", "Sink: a", "filter", "Sink: b"]


def test_chaining_can_be_switched_off() -> None:
    graph = build(op("b", op("a", source())), pipeline__operator_chaining__enabled="false")
    assert names(graph) == ["Source: in", "a", "b"]


def test_one_node_on_both_inputs_of_a_join_has_two_exits() -> None:
    start = source("s")
    graph = build(join("join", (start, HASH), (start, REBALANCE)))
    assert [(e.exit_index, e.input_index, e.ship_strategy.name) for e in graph.edges] == [
        (0, 0, "HASH"),
        (1, 1, "REBALANCE"),
    ]
    assert len({edge.dataset_id for edge in graph.edges}) == 2


def test_the_chain_blob_wires_operators_side_outputs_and_exits() -> None:
    lines = source("lines")
    late = Transformation("late", NoSpec(), inputs=[Edge(lines, DEFAULT, 0, "late")])
    keyed = op("sum", (lines, HASH), max_parallelism=9)
    chain = chain_of(build(late, keyed))
    assert [operator.name for operator in chain.operators] == ["Source: lines", "late"]
    assert chain.operators[0].next == ((1, "late", 0),)
    assert chain.operators[1].next == ()
    assert [(e.operator_index, e.partitioning.strategy.name) for e in chain.exits] == [(0, "HASH")]


# --- ids ------------------------------------------------------------------------------------------------------------


def all_ids(graph: JobGraph) -> list[str]:
    return [operator.operator_id for vertex in graph.vertices for operator in vertex.operators]


def test_equal_programs_have_equal_ids_and_all_are_different() -> None:
    first, second = all_ids(build(word_count())), all_ids(build(word_count()))
    assert first == second
    assert len(set(first)) == 4


def test_a_vertex_has_the_id_of_its_head() -> None:
    graph = build(word_count())
    assert all(vertex.vertex_id == vertex.operators[0].operator_id for vertex in graph.vertices)


def test_ids_do_not_depend_on_names_or_parallelism_of_unchained_neighbours() -> None:
    assert all_ids(build(word_count(2))) == all_ids(build(word_count(3)))


def test_a_uid_alone_decides_the_id() -> None:
    alone = all_ids(build(source(uid="mine")))
    assert all_ids(build(op("b", source("other", uid="mine"))))[0] == alone[0]
    assert all_ids(build(source(uid_hash="ab" * 16))) == ["ab" * 16]


def test_a_uid_twice_is_refused() -> None:
    with pytest.raises(ProgramError, match="'Source: in' and 'b' have the same uid 'x'"):
        build(op("b", source(uid="x"), uid="x"))


# --- what travels ---------------------------------------------------------------------------------------------------


def test_the_operator_that_cannot_be_pickled_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(
        ProgramError, match=r"^Operator 'b' cannot be sent to the cluster: NoSpec object → .payload → variable 'lock'"
    ):
        build(op("b", op("a", source()), spec=NoSpec(payload=lambda: lock)))


def test_the_key_selector_that_cannot_be_pickled_is_named() -> None:
    lock = threading.Lock()
    keyed = op("b", (source(), type(HASH)(ShipStrategy.HASH, key_selector=lambda x: lock)))
    with pytest.raises(ProgramError, match="The key or partitioner after operator 'Source: in'"):
        build(keyed)


def test_coordinators_are_collected_by_operator() -> None:
    from engine.connectors.simple import SequenceSource
    from engine.connectors.source import SourceSpec

    class Unknown(NoCoordinatorSpec):
        pass

    with pytest.raises(ProgramError, match="'b' has a part that runs in the JobManager"):
        build(op("b", source(), spec=NoSpec(coordinated=Unknown())))
    spec = SourceSpec(SequenceSource(1, 2))
    simple = pickle.dumps(spec.coordinator())
    graph = build(op("b", Transformation("s", spec, kind="Source")))
    assert graph.vertices[0].coordinators.keys() == {graph.vertices[0].operators[0].operator_id}
    assert pickle.loads(next(iter(graph.vertices[0].coordinators.values()))) == pickle.loads(simple)


def test_slots_find_the_modules_of_the_job_s_classes_imported_and_then_what_specs_name() -> None:
    total = ColumnAggregateSpec(FieldKey(0), "sum", 1)
    preload = build(sink("out", op("sum", (source("in"), HASH), spec=total))).preload
    assert preload[-1] == "engine.operators.warm_up.keyed"
    assert {"engine.operators.column_aggregate", "engine.operators.keys"} <= set(preload)
    assert all(name.startswith("engine.") for name in preload)
