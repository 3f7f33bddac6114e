"""Results for a waiting client: the sink sends pickled rows to its coordinator, the client fetches them from there.

The coordinator never unpickles rows: they may be of user classes. A slow client slows the sink down, not the memory.
When the job is restarted, the rows begin anew under another version: the client decides what that means for it.

With checkpoints (and one sink) each row is given once. Batches are numbered for good; the sink keeps those that the
client does not have yet as its state, and each answer says how many batches are committed: behind a completed
checkpoint, so that they cannot come differently any more. The client gives rows to its user when they are committed;
of what it holds beyond that it forgets what a new version begins before.
Source: Flink's CollectSinkFunction and CollectSinkOperatorCoordinator (FLIP-74's version and offset).
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Final, final

from engine.connectors.sink import takes_checkpoints
from engine.core import user_code
from engine.core.errors import ProgramError
from engine.core.late_dataclass import dataclass
from engine.core.plain_pickle import dump_plain, load_plain
from engine.core.records import Batch, rows_of
from engine.operators.base import (
    CoordinatorContext,
    CoordinatorSpec,
    JobOutcome,
    Operator,
    OperatorContext,
    OperatorCoordinator,
    OperatorSpec,
    Output,
)
from engine.operators.failure import user_error
from engine.state.descriptors import ListStateDescriptor

__all__ = ["CollectSinkSpec", "FetchResults", "FetchedResults"]

#: Batches that a sink sends ahead of the client.
_BATCHES_AHEAD_MAX: Final = 64
#: Bytes that a sink sends ahead of the client.
_BYTES_AHEAD_MAX: Final = 16 << 20
#: One answer to a client carries at least one batch, and no further one beyond this size.
_ANSWER_BYTES_MAX: Final = 8 << 20
#: Restarts that a client may sleep through.
_VERSIONS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class FetchResults:
    """Client → coordinator: what follows the first ``offset`` batches? ``version``: "" at first, then as answered.

    An answer of another version has no rows: the job was restarted. Batches are counted from 0 again; with checkpoints
    they keep their numbers, and ``committed`` says which of those that the asking version gave still hold.
    """

    version: str
    offset: int


@dataclass(frozen=True, slots=True)
class FetchedResults:
    """``blobs``: pickled lists of rows, the first is number ``offset``. ``finished``: nothing follows these.
    ``committed``: batches before this number are final; None = there are no checkpoints to wait for.

    A fetch with offset n is also the receipt of all batches before n: they are forgotten.
    """

    version: str
    offset: int
    blobs: list[bytes] = field(default_factory=list)
    finished: bool = False
    committed: int | None = None


@dataclass(frozen=True, slots=True)
class RowsCollected:
    """Sink → coordinator. ``number``: how many batches there were before this one, in all attempts."""

    blob: bytes
    number: int = 0


@dataclass(frozen=True, slots=True)
class CollectionEnded:
    """Sink → coordinator: there are so many batches."""

    num_batches: int


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
    """State: the number of the first batch that the client does not have, and those batches."""

    def __init__(self) -> None:
        self._ahead: deque[bytes] = deque()  # batches that the client does not have yet, oldest first
        self._ahead_bytes = 0
        self._num_batches = 0

    def open(self, ctx: OperatorContext, out: Output) -> None:
        super().open(ctx, out)
        self._kept = ctx.state.operator_states().get_list_state(ListStateDescriptor("CollectedBatches"))
        for first, blobs in self._kept.get():
            self._num_batches = first
            for blob in blobs:
                self._send(blob)

    def process_batch(self, input_index: int, batch: Batch) -> None:
        rows = rows_of(batch).rows
        try:
            blob = pickle.dumps(rows, pickle.HIGHEST_PROTOCOL)
        except Exception:
            # Objects of classes that only the user's program has; it costs too much to be done for every batch.
            blob = self._dumps_by_value(rows)
        self._send(blob)

    def _send(self, blob: bytes) -> None:
        self._ahead.append(blob)
        self._ahead_bytes += len(blob)
        self.ctx.send_event(RowsCollected(blob, self._num_batches))
        self._num_batches += 1

    def snapshot_state(self, checkpoint_id: int) -> None:
        self._kept.update([(self._num_batches - len(self._ahead), tuple(self._ahead))])

    def prepare_commit(self, checkpoint_id: int) -> object | None:
        return self._num_batches

    def finish(self) -> None:
        self.ctx.send_event(CollectionEnded(self._num_batches))

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
            self._ahead_bytes -= len(self._ahead.popleft())
        self.ctx.wake()


@final
@dataclass(frozen=True)
class _CollectCoordinatorSpec(CoordinatorSpec):
    def create(self) -> OperatorCoordinator:
        return _CollectCoordinator()


@final
class _CollectCoordinator(OperatorCoordinator):
    """State: the versions so far, each with the number of the batch that it began with; and once the sink has finished
    what the client has not fetched. A client may have slept through several restarts: of what it holds the part counts
    that was before the first of them."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, bytes]] = deque()  # (subtask, blob), oldest first
        self._offset = 0  # number of the first waiting batch
        self._finished: set[int] = set()
        self._ended = False
        self._version = ""
        self._committed: int | None = None
        self._restored = 0  # batches that the checkpoint has
        self._history: list[tuple[str, int]] = []
        self._num_batches: int | None = None  # in all, when the sink has finished
        self._ended_at: dict[int, int] = {}  # checkpoint → the same, as of its snapshot

    def restore(self, state: bytes, committables: Mapping[int, object]) -> None:
        for num_batches in committables.values():
            assert isinstance(num_batches, int), num_batches
            self._restored = num_batches
        self._offset = self._restored
        if state:
            self._history, rest = load_plain(state)
            if rest is not None:
                self._offset, blobs = rest
                self._waiting.extend((0, blob) for blob in blobs)
                self._restored = self._num_batches = self._offset + len(blobs)

    def start(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        self._version = f"{ctx.job_id}-{ctx.attempt_number}"
        if takes_checkpoints(ctx.config) and ctx.parallelism == 1:
            self._committed = self._restored
            self._history = [*self._history[-_VERSIONS_MAX:], (self._version, self._restored)]
        if self._num_batches is not None:
            self._finished.add(0)  # it does not run again

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        match event:
            case RowsCollected(blob, number):
                if self._committed is not None and not self._waiting:
                    self._offset = number  # of what a restored sink sends the client has some already
                self._waiting.append((subtask_index, blob))
            case CollectionEnded(num_batches):
                self._num_batches = num_batches
            case _:
                raise AssertionError(event)

    def snapshot(self, checkpoint_id: int) -> bytes:
        if self._committed is None:
            return b""
        if self._num_batches is None:
            return dump_plain((self._history, None))
        self._ended_at[checkpoint_id] = self._num_batches
        return dump_plain((self._history, (self._offset, tuple(blob for _, blob in self._waiting))))

    def checkpoint_completed(self, checkpoint_id: int, committables: Mapping[int, object]) -> None:
        if self._committed is None:
            return
        counts = [self._ended_at.pop(checkpoint_id, 0), *committables.values()]
        self._ended_at = {number: count for number, count in self._ended_at.items() if number > checkpoint_id}
        self._committed = max(self._committed, *(count for count in counts if isinstance(count, int)))

    def handle_request(self, request: object) -> object:
        assert isinstance(request, FetchResults), request
        if request.version not in ("", self._version):
            kept = None if self._committed is None else self._kept_of(request.version)
            return FetchedResults(self._version, self._offset, committed=kept)
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
        return FetchedResults(self._version, self._offset, blobs, finished, self._committed)

    def _kept_of(self, version: str) -> int:
        """Return how many batches of a former version still hold. One that the checkpoint does not know began with the
        same checkpoint as this one, or with a later one that is of no use any more."""
        versions = [known for known, _ in self._history]
        after = self._history[versions.index(version) + 1 :] if version in versions else self._history[-1:]
        return min(start for _, start in after)

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
        if outcome is JobOutcome.FINISHED and self._committed is not None:
            self._committed = self._offset + len(self._waiting)
