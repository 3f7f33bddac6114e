from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import ConfigError, InputError
from engine.formats.text import (
    DelimiterCutter,
    decode_lines,
    is_byte_newline_charset,
    lines_of_range,
    normal_charset,
    transcoded,
)


def chunks_of(data: bytes, start: int, size: int):
    stream = io.BytesIO(data)
    stream.seek(max(start - 1, 0))
    return iter(lambda: stream.read(size), b"")


def slow_lines(data: bytes) -> list[str]:
    lines = data.decode().split("\n")
    if lines[-1] == "":
        lines.pop()
        return [line.removesuffix("\r") for line in lines]
    return [line.removesuffix("\r") for line in lines[:-1]] + lines[-1:]


@settings(max_examples=300, deadline=None)
@given(
    data=st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"word", "ü".encode(), b"\r", b" "])).map(b"".join),
    split_size=st.integers(1, 20),
    chunk_size=st.integers(1, 20),
)
def test_every_line_belongs_to_exactly_the_range_in_which_it_begins(data, split_size, chunk_size):
    found = []
    for start in range(0, len(data), split_size):
        end = min(start + split_size, len(data))
        for offset, lines in lines_of_range(chunks_of(data, start, chunk_size), start, end):
            assert start <= offset < end
            assert data[offset : offset + len(lines)] == lines
            found += decode_lines(lines, "utf-8")
    assert found == slow_lines(data)


def test_no_more_is_read_than_the_last_line_needs():
    taken = []
    data = b"".join(b"line %d\n" % i for i in range(1000))

    def chunks():
        for start in range(0, len(data), 10):
            taken.append(start)
            yield data[start : start + 10]

    list(lines_of_range(chunks(), 0, 30))
    assert max(taken) <= 40


def test_a_line_much_longer_than_a_chunk_comes_in_one_piece():
    data = b"x" * 100_000 + b"\nend"
    assert [len(lines) for _, lines in lines_of_range(chunks_of(data, 0, 1000), 0, len(data))] == [100_001, 3]


def test_only_newlines_end_lines():
    assert decode_lines("a\x0bb\x0cc\x85d\u2028e\rf\r\ng".encode(), "utf-8") == ["a\x0bb\x0cc\x85d\u2028e\rf", "g"]


@pytest.mark.parametrize(
    ("charset", "cuttable"),
    [("utf-8", True), ("latin-1", True), ("gbk", True), ("shift_jis", True), ("utf-16", False), ("utf-32-le", False)],
)
def test_a_file_is_cut_only_where_a_newline_is_a_byte(charset, cuttable):
    assert is_byte_newline_charset(charset) is cuttable


def test_an_unknown_charset_is_named():
    assert normal_charset("UTF8") == "utf-8"
    with pytest.raises(ConfigError, match=r"'klingon'.*latin-1"):
        normal_charset("klingon")


@pytest.mark.parametrize("charset", ["utf-16", "utf-16-be", "latin-1", "utf-8"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_transcoding_gives_utf8_wherever_the_chunks_are_cut(charset, size):
    text = "Grüße\nà la carte\n"
    data = text.encode(charset)
    assert b"".join(transcoded(chunks_of(data, 0, size), charset, "strict", "f")) == text.encode()


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_transcoding_names_file_and_offset_of_bad_bytes(size):
    data = b"abc\xff" + "é".encode()
    with pytest.raises(InputError, match=r"f\.txt: bytes b'\\xff.*offset 3 are not utf-8.*errors='replace'"):
        list(transcoded(chunks_of(data, 0, size), "utf-8", "strict", "f.txt"))
    with pytest.raises(InputError, match="offset 3 "):
        list(transcoded(itertools.chain([b"abc"], [b"\xc3"]), "utf-8", "strict", "f.txt"))


@settings(max_examples=300, deadline=None)
@given(
    data=st.lists(st.sampled_from([b";", b"a", b"-", b";;-"])).map(b"".join),
    delimiter=st.sampled_from([b";", b";;", b";;-", b"-;"]),
    cuts=st.lists(st.integers(0, 40)),
)
def test_a_delimiter_may_be_cut_anywhere(data, delimiter, cuts):
    cutter = DelimiterCutter(delimiter)
    borders = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    found = [record for a, b in itertools.pairwise(borders) for record in cutter.feed(data[a:b])]
    assert [*found, cutter.rest()] == data.split(delimiter)
