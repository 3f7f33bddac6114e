"""Increments of windows on columns: whatever a checkpoint builds on, it holds what a full one of its barrier would."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from engine.checkpoint.restored_state import read_chunks
from engine.core.ids import OperatorID
from engine.core.records import rows_of
from engine.operators import memory_watch, spilling_windows
from engine.operators.column_window import column_window
from engine.operators.field_aggregates import count, count_distinct, sum_
from engine.operators.keys import FieldKey
from engine.operators.spilled_panes import SpilledPanes
from engine.protocol.checkpoint import CheckpointKind, CheckpointOptions
from engine.runtime.taskmanager.snapshot_capture import StateCapture
from engine.state.key_groups import key_group_of, key_group_range, subtask_of_key_group
from engine.time.assigners import SlidingEventTimeWindows, TumblingEventTimeWindows
from engine.time.windows import TIME_MAX_MS
from tests.testing.operator_harness import OperatorHarness, SubtaskSnapshot
from tests.unit.operators.test_column_window import AGGREGATES, ASSIGNERS, built_in, columns
from tests.unit.operators.test_spilling_windows import shown_entries
from tests.unit.runtime.taskmanager.test_snapshot_capture import Workers

ID = OperatorID.from_text("windows")
PART = "window-slots"
NAMES = ["", "a", "é", None]


@dataclass
class Taken:
    """A checkpoint of all subtasks, with what a full one would have had, and the time at its barrier."""

    number: int
    watermark_ms: int
    snapshots: list[SubtaskSnapshot] = field(default_factory=list)
    full: list[SubtaskSnapshot] = field(default_factory=list)
    deltas: list[int] = field(default_factory=list)
    pending: list[set[tuple[int, int]]] = field(default_factory=list)


class Job:
    """The subtasks of a window operator, with what captures their state in a slot."""

    def __init__(self, spec, parallelism, folder, *, restored=None, memory_bytes=64 << 20):
        self.folder = f"file://{folder}"
        self.parallelism = parallelism
        self.groups = [key_group_range(index, parallelism, 128) for index in range(parallelism)]
        self.harnesses, self.captures, self.workers = [], [], []
        for index in range(parallelism):
            harness = OperatorHarness(
                spec, subtask_index=index, parallelism=parallelism, restored=restored, memory_bytes=memory_bytes
            )
            harness.__enter__()
            self.harnesses.append(harness)
            self.workers.append(Workers())
            registries = [(ID, harness.contexts[0].state)]
            self.captures.append(
                StateCapture(registries, self.groups[index], self.workers[-1], name=f"t{index}", work_dir=str(folder))
            )
        self.number = self.base = 0
        self.watermark_ms = -50

    def send(self, rows, stamps):
        for index, harness in enumerate(self.harnesses):
            own = [
                (row, stamp)
                for row, stamp in zip(rows, stamps, strict=True)
                if subtask_of_key_group(key_group_of(row[0], 128), self.parallelism, 128) == index
            ]
            if own:
                harness.process_batch(columns(*zip(*own, strict=True)))

    def advance(self, watermark_ms):
        self.watermark_ms = watermark_ms
        for harness in self.harnesses:
            harness.watermark(watermark_ms)

    def checkpoint(self, end="completed", meanwhile=lambda: None) -> Taken:
        """``end``: completed; acknowledged, but other tasks' parts never come; aborted; or a savepoint."""
        self.number += 1
        is_savepoint = end == "savepoint"
        options = CheckpointOptions(
            kind=CheckpointKind.SAVEPOINT if is_savepoint else CheckpointKind.CHECKPOINT,
            exclusive_folder=self.folder,
            shared_folder=self.folder,
            incremental=not is_savepoint,
            base_checkpoint_id=0 if is_savepoint else self.base,
            inline_bytes_max=0,
        )
        taken = Taken(self.number, self.watermark_ms)
        captured = []
        for harness, capture, groups in zip(self.harnesses, self.captures, self.groups, strict=True):
            harness.head.prepare_snapshot(self.number)
            part = harness.contexts[0].state.keyed[PART]
            taken.full.append(SubtaskSnapshot(self.number, [{PART: [part.snapshot(groups)]}], [None]))
            taken.pending.append(set(harness.head._pending))
            captured.append(capture.capture(self.number, options, {}, lambda _, error: None))
        meanwhile()
        for snapshot, capture, workers in zip(captured, self.captures, self.workers, strict=True):
            if end == "aborted":
                capture.discard(snapshot)
            workers.work()
            if end == "aborted":
                continue
            capture.acknowledged(snapshot)
            handle = snapshot.keyed[ID, PART]
            taken.deltas.append(sum(layer.is_delta for layer in handle.layers))
            layers = [
                {group: chunk for some in read_chunks(layer, range(128)) for group, chunk in some.items()}
                for layer in handle.layers
            ]
            taken.snapshots.append(SubtaskSnapshot(self.number, [{PART: layers}], [None]))
        if end == "completed":
            self.base = self.number
        return taken

    def held(self):
        """Return all that the subtasks hold, and up to when windows have fired."""
        entries, fired = [], []
        for harness, groups in zip(self.harnesses, self.groups, strict=True):
            chunks = harness.contexts[0].state.keyed[PART].snapshot(groups)
            entries += [repr(entry) for chunk in chunks.values() for entry in shown_entries(chunk)]
            fired.append((sorted(harness.head._pending), sorted(harness.head._state.restored_panes.items())))
        return sorted(entries), fired

    def results(self):
        found = []
        for harness in self.harnesses:
            for batch in [*harness.output.batches, *harness.output.side.get("late", [])]:
                found += [repr(row).replace("-0.0", "0.0") for row in rows_of(batch).rows]
        return sorted(found)

    def close(self):
        for harness in self.harnesses:
            harness.__exit__()


def records(rng, around_ms, size, *, keys=150):
    """Records around a time, of any key or of few."""
    few = rng.random() < 0.5
    rows, stamps = [], []
    for _ in range(size):
        key = rng.randrange(rng.randrange(1, 9) if few else keys)
        value = rng.choice([None, *range(-5, 6)])
        amount = rng.choice([None, 0.0, -0.0, float("nan"), *(n / 2 for n in range(-4, 5))])
        rows.append((key if key else None, value, amount, rng.choice(NAMES)))
        stamps.append(around_ms + rng.randrange(-12, 12))
    return rows, stamps


def spec_of(kind, lateness_ms):
    aggregates = [a for a in AGGREGATES if kind == "tumbling" or a.kind not in ("first", "last")]
    if kind != "tumbling" and lateness_ms:
        aggregates = [a for a in aggregates if a.kind != "count_distinct"]
    return built_in(ASSIGNERS[kind], aggregates, FieldKey(0), lateness_ms=lateness_ms, late_tag="late")


@pytest.fixture
def files_of_400_bytes(monkeypatch):
    """Slices go to files after every batch but for one."""
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    monkeypatch.setattr(spilling_windows, "NUM_PARTITIONS", 4)


def in_files(monkeypatch, are_there):
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 400 if are_there else 1 << 30)


@pytest.mark.usefixtures("files_of_400_bytes")
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["tumbling", "sliding", "cumulating"])
@pytest.mark.parametrize("where", ["memory", "files"])
def test_each_checkpoint_has_the_windows_of_its_barrier_whatever_it_builds_on(kind, where, seed, tmp_path, monkeypatch):
    rng = random.Random(f"{kind} {where} {seed}")
    spec = column_window(spec_of(kind, (seed - 1) * 7))
    in_files(monkeypatch, where == "files")
    job = Job(spec, rng.choice([1, 2]), tmp_path)
    taken, time_ms = [], 0
    ends = ["completed", "completed", "completed", "acknowledged", "aborted", "savepoint"]
    for number in range(14):
        for _ in range(rng.randrange(3)):
            job.send(*records(rng, time_ms, rng.choice([3, 30, 300] if number else [900])))
        if rng.random() < 0.5:
            time_ms += rng.randrange(9)
            job.advance(time_ms - rng.choice([5, 12]) if job.watermark_ms < time_ms - 12 else job.watermark_ms)
        more = records(rng, time_ms, 20)
        made = job.checkpoint(rng.choice(ends) if number else "completed", lambda more=more: job.send(*more))
        if made.snapshots:
            taken.append(made)
    job.close()
    assert sum(map(sum, (made.deltas for made in taken))) > 4
    with_layers = sorted(taken, key=lambda made: -max(made.deltas))[:2]
    for made in [*with_layers, *rng.sample(taken, 2)]:
        in_files(monkeypatch, rng.random() < 0.5)
        parallelism = rng.randrange(1, 4)
        lives = [Job(spec, parallelism, tmp_path, restored=s) for s in (made.snapshots, made.full)]
        assert lives[0].held() == lives[1].held()
        if parallelism == len(made.pending) and made.watermark_ms > -50:
            assert [harness.head._pending for harness in lives[0].harnesses] == made.pending
        steps = [records(rng, time_ms, 40) for _ in range(2)]
        goes_to_rows = rng.random() < 0.3
        for life in lives:
            life.advance(made.watermark_ms)
            for step in steps:
                life.send(*step)
            if goes_to_rows:
                for harness in life.harnesses:
                    harness.head._hand_over()
            life.send(*steps[0])
            life.advance(TIME_MAX_MS)
        assert lives[0].results() == lives[1].results()
        assert lives[0].results()
        for life in lives:
            life.close()
