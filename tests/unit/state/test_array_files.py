"""Objects of arrays in files: what is put back is what was changed, whichever way it gets there, and a fork keeps what
it saw."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

from engine.core.errors import ExternalError
from engine.state import array_files
from engine.state.array_files import ArrayFile

PAGE = 4096


def content_of(rng: random.Random, sizes=(0, 3, 100, 3 * PAGE, 40 * PAGE + 5, 20 * PAGE)) -> dict[str, np.ndarray]:
    return {f"a{number}": np.frombuffer(rng.randbytes(size), np.uint8).copy() for number, size in enumerate(sizes)}


def changed(content: dict[str, np.ndarray], rng: random.Random) -> None:
    """Change something, in place or by another array, perhaps of another size."""
    for name in content:
        array = content[name]
        what = rng.choice(["", "", "bytes", "bytes", "all", "another", "another size", "of another"])
        if what == "bytes" and array.size:
            for _ in range(rng.randrange(1, 4)):
                array[rng.randrange(array.size)] = rng.randrange(256)
        elif what == "all":
            array[:] = rng.randrange(256)
        elif what == "another":
            content[name] = np.full(array.size, rng.randrange(256), np.uint8)
        elif what == "another size" and rng.random() < 0.2:
            content[name] = np.full(rng.randrange(5 * PAGE), rng.randrange(256), np.uint8)
        elif what == "of another" and rng.random() < 0.5:
            others = [other for other in content if content[other].size == array.size]
            other = rng.choice(others)
            content[name], content[other] = content[other], content[name]


@pytest.fixture(params=["pages", "no pages"])
def kernel(request, monkeypatch):
    """One that says which pages have been changed, or does not."""
    assert array_files._knows_pages()
    if request.param == "no pages":
        monkeypatch.setattr(array_files, "_knows_pages", lambda: False)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("seed", range(6))
def test_what_is_put_back_is_what_was_changed(seed, tmp_path):
    rng = random.Random(seed)
    sizes = (0, 3, 100, 3 * PAGE, 3 * PAGE, 40 * PAGE + 5, 20 * PAGE, 20 * PAGE)
    content = content_of(rng, sizes)
    file = ArrayFile(content, str(tmp_path))
    num_same = 0
    for _ in range(40):
        expected = {name: array.tobytes() for name, array in file.read().items()}
        content = file.take()
        assert {name: array.tobytes() for name, array in content.items()} == expected
        changed(content, rng)
        expected = {name: array.tobytes() for name, array in content.items()}
        if rng.random() < 0.1:
            array_files._count_fork()
        before, file = file, file.put_back(content)
        num_same += file is before
        del content
        assert {name: array.tobytes() for name, array in file.read().items()} == expected
    assert 5 < num_same < 40
    file.close()


def test_only_pages_that_were_changed_are_written(tmp_path, monkeypatch):
    written = []
    pwrite = os.pwrite
    file = ArrayFile(content_of(random.Random(1)), str(tmp_path))
    monkeypatch.setattr(os, "pwrite", lambda fd, part, at: written.append(len(part)) or pwrite(fd, part, at))
    for _ in range(3):
        content = file.take()
        assert int(content["a4"][30 * PAGE]) >= 0  # looking changes nothing
        content["a4"][[5, PAGE + 5, 10 * PAGE]] = 0
        assert file.put_back(content) is file
        assert sum(written) == 3 * PAGE
        written.clear()
    content = file.take()
    content["a4"][:] = 7
    assert file.put_back(content) is file
    assert sum(written) == 40 * PAGE + PAGE  # the last page has five bytes of it, and nothing else
    content = file.take()  # a copy now
    assert not 0 <= content["a4"].ctypes.data - file._base < file._size
    content["a4"][9] = 8
    assert file.put_back(content) is file
    assert file.read()["a4"].tolist() == [7] * 9 + [8] + [7] * (40 * PAGE - 5)
    file.close()


def test_what_is_no_array_is_put_back_too(tmp_path):
    file = ArrayFile((1, np.ones(PAGE)), str(tmp_path))
    assert file.put_back((2, file.take()[1])) is file
    number, array = file.read()
    assert number == 2
    assert array.tolist() == [1.0] * PAGE
    file.close()


def test_room_for_more_takes_nothing_on_the_disk(tmp_path):
    array = np.zeros(1 << 22, np.uint8)
    array[:100] = 1
    file = ArrayFile([array], str(tmp_path))
    assert os.fstat(file._fd).st_blocks * 512 <= 1 << 17
    assert file.read()[0].tobytes() == array.tobytes()
    file.close()


@pytest.mark.parametrize("is_out", [False, True])
def test_a_fork_reads_what_was_there(is_out, tmp_path):
    """Perhaps of what had been taken out, and was changed in part."""
    content = content_of(random.Random(2))
    file = ArrayFile(content, str(tmp_path))
    taken = file.take()
    taken["a4"][5] = 1
    expected = {name: array.tobytes() for name, array in taken.items()}
    if not is_out:
        assert file.put_back(taken) is file
    (incoming, outgoing), child = os.pipe(), None
    child = os.fork()
    if not child:
        os.read(incoming, 1)  # until the parent has changed everything
        seen = taken if is_out else file.read()
        os._exit(0 if {name: array.tobytes() for name, array in seen.items()} == expected else 1)
    for number in range(3):
        if not is_out or number:
            taken = file.take()
        for array in taken.values():
            array[:] = number
        file = file.put_back(taken)
    os.write(outgoing, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(incoming)
    os.close(outgoing)
    file.close()


def test_files_go_with_the_last_of_their_arrays(tmp_path):
    def mapped() -> int:
        return len(re.findall(re.escape(str(tmp_path)), Path("/proc/self/maps").read_text()))

    before = len(os.listdir("/proc/self/fd"))
    file = ArrayFile(content_of(random.Random(3)), str(tmp_path))
    assert not os.listdir(tmp_path)
    content = file.take()
    expected = content["a4"].tobytes()
    array_files._count_fork()
    other = file.put_back(content)
    assert other is not file
    assert mapped() == 2
    assert content["a4"].tobytes() == expected
    other.close()
    del content, other, file
    assert mapped() == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    file = ArrayFile([np.ones(3 * PAGE, np.uint8)], str(tmp_path))
    content = file.take()
    content[0][7] = 2

    def pwrite(fd, part, at):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(ExternalError, match=r"No space left on device\. State on columns"):
        file.put_back(content)
    with pytest.raises(ExternalError, match="No space left"):
        ArrayFile([np.ones(3)], str(tmp_path))
