"""A loop over rows is cut after the row it is at, and says which rows it took."""

from __future__ import annotations

import pytest

from engine.operators.row_loop import RowLoop


def test_a_loop_that_is_not_cut_takes_all_rows():
    loop = RowLoop()
    rows = loop.begin([1, 2, 3])
    assert list(rows) == [1, 2, 3]
    assert rows.taken() == 3


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_cut_loop_ends_after_the_row_it_is_at(at: int):
    loop = RowLoop()

    def call(row: int) -> int:
        if row == at:
            loop.cut()
            loop.cut()  # a second look of the watchdog changes nothing
        return row

    rows = loop.begin([0, 1, 2])
    assert [call(row) for row in rows] == list(range(at + 1))
    assert rows.taken() == at + 1


def test_the_row_at_which_a_cut_loop_fails_is_the_last_taken():
    loop = RowLoop()
    rows = loop.begin(["a", "b", "c"])
    with pytest.raises(ZeroDivisionError):
        for row in rows:
            if row == "b":
                loop.cut()
                raise ZeroDivisionError
    assert rows.taken() == 2


def test_nothing_is_cut_between_loops():
    loop = RowLoop()
    rows = loop.begin([1, 2])
    loop.end()
    loop.cut()
    assert list(rows) == [1, 2]


def test_operators_of_one_slot_share_the_loop():
    shared: dict[str, object] = {}
    assert RowLoop.of(shared) is RowLoop.of(shared)
