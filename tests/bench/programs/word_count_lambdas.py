"""Ours: word count with plain lambdas, as a batch: INPUT OUTPUT PARALLELISM [reps=2].

``reps``: execute it so many times, see ``repeating``.
"""

import sys

from engine.common import Types
from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment, WriteMode
from tests.bench.programs.repeating import options_of, repeat

source, target, parallelism = sys.argv[1:4]


def execute():
    env = StreamExecutionEnvironment.get_execution_environment()
    env.set_parallelism(int(parallelism)).set_runtime_mode(RuntimeExecutionMode.BATCH)
    pairs = env.read_text_file(source).flat_map(
        lambda line: [(word, 1) for word in line.split()], output_type=Types.TUPLE([Types.STRING(), Types.INT()])
    )
    pairs.key_by(lambda pair: pair[0]).sum(1).write_as_csv(target, WriteMode.OVERWRITE)
    env.execute("word count, lambdas")


repeat(execute, int(options_of(sys.argv[4:]).get("reps", 1)))
