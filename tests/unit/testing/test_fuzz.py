"""Programs drawn from a seed give the same on columns and on rows; a difference would be seen."""

from __future__ import annotations

import pytest

from tests.fuzz.jobs import draw_job
from tests.fuzz.runs import difference, results_of


@pytest.mark.parametrize("seed", [3, 6, 14])
def test_a_drawn_program_gives_the_same_on_columns_and_on_rows(seed):
    job = draw_job(seed)
    expected = results_of(job, columns=False)
    assert expected
    assert not expected[0].startswith("failed: ")
    assert list(difference(results_of(job, columns=True), expected)) == []


def test_a_tuple_that_a_function_gives_is_one_field_beside_averages_of_decimals_of_a_session():
    job = draw_job(8060)
    job.tables = [job.tables[0].slice(0, 40)]
    assert list(difference(results_of(job, columns=True), results_of(job, columns=False))) == []


def test_a_difference_is_told():
    assert list(difference(["a", "b"], ["a", "b"])) == []
    assert "first at 1: columns b" in list(difference(["a", "b"], ["a", "c"]))
