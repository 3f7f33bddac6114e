"""Whatever a generated function gives in the interpreter, its columns give too, or they leave the batch to it."""

from __future__ import annotations

import itertools
import linecache
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from engine.common import Row, Types
from engine.core.records import ColumnBatch
from engine.operators.compile.column_steps import ColumnFunction
from engine.operators.functions import FilterFunction, MapFunction, callable_of
from engine.operators.row_output import RowMap
from tests.testing.dictionary_forms import FORMS, encoded_batch

_numbers = itertools.count()


def function_of(source: str, **names: Any) -> Callable[[Any], Any]:
    """Return ``f`` of a source that can be found again, as that of a file can."""
    file_name = f"<generated {next(_numbers)}>"
    linecache.cache[file_name] = (len(source), None, source.splitlines(keepends=True), file_name)
    names |= {
        "TABLE": {"a": 1, "7": -7, "": 0},
        "math": math,
        "Row": Row,
        "MapFunction": MapFunction,
        "FilterFunction": FilterFunction,
    }
    exec(compile(source, file_name, "exec", dont_inherit=True), names)
    function: Callable[[Any], Any] = names["f"]
    return function


# --- functions --------------------------------------------------------------------------------------------------------

INTEGERS = [
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "10",
    "-13",
    "1000003",
    str(2**31),
    str(2**53 + 1),
    str(2**62),
    str(2**63 - 1),
]
FLOATS = ["0.0", "-0.0", "0.5", "1.0", "-2.5", "1e308", "1e-320", "1e999", "9007199254740993.0", "3.0"]
TEXTS = ["''", "'a'", "'b,c'", "','", "'7'", "' 12 '", "'ß'", "'A'", "'-5'"]


class Writer:
    """Writes expressions over a record ``r`` of ``batch_of``, at most ``depth`` deep; # is a number, ? a condition, @ a
    text; {name} is one of the list of that name."""

    WORDS = {
        "integer": INTEGERS,
        "float": FLOATS,
        "text": TEXTS,
        "sign": ["+", "-", "*", "/", "//", "%", "&", "|", "^", "+", "-", "*"],
        "compare": ["<", "<=", ">", ">=", "==", "!="],
        "function": ["abs", "int", "float", "round", "math.sqrt", "+", "math.floor", "math.exp", "math.log"],
        "way": ["isdigit", "isalpha", "isspace", "isupper", "isnumeric"],
        "cut": ["title", "capitalize", "swapcase", "lstrip", "rstrip", "casefold"],
        "format": [":.2f", ":5", ":>4", "!r", ":e", ":,"],
        "at": ["0", "-1", "1:", ":2", "-2:", "::-1", "1:9:2"],
        "pick": ["min", "max"],
        "logic": ["and", "or"],
        "case": ["lower", "upper", "strip"],
        "affix": ["startswith", "endswith"],
        "digit": ["0", "1", "2", "3"],
        "bits": ["0", "1", "13", "62"],
        "low_bits": ["0", "255", str(2**48 - 1), str(2**63 - 1)],
        "huge": [str(0x9E3779B97F4A7C15), str(2**63), str(2**64 + 1), "3"],
    }
    LEAVES = {
        "#": ["r[0]", "r[1]", "r[2]", "r[3]", "r[5]", "r[1]", "r[0]", "r[-6]", "{integer}", "{float}", "True"],
        "?": ["r[3]", "r[5] is None", "r[5] is not None", "(r[5] is not None and r[5] > 3)", "r[6] is None"],
        "@": ["r[4]", "r[4]", "{text}"],
    }
    BRANCHES = {
        "#": [
            *["(# {sign} #)"] * 5,
            "(-#)",
            "{function}(#)",
            "{pick}(#, #)",
            "(# if ? else #)",
            "(# {logic} #)",
            "(# ** {digit})",
            "(# << {bits})",
            "(# >> {bits})",
            "((# {sign} #) & {low_bits})",
            "({low_bits} & (# * {huge} ^ # << {bits}))",
            "len(@)",
            "int(@)",
            "float(@)",
            "round(#, {digit})",
            "(# ** 0.5)",
            "@.find({text})",
            "TABLE.get(@, #)",
            "min(#, #, #)",
            "((n := #) + n)",
            "len(@.split({text}))",
        ],
        "?": [
            "(# {compare} #)",
            "(# {compare} # {compare} #)",
            "(@ {compare} @)",
            "(? {logic} ?)",
            "(? {logic} #)",
            "(not ?)",
            "(not #)",
            "(not @)",
            "(# in (1, -1, 7, 9223372036854775807))",
            "(# not in {{3, 5}})",
            "(@ in ('a', '7', 'ß'))",
            "({text} in @)",
            "bool(#)",
            "bool(@)",
            "@.{affix}({text})",
            "@.{way}()",
            "@.startswith(('a', '7'))",
            "(@ in TABLE)",
            "(# in (r[0], #, 3))",
            "(r[5] == #)",
            "(r[7] != @)",
            "(r[7] == r[7])",
            "(not r[7])",
            "(r[7] and ?)",
        ],
        "@": [
            "(@ + @)",
            "@.{case}()",
            "@.replace({text}, {text})",
            "str(#)",
            "(@ if ? else @)",
            "@.split(',')[{digit}]",
            "@.{cut}()",
            "@[{at}]",
            "@[#]",
            "@.split()[-1]",
            "@.partition({text})[2]",
            "str(?)",
            "'{{}}-{{}}'.format(#, @)",
            "('%s|%s' % (#, @))",
            "f'{{r[2]{format}}}'",
            "(r[7] or @)",
            "'+'.join([@, @])",
        ],
    }

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def write(self, pattern: str, depth: int) -> str:
        names = {
            name: self._draw(st.sampled_from(words)) for name, words in self.WORDS.items() if f"{{{name}}}" in pattern
        }
        parts = []
        for letter in pattern.format_map(names):
            if letter not in self.LEAVES:
                parts.append(letter)
            elif depth <= 0 or self._draw(st.integers(0, 4)) == 0:
                parts.append(self.write(self._draw(st.sampled_from(self.LEAVES[letter])), 0))
            else:
                parts.append(self.write(self._draw(st.sampled_from(self.BRANCHES[letter])), depth - 1))
        return "".join(parts)


FUNCTIONS = [
    *["f = lambda r: #\n"] * 4,
    "f = lambda r: ?\n",
    "f = lambda r: @\n",
    "f = lambda r: r\n",
    "f = lambda r: (r[5], #, r[6])\n",
    "f = lambda r: (#, ?, @)\n",
    "f = lambda r: (#, @) if ? else (#, @)\n",
    "def f(r):\n    y = #\n    y += #\n    return # if y > 1 else y\n",
    "def f(r):\n    y = #\n    if ?:\n        return y, #\n    z = #\n    return y, z\n",
    "def f(r):\n    a, b, c, d, e, g, h, k = r\n"
    "    if d:\n        a = b\n    elif ?:\n        b = #\n    return a, b\n",
    "def f(r):\n    a, b = (@).split(',')\n    return b, int(a)\n",
    "def f(r):\n    unused = #\n    return @\n",
    "def f(r):\n    y = #\n    for i in (1, 2, 3):\n"
    "        if ?:\n            y = y + i\n        elif y > i * 2:\n            return y\n"
    "    return y + i\n",
    "def f(r):\n    if (y := #) > 2 and ?:\n        return y, @\n    return y, str(y)\n",
    "def f(r):\n    a, b = @, #\n    return f'{{a}}:{{r[0]}}' + f'{{b}}{{a!s}}'\n",
    "f = lambda r: Row(x=#, y=r[6], z=@)\n",
    "def f(r):\n    n = #\n    return Row(x=n, y=#) if ? else Row(x=#, y=n)\n",
    "def g(x, y):\n    z = x - 1\n    return x * 3 if y is None else z\nf = lambda r: (g(#, r[5]), g(#, r[1]))\n",
    "def g(s, n):\n    if s[3]:\n        return s[4], n\n    return h(n), s[0]\n"
    "h = lambda n: str(n)\nf = lambda r: g(r, #)\n",
    "class F(MapFunction):\n    k = 3\n    def __init__(self):\n        self.n = 5\n"
    "    def map(self, r):\n        return # + self.n * self.k, @\nf = F()\n",
]
CONDITIONS = [
    *[f"f = lambda r: {kind}\n" for kind in "??#@"],
    "def g(r):\n    return ?\nf = lambda r: g(r) or #\n",
    "class F(FilterFunction):\n    def __init__(self):\n        self.n = 5\n"
    "    def filter(self, r):\n        return # < self.n\nf = F()\n",
]


@st.composite
def functions(draw: st.DrawFn, patterns: list[str]) -> str:
    pattern = draw(st.sampled_from(patterns))
    return Writer(draw).write(pattern, draw(st.integers(0, 4)))


# --- records ----------------------------------------------------------------------------------------------------------

SMALL = st.integers(-20, 20)
WIDE = st.one_of(
    SMALL, st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 0])
)
REAL = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 0.5, -3.0, math.nan, math.inf, -math.inf, 2.0**53, 1e308, 5e-324, 2.0**63]),
    st.floats(-100, 100),
    st.floats(),
)
WORDS = st.one_of(
    st.sampled_from(["", "a", "7", "-12", "+3", "a,b", "1,2", "1,x,3", " a ", "ß", "İ", "1_0", "٣", "0x1F", "007"]),
    st.text("abA,7 \x1c\n-.ßé\U0001f600", max_size=6),
)  # fmt: skip


@st.composite
def records(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    tame = draw(st.booleans())
    return draw(
        st.lists(
            st.tuples(
                SMALL if tame else WIDE,
                st.integers(1, 9) if tame else SMALL,
                st.floats(-100, 100) if tame else REAL,
                st.booleans(),
                st.sampled_from(["a,b", "12,5", "7,x"]) if tame else WORDS,
                st.integers(-9, 9) if tame else st.none() | st.integers(-(2**31), 2**31 - 1),
                st.none() | st.lists(st.integers(0, 3), max_size=2),
                st.none() | (st.sampled_from(["a", "b,"]) if tame else WORDS),
            ),
            min_size=1,
            max_size=8,
        )
    )


def batch_of(rows: list[tuple[Any, ...]]) -> ColumnBatch:
    types = [
        pa.int64(),
        pa.int8(),
        pa.float64(),
        pa.bool_(),
        pa.string(),
        pa.int32(),
        pa.list_(pa.int64()),
        pa.string(),
    ]
    arrays = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
    return ColumnBatch(pa.RecordBatch.from_arrays(arrays, names=list("abcdefgh")))


def exactly(values: Any) -> str:
    """Tells 1 from True and 1.0, 0.0 from -0.0; nan equals itself."""
    return repr(values)


def check(function: Callable[[Any], Any], rows: list[tuple[Any, ...]], is_filter: bool) -> None:
    batch = batch_of(rows)
    compiled = ColumnFunction(function, is_filter=is_filter)
    result = compiled.apply(batch)
    seen = batch.to_rows().rows
    check_dictionaries(function, batch, is_filter, result)
    function = callable_of(function, "filter" if is_filter else "map")
    try:
        expected = [row for row in seen if function(row)] if is_filter else [function(row) for row in seen]
    except Exception:
        event("raises")
        assert result is None
        return
    if result is None:
        event(f"left: {compiled.reason[:40]}")
        return
    event("compiled")
    assert exactly(result.to_rows().rows) == exactly(expected)


def check_dictionaries(function: Any, batch: ColumnBatch, is_filter: bool, expected: ColumnBatch | None) -> None:
    """Texts in dictionaries, among them values that no row has, give the same; the second time they are remembered."""
    texts = [at for at, kind in enumerate(batch.columns.schema.types) if pa.types.is_string(kind)]
    compiled = ColumnFunction(function, is_filter=is_filter)
    for form in ("tidy", "tidy, sliced, values twice and unused"):
        given = replace(batch, columns=encoded_batch(batch.columns, FORMS[form], texts))
        for _ in range(2):
            result = compiled.apply(given)
            assert (result is None) == (expected is None)
            if result is not None and expected is not None:
                assert exactly(result.to_rows().rows) == exactly(expected.to_rows().rows)


SETTINGS = settings(
    max_examples=300,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@SETTINGS
@given(source=functions(FUNCTIONS), rows=records())
def test_a_compiled_map_gives_what_the_interpreter_gives(source, rows):
    check(function_of(source), rows, is_filter=False)


@SETTINGS
@given(source=functions(CONDITIONS), rows=records())
def test_a_compiled_filter_keeps_what_the_interpreter_keeps(source, rows):
    check(function_of(source), rows, is_filter=True)


# --- each operation on all pairs of difficult values ----------------------------------------------------------------

INTS = [0, 1, -1, 2, -2, 7, -7, 10, 2**53 + 1, -(2**53) - 1, 2**62, 2**63 - 1, -(2**63)]
REALS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -2.5,
    1.5,
    2.75,
    2.0**53,
    1e308,
    5e-324,
    2.0**63,
    -(2.0**63),
    math.inf,
    -math.inf,
    math.nan,
]
STRINGS = [
    "",
    "a",
    "A",
    "b,c",
    "7",
    "-12",
    "+3",
    " 7",
    "7\n",
    "1_0",
    "ß",
    "é",
    "İ",
    "\x1ca\x1f",
    "٣",
    "007",
    "-0",
    "0x1",
    "1.5",
    "1e5",
    "😀,",
]
NUMERIC = [
    "a + b",
    "a - b",
    "a * b",
    "a / b",
    "a // b",
    "a % b",
    "a < b",
    "a <= b",
    "a == b",
    "a != b",
    "a >= b",
    "a > b",
]
NUMERIC += ["min(a, b)", "max(a, b)", "a or b", "a and b", "not a", "-a", "abs(a)", "int(a)", "float(a)", "bool(a)"]
NUMERIC += [
    "round(a)",
    "a < b < 3",
    "1 if a else 0",
    "b != 0 and a / b > 1",
    "b == 0 or a // b",
    "a if b else -1",
    "math.sqrt(a)",
]
BITS = [
    "a & b",
    "a | b",
    "a ^ b",
    "a ** 2",
    "a ** 3",
    "a << 1",
    "a << 62",
    "a >> 1",
    "a >> 62",
    "a in (1, -7)",
    "str(a)",
]
TEXTUAL = [
    "a + b",
    "a < b",
    "a == b",
    "a >= b",
    "a or b",
    "len(a)",
    "int(a)",
    "float(a)",
    "a.lower()",
    "a.upper()",
    "not a",
]
TEXTUAL += ["a.strip()", "a.replace('a', 'bb')", "a.startswith('a')", "a.endswith('c')", "'b' in a", "a in ('a', 'ß')"]
TEXTUAL += ["a.split(',')[0]", "a.split(',')[1]", "int(a.strip())", "a if a < b else b", "bool(a)"]


def compiled_share(
    expressions: list[str], left: list[Any], right: list[Any], kinds: tuple[pa.DataType, pa.DataType]
) -> float:
    num_compiled = num = 0
    for expression in expressions:
        function = function_of(f"def f(r):\n    a, b = r\n    return {expression}\n")
        for is_filter in (False, True):
            compiled = ColumnFunction(function, is_filter=is_filter)
            for a, b in itertools.product(left[::3] if is_filter else left, right):
                arrays = [pa.array([value], kind) for value, kind in zip((a, b), kinds, strict=True)]
                batch = ColumnBatch(pa.RecordBatch.from_arrays(arrays, names=["a", "b"]))
                compiled._guarded.doubts_in_row = 0
                result = compiled.apply(batch)
                try:
                    value = function((a, b))
                except Exception:
                    assert result is None, (expression, a, b)
                    continue
                num += 1
                if result is not None:
                    num_compiled += 1
                    expected = ([(a, b)] if value else []) if is_filter else [value]
                    assert exactly(result.to_rows().rows) == exactly(expected), (expression, a, b)
    return num_compiled / num


def test_integers_of_64_bits():
    assert compiled_share(NUMERIC + BITS, INTS, INTS, (pa.int64(), pa.int64())) > 0.8


def test_floats():
    assert compiled_share(NUMERIC, REALS, REALS, (pa.float64(), pa.float64())) > 0.7


def test_integers_with_floats():
    assert compiled_share(NUMERIC, INTS, REALS, (pa.int64(), pa.float64())) > 0.5
    assert compiled_share(NUMERIC, REALS, INTS, (pa.float64(), pa.int64())) > 0.5


def test_truth_values_with_numbers():
    both = [True, False]
    assert compiled_share(NUMERIC + BITS, both, both, (pa.bool_(), pa.bool_())) > 0.5
    assert compiled_share(NUMERIC + BITS[:3], both, INTS, (pa.bool_(), pa.int64())) > 0.5
    assert compiled_share(NUMERIC, INTS, both, (pa.int64(), pa.bool_())) > 0.5


def test_texts():
    assert compiled_share(TEXTUAL, STRINGS, STRINGS, (pa.string(), pa.string())) > 0.7


@pytest.mark.parametrize(
    ("source", "is_compiled"),
    [
        ("r[0] is None", True),
        ("r[0] is not None", True),
        ("r[0] is not None and r[0] > 1", True),
        ("r[0] is None or r[0] > 1", True),
        ("-1 if r[0] is None else 10 // (r[0] - 5)", True),
        ("(r[0], r[1] is None)", True),
        ("10 // r[1] if r[1] != 0 else r[1]", True),
        ("r[1] == 0 or 10 // r[1] > 2", True),
        ("0 if r[2] == 'x' else int(r[2])", True),
        ("r[0] == None", False),
        ("r[0] or 7", True),
        ("r[1] > 9 or 10 // r[1] > 1", False),
    ],
)
def test_none_and_errors_count_only_on_the_side_that_is_taken(source, is_compiled):
    function = function_of(f"f = lambda r: {source}\n")
    columns = {"a": pa.array([None, 1, 3], pa.int64()), "b": [0, 4, -7], "c": ["x", "12", "-3"]}
    batch = ColumnBatch(pa.RecordBatch.from_pydict(columns))
    for is_filter in (False, True):
        result = ColumnFunction(function, is_filter=is_filter).apply(batch)
        assert (result is not None) is (is_compiled and not (is_filter and source.startswith("(")))
        if result is not None:
            rows = batch.to_rows().rows
            expected = [row for row in rows if function(row)] if is_filter else [function(row) for row in rows]
            assert exactly(result.to_rows().rows) == exactly(expected)


def test_low_bits_of_what_leaves_64_bits_are_exact_and_may_leave_them_again():
    """The bounds of what a mask leaves are its own: with the largest one a sum of it must not wrap unseen."""
    column = ColumnBatch(pa.record_batch([pa.array([2**63 - 1, -1, 5])], names=["a"]), scalar=True)
    masked = ColumnFunction(
        function_of("f = lambda r: r * 11400714819323198485 & 9223372036854775807\n"), is_filter=False
    )
    assert masked.apply(column).to_rows().rows == [r * 11400714819323198485 & (2**63 - 1) for r in (2**63 - 1, -1, 5)]
    summed = ColumnFunction(function_of("f = lambda r: (r & 9223372036854775807) + 1\n"), is_filter=False)
    assert summed.apply(column) is None


# --- Rows -------------------------------------------------------------------------------------------------------------

PAIR = Types.ROW_NAMED(["x", "y"], [Types.LONG(), Types.STRING()])


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize(
    ("source", "compiles_alone", "compiles_declared"),
    [
        ("r", True, True),
        ("(r[1], r[0])", True, True),
        ("(r[1], r[0], 5)", True, True),
        ("r[0]", True, True),
        ("r[2]", True, False),
        ("Row(r[0] + 1, r[1])", False, True),
        ("Row(r[0], r[1], 5)", False, False),
        ("Row(a=r[0], b=r[1] + '!')", True, True),
        ("Row(b=r[0], a=r[1]) if r[0] > 1 else Row(b=7, a='x')", True, True),
        ("Row(a=r[0], b=r[1]) if r[0] > 1 else Row(b=7, a='x')", False, False),
        ("Row(r[0], r[1]) if r[0] > 1 else (7, 'x')", False, False),
        ("Row(r[0], a=r[1])", False, False),
        ("Row()", False, False),
    ],
)
def test_rows_are_those_of_the_interpreter(source, compiles_alone, compiles_declared, named, declared):
    function = function_of(f"f = lambda r: {source}\n")
    columns = {"a": [1, 2, 3], "b": ["u", "v", "w"], "c": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64()))}
    if source == "r":
        del columns["c"]
    batch = ColumnBatch(pa.RecordBatch.from_pydict(columns), named=named)
    if declared:
        function = RowMap(function, PAIR)
        function.open(None)
    compiled = ColumnFunction(function, is_filter=False)
    result = compiled.apply(batch)
    assert (result is not None) is (compiles_declared if declared else compiles_alone), compiled.reason
    if result is not None:
        call = callable_of(function, "map")
        assert exactly(result.to_rows().rows) == exactly([call(row) for row in batch.to_rows().rows])


# --- objects and helpers ----------------------------------------------------------------------------------------------


class Scaled(MapFunction):
    offset = 1

    def __init__(self, factor):
        self.factor = factor

    def map(self, value):
        return value * self.factor + self.offset


class Asking(Scaled):
    def open(self, runtime_context):
        self.context = runtime_context


class Computed(Scaled):
    @property
    def offset(self):
        return 5


class Counting(Scaled):
    def map(self, value):
        self.factor += 1
        return value * self.factor


class Replaced(Scaled):
    def __init__(self, factor):
        super().__init__(factor)
        self.map = lambda value: value * factor


class Hooked(Scaled):
    def __getattribute__(self, name):
        return 7 if name == "offset" else super().__getattribute__(name)


SCALARS = ColumnBatch(pa.record_batch([pa.array([1, 2, 3])], names=["a"]), scalar=True)


@pytest.mark.parametrize("kind", [Asking, Computed, Counting, Replaced, Hooked])
def test_objects_whose_results_may_change_unseen_are_left_to_the_interpreter(kind):
    assert ColumnFunction(kind(2), is_filter=False).apply(SCALARS) is None


def test_attributes_count_as_they_are_when_the_batch_comes():
    function = Scaled(2)
    compiled = ColumnFunction(function, is_filter=False)
    assert compiled.apply(SCALARS).to_rows().rows == [3, 5, 7]
    function.factor = 10
    assert compiled.apply(SCALARS).to_rows().rows == [11, 21, 31]
    function.offset = 0.5  # hides the one of the class
    assert compiled.apply(SCALARS).to_rows().rows == [10.5, 20.5, 30.5]
    function.factor = None
    assert compiled.apply(SCALARS) is None


def test_a_helper_that_is_replaced_or_whose_names_change_is_translated_again():
    names = {"step": 1}
    source = "def g(x):\n    return x + step\ndef f(r):\n    return g(r) * 2\n"
    function = function_of(source, **names)
    compiled = ColumnFunction(function, is_filter=False)
    assert compiled.apply(SCALARS).to_rows().rows == [4, 6, 8]
    function.__globals__["step"] = 2
    assert compiled.apply(SCALARS).to_rows().rows == [6, 8, 10]
    function.__globals__["g"] = function_of("f = lambda x: -x\n")
    assert compiled.apply(SCALARS).to_rows().rows == [-2, -4, -6]


@pytest.mark.parametrize(
    "source",
    [
        "def f(r):\n    return f(r - 1) if r > 0 else r\n",
        "def g(x):\n    yield x\nf = lambda r: g(r)\n",
        "def g(x):\n    return x, x\nf = lambda r: g(r) < 3\n",
        "def g(x):\n    pass\nf = lambda r: g(r)\n",
        "f = lambda r: f'{r:{r}}'\n",
        "f = lambda r: round(r / 3, None)\n",
    ],
)
def test_what_is_not_proven_of_helpers_and_texts_is_left_to_the_interpreter(source):
    assert ColumnFunction(function_of(source), is_filter=False).apply(SCALARS) is None


def test_a_field_of_any_type_may_stand_beside_what_is_computed():
    function = function_of("def f(r):\n    y = r[0] + 1\n    return r[1], y\n")
    batch = ColumnBatch(pa.RecordBatch.from_pydict({"a": [1, 2], "b": [[1], None]}))
    result = ColumnFunction(function, is_filter=False).apply(batch)
    assert result is None or result.to_rows().rows == [([1], 2), (None, 3)]


def test_what_is_compared_with_none_is_computed_all_the_same():
    batch = ColumnBatch(pa.RecordBatch.from_pydict({"a": [1, None], "b": [1, 0]}))
    compiled = ColumnFunction(function_of("f = lambda r: r[0] == 2 % r[1]\n"), is_filter=True)
    assert compiled.apply(batch) is None
    assert compiled.apply(batch.slice(0, 1)).to_rows().rows == []
    equal = ColumnFunction(function_of("f = lambda r: (r[0] == r[1], r[0] != 1)\n"), is_filter=False)
    assert equal.apply(batch).to_rows().rows == [(True, False), (False, True)]
