"""Counts the words that come over a socket in each window of time: Flink's SocketWindowWordCount.

Try it: ``nc -lk 9999`` in one terminal, ``python examples/socket_window_word_count.py --port 9999`` in another.
``--size`` and ``--slide`` are seconds; without ``--slide`` the windows stand side by side.
"""

import argparse

from engine.common import Time, Types
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.window import SlidingProcessingTimeWindows, TumblingProcessingTimeWindows


def split(line):
    for word in line.split():
        yield word, 1


def milliseconds(seconds):
    return Time.milliseconds(round(float(seconds) * 1000))


def main(argv=None):
    parser = argparse.ArgumentParser(description="Counts words in windows of time.")
    parser.add_argument("--host", "--hostname", default="localhost", help="host of a text server")
    parser.add_argument("--port", type=int, required=True, help="its port")
    parser.add_argument("--size", type=float, default=5, help="length of a window in seconds")
    parser.add_argument("--slide", type=float, help="a window begins every so many seconds; default: the size")
    parser.add_argument("--output", help="folder or file to write instead of printing; local or hdfs://")
    arguments = parser.parse_args(argv)

    size = milliseconds(arguments.size)
    if arguments.slide is None:
        windows = TumblingProcessingTimeWindows.of(size)
    else:
        windows = SlidingProcessingTimeWindows.of(size, milliseconds(arguments.slide))
    env = StreamExecutionEnvironment.get_execution_environment()
    pairs = env.socket_text_stream(arguments.host, arguments.port).flat_map(
        split, output_type=Types.TUPLE([Types.STRING(), Types.INT()])
    )
    counts = pairs.key_by(lambda pair: pair[0]).window(windows).sum(1)
    if arguments.output:
        counts.write_as_text(arguments.output)
    else:
        counts.print()
    env.execute("Socket window word count")


if __name__ == "__main__":
    main()
