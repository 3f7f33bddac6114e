"""From a function's tree to expressions over the columns of its records.

Only what is proven to give the interpreter's result is taken; the first thing that is not ends the matter with a reason
for ``explain``. A record is a bare value, a tuple (``r[0]``) or a Row (``r.name``, ``r["name"]``, ``r[0]``).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import types
from collections.abc import Sequence
from typing import Any, Final, final

from engine.core.record_class import defaults_of, fields_of_class, why_not_plain
from engine.core.records import Row
from engine.operators.compile.called import Calls
from engine.operators.compile.callee import (
    Callee,
    Default,
    arguments_of,
    callee_of,
    defaults_of_function,
    parameters_of,
)
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import Expression, Field, If, Kind, Let, Ref
from engine.operators.compile.named_values import hoisted
from engine.operators.compile.shapes import (
    Fields,
    Names,
    Outside,
    Record,
    Shape,
    Translation,
    WholeRecord,
    constant,
    known,
    refuse,
    with_let,
)
from engine.operators.compile.texts import SplitPart

__all__ = [
    "Fields",
    "Outside",
    "Record",
    "Shape",
    "Translation",
    "WholeRecord",
    "as_declared",
    "translate",
    "translate_with",
]

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
    translator, node, names = translator_of(callee, shape, behind)
    result: Record
    try:
        if isinstance(node, ast.Lambda) and any(isinstance(part, ast.NamedExpr) for part in ast.walk(node)):
            result = translator.block([ast.Return(node.body)], names, as_condition)
        elif isinstance(node, ast.Lambda):
            result = translator.condition(node.body, names) if as_condition else translator.record(node.body, names)
        else:
            result = translator.block(node.body, names, as_condition)
    except RecursionError:
        raise NotCompilable("it is too deep") from None
    if not as_condition:
        result = as_declared(result, shape, callee.row_names)
    return Translation(result, tuple(translator.outside.values()))


def translator_of(
    callee: Callee, shape: Shape, behind: Sequence[Kind] = (), *, is_flat: bool = False
) -> tuple[_Translator, ast.Lambda | ast.FunctionDef, Names]:
    """Return what translates a function of one record, its tree, and what stands for its other arguments: columns
    ``behind`` the record's, and those that are never given. ``is_flat``: it may be a generator. Raises: NotCompilable.
    """
    node, parameters = parameters_of(callee.function, is_flat=is_flat)
    num_owners = 0 if callee.owner is None else 1
    num_given = num_owners + 1 + len(behind)
    if callee.function.__code__.co_argcount < num_given:
        raise NotCompilable("it has too few arguments" if behind else "it has no argument")
    translator = _Translator(callee.function, shape, parameters[num_owners])
    if callee.owner is not None:
        translator.owner = parameters[0], callee.owner
    columns: Names = {
        name: Field(len(shape.kinds) + index, kind)
        for index, (name, kind) in enumerate(zip(parameters[num_owners + 1 : num_given], behind, strict=True))
    }
    return translator, node, columns | translator.names_of_defaults(parameters[num_given:])


@final
class _Translator(Calls):
    def names_of_defaults(self, parameters: Sequence[str]) -> Names:
        """Return what stands for the arguments that are never given."""
        defaults = self._defaults(self._function) if parameters else {}
        for parameter in parameters:
            if parameter not in defaults:
                refuse("it has more than one argument")
        return {parameter: constant(defaults[parameter]) for parameter in parameters}

    # --- statements

    def block(self, statements: Sequence[ast.stmt], names: Names, as_condition: bool) -> Record:
        """Translate statements up to a return on every path."""
        self._num_blocks += 1
        if not statements:
            refuse("it returns None on some path")
        if self._num_blocks > _BLOCKS_MAX:
            refuse("it has too many paths")
        first, rest = statements[0], statements[1:]
        assigned, first = hoisted(first)
        if assigned:
            return self.block([*assigned, first, *rest], names, as_condition)
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
            case ast.For(ast.Name() as target, iterated, body, []):
                constants = self.constants(iterated, names)
                if constants is None:
                    refuse("it loops over something else than constants")
                rounds = [(ast.Assign([target], ast.Constant(one.value)), *body) for one in constants]
                return self.block([*itertools.chain(*rounds), *rest], names, as_condition)
            case ast.If(test, body, orelse):
                condition = self.condition(test, names)
                then = self.block([*body, *rest], dict(names), as_condition)
                other = self.block([*orelse, *rest], dict(names), as_condition)
                return self._branch(condition, then, other)
        if isinstance(first, ast.Expr):
            refuse("it calls something for what that does, not for its value")
        refuse(f"it has a {type(first).__name__} statement")

    def _assign(
        self, target: ast.expr, value: ast.expr, names: Names, rest: Sequence[ast.stmt], as_condition: bool
    ) -> Record:
        inner, lets = self.bound(target, value, names)
        result = self.block(rest, inner, as_condition)
        for number, expression in reversed(lets):
            result = with_let(number, expression, result)
        return result

    def bound(self, target: ast.expr, value: ast.expr, names: Names) -> tuple[Names, list[tuple[int, Expression]]]:
        """Translate an assignment; return the names with those that it gives, and what has to be computed for them."""
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
        return inner, [(number, expression) for number, expression in lets if not isinstance(expression, Field)]

    def _unpacked(self, value: ast.expr, names: Names, count: int) -> list[Expression]:
        if self._is_record(value, names) and self._shape.has_places:
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
            case ast.Call():
                made = self._called(node, names)
                if made is not None:
                    return made
            case ast.IfExp(test, body, orelse):
                return self._branch(self.condition(test, names), self.record(body, names), self.record(orelse, names))
        return self.value(node, names)

    def _called(self, node: ast.Call, names: Names) -> Record | None:
        """Translate a call that gives a record, or may; None = it gives a value."""
        match node.func:
            case ast.Attribute(owner, "_replace") if self._is_record(owner, names) and not node.args:
                if self._shape.is_tuple and self._shape.record is not None:
                    return self._replaced(node.keywords, names)
            case ast.Attribute(owner, method) if self._is_record(owner, names) and self._shape.record is not None:
                return self._inlined(self._method(method), _with_first(owner, node), names)
            case ast.Attribute(ast.Name(module), "replace") if self._is_outside(module, names):
                if self._outside(module) is dataclasses:
                    return self._called_replace(node, names)
            case ast.Name(name) if self._is_outside(name, names):
                function = self._outside(name)
                if function is Row:
                    return self._row(node, names)
                if function is dataclasses.replace:
                    return self._called_replace(node, names)
                if isinstance(function, types.FunctionType):
                    return self._inlined(function, node, names)
                if isinstance(function, type) and fields_of_class(function):
                    return self._object(function, node, names)
        return None

    def _object(self, kind: type, node: ast.Call, names: Names) -> Fields:
        why = why_not_plain(kind)
        if why:
            refuse(f"it makes a {kind.__name__}, which is more than its fields: {why}")
        match node.args:
            case [ast.Starred(ast.Name() as record)] if self._is_record(record, names) and self._shape.has_places:
                every: list[ast.expr] = [
                    ast.Subscript(record, ast.Constant(at)) for at in range(len(self._shape.kinds))
                ]
                node = ast.Call(node.func, every, node.keywords)
        fields = fields_of_class(kind)
        given = arguments_of(node, list(fields), defaults_of(kind), kind.__name__)
        items = tuple(self._argument(given[field], names) for field in fields)
        return Fields(items, False, fields, kind)

    def _argument(self, given: ast.expr | Default, names: Names) -> Expression:
        return constant(given.value) if isinstance(given, Default) else self.value(given, names)

    def _called_replace(self, node: ast.Call, names: Names) -> Fields:
        """Translate ``dataclasses.replace(record, field=value)``."""
        record = self._shape.record
        if record is None or self._shape.is_tuple or len(node.args) != 1 or not self._is_record(node.args[0], names):
            refuse("it calls replace() of something else than the record")
        return self._replaced(node.keywords, names)

    def _replaced(self, changes: Sequence[ast.keyword], names: Names) -> Fields:
        shape = self._shape
        assert shape.names is not None
        values = {change.arg: self.value(change.value, names) for change in changes}
        if not values.keys() <= set(shape.names) or len(values) < len(changes):
            refuse("it replaces a field that its records do not have")
        items = tuple(values.get(name, self._field(index)) for index, name in enumerate(shape.names))
        return Fields(items, False, shape.names, shape.record)

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
        if function not in self._trees:
            self._trees[function] = parameters_of(function)
        tree, parameters = self._trees[function]
        defaults = self._defaults(function)
        record = ""
        given: Names = {}
        lets: list[tuple[int, Expression]] = []
        for parameter, argument in arguments_of(
            node, parameters, defaults, function.__name__, function.__code__
        ).items():
            if isinstance(argument, ast.expr) and self._is_record(argument, names) and not self._shape.is_scalar:
                if record:
                    refuse(f"it gives {function.__name__} the record twice")
                record = parameter
                continue
            value = self._argument(argument, names)
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

    def _defaults(self, function: types.FunctionType) -> dict[str, Any]:
        """Return the values of arguments that are not given, which are watched from now on."""
        if function.__defaults__ or function.__kwdefaults__:
            for name in ("__defaults__", "__kwdefaults__"):
                self._watch((function, name), functools.partial(getattr, function, name))
        return defaults_of_function(function)

    def _branch(self, test: Expression, then: Record, other: Record) -> Record:
        if isinstance(then, Fields) and isinstance(other, Fields) and then.is_like(other):
            ref = Ref(self._next_let(), Kind.BOOL)
            first, *others = [If(ref, known(one), known(two)) for one, two in zip(then.items, other.items, strict=True)]
            return then.of((Let(ref.number, test, first), *others))
        if isinstance(then, Expression) and isinstance(other, Expression):
            return If(test, known(then), known(other))
        refuse("its branches return different things")


def _with_first(argument: ast.expr, node: ast.Call) -> ast.Call:
    return ast.Call(node.func, [argument, *node.args], node.keywords)


def as_declared(result: Record, shape: Shape, names: tuple[str, ...] | None) -> Record:
    """Return what becomes of a function's result where a ROW type with these names is declared; None = no such type.
    As ``row_output.row_maker`` does."""
    if names is not None:
        if isinstance(result, Expression) and result.kind is Kind.OPAQUE:
            refuse("it hands on a field that may become a Row")
        if isinstance(result, WholeRecord) and shape.is_tuple:
            result = Fields(tuple(Field(index, kind) for index, kind in enumerate(shape.kinds)))
            if len(result.items) != len(names):
                return WholeRecord()
        is_tuple = isinstance(result, Fields) and (
            result.names is None if result.record is None else issubclass(result.record, tuple)
        )
        if isinstance(result, Fields) and is_tuple and len(result.items) == len(names):
            result = Fields(result.items, True, names)
    if isinstance(result, Fields) and result.is_row and result.names is None:
        refuse("it makes Rows without names")
    return result
