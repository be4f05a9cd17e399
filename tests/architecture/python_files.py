"""The project's own Python files, parsed: what the architecture tests look at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "featurekit_dagster"


@dataclass(frozen=True)
class PythonFile:
    """One parsed file; `name` is its path below the project root."""

    name: str
    module: str
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        """Number of lines."""
        return self.text.count("\n")


@cache
def package_files() -> tuple[PythonFile, ...]:
    """Return every module of the package."""
    return tuple(_parse(path) for path in sorted(PACKAGE.rglob("*.py")))


@cache
def own_files() -> tuple[PythonFile, ...]:
    """Return the package, the examples, the benchmarks and the tests."""
    folders = (ROOT / name for name in ("examples", "benchmarks", "tests"))
    paths = [*sorted(ROOT.glob("*.py")), *(path for folder in folders for path in sorted(folder.rglob("*.py")))]
    return (*package_files(), *(_parse(path) for path in paths))


def imported_modules(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the full name and line of everything that is imported, at any depth; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module or ''}.{alias.name}", node.lineno) for alias in node.names)


def imported_at_run_time(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield what `imported_modules` does, but not what is under `if TYPE_CHECKING`."""
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    hidden = {line for check in checks for statement in check.body for _, line in imported_modules(statement)}
    yield from ((name, line) for name, line in imported_modules(tree) if line not in hidden)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function's body, its docstring apart."""
    body = function.body
    if (
        isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    ):
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def _parse(path: Path) -> PythonFile:
    text = path.read_text(encoding="utf-8")
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return PythonFile(str(path.relative_to(ROOT)), module, text, ast.parse(text, filename=str(path)))
