"""Flat_map functions on columns give what the interpreter gives, in its order, or leave the batch to it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.common import Row, Types
from engine.core.records import BATCH_ROWS_MAX, ColumnBatch, RowBatch
from engine.operators.compile.column_steps import ColumnFunction
from engine.operators.functions import FlatMapFunction, callable_of
from engine.operators.results import iterator_of
from engine.operators.row_operator import RowOperator
from engine.operators.row_output import RowMap
from engine.operators.stateless import FlatMapSpec
from tests.testing.operator_harness import OperatorHarness
from tests.unit.operators.compile.test_equality import Writer, batch_of, function_of, records


@dataclasses.dataclass
class Pair:
    word: str
    count: int = 1


class Doubled(FlatMapFunction):
    times = 2

    def flat_map(self, value):
        for i in range(self.times):
            yield value[1] + i


def appended(r):
    out = []
    for part in r[4].split(","):
        if not part:
            continue
        out.append((part, r[1]))
    out.extend([("end", 0)])
    return out


def in_between(r):
    n = r[1] * 2
    if n > 4:
        yield n, r[3]
        n = n - 1
    yield n, True
    if r[3]:
        yield from ((i, False) for i in range(3))
    for k in (7, 9):
        if k > n:
            yield k, r[2] > k


def early(r):
    if r[1] < 3:
        return None
    if r[3]:
        return [r[1]]
    return (r[1], 5)


def nested(r):
    for word in r[4].split():
        size = len(word)
        for i in range(size):
            yield word, i, r[5]


COMPILED = [
    lambda r: [r[1]] if r[2] > 0 else [],
    lambda r: [(w, 1) for w in r[4].split()],
    lambda r: [(w, r[0]) for w in r[4].split(",") if len(w) > 1],
    lambda r: (w + r[4] for w in r[4].split() if w != "a" if r[3]),
    lambda r: r[4].split(","),
    lambda r: r[4].split(),
    lambda r: [r, r],
    lambda r: [r] if r[3] else None,
    lambda r: [(r[1], r[6], "x"), (r[5], r[6], r[4])] if r[3] else [(r[0], r[6], r[4])],
    lambda r: [r[1] * k for k in (1, 2, 3)],
    lambda r: [(r[1], i) for i in range(r[1])],
    lambda r: range(r[1]),
    lambda r: [(a, b) for a in r[4].split() for b in a.split(",")],
    lambda r: [Row(w=w, n=len(w)) for w in r[4].split()],
    lambda r: [Pair(w) for w in r[4].split(",")],
    lambda r: [10 // r[1], r[1]] if r[1] != 0 else [],
    lambda r: [10 // r[1]] if r[1] > 0 else [0],
    appended,
    in_between,
    early,
    nested,
    Doubled(),
]  # fmt: skip
REFUSED = [
    (lambda r: [*r], "it gives the items of something with *"),
    (lambda r: r[4], "no list"),
    (lambda r: r, "no list"),
    (lambda r: [r[1], r[2]], "several types"),
    (lambda r: {r[1]}, "no list"),
    (lambda r: [x for x in r[6]], "loops over something else"),  # noqa: C416
    (lambda r: [a for a, b in [(1, 2)]], "takes apart"),
    (lambda r: [], "gives nothing"),
    (lambda r: [i for i in range(0, r[1], 2)], "loops over something else"),  # noqa: C416
    (RowMap(lambda r: [(1, 2)], Types.ROW([Types.LONG(), Types.LONG()])), "its results become Rows"),
]  # fmt: skip


def accumulated(r):
    n = 0
    for i in range(3):
        n = n + i
        yield n


def left(r):
    for i in range(3):
        if i == r[1]:
            return
        yield i


def broken(r):
    for i in range(3):
        if i == r[1]:
            break
        yield i


def counted(r):
    out = []
    out.append(len(out))
    return out


def both(r):
    yield r[1]
    return [r[1]]


def overwriting(r):
    for r in r[4].split():  # noqa: B020
        yield r


def used_behind(r):
    for i in range(2):
        n = i
        yield n
    yield n


REFUSED += [
    (accumulated, "another value"),
    (left, "Return statement"),
    (broken, "Break statement"),
    (counted, "more with its list"),
    (both, "yields and returns"),
    (overwriting, "another value"),
    (used_behind, "n is not assigned on every path"),
]


def check(function, rows):
    """Return what ran it: None, True or False where the interpreter raised, columns ran, or did not."""
    batch = batch_of(rows)
    compiled = ColumnFunction(function, is_filter=False, is_flat=True)
    result = compiled.apply(batch)
    call = callable_of(function, "flat_map")
    try:
        expected = [[*iterator_of(found, "")] for row in batch.to_rows().rows if (found := call(row)) is not None]
    except Exception:
        assert result is None
        return None
    if result is None:
        return False
    flat = list(itertools.chain(*expected))
    assert len(result) == len(flat)
    assert not flat or repr(result.to_rows().rows) == repr(flat)
    return True


TAME = [
    (1, 3, 2.5, True, "a,b c", 4, None, "x"),
    (2, 0, -1.0, False, "  x \u2003yy,", None, [1], None),
    (3, 7, 0.0, True, "", 5, [], ""),
]


@pytest.mark.parametrize("at", range(len(COMPILED)))
def test_what_is_compiled_gives_what_the_interpreter_gives(at):
    assert check(COMPILED[at], TAME)

    @settings(max_examples=12, deadline=None)
    @given(records())
    def whatever_comes(rows):
        check(COMPILED[at], rows)

    whatever_comes()


@pytest.mark.parametrize(("function", "reason"), REFUSED)
def test_what_is_not_compiled_says_why(function, reason):
    if isinstance(function, RowMap):
        function.open(None)
    compiled = ColumnFunction(function, is_filter=False, is_flat=True)
    assert compiled.apply(batch_of(TAME)) is None
    assert reason in compiled.tier()


SHAPES = [
    "f = lambda r: [#, #] if ? else [#]\n",
    "f = lambda r: [(w, #) for w in (@).split(',') if ?]\n",
    "f = lambda r: [(w + @, #) for w in (@).split() for i in range(r[1])]\n",
    "def f(r):\n    y = #\n    if ?:\n        yield y\n        y = #\n    yield y\n    if ?:\n        yield #\n",
    "def f(r):\n    out = []\n    for i in range(4):\n        if ? or i > r[1]:\n            out.append(i * r[1])\n"
    "    return out\n",
]


def is_python(source):
    """Python has no ``:=`` where a comprehension iterates."""
    try:
        compile(source, "<generated>", "exec")
    except SyntaxError as error:
        if "assignment expression" not in str(error):
            raise
        return False
    return True


@st.composite
def generated(draw):
    source = Writer(draw).write(draw(st.sampled_from(SHAPES)), draw(st.integers(0, 2)))
    assume(is_python(source))
    return source


@settings(max_examples=150, deadline=None)
@given(generated(), records())
def test_generated_functions_give_what_the_interpreter_gives(source, rows):
    check(function_of(source), rows)


def test_a_changelog_is_left_to_the_interpreter():
    batch = dataclasses.replace(batch_of(TAME), kinds=np.zeros(3, np.int8))
    assert ColumnFunction(COMPILED[0], is_filter=False, is_flat=True).apply(batch) is None


def test_the_operator_keeps_times_cuts_large_batches_and_goes_on_after_none():
    numbers = np.arange(5000)
    batch = ColumnBatch(
        pa.RecordBatch.from_arrays([pa.array(numbers)], names=["f0"]), numbers.astype(np.int64), scalar=True
    )
    with OperatorHarness(FlatMapSpec(lambda n: [n + i for i in range(10)] if n >= 1000 else [])) as harness:
        harness.process_batch(batch.slice(0, 1000))
        assert harness.output.batches == []
        harness.process_batch(batch)
        assert [type(own) for own in harness.output.batches] == [ColumnBatch] * 3
        assert max(map(len, harness.output.batches)) == BATCH_ROWS_MAX
        assert harness.output.rows == [n + i for n in range(1000, 5000) for i in range(10)]
        assert harness.output.timestamps_ms == [n for n in range(1000, 5000) for _ in range(10)]
        assert isinstance(harness.head, RowOperator)
        assert harness.head.tiers() == ["compiled"]
        harness.process_batch(RowBatch([1000]))
        assert harness.output.rows[-1] == 1009
