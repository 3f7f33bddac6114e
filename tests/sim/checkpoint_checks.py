"""What must hold of a job's checkpoints: numbers are used once, what is complete is whole, what is kept is kept."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Final, final

from engine.checkpoint import messages as msg
from engine.checkpoint import storage
from engine.checkpoint.metadata import METADATA_FILE
from engine.checkpoint.model import CompletedCheckpoint
from engine.core.errors import EngineError
from engine.protocol.checkpoint import CheckpointKind, ChunkPlace, KeyedLayer
from engine.runtime.jobmanager.job_master import JobMaster
from tests.sim.leaders import SimJobManager
from tests.sim.storage import SimFileSystem
from tests.sim.world import SimulationError

__all__ = ["CHECKPOINTS", "SAVEPOINTS", "CheckpointChecks", "check_contents"]

CHECKPOINTS: Final = "sim://checkpoints"
SAVEPOINTS: Final = "sim://savepoints"


@final
class CheckpointChecks:
    """Looks at each decision of the CheckpointCoordinator of one job, and at each file that goes away."""

    def __init__(self, jobmanager: SimJobManager, master: JobMaster, former: CheckpointChecks | None = None) -> None:
        """``former``: of the same job under the leader before, whose decisions do not count any more."""
        cluster = jobmanager.cluster
        self.num_completed = 0
        self.num_restored = 0
        self._world = cluster.world
        self._files = cluster.files
        self._master = master
        self.jobmanager = jobmanager
        self.job_id = master.job_id
        #: What a durable store would have: the checkpoint that completed last, or the savepoint that stopped the job.
        self.durable: Any = None
        self.stopped_with = ""  #: the folder of a savepoint with which the job is to end
        self.savepoints: list[str] = []  #: all that were complete when the job was to end with them
        self.has_finished = False  #: what is durable is the last checkpoint: all tasks have finished
        self.is_retained = False  #: nobody deletes what the job has retained
        self._coordinator = master.checkpoints._coordinator
        self._last_begun = self._last_triggered = self._last_completed = 0
        self._is_former = False
        self._is_told_again = False  #: running tasks were taken over: they hear of the newest checkpoint once more
        if former is not None:
            self._follow(former)
        handle = self._coordinator.handle
        add = self._coordinator._store.add

        def added(checkpoint: Any, **options: Any) -> Any:
            self.durable = checkpoint
            self.has_finished = self._coordinator._finished == self._coordinator._all_tasks
            if checkpoint.kind is CheckpointKind.SAVEPOINT:
                self.stopped_with = checkpoint.folder
                self.savepoints.append(checkpoint.folder)
            elif self._coordinator._finished != self._coordinator._all_tasks:
                self.stopped_with = ""  # the job went on; else it is the last checkpoint of what ends
            return add(checkpoint, **options)

        self._coordinator._store.add = added  # type: ignore[method-assign]

        def watched(event: Any, *times: int) -> Any:
            if isinstance(event, msg.AttemptBegun) and self._coordinator.restore_point() is not None:
                self.num_restored += 1
                self._tell(f"attempt {event.attempt_number} restores {self._restore_id()}")
                if self._coordinator.restore_point().folder == self.stopped_with:  # type: ignore[union-attr]
                    self.stopped_with = ""  # in vain: not all of its tasks had ended
            self._is_told_again = isinstance(event, msg.AttemptTakenOver)
            commands = handle(event, *times)
            self._coordinator.check_invariants()
            for command in commands:
                self._look_at(command)
            return commands

        self._coordinator.handle = watched  # type: ignore[method-assign]
        cluster.files.on_delete.append(self._on_delete)

    def _follow(self, former: CheckpointChecks) -> None:
        former._is_former = True
        # Of those that it has begun and not triggered, the store may not have heard; nobody else has.
        self._last_begun = self._last_triggered = former._last_triggered
        self._last_completed = former._last_completed
        self.durable = self._coordinator._store.latest()
        if self.durable is None or former.durable is None:
            return
        self.has_finished = former.has_finished and self.durable.checkpoint_id == former.durable.checkpoint_id
        if self.has_finished and former.stopped_with != self.durable.folder:
            self.stopped_with = former.stopped_with  # all tasks had ended with that savepoint: it only commits again

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
                if checkpoint_id < self._last_completed + (not self._is_told_again):
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
        if not checkpoint.folder or self._is_former:  # its successor may have subsumed it
            return
        try:
            check_contents(storage.read_checkpoint(checkpoint.folder), self._files)
        except EngineError as error:
            raise SimulationError(
                f"checkpoint {checkpoint.checkpoint_id} is complete, but not whole: {error}"
            ) from error

    def _on_delete(self, path: str) -> None:
        if self._is_former or self._master.has_ended or self.jobmanager.loop.is_dead:
            return
        for stored in self._coordinator._store.all():
            checkpoint = stored.checkpoint
            if path == f"{checkpoint.folder}/{METADATA_FILE}" or path in checkpoint.files():
                self._world.fail(f"{path} is deleted, but checkpoint {checkpoint.checkpoint_id} is kept")

    def left_behind(self) -> list[str]:
        """Return files of the job's checkpoints that are still there."""
        if self.is_retained:
            return []
        return [path for path in self._files.files if path.startswith(f"{CHECKPOINTS}/{self._master.job_id}/")]


def check_contents(checkpoint: CompletedCheckpoint, files: SimFileSystem) -> None:
    """All that it refers to must be there, with the bytes that were acknowledged. Raises: EngineError,
    SimulationError."""
    storage.verify_files(checkpoint)
    chunks_by_path = {layer.file.path: set[ChunkPlace]() for layer in _layers(checkpoint)}
    for layer in _layers(checkpoint):
        chunks_by_path[layer.file.path].update(layer.chunks.values())
    for handle in checkpoint.handles():
        if handle.path:
            with files.open_read(handle.path) as stream:
                content = stream.read()
            whole = (0, handle.size_bytes, handle.crc32)
            places = chunks_by_path.get(handle.path, {whole})  # a file of chunks may hold several parts
            is_whole = all(zlib.crc32(content[at : at + size]) == crc for at, size, crc in places)
            if len(content) != handle.size_bytes or not is_whole:
                raise SimulationError(f"{handle.path} has other bytes than were acknowledged")


def _layers(checkpoint: CompletedCheckpoint) -> Iterator[KeyedLayer]:
    """Yield the layers that lie in files."""
    for vertex in checkpoint.vertices:
        for subtask in vertex.subtasks.values():
            for handles in subtask.operators.values():
                for keyed in handles.keyed:
                    yield from (layer for layer in keyed.layers if layer.file.path)
