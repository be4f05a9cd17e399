"""One short text that changes when what a feature view stores may change, and only then.

It covers the transformation without its comments, docstring and decorators, and the layout of the stored rows.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from featurekit_dagster.domain.feature_view import FeatureView

_LENGTH = 16
_NOT_CODE = {"ctx", "type_comment", "type_ignores", "decorator_list", "returns", "annotation"}


def fingerprint(view: FeatureView) -> str:
    """Return 16 hexadecimal digits that are equal for equal transformations and equal layouts.

    A window that is added over stored partial columns, a description or an owner changes nothing; the code or its
    absence, the join keys, the secondary key, the tile size, the stored columns and `batch_schedule` do. Where lifetime
    windows begin only extends what has to be there, as `feature_start_time` does.
    """
    facts: tuple[object, ...] = (
        view.mode,
        [(name, str(used.source.name), str(used.start), str(used.end)) for name, used in view.inputs.items()],
        [(key.name, str(key.dtype)) for key in view.join_keys],
        view.stored_time_column,
        str(view.aggregation_interval),
        str(view.batch_schedule),
        list(stored_values(view)),
        transformation_text(view),
    )
    if view.secondary_key is not None:
        # what most views have not is added only where it is, so that their fingerprint stays
        facts += (("secondary_key", view.secondary_key.name, str(view.secondary_key.dtype)),)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:_LENGTH]


def stored_values(view: FeatureView) -> tuple[tuple[str, str], ...]:
    """Return names and types of the stored columns beside keys and time, with the precision of sketches."""
    if view.is_aggregate and not view.is_tiled:
        return tuple(dict.fromkeys((f.column.name, str(f.column.dtype)) for f in view.aggregates))
    # lists say their length in their names
    partials = [
        (p.name, f"{p.dtype} of {p.size}" if p.kind.startswith(("hll", "digest")) else str(p.dtype))
        for p in view.partials
    ]
    return tuple(partials or ((f.name, str(f.dtype)) for f in view.attributes))


def transformation_text(view: FeatureView) -> str:
    """Return a view's transformation as text that is equal for equal transformations."""
    return "" if view.function is None else code_text(view.function)


def code_text(function: Callable[..., Any]) -> str:
    """Return a function's code as text without comments, docstrings, annotations, decorators and layout.

    Where the source is not to be had (a function typed into a prompt), its compiled instructions stand in.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        code = function.__code__
        return repr((code.co_code, code.co_names, [c for c in code.co_consts if not inspect.iscode(c)]))
    definitions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    found = next(definitions, None)
    if found is None:
        return "".join(_written(tree))
    return "".join(_written([found.args, _without_docstring(found, found.body)]))  # its name is the view's matter


def _written(node: Any) -> Iterator[str]:
    """Yield a syntax tree as text; empty fields are left out, so that those of later Pythons change nothing."""
    if isinstance(node, ast.AST):
        yield f"{type(node).__name__}("
        for name, value in ast.iter_fields(node):
            if name in _NOT_CODE or value is None or value == []:
                continue
            yield f"{name}="
            yield from _written(_without_docstring(node, value) if name == "body" else value)
        yield ")"
    elif isinstance(node, list):
        for item in node:
            yield from _written(item)
            yield ","
    else:
        yield repr(node)


def _without_docstring(node: ast.AST, body: Any) -> Any:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return body if ast.get_docstring(node, clean=False) is None else body[1:]
    return body
