from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import threading
import time
import zlib

import pyarrow as pa
import pytest

from engine.connectors.files import FileSplit, TextFileSource, split_size_of
from engine.connectors.source import Boundedness, SourceSpec
from engine.core import fs
from engine.core.errors import ConfigError, InputError
from engine.core.fs import FileStatus, LocalFileSystem
from tests.testing.operator_harness import OperatorHarness


def read(source: TextFileSource, **kwargs) -> list:
    with OperatorHarness(SourceSpec(pickle.loads(pickle.dumps(source))), **kwargs) as harness:
        return harness.run_source().rows


def test_lines_of_one_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("to be\r\nor nöt\n\nlast".encode())
    assert read(TextFileSource((str(path),))) == ["to be", "or nöt", "", "last"]
    assert read(TextFileSource((f"file://{path}",))) == ["to be", "or nöt", "", "last"]
    assert read(TextFileSource((str(path),), columnar=True)) == ["to be", "or nöt", "", "last"]


def test_raw_chunks_are_whole_lines_in_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("nöt\nto be".encode("latin-1"))
    chunks = read(TextFileSource((str(path),), charset="latin-1", raw_chunks=True))
    assert chunks == ["nöt\n".encode(), b"to be"]


def test_a_folder_is_read_with_its_folders_but_without_hidden_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "_logs").mkdir()
    for name in ("b", "sub/c", ".hidden", "_SUCCESS", "_logs/x"):
        (tmp_path / name).write_text(name + "\n")
    (tmp_path / "empty").write_text("")
    assert read(TextFileSource((str(tmp_path),))) == ["b", "sub/c"]
    assert read(TextFileSource((str(tmp_path / "*b*"),))) == ["b", "sub/c"]


def test_a_missing_path_is_an_error_at_the_start(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        read(TextFileSource((str(tmp_path / "nowhere"),)))
    with pytest.raises(InputError, match="matches nothing"):
        read(TextFileSource((str(tmp_path / "*.txt"),)))
    with pytest.raises(ConfigError, match="scheme 's4'"):
        read(TextFileSource(("s4://bucket/x",)))


def test_a_relative_path_is_the_programs(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    source = TextFileSource(("a.txt",))
    monkeypatch.chdir("/")
    assert read(source) == ["x"]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".gz", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
        (".bz2", lambda data: bz2.compress(data[:9]) + bz2.compress(data[9:])),
        (".xz", lzma.compress),
        (
            ".zst",
            lambda data: pa.compress(data[:9], "zstd", asbytes=True) + pa.compress(data[9:], "zstd", asbytes=True),
        ),
        (".deflate", zlib.compress),
    ],
)
def test_compressed_files_are_read_whole_by_suffix(tmp_path, suffix, pack):
    lines = [f"zeile {i} ü" for i in range(300_000)]
    (tmp_path / f"a.txt{suffix}").write_bytes(pack("\n".join(lines).encode()))
    assert read(TextFileSource((str(tmp_path),)), parallelism=4) == lines


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_broken_compressed_data_names_the_file(tmp_path, suffix, pack):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pack(bytes(range(256)) * 100)[:-20])
    with pytest.raises(InputError, match=f"data in .*a{suffix}"):
        read(TextFileSource((str(path),), charset="latin-1"))


def test_undecodable_bytes_name_file_and_offset(tmp_path):
    path = tmp_path / "a.txt"
    good = "ä\n".encode() * 700_000
    path.write_bytes(good + b"bad \xff line\n")
    for source in (TextFileSource((str(path),)), TextFileSource((str(path),), raw_chunks=True)):
        with pytest.raises(
            InputError, match=rf"a\.txt: bytes b'\\xff li' at byte offset {len(good) + 4} are not utf-8"
        ):
            read(source)
    assert read(TextFileSource((str(path),), errors="replace"))[-1] == "bad \ufffd line"
    assert read(TextFileSource((str(path),), charset="latin-1"))[-1] == "bad ÿ line"


def test_utf16_is_read_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("eins\nzwei ü\n".encode("utf-16"))
    assert read(TextFileSource((str(path),), charset="utf-16"), parallelism=3) == ["eins", "zwei ü"]


def test_a_byte_order_mark_is_not_data(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfword\n")
    assert read(TextFileSource((str(path),))) == ["word"]


def test_a_large_file_is_cut_and_every_line_comes_once(tmp_path):
    path = tmp_path / "a.txt"
    lines = [f"{i} " + "x" * (i % 90) for i in range(120_000)]
    path.write_text("\n".join(lines) + "\n")
    enumerator = TextFileSource((str(path),)).create_enumerator()
    enumerator.start(2)
    splits = list(iter(lambda: enumerator.next_split(0, "h"), None))
    assert len(splits) >= 6
    assert (splits[0].start, splits[-1].end) == (0, path.stat().st_size)
    assert read(TextFileSource((str(path),)), parallelism=2) == lines


def test_lines_longer_than_a_split_come_once(tmp_path):
    path = tmp_path / "a.txt"
    lines = ["a" * 3_000_000, "b", "c" * 5_000_000]
    path.write_text("\n".join(lines))
    assert read(TextFileSource((str(path),)), parallelism=8) == lines


def test_the_split_size_follows_input_and_parallelism():
    assert split_size_of(10, 4) == 1 << 20
    assert split_size_of(160 << 20, 4) == 10 << 20
    assert split_size_of(1 << 40, 4) == 64 << 20


def test_a_file_that_vanished_after_the_listing_is_a_clear_error(tmp_path):
    reader = TextFileSource((str(tmp_path),)).create_reader()
    with OperatorHarness() as harness:
        harness._coordinators = []
        ctx = harness._context(0)
        reader.open(ctx)
        reader.add_split(FileSplit("x", str(tmp_path / "gone"), 0, 5))
        assert harness.woken.wait(60)
        with pytest.raises(InputError, match=r"gone: No such file.*when the job listed its input"):
            reader.poll(10)
        reader.close()


def test_the_thread_reads_a_bounded_way_ahead_and_ends_at_close(tmp_path):
    path = tmp_path / "a.gz"  # one split
    path.write_bytes(gzip.compress(b"0123456789abcde\n" * 1_000_000, 1))
    source = TextFileSource((str(path),))
    with OperatorHarness(SourceSpec(source), name="Ahead") as harness:
        harness.run_source(until=lambda: bool(harness.output.batches))
        reader = harness.head._reader
        thread = reader._chunks._thread
        deadline = time.monotonic() + 60
        while len(reader._chunks._chunks) < 3:
            assert time.monotonic() < deadline
            thread.join(0.01)
        thread.join(0.2)  # it could read on now, and must not
        assert len(reader._chunks._chunks) == 3
        assert thread.is_alive()
    assert not thread.is_alive()
    assert not [t for t in threading.enumerate() if "Ahead" in t.name]


class _Blocks(LocalFileSystem.__base__):  # type: ignore[misc]
    """A file system that knows nothing but where ten blocks of one file lie."""

    def block_hosts(self, path, offset, length):
        return (f"node{offset // (1 << 20) % 2}.example.org",)

    def status(self, path):
        return FileStatus(path, 10 << 20, False, 0)

    def open_read(self, path, offset=0): ...
    def open_write(self, path, *, overwrite=False): ...
    def list(self, path): ...
    def make_dirs(self, path): ...
    def rename(self, source, target, *, overwrite=False): ...
    def delete(self, path, *, recursive=False): ...


def test_a_reader_gets_splits_of_its_own_host_first(monkeypatch):
    monkeypatch.setattr(fs, "_factories", dict(fs._factories))
    monkeypatch.setattr(fs, "_instances", dict(fs._instances))
    fs.register_file_system("blocks", _Blocks)
    enumerator = TextFileSource(("blocks://c/file",)).create_enumerator()
    enumerator.start(4)
    starts = [enumerator.next_split(0, "NODE1").start >> 20 for _ in range(5)]
    assert starts == [1, 3, 5, 7, 9]
    assert enumerator.next_split(0, "node1").start == 0
    assert enumerator.next_split(1, "elsewhere").start >> 20 == 2
    assert [enumerator.next_split(0, "node0").start >> 20 for _ in range(3)] == [4, 6, 8]
    assert enumerator.next_split(0, "node0") is None


def test_monitoring_finds_new_files_and_never_ends(tmp_path):
    (tmp_path / "a").write_text("one\n")
    source = TextFileSource((str(tmp_path),), monitor_interval_ms=20)
    assert source.boundedness is Boundedness.CONTINUOUS_UNBOUNDED
    with OperatorHarness(SourceSpec(source)) as harness:
        harness.run_source(until=lambda: harness.output.rows == ["one"])
        (tmp_path / "b").write_text("two\n")
        harness.run_source(until=lambda: len(harness.output.rows) == 2)
        assert harness.output.rows == ["one", "two"]


def test_monitoring_a_pattern_waits_for_the_first_match(tmp_path):
    source = TextFileSource((str(tmp_path / "*.log"),), monitor_interval_ms=5)
    with OperatorHarness(SourceSpec(source)) as harness:
        harness.run_source(until=lambda: isinstance(harness.head._reader._chunks._num_unread, int))
        (tmp_path / "a.log").write_text("one\n")
        harness.run_source(until=lambda: harness.output.rows == ["one"])
