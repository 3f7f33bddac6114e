"""Runs a command with all its descendants and measures: wall and CPU seconds, peak memory, time to the first line.

CPU counts every descendant, also those that outlive their parent: this process becomes their reaper. Memory is the sum
of proportional set sizes (PSS) over the tree, sampled four times a second, so that pages shared by forks count once.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

import psutil

from tests.bench.process_cpu import adopt_orphans, descendants_cpu_s

SAMPLE_S = 0.25


@dataclass(frozen=True)
class Measurement:
    wall_s: float
    cpu_s: float
    peak_mb: float
    first_line_s: float | None
    exit_code: int
    output: str


def _pss_mb(processes: Iterable[psutil.Process]) -> float:
    total = 0
    for process in processes:
        try:
            with open(f"/proc/{process.pid}/smaps_rollup", encoding="ascii") as rollup:
                total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        except (OSError, StopIteration, psutil.Error):
            continue
    return total / 1024


def run(
    command: list[str],
    *,
    timeout_s: float,
    env: dict[str, str] | None = None,
    cwd: str | None = None,
    result_start: str = "",
) -> Measurement:
    """Run ``command`` to its end; it is killed with its whole session after ``timeout_s``. ``result_start``: how the
    first line begins that counts for ``first_line_s``."""
    adopt_orphans()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=cwd, start_new_session=True
    )
    peak_mb, first_line_s, lines, ended = 0.0, None, [], threading.Event()

    def sample() -> None:
        nonlocal peak_mb
        root = psutil.Process(process.pid)
        while not ended.wait(SAMPLE_S):
            try:
                peak_mb = max(peak_mb, _pss_mb([root, *root.children(recursive=True)]))
            except psutil.Error:
                return
            if time.monotonic() - started > timeout_s:
                os.killpg(process.pid, signal.SIGKILL)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if first_line_s is None and line.startswith(result_start):
                first_line_s = time.monotonic() - started
            lines.append(line)
        exit_code = process.wait()
    except BaseException:  # this benchmark is being ended: nothing is left behind
        ended.set()
        _end_session(process)
        raise
    wall_s = time.monotonic() - started
    ended.set()
    sampler.join()
    _reap_orphans(process.pid)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measurement(wall_s, cpu_s, peak_mb, first_line_s, exit_code, "".join(lines))


def _end_session(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _reap_orphans(process.pid)


def _reap_orphans(session: int) -> None:
    """Wait for descendants that outlived the command; end those of its session that do not go within 5 s."""
    deadline = time.monotonic() + 5
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            continue
        if time.monotonic() > deadline:
            for child in psutil.Process().children(recursive=True):
                if os.getsid(child.pid) == session:
                    child.kill()
            deadline = time.monotonic() + 5
        time.sleep(0.02)


class TreeWatch:
    """Watches all that this process has started, while it is entered: peak memory; CPU and wall seconds between marks.

    For daemons that outlive a phase of a benchmark. CPU of processes that were killed and waited for counts as well.
    """

    def __enter__(self) -> TreeWatch:
        adopt_orphans()
        self.peak_mb = 0.0
        self._cpu_s = self.started_cpu_s = descendants_cpu_s()
        self._at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def mark(self) -> tuple[float, float]:
        """Return CPU and wall seconds since the last mark."""
        cpu_s, at = descendants_cpu_s(), time.monotonic()
        since = (cpu_s - self._cpu_s, at - self._at)
        self._cpu_s, self._at = cpu_s, at
        return since

    def _sample(self) -> None:
        root = psutil.Process()
        while not self._ended.wait(2 * SAMPLE_S):
            try:
                self.peak_mb = max(self.peak_mb, _pss_mb(root.children(recursive=True)))
            except psutil.Error:
                continue
