"""Values that an expression names on its way (``(n := r.count * 2) > 6``), as assignments in front of it.

Only where they are computed whatever the rest gives. To compute one early does no harm: what raises, or is in doubt, is
left to the interpreter.
"""

from __future__ import annotations

import ast
import copy
from typing import final

__all__ = ["hoisted"]


def hoisted(statement: ast.stmt) -> tuple[list[ast.stmt], ast.stmt]:
    """Return the assignments, in their order, and the statement without them."""
    match statement:
        case ast.If(test):
            named = _Named()
            test = named.taken_out(test)
            return named.assigned, ast.If(test, statement.body, statement.orelse) if named.assigned else statement
        case ast.Return(ast.expr() as value):
            named = _Named()
            value = named.taken_out(value)
            return named.assigned, ast.Return(value) if named.assigned else statement
        case ast.Assign(targets, value):
            named = _Named()
            value = named.taken_out(value)
            return named.assigned, ast.Assign(targets, value) if named.assigned else statement
    return [], statement


@final
class _Named(ast.NodeTransformer):
    def __init__(self) -> None:
        self.assigned: list[ast.stmt] = []
        self._read: set[str] = set()  #: names that stand before

    def taken_out(self, node: ast.expr) -> ast.expr:
        if not any(isinstance(part, ast.NamedExpr) for part in ast.walk(node)):
            return node
        changed: ast.expr = self.visit(copy.deepcopy(node))
        return changed

    def visit_Name(self, node: ast.Name) -> ast.AST:
        self._read.add(node.id)
        return node

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.AST:
        read = set(self._read)
        value = self.visit(node.value)
        if node.target.id in read:  # what stands before it means another value
            return ast.NamedExpr(node.target, value)
        self.assigned.append(ast.Assign([ast.Name(node.target.id, ast.Store())], value))
        return ast.Name(node.target.id, ast.Load())

    # Of these only the first part is computed whatever the rest gives.

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        return ast.BoolOp(node.op, [self.visit(node.values[0]), *node.values[1:]])

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        return ast.IfExp(self.visit(node.test), node.body, node.orelse)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        left, first = self.visit(node.left), self.visit(node.comparators[0])
        return ast.Compare(left, node.ops, [first, *node.comparators[1:]])

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    visit_ListComp = visit_GeneratorExp = visit_SetComp = visit_DictComp = visit_Lambda  # type: ignore[assignment]
