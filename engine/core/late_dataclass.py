"""``dataclass`` for modules that define many: its methods are written when the first of them is called.

The standard library's decorator writes and compiles the text of up to seven methods for each class, 0.6 ms; a local
program imports four hundred such classes and uses a quarter of them. Here a class has its fields at once, and its
``__init__``, ``__eq__`` and ``__hash__`` when one of them is wanted, with one text for all; they do what those of the
standard library do. Until then ``inspect.signature`` of such a class knows no parameters, so what users construct is
not declared with this.
"""

from __future__ import annotations

import dataclasses
import inspect
import reprlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

__all__ = ["dataclass"]

#: A class that has one of these of its own, fields of a base, or one that is named as what methods use, is left to the
#: standard library.
_NOT_LATE: Final = frozenset(
    ("__init__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__getstate__", "__setstate__")
)
#: How names begin that methods use.
_TAKEN: Final = ("self", "_set", "_missing", "_default_", "_made_")


class _Missing:
    def __repr__(self) -> str:
        return "<factory>"  # as signatures show it


_MISSING: Final = _Missing()

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
        or any(name.startswith(_TAKEN) or "InitVar" in str(kind) for name, kind in annotations.items())
    ):
        return dataclasses.dataclass(eq=eq, frozen=frozen, slots=slots)(cls)
    if cls.__doc__ is None:  # else the standard library looks for the signature of a constructor
        cls.__doc__ = f"{cls.__name__}({', '.join(f'{name}: {kind}' for name, kind in annotations.items())})"
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots)(cls)
    params = made.__dataclass_params__
    params.init = params.repr = True
    params.eq, params.frozen = eq, frozen
    if "__repr__" not in cls.__dict__:
        made.__repr__ = reprlib.recursive_repr()(_repr)
    names = ["__init__", *(["__eq__"] if eq else []), *(["__hash__"] if eq and frozen else [])]
    if eq and not frozen:
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
    """Give ``cls`` its methods ``names``. Two threads may do it at a time."""
    fields = dataclasses.fields(cls)
    given: dict[str, Any] = {"_set": object.__setattr__, "_missing": _MISSING}
    text = [*_init_lines(cls, fields, given)]
    compared = [field.name for field in fields if field.compare]
    mine, others = (_tuple(name, compared) for name in ("self", "other"))
    text += ["def __eq__(self, other):", " if other.__class__ is self.__class__:", f"  return {mine} == {others}"]
    text += [" return NotImplemented"]
    hashed = [field.name for field in fields if (field.compare if field.hash is None else field.hash)]
    text += ["def __hash__(self):", f" return hash({_tuple('self', hashed)})"]
    # Compiled first: executing a text makes Python forget that it is to end as one that was interrupted (exit code).
    exec(compile("\n".join(text), f"<methods of {cls.__qualname__}>", "exec"), given)
    given["__init__"].__annotations__ = {**{field.name: field.type for field in fields if field.init}, "return": None}
    for name in names:
        method = given[name]
        method.__qualname__, method.__module__ = f"{cls.__qualname__}.{name}", cls.__module__
        setattr(cls, name, method)


def _tuple(of: str, names: list[str]) -> str:
    return f"({''.join(f'{of}.{name},' for name in names)})"


def _init_lines(cls: Any, fields: tuple[dataclasses.Field[Any], ...], given: dict[str, Any]) -> Iterator[str]:
    """Yield the text of ``__init__``; put the objects that it names into ``given``."""
    positional, keywords, body = ["self"], list[str](), list[str]()
    is_frozen, has_slots = cls.__dataclass_params__.frozen, "__slots__" in cls.__dict__
    for field in fields:
        name, value, default = field.name, field.name, ""
        if field.default is not dataclasses.MISSING:
            given[f"_default_{name}"] = field.default
            default = f"=_default_{name}"
            if not field.init:  # otherwise the class has it
                value = f"_default_{name}" if has_slots else ""
        elif field.default_factory is not dataclasses.MISSING:
            given[f"_made_{name}"] = field.default_factory
            default = "=_missing"
            value = f"_made_{name}() if {name} is _missing else {name}" if field.init else f"_made_{name}()"
        elif not field.init:
            value = ""
        if field.init:
            (keywords if field.kw_only else positional).append(name + default)
        if value:
            body.append(f" _set(self, {name!r}, {value})" if is_frozen else f" self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append(" self.__post_init__()")
    parameters = [*positional, *(["*", *keywords] if keywords else [])]
    yield f"def __init__({', '.join(parameters)}):"
    yield from body or [" pass"]


def _repr(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


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
