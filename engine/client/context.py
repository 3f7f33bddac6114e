"""Where a program runs, as told by whoever started it (``flink run``, the JobManager's REST): one JSON file.

``_FLINK_CLIENT_CONTEXT`` names it: ``{"configuration": {…}, "mode": "run" | "plan", "result_file": path}``. What the
program submits is written to the result file, one JSON object a line. Without the variable the program was started by
itself.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

from engine.core.config import Configuration
from engine.core.errors import ConfigError
from engine.core.ids import JobID
from engine.core.options import JobOptions

if TYPE_CHECKING:
    from engine.client.job_client import JobOutcomeView

__all__ = ["CONTEXT_VARIABLE", "ClientContext", "ProgramAbort", "next_job_id"]

CONTEXT_VARIABLE: Final = "_FLINK_CLIENT_CONTEXT"
_job_numbers = itertools.count()


def next_job_id(config: Configuration) -> JobID:
    """Return the id of the next job that this program submits.

    A program that is run again by a new attempt of its application gives its jobs the ids of before, in their order, so
    that what was submitted is found and not run twice.
    """
    seed = config.get(JobOptions.JOB_IDS_FROM)
    if not seed:
        return JobID.generate()
    return JobID(hashlib.md5(f"{seed} {next(_job_numbers)}".encode(), usedforsecurity=False).hexdigest())


class ProgramAbort(BaseException):
    """Ends a program of which only the plan was wanted. Not an Exception: programs must not catch it by accident."""


@final
@dataclass(frozen=True)
class ClientContext:
    configuration: Configuration = field(default_factory=Configuration)
    mode: str = "run"
    result_file: str = ""

    @classmethod
    def current(cls) -> ClientContext:
        """Return the context of this process, an empty one when it was started by itself. Raises ConfigError."""
        path = os.environ.get(CONTEXT_VARIABLE)
        if not path:
            return cls()
        try:
            with open(path, encoding="utf-8") as stream:
                tree = json.load(stream)
            mode = tree.get("mode", "run")
            return cls(Configuration(tree.get("configuration", {})), mode, tree.get("result_file") or "")
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{CONTEXT_VARIABLE} names {path}, which is not a readable context file: {error}. Unset the variable."
            ) from None

    def record_submission(self, job_id: str) -> None:
        """Tell whoever started this program which job it submitted."""
        self._append({"job_id": job_id})

    def record_plan(self, plan: Any) -> None:
        self._append({"plan": plan})

    def record_result(self, result: dict[str, Any]) -> None:
        """Tell how a job ended: ``{"job_id", "status", …}``."""
        self._append(result)

    def record_outcome(self, job_id: str, outcome: JobOutcomeView) -> None:
        """Tell how a job ended, with accumulators as far as JSON can say them, else as text."""
        self.record_result(
            {
                "job_id": job_id,
                "status": outcome.status.value,
                "net_runtime_ms": outcome.net_runtime_ms,
                "accumulators": {name: _plain(value) for name, value in outcome.accumulators.items()},
            }
        )

    def _append(self, line: dict[str, Any]) -> None:
        if self.result_file:
            with open(self.result_file, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


def _plain(value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value
