"""Programs of the benchmarks are found by ``python -m tests.bench``, and what they print can be kept as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.bench import __main__ as bench
from tests.bench import stats

#: One needs what a job has written, the other makes texts for others.
NOT_ALONE = {"exchange_phases", "text"}


def test_every_program_is_a_command():
    folder = Path(bench.__file__).parent
    programs = {path.stem for path in folder.glob("*.py") if 'if __name__ == "__main__"' in path.read_text()}
    assert programs - NOT_ALONE - {"__main__"} == {*bench.COMMANDS, *bench.WITH_JSON}
    for name in bench.COMMANDS:
        text = (folder / f"{name}.py").read_text()
        assert "record(" in text or "print_each(" in text, name
    assert all(name in bench.help_text() for name in (*bench.COMMANDS, *bench.WITH_JSON))


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
