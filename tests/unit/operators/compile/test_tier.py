"""What ``explain`` says of the tier of functions."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from engine.common import Row, Types, WatermarkStrategy
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.connectors import DataGeneratorSource, DiscardingSink
from engine.datastream.functions import MapFunction
from engine.datastream.row_types import with_row_output
from engine.operators.compile.tier import tier_of

PAIR = Types.TUPLE([Types.STRING(), Types.INT()])
NAMED = Types.ROW_NAMED(["word", "n"], [Types.STRING(), Types.LONG()])


class Doubling(MapFunction):
    def map(self, value):
        return value * 2


class Opened(Doubling):
    def open(self, runtime_context):
        self.offset = 3


class Asking(Doubling):
    def open(self, runtime_context):
        self.context = runtime_context


@pytest.mark.parametrize(
    ("function", "input_type", "tier"),
    [
        (lambda r: r[1] * 2, PAIR, "compiled on columns, else interpreted"),
        (lambda r: r.n + len(r["word"]), NAMED, "compiled on columns, else interpreted"),
        (lambda n: n % 7 == 0, Types.LONG(), "compiled on columns, else interpreted"),
        (lambda r: r[1] * 2, None, "interpreted (its input has no type)"),
        (lambda r: r[1] & 2.5, PAIR, "interpreted (& of floats)"),
        (lambda r: print(r[1]), PAIR, "interpreted (it calls print)"),
        (lambda r: r.n, PAIR, "interpreted (its records have no field .n)"),
        (lambda r: r[0] + r[1], PAIR, "interpreted (str + int)"),
        (lambda r: r[5], PAIR, "interpreted (its records have no field [5])"),
        (str.upper, Types.STRING(), "interpreted (a method_descriptor, not a plain function)"),
        (Doubling(), Types.INT(), "compiled on columns, else interpreted"),
        (Opened(), Types.INT(), "compiled on columns, else interpreted"),
        (Asking(), Types.INT(), "interpreted (Asking has an open() that may ask for keyed state)"),
        (with_row_output(lambda r: (r[0], 1), "map", NAMED), PAIR, "compiled on columns, else interpreted"),
        (
            with_row_output(print, "map", NAMED),
            PAIR,
            "interpreted (a builtin_function_or_method, not a plain function)",
        ),
    ],
)
def test_the_tier_and_its_reason(function, input_type, tier):
    assert tier_of(function, input_type, is_filter=False) == tier


COMPILED = "compiled on columns, else interpreted"
UNTYPED = "compiled on columns if their types allow it, else interpreted"
ROWS = "interpreted (its input is rows)"


def tiers(stream):
    """Return what the plan says of maps and filters, in order."""
    stream.sink_to(DiscardingSink())
    nodes = json.loads(stream.get_execution_environment().get_execution_plan())["nodes"]
    return [node["tier"] for node in nodes if node["type"] in ("Map", "Filter")]


def columns(type_info=None):
    env = StreamExecutionEnvironment.create_local_environment(1)
    source = DataGeneratorSource.of_columns(lambda indexes: (indexes, indexes + 1), 10, type_info)
    return env.from_source(source, WatermarkStrategy.no_watermarks(), "numbers")


def test_the_execution_plan_shows_the_tier_of_each_operator():
    numbers = columns(Types.TUPLE([Types.LONG(), Types.LONG()])).map(lambda r: r[0] + 1)
    asked = numbers.filter(lambda n: n in UNKNOWN)  # noqa: F821
    seen = ["interpreted (UNKNOWN is not defined)", ROWS]
    assert tiers(asked.map(lambda n: n)) == [COMPILED, *seen]


def test_functions_on_rows_are_said_to_be_interpreted(tmp_path):
    env = StreamExecutionEnvironment.create_local_environment(1)
    (tmp_path / "lines").write_text("a\nb\n")
    assert tiers(env.read_text_file(str(tmp_path / "lines")).map(lambda line: len(line))) == [ROWS]
    env = StreamExecutionEnvironment.create_local_environment(1)
    assert tiers(env.from_collection([1, 2], Types.INT()).filter(lambda n: n > 1)) == [ROWS]


def test_types_that_are_not_declared_are_those_of_annotations():
    def first(record: tuple[int, int]) -> int:
        return record[0]

    def wrong(record: tuple[str, int]):
        return record[0] + record[1]

    assert tiers(columns().map(first).filter(lambda n: n > 3)) == [COMPILED, COMPILED]
    assert tiers(columns().map(wrong)) == ["interpreted (str + int)"]
    assert tiers(columns().map(lambda r: r[0]).filter(lambda n: n > 3)) == [UNTYPED, UNTYPED]


def test_types_of_32_bits_are_computed_with_too():
    stream = columns(Types.TUPLE([Types.INT(), Types.INT()])).filter(lambda r: r[0] > 3)
    assert tiers(stream.map(lambda r: r[0] + r[1]).filter(lambda n: n > 3)) == [COMPILED, COMPILED, UNTYPED]


def test_a_function_whose_results_are_made_rows_gives_columns_with_names():
    typed = Types.TUPLE([Types.LONG(), Types.LONG()])
    stream = columns(typed).map(lambda r: (r[0] % 2, r[1]), Types.ROW_NAMED(["k", "v"], [Types.LONG(), Types.LONG()]))
    assert tiers(stream.map(lambda r: Row(k=r.k, w=r.v * 2)).filter(lambda r: r.w > 3)) == [COMPILED] * 3
    assert max(row.v for row in stream.key_by("k").sum("v").execute_and_collect() if row.k == 1) == 30


def test_explaining_imports_neither_numpy_nor_pyarrow_nor_numba():
    program = (
        "import sys; from engine.common import Types; from engine.operators.compile.tier import tier_of\n"
        "tier_of(len, Types.INT(), is_filter=True); import engine.operators.compile.translate\n"
        "assert not {'numpy', 'pyarrow', 'numba'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
