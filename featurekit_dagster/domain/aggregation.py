"""What each aggregation function accepts, stores per tile and answers.

The one description that tiles, roll-ups (offline and online) and declarations obey; it computes nothing.
NULL is skipped by every function. NaN and infinities are values: a sum or mean over a NaN is NaN, a variance over a NaN
or an infinity is NaN, and for `min` and `max` NaN is greater than every other number, as in DuckDB's ordering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from featurekit_dagster.domain.schema import Array, DataType, Field, Float64, Int64, String
from featurekit_dagster.domain.windows import LifetimeWindow, Span, TimeWindowSeries, Window, format_duration


@dataclass(frozen=True, slots=True)
class PartialColumn:
    """A column of a tile from which features are rolled up.

    Args:
        name: `<prefix>_<column>`, as stored.
        kind: What it holds. Numbers: `count`, `sum`, `min`, `max`, `last`, `mean`, `m2` (the sum of squared distances
            from the mean). Lists of at most `size` values, in ascending order of time: `last_n`, `last_distinct` (each
            value at its newest place), `first_n`, `first_distinct` (each value at its oldest place). Sketches:
            `hll_indices` and `hll_registers` (parallel lists, ascending indices, of the registers above zero of a
            HyperLogLog with `2**size` registers), `digest_means` and `digest_weights` (parallel lists, ascending means,
            of the centroids of a t-digest of compression `size`).
        column: The column of the transformation's output that it is made of.
        dtype: Stored type. Sums are `Int64` or `Float64` whatever the width of the column. Lists are never NULL; they
            are empty where the tile has no value.
        size: How long a list may be, or the precision of a sketch; 0 for numbers.
    """

    name: str
    kind: str
    column: str
    dtype: DataType
    size: int = 0


@dataclass(frozen=True, slots=True)
class AggregationFunction:
    """A function with its parameters, as `last(3)` or `approx_percentile(0.5)` returns it.

    Args:
        name: `last_n`, `last_distinct`, `first_n`, `first_distinct`, `approx_count_distinct` or `approx_percentile`.
        n: How many values are kept, for the lists.
        precision: `2**precision` registers of a HyperLogLog, or the compression of a t-digest.
        percentile: Share of the values that lie below the answer, in `[0, 1]`.
    """

    name: str
    n: int = 0
    precision: int = 0
    percentile: float = 0.0

    @property
    def label(self) -> str:
        """The function as generated names write it: `last_3`, `approx_percentile_p0_5`."""
        if self.name == "approx_percentile":
            share = format(Decimal(str(abs(self.percentile))), "f")  # str() alone writes 1e-05
            return f"{self.name}_p{share.replace('.', '_')}"
        return f"{self.name.removesuffix('_n')}_{self.n}" if self.name in LIST_FUNCTIONS else self.name


@dataclass(frozen=True, slots=True)
class _Function:
    """What the project knows about one function name."""

    kinds: tuple[str, ...]
    accepts: str
    output: Callable[[DataType], DataType]


def _as_input(dtype: DataType) -> DataType:
    return dtype


def _int64(_: DataType) -> DataType:
    return Int64


def _float64(_: DataType) -> DataType:
    return Float64


_VARIANCE = _Function(("count", "mean", "m2"), "numbers", _float64)

_PLAIN: dict[str, _Function] = {
    "count": _Function(("count",), "any", _int64),
    "sum": _Function(("sum",), "numbers", _as_input),
    "mean": _Function(("sum", "count"), "numbers", _float64),
    "min": _Function(("min",), "numbers", _as_input),
    "max": _Function(("max",), "numbers", _as_input),
    "last": _Function(("last",), "any", _as_input),
    "var_samp": _VARIANCE,
    "var_pop": _VARIANCE,
    "variance": _VARIANCE,
    "stddev_samp": _VARIANCE,
    "stddev_pop": _VARIANCE,
    "stddev": _VARIANCE,
}

LIST_FUNCTIONS: tuple[str, ...] = ("last_n", "last_distinct", "first_n", "first_distinct")

_FUNCTIONS: dict[str, _Function] = {
    **_PLAIN,
    **{name: _Function((name,), "plain", Array) for name in LIST_FUNCTIONS},
    "approx_count_distinct": _Function(("hll_indices", "hll_registers"), "keys", _int64),
    "approx_percentile": _Function(("digest_means", "digest_weights"), "numbers", _float64),
}

FUNCTION_NAMES: tuple[str, ...] = tuple(_PLAIN)
"""Functions that are given as plain text; the others have parameters, and are made by the function of their name."""

PARAMETERIZED: dict[str, str] = {
    "last_n": "last(n)",
    "last_distinct": "last_distinct(n)",
    "first_n": "first(n)",
    "first_distinct": "first_distinct(n)",
    "approx_count_distinct": "approx_count_distinct(precision)",
    "approx_percentile": "approx_percentile(percentile, precision)",
}
"""How users write each function that has parameters."""

_ACCEPTED: dict[str, tuple[Callable[[DataType], bool], str]] = {
    "any": (lambda _: True, "any column"),
    "numbers": (lambda dtype: dtype.is_numeric, "integer and float columns"),
    "plain": (lambda dtype: not dtype.is_nested, "columns of plain values"),
    "keys": (lambda dtype: dtype.is_integer or dtype == String, "string and integer columns"),
}

_PREFIXES = {
    "last_n": "last_non_distinct_n{}",
    "last_distinct": "lastn{}",
    "first_n": "first_non_distinct_n{}",
    "first_distinct": "first_distinct_n{}",
    "hll_indices": "approx_count_distinct_indices",
    "hll_registers": "approx_count_distinct_registers",
    "digest_means": "approx_percentile_processed_means",
    "digest_weights": "approx_percentile_processed_weights",
}

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
        return f"function {function!r} is not known; use one of {', '.join((*FUNCTION_NAMES, *PARAMETERIZED.values()))}"
    fits, what = _ACCEPTED[known.accepts]
    if not fits(dtype):
        written = PARAMETERIZED.get(function, function)
        return f"function {written!r} takes {what}, not {dtype}; use count, last or another column"
    return None


def _partial_dtype(kind: str, dtype: DataType) -> DataType:
    """Return the stored type of a partial column over a column of `dtype`."""
    if kind in LIST_FUNCTIONS:
        return Array(dtype)
    if kind.startswith("hll"):
        return Array(Int64)
    if kind.startswith("digest"):
        return Array(Float64)
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
        function: One of `FUNCTION_NAMES`, or the name of an `AggregationFunction`; `check_function` must accept it for
            the column's type.
        window: The span it looks back over, or the series of spans.
        n: As in `AggregationFunction`.
        precision: As in `AggregationFunction`.
        percentile: As in `AggregationFunction`.
        lifetime_start_us: Start of a lifetime window, microseconds since the Unix epoch.
    """

    name: str
    column: Field
    function: str
    window: Window
    n: int = 0
    precision: int = 0
    percentile: float = 0.0
    lifetime_start_us: int | None = None

    @property
    def value_dtype(self) -> DataType:
        """Type of the answer over one window: Int64 of counts, Float64 of means, Array of lists, else the column's."""
        return _FUNCTIONS[self.function].output(self.column.dtype)

    @property
    def dtype(self) -> DataType:
        """Type of the answer: that over one window, or an array of it for a series."""
        return Array(self.value_dtype) if self.is_series else self.value_dtype

    @property
    def is_series(self) -> bool:
        """Whether the answer is an array with one element per window."""
        return isinstance(self.window, TimeWindowSeries)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans of time it looks at, oldest first; one unless it is a series."""
        if isinstance(self.window, LifetimeWindow):
            return (Span(None, 0, self.lifetime_start_us),)
        return self.window.spans

    @property
    def partials(self) -> tuple[PartialColumn, ...]:
        """The tile columns that the feature is rolled up from, in a fixed order."""
        dtype, column = self.column.dtype, self.column.name
        return tuple(
            PartialColumn(
                f"{_PREFIXES.get(kind, kind).format(self.n)}_{column}",
                kind,
                column,
                _partial_dtype(kind, dtype),
                self.n or self.precision,
            )
            for kind in _FUNCTIONS[self.function].kinds
        )

    @property
    def value_default(self) -> Any:
        """The answer over a window that holds nothing: 0 for counts, an empty list for lists, None for all others."""
        if self.function in LIST_FUNCTIONS:
            return []
        return 0 if self.function in ("count", "approx_count_distinct") else None

    @property
    def default(self) -> Any:
        """The answer where nothing is known of the key: `value_default`, once per window of a series."""
        return [self.value_default for _ in self.spans] if self.is_series else self.value_default


def feature_name(column: str, function: str, window: Window, interval: str | None) -> str:
    """Return a feature's name where none was declared: `<column>_<function>_<size>_<interval>` and the window's suffix.

    >>> from featurekit_dagster.domain.windows import TimeWindow
    >>> feature_name("v", "sum", TimeWindow(timedelta(days=1), timedelta(hours=-1)), "1h")
    'v_sum_1d_1h_offset_1h'

    Args:
        column: Input column.
        function: The function's label.
        window: Its window.
        interval: The tile size as text, `continuous`, or None where the name does not say it.

    Source: ours; the seed pages print no generated name, and later pages of the same product use this form.
    """
    stem = f"{column}_{function}_{window.label}"
    return f"{stem}_{interval}{window.suffix}" if interval else f"{stem}{window.suffix}"


def secondary_keys_name(column: str, span: Span) -> str:
    """Return the name of the column that lists the secondary keys of one window: `<column>_keys_<size>`.

    >>> day_us = 86_400_000_000
    >>> secondary_keys_name("merchant_id", Span(-8 * day_us, -day_us))
    'merchant_id_keys_7d_offset_1d'
    """
    if span.begin_us is None:
        return f"{column}_keys_lifetime"
    size = timedelta(microseconds=span.end_us - span.begin_us)
    offset = f"_offset_{format_duration(timedelta(microseconds=-span.end_us))}" if span.end_us else ""
    return f"{column}_keys_{format_duration(size)}{offset}"


def distinct_spans(features: Iterable[AggregateFeature]) -> tuple[Span, ...]:
    """Return the distinct spans of all features, shortest first, of equal ones the nearest first, lifetimes last."""
    found = dict.fromkeys(span for feature in features for span in feature.spans)

    def order(span: Span) -> tuple[bool, int, int]:
        return (span.begin_us is None, span.end_us - (span.begin_us or 0), -span.end_us)

    return tuple(sorted(found, key=order))


def partial_columns(features: Iterable[AggregateFeature]) -> tuple[PartialColumn, ...]:
    """Return the distinct partial columns of all features, in order of first use."""
    return tuple(dict.fromkeys(partial for feature in features for partial in feature.partials))


def time_columns(partials: Iterable[PartialColumn]) -> tuple[PartialColumn, ...]:
    """Return a column for each partial column that depends on the order of events: the times of its values.

    With them, events that come out of order can be added to a tile. They are whole microseconds since 1970, one per
    value; only a tile that events are still added to has them.
    """
    return tuple(
        PartialColumn(f"_times_{p.name}", "times", p.column, Int64 if p.kind == "last" else Array(Int64), p.size)
        for p in partials
        if p.kind == "last" or p.kind in LIST_FUNCTIONS
    )
