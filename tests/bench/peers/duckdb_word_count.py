"""Word count in DuckDB: INPUT OUTPUT PARALLELISM."""

import sys

import duckdb

source, target, parallelism = sys.argv[1:]
connection = duckdb.connect()
connection.execute(f"SET threads = {int(parallelism)}")
# A separator that no line has makes each line one value.
lines = (
    f"read_csv('{source}', columns = {{'line': 'VARCHAR'}}, delim = '\\x01', header = false, "
    "quote = '', escape = '', auto_detect = false)"
)
words = f"SELECT unnest(string_split(line, ' ')) AS word FROM {lines}"
connection.execute(
    f"COPY (SELECT word, count(*) FROM ({words}) WHERE word <> '' GROUP BY word) TO '{target}' (HEADER false)"
)
