"""Rows and objects in functions that fold records, as the tuples of their fields that ``folds`` knows.

Fields by name become fields by number, and what makes a record of the same kind becomes the tuple of its fields.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NoReturn, TypeVar, final

from engine.core.record_class import defaults_of, fields_of_class
from engine.core.records import Row
from engine.operators.compile.callee import Default, arguments_of
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.shapes import Shape

__all__ = ["fields_made", "of_fields"]

T = TypeVar("T", bound=ast.AST)


def _refuse(what: str) -> NoReturn:
    raise NotCompilable(what)


def of_fields(tree: T, arguments: Collection[str], shape: Shape) -> T:
    """Return the tree with fields of these arguments, which are records of the shape, by number."""
    if shape.names is None:
        return tree
    changed: T = _ByNumber(arguments, shape).visit(copy.deepcopy(tree))
    return changed


@final
class _ByNumber(ast.NodeTransformer):
    def __init__(self, arguments: Collection[str], shape: Shape) -> None:
        self._arguments = arguments
        self._shape = shape

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        names, is_row = self._shape.names or (), self._shape.record is None
        match node:
            case ast.Attribute(ast.Name(name), field) if name in self._arguments and field in names:
                if not (is_row and hasattr(Row, field)):
                    return _item(name, names.index(field))
        return self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        names, shape = self._shape.names or (), self._shape
        match node:
            case ast.Subscript(ast.Name(name), at) if name in self._arguments:
                if not shape.has_places:
                    _refuse("its records have no fields by number")
                match at:
                    case ast.Constant(str() as field) if shape.record is None and field in names:
                        return _item(name, names.index(field))
        return self.generic_visit(node)


def fields_made(node: ast.expr, arguments: Collection[str], shape: Shape, outside: Callable[[str], Any]) -> ast.expr:
    """Return the tuple of the fields of what a function returns where that is a record of the shape, made anew or from
    one of these arguments; of tuples the node itself. ``outside``: gives what a name means. Raises: NotCompilable."""
    if shape.names is None:
        return node
    is_row = shape.record is None
    match node:
        case ast.Name(name) if name in arguments:
            return node
        case ast.Call(ast.Attribute(ast.Name(name), "_replace"), [], changes) if name in arguments and shape.is_tuple:
            return _replaced(name, changes, shape)
        case ast.Call(ast.Attribute(ast.Name(module), "replace"), [ast.Name(name)], changes) if (
            name in arguments and not is_row and not shape.is_tuple and outside(module) is dataclasses
        ):
            return _replaced(name, changes, shape)
        case ast.Call(ast.Name(called), arguments_given, keywords):
            found = outside(called)
            if found is dataclasses.replace and not is_row and not shape.is_tuple:
                match arguments_given:
                    case [ast.Name(name)] if name in arguments:
                        return _replaced(name, keywords, shape)
            if found is Row and is_row:
                return _row(node, shape)
            if not is_row and found is shape.record:
                return _object(node, shape)
    _refuse("it returns something else than a record of its input's kind")


def _row(node: ast.Call, shape: Shape) -> ast.expr:
    if node.args or tuple(keyword.arg for keyword in node.keywords) != shape.names:
        _refuse("it makes a Row with other fields, or in another order")
    return ast.Tuple([keyword.value for keyword in node.keywords], ast.Load())


def _object(node: ast.Call, shape: Shape) -> ast.expr:
    kind = shape.record
    assert kind is not None
    fields = fields_of_class(kind)
    given = arguments_of(node, list(fields), defaults_of(kind), kind.__name__)
    return ast.Tuple([_value(given[field]) for field in fields], ast.Load())


def _value(given: ast.expr | Default) -> ast.expr:
    if isinstance(given, ast.expr):
        return given
    if type(given.value) not in (int, float, str, bool):
        _refuse(f"it uses a {type(given.value).__name__}")
    return ast.Constant(given.value)


def _replaced(name: str, changes: list[ast.keyword], shape: Shape) -> ast.expr:
    names = shape.names or ()
    values = {change.arg: change.value for change in changes}
    if not values.keys() <= set(names) or len(values) < len(changes):
        _refuse("it replaces a field that its records do not have")
    elements = [values.get(field, _item(name, index)) for index, field in enumerate(names)]
    return ast.Tuple(elements, ast.Load())


def _item(name: str, index: int) -> ast.expr:
    return ast.Subscript(ast.Name(name, ast.Load()), ast.Constant(index), ast.Load())
