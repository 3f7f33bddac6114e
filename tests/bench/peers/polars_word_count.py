"""Polars: INPUT OUTPUT (threads by POLARS_MAX_THREADS)."""

import os
import sys

import polars as pl

source, target, _ = sys.argv[1:]
lines = pl.scan_csv(source, has_header=False, separator="\x01", quote_char=None, new_columns=["line"])
words = lines.select(pl.col("line").str.split(" ").explode().alias("word"))
counts = words.group_by("word").len().collect(engine="streaming")
os.makedirs(target, exist_ok=True)
counts.write_csv(os.path.join(target, "part.csv"), include_header=False)
