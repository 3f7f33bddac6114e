"""Ours: word count with the built-in tokeniser, as a batch: INPUT OUTPUT PARALLELISM [reps=2].

``reps``: execute it so many times, see ``repeating``.
"""

import sys

from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment, WriteMode
from engine.datastream.functions import WordTokenizer
from tests.bench.programs.repeating import options_of, repeat

source, target, parallelism = sys.argv[1:4]


def execute():
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(int(parallelism)).set_runtime_mode(RuntimeExecutionMode.BATCH)
    counts = env.read_text_file(source).flat_map(WordTokenizer()).key_by(0).sum(1)
    counts.write_as_csv(target, WriteMode.OVERWRITE)
    env.execute("word count, vectorised")


repeat(execute, int(options_of(sys.argv[4:]).get("reps", 1)))
