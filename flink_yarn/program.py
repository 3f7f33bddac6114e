"""Finds the user's program and runs it in a child interpreter; the child's side is ``program_main``.

The child gets the configuration as a JSON file named by ``_FLINK_CLIENT_CONTEXT`` (see ``engine/client/context``) and
reports what it submitted as JSON lines in a result file: ``{"job_id"}``, ``{"plan"}``, ``{"error"}``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from engine.core.config import Configuration
from engine.core.errors import ConfigError, InputError, ProgramError
from engine.core.fs import file_system_of, scheme_of
from engine.core.options import JobOptions
from engine.runtime.taskmanager.private_folder import PrivateFolder

__all__ = ["Program", "ProgramRun", "local_path", "locate_program", "uploaded_id"]

_FOLDER_PREFIX: Final = "flink-program-"
_ARCHIVES: Final = (".zip", ".whl", ".pyz")
#: How often a running program's results are looked at.
_POLL_S: Final = 0.02
#: How long an interrupted program may clean up after itself before it is killed.
_GRACE_S: Final = 5.0


@dataclass(frozen=True)
class Program:
    """What to run. ``path`` is "" when only a module is named (-pym)."""

    path: str
    entry: str  #: "", "module" or "module:function"
    python_path: tuple[str, ...]  #: put in front of sys.path, files and folders
    arguments: tuple[str, ...]

    @property
    def is_archive(self) -> bool:
        return bool(self.path) and not self.path.endswith(".py")


def local_path(text: str) -> str:
    """Return the plain path of ``file:`` forms."""
    return re.sub(r"^file:(//)?(?=/)", "", text)


def uploaded_id(path: str) -> str:
    """Return the id if this names a program uploaded through REST (as /jars lists it), else ""."""
    return path if re.fullmatch(r"[0-9a-f-]{32,36}_[^/]+", path) and not os.path.exists(path) else ""


def split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def locate_program(*, path: str, entry: str, module: str, arguments: Sequence[str], config: Configuration) -> Program:
    """Check that there is a program and return how to run it.

    Raises: ProgramError when the file is missing, is no Python program, or has nothing to start.
    """
    extra = tuple(python_path_entry(part) for part in split_list(config.get(JobOptions.PYTHON_FILES)))
    if module:
        return Program("", module, extra, tuple(arguments))
    path = local_path(path)
    if scheme_of(path) != "file":
        path = _fetched(path)
    if not os.path.exists(path):
        raise ProgramError(f"The program file does not exist: {path}")
    if path.endswith(".jar") or (_is_zip(path) and _holds_java(path)):
        raise ProgramError(
            f"{path} is a Java program; this engine runs Python programs: a .py file, or a .zip, .whl or .pyz with "
            "-c package.module. Rewrite its main with engine.datastream or engine.dataset, which have PyFlink's names."
        )
    if path.endswith(".py"):
        return Program(os.path.abspath(path), entry, extra, tuple(arguments))
    if os.path.isdir(path) or (path.endswith(_ARCHIVES) and _is_zip(path)):
        if not entry and not _has_main_file(path):
            raise ProgramError(
                f"{path} has no __main__.py, so there is no main to run; name it with -c package.module or "
                "-c package.module:function."
            )
        return Program(os.path.abspath(path), entry, extra, tuple(arguments))
    raise ProgramError(
        f"{path} is not a program that can be run; expected a .py file, or a .zip, .whl or .pyz archive"
        + (" (this one is damaged: it is no zip archive)." if path.endswith(_ARCHIVES) else ".")
    )


def _fetched(path: str) -> str:
    """Return a copy on this host of a program that lies elsewhere (hdfs://); it goes with this process."""
    folder = PrivateFolder(_FOLDER_PREFIX, None)
    atexit.register(folder.close)
    target = os.path.join(folder.path, path.rstrip("/").rsplit("/", 1)[-1])
    try:
        with file_system_of(path).open_read(path) as source, open(target, "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except InputError as error:
        raise ProgramError(f"The program cannot be fetched: {error}") from None
    return target


def _is_zip(path: str) -> bool:
    return os.path.isfile(path) and zipfile.is_zipfile(path)


def _holds_java(path: str) -> bool:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return "META-INF/MANIFEST.MF" in names and not any(name.endswith(".py") for name in names)


def _has_main_file(path: str) -> bool:
    if os.path.isdir(path):
        return os.path.isfile(os.path.join(path, "__main__.py"))
    with zipfile.ZipFile(path) as archive:
        return "__main__.py" in archive.namelist()


def python_path_entry(path: str) -> str:
    """Return what must be on sys.path so that a file or folder of python.files can be imported: a package's or a
    module's folder, a plain folder or archive itself."""
    path = os.path.abspath(local_path(path))
    if path.endswith(".py") or os.path.isfile(os.path.join(path, "__init__.py")):
        return os.path.dirname(path)
    return path


@final
class ProgramRun:
    """One run of a program in a child interpreter. Use as a context manager: leaving it ends the child."""

    def __init__(self, program: Program, config: Configuration, *, mode: str = "run") -> None:
        self._program = program
        self._config = config
        self._mode = mode
        self._folder: PrivateFolder | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._read_to = 0
        self.job_ids: list[str] = []
        #: how jobs ended: {"job_id", "status", "net_runtime_ms", "accumulators"}
        self.results: list[dict[str, Any]] = []
        self.plan: str = ""
        self.error: str = ""

    def __enter__(self) -> ProgramRun:
        self._folder = PrivateFolder(_FOLDER_PREFIX, None)
        try:
            self._start(self._folder)
        except BaseException:
            self._folder.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._folder is not None
        try:
            self.end()
        finally:
            self._folder.close()

    @property
    def _result_path(self) -> str:
        assert self._folder is not None
        return os.path.join(self._folder.path, "result.jsonl")

    def _start(self, folder: PrivateFolder) -> None:
        context_path = os.path.join(folder.path, "context.json")
        context = {"configuration": self._config.to_dict(), "mode": self._mode, "result_file": self._result_path}
        with open(context_path, "w", encoding="utf-8") as stream:
            json.dump(context, stream)
        spec_path = os.path.join(folder.path, "program.json")
        with open(spec_path, "w", encoding="utf-8") as stream:
            json.dump(
                {
                    "path": self._program.path,
                    "entry": self._program.entry,
                    "python_path": list(self._program.python_path),
                    "parent": os.getpid(),
                },
                stream,
            )
        python = self._config.get(JobOptions.PYTHON_CLIENT_EXECUTABLE) or sys.executable
        main = os.path.join(os.path.dirname(os.path.abspath(__file__)), "program_main.py")
        environment = {**os.environ, "_FLINK_CLIENT_CONTEXT": context_path}
        home = os.path.dirname(os.path.dirname(main))
        # An installed engine is found by itself, and site-packages in front of the standard library would shadow it.
        if os.path.basename(home) not in ("site-packages", "dist-packages"):
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))
        try:
            self._process = subprocess.Popen(
                [python, main, spec_path, *self._program.arguments],
                env=environment,
                # It goes on reading its files for a moment when this process is killed.
                pass_fds=(folder.lock_fd,),
                # The plan alone goes to stdout: what the program prints while it builds must not mix with the JSON.
                stdout=sys.stderr.fileno() if self._mode == "plan" else None,
            )
        except OSError as error:
            raise ConfigError(
                f"{JobOptions.PYTHON_CLIENT_EXECUTABLE.key} is {python!r}; expected a Python interpreter: "
                f"{error.strerror}."
            ) from None

    def wait(
        self,
        on_job: Callable[[str], None] = lambda job_id: None,
        on_result: Callable[[dict[str, Any]], None] = lambda result: None,
    ) -> int:
        """Return the program's exit code (negative: a signal) when it has ended; tell each submission and each end of a
        job at once."""
        assert self._process is not None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_POLL_S)
            code = self._process.returncode  # before reading: what it wrote last must be seen
            for line in self._new_results():
                self._take(line, on_job, on_result)
            if code is not None:
                return code

    def _take(
        self, line: dict[str, Any], on_job: Callable[[str], None], on_result: Callable[[dict[str, Any]], None]
    ) -> None:
        if "job_id" in line and str(line["job_id"]) not in self.job_ids:
            self.job_ids.append(str(line["job_id"]))
            on_job(self.job_ids[-1])
        if "status" in line:
            self.results.append(line)
            on_result(line)
        if "plan" in line:
            plan = line["plan"]
            self.plan = plan if isinstance(plan, str) else json.dumps(plan)
        if "error" in line:
            self.error = str(line["error"])

    def _new_results(self) -> list[dict[str, Any]]:
        """Return the lines that are complete since the last look."""
        try:
            with open(self._result_path, "rb") as stream:
                stream.seek(self._read_to)
                text = stream.read()
        except FileNotFoundError:
            return []
        complete = text[: text.rfind(b"\n") + 1]
        self._read_to += len(complete)
        return [json.loads(line) for line in complete.splitlines() if line.strip()]

    def end(self, grace_s: float = _GRACE_S) -> None:
        """Interrupt the child if it still runs; it may clean up for ``grace_s``, then it is killed."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
