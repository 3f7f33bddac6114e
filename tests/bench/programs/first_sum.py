"""Ours: the first result of a keyed sum, ``python first_sum.py columns | rows [HOST:PORT]``: vectorised, or plain
Python functions, in this process or in the session cluster whose REST is there. Prints ten results, and then the
seconds from ``execute`` to the first of them."""

import itertools
import sys
import time

from engine.common import Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource

if len(sys.argv) > 2:
    host, _, port = sys.argv[2].partition(":")
    env = StreamExecutionEnvironment.create_remote_environment(host, int(port))
else:
    env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(2)
if sys.argv[1] == "columns":
    typed = Types.TUPLE([Types.LONG(), Types.DOUBLE()])
    source = DataGeneratorSource.of_columns(lambda indexes: (indexes % 7, indexes / 4), 10_000, typed)
    sums = env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers").key_by(0).sum(1)
else:
    pairs = env.from_collection(["to be or not", "to be"] * 50).flat_map(lambda line: [(w, 1) for w in line.split()])
    sums = pairs.key_by(lambda pair: pair[0]).reduce(lambda a, b: (a[0], a[1] + b[1]))
executed = time.monotonic()
first_s = 0.0
with sums.execute_and_collect() as results:
    for result in itertools.islice(results, 10):
        first_s = first_s or time.monotonic() - executed
        print(result, flush=True)
print(f"first result after {first_s:.3f} s", flush=True)
