"""The project's own Python files: what the architecture tests look at."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "featurekit_dagster"


Function = ast.FunctionDef | ast.AsyncFunctionDef
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


@dataclass(frozen=True)
class Import:
    """Something that is imported, at any depth; `from a import b` gives `a.b`."""

    name: str
    line: int
    at_run_time: bool


@dataclass(frozen=True)
class Body:
    """How long a function's or method's body is."""

    name: str
    line: int
    lines: int


@dataclass(frozen=True)
class PythonFile:
    """What one file holds; `name` is its path below the project root. Syntax trees of all files would fill memory."""

    name: str
    module: str
    text: str
    imports: tuple[Import, ...]
    bodies: tuple[Body, ...]

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


def statements(tree: ast.Module) -> Iterator[tuple[ast.stmt, bool]]:
    """Yield every statement, at any depth, and whether it is one of run time: not under `if TYPE_CHECKING`."""
    left: list[tuple[ast.AST, bool]] = [(tree, True)]
    while left:
        node, at_run_time = left.pop()
        if isinstance(node, ast.stmt):
            yield node, at_run_time
        is_check = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for block in _BLOCKS:
            inside = at_run_time and not (is_check and block == "body")
            left += [(child, inside) for child in getattr(node, block, ())]


def imports(tree: ast.Module) -> Iterator[Import]:
    """Yield all imports of a file."""
    for node, at_run_time in statements(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_run_time) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module or ''}.{alias.name}" for alias in node.names)
            yield from (Import(name, node.lineno, at_run_time) for name in names)


def functions(tree: ast.Module) -> Iterator[Function]:
    """Yield every function and method, at any depth."""
    for node, _ in statements(tree):
        if isinstance(node, Function):
            yield node


def body_lines(function: Function) -> int:
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
    tree = ast.parse(text, filename=str(path))
    bodies = tuple(Body(function.name, function.lineno, body_lines(function)) for function in functions(tree))
    return PythonFile(str(path.relative_to(ROOT)), module, text, tuple(imports(tree)), bodies)
