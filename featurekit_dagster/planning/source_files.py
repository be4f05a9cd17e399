"""Python files as syntax trees: where a function, a class or a module-level name is written, and whose file it is.

`called_code` follows a transformation through them; a file is parsed once per process, and again when it has changed.
"""

from __future__ import annotations

import ast
import linecache
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_OWN_FOLDER = os.path.realpath(Path(__file__).parents[1]) + os.sep
_PACKAGE_FOLDERS = {"site-packages", "dist-packages"}
_parsed: dict[str, tuple[list[str], SourceFile]] = {}


@dataclass(slots=True)
class SourceFile:
    """One parsed file.

    Args:
        functions: First line, decorators included, to the functions and lambdas that begin there.
        classes: Qualified name to the class; the last one where there are several.
        bindings: Name at module level to the statements that give it a value, in order.
    """

    functions: dict[int, list[FunctionNode]] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    bindings: dict[str, list[ast.stmt]] = field(default_factory=dict)

    @classmethod
    def of(cls, tree: ast.Module) -> SourceFile:
        """Return the index of a parsed file."""
        made = cls()
        made._add_definitions(tree)
        for statement in tree.body:
            made._add_bindings(statement)
        return made

    def function(self, code: CodeType) -> FunctionNode | None:
        """Return where a function's code is written; None when the file does not have it (any more)."""
        found = [node for node in self.functions.get(code.co_firstlineno, ()) if _name(node) == code.co_name]
        if len(found) > 1:  # lambdas of one line: the innermost that holds every instruction
            spots = [(line, column) for line, _, column, end in code.co_positions() if line and column != end]
            found = [node for node in found if all(_holds(node, line, column or 0) for line, column in spots)][-1:]
        return found[0] if found else None

    def _add_definitions(self, tree: ast.Module) -> None:
        waiting: list[tuple[ast.AST, str]] = [(tree, "")]
        for node, prefix in waiting:  # grows; breadth first, so that inner lambdas come after outer ones
            inner = prefix
            if isinstance(node, FunctionNode):
                first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
                self.functions.setdefault(first, []).append(node)
                inner = f"{prefix}{_name(node)}.<locals>."
            elif isinstance(node, ast.ClassDef):
                self.classes[f"{prefix}{node.name}"] = node
                inner = f"{prefix}{node.name}."
            if not isinstance(node, ast.Name | ast.Constant):
                waiting += [(child, inner) for child in ast.iter_child_nodes(node)]

    def _add_bindings(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for child in ast.iter_child_nodes(statement):
                inner = child.body if isinstance(child, ast.ExceptHandler) else [child]
                for each in inner:
                    if isinstance(each, ast.stmt):
                        self._add_bindings(each)
        for name in _bound_names(statement):
            self.bindings.setdefault(name, []).append(statement)


def parsed_file(path: str, module_globals: dict[str, Any] | None = None) -> SourceFile | None:
    """Return the index of a file, or of a notebook's cell; None when there is no source."""
    linecache.checkcache(path)
    lines = linecache.getlines(path, module_globals)
    if not lines:
        return None
    known = _parsed.get(path)
    if known is None or known[0] is not lines:
        try:
            known = (lines, SourceFile.of(ast.parse("".join(lines))))
        except SyntaxError:  # changed since it was loaded
            return None
        _parsed[path] = known
    return known[1]


@dataclass(frozen=True, slots=True)
class Project:
    """Whose code is the user's own.

    Args:
        module: Module of the transformation.
        root: Directory that holds its top-level package, or itself.
    """

    module: str
    root: str

    @classmethod
    def of(cls, module: str, path: str) -> Project:
        """Return the project of a module."""
        file = Path(os.path.realpath(path))
        # a file that is loaded by its path has another name, and the same project
        package = file.parent
        while (package / "__init__.py").exists():
            package = package.parent
        steps = file.parent.parts if file.name == "__init__.py" else file.with_suffix("").parts
        parts = tuple(module.split("."))
        root = Path(*steps[: -len(parts)]) if steps[-len(parts) :] == parts else file.parent
        return cls(module, min(str(root), str(package), key=len))

    def holds(self, module: str, path: str | None) -> bool:
        """Tell whether a module is of the same top-level package, or lies below the same directory.

        What is installed, the standard library and this package itself are not the user's own.
        """
        if module == self.module:
            return True
        if path is not None and _is_below(path, _OWN_FOLDER):
            return False
        if module.partition(".")[0] == self.module.partition(".")[0]:
            return True
        return path is not None and not is_foreign(path) and _is_below(path, os.path.join(self.root, ""))


@cache
def is_foreign(path: str) -> bool:
    """Tell whether a file is installed, of the standard library or of this package."""
    libraries = (os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib"))
    is_library = any(_is_below(path, os.path.realpath(folder) + os.sep) for folder in libraries)
    return is_library or bool(_PACKAGE_FOLDERS & set(Path(path).parts)) or _is_below(path, _OWN_FOLDER)


@cache
def _is_below(path: str, folder: str) -> bool:
    return os.path.realpath(path).startswith(folder)


def _name(node: FunctionNode) -> str:
    return "<lambda>" if isinstance(node, ast.Lambda) else node.name


def _holds(node: FunctionNode, line: int, column: int) -> bool:
    end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
    return (node.lineno, node.col_offset) <= (line, column) < end


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement gives a value to, without those of its inner statements."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:  # of `rates["a"] = 1` it is `rates`
            yield from dict.fromkeys(node.id for node in ast.walk(target) if isinstance(node, ast.Name))
    elif isinstance(statement, ast.For | ast.While):
        stored = (node for node in ast.walk(statement) if isinstance(node, ast.Name))
        yield from dict.fromkeys(node.id for node in stored if isinstance(node.ctx, ast.Store))
