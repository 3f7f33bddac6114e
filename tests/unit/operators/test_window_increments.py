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
from engine.operators.functions import RuntimeContext
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
#: few: each chunk costs a millisecond here
NUM_GROUPS = 8
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

    part = PART

    def __init__(self, spec, parallelism, folder, *, restored=None, memory_bytes=64 << 20):
        self.folder = f"file://{folder}"
        self.parallelism = parallelism
        self.groups = [key_group_range(index, parallelism, NUM_GROUPS) for index in range(parallelism)]
        self.harnesses, self.captures, self.workers = [], [], []
        for index in range(parallelism):
            harness = OperatorHarness(
                spec, subtask_index=index, parallelism=parallelism, restored=restored, memory_bytes=memory_bytes
            )
            harness.runtime_context = RuntimeContext(
                task_name="Test", subtask_index=index, parallelism=parallelism, max_parallelism=NUM_GROUPS
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
                if subtask_of_key_group(key_group_of(row[0], NUM_GROUPS), self.parallelism, NUM_GROUPS) == index
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
            part = harness.contexts[0].state.keyed[self.part]
            taken.full.append(SubtaskSnapshot(self.number, [{self.part: [part.snapshot(groups)]}], [None]))
            taken.pending.append(self.pending(harness))
            captured.append(capture.capture(self.number, options, {}, lambda _, error: None))
        meanwhile()
        for snapshot, capture, workers in zip(captured, self.captures, self.workers, strict=True):
            if end == "aborted":
                capture.discard(snapshot)
            workers.work()
            if end == "aborted":
                continue
            capture.acknowledged(snapshot)
            handle = snapshot.keyed[ID, self.part]
            taken.deltas.append(sum(layer.is_delta for layer in handle.layers))
            layers = [
                {group: chunk for some in read_chunks(layer, range(NUM_GROUPS)) for group, chunk in some.items()}
                for layer in handle.layers
            ]
            taken.snapshots.append(SubtaskSnapshot(self.number, [{self.part: layers}], [None]))
        if end == "completed":
            self.base = self.number
        return taken

    def pending(self, harness):
        """Return the windows that have not fired."""
        return set(harness.head._pending)

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


def spec_of(kind, lateness_ms, *, by_window=False):
    is_all = kind == "tumbling" or by_window
    aggregates = [a for a in AGGREGATES if is_all or a.kind not in ("first", "last")]
    if not is_all and lateness_ms:
        aggregates = [a for a in aggregates if a.kind != "count_distinct"]
    return built_in(ASSIGNERS[kind], aggregates, FieldKey(0), lateness_ms=lateness_ms, late_tag="late")


@pytest.fixture
def files_of_400_bytes(monkeypatch):
    """Slices go to files after every batch but for one."""
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    monkeypatch.setattr(spilling_windows, "NUM_PARTITIONS", 4)
    monkeypatch.setattr(spilling_windows, "_MOVED_BYTES_MAX", 1)  # key by key, with further batches


def in_files(monkeypatch, are_there):
    monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 400 if are_there else 1 << 30)


@pytest.mark.usefixtures("files_of_400_bytes")
@pytest.mark.parametrize(
    ("where", "kind", "seed", "by_window"),
    [
        ("memory", "tumbling", 2, False),
        ("memory", "cumulating", 2, False),
        ("files", "tumbling", 2, False),
        ("files", "sliding", 1, False),
        ("memory", "sliding", 2, True),
        ("files", "cumulating", 1, True),
    ],
)
def test_each_checkpoint_has_the_windows_of_its_barrier_whatever_it_builds_on(
    kind, where, seed, by_window, tmp_path, monkeypatch
):
    rng = random.Random(f"{kind} {where} {seed}")
    spec = column_window(spec_of(kind, (seed - 1) * 7, by_window=by_window))
    assert spec.by_window == by_window
    in_files(monkeypatch, where == "files")
    job = Job(spec, rng.choice([1, 2]), tmp_path)
    taken, time_ms = [], 0
    ends = ["completed", "completed", "completed", "acknowledged", "aborted", "savepoint"]
    for number in range(12):
        for _ in range(rng.randrange(3) if number else 2):
            job.send(*records(rng, time_ms, rng.choice([3, 30, 300] if number else [600])))
        if rng.random() < 0.5:
            time_ms += rng.randrange(9)
            job.advance(time_ms - rng.choice([5, 12]) if job.watermark_ms < time_ms - 12 else job.watermark_ms)
        more = records(rng, time_ms, 20)
        made = job.checkpoint(rng.choice(ends) if number else "completed", lambda more=more: job.send(*more))
        if made.snapshots:
            taken.append(made)
    job.close()
    assert sum(map(sum, (made.deltas for made in taken))) > 2
    with_layers = sorted(taken, key=lambda made: -max(made.deltas))[:2]
    for made in [*with_layers, rng.choice(taken)]:
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


TEN_KEYS = [(key, 1, 0.5, "a") for key in range(10)]
LONG = built_in(TumblingEventTimeWindows(1000, 0), [count(), sum_(1), count_distinct(3)])


def test_an_increment_has_the_keys_that_changed_and_the_slices_that_are_gone(tmp_path):
    job = Job(column_window(LONG), 1, tmp_path)
    job.send([(key, 1, 0.5, "a") for key in range(2000)], [5] * 2000)
    job.send(TEN_KEYS, [1005] * 10)
    job.checkpoint()
    job.send([(7, 1, 0.5, "b")], [1006])
    part = job.harnesses[0].contexts[0].state.keyed[PART]
    assert sorted(entry[:2] for entry in entries_of(part, 1)) == [(7, 1000)]
    job.advance(999)
    job.send([(7, 1, 0.5, "c")], [2005])
    assert sorted(entry[:2] for entry in entries_of(part, 1)) == [(7, 1000), (7, 2000)]
    assert part.num_changed(1, 10_000) > 2000  # what a restore would read for nothing counts
    assert part.num_changed(1, 2000) is None
    made = job.checkpoint()
    job.close()
    restored = Job(column_window(LONG), 1, tmp_path, restored=made.snapshots)
    assert sorted(restored.harnesses[0].head._state.panes) == [1000, 2000]
    restored.close()


def test_a_slice_that_nobody_touches_costs_nothing_however_many_epochs_pass():
    with OperatorHarness(column_window(LONG)) as harness:
        harness.process_batch(columns(TEN_KEYS, [5] * 10))
        part = harness.contexts[0].state.keyed[PART]
        for number in range(1, 200):
            part.begin_epoch(number)
            part.forget_epochs(number, (1,))
            harness.process_batch(columns(TEN_KEYS, [1005 + 1000 * number] * 10))
            harness.watermark(1000 * number + 990)
        notes = part._changes.since(1)
        assert set(notes.slots) == {199_000, 200_000}
        assert set(notes.gone) == {0}  # not those that came and went since
        assert notes.begun == set(notes.slots)
        assert part._changes.nbytes < 100


def entries_of(part, since):
    chunks = part.snapshot_delta(range(128), since)
    return [entry for chunk in chunks.values() for entry in shown_entries(chunk)]


def test_slices_in_files_that_did_not_change_are_neither_read_nor_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_watch, "_BYTES_MIN", 1)
    monkeypatch.setattr(spilling_windows, "NUM_PARTITIONS", 8)
    read = []
    rows_of_pane = SpilledPanes.rows_of

    def noticed(self, start, partitions, **how):
        read.append((start, partitions))
        return rows_of_pane(self, start, partitions, **how)

    monkeypatch.setattr(SpilledPanes, "rows_of", noticed)
    with OperatorHarness(column_window(LONG), memory_bytes=1) as harness:
        monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 400)
        part = harness.contexts[0].state.keyed[PART]
        for start in (5, 1005, 2005):
            harness.process_batch(columns([(key, 1, 0.5, "a") for key in range(500)], [start] * 500))
        part.evict([0, 1000])
        part.begin_epoch(1)
        harness.process_batch(columns([(7, 1, 0.5, "b")], [1006]))
        read.clear()
        assert part.num_changed(1, 10_000) < 100
        assert not read
        changed = entries_of(part, 1)
        assert {start for start, _ in read} == {1000}
        assert {len(partitions) for _, partitions in read} == {1}
        assert {start for _, start, _ in changed} == {1000}
        assert len(changed) < 100
        (seven,) = [values for key, _, values in changed if key == 7]
        assert (seven["records"], seven["distinct(name)"]) == (2, ["a", "b"])
        part.begin_epoch(2)
        part.evict([2000])  # it lies elsewhere now, but is what it was
        assert entries_of(part, 2) == []
        assert {start for _, start, _ in entries_of(part, 1)} == {1000}


def test_what_changed_in_memory_has_changed_when_it_goes_to_files(tmp_path):
    with OperatorHarness(column_window(LONG)) as harness:
        part = harness.contexts[0].state.keyed[PART]
        harness.process_batch(columns([(key, 1, 0.5, "a") for key in range(500)], [5] * 500))
        part.begin_epoch(1)
        harness.process_batch(columns([(7, 1, 0.5, "b")], [6]))
        part.begin_epoch(2)
        part.evict([0])
        assert 7 in {key for key, _, _ in entries_of(part, 1)}
        assert entries_of(part, 2) == []


def test_a_late_record_of_a_slice_in_files_is_a_change(monkeypatch):
    rows = built_in(TumblingEventTimeWindows(1000, 0), [count(), sum_(1)], lateness_ms=5000)
    monkeypatch.setattr(spilling_windows, "NUM_PARTITIONS", 8)
    with OperatorHarness(column_window(rows)) as harness:
        part = harness.contexts[0].state.keyed[PART]
        harness.process_batch(columns([(key, 1, 0.5, "a") for key in range(500)], [5] * 500))
        part.evict([0])
        harness.watermark(1500)
        part.begin_epoch(1)
        assert entries_of(part, 1) == []
        harness.process_batch(columns([(7, 1, 0.5, "b")], [6]))
        assert (7, 2) in {(key, values["records"]) for key, _, values in entries_of(part, 1)}
        assert len(entries_of(part, 1)) < 200


def test_slices_that_were_gone_for_one_former_subtask_alone_keep_the_keys_of_the_other(tmp_path, monkeypatch):
    """Records in flight may have been overtaken by barriers, so the subtasks' times differ."""
    for bytes_max in (1 << 30, 400):
        monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", 1 << 30)
        job = Job(column_window(LONG), 2, tmp_path)
        job.send([(key, 1, 0.5, "a") for key in range(300)], [5] * 300)
        for start in (1005, 2005, 3005):
            job.send([(key, 1, 0.5, "a") for key in range(300)], [start] * 300)
        job.checkpoint()
        job.harnesses[1].watermark(999)
        job.send([(key, 1, 0.5, "b") for key in range(3)], [1006] * 3)
        made = job.checkpoint()
        assert made.deltas == [1, 1]
        job.close()
        monkeypatch.setattr(memory_watch.MemoryWatch, "limit_bytes", bytes_max)
        lives = [Job(column_window(LONG), 1, tmp_path, restored=taken) for taken in (made.snapshots, made.full)]
        assert lives[0].held() == lives[1].held()
        for life in lives:
            life.advance(TIME_MAX_MS)
        assert lives[0].results() == lives[1].results()
        for life in lives:
            life.close()


def test_slots_that_move_keep_their_marks(monkeypatch):
    monkeypatch.setattr("engine.operators.window_state._COMPACT_SLOTS_MIN", 100)
    rows = built_in(SlidingEventTimeWindows(20, 10, 0), [count(), sum_(1)])
    with OperatorHarness(column_window(rows)) as harness:
        part = harness.contexts[0].state.keyed[PART]
        harness.process_batch(columns([(key, 1, 0.5, "a") for key in range(400)], [5] * 400))
        harness.process_batch(columns([(key, 1, 0.5, "a") for key in range(390, 400)], [25] * 10))
        part.begin_epoch(1)
        harness.process_batch(columns([(395, 1, 0.5, "a")], [26]))
        harness.watermark(24)
        assert part.state._table.num_slots == 10
        assert [key for key, _, _ in entries_of(part, 1)] == [395]
