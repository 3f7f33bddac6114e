"""Programs of the benchmarks are found by ``python -m tests.bench``, and what they print can be kept as JSON."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import stats

#: One needs what a job has written, the other makes texts for others.
NOT_ALONE = {"exchange_phases", "text"}
#: Those that start processes of their own: see ``tests/process/test_bench_smoke.py``.
ELSEWHERE = {"checkpoint_cost", "election", "lambdas", "recovery", "row_steps"}
#: command → options with which it is done at once. ``--one`` is what its own processes are told to do.
SMALL = {
    "changelogs": "--records 2000 --keys 50 --runs 1",
    "checkpoint_pause": "--megabytes 4 --memory-mb 8",
    "column_aggregates": "--records 2000 --keys 50 --runs 1",
    "compiled": "--rounds 1",
    "join_spill": "--records 40000 --only files",
    "keyed_steps": "--rounds 1",
    "row_wire": "--rounds 1 --sizes 1 50",
    "session_spill": "--records 400000 --keys 300000 --memory-mb 1 --only files --one",
    "small_batches": "--seconds 0.001",
    "state_growth": "--keys 150000",
    "state_increments": "--keys 20000 --rounds 1 --only sessions-in-files --one",
    "state_memory": "--keys 40000 --one",
    "state_pauses": "--memory-mb 2 --only windows --one",
    "state_spill": "--keys 40000 --updates 20000 --only columns --one",
    "text_columns": "--records 2000",
    "text_keys": "--keys 50 --rounds 1 --batches 1",
    "text_sinks": "--records 50 --runs 1",
    "window_checkpoint": "--keys 20000 --rounds 1",
    "window_firing": "--keys 20000",
    "window_spill": "--keys 40000 --records 40000 --only files --one",
}


def test_every_program_is_a_command():
    folder = Path(bench.__file__).parent
    programs = {path.stem for path in folder.glob("*.py") if 'if __name__ == "__main__"' in path.read_text()}
    assert programs - NOT_ALONE - {"__main__"} == {*bench.COMMANDS, *bench.WITH_JSON}
    for name in bench.COMMANDS:
        text = (folder / f"{name}.py").read_text()
        assert "record(" in text or "print_each(" in text, name
    assert all(name in bench.help_text() for name in (*bench.COMMANDS, *bench.WITH_JSON))


@pytest.fixture
def garbage_collection_as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_every_command_is_tried():
    assert {*SMALL, *ELSEWHERE} == {*bench.COMMANDS, *bench.WITH_JSON}


@pytest.mark.usefixtures("garbage_collection_as_it_was")
@pytest.mark.parametrize("command", SMALL)
def test_a_command_measures_on_little(command, monkeypatch, capsys):
    monkeypatch.setattr(stats, "RECORDED", [])
    monkeypatch.setattr(bench, "RECORDED", stats.RECORDED)
    options = SMALL[command].split()
    monkeypatch.setattr(sys, "argv", ["bench", command.replace("_", "-"), *options])
    assert bench.main() == 0
    told = capsys.readouterr().out
    if "--one" in options:
        assert all(isinstance(value, int | float) for value in json.loads(told).values())
    else:
        assert told
        assert stats.RECORDED or command in bench.WITH_JSON


def test_what_a_command_records_is_appended_as_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stats, "RECORDED", [])
    monkeypatch.setattr(bench, "RECORDED", stats.RECORDED)
    path = tmp_path / "results.json"
    options = ["text-sinks", "--records", "50", "--json", str(path), "--runs", "1"]
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    assert bench.main() == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["way"] for row in rows} == {"columns", "on rows", "rows"}
    assert rows[0]["workload"] == "text_sinks"
    assert rows[0]["options"] == ["--records", "50", "--runs", "1"]
    assert "columns / on rows" in capsys.readouterr().out
