"""Last rewrites of a program before it becomes a JobGraph, when it is known whether it runs as stream or as batch.

Rules, each a function that changes nodes in place:
- endless input: file sinks show what they have written when the job is cancelled;
- batch: keyed aggregations emit one final result per key, top-N and last rows what is left; ``sum/min/max`` are
  pre-aggregated before the exchange;
- batch: event time advances once, at the end of all input, so that nothing is late; processing time ends there too;
- behind a changelog, what can take records back does, and what cannot is refused (``retractions``);
- aggregations whose input is columns work on columns (``vectorise``);
- a ``WordTokenizer`` flat_map over text that is keyed by the word and summed becomes the vectorised word count.

The user's own graph is never changed: rules work on a copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from engine.connectors.file_sinks import CsvFileSinkSpec, TextFileSinkSpec
from engine.connectors.file_system import FileSinkSpec
from engine.connectors.source import SourceSpec
from engine.connectors.stamped_source import StampedSourceSpec
from engine.datastream.retractions import plan_changelogs
from engine.datastream.vectorise import vectorise
from engine.graph.transformation import Edge, Partitioning, ShipStrategy, Transformation
from engine.operators.aggregate import CombineAggregateSpec, KeyedAggregateSpec, KeyedReduceSpec
from engine.operators.deduplicate import DeduplicateSpec
from engine.operators.group_aggregate import GroupAggregateSpec
from engine.operators.stateless import FlatMapSpec
from engine.operators.text import plan_word_count
from engine.operators.timestamps import TimestampsSpec
from engine.operators.top_n import TopNSpec
from engine.operators.window import WindowSpec

__all__ = ["is_bounded", "lower"]


def reachable(ends: Sequence[Transformation]) -> list[Transformation]:
    """Return all nodes that the ends depend on, inputs before users, each once."""
    seen: dict[int, Transformation] = {}
    order: list[Transformation] = []
    pending = [(end, False) for end in reversed(ends)]
    while pending:
        node, expanded = pending.pop()
        if expanded:
            order.append(node)
        elif node.id not in seen:
            seen[node.id] = node
            pending.append((node, True))
            pending.extend((edge.source, False) for edge in reversed(node.inputs))
    return order


def is_bounded(ends: Sequence[Transformation]) -> bool:
    """Return whether every source behind the ends has an end."""
    return all(node.is_bounded_source for node in reachable(ends) if node.spec.num_inputs == 0)


def lower(ends: Sequence[Transformation], *, batch: bool) -> list[Transformation]:
    """Return copies of the ends over a rewritten copy of the graph."""
    copies: dict[int, Transformation] = {}
    for node in reachable(ends):
        inputs = [dataclasses.replace(edge, source=copies[edge.source.id]) for edge in node.inputs]
        copies[node.id] = dataclasses.replace(node, inputs=inputs)
    rewritten = [copies[end.id] for end in ends]
    if not is_bounded(rewritten):
        for node in rewritten:
            _publish_on_cancel(node)
    if batch:
        for node in reachable(rewritten):
            _end_time_with_input(node)
        _vectorise_word_counts(reachable(rewritten))
        for node in reachable(rewritten):
            _emit_final(node)
    plan_changelogs(reachable(rewritten))
    vectorise(reachable(rewritten))
    if batch:
        for node in reachable(rewritten):
            _pre_aggregate(node)
    return rewritten


def _publish_on_cancel(sink: Transformation) -> None:
    """An endless job ends by being cancelled: what its file sinks have written up to then is its result."""
    if isinstance(sink.spec, CsvFileSinkSpec | FileSinkSpec | TextFileSinkSpec):
        sink.spec = dataclasses.replace(sink.spec, publish_on_cancel=True)


def _end_time_with_input(node: Transformation) -> None:
    spec = node.spec
    if isinstance(spec, TimestampsSpec):
        strategy = dataclasses.replace(
            spec.strategy, out_of_orderness_ms=None, generator_supplier=None, idle_timeout_ms=None
        )
        node.spec = TimestampsSpec(strategy)
    elif isinstance(spec, StampedSourceSpec):
        node.spec = spec.for_batch()
    elif isinstance(spec, WindowSpec):
        node.spec = dataclasses.replace(spec, batch=True)


def _emit_final(node: Transformation) -> None:
    if isinstance(node.spec, KeyedReduceSpec | KeyedAggregateSpec | GroupAggregateSpec | TopNSpec | DeduplicateSpec):
        node.spec = dataclasses.replace(node.spec, emit_final=True)


def _pre_aggregate(node: Transformation) -> None:
    """Put a combiner of the same key and field before each hash edge of a ``sum``, ``min`` or ``max``."""
    spec = node.spec
    if not isinstance(spec, KeyedAggregateSpec) or spec.kind not in ("sum", "min", "max"):
        return
    for position, edge in enumerate(node.inputs):
        if edge.partitioning.strategy is not ShipStrategy.HASH:
            continue
        combiner = Transformation(
            name=f"Combine {spec.kind}",
            spec=CombineAggregateSpec(spec.key_selector, spec.kind, spec.field),
            inputs=[
                Edge(edge.source, Partitioning(ShipStrategy.FORWARD, is_default=True), 0, edge.side_tag),
            ],
            output_type=node.output_type,
            parallelism=edge.source.parallelism,
            max_parallelism=edge.source.max_parallelism,
            slot_sharing_group=edge.source.slot_sharing_group,
        )
        node.inputs[position] = dataclasses.replace(edge, source=combiner, side_tag=None)


def _vectorise_word_counts(nodes: Sequence[Transformation]) -> None:
    """Rewrite text → WordTokenizer → key_by(0) → sum(1) into chunks → count → hash exchange of columns → merge."""
    num_users: dict[int, int] = {}
    for node in nodes:
        for edge in node.inputs:
            num_users[edge.source.id] = num_users.get(edge.source.id, 0) + 1
    for node in nodes:
        spec = node.spec
        if not isinstance(spec, KeyedAggregateSpec) or spec.kind != "sum" or len(node.inputs) != 1:
            continue
        words = node.inputs[0].source
        if not isinstance(words.spec, FlatMapSpec) or len(words.inputs) != 1:
            continue
        text = words.inputs[0].source
        forwarded = words.inputs[0].partitioning.strategy is ShipStrategy.FORWARD
        if not isinstance(text.spec, SourceSpec) or not forwarded or num_users[text.id] > 1 or num_users[words.id] > 1:
            continue
        plan = plan_word_count(text.spec.source, words.spec.function, spec.key_selector, spec.field)
        if plan is None:
            continue
        text.spec = SourceSpec(plan.source)
        words.spec, words.name, words.parallelism = plan.count, "Tokenize and count", text.parallelism
        node.spec = plan.merge
        node.inputs[0] = dataclasses.replace(
            node.inputs[0], partitioning=Partitioning(ShipStrategy.HASH, plan.key), side_tag=None
        )
