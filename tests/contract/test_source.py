"""What every source that can rewind must do: read some, checkpoint, read on, crash, restore — nothing is lost, nothing
comes twice, and the records of a split keep their order, whatever the parallelism is afterwards.

``SOURCES``: name → function of a folder to a ``Case``. Sources that cannot rewind are at the end.
"""

from __future__ import annotations

import bisect
import bz2
import gzip
import itertools
import json
import logging
import lzma
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.connectors import column_generator as column_generator_module
from engine.connectors import csv_source, file_chunks, file_splits, parquet_source
from engine.connectors.column_generator import ColumnGeneratorSource
from engine.connectors.csv_source import DelimitedFileSource, SkipFirstLineSource
from engine.connectors.files import TextFileSource
from engine.connectors.generator import DataGeneratorSpec, deal_lanes
from engine.connectors.parquet_source import ParquetSource
from engine.connectors.simple import CollectionSpec, FunctionSourceSpec, SequenceSource
from engine.connectors.source import Source, SourceSpec
from engine.connectors.stamped_source import StampedSourceSpec
from engine.core.clock import ManualClock
from engine.core.errors import InputError
from engine.core.records import Row, rows_of
from engine.core.type_info import Types
from engine.datastream.connectors.file_system import FileSource
from engine.datastream.formats.csv import CsvReaderFormat, CsvSchema
from engine.datastream.formats.json import JsonReaderFormat
from engine.operators.base import OperatorSpec, PollResult
from engine.operators.functions import SourceFunction
from engine.time.watermarks import WatermarkStrategy
from engine.time.windows import TIME_MAX_MS, TIME_MIN_MS
from tests.testing.checkpointed_job import CheckpointedJob, TakenCheckpoint
from tests.testing.operator_harness import CollectedOutput, OperatorHarness

TIMEOUT_S = 120.0


@dataclass
class Case:
    spec: OperatorSpec
    #: all records that are to come, in the order of their splits
    records: list[Any]
    #: first parallelism → (record → its split); the records of a split come in the order of ``records``
    split_of: Callable[[int], Callable[[Any], Any]] | None = None
    parallelisms: tuple[int, ...] = (1, 2, 3)
    #: emitted row → records in it
    unpack: Callable[[Any], list[Any]] = field(default=lambda row: [row])


LINES = [f"line {i} {'ü' * (i % 5)}{'x' * (i * 7 % 23)}" for i in range(120)]


def _of_source(source: Source, records: list[Any], **kwargs: Any) -> Case:
    return Case(SourceSpec(source), records, **kwargs)


def _splits(source: Source, parallelism: int) -> list[Any]:
    enumerator = source.create_enumerator()
    enumerator.start(parallelism)
    return list(iter(lambda: enumerator.next_split(0, "nowhere"), None))


def _one_file(folder, name: str, data: bytes, lines: list[str] = LINES, **kwargs: Any) -> Case:
    (folder / name).write_bytes(data)
    source = TextFileSource((str(folder / name),), **kwargs)
    raw_ends = itertools.accumulate(len(raw) + 1 for raw in data.split(b"\n"))
    start_of = dict(zip(lines, [0, *raw_ends], strict=False))

    def split_of(parallelism: int) -> Callable[[Any], Any]:
        starts = [split.start for split in _splits(source, parallelism)]
        return lambda line: 0 if len(starts) == 1 else bisect.bisect(starts, start_of[line])

    return _of_source(source, lines, split_of=split_of)


def plain(folder) -> Case:
    """One file in many splits, cut anywhere."""
    return _one_file(folder, "a", "\n".join(LINES).encode())


def several_files(folder) -> Case:
    """Small files, a byte order mark, carriage returns, empty files and lines; each file is one split."""
    records = []
    for number in range(9):
        lines = [f"{number}:{i}" + "y" * (i % 3) for i in range(number * 2)]
        end = ("\n", "\r\n")[number % 2]
        text = end.join(lines) + (end if number % 3 else "")
        (folder / f"f{number}").write_bytes((b"\xef\xbb\xbf" if number % 2 else b"") + text.encode())
        records += lines
    return _of_source(TextFileSource((str(folder),)), records, split_of=lambda _: lambda line: line.partition(":")[0])


def _compressed(suffix: str, pack: Callable[[bytes], bytes]) -> Callable[[Any], Case]:
    return lambda folder: _one_file(folder, f"a{suffix}", pack("\n".join(LINES).encode()))


def utf16(folder) -> Case:
    return _one_file(folder, "a", "\n".join(LINES).encode("utf-16"), charset="utf-16")


def latin1(folder) -> Case:
    return _one_file(folder, "a", "\n".join(LINES).encode("latin-1"), charset="latin-1")


def columnar(folder) -> Case:
    return _one_file(folder, "a", "\n".join(LINES).encode(), columnar=True)


def raw_chunks(folder) -> Case:
    case = _one_file(folder, "a", "\n".join(LINES).encode(), raw_chunks=True)
    case.unpack = lambda chunk: chunk.decode().removesuffix("\n").split("\n")
    return case


def undecodable_replaced(folder) -> Case:
    lines = [f"\ufffd{i}\ufffd" for i in range(80)]
    return _one_file(folder, "a", b"\n".join(b"\xff%d\xc3" % i for i in range(80)), lines, errors="replace")


def csv_without_headers(folder) -> Case:
    records = []
    for number in range(4):
        lines = [f"{number},{i}" for i in range(number * 9)]
        (folder / f"f{number}").write_text("\n".join(["a,b", *lines]))
        records += lines
    source = SkipFirstLineSource(TextFileSource((str(folder),)))
    return _of_source(source, records, split_of=lambda _: lambda line: line.partition(",")[0])


def csv_delimited(folder) -> Case:
    records = []
    for number in range(4):
        lines = [f"{number},{i}\nü" for i in range(1, number * 9)]
        (folder / f"f{number}").write_bytes("||".join(["header", *lines]).encode() + b"||" * (number % 2))
        records += lines
    source = DelimitedFileSource((str(folder),), "||", skip_first=True)
    return _of_source(source, records, split_of=lambda _: lambda record: record.partition(",")[0])


def sequence(folder) -> Case:
    return _of_source(SequenceSource(-5, 200), list(range(-5, 201)))


def sequence_columnar(folder) -> Case:
    return _of_source(SequenceSource(1, 200, columnar=True), list(range(1, 201)))


def collection(folder) -> Case:
    rows = [(i, str(i)) for i in range(150)]
    return Case(CollectionSpec(tuple(rows)), rows, split_of=lambda _: lambda row: 0, parallelisms=(1, 2))


def generator(folder) -> Case:
    return Case(DataGeneratorSpec(abs, 150), list(range(150)))


def column_generator(folder) -> Case:
    source = ColumnGeneratorSource(_doubled, 150)
    return _of_source(source, [(2 * index,) for index in range(150)])


def _doubled(indexes):
    return {"n": indexes * 2}


def parquet(folder) -> Case:
    rows = [(i, f"text {i}") for i in range(130)]
    for number in range(2):
        own = rows[number::2]
        table = pa.table({"n": [n for n, _ in own], "text": [text for _, text in own]})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=25)
    return _of_source(ParquetSource((str(folder),)), rows, split_of=lambda _: lambda row: (row[0] % 2, row[0] // 50))


def csv_columns(folder) -> Case:
    """Quoted values with separators, quotes and line ends; a header, comments, empty lines; each file is one split."""
    schema = CsvSchema.builder().add_number_column("n").add_string_column("text").set_allow_comments()
    schema = schema.set_use_header().set_skip_first_data_row().build()
    records = []
    for number in range(4):
        rows = [Row(n=i * 4 + number, text=f'"{i}",\n#é{"x" * (i % 30)}\r\n') for i in range(number * 20)]
        lines = [f'{row.n},"{row.text.replace(chr(34), chr(34) * 2)}"' for row in rows]
        for place in range(0, len(lines), 7):
            lines[place] = f"# don't\n\n{lines[place]}"
        data = ("\n", "\r\n")[number % 2].join(["n,text", "0,first", *lines]).encode()
        (folder / f"f{number}{'.gz' * (number == 2)}").write_bytes(gzip.compress(data) if number == 2 else data)
        records += rows
    source = FileSource.for_record_stream_format(CsvReaderFormat.for_schema(schema), str(folder)).build()
    return _of_source(source, records, split_of=lambda _: lambda row: row.n % 4)


def csv_columns_in_splits(folder) -> Case:
    """Without quotes a file is cut anywhere; malformed records in between do not count."""
    schema = CsvSchema.builder().add_number_column("n").add_string_column("text").set_use_header()
    csv_format = CsvReaderFormat.for_schema(schema.disable_quote_char().build()).with_ignore_parse_errors()
    rows = [Row(n=i, text=f'"{"x" * (i * 7 % 23)}') for i in range(120)]
    lines = [f"{row.n},{row.text}" + "\nbad" * (row.n % 9 == 0) for row in rows]
    (folder / "a").write_text("\n".join(["n,text", *lines]))
    return _of_source(FileSource.for_record_stream_format(csv_format, str(folder)).build(), rows)


def json_columns(folder) -> Case:
    rows = [Row(n=i, text="ü" * (i % 5) or None) for i in range(120)]
    lines = [json.dumps(row.as_dict()) + "\n" * (row.n % 7 == 0) for row in rows]
    (folder / "a").write_text("\n".join(lines))
    row_type = Types.ROW_NAMED(["n", "text"], [Types.INT(), Types.STRING()])
    source = FileSource.for_record_stream_format(JsonReaderFormat.for_row_type(row_type), str(folder)).build()
    return _of_source(source, rows)


class Counting(SourceFunction):
    def __init__(self, end: int) -> None:
        self.position = 0
        self.end = end

    def run(self):
        while self.position < self.end:
            self.position += 1
            yield self.position

    def snapshot_state(self):
        return self.position

    def restore_state(self, state):
        self.position = state


def user_function(folder) -> Case:
    return Case(
        FunctionSourceSpec(Counting(90)), list(range(1, 91)), split_of=lambda _: lambda row: 0, parallelisms=(1,)
    )


SOURCES: dict[str, Callable[[Any], Case]] = {
    "plain": plain,
    "several files": several_files,
    "gz": _compressed(".gz", lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:])),
    "bz2": _compressed(".bz2", bz2.compress),
    "xz": _compressed(".xz", lzma.compress),
    "deflate": _compressed(".deflate", zlib.compress),
    "utf-16": utf16,
    "latin-1": latin1,
    "columnar": columnar,
    "raw chunks": raw_chunks,
    "undecodable": undecodable_replaced,
    "csv headers": csv_without_headers,
    "csv delimiter": csv_delimited,
    "sequence": sequence,
    "sequence columnar": sequence_columnar,
    "collection": collection,
    "generator": generator,
    "column generator": column_generator,
    "parquet": parquet,
    "csv columns": csv_columns,
    "csv columns in splits": csv_columns_in_splits,
    "json columns": json_columns,
    "user function": user_function,
}


@dataclass(frozen=True)
class Phase:
    """Read until ``num_rows`` are there, checkpoint; then read ``num_lost`` more, which the crash takes away."""

    num_rows: int
    num_lost: int
    rows_max: int
    parallelism: int


def read(job: CheckpointedJob, num_rows: int, rows_max: int) -> None:
    """Poll the subtasks in turn until about so many rows have come, or all have finished."""
    deadline = time.monotonic() + TIMEOUT_S
    target = len(job.rows()) + num_rows
    while len(job.rows()) < target:
        assert time.monotonic() < deadline, f"{len(job.rows())} of {target} rows came"
        running = sorted(job.harnesses.keys() - job.finished)
        if not running:
            return
        results = [job.poll(subtask, rows_max) for subtask in running if len(job.rows()) < target]
        if all(result is PollResult.IDLE for result in results):
            harness = job.harnesses[running[0]]
            harness.woken.wait(0.002)
            harness.woken.clear()


def read_with_crashes(case: Case, phases: list[Phase]) -> list[Any]:
    """Return the rows that count: those before each checkpoint, and all of the last attempt."""
    job = CheckpointedJob(case.spec, parallelism=phases[0].parallelism)
    kept: list[Any] = []
    taken: TakenCheckpoint | None = None
    try:
        for phase in phases:
            job.start(taken, parallelism=phase.parallelism)
            read(job, phase.num_rows, phase.rows_max)
            taken = job.complete()
            kept += job.rows()
            read(job, phase.num_lost, phase.rows_max)
            job.kill()
        job.start(taken)
        read(job, 10**9, 7)
        kept += job.rows()
    finally:
        job.dispose()
    return [record for row in kept for record in case.unpack(row)]


def phases_of(parallelisms: tuple[int, ...]) -> Any:
    phase = st.builds(
        Phase,
        num_rows=st.integers(0, 60),
        num_lost=st.integers(0, 30),
        rows_max=st.integers(1, 6),
        parallelism=st.sampled_from(parallelisms),
    )
    return st.lists(phase, min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(file_chunks, "_CHUNK_BYTES", 150)
    monkeypatch.setattr(csv_source, "_CHUNK_BYTES", 50)
    monkeypatch.setattr(file_splits, "SPLIT_BYTES_MIN", 300)
    monkeypatch.setattr(column_generator_module, "_BLOCK", 16)
    monkeypatch.setattr(parquet_source, "BATCH_ROWS_MAX", 10)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_read_across_crashes_is_what_is_read_without(name, tmp_path):
    case = SOURCES[name](tmp_path)
    place = {record: number for number, record in enumerate(case.records)}

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(phases=phases_of(case.parallelisms))
    def check(phases: list[Phase]) -> None:
        records = read_with_crashes(case, phases)
        assert Counter(records) == Counter(case.records)
        if case.split_of is not None:
            split_of = case.split_of(phases[0].parallelism)
            by_split = defaultdict(list)
            for record in records:
                by_split[split_of(record)].append(place[record])
            assert [places for places in by_split.values() if places != sorted(places)] == []

    check()


#: those that tell their splits, and whose rows are records
STAMPED = [name for name in SOURCES if name not in ("raw chunks", "generator", "collection", "user function")]


@pytest.mark.parametrize("name", STAMPED)
def test_of_splits_that_a_checkpoint_has_no_record_is_late_in_whatever_order_they_are_read(name, tmp_path):
    """Times begin anew in each split, so a watermark that did not know of those that wait would make theirs late."""
    case = SOURCES[name](tmp_path)
    num_told = 0

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(phases=phases_of(case.parallelisms))
    def check(phases: list[Phase]) -> None:
        nonlocal num_told
        split_of = case.split_of(phases[0].parallelism) if case.split_of else _SplitOfBatches(case, phases[0])
        rank_of, ranks = {}, Counter()
        for record in case.records:
            rank_of[record] = ranks[split_of(record)]
            ranks[split_of(record)] += 1
        strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(
            lambda record, _: rank_of[record]
        )
        stamped = replace(case, spec=StampedSourceSpec(case.spec, strategy))
        begun: set[Any] = set()
        records = []
        for outputs in attempts_of(stamped, phases):
            late = [r for output in outputs for r in late_records(output) if split_of(r) in begun]
            assert late == []
            records += [row for output in outputs for row in output.rows]
            begun |= {split_of(row) for output in outputs for row in output.rows}
        # To the end: of the last split that was read nobody else held the watermark, unless one of which nothing was
        # left to read was looked at last.
        told = [[ms for ms in output.watermarks_ms if ms < TIME_MAX_MS] for output in outputs if output.rows]
        ends = [rank_of[output.rows[-1]] - 1 for output in outputs if output.rows]
        assert [(own, end) for own, end in zip(told, ends, strict=True) if own and own[-1] < end] == []
        num_told += sum(map(bool, told))
        assert Counter(records) == Counter(case.records)

    check()
    assert num_told


class _SplitOfBatches:
    """Which split each record is of, found by reading the splits one by one."""

    def __init__(self, case: Case, phase: Phase) -> None:
        self._split_of: dict[Any, str] = {}
        source = case.spec.source
        for split in _splits(source, phase.parallelism):
            reader = source.create_reader()
            with OperatorHarness(SourceSpec(source)) as harness:
                reader.open(harness.contexts[0])
                reader.add_split(split)
                while not reader.is_drained():
                    if (batch := reader.poll(1000)) is not None:
                        self._split_of.update(dict.fromkeys(rows_of(batch).rows, split.split_id))
                reader.close()

    def __call__(self, record: Any) -> str:
        return self._split_of[record]


def attempts_of(case: Case, phases: list[Phase]) -> Iterator[list[CollectedOutput]]:
    """Yield what the subtasks gave up to each checkpoint, and to the end; after each checkpoint all are killed."""
    job = CheckpointedJob(case.spec, parallelism=phases[0].parallelism)
    taken: TakenCheckpoint | None = None
    try:
        for phase in phases:
            job.start(taken, parallelism=phase.parallelism)
            read(job, phase.num_rows, phase.rows_max)
            taken = job.complete()
            yield [harness.output for harness in job.harnesses.values()]
            job.kill()
        job.start(taken)
        read(job, 10**9, 7)
        yield [harness.output for harness in job.harnesses.values()]
    finally:
        job.dispose()


def late_records(output: CollectedOutput) -> list[Any]:
    """Return the records that came behind a watermark which said that none like it would."""
    late, watermark_ms = [], TIME_MIN_MS
    for told in output.story:
        if isinstance(told, int):
            watermark_ms = told
        else:
            rows = rows_of(told)
            late += [row for row, ms in zip(rows.rows, rows.timestamps_ms, strict=True) if ms <= watermark_ms]
    return late


def test_a_split_that_was_requested_at_the_checkpoint_is_requested_again(tmp_path):
    job = CheckpointedJob(SourceSpec(SequenceSource(1, 20)), parallelism=2)
    job.start()
    [enumerator] = job.coordinators
    held_back: list[Any] = []
    answer, enumerator.ctx.send_event = enumerator.ctx.send_event, lambda *event: held_back.append(event)
    job.poll(0, 5)
    taken = job.checkpoint()
    assert [subtask for subtask, _ in held_back] == [0]
    # The answer was given before the enumerator's snapshot, so it belongs to the checkpoint and comes first.
    for event in held_back:
        answer(*event)
    taken.subtasks.clear()
    for subtask in (0, 1):
        job.snapshot_subtask(taken, subtask)
    job.kill()
    job.start(taken, parallelism=1)
    read(job, 10**9, 6)
    assert sorted(job.rows()) == list(range(1, 21))
    job.dispose()


def test_a_restored_reader_hears_that_there_is_no_more_and_ends(tmp_path):
    job = CheckpointedJob(SourceSpec(SequenceSource(1, 10)))
    job.start()
    job.poll(0, 100)
    assert job.poll(0, 4) is PollResult.MORE or job.rows()
    taken = job.complete()
    kept = job.rows()
    job.kill()
    job.start(taken)
    read(job, 10**9, 4)
    assert (kept + job.rows(), job.finished) == (list(range(1, 11)), {0})
    job.dispose()


def test_monitoring_goes_on_after_a_restart_and_reads_no_file_again(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}").write_text(f"{number}a\n{number}b\n{number}c\n")
    job = CheckpointedJob(SourceSpec(TextFileSource((str(tmp_path),), monitor_interval_ms=1)))
    job.start()
    read(job, 4, 1)
    taken = job.complete()
    kept = job.rows()
    read(job, 3, 1)
    (tmp_path / "3").write_text("3a\n3b")
    read(job, 1, 1)
    job.kill()
    (tmp_path / "4").write_text("4a")
    job.start(taken, parallelism=2)
    read(job, 12 - len(kept), 1)
    for _ in range(20):  # it must not find anything else
        for subtask in (0, 1):
            job.poll(subtask, 10)
    assert sorted(kept + job.rows()) == [*(f"{n}{x}" for n in range(3) for x in "abc"), "3a", "3b", "4a"]
    job.dispose()


def test_a_file_that_became_shorter_since_the_checkpoint_is_an_error(tmp_path):
    path = tmp_path / "a"
    path.write_text("\n".join(LINES[:9]))
    job = CheckpointedJob(SourceSpec(TextFileSource((str(path),))))
    job.start()
    read(job, 5, 5)
    taken = job.complete()
    job.kill()
    path.write_text("short\n")
    job.start(taken)
    with pytest.raises(InputError, match=r"ends before byte \d+.*become shorter"):
        read(job, 10**9, 5)
    job.dispose()


@pytest.mark.parametrize("former", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("now", [1, 2, 3, 5, 8])
def test_lanes_of_generators_are_dealt_out_completely(former, now):
    lanes = [(subtask + former * subtask, former) for subtask in range(former)]
    expected = Counter(index for start, step in lanes for index in range(start, 400, step))
    dealt = [deal_lanes(lanes, subtask, now) for subtask in range(now)]
    assert Counter(index for own in dealt for start, step in own for index in range(start, 400, step)) == expected
    assert all(dealt)


def test_a_generator_keeps_its_rate_after_a_restart():
    clock = ManualClock(1_000)
    job = CheckpointedJob(DataGeneratorSpec(abs, None, 10), clock=clock)
    job.start()
    for _ in range(20):
        clock.advance(100)
        job.poll(0, 100)
    taken = job.complete()
    kept = job.rows()
    job.kill()
    clock.advance(60_000)  # the time of the restart is not made up for
    job.start(taken)
    for _ in range(20):
        clock.advance(100)
        job.poll(0, 100)
    rows = kept + job.rows()
    assert rows == list(range(len(rows)))
    assert 38 <= len(rows) <= 44
    job.dispose()


class _Begins(SourceFunction):
    def run(self):
        yield from range(3)


def test_a_user_function_without_a_state_begins_anew_and_says_so(caplog):
    spec = FunctionSourceSpec(_Begins())
    assert "begins anew" in spec.describe()
    assert "begins anew" not in FunctionSourceSpec(Counting(1)).describe()
    job = CheckpointedJob(spec)
    job.start()
    read(job, 2, 2)
    taken = job.complete()
    job.kill()
    with caplog.at_level(logging.WARNING):
        job.start(taken)
    read(job, 10**9, 2)
    assert job.rows() == [0, 1, 2]
    assert [record.message for record in caplog.records if "_Begins has no snapshot_state()" in record.message]
    job.dispose()
