"""Metadata and folders of checkpoints on real files: they can be moved, damage is seen, nothing stays behind."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import zlib

import pytest

from engine.checkpoint import storage
from engine.checkpoint.metadata import decode_metadata, encode_metadata
from engine.checkpoint.model import CompletedCheckpoint, SubtaskState, VertexState
from engine.checkpoint.store import Garbage
from engine.core.errors import ConfigError, CorruptStateError, InputError
from engine.core.ids import JobID
from engine.protocol.checkpoint import (
    CheckpointKind,
    FileHandle,
    InFlightHandle,
    KeyedLayer,
    KeyedStateHandle,
    ListStateHandle,
    OperatorStateHandles,
)
from tests.unit.checkpoint.jobs import JOB_ID, keyed_checkpoint, operator, pipeline, vertex

CONTENT = b"state"


def checkpoint_in(folder: str, number: int = 1, *paths: str, kind=CheckpointKind.CHECKPOINT) -> CompletedCheckpoint:
    """Return a checkpoint with every kind of handle; its files are written."""
    paths = paths or (f"{folder}/file",)
    handles = []
    for path in paths:
        local = path.removeprefix("file://")
        os.makedirs(os.path.dirname(local), exist_ok=True)
        with open(local, "wb") as stream:
            stream.write(CONTENT)
        handles.append(FileHandle(path, len(CONTENT), zlib.crc32(CONTENT)))
    one = vertex("v0", 1)
    inline = FileHandle("", 3, 0, b"\x00\xff{")
    operators = {
        operator("v0").operator_id: OperatorStateHandles(
            (
                KeyedStateHandle("keyed", 0, 8, tuple(KeyedLayer(h, {3: (0, 5, 1)}, True) for h in handles)),
                KeyedStateHandle("db", 0, 8, (), (("CURRENT", inline), ("1.sst", handles[0])), "rocksdb"),
            ),
            ListStateHandle(inline, True),
            b"committables",
        )
    }
    in_flight = (InFlightHandle(inline, operator("v0").operator_id, 0, 0, True),)
    state = VertexState(one.vertex_id, one.name, 1, 8, one.operators, {0: SubtaskState(operators, in_flight)}, ())
    return CompletedCheckpoint(number, JOB_ID, kind, 5, (state,), {operator("v0").operator_id: b"c"}, folder)


@pytest.fixture
def job_folder(tmp_path) -> str:
    return f"file://{tmp_path}/{JOB_ID}"


def write(checkpoint: CompletedCheckpoint) -> CompletedCheckpoint:
    storage.write_metadata(checkpoint)
    return checkpoint


def local(uri: str) -> str:
    return uri.removeprefix("file://")


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(job_folder):
    checkpoint = write(checkpoint_in(f"{job_folder}/chk-1"))
    assert storage.read_checkpoint(checkpoint.folder) == checkpoint
    assert storage.read_checkpoint(local(checkpoint.folder) + "/_metadata") == checkpoint
    assert sorted(os.listdir(local(checkpoint.folder))) == ["_metadata", "file"]


def test_a_folder_that_was_moved_finds_its_files(job_folder, tmp_path):
    checkpoint = write(checkpoint_in(f"{job_folder}/chk-1", 1, f"{job_folder}/chk-1/a", f"{job_folder}/shared/b"))
    os.rename(local(job_folder), tmp_path / "moved")
    read = storage.read_checkpoint(str(tmp_path / "moved" / "chk-1"))
    assert read.files() == {f"file://{tmp_path}/moved/chk-1/a", f"file://{tmp_path}/moved/shared/b"}
    storage.verify_files(read)
    assert len(checkpoint.files()) == 2


def test_files_elsewhere_keep_their_place():
    checkpoint = keyed_checkpoint(pipeline(1), folder="hdfs://nn:1/sp")
    elsewhere = dataclasses.replace(checkpoint, folder="file:///x/y")
    assert decode_metadata(encode_metadata(elsewhere), "file:///z/y").files() == checkpoint.files()


def test_no_damage_of_a_byte_or_of_the_length_goes_unseen():
    content = encode_metadata(keyed_checkpoint(pipeline(2, 2)))
    rng = random.Random(1)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        with pytest.raises(CorruptStateError):
            decode_metadata(bytes(damaged), "file:///s/sp")
    for length in (0, 5, 30, len(content) // 2, len(content) - 1):
        with pytest.raises(CorruptStateError):
            decode_metadata(content[:length], "file:///s/sp")
    with pytest.raises(CorruptStateError):
        decode_metadata(content + b"x", "file:///s/sp")


def test_a_later_format_is_told():
    content = bytearray(encode_metadata(keyed_checkpoint(pipeline(1))))
    content[11] = 9
    with pytest.raises(CorruptStateError, match="has format 9; this release reads formats up to 1"):
        decode_metadata(bytes(content), "file:///s/sp")


# --- reading ----------------------------------------------------------------------------------------------------------


def test_what_is_no_savepoint_is_told(tmp_path, job_folder):
    with pytest.raises(InputError, match=r"Savepoint .*/none does not exist"):
        storage.read_checkpoint(str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; expected the folder"):
        storage.read_checkpoint(str(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="it has no file _metadata"):
        storage.read_checkpoint(str(tmp_path / "empty"))


def test_a_write_that_was_cut_off_is_no_checkpoint(job_folder):
    checkpoint = write(checkpoint_in(f"{job_folder}/chk-1"))
    os.rename(local(checkpoint.folder) + "/_metadata", local(checkpoint.folder) + "/_metadata.inprogress")
    with pytest.raises(InputError, match="not completed"):
        storage.read_checkpoint(checkpoint.folder)


@pytest.mark.parametrize("damage", ["torn metadata", "no metadata", "short file", "no file"])
def test_the_newest_sound_checkpoint_of_a_job_is_found_and_the_others_are_named(job_folder, damage, caplog):
    for number in (1, 2, 10):
        write(checkpoint_in(f"{job_folder}/chk-{number}", number))
    folder = local(f"{job_folder}/chk-10")
    match damage:
        case "torn metadata":
            with open(f"{folder}/_metadata", "r+b") as stream:
                stream.truncate(40)
        case "no metadata":
            os.remove(f"{folder}/_metadata")
        case "short file":
            with open(f"{folder}/file", "r+b") as stream:
                stream.truncate(1)
        case "no file":
            os.remove(f"{folder}/file")
    assert storage.read_checkpoint(job_folder).checkpoint_id == 2
    if damage not in ("no metadata", "short file", "no file"):
        with pytest.raises(
            CorruptStateError, match=rf"chk-10/_metadata is .* Name {job_folder} to start from the newest"
        ):
            storage.read_checkpoint(f"{job_folder}/chk-10")
    assert damage == "no metadata" or "checkpoint=10 is passed over" in caplog.text
    shutil.rmtree(local(f"{job_folder}/chk-2"))
    shutil.rmtree(local(f"{job_folder}/chk-1"))
    with pytest.raises(CorruptStateError, match=r"no sound checkpoint.*chk-10"):
        storage.read_checkpoint(job_folder)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_told_with_its_key(tmp_path):
    storage.check_writable(f"file://{tmp_path}/new", "some.key", "x")
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Folder file://.*/file/chk \(some\.key\) cannot be written"):
        storage.check_writable(f"file://{tmp_path}/file/chk", "some.key", "x")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b/", "file:///a/b"),
        ("file:///a/", "file:///a"),
        ("hdfs://nn:9/a/", "hdfs://nn:9/a"),
        ("hdfs:///a", "hdfs:///a"),
        (" /a ", "file:///a"),
    ],
)
def test_folders_are_uris(path, expected):
    assert storage.absolute_folder(path) == expected


def test_a_savepoint_is_disposed_of_with_all_that_belongs_to_it(tmp_path):
    folder = storage.savepoint_folder(f"file://{tmp_path}", JobID(JOB_ID), "0123456789abcdef")
    assert folder == f"file://{tmp_path}/savepoint-{JOB_ID[:6]}-0123456789ab"
    write(checkpoint_in(folder, kind=CheckpointKind.SAVEPOINT))
    storage.dispose_savepoint(folder)
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match="does not exist"):
        storage.dispose_savepoint(folder)


def test_a_retained_checkpoint_is_disposed_of_without_what_others_may_share(job_folder):
    shared = f"{job_folder}/shared/b"
    checkpoint = write(checkpoint_in(f"{job_folder}/chk-1", 1, f"{job_folder}/chk-1/a", shared))
    storage.dispose_savepoint(checkpoint.folder)
    assert os.path.exists(local(shared))
    assert not os.path.exists(local(checkpoint.folder))


def test_a_folder_that_is_no_savepoint_is_not_touched_by_disposal(tmp_path, job_folder):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(InputError, match="Nothing was deleted"):
        storage.dispose_savepoint(str(tmp_path))
    write(checkpoint_in(f"{job_folder}/chk-1"))
    with pytest.raises(InputError, match="Nothing was deleted"):
        storage.dispose_savepoint(job_folder)
    assert os.path.exists(tmp_path / "precious")
    assert os.path.exists(local(f"{job_folder}/chk-1/_metadata"))


def test_metadata_goes_before_the_files_that_it_names(job_folder, monkeypatch):
    checkpoint = write(checkpoint_in(f"{job_folder}/chk-1", 1, f"{job_folder}/shared/a"))
    order = []
    real = storage.file_system_of(job_folder)
    original = type(real).delete

    def noted(self, path, *, recursive=False):
        order.append(path)
        return original(self, path, recursive=recursive)

    monkeypatch.setattr(type(real), "delete", noted)
    assert storage.delete_garbage(Garbage((checkpoint.folder,), (f"{job_folder}/shared/a",))) == []
    assert order == [f"{checkpoint.folder}/_metadata", f"{job_folder}/shared/a", checkpoint.folder]


def test_what_cannot_be_deleted_does_not_keep_the_rest(job_folder, tmp_path, caplog):
    checkpoint = write(checkpoint_in(f"{job_folder}/chk-1"))
    (tmp_path / "full" / "x").mkdir(parents=True)
    failures = storage.delete_garbage(Garbage((checkpoint.folder,), (f"file://{tmp_path}/full",)))
    assert len(failures) == 1
    assert "It is left behind." in caplog.text
    assert not os.path.exists(local(checkpoint.folder))


def test_the_end_of_a_job_leaves_what_is_retained_and_nothing_else(job_folder):
    kept = write(checkpoint_in(f"{job_folder}/chk-2", 2, f"{job_folder}/chk-2/a", f"{job_folder}/shared/b"))
    write(checkpoint_in(f"{job_folder}/chk-1", 1, f"{job_folder}/chk-1/a", f"{job_folder}/shared/stray"))
    storage.remove_job_folder(job_folder, [kept.folder, *kept.files()])
    assert sorted(os.listdir(local(job_folder))) == ["chk-2", "shared"]
    assert os.listdir(local(f"{job_folder}/shared")) == ["b"]
    storage.verify_files(storage.read_checkpoint(kept.folder))
    storage.remove_job_folder(job_folder, [])
    assert not os.path.exists(local(job_folder))
    storage.remove_job_folder(job_folder, [])
