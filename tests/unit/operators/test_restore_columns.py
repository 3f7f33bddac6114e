"""Operators on columns that may have to go on with rows: any script, with crashes or without, gives what rows give.

A script mixes batches of columns, of rows and of sums beyond 64 bits with barriers; behind a barrier the job may crash
and come back at another parallelism. Where nothing crashes, increments build on each other.
"""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.operators.aggregate import KeyedAggregateSpec
from engine.operators.column_aggregate import ColumnAggregateSpec
from engine.operators.keys import ComposedKey, FieldKey
from tests.unit.operators.restore_cases import MARK, Case, Rows
from tests.unit.operators.test_restore import FULL, INCREMENTAL, Run, straight

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64())])
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
FEW = st.integers(-3, 3)
VALUES = st.one_of(FEW, FEW, FEW, st.sampled_from([2**63 - 1, -(2**63)]))
KEYS = st.one_of(st.none(), st.integers(0, 5))
#: a barrier; None = all goes well, else the parallelism after a crash
BARRIER = st.one_of(st.none(), st.integers(1, 3))


@st.composite
def batches(draw) -> Rows:
    rows = draw(st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=6))
    return Rows(rows, schema=draw(st.sampled_from([SCHEMA, SCHEMA, SCHEMA, None])))


SCRIPTS = st.lists(st.one_of(batches(), batches(), BARRIER), max_size=14)


def disturbed(case: Case, config: dict[str, str]):
    """Play the script as its barriers say; what follows one before a crash is lost and comes again."""
    run = Run(case, config, None)
    run.start(1)
    for index, step in enumerate(case.script):
        if step is not None and not isinstance(step, int):
            run.play([step])
            continue
        run.play([MARK])
        if step is not None:
            watermark_ms = run.watermark_ms
            run.play(doomed for doomed in case.script[index + 1 : index + 2] if isinstance(doomed, Rows))
            run.watermark_ms = watermark_ms
            run.start(step)
    return run.finish()


def undisturbed(case: Case):
    return straight(Case(case.specs, [s for s in case.script if s is not None and not isinstance(s, int)], case.keys))


@pytest.mark.parametrize("config", [FULL, INCREMENTAL], ids=["full", "incremental"])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("kind", ["sum", "min", "max"])
@pytest.mark.parametrize("key", [FieldKey(0), ComposedKey((0,))])
def test_aggregates_after_any_script_are_those_of_rows(key, kind, final, config):
    @settings(max_examples=30, deadline=None, phases=PHASES)
    @given(SCRIPTS)
    def check(script):
        keys = (key,)
        ours = disturbed(Case((ColumnAggregateSpec(key, kind, 1, final),), script, keys), config)
        assert ours == undisturbed(Case((KeyedAggregateSpec(key, kind, 1, final),), script, keys))

    check()
