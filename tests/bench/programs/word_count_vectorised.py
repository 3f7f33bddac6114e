"""Ours: word count with the built-in tokeniser, as a batch: INPUT OUTPUT PARALLELISM."""

import sys

from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment, WriteMode
from engine.datastream.functions import WordTokenizer

source, target, parallelism = sys.argv[1:]
env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(int(parallelism)).set_runtime_mode(RuntimeExecutionMode.BATCH)
counts = env.read_text_file(source).flat_map(WordTokenizer()).key_by(0).sum(1)
counts.write_as_csv(target, WriteMode.OVERWRITE)
env.execute("word count, vectorised")
