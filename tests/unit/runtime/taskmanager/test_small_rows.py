"""Typed rows of a stream without end: small batches cross the exchange as rows, others as columns; nobody can tell."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from engine.common import Time, Types, WatermarkStrategy
from engine.core import user_code
from engine.core.errors import ProgramError
from engine.core.records import Batch, ColumnBatch, RowBatch, rows_of
from engine.datastream import DataStream, StreamExecutionEnvironment, vectorise
from engine.datastream.aggregates import count, sum_
from engine.datastream.connectors import DataGeneratorSource, DiscardingSink
from engine.datastream.window import TumblingEventTimeWindows
from engine.graph.job_graph import ChainSpec, JobGraph
from engine.operators.row_columns import SMALL_ROWS_MAX
from engine.protocol.stream import Records
from engine.runtime.exchange.partitioners import make_channel_selector
from engine.runtime.exchange.wire import Decoder, Encoder
from engine.runtime.taskmanager.chain_runner import OperatorChain
from engine.time.watermarks import TimestampAssigner
from tests.testing.operator_harness import CollectedOutput, OperatorHarness, SubtaskSnapshot

FIELDS = [Types.STRING(), Types.LONG(), Types.DOUBLE(), Types.STRING()]
TUPLES, ROWS = Types.TUPLE(FIELDS), Types.ROW_NAMED(["k", "v", "x", "t"], FIELDS)
SMALL, LARGE = "rows", "columns"


class Given:
    """A call that does not compile."""

    def __call__(self, record: Any) -> Any:
        return record


class Times(TimestampAssigner):
    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        return value[1] % 1000 * 10 + len(str(value[0])) * 0


def last_text(a: Any, b: Any) -> Any:
    return a[0], a[1] + b[1], b[2], b[3]


def stamped(stream: DataStream) -> DataStream:
    times = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(Times())
    return stream.assign_timestamps_and_watermarks(times)


CASES: dict[str, tuple[Any, Callable[[DataStream], DataStream]]] = {
    "sum": (TUPLES, lambda stream: stream.key_by(0).sum(1)),
    "sum of rows": (ROWS, lambda stream: stream.key_by(lambda e: e[0]).sum("v")),
    "sum of floats": (TUPLES, lambda stream: stream.key_by(0).sum(2)),
    "min, by an integer": (ROWS, lambda stream: stream.key_by("v").min("x")),
    "max": (TUPLES, lambda stream: stream.key_by(0).max(1)),
    "min_by": (ROWS, lambda stream: stream.key_by("k").min_by("v")),
    "latest": (TUPLES, lambda stream: stream.key_by(0).reduce(lambda a, b: b if b[1] >= a[1] else a)),
    "max_by": (TUPLES, lambda stream: stream.filter(lambda e: e[1] != 5).key_by(0).max_by(2)),
    "reduce": (TUPLES, lambda stream: stream.key_by(0).reduce(last_text)),
    "last row": (TUPLES, lambda stream: stream.key_by(0).last_row()),
    "top": (TUPLES, lambda stream: stream.key_by(0).top_n(2, by=1, with_rank=True)),
    "window": (
        TUPLES,
        lambda stream: (
            stamped(stream)
            .key_by(0)
            .window(TumblingEventTimeWindows.of(Time.seconds(1)))
            .aggregate(count(), sum_(1), sum_(2))
        ),
    ),
}


def planned(case: str, monkeypatch: pytest.MonkeyPatch, *, on_rows: bool = False) -> JobGraph:
    """Return source → map and all behind it → operator → sink, each a vertex."""
    env = StreamExecutionEnvironment.create_local_environment(2)
    source = env.from_source(DataGeneratorSource(Given(), None), WatermarkStrategy.no_watermarks(), "Source")
    type_info, behind = CASES[case]
    stream = source.rebalance().map(Given(), output_type=type_info)
    behind(stream).uid("operator").rebalance().sink_to(DiscardingSink())
    with monkeypatch.context() as patch:
        if on_rows:
            patch.setattr(vectorise, "typed_nodes", lambda nodes, num_rows_min: set())
        return env._build("plan")[0]


class Exit(CollectedOutput):
    """Of a chain; ``shapes``: of the batches that left."""

    @property
    def shapes(self) -> list[str]:
        return [LARGE if isinstance(batch, ColumnBatch) else SMALL for batch in self.batches]


class Task:
    """A subtask of a vertex, with its chain as a slot runs it."""

    def __init__(
        self, chain: bytes, index: int = 0, parallelism: int = 1, restored: Sequence[SubtaskSnapshot] | None = None
    ) -> None:
        spec = user_code.loads(chain)
        assert isinstance(spec, ChainSpec)
        specs = [chained.spec for chained in spec.operators]
        self.harness = OperatorHarness(*specs, subtask_index=index, parallelism=parallelism, restored=restored)
        self.exit = Exit()
        self.chain = OperatorChain(spec, [self.exit])
        contexts = {chained.operator_id: self.harness._context(at) for at, chained in enumerate(spec.operators)}
        self.chain.open(lambda chained: contexts[chained.operator_id])
        self.harness.operators, self.harness.contexts = self.chain.operators, list(contexts.values())
        self.decoder = Decoder()

    def take(self, batch: Batch) -> None:
        """Take a batch from an exchange."""
        for frame in Encoder().encode(Records(batch)):
            element = self.decoder.decode(frame.kind, b"".join(frame.buffers))
            if isinstance(element, Records):
                self.chain.process_batch(0, element.batch)

    def close(self) -> None:
        self.chain.close()
        self.harness._work_dir.cleanup()


class Job:
    """A sender, and receivers behind a hash exchange. Results are kept over a restart."""

    def __init__(self, graph: JobGraph) -> None:
        self.found: list[Any] = []
        self.shapes: Counter[str] = Counter()
        self.tiers: set[str] = set()
        self.receivers: list[Task] = []
        #: of small batches whose results were rows, too
        self.num_small = 0
        self.snapshots: list[SubtaskSnapshot] = []
        self.begin(graph, 2, None)

    def begin(self, graph: JobGraph, parallelism: int, restored: Sequence[SubtaskSnapshot] | None) -> None:
        _, sender, receiver, _ = graph.vertices
        self.sender = Task(sender.chain)
        (leaving,) = self.sender.chain.spec.exits
        self.selector = make_channel_selector(leaving.partitioning, parallelism, operator_name="sender")
        self.receivers = [Task(receiver.chain, index, parallelism, restored) for index in range(parallelism)]

    def process(self, rows: list[Any]) -> None:
        self.sender.chain.process_batch(0, RowBatch(rows))
        for batch in self.sender.exit.batches:
            for channel, part in self.selector.split(batch):
                self.receivers[channel].take(part)
        for watermark_ms in self.sender.exit.watermarks_ms:
            self.watermark(watermark_ms)
        self.shapes.update(self.sender.exit.shapes)
        self.sender.exit.batches.clear()
        self.sender.exit.watermarks_ms.clear()

    def watermark(self, watermark_ms: int) -> None:
        for task in self.receivers:
            task.chain.process_watermark(watermark_ms)

    def checkpoint(self, checkpoint_id: int) -> None:
        """Take one that builds on the last one."""
        since = self.snapshots or [None] * len(self.receivers)
        self.snapshots = [
            task.harness.snapshot(checkpoint_id, since=last) for task, last in zip(self.receivers, since, strict=True)
        ]

    def restart(self, graph: JobGraph, parallelism: int) -> None:
        self.checkpoint(2)
        self.end()
        self.begin(graph, parallelism, self.snapshots)

    def end(self) -> dict[Any, list[Any]]:
        """Return the results by key, in their order."""
        for task in self.receivers:
            self.num_small += task.exit.shapes.count(SMALL)
            self.found += [row for batch in task.exit.batches for row in rows_of(batch).rows]
            self.tiers.add(task.chain.operator_metrics()[0].tier)
        for task in (self.sender, *self.receivers):
            task.close()
        by_key: dict[Any, list[Any]] = {}
        for row in self.found:
            by_key.setdefault(row[0], []).append(exact(row))
        return by_key


def exact(value: Any) -> Any:
    if type(value) is float:
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    if type(value) is tuple:
        return tuple(map(exact, value))
    if type(value) in (str, int, bool, type(None)):
        return type(value), value
    return type(value), value._kind, value._fields, tuple(map(exact, value._values))


def batches(rng: random.Random, *, odd_at: int | None = None) -> list[list[Any]]:
    """Return batches about as large as what decides. ``odd_at``: the batch with a record that is not of the type."""
    sizes = [1, 3, SMALL_ROWS_MAX + 1, SMALL_ROWS_MAX, 300, 2, 40, 0, 7, 1, 500, SMALL_ROWS_MAX, 5]
    keys = ["", "a", "é\N{SNOWMAN}", "bb", "\0", "key"]
    texts = ["", "one", "☃", "two"]
    numbers = [5, 0, -1, 2**40, -(2**50), *(rng.randrange(-(2**40), 2**40) for _ in range(10))]
    floats = [0.0, -0.0, 1.5, math.nan, math.inf, -2.25]
    made = [
        [(rng.choice(keys), rng.choice(numbers), rng.choice(floats), rng.choice(texts)) for _ in range(size)]
        for size in sizes
    ]
    made[12][3] = (*made[12][3][:3], None)
    if odd_at is not None:
        made[odd_at][-1] = ("odd", True, 1.0, "")
    return made


@pytest.mark.parametrize("case", CASES)
def test_batches_of_all_sizes_give_what_rows_give(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job, on_rows = (Job(planned(case, monkeypatch, on_rows=is_on_rows)) for is_on_rows in (False, True))
    for rows in batches(random.Random(case)):
        job.process(rows)
        on_rows.process(rows)
    assert job.shapes[LARGE] >= 2
    assert job.shapes[SMALL] >= 8
    assert set(on_rows.shapes) == {SMALL}
    for either in (job, on_rows):
        either.watermark(10**6)
    assert job.end() == on_rows.end()
    assert not any(tier.startswith("on rows") or "not of its type" in tier for tier in job.tiers)
    assert any("small batches come as rows" in tier for tier in job.tiers)
    assert (job.num_small >= 5) is (case not in ("reduce", "last row", "top", "window"))


@pytest.mark.parametrize("odd_at", [1, 2, 5])
@pytest.mark.parametrize("case", ["sum", "sum of rows", "window"])
def test_after_a_record_of_another_type_all_goes_on_as_rows(
    case: str, odd_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, on_rows = (Job(planned(case, monkeypatch, on_rows=is_on_rows)) for is_on_rows in (False, True))
    for rows in batches(random.Random(case), odd_at=odd_at):
        job.process(rows)
        on_rows.process(rows)
    for either in (job, on_rows):
        either.watermark(10**6)
    assert job.end() == on_rows.end()
    assert any(tier.startswith("on rows") and "until one was not of its type" in tier for tier in job.tiers)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (False, False)])
def test_state_goes_on_in_the_other_shape(
    case: str, before: bool, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``before``, ``after``: whether it is planned on rows, as it was in former versions."""
    given = batches(random.Random(case))
    half = 9
    job, on_rows = (Job(planned(case, monkeypatch, on_rows=is_on_rows)) for is_on_rows in (before, True))
    for either, then_on_rows in ((job, after), (on_rows, True)):
        for at, rows in enumerate(given[:half]):
            either.process(rows)
            if at == 4:
                either.checkpoint(1)  # only small batches of known keys follow
        either.restart(planned(case, monkeypatch, on_rows=then_on_rows), 3)
    if (case, before, after) == ("window", False, True):
        with pytest.raises(ProgramError, match="kept by columns"):  # these cannot go back
            job.process(given[half])
        return
    for rows in given[half:]:
        job.process(rows)
        on_rows.process(rows)
    for either in (job, on_rows):
        either.watermark(10**6)
    assert job.end() == on_rows.end()


@pytest.mark.parametrize("case", ["sum", "sum of rows"])
def test_a_sum_beyond_64_bits_goes_on_on_rows(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job, on_rows = (Job(planned(case, monkeypatch, on_rows=is_on_rows)) for is_on_rows in (False, True))
    for size in (SMALL_ROWS_MAX + 1, 1, 3, 1):
        for either in (job, on_rows):
            either.process([("a", 2**53 if size > SMALL_ROWS_MAX else 2**62, 0.5, "one")] * size)
    assert job.end() == on_rows.end()
    assert any(tier.startswith("on rows: an integer sum beyond 64 bits") for tier in job.tiers)


@pytest.mark.parametrize("row", [("a", 2**63, 0.5, ""), ("a", 1, 0.5, "\ud800"), ("\ud800", 1, 0.5, "")])
@pytest.mark.parametrize("case", ["sum of floats", "max_by"])
def test_values_that_columns_cannot_have_go_on_on_rows(
    case: str, row: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, on_rows = (Job(planned(case, monkeypatch, on_rows=is_on_rows)) for is_on_rows in (False, True))
    for either in (job, on_rows):
        for rows in ([("a", 1, 0.25, "")] * 200, [("a", 1, 1.0, "")], [row, row], [("a", 1, 0.5, "")]):
            either.process(rows)
    assert job.end() == on_rows.end()
    assert any("until one was not of its type" in tier for tier in job.tiers)


def test_results_stay_columns_where_an_operator_on_columns_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    env = StreamExecutionEnvironment.create_local_environment(2)
    source = env.from_source(DataGeneratorSource(Given(), None), WatermarkStrategy.no_watermarks(), "Source")
    typed = source.rebalance().map(Given(), output_type=TUPLES)
    typed.key_by(0).sum(1).key_by(1).max(1).rebalance().sink_to(DiscardingSink())
    _, _, *receivers, _ = env._build("plan")[0].vertices
    for vertex, has_types in zip(receivers, (True, False), strict=True):
        assert bool(user_code.loads(vertex.chain).row_types) is has_types
    task = Task(receivers[0].chain)
    for rows in ([("a", 1, 0.5, "")] * 200, [("a", 1, 0.5, "")]):
        task.chain.process_batch(0, RowBatch(rows))
    assert task.exit.shapes == [LARGE, LARGE]
    task.close()


def test_a_reader_that_cannot_make_columns_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it makes of rows would be rows, of a type that nobody knows, for the operator on columns behind it."""
    env = StreamExecutionEnvironment.create_local_environment(2)
    source = env.from_source(DataGeneratorSource(Given(), None), WatermarkStrategy.no_watermarks(), "Source")
    typed = source.rebalance().map(Given(), output_type=TUPLES)
    typed.map(lambda e: (e[0], e[1] + 1)).key_by(0).sum(1).rebalance().sink_to(DiscardingSink())
    _, sender, receiver, _ = env._build("plan")[0].vertices
    task = Task(sender.chain)
    task.chain.process_batch(0, RowBatch([("a", 1, 0.5, "")]))
    assert task.exit.shapes == [LARGE]
    assert user_code.loads(receiver.chain).row_types == ()
    task.close()


def test_inputs_of_two_types_get_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    env = StreamExecutionEnvironment.create_local_environment(2)
    source = env.from_source(DataGeneratorSource(Given(), None), WatermarkStrategy.no_watermarks(), "Source")
    one, other = (source.rebalance().map(Given(), output_type=kind) for kind in (TUPLES, Types.TUPLE(FIELDS[:2])))
    for streams, is_one_type in (((one, one), True), ((one, other), False)):
        streams[0].union(streams[1]).key_by(0).sum(1).rebalance().sink_to(DiscardingSink())
        vertices = env._build("plan")[0].vertices
        env._sinks.clear()
        specs = [user_code.loads(vertex.chain) for vertex in vertices]
        assert any(spec.row_types for spec in specs) is is_one_type
        assert any(own.small_as_rows for spec in specs for own in spec.exits) is is_one_type
