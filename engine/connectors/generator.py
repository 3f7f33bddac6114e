"""Generated data: a function of an index, at full speed or at a rate; exact across restarts, at any parallelism.

Which indexes a subtask has is said by its lanes: (next index, step). When the parallelism changes every subtask sees
the lanes of all (union state), and all compute the same deal. Not here: what the function gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

from engine.core.records import RowBatch
from engine.operators.base import Operator, OperatorContext, OperatorSpec, Output, PollResult, SourceOperator
from engine.operators.bound_function import BoundFunction
from engine.state.descriptors import ListStateDescriptor

__all__ = ["DataGeneratorSpec", "deal_lanes"]

#: A generator that fell behind its rate (backpressure) makes up for at most this much.
_CATCH_UP_MAX_S: Final = 1.0

#: The indexes next, next + step, next + 2 step …
Lane: TypeAlias = tuple[int, int]


def deal_lanes(lanes: Sequence[Lane], subtask_index: int, parallelism: int) -> list[Lane]:
    """Return the lanes of one of ``parallelism`` subtasks. Those of all subtasks together have the same indexes as
    ``lanes``, each once; lanes are cut when there are too few of them."""
    pieces = -(-parallelism // len(lanes)) if lanes else 1
    cut = [(start + piece * step, step * pieces) for start, step in sorted(lanes) for piece in range(pieces)]
    return cut[subtask_index::parallelism]


@final
@dataclass(frozen=True)
class DataGeneratorSpec(OperatorSpec):
    """``function(index)`` for index 0, 1, 2 …; subtask i of p has i, i + p, i + 2p …

    ``count``: how many in all, None = without end. ``rate_per_second``: of all subtasks together, None = full speed.
    """

    function: Any
    count: int | None = None
    rate_per_second: float | None = None
    num_inputs = 0

    def __post_init__(self) -> None:
        if self.rate_per_second is not None and self.rate_per_second <= 0:
            raise ValueError(f"rate_per_second is {self.rate_per_second}; expected a number above 0, or None.")

    def build(self) -> Operator:
        return _DataGeneratorOperator(self)

    def describe(self) -> str:
        rate = "" if self.rate_per_second is None else f", {self.rate_per_second:g}/s"
        return f"{'unbounded' if self.count is None else self.count}{rate}"


@final
class _DataGeneratorOperator(SourceOperator):
    def __init__(self, spec: DataGeneratorSpec) -> None:
        self._spec = spec
        self._function = BoundFunction(spec.function, "map")
        self._timer_ms: int | None = None

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._function.open(ctx)
        runtime = ctx.runtime_context
        parallelism = runtime.get_number_of_parallel_subtasks()
        subtask_index = runtime.get_index_of_this_subtask()
        self._position = ctx.state.operator_states().get_union_list_state(ListStateDescriptor("GeneratorLanes"))
        lanes: list[Lane] = self._position.get() if ctx.state.is_restored else [(0, 1)]
        self._lanes = deal_lanes(lanes, subtask_index, parallelism)
        rate = self._spec.rate_per_second
        self._rate_per_ms = None if rate is None else rate / parallelism / 1000
        #: records owed, negative = ahead; grows with time
        self._owed = 1.0
        self._last_ms = ctx.clock.monotonic_ms()

    def poll(self, rows_max: int) -> PollResult:
        num_rows = rows_max
        if self._rate_per_ms is not None:
            now_ms = self.ctx.clock.monotonic_ms()
            owed_max = max(1.0, self._rate_per_ms * 1000 * _CATCH_UP_MAX_S)
            self._owed = min(owed_max, self._owed + (now_ms - self._last_ms) * self._rate_per_ms)
            self._last_ms = now_ms
            num_rows = min(rows_max, int(self._owed))
            if num_rows <= 0:
                wait_ms = max(1, round((1 - self._owed) / self._rate_per_ms))
                self._timer_ms = self.ctx.clock.now_ms() + wait_ms
                return PollResult.IDLE
            self._owed -= num_rows
        indexes = self._take(num_rows)
        if not indexes:
            return PollResult.END
        rows: list[Any] = []
        call = self._function.call
        for index in indexes:
            try:
                rows.append(call(index))
            except BaseException as error:
                raise self._function.error(error, index) from error
        self.out.emit(RowBatch(rows))
        return PollResult.MORE

    def _take(self, num_rows: int) -> range:
        """Return the next indexes of the lane that is furthest behind."""
        if not self._lanes:
            return range(0)
        start, step = lane = min(self._lanes)
        end = start + num_rows * step
        if self._spec.count is not None and end >= self._spec.count:
            end = max(start, self._spec.count)
            self._lanes.remove(lane)
            indexes = range(start, end, step)
            return indexes if indexes else self._take(num_rows)
        self._lanes[self._lanes.index(lane)] = (end, step)
        return range(start, end, step)

    def snapshot_state(self, checkpoint_id: int) -> None:
        super().snapshot_state(checkpoint_id)
        self._position.update(self._lanes)

    def next_timer_ms(self) -> int | None:
        return self._timer_ms

    def on_timer(self, now_ms: int) -> None:
        self._timer_ms = None
        self.ctx.wake()

    def close(self) -> None:
        self._function.close()
