"""OutputTag: names a side output. PyFlink's."""

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
        if not self.tag_id:
            raise ProgramError("OutputTag needs a tag_id that is not empty.")
