from __future__ import annotations

import datetime as dt
import os
import pickle

import numpy as np
import pyarrow as pa
import pytest

from engine.connectors.file_system import (
    BucketAssigner,
    BucketContext,
    Encoder,
    FileSink,
    FileSource,
    OutputFileConfig,
    RollingPolicy,
    StreamFormat,
)
from engine.connectors.source import SourceSpec
from engine.core.clock import ManualClock
from engine.core.errors import ConfigError, ExternalError, InputError, ProgramError
from engine.core.records import ColumnBatch, RowBatch
from engine.core.type_info import Types
from engine.operators.base import JobOutcome
from tests.testing.operator_harness import OperatorHarness, end_job, start_coordinators

NOON_MS = 1_700_049_600_000  # 2023-11-15 12:00 UTC


def visible(folder):
    return sorted(
        os.path.relpath(os.path.join(where, name), folder)
        for where, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".")
    )


def hidden(folder):
    return [name for _, _, names in os.walk(folder) for name in names if name.startswith(".")]


def run(sink: FileSink, steps, *, outcome=JobOutcome.FINISHED, publish_on_cancel=False, parallelism=1):
    """``steps``: (milliseconds to wait, rows) of each subtask."""
    spec = pickle.loads(pickle.dumps(sink.to_spec(publish_on_cancel=publish_on_cancel)))
    coordinators = start_coordinators(spec, parallelism=parallelism, harnesses=[])
    for subtask in range(parallelism):
        clock = ManualClock(NOON_MS)
        with OperatorHarness(
            spec, clock=clock, subtask_index=subtask, parallelism=parallelism, coordinators=coordinators
        ) as harness:
            for wait_ms, rows in steps:
                clock.advance(wait_ms)
                due_ms = harness.head.next_timer_ms()
                if due_ms is not None and due_ms <= clock.now_ms():
                    harness.head.on_timer(clock.now_ms())
                harness.process(rows)
            if outcome is JobOutcome.FINISHED:
                harness.end()
    end_job(coordinators, outcome)


def builder(tmp_path):
    sink = FileSink.for_row_format(str(tmp_path), Encoder.simple_string_encoder("UTF-8"))
    return sink.with_bucket_assigner(BucketAssigner.base_path_bucket_assigner())


def test_a_file_source_is_built_as_in_pyflink(tmp_path):
    (tmp_path / "a").write_bytes("ü\n".encode("latin-1"))
    source = FileSource.for_record_stream_format(StreamFormat.text_line_format("latin-1"), str(tmp_path))
    with OperatorHarness(SourceSpec(source.process_static_file_set().build())) as harness:
        assert harness.run_source().rows == ["ü"]
    assert source.monitor_continuously(dt.timedelta(seconds=2)).build().monitor_interval_ms == 2000
    with pytest.raises(ConfigError, match="at least one path"):
        FileSource.for_record_stream_format(StreamFormat.text_line_format())


def test_each_subtask_writes_its_part_and_nothing_hidden_stays(tmp_path):
    run(builder(tmp_path).build(), [(0, ["a", ("b", 1)])], parallelism=2)
    assert visible(tmp_path) == ["part-0-0", "part-1-0"]
    assert (tmp_path / "part-0-0").read_text() == "a\n('b', 1)\n"
    assert hidden(tmp_path) == []


def test_records_are_formatted_by_type(tmp_path):
    spec = builder(tmp_path).build().to_spec(Types.TUPLE([Types.STRING(), Types.INT()]))
    with OperatorHarness(spec) as harness:
        harness.process([("a", 1)])
        harness.end()
        harness._coordinators[0].job_ended(JobOutcome.FINISHED)
    assert (tmp_path / "part-0-0").read_text() == "(a,1)\n"


def test_a_part_rolls_by_size_age_and_inactivity(tmp_path):
    policy = RollingPolicy.default_rolling_policy(10, 1000, 300)
    steps = [(0, ["0123456789"]), (1, ["b"]), (200, ["c"]), (200, ["d"]), (300, ["e"]), *[(250, ["f"])] * 5]
    run(builder(tmp_path).with_rolling_policy(policy).build(), steps)
    parts = [(tmp_path / f"part-0-{i}").read_text() for i in range(len(visible(tmp_path)))]
    assert parts == ["0123456789\n", "b\nc\nd\n", "e\nf\nf\nf\n", "f\nf\n"]


def test_without_checkpoints_the_checkpoint_policy_writes_one_part(tmp_path):
    policy = RollingPolicy.on_checkpoint_rolling_policy()
    run(builder(tmp_path).with_rolling_policy(policy).build(), [(10**9, ["x"])] * 3)
    assert visible(tmp_path) == ["part-0-0"]


def test_buckets_follow_the_clock_and_the_time_zone(tmp_path):
    assigner = BucketAssigner.date_time_bucket_assigner("yyyy-MM-dd--HH", "Asia/Tokyo")
    sink = builder(tmp_path).with_bucket_assigner(assigner).build()
    run(sink, [(0, ["a"]), (1_800_000, ["b"]), (1_800_000, ["c"])])
    assert visible(tmp_path) == ["2023-11-15--21/part-0-0", "2023-11-15--21/part-0-1", "2023-11-15--22/part-0-2"]
    with pytest.raises(ConfigError, match="Mars/Olympus"):
        BucketAssigner.date_time_bucket_assigner(timezone_id="Mars/Olympus")


@pytest.mark.parametrize(
    ("pattern", "bucket"),
    [
        ("yyyy/MM/dd/HHmm", "2023/11/15/2100"),
        ("'day='yyyyMMdd", "day=20231115"),
        ("yy-M-d--H:m:s.SSS", "23-11-15--21:0:0.000"),
        ("'o''clock' HH '%'", "o'clock 21 %"),
        ("DDD", "319"),
    ],
)
def test_buckets_are_named_by_javas_patterns(pattern, bucket):
    assigner = BucketAssigner.date_time_bucket_assigner(pattern, "Asia/Tokyo")
    assert assigner.get_bucket_id(None, BucketContext(NOON_MS)) == bucket


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BucketAssigner.date_time_bucket_assigner("yyyy-EEE"), "'EEE' is not known here; expected one of yyyy"),
        (lambda: BucketAssigner.date_time_bucket_assigner("'day"), "a single quote is not closed"),
        (lambda: RollingPolicy.default_rolling_policy("1MB"), "no size of a part in bytes"),
        (lambda: RollingPolicy.default_rolling_policy(1, -1), "no duration in milliseconds"),
        (lambda: OutputFileConfig("a/b"), "expected a text without '/'"),
        (lambda: OutputFileConfig("part", "/x"), "expected a text without '/'"),
        (lambda: OutputFileConfig(".part"), "hidden from readers"),
        (lambda: builder("/x").with_rolling_policy(5), "expected RollingPolicy.default_rolling_policy"),
        (lambda: builder("/x").with_output_file_config("p"), "expected an OutputFileConfig"),
        (lambda: builder("/x").with_bucket_assigner(BucketAssigner), "expected a BucketAssigner object"),
        (lambda: FileSink.for_row_format(None, Encoder()), "the folder is None; expected a path"),
        (lambda: FileSink.for_row_format("/x", "text"), "is no format"),
    ],
)
def test_wrong_settings_of_a_sink_are_refused_when_they_are_written(make, message):
    with pytest.raises((ConfigError, ProgramError), match=message):
        make()


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"/file is a file; a FileSink writes parts into a folder"):
        run(builder(tmp_path / "file").build(), [])


def test_the_mark_of_utf_16_stands_at_the_beginning_of_a_file_only(tmp_path):
    sink = FileSink.for_row_format(str(tmp_path), Encoder.simple_string_encoder("UTF-16"))
    run(sink.with_bucket_assigner(BucketAssigner.base_path_bucket_assigner()).build(), [(0, ["a"]), (0, ["ü", "c"])])
    assert (tmp_path / "part-0-0").read_bytes().decode("utf-16") == "a\nü\nc\n"


def test_names_of_pyflink_are_where_its_programs_look_for_them():
    from engine.datastream.connectors import file_system as found

    policy = found.OnCheckpointRollingPolicy.on_checkpoint_rolling_policy()
    assert isinstance(policy, found.DefaultRollingPolicy)
    assert found.StreamingFileSink.for_row_format("/x", found.Encoder()).with_rolling_policy(policy).build()
    source = found.FileSource.for_record_stream_format(found.StreamFormat.text_line_format(), "/x")
    source.set_file_enumerator(found.FileEnumeratorProvider.default_splittable_file_enumerator())
    source.set_split_assigner(found.FileSplitAssignerProvider.locality_aware_split_assigner())
    assert isinstance(source, found.FileSourceBuilder)


def test_part_names_are_configurable(tmp_path):
    config = OutputFileConfig.builder().with_part_prefix("pre").with_part_suffix(".txt").build()
    run(builder(tmp_path).with_output_file_config(config).build(), [(0, ["a"])])
    assert visible(tmp_path) == ["pre-0-0.txt"]
    assert (config.get_part_prefix(), config.get_part_suffix()) == ("pre", ".txt")


def test_a_second_run_adds_files_and_replaces_none(tmp_path):
    for text in ("one", "two"):
        run(builder(tmp_path).build(), [(0, [text])])
    assert [(tmp_path / name).read_text() for name in visible(tmp_path)] == ["one\n", "two\n"]


@pytest.mark.parametrize("outcome", [JobOutcome.FAILED, JobOutcome.CANCELED])
def test_a_failed_or_cancelled_job_leaves_no_part(tmp_path, outcome):
    policy = RollingPolicy.default_rolling_policy(1)
    run(builder(tmp_path).with_rolling_policy(policy).build(), [(0, ["a"]), (0, ["b"])], outcome=outcome)
    assert (visible(tmp_path), hidden(tmp_path)) == ([], [])


def test_a_cancelled_unbounded_job_publishes_its_parts(tmp_path):
    run(builder(tmp_path).build(), [(0, ["a"])], outcome=JobOutcome.CANCELED, publish_on_cancel=True)
    assert visible(tmp_path) == ["part-0-0"]


def test_a_place_that_cannot_be_written_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExternalError, match="Cannot make folder"):
        run(builder(tmp_path / "file" / "x").build(), [])


def test_what_a_killed_slot_left_behind_is_removed_by_whoever_ends_the_job(tmp_path):
    spec = builder(tmp_path).with_bucket_assigner(BucketAssigner.date_time_bucket_assigner()).build().to_spec(False)

    def write(attempt, *, told):
        coordinators = start_coordinators(spec, parallelism=1, harnesses=[], attempt_number=attempt)
        harness = OperatorHarness(spec, attempt_number=attempt, coordinators=coordinators if told else [None])
        harness.__enter__()
        harness.process([f"attempt {attempt}"])
        if told:
            harness.end()
        harness.__exit__()
        return coordinators

    first = write(0, told=False)
    end_job(first, JobOutcome.FAILED)
    assert hidden(tmp_path) == []
    second = write(1, told=True)
    write(0, told=False)  # a slot that did not know yet that it was given up
    (tmp_path / ".part-0-0.inprogress.of-another-job").write_text("")
    end_job(second, JobOutcome.FINISHED)
    assert hidden(tmp_path) == [".part-0-0.inprogress.of-another-job"]
    assert [(tmp_path / name).read_text() for name in visible(tmp_path)] == ["attempt 1\n"]


class ByKind(BucketAssigner):
    """``renames``: it changes what it sees."""

    def __init__(self, renames):
        self.renames = renames

    def get_bucket_id(self, element, context):
        kind = element[1]
        if self.renames and kind == "odd":
            element["kind"] = "renamed"
        return f"{kind}/{context.timestamp()}"


@pytest.mark.parametrize(("named", "renames"), [(False, False), (True, False), (True, True)])
def test_columns_go_to_the_buckets_of_their_rows(tmp_path, monkeypatch, named, renames):
    numbers = list(range(40))
    columns = pa.record_batch({"number": numbers, "kind": ["odd" if number % 2 else "even" for number in numbers]})
    batch = ColumnBatch(columns, np.array(numbers) // 30, named=named)
    fields = [Types.LONG(), Types.STRING()]
    type_info = Types.ROW_NAMED(["number", "kind"], fields) if named else Types.TUPLE(fields)

    def written(way, given):
        spec = builder(tmp_path / way).with_bucket_assigner(ByKind(renames)).build().to_spec(type_info)
        kinds = set()
        with OperatorHarness(spec) as harness, monkeypatch.context() as patches:
            write = harness.head._write
            patches.setattr(harness.head, "_write", lambda *own: (kinds.add(type(own[1])), write(*own)))
            harness.head.process_batch(0, given)
            harness.end()
            harness._coordinators[0].job_ended(JobOutcome.FINISHED)
        return kinds, {name: (tmp_path / way / name).read_text() for name in visible(tmp_path / way)}

    (kinds, found), (_, wanted) = written("columns", batch), written("rows", batch.to_rows())
    assert kinds == {RowBatch if renames else ColumnBatch}
    assert found == wanted
    assert [name.rpartition("/")[0] for name in found] == ["even/0", "even/1", "odd/0", "odd/1"]
