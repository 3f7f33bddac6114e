"""What a user says about a FileSink: when parts roll, which bucket a record goes to, how files are named.

PyFlink's names. Not here: formats (``part_writers``, ``bulk_writers``), the sink itself (``file_sink``).
"""

from __future__ import annotations

import abc
import datetime as dt
import re
import zoneinfo
from dataclasses import replace
from typing import Any, Final, final

from engine.core.errors import ConfigError
from engine.core.late_dataclass import dataclass

__all__ = ["BucketAssigner", "BucketContext", "OutputFileConfig", "RollingPolicy", "TimeBucketAssigner", "millis_of"]


#: In a pattern of ``TimeBucketAssigner``: milliseconds, which strftime does not have.
MILLIS_DIRECTIVE: Final = "{millis}"


def millis_of(duration: Any) -> int:
    """Return the milliseconds of an int, timedelta, or PyFlink's Duration or Time. Raises ConfigError for others."""
    if isinstance(duration, dt.timedelta):
        return round(duration.total_seconds() * 1000)
    for method in ("to_milliseconds", "to_millis"):
        if hasattr(duration, method):
            return int(getattr(duration, method)())
    return _limit(duration, "a duration in milliseconds")


def _limit(given: Any, what: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int | float) or given < 0:
        raise ConfigError(f"{given!r:.80} is no {what.removeprefix('a ')}; expected a number of at least 0.")
    return int(given)


@final
@dataclass(frozen=True)
class RollingPolicy:
    """When a part file is closed and the next one begun, besides at every checkpoint. A limit of 0 never applies."""

    part_size_bytes: int = 128 << 20
    rollover_interval_ms: int = 60_000
    inactivity_interval_ms: int = 60_000

    @staticmethod
    def default_rolling_policy(
        part_size: int = 1024 * 1024 * 128, rollover_interval: int = 60 * 1000, inactivity_interval: int = 60 * 1000
    ) -> RollingPolicy:
        return RollingPolicy(
            _limit(part_size, "size of a part in bytes"), millis_of(rollover_interval), millis_of(inactivity_interval)
        )

    @staticmethod
    def on_checkpoint_rolling_policy() -> RollingPolicy:
        """At checkpoints and at the end of the input only."""
        return RollingPolicy(0, 0, 0)


@final
@dataclass(frozen=True, slots=True)
class BucketContext:
    """What a BucketAssigner may know besides the record; times in milliseconds, None where there is none."""

    processing_time_ms: int
    watermark_ms: int | None = None
    timestamp_ms: int | None = None

    def current_processing_time(self) -> int:
        return self.processing_time_ms

    def current_watermark(self) -> int | None:
        return self.watermark_ms

    def timestamp(self) -> int | None:
        return self.timestamp_ms


class BucketAssigner(abc.ABC):
    """Which folder below the base a record goes to. Users may write their own, e.g. by a field of the record."""

    @abc.abstractmethod
    def get_bucket_id(self, element: Any, context: BucketContext) -> str:
        """Return a path relative to the base, e.g. "day=2024-05-01"; "" = the base itself."""

    @staticmethod
    def base_path_bucket_assigner() -> BucketAssigner:
        return TimeBucketAssigner()

    @staticmethod
    def date_time_bucket_assigner(format_str: str = "yyyy-MM-dd--HH", timezone_id: str | None = None) -> BucketAssigner:
        """By the wall clock; ``format_str``: a pattern of Java's DateTimeFormatter, of the letters y M d D H m s S."""
        pattern = _strftime_of(format_str)
        if timezone_id is not None:
            try:
                zoneinfo.ZoneInfo(timezone_id)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError):
                raise ConfigError(f"Unknown time zone {timezone_id!r}; expected one such as Europe/Berlin.") from None
        return TimeBucketAssigner(pattern, timezone_id)


#: Letters of Java's DateTimeFormatter → strftime. One letter alone: without leading zeros. Names of days and months
#: depend on the language of the machine, and so would the folders.
_DATE_LETTERS: Final = {
    "yyyy": "%Y",
    "uuuu": "%Y",
    "yy": "%y",
    "uu": "%y",
    "y": "%Y",
    "u": "%Y",
    "MM": "%m",
    "M": "%-m",
    "dd": "%d",
    "d": "%-d",
    "DDD": "%j",
    "D": "%-j",
    "HH": "%H",
    "H": "%-H",
    "mm": "%M",
    "m": "%-M",
    "ss": "%S",
    "s": "%-S",
    "SSS": MILLIS_DIRECTIVE,
}
#: A text in quotes (two quotes are one), a run of one letter, or anything else.
_DATE_PIECES: Final = re.compile(r"'((?:[^']|'')*)'|([A-Za-z])\2*|[^A-Za-z']+|'")


def _strftime_of(format_str: str) -> str:
    """Return a pattern of Java's as one of strftime. Raises ConfigError for letters that are not known."""
    parts = []
    for piece in _DATE_PIECES.finditer(format_str):
        text, quoted, letter = piece.group(), piece.group(1), piece.group(2)
        if letter is not None:
            if text not in _DATE_LETTERS:
                raise ConfigError(
                    f"date_time_bucket_assigner({format_str!r}): {text!r} is not known here; expected one of "
                    f"{', '.join(_DATE_LETTERS)}, and other letters in single quotes."
                )
            parts.append(_DATE_LETTERS[text])
        elif text == "'":
            raise ConfigError(f"date_time_bucket_assigner({format_str!r}): a single quote is not closed.")
        else:
            plain = text if quoted is None else quoted.replace("''", "'") or "'"
            parts.append(plain.replace("%", "%%"))
    return "".join(parts)


@final
@dataclass(frozen=True)
class TimeBucketAssigner(BucketAssigner):
    """None, or one bucket at a time by the wall clock (``strftime`` form)."""

    time_format: str | None = None
    timezone_id: str | None = None

    def get_bucket_id(self, element: Any, context: BucketContext) -> str:
        return self.bucket_at(context.processing_time_ms)

    def bucket_at(self, now_ms: int) -> str:
        if self.time_format is None:
            return ""
        zone = None if self.timezone_id is None else zoneinfo.ZoneInfo(self.timezone_id)
        moment = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC).astimezone(zone)
        return moment.strftime(self.time_format.replace(MILLIS_DIRECTIVE, f"{now_ms % 1000:03}"))


@final
@dataclass(frozen=True)
class OutputFileConfig:
    part_prefix: str = "part"
    part_suffix: str = ""

    def __post_init__(self) -> None:
        for what, text in (("prefix", self.part_prefix), ("suffix", self.part_suffix)):
            if not isinstance(text, str) or "/" in text:
                raise ConfigError(f"OutputFileConfig: the part's {what} is {text!r:.80}; expected a text without '/'.")
        if self.part_prefix.startswith("."):
            raise ConfigError(
                f"OutputFileConfig: the part's prefix is {self.part_prefix!r}; files that begin with a dot are hidden "
                "from readers."
            )

    def get_part_prefix(self) -> str:
        return self.part_prefix

    def get_part_suffix(self) -> str:
        return self.part_suffix

    @staticmethod
    def builder() -> _OutputFileConfigBuilder:
        return _OutputFileConfigBuilder()


@final
class _OutputFileConfigBuilder:
    def __init__(self) -> None:
        self._config = OutputFileConfig()

    def with_part_prefix(self, prefix: str) -> _OutputFileConfigBuilder:
        self._config = replace(self._config, part_prefix=prefix)
        return self

    def with_part_suffix(self, suffix: str) -> _OutputFileConfigBuilder:
        self._config = replace(self._config, part_suffix=suffix)
        return self

    def build(self) -> OutputFileConfig:
        return self._config
