"""Flat_map functions that cut a line into words at white space: told by their form, for the tokeniser of whole texts.

``lambda line: [(word, 1) for word in line.split()]`` and what else programs write for it: a generator, a loop that
yields or appends, ``lower()`` of the line or of each word. All others are None here; nothing is guessed.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, Final, final

from engine.core.late_dataclass import dataclass
from engine.operators.compile.callee import callee_of
from engine.operators.compile.errors import NotCompilable
from engine.operators.compile.source import tree_of
from engine.operators.functions import Function

__all__ = ["Words", "words_of"]


@final
@dataclass(frozen=True, slots=True)
class Words:
    """What the function gives of ``line.split()``. ``lower``: the words in small letters, as ``str.lower()``;
    ``pairs``: (word, 1), else the words."""

    lower: bool
    pairs: bool


def words_of(function: Any) -> Words | None:
    """Return which words of a line, a str, the function gives; None = it does something else, or may do so."""
    if isinstance(function, Function):
        own = type(function)
        if own.open is not Function.open or own.close is not Function.close:
            return None  # what cuts the words calls neither
    try:
        callee = callee_of(function, "flat_map")
        tree = tree_of(callee.function)
    except NotCompilable:
        return None
    arguments = tree.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if callee.owner is not None:
        names = names[1:]
    if len(names) != 1 or arguments.vararg or arguments.kwarg or arguments.kwonlyargs or callee.row_names is not None:
        return None
    if callee.function.__code__.co_flags & _ASYNC:
        return None
    line = names[0]
    if isinstance(tree, ast.Lambda):
        return _given(tree.body, line, {})
    return _block([node for node in tree.body if not _is_text(node)], line, {})


_ASYNC: Final = 0x80 | 0x200  # coroutines and asynchronous generators


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _block(statements: Sequence[ast.stmt], line: str, names: dict[str, ast.expr]) -> Words | None:
    """``names``: what the function has given names to."""
    match statements:
        case [ast.Assign([ast.Name(target)], ast.List([])), ast.For() as loop, ast.Return(ast.Name(returned))]:
            if target != returned or target == line or target in names or _is_called(loop.target, target):
                return None
            match loop.body:
                case [ast.Expr(ast.Call(ast.Attribute(ast.Name(name), "append"), [given], []))] if name == target:
                    return _looped(loop, given, line, names)
        case [ast.Assign([ast.Name(target)], value), *rest] if _is_harmless(value):
            return _block(rest, line, {**names, target: _replaced(value, names)})
        case [ast.Return(ast.expr() as given)] | [ast.Expr(ast.YieldFrom(given))]:
            return _given(given, line, names)
        case [ast.For(body=[ast.Expr(ast.Yield(ast.expr() as given))]) as loop]:
            return _looped(loop, given, line, names)
    return None


def _is_called(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_harmless(value: ast.expr) -> bool:
    """Whether nothing but methods of a text that are known below is called: it may stand where its name stands."""
    match value:
        case ast.Call(ast.Attribute(owner, "lower" | "strip" | "split"), [], []):
            return _is_harmless(owner)
    return isinstance(value, ast.Name)


def _replaced(value: ast.expr, names: dict[str, ast.expr]) -> ast.expr:
    match value:
        case ast.Name(name) if name in names:
            return names[name]
        case ast.Call(ast.Attribute(owner, method)):
            return ast.Call(ast.Attribute(_replaced(owner, names), method), [], [])
    return value


def _looped(loop: ast.For, given: ast.expr, line: str, names: dict[str, ast.expr]) -> Words | None:
    if loop.orelse or not isinstance(loop.target, ast.Name):
        return None
    return _of_each(loop.target.id, given, loop.iter, line, names)


def _given(node: ast.expr, line: str, names: dict[str, ast.expr]) -> Words | None:
    """Return what an expression is whose items are the results."""
    match node:
        case ast.ListComp(given, [clause]) | ast.GeneratorExp(given, [clause]) if not clause.is_async:
            match clause:
                case ast.comprehension(ast.Name(word), cut, []):
                    return _of_each(word, given, cut, line, names)
                case ast.comprehension(ast.Name(word), cut, [ast.Name(kept)]) if kept == word:
                    return _of_each(word, given, cut, line, names)  # no word is empty
    lower = _cut(node, line, names)
    return None if lower is None else Words(lower, False)


def _of_each(word: str, given: ast.expr, cut: ast.expr, line: str, names: dict[str, ast.expr]) -> Words | None:
    lower = _cut(cut, line, names)
    if lower is None or word == line:
        return None
    pairs = False
    match given:
        case ast.Tuple([first, ast.Constant(1 as one)]) if type(one) is int:
            given, pairs = first, True
    match given:
        case ast.Name(name) if name == word:
            return Words(lower, pairs)
        # White space has no case and ends what the case of a letter may depend on: small words are a small line's.
        case ast.Call(ast.Attribute(ast.Name(name), "lower"), [], []) if name == word:
            return Words(True, pairs)
    return None


def _cut(node: ast.expr, line: str, names: dict[str, ast.expr]) -> bool | None:
    """Return whether the words of the line that an expression gives are small; None = it gives something else."""
    match _replaced(node, names) if _is_harmless(node) else node:
        case ast.Call(ast.Attribute(text, "split"), [], []):
            return _is_small(text, line)
    return None


def _is_small(text: ast.expr, line: str) -> bool | None:
    match text:
        case ast.Name(name) if name == line:
            return False
        case ast.Call(ast.Attribute(owner, "strip"), [], []):
            return _is_small(owner, line)
        case ast.Call(ast.Attribute(owner, "lower"), [], []):
            return None if _is_small(owner, line) is None else True
    return None
