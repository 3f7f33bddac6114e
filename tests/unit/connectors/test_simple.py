from __future__ import annotations

import io
import itertools
import pickle
import sys
import threading

import pytest

from engine.connectors.simple import (
    CollectionSpec,
    DataGeneratorSpec,
    DiscardSpec,
    FunctionSinkSpec,
    FunctionSourceSpec,
    PrintSpec,
    SequenceSource,
)
from engine.connectors.source import SourceSpec
from engine.core.clock import ManualClock
from engine.core.errors import UserCodeError
from engine.core.records import ColumnBatch
from engine.core.type_info import Types
from engine.operators.base import PollResult
from engine.operators.functions import SinkFunction, SourceFunction
from tests.testing.operator_harness import OperatorHarness, start_coordinators


@pytest.mark.parametrize("rows", [(1, "a", None), pickle.dumps([1, "a", None])], ids=["rows", "pickled"])
def test_a_collection_is_emitted_once_by_the_first_subtask(rows):
    with OperatorHarness(CollectionSpec(rows)) as harness:
        assert harness.run_source(rows_max=2).rows == [1, "a", None]
        assert [len(batch) for batch in harness.output.batches] == [2, 1]
    with OperatorHarness(CollectionSpec(rows), subtask_index=1, parallelism=2) as harness:
        assert harness.run_source().rows == []


@pytest.mark.parametrize("columnar", [False, True])
def test_a_sequence_has_both_ends_and_is_split_over_the_readers(columnar):
    spec = SourceSpec(SequenceSource(-3, 6, columnar))
    harnesses: list[OperatorHarness] = []
    coordinators = start_coordinators(spec, parallelism=3, harnesses=harnesses)
    harnesses += [OperatorHarness(spec, subtask_index=i, parallelism=3, coordinators=coordinators) for i in range(3)]
    found = []
    for harness in harnesses:
        with harness:
            harness.run_source(until=lambda harness=harness: bool(harness.output.batches))
            found.append(harness.output.rows)
            assert isinstance(harness.output.batches[0], ColumnBatch) is columnar
    assert sorted(itertools.chain(*found)) == list(range(-3, 7))
    assert all(found)


def test_a_sequence_is_cut_into_batches_and_may_be_empty():
    with OperatorHarness(SourceSpec(SequenceSource(1, 10))) as harness:
        assert harness.run_source(rows_max=4).rows == list(range(1, 11))
        assert max(map(len, harness.output.batches)) == 4
    with OperatorHarness(SourceSpec(SequenceSource(1, 0))) as harness:
        assert harness.run_source().rows == []
    with pytest.raises(ValueError, match="end must not be below"):
        SequenceSource(5, 1)


def test_generated_records_are_shared_out_by_index():
    rows = []
    for subtask in range(3):
        with OperatorHarness(DataGeneratorSpec(lambda i: i * i, 10), subtask_index=subtask, parallelism=3) as harness:
            rows += harness.run_source(rows_max=2).rows
    assert sorted(rows) == [i * i for i in range(10)]


def test_a_rate_is_kept_by_timers_and_without_bursts():
    clock = ManualClock(1_000_000)
    with OperatorHarness(DataGeneratorSpec(lambda i: i, None, 100.0), clock=clock) as harness:
        source = harness.head
        for _ in range(200):  # two seconds
            while source.poll(1000) is PollResult.MORE:
                pass
            timer_ms = source.next_timer_ms()
            assert clock.now_ms() < timer_ms <= clock.now_ms() + 11
            clock.advance(timer_ms - clock.now_ms())
            source.on_timer(clock.now_ms())
            assert source.next_timer_ms() is None
        assert abs(len(harness.output.rows) - 200) <= 1
        seen = len(harness.output.rows)
        clock.advance(60_000)
        while source.poll(1000) is PollResult.MORE:
            pass
        assert len(harness.output.rows) - seen == 100


def test_a_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        DataGeneratorSpec(lambda i: i, 1, 0)


def test_a_failing_generator_names_its_index():
    error = pytest.raises(UserCodeError, match="'Gen' on record: 3")
    with OperatorHarness(DataGeneratorSpec(lambda i: 1 // (3 - i), 10), name="Gen") as harness, error:
        harness.run_source()


def test_a_user_source_is_read_in_its_own_thread_while_it_waits():
    go_on = threading.Event()

    def run():
        yield 1
        assert go_on.wait(60)
        yield 2

    with OperatorHarness(FunctionSourceSpec(run)) as harness:
        harness.run_source(until=lambda: harness.output.rows == [1])
        assert harness.head.poll(10) is PollResult.IDLE
        go_on.set()
        assert harness.run_source().rows == [1, 2]


def test_a_user_source_is_opened_cancelled_and_closed_and_does_not_run_far_ahead():
    calls = []
    produced = 0

    class Endless(SourceFunction):
        def open(self, runtime_context):
            calls.append("open")

        def run(self):
            nonlocal produced
            while "cancel" not in calls:
                produced += 1
                yield produced

        def cancel(self):
            calls.append("cancel")

        def close(self):
            calls.append("close")

    with OperatorHarness(FunctionSourceSpec(Endless())) as harness:
        harness.run_source(until=lambda: len(harness.output.rows) > 100)
        harness.head.cancel()
    assert calls == ["open", "cancel", "close"]
    assert produced <= len(harness.output.rows) + 10_001


def test_a_failing_user_source_delivers_what_came_before():
    def run():
        yield 1
        raise RuntimeError("the sensor is gone")

    with OperatorHarness(FunctionSourceSpec(run), name="Sensor") as harness:
        with pytest.raises(UserCodeError, match=r"RuntimeError: the sensor is gone\n.*'Sensor'"):
            harness.run_source()
        assert harness.output.rows == [1]


@pytest.mark.parametrize(
    ("identifier", "parallelism", "line"),
    [(None, 4, "4> (a,1)\n"), (None, 1, "(a,1)\n"), ("id", 4, "id:4> (a,1)\n"), ("id", 1, "id> (a,1)\n")],
)
def test_print_prefixes_lines_as_flink_does(capsys, identifier, parallelism, line):
    spec = PrintSpec(identifier, False, Types.TUPLE([Types.STRING(), Types.INT()]))
    with OperatorHarness(spec, subtask_index=parallelism - 1, parallelism=parallelism) as harness:
        harness.process([("a", 1)])
    assert capsys.readouterr().out == line


def test_print_writes_each_batch_at_once_and_flushes(monkeypatch):
    calls = []

    class Stream(io.StringIO):
        def write(self, text):
            calls.append(text)

        def flush(self):
            calls.append("flush")

    monkeypatch.setattr(sys, "stderr", Stream())
    with OperatorHarness(PrintSpec(None, True)) as harness:
        harness.process(["a", ("b", 1), None])
        assert calls == ["a\n('b', 1)\nNone\n", "flush"]


def test_print_to_an_ascii_terminal_escapes_instead_of_failing(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    with OperatorHarness(PrintSpec()) as harness:
        harness.process(["ü"])
    assert raw.getvalue() == b"\\xfc\n"


def test_a_sink_function_gets_every_record():
    class Keep(SinkFunction):
        def __init__(self):
            self.values = []

        def invoke(self, value):
            self.values.append(1 / value)

    keep = Keep()
    with OperatorHarness(FunctionSinkSpec(keep), name="Sink: keep") as harness:
        harness.process([1, 2])
        with pytest.raises(UserCodeError, match="'Sink: keep' on record: 0"):
            harness.process([4, 0])
    assert keep.values == [1.0, 0.5, 0.25]


def test_discard_takes_everything():
    with OperatorHarness(DiscardSpec()) as harness:
        harness.process([1])
        harness.end()
        assert harness.output.rows == []
