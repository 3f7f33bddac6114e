"""Results for a waiting client: the sink sends pickled rows to its coordinator, the client fetches them from there.

The coordinator never unpickles rows: they may be of user classes. A slow client slows the sink down, not the memory.
When the job is restarted, the rows begin anew under another version: the client decides what that means for it.
Source: Flink's CollectSinkFunction and CollectSinkOperatorCoordinator (FLIP-74's version and offset).
"""

from __future__ import annotations

import pickle
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, final

from engine.core import user_code
from engine.core.errors import ProgramError
from engine.core.records import Batch, rows_of
from engine.operators.base import (
    CoordinatorContext,
    CoordinatorSpec,
    JobOutcome,
    Operator,
    OperatorCoordinator,
    OperatorSpec,
)
from engine.operators.failure import user_error

__all__ = ["CollectSinkSpec", "FetchResults", "FetchedResults"]

#: Batches that a sink sends ahead of the client.
_BATCHES_AHEAD_MAX: Final = 64
#: Bytes that a sink sends ahead of the client.
_BYTES_AHEAD_MAX: Final = 16 << 20
#: One answer to a client carries at least one batch, and no further one beyond this size.
_ANSWER_BYTES_MAX: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class FetchResults:
    """Client → coordinator: what follows the first ``offset`` batches? ``version``: "" at first, then as answered.

    An answer of another version has no rows: the job was restarted, and batches are counted from 0 again.
    """

    version: str
    offset: int


@dataclass(frozen=True, slots=True)
class FetchedResults:
    """``blobs``: pickled lists of rows, the first is number ``offset``. ``finished``: nothing follows these.

    A fetch with offset n is also the receipt of all batches before n: they are forgotten.
    """

    version: str
    offset: int
    blobs: list[bytes] = field(default_factory=list)
    finished: bool = False


@dataclass(frozen=True, slots=True)
class RowsCollected:
    """Sink → coordinator."""

    blob: bytes


@dataclass(frozen=True, slots=True)
class RowsFetched:
    """Coordinator → sink: the client has these batches."""

    num_batches: int


@final
@dataclass(frozen=True)
class CollectSinkSpec(OperatorSpec):
    def build(self) -> Operator:
        return _CollectSinkOperator()

    def coordinator(self) -> CoordinatorSpec:
        return _CollectCoordinatorSpec()


@final
class _CollectSinkOperator(Operator):
    def __init__(self) -> None:
        self._ahead: deque[int] = deque()  # sizes of the batches that the client does not have yet, oldest first
        self._ahead_bytes = 0

    def process_batch(self, input_index: int, batch: Batch) -> None:
        rows = rows_of(batch).rows
        try:
            blob = pickle.dumps(rows, pickle.HIGHEST_PROTOCOL)
        except Exception:
            # Objects of classes that only the user's program has; it costs too much to be done for every batch.
            blob = self._dumps_by_value(rows)
        self._ahead.append(len(blob))
        self._ahead_bytes += len(blob)
        self.ctx.send_event(RowsCollected(blob))

    def _dumps_by_value(self, rows: list[Any]) -> bytes:
        try:
            return user_code.dumps(rows, "A record")
        except ProgramError:
            for row in rows:  # name the one that is to blame
                try:
                    user_code.dumps(row, "A record")
                except ProgramError as error:
                    reason = TypeError(
                        f"the record cannot be pickled and sent to the client: {error.__cause__}. Collect plain values "
                        "instead of open files, locks or generators."
                    )
                    raise user_error(reason, operator_name=self.ctx.operator_name, record=row) from error
            raise

    def is_ready(self) -> bool:
        return len(self._ahead) < _BATCHES_AHEAD_MAX and self._ahead_bytes < _BYTES_AHEAD_MAX

    def handle_event(self, event: object) -> None:
        assert isinstance(event, RowsFetched), event
        for _ in range(event.num_batches):
            self._ahead_bytes -= self._ahead.popleft()
        self.ctx.wake()


@final
@dataclass(frozen=True)
class _CollectCoordinatorSpec(CoordinatorSpec):
    def create(self) -> OperatorCoordinator:
        return _CollectCoordinator()


@final
class _CollectCoordinator(OperatorCoordinator):
    def __init__(self) -> None:
        self._waiting: deque[tuple[int, bytes]] = deque()  # (subtask, blob), oldest first
        self._offset = 0  # number of the first waiting batch
        self._finished: set[int] = set()
        self._ended = False
        self._version = ""

    def start(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        self._version = f"{ctx.job_id}-{ctx.attempt_number}"

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        assert isinstance(event, RowsCollected), event
        self._waiting.append((subtask_index, event.blob))

    def handle_request(self, request: object) -> object:
        assert isinstance(request, FetchResults), request
        if request.version not in ("", self._version):
            return FetchedResults(self._version, self._offset)
        self._forget_before(request.offset)
        blobs: list[bytes] = []
        size = 0
        for _, blob in self._waiting:
            if blobs and size + len(blob) > _ANSWER_BYTES_MAX:
                break
            blobs.append(blob)
            size += len(blob)
        all_finished = self._ended or len(self._finished) == self.ctx.parallelism
        finished = all_finished and len(blobs) == len(self._waiting)
        return FetchedResults(self._version, self._offset, blobs, finished)

    def _forget_before(self, offset: int) -> None:
        received: dict[int, int] = {}
        while self._offset < offset and self._waiting:
            subtask, _ = self._waiting.popleft()
            self._offset += 1
            received[subtask] = received.get(subtask, 0) + 1
        for subtask, num_batches in received.items():
            if subtask not in self._finished and not self._ended:
                self.ctx.send_event(subtask, RowsFetched(num_batches))

    def subtask_finished(self, subtask_index: int) -> None:
        self._finished.add(subtask_index)

    def job_ended(self, outcome: JobOutcome) -> None:
        self._ended = True
