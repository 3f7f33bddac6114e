"""Folders and files of checkpoints on any file system: metadata, savepoints, deletion. Blocks; call from an I/O thread.

``<dir>/<job id>/chk-<n>/`` has the metadata of checkpoint n and files that only it refers to,
``<dir>/<job id>/shared/`` those that later ones refer to as well, ``savepoint-<6 hex of the job>-<12 hex>/`` all of a
savepoint. A checkpoint exists when its ``_metadata`` does: that is written last, under another name, and renamed. It is
deleted first.
Not here: files of state, which tasks write (``state_files``), and which files may go (``store``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable
from typing import Final

from engine.checkpoint.metadata import METADATA_FILE, decode_metadata, encode_metadata
from engine.checkpoint.model import CompletedCheckpoint
from engine.checkpoint.store import Garbage
from engine.core.errors import ConfigError, CorruptStateError, EngineError, ExternalError, InputError
from engine.core.fs import file_system_of
from engine.core.ids import JobID
from engine.protocol.checkpoint import CheckpointKind

__all__ = [
    "absolute_folder",
    "check_writable",
    "delete_garbage",
    "dispose_savepoint",
    "latest_sound_checkpoint",
    "read_checkpoint",
    "remove_job_folder",
    "savepoint_folder",
    "write_metadata",
]

logger = logging.getLogger(__name__)

_CHECKPOINT_FOLDER: Final = re.compile(r"chk-(\d+)")


def savepoint_folder(root: str, job_id: JobID, random_hex: str) -> str:
    return f"{root.rstrip('/')}/savepoint-{job_id[:6]}-{random_hex[:12]}"


def absolute_folder(path: str) -> str:
    """Return a folder as a URI that means the same in every process: a plain path is on the local file system."""
    path = path.strip()
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:/", path):
        return path.rstrip("/") if not path.endswith(":///") else path
    return "file://" + os.path.abspath(path)


def check_writable(folder: str, key: str, probe: str) -> None:
    """Write and delete a small file named with ``probe``; ``key`` is what the folder was set with.

    Raises: ConfigError with folder, key and cause.
    """
    path = f"{folder}/.probe-{probe}"
    try:
        fs = file_system_of(folder)
        fs.make_dirs(folder)
        with fs.open_write(path, overwrite=True) as stream:
            stream.write(b"can it be written?")
        fs.delete(path)
    except (EngineError, OSError) as error:
        raise ConfigError(
            f"Folder {folder} ({key}) cannot be written: {error} Name a folder that JobManager and TaskManagers "
            "may write."
        ) from error


def write_metadata(checkpoint: CompletedCheckpoint) -> int:
    """Make the checkpoint exist in its folder; return the size of the metadata. Raises what the file system raises."""
    content = encode_metadata(checkpoint)
    fs = file_system_of(checkpoint.folder)
    path = f"{checkpoint.folder}/{METADATA_FILE}"
    with fs.open_write(path + ".inprogress", overwrite=True) as stream:
        stream.write(content)
        stream.flush()
        # Only the local file system has a descriptor; others are durable when the file is closed.
        with contextlib.suppress(AttributeError, OSError):
            os.fsync(stream.fileno())
    fs.rename(path + ".inprogress", path, overwrite=True)
    return len(content)


def read_checkpoint(path: str) -> CompletedCheckpoint:
    """Return the checkpoint at a path: its folder, its ``_metadata``, or a job's folder, of which the newest is taken
    that is sound.

    Raises: InputError when nothing is there, CorruptStateError when it is damaged.
    """
    folder = absolute_folder(path)
    if folder.endswith("/" + METADATA_FILE):
        folder = folder.rpartition("/")[0]
    fs = file_system_of(folder)
    status = fs.status(folder)
    if status is None:
        raise InputError(f"Savepoint {path} does not exist.")
    if not status.is_dir:
        raise InputError(f"{path} is a file; expected the folder of a savepoint or of a retained checkpoint.")
    if fs.status(f"{folder}/{METADATA_FILE}") is None:
        if any(_CHECKPOINT_FOLDER.fullmatch(_name(child.path)) for child in fs.list(folder)):
            return latest_sound_checkpoint(folder)
        raise InputError(
            f"{path} is no savepoint or checkpoint, or one that was not completed: it has no file {METADATA_FILE}."
        )
    try:
        return _read(folder)
    except CorruptStateError as error:
        job_folder, _, name = folder.rpartition("/")
        if _CHECKPOINT_FOLDER.fullmatch(name) is None:
            raise
        raise CorruptStateError(
            f"{error} Name {job_folder} to start from the newest checkpoint in it that is sound."
        ) from error


def _read(folder: str) -> CompletedCheckpoint:
    try:
        with file_system_of(folder).open_read(f"{folder}/{METADATA_FILE}") as stream:
            content = stream.read()
    except InputError as error:
        raise CorruptStateError(f"Metadata of {folder} cannot be read: {error}") from error
    return decode_metadata(content, folder)


def latest_sound_checkpoint(job_folder: str) -> CompletedCheckpoint:
    """Return the newest checkpoint in a job's folder that is whole; log those that are passed over.

    Raises: CorruptStateError that names them all when none is sound.
    """
    fs = file_system_of(job_folder)
    names = [_name(child.path) for child in fs.list(job_folder)]
    numbers = [int(match[1]) for name in names if (match := _CHECKPOINT_FOLDER.fullmatch(name))]
    complaints = []
    for number in sorted(numbers, reverse=True):
        folder = f"{job_folder.rstrip('/')}/chk-{number}"
        if fs.status(f"{folder}/{METADATA_FILE}") is None:
            complaints.append(f"chk-{number} was not completed")
            continue
        try:
            checkpoint = _read(folder)
            verify_files(checkpoint)
        except CorruptStateError as error:
            logger.warning("checkpoint=%d is passed over, an older one is tried: %s", number, error)
            complaints.append(str(error))
            continue
        return checkpoint
    raise CorruptStateError(f"{job_folder} has no sound checkpoint: {'; '.join(complaints) or 'it is empty'}.")


def verify_files(checkpoint: CompletedCheckpoint) -> None:
    """Look whether all files of a checkpoint are there, each as long as it was. What is in them is checked by those who
    read them. Raises CorruptStateError."""
    checked: set[str] = set()
    for handle in checkpoint.handles():
        if not handle.path or handle.path in checked:
            continue
        checked.add(handle.path)
        status = file_system_of(handle.path).status(handle.path)
        if status is None:
            raise CorruptStateError(f"{checkpoint.folder}: its file {handle.path} is missing.")
        if status.size_bytes != handle.size_bytes:
            raise CorruptStateError(
                f"{checkpoint.folder}: its file {handle.path} has {status.size_bytes} bytes; expected "
                f"{handle.size_bytes}."
            )


def dispose_savepoint(path: str) -> None:
    """Delete a savepoint with all that belongs to it. Raises InputError, CorruptStateError, ExternalError."""
    folder = absolute_folder(path)
    if folder.endswith("/" + METADATA_FILE):
        folder = folder.rpartition("/")[0]
    fs = file_system_of(folder)
    if fs.status(folder) is not None and fs.status(f"{folder}/{METADATA_FILE}") is None:
        # Never a folder that only looks like one: the path is a user's.
        raise InputError(f"{path} is no savepoint: it has no file {METADATA_FILE}. Nothing was deleted.")
    checkpoint = read_checkpoint(path)
    if checkpoint.kind is not CheckpointKind.SAVEPOINT:
        # Its shared files may be those of other checkpoints of the job.
        files = tuple(file for file in checkpoint.files() if file.startswith(folder + "/"))
    else:
        files = tuple(checkpoint.files())
    failures = delete_garbage(Garbage((folder,), tuple(sorted(files))))
    if failures:
        raise ExternalError(f"Savepoint {path} is not disposed wholly: {failures[0]}")


def delete_garbage(garbage: Garbage) -> list[str]:
    """Delete metadata first, then files, then folders. What cannot be deleted does not keep the rest; returns the
    failures."""
    failures: list[str] = []
    for folder in garbage.folders:
        _delete(f"{folder}/{METADATA_FILE}", failures)
    for path in garbage.files:
        if not path.startswith(tuple(folder + "/" for folder in garbage.folders)):
            _delete(path, failures)
    for folder in garbage.folders:
        _delete(folder, failures, recursive=True)
    for failure in failures:
        logger.warning("%s It is left behind.", failure)
    return failures


def remove_job_folder(folder: str, retained: Iterable[str]) -> None:
    """The job has ended: delete what lies in its folder but is not ``retained`` (folders and files), e.g. files of
    checkpoints that were aborted; and the folder itself when it is empty then."""
    fs = file_system_of(folder)
    kept = set(retained)
    failures: list[str] = []
    try:
        if fs.status(folder) is None:
            return
        if not kept:
            _delete(folder, failures, recursive=True)
            return
        for child in fs.list(folder):
            path = f"{folder}/{_name(child.path)}"
            if path in kept:
                continue
            if not any(other.startswith(path + "/") for other in kept):
                _delete(path, failures, recursive=True)
                continue
            for inner in fs.list(path):
                inner_path = f"{path}/{_name(inner.path)}"
                if not any(other == inner_path or other.startswith(inner_path + "/") for other in kept):
                    _delete(inner_path, failures, recursive=True)
    except (EngineError, OSError) as error:
        failures.append(f"{folder}: {error}")
    for failure in failures:
        logger.warning("%s It is left behind.", failure)


def _delete(path: str, failures: list[str], *, recursive: bool = False) -> None:
    try:
        file_system_of(path).delete(path, recursive=recursive)
    except (EngineError, OSError) as error:
        failures.append(str(error))


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
