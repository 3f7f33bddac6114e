"""Programs written for PyFlink run when their imports say ``engine``: the text below is PyFlink's spelling."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ROWS = """
import json
from pyflink.common import Row, Types
from pyflink.common.typeinfo import RowTypeInfo
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.datastream.functions import MapFunction, RuntimeContext

env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(1)
people = env.from_collection(
    [(1, '{"tel": 5}'), (2, '{"tel": 7}'), (1, '{"tel": 1}')],
    type_info=Types.ROW_NAMED(["id", "info"], [Types.INT(), Types.STRING()]),
)

class Parse(MapFunction):
    def open(self, runtime_context: RuntimeContext):
        self.task = runtime_context.get_task_name_with_subtasks()

    def map(self, value):
        return Row(value.id, json.loads(value.info)["tel"])

tels = people.map(Parse(), output_type=Types.ROW_NAMED(["id", "tel"], [Types.INT(), Types.INT()]))
assert isinstance(tels.get_type(), RowTypeInfo)
tels.key_by(lambda row: row.id).sum("tel").print()
tels.key_by(lambda row: row[0], key_type=Types.INT()).reduce(lambda a, b: Row(a.id, max(a.tel, b.tel))).print("max")
env.execute("rows")
"""

FILES = """
import sys
from pyflink.common import Encoder, Types, WatermarkStrategy
from pyflink.datastream import RuntimeExecutionMode, StreamExecutionEnvironment
from pyflink.datastream.connectors.file_system import (
    FileSink, FileSource, OutputFileConfig, RollingPolicy, StreamFormat)

env = StreamExecutionEnvironment.get_execution_environment()
env.set_runtime_mode(RuntimeExecutionMode.BATCH)
env.set_parallelism(1)
lines = env.from_source(
    source=FileSource.for_record_stream_format(StreamFormat.text_line_format(), sys.argv[1])
                     .process_static_file_set().build(),
    watermark_strategy=WatermarkStrategy.for_monotonous_timestamps(),
    source_name="file_source")

def split(line):
    yield from line.split()

counts = (lines.flat_map(split).map(lambda i: (i, 1), output_type=Types.TUPLE([Types.STRING(), Types.INT()]))
          .key_by(lambda i: i[0]).reduce(lambda i, j: (i[0], i[1] + j[1])))
counts.sink_to(
    sink=FileSink.for_row_format(base_path=sys.argv[2], encoder=Encoder.simple_string_encoder())
    .with_output_file_config(OutputFileConfig.builder().with_part_prefix("prefix").with_part_suffix(".ext").build())
    .with_rolling_policy(RollingPolicy.default_rolling_policy()).build())
env.execute()
"""

WINDOWS = """
from typing import Iterable
from pyflink.common import Time, Types, WatermarkStrategy
from pyflink.common.serializer import TypeSerializer
from pyflink.common.watermark_strategy import TimestampAssigner
from pyflink.datastream import (
    CountWindow, ProcessWindowFunction, StreamExecutionEnvironment, TimeWindow, Trigger, TriggerResult, WindowAssigner)
from pyflink.datastream.data_stream import DataStream, KeyedStream, WindowedStream
from pyflink.datastream.functions import WindowFunction
from pyflink.datastream.state import ReducingState, ReducingStateDescriptor
from pyflink.datastream.window import CountWindowSerializer, TumblingEventTimeWindows

class Stamps(TimestampAssigner):
    def extract_timestamp(self, value, record_timestamp) -> int:
        return int(value[1])

class Counted(ProcessWindowFunction[tuple, tuple, str, TimeWindow]):
    def process(self, key: str, context: ProcessWindowFunction.Context[TimeWindow], elements: Iterable[tuple]):
        return [(key, context.window().start, context.window().end, len([e for e in elements]))]

    def clear(self, context: ProcessWindowFunction.Context) -> None:
        pass

class Summed(WindowFunction[tuple, tuple, str, CountWindow]):
    def apply(self, key: str, window: CountWindow, inputs: Iterable[tuple]):
        return [(key, sum(i[1] for i in inputs))]

class ByThree(Trigger[tuple, CountWindow]):
    def __init__(self):
        self._counter = ReducingStateDescriptor("trigger_counter", lambda a, b: a + b, Types.LONG())

    def on_element(self, element: tuple, timestamp: int, window: CountWindow, ctx: Trigger.TriggerContext):
        state: ReducingState[int] = ctx.get_partitioned_state(self._counter)
        state.add(1)
        return TriggerResult.FIRE_AND_PURGE if state.get() >= 3 else TriggerResult.CONTINUE

    def on_processing_time(self, time: int, window: CountWindow, ctx: Trigger.TriggerContext) -> TriggerResult:
        return TriggerResult.CONTINUE

    def on_event_time(self, time: int, window: CountWindow, ctx: Trigger.TriggerContext) -> TriggerResult:
        return TriggerResult.CONTINUE

    def on_merge(self, window: CountWindow, ctx: Trigger.OnMergeContext) -> None:
        pass

    def clear(self, window: CountWindow, ctx: Trigger.TriggerContext) -> None:
        ctx.get_partitioned_state(self._counter).clear()

class Numbered(WindowAssigner[tuple, CountWindow]):
    def __init__(self):
        self._counter = ReducingStateDescriptor("assigner_counter", lambda a, b: a + b, Types.LONG())

    def assign_windows(self, element: tuple, timestamp: int, context: WindowAssigner.WindowAssignerContext):
        counter = context.get_runtime_context().get_reducing_state(self._counter)
        counter.add(1)
        return [CountWindow((counter.get() - 1) // 3)]

    def get_default_trigger(self, env) -> Trigger[tuple, CountWindow]:
        return ByThree()

    def get_window_serializer(self) -> TypeSerializer[CountWindow]:
        return CountWindowSerializer()

    def is_event_time(self) -> bool:
        return False

env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(1)
data = env.from_collection([("hi", n) for n in (1, 2, 3, 4, 5, 8, 9, 15)], Types.TUPLE([Types.STRING(), Types.INT()]))
timed = data.assign_timestamps_and_watermarks(
    WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(Stamps()))
by_key: KeyedStream = timed.key_by(lambda x: x[0], key_type=Types.STRING())
windows: WindowedStream = by_key.window(TumblingEventTimeWindows.of(Time.milliseconds(5)))
windows.process(Counted(), Types.TUPLE([Types.STRING(), Types.INT(), Types.INT(), Types.INT()])).print("time")
counted: DataStream = data.key_by(lambda x: x[0], key_type=Types.STRING()).window(Numbered()).apply(
    Summed(), Types.TUPLE([Types.STRING(), Types.INT()]))
counted.print("count")
env.execute("windows")
"""


def run(program: str, tmp_path: Path, *arguments: str) -> str:
    path = tmp_path / "program.py"
    path.write_text(program.replace("pyflink", "engine"))
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rows_with_names_in_and_out(tmp_path):
    printed = run(ROWS, tmp_path).splitlines()
    assert sorted(printed) == sorted(
        ["+I[1, 5]", "+I[2, 7]", "+I[1, 6]", "max> +I[1, 5]", "max> +I[2, 7]", "max> +I[1, 5]"]
    )


def test_files_in_and_out(tmp_path):
    (tmp_path / "in.txt").write_text("to be or\nnot to be\n")
    run(FILES, tmp_path, str(tmp_path / "in.txt"), str(tmp_path / "out"))
    parts = [path for path in (tmp_path / "out").rglob("prefix*.ext") if path.is_file()]
    lines = sorted(line for path in parts for line in path.read_text().splitlines())
    assert lines == ["(be,2)", "(not,1)", "(or,1)", "(to,2)"]


def test_windows_with_an_assigner_and_a_trigger_of_the_programs_own(tmp_path):
    printed = run(WINDOWS, tmp_path).splitlines()
    assert sorted(printed) == sorted(
        ["time> (hi,0,5,4)", "time> (hi,5,10,3)", "time> (hi,15,20,1)", "count> (hi,6)", "count> (hi,17)"]
    )
