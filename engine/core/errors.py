"""The one exception tree. Every message says what was seen, what was expected and how to mend it.

``domain`` tells whose fault it is (the user's program or input, the outside world, or the engine);
``retry`` tells whether trying again by itself can help.
"""

from __future__ import annotations

import enum
from typing import ClassVar

__all__ = [
    "ConfigError",
    "CorruptStateError",
    "Domain",
    "EngineError",
    "ExternalError",
    "IllegalTransition",
    "InputError",
    "InternalError",
    "JobCancelledError",
    "JobExecutionError",
    "JobNotFoundError",
    "NoResourceAvailableError",
    "OutputExistsError",
    "ProgramError",
    "Retry",
    "StaleLeaderError",
    "UserCodeError",
]


class Domain(enum.Enum):
    USER = "user"
    EXTERNAL = "external"
    INTERNAL = "internal"


class Retry(enum.Enum):
    NEVER = "never"
    WITH_BACKOFF = "with-backoff"


class EngineError(Exception):
    """Base of everything the engine raises on purpose."""

    domain: ClassVar[Domain] = Domain.INTERNAL
    retry: ClassVar[Retry] = Retry.NEVER


class ConfigError(EngineError):
    """A configuration key, command-line option or argument has a value that cannot be used."""

    domain = Domain.USER


class ProgramError(EngineError):
    """The user's program cannot become a job: no main, nothing to execute, not picklable, wrong types."""

    domain = Domain.USER


class UserCodeError(EngineError):
    """A user function raised on a record. The message carries the user's own frames, the operator and the record."""

    domain = Domain.USER


class InputError(EngineError):
    """Input is missing or unreadable; names the path and, where known, the byte offset."""

    domain = Domain.USER


class OutputExistsError(EngineError):
    """The output path exists and WriteMode.OVERWRITE was not asked for."""

    domain = Domain.USER


class ExternalError(EngineError):
    """Something outside failed: a file system, a socket, YARN, ZooKeeper."""

    domain = Domain.EXTERNAL
    retry = Retry.WITH_BACKOFF


class CorruptStateError(EngineError):
    """A file of a checkpoint is missing, torn or damaged. Trying again does not help; an older checkpoint may. When a
    task fails with it while it restores, its job goes on from the checkpoint before."""

    domain = Domain.EXTERNAL


class NoResourceAvailableError(EngineError):
    """A job did not get its slots within ``slot.request.timeout``."""

    domain = Domain.EXTERNAL


class StaleLeaderError(EngineError):
    """A message carried the fencing token of a leader that no longer leads."""

    domain = Domain.EXTERNAL


class JobNotFoundError(EngineError):
    """No job with that id is known to the JobManager."""

    domain = Domain.USER


class JobExecutionError(EngineError):
    """The job ended in FAILED; the message is its root cause."""

    domain = Domain.USER


class JobCancelledError(EngineError):
    """The job ended in CANCELED while a client waited for its result."""

    domain = Domain.USER


class InternalError(EngineError):
    """A bug of ours."""


class IllegalTransition(InternalError):
    """A state machine was asked for an edge that it does not have; carries what happened before."""

    def __init__(self, subject: str, source: enum.Enum, target: enum.Enum, *, story: list[str]) -> None:
        super().__init__(f"{subject}: {source.name} → {target.name} is not a legal transition. Story: {story}")
