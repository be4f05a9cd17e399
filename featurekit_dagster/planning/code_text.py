"""Code as text: without comments, docstrings, annotations, decorators and layout, and the names that it uses."""

from __future__ import annotations

import ast
import inspect
from functools import lru_cache
from types import CodeType
from typing import Any

_REMEMBERED = 8_192
_NOT_CODE = {"ctx", "type_comment", "type_ignores", "decorator_list", "returns", "annotation"}


def node_text(node: Any) -> str:
    """Return a syntax tree as text; empty fields are left out, so that those of later Pythons change nothing."""
    pieces: list[str] = []
    _write(node, pieces)
    return "".join(pieces)


@lru_cache(maxsize=_REMEMBERED)
def function_text(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str:
    """Return arguments and body of a function as text; its name is the matter of those who use it."""
    return node_text([node.args, _without_docstring(node, node.body)])


def compiled_text(code: CodeType) -> str:
    """Return compiled instructions as text, for a function whose source is not to be had."""
    constants = [compiled_text(each) if inspect.iscode(each) else each for each in code.co_consts]
    return repr((code.co_code, code.co_names, constants))


@lru_cache(maxsize=_REMEMBERED)
def inner_imports(node: ast.AST) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """Return the imports inside a function."""
    return tuple(each for each in ast.walk(node) if isinstance(each, ast.Import | ast.ImportFrom))


@lru_cache(maxsize=_REMEMBERED)
def used_names(*nodes: ast.AST) -> tuple[tuple[str, ...], ...]:
    """Return each name that syntax trees read, once, in order, with the attributes that are taken of it.

    Of `helpers.clean(rows)` these are `("helpers", "clean")` and `("rows",)`.
    """
    waiting: list[Any] = [*reversed(nodes)]
    found: dict[tuple[str, ...], None] = {}
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += reversed(node)
            continue
        if not isinstance(node, ast.AST):
            continue
        if chain := _chain(node):
            found[chain] = None
            continue
        waiting += [getattr(node, name, None) for name in reversed(node._fields) if name not in _NOT_CODE]
    return tuple(found)


def global_names(code: CodeType) -> set[str]:
    """Return the names that a function and those inside it look up outside; names of attributes among them."""
    found = set(code.co_names) | set(code.co_freevars)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            found |= global_names(constant)
    return found


def _chain(node: ast.AST) -> tuple[str, ...]:
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else ()


def _write(node: Any, pieces: list[str]) -> None:
    if isinstance(node, ast.AST):
        pieces.append(f"{type(node).__name__}(")
        for name in node._fields:
            value = getattr(node, name, None)
            if value is None or value == [] or name in _NOT_CODE:
                continue
            pieces.append(f"{name}=")
            _write(_without_docstring(node, value) if name == "body" else value, pieces)
        pieces.append(")")
    elif isinstance(node, list):
        for item in node:
            _write(item, pieces)
            pieces.append(",")
    else:
        pieces.append(repr(node))


def _without_docstring(node: ast.AST, body: Any) -> Any:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return body if ast.get_docstring(node, clean=False) is None else body[1:]
    return body
