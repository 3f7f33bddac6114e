"""Ours: keyed running sum of a typed stream, one result an event: EVENTS KEYS PARALLELISM [collect]."""

import sys

from engine.common import Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource, DiscardingSink
from tests.bench.programs.events import users_and_amounts

events, keys, parallelism = map(int, sys.argv[1:4])
env = StreamExecutionEnvironment.get_execution_environment()
env.set_parallelism(parallelism)
typed = Types.TUPLE([Types.LONG(), Types.DOUBLE()])
source = DataGeneratorSource.of_columns(lambda indexes: users_and_amounts(indexes, keys), events, typed)
sums = env.from_source(source, WatermarkStrategy.no_watermarks(), "gen").key_by(0).sum(1)
if sys.argv[4:] == ["collect"]:
    with sums.execute_and_collect() as results:
        largest = {}
        for user, total in results:
            largest[user] = max(largest.get(user, 0.0), total)
    print(f"RESULT keys={len(largest)} total={sum(largest.values()):.3f}")
else:
    sums.sink_to(DiscardingSink())
    env.execute("keyed sum")
