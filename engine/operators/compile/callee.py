"""The plain function behind what a program gave: a function, the method of an object of the function classes, or what
is inside of one whose results are made Rows (``row_output``).

Of an object only what cannot change what its method does unseen: no state, attributes that are constants. An ``open``
that asks for no state is over when the first record comes.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, final

from engine.core.late_dataclass import dataclass
from engine.operators.checkpointed_function import CheckpointedFunction
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.source import tree_of
from engine.operators.functions import Function
from engine.operators.opened_functions import keeps_state
from engine.operators.row_output import RowMap

__all__ = [
    "ABSENT",
    "Callee",
    "Default",
    "arguments_of",
    "attribute_reader",
    "callee_of",
    "defaults_of_function",
    "name_reader",
    "parameters_of",
    "refuse_state",
]

#: Stands for the value of a name that has none.
ABSENT: Final = object()


@final
@dataclass(frozen=True, slots=True)
class Callee:
    """``owner``: the object that the function's first argument is; None = it is no method. ``row_names``: of the Rows
    that tuples become which it returns; None = they stay tuples."""

    function: types.FunctionType
    owner: Any = None
    row_names: tuple[str, ...] | None = None


def _refuse(what: str) -> NoReturn:
    raise NotCompilable(what)


def callee_of(function: Any, method: str) -> Callee:
    """``method``: the one that is called if ``function`` is an object. Raises: NotCompilable."""
    names: tuple[str, ...] | None = None
    if isinstance(function, RowMap):
        names = tuple(function.output_type.get_field_names())
        if len(set(names)) < len(names):
            _refuse("two fields of its output type have the same name")
        function = function.function
    if not isinstance(function, Function):
        if not isinstance(function, types.FunctionType):
            _refuse(f"a {type(function).__name__}, not a plain function")
        return Callee(function, None, names)
    kind = type(function)
    own = inspect.getattr_static(kind, method, None)
    refuse_state(function)
    if method == "get_key" and kind.open is not Function.open:
        _refuse(f"{kind.__name__} is a KeySelector with an open()")
    if not isinstance(own, types.FunctionType) or method in vars(function):
        _refuse(f"{method}() of {kind.__name__} is not a plain method")
    if kind.__getattribute__ is not object.__getattribute__:
        _refuse(f"{kind.__name__} has a __getattribute__()")
    return Callee(own, function, names)


def refuse_state(function: Function) -> None:
    """Raises: NotCompilable for an object that may keep state. What ``open`` does else is done before the first record:
    from then on the object is what it is, and its attributes are watched."""
    if isinstance(function, CheckpointedFunction):
        _refuse(f"{type(function).__name__} is a CheckpointedFunction")
    if keeps_state(function):
        _refuse(f"{type(function).__name__} has an open() that may ask for keyed state")


def attribute_reader(owner: Any, name: str) -> Callable[[], Any]:
    """Return what gives the attribute as it lies in the object or its class: of a property that is the property."""
    return lambda: inspect.getattr_static(owner, name, ABSENT)


def name_reader(function: Any, name: str) -> Callable[[], Any]:
    """Return what gives the value that a name from outside has in the function."""
    code = function.__code__
    if name in code.co_freevars:
        cell = function.__closure__[code.co_freevars.index(name)]

        def read_cell() -> Any:
            try:
                return cell.cell_contents
            except ValueError:
                return ABSENT

        return read_cell
    names = function.__globals__
    return lambda: names.get(name, getattr(builtins, name, ABSENT))


def parameters_of(
    function: types.FunctionType, *, is_flat: bool = False
) -> tuple[ast.Lambda | ast.FunctionDef, list[str]]:
    """Return the tree of a function that computes what it returns, and the names of its arguments; ``is_flat``: or what
    it yields.

    Raises: NotCompilable for what is called otherwise, or a generator. Decorators make no difference: the function at
    hand is the one inside of them if its code is.
    """
    node = tree_of(function)
    arguments = node.args
    if arguments.vararg or arguments.kwarg:
        _refuse("it takes any number of arguments")
    is_generator = function.__code__.co_flags & inspect.CO_GENERATOR and not is_flat
    if is_generator or function.__code__.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        _refuse("it is a generator")
    return node, [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


@final
@dataclass(frozen=True, slots=True)
class Default:
    """The value of an argument that a call does not give."""

    value: Any


def defaults_of_function(function: types.FunctionType) -> dict[str, Any]:
    """Return argument → the value that it has if it is not given."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    last = names[len(names) - len(defaults) :]
    return dict(zip(last, defaults, strict=True)) | (function.__kwdefaults__ or {})


def arguments_of(
    node: ast.Call, parameters: Sequence[str], defaults: Mapping[str, Any], name: str, code: Any = None
) -> dict[str, ast.expr | Default]:
    """Return what a call gives each parameter. ``code``: of the function, which says what is given by name or by place
    only; None = nothing is.

    Raises: NotCompilable for a call with * or **, or one that is an error.
    """
    by_name, by_place = (0, 0) if code is None else (code.co_kwonlyargcount, code.co_posonlyargcount)
    if any(isinstance(argument, ast.Starred) for argument in node.args):
        _refuse(f"it calls {name} with *")
    if len(node.args) > len(parameters) - by_name:
        _refuse(f"it calls {name} with other arguments")
    given: dict[str, ast.expr | Default] = dict(zip(parameters, node.args))
    for keyword in node.keywords:
        if keyword.arg is None:
            _refuse(f"it calls {name} with **")
        if keyword.arg in given or keyword.arg not in parameters[by_place:]:
            _refuse(f"it calls {name} with other arguments")
        given[keyword.arg] = keyword.value
    for parameter in parameters:
        if parameter not in given:
            if parameter not in defaults:
                _refuse(f"it calls {name} with other arguments")
            given[parameter] = Default(defaults[parameter])
    return given
