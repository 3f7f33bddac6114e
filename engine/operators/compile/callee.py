"""The plain function behind what a program gave: a function, the method of an object of the function classes, or what
is inside of one whose results are made Rows (``row_output``).

Of an object only what cannot change what its method does unseen: no ``open``, no state, attributes that are constants.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import types
from collections.abc import Callable
from typing import Any, Final, NoReturn, final

from engine.core.late_dataclass import dataclass
from engine.operators.checkpointed_function import CheckpointedFunction
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.source import tree_of
from engine.operators.functions import Function
from engine.operators.row_output import RowMap

__all__ = ["ABSENT", "Callee", "attribute_reader", "callee_of", "name_reader", "parameters_of"]

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
    if kind.open is not Function.open or isinstance(function, CheckpointedFunction):
        _refuse(f"{kind.__name__} has an open() or a state")
    if not isinstance(own, types.FunctionType) or method in vars(function):
        _refuse(f"{method}() of {kind.__name__} is not a plain method")
    if kind.__getattribute__ is not object.__getattribute__:
        _refuse(f"{kind.__name__} has a __getattribute__()")
    return Callee(own, function, names)


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


def parameters_of(function: types.FunctionType) -> tuple[ast.Lambda | ast.FunctionDef, list[str]]:
    """Return the tree of a function that computes what it returns, and the names of its arguments.

    Raises: NotCompilable for what is called otherwise, a generator, or one that is decorated.
    """
    node = tree_of(function)
    arguments = node.args
    if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or function.__defaults__:
        _refuse("it has optional arguments")
    if function.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        _refuse("it is a generator")
    if isinstance(node, ast.FunctionDef) and node.decorator_list:
        _refuse("it is decorated")
    return node, [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
