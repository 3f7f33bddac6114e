"""From a function object back to its syntax tree, proven by its byte code.

The source at hand may be another version of the file, and several lambdas may stand on one line: a tree counts only if
the source compiles to the very code of the function. Works where the program was started and in slots, where source
lines travel with the code (``core/user_code``).
"""

from __future__ import annotations

import ast
import functools
import linecache
import types
from typing import Any

from engine.operators.compile.errors import NotCompilable

__all__ = ["tree_of"]

_SOURCE_SIZE_MAX = 1 << 19


@functools.lru_cache(16)
def _parsed(file_name: str, text: str) -> tuple[ast.Module, list[types.CodeType]]:
    tree = ast.parse(text, file_name)
    pending = [compile(tree, file_name, "exec", dont_inherit=True)]
    codes: list[types.CodeType] = []
    while pending:
        code = pending.pop()
        codes.append(code)
        pending += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return tree, codes


def tree_of(function: Any) -> ast.Lambda | ast.FunctionDef:
    """Return the tree of a plain function.

    Raises: NotCompilable when there is none, or it is not known for sure.
    """
    if not isinstance(function, types.FunctionType):
        raise NotCompilable(f"a {type(function).__name__}, not a plain function")
    code = function.__code__
    text = "".join(linecache.getlines(code.co_filename))
    if not text or len(text) > _SOURCE_SIZE_MAX:
        raise NotCompilable("its source is not at hand")
    try:
        tree, codes = _parsed(code.co_filename, text)
    except (SyntaxError, ValueError, RecursionError):
        raise NotCompilable("its source is not at hand") from None
    if code not in codes:
        raise NotCompilable("its source has changed")
    if code.co_name != "<lambda>":
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
                first = node.decorator_list[0] if node.decorator_list else node
                if first.lineno == code.co_firstlineno:
                    return node
        raise NotCompilable("its source is not at hand")
    bodies = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda) and _holds(node.body, code)]
    if not bodies:
        raise NotCompilable("its source is not at hand")
    return max(bodies, key=lambda node: (node.body.lineno, node.body.col_offset))  # the innermost one


def _holds(body: ast.expr, code: types.CodeType) -> bool:
    """Return whether all that the code does stands in this expression."""
    assert body.end_lineno is not None
    assert body.end_col_offset is not None
    start, end = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
    return all(
        start <= (line, column) and (end_line, end_column) <= end
        for line, end_line, column, end_column in code.co_positions()
        if line and end_line and column is not None and end_column  # not those of no expression
    )
