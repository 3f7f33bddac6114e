"""Small programs as graphs of transformations, for the graph and scheduler tests."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from engine.core.config import Configuration
from engine.graph.job_graph import JobGraph
from engine.graph.stream_graph import build_job_graph
from engine.graph.transformation import Edge, Partitioning, ShipStrategy, Transformation
from engine.operators.base import CoordinatorSpec, Operator, OperatorCoordinator, OperatorSpec

DEFAULT = Partitioning(ShipStrategy.FORWARD, is_default=True)
FORWARD = Partitioning(ShipStrategy.FORWARD)
REBALANCE = Partitioning(ShipStrategy.REBALANCE)
HASH = Partitioning(ShipStrategy.HASH, key_selector=abs)


@dataclass(frozen=True)
class NoSpec(OperatorSpec):
    """Describes an operator that is never built."""

    num_inputs: int = 1
    inputs_first: tuple[int, ...] = ()
    payload: Any = None
    coordinated: Any = None

    def build(self) -> Operator:
        raise NotImplementedError

    def coordinator(self) -> CoordinatorSpec | None:
        return self.coordinated


class NoCoordinatorSpec(CoordinatorSpec):
    def create(self) -> OperatorCoordinator:
        return OperatorCoordinator()


def source(name: str = "in", **fields: Any) -> Transformation:
    return Transformation(name, NoSpec(num_inputs=0), kind="Source", **fields)


def op(name: str, *inputs: Transformation | tuple[Transformation, Partitioning], **fields: Any) -> Transformation:
    """Return a one-input operator; several inputs are a union."""
    pairs = [one if isinstance(one, tuple) else (one, DEFAULT) for one in inputs]
    fields.setdefault("spec", NoSpec())
    return Transformation(name, inputs=[Edge(node, how) for node, how in pairs], **fields)


def join(
    name: str, *inputs: tuple[Transformation, Partitioning], first: tuple[int, ...] = (), **f: Any
) -> Transformation:
    edges = [Edge(node, how, index) for index, (node, how) in enumerate(inputs)]
    return Transformation(name, NoSpec(num_inputs=len(inputs), inputs_first=first), inputs=edges, **f)


def sink(name: str, *inputs: Any, **fields: Any) -> Transformation:
    return dataclasses.replace(op(name, *inputs, **fields), kind="Sink", is_sink=True)


def build(*ends: Transformation, batch: bool | None = None, **config: Any) -> JobGraph:
    """Return the JobGraph; keyword ``parallelism__default=2`` sets the key parallelism.default."""
    settings = Configuration({key.replace("__", ".").replace("_", "-"): value for key, value in config.items()})
    return build_job_graph(ends, job_name="test", config=settings, batch=batch)


def word_count(parallelism: int = 2, **fields: Any) -> Transformation:
    lines = source("lines", parallelism=1, **fields)
    words = op("flat_map", lines, parallelism=parallelism)
    counts = op("sum", (words, HASH), parallelism=parallelism)
    return sink("print", counts, parallelism=parallelism)
