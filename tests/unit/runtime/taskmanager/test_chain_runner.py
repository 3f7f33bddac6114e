"""Operators of a chain: links, side outputs, order of life, names on errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from engine.core.errors import InputError, UserCodeError
from engine.core.ids import OperatorID
from engine.core.records import Batch, RowBatch, rows_of
from engine.graph.job_graph import ChainedOperator, ChainSpec, Exit
from engine.graph.transformation import Partitioning, ShipStrategy
from engine.operators.base import Operator, OperatorSpec
from engine.runtime.taskmanager.chain_runner import OperatorChain

FORWARD = Partitioning(ShipStrategy.FORWARD)


class Box:
    """An exit that remembers."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def emit(self, batch: Batch) -> None:
        self.seen.extend(rows_of(batch).rows)

    def emit_watermark(self, watermark_ms: int) -> None:
        self.seen.append(("watermark", watermark_ms))

    def emit_idle(self, idle: bool) -> None:
        self.seen.append(("idle", idle))

    def emit_superstep_end(self, superstep: int) -> None:
        self.seen.append(("superstep", superstep))


@dataclass(frozen=True)
class Step(OperatorSpec):
    name: str
    story: list[str]
    function: Callable[[Any], Any] = lambda row: row
    failing: str = ""

    def build(self) -> Operator:
        return _Step(self)


class _Step(Operator):
    def __init__(self, spec: Step) -> None:
        self.spec = spec

    def note(self, what: str) -> None:
        self.spec.story.append(f"{self.spec.name}.{what}")
        if what == self.spec.failing:
            raise InputError(f"{what} failed")

    def open(self, ctx: Any, out: Any) -> None:
        super().open(ctx, out)
        self.note("open")

    def process_batch(self, input_index: int, batch: Batch) -> None:
        rows = [self.spec.function(row) for row in rows_of(batch).rows]
        self.out.emit(RowBatch([row for row in rows if row is not None]))
        self.out.emit_side("odd", RowBatch([row for row in rows if isinstance(row, int) and row % 2]))

    def end_input(self, input_index: int) -> None:
        self.note(f"end_input{input_index}")

    def finish(self) -> None:
        self.note("finish")
        self.out.emit(RowBatch([f"{self.spec.name} last"]))

    def close(self) -> None:
        self.note("close")


def chained(step: Step, *following: tuple[int, str | None, int]) -> ChainedOperator:
    return ChainedOperator(OperatorID.from_text(step.name), step.name, step, following)


def opened(chain: OperatorChain) -> OperatorChain:
    chain.open(lambda chained: None)  # type: ignore[arg-type, return-value]
    return chain


def keep_ints(row: Any) -> Any:
    return row * 10 if isinstance(row, int) else row


def test_a_batch_goes_through_a_tree_with_side_outputs():
    story: list[str] = []
    box, side_box = Box(), Box()
    spec = ChainSpec(
        (
            chained(Step("a", story), (1, None, 0), (2, "odd", 0)),
            chained(Step("b", story, keep_ints)),
            chained(Step("c", story)),
        ),
        (Exit(1, None, FORWARD), Exit(2, None, FORWARD)),
    )
    chain = opened(OperatorChain(spec, [box, side_box]))
    chain.process_batch(0, RowBatch([1, 2, 3]))
    assert (box.seen, side_box.seen) == ([10, 20, 30], [1, 3])
    assert chain.num_records_out() == 5


def test_life_is_open_from_the_tail_finish_from_the_head():
    story: list[str] = []
    box = Box()
    spec = ChainSpec((chained(Step("a", story), (1, None, 1)), chained(Step("b", story))), (Exit(1, None, FORWARD),))
    chain = opened(OperatorChain(spec, [box]))
    chain.end_input(0)
    chain.finish()
    assert chain.close() == []
    assert story == ["b.open", "a.open", "a.end_input0", "a.finish", "b.end_input1", "b.finish", "a.close", "b.close"]
    assert box.seen == ["a last", "b last"]
    assert chain.close() == []  # once


def test_watermarks_reach_side_outputs_and_supersteps_do_not():
    box, side_box = Box(), Box()
    spec = ChainSpec((chained(Step("a", [])),), (Exit(0, None, FORWARD), Exit(0, "odd", FORWARD)))
    chain = opened(OperatorChain(spec, [box, side_box]))
    chain.process_watermark(5)
    chain.end_superstep(1)
    assert box.seen == [("watermark", 5), ("superstep", 1)]
    assert side_box.seen == [("watermark", 5)]


def test_an_exception_names_the_operator_that_raised_it_not_those_before():
    def bad(row: int) -> int:
        return 1 // row

    spec = ChainSpec(
        (
            chained(Step("first", []), (1, None, 0)),
            chained(Step("second", [], bad), (2, None, 0)),
            chained(Step("third", [])),
        ),
        (),
    )
    chain = opened(OperatorChain(spec, []))
    with pytest.raises(UserCodeError, match=r"(?s)ZeroDivisionError.*in operator 'second'.*1 // row") as caught:
        chain.process_batch(0, RowBatch([0]))
    assert "first" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_errors_of_the_engine_pass_as_they_are():
    spec = ChainSpec((chained(Step("a", [], failing="finish")),), ())
    with pytest.raises(InputError, match="finish failed"):
        opened(OperatorChain(spec, [])).finish()


def test_close_goes_on_after_errors_and_closes_what_was_opened_half():
    story: list[str] = []
    spec = ChainSpec(
        (
            chained(Step("a", story), (1, None, 0)),
            chained(Step("b", story, failing="open"), (2, None, 0)),
            chained(Step("c", story, failing="close")),
        ),
        (),
    )
    chain = OperatorChain(spec, [])
    with pytest.raises(InputError, match="open failed"):
        opened(chain)
    errors = chain.close()
    assert story == ["c.open", "b.open", "b.close", "c.close"]
    assert [str(error) for error in errors] == ["close failed"]
