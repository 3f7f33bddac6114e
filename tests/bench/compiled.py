"""What compiling a function to expressions over columns gains, and whether rows should become columns for it.

    python -m tests.bench.compiled [--rounds 30]

CPU time of a batch of 16384 records, best of several rounds: the function in the interpreter on rows (and with the
conversion of columns to rows before it, which is what a columnar stream pays), compiled on columns, and compiled with
rows made columns before and rows again behind it.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from engine.core.records import BATCH_ROWS_MAX, ColumnBatch
from engine.operators.compile.column_steps import ColumnFunction
from tests.bench.stats import record


def arithmetic(r):
    return r[0] * 31 + 7, r[1] / 2.5


def condition(r):
    return r[0] % 7 != 0 and r[1] > 10.0


def branch(r):
    return r[0] // 3 if r[1] < 50.0 else -r[0]


def parse(r):
    return int(r[2].split(",")[1]) + 1


@dataclasses.dataclass
class Reading:
    number: int
    amount: float
    text: str


def to_object(r):
    return Reading(r[0], r[1] * 2.0, r[2])


def of_object(reading):
    return reading.number + 1, reading.amount / 2.5


def several(r):
    return [(r[0], r[1]), (-r[0], r[1])] if r[1] > 50.0 else []


def split(r):
    return [(part, 1) for part in r[2].split(",")]


def rounded(r):  # has no exact form on columns: called value by value
    return r[0], round(r[1], 2)


def ns_a_record(work: Callable[[], Any], rounds: int) -> float:
    best = min(_cpu_ns(work) for _ in range(rounds))
    return best / BATCH_ROWS_MAX


def _cpu_ns(work: Callable[[], Any]) -> int:
    before = time.process_time_ns()
    work()
    return time.process_time_ns() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 1_000_000, BATCH_ROWS_MAX)
    texts = [f"id,{number},x" for number in numbers.tolist()]
    columns = [pa.array(numbers), pa.array(rng.random(BATCH_ROWS_MAX) * 100), pa.array(texts)]
    batch = ColumnBatch(pa.RecordBatch.from_arrays(columns, names=["n", "x", "t"]))
    rows = batch.to_rows().rows
    print(f"{'ns a record':12} {'rows':>8} {'columns → rows':>15} {'compiled':>9} {'rows → columns → rows':>22}")
    objects = ColumnFunction(to_object, is_filter=False).apply(batch)
    assert objects is not None
    for function in (arithmetic, condition, branch, parse, to_object, of_object, several, split, rounded):
        is_flat = function in (several, split)
        compiled = ColumnFunction(function, is_filter=function is condition, is_flat=is_flat)
        given = objects if function is of_object else batch
        rows = given.to_rows().rows

        def there_and_back(compiled: ColumnFunction = compiled, rows: list[Any] = rows) -> None:
            arrays = [pa.array(column) for column in zip(*rows, strict=True)]
            result = compiled.apply(ColumnBatch(pa.RecordBatch.from_arrays(arrays, names=["n", "x", "t"])))
            assert result is not None
            result.to_rows()

        def interpret(rows: list[Any], function: Callable[[Any], Any] = function, is_flat: bool = is_flat) -> list[Any]:
            return [item for row in rows for item in function(row)] if is_flat else [function(row) for row in rows]

        seen = {
            "rows_ns": ns_a_record(lambda interpret=interpret, rows=rows: interpret(rows), rounds),
            "columns_to_rows_ns": ns_a_record(
                lambda interpret=interpret, given=given: interpret(given.to_rows().rows), rounds
            ),
            "compiled_ns": ns_a_record(lambda compiled=compiled, given=given: compiled.apply(given), rounds),
        }
        if given is batch:
            seen["rows_to_columns_to_rows_ns"] = ns_a_record(there_and_back, rounds)
        assert compiled.num_interpreted == 0, compiled.reason
        widths = (8, 15, 9, 22)
        print(
            f"{function.__name__:12}", *(f"{ns:{width}.1f}" for ns, width in zip(seen.values(), widths, strict=False))
        )
        record({"name": function.__name__, **seen})


if __name__ == "__main__":
    main()
