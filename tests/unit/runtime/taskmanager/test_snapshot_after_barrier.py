"""What a snapshot has is the state at the barrier, however late its bytes are written."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.checkpoint.restored_state import HandleRestoredState
from engine.core.clock import ManualClock
from engine.core.ids import OperatorID
from engine.protocol.checkpoint import CheckpointOptions, OperatorRestore
from engine.runtime.taskmanager.snapshot_capture import StateCapture
from engine.state.descriptors import ListStateDescriptor, MapStateDescriptor
from engine.state.heap_backend import HeapKeyedStateBackend
from engine.state.parts import OperatorStateRegistry

OPERATOR = OperatorID.from_text("count")
GROUPS = range(8)


class LateThread:
    """Snapshot workers whose thread comes to its work when it is told to."""

    noted_entries_max = 10_000

    def __init__(self, fork_entries_min: int) -> None:
        self.fork_entries_min = fork_entries_min
        self.work: list[Callable[[], None]] = []

    def run(self, work: Callable[[], Any], on_done: Any) -> None:
        self.work.append(lambda: on_done(work(), None))

    def fork(self, work: Callable[[], Any], on_done: Any) -> None:
        raise AssertionError("it is little state")

    def expect_forks(self) -> None:
        assert self.fork_entries_min == 0, "it is little state"


@pytest.mark.parametrize("fork_entries_min", [0, 5_000], ids=["noted", "in place"])
@pytest.mark.parametrize("inline_bytes_max", [0, 20 << 10])
@pytest.mark.parametrize("incremental", [False, True])
def test_what_follows_the_barrier_is_not_in_a_snapshot_whose_bytes_are_written_later(
    tmp_path, inline_bytes_max, incremental, fork_entries_min
):
    backend = HeapKeyedStateBackend(ManualClock(), len(GROUPS), incremental=incremental)
    registry = OperatorStateRegistry()
    registry.add_keyed("keyed", backend)
    rows = backend.list_state(ListStateDescriptor("rows"))
    seen = backend.map_state(MapStateDescriptor("seen"))
    backend.set_current_key("a")
    rows.add("before")
    seen.put("before", 1)
    workers = LateThread(fork_entries_min)
    capture = StateCapture([(OPERATOR, registry)], GROUPS, workers, name="task", work_dir=str(tmp_path))  # type: ignore[arg-type]
    options = CheckpointOptions(
        exclusive_folder=f"file://{tmp_path}", incremental=incremental, inline_bytes_max=inline_bytes_max
    )
    ended: list[BaseException | None] = []

    snapshot = capture.capture(1, options, {}, lambda taken, error: ended.append(error))
    rows.add("behind the barrier")
    seen.put("behind the barrier", 2)
    for work in workers.work:
        work()

    assert ended == [None]
    handles = snapshot.operators([OPERATOR])[OPERATOR]
    restored = HeapKeyedStateBackend(ManualClock(), len(GROUPS))
    state = HandleRestoredState(
        OperatorRestore(handles.keyed),
        operator_name="count",
        subtask_index=0,
        parallelism=1,
        key_groups=GROUPS,
        work_dir=str(tmp_path),
    )
    OperatorStateRegistry(state).add_keyed("keyed", restored)
    restored.set_current_key("a")
    assert list(restored.list_state(ListStateDescriptor("rows")).get()) == ["before"]
    assert dict(restored.map_state(MapStateDescriptor("seen")).items()) == {"before": 1}
