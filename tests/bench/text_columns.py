"""CSV and JSON lines read as columns beside the row path, MB per CPU-second: ``python -m tests.bench.text_columns``.

The reader alone, with its thread: no job around it. Peers are run by hand (Polars ``read_csv``/``read_ndjson``, DuckDB
``create table … as select * from read_csv(…)``, one thread each, on the files that ``--keep FOLDER`` leaves).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.connectors.source import Source
from engine.core.type_info import Types
from engine.datastream.connectors.file_system import FileSource, StreamFormat
from engine.datastream.formats.csv import CsvReaderFormat, CsvSchema
from engine.datastream.formats.json import JsonReaderFormat
from engine.operators.csv_lines import CsvFormat, ParseCsvLine
from tests.bench.stats import record

KINDS = ("csv", "quoted", "json")
ROW_TYPE = Types.ROW_NAMED(
    ["id", "user", "amount", "text", "flag"],
    [Types.LONG(), Types.LONG(), Types.DOUBLE(), Types.STRING(), Types.BOOLEAN()],
)


class _Task:
    operator_name = "bench"

    def wake(self) -> None:
        pass


def write(folder: Path, kind: str, num_records: int) -> Path:
    """Write the records, unless that has been done."""
    path = folder / f"records.{kind}"
    if path.exists():
        return path
    rng = random.Random(1)
    with path.open("w") as file:
        for i in range(num_records):
            user, amount = rng.randrange(10_000), round(rng.random() * 1000, 2)
            text, flag = f"item {rng.randrange(1000)} of page", rng.random() < 0.5
            if kind == "json":
                record = {"id": i, "user": user, "amount": amount, "text": text, "flag": flag}
                file.write(json.dumps(record) + "\n")
            else:
                shown = f'"{text}, ""x"""' if kind == "quoted" else text
                file.write(f"{i},{user},{amount},{shown},{str(flag).lower()}\n")
    return path


def source(path: Path, kind: str, *, columns: bool) -> Source:
    if not columns:
        own: Any = StreamFormat.text_line_format()
    elif kind == "json":
        own = JsonReaderFormat.for_row_type(ROW_TYPE)
    else:
        schema = CsvSchema.builder().add_number_column("id").add_number_column("user")
        schema = schema.add_number_column("amount", Types.DOUBLE()).add_string_column("text").add_boolean_column("flag")
        own = CsvReaderFormat.for_schema((schema if kind == "quoted" else schema.disable_quote_char()).build())
    return FileSource.for_record_stream_format(own, str(path)).build()


def cpu_s_of(path: Path, kind: str, *, columns: bool) -> float:
    own = source(path, kind, columns=columns)
    csv_format = CsvFormat(kinds=("int", "int", "float", "str", "bool"), quote='"' if kind == "quoted" else None)
    parse: Any = json.loads if kind == "json" else ParseCsvLine(csv_format).flat_map
    enumerator, reader = own.create_enumerator(), own.create_reader()
    begin_s = time.process_time()
    enumerator.start(1)
    reader.open(_Task())  # type: ignore[arg-type]
    while (split := enumerator.next_split(0, "nowhere")) is not None:
        reader.add_split(split)
    while not reader.is_drained():
        batch = reader.poll(16_384)
        if batch is None:
            time.sleep(0.001)
        elif not columns:
            for line in batch.rows:  # type: ignore[union-attr]
                parse(line)
    reader.close()
    return time.process_time() - begin_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_500_000)
    parser.add_argument("--keep", default="", help="folder for the files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(options.keep or temp)
        for kind in KINDS:
            path = write(folder, kind, options.records)
            cpu_s_of(path, kind, columns=True)  # imports
            for columns in (True, False, True):
                cpu_s = cpu_s_of(path, kind, columns=columns)
                rate = path.stat().st_size / 1e6 / cpu_s
                print(f"{kind:7} {'columns' if columns else 'rows':8} {rate:6.0f} MB per CPU-second", flush=True)
                record({"name": kind, "way": "columns" if columns else "rows", "mb_per_cpu_s": rate})


if __name__ == "__main__":
    main()
