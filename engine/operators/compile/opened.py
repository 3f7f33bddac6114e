"""What a function object will be once it has been opened, as far as its ``open`` can be read: for plans only.

What runs is translated from the object itself, behind its ``open``.
"""

from __future__ import annotations

import ast
import copy
from typing import Any

from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.source import tree_of
from engine.operators.functions import Function
from engine.operators.opened_functions import keeps_state
from engine.operators.row_output import RowOutput

__all__ = ["as_opened", "sets_in_open"]


def as_opened(function: Any) -> Any:
    """Return the function, as an object with the attributes that its ``open`` sets to constants."""
    if isinstance(function, RowOutput):
        inner = as_opened(function.function)
        if inner is function.function:
            return function
        opened = copy.copy(function)
        opened.function = inner
        return opened
    constants = _constants(function)
    if not constants:
        return function
    opened = copy.copy(function)
    for name, value in constants.items():
        vars(opened)[name] = value
    return opened


def sets_in_open(function: Any, name: str) -> bool:
    """Whether the object's ``open`` sets the attribute to something that only shows when it has been called."""
    return any(_target(node) == name for node in _statements(function))


def _statements(function: Any) -> list[ast.stmt]:
    if isinstance(function, RowOutput):
        return _statements(function.function)
    if not isinstance(function, Function) or type(function).open is Function.open or keeps_state(function):
        return []
    try:
        tree = tree_of(type(function).open)  # type: ignore[arg-type]
    except NotCompilable:
        return []
    return list(tree.body) if isinstance(tree, ast.FunctionDef) else []


def _target(node: ast.AST) -> str:
    match node:
        case ast.Assign([ast.Attribute(ast.Name("self"), name)], _) | ast.AnnAssign(
            ast.Attribute(ast.Name("self"), name), _, ast.expr()
        ):
            return name
    return ""


def _constants(function: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in _statements(function):
        if any(isinstance(part, ast.Return) for part in ast.walk(node)):
            break
        name = _target(node)
        if not name:
            continue
        found.pop(name, None)
        try:
            found[name] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
        except (ValueError, TypeError):
            pass
    return found
