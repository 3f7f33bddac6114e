"""What a new leader takes for the job's own of what it finds: only that is deleted when a newer checkpoint comes."""

from __future__ import annotations

import dataclasses

import pytest

from engine.checkpoint.storage import write_metadata
from engine.core.config import Configuration
from engine.protocol.checkpoint import CheckpointKind
from engine.runtime.jobmanager.recovery import prepare_recovered_job
from tests.unit.checkpoint.jobs import JOB_ID
from tests.unit.checkpoint.test_storage import checkpoint_in
from tests.unit.ha.test_job_store import cluster, graph, next_leader  # noqa: F401 (a fixture)


@pytest.mark.parametrize(
    ("folder", "kind", "claim_mode", "is_owned"),
    [
        (f"checkpoints/{JOB_ID}/chk-3", CheckpointKind.CHECKPOINT, "", True),
        (f"checkpoints/{JOB_ID}/savepoint-3", CheckpointKind.SAVEPOINT, "", False),
        ("savepoint-3", CheckpointKind.SAVEPOINT, "", False),
        ("savepoint-3", CheckpointKind.SAVEPOINT, "NO_CLAIM", False),
        ("savepoint-3", CheckpointKind.SAVEPOINT, "CLAIM", True),
        ("another/savepoint-3", CheckpointKind.SAVEPOINT, "CLAIM", False),
    ],
)
def test_only_checkpoints_of_the_job_and_what_it_claims_are_its_own(
    cluster,  # noqa: F811
    tmp_path,
    folder,
    kind,
    claim_mode,
    is_owned,
):
    checkpoint = dataclasses.replace(checkpoint_in(f"file://{tmp_path}/{folder}", 3), kind=kind)
    write_metadata(checkpoint)
    store = next_leader(cluster)
    config = {"execution.checkpointing.dir": f"file://{tmp_path}/checkpoints"}
    if claim_mode:
        config["execution.state-recovery.path"] = f"file://{tmp_path}/savepoint-3"
        config["execution.state-recovery.claim-mode"] = claim_mode
    store.put_job(dataclasses.replace(graph(JOB_ID), config=config), {})
    store.put_checkpoint(checkpoint, 1)
    (restored,) = prepare_recovered_job(next_leader(cluster), JOB_ID, Configuration({})).restored
    assert (restored.checkpoint, restored.is_owned) == (checkpoint, is_owned)
