"""CPU seconds of a process tree: nothing is lost when processes end, and nothing of others is counted."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.bench.process_cpu import Stat, descendants_cpu_s, parse_stat, tree_cpu_s, tree_ticks
from tests.bench.programs.repeating import options_of


def test_a_stat_line_is_read_also_when_the_name_is_odd():
    line = "17 (a b) R ) 1) S 3 17 17 0 -1 4194560 100 200 0 0 11 22 33 44 20 0 1 0 100 1000 10\n"
    assert parse_stat(line) == Stat(pid=17, parent=3, own=33, reaped=77)


def test_the_tree_has_descendants_and_what_they_reaped_but_no_strangers():
    stats = {stat.pid: stat for stat in (Stat(2, 1, 5, 7), Stat(3, 2, 11, 0), Stat(4, 3, 13, 17), Stat(5, 1, 1000, 0))}
    assert tree_ticks(stats, 2) == 5 + 7 + 11 + 13 + 17
    assert tree_ticks(stats, 4) == 30
    with pytest.raises(KeyError):
        tree_ticks(stats, 6)


def test_a_reaped_child_counts_as_much_as_when_it_lived():
    alive = {2: Stat(2, 1, 5, 0), 3: Stat(3, 2, 11, 4)}
    reaped = {2: Stat(2, 1, 5, 15)}
    assert tree_ticks(alive, 2) == tree_ticks(reaped, 2)


BURN = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass\n"


def test_grandchildren_that_ended_are_counted():
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN.format(seconds=0.3)!r}])"
    before_tree, before = tree_cpu_s(), descendants_cpu_s()
    subprocess.run([sys.executable, "-c", child], check=True)
    assert descendants_cpu_s() - before >= 0.29
    assert tree_cpu_s() - before_tree >= 0.29


def test_a_living_child_is_counted():
    process = subprocess.Popen(
        [sys.executable, "-c", BURN.format(seconds=0.3) + "print('done', flush=True)\ninput()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert tree_cpu_s(process.pid) >= 0.29
    finally:
        process.communicate(b"\n")


def test_options_are_words_or_pairs():
    assert options_of(["collect", "reps=2", "a=b=c"]) == {"collect": "", "reps": "2", "a": "b=c"}
