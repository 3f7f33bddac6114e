"""Kernels of columnar operators are compiled at set-up and loaded by modules that specs name: a job compiles none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import tests.process.kernel_runs  # noqa: F401 - all operators on columns
from engine.operators.base import OperatorSpec
from engine.operators.warm_up import __main__ as warm_up
from engine.operators.warm_up import cached_code
from engine.operators.warm_up.__main__ import KINDS
from engine.operators.warm_up.cached_code import Taken
from flink_yarn.archive import engine_entries, pack

ROOT = Path(__file__).parents[2]
KERNELS = "engine.operators.warm_up."


def _output_of(module: str, folder: Path = ROOT, **settings: str) -> list[str]:
    command, env = [sys.executable, "-m", module], {**os.environ, **settings}
    ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=170, check=True)
    return ran.stdout.splitlines()


def test_operators_on_columns_need_no_kernel_that_was_not_compiled_at_set_up_and_loaded_ahead():
    (told,) = _output_of("engine.operators.warm_up")  # as at set-up: usually there is nothing to be done
    assert int(told.partition(" are in the cache")[0].rpartition(" ")[2]) > 60, told
    found = [re.fullmatch(r"(\w+): (\d+) loaded, 0 compiled", line) for line in _output_of("tests.process.kernel_runs")]
    assert None not in found
    numbers = {line[1]: int(line[2]) for line in found}
    assert list(numbers) == ["keyed", "windows", "sessions", "joins", "tops", "groups", "words"]
    assert all(number > (4 if kind == "words" else 10) for kind, number in numbers.items()), numbers


def test_kernels_that_were_compiled_at_set_up_are_found_on_a_node_of_yarn(tmp_path):
    _output_of("engine.operators.warm_up")
    with open(tmp_path / "engine.zip", "wb") as stream:
        pack(engine_entries(), stream)
    with zipfile.ZipFile(tmp_path / "engine.zip") as archive:
        archive.extractall(tmp_path / "site-packages")  # as a container does, which sets another cache folder
    (told,) = _output_of("engine.operators.warm_up", tmp_path / "site-packages", NUMBA_CACHE_DIR=str(tmp_path / "own"))
    assert told.startswith("0 kernels compiled"), told
    assert not list((tmp_path / "own").rglob("*.nb*"))


def test_kernels_that_are_compiled_are_those_that_are_in_the_cache_then(monkeypatch, capsys):
    """Numbers of kernels of which one calls another, which is compiled too, but never looked for."""
    taken = Taken({"a", "b"})  # what the cache had
    monkeypatch.setattr(cached_code, "TAKEN", taken)
    monkeypatch.setattr(warm_up, "_all_are_cached", lambda: False)
    monkeypatch.setattr(warm_up, "_warm_up", lambda: taken.loaded.update("abc"))
    monkeypatch.setattr(warm_up, "PARTS", [(lambda: taken.compiled.add("c"),), (lambda: taken.compiled.update("cd"),)])
    warm_up.main()
    assert capsys.readouterr().out.startswith("1 kernels compiled, 3 are in the cache, in ")


def test_every_kind_of_operator_that_names_kernels_has_them_compiled_at_set_up():
    named = {name for spec in _subclasses(OperatorSpec) for name in spec.preload if name.startswith(KERNELS)}
    # What only needs to find keys names the tables of keys, which all kinds have.
    assert named == {kind.__name__ for kind in KINDS} | {KERNELS + "tables"}


def _subclasses(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)
