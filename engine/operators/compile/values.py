"""From a function's tree to the values that it computes: fields, names, arithmetic, comparisons, calls.

What it does with them, statement by statement, and the records that it returns are ``translate``'s.
"""

from __future__ import annotations

import ast
import datetime as dt
import math
import operator
import types
from collections.abc import Callable, Sequence
from typing import Any, Final

from engine.core.records import Row
from engine.operators.compile.callee import ABSENT, attribute_reader, name_reader
from engine.operators.compile.calls import ATTRIBUTES, Called
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import (
    INT_MAX,
    Arithmetic,
    Compare,
    Constant,
    Expression,
    Field,
    If,
    IsIn,
    IsNull,
    Kind,
    Let,
    Logic,
    LowBits,
    Negative,
    Not,
    Ref,
    ToInt,
    Truth,
    Wrapping,
)
from engine.operators.compile.nulls import Equality, FieldTruth
from engine.operators.compile.shapes import Names, Outside, Record, Shape, constant, known, refuse
from engine.operators.compile.texts import (
    Concat,
    Matches,
    SplitPart,
)

__all__ = ["Values", "of_time", "told_by_value"]

_POWER_MAX: Final = 4

_SIGNS: Final[dict[type, str]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


#: Rounds of a loop over constants that are written out.
_ROUNDS_MAX: Final = 16
_NUMBERS: Final = {Kind.INT, Kind.FLOAT, Kind.BOOL}
_TIMES: Final = (dt.datetime, dt.date, dt.time)
#: A text that is repeated more often is left to the interpreter.
_REPEATS_MAX: Final = 1 << 10


def told_by_value(operand: Expression) -> Expression:
    """Return what is looked for among others; NaN, which is found by identity, has none here."""
    if operand.kind not in (Kind.INT, Kind.STR, Kind.BOOL):
        refuse(f"it looks for {operand.kind.value} among others")
    return operand


def of_time(name: str) -> Callable[..., Any]:
    """Return what gives a field, or calls a method, of a date or time; of anything else it raises."""

    def of_time(value: Any, *arguments: Any) -> Any:
        if type(value) not in _TIMES:
            raise TypeError(name)
        found = getattr(value, name)
        return found(*arguments) if callable(found) else found

    return of_time


def _repeated(first: Any, second: Any) -> str:
    if (second if type(second) is int else first) > _REPEATS_MAX:
        raise OverflowError
    repeated: str = first * second
    return repeated


def _compared(sign: str, left: Expression, right: Expression) -> Expression:
    compared = Compare(sign, left, right)
    is_null_safe = sign in ("==", "!=") and (isinstance(left, Field) or isinstance(right, Field))
    return Equality(compared) if is_null_safe else compared


class Values:
    """``parameter``: the argument that is the record; "" = none is."""

    def __init__(self, function: Any, shape: Shape, parameter: str) -> None:
        self._function = function
        self._shape = shape
        self._parameter = parameter
        self._num_lets = 0
        self._num_blocks = 0
        self._depth = 0  #: of functions that call each other
        self._trees: dict[Any, tuple[ast.Lambda | ast.FunctionDef, list[str]]] = {}  #: of those that are called
        self.owner: tuple[str, Any] | None = None  #: name of the argument that is the method's object, and the object
        self.outside: dict[Any, Outside] = {}

    def condition(self, node: ast.expr, names: Names) -> Expression:
        """Translate what is asked for its truth only."""
        match node:
            case ast.BoolOp(sign, values):
                parts = [self.condition(value, names) for value in values]
                result = parts[-1]
                for part in reversed(parts[:-1]):
                    result = Logic(isinstance(sign, ast.And), part, result)
                return result
            case ast.UnaryOp(ast.Not(), operand):
                return Not(self.condition(operand, names))
        value = self.value(node, names)
        if isinstance(value, Field):
            known(value)
            return FieldTruth(value)
        return value if value.kind is Kind.BOOL else Truth(known(value))

    # --- values

    def _inlined(self, function: types.FunctionType, node: ast.Call, names: Names) -> Record:
        """Translate what another function of the program gives."""
        raise NotImplementedError

    def _called(self, node: ast.Call, names: Names) -> Record | None:
        """Translate a call of a function of the program, or of a class; None = it is of another one."""
        raise NotImplementedError

    def _is_record(self, node: ast.expr, names: Names) -> bool:
        return isinstance(node, ast.Name) and node.id == self._parameter and node.id not in names

    def _field(self, index: int) -> Field:
        return Field(index, self._shape.kinds[index])

    def value(self, node: ast.expr, names: Names) -> Expression:
        match node:
            case ast.Name(name) if name in names:
                return names[name]
            case ast.Name() if self._is_record(node, names):
                if not self._shape.is_scalar:
                    refuse("it uses the record as a whole")
                return self._field(0)
            case ast.Constant(value):
                return constant(value)
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return self._place(node, names)
            case ast.BinOp(left, sign, right):
                return self._arithmetic(left, sign, right, names)
            case ast.UnaryOp(ast.Not(), operand):
                return Not(self.condition(operand, names))
            case ast.UnaryOp(ast.USub(), ast.Constant(int() as value)) if type(value) is int:
                return constant(-value)
            case ast.UnaryOp(ast.UAdd(), operand):
                positive = known(self.value(operand, names))
                return positive if positive.kind is Kind.FLOAT else ToInt(positive)
            case ast.UnaryOp(ast.Invert(), operand):
                inverted = known(self.value(operand, names))
                if inverted.kind is not Kind.INT:
                    refuse(f"it inverts {inverted.kind.value}")
                return Arithmetic("-", Negative(inverted), constant(1))
            case ast.UnaryOp(ast.USub(), operand):
                return Negative(known(self.value(operand, names)))
            case ast.Compare():
                return self._comparison(node, names)
            case ast.BoolOp(sign, values):
                return self._choice(isinstance(sign, ast.And), values, names)
            case ast.IfExp(test, body, orelse):
                then, other = self.value(body, names), self.value(orelse, names)
                return If(self.condition(test, names), known(then), known(other))
            case ast.Call():
                return self._call(node, names)
            case ast.JoinedStr(parts):
                return self._text(parts, names)
        refuse(f"it has a {type(node).__name__}")

    def _place(self, node: ast.expr, names: Names) -> Expression:
        match node:
            case ast.Subscript(owner, ast.Constant(key)) if self._is_record(owner, names):
                return self._field_by(key)
            case ast.Subscript(owner, ast.UnaryOp(ast.USub(), ast.Constant(int() as key))) if self._is_record(
                owner, names
            ):
                return self._field_by(-key)
            case ast.Attribute(owner, name) if self._is_record(owner, names):
                return self._field_or_property(owner, name, names)
            case ast.Subscript(owner, ast.Constant(int() as index)) if type(index) is int and index >= 0:
                split = self._split_of(owner, names)
                return self._subscript(node, names) if split is None else SplitPart(split[0], split[1], index)
            case ast.Attribute(ast.Name(owner_name), name) if self._is_owner(owner_name, names):
                return constant(self._attribute(name))
            case ast.Attribute(ast.Name(module), name) if self._is_module(module, names):
                return constant(getattr(math, name, None))
            case ast.Attribute(owner, name) if name in ATTRIBUTES:
                time = self.value(owner, names)
                if isinstance(time, Field) and time.kind is Kind.OPAQUE:
                    return Called(of_time(name), (time,), Kind.INT)
            case ast.Subscript():
                return self._subscript(node, names)
            case ast.Name(name):
                return constant(self._outside(name))
        refuse(f"it has a {type(node).__name__}")

    def _field_or_property(self, record: ast.expr, name: str, names: Names) -> Expression:
        own, kind = self._shape.names, self._shape.record
        if own is not None and name in own and (kind is not None or not hasattr(Row, name)):
            return self._field(own.index(name))
        if kind is None:
            refuse(f"its records have no field .{name}")
        found = self._of_class(name)
        if not isinstance(found, property):
            return constant(found)
        if not isinstance(found.fget, types.FunctionType):
            refuse(f"it uses .{name}, which is no plain property")
        result = self._inlined(found.fget, ast.Call(record, [record], []), names)
        return result if isinstance(result, Expression) else refuse(f"{name} gives a record")

    def _of_class(self, name: str) -> Any:
        """Return what the records' class has under a name, as it lies there; it is watched from now on."""
        kind = self._shape.record
        assert kind is not None
        found = self._watch(("class", name), attribute_reader(kind, name))
        if found is ABSENT or name.startswith("__"):
            refuse(f"its records have no field .{name}")
        return found

    def _method(self, name: str) -> types.FunctionType:
        """Return a method of the records' class."""
        found = self._of_class(name)
        if not isinstance(found, types.FunctionType) or name in (self._shape.names or ()):
            refuse(f"it calls .{name}(), which is no plain method")
        return found

    def _watch(self, key: Any, read: Callable[[], Any]) -> Any:
        """Return a value that counts as a constant from now on; ``key``: what it is known by."""
        if key not in self.outside:
            self.outside[key] = Outside(read, read())
        return self.outside[key].value

    def _field_by(self, key: Any) -> Field:
        shape = self._shape
        if shape.is_scalar:
            refuse("its records are bare values")
        if not shape.has_places or (shape.record is not None and type(key) is str):
            refuse(f"its records have no field [{key!r}]")
        if type(key) is int and -len(shape.kinds) <= key < len(shape.kinds):
            return self._field(key % len(shape.kinds))
        if type(key) is str and shape.names is not None and key in shape.names:
            return self._field(shape.names.index(key))
        refuse(f"its records have no field [{key!r}]")

    def _is_outside(self, name: str, names: Names) -> bool:
        is_own = name == self._parameter or (self.owner is not None and name == self.owner[0])
        return name not in names and not is_own

    def _is_owner(self, name: str, names: Names) -> bool:
        return self.owner is not None and name == self.owner[0] and name not in names

    def _attribute(self, name: str) -> Any:
        """Return the value of an attribute of the method's object, which is watched from now on."""
        assert self.owner is not None
        if name.startswith("__"):  # Python knows it by another name
            refuse(f"it uses self.{name}")
        value = self._watch(("self", name), attribute_reader(self.owner[1], name))
        if value is ABSENT or value is None:
            raise NotCompilable(f"self.{name} is {'None' if value is None else 'not set'}", unset_attribute=name)
        return value

    def _outside(self, name: str) -> Any:
        """Return the value of a name from outside, which is watched from now on."""
        code = self._function.__code__
        if name in code.co_varnames or name in code.co_cellvars:
            refuse(f"{name} is not assigned on every path")
        value = self._watch(name, name_reader(self._function, name))
        if value is ABSENT:
            refuse(f"{name} is not defined")
        return value

    def _arithmetic(self, left: ast.expr, sign: ast.operator, right: ast.expr, names: Names) -> Expression:
        match sign, right:
            case ast.Pow(), _:
                return self._to_power(known(self.value(left, names)), known(self.value(right, names)))
            case ast.Mod(), ast.Tuple(elements) if isinstance(left, ast.Constant) and type(left.value) is str:
                pattern = left.value
                parts = tuple(known(self.value(element, names)) for element in elements)
                return Called(lambda *own: pattern % own, parts, Kind.STR)
            case ast.LShift(), ast.Constant(int() as bits) if type(bits) is int and 0 <= bits <= 62:
                shifted = known(self.value(left, names))
                if shifted.kind is Kind.INT:
                    return Arithmetic("*", shifted, constant(1 << bits))
            case ast.RShift(), ast.Constant(int() as bits) if type(bits) is int and 0 <= bits <= 62:
                shifted = known(self.value(left, names))
                if shifted.kind is Kind.INT:
                    return Arithmetic("//", shifted, constant(1 << bits))
        if type(sign) not in _SIGNS:
            refuse(f"it has a {type(sign).__name__}")
        if isinstance(sign, ast.BitAnd):
            for operand, other in ((left, right), (right, left)):
                match other:
                    case ast.Constant(int() as mask) if type(mask) is int and 0 <= mask <= INT_MAX:
                        return self._low_bits(operand, mask, names)
        first, second = known(self.value(left, names)), known(self.value(right, names))
        if isinstance(sign, ast.Add) and first.kind is second.kind is Kind.STR:
            return Concat(first, second)
        kinds = {first.kind, second.kind}
        if isinstance(sign, ast.FloorDiv | ast.Mod) and Kind.FLOAT in kinds and kinds <= _NUMBERS:
            compute = operator.floordiv if isinstance(sign, ast.FloorDiv) else operator.mod
            return Called(compute, (first, second), Kind.FLOAT)
        if isinstance(sign, ast.Mod) and first.kind is Kind.STR:
            return Called(operator.mod, (first, second), Kind.STR)
        if isinstance(sign, ast.Mult) and kinds == {Kind.STR, Kind.INT}:
            return Called(_repeated, (first, second), Kind.STR)
        return Arithmetic(_SIGNS[type(sign)], first, second)

    def _to_power(self, base: Expression, power: Expression) -> Expression:
        if base.kind is Kind.FLOAT and power.kind in _NUMBERS:
            return Called(operator.pow, (base, power), Kind.FLOAT)
        if isinstance(power, Constant) and power.kind is Kind.INT and 1 <= power.value <= _POWER_MAX:
            return self._power(base, power.value)
        if base.kind is Kind.INT and power.kind is Kind.FLOAT:
            return Called(operator.pow, (base, power), Kind.FLOAT)
        refuse(f"{base.kind.value} ** something")

    def _low_bits(self, node: ast.expr, bits: int, names: Names) -> Expression:
        operand = self._wrapping(node, names)
        if operand.kind is not Kind.INT:
            return Arithmetic("&", operand, constant(bits))
        return LowBits(operand, bits)

    def _wrapping(self, node: ast.expr, names: Names) -> Expression:
        """Translate integers of which only the lowest 64 bits are wanted."""
        match node:
            case ast.Constant(int() as number) if type(number) is int:
                return Constant((number + 2**63) % 2**64 - 2**63, Kind.INT)
            case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult() | ast.BitAnd() | ast.BitOr() | ast.BitXor(), right):
                first, second = self._wrapping(left, names), self._wrapping(right, names)
                if first.kind is second.kind is Kind.INT:
                    return Wrapping(_SIGNS[type(node.op)], first, second)
            case ast.BinOp(left, ast.LShift(), ast.Constant(int() as bits)) if type(bits) is int and 0 <= bits <= 62:
                shifted = self._wrapping(left, names)
                if shifted.kind is Kind.INT:
                    return Wrapping("*", shifted, constant(1 << bits))
        return known(self.value(node, names))

    def _power(self, base: Expression, power: int) -> Expression:
        if base.kind is not Kind.INT:
            refuse(f"{base.kind.value} ** {power}")
        self._num_lets += 1
        ref = Ref(self._num_lets, Kind.INT)
        result: Expression = ref
        for _ in range(power - 1):
            result = Arithmetic("*", result, ref)
        return Let(self._num_lets, base, result)

    def _comparison(self, node: ast.Compare, names: Names) -> Expression:
        left, parts = node.left, []
        lets: list[tuple[int, Expression]] = []
        first: Expression | None = None
        for position, (sign, right) in enumerate(zip(node.ops, node.comparators, strict=True)):
            is_last = position == len(node.ops) - 1
            if isinstance(sign, (ast.Is, ast.IsNot, ast.In, ast.NotIn)):
                if len(node.ops) > 1:
                    refuse("it chains is or in")
                return self._membership(left, sign, right, names)
            if type(sign) not in _SIGNS:
                refuse(f"it has a {type(sign).__name__}")
            before = first if first is not None else known(self.value(left, names))
            after = known(self.value(right, names))
            if not is_last:  # what stands in the middle is evaluated once, and only if it comes to that
                self._num_lets += 1
                lets.append((self._num_lets, after))
                ref = Ref(self._num_lets, after.kind)
                parts.append((_compared(_SIGNS[type(sign)], before, ref), lets[-1]))
                first = ref
            else:
                parts.append((_compared(_SIGNS[type(sign)], before, after), (0, after)))
        result: Expression = parts[-1][0]
        for compare, (number, middle) in reversed(parts[:-1]):
            result = Let(number, middle, Logic(True, compare, result))
        return result

    def _membership(self, left: ast.expr, sign: ast.cmpop, right: ast.expr, names: Names) -> Expression:
        negated = isinstance(sign, (ast.IsNot, ast.NotIn))
        operand = self.value(left, names)
        result: Expression
        if isinstance(sign, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                refuse("it asks for identity")
            if isinstance(operand, Field):
                return IsNull(operand.index, negated)
            return Let(self._next_let(), operand, Constant(negated, Kind.BOOL))
        match right:
            case ast.Tuple(elements) | ast.List(elements) | ast.Set(elements) if elements:
                choices = [self.value(element, names) for element in elements]
                if not all(isinstance(one, Constant) and one.kind is operand.kind for one in choices):
                    result = self._among(told_by_value(operand), [known(one) for one in choices])
                    return Not(result) if negated else result
                if operand.kind not in (Kind.INT, Kind.STR):
                    refuse(f"it asks for membership of {operand.kind.value}")
                result = IsIn(operand, tuple(one.value for one in choices))  # type: ignore[attr-defined]
            case ast.Name(name) if self._is_container(name, names):
                contains = self._outside(name).__contains__  # of what it is then
                result = Called(contains, (told_by_value(operand),), Kind.BOOL)
            case ast.Call(ast.Name("range"), [ast.Constant(), *_] as bounds, []) if self._is_outside("range", names):
                if self._outside("range") is not range:
                    refuse("range is not Python's")
                values: list[Any] = [bound.value for bound in bounds if isinstance(bound, ast.Constant)]
                if len(values) != len(bounds) or not all(type(value) is int for value in values) or 0 in values[2:]:
                    refuse("it asks for membership in a range that is not constant")
                result = Called(range(*values).__contains__, (told_by_value(operand),), Kind.BOOL)
            case _ if isinstance(operand, Constant) and operand.kind is Kind.STR:
                text = self.value(right, names)
                result = Matches("contains", known(text), operand.value)
            case _:
                refuse("it asks for membership in something else than constants")
        return Not(result) if negated else result

    def _is_container(self, name: str, names: Names) -> bool:
        if not self._is_outside(name, names):
            return False
        return type(self._outside(name)) in (tuple, list, set, frozenset, dict, range)

    def _among(self, operand: Expression, choices: list[Expression]) -> Expression:
        """``operand in (a, b, …)``, all of which are computed."""
        return Called(lambda own, *others: own in others, (operand, *choices), Kind.BOOL)

    def _next_let(self) -> int:
        self._num_lets += 1
        return self._num_lets

    def _choice(self, is_and: bool, nodes: Sequence[ast.expr], names: Names) -> Expression:
        """``a or b`` gives one of them."""
        first = known(self.value(nodes[0], names))
        if len(nodes) == 1:
            return first
        rest = self._choice(is_and, nodes[1:], names)
        if isinstance(first, Field) and not is_and:
            return If(FieldTruth(first), first, rest)
        if first.kind is rest.kind is Kind.BOOL:
            return Logic(is_and, first, rest)
        ref = Ref(self._next_let(), first.kind)
        test: Expression = ref if first.kind is Kind.BOOL else Truth(ref)
        return Let(ref.number, first, If(test, rest, ref) if is_and else If(test, ref, rest))

    # --- what is looped over

    def constants(self, node: ast.expr, names: Names) -> list[Constant] | None:
        """Return what is looped over if that is known."""
        match node:
            case ast.Tuple(elements) | ast.List(elements) if len(elements) <= _ROUNDS_MAX:
                found = [self.value(element, names) for element in elements]
                return (
                    [one for one in found if isinstance(one, Constant)]
                    if all(isinstance(one, Constant) for one in found)
                    else None
                )
            case ast.Call(ast.Name("range"), arguments, []) if self.is_range(names):
                bounds = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
                if len(bounds) == len(arguments) <= 3 and arguments and all(type(bound) is int for bound in bounds):
                    if len(bounds) == 3 and bounds[2] == 0:
                        return None
                    numbers = range(*bounds)  # type: ignore[arg-type]
                    return [constant(one) for one in numbers] if len(numbers) <= _ROUNDS_MAX else None
        return None

    def is_range(self, names: Names) -> bool:
        return self._is_outside("range", names) and self._outside("range") is range

    # --- calls

    def _is_module(self, name: str, names: Names) -> bool:
        return self._is_outside(name, names) and self._outside(name) is math

    def _call(self, node: ast.Call, names: Names) -> Expression:
        raise NotImplementedError

    def _split_of(self, node: ast.expr, names: Names) -> tuple[Expression, str] | None:
        raise NotImplementedError

    def _subscript(self, node: ast.Subscript, names: Names) -> Expression:
        raise NotImplementedError

    def _text(self, parts: Sequence[ast.expr], names: Names) -> Expression:
        raise NotImplementedError
