"""What benchmarks of state beyond memory take for state in files."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from dataclasses import replace

import numpy as np
import pytest

from tests.bench import keyed, state_files
from tests.bench.measure import Measurement
from tests.bench.state_files import FolderWatch, WatchedGenerator, unnamed_bytes

PAGE = mmap.PAGESIZE


def test_the_blocks_of_files_without_a_name_count_once_as_long_as_they_are_open(tmp_path):
    before = unnamed_bytes()
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.write(bytes(8 * PAGE))
        file.flush()
        file.truncate(100 * PAGE)  # the rest takes nothing
        mapped = mmap.mmap(file.fileno(), 8 * PAGE, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        own = os.memfd_create("own")
        os.write(own, bytes(PAGE))
    assert unnamed_bytes() - before == 8 * PAGE
    mapped.close()
    os.close(own)
    assert unnamed_bytes() == before


def test_a_generator_that_is_watched_makes_what_it_would():
    generator = WatchedGenerator(lambda indexes: indexes + 1)
    assert [generator.map(np.arange(n)).tolist() for n in range(3)] == [[], [1], [1, 2]]
    generator.close()
    other = WatchedGenerator(lambda indexes: indexes)
    generator._largest.add(1 << 40)
    other._largest.add(2 << 40)
    generator._largest.merge(other._largest)
    assert generator._largest.get_local_value() == 3 << 40


def test_the_most_that_lay_in_a_folder_is_told(tmp_path):
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "000001.sst").write_bytes(bytes(5000))
    with FolderWatch(str(tmp_path)) as watch:
        while not watch.bytes_max:
            pass
    assert watch.bytes_max == 5000


def test_files_and_folders_that_go_while_they_are_looked_at_are_no_error(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("000001.sst", "000002.sst"):
            (tmp_path / folder / name).write_bytes(bytes(100))
    size_of_file, looked_at = os.path.getsize, []

    def size(path):
        looked_at.append(path)
        if len(looked_at) == 1:  # what is still to come goes: the other file here, and the other folder
            found = size_of_file(path)
            shutil.rmtree(tmp_path / "a")
            return found
        return size_of_file(path)

    (tmp_path / "b").rename(tmp_path / "a" / "b")
    monkeypatch.setattr(state_files.os.path, "getsize", size)
    assert state_files._size_of(tmp_path) == 100
    assert len(looked_at) == 2


def test_a_limited_run_whose_state_was_still_small_counts_and_says_so(capsys):
    limited = keyed.Sample(1.0, 1.0, 1.0, 1.0, 100.0, files_mb=75, reached=(50, 60))
    assert keyed.on_disk("flink-java", limited, 128, 100) is limited
    assert "75 MB" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="75 MB"):
        keyed.on_disk("flink-java", replace(limited, reached=(100, 100)), 128, 100)
    with pytest.raises(RuntimeError, match="0 MB"):
        keyed.on_disk("flink-java", replace(limited, files_mb=0), 128, 100)


def test_a_run_on_disk_whose_state_was_in_memory_is_no_run():
    output = "RESULT state in files, MB: 300\nRESULT state in files, MB: 280\nRESULT rep=1 warm cpu=1.5 secs=1.0 span=2"
    sample = keyed.sample_of(Measurement(9.0, 4.0, 100.0, None, 0, output))
    assert (sample.files_mb, sample.cold_cpu_s) == (300, 2.5)
    assert keyed.on_disk("engine", sample, 128, 10) is sample
    with pytest.raises(RuntimeError, match="flink-java: 300 MB of its state lay in files, with 512 MB"):
        keyed.on_disk("flink-java", sample, 512, 10)
