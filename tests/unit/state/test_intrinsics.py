from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from engine.state import intrinsics
from engine.state.intrinsics import lowest_bit, marks_of_64, set_word_at, word_at


@numba.njit
def looked_at(data, index, ranges):
    bits = marks_of_64(data, index, ranges)
    return bits, word_at(data, index), lowest_bit(bits) if bits else 64


@numba.njit
def written(data, index, word):
    set_word_at(data, index, word)


@pytest.mark.parametrize("ranges", [(0x09, 4, 0x1C, 4), (0xC2, 0, 0xE1, 2), (0x0A, 0, 0x2C, 0), (0, 0, 255, 0)])
def test_bytes_are_marked_and_read_at_any_address(ranges):
    data = np.tile(np.random.default_rng(3).permutation(256).astype(np.uint8), 2)
    low, low_more, high, high_more = ranges
    own = tuple(map(np.uint8, ranges))
    for index in range(0, data.size - 64, 7):
        found = data[index : index + 64].astype(int)
        within = ((found >= low) & (found <= low + low_more)) | ((found >= high) & (found <= high + high_more))
        places = np.flatnonzero(within).tolist()
        expected = sum(1 << place for place in places), int.from_bytes(found[:8].astype(np.uint8).tobytes(), "little")
        assert looked_at(data, index, own) == (*expected, places[0] if places else 64)


def test_a_word_is_written_to_its_eight_bytes_alone():
    data = np.zeros(20, np.uint8)
    written(data, 3, np.uint64(0x0807060504030201))
    assert data.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, *[0] * 9]


KERNEL = """
import numpy as np
from own_intrinsics import kernel, lowest_bit

@kernel()
def place(bits):
    return lowest_bit(bits)

print(place(np.uint64(8)), sum(place.stats.cache_hits.values()))
"""


def test_a_kernel_is_compiled_anew_when_the_file_of_intrinsics_changes_and_only_then(tmp_path):
    def printed():
        command = [sys.executable, "place.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True).stdout

    text = Path(intrinsics.__file__).read_text()
    (tmp_path / "own_intrinsics.py").write_text(text)
    (tmp_path / "place.py").write_text(KERNEL)
    assert printed() == "3 0\n"
    assert printed() == "3 1\n"
    (tmp_path / "own_intrinsics.py").write_text(text.replace("builder.cttz(", "builder.ctlz("))
    assert printed() == "60 0\n"
