"""Every stateful operator three ways: straight; with a crash behind each mark; restored at another parallelism.

The results up to a mark and those after the restore from it are, as a multiset, those of the undisturbed run: nothing
lost, nothing twice. Watermarks are not part of state: sources send them again after a restore, and so does this driver.
"""

from __future__ import annotations

import contextlib
import importlib
import pathlib
import pkgutil
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pytest

import engine.connectors
import engine.operators
from engine.core import user_code
from engine.core.clock import ManualClock
from engine.core.record_class import fields_of_class
from engine.core.records import Batch, ColumnBatch, Row, RowBatch, arrow_values, kind_of, rows_of
from engine.operators import base
from engine.state.key_groups import key_group_of, subtask_of_key_group
from engine.state.parts import DeltaPart
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators import restore_cases
from tests.unit.operators.evictor_cases import EVICTOR_CASES, EVICTORS, WINDOWS, without_evictor
from tests.unit.operators.restore_cases import MARK, Case, Rows, ToAll, Wait, Watermark
from tests.unit.operators.restore_variants import VARIANTS

CASES = {**restore_cases.CASES, **EVICTOR_CASES, **VARIANTS}

MAX_PARALLELISM = 128
FULL, INCREMENTAL = {}, {"execution.checkpointing.incremental": "true"}
#: name → configuration, whether parts that keep files give them
#: Where a record without a key goes is not decided by its key.
DEALT_OUT = ("broadcast", "words counted ahead")
ROCKSDB = {"state.backend.type": "rocksdb"}
WAYS = {
    "full": (FULL, False),
    "incremental": (INCREMENTAL, False),
    "rocksdb": (ROCKSDB, True),
    "rocksdb, canonical": (ROCKSDB, False),
}


def subtask_of(key, parallelism: int) -> int:
    return subtask_of_key_group(key_group_of(key, MAX_PARALLELISM), parallelism, MAX_PARALLELISM)


def travelled(spec):
    """As in a job: each subtask has functions of its own."""
    return user_code.loads(user_code.dumps(spec, "spec"))


def batch_of(rows: list, stamps: list[int] | None, schema: pa.Schema | None) -> Batch:
    if schema is None:
        return RowBatch(rows, stamps)
    fields = fields_of_class(type(rows[0])) if rows else ()
    if fields:
        values = [[getattr(row, name) for row in rows] for name in fields]
        arrays = [pa.array(own, kind) for own, kind in zip(values, schema.types, strict=True)]
        times_ms = None if stamps is None else np.array(stamps, np.int64)
        return ColumnBatch(pa.RecordBatch.from_arrays(arrays, schema=schema), times_ms, named=type(rows[0]))
    arrays = [pa.array(arrow_values([row[i] for row in rows], kind), kind) for i, kind in enumerate(schema.types)]
    columns = pa.RecordBatch.from_arrays(arrays, schema=schema)
    named = bool(rows) and isinstance(rows[0], Row)
    kinds = np.array([kind_of(row).value for row in rows], np.int8) if named else None
    if kinds is not None and not kinds.any():
        kinds = None
    return ColumnBatch(columns, None if stamps is None else np.array(stamps, np.int64), named=named, kinds=kinds)


class Run:
    """All subtasks of one operator chain, through one or more lives."""

    def __init__(self, case: Case, config: dict[str, str], folder: str | None) -> None:
        self.case = case
        self.config = config
        self.folder = folder
        self.clock = ManualClock(1000)
        self.results: Counter[str] = Counter()
        self.harnesses: list[OperatorHarness] = []
        self.snapshots = None
        self.num_marks = 0
        self.num_deltas = 0
        self.watermark_ms: int | None = None
        self._open = contextlib.ExitStack()

    def start(self, parallelism: int) -> None:
        self._open.close()
        self.harnesses = [
            OperatorHarness(
                *map(travelled, self.case.specs),
                subtask_index=index,
                parallelism=parallelism,
                clock=self.clock,
                config=self.config,
                restored=self.snapshots,
            )
            for index in range(parallelism)
        ]
        for harness in self.harnesses:
            self._open.enter_context(harness)
        self._adopt()
        if self.watermark_ms is not None:
            for harness in self.harnesses:
                harness.watermark(self.watermark_ms)

    def _adopt(self) -> None:
        """As a task does: increments build on the checkpoint that was restored, where the subtask is the same."""
        if self.snapshots is None or len(self.snapshots) != len(self.harnesses):
            return
        for harness in self.harnesses:
            for context in harness.contexts:
                for part in context.state.keyed.values():
                    if isinstance(part, DeltaPart):
                        part.begin_epoch(self.num_marks)

    def play(self, steps: Iterable) -> None:
        for step in steps:
            match step:
                case Rows():
                    self._send(step)
                case Watermark(time_ms):
                    self.watermark_ms = time_ms
                    for harness in self.harnesses:
                        harness.watermark(time_ms)
                case Wait(millis):
                    for _ in range(millis):
                        self.clock.advance(1)
                        for harness in self.harnesses:
                            while (due := harness.head.next_timer_ms()) is not None and due <= self.clock.now_ms():
                                harness.head.on_timer(self.clock.now_ms())
                case _:
                    self._mark()

    def _send(self, step: Rows) -> None:
        key_of = self.case.keys[step.input_index]
        parallelism = len(self.harnesses)
        stamps = step.stamps or [None] * len(step.rows)
        for index, harness in enumerate(self.harnesses):
            mine = [
                (row, stamp)
                for row, stamp in zip(step.rows, stamps, strict=True)
                if key_of is ToAll
                or subtask_of_key_group(key_group_of(key_of(row), MAX_PARALLELISM), parallelism, MAX_PARALLELISM)
                == index
            ]
            if mine:
                stamped = None if step.stamps is None else [stamp for _, stamp in mine]
                batch = batch_of([row for row, _ in mine], stamped, step.schema)
                harness.process_batch(batch, input_index=step.input_index)

    def _mark(self) -> None:
        self.num_marks += 1
        former = self.snapshots if self.snapshots and len(self.snapshots) == len(self.harnesses) else None
        self.snapshots = [
            harness.snapshot(self.num_marks, since=former[index] if former else None, folder=self.folder)
            for index, harness in enumerate(self.harnesses)
        ]
        self.num_deltas += sum(snapshot.num_deltas for snapshot in self.snapshots)
        self.take()

    def take(self) -> None:
        """What has been emitted counts."""
        for harness in self.harnesses:
            output = harness.output
            for name, batches in [("", output.batches), *output.side.items()]:
                for batch in map(rows_of, batches):
                    stamps = batch.timestamps_ms or [None] * len(batch.rows)
                    for row, stamp in zip(batch.rows, stamps, strict=True):
                        self.results[f"{name} {row!r} at {stamp}"] += 1
            output.batches, output.side = [], {}

    def finish(self) -> Counter[str]:
        for harness in self.harnesses:
            harness.end()
        self.take()
        self._open.close()
        return self.results


def straight(case: Case) -> Counter[str]:
    run = Run(case, FULL, None)
    run.start(1)
    run.play(step for step in case.script if step is not MARK or "pre-agg" in str(case.specs))
    return run.finish()


def crashing(case: Case, way: str, parallelisms: list[int], folder: str) -> tuple[Counter[str], Run]:
    """Crash after each mark, when some of what follows has been processed, and restore."""
    config, keeps_files = WAYS[way]
    run = Run(case, config, folder if keeps_files else None)
    run.start(parallelisms[0])
    script = case.script
    marks = [index for index, step in enumerate(script) if step is MARK]
    begin = 0
    for number, mark in enumerate(marks, 1):
        run.play(script[begin : mark + 1])
        begin = mark + 1
        watermark_ms, now_ms = run.watermark_ms, run.clock.now_ms()
        doomed = [step for step in script[begin : begin + 2] if step is not MARK and not isinstance(step, Wait)]
        run.play(doomed)  # its results and its state go down with the crash
        assert run.clock.now_ms() == now_ms
        run.watermark_ms = watermark_ms
        run.start(parallelisms[number % len(parallelisms)])
    run.play(script[begin:])
    return run.finish(), run


@pytest.mark.parametrize("way", ["full", "incremental"])
@pytest.mark.parametrize("name", CASES)
def test_results_after_a_crash_behind_each_mark_are_those_of_an_undisturbed_run(name, way, tmp_path):
    case = CASES[name]()
    golden = straight(case)
    results, _ = crashing(CASES[name](), way, [1], str(tmp_path))
    assert results == golden


@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for way in WAYS
        for name in CASES
        # How elements of windows are kept does not depend on their evictor: each of the two backends once.
        if name not in DEALT_OUT and (name not in {**EVICTOR_CASES, **VARIANTS} or way in ("incremental", "rocksdb"))
    ],
)
def test_results_are_the_same_when_the_parallelism_changes_at_each_restore(name, way, tmp_path):
    golden = straight(CASES[name]())
    parallelisms = [1, 2] if way.startswith("rocksdb") else [1, 3, 2]
    results, _ = crashing(CASES[name](), way, parallelisms, str(tmp_path))
    assert results == golden


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", EVICTORS)
def test_evictors_of_these_cases_do_something(window, name):
    """Else the tests above would say nothing about them; after its function, in windows that fire once, they cannot."""
    fires_again = WINDOWS[window][1] is not None
    evicted = straight(CASES[f"{window}, {name}"]())
    assert (evicted != straight(without_evictor(window))) is (fires_again or not name.endswith("after"))


def test_increments_are_taken_where_nothing_crashes_in_between(tmp_path):
    """A restored part begins with a full snapshot; this is the case of several increments in a row."""
    case = CASES["process"]()
    run = Run(case, INCREMENTAL, None)
    run.start(1)
    wide = [Rows([(f"key {n}", n) for n in range(400)], list(range(1, 401)))]
    script = [*wide, MARK, *case.script]
    last = max(index for index, step in enumerate(script) if step is MARK)
    run.play(script[: last + 1])
    assert run.num_deltas >= 8
    assert len(run.snapshots[0].layers[0]["keyed"]) > 3
    run.start(2)
    run.play(script[last + 1 :])
    golden = Run(CASES["process"](), FULL, None)
    golden.start(1)
    golden.play(step for step in script if step is not MARK)
    assert run.finish() == golden.finish()


def _subclasses(kind: type) -> list[type]:
    return [found for child in kind.__subclasses__() for found in (child, *_subclasses(child))]


def test_every_operator_of_a_batch_job_says_that_it_is_not_checkpointed():
    for name in ("batch_co_group", "batch_group", "batch_join", "batch_reduce", "batch_sort", "iteration"):
        importlib.import_module(f"engine.operators.{name}")
    stateless = {"PassSpec"}
    batch = [
        kind
        for kind in _subclasses(base.OperatorSpec)
        if ".batch_" in kind.__module__ or ".iteration" in kind.__module__
    ]
    assert len(batch) > 8
    silent = [kind.__name__ for kind in batch if not kind.not_checkpointed and kind.__name__ not in stateless]
    assert silent == []


#: Nothing to lose: neither state nor anything that is held back.
STATELESS = {
    *("CoFlatMapSpec", "CoMapSpec", "FilterSpec", "FlatMapSpec", "MapSpec", "MapBatchesSpec", "ProjectSpec"),
    *("TokenizeSpec", "TimestampsSpec", "DiscardSpec", "PassSpec", "PrintSpec"),
    "SocketTextSpec",  # which nobody can read twice
}
#: Which test runs it straight, with crashes, and at another parallelism, where what it does takes more than a harness.
ELSEWHERE = {
    **dict.fromkeys(
        ["SourceSpec", "StampedSourceSpec", "CollectionSpec", "DataGeneratorSpec", "FunctionSourceSpec"],
        "contract/test_source.py",
    ),
    **dict.fromkeys(["FileSinkSpec", "TextFileSinkSpec", "CsvFileSinkSpec"], "unit/connectors/test_sink_crashes.py"),
    "CommittingSinkSpec": "unit/connectors/test_sink.py",
    "CollectSinkSpec": "unit/connectors/test_collect.py",
    "FunctionSinkSpec": "unit/operators/test_checkpointed_function.py",
    "ColumnReduceSpec": "unit/operators/test_column_reduce.py",
    "ColumnSessionSpec": "unit/operators/test_column_session.py",
    **dict.fromkeys(["ColumnIntervalJoinSpec", "ColumnWindowJoinSpec"], "unit/operators/test_column_joins.py"),
    "ColumnGroupAggregateSpec": "unit/operators/test_column_groups.py",
    "ColumnRegularJoinSpec": "unit/operators/test_regular_join.py",
    **dict.fromkeys(["ColumnTopNSpec", "ColumnDeduplicateSpec", "ColumnLastRowSpec"], "unit/operators/test_top_n.py"),
}


def test_every_operator_of_a_streaming_job_is_run_in_the_three_ways():
    for package in (engine.operators, engine.connectors):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    kinds = _subclasses(base.OperatorSpec)
    ours = [kind for kind in kinds if kind.__module__.startswith("engine.") and not kind.__subclasses__()]
    checkpointed = {kind.__name__ for kind in ours if not kind.not_checkpointed}
    here = {type(spec).__name__ for make in CASES.values() for spec in make().specs}
    checkpointed = {name for name in checkpointed if not name.startswith("_")}
    assert len(checkpointed) > 30
    assert checkpointed - here - STATELESS - set(ELSEWHERE) == set()
    tests = pathlib.Path(__file__).parents[2]
    texts = {path: (tests / path).read_text() for path in ELSEWHERE.values()}
    assert [path for path, text in texts.items() if "parallelism" not in text and "disturbed(" not in text] == []
