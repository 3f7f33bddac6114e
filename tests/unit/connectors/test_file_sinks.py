from __future__ import annotations

import os
import pickle

import pytest

from engine.connectors.file_sinks import CsvFileSinkSpec, TextFileSinkSpec, WriteMode
from engine.connectors.part_writers import LineWriter
from engine.core.errors import EngineError, ExternalError, OutputExistsError, UserCodeError
from engine.core.fs import may_wait
from engine.core.records import Row
from engine.core.type_info import Types
from engine.operators.base import JobOutcome
from tests.testing.operator_harness import OperatorHarness, end_job, start_coordinators


def write(spec, *rows_by_subtask, outcome=JobOutcome.FINISHED):
    spec = pickle.loads(pickle.dumps(spec))
    parallelism = len(rows_by_subtask)
    coordinators = start_coordinators(spec, parallelism=parallelism, harnesses=[])
    try:
        for subtask, rows in enumerate(rows_by_subtask):
            with OperatorHarness(
                spec, subtask_index=subtask, parallelism=parallelism, coordinators=coordinators
            ) as harness:
                harness.process(rows)
                if outcome is JobOutcome.FINISHED:
                    harness.end()
    except EngineError:
        end_job(coordinators, JobOutcome.FAILED)
        raise
    end_job(coordinators, outcome)


def tree(folder):
    return {
        os.path.relpath(os.path.join(where, name), folder): open(os.path.join(where, name), encoding="utf-8").read()
        for where, _, names in os.walk(folder)
        for name in names
    }


def test_parallelism_one_writes_a_single_file(tmp_path):
    write(TextFileSinkSpec(str(tmp_path / "out.txt")), ["to be", "ü"])
    assert tree(tmp_path) == {"out.txt": "to be\nü\n"}


def test_more_subtasks_write_a_folder_of_numbered_files_also_empty_ones(tmp_path):
    write(TextFileSinkSpec(str(tmp_path / "out")), ["a"], [], ["c"])
    assert tree(tmp_path) == {"out/1": "a\n", "out/2": "", "out/3": "c\n"}


def test_records_are_formatted_by_type(tmp_path):
    pair = Types.TUPLE([Types.STRING(), Types.INT()])
    write(TextFileSinkSpec(f"file://{tmp_path}/typed", type_info=pair), [("a", 1)])
    write(TextFileSinkSpec(f"{tmp_path}/untyped"), [("a", 1)])
    assert tree(tmp_path) == {"typed": "(a,1)\n", "untyped": "('a', 1)\n"}


def test_nothing_is_visible_before_the_job_has_finished(tmp_path):
    spec = TextFileSinkSpec(str(tmp_path / "out"))
    coordinators = start_coordinators(spec, parallelism=1, harnesses=[])
    with OperatorHarness(spec, coordinators=coordinators) as harness:
        harness.process(["a"])
        harness.end()
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == []
    end_job(coordinators, JobOutcome.FINISHED)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("outcome", [JobOutcome.FAILED, JobOutcome.CANCELED])
def test_a_failed_or_cancelled_job_leaves_nothing_behind(tmp_path, outcome):
    write(TextFileSinkSpec(str(tmp_path / "out")), ["a"], ["b"], outcome=outcome)
    assert os.listdir(tmp_path) == []


def test_a_cancelled_unbounded_job_publishes_what_it_wrote(tmp_path):
    spec = TextFileSinkSpec(str(tmp_path / "out"), publish_on_cancel=True)
    write(spec, ["a", "b"], outcome=JobOutcome.CANCELED)
    assert tree(tmp_path) == {"out": "a\nb\n"}


def test_a_killed_slot_of_a_cancelled_unbounded_job_leaves_whole_lines(tmp_path):
    spec = TextFileSinkSpec(str(tmp_path / "out"), publish_on_cancel=True)
    coordinators = start_coordinators(spec, parallelism=1, harnesses=[])
    harness = OperatorHarness(spec, coordinators=coordinators).__enter__()
    harness.process([f"line {i}" for i in range(100_000)])
    end_job(coordinators, JobOutcome.CANCELED)
    text = (tmp_path / "out").read_text()
    assert text.startswith("line 0\n")
    assert text.endswith("\n")
    harness._coordinators = [None]
    harness.__exit__()


def test_a_cancelled_task_does_not_wait_for_a_file_system_that_is_away(tmp_path, monkeypatch):
    spec = TextFileSinkSpec(str(tmp_path / "out"), publish_on_cancel=True)
    waits = []
    close = LineWriter.close
    monkeypatch.setattr(LineWriter, "close", lambda writer: (waits.append(may_wait()), close(writer)))
    write(spec, ["a"], outcome=JobOutcome.CANCELED)
    write(TextFileSinkSpec(str(tmp_path / "whole")), ["a"])
    assert waits == [False, True]


def test_the_last_attempt_of_a_task_counts(tmp_path):
    spec = TextFileSinkSpec(str(tmp_path / "out"))
    coordinators = start_coordinators(spec, parallelism=1, harnesses=[])
    for attempt, ends in ((0, False), (1, True)):
        with OperatorHarness(spec, attempt_number=attempt, coordinators=coordinators) as harness:
            harness.process([f"attempt {attempt}"])
            if ends:
                harness.end()
    end_job(coordinators, JobOutcome.FINISHED)
    assert tree(tmp_path) == {"out": "attempt 1\n"}


def test_existing_output_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"out exists.*WriteMode.OVERWRITE"):
        write(TextFileSinkSpec(str(tmp_path / "out")), ["a"])
    assert tree(tmp_path) == {"out": "mine"}


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2])
def test_overwrite_replaces_earlier_output_of_any_parallelism(tmp_path, before, after):
    path = str(tmp_path / "out")
    write(TextFileSinkSpec(path), *[["old"]] * before)
    write(TextFileSinkSpec(path, WriteMode.OVERWRITE), *[["new"]] * after)
    expected = {"out": "new\n"} if after == 1 else {"out/1": "new\n", "out/2": "new\n"}
    assert tree(tmp_path) == expected


def test_a_failed_overwrite_keeps_the_old_output(tmp_path):
    path = str(tmp_path / "out")
    write(TextFileSinkSpec(path), ["old"])
    write(TextFileSinkSpec(path, WriteMode.OVERWRITE), ["new"], outcome=JobOutcome.FAILED)
    assert tree(tmp_path) == {"out": "old\n"}


def test_a_folder_with_other_files_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match=r"'thesis.tex' in it.*not overwritten"):
        write(TextFileSinkSpec(str(tmp_path), WriteMode.OVERWRITE), ["a"])
    assert (tmp_path / "thesis.tex").exists()


def test_a_place_that_cannot_be_written_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExternalError, match="Cannot make folder"):
        write(TextFileSinkSpec(str(tmp_path / "file" / "out")), ["a"])


def test_csv_joins_fields_without_quotes(tmp_path):
    rows = [("a,b", 1, None), Row("x", 2.0, True)]
    write(CsvFileSinkSpec(str(tmp_path / "out")), rows)
    write(CsvFileSinkSpec(str(tmp_path / "out2"), "|\n", ";", quote_strings=True), [('say "hi"', 1)])
    assert tree(tmp_path) == {"out": "a,b,1,\nx,2.0,true\n", "out2": '"say ""hi""";1|\n'}


def test_csv_of_what_has_no_fields_is_a_clear_error(tmp_path):
    with pytest.raises(UserCodeError, match=r"write_as_csv needs tuples or Rows, got 'word'(.|\n)*on record: 'word'"):
        write(CsvFileSinkSpec(str(tmp_path / "out")), [("a", 1), "word"])
    assert os.listdir(tmp_path) == []


def test_a_character_outside_the_charset_names_its_record(tmp_path):
    with pytest.raises(UserCodeError, match=r"latin-?1.*(.|\n)*on record: '漢'"):
        write(TextFileSinkSpec(str(tmp_path / "out"), charset="latin-1"), ["a", "漢"])


def test_a_former_attempts_file_is_not_published_when_the_job_is_cancelled(tmp_path):
    spec = TextFileSinkSpec(str(tmp_path / "out"), publish_on_cancel=True)
    coordinators = start_coordinators(spec, parallelism=1, harnesses=[], attempt_number=1)
    with OperatorHarness(spec, attempt_number=0, coordinators=[None]) as harness:
        harness.process(["attempt 0"])
    end_job(coordinators, JobOutcome.CANCELED)
    assert os.listdir(tmp_path) == []
