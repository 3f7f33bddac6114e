"""State that is taken up while the task is processing already: nobody notices."""

from __future__ import annotations

import pytest

from engine.checkpoint import deferred_chunks
from engine.checkpoint.restored_state import HandleRestoredState
from engine.checkpoint.state_files import ChunkWriter
from engine.core.clock import ManualClock
from engine.core.errors import CorruptStateError, ProgramError
from engine.core.type_info import Types
from engine.protocol.checkpoint import KeyedStateHandle, OperatorRestore
from engine.state.descriptors import ListStateDescriptor, StateTtlConfig, ValueStateDescriptor
from engine.state.heap_backend import HeapKeyedStateBackend
from engine.state.key_groups import key_group_of
from engine.state.parts import LatePart, OperatorStateRegistry
from engine.time.watermarks import Duration

GROUPS = range(16)
VALUE, LIST = ValueStateDescriptor("value"), ListStateDescriptor("list")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(deferred_chunks, "DEFERRED_BYTES_MIN", 0)


def backend_of(handles, tmp_path, groups=GROUPS, clock=None):
    state = HandleRestoredState(
        OperatorRestore(tuple(handles)),
        operator_name="one",
        subtask_index=0,
        parallelism=1,
        key_groups=groups,
        work_dir=str(tmp_path),
    )
    registry = OperatorStateRegistry(state)
    backend = HeapKeyedStateBackend(clock or ManualClock(), 16, incremental=True)
    assert isinstance(backend, LatePart)
    registry.add_keyed("keyed", backend)
    return backend, registry


def put(backend, key, number):
    backend.set_current_key(key)
    backend.value_state(VALUE).update(number)
    backend.list_state(LIST).add(number)


def written(tmp_path, name="file", inline=0, clock=None, change=put):
    """A full layer and a delta, as a handle; and what is in them."""
    backend = HeapKeyedStateBackend(clock or ManualClock(), 16, incremental=True)
    for key in range(200):
        change(backend, key, key)
    writer = ChunkWriter(f"file://{tmp_path}/{name}-full", inline)
    writer.add_layer(sorted(backend.snapshot(GROUPS).items()))
    layers = writer.finish()
    backend.begin_epoch(1)
    for key in range(0, 40, 2):
        change(backend, key, -key)
    backend.set_current_key(7)
    backend.value_state(VALUE).clear()
    writer = ChunkWriter(f"file://{tmp_path}/{name}-delta", inline)
    writer.add_layer(sorted(backend.snapshot_delta(GROUPS, 1).items()), is_delta=True)
    return KeyedStateHandle("keyed", 0, 16, (*layers, *writer.finish())), backend


def contents(backend, keys=range(200)):
    found = {}
    for key in keys:
        backend.set_current_key(key)
        found[key] = backend.value_state(VALUE).value(), backend.list_state(LIST).get()
    return found


@pytest.mark.parametrize("inline", [0, 1 << 20])
def test_each_key_has_its_state_as_soon_as_it_comes(tmp_path, inline):
    handle, former = written(tmp_path, inline=inline)
    backend, registry = backend_of([handle], tmp_path)
    assert registry.late == [backend]
    assert backend.num_entries() >= former.num_entries()
    assert not backend._tables["value"].spaces  # nothing yet
    assert contents(backend, [3]) == contents(former, [3])
    assert len(backend._tables["value"].spaces[None]) < 50  # its group alone
    assert contents(backend) == contents(former)
    assert not backend._cleaned
    assert backend.num_entries() == former.num_entries()


def test_what_no_record_asks_for_is_taken_up_in_between(tmp_path):
    handle, former = written(tmp_path)
    backend, _ = backend_of([handle], tmp_path)
    put(backend, 5, 55)
    put(former, 5, 55)
    times = 1
    while backend.restore_some():
        times += 1
    assert times == len(handle.layers[0].chunks) - 1
    assert contents(backend) == contents(former)


@pytest.mark.parametrize("ask", ["snapshot", "delta", "noted", "keys"])
def test_whoever_wants_all_of_it_gets_all_of_it(tmp_path, ask):
    handle, former = written(tmp_path)
    backend, _ = backend_of([handle], tmp_path)
    backend.begin_epoch(5)
    for key in range(3):
        put(backend, key, 9)
        put(former, key, 9)
    match ask:
        case "snapshot":
            backend.snapshot(GROUPS)
        case "delta":
            assert sum(map(len, backend.snapshot_delta(GROUPS, 5).values())) < 3000
        case "noted":
            assert backend.note_delta(GROUPS, 5, 100).num_entries < 40
        case "keys":
            assert set(backend.keys("value")) == set(range(200)) - {7}
    assert backend._late is None
    assert contents(backend) == contents(former)


def test_each_subtask_takes_its_key_groups_from_several_former_ones(tmp_path):
    handle, former = written(tmp_path)
    halves = [KeyedStateHandle("keyed", 0, 8, handle.layers), KeyedStateHandle("keyed", 8, 16, handle.layers)]
    for handles, groups in (([handle], range(4, 12)), (halves[:1], range(8))):
        backend, _ = backend_of(handles, tmp_path, groups)
        keys = [key for key in range(200) if key_group_of(key, 16) in groups]
        assert contents(backend, keys) == contents(former, keys)
        assert backend._late is None


def test_a_damaged_chunk_is_never_state_and_the_file_is_named(tmp_path):
    handle, _ = written(tmp_path)
    path = tmp_path / "file-full"
    content = bytearray(path.read_bytes())
    offset, size, _ = handle.layers[0].chunks[key_group_of(3, 16)]
    content[offset + size - 9] ^= 1
    path.write_bytes(content)
    backend, _ = backend_of([handle], tmp_path)
    with pytest.raises(CorruptStateError, match="file-full"):
        backend.set_current_key(3)
    path.write_bytes(content[: offset + size - 9])
    with pytest.raises(CorruptStateError, match="file-full"):
        backend.restore_rest()


def test_a_file_that_is_gone_is_said_at_once_and_one_that_goes_later_does_not_matter(tmp_path):
    handle, former = written(tmp_path)
    backend, _ = backend_of([handle], tmp_path)
    (tmp_path / "file-full").unlink()
    assert contents(backend) == contents(former)
    with pytest.raises(CorruptStateError, match="file-full"):
        backend_of([handle], tmp_path)


def test_a_subtask_whose_key_groups_have_nothing_has_nothing_to_do_later(tmp_path):
    handle, _ = written(tmp_path)
    backend, registry = backend_of([handle], tmp_path, range(16, 32))
    assert not registry.late
    assert backend.num_entries() == 0
    assert not backend.restore_some()


def expiring(clock):
    """Return how to touch a state that expires after a minute, and how to read it."""
    descriptor = ValueStateDescriptor("expiring")
    descriptor.enable_time_to_live(StateTtlConfig.new_builder(Duration.of_minutes(1)).build())

    def touch(backend, key, number):
        clock.advance(100)
        backend.set_current_key(key)
        backend.value_state(descriptor).update(number)

    def read(backend, key):
        backend.set_current_key(key)
        return backend.value_state(descriptor).value()

    return touch, read


def test_what_expires_is_taken_up_late_and_dies_at_its_time(tmp_path):
    clock = ManualClock(1000)
    touch, read = expiring(clock)
    handle, former = written(tmp_path, change=touch, clock=clock)  # at 1.1 s, 1.2 s…; twenty of them again until 23 s
    backend, registry = backend_of([handle], tmp_path, clock=clock)
    assert registry.late == [backend]
    assert read(backend, 3) == 3
    clock.advance(43_000)  # 66 s: what was touched before 6 s is dead
    found = {key: read(backend, key) for key in range(0, 200, 3)}
    assert found == {key: read(former, key) for key in range(0, 200, 3)}
    assert 0 < sum(value is None for value in found.values()) < len(found)
    while backend.restore_some():
        pass
    assert {key: read(backend, key) for key in range(200)} == {key: read(former, key) for key in range(200)}


def test_what_has_expired_before_it_was_taken_up_is_given_back_in_the_end(tmp_path):
    clock = ManualClock(1000)
    touch, _ = expiring(clock)
    handle, _ = written(tmp_path, change=touch, clock=clock)
    backend, _ = backend_of([handle], tmp_path, clock=clock)
    touch(backend, 1000, 1)
    clock.advance(100_000)
    while backend.restore_some():
        pass
    assert backend.num_entries() == 201
    for number in range(100):
        touch(backend, 2000, number)
    assert backend.num_entries() == 1
    assert list(backend.keys("expiring")) == [2000]


def test_a_restored_state_that_expires_from_now_on_is_complete(tmp_path):
    handle, _ = written(tmp_path)
    clock = ManualClock()
    backend, _ = backend_of([handle], tmp_path, clock=clock)
    descriptor = ValueStateDescriptor("value")
    descriptor.enable_time_to_live(StateTtlConfig.new_builder(Duration.of_minutes(1)).build())
    state = backend.value_state(descriptor)
    backend.set_current_key(3)
    assert state.value() == 3
    clock.advance(61_000)
    backend.set_current_key(100)
    assert state.value() is None


def test_keys_of_another_type_are_refused_as_ever(tmp_path):
    handle, _ = written(tmp_path)
    backend, _ = backend_of([handle], tmp_path)
    with pytest.raises(ProgramError, match="keys of type number"):
        for number in range(40):
            backend.set_current_key(f"k{number}")


def test_values_of_another_type_are_told_when_they_are_taken_up(tmp_path):
    handle, _ = written(tmp_path)
    backend, _ = backend_of([handle], tmp_path)
    backend.value_state(ValueStateDescriptor("value", Types.STRING()))
    told = "value state 'value' is declared String, and what was restored of it holds"
    with pytest.raises(ProgramError, match=told):
        backend.restore_some()
    with pytest.raises(ProgramError, match=told):
        backend.restore_rest()


def test_a_stream_of_mixed_keys_is_not_refused_when_more_is_taken_up(tmp_path):
    """A key of a known type has ended the watch, though keys of other groups are restored after it."""
    handle, _ = written(tmp_path)
    backend, _ = backend_of([handle], tmp_path)
    backend.set_current_key(3)
    backend.restore_some()
    backend.set_current_key("a new sort of key")
    backend.restore_rest()
    backend.set_current_key(b"and another")
