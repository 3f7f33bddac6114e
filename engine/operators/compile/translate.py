"""From a function's tree to expressions over the columns of its records.

Only what is proven to give the interpreter's result is taken; the first thing that is not ends the matter with a reason
for ``explain``. A record is a bare value, a tuple (``r[0]``) or a Row (``r.name``, ``r["name"]``, ``r[0]``).
"""

from __future__ import annotations

import ast
import types
from collections.abc import Sequence
from typing import Any, Final, final

from engine.core.records import Row
from engine.operators.compile.callee import Callee, callee_of, parameters_of
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import Expression, Field, If, Kind, Let, Ref
from engine.operators.compile.shapes import (
    Fields,
    Names,
    Outside,
    Record,
    Shape,
    Translation,
    WholeRecord,
    known,
    refuse,
    with_let,
)
from engine.operators.compile.texts import SplitPart
from engine.operators.compile.values import Values

__all__ = ["Fields", "Outside", "Record", "Shape", "Translation", "WholeRecord", "translate", "translate_with"]

_DEPTH_MAX: Final = 8
_BLOCKS_MAX: Final = 300  # statements on all paths together


def translate(function: Any, shape: Shape, *, as_condition: bool = False, method: str = "") -> Translation:
    """Return the function as expressions over the fields; ``as_condition``: only the truth of its result matters.
    ``method``: of an object, what is called; "" = ``filter`` for a condition, else ``map``.

    Raises: NotCompilable with the reason.
    """
    callee = callee_of(function, method or ("filter" if as_condition else "map"))
    return translate_with(callee, shape, as_condition=as_condition)


def translate_with(
    callee: Callee, shape: Shape, behind: Sequence[Kind] = (), *, as_condition: bool = False
) -> Translation:
    """``behind``: arguments behind the record, which are columns behind its fields. Raises: NotCompilable."""
    node, parameters = parameters_of(callee.function)
    if callee.owner is not None:
        owner, *parameters = parameters or [""]
    if len(parameters) != 1 + len(behind):
        raise NotCompilable("it has more than one argument" if not behind else "it has other arguments")
    translator = _Translator(callee.function, shape, parameters[0])
    if callee.owner is not None:
        translator.owner = owner, callee.owner
    names: Names = {
        name: Field(len(shape.kinds) + index, kind)
        for index, (name, kind) in enumerate(zip(parameters[1:], behind, strict=True))
    }
    result: Record
    try:
        if isinstance(node, ast.Lambda):
            result = translator.condition(node.body, names) if as_condition else translator.record(node.body, names)
        else:
            result = translator.block(node.body, names, as_condition)
    except RecursionError:
        raise NotCompilable("it is too deep") from None
    if not as_condition:
        result = _as_declared(result, shape, callee.row_names)
    return Translation(result, tuple(translator.outside.values()))


@final
class _Translator(Values):
    # --- statements

    def block(self, statements: Sequence[ast.stmt], names: Names, as_condition: bool) -> Record:
        """Translate statements up to a return on every path."""
        self._num_blocks += 1
        if not statements:
            refuse("it returns None on some path")
        if self._num_blocks > _BLOCKS_MAX:
            refuse("it has too many paths")
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
        refuse(f"it has a {type(first).__name__} statement")

    def _assign(
        self, target: ast.expr, value: ast.expr, names: Names, rest: Sequence[ast.stmt], as_condition: bool
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
                refuse("it assigns to something else than names")
        if any(name == self._parameter for name, _ in bound):
            refuse("it assigns to its argument")
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
                result = with_let(number, expression, result)
        return result

    def _unpacked(self, value: ast.expr, names: Names, count: int) -> list[Expression]:
        if self._is_record(value, names) and not self._shape.is_scalar:
            if count != len(self._shape.kinds):
                refuse(f"it unpacks {count} of {len(self._shape.kinds)} fields")
            return [self._field(index) for index in range(count)]
        if isinstance(value, ast.Tuple) and len(value.elts) == count:
            return [self.value(element, names) for element in value.elts]
        split = self._split_of(value, names)
        if split is not None:
            return [SplitPart(split[0], split[1], index, count) for index in range(count)]
        refuse("it unpacks something else than the record")

    # --- results

    def record(self, node: ast.expr, names: Names) -> Record:
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

    def _row(self, node: ast.Call, names: Names) -> Fields:
        fields = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
        values = [keyword.value for keyword in node.keywords]
        if len(fields) < len(values) or any(isinstance(argument, ast.Starred) for argument in node.args):
            refuse("it calls Row with *")
        if bool(fields) is bool(node.args):
            refuse("it makes a Row without fields, or with some that have names and some that have none")
        items = tuple(self.value(value, names) for value in (*node.args, *values))
        return Fields(items, True, tuple(fields) or None)

    def _inlined(self, function: types.FunctionType, node: ast.Call, names: Names) -> Record:
        """Translate what another function of the program gives."""
        self._num_blocks += 1
        if self._depth >= _DEPTH_MAX or self._num_blocks > _BLOCKS_MAX:
            refuse("its functions call each other too often")
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            refuse("it calls with keywords or *")
        if function not in self._trees:
            self._trees[function] = parameters_of(function)
        tree, parameters = self._trees[function]
        if len(parameters) != len(node.args):
            refuse(f"it calls {function.__name__} with other arguments")
        record = ""
        given: Names = {}
        lets: list[tuple[int, Expression]] = []
        for parameter, argument in zip(parameters, node.args, strict=True):
            if self._is_record(argument, names) and not self._shape.is_scalar:
                if record:
                    refuse(f"it gives {function.__name__} the record twice")
                record = parameter
                continue
            value = self.value(argument, names)
            if not isinstance(value, Field):  # evaluated once, whether it is used or not
                lets.append((self._next_let(), known(value)))
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
            result = with_let(number, value, result)
        return result

    def _branch(self, test: Expression, then: Record, other: Record) -> Record:
        if isinstance(then, Fields) and isinstance(other, Fields) and _are_alike(then, other):
            ref = Ref(self._next_let(), Kind.BOOL)
            first, *others = [If(ref, known(one), known(two)) for one, two in zip(then.items, other.items, strict=True)]
            return Fields((Let(ref.number, test, first), *others), then.is_row, then.names)
        if isinstance(then, Expression) and isinstance(other, Expression):
            return If(test, known(then), known(other))
        refuse("its branches return different things")


def _are_alike(one: Fields, two: Fields) -> bool:
    return (len(one.items), one.is_row, one.names) == (len(two.items), two.is_row, two.names)


def _as_declared(result: Record, shape: Shape, names: tuple[str, ...] | None) -> Record:
    """Return what becomes of a function's result where a ROW type with these names is declared; None = no such type.
    As ``row_output.row_maker`` does."""
    if names is not None:
        if isinstance(result, Expression) and result.kind is Kind.OPAQUE:
            refuse("it hands on a field that may become a Row")
        if isinstance(result, WholeRecord) and shape.names is None:
            result = Fields(tuple(Field(index, kind) for index, kind in enumerate(shape.kinds)))
            if len(result.items) != len(names):
                return WholeRecord()
        if isinstance(result, Fields) and result.names is None and len(result.items) == len(names):
            result = Fields(result.items, True, names)
    if isinstance(result, Fields) and result.is_row and result.names is None:
        refuse("it makes Rows without names")
    return result
