"""What is written is what is read, of the own key groups only; what is damaged is never taken for sound."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from engine.checkpoint import state_files
from engine.checkpoint.restored_state import HandleRestoredState, read_chunks, read_file
from engine.checkpoint.state_files import ChunkWriter, upload_file, write_file
from engine.core.errors import CorruptStateError, ProgramError
from engine.core.fs import LocalFileSystem
from engine.protocol.checkpoint import FileHandle, KeyedLayer, KeyedStateHandle, ListStateHandle, OperatorRestore
from engine.state.operator_state import OperatorStateSnapshot, Redistribution
from engine.state.parts import OperatorStateRegistry

CHUNKS = {group: bytes([group]) * 100 for group in range(16)}


def written(path: str, inline_bytes_max: int = 0) -> list[KeyedLayer]:
    writer = ChunkWriter(path, inline_bytes_max)
    writer.add_layer(CHUNKS.items())
    writer.add_layer([(3, b"changed")], is_delta=True)
    return writer.finish()


def all_of(layer: KeyedLayer, key_groups: range = range(16)) -> dict[int, bytes]:
    return {group: chunk for chunks in read_chunks(layer, key_groups) for group, chunk in chunks.items()}


@pytest.mark.parametrize("inline_bytes_max", [0, 1 << 20], ids=["file", "inline"])
def test_layers_are_read_as_they_were_written(inline_bytes_max: int, tmp_path: Path):
    full, delta = written(f"file://{tmp_path}/state", inline_bytes_max)
    assert (tmp_path / "state").exists() == (inline_bytes_max == 0)
    assert all_of(full) == CHUNKS
    assert all_of(delta) == {3: b"changed"}
    assert delta.is_delta


def test_chunks_are_written_in_pieces_that_are_neither_small_nor_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = []

    class Stream(io.FileIO):
        def write(self, content):
            sizes.append(len(content))
            return super().write(content)

    monkeypatch.setattr(LocalFileSystem, "open_write", lambda self, path: Stream(self.local(path), "xb"))
    piece = state_files._WRITE_BYTES
    # Around the sizes from which on a checksum is made in pieces, and in one.
    small = {group: bytes([group]) * (5 * 1024 * group + 1) for group in range(60)}
    large = {0: bytes(range(256)) * 20_000}
    writer = ChunkWriter(f"file://{tmp_path}/state", 0)
    writer.add_layer(small.items())
    writer.add_layer(large.items())
    writer.add_layer([(1, b"the end")], is_delta=True)
    layers = writer.finish()
    assert [all_of(layer, range(60)) for layer in layers] == [small, large, {1: b"the end"}]
    assert all(size <= 2 * piece for size in sizes)
    assert len(sizes) <= layers[0].file.size_bytes / piece + 3


def test_only_the_own_key_groups_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full, _ = written(f"file://{tmp_path}/state")
    offsets = []
    opened = LocalFileSystem.open_read

    def noted(self: LocalFileSystem, path: str, offset: int = 0):
        offsets.append(offset)
        return opened(self, path, offset)

    monkeypatch.setattr(LocalFileSystem, "open_read", noted)
    assert all_of(full, range(4, 8)) == {group: CHUNKS[group] for group in range(4, 8)}
    assert offsets == [400]


@pytest.mark.parametrize("damage", ["a bit", "the end", "all"])
def test_damage_is_seen_and_the_file_named(damage: str, tmp_path: Path):
    full, _ = written(f"file://{tmp_path}/state")
    path = tmp_path / "state"
    content = bytearray(path.read_bytes())
    match damage:
        case "a bit":
            content[555] ^= 1
            path.write_bytes(content)
        case "the end":
            path.write_bytes(content[:900])
        case "all":
            path.unlink()
    assert all_of(full, range(4)) if damage != "all" else True
    with pytest.raises(CorruptStateError, match=r"tmp|state"):
        all_of(full)


def test_whole_files_are_checked(tmp_path: Path):
    (tmp_path / "local").write_bytes(b"content" * 1000)
    uploaded = upload_file(str(tmp_path / "local"), f"file://{tmp_path}/up")
    assert read_file(uploaded) == b"content" * 1000
    assert read_file(write_file(b"small", "")) == b"small"
    with pytest.raises(CorruptStateError):
        read_file(FileHandle(uploaded.path, uploaded.size_bytes, uploaded.crc32 ^ 1))


class Part:
    def __init__(self) -> None:
        self.taken: list[dict[int, bytes]] = []

    def num_entries(self) -> int:
        return 0

    def snapshot(self, key_groups):
        return {}

    def restore(self, chunks) -> None:
        self.taken.append(dict(chunks))


def restored(restore: OperatorRestore, tmp_path: Path, key_groups: range = range(16)) -> HandleRestoredState:
    return HandleRestoredState(
        restore, operator_name="op", subtask_index=0, parallelism=2, key_groups=key_groups, work_dir=str(tmp_path / "w")
    )


def test_a_part_takes_layers_of_several_former_subtasks_oldest_first(tmp_path: Path):
    full, delta = written(f"file://{tmp_path}/state")
    other = KeyedStateHandle("part", 16, 32, (full,))
    handle = KeyedStateHandle("part", 0, 16, (full, delta))
    part = Part()
    state = restored(OperatorRestore((handle, other)), tmp_path, range(2, 5))
    OperatorStateRegistry(state).add_keyed("part", part)
    assert part.taken == [{group: CHUNKS[group] for group in range(2, 5)}, {3: b"changed"}]


def test_lists_are_dealt_out_when_the_parallelism_changes(tmp_path: Path):
    snapshot = OperatorStateSnapshot({"l": (Redistribution.SPLIT, [b"1", b"2"]), "u": (Redistribution.UNION, [b"3"])})
    import pickle

    handle = ListStateHandle(write_file(pickle.dumps(snapshot), ""), has_union=True)
    state = restored(OperatorRestore((), (handle, handle), redistribute=True), tmp_path).lists()
    assert state is not None
    assert state.states == {"l": (Redistribution.SPLIT, [b"1", b"2"]), "u": (Redistribution.UNION, [b"3", b"3"])}


def test_files_of_another_backend_are_refused(tmp_path: Path):
    handle = KeyedStateHandle("part", 0, 16, files=(("000001.sst", write_file(b"x", "")),), format="rocksdb")
    registry = OperatorStateRegistry(restored(OperatorRestore((handle,)), tmp_path))
    with pytest.raises(ProgramError, match="rocksdb"):
        registry.add_keyed("part", Part())


class FilePart(Part):
    format = "rocksdb"

    def freeze(self, folder: str) -> None: ...

    def freeze_rows(self) -> None: ...

    def is_mutable(self, file_name: str) -> bool:
        return False

    def restore_files(self, folder: str, key_groups: range) -> None:
        self.folder, self.key_groups = Path(folder), key_groups


def test_a_part_on_disk_gets_its_files_and_its_key_groups(tmp_path: Path):
    handle = KeyedStateHandle("part", 0, 16, files=(("1.sst", write_file(b"x", f"{tmp_path}/f")),), format="rocksdb")
    part = FilePart()
    state = restored(OperatorRestore((handle,)), tmp_path, range(8, 24))
    OperatorStateRegistry(state).add_keyed("part", part)
    assert (part.folder / "1.sst").read_bytes() == b"x"
    assert part.key_groups == range(8, 16)
