"""Batch word count: ``python examples/word_count.py [--input PATH] [--output PATH]``.

Paths may be local or ``hdfs://``. Without --input a text from this file is counted, without --output the counts are
printed as ``(word,n)``. On a cluster: ``scripts/flink run examples/word_count.py --input hdfs:///in --output hdfs:///out``.
The output is one file, overwritten if it exists, with a line ``word n`` for each word: as Flink's own example, it tells
``write_as_csv`` to put a blank between the fields, not a comma.
"""

import re

from engine.common import ParameterTool
from engine.dataset import DataSet, ExecutionEnvironment, WriteMode

WORDS = [
    "To be, or not to be,--that is the question:--",
    "Whether 'tis nobler in the mind to suffer",
    "The slings and arrows of outrageous fortune",
    "Or to take arms against a sea of troubles,",
    "And by opposing end them?--To die,--to sleep,--",
    "No more; and by a sleep to say we end",
    "The heartache, and the thousand natural shocks",
    "That flesh is heir to,--'tis a consummation",
    "Devoutly to be wish'd. To die,--to sleep;--",
    "To sleep! perchance to dream:--ay, there's the rub;",
    "For in that sleep of death what dreams may come,",
    "When we have shuffled off this mortal coil,",
    "Must give us pause: there's the respect",
    "That makes calamity of so long life;",
    "For who would bear the whips and scorns of time,",
    "The oppressor's wrong, the proud man's contumely,",
    "The pangs of despis'd love, the law's delay,",
    "The insolence of office, and the spurns",
    "That patient merit of the unworthy takes,",
    "When he himself might his quietus make",
    "With a bare bodkin? who would these fardels bear,",
    "To grunt and sweat under a weary life,",
    "But that the dread of something after death,--",
    "The undiscover'd country, from whose bourn",
    "No traveller returns,--puzzles the will,",
    "And makes us rather bear those ills we have",
    "Than fly to others that we know not of?",
    "Thus conscience does make cowards of us all;",
    "And thus the native hue of resolution",
    "Is sicklied o'er with the pale cast of thought;",
    "And enterprises of great pith and moment,",
    "With this regard, their currents turn awry,",
    "And lose the name of action.--Soft you now!",
    "The fair Ophelia!--Nymph, in thy orisons",
    "Be all my sins remember'd.",
]


def split(line: str) -> list[tuple[str, int]]:
    """Return (word, 1) for each word of a line, in lower case."""
    return [(word, 1) for word in re.split(r"\W+", line.lower()) if word]


def count_words(text: DataSet) -> DataSet:
    """Return (word, count) of a DataSet of lines."""
    return text.flat_map(split).name("Tokenizer").group_by(0).sum(1)


def main() -> None:
    params = ParameterTool.from_args()
    env = ExecutionEnvironment.get_execution_environment()
    env.get_config().set_global_job_parameters(params)

    if params.has("input"):
        text = env.read_text_file(params.get("input"))
    else:
        print("Executing WordCount example with default input data set.")
        print("Use --input to specify file input.")
        text = env.from_collection(WORDS)

    counts = count_words(text)

    if params.has("output"):
        counts.write_as_csv(params.get("output"), "\n", " ", WriteMode.OVERWRITE).set_parallelism(1)
        env.execute("WordCount Example")
    else:
        print("Printing result to stdout. Use --output to specify output path.")
        counts.print()


if __name__ == "__main__":
    main()
