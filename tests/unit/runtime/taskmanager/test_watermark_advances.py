"""Watermarks whose results come in pieces, in a chain: what else happens to it comes behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.core.errors import UserCodeError
from engine.core.records import Batch, RowBatch, rows_of
from engine.graph.job_graph import ChainedOperator, ChainSpec, Exit
from engine.operators.base import Operator, OperatorSpec
from engine.runtime.taskmanager.chain_runner import OperatorChain
from tests.unit.runtime.taskmanager.test_chain_runner import FORWARD, Box, chained, opened

PIECES = 3


@dataclass(frozen=True)
class Fires(OperatorSpec):
    """Emits three records behind each watermark, one a piece; ``failing``: instead of that piece."""

    name: str
    story: list[str] = field(default_factory=list)
    failing: int = -1

    def build(self) -> Operator:
        return _Fires(self)


class _Fires(Operator):
    def __init__(self, spec: Fires) -> None:
        self._spec = spec

    def process_batch(self, input_index: int, batch: Batch) -> None:
        self.out.emit(batch)

    def process_watermark(self, watermark_ms: int) -> None:
        for _ in self.advance_watermark(watermark_ms):
            pass

    def advance_watermark(self, watermark_ms: int) -> Any:
        try:
            for number in range(PIECES):
                if number == self._spec.failing:
                    exec(compile("1 / 0", "users.py", "exec"))
                self.out.emit(RowBatch([f"{self._spec.name} {watermark_ms}.{number}"]))
                yield
            self.out.emit_watermark(watermark_ms)
        finally:
            self._spec.story.append(f"{self._spec.name} ends")

    def finish(self) -> None:
        self.out.emit(RowBatch([f"{self._spec.name} last"]))

    def close(self) -> None:
        self._spec.story.append(f"{self._spec.name} closes")


@dataclass(frozen=True)
class Marks(OperatorSpec):
    """Emits each record, and a watermark of it; then that it is idle."""

    def build(self) -> Operator:
        return _Marks()


class _Marks(Operator):
    def process_batch(self, input_index: int, batch: Batch) -> None:
        for row in rows_of(batch).rows:
            self.out.emit(RowBatch([row]))
            self.out.emit_watermark(row)
        self.out.emit_idle(True)


def chain_of(*specs: Any) -> tuple[OperatorChain, Box]:
    box = Box()
    operators: list[ChainedOperator] = [
        chained(spec, *([(index + 1, None, 0)] if index + 1 < len(specs) else [])) for index, spec in enumerate(specs)
    ]
    return opened(OperatorChain(ChainSpec(tuple(operators), (Exit(len(specs) - 1, None, FORWARD),)), [box])), box


def fired(name: str, watermark_ms: int) -> list[Any]:
    return [f"{name} {watermark_ms}.{number}" for number in range(PIECES)]


def test_a_watermark_goes_on_piece_by_piece_and_is_handed_on_behind_them():
    chain, box = chain_of(Fires("a"))
    chain.process_watermark(5)
    for number in range(1, PIECES + 1):
        assert (box.seen, bool(chain.advances.under_way)) == (fired("a", 5)[:number], True)
        chain.advances.step()
    assert (box.seen, chain.advances.under_way) == ([*fired("a", 5), ("watermark", 5)], {})


def test_a_watermark_that_makes_nothing_is_done_at_once():
    chain, box = chain_of(Fires("a"))
    chain.process_watermark(1)
    chain.advances.end_all()
    box.seen.clear()
    chain.process_idle(True)
    assert (box.seen, chain.advances.under_way) == ([("idle", True)], {})


@pytest.mark.parametrize("call", ["batch", "watermark", "idle", "end"])
def test_what_comes_to_the_head_comes_behind_what_is_under_way(call):
    chain, box = chain_of(Fires("a"))
    chain.process_watermark(5)
    match call:
        case "batch":
            chain.process_batch(0, RowBatch(["next"]))
            behind: list[Any] = ["next"]
        case "watermark":
            chain.process_watermark(6)
            chain.advances.end_all()
            behind = [*fired("a", 6), ("watermark", 6)]
        case "idle":
            chain.process_idle(True)
            behind = [("idle", True)]
        case _:
            chain.finish()
            behind = ["a last"]
    assert box.seen == [*fired("a", 5), ("watermark", 5), *behind]


def test_what_an_operator_emits_to_one_that_fires_comes_behind():
    chain, box = chain_of(_Named("marks", Marks()), Fires("a"))
    chain.process_batch(0, RowBatch([1, 2]))
    chain.advances.end_all()
    expected = [1, *fired("a", 1), ("watermark", 1), 2, *fired("a", 2), ("watermark", 2), ("idle", True)]
    assert box.seen == expected


def test_operators_that_fire_one_behind_the_other_do_it_in_their_order():
    chain, box = chain_of(Fires("a"), Fires("b"))
    chain.process_watermark(7)
    while chain.advances.under_way:
        chain.advances.step()
    assert box.seen == [*fired("a", 7), *fired("b", 7), ("watermark", 7)]


@pytest.mark.parametrize("at", [0, 1])
def test_an_error_of_a_piece_names_its_operator(at):
    chain, _ = chain_of(Fires("a"), Fires("b", failing=at))
    with pytest.raises(UserCodeError, match=r"(?s)ZeroDivisionError.*in operator 'b'"):
        chain.process_watermark(7)
        chain.advances.step()
        while chain.advances.under_way:
            chain.advances.step()


def test_what_is_under_way_is_given_up_before_its_operator_is_closed():
    story: list[str] = []
    chain, box = chain_of(Fires("a", story))
    chain.process_watermark(5)
    assert chain.close() == []
    assert (story, box.seen) == (["a ends", "a closes"], fired("a", 5)[:1])


@dataclass(frozen=True)
class _Named(OperatorSpec):
    name: str
    spec: OperatorSpec

    def build(self) -> Operator:
        return self.spec.build()
