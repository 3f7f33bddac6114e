"""Exceptions as they are reported: which operator, which record, whose fault.

Not to be confused with ``core/errors`` (the exception tree) or ``protocol/control.ErrorInfo`` (the failure as data).
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import Any, Final

from engine.core.errors import Domain, EngineError, UserCodeError
from engine.core.user_code import describe_record, user_frames, user_traceback
from engine.protocol.control import ErrorInfo

__all__ = ["NO_RECORD", "at_subtask", "error_info", "user_error"]

#: For ``user_error``: the function was not called on a record (open, close, end of input).
NO_RECORD: Final = object()

_IN_OPERATOR: Final = "  in operator "
#: Characters of an exception's text that are told; some carry a whole document.
_TEXT_MAX: Final = 10_000


def user_error(exc: BaseException, *, operator_name: str, record: Any = NO_RECORD, occasion: str = "") -> UserCodeError:
    """Return the error to raise (``from exc``) for an exception of a user function.

    ``occasion``: on what it was called when that was no record, e.g. "event-time timer 5 of key 'a'".
    """
    if isinstance(exc, UserCodeError):
        return exc
    on_record = f" on {occasion}" if occasion else ""
    if record is not NO_RECORD:
        on_record += f" on record: {describe_record(record)}"
    lines = [_first_line(exc), f"{_IN_OPERATOR}{operator_name!r}{on_record}"]
    frames = user_frames(exc)
    if frames:
        lines.append(frames)
    error = UserCodeError("\n".join(lines))
    error.__cause__ = exc
    return error


def at_subtask(info: ErrorInfo, subtask_index: int, parallelism: int) -> ErrorInfo:
    """Return the failure of a user's function with the subtask in which it was, where there are several."""
    if parallelism == 1 or info.domain != Domain.USER.value:
        return info
    lines = info.message.split("\n")
    behind = next((n for n, line in enumerate(lines, 1) if line.startswith(_IN_OPERATOR)), len(lines))
    lines.insert(behind, f"  in subtask {subtask_index + 1} of {parallelism}")
    return replace(info, message="\n".join(lines))


def _first_line(exc: BaseException) -> str:
    if isinstance(exc, EngineError):
        return str(exc)
    return _shortened("".join(traceback.format_exception_only(exc)).strip())


def _shortened(text: str) -> str:
    if len(text) <= _TEXT_MAX:
        return text
    half = _TEXT_MAX // 2
    return f"{text[:half]}\n… ({len(text) - 2 * half} characters left out) …\n{text[-half:]}"


def error_info(exc: BaseException) -> ErrorInfo:
    """Return the failure as data. Errors of user code carry the user's frames, ours the whole stack."""
    whole = _shortened("".join(traceback.format_exception(exc)).rstrip("\n"))
    if isinstance(exc, UserCodeError):
        cause = exc.__cause__ or exc
        return ErrorInfo(type(cause).__name__, str(exc), _shortened(user_traceback(cause)), exc.domain.value)
    if isinstance(exc, EngineError):
        trace = _shortened(user_traceback(exc)) if exc.domain is Domain.USER else whole
        return ErrorInfo(type(exc).__name__, str(exc) or type(exc).__name__, trace, exc.domain.value)
    if user_frames(exc):
        return ErrorInfo(type(exc).__name__, _first_line(exc), _shortened(user_traceback(exc)), Domain.USER.value)
    # The disk is full, a host is gone: not ours to mend. Anything else that comes unwrapped is a bug of the engine.
    domain = Domain.EXTERNAL if isinstance(exc, OSError) else Domain.INTERNAL
    return ErrorInfo(type(exc).__name__, _first_line(exc), whole, domain.value)
