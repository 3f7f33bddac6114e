"""Commits of part files: pending → finished, in the JobManager, as often as it takes; what crashes left is removed.

A part has three names. *In progress*: hidden, a task writes it; no checkpoint ever refers to it, for every part is
closed at every barrier. *Pending*: hidden, complete and durable, named by the committables of a checkpoint. *Finished*:
visible for good. Hidden names hold the mark of job, operator and attempt, so nobody else's files are ever removed.

A crash may come between any two steps. The rename is the commit: source there = not done, source gone = done, so that
doing it again is harmless. After a restart the checkpoint's committables are committed first; then every hidden file
with the mark that is left belongs to what the checkpoint does not know, and is removed.
Not here: who writes parts (``file_sink``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final, final

from engine.connectors.kept_files import KeptFiles, file_name, is_unfinished_list, remove_outdated_lists
from engine.connectors.sink import retains_checkpoints, takes_checkpoints
from engine.core.errors import ExternalError, InputError
from engine.core.fs import FileSystem, file_system_of, without_waiting
from engine.core.ids import JobID, OperatorID
from engine.core.late_dataclass import dataclass
from engine.core.plain_pickle import dump_plain, load_plain
from engine.operators.base import CoordinatorContext, CoordinatorSpec, JobOutcome, OperatorCoordinator

__all__ = [
    "IN_PROGRESS",
    "PENDING",
    "PartClosed",
    "PartOpened",
    "PartsCoordinatorSpec",
    "PartsFinished",
    "PendingPart",
    "hidden_name",
    "mark_of",
]

_log = logging.getLogger(__name__)

IN_PROGRESS: Final = "inprogress"
PENDING: Final = "pending"

#: Parts whose commit is remembered, so that what a late notification repeats is not looked up: some 100 bytes each.
_COMMITTED_MAX: Final = 50_000
#: Waits before a commit is tried again; beyond, the job fails and goes on from the checkpoint that has the parts.
_RETRY_WAITS_S: Final = (0.1, 0.4, 1.6)
_sleep: Callable[[float], None] = time.sleep


def mark_of(job_id: JobID, operator_id: OperatorID | None) -> str:
    """Return what is in the names of one sink's hidden files and in nobody else's."""
    return f"{job_id[:12]}-{(operator_id or '')[:8]}"


def hidden_name(stem: str, number: int, state: str, mark: str, attempt_number: int) -> str:
    return f".{stem}-{number}.{state}.{mark}-{attempt_number}"


class PartLostError(ExternalError):
    """A hidden file that was to be published is gone, and its finished file is not there either."""


@dataclass(frozen=True, slots=True)
class PendingPart:
    """The committable: a hidden file that is complete. It becomes ``<folder>/<stem>-<number><suffix>``."""

    pending: str
    folder: str
    stem: str
    number: int
    suffix: str

    def target(self, number: int) -> str:
        return f"{self.folder}/{self.stem}-{number}{self.suffix}"


@dataclass(frozen=True, slots=True)
class PartOpened:
    """Task → coordinator: hidden files are in this folder."""

    folder: str


@dataclass(frozen=True, slots=True)
class PartClosed:
    """Task → coordinator, when there are no checkpoints: it may be published when the job is cancelled."""

    part: PendingPart


@dataclass(frozen=True, slots=True)
class PartsFinished:
    """Task → coordinator: the input has ended; these are not known to be committed yet."""

    parts: tuple[PendingPart, ...]


@final
@dataclass(frozen=True)
class PartsCoordinatorSpec(CoordinatorSpec):
    base_path: str
    publish_on_cancel: bool
    can_resume = True

    def create(self) -> OperatorCoordinator:
        return _PartsCoordinator(self.base_path, self.publish_on_cancel)


@final
class _PartsCoordinator(OperatorCoordinator):
    """State: the parts of subtasks that have finished, until they are committed."""

    def __init__(self, base_path: str, publish_on_cancel: bool) -> None:
        self._base_path = base_path
        self._publish_on_cancel = publish_on_cancel
        self._restored: list[PendingPart] | None = None
        #: of subtasks that have finished
        self._final: list[PendingPart] = []
        #: checkpoint → those of ``_final`` that it has
        self._final_of: dict[int, list[PendingPart]] = {}
        #: Pending files of checkpoints that are durable: a retained one may be restored by another job.
        self._owed: set[str] = set()
        #: Checkpoints of which it is not known whether they are durable.
        self._in_doubt: set[int] = set()
        #: without checkpoints: what a cancelled job publishes
        self._closed: list[PendingPart] = []
        #: pending files that have been renamed, oldest first
        self._committed: dict[str, None] = {}
        self._folders: set[str] = set()
        self._knows_folders = True  #: in which tasks of this attempt have hidden files
        self._published: list[str] = []
        #: A checkpoint may need what is pending.
        self._is_needed = False
        self._is_ending = False
        self._is_started = False

    def restore(self, state: bytes, committables: Mapping[int, object]) -> None:
        self._restored = list(load_plain(state)) if state else []
        self._restored += _all_of(committables)

    def start(self, ctx: CoordinatorContext) -> None:
        self._begin(ctx)
        if self._restored is not None or ctx.attempt_number > 0:
            self._sweep(self._base_path, IN_PROGRESS, PENDING)
        self._restored = None

    def resume(self, ctx: CoordinatorContext, reports: Mapping[int, object]) -> None:
        """Hidden files stay: tasks write them, or offer them to the next checkpoint. What is nobody's is removed when
        the job ends or restarts, and looked for everywhere: nobody says any more where it is."""
        self._begin(ctx)
        self._knows_folders = False
        self._restored = None

    def _begin(self, ctx: CoordinatorContext) -> None:
        super().start(ctx)
        self._mark = mark_of(ctx.job_id, ctx.operator_id)
        self._takes_checkpoints = takes_checkpoints(ctx.config)
        self._is_needed = self._takes_checkpoints or self._restored is not None
        self._fs: FileSystem = file_system_of(self._base_path)
        self._kept = KeptFiles(self._fs, self._base_path, self._mark, ctx.attempt_number)
        self._is_started = True
        found = self._fs.status(self._base_path)
        if found is not None and not found.is_dir:
            raise InputError(f"{self._base_path} is a file; a FileSink writes parts into a folder: name another one.")
        self._fs.make_dirs(self._base_path)
        # Fails now, not after hours of work, when the place is not writable.
        probe = f"{self._base_path}/.probe.{self._mark}"
        self._fs.open_write(probe, overwrite=True).close()
        self._fs.delete(probe)
        if self._restored is not None:
            self._commit(self._restored, again=True)
            remove_outdated_lists(self._fs, self._base_path)

    def handle_event(self, subtask_index: int, attempt_number: int, event: object) -> None:
        if attempt_number < self.ctx.attempt_number:
            return  # of a slot that did not know yet that it was given up
        match event:
            case PartOpened(folder):
                self._folders.add(folder)
            case PartClosed(part):
                self._closed.append(part)
            case PartsFinished(parts):
                self._final += [part for part in parts if part.pending not in self._committed]
            case _:
                raise AssertionError(event)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def snapshot(self, checkpoint_id: int) -> bytes:
        self._is_needed = True
        self._in_doubt.add(checkpoint_id)
        self._final_of[checkpoint_id] = self._final.copy()
        return dump_plain(tuple(self._final))

    def checkpoint_completed(self, checkpoint_id: int, committables: Mapping[int, object]) -> None:
        self._in_doubt = {number for number in self._in_doubt if number > checkpoint_id}
        final = self._final_of.pop(checkpoint_id, [])
        self._final_of = {number: parts for number, parts in self._final_of.items() if number > checkpoint_id}
        self._commit([*_all_of(committables), *final])
        self._final = [part for part in self._final if part.pending not in self._committed]
        # Tasks offer what they have closed until it is committed, so this was all of it.
        self._kept.forget_until(checkpoint_id)

    def savepoint_taken(self, checkpoint_id: int, committables: Mapping[int, object]) -> None:
        parts = [*_all_of(committables), *self._final_of.get(checkpoint_id, [])]
        self._in_doubt.discard(checkpoint_id)
        self._kept.keep(checkpoint_id, [part.pending for part in parts if part.pending not in self._committed])

    def checkpoint_aborted(self, checkpoint_id: int) -> None:
        self._final_of.pop(checkpoint_id, None)
        self._in_doubt.discard(checkpoint_id)
        self._kept.forget(checkpoint_id)

    def _commit(self, parts: Collection[PendingPart], *, again: bool = False) -> None:
        self._owed.update(part.pending for part in parts)
        for part in parts:
            if part.pending not in self._committed:
                self._publish_patiently(part, again)
                self._committed[part.pending] = None
            self._owed.discard(part.pending)
        while len(self._committed) > _COMMITTED_MAX:
            del self._committed[next(iter(self._committed))]

    def _publish_patiently(self, part: PendingPart, again: bool) -> None:
        for wait_s in _RETRY_WAITS_S:
            try:
                self._publish(part, again)
                return
            except PartLostError:
                raise
            except ExternalError as error:
                _log.warning(
                    "job=%s: commit of %s failed; retrying in %g s: %s", self.ctx.job_id, part.pending, wait_s, error
                )
                _sleep(wait_s)
        self._publish(part, again)

    def _publish(self, part: PendingPart, again: bool) -> None:
        number = part.number
        if self._fs.status(part.pending) is not None:
            while self._fs.status(part.target(number)) is not None:
                number += 1  # an earlier job wrote here: add to it, never replace it
            self._fs.rename(part.pending, part.target(number))
            if self._is_ending:
                self._published.append(part.target(number))
        elif self._fs.status(part.target(number)) is None:
            if not again:
                raise PartLostError(
                    f"Cannot publish {part.target(number)}: its hidden file {part.pending} is gone. Somebody else "
                    "removed it; hidden files of a running job must be left alone."
                )
            # It was committed before the restart, and whoever waited for it took it away. Or it was removed before.
            _log.warning(
                "job=%s: neither %s nor its hidden file %s exists. That is right if it was finished before the restart "
                "and taken away by its reader; if not, its records are lost.",
                self.ctx.job_id,
                part.target(number),
                part.pending,
            )

    # --- the end -----------------------------------------------------------------------------------------------------

    def _to_publish(self, outcome: JobOutcome) -> list[PendingPart]:
        if outcome is JobOutcome.FINISHED:
            return self._final
        publishes = outcome is JobOutcome.CANCELED and self._publish_on_cancel and not self._takes_checkpoints
        return [*self._closed, *self._final] if publishes else []

    def check_end(self, outcome: JobOutcome) -> None:
        for part in self._to_publish(outcome):
            if part.pending not in self._committed and self._fs.status(part.pending) is None:
                raise ExternalError(f"{part.pending}, which this job has written for {self._base_path}, is gone.")

    def published(self) -> list[str]:
        return self._published

    def job_ended(self, outcome: JobOutcome) -> None:
        if not self._is_started:
            return
        self._is_ending = True
        self._commit(self._to_publish(outcome))
        if outcome is JobOutcome.FINISHED:
            if self.ctx.attempt_number > 0 or not self._knows_folders:
                self._sweep(self._base_path, IN_PROGRESS, PENDING)
        elif outcome is JobOutcome.FAILED:
            # Another attempt may follow: what is pending may belong to the checkpoint from which it goes on. That
            # attempt, or ``given_up``, removes the rest.
            self._sweep(self._base_path, *((IN_PROGRESS,) if self._is_needed else (IN_PROGRESS, PENDING)))
        else:
            with without_waiting():
                self._clean_up(outcome, everywhere=self.ctx.attempt_number > 0 or not self._knows_folders)

    def given_up(self, outcome: JobOutcome) -> None:
        if self._is_started:
            with without_waiting():
                self._clean_up(outcome, everywhere=True)

    def _clean_up(self, outcome: JobOutcome, *, everywhere: bool) -> None:
        """No attempt follows, but another job may, from a savepoint or a retained checkpoint."""
        retained = retains_checkpoints(self.ctx.config, outcome)
        states = (IN_PROGRESS,) if retained and self._in_doubt else (IN_PROGRESS, PENDING)
        kept = self._kept.names()
        if retained:
            kept.update(map(file_name, self._owed))
        if everywhere:
            self._sweep(self._base_path, *states, kept=kept)
            return
        for folder in sorted(self._folders):
            self._sweep(folder, *states, kept=kept, recursive=False)

    def _sweep(self, folder: str, *states: str, kept: Collection[str] | None = None, recursive: bool = True) -> None:
        """Remove this sink's hidden files in these states but those that are kept; killed slots told of none of
        them. ``kept``: names, by default of what savepoints name."""
        if self._fs.status(folder) is None:
            return
        kept = self._kept.names() if kept is None else kept
        for child in self._fs.list(folder):
            name = file_name(child.path)
            if child.is_dir:
                if recursive:
                    self._sweep(child.path, *states, kept=kept)
                continue
            is_own = name.startswith(".") and any(f".{state}.{self._mark}-" in name for state in states)
            if (is_own and name not in kept) or is_unfinished_list(name, self._mark):
                self._fs.delete(child.path)


def _all_of(committables: Mapping[int, object]) -> list[PendingPart]:
    found: list[PendingPart] = []
    for parts in committables.values():
        assert isinstance(parts, tuple), parts
        found += parts
    return found
