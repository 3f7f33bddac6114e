"""User accumulators of subtasks, vertices and jobs, as REST shows them: name, type and value as text. Pure."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from engine.core.errors import ExternalError
from engine.core.metrics import Accumulator
from engine.graph.execution_graph import Execution, ExecutionGraph

__all__ = ["attempt_accumulators", "job_accumulators", "merged_accumulators"]

Row = dict[str, str]


def _final(attempt: Execution) -> dict[str, Accumulator]:
    """Return the accumulators that an ended attempt left; empty if user classes are among them."""
    if not attempt.accumulators:
        return {}
    from engine.rpc import codec

    try:
        found: dict[str, Accumulator] = codec.decode(attempt.accumulators, dict)
    except ExternalError:  # the JobManager never loads user code, so it cannot read user accumulators
        return {}
    return found


def _row(name: str, kind: str, value: Any) -> Row:
    return {"name": name, "type": kind, "value": str(value)}


def attempt_accumulators(attempt: Execution) -> list[Row]:
    """Return one attempt's accumulators: the final ones, else what its last report said."""
    final = _final(attempt)
    if final:
        return [_row(name, type(acc).__name__, acc.get_local_value()) for name, acc in sorted(final.items())]
    return [_row(name, type(value).__name__, value) for name, value in sorted(attempt.metrics.user.items())]


def merged_accumulators(attempts: Iterable[Execution]) -> list[Row]:
    """Return the accumulators of several attempts merged by name; numbers of running attempts are added."""
    merged: dict[str, Accumulator] = {}
    numbers: dict[str, Any] = {}
    for attempt in attempts:
        final = _final(attempt)
        for name, accumulator in final.items():
            if name in merged:
                merged[name].merge(accumulator)
            else:
                merged[name] = copy.deepcopy(accumulator)
        if not final:
            for name, value in attempt.metrics.user.items():
                if isinstance(value, (int, float)) and isinstance(numbers.get(name, 0), (int, float)):
                    numbers[name] = numbers.get(name, 0) + value
                else:
                    numbers[name] = value
    rows = [_row(name, type(acc).__name__, acc.get_local_value()) for name, acc in merged.items()]
    rows += [_row(name, type(value).__name__, value) for name, value in numbers.items() if name not in merged]
    return sorted(rows, key=lambda row: row["name"])


def job_accumulators(graph: ExecutionGraph) -> list[Row]:
    """Return a job's accumulators: the result if it has ended, else merged from its subtasks now."""
    if graph.accumulator_results:
        return [_row(name, kind, value) for name, (kind, value) in sorted(graph.accumulator_results.items())]
    return merged_accumulators(subtask.current for subtask in graph.all_subtasks())
