"""The program as the DataSet API builds it, and its lowering to transformations once all of it is known.

A node may change until then (parallelism, name, broadcast sets). Lowering resolves parallelisms, finds what lies
inside an iteration, and wraps operators that have broadcast sets or run once per superstep (``operators/rounds``).
A ``WordTokenizer`` over text that is grouped by the word and summed becomes the vectorised word count.
The user's nodes are never changed by it, so a program may be executed several times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, final

from engine.connectors.source import SourceSpec
from engine.core.errors import ProgramError
from engine.graph.transformation import Edge, Partitioning, ShipStrategy, Transformation
from engine.operators.base import OperatorSpec
from engine.operators.batch_reduce import FieldsFold, FoldSpec
from engine.operators.batch_simple import PassSpec
from engine.operators.stateless import FlatMapSpec
from engine.operators.text import plan_word_count

__all__ = ["BROADCAST", "FORWARD", "GLOBAL", "REBALANCE", "Loop", "Node", "Port", "hash_by", "lower"]

FORWARD: Final = Partitioning(ShipStrategy.FORWARD, is_default=True)
REBALANCE: Final = Partitioning(ShipStrategy.REBALANCE)
BROADCAST: Final = Partitioning(ShipStrategy.BROADCAST)
GLOBAL: Final = Partitioning(ShipStrategy.GLOBAL)


def hash_by(selector: object) -> Partitioning:
    return Partitioning(ShipStrategy.HASH, key_selector=selector)


@final
@dataclass(frozen=True, eq=False)
class Port:
    """An output of a node, and how its records travel from there."""

    node: Node
    side_tag: str | None = None


@final
@dataclass(eq=False)
class Node:
    """One operator of the program."""

    name: str
    spec: OperatorSpec
    #: (input index, where from, how); several with one index are a union
    inputs: list[tuple[int, Port, Partitioning]] = field(default_factory=list)
    parallelism: int | None = None
    #: without a parallelism of its own it has this node's
    follows: Node | None = None
    forced_non_parallel: bool = False
    kind: str = ""
    is_sink: bool = False
    uid_hash: str | None = None
    broadcast: list[tuple[str, tuple[Port, ...]]] = field(default_factory=list)
    #: set on head, intake and tails of an iteration
    loop: Loop | None = None


@final
@dataclass(eq=False)
class Loop:
    """A bulk iteration: its head, and the ends that nobody else refers to."""

    loop_id: str
    head: Node
    intake: Node
    tails: list[Node] = field(default_factory=list)
    is_closed: bool = False


@final
class _Lowering:
    def __init__(self, default_parallelism: int) -> None:
        self._default = default_parallelism
        self._made: dict[Node, Transformation] = {}
        self._loops: dict[Node, set[Loop]] = {}

    # --- what is there ---------------------------------------------------------------------------------------------

    def closure(self, ends: Iterable[Node]) -> tuple[list[Node], list[Node]]:
        """Return all nodes, producers first, and the ends with those of iterations added."""
        all_ends = list(ends)
        order: list[Node] = []
        seen: set[Node] = set()
        position = 0
        while position < len(all_ends):
            pending: list[tuple[Node, bool]] = [(all_ends[position], False)]
            position += 1
            while pending:
                node, expanded = pending.pop()
                if expanded:
                    order.append(node)
                elif node not in seen:
                    seen.add(node)
                    pending.append((node, True))
                    pending.extend((port.node, False) for port in _ports_of(node))
                    if node.loop is not None and node is node.loop.head:
                        if not node.loop.is_closed:
                            raise ProgramError(
                                "An iteration is used but never closed; call iteration.close_with(result) and use what "
                                "it returns."
                            )
                        all_ends.extend((node.loop.intake, *node.loop.tails))
        return order, all_ends

    def parallelism_of(self, node: Node) -> int:
        if node.forced_non_parallel:
            return 1
        if node.parallelism is not None:
            return node.parallelism
        return self._default if node.follows is None else self.parallelism_of(node.follows)

    # --- iterations ------------------------------------------------------------------------------------------------

    def find_loops(self, order: Sequence[Node]) -> None:
        """Find for each node the iterations whose current records reach it."""
        for node in order:
            found: set[Loop] = set()
            if node.loop is not None and node is node.loop.head:
                found = {node.loop}
            for port in _ports_of(node):
                found |= self._of_port(port)
            self._loops[node] = found
            if len(found) > 1 or (node.loop is not None and node is node.loop.intake and found):
                raise ProgramError(f"Operator {node.name!r} lies in two iterations; iterations cannot be nested.")
            if found and node.is_sink and node.loop is None:
                raise ProgramError(
                    f"Sink {node.name!r} is inside an iteration; write the result of close_with(…) instead."
                )
        for node in order:
            if node.loop is not None and node in node.loop.tails and not self._loops[node]:
                raise ProgramError(
                    "close_with(result): the result does not depend on the iteration; it must be made of it."
                )

    def _of_port(self, port: Port) -> set[Loop]:
        # What leaves the loop by the head's side output is its result, no longer one superstep's records.
        head = port.node.loop is not None and port.node is port.node.loop.head
        return set() if head and port.side_tag is not None else self._loops[port.node]

    # --- nodes -----------------------------------------------------------------------------------------------------

    def make(self, node: Node) -> None:
        loops = self._loops[node]
        inputs = [(index, port, how) for index, port, how in node.inputs]
        own = node.spec.num_inputs
        names = [name for name, _ in node.broadcast]
        for number, (_, ports) in enumerate(node.broadcast):
            inputs.extend((own + number, port, BROADCAST) for port in ports)
        spec = node.spec
        is_body = bool(loops) and node.loop is None
        if is_body:
            inputs = self._part_mixed_unions(inputs)
            static = {index for index, port, _ in inputs} - {i for i, port, _ in inputs if self._of_port(port)}
            spec = _in_rounds(spec, tuple(names), frozenset(static))
        elif names:
            spec = _in_rounds(spec, tuple(names), None)
        self._made[node] = Transformation(
            name=node.name,
            spec=spec,
            inputs=[Edge(self._made[port.node], how, index, port.side_tag) for index, port, how in inputs],
            parallelism=self.parallelism_of(node),
            forced_non_parallel=node.forced_non_parallel,
            is_sink=node.is_sink,
            kind=node.kind,
            uid_hash=node.uid_hash,
            co_location_group=node.loop.loop_id if node.loop is not None else None,
        )

    def _part_mixed_unions(self, inputs: list[tuple[int, Port, Partitioning]]) -> list[tuple[int, Port, Partitioning]]:
        """Where an input unites records of the iteration with others, let the others be repeated in each superstep."""
        result: list[tuple[int, Port, Partitioning]] = []
        for index in sorted({index for index, _, _ in inputs}):
            parts = [(port, how) for own, port, how in inputs if own == index]
            dynamic = [(port, how) for port, how in parts if self._of_port(port)]
            static = [(port, how) for port, how in parts if not self._of_port(port)]
            if not dynamic or not static:
                result.extend((index, port, how) for port, how in parts)
                continue
            union = Node("Union", PassSpec(num_inputs=2), follows=dynamic[0][0].node)
            union.inputs = [*((0, port, FORWARD) for port, _ in dynamic), *((1, port, FORWARD) for port, _ in static)]
            self._loops[union] = set().union(*(self._of_port(port) for port, _ in dynamic))
            self.make(union)
            result.append((index, Port(union), parts[0][1]))
        return result

    def transformation(self, node: Node) -> Transformation:
        return self._made[node]


def _in_rounds(spec: OperatorSpec, broadcast: tuple[str, ...], static_inputs: frozenset[int] | None) -> OperatorSpec:
    """``static_inputs``: None outside of loops."""
    from engine.operators.rounds import RoundSpec

    if static_inputs is None:
        return RoundSpec(spec, broadcast)
    return RoundSpec(spec, broadcast, in_loop=True, static_inputs=static_inputs)


def _ports_of(node: Node) -> list[Port]:
    return [port for _, port, _ in node.inputs] + [port for _, ports in node.broadcast for port in ports]


def lower(ends: Iterable[Node], default_parallelism: int) -> list[Transformation]:
    """Return the transformations behind the ends (sinks), and those that end an iteration.

    Raises: ProgramError for iterations that are open, nested, or used from outside.
    """
    lowering = _Lowering(default_parallelism)
    order, all_ends = lowering.closure(ends)
    lowering.find_loops(order)
    for node in order:
        lowering.make(node)
    _vectorise_word_counts([lowering.transformation(node) for node in order])
    return [lowering.transformation(node) for node in all_ends]


def _vectorise_word_counts(nodes: Sequence[Transformation]) -> None:
    """Rewrite text → WordTokenizer → combine → hash exchange → sum(1) into chunks → count → hash exchange → merge.

    Nobody else may read what lies between text and sum, as it is no longer computed.
    """
    num_users: dict[int, int] = {}
    for node in nodes:
        for edge in node.inputs:
            num_users[edge.source.id] = num_users.get(edge.source.id, 0) + 1
    for node in nodes:
        fold = node.spec
        if not isinstance(fold, FoldSpec) or fold.is_combiner or fold.fold != FieldsFold((("sum", 1),)):
            continue
        before = _sole_producers(node, 3, num_users)
        if len(before) < 3:
            continue
        combiner, words, text = before
        if not isinstance(words.spec, FlatMapSpec) or not isinstance(text.spec, SourceSpec):
            continue
        plan = plan_word_count(text.spec.source, words.spec.function, fold.key, 1)
        if plan is None or not isinstance(combiner.spec, FoldSpec):
            continue
        text.spec = SourceSpec(plan.source)
        words.spec, words.name, words.parallelism = plan.count, "Tokenize and count", text.parallelism
        node.spec, node.inputs = plan.merge, [Edge(words, hash_by(plan.key), 0)]


def _sole_producers(node: Transformation, count: int, num_users: dict[int, int]) -> list[Transformation]:
    """Return the chain of producers, nearest first, as far as each is the only one of its only user."""
    found: list[Transformation] = []
    while len(found) < count and len(node.inputs) == 1 and node.inputs[0].side_tag is None:
        if found and node.inputs[0].partitioning.strategy is not ShipStrategy.FORWARD:
            break
        node = node.inputs[0].source
        if num_users[node.id] > 1:
            break
        found.append(node)
    return found
