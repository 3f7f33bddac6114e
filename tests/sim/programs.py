"""What the simulated jobs compute, and the ledger in which their sinks commit.

A source with splits that can rewind → something that fails and is slow now and then → counts by key → a sink that
commits. A record is (attempt of its source, id, key). Each id comes out once, and the counts of a key are 1, 2, 3…
"""

from __future__ import annotations

import pickle
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

from engine.connectors.file_sinks import TextFileSinkSpec
from engine.core import plain_pickle
from engine.core.config import Configuration
from engine.core.errors import ExternalError
from engine.core.ids import JobID
from engine.core.records import Batch, RowBatch, rows_of
from engine.graph import chaining
from engine.graph.job_graph import JobGraph
from engine.graph.stream_graph import build_job_graph
from engine.graph.transformation import Edge, Partitioning, ShipStrategy, Transformation
from engine.operators.base import (
    CoordinatorContext,
    CoordinatorSpec,
    JobOutcome,
    Operator,
    OperatorCoordinator,
    OperatorSpec,
    PollResult,
    SourceOperator,
)
from engine.operators.functions import RuntimeContext
from engine.operators.process import ProcessSpec
from engine.operators.process_functions import KeyedProcessFunction
from engine.state.descriptors import ListStateDescriptor, ValueStateDescriptor
from tests.sim.world import SimulationError, current

__all__ = ["Ledger", "Program", "make_job"]


@dataclass(frozen=True)
class Program:
    """The shape of a job; drawn from the seed."""

    shape: str = "chained"  #: chained | wide | union | batch
    sink: str = "ledger"  #: ledger | files
    parallelism: int = 2
    num_splits: int = 6
    split_rows: int = 15
    num_keys: int = 5
    interval_ms: tuple[int, int] = (10, 80)
    buffer_timeout_ms: int = 10
    checkpoints: bool = False

    @property
    def num_rows(self) -> int:
        return self.num_splits * self.split_rows * (2 if self.shape == "union" else 1)


def _say_fencing(who: str, attempt: int, expected: int) -> None:
    if attempt != expected:
        raise_in_world(f"{who}: something of attempt {attempt} reached attempt {expected}")


def raise_in_world(text: str) -> None:
    """Fail the simulation, whatever the code that called us does with the exception."""
    error = SimulationError(text)
    current().fail(error)
    raise error


# --- the source -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitSource(OperatorSpec):
    first_id: int
    program: Program
    num_inputs = 0

    def build(self) -> Operator:
        return _SplitReader(self)

    def coordinator(self) -> CoordinatorSpec:
        return _EnumeratorSpec(self.first_id, self.program.num_splits, self.program.split_rows)


@final
class _SplitReader(SourceOperator):
    """Its state: the splits that it has, and where in the first it is. After a rescale it may begin with several."""

    def __init__(self, spec: SplitSource) -> None:
        self._spec = spec

    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        runtime = ctx.runtime_context
        self._attempt = runtime.get_attempt_number()
        self._rng = current().rng(f"reader {ctx.job_id} {runtime.get_index_of_this_subtask()} {self._attempt}")
        self._state = ctx.state.operator_states().get_list_state(ListStateDescriptor("positions"))
        self._positions: deque[tuple[int, int]] = deque(self._state.get())
        self._no_more = False
        self._due_ms: int | None = None
        if not self._positions:
            ctx.send_event(("next?",))
        elif ctx.state.is_restored:
            self._tell("restored", f"{list(self._positions)}")

    def _tell(self, what: str, detail: str) -> None:
        runtime = self.ctx.runtime_context
        task = f"source {runtime.get_index_of_this_subtask()}#{self._attempt}"
        current().tell(self.ctx.slot_shared["sim"].name, what, f"{self.ctx.job_id[:4]} {task} {detail}")

    def poll(self, rows_max: int) -> PollResult:
        if not self._positions:
            return PollResult.END if self._no_more else PollResult.IDLE
        now_ms = self.ctx.clock.now_ms()
        if self._due_ms is not None and now_ms < self._due_ms:
            return PollResult.IDLE
        at, end = self._positions[0]
        num = min(rows_max, self._rng.randint(1, 4), end - at)
        keys = self._spec.program.num_keys
        self.out.emit(RowBatch([(self._attempt, row_id, row_id % keys) for row_id in range(at, at + num)]))
        self._tell("emits", f"{at}…{at + num - 1}")
        self._due_ms = now_ms + self._rng.randint(*self._spec.program.interval_ms)
        if at + num < end:
            self._positions[0] = (at + num, end)
        else:
            self._positions.popleft()
            if not self._positions:
                self.ctx.send_event(("next?",))
        return PollResult.IDLE

    def next_timer_ms(self) -> int | None:
        return self._due_ms if self._positions else None

    def on_timer(self, now_ms: int) -> None:
        self._due_ms = None
        self.ctx.wake()

    def handle_event(self, event: object) -> None:
        match event:
            case ("split", start, end, attempt):
                _say_fencing("split", attempt, self._attempt)
                assert not self._positions, "a split that nobody asked for"
                self._positions.append((start, end))
                self._due_ms = None
            case ("none",):
                self._no_more = True
            case _:
                raise AssertionError(event)

    def snapshot_state(self, checkpoint_id: int) -> None:
        self._state.update(list(self._positions))


@dataclass(frozen=True)
class _EnumeratorSpec(CoordinatorSpec):
    first_id: int
    num_splits: int
    split_rows: int

    def create(self) -> OperatorCoordinator:
        return _Enumerator(self)


@final
class _Enumerator(OperatorCoordinator):
    def __init__(self, spec: _EnumeratorSpec) -> None:
        starts = range(spec.first_id, spec.first_id + spec.num_splits * spec.split_rows, spec.split_rows)
        self._splits = deque((start, start + spec.split_rows) for start in starts)

    def restore(self, state: bytes, committables: Mapping[int, object]) -> None:
        if state:
            self._splits = deque(pickle.loads(state))

    def start(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        _attempts_rise(ctx, "enumerator")
        if current().now < current().parts["disturbance"].starts_fail_until:
            raise ExternalError("The input cannot be listed: nobody answers.")

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        _say_fencing("enumerator", attempt_number, self.ctx.attempt_number)
        if self._splits:
            start, end = self._splits.popleft()
            self.ctx.send_event(subtask_index, ("split", start, end, attempt_number))
        else:
            self.ctx.send_event(subtask_index, ("none",))

    def snapshot(self, checkpoint_id: int) -> bytes:
        return pickle.dumps(list(self._splits))


def _attempts_rise(ctx: CoordinatorContext, who: str) -> None:
    """A coordinator of an attempt starts once, after those of all attempts before."""
    seen = current().parts.setdefault("attempts", {})
    key = (ctx.job_id, who)
    if seen.get(key, -1) >= ctx.attempt_number and who != "enumerator":
        raise_in_world(f"{who} of attempt {ctx.attempt_number} starts after that of attempt {seen[key]}")
    seen[key] = max(ctx.attempt_number, seen.get(key, -1))


# --- in between -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disturb(OperatorSpec):
    """Hands records on; checks that they are of its own attempt, unless a result that was kept may come from another;
    fails or is slow when the faults say so."""

    one_attempt: bool = True

    def build(self) -> Operator:
        return _Disturb(self.one_attempt)


@final
class _Disturb(Operator):
    def __init__(self, one_attempt: bool) -> None:
        self._one_attempt = one_attempt

    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        self._attempt = ctx.runtime_context.get_attempt_number()
        self._slot = ctx.slot_shared["sim"]
        self._rng = current().rng(f"disturb {self._slot.name}")

    def process_batch(self, input_index: int, batch: Batch) -> None:
        world = current()
        disturbance = world.parts["disturbance"]
        if self._one_attempt:
            for attempt, _, _ in rows_of(batch).rows:
                if attempt > self._attempt or not world.parts["keeps records"]:
                    _say_fencing("records", attempt, self._attempt)
        if disturbance.poisons and self._rng.random() < 0.2:
            disturbance.poisons -= 1
            world.tell(self._slot.name, "FAULT", "a user function raises")
            raise ValueError("poisoned record")
        if world.now < disturbance.slow_until and self._rng.random() < 0.3:
            self._slot.spend(self._rng.choice((0.002, 0.02, 0.15)))
        self.out.emit(batch)


class CountByKey(KeyedProcessFunction):
    def open(self, runtime_context: RuntimeContext) -> None:
        self._count = runtime_context.get_state(ValueStateDescriptor("count"))

    def process_element(self, value: Any, ctx: Any) -> Iterable[Any]:
        _, row_id, key = value
        count = (self._count.value() or 0) + 1
        self._count.update(count)
        yield (key, count, row_id)


def key_of(row: tuple[int, int, int]) -> int:
    return row[2]


# --- the sink ---------------------------------------------------------------------------------------------------------


@final
class Ledger:
    """What sinks have committed: by job, by part, once each however often it is committed."""

    def __init__(self) -> None:
        self.parts_by_job: dict[str, dict[str, list[tuple[int, int, int]]]] = {}

    def commit(self, job_id: str, parts: Iterable[tuple[str, list[tuple[int, int, int]]]]) -> None:
        known = self.parts_by_job.setdefault(job_id, {})
        for name, rows in parts:
            if name in known:
                if known[name] != rows:
                    raise_in_world(f"part {name} is committed again with other rows")
                continue
            known[name] = rows
            current().tell("ledger", "commit", f"{job_id[:4]} {name}: {len(rows)} rows")
        self.check(job_id)

    def rows(self, job_id: str) -> list[tuple[int, int, int]]:
        return [row for rows in self.parts_by_job.get(job_id, {}).values() for row in rows]

    def check(self, job_id: str) -> None:
        twice = [row_id for row_id, num in Counter(row[2] for row in self.rows(job_id)).items() if num > 1]
        if twice:
            raise_in_world(f"committed twice: {sorted(twice)[:10]}")


@dataclass(frozen=True)
class LedgerSink(OperatorSpec):
    may_refuse: bool = False  #: a commit may fail; without checkpoints that would be the end of the job

    def build(self) -> Operator:
        return _LedgerSink()

    def coordinator(self) -> CoordinatorSpec:
        return _LedgerCommitterSpec(self.may_refuse)


@final
class _LedgerSink(Operator):
    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        runtime = ctx.runtime_context
        self._prefix = f"{runtime.get_index_of_this_subtask()}-{runtime.get_attempt_number()}"
        self._rows: list[Any] = []
        self._num_parts = 0
        #: finished and not known to be committed: since which checkpoint it is offered, and the part
        self._parts: list[tuple[int, tuple[str, list[Any]]]] = []

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self._rows += rows_of(batch).rows

    def _cut(self, checkpoint_id: int) -> None:
        if self._rows:
            self._parts.append((checkpoint_id, (f"{self._prefix}-{self._num_parts}", self._rows)))
            self._num_parts += 1
            self._rows = []

    def prepare_commit(self, checkpoint_id: int) -> object | None:
        self._cut(checkpoint_id)
        if self._parts:
            parts = [f"{name} of {since}: {[row[2] for row in rows]}" for since, (name, rows) in self._parts]
            slot = self.ctx.slot_shared["sim"]
            current().tell(slot.name, "offers", f"{self.ctx.job_id[:4]} {checkpoint_id}: {parts}")
        return [part for _, part in self._parts] or None

    def notify_checkpoint_complete(self, checkpoint_id: int) -> None:
        self._parts = [(since, part) for since, part in self._parts if since > checkpoint_id]

    def finish(self) -> None:
        self._cut(1 << 60)
        self.ctx.send_event(("left", [part for _, part in self._parts]))


@dataclass(frozen=True)
class _LedgerCommitterSpec(CoordinatorSpec):
    may_refuse: bool

    def create(self) -> OperatorCoordinator:
        return _LedgerCommitter(self.may_refuse)


@final
class _LedgerCommitter(OperatorCoordinator):
    def __init__(self, may_refuse: bool) -> None:
        self._may_refuse = may_refuse
        self._left: list[Any] = []
        self._restored: list[Any] = []

    def restore(self, state: bytes, committables: Mapping[int, object]) -> None:
        self._left = pickle.loads(state) if state else []
        self._restored = [part for parts in committables.values() for part in parts]  # type: ignore[attr-defined]

    def start(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        _attempts_rise(ctx, "committer")
        self._ledger: Ledger = current().parts["ledger"]
        self._commit(self._restored)

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        _say_fencing("committer", attempt_number, self.ctx.attempt_number)
        match event:
            case ("left", parts):
                self._left += parts
            case _:
                raise AssertionError(event)

    def snapshot(self, checkpoint_id: int) -> bytes:
        return pickle.dumps(self._left)

    def checkpoint_completed(self, checkpoint_id: int, committables: Mapping[int, object]) -> None:
        self._commit([part for parts in committables.values() for part in parts])  # type: ignore[attr-defined]

    def _commit(self, parts: list[Any]) -> None:
        for part in parts:
            refuses = self._may_refuse and current().now < current().parts["disturbance"].commits_fail_until
            if refuses and current().rng("commits").random() < 0.5:
                raise ExternalError("The ledger refuses a part.")
            self._ledger.commit(self.ctx.job_id, [part])

    def job_ended(self, outcome: JobOutcome) -> None:
        newest = current().parts["attempts"][self.ctx.job_id, "committer"]
        _say_fencing("end of a committer", self.ctx.attempt_number, newest)
        if outcome is JobOutcome.FINISHED:
            self._commit(self._left)


# --- jobs -------------------------------------------------------------------------------------------------------------


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


def output_path(job_id: str) -> str:
    return f"sim://out/{job_id[:8]}"


def make_job(program: Program, job_id: JobID, config: dict[str, str]) -> JobGraph:
    num_rows = program.num_splits * program.split_rows
    parallelism = program.parallelism

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

    def edge(source: Transformation, strategy: ShipStrategy = ShipStrategy.FORWARD) -> Edge:
        return Edge(source, Partitioning(strategy, key_of if strategy is ShipStrategy.HASH else None))

    source = node("numbers", SplitSource(0, program))
    match program.shape:
        case "chained":
            counted = node("count", ProcessSpec(CountByKey(), key_of), edge(source, ShipStrategy.HASH))
            disturbed = node("disturb", Disturb(program.shape != "batch"), edge(source))
            counted.inputs = [edge(disturbed, ShipStrategy.HASH)]
        case "wide" | "batch":
            disturbed = node(
                "disturb",
                Disturb(program.shape != "batch"),
                edge(source, ShipStrategy.REBALANCE),
                parallelism=parallelism + 1,
            )
            counted = node("count", ProcessSpec(CountByKey(), key_of), edge(disturbed, ShipStrategy.HASH))
        case "union":
            other = node("more numbers", SplitSource(num_rows, program), parallelism=1)
            inputs = [edge(source, ShipStrategy.REBALANCE), edge(other, ShipStrategy.REBALANCE)]
            disturbed = node("disturb", Disturb(program.shape != "batch"), *inputs)
            counted = node("count", ProcessSpec(CountByKey(), key_of), edge(disturbed, ShipStrategy.HASH))
        case _:
            raise AssertionError(program.shape)
    if program.sink == "files":
        sink = node("sink", TextFileSinkSpec(output_path(job_id)), edge(counted), is_sink=True)
    else:
        strategy = ShipStrategy.REBALANCE if program.shape == "union" else ShipStrategy.FORWARD
        sink = node("sink", LedgerSink(program.checkpoints), edge(counted, strategy), is_sink=True)
    return build_job_graph(
        [sink],
        job_name=f"job {program.shape}",
        config=Configuration(config),
        job_id=job_id,
        batch=program.shape == "batch",
    )


def slots_needed(program: Program) -> int:
    return program.parallelism + (program.shape in ("wide", "batch"))
