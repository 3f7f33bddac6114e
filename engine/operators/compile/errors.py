"""Why a function, or a batch, is left to the interpreter."""

from __future__ import annotations

__all__ = ["Doubt", "NotCompilable"]


class NotCompilable(Exception):
    """Something in the function is not proven to give the same on columns; the text says what, for ``explain``.
    ``unset_attribute``: of its object, where that is what is missing."""

    def __init__(self, text: str, *, unset_attribute: str = "") -> None:
        super().__init__(text)
        self.unset_attribute = unset_attribute


class Doubt(Exception):
    """On this batch the columns might give something else than the interpreter, or it would raise: let it."""
