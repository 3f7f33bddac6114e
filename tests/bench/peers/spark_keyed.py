"""Spark Structured Streaming: EVENTS KEYS PARALLELISM keyed|window. A sum by key in update mode, or count, sum and max
in 10 s windows with 5 s of watermark; in micro-batches of a million, results not by event but by batch."""

import shutil
import sys
import tempfile
import time

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

num_events, num_keys, parallelism = map(int, sys.argv[1:4])
BATCH = min(num_events, 1_000_000)
folder = tempfile.mkdtemp(prefix="engine-bench-spark-")
spark = (
    SparkSession.builder.master(f"local[{parallelism}]")
    .config("spark.driver.memory", "6g")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.ui.enabled", "false")
    .config("spark.ui.showConsoleProgress", "false")
    .config("spark.sql.shuffle.partitions", parallelism)
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")
made = (
    spark.readStream.format("rate-micro-batch")
    .option("rowsPerBatch", BATCH)
    .option("numPartitions", parallelism)
    .option("startTimestamp", 1_700_000_000_000)
    .option("advanceMillisPerBatch", 1)
    .load()
)
mixed = F.abs(F.xxhash64("value"))
late = F.abs(F.xxhash64("value", F.lit(7))) % 5000
events = made.select(
    (mixed % num_keys).alias("user"),
    ((mixed % 1_048_576) / 1000.0).alias("amount"),
    F.timestamp_millis((F.lit(1_700_000_005_000) + F.col("value") / 100 - late).cast("long")).alias("ts"),
)
if sys.argv[4] == "keyed":
    results, mode = events.groupBy("user").agg(F.sum("amount"), F.count("*")), "update"
else:
    by_window = events.withWatermark("ts", "5 seconds").groupBy("user", F.window("ts", "10 seconds"))
    results, mode = by_window.agg(F.count("*"), F.sum("amount"), F.max("amount")), "append"
query = (
    results.writeStream.format("noop").outputMode(mode).option("checkpointLocation", f"{folder}/checkpoints").start()
)
rows = {}
while sum(rows.values()) < num_events:
    time.sleep(0.1)
    if query.exception() is not None:
        raise query.exception()
    rows |= {progress["batchId"]: progress["numInputRows"] for progress in query.recentProgress}
query.stop()
spark.stop()
shutil.rmtree(folder, ignore_errors=True)
print("events", sum(rows.values()))
