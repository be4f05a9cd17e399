"""What a dataset's columns look like, for its manifest: counted in one pass over the stored rows, in bounded memory.

Values of single rows occur as ends of ranges only, and of numbers and times only: texts are counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.storable import type_text
from featurekit_dagster.intervals import format_time
from featurekit_dagster.sql_text import quoted
from featurekit_dagster.stores.datasets import Datasets

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
HISTOGRAM_BINS = 20
_COLUMNS_AT_ONCE = 16
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)


def column_records(datasets: Datasets, name: str, features: Sequence[str], rows: int) -> list[dict[str, Any]]:
    """Return name, type, null rate and, of features, statistics of each column of a dataset, in order.

    Args:
        datasets: Where datasets are kept.
        name: The dataset, of which all rows are stored.
        features: Its columns that are features.
        rows: How many rows it has.
    """
    schema = datasets.schema(name)
    found: dict[str, dict[str, Any]] = {}
    with connect() as con:
        relation = datasets.relation(con, name)
        fields = list(schema)
        for start in range(0, len(fields), _COLUMNS_AT_ONCE):
            part = fields[start : start + _COLUMNS_AT_ONCE]
            found |= _counted(con, relation, part, set(features))
        numbers = [field.name for field in fields if _is_number(field.type) and "min" in found[field.name]]
        for start in range(0, len(numbers), _COLUMNS_AT_ONCE):
            _add_histograms(con, relation, numbers[start : start + _COLUMNS_AT_ONCE], found)
    return [
        {
            "name": field.name,
            "type": type_text(field.type),
            "is_feature": field.name in set(features),
            "null_rate": found[field.name].pop("nulls") / rows if rows else 0.0,
            **({"statistics": found[field.name]} if field.name in set(features) else {}),
        }
        for field in fields
    ]


def _is_number(kind: pa.DataType) -> bool:
    return any(holds(kind) for holds in _NUMBERS)


def _measures(field: pa.Field) -> dict[str, str]:
    """Return what is counted of a feature, as SQL."""
    column, kind = quoted(field.name), field.type
    if _is_number(kind):
        number = f"{column}::DOUBLE"
        finite = f"FILTER (isfinite({number}))"
        listed = ", ".join(map(str, QUANTILES))
        return {
            "not_finite": f"count(*) FILTER (NOT isfinite({number}))",
            "min": f"min({column}) {finite}",
            "max": f"max({column}) {finite}",
            "mean": f"avg({number}) {finite}",
            "zeros": f"count(*) FILTER ({column} = 0)",
            "quantiles": f"approx_quantile({number}, [{listed}]) {finite}",
        }
    if pa.types.is_boolean(kind):
        return {"true": f"count(*) FILTER ({column})"}
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return {"min": f"min({column})", "max": f"max({column})"}
    if pa.types.is_list(kind):
        return {f"{name}_length": f"{function}(len({column}))" for name, function in _LENGTHS.items()}
    return {"distinct": f"approx_count_distinct({column})"} if pa.types.is_string(kind) else {}


_LENGTHS = {"min": "min", "max": "max", "mean": "avg"}


def _counted(
    con: duckdb.DuckDBPyConnection, relation: str, fields: Sequence[pa.Field], features: set[str]
) -> dict[str, dict[str, Any]]:
    places, cells = [], []
    for field in fields:
        places.append((field.name, "nulls"))
        cells.append(f"count(*) FILTER ({quoted(field.name)} IS NULL)")
        for measure, sql in (_measures(field) if field.name in features else {}).items():
            places.append((field.name, measure))
            cells.append(sql)
    (row,) = con.sql(f"SELECT {', '.join(cells)} FROM {relation}").fetchall()
    found: dict[str, dict[str, Any]] = {field.name: {} for field in fields}
    for (name, measure), value in zip(places, row, strict=True):
        if value is not None:
            found[name][measure] = _shown(value)
    return found


def _shown(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if isinstance(value, list):
        return [_shown(each) for each in value]
    if hasattr(value, "isoformat"):
        return format_time(value) if hasattr(value, "hour") else value.isoformat()
    if isinstance(value, int | bool):
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _add_histograms(
    con: duckdb.DuckDBPyConnection, relation: str, names: Sequence[str], found: Mapping[str, dict[str, Any]]
) -> None:
    """Add a histogram to each column: counts in bins of equal width from its smallest to its largest finite value."""
    edges = {name: _edges(float(found[name]["min"]), float(found[name]["max"])) for name in names}
    cells = []
    for name, bounds in edges.items():
        number, inner = f"{quoted(name)}::DOUBLE", bounds[1:-1]
        listed = ", ".join(f"{edge!r}::DOUBLE" for edge in inner)
        below = f"list_filter([{listed}], lambda e: e <= {number})" if inner else "[]"
        cells.append(f"histogram(len({below})) FILTER (isfinite({number}))")
    (row,) = con.sql(f"SELECT {', '.join(cells)} FROM {relation}").fetchall()
    for (name, bounds), counts in zip(edges.items(), row, strict=True):
        counted = [int((counts or {}).get(number, 0)) for number in range(len(bounds) - 1)]
        found[name]["histogram"] = {"edges": bounds, "counts": counted}


def _edges(first: float, last: float) -> list[float]:
    """Return the ends of the bins, each once."""
    width = last / HISTOGRAM_BINS - first / HISTOGRAM_BINS
    inner = (first + number * width for number in range(1, HISTOGRAM_BINS))
    return sorted({first, *inner, last}) if first < last else [first, last]
