"""Turns what users pass to key_by into what the exchange knows best.

A field's index or name, and a lambda that only picks a field (``lambda x: x[0]``), become a ``FieldKey``: it is quicker
than a call, it is shown in plans, and vectorised operators understand it.
"""

from __future__ import annotations

import inspect
from typing import Any

from engine.core.errors import ProgramError
from engine.operators.functions import Function, KeySelector
from engine.operators.keys import FieldKey

__all__ = ["as_key_selector"]

_PICK_FIELD = (lambda x: x[0]).__code__


def as_key_selector(selector: Any) -> Any:
    """Return a FieldKey where the selector picks one field, else the selector itself.

    Raises: ProgramError for what is neither a field, a function nor a KeySelector.
    """
    if isinstance(selector, (int, str)) and not isinstance(selector, bool):
        return FieldKey(selector)
    field = _picked_field(selector)
    if field is not None:
        return FieldKey(field)
    if isinstance(selector, Function) and not isinstance(selector, KeySelector):
        raise ProgramError(f"key_by({type(selector).__name__}()): expected a KeySelector with get_key().")
    if not callable(selector) and not isinstance(selector, KeySelector):
        raise ProgramError(f"key_by({selector!r}): expected a function, a KeySelector, a field's index or its name.")
    return selector


def _picked_field(selector: Any) -> int | None:
    """Return i for ``lambda x: x[i]`` with a non-negative constant i, else None. Same byte code, another constant."""
    code = getattr(selector, "__code__", None)
    if code is None or code.co_code != _PICK_FIELD.co_code or selector.__defaults__:
        return None
    flags = code.co_flags & ~inspect.CO_NESTED  # a lambda inside a function picks just as well
    if code.co_argcount != 1 or flags != _PICK_FIELD.co_flags or code.co_freevars or len(code.co_consts) != 2:
        return None
    picked = code.co_consts[1]
    return picked if type(picked) is int and picked >= 0 else None
