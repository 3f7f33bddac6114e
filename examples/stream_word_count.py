"""Running word counts: over a socket (``--host H --port P``), a file (``--input PATH``), or a bundled text.

Try it: ``nc -lk 9999`` in one terminal, ``python examples/stream_word_count.py --host localhost`` in another.
``--output PATH`` writes text files (local or ``hdfs://``) instead of printing.
"""

import argparse
import os

from engine.common import Types
from engine.datastream import StreamExecutionEnvironment, WriteMode

BUNDLED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "hamlet.txt")


def split(line):
    for word in line.lower().split():
        word = word.strip(",.;:?!'\"()")
        if word:
            yield word, 1


def main(argv=None):
    parser = argparse.ArgumentParser(description="Counts words as they come.")
    parser.add_argument("--host", help="host of a text server")
    parser.add_argument("--port", type=int, default=9999, help="its port")
    parser.add_argument("--input", help="file, folder or glob to read instead; local or hdfs://")
    parser.add_argument("--output", help="where to write instead of printing; local or hdfs://")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    arguments = parser.parse_args(argv)

    env = StreamExecutionEnvironment.get_execution_environment()
    if arguments.host:
        lines = env.socket_text_stream(arguments.host, arguments.port)
    elif arguments.input or os.path.exists(BUNDLED):
        lines = env.read_text_file(arguments.input or BUNDLED)
    else:
        lines = env.from_collection(["To be, or not to be, that is the question"], Types.STRING())
    pairs = lines.flat_map(split, output_type=Types.TUPLE([Types.STRING(), Types.INT()]))
    counts = pairs.key_by(lambda pair: pair[0]).sum(1)
    if arguments.output:
        counts.write_as_text(arguments.output, WriteMode.OVERWRITE if arguments.overwrite else WriteMode.NO_OVERWRITE)
    else:
        counts.print()
    env.execute("Streaming word count")


if __name__ == "__main__":
    main()
