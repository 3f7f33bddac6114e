"""Flink 2.3, its best batch form: SQL with 2 GB of managed memory; all work in Java. INPUT OUTPUT PARALLELISM."""

import sys

from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment

source, target, parallelism = sys.argv[1:]
config = Configuration()
config.set_string("taskmanager.memory.managed.size", "2g")
config.set_string("parallelism.default", parallelism)
config.set_string("rest.port", "0")
env = TableEnvironment.create(EnvironmentSettings.new_instance().in_batch_mode().with_configuration(config).build())
env.execute_sql(
    f"CREATE TABLE lines (line STRING) WITH ('connector' = 'filesystem', 'path' = 'file://{source}', 'format' = 'raw')"
)
env.execute_sql(
    "CREATE TABLE counts (word STRING, n BIGINT) "
    f"WITH ('connector' = 'filesystem', 'path' = 'file://{target}', 'format' = 'csv')"
)
env.execute_sql(
    "INSERT INTO counts SELECT word, COUNT(*) "
    "FROM lines CROSS JOIN UNNEST(SPLIT(line, ' ')) AS words (word) GROUP BY word"
).wait()
