"""The bugs that ``tests/sim/mutations.py`` puts into the engine must still fit into it, or they test nothing."""

from __future__ import annotations

import pytest

from tests.sim.mutations import DIRECTED, MUTATIONS, ROOT, applied


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_has_a_place_in_the_engine_and_changes_it(name):
    mutated = applied(name)
    assert mutated is not None, "its text is not in the engine any more, or not once"
    path, text = mutated
    assert text != (ROOT / path).read_text()


def test_directed_tests_are_there():
    assert set(DIRECTED) <= set(MUTATIONS)
    for directed in DIRECTED.values():
        path, _, name = directed.partition("::")
        assert f"def {name}" in (ROOT / path).read_text()
