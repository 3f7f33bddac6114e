"""Classes whose objects are records of columns: dataclasses and named tuples that are nothing but their fields.

Such an object is made by its class from the values of its columns, in their order, and is then the very one that the
program would have made. Not here: which functions make them (``operators/compile``).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import inspect
import types
from typing import Any, Final

from engine.core.user_code import dumps, loads

__all__ = ["class_from", "class_pickle", "defaults_of", "fields_of_class", "why_not_plain"]

#: What would make of a record something else than its fields: how it is made, read and written.
_DEFINING: Final = ("__new__", "__getattribute__", "__setattr__", "__delattr__", "__post_init__", "__del__")
_SLOT: Final = types.MemberDescriptorType
_pickles: dict[type, bytes] = {}
_classes: dict[bytes, type] = {}


def fields_of_class(kind: type) -> tuple[str, ...]:
    """Return the names of the fields of a dataclass or a named tuple; () = it is neither."""
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    names = getattr(kind, "_fields", None)
    return tuple(names) if issubclass(kind, tuple) and isinstance(names, tuple) else ()


@functools.lru_cache(256)
def why_not_plain(kind: Any) -> str:
    """Return why objects of a class are more than their fields; "" = they are not."""
    if not isinstance(kind, type) or not fields_of_class(kind):
        return "no dataclass and no named tuple with fields"
    if type(kind) is not type:
        return "it has a metaclass"
    if not dataclasses.is_dataclass(kind):
        return _why_no_plain_tuple(kind)
    return "it is a tuple, too" if issubclass(kind, tuple) else _why_no_plain_dataclass(kind)


def _why_no_plain_tuple(kind: type) -> str:
    fields = fields_of_class(kind)
    try:
        twin: Any = collections.namedtuple(kind.__name__, fields)  # type: ignore[misc]
    except ValueError:
        return "its fields are none of a named tuple"
    for name in ("__new__", "_replace"):
        own = getattr(kind, name)
        if not isinstance(own, types.FunctionType) or _doing(own) != _doing(getattr(twin, name)):
            return f"its {name}() is its own"
    changed = {"__init__", "__getattribute__", "__iter__", "__getitem__", "__len__"} & vars(kind).keys()
    if kind.__bases__ != (tuple,) or changed:
        return "it changes what a named tuple does"
    getter = type(vars(twin)[fields[0]])
    computed = [name for name in fields if type(vars(kind).get(name)) is not getter]
    return f"its field {computed[0]} is computed" if computed else ""


def _why_no_plain_dataclass(kind: type) -> str:
    params = kind.__dataclass_params__  # type: ignore[attr-defined]
    for name in _DEFINING:
        if name in ("__setattr__", "__delattr__") and params.frozen:
            continue  # the ones that refuse; told from others by the bytes of __init__ below
        if inspect.getattr_static(kind, name, None) is not inspect.getattr_static(object, name, None):
            return f"it has a {name}()"
    fields: Any = dataclasses.fields(kind)
    if any(not field.init or field.kw_only for field in fields) or kind.__match_args__ != fields_of_class(kind):  # type: ignore[attr-defined]
        return "it has fields that its __init__() does not take by position"
    for field in fields:
        held = inspect.getattr_static(kind, field.name, None)
        if hasattr(type(held), "__get__") and not isinstance(held, _SLOT):
            return f"its field {field.name} is computed"
    twin: Any = dataclasses.make_dataclass(
        kind.__name__, [(field.name, object, _copied(field)) for field in fields], frozen=params.frozen
    )
    own = vars(kind).get("__init__")
    if not isinstance(own, types.FunctionType) or _doing(own) != _doing(twin.__init__):
        return "its __init__() is its own"
    return ""


def _copied(field: Any) -> Any:
    if not _is_missing(field.default):
        return dataclasses.field(default=field.default)
    if not _is_missing(field.default_factory):
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field()


def _is_missing(default: Any) -> bool:
    # By type: of a class that came from another process it is not the same object.
    return isinstance(default, type(dataclasses.MISSING))


def _doing(function: types.FunctionType) -> tuple[Any, ...]:
    code = function.__code__
    return code.co_code, code.co_names, code.co_consts, code.co_varnames, code.co_argcount


def defaults_of(kind: type) -> dict[str, Any]:
    """Return the default values of a plain class's fields, but for those that a function makes anew."""
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(kind)
        return {field.name: field.default for field in fields if not _is_missing(field.default)}
    return dict(kind._field_defaults)  # type: ignore[attr-defined]


def class_pickle(kind: type) -> bytes:
    """Return the class as bytes, by value if it is of the program; always the same ones in one process."""
    found = _pickles.get(kind)
    if found is None:
        found = _pickles[kind] = dumps(kind, "the class of records")
        _classes[found] = kind
    return found


def class_from(pickled: bytes) -> type:
    """Return the class of these bytes; one that this process has already is not made again."""
    found = _classes.get(pickled)
    if found is None:
        found = _classes[pickled] = loads(pickled)
    return found
