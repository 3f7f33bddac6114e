"""PyFlink: process start to the first result of a word count of two lines."""

import sys

from pyflink.common import Configuration, Types
from pyflink.datastream import StreamExecutionEnvironment

config = Configuration()
config.set_string("rest.port", "0")
config.set_string("python.executable", sys.executable)
env = StreamExecutionEnvironment.get_execution_environment(config)
env.set_parallelism(2)
pairs = env.from_collection(["to be or not", "to be"]).flat_map(
    lambda line: [(word, 1) for word in line.split()], output_type=Types.TUPLE([Types.STRING(), Types.INT()])
)
for result in pairs.key_by(lambda pair: pair[0]).sum(1).execute_and_collect():
    print(result, flush=True)
