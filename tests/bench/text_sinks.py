"""CSV, JSON lines and printed text written from columns beside the row path: ``python -m tests.bench.text_sinks``.

The writer of a part file alone, to a file that nobody reads: no job around it, no sync. ``on rows`` takes the same
columns apart first, as a job does; ``rows`` has tuples made before. All three must write the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.connectors.bulk_writers import CsvFormat, JsonFormat
from engine.connectors.file_system import Encoder
from engine.core.records import BATCH_ROWS_MAX, Batch, ColumnBatch
from engine.core.type_info import TypeInformation, Types
from tests.bench.stats import record

NAMES = ("id", "user", "amount", "text", "flag")
TYPED = Types.TUPLE([Types.LONG(), Types.LONG(), Types.DOUBLE(), Types.STRING(), Types.BOOLEAN()])
FORMATS: dict[str, tuple[Any, TypeInformation | None]] = {
    "CSV (CsvBulkWriters)": (CsvFormat(NAMES), None),
    "CSV, a field of each record quoted": (CsvFormat(NAMES), None),
    "JSON lines": (JsonFormat(NAMES), None),
    "printed tuples (Encoder, write_as_text)": (Encoder(), TYPED),
}


class _Digest(io.BytesIO):
    """A file that knows what was written, and keeps none of it."""

    def __init__(self, *, keeps: bool) -> None:
        super().__init__()
        self.digest = hashlib.md5(usedforsecurity=False)
        self.size = 0
        self._keeps = keeps

    def write(self, data: Any) -> int:
        if self._keeps:
            self.digest.update(data)
        self.size += len(data)
        return len(data)


def batches(num_records: int, *, quoted: bool) -> list[ColumnBatch]:
    rng = np.random.default_rng(1)
    made = []
    for begin in range(0, num_records, BATCH_ROWS_MAX):
        size = min(BATCH_ROWS_MAX, num_records - begin)
        form = 'item {}, "x"' if quoted else "item {} of page"
        columns = [
            np.arange(begin, begin + size),
            rng.integers(0, 10_000, size),
            np.round(rng.random(size) * 1000, 2),
            [form.format(number) for number in rng.integers(0, 1000, size).tolist()],
            rng.random(size) < 0.5,
        ]
        made.append(ColumnBatch(pa.record_batch(list(map(pa.array, columns)), names=NAMES)))
    return made


def write(name: str, given: Sequence[Batch], *, keeps: bool, takes_apart: bool) -> tuple[float, _Digest]:
    """Return the CPU time, and what was written."""
    file_format, type_info = FORMATS[name]
    stream = _Digest(keeps=keeps)
    begin_s = time.process_time()
    writer = file_format.create(stream, type_info)
    for batch in given:
        writer.write(batch.to_rows() if takes_apart and isinstance(batch, ColumnBatch) else batch, "bench")
    writer.flush()
    return time.process_time() - begin_s, stream


def ways_of(name: str, num_records: int) -> dict[str, tuple[Sequence[Batch], bool]]:
    """Return what each way is given, and whether it takes that apart."""
    given = batches(num_records, quoted="quoted" in name)
    return {"columns": (given, False), "on rows": (given, True), "rows": ([batch.to_rows() for batch in given], False)}


def check(name: str, ways: dict[str, tuple[Sequence[Batch], bool]]) -> None:
    digests = {write(name, of[:4], keeps=True, takes_apart=apart)[1].digest.hexdigest() for of, apart in ways.values()}
    assert len(digests) == 1, "not the same bytes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.records:,} records of five fields, best of {options.runs}; CPU time")
    for name in FORMATS:
        ways = ways_of(name, options.records)
        check(name, ways)
        rates = {}
        for way, (of, apart) in ways.items():
            runs = [write(name, of, keeps=False, takes_apart=apart) for _ in range(options.runs)]
            cpu_s, size = min(cpu_s for cpu_s, _ in runs), runs[0][1].size
            rates[way] = options.records / cpu_s / 1e6
            print(f"{name:40} {way:8} {size / 1e6 / cpu_s:6.1f} MB/s {rates[way]:6.2f} M records/s", flush=True)
            record({"name": name, "way": way, "mb_per_cpu_s": size / 1e6 / cpu_s, "m_records_per_cpu_s": rates[way]})
        print(f"{name:40} columns / on rows: {rates['columns'] / rates['on rows']:.1f}")


if __name__ == "__main__":
    main()
