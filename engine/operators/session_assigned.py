"""What a batch does to sessions on columns, as arrays: where each row belongs, which become one, and which fire."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, final

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from engine.operators.session_state import SessionState

Array = np.ndarray[Any, Any]

__all__ = ["Assigned", "Edges", "OpenSession", "Sink"]

#: Column of merges, behind source and target.
_AT_LEVEL: Final = 2
#: Columns of fires, before start and end.
_ROW, _OF_LEVEL = range(2)


@final
@dataclass(frozen=True, slots=True)
class OpenSession:
    """``fields``: of the key; ``accumulator``: the row operator's; ``has_fired``: and is kept for late records."""

    fields: tuple[Any, ...]
    start: int
    end: int
    accumulator: Any
    has_fired: bool


@final
@dataclass(frozen=True, slots=True)
class Edges:
    """Sessions with what they begin and end at, maybe not for long."""

    sessions: Array
    starts: Array
    ends: Array

    def part(self, begin: int, end: int) -> Edges:
        return Edges(self.sessions[begin:end], self.starts[begin:end], self.ends[begin:end])

    def take(self, places: Array) -> Edges:
        return Edges(self.sessions[places], self.starts[places], self.ends[places])

    def lists(self) -> tuple[list[int], list[int], list[int]]:
        return self.sessions.tolist(), self.starts.tolist(), self.ends.tolist()


@final
@dataclass(slots=True)
class Assigned:
    """Which session each row of a batch is in, and which become one or fire meanwhile: as ``assign_sessions`` tells
    it."""

    #: by row, -1 = too late
    sessions: Array
    levels: Array
    merges: Array
    fires: Array
    num_levels: int
    #: what has been done: two steps a level, its merges and then its rows
    step: int = field(default=0)

    def merges_of(self, level: int) -> Array:
        return self.merges[self.merges[:, _AT_LEVEL] == level]

    def rows_of(self, level: int) -> Array:
        return np.flatnonzero(self.levels == level).astype(np.int32)

    def fires_of(self, level: int) -> Edges:
        own = self.fires[self.fires[:, _OF_LEVEL] == level]
        return Edges(self.sessions[own[:, _ROW]], own[:, 2], own[:, 3])

    def steps_left(self) -> Iterator[tuple[Array, Array, Edges]]:
        """Yield (rows to be taken up, merges to be done before, sessions that fire afterwards), level by level, from
        ``step`` on."""
        for level in range(self.step // 2, self.num_levels):
            merges = self.merges_of(level)
            yield self.rows_of(level), merges[:0] if 2 * level < self.step else merges, self.fires_of(level)


class Sink(Protocol):
    """Where what comes out goes."""

    def fire(self, state: SessionState, due: Edges) -> None:
        """These sessions give their results."""
        ...

    def put_aside(self, state: SessionState, columns: pa.RecordBatch, times_ms: Array) -> None:
        """These records came too late."""
        ...
