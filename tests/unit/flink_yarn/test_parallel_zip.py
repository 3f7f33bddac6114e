"""The zip writer that deflates on all cores: what others read from it."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import zipfile

import pytest

from engine.core.errors import ConfigError
from flink_yarn import parallel_zip
from flink_yarn.parallel_zip import BLOCK_BYTES, ParallelZipWriter


def contents() -> dict[str, bytes]:
    rng = random.Random(7)
    noise, text = rng.randbytes(3 * BLOCK_BYTES), b"to be or not to be " * (BLOCK_BYTES // 5)
    sizes = (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES)
    found = {f"folder/{kind}-{size}": data[:size] for kind, data in (("n", noise), ("t", text)) for size in sizes}
    return {**found, "noise": noise, "text": text, "ünicode.txt": b"x"}


def packed(files: dict[str, bytes], threads: int | None = None) -> bytes:
    stream = io.BytesIO()
    with ParallelZipWriter(stream, threads) as archive:
        for name, data in files.items():
            archive.add(name, io.BytesIO(data), 0o755 if name == "noise" else 0o644)
    return stream.getvalue()


def test_every_member_comes_back_with_name_content_and_mode():
    with zipfile.ZipFile(io.BytesIO(packed(contents()))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == contents()
        assert list(contents()) == archive.namelist()
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert (modes["noise"], modes["text"]) == (0o100755, 0o100644)


@pytest.mark.skipif(shutil.which("unzip") is None, reason="no unzip here")
def test_unzip_agrees(tmp_path):
    (tmp_path / "a.zip").write_bytes(packed(contents()))
    done = subprocess.run(["unzip", "-tq", tmp_path / "a.zip"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_bytes_do_not_depend_on_the_number_of_threads():
    assert packed(contents(), 1) == packed(contents(), 5)


def test_it_compresses_about_as_well_as_one_stream():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in contents().items():
            archive.writestr(name, data)
    assert len(packed(contents())) < 1.02 * len(stream.getvalue())


def test_an_empty_archive_is_one():
    assert zipfile.ZipFile(io.BytesIO(packed({}))).namelist() == []


def test_an_error_of_the_source_is_raised_and_no_directory_is_written():
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("the disk is gone")

    stream = io.BytesIO()
    with pytest.raises(OSError, match="the disk is gone"), ParallelZipWriter(stream) as archive:
        archive.add("a", io.BytesIO(b"a"), 0o644)
        archive.add("b", Broken(), 0o644)
    assert not zipfile.is_zipfile(stream)


def test_more_than_a_zip_holds_is_told(monkeypatch):
    monkeypatch.setattr(parallel_zip, "MEMBERS_MAX", 2)
    with pytest.raises(ConfigError, match=r"3 files .* more than a zip archive holds"):
        packed({"a": b"", "b": b"", "c": b""})
