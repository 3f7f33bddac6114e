"""What ``scripts/quickstart.sh`` runs: a stream of lines, counted by word, in a cluster inside this process.

The bundled text is sent again and again at a fixed rate for some seconds: there is time to look at the dashboard.
"""

import argparse
import os
import sys
import time

from engine.common import Configuration, Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource

TEXT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "hamlet.txt")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=8, help="how long the stream lasts")
    parser.add_argument("--rate", type=int, default=2000, help="lines a second")
    parser.add_argument("--port", default="0", help="port of the dashboard; 0 = any free one")
    arguments = parser.parse_args()

    with open(TEXT, encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    count = arguments.seconds * arguments.rate
    configuration = Configuration().set("rest.port", arguments.port).set("rest.address", "localhost")
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(2)
    source = DataGeneratorSource(lambda index: lines[index % len(lines)], count, arguments.rate, Types.STRING())
    counts = (
        env.from_source(source, WatermarkStrategy.no_watermarks(), "Hamlet, line by line")
        .flat_map(lambda line: [(word.strip(",.;:?!'").lower(), 1) for word in line.split()])
        .key_by(lambda pair: pair[0])
        .sum(1)
    )
    started = time.monotonic()
    newest, seen, shown = {}, 0, 0.0
    with counts.execute_and_collect("Quickstart: streaming word count") as results:
        web = results.get_job_client().web_interface_url
        print(f"JobManager Web Interface: {web}", flush=True)
        for word, so_far in results:
            newest[word] = so_far
            seen += 1
            now = time.monotonic() - started
            if now - shown > 0.25:
                shown = now
                progress(seen, now, newest)
    progress(seen, time.monotonic() - started, newest)
    print()
    for word, so_far in sorted(newest.items(), key=lambda item: -item[1])[:10]:
        print(f"({word},{so_far})")
    print(f"Program execution finished: {seen} updates of {len(newest)} words.")


def progress(seen, seconds, newest):
    top = max(newest, key=newest.get)
    line = f"{seconds:5.1f} s  {seen:9d} updates  {len(newest):4d} words  most frequent: ({top},{newest[top]})"
    sys.stdout.write(("\r" if sys.stdout.isatty() else "\n" if seen else "") + line)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
