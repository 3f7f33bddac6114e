from __future__ import annotations

import ctypes
import datetime as dt
import decimal
import math
import mmap
import os
import pickle
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.state import slot_kernels as kernels
from engine.state import slot_table
from engine.state.array_files import copy_of
from engine.state.key_groups import key_group_of
from engine.state.paged_array import PagedArray, zeros
from engine.state.parts import DeltaPart
from engine.state.slot_state import SlotState
from engine.state.slot_table import SlotTable

NUMBER_OR_NULL = st.one_of(st.none(), st.integers(0, 5))
TEXT_OR_NULL = st.one_of(st.none(), st.text(max_size=3))
INT64 = st.integers(-(2**63), 2**63 - 1)
KEYS = {
    "int64": (pa.int64(), st.one_of(st.integers(0, 9), INT64)),
    "uint64": (pa.uint64(), st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1))),
    "int8": (pa.int8(), st.integers(-128, 127)),
    "bool": (pa.bool_(), st.booleans()),
    "float": (pa.float64(), st.one_of(st.sampled_from([0.0, -0.0, math.nan, math.inf]), st.floats())),
    "text": (pa.string(), st.one_of(st.sampled_from(["", "a", "aaaaaaaa", "aaaaaaaab"]), st.text(max_size=20))),
    "large text": (pa.large_string(), st.text(max_size=3)),
    "bytes": (pa.binary(), st.binary(max_size=20)),
    "decimal": (pa.decimal128(12, 2), st.integers(-(10**11), 10**11).map(lambda n: decimal.Decimal(n).scaleb(-2))),
    "timestamp": (pa.timestamp("us"), st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1))),
    "date": (pa.date32(), st.dates()),
}


def plain(value):
    """The key as a dict would know it: all NaN one, both zeros one."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value + 0.0
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize("kind", KEYS)
def test_slots_are_those_that_a_dict_would_give(kind):
    arrow, values = KEYS[kind]

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.lists(st.one_of(st.none(), values), max_size=30), max_size=4))
    def check(batches):
        table = SlotTable([arrow])
        slot_of_key = {}
        for batch in batches:
            slots, first = table.find([pa.array(batch, arrow)])
            for row in first.tolist():
                assert plain(batch[row]) not in slot_of_key
            for key, slot in zip(batch, slots.tolist(), strict=True):
                assert slot_of_key.setdefault(plain(key), slot) == slot
        assert sorted(slot_of_key.values()) == list(range(table.num_slots))
        kept = table.keys_of(np.arange(table.num_slots))[0].to_pylist()
        assert {plain(key): slot for slot, key in enumerate(kept)} == slot_of_key

    check()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 5)), st.one_of(st.none(), st.text(max_size=3)), st.floats()))
)
def test_keys_of_several_columns_keep_their_nulls_apart(keys):
    kinds = [pa.int64(), pa.string(), pa.float64()]
    table = SlotTable(kinds)
    columns = [pa.array([key[i] for key in keys], kind) for i, kind in enumerate(kinds)]
    expected, _ = kernels.find_slots_slow(map(plain, keys), {})
    assert table.slots_of(columns).tolist() == expected
    assert [plain(key) for key in zip(*(c.to_pylist() for c in table.keys_of(np.arange(table.num_slots))))] == list(
        dict.fromkeys(map(plain, keys))
    )


def test_texts_beyond_what_32_bits_can_tell_are_told_by_64(monkeypatch):
    monkeypatch.setattr(slot_table, "_NARROW_BYTES_MAX", 3000)
    texts = pa.array([None if at == 600 else f"ü{at * at}" for at in range(2000)])
    wide = SlotTable([pa.string()])
    for start in range(0, 2000, 150):
        assert wide.slots_of([texts.slice(start, 150)]).tolist() == list(range(start, min(2000, start + 150)))
    assert wide._keys._begins.array.dtype == np.int64
    assert wide.slots_of([texts]).tolist() == list(range(2000))
    assert wide.keys_of(np.arange(2000)) == [texts]
    wide.compact(np.arange(0, 2000, 2))
    assert wide.keys_of(np.arange(1000)) == [texts.take(pa.array(range(0, 2000, 2)))]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()], ids=str)
def test_keys_in_dictionaries_get_the_slots_of_plain_ones_also_after_others_are_forgotten(kind):
    """With one dictionary for several batches and with new ones; values twice or without a row; nulls."""
    rng = random.Random(5)
    plain, encoded, copied = SlotTable([kind]), SlotTable([kind]), None
    values = pa.array([]).cast(kind)
    for step in range(60):
        if step % 3 == 0:
            values = pa.array([f"ü{rng.randrange(40)}" for _ in range(rng.randrange(1, 30))]).cast(kind)
        numbers = [rng.choice([None, *range(len(values))]) for _ in range(step % 5)]
        numbers += [rng.randrange(len(values)) for _ in range(rng.randrange(6))]
        column = pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), values).slice(step % 2)
        expected = plain.find([column.dictionary_decode()])
        for found, own in zip(encoded.find([column]), expected, strict=True):
            assert found.dtype == own.dtype
            assert found.tolist() == own.tolist()
        if step % 7 == 6:
            kept = np.flatnonzero([rng.random() < 0.7 for _ in range(plain.num_slots)])
            plain.compact(kept)
            encoded.compact(kept)
        if step == 40:
            copied = copy_of(encoded)
    assert encoded.keys_of(np.arange(encoded.num_slots)) == plain.keys_of(np.arange(plain.num_slots))
    assert copied is not None
    assert len(copied.find([column])[0]) == len(column)


@pytest.mark.parametrize("kind", ["int", "text", "lanes"])
def test_the_index_grows_bit_by_bit_and_loses_no_key(kind):
    numbers = np.random.default_rng(5).integers(0, 60_000, 200_000)
    column = pa.array(numbers)
    columns = {"int": [column], "text": [column.cast(pa.string())], "lanes": [column, column]}[kind]
    table = SlotTable([c.type for c in columns])
    slot_of_key = {}
    for start in range(0, numbers.size, 777):
        slots = table.slots_of([c.slice(start, 777) for c in columns])
        expected, _ = kernels.find_slots_slow(numbers[start : start + 777].tolist(), slot_of_key)
        assert slots.tolist() == expected
    assert table.num_slots == len(slot_of_key)


@pytest.mark.parametrize("kind", ["int", "text", "lanes"])
def test_no_batch_moves_or_clears_much_of_the_index(kind, monkeypatch):
    monkeypatch.setattr(slot_table, "_TOUCHED_BYTES_MIN", 1 << 20)
    column, num_rows = pa.array(np.arange(250_000)), 1000
    columns = {"int": [column], "text": [column.cast(pa.string())], "lanes": [column, column]}[kind]
    table = SlotTable([c.type for c in columns])
    carry_over, touch_next, forget_next = table._keys.carry_over, table._touch_next, table._forget_next
    moved, cleared, grown = [], [], []

    def counted(old, start, end, fresh):
        moved.append(end - start)
        carry_over(old, start, end, fresh)

    def touching(num_rows):
        before = table._touched
        touch_next(num_rows)
        cleared.append((table._touched - before) * 4)

    def growing():
        if table._next.size:  # nothing stands in it yet
            assert table._touched == table._next.size
            assert is_resident(table._fresh)
            grown.append(table._fresh.size)
        forget_next()

    monkeypatch.setattr(table._keys, "carry_over", counted)
    monkeypatch.setattr(table, "_touch_next", touching)
    monkeypatch.setattr(table, "_forget_next", growing)
    for start in range(0, len(column), num_rows):
        moved.clear(), cleared.clear()
        table.slots_of([c.slice(start, num_rows) for c in columns])
        assert sum(moved) <= max(slot_table._CARRIED_MIN, slot_table._CARRIED_PER_ROW * num_rows)
        # 8 bytes for each bucket of the smaller index, while keys take the last eighth of the 0.8 of these.
        assert sum(cleared) <= 8 / 0.8 * 8 * num_rows + mmap.PAGESIZE
    assert grown == [1 << 18, 1 << 19]
    assert table.num_slots == len(column)


def is_resident(array):
    pages = np.zeros(-(-array.nbytes // mmap.PAGESIZE), np.uint8)
    mincore = ctypes.CDLL(None).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    assert mincore(array.ctypes.data, array.nbytes, pages.ctypes.data) == 0
    return bool((pages & 1).all())


def test_the_index_to_grow_into_goes_into_no_file(monkeypatch):
    monkeypatch.setattr(slot_table, "_TOUCHED_BYTES_MIN", 1 << 20)
    table = SlotTable([pa.int64()])
    keys = pa.array(np.arange(100_000))
    table.slots_of([keys])
    table.slots_of([keys])
    assert table._next.size == 1 << 18
    copy = copy_of(table)
    assert copy.nbytes == table.nbytes - table._touched * 4
    assert copy.slots_of([keys]).tolist() == list(range(len(keys)))
    table.trim()
    assert not table._next.size


def test_a_count_state_of_numbers_takes_at_most_24_bytes_a_key_beside_the_key():
    table, counts = SlotTable([pa.int64()]), PagedArray(np.int64)
    worst = 0.0
    for start in range(0, 3_000_000, 50_000):
        table.slots_of([pa.array(np.arange(start, start + 50_000))])
        counts.reserve(table.num_slots)
        if table.num_slots > 500_000:
            worst = max(worst, (table.nbytes + counts.nbytes) / table.num_slots - 8)
    assert worst <= 24


def test_compact_renumbers_the_slots_that_stay():
    for column in (pa.array(["a", None, "b", "c"]), pa.array([1, None, 2, 3])):
        table = SlotTable([column.type])
        slots = table.slots_of([column])
        kept = np.sort(slots[[0, 1, 3]])
        expected = [table.keys_of(kept[i : i + 1])[0][0].as_py() for i in range(3)]
        table.compact(kept)
        assert table.num_slots == 3
        assert table.keys_of(np.arange(3))[0].to_pylist() == expected


def test_arrays_grow_in_place_and_new_entries_are_zero():
    array = PagedArray(np.int64, 2)
    for size in (1, 100, 70_000, 600_000, 700_000):
        before = array.capacity
        array.reserve(size)
        assert not array.array[before:].any()
        array.array[size - 1] = size, -size
    assert [array.array[size - 1].tolist() for size in (1, 100, 70_000)] == [[1, -1], [100, -100], [70_000, -70_000]]
    assert not zeros(1 << 20, np.int32).any()


# --- state as a part of checkpoints -----------------------------------------------------------------------------------

KINDS = [pa.string()]
COLUMNS = {"sum": pa.int64(), "name": pa.string(), "at": pa.timestamp("ms"), "flag": pa.bool_()}


def state_of(rows=()):
    state = SlotState(128, is_tuple=False)
    state.define(KINDS, COLUMNS)
    put(state, rows)
    return state


def put(state, rows):
    if not rows:
        return
    slots, _ = state.find([pa.array([row[0] for row in rows], pa.string())])
    for i, (name, kind) in enumerate(COLUMNS.items(), 1):
        state.columns[name].put(slots, pa.array([row[i] for row in rows], kind))
    state.mark(slots)


def rows_of(state):
    if state.table is None:
        return {}
    slots = np.arange(state.num_slots)
    columns = [*state.table.keys_of(slots), *(column.get(slots) for column in state.columns.values())]
    return {row[0]: row[1:] for row in zip(*(column.to_pylist() for column in columns), strict=True)}


def row(key, number):
    at = None if number % 3 == 0 else dt.datetime(2020, 1, 1) + dt.timedelta(milliseconds=number)
    return key, number, f"n{number}", at, None if number % 5 == 0 else number % 2 == 0


def test_a_snapshot_is_cut_by_key_group_and_restores_elsewhere():
    state = state_of([row(f"k{i}", i) for i in range(500)] + [row(None, 7)])
    chunks = state.snapshot(range(128))
    halves = [SlotState(128, is_tuple=False) for _ in range(2)]
    for i, half in enumerate(halves):
        half.restore({group: chunk for group, chunk in chunks.items() if group % 2 == i})
        assert all(key_group_of(key, 128) % 2 == i for key in rows_of(half))
    assert {**rows_of(halves[0]), **rows_of(halves[1])} == rows_of(state)
    assert set(state.snapshot([3, 4])) <= {3, 4}


def test_an_increment_has_what_changed_since_its_base_and_no_more_than_that():
    state = state_of([row(f"k{i}", i) for i in range(4000)])
    assert isinstance(state, DeltaPart)
    assert state.snapshot_delta(range(128), 1) is None  # no such base
    full = state.snapshot(range(128))
    state.begin_epoch(1)
    put(state, [row("k5", 50)])
    first = state.snapshot_delta(range(128), 1)
    state.begin_epoch(2)
    put(state, [row("new", 60)])
    both = state.snapshot_delta(range(128), 1)
    assert sum(map(len, both.values())) < sum(map(len, full.values())) / 4
    for layers in ([full, first, state.snapshot_delta(range(128), 2)], [full, both]):
        restored = SlotState(128, is_tuple=False)
        for layer in layers:
            restored.restore(layer)
        assert rows_of(restored) == rows_of(state)
    state.forget_epochs(2)
    assert state.snapshot_delta(range(128), 1) is None


def test_what_is_remembered_has_an_end_while_no_checkpoint_completes():
    state = state_of([row(f"k{i}", i) for i in range(4000)])
    sizes = []
    for checkpoint_id in range(1, 200):
        state.begin_epoch(checkpoint_id)
        put(state, [row(f"k{checkpoint_id}", checkpoint_id)])
        sizes.append(sum(mark.nbytes for mark in state._epochs.values()))
    assert max(sizes[100:]) == sizes[50]
    assert state.snapshot_delta(range(128), 1) is None  # forgotten: a full one
    full = state.snapshot(range(128))
    state.begin_epoch(200)
    delta = state.snapshot_delta(range(128), 190)
    restored = SlotState(128, is_tuple=False)
    for layer in (full, delta):
        restored.restore(layer)
    assert rows_of(restored) == rows_of(state)
    assert {f"k{number}" for number in range(190, 200)} <= rows_of_chunks(delta) < set(rows_of(state))


def rows_of_chunks(chunks):
    taken = SlotState(128, is_tuple=False)
    taken.restore(chunks)
    return set(rows_of(taken))


def test_a_snapshot_in_a_forked_child_does_not_see_what_comes_after(tmp_path):
    state = state_of([row(f"k{i}", i) for i in range(100)])
    before = rows_of(state)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(reader, 1)
            (tmp_path / "chunks").write_bytes(pickle.dumps(state.snapshot(range(128))))
        finally:
            os._exit(0)
    put(state, [row(f"k{i}", 999) for i in range(100)])
    os.write(writer, b"x")
    os.waitpid(child, 0)
    restored = SlotState(128, is_tuple=False)
    restored.restore(pickle.loads((tmp_path / "chunks").read_bytes()))
    assert rows_of(restored) == before


def test_what_changed_since_an_old_base_outlives_the_epochs_between():
    state = state_of([row(f"k{i}", i) for i in range(4000)])
    full = state.snapshot(range(128))
    for checkpoint_id in range(1, 9):
        state.begin_epoch(checkpoint_id)
        put(state, [row(f"k{checkpoint_id}", -checkpoint_id), row(f"new{checkpoint_id}", 1)])
        state.forget_epochs(checkpoint_id - 1, (1,))
    assert state.snapshot_delta(range(128), 5) is None
    assert state.num_changed(1, 4000) >= 16
    assert state.num_changed(1, 4) is None
    for layers in ([full, state.snapshot_delta(range(128), 1)],):
        restored = SlotState(128, is_tuple=False)
        for layer in layers:
            restored.restore(layer)
        assert rows_of(restored) == rows_of(state)


@pytest.mark.parametrize("null_at", [0, 1, 3])
def test_compact_keeps_the_null_key_wherever_its_slot_is(null_at):
    table = SlotTable([pa.int64()])
    keys = [5, 6, 7, 8]
    keys[null_at] = None
    for key in keys:
        table.slots_of([pa.array([key], pa.int64())])
    table.compact(np.array([slot for slot in range(4) if slot != 2]))
    assert table.keys_of(np.arange(3))[0].to_pylist() == keys[:2] + keys[3:]
    assert table.slots_of([pa.array([None, 9], pa.int64())]).tolist() == [min(null_at, 2), 3]


def test_an_array_grows_though_parts_of_its_pages_were_advised_otherwise():
    array = PagedArray(np.int64)
    array.reserve(300_000)
    array.array[:] = np.arange(array.capacity)
    size, page = array.capacity, mmap.PAGESIZE
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert madvise(array.array.ctypes.data + 100 * page, 100 * page, mmap.MADV_DONTDUMP) == 0
    array.reserve(4 * size)
    assert np.array_equal(array.array[:size], np.arange(size))
    assert not array.array[size:].any()
