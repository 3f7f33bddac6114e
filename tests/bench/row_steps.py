"""What the engine adds to a user's function: a chain of identity lambdas beside the same calls in a bare loop.

    python -m tests.bench.row_steps [--rounds 60] [--json FILE]

CPU time of a batch, best of several rounds, both in one process, alternating. The engine's part is
(chain - bare loop) / (rows x steps); the bare loop is ``for row in rows: f(f(f(row)))``, so the list of results is the
engine's cost too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from engine.core.clock import SystemClock
from engine.core.ids import JobID, OperatorID
from engine.core.records import BATCH_ROWS_MAX, Batch, RowBatch
from engine.graph.job_graph import ChainedOperator, ChainSpec, Exit
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.base import OperatorContext, OperatorSpec
from engine.operators.functions import RuntimeContext
from engine.operators.stateless import FilterSpec, FlatMapSpec, MapSpec
from engine.runtime.taskmanager.chain_runner import OperatorChain

#: What the engine may add to each call, in nanoseconds.
LIMIT_NS = 300.0


class Dropped:
    """An exit that forgets."""

    def emit(self, batch: Batch) -> None:
        pass

    emit_watermark = emit_idle = emit_superstep_end = emit  # type: ignore[assignment]


def identity(row: Any) -> Any:
    return row


def one(row: Any) -> list[Any]:
    return [row]


def chain_of(specs: list[OperatorSpec]) -> OperatorChain:
    last = len(specs) - 1
    operators = tuple(
        ChainedOperator(OperatorID.from_text(str(i)), f"step {i}", spec, ((i + 1, None, 0),) if i < last else ())
        for i, spec in enumerate(specs)
    )
    exits = (Exit(last, None, Partitioning(ShipStrategy.FORWARD)),)
    chain = OperatorChain(ChainSpec(operators, exits), [Dropped()])
    shared: dict[str, Any] = {}
    chain.open(
        lambda chained: OperatorContext(
            runtime_context=RuntimeContext(task_name=chained.name),
            operator_id=chained.operator_id,
            operator_name=chained.name,
            job_id=JobID.generate(),
            job_name="",
            config={},
            clock=SystemClock(),
            work_dir="",
            memory_bytes=0,
            send_event=identity,
            wake=lambda: None,
            slot_shared=shared,
        )
    )
    return chain


def bare_loop(specs: list[OperatorSpec]) -> Callable[[list[Any]], None]:
    """Return the same calls and no engine."""
    calls = [spec.function for spec in specs]  # type: ignore[attr-defined]
    nested = "row"
    for index in range(len(calls)):
        nested = f"f{index}({nested})"
    names = {f"f{index}": call for index, call in enumerate(calls)}
    parameters = ", ".join(names)
    exec(f"def run(rows, {parameters}):\n    for row in rows:\n        {nested}", names)
    run: Any = names["run"]
    return lambda rows: run(rows, *calls)


def cpu_ns(work: Callable[[], None]) -> int:
    before = time.process_time_ns()
    work()
    return time.process_time_ns() - before


CHAINS: dict[str, list[OperatorSpec]] = {
    "map": [MapSpec(identity)],
    "5 x map": [MapSpec(identity)] * 5,
    "5 x filter": [FilterSpec(identity)] * 5,
    "map filter flat_map map map": [
        MapSpec(identity), FilterSpec(identity), FlatMapSpec(one), MapSpec(identity), MapSpec(identity)
    ],
}  # fmt: skip


def measure(name: str, num_rounds: int) -> dict[str, Any]:
    specs = CHAINS[name]
    batch = RowBatch(list(range(1, BATCH_ROWS_MAX + 1)))
    chain, loop = chain_of(specs), bare_loop(specs)
    bare, chained = [], []
    for _ in range(num_rounds):
        bare.append(cpu_ns(lambda: loop(batch.rows)))
        chained.append(cpu_ns(lambda: chain.process_batch(0, batch)))
    assert chain._outputs[-1].num_records == num_rounds * BATCH_ROWS_MAX
    chain.close()
    bare_ns, chain_ns = min(bare) / BATCH_ROWS_MAX, min(chained) / BATCH_ROWS_MAX
    return {
        "workload": "row-steps",
        "chain": name,
        "bare_ns_a_row": round(bare_ns, 1),
        "chain_ns_a_row": round(chain_ns, 1),
        "engine_ns_a_step": round((chain_ns - bare_ns) / len(specs), 1),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", help="append results to this file")
    options = parser.parse_args(arguments)
    results = [measure(name, options.rounds) for name in CHAINS]
    for row in results:
        print(
            f"{row['chain']:30} bare loop {row['bare_ns_a_row']:7} ns a row, chain {row['chain_ns_a_row']:7}, "
            f"engine {row['engine_ns_a_step']:6} ns a row and step (limit {LIMIT_NS:.0f})"
        )
    if options.json:
        with open(options.json, "a", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in results)
    return int(any(row["engine_ns_a_step"] > LIMIT_NS for row in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
