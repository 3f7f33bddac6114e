"""From a function's tree to expressions over the columns of its records.

Only what is proven to give the interpreter's result is taken; the first thing that is not ends the matter with a reason
for ``explain``. A record is a bare value, a tuple (``r[0]``) or a Row (``r.name``, ``r["name"]``, ``r[0]``).
"""

from __future__ import annotations

import ast
import math
import types
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, TypeAlias, final

from engine.core.late_dataclass import dataclass
from engine.core.records import Row
from engine.operators.compile.callee import ABSENT, attribute_reader, callee_of, name_reader, parameters_of
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import (
    INT_MAX,
    INT_MIN,
    Abs,
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
    Root,
    Rounded,
    ToFloat,
    ToInt,
    Truth,
    Wrapping,
)
from engine.operators.compile.texts import (
    Concat,
    Length,
    Matches,
    ParseFloat,
    ParseInt,
    SplitPart,
    ToText,
    encodable,
    text_method,
)

__all__ = ["Fields", "Outside", "Record", "Shape", "Translation", "WholeRecord", "translate"]

_POWER_MAX: Final = 4
_DEPTH_MAX: Final = 8
_BLOCKS_MAX: Final = 300  # statements on all paths together


@final
@dataclass(frozen=True, slots=True)
class Shape:
    """What records are. ``names``: of a Row's fields; ``is_scalar``: the record is the only field's value."""

    kinds: tuple[Kind, ...]
    is_scalar: bool = False
    names: tuple[str, ...] | None = None


@final
@dataclass(frozen=True, slots=True)
class WholeRecord:
    """The record itself is the result."""


@final
@dataclass(frozen=True, slots=True)
class Fields:
    """The result is a tuple of these, or a Row, which may have ``names``."""

    items: tuple[Expression, ...]
    is_row: bool = False
    names: tuple[str, ...] | None = None


Record: TypeAlias = Expression | Fields | WholeRecord


@final
@dataclass(frozen=True, slots=True)
class Outside:
    """A name from outside the function: it counts as a constant as long as ``read`` gives this very object."""

    read: Callable[[], Any]
    value: Any


@final
@dataclass(frozen=True, slots=True)
class Translation:
    result: Record
    outside: tuple[Outside, ...]


def translate(function: Any, shape: Shape, *, as_condition: bool = False, method: str = "") -> Translation:
    """Return the function as expressions over the fields; ``as_condition``: only the truth of its result matters.
    ``method``: of an object, what is called; "" = ``filter`` for a condition, else ``map``.

    Raises: NotCompilable with the reason.
    """
    callee = callee_of(function, method or ("filter" if as_condition else "map"))
    node, parameters = parameters_of(callee.function)
    if len(parameters) != (1 if callee.owner is None else 2):
        raise NotCompilable("it has more than one argument")
    translator = _Translator(callee.function, shape, parameters[-1])
    if callee.owner is not None:
        translator.owner = parameters[0], callee.owner
    result: Record
    try:
        if isinstance(node, ast.Lambda):
            result = translator.condition(node.body, {}) if as_condition else translator.record(node.body, {})
        else:
            result = translator.block(node.body, {}, as_condition)
    except RecursionError:
        raise NotCompilable("it is too deep") from None
    if not as_condition:
        result = _as_declared(result, shape, callee.row_names)
    return Translation(result, tuple(translator.outside.values()))


_Names: TypeAlias = dict[str, Expression]


def _refuse(what: str) -> NoReturn:
    raise NotCompilable(what)


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


@final
class _Translator:
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

    # --- statements

    def block(self, statements: Sequence[ast.stmt], names: _Names, as_condition: bool) -> Record:
        """Translate statements up to a return on every path."""
        self._num_blocks += 1
        if not statements:
            _refuse("it returns None on some path")
        if self._num_blocks > _BLOCKS_MAX:
            _refuse("it has too many paths")
        first, rest = statements[0], statements[1:]
        match first:
            case ast.Expr(ast.Constant()):
                return self.block(rest, names, as_condition)  # a docstring
            case ast.Pass():
                return self.block(rest, names, as_condition)
            case ast.Return(ast.expr() as value):
                return self.condition(value, names) if as_condition else self.record(value, names)
            case ast.Assign([target], value):
                return self._assign(target, value, names, rest, as_condition)
            case ast.AnnAssign(ast.Name() as target, _, ast.expr() as value):
                return self._assign(target, value, names, rest, as_condition)
            case ast.AugAssign(ast.Name(name) as target, sign, value):
                changed = ast.BinOp(ast.Name(name, ast.Load()), sign, value)
                return self._assign(target, changed, names, rest, as_condition)
            case ast.If(test, body, orelse):
                condition = self.condition(test, names)
                then = self.block([*body, *rest], dict(names), as_condition)
                other = self.block([*orelse, *rest], dict(names), as_condition)
                return self._branch(condition, then, other)
        _refuse(f"it has a {type(first).__name__} statement")

    def _assign(
        self, target: ast.expr, value: ast.expr, names: _Names, rest: Sequence[ast.stmt], as_condition: bool
    ) -> Record:
        bound: list[tuple[str, Expression]]
        match target:
            case ast.Name(name):
                bound = [(name, self.value(value, names))]
            case ast.Tuple(elements) if all(isinstance(element, ast.Name) for element in elements):
                bound = list(
                    zip([element.id for element in elements], self._unpacked(value, names, len(elements)), strict=True)  # type: ignore[attr-defined]
                )
            case _:
                _refuse("it assigns to something else than names")
        if any(name == self._parameter for name, _ in bound):
            _refuse("it assigns to its argument")
        lets = []
        for _, expression in bound:
            self._num_lets += 1
            lets.append((self._num_lets, expression))
        inner = {**names}
        for (name, expression), (number, _) in zip(bound, lets, strict=True):
            # A field is no computation: None in it may be asked for, and it may be of any type.
            inner[name] = expression if isinstance(expression, Field) else Ref(number, expression.kind)
        result = self.block(rest, inner, as_condition)
        for number, expression in reversed(lets):
            if not isinstance(expression, Field):
                result = _with_let(number, expression, result)
        return result

    def _unpacked(self, value: ast.expr, names: _Names, count: int) -> list[Expression]:
        if self._is_record(value, names) and not self._shape.is_scalar:
            if count != len(self._shape.kinds):
                _refuse(f"it unpacks {count} of {len(self._shape.kinds)} fields")
            return [self._field(index) for index in range(count)]
        if isinstance(value, ast.Tuple) and len(value.elts) == count:
            return [self.value(element, names) for element in value.elts]
        split = self._split_of(value, names)
        if split is not None:
            return [SplitPart(split[0], split[1], index, count) for index in range(count)]
        _refuse("it unpacks something else than the record")

    # --- results

    def record(self, node: ast.expr, names: _Names) -> Record:
        """Translate what a function returns."""
        if self._is_record(node, names) and not self._shape.is_scalar:
            return WholeRecord()
        match node:
            case ast.Tuple(elements) if elements:
                return Fields(tuple(self.value(element, names) for element in elements))
            case ast.Call(ast.Name(name)) if self._is_outside(name, names):
                function = self._outside(name)
                if function is Row:
                    return self._row(node, names)
                if isinstance(function, types.FunctionType):
                    return self._inlined(function, node, names)
            case ast.IfExp(test, body, orelse):
                return self._branch(self.condition(test, names), self.record(body, names), self.record(orelse, names))
        return self.value(node, names)

    def _row(self, node: ast.Call, names: _Names) -> Fields:
        fields = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
        values = [keyword.value for keyword in node.keywords]
        if len(fields) < len(values) or any(isinstance(argument, ast.Starred) for argument in node.args):
            _refuse("it calls Row with *")
        if bool(fields) is bool(node.args):
            _refuse("it makes a Row without fields, or with some that have names and some that have none")
        items = tuple(self.value(value, names) for value in (*node.args, *values))
        return Fields(items, True, tuple(fields) or None)

    def _inlined(self, function: types.FunctionType, node: ast.Call, names: _Names) -> Record:
        """Translate what another function of the program gives."""
        self._num_blocks += 1
        if self._depth >= _DEPTH_MAX or self._num_blocks > _BLOCKS_MAX:
            _refuse("its functions call each other too often")
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            _refuse("it calls with keywords or *")
        if function not in self._trees:
            self._trees[function] = parameters_of(function)
        tree, parameters = self._trees[function]
        if len(parameters) != len(node.args):
            _refuse(f"it calls {function.__name__} with other arguments")
        record = ""
        given: _Names = {}
        lets: list[tuple[int, Expression]] = []
        for parameter, argument in zip(parameters, node.args, strict=True):
            if self._is_record(argument, names) and not self._shape.is_scalar:
                if record:
                    _refuse(f"it gives {function.__name__} the record twice")
                record = parameter
                continue
            value = self.value(argument, names)
            if not isinstance(value, Field):  # evaluated once, whether it is used or not
                lets.append((self._next_let(), _known(value)))
                value = Ref(lets[-1][0], value.kind)
            given[parameter] = value
        inner = _Translator(function, self._shape, record)
        inner._num_lets, inner._num_blocks, inner._depth = self._num_lets, self._num_blocks, self._depth + 1
        inner._trees = self._trees
        if isinstance(tree, ast.Lambda):
            result = inner.record(tree.body, given)
        else:
            result = inner.block(tree.body, given, False)
        self._num_lets, self._num_blocks = inner._num_lets, inner._num_blocks
        self.outside |= {(function, key): outside for key, outside in inner.outside.items()}
        for number, value in reversed(lets):
            result = _with_let(number, value, result)
        return result

    def _branch(self, test: Expression, then: Record, other: Record) -> Record:
        if isinstance(then, Fields) and isinstance(other, Fields) and _are_alike(then, other):
            ref = Ref(self._next_let(), Kind.BOOL)
            first, *others = [
                If(ref, _known(one), _known(two)) for one, two in zip(then.items, other.items, strict=True)
            ]
            return Fields((Let(ref.number, test, first), *others), then.is_row, then.names)
        if isinstance(then, Expression) and isinstance(other, Expression):
            return If(test, _known(then), _known(other))
        _refuse("its branches return different things")

    def condition(self, node: ast.expr, names: _Names) -> Expression:
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
        return value if value.kind is Kind.BOOL else Truth(_known(value))

    # --- values

    def _is_record(self, node: ast.expr, names: _Names) -> bool:
        return isinstance(node, ast.Name) and node.id == self._parameter and node.id not in names

    def _field(self, index: int) -> Field:
        return Field(index, self._shape.kinds[index])

    def value(self, node: ast.expr, names: _Names) -> Expression:
        match node:
            case ast.Name(name) if name in names:
                return names[name]
            case ast.Name() if self._is_record(node, names):
                if not self._shape.is_scalar:
                    _refuse("it uses the record as a whole")
                return self._field(0)
            case ast.Constant(value):
                return _constant(value)
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return self._place(node, names)
            case ast.BinOp(left, sign, right):
                return self._arithmetic(left, sign, right, names)
            case ast.UnaryOp(ast.Not(), operand):
                return Not(self.condition(operand, names))
            case ast.UnaryOp(ast.USub(), ast.Constant(int() as value)) if type(value) is int:
                return _constant(-value)
            case ast.UnaryOp(ast.USub(), operand):
                return Negative(_known(self.value(operand, names)))
            case ast.Compare():
                return self._comparison(node, names)
            case ast.BoolOp(sign, values):
                return self._choice(isinstance(sign, ast.And), values, names)
            case ast.IfExp(test, body, orelse):
                then, other = self.value(body, names), self.value(orelse, names)
                return If(self.condition(test, names), _known(then), _known(other))
            case ast.Call():
                return self._call(node, names)
            case ast.JoinedStr(parts):
                return self._text(parts, names)
        _refuse(f"it has a {type(node).__name__}")

    def _place(self, node: ast.expr, names: _Names) -> Expression:
        match node:
            case ast.Subscript(owner, ast.Constant(key)) if self._is_record(owner, names):
                return self._field_by(key)
            case ast.Subscript(owner, ast.UnaryOp(ast.USub(), ast.Constant(int() as key))) if self._is_record(
                owner, names
            ):
                return self._field_by(-key)
            case ast.Attribute(owner, name) if self._is_record(owner, names):
                own = self._shape.names
                if own is None or name not in own or hasattr(Row, name):
                    _refuse(f"its records have no field .{name}")
                return self._field(own.index(name))
            case ast.Subscript(owner, ast.Constant(int() as index)) if type(index) is int and index >= 0:
                split = self._split_of(owner, names)
                if split is not None:
                    return SplitPart(split[0], split[1], index)
            case ast.Attribute(ast.Name(owner_name), name) if self._is_owner(owner_name, names):
                return _constant(self._attribute(name))
            case ast.Name(name):
                return _constant(self._outside(name))
        _refuse(f"it has a {type(node).__name__}")

    def _field_by(self, key: Any) -> Field:
        shape = self._shape
        if shape.is_scalar:
            _refuse("its records are bare values")
        if type(key) is int and -len(shape.kinds) <= key < len(shape.kinds):
            return self._field(key % len(shape.kinds))
        if type(key) is str and shape.names is not None and key in shape.names:
            return self._field(shape.names.index(key))
        _refuse(f"its records have no field [{key!r}]")

    def _is_outside(self, name: str, names: _Names) -> bool:
        is_own = name == self._parameter or (self.owner is not None and name == self.owner[0])
        return name not in names and not is_own

    def _is_owner(self, name: str, names: _Names) -> bool:
        return self.owner is not None and name == self.owner[0] and name not in names

    def _attribute(self, name: str) -> Any:
        """Return the value of an attribute of the method's object, which is watched from now on."""
        assert self.owner is not None
        if name.startswith("__"):  # Python knows it by another name
            _refuse(f"it uses self.{name}")
        key = "self", name
        if key not in self.outside:
            read = attribute_reader(self.owner[1], name)
            self.outside[key] = Outside(read, read())
        value = self.outside[key].value
        if value is ABSENT:
            _refuse(f"self.{name} is not set")
        return value

    def _outside(self, name: str) -> Any:
        """Return the value of a name from outside, which is watched from now on."""
        code = self._function.__code__
        if name in code.co_varnames or name in code.co_cellvars:
            _refuse(f"{name} is not assigned on every path")
        if name not in self.outside:
            read = name_reader(self._function, name)
            self.outside[name] = Outside(read, read())
        value = self.outside[name].value
        if value is ABSENT:
            _refuse(f"{name} is not defined")
        return value

    def _arithmetic(self, left: ast.expr, sign: ast.operator, right: ast.expr, names: _Names) -> Expression:
        match sign, right:
            case ast.Pow(), ast.Constant(int() as power) if type(power) is int and 1 <= power <= _POWER_MAX:
                return self._power(_known(self.value(left, names)), power)
            case ast.LShift(), ast.Constant(int() as bits) if type(bits) is int and 0 <= bits <= 62:
                shifted = _known(self.value(left, names))
                if shifted.kind is Kind.INT:
                    return Arithmetic("*", shifted, _constant(1 << bits))
            case ast.RShift(), ast.Constant(int() as bits) if type(bits) is int and 0 <= bits <= 62:
                shifted = _known(self.value(left, names))
                if shifted.kind is Kind.INT:
                    return Arithmetic("//", shifted, _constant(1 << bits))
        if type(sign) not in _SIGNS:
            _refuse(f"it has a {type(sign).__name__}")
        if isinstance(sign, ast.BitAnd):
            for operand, other in ((left, right), (right, left)):
                match other:
                    case ast.Constant(int() as mask) if type(mask) is int and 0 <= mask <= INT_MAX:
                        return self._low_bits(operand, mask, names)
        first, second = _known(self.value(left, names)), _known(self.value(right, names))
        if isinstance(sign, ast.Add) and first.kind is second.kind is Kind.STR:
            return Concat(first, second)
        return Arithmetic(_SIGNS[type(sign)], first, second)

    def _low_bits(self, node: ast.expr, bits: int, names: _Names) -> Expression:
        operand = self._wrapping(node, names)
        if operand.kind is not Kind.INT:
            return Arithmetic("&", operand, _constant(bits))
        return LowBits(operand, bits)

    def _wrapping(self, node: ast.expr, names: _Names) -> Expression:
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
                    return Wrapping("*", shifted, _constant(1 << bits))
        return _known(self.value(node, names))

    def _power(self, base: Expression, power: int) -> Expression:
        if base.kind is not Kind.INT:
            _refuse(f"{base.kind.value} ** {power}")
        self._num_lets += 1
        ref = Ref(self._num_lets, Kind.INT)
        result: Expression = ref
        for _ in range(power - 1):
            result = Arithmetic("*", result, ref)
        return Let(self._num_lets, base, result)

    def _comparison(self, node: ast.Compare, names: _Names) -> Expression:
        left, parts = node.left, []
        lets: list[tuple[int, Expression]] = []
        first: Expression | None = None
        for position, (sign, right) in enumerate(zip(node.ops, node.comparators, strict=True)):
            is_last = position == len(node.ops) - 1
            if isinstance(sign, (ast.Is, ast.IsNot, ast.In, ast.NotIn)):
                if len(node.ops) > 1:
                    _refuse("it chains is or in")
                return self._membership(left, sign, right, names)
            if type(sign) not in _SIGNS:
                _refuse(f"it has a {type(sign).__name__}")
            before = first if first is not None else _known(self.value(left, names))
            after = _known(self.value(right, names))
            if not is_last:  # what stands in the middle is evaluated once, and only if it comes to that
                self._num_lets += 1
                lets.append((self._num_lets, after))
                ref = Ref(self._num_lets, after.kind)
                parts.append((Compare(_SIGNS[type(sign)], before, ref), lets[-1]))
                first = ref
            else:
                parts.append((Compare(_SIGNS[type(sign)], before, after), (0, after)))
        result: Expression = parts[-1][0]
        for compare, (number, middle) in reversed(parts[:-1]):
            result = Let(number, middle, Logic(True, compare, result))
        return result

    def _membership(self, left: ast.expr, sign: ast.cmpop, right: ast.expr, names: _Names) -> Expression:
        negated = isinstance(sign, (ast.IsNot, ast.NotIn))
        operand = self.value(left, names)
        result: Expression
        if isinstance(sign, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                _refuse("it asks for identity")
            if isinstance(operand, Field):
                return IsNull(operand.index, negated)
            return Let(self._next_let(), operand, Constant(negated, Kind.BOOL))
        match right:
            case ast.Tuple(elements) | ast.List(elements) | ast.Set(elements) if elements:
                choices = [self.value(element, names) for element in elements]
                if not all(isinstance(one, Constant) and one.kind is operand.kind for one in choices):
                    _refuse("it asks for membership among values of other types")
                if operand.kind not in (Kind.INT, Kind.STR):
                    _refuse(f"it asks for membership of {operand.kind.value}")
                result = IsIn(operand, tuple(one.value for one in choices))  # type: ignore[attr-defined]
            case _ if isinstance(operand, Constant) and operand.kind is Kind.STR:
                text = self.value(right, names)
                result = Matches("contains", _known(text), operand.value)
            case _:
                _refuse("it asks for membership in something else than constants")
        return Not(result) if negated else result

    def _next_let(self) -> int:
        self._num_lets += 1
        return self._num_lets

    def _choice(self, is_and: bool, nodes: Sequence[ast.expr], names: _Names) -> Expression:
        """``a or b`` gives one of them."""
        first = _known(self.value(nodes[0], names))
        if len(nodes) == 1:
            return first
        rest = self._choice(is_and, nodes[1:], names)
        if first.kind is rest.kind is Kind.BOOL:
            return Logic(is_and, first, rest)
        ref = Ref(self._next_let(), first.kind)
        test: Expression = ref if first.kind is Kind.BOOL else Truth(ref)
        return Let(ref.number, first, If(test, rest, ref) if is_and else If(test, ref, rest))

    # --- calls

    def _split_of(self, node: ast.expr, names: _Names) -> tuple[Expression, str] | None:
        """Return text and separator of ``text.split("separator")``."""
        match node:
            case ast.Call(ast.Attribute(owner, "split"), [ast.Constant(str() as separator)], []) if separator:
                text = self.value(owner, names)
                return (text, separator) if text.kind is Kind.STR else None
        return None

    def _call(self, node: ast.Call, names: _Names) -> Expression:
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            _refuse("it calls with keywords or *")
        match node.func:
            case ast.Name(name) if self._is_outside(name, names):
                function = self._outside(name)
                if isinstance(function, types.FunctionType):
                    result = self._inlined(function, node, names)
                    return result if isinstance(result, Expression) else _refuse(f"{name} gives a record")
                return self._builtin(function, name, [_known(self.value(argument, names)) for argument in node.args])
            case ast.Attribute(ast.Name(module), "sqrt") if self._is_outside(module, names):
                if self._outside(module) is not math or len(node.args) != 1:
                    _refuse(f"it calls {module}.sqrt")
                return Root(_known(self.value(node.args[0], names)))
            case ast.Attribute(owner, method):
                text = _known(self.value(owner, names))
                if text.kind is not Kind.STR:
                    _refuse(f"it calls .{method}() of {text.kind.value}")
                return text_method(text, method, node.args)
        _refuse("it calls something")

    def _text(self, parts: Sequence[ast.expr], names: _Names) -> Expression:
        """Translate an f-string of texts and integers as they are."""
        result: Expression = _constant("")
        for part in parts:
            match part:
                case ast.Constant(str() as text):
                    one: Expression = _constant(text)
                case ast.FormattedValue(value, -1 | 115, None):
                    one = _known(self.value(value, names))
                    if one.kind is not Kind.STR:
                        one = ToText(one)
                case _:
                    _refuse("it has an f-string with a format")
            result = Concat(result, one)
        return result

    def _builtin(self, function: Any, name: str, arguments: list[Expression]) -> Expression:
        if (function is min or function is max) and len(arguments) == 2:
            return self._smaller(function is min, *arguments)
        if len(arguments) != 1:
            _refuse(f"it calls {name}")
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
            return operand if is_text else ToText(operand)
        _refuse(f"it calls {name}")

    def _smaller(self, is_min: bool, first: Expression, second: Expression) -> Expression:
        """The second one if it is really smaller (greater): so for nan and -0.0 too."""
        if first.kind is not second.kind or first.kind not in (Kind.INT, Kind.FLOAT):
            _refuse("it calls min or max of mixed types")
        a, b = Ref(self._next_let(), first.kind), Ref(self._next_let(), second.kind)
        chosen = If(Compare("<" if is_min else ">", b, a), b, a)
        return Let(a.number, first, Let(b.number, second, chosen))


def _are_alike(one: Fields, two: Fields) -> bool:
    return (len(one.items), one.is_row, one.names) == (len(two.items), two.is_row, two.names)


def _as_declared(result: Record, shape: Shape, names: tuple[str, ...] | None) -> Record:
    """Return what becomes of a function's result where a ROW type with these names is declared; None = no such type.
    As ``row_output.row_maker`` does."""
    if names is not None:
        if isinstance(result, Expression) and result.kind is Kind.OPAQUE:
            _refuse("it hands on a field that may become a Row")
        if isinstance(result, WholeRecord) and shape.names is None:
            result = Fields(tuple(Field(index, kind) for index, kind in enumerate(shape.kinds)))
            if len(result.items) != len(names):
                return WholeRecord()
        if isinstance(result, Fields) and result.names is None and len(result.items) == len(names):
            result = Fields(result.items, True, names)
    if isinstance(result, Fields) and result.is_row and result.names is None:
        _refuse("it makes Rows without names")
    return result


def _known(expression: Expression) -> Expression:
    if expression.kind is Kind.OPAQUE:
        _refuse("it uses a field of a type that can only be handed on")
    return expression


def _constant(value: Any) -> Constant:
    match value:
        case bool():
            return Constant(value, Kind.BOOL)
        case int() if type(value) is int:
            if not INT_MIN <= value <= INT_MAX:
                _refuse("it has an integer beyond 64 bits")
            return Constant(value, Kind.INT)
        case float() if type(value) is float:
            return Constant(value, Kind.FLOAT)
        case str() if type(value) is str:
            return Constant(encodable(value), Kind.STR)
    _refuse(f"it uses a {type(value).__name__}")


def _with_let(number: int, value: Expression, result: Record) -> Record:
    if isinstance(result, Fields):  # evaluated with the first field; the others may refer to it too
        first, *others = result.items
        return Fields((Let(number, _known(value), _known(first)), *others), result.is_row, result.names)
    if isinstance(result, WholeRecord):
        _refuse("it computes something and returns the record")
    return Let(number, _known(value), result)
