"""From a function of two arguments that folds records into a tuple (ReduceFunction, AggregateFunction.add) to a fold of
each field: keep the first, take the last, add, keep the smaller or greater one.

Only forms that give what the interpreter gives, to the last bit and whatever the order of records, are taken; the
values that are folded are expressions over the record's fields (``translate``). Not here: the kernels.
"""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NoReturn, final

from engine.core.late_dataclass import dataclass
from engine.operators.compile.callee import refuse_state
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import Constant, Expression, Field, Kind, Negative, ToFloat
from engine.operators.compile.fold_records import fields_made, of_fields
from engine.operators.compile.source import tree_of
from engine.operators.compile.translate import Outside, Shape, _Translator
from engine.operators.functions import AggregateFunction, Function
from engine.operators.record_choice import RecordChoice

__all__ = [
    "FieldFold",
    "FoldTranslation",
    "hands_on",
    "is_choice",
    "is_count",
    "translate_aggregate",
    "translate_choice",
    "translate_reduce",
]

_NUMBERS: Final = (Kind.INT, Kind.FLOAT)
#: Integers up to here are floats exactly.
_EXACT_MAX: Final = 2**53


@final
@dataclass(frozen=True)
class FieldFold:
    """One field of what is folded. ``kind``: first, last, sum, min, max; ``value``: of the record, None for first;
    ``seed``: what it begins with (aggregates), None = the first record's own field (reduce). min and max are Python's
    ``new if new < held else held``."""

    kind: str
    value: Expression | None
    result: Kind
    seed: int | float | None = None
    #: equal texts are equal values
    text: str = ""


@final
@dataclass(frozen=True)
class FoldTranslation:
    """``required``: fields of the record in which a None would have made the function fail."""

    folds: tuple[FieldFold, ...]
    outside: tuple[Outside, ...]
    required: frozenset[int]


def hands_on(translation: FoldTranslation, fields: Iterable[int]) -> bool:
    """Whether each of these fields is as it was: the result of a key has that key."""
    folds = ((index, translation.folds[index]) for index in fields)
    return all(fold.kind == "first" or (fold.kind == "last" and _is_field(fold.value, index)) for index, fold in folds)


def translate_reduce(function: Any, shape: Shape) -> FoldTranslation:
    """Return what ``function(so far, next)`` does with each field; of Rows and objects it has to return such a one.

    Raises: NotCompilable with the reason.
    """
    if shape.is_scalar:
        _refuse("its records are bare values")
    parser = _Parser(function, "reduce", shape, held_first=True, held_size=len(shape.kinds))
    folds = []
    for index, node in enumerate(parser.results()):
        fold = parser.fold(index, node, shape.kinds[index])
        if fold.result is not shape.kinds[index]:
            _refuse(f"field {index} changes its type")
        if fold.result not in _NUMBERS and fold.kind == "last" and not _is_field(fold.value, index):
            _refuse(f"field {index} is another field, which is no number")
        folds.append(fold)
    return FoldTranslation(tuple(folds), parser.outside(), frozenset(parser.required))


def translate_choice(function: Any, shape: Shape) -> RecordChoice:
    """Return by which comparison ``function(so far, next)`` picks one of both, by a field's number.

    Raises: NotCompilable with the reason.
    """
    if shape.is_scalar:
        _refuse("its records are bare values")
    return _Parser(function, "reduce", shape, held_first=True, held_size=len(shape.kinds)).choice()


def is_choice(function: Any) -> bool:
    """Whether a reduce function gives one of its arguments or the other, by whatever it asks."""
    try:
        parser = _Parser(function, "reduce", Shape(()), held_first=True, held_size=0)
        return parser.gives_arguments()
    except NotCompilable:
        return False


def translate_aggregate(function: AggregateFunction, shape: Shape) -> FoldTranslation:
    """Return what ``function.add`` does with each field of an accumulator that is a tuple of numbers.

    Raises: NotCompilable with the reason.
    """
    if shape.is_scalar:
        _refuse("its records are bare values")
    seeds = _seeds(function)
    parser = _Parser(function, "add", shape, held_first=False, held_size=len(seeds))
    folds = []
    for index, (node, seed) in enumerate(zip(parser.results(), seeds, strict=True)):
        fold = parser.fold(index, node, Kind.INT if type(seed) is int else Kind.FLOAT)
        folds.append(_seeded(fold, seed))
    return FoldTranslation(tuple(folds), parser.outside(), frozenset(parser.required))


def _refuse(what: str) -> NoReturn:
    raise NotCompilable(what)


def _is_field(value: Expression | None, index: int) -> bool:
    return isinstance(value, Field) and value.index == index


def _plain(function: Any, method: str) -> types.FunctionType:
    """Return the function itself, of an object the one of its class, when nothing but that decides what it does."""
    if not isinstance(function, Function):
        if not isinstance(function, types.FunctionType):
            _refuse(f"a {type(function).__name__}, not a plain function")
        return function
    own = getattr(type(function), method, None)
    refuse_state(function)
    if method in vars(function) or not isinstance(own, types.FunctionType):
        _refuse(f"{method}() of {type(function).__name__} is not a plain method")
    if type(function).__getattribute__ is not object.__getattribute__:
        _refuse(f"{type(function).__name__} has a __getattribute__()")
    return own


def _seeds(function: AggregateFunction) -> tuple[int | float, ...]:
    tree = tree_of(_plain(function, "create_accumulator"))
    body = [node for node in tree.body if not _is_docstring(node)] if isinstance(tree, ast.FunctionDef) else []
    match body:
        case [ast.Return(ast.Tuple(elements))] if elements and all(map(_is_constant, elements)):
            pass
        case _:
            _refuse("its create_accumulator() is more than a tuple of constants")
    if "float" in function.create_accumulator.__func__.__globals__:  # type: ignore[attr-defined]
        _refuse("float is not Python's")
    made = function.create_accumulator()
    if type(made) is not tuple or not all(type(seed) in (int, float) for seed in made):
        _refuse("its accumulator is no tuple of numbers")
    return made


def _is_constant(node: ast.expr) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.UnaryOp(ast.USub() | ast.UAdd(), ast.Constant()):
            return True
        case ast.Call(ast.Name("float"), [ast.Constant(str())], []):
            return True
        case ast.UnaryOp(ast.USub(), ast.Call(ast.Name("float"), [ast.Constant(str())], [])):
            return True
    return False


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _seeded(fold: FieldFold, seed: int | float) -> FieldFold:
    kind = Kind.INT if type(seed) is int else Kind.FLOAT
    value = fold.value
    assert value is not None or fold.kind == "first"
    match fold.kind:
        case "last" if fold.result in _NUMBERS:
            return fold
        case "sum" if fold.result is kind is Kind.INT and seed == 0:
            return FieldFold("sum", value, Kind.INT, 0, fold.text)
        case "sum" if kind is Kind.FLOAT and fold.result is Kind.FLOAT:
            return FieldFold("sum", value, Kind.FLOAT, seed, fold.text)
        case "sum" if kind is Kind.FLOAT:  # an integer is added to a float as the float that is nearest
            return FieldFold("sum", ToFloat(value), Kind.FLOAT, seed, fold.text + " as float")  # type: ignore[arg-type]
        case "sum" if fold.result is Kind.FLOAT and abs(seed) <= _EXACT_MAX:  # 0 becomes a float with the first one
            return FieldFold("sum", value, Kind.FLOAT, float(seed), fold.text)
        case "min" | "max" if fold.result is kind and (kind is Kind.FLOAT or -(2**63) <= seed < 2**63):
            return FieldFold(fold.kind, value, kind, seed, fold.text)
    _refuse(f"its accumulator has a field that it does not fold as a sum, minimum, maximum or last value ({fold.kind})")


# --- the function's body ----------------------------------------------------------------------------------------------


@final
class _Parser:
    """``held_first``: the first argument is what was folded so far, the second one the record."""

    def __init__(self, given: Any, method: str, shape: Shape, *, held_first: bool, held_size: int) -> None:
        function = _plain(given, method)
        tree = tree_of(function)
        arguments = tree.args
        names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
        if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or function.__defaults__:
            _refuse("its arguments are more than two")
        if isinstance(tree, ast.FunctionDef) and tree.decorator_list:
            _refuse("it is decorated")
        if function.__code__.co_flags & (
            inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
        ) or len(names) not in (2, 3):
            _refuse("it is no function of two arguments")
        first, second = names[-2:]
        self._held, self._record = (first, second) if held_first else (second, first)
        self._held_size = held_size
        #: what is folded is of the records' kind
        self._is_record = held_first
        self._given = shape
        self._shape = Shape(shape.kinds)  # all fields are by number from here on
        self._tree = of_fields(tree, (first, second) if held_first else (self._record,), shape)
        self._translator = _Translator(function, self._shape, self._record)
        if len(names) == 3 and isinstance(given, Function):
            self._translator.owner = names[0], given
        self.required: set[int] = set()

    def outside(self) -> tuple[Outside, ...]:
        return tuple(self._translator.outside.values())

    def results(self) -> list[ast.expr]:
        """Return the fields of what it returns, with the names that it gives things replaced by these."""
        result = self._result()
        if self._is_record:
            result = fields_made(result, (self._held, self._record), self._given, self._outside)
        if isinstance(result, ast.Name) and result.id in (self._held, self._record):
            return self._fields_of(result.id)
        if not isinstance(result, ast.Tuple) or len(result.elts) != self._held_size:
            _refuse(f"it does not return a tuple of {self._held_size} fields")
        return result.elts

    def gives_arguments(self) -> bool:
        match self._result():
            case ast.IfExp(_, ast.Name(body), ast.Name(orelse)):
                return {body, orelse} == {self._held, self._record}
        return False

    def _outside(self, name: str) -> Any:
        return self._translator._outside(name)

    def _result(self) -> ast.expr:
        if isinstance(self._tree, ast.Lambda):
            return self._tree.body
        return self._inlined([node for node in self._tree.body if not _is_docstring(node)], {})

    def _fields_of(self, name: str) -> list[ast.expr]:
        """Return the fields of an argument that is the result as a whole; a record only stands for one of its size."""
        if name == self._record and not self._is_record and not self._given.is_tuple:
            _refuse("it returns a record for a tuple")
        size = self._held_size if name == self._held else len(self._shape.kinds)
        if size != self._held_size:
            _refuse(f"it returns a record of {size} fields for one of {self._held_size}")
        return [_item(name, index) for index in range(size)]

    def choice(self) -> RecordChoice:
        """Return the comparison by which it picks the one or the other argument."""
        match self._result():
            case ast.IfExp(ast.Compare(left, [sign], [right]), ast.Name(body), ast.Name(orelse)):
                pass
            case _:
                _refuse("it does not pick one of both records by a comparison")
        index = self._compared_field(left, right)
        if self._held_names(left):
            sign = _mirrored(sign)
        text = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}.get(type(sign))
        if text is None or {body, orelse} != {self._held, self._record}:
            _refuse("it does not pick one of both records by what is smaller or greater")
        return RecordChoice(index, text, negated=body == self._held)

    def _compared_field(self, left: ast.expr, right: ast.expr) -> int:
        if self._held_names(left) == self._held_names(right):
            _refuse("it does not compare both records")
        for index, kind in enumerate(self._shape.kinds):
            is_ordered = kind in _NUMBERS or kind is Kind.STR
            if is_ordered and all(_is_item(node, index, len(self._shape.kinds)) for node in (left, right)):
                return index
        _refuse("it does not compare one field of both records that is a number or text")

    def _held_names(self, node: ast.expr) -> bool:
        """Whether what is compared is of the record so far; else it is of the next one."""
        match node:
            case ast.Subscript(ast.Name(name)) if name in (self._held, self._record):
                return name == self._held
        _refuse("it compares something else than fields of both records")

    def _inlined(self, statements: Sequence[ast.stmt], names: dict[str, ast.expr]) -> ast.expr:
        for at, statement in enumerate(statements):
            match statement:
                case ast.Assign([ast.Name(name)], value):
                    bound = [(name, self._harmless(_replaced(value, names)))]
                case ast.Assign([ast.Tuple(targets)], value):
                    bound = list(zip(self._names(targets), self._unpacked(value, names, len(targets)), strict=True))
                case ast.Return(ast.expr() as value):
                    return _replaced(value, names)
                case ast.If(test, [ast.Return(ast.expr() as value)], orelse):
                    rest = self._inlined([*orelse, *statements[at + 1 :]], names)
                    return ast.IfExp(_replaced(test, names), _replaced(value, names), rest)
                case _:
                    _refuse(f"it has a {type(statement).__name__} statement")
            for name, value in bound:
                if name in (self._held, self._record):
                    _refuse("it assigns to its argument")
                names[name] = value
        _refuse("it returns None")

    @staticmethod
    def _names(targets: Sequence[ast.expr]) -> list[str]:
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if len(names) != len(targets) or len(set(names)) != len(names):
            _refuse("it assigns to something else than names")
        return names

    def _unpacked(self, value: ast.expr, names: dict[str, ast.expr], count: int) -> list[ast.expr]:
        match value:
            case ast.Name(name) if name not in names and name in (self._held, self._record):
                if not self._given.has_places and (self._is_record or name == self._record):
                    _refuse("its records have no fields by number")
                size = self._held_size if name == self._held else len(self._shape.kinds)
                if count == size:
                    return [_item(name, index) for index in range(size)]
            case ast.Tuple(elements) if len(elements) == count:
                return [self._harmless(_replaced(element, names)) for element in elements]
        _refuse("it unpacks something else than its arguments")

    def _harmless(self, node: ast.expr, *, is_number: bool = False) -> ast.expr:
        """Return the expression if it cannot fail on values of the right types: it may stand anywhere, or nowhere."""
        match node:
            case ast.Constant() if not is_number or type(node.value) in (int, float):
                return node
            case ast.Subscript(ast.Name(name), ast.Constant(int() as at)) if name in (self._held, self._record):
                size = self._held_size if name == self._held else len(self._shape.kinds)
                if type(at) is int and 0 <= at < size and (not is_number or self._is_number(name, at)):
                    return node
            case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult(), right):
                self._harmless(left, is_number=True)
                self._harmless(right, is_number=True)
                return node
            case ast.IfExp(ast.Compare(left, [ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()], [right]), body, orelse):
                for part in (left, right, body, orelse):
                    self._harmless(part, is_number=True)
                return node
        _refuse("it gives a name to more than a field, a sum or a product")

    def _is_number(self, name: str, at: int) -> bool:
        if name == self._held:
            return True  # a field that is folded, as ``fold`` finds out
        self.required.add(at)
        return self._shape.kinds[at] in _NUMBERS

    # --- folds

    def fold(self, index: int, node: ast.expr, held_kind: Kind) -> FieldFold:
        """``held_kind``: of the field so far."""
        if self._is_held(node, index):
            return FieldFold("first", None, held_kind)
        if not self._uses_held(node):
            return self._made("last", node)
        match node:
            case ast.BinOp(left, ast.Add(), right) if self._is_held(left, index):
                return self._summed(right, held_kind)
            case ast.BinOp(left, ast.Add(), right) if self._is_held(right, index):
                return self._summed(left, held_kind)
            case ast.BinOp(left, ast.Sub(), right) if self._is_held(left, index):
                fold = self._summed(right, held_kind)
                value, result = fold.value, fold.result
                assert value is not None
                if held_kind is Kind.FLOAT and result is Kind.INT:
                    value, result = ToFloat(value), Kind.FLOAT  # there is no -0 of integers, which -0.0 - 0 wants
                return FieldFold("sum", Negative(value), result, None, "-" + fold.text)
            case ast.Call(ast.Name(("min" | "max") as name), [first, second], []):
                self._require_builtin(name)
                if self._is_held(first, index):
                    return self._compared(name, second, held_kind, is_exact=True)
                if self._is_held(second, index):
                    return self._compared(name, first, held_kind, is_exact=False)
            case ast.IfExp(ast.Compare(left, [sign], [right]), body, orelse):
                return self._chosen(index, (left, sign, right), body, orelse, held_kind)
        _refuse(f"field {index} is no sum, minimum, maximum, first or last value")

    def _chosen(
        self, index: int, test: tuple[ast.expr, ast.cmpop, ast.expr], body: ast.expr, orelse: ast.expr, held_kind: Kind
    ) -> FieldFold:
        """``new if new > held else held`` and what is the same of integers."""
        left, sign, right = test
        if self._is_held(left, index):
            left, right, sign = right, left, _mirrored(sign)
        if not self._is_held(right, index) or not isinstance(sign, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
            _refuse(f"field {index} is chosen by something else than its comparison")
        is_greater = isinstance(sign, ast.Gt | ast.GtE)  # new is greater: then the body is taken
        if self._is_held(orelse, index) and _same(body, left):
            is_exact = isinstance(sign, ast.Lt | ast.Gt)
            return self._compared("max" if is_greater else "min", left, held_kind, is_exact=is_exact)
        if self._is_held(body, index) and _same(orelse, left):
            return self._compared("min" if is_greater else "max", left, held_kind, is_exact=False)
        _refuse(f"field {index} is chosen by something else than its comparison")

    def _compared(self, kind: str, node: ast.expr, held_kind: Kind, *, is_exact: bool) -> FieldFold:
        """``is_exact``: of equal ones the held one stays, and a NaN is never taken."""
        fold = self._made(kind, node)
        if fold.result is not held_kind or fold.result not in _NUMBERS or not (is_exact or fold.result is Kind.INT):
            _refuse("it compares in a way that depends on NaN, or numbers of different types")
        return fold

    def _summed(self, node: ast.expr, held_kind: Kind) -> FieldFold:
        fold = self._made("sum", node)
        if fold.result not in _NUMBERS or held_kind not in _NUMBERS:
            _refuse(f"it adds {fold.result.value} to {held_kind.value}")
        return fold

    def _made(self, kind: str, node: ast.expr) -> FieldFold:
        if self._uses_held(node):
            _refuse("what it folds depends on what was folded so far")
        value = self._translator.value(node, {})
        if not isinstance(value, Field) and value.kind not in _NUMBERS:
            _refuse(f"it folds a {value.kind.value} that is no field of its record")
        return FieldFold(kind, value, value.kind, None, ast.dump(node))

    def _is_held(self, node: ast.expr, index: int) -> bool:
        match node:
            case ast.Subscript(ast.Name(name), ast.Constant(int() as at)) if name == self._held and type(at) is int:
                return at in (index, index - self._held_size)
        return False

    def _uses_held(self, node: ast.expr) -> bool:
        return any(isinstance(part, ast.Name) and part.id == self._held for part in ast.walk(node))

    def _require_builtin(self, name: str) -> None:
        if self._translator._outside(name) is not getattr(builtins, name):
            _refuse(f"{name} is not Python's")


def _item(name: str, index: int) -> ast.expr:
    return ast.Subscript(ast.Name(name, ast.Load()), ast.Constant(index), ast.Load())


def _is_item(node: ast.expr, index: int, size: int) -> bool:
    """Whether it is ``argument[index]``, counted from either end."""
    match node:
        case ast.Subscript(_, ast.Constant(int() as at)) if type(at) is int:
            return at == index
        case ast.Subscript(_, ast.UnaryOp(ast.USub(), ast.Constant(int() as at))) if type(at) is int:
            return -at == index - size and at > 0
    return False


def _same(one: ast.expr, other: ast.expr) -> bool:
    return ast.dump(one) == ast.dump(other)


def _mirrored(sign: ast.cmpop) -> ast.cmpop:
    mirrored: dict[type, Callable[[], ast.cmpop]] = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE}
    return mirrored.get(type(sign), lambda: sign)()


def _replaced(node: ast.expr, names: dict[str, ast.expr]) -> ast.expr:
    if not names:
        return node
    replaced: ast.expr = _Replacer(names).visit(copy.deepcopy(node))
    return replaced


@final
class _Replacer(ast.NodeTransformer):
    def __init__(self, names: dict[str, ast.expr]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._names.get(node.id, node)


def is_count(fold: FieldFold) -> bool:
    """Return whether the fold adds 1 for each record."""
    return fold.kind == "sum" and isinstance(fold.value, Constant) and fold.value.value == 1 and fold.seed == 0
