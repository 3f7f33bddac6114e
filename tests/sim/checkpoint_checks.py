"""What must hold of a job's checkpoints: numbers are used once, what is complete is whole, what is kept is kept."""

from __future__ import annotations

from typing import Any, Final, final

from engine.checkpoint import messages as msg
from engine.checkpoint import storage
from engine.checkpoint.metadata import METADATA_FILE
from engine.core.errors import EngineError
from engine.runtime.jobmanager.job_master import JobMaster
from tests.sim.processes import Cluster
from tests.sim.world import SimulationError

__all__ = ["CHECKPOINTS", "CheckpointChecks"]

CHECKPOINTS: Final = "sim://checkpoints"


@final
class CheckpointChecks:
    """Looks at each decision of the CheckpointCoordinator of one job, and at each file that goes away."""

    def __init__(self, cluster: Cluster, master: JobMaster, former: CheckpointChecks | None = None) -> None:
        """``former``: of the same job under the leader before, whose decisions do not count any more."""
        self.num_completed = 0
        self.num_restored = 0
        self._world = cluster.world
        self._files = cluster.files
        self._master = master
        self._coordinator = master.checkpoints._coordinator
        self._last_begun = self._last_triggered = self._last_completed = 0
        self._is_former = False
        if former is not None:
            former._is_former = True
            # Of those that it has begun and not triggered, the store may not have heard; nobody else has.
            self._last_begun = self._last_triggered = former._last_triggered
            self._last_completed = former._last_completed
            self.num_completed, self.num_restored = former.num_completed, former.num_restored
        handle = self._coordinator.handle

        def watched(event: Any, *times: int) -> Any:
            if isinstance(event, msg.AttemptBegun) and self._coordinator.restore_point() is not None:
                self.num_restored += 1
                self._tell(f"attempt {event.attempt_number} restores {self._restore_id()}")
            commands = handle(event, *times)
            self._coordinator.check_invariants()
            for command in commands:
                self._look_at(command)
            return commands

        self._coordinator.handle = watched  # type: ignore[method-assign]
        cluster.files.on_delete.append(self._on_delete)

    def _restore_id(self) -> int:
        point = self._coordinator.restore_point()
        return 0 if point is None else point.checkpoint_id

    def _tell(self, text: str) -> None:
        self._world.tell("jm", "checkpoint", f"{self._master.job_id[:4]} {text}")

    def _look_at(self, command: msg.Command) -> None:
        match command:
            case msg.PrepareCheckpoint(checkpoint_id):
                if checkpoint_id <= self._last_begun:
                    raise SimulationError(f"checkpoint {checkpoint_id} begins after {self._last_begun}")
                self._last_begun = checkpoint_id
                self._tell(f"{checkpoint_id} begins")
            case msg.TriggerTasks(checkpoint_id):
                self._last_triggered = checkpoint_id
            case msg.NotifyComplete(checkpoint):
                checkpoint_id = checkpoint.checkpoint_id
                if checkpoint_id <= self._last_completed:
                    raise SimulationError(f"checkpoint {checkpoint_id} completes after {self._last_completed}")
                self._last_completed = checkpoint_id
                self.num_completed += 1
                self._tell(f"{checkpoint_id} is complete")
                self._check_whole(checkpoint)
            case msg.NotifyAborted(checkpoint_id):
                self._tell(f"{checkpoint_id} is aborted")
            case msg.FailJob(message):
                self._tell(f"fails the job: {message[:100]}")

    def _check_whole(self, checkpoint: Any) -> None:
        if not checkpoint.folder:
            return
        try:
            read = storage.read_checkpoint(checkpoint.folder)
            storage.verify_files(read)
            for handle in read.handles():
                if handle.path:
                    with self._files.open_read(handle.path) as stream:
                        self._check_content(handle, stream.read())
        except EngineError as error:
            raise SimulationError(
                f"checkpoint {checkpoint.checkpoint_id} is complete, but not whole: {error}"
            ) from error

    @staticmethod
    def _check_content(handle: Any, content: bytes) -> None:
        import zlib

        if len(content) != handle.size_bytes or zlib.crc32(content) != handle.crc32:
            raise SimulationError(f"{handle.path} has other bytes than were acknowledged")

    def _on_delete(self, path: str) -> None:
        if self._is_former:
            return
        for stored in self._coordinator._store.all():
            checkpoint = stored.checkpoint
            if path == f"{checkpoint.folder}/{METADATA_FILE}" or path in checkpoint.files():
                self._world.fail(f"{path} is deleted, but checkpoint {checkpoint.checkpoint_id} is kept")

    def left_behind(self) -> list[str]:
        """Return files of the job's checkpoints that are still there."""
        return [path for path in self._files.files if path.startswith(f"{CHECKPOINTS}/{self._master.job_id}/")]
