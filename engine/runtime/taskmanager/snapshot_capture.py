"""Captures the state of a task's operators for one checkpoint, and has it written beside the task.

Small state is captured in place: cheaper than a fork. Of large state a small increment is noted in place and written
by an I/O thread; all else of it is captured and written in a forked child. Parts that keep themselves on disk lay down
their files and an I/O thread uploads them. What the task hears in the end is one result or one error. Not here: when it
happens (``task_checkpoints``), how bytes lie (``checkpoint/state_files``).
"""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from typing import Any, Final, TypeAlias, final

from engine.checkpoint.layers import LayerStack, base_of_delta
from engine.checkpoint.state_files import Chunks, ChunkWriter, StateTooLargeError, upload_file, write_file
from engine.core.errors import EngineError, ExternalError, ProgramError
from engine.core.fs import file_system_of
from engine.core.ids import OperatorID
from engine.core.late_dataclass import dataclass
from engine.protocol.checkpoint import (
    NO_CHECKPOINT,
    CheckpointKind,
    CheckpointOptions,
    FileHandle,
    InFlightHandle,
    KeyedLayer,
    KeyedStateHandle,
    ListStateHandle,
    OperatorStateHandles,
    TaskRestore,
)
from engine.runtime.taskmanager.snapshot_workers import Job, OnDone, SnapshotWorkers
from engine.state.operator_state import OperatorStateStore, Redistribution
from engine.state.parts import (
    DeltaPart,
    FilePart,
    HostedPart,
    KeyedPart,
    LazyPart,
    NotingPart,
    OperatorStateRegistry,
)

__all__ = ["Consumer", "StateCapture", "TaskSnapshot"]

#: An entry that is made into bytes at once takes as long as so many that are only noted.
_IN_PLACE_COST: Final = 4
#: Files of one part that are uploaded at a time: one after the other, most of the time a disk or network is waited for.
_UPLOADS: Final = 4

#: operator, name of the part
PartKey: TypeAlias = tuple[OperatorID, str]


@dataclass(slots=True)
class TaskSnapshot:
    """What one checkpoint has of a task, while it comes together."""

    checkpoint_id: int
    options: CheckpointOptions
    committables: dict[OperatorID, bytes]
    on_end: Callable[[TaskSnapshot, BaseException | None], None]
    keyed: dict[PartKey, KeyedStateHandle] = field(default_factory=dict)
    #: the same of the parts in memory, as increments need it
    stacks: dict[PartKey, LayerStack] = field(default_factory=dict)
    lists: dict[OperatorID, ListStateHandle] = field(default_factory=dict)
    in_flight: list[InFlightHandle] = field(default_factory=list)
    written_bytes: int = 0
    #: Pieces of work that must end before all is there, or before it can be cleared away.
    num_open: int = 1
    has_ended: bool = False
    awaits_in_flight: bool = False
    error: BaseException | None = None
    on_idle: Callable[[], None] = lambda: None
    jobs: list[Job] = field(default_factory=list)
    #: files that were begun: deleted when nobody is going to hear of them
    paths: list[str] = field(default_factory=list)

    def close_one(self, error: BaseException | None = None) -> None:
        """A piece of work has ended."""
        self.num_open -= 1
        if error is None and not self.num_open:
            error = self._too_large()
        if not self.has_ended and (error is not None or not self.num_open):
            self.has_ended, self.error = True, error
            self.on_end(self, error)
        if not self.num_open:
            self.on_idle()

    def _too_large(self) -> StateTooLargeError | None:
        """Each piece fits by itself; do all of them, where they travel in one message?"""
        if self.options.exclusive_folder:
            return None
        limit, size = self.options.state_bytes_max, self.state_bytes()
        return StateTooLargeError.of(size, limit) if size > limit else None

    def start(self, begin: Callable[[Callable[[], Any], OnDone], Job], work: Callable[[], Any], done: OnDone) -> None:
        """Begin a piece of work, which ends with ``done`` and then ``close_one``."""

        def on_done(result: Any, error: BaseException | None) -> None:
            done(result, error)
            self.close_one(error)

        self.num_open += 1
        try:
            self.jobs.append(begin(work, on_done))
        except BaseException:
            self.num_open -= 1
            raise

    def operators(self, operator_ids: Sequence[OperatorID]) -> dict[OperatorID, OperatorStateHandles]:
        return {
            id_: OperatorStateHandles(
                tuple(handle for (owner, _), handle in self.keyed.items() if owner == id_),
                self.lists.get(id_),
                self.committables.get(id_, b""),
            )
            for id_ in operator_ids
        }

    def state_bytes(self) -> int:
        """Return all that the checkpoint refers to, also what earlier ones wrote."""
        size = sum(handle.file.size_bytes for handle in self.lists.values())
        size += sum(handle.file.size_bytes for handle in self.in_flight)
        for handle in self.keyed.values():
            size += sum(place[1] for layer in handle.layers for place in layer.chunks.values())
            size += sum(file.size_bytes for _, file in handle.files)
        return size


@dataclass(frozen=True, slots=True)
class Consumer:
    """To whom in-flight records were going. ``inputs``: those that have any."""

    operator_id: OperatorID
    subtask_index: int
    inputs: Sequence[int]
    keyed_inputs: Container[int]


@dataclass(frozen=True, slots=True)
class _Written:
    """What came of the parts in memory; crosses from the child."""

    layers: list[KeyedLayer]
    lists: dict[OperatorID, ListStateHandle]


@dataclass(slots=True)
class _Acknowledged:
    """What a checkpoint consists of, for those that build on it."""

    keyed: dict[PartKey, KeyedStateHandle] = field(default_factory=dict)
    #: of the parts in memory
    stacks: dict[PartKey, LayerStack] = field(default_factory=dict)


@final
class StateCapture:
    """All parts of the operators of one task. ``name``: what the task's files are called, unique in the job.
    ``is_periodic``: checkpoints will come."""

    def __init__(
        self,
        registries: Sequence[tuple[OperatorID, OperatorStateRegistry]],
        key_groups: range,
        workers: SnapshotWorkers,
        *,
        name: str,
        work_dir: str,
        is_periodic: bool = False,
    ) -> None:
        self._key_groups = key_groups
        self._workers = workers
        self._name = name
        self._work_dir = work_dir
        self._memory: list[tuple[PartKey, KeyedPart]] = []
        self._files: list[tuple[PartKey, FilePart]] = []
        self._hosted: list[tuple[PartKey, HostedPart]] = []
        for operator_id, registry in registries:
            for part_name, part in registry.keyed.items():
                if isinstance(part, FilePart):
                    self._files.append(((operator_id, part_name), part))
                elif isinstance(part, HostedPart):
                    self._hosted.append(((operator_id, part_name), part))
                else:
                    self._memory.append(((operator_id, part_name), part))
        is_large = sum(part.num_entries() for _, part in self._memory) > workers.fork_entries_min
        if is_large or (is_periodic and self._memory):
            workers.expect_forks()
        self._deltas = [(key, part) for key, part in self._memory if isinstance(part, DeltaPart)]
        self._late = [part for _, registry in registries for part in registry.late]
        self._lists: list[tuple[OperatorID, OperatorStateStore]] = [
            (operator_id, registry.lists) for operator_id, registry in registries if registry.lists is not None
        ]
        self._acknowledged: dict[int, _Acknowledged] = {}
        #: FileParts and what they host whose savepoint is being written: they must keep the frozen state.
        self._frozen: set[PartKey] = set()

    def adopt(self, restore: TaskRestore) -> None:
        """Let increments build on the checkpoint that the task was restored from, where the subtask is the same."""
        own = _Acknowledged()
        for operator_id, operator in restore.operators.items():
            for handle in operator.keyed:
                is_only = sum(other.part == handle.part for other in operator.keyed) == 1
                if is_only and range(handle.key_group_start, handle.key_group_end) == self._key_groups:
                    key = operator_id, handle.part
                    own.keyed[key], own.stacks[key] = handle, LayerStack.restored(handle, restore.checkpoint_id)
        self._acknowledged[restore.checkpoint_id] = own
        for _, part in self._deltas:
            part.begin_epoch(restore.checkpoint_id)

    def capture(
        self,
        checkpoint_id: int,
        options: CheckpointOptions,
        committables: dict[OperatorID, bytes],
        on_end: Callable[[TaskSnapshot, BaseException | None], None],
        *,
        awaits_in_flight: bool = False,
    ) -> TaskSnapshot:
        """Capture the state as of now; ``write_in_flight`` follows if it is awaited. ``on_end`` is called in the slot's
        loop when all is written, perhaps at once.

        Raises: what the parts raise.
        """
        snapshot = TaskSnapshot(checkpoint_id, options, committables, on_end)
        snapshot.awaits_in_flight = awaits_in_flight
        snapshot.num_open += awaits_in_flight
        base = _Acknowledged()
        is_increment = options.incremental and options.kind is CheckpointKind.CHECKPOINT
        if is_increment and options.base_checkpoint_id != NO_CHECKPOINT:
            base = self._acknowledged.get(options.base_checkpoint_id, base)
        try:
            while self._late:
                self._late[-1].restore_rest()
                self._late.pop()
            self._freeze_files(snapshot, base.keyed)
            self._capture_memory(snapshot, self._bases_of_deltas(base.stacks))
        except BaseException:
            self.discard(snapshot)
            snapshot.close_one()
            raise
        for id_ in [id_ for id_ in self._acknowledged if id_ < options.base_checkpoint_id]:
            del self._acknowledged[id_]
        if options.incremental:
            for key, part in self._deltas:
                part.begin_epoch(checkpoint_id)
                if options.base_checkpoint_id != NO_CHECKPOINT:
                    kept = base.stacks[key].known_barriers if key in base.stacks else ()
                    part.forget_epochs(options.base_checkpoint_id, kept)
        snapshot.close_one()
        return snapshot

    def write_in_flight(
        self, snapshot: TaskSnapshot, encode: Callable[[], dict[int, bytes]], consumer: Consumer
    ) -> None:
        """Write the in-flight records of an unaligned checkpoint. ``encode`` gives them by input, in a thread."""
        limits = _Limits.of(snapshot.options, {})
        paths = {index: self._path(snapshot, shared=False) for index in consumer.inputs}

        def work() -> list[InFlightHandle]:
            handles = []
            for index, content in encode().items():
                file = write_file(content, "" if len(content) <= limits.inline_bytes_max else paths[index])
                is_keyed = index in consumer.keyed_inputs
                handles.append(InFlightHandle(file, consumer.operator_id, index, consumer.subtask_index, is_keyed))
            return handles

        def done(handles: list[InFlightHandle] | None, error: BaseException | None) -> None:
            if handles is not None:
                snapshot.in_flight.extend(handles)
                snapshot.written_bytes += sum(handle.file.size_bytes for handle in handles)

        if consumer.inputs:
            snapshot.start(self._workers.run, work, done)
        snapshot.awaits_in_flight = False
        snapshot.close_one()

    def acknowledged(self, snapshot: TaskSnapshot) -> None:
        """The JobManager has been told: the files are its now, and later checkpoints may build on them."""
        snapshot.paths.clear()
        if snapshot.options.incremental and snapshot.options.kind is CheckpointKind.CHECKPOINT:
            self._acknowledged[snapshot.checkpoint_id] = _Acknowledged(dict(snapshot.keyed), dict(snapshot.stacks))

    def discard(self, snapshot: TaskSnapshot) -> None:
        """Nobody wants it any more: stop the work and delete what it has written."""
        snapshot.has_ended = True
        for job in snapshot.jobs:
            job.cancel()

        def delete() -> None:
            paths, snapshot.paths = snapshot.paths, []
            if paths:
                self._workers.run(lambda: _delete(paths), lambda result, error: None)

        if snapshot.awaits_in_flight:
            snapshot.awaits_in_flight = False
            snapshot.num_open -= 1
        snapshot.on_idle = delete  # not before: who writes would write on
        if not snapshot.num_open:
            delete()

    # --- parts in memory ---------------------------------------------------------------------------------------------

    def _bases_of_deltas(self, stacks: dict[PartKey, LayerStack]) -> dict[PartKey, LayerStack]:
        """Return what the increment of each part builds on; a part that is not in it is written in full."""
        bases = {}
        for key, part in self._deltas:
            base = base_of_delta(stacks.get(key), part.num_entries(), part.num_changed)
            if base is not None:
                bases[key] = base
        return bases

    def _capture_memory(self, snapshot: TaskSnapshot, base: dict[PartKey, LayerStack]) -> None:
        if not self._memory and not self._lists:
            return
        path = self._path(snapshot, shared=snapshot.options.incremental)
        list_paths = {operator_id: self._path(snapshot, shared=False) for operator_id, _ in self._lists}
        limits = _Limits.of(snapshot.options, base)

        def done(written: _Written | None, error: BaseException | None) -> None:
            if written is not None:
                self._take(snapshot, base, written)

        if sum(part.num_entries() for _, part in self._memory) > self._workers.fork_entries_min:
            noted = self._note(snapshot, base)
            if noted is None:
                work = lambda: _write(self._chunks(base), _dumped(self._lists), (path, list_paths), limits)  # noqa: E731
                snapshot.start(self._workers.fork, work, done)
            else:
                lists, made = _dumped(self._lists), (make() for make in noted)
                snapshot.start(self._workers.run, lambda: _write(made, lists, (path, list_paths), limits), done)
            return
        # Made now, not when the thread asks for them: lists and maps change in place.
        chunks, lists = [self._chunks_of(key, part, base) for key, part in self._memory], _dumped(self._lists)
        fits = sum(part.size_bytes for part in chunks) + sum(map(len, lists.values())) <= limits.inline_bytes_max
        if fits or not path:
            self._take(snapshot, base, _write(iter(chunks), lists, ("", {}), limits))
            return
        snapshot.start(self._workers.run, lambda: _write(iter(chunks), lists, (path, list_paths), limits), done)

    def _note(self, snapshot: TaskSnapshot, base: dict[PartKey, LayerStack]) -> list[Callable[[], Chunks]] | None:
        """Note what each part in memory has to write; what is returned makes the chunks, in their order, in another
        thread. None: a child must, as some part has no increment or a large one."""
        left = self._workers.noted_entries_max
        left -= _IN_PLACE_COST * sum(store.num_entries() for _, store in self._lists)
        small_max = left // _IN_PLACE_COST
        is_small = [part.num_entries() <= small_max for _, part in self._memory]
        can_note = (isinstance(part, NotingPart) and key in base for key, part in self._memory)
        if left < 0 or not all(small or noting for small, noting in zip(is_small, can_note, strict=True)):
            return None
        noted: list[Callable[[], Chunks]] = []
        for (key, part), small in zip(self._memory, is_small, strict=True):
            if not small and isinstance(part, NotingPart):
                delta = part.note_delta(self._key_groups, base[key].barriers[-1], left)
                if delta is None:
                    return None
                left -= delta.num_entries
                noted.append(lambda delta=delta: Chunks(delta.chunks(), is_delta=True))  # type: ignore[misc]
                continue
            left -= _IN_PLACE_COST * part.num_entries()
            if left < 0:
                return None
            chunks = self._chunks_of(key, part, base)
            noted.append(lambda chunks=chunks: chunks)  # type: ignore[misc]
        return noted

    def _chunks(self, base: dict[PartKey, LayerStack]) -> Iterator[Chunks]:
        """Yield what each part in memory gives, in their order, in a child: one chunk at a time is in memory."""
        for key, part in self._memory:
            yield self._chunks_of(key, part, base, lazy=True)

    def _chunks_of(
        self,
        key: PartKey,
        part: KeyedPart,
        base: dict[PartKey, LayerStack],
        *,
        lazy: bool = False,
    ) -> Chunks:
        """``lazy``: chunks may be made when they are asked for: only where the state does not go on meanwhile."""
        delta = None
        if isinstance(part, DeltaPart) and key in base:
            delta = part.snapshot_delta(self._key_groups, base[key].barriers[-1])
        if delta is not None:
            return Chunks(delta, is_delta=True)
        if lazy and isinstance(part, LazyPart):
            return Chunks(part.lazy_snapshot(self._key_groups))
        return Chunks(part.snapshot(self._key_groups))

    def _take(self, snapshot: TaskSnapshot, base: dict[PartKey, LayerStack], written: _Written) -> None:
        groups = self._key_groups
        for (key, _), layer in zip(self._memory, written.layers, strict=True):
            below = base[key] if layer.is_delta else LayerStack((), ())
            stack = snapshot.stacks[key] = below.with_layer(layer, snapshot.checkpoint_id)
            snapshot.keyed[key] = KeyedStateHandle(key[1], groups.start, groups.stop, stack.layers)
            snapshot.written_bytes += sum(size for _, size, _ in layer.chunks.values())
        snapshot.lists.update(written.lists)
        snapshot.written_bytes += sum(handle.file.size_bytes for handle in written.lists.values())

    # --- parts on disk -----------------------------------------------------------------------------------------------

    def _freeze_files(self, snapshot: TaskSnapshot, base: dict[PartKey, KeyedStateHandle]) -> None:
        for key, _ in (*self._files, *self._hosted):
            if key in self._frozen:
                raise ProgramError(f"State {key[1]!r} is still being written for a savepoint.")
        is_savepoint = snapshot.options.kind is CheckpointKind.SAVEPOINT
        for key, part in self._files:
            if is_savepoint:
                part.freeze_rows()
                work, done = self._savepoint_of(snapshot, key, part)
            else:
                work, done = self._upload_of(snapshot, key, part, base.get(key))
            snapshot.start(self._workers.run, work, done)
        for key, hosted in self._hosted:
            if is_savepoint:
                hosted.freeze_rows()
                snapshot.start(self._workers.run, *self._savepoint_of(snapshot, key, hosted))
            else:  # says that the operator has such a part
                snapshot.keyed[key] = KeyedStateHandle(key[1], self._key_groups.start, self._key_groups.stop)

    def _savepoint_of(
        self, snapshot: TaskSnapshot, key: PartKey, part: FilePart | HostedPart
    ) -> tuple[Callable[[], Any], OnDone]:
        self._frozen.add(key)
        groups = self._key_groups
        path = self._path(snapshot, shared=False)
        limits = _Limits.of(snapshot.options, {})

        def work() -> KeyedStateHandle:
            writer = ChunkWriter(path, limits.inline_bytes_max)
            try:
                writer.add_layer(part.snapshot(groups))
                return KeyedStateHandle(key[1], groups.start, groups.stop, tuple(writer.finish()))
            except BaseException:
                writer.abandon()
                raise

        def done(handle: KeyedStateHandle | None, error: BaseException | None) -> None:
            self._frozen.discard(key)
            if handle is not None:
                snapshot.keyed[key] = handle
                snapshot.written_bytes += sum(size for _, size, _ in handle.layers[0].chunks.values())

        return work, done

    def _upload_of(
        self, snapshot: TaskSnapshot, key: PartKey, part: FilePart, base: KeyedStateHandle | None
    ) -> tuple[Callable[[], Any], OnDone]:
        known = dict(base.files) if base is not None else {}
        limits = _Limits.of(snapshot.options, {})
        folder = os.path.join(self._work_dir, f"frozen-{snapshot.checkpoint_id}-{secrets.token_hex(4)}")
        lying_down = part.freeze(folder)
        reused: list[tuple[str, FileHandle]] = []

        def work() -> list[tuple[str, FileHandle]]:
            lying_down.finish()
            targets: dict[str, str] = {}
            for name in sorted(os.listdir(folder)):
                file = known.get(name)
                is_known = file is not None and file.size_bytes == os.path.getsize(os.path.join(folder, name))
                if file is not None and is_known and not part.is_mutable(name):
                    reused.append((name, file))
                    continue
                targets[name] = self._path(snapshot, shared=snapshot.options.incremental and not part.is_mutable(name))
            if limits.must_fit:  # before all of it is in memory
                size = sum(os.path.getsize(os.path.join(folder, name)) for name in targets)
                if size > limits.inline_bytes_max:
                    raise StateTooLargeError.of(size, limits.inline_bytes_max)

            def upload(name: str) -> FileHandle | None:  # None: given up
                return None if snapshot.has_ended else upload_file(os.path.join(folder, name), targets[name])

            with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="upload") as threads:
                uploaded = zip(targets, threads.map(upload, targets))
                return [(name, handle) for name, handle in uploaded if handle is not None]

        def done(uploaded: list[tuple[str, FileHandle]] | None, error: BaseException | None) -> None:
            lying_down.abandon()
            shutil.rmtree(folder, ignore_errors=True)
            if uploaded is not None and not snapshot.has_ended:
                files = tuple(sorted([*reused, *uploaded], key=lambda item: item[0]))
                groups = self._key_groups
                snapshot.keyed[key] = KeyedStateHandle(
                    key[1], groups.start, groups.stop, files=files, format=part.format
                )
                snapshot.written_bytes += sum(file.size_bytes for _, file in uploaded)

        return work, done

    # --- names -------------------------------------------------------------------------------------------------------

    def _path(self, snapshot: TaskSnapshot, *, shared: bool) -> str:
        """Return a path that was never used, "" when there is no folder. It is known before anything is written, so
        whatever happens to the writer, the file can be deleted."""
        options = snapshot.options
        folder = options.shared_folder if shared and options.shared_folder else options.exclusive_folder
        if not folder:
            return ""
        path = f"{folder.rstrip('/')}/{snapshot.checkpoint_id}-{self._name}-{secrets.token_hex(8)}"
        snapshot.paths.append(path)
        return path


@dataclass(frozen=True, slots=True)
class _Limits:
    inline_bytes_max: int
    must_fit: bool

    @classmethod
    def of(cls, options: CheckpointOptions, base: dict[PartKey, LayerStack]) -> _Limits:
        """What deltas of before have inside the metadata counts too, or it would grow with every checkpoint."""
        if not options.exclusive_folder:
            return cls(options.state_bytes_max, must_fit=True)
        layers = [layer for stack in base.values() for layer in stack.layers]
        return cls(max(0, options.inline_bytes_max - sum(len(layer.file.inline) for layer in layers)), must_fit=False)


def _dumped(lists: Sequence[tuple[OperatorID, OperatorStateStore]]) -> dict[OperatorID, bytes]:
    """Return the pickled snapshots of those that have any state."""
    snapshots = ((operator_id, store.snapshot()) for operator_id, store in lists)
    return {operator_id: pickle.dumps(taken, 5) for operator_id, taken in snapshots if taken.states}


def _write(
    chunks: Iterator[Chunks],
    lists: dict[OperatorID, bytes],
    paths: tuple[str, dict[OperatorID, str]],
    limits: _Limits,
) -> _Written:
    """Write everything. ``paths``: of the chunks, and of each operator's lists; "" = inline."""
    path, list_paths = paths
    left = limits.inline_bytes_max
    handles = {}
    for operator_id, content in lists.items():
        is_inline = len(content) <= left
        left -= len(content) if is_inline else 0
        file = write_file(content, "" if is_inline else list_paths.get(operator_id, ""))
        handles[operator_id] = ListStateHandle(file, _has_union(content))
    writer = ChunkWriter(path, left)
    size = sum(map(len, lists.values()))
    try:
        for part in chunks:
            if limits.must_fit:
                size += part.size_bytes
                if size > limits.inline_bytes_max:
                    size += sum(left_over.size_bytes for left_over in chunks)
                    raise StateTooLargeError.of(size, limits.inline_bytes_max)
            # One chunk at a time: they may be made only now, and need not fit in memory together.
            in_order = ((group, part.by_key_group[group]) for group in sorted(part.by_key_group))
            writer.add_layer(in_order, is_delta=part.is_delta)
        return _Written(writer.finish(), handles)
    except BaseException:
        writer.abandon()
        raise


def _has_union(content: bytes) -> bool:
    states = pickle.loads(content).states
    return any(mode is Redistribution.UNION for mode, _ in states.values())


def _delete(paths: list[str]) -> None:
    for path in paths:
        try:
            file_system_of(path).delete(path)
        except (EngineError, OSError, ExternalError):
            pass  # the JobManager sweeps the folder when the job ends
