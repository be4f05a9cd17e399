"""The folder's `known_differences.json`: cells where the reference is arbitrary, approximate or looks like a defect."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


@dataclass(frozen=True)
class Difference:
    """One entry of the file."""

    cases: tuple[str, ...]
    columns: str
    rows: str
    kind: str
    file: str | None = None

    def concerns(self, case: str, file: str) -> bool:
        return case in self.cases and self.file in (None, file)

    def excuses(self, column: str, row: Mapping[str, Any]) -> bool:
        """Tell whether a cell is left out of the comparison.

        Estimates, windows that hold a null and the first piece of a range are worked out from the events instead.
        """
        if self.kind == "approximate" or "null value" in self.rows or "_valid_from" in self.rows:
            return False
        return re.search(self.columns, column) is not None and holds(self.rows, row)


def load_differences(folder: Path) -> list[Difference]:
    """Return the entries of a folder of cases, none where it has no file of them."""
    file = folder / "known_differences.json"
    entries = json.loads(file.read_text(encoding="utf-8"))["entries"] if file.exists() else []
    return [
        Difference(tuple(e["cases"]), e.get("columns", ".*"), e.get("rows", "all"), e["kind"], e.get("file"))
        for e in entries
    ]


def holds(text: str, row: Mapping[str, Any]) -> bool:
    """Tell whether a condition such as `user_id == 'tie'` holds for a row; one that is not understood always does."""
    try:
        return bool(_value(ast.parse(text, mode="eval").body, row))
    except (SyntaxError, KeyError, TypeError):
        return True


def _value(node: ast.expr, row: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.BoolOp):
        parts = [bool(_value(part, row)) for part in node.values]
        return all(parts) if isinstance(node.op, ast.And) else any(parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _value(node.operand, row)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _COMPARISONS[type(node.ops[0])](_value(node.left, row), _value(node.comparators[0], row))
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(element, row) for element in node.elts]
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return row[node.id]
    raise TypeError(f"not a condition: {ast.dump(node)}")
