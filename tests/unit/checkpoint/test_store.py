"""CompletedCheckpointStore: no file that is referred to goes, every other one does, whatever the order."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoint.store import CompletedCheckpointStore, Garbage
from engine.protocol.checkpoint import CheckpointKind
from tests.unit.checkpoint.jobs import keyed_checkpoint, pipeline


def checkpoint(number: int, *paths: str):
    """Return a checkpoint of one subtask whose files are these."""
    made = keyed_checkpoint(pipeline(1), checkpoint_id=number, folder=f"chk-{number}")
    (vertex,) = made.vertices
    (state,) = vertex.subtasks.values()
    ((operator_id, handles),) = state.operators.items()
    (keyed,) = handles.keyed
    (layer,) = keyed.layers
    layers = tuple(dataclasses.replace(layer, file=dataclasses.replace(layer.file, path=path)) for path in paths)
    handles = dataclasses.replace(handles, keyed=(dataclasses.replace(keyed, layers=layers),), lists=None)
    vertex = dataclasses.replace(vertex, subtasks={0: dataclasses.replace(state, operators={operator_id: handles})})
    return dataclasses.replace(made, vertices=(vertex,), kind=CheckpointKind.CHECKPOINT)


def test_the_oldest_goes_when_there_are_more_than_are_retained():
    store = CompletedCheckpointStore(2)
    assert not store.add(checkpoint(1, "a", "b"))
    assert not store.add(checkpoint(2, "b", "c"))
    assert store.add(checkpoint(3, "c", "d")) == Garbage(("chk-1",), ("a",))
    assert [stored.checkpoint.checkpoint_id for stored in store.all()] == [2, 3]


def test_one_that_is_built_upon_stays_until_the_builder_has_ended():
    store = CompletedCheckpointStore(1)
    store.add(checkpoint(1, "a"))
    store.pin(1)
    assert not store.add(checkpoint(2, "b"))
    assert store.unpin(1) == Garbage(("chk-1",), ("a",))


def test_files_that_are_not_the_jobs_stay():
    store = CompletedCheckpointStore(1)
    store.add(checkpoint(1, "a"), is_owned=False)
    assert store.base() is None
    assert not store.add(checkpoint(2, "b"))
    assert store.latest().checkpoint_id == 2
    assert store.remove_all() == Garbage(("chk-2",), ("b",))


def test_checkpoints_complete_in_order():
    store = CompletedCheckpointStore(1)
    store.add(checkpoint(2))
    with pytest.raises(AssertionError):
        store.add(checkpoint(1))


files = st.sets(st.sampled_from("abcdef"), max_size=4)


@given(st.integers(1, 3), st.lists(st.tuples(files, files, st.booleans(), st.booleans()), max_size=12))
def test_a_file_is_deleted_when_and_only_when_nobody_refers_to_it(num_retained, steps):
    """Each step: a checkpoint under way with files, perhaps built on the last, completes or is aborted."""
    store = CompletedCheckpointStore(num_retained)
    written: set[str] = set()
    deleted: set[str] = set()
    kept: list = []
    for number, (own, _, builds, completes) in enumerate(steps, 1):
        base = kept[-1] if builds and kept else None
        inherited = set() if base is None else set(sorted(base.files())[:2])
        paths = {f"{number}{name}" for name in own} | inherited
        written |= paths
        if base is not None:
            store.pin(base.checkpoint_id)
        store.retain(paths)
        garbage = Garbage()
        if completes:
            kept.append(checkpoint(number, *sorted(paths)))
            garbage += store.add(kept[-1])
            kept = kept[-num_retained:]
        garbage += store.release(paths)
        if base is not None:
            garbage += store.unpin(base.checkpoint_id)
        assert not set(garbage.files) & deleted, "deleted twice"
        deleted |= set(garbage.files)
        needed = {path for one in kept for path in one.files()}
        assert deleted == written - needed
    deleted |= set(store.remove_all().files)
    assert deleted == written
    assert not store.references()
