"""What each aggregation function accepts, stores per tile and answers.

The one description that tiles, roll-ups (offline and online) and declarations obey; it computes nothing.
NULL is skipped by every function. NaN and infinities are values: a sum or mean over a NaN is NaN, a variance over a NaN
or an infinity is NaN, and for `min` and `max` NaN is greater than every other number, as in DuckDB's ordering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

from featurekit_dagster.domain.schema import DataType, Field, Float64, Int64
from featurekit_dagster.domain.windows import TimeWindow, format_duration


@dataclass(frozen=True, slots=True)
class PartialColumn:
    """A column of a tile from which features are rolled up.

    Args:
        name: `<kind>_<column>`, as stored.
        kind: `count`, `sum`, `min`, `max`, `last`, `mean` or `m2` (the sum of squared distances from the mean).
        column: The column of the transformation's output that it is made of.
        dtype: Stored type. Sums are `Int64` or `Float64` whatever the width of the column.
    """

    name: str
    kind: str
    column: str
    dtype: DataType


@dataclass(frozen=True, slots=True)
class _Function:
    """What the project knows about one function name."""

    kinds: tuple[str, ...]
    numeric_only: bool
    output: Callable[[DataType], DataType]


def _as_input(dtype: DataType) -> DataType:
    return dtype


def _int64(_: DataType) -> DataType:
    return Int64


def _float64(_: DataType) -> DataType:
    return Float64


_VARIANCE = _Function(("count", "mean", "m2"), True, _float64)

_FUNCTIONS: dict[str, _Function] = {
    "count": _Function(("count",), False, _int64),
    "sum": _Function(("sum",), True, _as_input),
    "mean": _Function(("sum", "count"), True, _float64),
    "min": _Function(("min",), True, _as_input),
    "max": _Function(("max",), True, _as_input),
    "last": _Function(("last",), False, _as_input),
    "var_samp": _VARIANCE,
    "var_pop": _VARIANCE,
    "variance": _VARIANCE,
    "stddev_samp": _VARIANCE,
    "stddev_pop": _VARIANCE,
    "stddev": _VARIANCE,
}

FUNCTION_NAMES: tuple[str, ...] = tuple(_FUNCTIONS)

_ALIASES = {"variance": "var_samp", "stddev": "stddev_samp"}


def canonical_function(function: str) -> str:
    """Return the function that an alias stands for; other names come back as they are.

    >>> canonical_function("variance"), canonical_function("sum")
    ('var_samp', 'sum')
    """
    return _ALIASES.get(function, function)


def check_function(function: str, dtype: DataType) -> str | None:
    """Return one sentence on why `function` cannot be applied to a column of `dtype`, or None if it can."""
    known = _FUNCTIONS.get(function)
    if known is None:
        return f"function {function!r} is not known; use one of {', '.join(FUNCTION_NAMES)}"
    if known.numeric_only and not dtype.is_numeric:
        return f"function {function!r} takes integer and float columns, not {dtype}; use count, last or another column"
    return None


def _partial_dtype(kind: str, dtype: DataType) -> DataType:
    """Return the stored type of a partial column over a column of `dtype`."""
    if kind == "count":
        return Int64
    if kind in ("mean", "m2"):
        return Float64
    if kind == "sum":
        return Int64 if dtype.is_integer else Float64
    return dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateFeature:
    """One feature: a function of one column over one window.

    Args:
        name: Feature name without the view's name.
        column: Input column.
        function: One of `FUNCTION_NAMES`; `check_function` must accept it for the column's type.
        window: The span it looks back over.
    """

    name: str
    column: Field
    function: str
    window: TimeWindow

    @property
    def dtype(self) -> DataType:
        """Type of the answer: Int64 for counts, Float64 for means and variances, else the column's own."""
        return _FUNCTIONS[self.function].output(self.column.dtype)

    @property
    def partials(self) -> tuple[PartialColumn, ...]:
        """The tile columns that the feature is rolled up from, in a fixed order."""
        return tuple(
            PartialColumn(f"{kind}_{self.column.name}", kind, self.column.name, _partial_dtype(kind, self.column.dtype))
            for kind in _FUNCTIONS[self.function].kinds
        )

    @property
    def default(self) -> int | None:
        """The answer where the window holds nothing or the key is unknown: 0 for counts, None for all others."""
        return 0 if self.function == "count" else None


def feature_name(column: str, function: str, window: TimeWindow, aggregation_interval: timedelta) -> str:
    """Return a feature's name where none was declared: `<column>_<function>_<size>_<interval>[_offset_<offset>]`.

    >>> feature_name("v", "sum", TimeWindow(timedelta(days=1), timedelta(hours=-1)), timedelta(hours=1))
    'v_sum_1d_1h_offset_1h'

    Source: ours; the seed pages print no generated name, and later pages of the same product use this form.
    """
    size, interval = format_duration(window.window_size), format_duration(aggregation_interval)
    return f"{column}_{function}_{size}_{interval}{window.offset_suffix}"


def partial_columns(features: Iterable[AggregateFeature]) -> tuple[PartialColumn, ...]:
    """Return the distinct partial columns of all features, in order of first use."""
    return tuple(dict.fromkeys(partial for feature in features for partial in feature.partials))
