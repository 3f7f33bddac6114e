"""Notices that a new version of a program keys its records by another type than the state was written with.

State of int keys is never found again under str keys: the job would go on as if it had none. One foreign key proves
nothing (keys may be of several types, or None), so the first records after a restore are watched until a key of a known
type comes or so many foreign ones that the selector must have changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, final

from engine.core.errors import ProgramError
from engine.state.chunks import key_kinds_of

__all__ = ["KeyTypes"]

#: Records with a foreign key, and none with a known one, after which the job fails.
_FOREIGN_MAX: Final = 32


@final
class KeyTypes:
    """``is_open``: ``see`` still wants to be called; read it before, it is quicker."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._restored: set[str] = set()
        self._num_foreign = 0
        self.is_open = False

    def note(self, keys: Iterable[Any]) -> None:
        """Keys that were restored."""
        self.note_kinds(key_kinds_of(set(map(type, keys))))

    def note_kinds(self, kinds: Iterable[str]) -> None:
        """The same, as ``key_kinds_of`` names them."""
        self._restored.update(kinds)
        self.is_open = bool(self._restored)

    def see(self, key: Any) -> None:
        """Raises: ProgramError when keys are of another type than the restored ones."""
        kind = key_kinds_of((type(key),))[0]
        if kind in self._restored:
            self.is_open = False
            return
        if key is None:  # many streams have records without a key
            return
        self._num_foreign += 1
        if self._num_foreign >= _FOREIGN_MAX:
            raise ProgramError(
                f"{self._owner}: its state was written with keys of type {', '.join(sorted(self._restored))}, and this "
                f"version of the program has keys of type {kind}, e.g. {key!r:.80}: it would never find its state "
                "again. Key the stream as before, or give the operator another uid to start without that state."
            )
