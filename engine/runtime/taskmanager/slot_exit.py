"""What the exit code of a slot's process means, in words for whoever reads why a job failed."""

from __future__ import annotations

import signal

__all__ = ["why_ended"]


def why_ended(code: int) -> str:
    """Return one or two sentences. ``code``: as of ``subprocess``, negative for a signal."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = {
            "SIGKILL": " Perhaps it was out of memory: see dmesg, and taskmanager.memory.process.size.",
            "SIGSEGV": " A native library crashed; the TaskManager's .out file has its last words.",
            "SIGABRT": " A native library gave up; the TaskManager's .out file has its last words.",
            "SIGBUS": " The disk or shared memory may be full.",
        }.get(name, "")
        return f"The slot process that ran the job's tasks was ended by {name}.{hint}"
    return (
        f"The slot process that ran the job's tasks ended with exit code {code}: user code ended it, or see the logs."
    )
