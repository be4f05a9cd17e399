"""The code of a function and of everything of the user's project that it calls, as one text.

`fingerprint` makes a short text of it; `source_files` finds where things are written, `code_text` writes them down.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from featurekit_dagster.planning.code_text import (
    compiled_text,
    function_text,
    global_names,
    inner_imports,
    node_text,
    used_names,
)
from featurekit_dagster.planning.source_files import FunctionNode, Project, SourceFile, is_foreign, parsed_file

_MOST_LAYERS = 50
_MISSING = object()
_SIMPLE = (bool, int, float, complex, str, bytes, type(None), type(...))
_read: WeakKeyDictionary[FunctionType, str] = WeakKeyDictionary()


def called_code_text(function: Callable[..., Any]) -> str:
    """Return the text of a function and, transitively, of the project's functions, classes and constants it uses.

    What changes the text: code, also the name of a local variable; the statement that gives a module-level name its
    value; what an outer function handed in. What does not: comments, docstrings, annotations, layout, the order of
    definitions, the module they are in. Installed packages and the standard library are not looked into.

    Where the source is not to be had (a function typed into a prompt), compiled instructions stand in.

    Read once per function object, when it is first asked for: what a function remembers as it runs is not its code.
    """
    if not isinstance(function, FunctionType):
        return _Reader(function).text()
    known = _read.get(function)
    if known is None:
        known = _read[function] = _Reader(function).text()
    return known


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where a piece of code looks its names up.

    Args:
        module: The globals of its module.
        inner: What an outer function, or an import inside the function, puts before them.
    """

    module: dict[str, Any]
    inner: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Something that has a text of its own: a function, a class, or a module-level name with its module's globals."""

    what: Any
    name: str = ""

    @property
    def key(self) -> tuple[int, str]:
        """What tells it from others."""
        return id(self.what), self.name


class _Reader:
    """Reads one function and what it reaches; each thing once, under a number that says when it was first met."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._project = _project_of(function)
        self._root = self._own_layer(function)
        self._numbers: dict[tuple[int, str], int] = {}
        self._pieces: list[_Piece] = []

    def text(self) -> str:
        """Return everything that was read, in the order in which it was met."""
        self._refer(_Piece(self._root))
        texts = []
        for piece in self._pieces:  # grows while it is read
            if piece.name:
                texts.append(self._binding_text(piece.what, piece.name))
            elif isinstance(piece.what, FunctionType):
                texts.append(self._function_text(piece.what))
            elif isinstance(piece.what, type):
                texts.append(self._class_text(piece.what))
            else:
                texts.append(self._described(piece.what))
        return "\n".join(texts)

    def _refer(self, piece: _Piece) -> str:
        if piece.key not in self._numbers:
            self._numbers[piece.key] = len(self._pieces)
            self._pieces.append(piece)
        return f"#{self._numbers[piece.key]}"

    # ---- texts -----------------------------------------------------------------------------------------------------

    def _function_text(self, function: FunctionType) -> str:
        code = function.__code__
        file = parsed_file(code.co_filename, function.__globals__)
        node = None if file is None else file.function(code)
        closed = dict(_closure(function))
        known = global_names(code)
        if node is None:
            scope = _Scope(function.__globals__, closed)
            return compiled_text(code) + self._references([(name,) for name in sorted(known)], scope)
        imported = dict(_imports_inside(node, function.__globals__, self._project))
        chains = [chain for chain in used_names(node) if chain[0] in known or chain[0] in imported]
        # what defaults are made of is looked up where the function is defined
        chains += used_names(*node.args.defaults, *(each for each in node.args.kw_defaults if each is not None))
        chains += [(name,) for name in imported]
        return function_text(node) + self._references(chains, _Scope(function.__globals__, closed | imported))

    def _class_text(self, kind: type) -> str:
        module = sys.modules.get(kind.__module__)
        file = None if module is None else _file_of(vars(module))
        node = None if file is None else file.classes.get(kind.__qualname__)
        if module is None or node is None:
            parts = sorted((name, part) for name, part in vars(kind).items() if isinstance(part, FunctionType))
            return "".join(f"{name}={self._refer(_Piece(part))};" for name, part in parts)
        inner = {name: value for part in _methods(kind) for name, value in _closure(part)}
        return node_text(node) + self._references(used_names(node), _Scope(vars(module), inner))

    def _binding_text(self, module: dict[str, Any], name: str) -> str:
        """Return the statements that give a module-level name its value."""
        file = _file_of(module)
        statements = [] if file is None else file.bindings.get(name, [])
        return node_text(statements) + self._references(used_names(*statements), _Scope(module))

    def _references(self, chains: Iterable[tuple[str, ...]], scope: _Scope) -> str:
        found = {".".join(chain): self._looked_up(chain, scope) for chain in dict.fromkeys(chains)}
        told = [f"{name}={text}" for name, text in found.items() if text]
        return f" {told}" if told else ""

    # ---- what a name stands for ------------------------------------------------------------------------------------

    def _looked_up(self, chain: tuple[str, ...], scope: _Scope) -> str:
        """Return the number of what a name stands for, its value if it has no text of its own, or nothing."""
        name, *attributes = chain
        module, value = scope.module, scope.inner.get(name, _MISSING)
        is_inner = value is not _MISSING
        if not is_inner:
            value = module.get(name, _MISSING)
        while isinstance(value, ModuleType):
            if not attributes or not self._holds(value):
                return ""
            module, name, is_inner = vars(value), attributes.pop(0), False
            value = module.get(name, _MISSING)
        if value is _MISSING:
            return ""
        return self._described(value) if is_inner else self._of_module(module, name, value)

    def _of_module(self, module: dict[str, Any], name: str, value: Any) -> str:
        """Return what stands for a name at module level: its own code, else the statements that bind it."""
        own = self._own_layer(value)
        if self._has_own_text(own):
            return self._refer(_Piece(own))
        seen: set[tuple[int, str]] = set()
        while (id(module), name) not in seen:
            seen.add((id(module), name))
            file = _file_of(module)
            statements = [] if file is None else file.bindings.get(name, file.bindings.get("*", []))
            if not statements:
                return self._described(value) if isinstance(value, _SIMPLE) else ""
            last = statements[-1]
            if not isinstance(last, ast.ImportFrom):
                return self._refer(_Piece(module, name))
            source = _imported(last.module or "", last.level, module, self._project)
            if source is None or not self._holds(source):
                return ""
            renamed = {alias.asname or alias.name: alias.name for alias in last.names}
            module, name = vars(source), renamed.get(name, name)
        return ""

    def _described(self, value: Any, depth: int = 0) -> str:
        """Return a value that has no statement of its own, such as what an outer function handed in."""
        own = self._own_layer(value)
        if self._has_own_text(own):
            return self._refer(_Piece(own))
        if isinstance(value, functools.partial):
            given = [value.func, list(value.args), value.keywords]
            return f"partial{[self._described(each, depth + 1) for each in given]}"
        if isinstance(value, MethodType):
            return f"{self._described(value.__self__, depth + 1)}.{value.__name__}"
        if isinstance(value, _SIMPLE):
            return repr(value)
        if depth > 10 or isinstance(value, type | ModuleType):
            return ""
        if isinstance(value, set | frozenset):  # without an order nothing in it can be numbered
            return f"set{sorted(repr(each) for each in value if isinstance(each, _SIMPLE))}"
        if isinstance(value, list | tuple):
            return f"{type(value).__name__}{[self._described(each, depth + 1) for each in value]}"
        if isinstance(value, dict):
            return f"dict{[(self._described(k, depth + 1), self._described(v, depth + 1)) for k, v in value.items()]}"
        if self._has_own_text(type(value)):
            state = getattr(value, "__dict__", {})
            return f"{self._refer(_Piece(type(value)))}{self._described(dict(state), depth + 1)}"
        return repr(value) if type(value).__module__ in ("datetime", "decimal", "fractions", "uuid") else ""

    def _own_layer(self, value: Any) -> Any:
        """Return a function without the decorators of installed packages that lie round it."""
        for _ in range(_MOST_LAYERS):
            if isinstance(value, FunctionType) and self._has_own_text(value):
                return value
            if (inner := _wrapped(value)) is None:
                return value
            value = inner
        return value

    def _has_own_text(self, value: Any) -> bool:
        """Tell whether a value is a function or class of the project."""
        if isinstance(value, FunctionType):
            return self._project.holds(value.__globals__.get("__name__", ""), value.__code__.co_filename)
        return isinstance(value, type) and self._holds(sys.modules.get(value.__module__))

    def _holds(self, module: ModuleType | None) -> bool:
        return module is not None and self._project.holds(module.__name__, getattr(module, "__file__", None))


def _project_of(function: Any) -> Project:
    """Return the project of a function, or of the one that a decorator of an installed package lies round."""
    for _ in range(_MOST_LAYERS):
        function = _wrapped(function) or getattr(function, "func", None) or function
    candidates = [function, *(value for _, value in _closure(function))]
    own = [each for each in candidates if isinstance(each, FunctionType)]
    found = next((each for each in own if not is_foreign(each.__code__.co_filename)), own[0] if own else None)
    if found is not None:
        return Project.of(found.__globals__.get("__name__", ""), found.__code__.co_filename)
    module = sys.modules.get(type(function).__module__)
    return Project.of(type(function).__module__, getattr(module, "__file__", None) or "")


def _wrapped(value: Any) -> Any:
    """Return what a decorator says that it lies round."""
    return getattr(value, "__dict__", {}).get("__wrapped__") if callable(value) else None


def _closure(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values that an outer function handed in."""
    code: CodeType | None = getattr(function, "__code__", None)
    for name, cell in zip(code.co_freevars if code else (), getattr(function, "__closure__", None) or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not yet filled
            continue


def _methods(kind: type) -> Iterator[FunctionType]:
    for part in vars(kind).values():
        function = getattr(part, "__func__", getattr(part, "fget", part))
        if isinstance(function, FunctionType):
            yield function


def _file_of(module: dict[str, Any]) -> SourceFile | None:
    path = module.get("__file__")
    return parsed_file(path, module) if isinstance(path, str) and path.endswith(".py") else None


def _imports_inside(node: FunctionNode, module: dict[str, Any], project: Project) -> Iterator[tuple[str, Any]]:
    """Yield the names that imports inside a function bind, with what they stand for in the project."""
    for each in inner_imports(node):
        if isinstance(each, ast.Import):
            for alias in each.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                if (found := _imported(name, 0, module, project)) is not None:
                    yield alias.asname or name, found
        else:
            source = _imported(each.module or "", each.level, module, project)
            for alias in each.names if source is not None else ():
                yield alias.asname or alias.name, vars(source).get(alias.name)


def _imported(name: str, level: int, module: dict[str, Any], project: Project) -> ModuleType | None:
    """Return a module of the project that code imports; None for any other, and for one that cannot be imported."""
    try:
        if level:
            name = importlib.util.resolve_name("." * level + name, module.get("__package__") or "")
        found = sys.modules.get(name)
        if found is None:
            top = importlib.util.find_spec(name.partition(".")[0])
            if top is None or top.origin is None or not project.holds(name, top.origin):
                return None
            found = importlib.import_module(name)
    except Exception:  # noqa: BLE001 - the function will meet it when it runs; its text can do without
        return None
    return found if project.holds(found.__name__, getattr(found, "__file__", None)) else None
