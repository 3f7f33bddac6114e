"""Turns what users pass to key_by into what the exchange knows best.

A field's index or name, and a lambda that only picks a field (``lambda x: x[0]``), become a ``FieldKey``: it is quicker
than a call, it is shown in plans, and vectorised operators understand it.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

from engine.core.errors import ProgramError
from engine.core.type_info import (
    BasicArrayTypeInfo,
    BasicType,
    BasicTypeInfo,
    ListTypeInfo,
    MapTypeInfo,
    ObjectArrayTypeInfo,
    PickledBytesTypeInfo,
    PrimitiveArrayTypeInfo,
    RowTypeInfo,
    SqlTimeTypeInfo,
    TupleTypeInfo,
    TypeInformation,
)
from engine.operators.functions import Function, KeySelector
from engine.operators.keys import FieldKey
from engine.state.key_types import ANY_KIND

__all__ = ["as_key_selector", "check_key_type", "declared_key_kind"]

_NO_KEYS = (ListTypeInfo, MapTypeInfo, PrimitiveArrayTypeInfo, BasicArrayTypeInfo, ObjectArrayTypeInfo)

#: Others are numbers.
_KINDS = {
    BasicType.STRING: "str",
    BasicType.CHAR: "str",
    BasicType.BIG_DEC: "Decimal",
    BasicType.INSTANT: "",
}

_PICK_FIELD = (lambda x: x[0]).__code__
#: Flags that say how a function is called. Not that it stands inside another one, nor what its file imports from
#: ``__future__``: such a lambda picks just as well.
_CALLED_AS = 0xFFFF & ~inspect.CO_NESTED


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


def check_key_type(selector: Any, key_type: TypeInformation | None, record_type: TypeInformation | None) -> None:
    """Refuse a key whose declared type cannot be one: it could not be looked up, or differs between processes.

    Raises: ProgramError. Undeclared types are seen when the first record comes.
    """
    seen = _unfit_type(key_type)
    if seen is None:
        seen = _unfit_type(_field_type(selector, record_type))
    _check_field(selector, record_type)
    if seen is None:
        seen = _unfit_annotation(selector)
    if seen is not None:
        raise ProgramError(
            f"key_by: the key is of type {seen}, which cannot be a key: it is not hashable, or not the same in every "
            "process. Use str, bytes, numbers, dates, or a tuple, Row or dataclass of these, e.g. tuple(the_list)."
        )


def _check_field(selector: Any, record_type: TypeInformation | None) -> None:
    """Raises: ProgramError for a field that the records of a declared type do not have."""
    if not isinstance(selector, FieldKey) or not isinstance(record_type, TupleTypeInfo):
        return
    field, names = selector.field, record_type.get_field_names()
    if isinstance(field, str) and isinstance(record_type, RowTypeInfo) and field not in names:
        raise ProgramError(f"key_by({field!r}): the stream's fields are {', '.join(map(repr, names))}.")
    if isinstance(field, int) and not -len(names) <= field < len(names):
        raise ProgramError(f"key_by({field}): the stream has fields 0 to {len(names) - 1}.")


def declared_key_kind(selector: Any, key_type: TypeInformation | None, record_type: TypeInformation | None) -> str:
    """Return the kind of keys that the program declares, named as in ``state/chunks.key_kinds_of``; "" = it does
    not say, "any" = it says that they may be of several types."""
    if isinstance(key_type, PickledBytesTypeInfo):
        return ANY_KIND
    declared = key_type if key_type is not None else _field_type(selector, record_type)
    if isinstance(declared, BasicTypeInfo):
        return _KINDS.get(declared.basic_type, "number")
    if isinstance(declared, SqlTimeTypeInfo):
        return {"DATE": "date", "TIME": "time", "TIMESTAMP": "datetime"}[declared.kind]
    if isinstance(declared, RowTypeInfo):
        return "Row"
    return "tuple" if isinstance(declared, TupleTypeInfo) else ""


def _field_type(selector: Any, record_type: TypeInformation | None) -> TypeInformation | None:
    if not (isinstance(selector, FieldKey) and isinstance(record_type, TupleTypeInfo)):
        return None
    names: list[Any] = record_type.get_field_names()
    position = selector.field if isinstance(selector.field, int) else -1
    if isinstance(selector.field, str) and selector.field in names:
        position = names.index(selector.field)
    fields = record_type.get_field_types()
    return fields[position] if 0 <= position < len(fields) else None


def _unfit_type(declared: TypeInformation | None) -> str | None:
    if isinstance(declared, _NO_KEYS):
        return repr(declared)
    if isinstance(declared, TupleTypeInfo):
        return next((seen for field in declared.get_field_types() if (seen := _unfit_type(field))), None)
    return None


def _unfit_annotation(selector: Any) -> str | None:
    function = getattr(selector, "get_key", selector)
    returned = getattr(function, "__annotations__", {}).get("return")
    if isinstance(returned, str):  # from __future__ import annotations
        name = returned.partition("[")[0].strip()
        returned = getattr(function, "__globals__", {}).get(name)
    else:
        returned = typing.get_origin(returned) or returned
        name = getattr(returned, "__name__", "")
    if name in ("list", "dict", "set", "frozenset", "bytearray"):
        return name
    return name if isinstance(returned, type) and _is_unstable(returned) else None


def _is_unstable(kind: type) -> bool:
    """Return whether objects of a class are surely no keys: told apart by where they lie in memory, or not hashable."""
    if kind is object or inspect.isabstract(kind) or kind.__subclasses__() or dataclasses.is_dataclass(kind):
        return False
    is_protocol = getattr(kind, "_is_protocol", False)
    return not is_protocol and kind.__hash__ in (None, object.__hash__)


def _picked_field(selector: Any) -> int | None:
    """Return i for ``lambda x: x[i]`` with a non-negative constant i, else None. Same byte code, another constant."""
    code = getattr(selector, "__code__", None)
    if code is None or code.co_code != _PICK_FIELD.co_code or selector.__defaults__:
        return None
    if code.co_argcount != 1 or code.co_freevars or len(code.co_consts) != 2:
        return None
    if code.co_flags & _CALLED_AS != _PICK_FIELD.co_flags & _CALLED_AS:
        return None
    picked = code.co_consts[1]
    return picked if type(picked) is int and picked >= 0 else None
