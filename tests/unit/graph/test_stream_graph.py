"""Defaults, stream or batch, and what is refused on the way from a program to a JobGraph."""

from __future__ import annotations

import pytest

from engine.core.config import Configuration
from engine.core.errors import ConfigError, ProgramError
from engine.graph.job_graph import JobType
from engine.graph.stream_graph import build_job_graph, build_stream_graph, default_max_parallelism
from engine.graph.transformation import BufferTimeout, ChainingStrategy, ShipStrategy
from tests.unit.graph.programs import DEFAULT, FORWARD, HASH, REBALANCE, build, join, op, sink, source, word_count

INFINITE = BufferTimeout.INFINITE


def test_parallelism_comes_from_the_operator_else_from_the_configuration() -> None:
    graph = build(sink("out", op("map", source(), parallelism=3)), parallelism__default=2)
    assert [vertex.parallelism for vertex in graph.vertices] == [2, 3, 2]


def test_an_operator_that_cannot_run_in_parallel_runs_once() -> None:
    graph = build(sink("out", source(forced_non_parallel=True)), parallelism__default=4)
    assert [vertex.parallelism for vertex in graph.vertices] == [1, 4]
    with pytest.raises(ProgramError, match="cannot run in parallel, its parallelism is set to 3"):
        build(sink("out", source(forced_non_parallel=True, parallelism=3)))


@pytest.mark.parametrize(("parallelism", "expected"), [(1, 128), (85, 128), (86, 256), (200, 512), (30_000, 32_768)])
def test_max_parallelism_is_flinks_by_default(parallelism: int, expected: int) -> None:
    assert default_max_parallelism(parallelism) == expected


def test_max_parallelism_below_parallelism_is_refused_with_both_numbers() -> None:
    with pytest.raises(ProgramError, match="parallelism 5, more than its maximum parallelism 4"):
        build(sink("out", source(), parallelism=5, max_parallelism=4))
    with pytest.raises(ProgramError, match="from 1 to 32768"):
        build(sink("out", source(), max_parallelism=40_000))
    assert build(sink("out", source()), pipeline__max_parallelism=7).vertices[0].max_parallelism == 7


def test_a_bad_configuration_value_names_key_and_value() -> None:
    with pytest.raises(ConfigError, match=r"parallelism.default is 'many'"):
        build(sink("out", source()), parallelism__default="many")


def test_a_default_edge_becomes_rebalance_when_parallelism_differs() -> None:
    graph = build(sink("out", source(parallelism=1), parallelism=2))
    assert [edge.ship_strategy for edge in graph.edges] == [ShipStrategy.REBALANCE]


def test_an_explicit_forward_between_different_parallelisms_is_refused_with_both() -> None:
    with pytest.raises(ProgramError, match=r"'Source: in' \(parallelism 1\) and 'Sink: out' \(parallelism 2\)"):
        build(sink("out", (source(parallelism=1), FORWARD), parallelism=2))


def test_an_empty_program_is_refused() -> None:
    with pytest.raises(ProgramError, match="No operators defined"):
        build()


def test_an_input_that_is_missing_is_refused() -> None:
    broken = join("join", (source(), DEFAULT), (source(), DEFAULT))
    broken.inputs.pop()
    with pytest.raises(ProgramError, match=r"inputs \[0\]; expected 0 to 1"):
        build(broken)


def test_a_circle_is_refused() -> None:
    first = op("a", source())
    second = op("b", first)
    first.inputs.append(second.inputs[0].__class__(second, DEFAULT))
    with pytest.raises(ProgramError, match="circle"):
        build(second)


def test_the_vertices_are_in_topological_order() -> None:
    left, right = source("left"), source("right")
    end = sink("out", join("join", (op("map", (left, HASH)), HASH), (right, HASH)))
    graph = build(end)
    position = {vertex.vertex_id: i for i, vertex in enumerate(graph.vertices)}
    assert all(position[edge.source_id] < position[edge.target_id] for edge in graph.edges)


# --- stream or batch ------------------------------------------------------------------------------------------------


def test_streaming_is_the_default_and_its_edges_are_pipelined() -> None:
    graph = build(word_count())
    assert graph.job_type is JobType.STREAMING
    assert not any(edge.blocking for edge in graph.edges)
    assert {edge.buffer_timeout_ms for edge in graph.edges} == {100}


def test_batch_blocks_every_exchange_but_forward_ones() -> None:
    words = op("words", (source(), FORWARD), chaining=ChainingStrategy.HEAD)
    graph = build(sink("out", (words, HASH)), batch=True)
    assert graph.job_type is JobType.BATCH
    assert {(edge.ship_strategy.name, edge.blocking) for edge in graph.edges} == {("FORWARD", False), ("HASH", True)}
    assert {edge.buffer_timeout_ms for edge in graph.edges} == {-1}


def test_batch_can_be_pipelined() -> None:
    graph = build(word_count(), batch=True, execution__batch_shuffle_mode="ALL_EXCHANGES_PIPELINED")
    assert not any(edge.blocking for edge in graph.edges)


@pytest.mark.parametrize(("bounded", "expected"), [(True, JobType.BATCH), (False, JobType.STREAMING)])
def test_automatic_is_batch_if_and_only_if_all_sources_are_bounded(bounded: bool, expected: JobType) -> None:
    end = sink("out", (source("a"), HASH), (source("b", is_bounded_source=bounded), HASH))
    assert build(end, execution__runtime_mode="AUTOMATIC").job_type is expected


def test_batch_on_an_unbounded_source_is_refused_by_its_name() -> None:
    with pytest.raises(ProgramError, match=r"UNBOUNDED source \(Source: lines\)"):
        build(word_count(is_bounded_source=False), execution__runtime_mode="BATCH")


def test_the_api_overrides_the_runtime_mode() -> None:
    assert build(word_count(), batch=False, execution__runtime_mode="BATCH").job_type is JobType.STREAMING


# --- buffer timeout -------------------------------------------------------------------------------------------------


def test_buffer_timeout_is_the_producers_else_the_configured_one() -> None:
    words = op("words", (source(), REBALANCE), buffer_timeout_ms=0)
    graph = build(sink("out", (words, HASH)), execution__buffer_timeout__interval="7 ms")
    assert [edge.buffer_timeout_ms for edge in graph.edges] == [7, 0]
    graph = build(sink("out", (source(), HASH)), execution__buffer_timeout__enabled="false")
    assert [edge.buffer_timeout_ms for edge in graph.edges] == [-1]
    with pytest.raises(ProgramError, match="buffer timeout -2 ms"):
        build(sink("out", source(buffer_timeout_ms=-2)))


def test_an_infinite_buffer_timeout_is_a_blocking_exchange_of_that_edge_alone() -> None:
    words = op("words", (source(), HASH), buffer_timeout_ms=INFINITE)
    graph = build(sink("out", (words, HASH)))
    assert [edge.blocking for edge in graph.edges] == [False, True]
    assert graph.edges[1].buffer_timeout_ms == -1
    assert graph.job_type is JobType.STREAMING


def test_an_infinite_buffer_timeout_cuts_a_chain() -> None:
    assert len(build(sink("out", source(buffer_timeout_ms=INFINITE))).vertices) == 2


def test_an_infinite_buffer_timeout_behind_an_unbounded_source_is_refused() -> None:
    with pytest.raises(ProgramError, match=r"'Source: lines' to 'flat_map' has an infinite buffer timeout"):
        build(word_count(is_bounded_source=False), execution__buffer_timeout__interval="infinite")


# --- groups ---------------------------------------------------------------------------------------------------------


def test_a_slot_sharing_group_is_inherited_from_inputs_that_agree() -> None:
    heavy = op("heavy", (source("a"), HASH), slot_sharing_group="heavy")
    after = op("after", (heavy, HASH))
    mixed = sink("mixed", (after, HASH), (source("b"), HASH))
    groups = {vertex.name: vertex.slot_sharing_group for vertex in build(mixed).vertices}
    assert groups == {
        "Source: a": "default",
        "heavy": "heavy",
        "after": "heavy",
        "Source: b": "default",
        "Sink: mixed": "default",
    }


def test_inputs_of_different_groups_leave_the_default_one() -> None:
    one, two = source("1", slot_sharing_group="one"), source("2", slot_sharing_group="two")
    assert build(op("union", one, two)).vertices[-1].slot_sharing_group == "default"


def test_co_located_operators_need_equal_parallelism_and_group() -> None:
    head = op("head", (source(), HASH), co_location_group="loop", parallelism=2)
    with pytest.raises(ProgramError, match=r"'head' and 'tail' must run side by side .* parallelism: 2 and 3"):
        build(op("tail", (head, HASH), co_location_group="loop", parallelism=3))
    with pytest.raises(ProgramError, match="slot sharing group"):
        build(op("tail", (head, HASH), co_location_group="loop", parallelism=2, slot_sharing_group="x"))


# --- no deadlock ----------------------------------------------------------------------------------------------------


def blocking_by_edge(graph: object) -> dict[str, bool]:
    name = {vertex.vertex_id: vertex.name for vertex in graph.vertices}  # type: ignore[attr-defined]
    edges = graph.edges  # type: ignore[attr-defined]
    return {f"{name[edge.source_id]}>{name[edge.target_id]}": edge.blocking for edge in edges}


def test_edges_of_a_loop_stay_pipelined_in_batch() -> None:
    head = join("head", (source("first"), HASH), (source("side"), HASH), co_location_group="loop")
    step = join("step", (head, HASH), (source("static"), HASH))
    tail = op("tail", (step, HASH), co_location_group="loop")
    blocking = blocking_by_edge(build(tail, sink("out", (head, HASH)), batch=True))
    assert blocking == {
        "Source: first>head": True,
        "Source: side>head": True,
        "head>step": False,
        "Source: static>step": True,
        "step>tail": False,
        "head>Sink: out": True,
    }


def test_a_forward_edge_beside_a_blocking_path_becomes_blocking() -> None:
    start = op("start", (source(), HASH))
    other = op("other", (start, HASH))
    end = sink("out", join("join", (start, FORWARD), (other, HASH)))
    blocking = blocking_by_edge(build(end, batch=True))
    assert blocking["start>join -> Sink: out"] is True


def test_two_regions_that_wait_for_each_other_are_cut() -> None:
    a, b, d, e = (op(name, (source(f"s{name}"), HASH)) for name in "abde")
    b2 = join("b2", (b, FORWARD), (e, HASH))
    d2 = join("d2", (d, FORWARD), (a, HASH))
    c = join("c", (a, FORWARD), (b2, FORWARD))
    f = join("f", (d2, FORWARD), (e, FORWARD))
    graph = build(c, f, batch=True)
    assert no_region_waits_for_itself(graph)


def no_region_waits_for_itself(graph: object) -> bool:
    from graphlib import CycleError, TopologicalSorter

    region = {vertex.vertex_id: vertex.vertex_id for vertex in graph.vertices}  # type: ignore[attr-defined]
    for edge in graph.edges:  # type: ignore[attr-defined]
        if not edge.blocking:
            one, other = region[edge.source_id], region[edge.target_id]
            region = {key: one if value == other else value for key, value in region.items()}
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for edge in graph.edges:  # type: ignore[attr-defined]
        if edge.blocking:
            if region[edge.source_id] == region[edge.target_id]:
                return False
            sorter.add(region[edge.target_id], region[edge.source_id])
    try:
        sorter.prepare()
    except CycleError:
        return False
    return True


def test_a_build_side_that_shares_its_producer_with_the_probe_side_is_blocking_also_when_pipelined() -> None:
    start = op("start", (source(), HASH))
    end = sink("out", join("join", (start, HASH), (start, HASH), first=(0,)))
    graph = build(end, batch=True, execution__batch_shuffle_mode="ALL_EXCHANGES_PIPELINED")
    into_join = [edge.blocking for edge in graph.edges if edge.source_id != graph.vertices[0].vertex_id]
    assert into_join == [True, True]
    assert no_region_waits_for_itself(graph)


def test_stages_that_would_wait_for_each_other_and_cannot_be_cut_are_refused() -> None:
    live = source("live", is_bounded_source=False)
    head = op("head", (source(), HASH), co_location_group="loop", buffer_timeout_ms=INFINITE)
    step = join("step", (head, HASH), (live, HASH))
    tail = op("tail", (step, HASH), co_location_group="loop")
    with pytest.raises(ProgramError, match=r"'Source: live'.*would wait for each other for ever"):
        build(tail, join("aside", (head, HASH), (live, HASH)))


def test_a_blocking_exchange_beside_a_live_source_is_fine() -> None:
    bounded = source("bounded", buffer_timeout_ms=INFINITE)
    side = op("side", (bounded, HASH))
    live = source("live", is_bounded_source=False)
    both = join("both", (side, HASH), (live, HASH))
    assert no_region_waits_for_itself(build(both))
    other = op("other", (bounded, HASH), (live, HASH))
    end = join("end", (both, HASH), (other, HASH))
    assert no_region_waits_for_itself(build(end))


def test_the_job_graph_carries_name_configuration_and_parameters() -> None:
    graph = build_job_graph(
        [word_count()], job_name="", config=Configuration({"pipeline.name": "mine"}), parameters={"input": "x"}
    )
    assert (graph.name, graph.config, graph.parameters) == ("mine", {"pipeline.name": "mine"}, {"input": "x"})
    assert build_job_graph([word_count()], job_name="", config=Configuration()).name == "Flink Streaming Job"


def test_the_same_statements_give_the_same_node_numbers() -> None:
    numbers = [[n.node_id for n in build_stream_graph([word_count()], Configuration()).nodes] for _ in range(2)]
    assert numbers[0] == numbers[1] == [1, 2, 3, 4]
