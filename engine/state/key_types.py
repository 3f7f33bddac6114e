"""Notices that a new version of a program keys its records by another type than the state was written with.

State of int keys is never found again under str keys: the job would go on as if it had none. So when another job's
state was restored (``flink run -s``), the first key tells: one of a plain type that can equal none of the restored ones
fails the job at once. Where it is not certain that keys of two types are never equal (classes of the user's, numbers of
numpy, subclasses of tuple), so many foreign keys in a row have to come that the selector must have changed. A key of a
known type ends the watch. A job that restarts is not watched: its program is the same. See decision 30.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, final

from engine.core.errors import ProgramError
from engine.state.chunks import key_kinds_of

__all__ = ["ANY_KIND", "KeyTypes", "never_equal"]

#: Kind of keys of a program that says that they may be of any type: they are not watched.
ANY_KIND: Final = "any"
#: Records with a foreign key, and none with a known one, after which the job fails in any case.
_FOREIGN_MAX: Final = 32
#: Kinds of keys that differ for certain; of others (numbers of numpy, classes of the user's) it is not known.
_DISTINCT: Final = frozenset({"number", "str", "bytes", "date", "time", "datetime", "tuple"})
_SAME: Final = {"Row": "tuple", "Decimal": "number"}


def never_equal(kind: str, others: Iterable[str]) -> bool:
    """Whether no key of this kind, as ``key_kinds_of`` names it, can ever be equal to one of the others."""
    known = {_SAME.get(other, other) for other in others}
    own = _SAME.get(kind, kind)
    return bool(known) and own in _DISTINCT and known <= _DISTINCT and own not in known


@final
class KeyTypes:
    """``owner``: how messages name the operator; "" = its keys are not watched. ``is_open``: ``see`` still wants to be
    called; read it before, it is quicker."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._restored: set[str] = set()
        self._num_foreign = 0
        #: A key of a known type has come; more may be restored after it.
        self._is_over = False
        self.is_open = False

    def note(self, keys: Iterable[Any]) -> None:
        """Keys that were restored."""
        if self._owner and not self._is_over:
            self.note_kinds(key_kinds_of(set(map(type, keys))))

    def note_kinds(self, kinds: Iterable[str]) -> None:
        """The same, as ``key_kinds_of`` names them."""
        if self._owner:
            self._restored.update(kinds)
            self.is_open = bool(self._restored) and not self._is_over

    def see(self, key: Any) -> None:
        """Raises: ProgramError when keys are of another type than the restored ones."""
        kind = key_kinds_of((type(key),))[0]
        if kind in self._restored:
            self.is_open = False
            self._is_over = True
            return
        if key is None:  # many streams have records without a key
            return
        self._num_foreign += 1
        if self._num_foreign >= _FOREIGN_MAX or never_equal(kind, self._restored - {"NoneType"}):
            raise ProgramError(
                f"{self._owner}: its state was written with keys of type {', '.join(sorted(self._restored))}, and this "
                f"version of the program has keys of type {kind}, e.g. {key!r:.80}: it would never find its state "
                "again. Key the stream as before, or give the operator another uid to start without that state. If "
                "its keys are of several types, say so: key_by(..., key_type=Types.PICKLED_BYTE_ARRAY())."
            )
