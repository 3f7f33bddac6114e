"""The simulated jobs as JobGraphs: sources (``sources``) → what fails and is slow now and then → counts, timers or
windows (``functions``) → a sink that commits (``ledger``, or the engine's). What is drawn of them: ``shapes``."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.connectors.file_sink import FileSink
from engine.connectors.file_sink_config import BucketAssigner, BucketContext, RollingPolicy
from engine.connectors.file_sinks import TextFileSinkSpec
from engine.connectors.part_writers import Encoder
from engine.connectors.source import SourceSpec
from engine.core import plain_pickle
from engine.core.config import Configuration
from engine.core.ids import JobID
from engine.graph import chaining
from engine.graph.job_graph import JobGraph
from engine.graph.stream_graph import build_job_graph
from engine.graph.transformation import Edge, Partitioning, ShipStrategy, Transformation
from engine.operators.base import OperatorSpec
from engine.operators.co_process import CoProcessSpec
from engine.operators.process import ProcessSpec
from tests.sim.functions import CountBoth, CountByKey, Disturb, Hold, key_of, window_spec
from tests.sim.ledger import LedgerSink
from tests.sim.results import output_path
from tests.sim.shapes import Program
from tests.sim.sources import Numbers, PacedSource, QuietSource, SplitSource

__all__ = ["make_job", "simulated_classes_may_travel"]


@contextmanager
def simulated_classes_may_travel() -> Iterator[None]:
    """Chains are pickled by reference, and the JobManager may load coordinators of the simulation."""
    patched: list[tuple[Any, str, Any]] = [
        (chaining, "dumps", lambda obj, what: pickle.dumps(obj, 5)),
        (chaining, "_EnginePickler", pickle.Pickler),
        (plain_pickle, "_DATA_LAYERS", (*plain_pickle._DATA_LAYERS, "tests.sim.")),
    ]
    before = [getattr(module, name) for module, name, _ in patched]
    try:
        for module, name, value in patched:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(patched, before, strict=True):
            setattr(module, name, value)


class ByKey(BucketAssigner):
    def get_bucket_id(self, element: Any, context: BucketContext) -> str:
        return f"key={element[0] % 2}"


def _sink(program: Program, line: str) -> OperatorSpec:
    match program.sink:
        case "text":
            return TextFileSinkSpec(output_path(line))
        case "parts":
            builder = FileSink.for_row_format(output_path(line), Encoder()).with_bucket_assigner(ByKey())
            return builder.with_rolling_policy(RollingPolicy(200, 400, 0)).build().to_spec()
        case _:
            return LedgerSink(line, program.checkpoints)


def make_job(program: Program, line: str, job_id: JobID, config: dict[str, str], parallelism: int) -> JobGraph:
    batch = program.shape == "batch"

    def node(name: str, spec: OperatorSpec, *inputs: Edge, **options: Any) -> Transformation:
        options.setdefault("parallelism", parallelism)
        return Transformation(
            name,
            spec,
            list(inputs),
            max_parallelism=16,
            uid=name,
            buffer_timeout_ms=program.buffer_timeout_ms,
            **options,
        )

    def edge(source: Transformation, strategy: ShipStrategy = ShipStrategy.FORWARD, input_index: int = 0) -> Edge:
        return Edge(source, Partitioning(strategy, key_of if strategy is ShipStrategy.HASH else None), input_index)

    def source(name: str, numbers: Numbers, **options: Any) -> Transformation:
        spec = SourceSpec(PacedSource(numbers)) if program.source == "engine" else SplitSource(numbers)
        return node(name, spec, **options)

    def disturbed(name: str, *inputs: Edge, **options: Any) -> Transformation:
        return node(name, Disturb(not batch), *inputs, **options)

    first, *others = program.numbers()
    numbers = source("numbers", first)
    work: dict[str, OperatorSpec] = {
        "count": ProcessSpec(CountByKey(), key_of),
        "hold": ProcessSpec(Hold(), key_of),
    }
    spec = work.get(program.work) or window_spec(program.work)
    match program.shape:
        case "chained":
            inputs = [edge(disturbed("disturb", edge(numbers)), ShipStrategy.HASH)]
        case "wide" | "batch":
            spread = disturbed("disturb", edge(numbers, ShipStrategy.REBALANCE), parallelism=parallelism + 1)
            inputs = [edge(spread, ShipStrategy.HASH)]
        case "union":
            other = source("more numbers", others[0], parallelism=1)
            both = [edge(numbers, ShipStrategy.REBALANCE), edge(other, ShipStrategy.REBALANCE)]
            if program.quiet_s:
                both.append(edge(node("quiet", QuietSource(program.quiet_s), parallelism=1), ShipStrategy.REBALANCE))
            inputs = [edge(disturbed("disturb", *both), ShipStrategy.HASH)]
        case "connected":
            other = source("more numbers", others[0], parallelism=1)
            inputs = [
                edge(disturbed("disturb", edge(numbers)), ShipStrategy.HASH),
                edge(disturbed("disturb more", edge(other, ShipStrategy.REBALANCE)), ShipStrategy.HASH, 1),
            ]
            spec = CoProcessSpec(CountBoth(), (key_of, key_of))
        case _:
            raise AssertionError(program.shape)
    counted = node("count", spec, *inputs)
    strategy = ShipStrategy.REBALANCE if program.shape == "union" else ShipStrategy.FORWARD
    sink = node("sink", _sink(program, line), edge(counted, strategy), is_sink=True)
    return build_job_graph(
        [sink], job_name=f"job {program.shape}", config=Configuration(config), job_id=job_id, batch=batch
    )
