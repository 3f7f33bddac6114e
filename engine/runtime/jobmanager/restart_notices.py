"""Tells whoever started a job why it is restarted: a program that fails again and again must not look as if it ran."""

from __future__ import annotations

import logging
from typing import Final, final

from engine.protocol.control import ErrorInfo

__all__ = ["RESTARTS_LOGGER", "RestartNotices", "TerminalHandler"]

#: A local cluster shows what is logged here on the terminal; a JobManager has it in its log.
RESTARTS_LOGGER: Final = "engine.restarts"
logger = logging.getLogger(RESTARTS_LOGGER)


@final
class RestartNotices:
    """Of one job: a new cause in full, the same one again in a line, at the 2nd, 4th, 8th… time in a row."""

    def __init__(self, job_name: str) -> None:
        self._job_name = job_name
        self._told = ""
        self._times = 0

    def tell(self, attempt_number: int, delay_ms: int, cause: ErrorInfo | None) -> None:
        why = "the cause is not known" if cause is None else cause.message
        self._times = self._times + 1 if why == self._told else 1
        is_power_of_two = self._times & (self._times - 1) == 0
        if not is_power_of_two:
            return
        first_line = why.partition("\n")[0]
        shown = why if self._times == 1 else f"{first_line} ({self._times} times)"
        self._told = why
        what = f"Job {self._job_name!r} has failed and is restarted in {delay_ms} ms, attempt {attempt_number}: {shown}"
        logger.warning("%s", what)


@final
class TerminalHandler(logging.Handler):
    """Shows records on stderr as long as the program has configured no logging of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)
