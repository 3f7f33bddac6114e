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


def run(program: str, tmp_path: Path, *arguments: str) -> str:
    path = tmp_path / "program.py"
    path.write_text(program.replace("pyflink", "engine"))
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
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
