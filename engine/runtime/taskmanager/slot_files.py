"""A job's files on a TaskManager: fetched once by content, linked into each slot's folder, requirements installed once.

They stay while a slot of a job that needs them is here, and for a while longer for the next job that does.
Not here: the JobManager's store (``jobmanager/blob_store``), how a slot uses files (``user_files``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import sys
import time
from collections import defaultdict
from typing import Final, Protocol, final

from engine.core.errors import ExternalError, ProgramError
from engine.core.ids import JobID
from engine.protocol.control import JobInformation, UserFile

__all__ = ["BlobSource", "SlotFiles"]

PIP_TIMEOUT_S: Final = 600.0
#: A program is often run again, and installing takes long.
UNUSED_KEPT_S: Final = 5 * 60.0
#: Of pip's output, the end is what says what is wrong.
PIP_OUTPUT_MAX: Final = 2_000


class BlobSource(Protocol):
    async def fetch_blob(self, sha256: str, target: str) -> None: ...


@final
class SlotFiles:
    def __init__(self, folder: str) -> None:
        self._blobs = os.path.join(folder, "blobs")
        self._sites = os.path.join(folder, "sites")
        os.makedirs(self._blobs, exist_ok=True)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._jobs_by_path: dict[str, set[JobID]] = {}
        self._unused_since_s: dict[str, float] = {}

    async def prepare(self, job: JobInformation, files_dir: str, source: BlobSource, python: str) -> str:
        """Put the job's files into ``files_dir`` (made) and install its requirements; return the site folder or "".

        Raises: ExternalError when a file cannot be fetched, ProgramError when requirements cannot be installed.
        """
        os.makedirs(files_dir, exist_ok=True)
        requirements: list[str] = []
        for file in job.files:
            blob = await self._fetch(file, source, job.job_id)
            target = _inside(files_dir, file.name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with contextlib.suppress(FileExistsError):
                try:
                    os.link(blob, target)
                except FileExistsError:
                    raise
                except OSError:
                    shutil.copyfile(blob, target)
            if file.kind == "requirements":
                requirements.append(file.sha256)
        return await self._install(requirements, files_dir, job, python) if requirements else ""

    def release(self, job_id: JobID) -> None:
        """The job has no slot here any more."""
        for path, jobs in list(self._jobs_by_path.items()):
            jobs.discard(job_id)
            if not jobs:
                del self._jobs_by_path[path]
                self._unused_since_s[path] = time.monotonic()

    def sweep(self) -> None:
        """Remove what no job has used for a while. Cheap when there is nothing to do."""
        oldest_s = time.monotonic() - UNUSED_KEPT_S
        for path in [path for path, since_s in self._unused_since_s.items() if since_s < oldest_s]:
            del self._unused_since_s[path]
            self._locks.pop(os.path.basename(path), None)
            with contextlib.suppress(FileNotFoundError):  # it could not be fetched or installed
                if os.path.isdir(path):
                    gone = f"{path}.gone"
                    os.replace(path, gone)
                    # A thread: installed requirements can be thousands of files.
                    asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, gone, True)
                else:
                    os.remove(path)

    def _use(self, path: str, job_id: JobID) -> None:
        self._jobs_by_path.setdefault(path, set()).add(job_id)
        self._unused_since_s.pop(path, None)

    async def _fetch(self, file: UserFile, source: BlobSource, job_id: JobID) -> str:
        path = os.path.join(self._blobs, file.sha256)
        self._use(path, job_id)
        async with self._locks[file.sha256]:
            if os.path.exists(path):
                return path
            part = f"{path}.part"
            with contextlib.suppress(FileNotFoundError):
                os.remove(part)
            await source.fetch_blob(file.sha256, part)
            found = await asyncio.get_running_loop().run_in_executor(None, _sha256, part)
            if found != file.sha256:
                os.remove(part)
                raise ExternalError(f"File {file.name!r} arrived damaged: sha256 {found}, expected {file.sha256}.")
            os.replace(part, path)
        return path

    async def _install(self, requirements: list[str], files_dir: str, job: JobInformation, python: str) -> str:
        key = hashlib.sha256("\n".join([python, *requirements]).encode()).hexdigest()[:32]
        folder = os.path.join(self._sites, key)
        self._use(folder, job.job_id)
        async with self._locks[key]:
            if os.path.isdir(folder):
                return folder
            os.makedirs(self._sites, exist_ok=True)
            partial = f"{folder}.part"
            shutil.rmtree(partial, ignore_errors=True)
            command = [python or sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            command += ["--no-input", "--target", partial]
            for sha256 in requirements:
                command += ["-r", os.path.join(self._blobs, sha256)]
            for name in sorted({file.target for file in job.files if file.kind == "requirements-cache"}):
                command += ["--no-index", "--find-links", _inside(files_dir, name)]
            await _run_pip(command, job.job_name)
            os.replace(partial, folder)
        return folder


async def _run_pip(command: list[str], job_name: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PIP_TIMEOUT_S)
    except TimeoutError:
        output = f"pip did not end within {PIP_TIMEOUT_S:g} s".encode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        text = output.decode("utf-8", "replace").strip()[-PIP_OUTPUT_MAX:]
        raise ProgramError(
            f"The requirements of job {job_name!r} (python.requirements) cannot be installed on a TaskManager:\n{text}"
        )


def _inside(folder: str, name: str) -> str:
    """Return the path of ``name`` in ``folder``. Raises ProgramError for a name that leads out of it."""
    path = os.path.normpath(os.path.join(folder, name))
    if not path.startswith(os.path.join(folder, "")):
        raise ProgramError(f"File name {name!r} leads out of the job's folder.")
    return path


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
