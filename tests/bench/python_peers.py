"""Keyed sums and windows of plain Python functions beside other engines for Python: each with events of its own number.

They differ by a factor of a hundred in speed, so each gets a number that keeps it busy for some seconds, and what is
compared is events a CPU-second of the whole process tree, start-up included, of all contenders alike. Bytewax and ours
give one result an event, PyFlink too; Pathway and Spark (typed, no Python function in it) one a commit or micro-batch.

Marginal: each contender also runs with a quarter of its events, and what counts is what the other three quarters cost:
start-up is in no figure. PyFlink's windows take milliseconds an event, so their number is small; start-up would weigh.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.measure import Measurement, run
from tests.bench.stats import shown, spread, stamped

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_EVENTS = re.compile(r"^events (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Contender:
    """``peer``: whose environment it runs in, "" = ours. ``expected``: what its output has when nothing was lost."""

    name: str
    peer: str
    program: str
    events: int
    keys: int
    words: tuple[str, ...] = ()
    last_only: bool = False  #: prints the last event, not how many


def contenders_of(workload: str) -> list[Contender]:
    if workload == "keyed-python":
        return [
            Contender("engine", "", "keyed_lambdas", 4_000_000, 1_000_000, ("count",)),
            Contender("bytewax", "bytewax", "bytewax_keyed", 1_000_000, 1_000_000),
            Contender("pathway", "pathway", "pathway_keyed", 500_000, 1_000_000),
            Contender("pyflink", "flink", "pyflink_keyed", 50_000, 1_000, last_only=True),
            Contender("spark", "pyspark", "spark_keyed", 4_000_000, 1_000_000, ("keyed",)),
        ]
    return [
        Contender("engine", "", "window_lambdas", 2_000_000, 100_000),
        Contender("bytewax", "bytewax", "bytewax_window", 30_000, 100_000),
        Contender("pyflink", "flink", "pyflink_window", 8_000, 100_000),
        Contender("spark", "pyspark", "spark_keyed", 4_000_000, 100_000, ("window",)),
    ]


def check(contender: Contender, num_events: int, result: Measurement) -> None:
    """Raises: RuntimeError when the program failed or lost an event."""
    if contender.last_only:
        is_whole = f"last {num_events - 1}" in result.output
    else:
        is_whole = [int(n) for n in _EVENTS.findall(result.output)] == [num_events]
    if result.exit_code != 0 or not is_whole:
        raise RuntimeError(f"{contender.name}: exit code {result.exit_code}: {result.output[-3000:]}")


def race(
    workload: str,
    *,
    python_of: Callable[[str], str],
    runs: int,
    parallelism: int,
    timeout_s: float,
    scale: float = 1,
    only: Sequence[str] | None = None,
    events: int | None = None,
    marginal: bool = False,
) -> list[dict[str, Any]]:
    """Run all in turn; return a row each. ``scale``: of the numbers of events; ``events``: the same number for all;
    ``python_of``: peer → interpreter."""
    contenders = [one for one in contenders_of(workload) if only is None or one.name in only]
    sizes = {one.name: events or max(1000, int(one.events * scale)) for one in contenders}
    used_s: dict[str, list[float]] = {one.name: [] for one in contenders}
    peak_mb = dict.fromkeys(sizes, 0.0)
    for number in range(runs):
        for one in contenders:
            size = sizes[one.name]
            whole = _run(one, size, parallelism, timeout_s, python_of)
            peak_mb[one.name] = max(peak_mb[one.name], whole.peak_mb)
            cpu_s, told = whole.cpu_s, ""
            if marginal:
                part = _run(one, size // 4, parallelism, timeout_s, python_of)
                cpu_s, told = whole.cpu_s - part.cpu_s, f", of which a quarter with start-up {part.cpu_s:.2f} s"
            used_s[one.name].append(cpu_s)
            print(f"  run {number + 1} {one.name}: {size} events, CPU {whole.cpu_s:.2f} s{told}", flush=True)
    rates = {name: [_counted(sizes[name], marginal) / cpu_s for cpu_s in found] for name, found in used_s.items()}
    return [stamped(row) for row in _rows(workload, contenders, sizes, rates, peak_mb, marginal)]


def _counted(size: int, marginal: bool) -> int:
    return size - size // 4 if marginal else size


def _run(
    one: Contender, num_events: int, parallelism: int, timeout_s: float, python_of: Callable[[str], str]
) -> Measurement:
    env = dict(os.environ)
    if one.peer:
        env.pop("PYTHONPATH", None)
        command = [python_of(one.peer), str(HERE / "peers" / f"{one.program}.py")]
    else:
        env["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, str(HERE / "programs" / f"{one.program}.py")]
    command += [str(num_events), str(one.keys), str(parallelism), *one.words]
    result = run(command, timeout_s=timeout_s, env=env)
    check(one, num_events, result)
    return result


def _rows(
    workload: str,
    contenders: Sequence[Contender],
    sizes: dict[str, int],
    rates: dict[str, list[float]],
    peak_mb: dict[str, float],
    marginal: bool,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for one in contenders:
        ours = rates[contenders[0].name]
        ratio = spread((a / b for a, b in zip(ours, rates[one.name], strict=True)), 2)
        row = {"workload": workload, "contender": one.name, "events": sizes[one.name], "keys": one.keys}
        row |= {"events_per_cpu_s": spread(rates[one.name], 0), "ratio_of_engine": ratio, "runs": len(ours)}
        row |= {"peak_mb": round(peak_mb[one.name]), **({"kind": "marginal"} if marginal else {})}
        print(f"{one.name:10} k events per CPU-second {shown(row['events_per_cpu_s'], 1000)}, peak {row['peak_mb']} MB")
        if one is not contenders[0]:
            print(f"  engine / {one.name}: {shown(ratio)}")
        rows.append(row)
    return rows
