"""What a job computes: drawn from the seed, and what its results must be. Built by ``programs``."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.sim.functions import expected_windows
from tests.sim.sources import Numbers

__all__ = ["Program", "draw_program", "lasting"]


@dataclass(frozen=True)
class Program:
    shape: str = "chained"  #: chained | wide | union | connected | batch
    work: str = "count"  #: count | hold | tumbling | sliding | session
    source: str = "own"  #: own | engine
    sink: str = "ledger"  #: ledger | text | parts
    parallelism: int = 2
    num_splits: int = 6
    split_rows: int = 15
    num_keys: int = 5
    interval_ms: tuple[int, int] = (10, 80)
    buffer_timeout_ms: int = 10
    checkpoints: bool = False
    at_least_once: bool = False
    quiet_s: float = 0.0  #: an input without records is idle so long; 0 = there is none

    @property
    def num_rows(self) -> int:
        return sum(one.num_splits * one.split_rows for one in self.numbers())

    def numbers(self) -> list[Numbers]:
        """Return the inputs."""
        size = self.num_splits * self.split_rows
        starts = (0, size) if self.shape in ("union", "connected") else (0,)
        return [Numbers(start, self.num_splits, self.split_rows, self.num_keys, self.interval_ms) for start in starts]

    @property
    def about_s(self) -> float:
        """About how long it takes when nothing goes wrong."""
        polls = self.num_splits * self.split_rows / min(self.parallelism, self.num_splits) / 2.5
        return 0.3 + polls * sum(self.interval_ms) / 2000

    def slots_needed(self, parallelism: int) -> int:
        return parallelism + (self.shape in ("wide", "batch"))

    def expected_identities(self) -> set[Any]:
        """Return the ids, or the whole windows, that must be there in the end."""
        if self.work in ("count", "hold"):
            return set(range(self.num_rows))
        time_of_id = {row_id: one.time_of(row_id) for one in self.numbers() for row_id in _ids(one)}
        return set(expected_windows(self.work, time_of_id, self.num_keys))

    @property
    def has_windows(self) -> bool:
        return self.work not in ("count", "hold")


def _ids(numbers: Numbers) -> range:
    return range(numbers.first, numbers.first + numbers.num_splits * numbers.split_rows)


def draw_program(rng: random.Random, at_least_once: bool) -> Program:
    choice: Callable[..., Any] = rng.choice
    shape = choice(("chained", "chained", "wide", "union", "connected", "batch"))
    checkpoints = shape != "batch" and rng.random() < 0.75
    work = "count"
    if shape not in ("batch", "connected") and not at_least_once:
        work = choice(("count", "count", "hold", "tumbling", "sliding", "session"))
    # Watermarks of ours are exact, those of the engine's sources need the order of ids.
    source = choice(("own", "own", "engine")) if work in ("count", "hold") else "own"
    return Program(
        shape=shape,
        work=work,
        source=source,
        checkpoints=checkpoints,
        sink=choice(("ledger", "ledger", "parts")) if checkpoints else choice(("ledger", "ledger", "text", "parts")),
        parallelism=choice((1, 2, 2, 3)),
        num_splits=choice((3, 6)),
        split_rows=choice((5, 15)),
        interval_ms=choice(((1, 5), (10, 80), (50, 300)) if not checkpoints else ((10, 80), (10, 80), (30, 200))),
        buffer_timeout_ms=choice((0, 10, 100, -1)),
        at_least_once=checkpoints and at_least_once,
        quiet_s=choice((0.0, 0.5, 4.0)) if shape == "union" else 0.0,
    )


def lasting(program: Program, at_least_once: bool) -> Program:
    """Return the program so that it takes checkpoints and some seconds."""
    return replace(
        program,
        shape="chained" if program.shape == "batch" else program.shape,
        sink="parts" if program.sink == "text" else program.sink,
        checkpoints=True,
        at_least_once=at_least_once,
        num_splits=6,
        split_rows=15,
        interval_ms=(50, 300),
    )
