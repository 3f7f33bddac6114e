"""Calls in functions that are translated: of Python's own functions, of methods of texts and times, of dicts and
parts of texts that are asked for by ``[…]``."""

from __future__ import annotations

import ast
import math
import types
from collections.abc import Sequence
from typing import Any

from engine.operators.compile.calls import FUNCTIONS, METHODS, OF_TIMES, Called, formatted, sliced
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import (
    Abs,
    Compare,
    Constant,
    Expression,
    Field,
    If,
    Kind,
    Let,
    Ref,
    Root,
    Rounded,
    ToFloat,
    ToInt,
    Truth,
)
from engine.operators.compile.shapes import Names, constant, known, refuse
from engine.operators.compile.texts import Concat, Length, ParseFloat, ParseInt, ToText, text_method
from engine.operators.compile.values import Values, of_time, told_by_value

__all__ = ["Calls"]


def _is_known(function: Any) -> bool:
    return isinstance(function, types.BuiltinFunctionType) and function in FUNCTIONS


def _are_texts(nodes: Sequence[ast.expr]) -> bool:
    return all(isinstance(node, ast.Constant) and type(node.value) is str for node in nodes)


class Calls(Values):
    def _split_of(self, node: ast.expr, names: Names) -> tuple[Expression, str] | None:
        """Return text and separator of ``text.split("separator")``."""
        match node:
            case ast.Call(ast.Attribute(owner, "split"), [ast.Constant(str() as separator)], []) if separator:
                text = self.value(owner, names)
                return (text, separator) if text.kind is Kind.STR else None
        return None

    def _call(self, node: ast.Call, names: Names) -> Expression:
        made = self._called(node, names)
        if made is not None:
            return made if isinstance(made, Expression) else refuse("it uses a record that it makes")
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            refuse("it calls with keywords or *")
        match node.func:
            case ast.Attribute(ast.Name(module), name) if self._is_module(module, names):
                arguments = [known(self.value(argument, names)) for argument in node.args]
                function: Any = getattr(math, name, None)
                if function is math.sqrt and len(arguments) == 1:
                    return Root(arguments[0])
                if not _is_known(function) or not arguments:
                    refuse(f"it calls {module}.{name}")
                return Called(function, tuple(arguments), FUNCTIONS[function])
            case ast.Name("len") if self._is_outside("len", names) and self._outside("len") is len:
                match node.args:
                    case [ast.Call(ast.Attribute(owner, "split"), given, [])]:
                        operands = [known(self.value(own, names)) for own in (owner, *given)]
                        if operands[0].kind is Kind.STR:
                            return Called(lambda own, *how: len(own.split(*how)), tuple(operands), Kind.INT)
                return self._builtin(len, "len", [known(self.value(argument, names)) for argument in node.args])
            case ast.Name(name) if self._is_outside(name, names):
                function = self._outside(name)
                return self._builtin(function, name, [known(self.value(argument, names)) for argument in node.args])
            case ast.Attribute(ast.Dict(keys, held), "get") if 1 <= len(node.args) <= 2:
                constants = [self.value(own, names) for own in (*(key for key in keys if key is not None), *held)]
                if len(constants) != 2 * len(held) or not all(isinstance(own, Constant) for own in constants):
                    refuse("it has a dict that is not constant")
                every = [own.value for own in constants]  # type: ignore[attr-defined]
                known_values = dict(zip(every[: len(held)], every[len(held) :], strict=True))
                return self._looked_up(known_values, [known(self.value(own, names)) for own in node.args])
            case ast.Attribute(ast.Name(name), "get") if self._is_outside(name, names):
                container = self._outside(name)
                if type(container) is dict and 1 <= len(node.args) <= 2:
                    return self._looked_up(container, [known(self.value(own, names)) for own in node.args])
                refuse(f"it calls {name}.get()")
            case ast.Attribute(ast.Attribute(ast.Name(owner), name), "get") if self._is_owner(owner, names):
                container = self._attribute(name)
                if type(container) is dict and 1 <= len(node.args) <= 2:
                    return self._looked_up(container, [known(self.value(own, names)) for own in node.args])
                refuse(f"it calls self.{name}.get()")
            case ast.Attribute(ast.Constant(str() as separator), "join"):
                match node.args:
                    case [ast.List(parts) | ast.Tuple(parts)] if parts:
                        texts = tuple(known(self.value(part, names)) for part in parts)
                        return Called(lambda *own: separator.join(own), texts, Kind.STR)
            case ast.Attribute(owner, method):
                return self._method_call(owner, method, node.args, names)
        refuse("it calls something")

    def _method_call(self, owner: ast.expr, method: str, nodes: Sequence[ast.expr], names: Names) -> Expression:
        text = self.value(owner, names)
        if isinstance(text, Field) and text.kind is Kind.OPAQUE and method in OF_TIMES:
            arguments = [known(self.value(node, names)) for node in nodes]
            return Called(of_time(method), (text, *arguments), OF_TIMES[method])
        if known(text).kind is not Kind.STR:
            refuse(f"it calls .{method}() of {text.kind.value}")
        try:
            return text_method(text, method, nodes)
        except NotCompilable:
            if method not in METHODS:
                raise
        match nodes:
            case [ast.Tuple(choices)] if method in ("startswith", "endswith") and _are_texts(choices):
                affixes = tuple(choice.value for choice in choices)  # type: ignore[attr-defined]
                return Called(lambda own: getattr(own, method)(affixes), (text,), Kind.BOOL)
        arguments = [known(self.value(node, names)) for node in nodes]
        return Called(getattr(str, method), (text, *arguments), METHODS[method])

    def _looked_up(self, container: dict[Any, Any], arguments: list[Expression]) -> Expression:
        """``container.get(key, default)``, or ``container[key]`` without default: of the dict as it is then."""
        kinds = {type(value) for value in container.values()}
        kind = {int: Kind.INT, float: Kind.FLOAT, str: Kind.STR, bool: Kind.BOOL}.get(kinds.pop() if kinds else object)
        if kind is None or kinds or (len(arguments) == 2 and arguments[1].kind is not kind):
            refuse("it looks up values of several types, or of a type that columns do not have")
        told_by_value(arguments[0])
        return Called(container.get, tuple(arguments), kind)

    def _container(self, node: ast.expr, names: Names) -> Any:
        """Return what a name from outside, or an attribute of the method's object, is; None = it is neither."""
        match node:
            case ast.Name(name) if self._is_outside(name, names):
                return self._outside(name)
            case ast.Attribute(ast.Name(owner), name) if self._is_owner(owner, names):
                return self._attribute(name)
        return None

    def _subscript(self, node: ast.Subscript, names: Names) -> Expression:
        """``text[…]`` or ``a_dict[…]``."""
        match node.value:
            case ast.Name() | ast.Attribute(ast.Name()) if (
                container := self._container(node.value, names)
            ) is not None:
                if type(container) is dict:
                    made = self._looked_up(container, [known(self.value(node.slice, names))])
                    assert isinstance(made, Called)
                    return Called(container.__getitem__, made.operands, made.kind)
            case ast.Call(ast.Attribute(owner, "split" | "rsplit" | "partition" | "rpartition" as cut), arguments, []):
                text = self.value(owner, names)
                index = self.value(node.slice, names) if not isinstance(node.slice, ast.Slice) else None
                if text.kind is Kind.STR and index is not None and index.kind is Kind.INT:
                    given = [known(self.value(argument, names)) for argument in arguments]
                    return Called(lambda own, at, *how: getattr(own, cut)(*how)[at], (text, index, *given), Kind.STR)
        text = known(self.value(node.value, names))
        if text.kind is not Kind.STR:
            refuse(f"it asks for a part of {text.kind.value}")
        match node.slice:
            case ast.Slice(lower, upper, step):
                bounds = [None if own is None else known(self.value(own, names)) for own in (lower, upper, step)]
            case index_node:
                bounds = [known(self.value(index_node, names))]
        if any(bound is not None and bound.kind is not Kind.INT for bound in bounds):
            refuse("it asks for a part of a text by something else than integers")
        return sliced(text, node.slice, bounds)

    def _text(self, parts: Sequence[ast.expr], names: Names) -> Expression:
        """Translate an f-string of texts and integers as they are."""
        result: Expression = constant("")
        for part in parts:
            match part:
                case ast.Constant(str() as text):
                    one: Expression = constant(text)
                case ast.FormattedValue(value, -1 | 115, None):
                    one = known(self.value(value, names))
                    if one.kind is not Kind.STR:
                        one = ToText(one) if one.kind is Kind.INT else Called(str, (one,), Kind.STR)
                case ast.FormattedValue(value, conversion, spec):
                    match spec:
                        case None | ast.JoinedStr([]):
                            text = ""
                        case ast.JoinedStr([ast.Constant(str() as text)]):
                            pass
                        case _:
                            refuse("it has an f-string whose format is computed")
                    one = formatted(known(self.value(value, names)), conversion, text)
                case _:
                    refuse("it has an f-string of another kind")
            result = Concat(result, one)
        return result

    def _builtin(self, function: Any, name: str, arguments: list[Expression]) -> Expression:
        if (function is min or function is max) and len(arguments) >= 2:
            chosen = arguments[0]
            for argument in arguments[1:]:  # one by one from the left, as they do
                chosen = self._smaller(function is min, chosen, argument)
            return chosen
        if function is round and len(arguments) == 2 and arguments[1].kind is Kind.INT:
            if arguments[0].kind not in (Kind.INT, Kind.FLOAT):
                refuse(f"it rounds {arguments[0].kind.value}")
            return Called(round, tuple(arguments), arguments[0].kind)
        if function is pow and len(arguments) == 2 and isinstance(arguments[1], Constant):
            return self._to_power(arguments[0], arguments[1])
        if _is_known(function) and arguments:
            return Called(function, tuple(arguments), FUNCTIONS[function])
        if len(arguments) != 1:
            refuse(f"it calls {name}")
        (operand,) = arguments
        is_text = operand.kind is Kind.STR
        if function is len:
            return Length(operand)
        if function is abs:
            return Abs(operand)
        if function is int:
            return ParseInt(operand) if is_text else ToInt(operand)
        if function is round and not is_text:
            return ToInt(Rounded(operand)) if operand.kind is Kind.FLOAT else ToInt(operand)
        if function is float:
            return ParseFloat(operand) if is_text else ToFloat(operand)
        if function is bool:
            return Truth(operand)
        if function is str:
            if operand.kind is Kind.INT or is_text:
                return operand if is_text else ToText(operand)
            return Called(str, (operand,), Kind.STR)
        refuse(f"it calls {name}")

    def _smaller(self, is_min: bool, first: Expression, second: Expression) -> Expression:
        """The second one if it is really smaller (greater): so for nan and -0.0 too."""
        if first.kind is not second.kind or first.kind not in (Kind.INT, Kind.FLOAT):
            refuse("it calls min or max of mixed types")
        a, b = Ref(self._next_let(), first.kind), Ref(self._next_let(), second.kind)
        chosen = If(Compare("<" if is_min else ">", b, a), b, a)
        return Let(a.number, first, Let(b.number, second, chosen))
