"""Functions that cut lines into words are known by their form, and the tokeniser gives what they give."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.common import Row, Types
from engine.core.records import ColumnBatch, RowBatch
from engine.datastream import RuntimeExecutionMode, StreamExecutionEnvironment
from engine.datastream.connectors import DiscardingSink
from engine.operators.compile.words import Words, words_of
from engine.operators.functions import FlatMapFunction, callable_of
from engine.operators.row_output import RowOutput
from engine.operators.text import TokenizeSpec, WordTokenizer, tokenizer_of
from tests.testing.operator_harness import OperatorHarness


def appended(line):
    """Cut."""
    out = []
    for word in line.split():
        out.append((word, 1))
    return out


def yielded(line):
    words = line.lower().strip()
    for w in words.split():
        yield w, 1


def handed_on(line):
    yield from line.split()


def renamed(line):
    line = line.lower()
    parts = line.split()
    return parts


class Cutter(FlatMapFunction):
    def flat_map(self, value):
        for w in value.split():
            yield (w.lower(), 1)


class Opened(FlatMapFunction):
    def open(self, runtime_context):
        pass

    def flat_map(self, value):
        return value.split()


KNOWN = [
    (lambda line: [(word, 1) for word in line.split()], Words(False, True)),
    (lambda line: ((w, 1) for w in line.lower().split()), Words(True, True)),
    (lambda x: x.split(), Words(False, False)),
    (lambda x: x.strip().lower().split(), Words(True, False)),
    (lambda x: [w.lower() for w in x.split() if w], Words(True, False)),
    (appended, Words(False, True)),
    (yielded, Words(True, True)),
    (handed_on, Words(False, False)),
    (renamed, Words(True, False)),
    (Cutter(), Words(True, True)),
]


def overwritten(line):
    words = line.split()
    words = []
    for w in words:
        words.append(w)
    return words


def itself(line):
    out = []
    for out in line.split():
        out.append(out)
    return out


def more(line):
    for w in line.split():
        yield w
        yield w


def ended(line):
    for w in line.split():
        yield w
    else:
        yield "end"


UNKNOWN = [
    overwritten,
    itself,
    more,
    ended,
    Opened(),
    lambda line: [(word, True) for word in line.split()],
    lambda line: [(word, 2) for word in line.split()],
    lambda line: [(1, word) for word in line.split()],
    lambda line: [(word, 1) for word in line.split(" ")],
    lambda line: [word for word in line.split() if len(word) > 1],
    lambda line: [word.upper() for word in line.split()],
    lambda line: [(w, 1) for word in line.split() for w in word.split()],
    lambda line: [word for word in line],  # noqa: C416
    lambda line: [line for word in line.split()],
    lambda line: [line for line in line.split()],  # noqa: C416
    lambda line: set(line.split()),
    lambda line, by=None: line.split(by),
    lambda line: line.swapcase().split(),
    lambda line: line,
    str.split,
]  # fmt: skip


@pytest.mark.parametrize(("function", "words"), KNOWN)
def test_forms_that_are_known(function, words):
    assert words_of(function) == words


@pytest.mark.parametrize("function", UNKNOWN)
def test_forms_that_are_not(function):
    assert words_of(function) is None
    assert tokenizer_of(function) is None


def test_what_makes_rows_is_not_known():
    row_type = Types.ROW([Types.STRING(), Types.LONG()])
    assert words_of(RowOutput(KNOWN[0][0], row_type)) is None
    assert words_of(lambda line: [Row(w, 1) for w in line.split()]) is None


#: All white space of str.split(), letters whose small ones depend on where they stand, or are more, or longer.
LETTERS = [chr(code) for code in range(sys.maxunicode) if chr(code).isspace()]
LETTERS += ["a", "B", "Σ", "İ", "ß", "ẞ", "́", "'", "·", "­", "É", "ǅ", "Ω", "😀", "．", "\u200b", "\u2060", "\ufeff"]
LINES = st.lists(st.lists(st.sampled_from(LETTERS), max_size=12).map("".join), max_size=5)


@settings(max_examples=150, deadline=None)
@given(LINES, st.sampled_from(KNOWN))
def test_the_tokeniser_gives_what_the_function_gives(lines, known):
    function, _ = known
    tokenizer = tokenizer_of(function)
    call = callable_of(function, "flat_map")
    expected = [word for line in lines for word in call(line)]
    assert [word for line in lines for word in tokenizer(line)] == expected
    with OperatorHarness(TokenizeSpec(tokenizer)) as harness:
        harness.process_batch(RowBatch(lines))
        assert harness.output.rows == expected
        assert all(isinstance(batch, ColumnBatch) for batch in harness.output.batches)


def test_small_letters_of_all_alphabets_are_those_of_str():
    letters = "".join(map(chr, range(0x110000)))
    text = " ".join(c for c in letters if c.isupper() or c.istitle() or unicodedata.category(c) == "Lo")
    with OperatorHarness(TokenizeSpec(tokenizer_of(KNOWN[3][0]))) as harness:
        harness.process_batch(RowBatch([text]))
        assert harness.output.rows == text.lower().split()


def test_all_letters_goes_with_white_space_only():
    with pytest.raises(ValueError, match="all_letters"):
        WordTokenizer(",", all_letters=True)


def planned(stream):
    stream.sink_to(DiscardingSink())
    graph, _ = stream.get_execution_environment()._build("plan")
    return {info.name: info.tier for vertex in graph.vertices for info in vertex.operators}


@pytest.mark.parametrize("mode", [RuntimeExecutionMode.STREAMING, RuntimeExecutionMode.BATCH])
def test_a_word_count_of_lambdas_runs_in_kernels(tmp_path, mode):
    (tmp_path / "text").write_text("to be or\nnot To bE\n Σ΄ΑΣ\u2003αΣ to\x1cbe\n")
    env = StreamExecutionEnvironment.create_local_environment(1)
    env.set_runtime_mode(mode)
    counts = []
    for function in (
        lambda line: [(w, 1) for w in line.lower().split()],
        lambda x: [(w, 1) for w in list(x.lower().split())],
    ):
        words = env.read_text_file(str(tmp_path / "text")).flat_map(function)
        stream = words.key_by(lambda pair: pair[0]).sum(1)
        counts.append(sorted(stream.execute_and_collect()))
        assert any("interpreted" in tier for tier in planned(stream).values()) is (len(counts) == 2)
    assert counts[0] == counts[1]
    assert ("to", 3) in counts[0]
