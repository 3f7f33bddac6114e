"""From a flat_map function to what it gives of each record: records one after the other, some only under a condition,
some for each part of a text or each number of a range.

Lists and tuples, comprehensions and generator expressions, ``x if … else …`` of these, and functions that yield or
return them, with ``if``, ``for`` over a text's parts, a range or constants. Not here: how it is run (``flat_steps``).
"""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, final

from engine.core.late_dataclass import dataclass
from engine.operators.compile.callee import callee_of
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.expressions import Expression, Field, Kind, Ref
from engine.operators.compile.shapes import Fields, Names, Outside, Record, Shape, WholeRecord, constant, refuse
from engine.operators.compile.translate import _Translator, translator_of

__all__ = ["Bind", "Choose", "Each", "Emit", "FlatTranslation", "Node", "Numbers", "Parts", "Several", "translate_flat"]

_NODES_MAX: Final = 300


@final
@dataclass(frozen=True, slots=True)
class Emit:
    """One record: of these fields."""

    items: tuple[Expression, ...]


@final
@dataclass(frozen=True, slots=True)
class Several:
    nodes: tuple[Node, ...]


@final
@dataclass(frozen=True, slots=True)
class Choose:
    test: Expression
    then: Node
    other: Node


@final
@dataclass(frozen=True, slots=True)
class Bind:
    """``value`` is computed, errors included, and is ``Ref(number)`` in ``body``."""

    number: int
    value: Expression
    body: Node


@final
@dataclass(frozen=True, slots=True)
class Parts:
    """``text.split(separator)``; None = at white space."""

    text: Expression
    separator: str | None


@final
@dataclass(frozen=True, slots=True)
class Numbers:
    """``range(stop)``."""

    stop: Expression


@final
@dataclass(frozen=True, slots=True)
class Each:
    """``body`` for each of them, which is ``Ref(number)`` there."""

    number: int
    items: Parts | Numbers
    body: Node


Node: TypeAlias = Emit | Several | Choose | Bind | Each
NOTHING: Final = Several(())


@final
@dataclass(frozen=True, slots=True)
class FlatTranslation:
    """``shape``: of all records that it gives."""

    node: Node
    shape: Shape
    outside: tuple[Outside, ...]


def translate_flat(function: Any, shape: Shape) -> FlatTranslation:
    """Return what a flat_map function gives of records of this shape. Raises: NotCompilable with the reason."""
    callee = callee_of(function, "flat_map")
    if callee.row_names is not None:
        refuse("its results become Rows")
    translator, tree, names = translator_of(callee, shape, is_flat=True)
    is_generator = bool(callee.function.__code__.co_flags & inspect.CO_GENERATOR)
    flat = _Flat(translator, shape, is_generator=is_generator)
    try:
        if isinstance(tree, ast.Lambda):
            node = flat.items(tree.body, names)
        else:
            statements, is_collected = _without_list(tree.body)
            flat.is_generator |= is_collected
            node = flat.block(statements, names, in_loop=False)
    except RecursionError:
        raise NotCompilable("it is too deep") from None
    if flat.shape is None:
        refuse("it gives nothing")
    return FlatTranslation(node, flat.shape, tuple(translator.outside.values()))


@final
class _Flat:
    def __init__(self, translator: _Translator, shape: Shape, *, is_generator: bool) -> None:
        self._translator = translator
        self._input = shape
        self.is_generator = is_generator
        self._num_nodes = 0
        self.shape: Shape | None = None  #: of the records so far

    # --- statements

    def block(self, statements: Sequence[ast.stmt], names: Names, *, in_loop: bool) -> Node:
        self._count()
        if not statements:
            return NOTHING
        first, rest = statements[0], statements[1:]
        match first:
            case ast.Expr(ast.Constant()) | ast.Pass():
                return self.block(rest, names, in_loop=in_loop)
            case ast.Continue() if in_loop:
                return NOTHING
            case ast.Expr(ast.Yield(ast.expr() as value)):
                return Several((self._emit(value, names), self.block(rest, names, in_loop=in_loop)))
            case ast.Expr(ast.YieldFrom(value)):
                return Several((self.items(value, names), self.block(rest, names, in_loop=in_loop)))
            case ast.Return(value) if not in_loop:
                if value is None or (isinstance(value, ast.Constant) and value.value is None):
                    return NOTHING
                return refuse("it yields and returns") if self.is_generator else self.items(value, names)
            case ast.Assign([target], value) | ast.AnnAssign(ast.Name() as target, _, ast.expr() as value):
                return self._bound(target, value, rest, names, in_loop=in_loop)
            case ast.AugAssign(ast.Name(name) as target, sign, value):
                value = ast.BinOp(ast.Name(name, ast.Load()), sign, value)
                return self._bound(target, value, rest, names, in_loop=in_loop)
            case ast.If(test, body, orelse):
                return self._if(test, body, orelse, rest, names, in_loop=in_loop)
            case ast.For(ast.Name(target), iterated, body, []):
                if target == self._translator._parameter or target in names:
                    refuse("its loop gives a name another value")

                def of_one(inner: Names) -> Node:
                    return self.block(body, inner, in_loop=True)

                loop = self._loop(target, iterated, of_one, names)
                return Several((loop, self.block(rest, names, in_loop=in_loop)))
        refuse(f"it has a {type(first).__name__} statement")

    def _bound(
        self, target: ast.expr, value: ast.expr, rest: Sequence[ast.stmt], names: Names, *, in_loop: bool
    ) -> Node:
        inner, lets = self._translator.bound(target, value, names)
        if in_loop and any(name in names and names[name] is not value for name, value in inner.items()):
            refuse("its loop gives a name another value")
        node = self.block(rest, inner, in_loop=in_loop)
        for number, expression in reversed(lets):
            node = Bind(number, expression, node)
        return node

    def _if(
        self,
        test: ast.expr,
        body: Sequence[ast.stmt],
        orelse: Sequence[ast.stmt],
        rest: Sequence[ast.stmt],
        names: Names,
        *,
        in_loop: bool,
    ) -> Node:
        condition = self._translator.condition(test, names)
        if _goes_on(body) and _goes_on(orelse):
            then, other = (self.block(own, names, in_loop=in_loop) for own in (body, orelse))
            return Several((Choose(condition, then, other), self.block(rest, names, in_loop=in_loop)))
        then, other = (self.block([*own, *rest], dict(names), in_loop=in_loop) for own in (body, orelse))
        return Choose(condition, then, other)

    # --- results

    def items(self, node: ast.expr, names: Names) -> Node:
        """Translate an expression whose items are the results."""
        self._count()
        match node:
            case ast.Constant(None):
                return NOTHING
            case ast.List(elements) | ast.Tuple(elements):
                return Several(tuple(self._emit(element, names) for element in elements))
            case ast.IfExp(test, body, orelse):
                condition = self._translator.condition(test, names)
                return Choose(condition, self.items(body, names), self.items(orelse, names))
            case ast.ListComp(element, clauses) | ast.GeneratorExp(element, clauses):
                return self._comprehension(element, clauses, names)
        found = self._iterated(node, names)
        if found is None:
            refuse("what it gives is no list, comprehension, parts of a text or range")
        number = self._translator._next_let()
        ref = Ref(number, Kind.INT if isinstance(found, Numbers) else Kind.STR)
        return Each(number, found, self._emitted(ref))

    def _comprehension(self, element: ast.expr, clauses: Sequence[ast.comprehension], names: Names) -> Node:
        clause, rest = clauses[0], clauses[1:]
        if clause.is_async or not isinstance(clause.target, ast.Name):
            refuse("it takes apart what it loops over")

        def of_one(inner: Names) -> Node:
            node = self._comprehension(element, rest, inner) if rest else self._emit(element, inner)
            for condition in reversed(clause.ifs):
                node = Choose(self._translator.condition(condition, inner), node, NOTHING)
            return node

        return self._loop(clause.target.id, clause.iter, of_one, names)

    def _loop(self, target: str, iterated: ast.expr, of_one: Callable[[Names], Node], names: Names) -> Node:
        constants = self._translator.constants(iterated, names)
        if constants is not None:
            return Several(tuple(of_one({**names, target: one}) for one in constants))
        found = self._iterated(iterated, names)
        if found is None:
            refuse("it loops over something else than parts of a text, a range or constants")
        number = self._translator._next_let()
        ref = Ref(number, Kind.INT if isinstance(found, Numbers) else Kind.STR)
        return Each(number, found, of_one({**names, target: ref}))

    def _iterated(self, node: ast.expr, names: Names) -> Parts | Numbers | None:
        match node:
            case ast.Call(ast.Attribute(owner, "split"), arguments, []) if len(arguments) <= 1:
                text = self._translator.value(owner, names)
                if text.kind is not Kind.STR:
                    return None
                match arguments:
                    case [] | [ast.Constant(None)]:
                        return Parts(text, None)
                    case [ast.Constant(str() as separator)] if separator:
                        return Parts(text, constant(separator).value)
            case ast.Call(ast.Name("range"), [stop], []) if self._translator.is_range(names):
                value = self._translator.value(stop, names)
                return Numbers(value) if value.kind is Kind.INT else None
        return None

    def _emit(self, node: ast.expr, names: Names) -> Emit:
        if isinstance(node, ast.Starred):
            refuse("it gives the items of something with *")
        return self._emitted(self._translator.record(node, names))

    def _emitted(self, record: Record) -> Emit:
        self._count()
        if isinstance(record, WholeRecord):
            own = self._input
            items: tuple[Expression, ...] = tuple(Field(index, kind) for index, kind in enumerate(own.kinds))
            shape = own
        elif isinstance(record, Fields):
            if record.is_row and record.names is None:
                refuse("it makes Rows without names")
            items = record.items
            shape = Shape(tuple(item.kind for item in items), False, record.names, record.record)
        else:
            items, shape = (record,), Shape((record.kind,), is_scalar=True)
        if self.shape is None:
            self.shape = shape
        elif self.shape != shape:
            refuse("its records are of several types")
        return Emit(items)

    def _count(self) -> None:
        self._num_nodes += 1
        if self._num_nodes > _NODES_MAX:
            refuse("it has too many paths")


def _without_list(body: Sequence[ast.stmt]) -> tuple[Sequence[ast.stmt], bool]:
    """Return a function's statements with those that append to a list, which it returns, as such that yield."""
    for at, statement in enumerate(body):
        match statement:
            case ast.Expr(ast.Constant()):
                continue
            case ast.Assign([ast.Name(name)], ast.List([])) | ast.AnnAssign(ast.Name(name), _, ast.List([])):
                collector = _Collector(name)
                rest = [collector.visit(copy.deepcopy(own)) for own in body[at + 1 :]]
                return ([*body[:at], *rest], True) if collector.is_returned else (body, False)
            case ast.Assign():
                continue
        break
    return body, False


@final
class _Collector(ast.NodeTransformer):
    def __init__(self, name: str) -> None:
        self._name = name
        self.is_returned = False

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        match node.value:
            case ast.Call(ast.Attribute(ast.Name(name), "append"), [value], []) if name == self._name:
                return ast.Expr(ast.Yield(self.visit(value)))
            case ast.Call(ast.Attribute(ast.Name(name), "extend"), [value], []) if name == self._name:
                return ast.Expr(ast.YieldFrom(self.visit(value)))
        return self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> ast.AST:
        match node.value:
            case ast.Name(name) if name == self._name:
                self.is_returned = True
                return ast.Return(None)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id == self._name:
            refuse("it does more with its list than to append to it")
        return node


def _goes_on(statements: Sequence[ast.stmt]) -> bool:
    """Whether what stands behind these statements is the same whether they run or not: no names, no ways out."""
    stopping = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.Continue, ast.NamedExpr, ast.For)
    return not any(isinstance(node, stopping) for statement in statements for node in ast.walk(statement))
