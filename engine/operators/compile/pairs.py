"""A function of two records (a join's) on columns: what it does with a pair, as expressions over the fields of both.

``(left, right) -> …`` is taken for a function of one record that has the fields of the left one, then those of the
right one; ``left + right``, of tuples, and ``(*left, x)`` are spelled out; fields of Rows and objects have names, too.
Everything else is ``translate``'s: results are values, tuples, Rows with names or objects of a class.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, final

import numpy as np
import pyarrow as pa

from engine.core.record_class import fields_of_class
from engine.core.records import ColumnBatch, Row
from engine.operators.column_fields import is_named
from engine.operators.compile.callee import callee_of, parameters_of
from engine.operators.compile.column_steps import _array, _kind_of
from engine.operators.compile.errors import Doubt, NotCompilable
from engine.operators.compile.expressions import Expression, Frame
from engine.operators.compile.guarded import DOUBTS_MAX
from engine.operators.compile.translate import Fields, Shape, Translation, _Translator, as_declared

__all__ = ["PairFunction", "result_shape", "translate_pair"]

#: No name that a program could have.
_PAIR: Final = "(pair)"


def translate_pair(
    function: Any,
    left: Shape,
    right: Shape,
    *,
    as_condition: bool = False,
    row_names: tuple[str, ...] | None = None,
) -> Translation:
    """Return a function of two records, or the ``join`` of an object, as expressions over the fields of both;
    ``as_condition``: as one, true or false, as ``if`` takes what the function returns; ``row_names``: of the Rows that
    tuples become which it returns, None = they stay tuples. Raises: NotCompilable."""
    if left.is_scalar or right.is_scalar:
        _refuse("its records are bare values")
    callee = callee_of(function, "filter" if as_condition else "join")
    tree, parameters = parameters_of(callee.function)
    num_owners = 0 if callee.owner is None else 1
    if callee.function.__code__.co_argcount < num_owners + 2:
        _refuse("it is no function of two arguments")
    first, second = parameters[num_owners : num_owners + 2]
    num_left, num = len(left.kinds), len(left.kinds + right.kinds)
    joined = _Joiner({first: (range(num_left), left), second: (range(num_left, num), right)})
    pair = Shape(left.kinds + right.kinds)
    translator = _Translator(callee.function, pair, _PAIR)
    if callee.owner is not None:
        translator.owner = parameters[0], callee.owner
    names = translator.names_of_defaults(parameters[num_owners + 2 :])
    try:
        if isinstance(tree, ast.Lambda):
            body = joined.visit(copy.deepcopy(tree.body))
            result = translator.condition(body, names) if as_condition else translator.record(body, names)
        else:
            result = translator.block([joined.visit(copy.deepcopy(node)) for node in tree.body], names, as_condition)
    except RecursionError:
        raise NotCompilable("it is too deep") from None
    if not as_condition:
        result = as_declared(result, pair, row_names)
    return Translation(result, tuple(translator.outside.values()))


def result_shape(translation: Translation) -> Shape:
    """Return what the results are."""
    result = translation.result
    if isinstance(result, Fields):
        return Shape(tuple(item.kind for item in result.items), names=result.names, record=result.record)
    assert isinstance(result, Expression)
    return Shape((result.kind,), is_scalar=True)


def _refuse(what: str) -> NoReturn:
    raise NotCompilable(what)


@final
class _Joiner(ast.NodeTransformer):
    """Makes fields of the pair of those of the two arguments. ``arguments``: name → the pair's fields that it has, and
    what its records are."""

    def __init__(self, arguments: dict[str, tuple[range, Shape]]) -> None:
        self._places = {name: places for name, (places, _) in arguments.items()}
        self._shapes = {name: shape for name, (_, shape) in arguments.items()}

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        match node:
            case ast.Subscript(ast.Name(name), ast.Constant(int() as at)) if name in self._places and type(at) is int:
                return self._field(name, at)
            case ast.Subscript(ast.Name(name), ast.UnaryOp(ast.USub(), ast.Constant(int() as at))) if (
                name in self._places and type(at) is int
            ):
                return self._field(name, -at)
            case ast.Subscript(ast.Name(name), ast.Constant(str() as field)) if name in self._places:
                if self._shapes[name].record is not None:
                    _refuse(f"its records have no field [{field!r}]")
                return self._named_field(name, field)
        return self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        match node:
            case ast.Attribute(ast.Name(name), field) if name in self._places:
                if self._shapes[name].record is None and hasattr(Row, field):
                    _refuse(f"its records have no field .{field}")
                return self._named_field(name, field)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        arguments: list[ast.expr] = []
        for argument in node.args:
            match argument:
                case ast.Starred(ast.Name(name)) if name in self._places:
                    arguments += self._whole(name).elts
                case _:
                    arguments.append(argument)
        return self.generic_visit(ast.Call(node.func, arguments, node.keywords))

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        match node:
            case ast.Assign([ast.Tuple()], ast.Name(name)) if name in self._places:
                return ast.Assign([self.visit(node.targets[0])], self._whole(name))
        return self.generic_visit(node)

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        elements: list[ast.expr] = []
        for element in node.elts:
            match element:
                case ast.Starred(ast.Name(name)) if name in self._places:
                    elements += self._whole(name).elts
                case _:
                    elements.append(self.visit(element))
        return ast.Tuple(elements, node.ctx)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if not isinstance(node.op, ast.Add):
            return self.generic_visit(node)
        first, second = self._operand(node.left), self._operand(node.right)
        if isinstance(first, ast.Tuple) and isinstance(second, ast.Tuple):
            return ast.Tuple([*first.elts, *second.elts], ast.Load())
        return ast.BinOp(first, node.op, second)  # a tuple in it is refused by ``translate``

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self._places:
            _refuse("it uses a record as a whole, or assigns to its argument")
        return node

    def _operand(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Name) and node.id in self._places:
            if not self._shapes[node.id].is_tuple:
                _refuse("it adds a record that is no tuple")
            return self._whole(node.id)
        visited: ast.expr = self.visit(node)
        return visited

    def _field(self, name: str, at: int) -> ast.expr:
        if not self._shapes[name].has_places:
            _refuse("its records have no fields by number")
        return self._at(name, at)

    def _at(self, name: str, at: int) -> ast.expr:
        place = self._places[name]
        if not -len(place) <= at < len(place):
            _refuse(f"there is no field {at}")
        return ast.Subscript(ast.Name(_PAIR, ast.Load()), ast.Constant(place[at]), ast.Load())

    def _named_field(self, name: str, field: str) -> ast.expr:
        names = self._shapes[name].names
        if names is None or field not in names:
            _refuse(f"there is no field {field!r}")
        return self._at(name, names.index(field))

    def _whole(self, name: str) -> ast.Tuple:
        return ast.Tuple([self._field(name, at) for at in range(len(self._places[name]))], ast.Load())


def _shape_of(schema: pa.Schema) -> Shape:
    kinds, named = tuple(map(_kind_of, schema.types)), is_named(schema)
    if isinstance(named, type):
        return Shape(kinds, names=fields_of_class(named), record=named)
    return Shape(kinds, names=tuple(schema.names) if named else None)


@final
class PairFunction:
    """A join's function, or its condition, on columns; one object per operator. ``reason``: why pairs were left to the
    interpreter."""

    def __init__(self, function: Any, *, is_condition: bool = False, row_names: tuple[str, ...] | None = None) -> None:
        self._function = function
        self._row_names = row_names
        self._is_condition = is_condition
        self._schemas: tuple[pa.Schema, pa.Schema] | None = None
        self._translation: Translation | None = None
        self._doubts_in_row = 0
        self.reason = ""

    def apply(
        self, schemas: tuple[pa.Schema, pa.Schema], columns: Sequence[pa.Array], num_pairs: int, times_ms: Any
    ) -> ColumnBatch | None:
        """Return the results of some pairs, at least one; None = ask the interpreter.

        ``columns``: the fields of the left records, then of the right ones; only those that are needed are asked for.
        """
        result = self._result(schemas)
        if result is None:
            return None
        items = result.items if isinstance(result, Fields) else (result,)
        arrays = self._evaluated(lambda frame: [_array(item, frame) for item in items], columns, num_pairs)
        if arrays is None:
            return None
        if not isinstance(result, Fields):
            return ColumnBatch(pa.RecordBatch.from_arrays(arrays, names=["f0"]), times_ms, scalar=True)
        names = result.names or tuple(f"f{index}" for index in range(len(arrays)))
        made = pa.RecordBatch.from_arrays(arrays, names=names)
        return ColumnBatch(made, times_ms, named=result.record or result.names is not None)

    def holds(self, schemas: tuple[pa.Schema, pa.Schema], columns: Sequence[pa.Array], num_pairs: int) -> Any:
        """Return for which pairs the condition holds, bool, or None; as ``apply``."""
        result = self._result(schemas)
        if result is None:
            return None
        return self._evaluated(
            lambda frame: np.broadcast_to(result.evaluate(frame, None).values, num_pairs), columns, num_pairs
        )

    def _result(self, schemas: tuple[pa.Schema, pa.Schema]) -> Any:
        translation = self._translation_for(schemas)
        return None if translation is None or self._doubts_in_row >= DOUBTS_MAX else translation.result

    def _evaluated(self, evaluate: Callable[[Frame], Any], columns: Sequence[pa.Array], num_pairs: int) -> Any:
        try:
            with np.errstate(all="ignore"):
                made = evaluate(Frame(columns, num_pairs))  # type: ignore[arg-type]
        except (Doubt, pa.ArrowException):
            self._doubts_in_row += 1
            self.reason = "a value on which columns and interpreter may differ, or an error"
            return None
        self._doubts_in_row = 0
        return made

    def _translation_for(self, schemas: tuple[pa.Schema, pa.Schema]) -> Translation | None:
        known = self._schemas
        if known is None or any(
            a is not b and not a.equals(b, check_metadata=True) for a, b in zip(schemas, known, strict=True)
        ):
            self._schemas = schemas
            self._compile(schemas)
        translation = self._translation
        if translation is not None and any(name.read() is not name.value for name in translation.outside):
            self._compile(schemas)  # a global or a variable of the surrounding function has changed
        return self._translation

    def _compile(self, schemas: tuple[pa.Schema, pa.Schema]) -> None:
        self._translation = None
        left, right = map(_shape_of, schemas)
        try:
            self._translation = translate_pair(
                self._function, left, right, as_condition=self._is_condition, row_names=self._row_names
            )
        except NotCompilable as error:
            self.reason = str(error)
