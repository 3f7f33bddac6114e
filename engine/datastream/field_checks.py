"""What can be seen of a field to aggregate while the program is written: that it is there, and that it can be added."""

from __future__ import annotations

from typing import Final

from engine.core.errors import ProgramError
from engine.core.type_info import BasicType, BasicTypeInfo, PickledBytesTypeInfo, TupleTypeInfo, TypeInformation

__all__ = ["check_field"]

_NO_NUMBERS: Final = frozenset({BasicType.STRING, BasicType.CHAR, BasicType.INSTANT})
_ADDED: Final = frozenset({"sum", "avg"})


def check_field(kind: str, field: int | str, record_type: TypeInformation | None) -> None:
    """Raise ProgramError when ``kind`` (sum, min, avg…) of that field cannot be, as far as the records' type says."""
    if isinstance(field, bool) or not isinstance(field, int | str):
        raise ProgramError(f"{kind}({field!r}): expected a field's index or name.")
    if not isinstance(record_type, TupleTypeInfo):
        return
    names = record_type.get_field_names()
    if isinstance(field, str) and field not in names:
        raise ProgramError(f"{kind}({field!r}): the stream's fields are {names}.")
    if isinstance(field, int) and not 0 <= field < len(names):
        raise ProgramError(f"{kind}({field}): the stream has fields 0 to {len(names) - 1}.")
    own = record_type.get_field_types()[names.index(field) if isinstance(field, str) else field]
    if kind in _ADDED and not _may_be_number(own):
        raise ProgramError(
            f"{kind}({field!r}): the field is of type {own}, which cannot be added up; expected numbers."
        )


def _may_be_number(own: TypeInformation) -> bool:
    if isinstance(own, BasicTypeInfo):
        return own.basic_type not in _NO_NUMBERS
    return isinstance(own, PickledBytesTypeInfo)
