"""A keyed running sum in PyFlink, one result an event: EVENTS KEYS PARALLELISM."""

import sys

from pyflink.common import Types
from pyflink.datastream import StreamExecutionEnvironment

num_events, num_keys, parallelism = map(int, sys.argv[1:4])


def event(i):
    mixed = i * 2654435761 & 0xFFFFFFFF
    return mixed % num_keys, (mixed & 0xFFFFF) / 1000.0, i


kind = Types.TUPLE([Types.LONG(), Types.DOUBLE(), Types.LONG()])
env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(parallelism)
env.set_python_executable(sys.executable)
events = env.from_collection(range(num_events), Types.LONG()).map(event, output_type=kind)
sums = events.key_by(lambda e: e[0], key_type=Types.LONG()).reduce(lambda a, e: (e[0], a[1] + e[1], e[2]))
# The last of them say that all have come: nothing is lost before its end.
sums.filter(lambda e: e[2] == num_events - 1).map(lambda e: f"last {e[2]}", output_type=Types.STRING()).print()
env.execute("keyed")
