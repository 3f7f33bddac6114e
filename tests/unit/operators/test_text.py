from __future__ import annotations

import collections
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.connectors.files import TextFileSource
from engine.connectors.simple import CollectionSpec
from engine.connectors.source import SourceSpec
from engine.core.errors import UserCodeError
from engine.core.records import BATCH_ROWS_MAX, ColumnBatch, rows_of
from engine.operators.keys import FieldKey
from engine.operators.stateless import FlatMapSpec
from engine.operators.text import (
    ColumnarSumSpec,
    TokenizeSpec,
    WordCountSpec,
    WordTable,
    WordTokenizer,
    plan_word_count,
)
from tests.testing.operator_harness import OperatorHarness

SPACES = [chr(c) for c in range(sys.maxunicode) if not 0xD800 <= c < 0xE000 and chr(c).isspace()]
#: neighbours of the spaces in UTF-8, which must not be taken for them
NEAR_SPACES = ["\u2010", "\u200b", "\u2060", "\u3001", "\u1681", "\u00a1", "\u0084", "\u2030", "\u205e", "\ue000"]
LETTERS = ["a", "B", "ß", "é", "漢", "😀", "\x00", "word", "Antidisestablishmentarianism", *NEAR_SPACES]
TEXT = st.lists(st.sampled_from([*LETTERS, *SPACES, " ", "\n", "\r\n"]), max_size=60).map("".join)


def count(lines, tokenizer=WordTokenizer(), *, batch_size=3):
    with OperatorHarness(WordCountSpec(tokenizer), ColumnarSumSpec()) as harness:
        for start in range(0, len(lines), batch_size):
            harness.process(lines[start : start + batch_size])
        harness.end()
    rows = harness.output.rows
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_the_tokenizer_is_a_plain_flat_map_function():
    with OperatorHarness(FlatMapSpec(WordTokenizer(lower=True))) as harness:
        harness.process(["To be, or  not", "", "ÄB"])
        assert harness.output.rows == [("to", 1), ("be,", 1), ("or", 1), ("not", 1), ("Äb", 1)]
    assert WordTokenizer(pairs=False)("a b") == ["a", "b"]
    assert WordTokenizer(",")("a,,b c,") == [("a", 1), ("b c", 1)]


@pytest.mark.parametrize("separator", ["", "ab", "ü", "\n"])
def test_a_separator_is_one_ascii_character(separator):
    with pytest.raises(ValueError, match="expected one ASCII character"):
        WordTokenizer(separator)


@settings(max_examples=300, deadline=None)
@given(lines=st.lists(TEXT, max_size=10), lower=st.booleans(), separator=st.sampled_from([None, " ", ",", "a"]))
def test_counting_gives_what_a_counter_over_the_plain_function_gives(lines, lower, separator):
    tokenizer = WordTokenizer(separator, lower)
    if separator is not None:  # a line has no line ends in it; with white space as separator it does not matter
        lines = [line.replace("\r", "").replace("\n", "") for line in lines]
    expected = collections.Counter(word for line in lines for word in tokenizer.words(line))
    assert count(lines, tokenizer) == dict(expected)
    with OperatorHarness(TokenizeSpec(tokenizer)) as harness:
        harness.process(lines)
    assert harness.output.rows == [pair for line in lines for pair in tokenizer(line)]


def test_every_space_of_unicode_separates_as_in_str_split():
    assert len(SPACES) > 20
    for space in SPACES:
        assert count([f"a{space}b{space}"]) == {"a": 1, "b": 1}, unicodedata.name(space, repr(space))


@pytest.mark.parametrize("separator", [" ", "\n", "\u0085", "\u2003", "\u3000", "\r\n"])
def test_words_are_cut_wherever_they_stand_within_the_bytes_looked_at_together(separator):
    for before in range(140):
        for after in (0, 1, 5, 64):
            text = "x" * before + separator * 2 + "é" + separator + "y" * after
            assert count([text]) == dict(collections.Counter(text.split())), (before, after)


@pytest.mark.parametrize("separator", [None, ";"])
def test_words_of_any_length_at_the_end_of_a_text_are_cut_and_counted(separator):
    tokenizer = WordTokenizer(separator, lower=True)
    for length in range(1, 80):
        words = ["B" * length, "a" * length, "\x00" * length, "Ab\x00" * length]
        text = (separator or " ").join(words)
        assert count([text], tokenizer) == {word.lower(): 1 for word in words}
        with OperatorHarness(TokenizeSpec(tokenizer)) as harness:
            harness.process([text])
        assert harness.output.rows == [(word.lower(), 1) for word in words]


@pytest.mark.parametrize("place", range(8, 40, 3))
def test_long_words_differ_in_any_byte(place):
    # Enough words that differ in one byte only for some to meet in the table.
    letters = [chr(code) for code in range(128) if not chr(code).isspace()]
    words = [f"{tail:x<40}"[:place] + letter + f"{tail:x<40}"[place:] for tail in range(16) for letter in letters]
    words = ["commonpr" + word for word in words] + words
    assert count([" ".join(words)] * 2) == {word: 2 * n for word, n in collections.Counter(words).items()}


def test_a_table_that_grows_within_a_text_counts_nothing_twice():
    words = [f"w{i % 3000}" for i in range(9000)] + [f"{'long' * 10}{i % 3000}" for i in range(9000)]
    table = WordTable()
    text = np.frombuffer(bytearray(" ".join(words).encode()), np.uint8)
    table.count(text)
    table.count(text)
    rows = [row for batch in table.batches() for row in rows_of(batch).rows]
    assert rows == [(word, 6) for word in dict.fromkeys(words)]


def test_a_word_of_megabytes_is_counted():
    huge = "x" * 3_000_000
    assert count([huge, f"a {huge}", huge + "y"]) == {huge: 2, "a": 1, huge + "y": 1}


def test_a_full_table_is_emitted_and_counting_goes_on(monkeypatch):
    monkeypatch.setattr("engine.operators.text._TABLE_BYTES_MIN", 1 << 20)
    lines = [f"w{i % 30_000} w{i}" for i in range(60_000)]
    with OperatorHarness(WordCountSpec(WordTokenizer()), ColumnarSumSpec()) as harness:
        partial = []
        harness.operators[0]._bytes_max = 1 << 20
        merge = harness.operators[1].process_batch
        harness.operators[1].process_batch = lambda index, batch: (partial.append(len(batch)), merge(index, batch))
        for start in range(0, len(lines), 1000):
            harness.process(lines[start : start + 1000])
        assert partial, "nothing was handed on before the end"
        harness.end()
    assert dict(harness.output.rows) == dict(collections.Counter(word for line in lines for word in line.split()))
    assert max(map(len, harness.output.batches)) <= BATCH_ROWS_MAX


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_is_counted_exactly_across_chunks_and_line_ends(tmp_path, suffix):
    rng = random.Random(5)
    words = ["to", "be", "ü", "naïve", "漢字", "antidisestablishmentarianism", *(f"w{i}" for i in range(2000))]
    parts = []
    for _ in range(60_000):
        parts += rng.choices(words, k=rng.randrange(8))
        parts[-1:] = [part + "  " for part in parts[-1:]]
        parts.append(rng.choice(["\n", "\r\n", "\n\n"]))
    text = " ".join(parts)
    path = tmp_path / f"text{suffix}"
    data = text.encode()
    if suffix:
        import gzip

        data = gzip.compress(data, 1)
    path.write_bytes(data)
    plan = plan_word_count(TextFileSource((str(path),)), WordTokenizer(), FieldKey(0), 1)
    with OperatorHarness(SourceSpec(plan.source), plan.count, plan.merge, parallelism=2) as harness:
        rows = harness.run_source().rows
    assert dict(rows) == dict(collections.Counter(text.split()))


def test_a_separator_with_windows_line_ends_leaves_no_carriage_return(tmp_path):
    (tmp_path / "f").write_bytes(b"a,b\r\nb,c\rd\r\n\r\ne")
    source = TextFileSource((str(tmp_path / "f"),), raw_chunks=True)
    with OperatorHarness(SourceSpec(source), WordCountSpec(WordTokenizer(","))) as harness:
        assert dict(harness.run_source().rows) == {"a": 1, "b": 2, "c\rd": 1, "e": 1}


def test_the_plan_is_only_for_what_it_computes_rightly():
    source = TextFileSource(("/x",))
    assert plan_word_count(source, WordTokenizer(), FieldKey(0), 1).source.raw_chunks
    assert plan_word_count(source, lambda line: [(line, 1)], FieldKey(0), 1) is None
    assert plan_word_count(source, WordTokenizer(pairs=False), FieldKey(0), 1) is None
    assert plan_word_count(source, WordTokenizer(), FieldKey(1), 1) is None
    assert plan_word_count(source, WordTokenizer(), lambda pair: pair[0], 1) is None
    assert plan_word_count(source, WordTokenizer(), FieldKey(0), 0) is None
    assert plan_word_count(CollectionSpec(("a",)), WordTokenizer(), FieldKey(0), 1) is None


def test_the_sum_takes_columns_slices_rows_null_and_empty_words():
    columns = pa.RecordBatch.from_pydict({"w": ["x", "a", None, "", "a"], "n": [9, 1, 2, 3, -4]})
    with OperatorHarness(ColumnarSumSpec()) as harness:
        harness.process_batch(ColumnBatch(columns.slice(1)))
        harness.process([("a", 10), ("", 1), (None, 1)])
        assert harness.output.rows == []
        harness.end()
    assert dict(harness.output.rows) == {"a": 7, "": 4, None: 3}


def test_the_sum_of_what_is_no_pair_of_string_and_integer_is_a_clear_error():
    for record in [("a", "x"), (1, 2), ("a", None), "ab", ("a", 1.5)]:
        error = pytest.raises(UserCodeError, match=r"takes pairs \(str, int\)(.|\n)*'Sum' on record")
        with OperatorHarness(ColumnarSumSpec(), name="Sum") as harness, error:
            harness.process([record])


def test_a_line_that_is_no_string_is_a_clear_error():
    error = pytest.raises(UserCodeError, match=r"cut out of str, got a int(.|\n)*on record: 5")
    with OperatorHarness(WordCountSpec(WordTokenizer())) as harness, error:
        harness.process(["a", 5])


def test_words_keep_the_event_times_of_their_lines():
    with OperatorHarness(TokenizeSpec(WordTokenizer(pairs=False))) as harness:
        harness.process(["a b", "", "c"], [10, 20, 30])
        assert harness.output.rows == ["a", "b", "c"]
        assert harness.output.timestamps_ms == [10, 10, 30]


def test_rows_never_import_numba_or_pyarrow():
    program = (
        "import sys, engine.operators.stateless, engine.operators.aggregate, engine.operators.text, "
        "engine.connectors.simple, engine.connectors.files, engine.connectors.file_sinks, "
        "engine.connectors.file_system\n"
        "print(sorted({'numba', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "latin-1"])
@pytest.mark.parametrize(
    "tokenizer", [WordTokenizer(), WordTokenizer(";", lower=True), WordTokenizer(" ", pairs=False)], ids=repr
)
def test_words_of_chunks_of_a_file_are_those_of_its_lines(tmp_path, tokenizer, charset):
    rng = random.Random(charset)
    pieces = ["to", "Be", "ü", ";", ";;", " ", "\t", "\r", "\r\n", "\n", "\n\n", "\xa0", "\x1c", "\x85", "\x0b", "\x00"]
    text = "".join(rng.choices(pieces, k=4000))
    (tmp_path / "a.txt").write_bytes(text.encode(charset))
    found = []
    for raw, spec in ((False, FlatMapSpec(tokenizer)), (True, TokenizeSpec(tokenizer))):
        source = TextFileSource((str(tmp_path),), charset, raw_chunks=raw)
        with OperatorHarness(SourceSpec(source), spec) as harness:
            found.append(harness.run_source().rows)
    assert found[0] == found[1]
    assert len(found[0]) > 500
