"""A job at another parallelism: what may change, what stays, and what is said when it cannot be."""

from __future__ import annotations

import pytest

from engine.core.errors import ProgramError
from engine.graph.job_graph import JobGraph
from engine.graph.plan import job_plan
from engine.graph.rescale import rescaled, uniform_parallelism
from tests.unit.graph.programs import FORWARD, HASH, REBALANCE, build, op, sink, source


def job(**config) -> JobGraph:
    lines = source("lines", parallelism=1, forced_non_parallel=True)
    words = op("words", (lines, REBALANCE))
    counts = op("counts", (words, HASH))
    return build(sink("out", (counts, REBALANCE), parallelism=3), parallelism__default=2, **config)


def by_name(graph: JobGraph) -> dict[str, int]:
    return {vertex.name: vertex.parallelism for vertex in graph.vertices}


def test_what_followed_the_default_follows_the_new_one() -> None:
    graph = job()
    assert by_name(graph) == {"Source: lines": 1, "words": 2, "counts": 2, "Sink: out": 3}
    changed = rescaled(graph, uniform_parallelism(graph, 5))
    assert by_name(changed) == {"Source: lines": 1, "words": 5, "counts": 5, "Sink: out": 3}
    assert [v.vertex_id for v in changed.vertices] == [v.vertex_id for v in graph.vertices]
    assert changed.job_id == graph.job_id
    assert changed.plan["nodes"] == job_plan(changed)["nodes"]


def test_a_vertex_with_a_parallelism_of_its_own_can_be_named() -> None:
    graph = job()
    out = next(v.vertex_id for v in graph.vertices if v.name == "Sink: out")
    assert by_name(rescaled(graph, {out: 1}))["Sink: out"] == 1


@pytest.mark.parametrize(
    ("name", "parallelism", "said"),
    [
        ("Source: lines", 2, "'Source: lines' cannot run in parallel"),
        ("counts", 129, "'counts' cannot have parallelism 129; expected 1 to 128"),
        ("counts", 0, "'counts' cannot have parallelism 0; expected 1 to 128"),
    ],
)
def test_what_cannot_be_is_said(name: str, parallelism: int, said: str) -> None:
    graph = job()
    vertex = next(v.vertex_id for v in graph.vertices if v.name == name)
    with pytest.raises(ProgramError, match=said):
        rescaled(graph, {vertex: parallelism})


def test_an_unknown_vertex_is_an_error() -> None:
    with pytest.raises(ProgramError, match="has no vertex abc"):
        rescaled(job(), {"abc": 2})  # type: ignore[dict-item]


def test_the_ends_of_a_forward_edge_keep_the_same_parallelism() -> None:
    one = op("one", (source("in"), REBALANCE))
    graph = build(sink("two", (one, FORWARD), slot_sharing_group="other"), parallelism__default=2)
    target = next(v.vertex_id for v in graph.vertices if v.name == "Sink: two")
    with pytest.raises(ProgramError, match=r"'one' \(parallelism 2\) hands its records forward to 'Sink: two'"):
        rescaled(graph, {target: 3})
    assert by_name(rescaled(graph, uniform_parallelism(graph, 3))) == {"Source: in": 3, "one": 3, "Sink: two": 3}


def test_a_job_without_a_default_has_nothing_to_change() -> None:
    graph = build(sink("out", (source("in", parallelism=2), REBALANCE), parallelism=2))
    with pytest.raises(ProgramError, match="has no operator that follows its default parallelism"):
        uniform_parallelism(graph, 3)
