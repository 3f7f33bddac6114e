"""Users' files by content, in a private temporary folder of the JobManager. Not persistent: clients send what it lacks.

A file is kept while a job that has not ended refers to it, and for a while longer for the client that is about to
submit, perhaps the same program again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from typing import Final, final

from engine.core.clock import Clock
from engine.core.ids import JobID

__all__ = ["BlobStore", "sha256_of_file"]

#: Time between "do you have it?" and the submission that refers to it; other files are uploaded meanwhile.
UNREFERENCED_KEPT_MS: Final = 5 * 60_000


def sha256_of_file(path: str) -> str:
    """Return the content hash, 64 hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@final
class BlobStore:
    def __init__(self, parent_dir: str | None, clock: Clock) -> None:
        self.folder = tempfile.mkdtemp(prefix="blobs-", dir=parent_dir or None)
        self._clock = clock
        self._used_ms: dict[str, int] = {}
        self._jobs_by_blob: dict[str, set[JobID]] = {}

    def put(self, content_path: str) -> str:
        """Move a file into the store; return its sha256."""
        sha256 = sha256_of_file(content_path)
        target = os.path.join(self.folder, sha256)
        if os.path.exists(target):
            os.remove(content_path)
        else:
            shutil.move(content_path, target)
        self._used_ms[sha256] = self._clock.monotonic_ms()
        return sha256

    def path(self, sha256: str) -> str | None:
        """Return where the blob lies, None if it is unknown. Never leads out of the folder."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            return None
        path = os.path.join(self.folder, sha256)
        if not os.path.isfile(path):
            return None
        self._used_ms[sha256] = self._clock.monotonic_ms()
        return path

    def retain(self, job_id: JobID, blobs: Iterable[str]) -> None:
        """Keep ``blobs`` until ``release(job_id)``."""
        for sha256 in blobs:
            self._jobs_by_blob.setdefault(sha256, set()).add(job_id)

    def release(self, job_id: JobID) -> None:
        """The job has ended; does nothing when it was released before."""
        for sha256, jobs in list(self._jobs_by_blob.items()):
            jobs.discard(job_id)
            if not jobs:
                del self._jobs_by_blob[sha256]

    def sweep(self) -> None:
        """Drop files that no job refers to and nobody has asked for in a while."""
        oldest_ms = self._clock.monotonic_ms() - UNREFERENCED_KEPT_MS
        for sha256, used_ms in list(self._used_ms.items()):
            if used_ms < oldest_ms and sha256 not in self._jobs_by_blob:
                del self._used_ms[sha256]
                os.remove(os.path.join(self.folder, sha256))

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
