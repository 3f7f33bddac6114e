"""``dataclass`` for modules that define many: its methods are written when the first of them is called.

The standard library's decorator writes and compiles the text of up to seven methods for each class, 0.6 ms; a local
program imports four hundred such classes and uses a quarter of them. Here a class has its fields at once, and its
``__init__``, ``__repr__``, ``__eq__`` and ``__hash__`` when one of them is wanted: they are the standard library's own.
Until then ``inspect.signature`` of such a class knows no parameters, so what users construct is not declared with this.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

__all__ = ["dataclass"]

#: A class that has one of these of its own, or fields of a base, is left to the standard library.
_NOT_LATE: Final = frozenset(
    ("__init__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__getstate__", "__setstate__")
)

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls=None, /, *, eq=True, frozen=False, slots=False, **others):
        """As ``dataclasses.dataclass``, which a type checker sees. With other parameters it is that one."""
        if others:
            return dataclasses.dataclass(eq=eq, frozen=frozen, slots=slots, **others)
        if cls is None:
            return lambda decorated: _declared(decorated, eq, frozen, slots)
        return _declared(cls, eq, frozen, slots)


def _declared(cls: type, eq: bool, frozen: bool, slots: bool) -> type:
    annotations = inspect.get_annotations(cls)
    if (
        not _NOT_LATE.isdisjoint(cls.__dict__)
        or any(hasattr(base, "__dataclass_fields__") for base in cls.__mro__[1:])
        or any("InitVar" in str(kind) for kind in annotations.values())
    ):
        return dataclasses.dataclass(eq=eq, frozen=frozen, slots=slots)(cls)
    if cls.__doc__ is None:  # else the standard library looks for the signature of a constructor
        cls.__doc__ = f"{cls.__name__}({', '.join(f'{name}: {kind}' for name, kind in annotations.items())})"
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots)(cls)
    params = made.__dataclass_params__
    params.init = params.repr = True
    params.eq, params.frozen = eq, frozen
    names = ["__init__", *(() if "__repr__" in cls.__dict__ else ("__repr__",)), *(("__eq__",) if eq else ())]
    if eq and frozen:
        names.append("__hash__")
    elif eq:
        made.__hash__ = None
    for name in names:
        setattr(made, name, _late(made, name, names))
    if frozen:
        _freeze(made, slots)
    return made  # type: ignore[no-any-return]


def _late(cls: Any, name: str, names: list[str]) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        _write(cls, names)
        return cls.__dict__[name](self, *args, **kwargs)

    method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
    return method


def _write(cls: Any, names: list[str]) -> None:
    """Give ``cls`` the methods ``names`` of a class that has the same fields. Two threads may do it at a time."""
    fields = dataclasses.fields(cls)
    namespace: dict[str, Any] = {field.name: field for field in fields}
    namespace["__annotations__"] = {field.name: field.type for field in fields}
    namespace["__module__"], namespace["__qualname__"] = cls.__module__, cls.__qualname__
    namespace["__doc__"] = cls.__doc__
    if hasattr(cls, "__post_init__"):
        namespace["__post_init__"] = cls.__post_init__
    params, slots = cls.__dataclass_params__, "__slots__" in cls.__dict__
    twin = dataclasses.dataclass(eq=params.eq, frozen=params.frozen, slots=slots)(type(cls.__name__, (), namespace))
    for name in names:
        setattr(cls, name, twin.__dict__[name])


def _freeze(cls: Any, slots: bool) -> None:
    names = frozenset(field.name for field in dataclasses.fields(cls))

    def refuse_to_set(self: Any, name: str, value: Any) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def refuse_to_delete(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    cls.__setattr__, cls.__delattr__ = refuse_to_set, refuse_to_delete
    if slots:  # what pickle does by itself is to set attributes
        cls.__getstate__, cls.__setstate__ = _state, _set_state


def _state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=False):  # as the standard library does
        object.__setattr__(self, field.name, value)
