"""OutputTag: names a side output. A process function that yields ``tag, value`` sends the value there. PyFlink's."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.errors import ProgramError
from engine.core.type_info import TypeInformation

__all__ = ["OutputTag"]


@dataclass(frozen=True)
class OutputTag:
    tag_id: str
    type_info: TypeInformation | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.tag_id, str) or not self.tag_id:
            raise ProgramError(f"OutputTag({self.tag_id!r}): expected a tag_id that is not empty.")
