"""What is always true of a job's checkpoints, whatever happens to them; tests ask after every event. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set

from engine.checkpoint.model import Task
from engine.checkpoint.pending import Pending, Stage
from engine.checkpoint.store import CompletedCheckpointStore
from engine.protocol.checkpoint import NO_CHECKPOINT

__all__ = ["check_pending", "check_stored"]


def check_pending(
    pending_by_id: Mapping[int, Pending], all_tasks: Set[Task], finished: Set[Task], *, is_active: bool
) -> None:
    """Raises: AssertionError."""
    assert list(pending_by_id) == sorted(pending_by_id), "begun in order"
    stages = [pending.stage for pending in pending_by_id.values()]
    assert stages.count(Stage.PREPARING) <= 1, stages
    only_final = all(pending.is_final or pending.stage is Stage.WRITING for pending in pending_by_id.values())
    assert is_active or set(stages) <= {Stage.WRITING} or only_final, stages
    for pending in pending_by_id.values():
        assert bool(pending.waiting) or pending.stage is not Stage.RUNNING, pending
        assert not pending.waiting & set(pending.acknowledged), pending
        assert not pending.waiting & finished or not is_active, "it can never complete"
        taking_part = pending.waiting | set(pending.acknowledged) | pending.finished
        assert taking_part == all_tasks, "every task takes part or has finished"


def check_stored(
    store: CompletedCheckpointStore, pending: Collection[Pending], num_retained: int, has_dropped: bool
) -> None:
    """Raises: AssertionError."""
    stored = store.all()
    ids = [one.checkpoint.checkpoint_id for one in stored]
    assert ids == sorted(set(ids)), ids
    assert len(ids) <= num_retained, ids
    live = [one for one in pending if not one.is_savepoint]
    needed = {path for one in live for path in one.files()}
    needed |= {path for one in stored if one.is_owned for path in one.checkpoint.files()}
    assert needed <= set(store.references()), "a file that is needed may be deleted"
    bases = {one.options.base_checkpoint_id for one in live} - {NO_CHECKPOINT}
    assert bases <= set(ids) | store.kept_for_base(), "a checkpoint builds on one that may be deleted"
    if not live and not has_dropped:
        assert not store.kept_for_base(), "nothing builds on it any more"
