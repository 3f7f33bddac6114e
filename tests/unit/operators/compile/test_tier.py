"""What ``explain`` says of the tier of functions."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from engine.common import Types
from engine.datastream import StreamExecutionEnvironment
from engine.datastream.functions import MapFunction
from engine.operators.compile.tier import tier_of

PAIR = Types.TUPLE([Types.STRING(), Types.INT()])
NAMED = Types.ROW_NAMED(["word", "n"], [Types.STRING(), Types.LONG()])


class Doubling(MapFunction):
    def map(self, value):
        return value * 2


@pytest.mark.parametrize(
    ("function", "input_type", "tier"),
    [
        (lambda r: r[1] * 2, PAIR, "compiled on columns, else interpreted"),
        (lambda r: r.n + len(r["word"]), NAMED, "compiled on columns, else interpreted"),
        (lambda n: n % 7 == 0, Types.LONG(), "compiled on columns, else interpreted"),
        (lambda r: r[1] * 2, None, "interpreted (its input has no type)"),
        (lambda r: r[1] % 2.5, PAIR, "interpreted (% of floats)"),
        (lambda r: print(r[1]), PAIR, "interpreted (it calls print)"),
        (lambda r: r.n, PAIR, "interpreted (its records have no field .n)"),
        (lambda r: r[0] + r[1], PAIR, "interpreted (str + int)"),
        (lambda r: r[5], PAIR, "interpreted (its records have no field [5])"),
        (str.upper, Types.STRING(), "interpreted (a method_descriptor, not a plain function)"),
        (Doubling(), Types.INT(), "interpreted (Doubling is an object, not a plain function)"),
    ],
)
def test_the_tier_and_its_reason(function, input_type, tier):
    assert tier_of(function, input_type, is_filter=False) == tier


def test_the_execution_plan_shows_the_tier_of_each_operator():
    env = StreamExecutionEnvironment.get_execution_environment()
    numbers = env.from_collection([1, 2], Types.INT())
    numbers.map(lambda n: n + 1, Types.INT()).filter(lambda n: n in UNKNOWN).print()  # noqa: F821
    tiers = {node["type"]: node.get("tier") for node in json.loads(env.get_execution_plan())["nodes"]}
    assert tiers["Map"] == "compiled on columns, else interpreted"
    assert tiers["Filter"] == "interpreted (it asks for membership in something else than constants)"


def test_explaining_imports_neither_numpy_nor_pyarrow_nor_numba():
    program = (
        "import sys; from engine.common import Types; from engine.operators.compile.tier import tier_of\n"
        "tier_of(len, Types.INT(), is_filter=True); import engine.operators.compile.translate\n"
        "assert not {'numpy', 'pyarrow', 'numba'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
