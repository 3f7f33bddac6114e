"""A watermark that makes results for long, in real slots: others of the slot work meanwhile, and so does cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from engine.graph.transformation import ShipStrategy
from engine.protocol.checkpoint import CheckpointOptions, StopMode
from engine.protocol.lifecycle import ExecutionState
from tests.process.firing_operators import Endless, Ends, Other, Stops, Swallow, events_of
from tests.process.slot_cluster import SlotCluster, Vertex, Wire


def in_a_slot(body: Callable[[SlotCluster], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with SlotCluster(("127.0.0.1",)) as cluster:
            await body(cluster)

    asyncio.run(run())


def deploy(cluster: SlotCluster, endless: Endless, other: Other, *, chained: bool = False) -> None:
    """``other`` comes before all others in the order of the slot: it has no turn in a step that waits inside."""
    head = [Vertex("other", [other])]
    sink = Vertex("sink", [Swallow()])
    if chained:
        vertices = [*head, Vertex("fires", [Ends(), endless]), sink]
        wires = [Wire("fires", "sink", ShipStrategy.REBALANCE)]
    else:
        vertices = [*head, Vertex("source", [Ends()]), Vertex("fires", [endless]), sink]
        wires = [Wire("source", "fires", ShipStrategy.REBALANCE), Wire("fires", "sink", ShipStrategy.REBALANCE)]
    cluster.deploy(vertices, wires)


async def until(cluster: SlotCluster, condition: Callable[[], bool]) -> None:
    await cluster.until(lambda: condition() or bool(cluster.story.errors))
    assert not cluster.story.errors


def events(cluster: SlotCluster, name: str) -> list[Any]:
    return events_of(cluster.story, cluster.attempt(name))


def test_others_of_the_slot_work_while_results_come_in_pieces():
    async def body(cluster: SlotCluster) -> None:
        deploy(cluster, Endless("other"), Other())
        await until(cluster, lambda: ("watermark", 1) in events(cluster, "sink"))
        assert events(cluster, "fires") == ["fires", "fired"]
        cluster.send_event(cluster.attempt("source"), "source0", "end")
        await until(cluster, lambda: cluster.has_ended(cluster.attempt("sink")))

    in_a_slot(body)


def test_a_task_is_cancelled_between_two_pieces():
    async def body(cluster: SlotCluster) -> None:
        deploy(cluster, Endless("never"), Other())
        await until(cluster, lambda: "fires" in events(cluster, "fires"))
        cluster.cancel(cluster.attempt("fires"))
        await until(cluster, lambda: cluster.has_ended(cluster.attempt("fires")))
        assert cluster.story.states[cluster.attempt("fires")][-1] is ExecutionState.CANCELED

    in_a_slot(body)


def test_a_barrier_that_overtakes_records_comes_between_two_pieces_where_state_tells_what_is_left():
    async def body(cluster: SlotCluster) -> None:
        deploy(cluster, Endless("snapshot", can_snapshot=True), Other())
        await until(cluster, lambda: "fires" in events(cluster, "fires"))
        cluster.trigger(cluster.attempt("source"), 1, CheckpointOptions(unaligned=True))
        await until(cluster, lambda: "fired" in events(cluster, "fires"))
        assert events(cluster, "fires") == ["fires", "snapshot", "fired"]
        await until(cluster, lambda: (cluster.attempt("sink"), 1) in cluster.story.acknowledged)

    in_a_slot(body)


def test_a_barrier_that_overtakes_records_waits_where_state_does_not_tell_what_is_left():
    async def body(cluster: SlotCluster) -> None:
        deploy(cluster, Endless("other"), Other(by_event=True))
        await until(cluster, lambda: "fires" in events(cluster, "fires"))
        cluster.trigger(cluster.attempt("source"), 1, CheckpointOptions(unaligned=True))
        await until(cluster, lambda: (cluster.attempt("source"), 1) in cluster.story.acknowledged)
        cluster.send_event(cluster.attempt("other"), "other0", "go")
        await until(cluster, lambda: (cluster.attempt("fires"), 1) in cluster.story.acknowledged)
        assert events(cluster, "fires") == ["fires", "fired", "snapshot"]

    in_a_slot(body)


def test_a_source_with_what_fires_behind_it_is_asked_for_its_snapshot_when_all_is_done():
    async def body(cluster: SlotCluster) -> None:
        deploy(cluster, Endless("other"), Other(by_event=True), chained=True)
        await until(cluster, lambda: "fires" in events(cluster, "fires"))
        cluster.trigger(cluster.attempt("fires"), 1, CheckpointOptions())
        cluster.trigger(cluster.attempt("fires"), 2, CheckpointOptions())
        cluster.abort(cluster.attempt("fires"), 1)
        cluster.send_event(cluster.attempt("other"), "other0", "go")
        await until(cluster, lambda: (cluster.attempt("fires"), 2) in cluster.story.acknowledged)
        assert events(cluster, "fires") == ["fires", "fired", "snapshot", "snapshot"]

    in_a_slot(body)


def test_what_makes_an_operator_ready_waits_behind_a_snapshot_that_waits_for_results_and_all_go_on():
    async def body(cluster: SlotCluster) -> None:
        vertices = [
            Vertex("other", [Other(by_event=True)]),
            Vertex("fires", [Ends(), Endless("other"), Stops()]),
            Vertex("sink", [Swallow()]),
        ]
        cluster.deploy(vertices, [Wire("fires", "sink", ShipStrategy.REBALANCE)])
        await until(cluster, lambda: "fires" in events(cluster, "fires"))
        cluster.trigger(cluster.attempt("fires"), 1, CheckpointOptions())
        cluster.send_event(cluster.attempt("fires"), "fires2", "go on")
        cluster.send_event(cluster.attempt("other"), "other0", "go")
        await until(cluster, lambda: "told" in events(cluster, "fires"))
        assert events(cluster, "fires") == ["fires", "fired", "snapshot", "told"]

    in_a_slot(body)


def test_a_savepoint_to_stop_with_waits_for_results_and_so_does_the_end():
    async def body(cluster: SlotCluster) -> None:
        deploy(cluster, Endless("other", can_snapshot=True), Other(by_event=True), chained=True)
        await until(cluster, lambda: "fires" in events(cluster, "fires"))
        cluster.trigger(cluster.attempt("fires"), 1, CheckpointOptions(stop=StopMode.DRAIN))
        cluster.send_event(cluster.attempt("other"), "other0", "go")
        await until(cluster, lambda: (cluster.attempt("fires"), 1) in cluster.story.acknowledged)
        assert events(cluster, "fires") == ["fires", "fired", "snapshot"]
        cluster.complete(cluster.attempt("fires"), 1)
        await until(cluster, lambda: cluster.has_ended(cluster.attempt("sink")))

    in_a_slot(body)
