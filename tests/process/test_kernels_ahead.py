"""Kernels of columnar operators are compiled at set-up and loaded by modules that specs name: a job compiles none."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import tests.process.kernel_runs  # noqa: F401 - all operators on columns
from engine.operators.base import OperatorSpec
from engine.operators.warm_up.__main__ import KINDS

ROOT = Path(__file__).parents[2]
KERNELS = "engine.operators.warm_up."


def _output_of(module: str) -> list[str]:
    command = [sys.executable, "-m", module]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=True)
    return ran.stdout.splitlines()


def test_operators_on_columns_need_no_kernel_that_was_not_compiled_at_set_up_and_loaded_ahead():
    (told,) = _output_of("engine.operators.warm_up")  # as at set-up: usually there is nothing to be done
    assert int(told.partition(" are in the cache")[0].rpartition(" ")[2]) > 60, told
    found = [re.fullmatch(r"(\w+): (\d+) loaded, 0 compiled", line) for line in _output_of("tests.process.kernel_runs")]
    assert None not in found
    numbers = {line[1]: int(line[2]) for line in found}
    assert list(numbers) == ["keyed", "windows", "sessions", "joins", "words"]
    assert all(number > (4 if kind == "words" else 15) for kind, number in numbers.items()), numbers


def test_every_kind_of_operator_that_names_kernels_has_them_compiled_at_set_up():
    named = {name for spec in _subclasses(OperatorSpec) for name in spec.preload if name.startswith(KERNELS)}
    assert named == {kind.__name__ for kind in KINDS}


def _subclasses(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)
