"""Options of log files (``process_setup``, ``scripts``). Part of ``core/options``, which says what holds for all."""

from __future__ import annotations

import logging
from typing import Final

from engine.core.config import ConfigOption, integer, memory_bytes

__all__ = ["LogOptions", "python_log_level"]

#: of log4j; Python's logging has no finer one than DEBUG and nothing beyond CRITICAL
_LEVELS: Final = {
    "ALL": logging.DEBUG,
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
    "CRITICAL": logging.CRITICAL,
    "OFF": logging.CRITICAL + 1,
}
#: A line of the log with its stack trace should not fill several files.
_SIZE_BYTES_MIN: Final = 1024


def _level(text: str) -> str:
    level = text.strip().upper()
    if level not in _LEVELS:
        raise ValueError("one of DEBUG, INFO, WARN, ERROR, FATAL, OFF")
    return level


def python_log_level(level: str) -> int:
    """Return the number that Python's logging has for a level; what is no level counts as INFO."""
    return _LEVELS.get(level.strip().upper(), logging.INFO)


class LogOptions:
    LEVEL: Final = ConfigOption(
        "env.log.level",
        _level,
        "INFO",
        "How much processes write into their logs: DEBUG, INFO, WARN, ERROR, FATAL or OFF. The environment variable "
        "FLINK_LOG_LEVEL wins over it, and it wins over conf/log.properties.",
    )
    BACKUPS_MAX: Final = ConfigOption(
        "env.log.max",
        integer,
        10,
        "How many older files are kept of each .log and .out file: x.log.1 is the newest of them.",
        check=(lambda value: value >= 1, "a whole number of at least 1"),
    )
    SIZE_MAX: Final = ConfigOption(
        "env.log.max-size",
        memory_bytes,
        100 << 20,
        "Size at which a .log or .out file is rolled (in Flink it stands in log4j.properties, and .out files grow for "
        "ever).",
        check=(lambda value: value >= _SIZE_BYTES_MIN, f"a size of at least {_SIZE_BYTES_MIN} bytes"),
    )
