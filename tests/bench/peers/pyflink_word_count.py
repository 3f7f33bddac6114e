"""PyFlink 2.3 with plain lambdas, as a batch: INPUT OUTPUT PARALLELISM."""

import sys

from pyflink.common import Configuration, Encoder, Types, WatermarkStrategy
from pyflink.datastream import RuntimeExecutionMode, StreamExecutionEnvironment
from pyflink.datastream.connectors.file_system import FileSink, FileSource, StreamFormat

source, target, parallelism = sys.argv[1:]
config = Configuration()
config.set_string("rest.port", "0")
config.set_string("python.executable", sys.executable)
config.set_string("taskmanager.memory.network.min", "256m")
config.set_string("taskmanager.memory.network.max", "256m")
env = StreamExecutionEnvironment.get_execution_environment(config)
env.set_parallelism(int(parallelism))
env.set_runtime_mode(RuntimeExecutionMode.BATCH)
text = FileSource.for_record_stream_format(StreamFormat.text_line_format(), source).build()
lines = env.from_source(text, WatermarkStrategy.no_watermarks(), "text")
pairs = lines.flat_map(
    lambda line: [(word, 1) for word in line.split()], output_type=Types.TUPLE([Types.STRING(), Types.INT()])
)
counts = pairs.key_by(lambda pair: pair[0], key_type=Types.STRING()).sum(1)
counts.map(lambda pair: f"{pair[0]},{pair[1]}", output_type=Types.STRING()).sink_to(
    FileSink.for_row_format(target, Encoder.simple_string_encoder()).build()
)
env.execute("word count")
