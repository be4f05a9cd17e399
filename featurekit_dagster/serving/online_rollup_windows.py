"""What a view's features compute over each window: which columns are combined how, and what becomes of the result.

Small functions over the cells of one key, for tiles without NULLs; `online_rollup` applies them, and
`online_rollup_source` writes them out as one function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from ctypes import c_float
from dataclasses import dataclass
from typing import Any

from featurekit_dagster.domain.aggregation import AggregateFeature, PartialColumn, canonical_function
from featurekit_dagster.domain.schema import Bool, DataType, Float32, Int32, Timestamp
from featurekit_dagster.errors import AggregationOverflow
from featurekit_dagster.intervals import from_us
from featurekit_dagster.serving.online_rollup_batch import window_span

Reduce = Callable[[Sequence[Any]], Any]
Finish = Callable[[Any], Any]
Moments = tuple[int, float]


@dataclass(frozen=True, slots=True)
class CompiledWindow:
    """A distinct window and what is computed over it.

    Args:
        begin: First tile, relative to the edge's tile.
        end: First tile after it, relative to the edge's tile.
        measures: Column and reducer of each shared quantity.
        moments: Columns of count, mean and M2 of each shared variance; they follow the measures.
        outputs: Feature position, place of its quantity, and how it becomes the feature.
        means: Feature position, places of sum and count.
    """

    begin: int
    end: int
    measures: tuple[tuple[int, Reduce], ...]
    moments: tuple[tuple[int, int, int], ...]
    outputs: tuple[tuple[int, int, Finish | None], ...]
    means: tuple[tuple[int, int, int, Finish], ...]


def float_sum(cells: Sequence[float]) -> float:
    """Return the correctly rounded sum."""
    try:
        return math.fsum(cells)
    except (OverflowError, ValueError):
        # Infinities of both signs, or too large on the way: what adding one by one says.
        return sum(cells)


def float_min(cells: Sequence[float]) -> float:
    """Return the smallest; NaN only if there is nothing else, for it counts as the greatest."""
    least = min(cells)
    return min((cell for cell in cells if not math.isnan(cell)), default=least) if math.isnan(least) else least


def float_max(cells: Sequence[float]) -> float:
    """Return the greatest, which is NaN if there is one."""
    return math.nan if math.isnan(sum(cells)) and any(map(math.isnan, cells)) else max(cells)


def last(cells: Sequence[Any]) -> Any:  # noqa: ANN401 - cells are of any type
    """Return the newest cell."""
    return cells[-1]


def merge_moments(counts: Sequence[int], means: Sequence[float | None], m2s: Sequence[float | None]) -> Moments:
    """Return count and sum of squared distances from the mean of all tiles (Chan's formula over all at once)."""
    tiles = [(n, m, s) for n, m, s in zip(counts, means, m2s, strict=True) if n and m is not None and s is not None]
    number = sum([n for n, _, _ in tiles])
    if not all([math.isfinite(m) and math.isfinite(s) for _, m, s in tiles]):
        return number, math.nan
    if len(tiles) < 2:
        return number, tiles[0][2] if tiles else 0.0
    # Weights first: the sum of count times mean may be too large where the mean is not.
    mean = math.fsum([n / number * m for n, m, _ in tiles])
    distances = [(n, m - mean) for n, m, _ in tiles]
    missed = math.fsum([n * d for n, d in distances])
    within = float_sum([s for _, _, s in tiles])
    return number, max(within + float_sum([n * d * d for n, d in distances]) - missed * missed / number, 0.0)


def compile_window(
    features: Sequence[tuple[int, AggregateFeature]], columns: dict[str, int], tile_us: int
) -> CompiledWindow:
    """Return what one window computes; `features` are (position, feature), all of that window."""
    measures: dict[tuple[int, Reduce], int] = {}
    moments: dict[tuple[int, int, int], int] = {}
    for _, feature in features:
        parts = feature.partials
        if len(parts) == 3:
            moments.setdefault((columns[parts[0].name], columns[parts[1].name], columns[parts[2].name]), len(moments))
        else:
            for partial in parts:
                measures.setdefault((columns[partial.name], _reducer(partial)), len(measures))
    outputs: list[tuple[int, int, Finish | None]] = []
    means: list[tuple[int, int, int, Finish]] = []
    for position, feature in features:
        parts = feature.partials
        if len(parts) == 3:
            key = (columns[parts[0].name], columns[parts[1].name], columns[parts[2].name])
            outputs.append((position, len(measures) + moments[key], _finish_variance(feature)))
        else:
            places = [measures[columns[partial.name], _reducer(partial)] for partial in parts]
            if len(places) == 2:
                means.append((position, places[0], places[1], _mean_total(feature)))
            else:
                outputs.append((position, places[0], _finish(feature)))
    begin, end = window_span(features[0][1].spans[0], tile_us)
    return CompiledWindow(begin, end, tuple(measures), tuple(moments), tuple(outputs), tuple(means))


def _reducer(partial: PartialColumn) -> Reduce:
    if partial.kind == "last":
        return last
    is_float = partial.dtype.is_float
    if partial.kind == "min":
        return float_min if is_float else min
    if partial.kind == "max":
        return float_max if is_float else max
    return float_sum if is_float else sum


def _finish(feature: AggregateFeature) -> Finish | None:
    """Return how a count, sum, extreme or last becomes the feature; None where it is the feature."""
    if feature.function == "sum":
        if feature.dtype.is_integer:
            return _checked_sum(feature)
        return _as_float32 if feature.dtype == Float32 else None
    if feature.function == "last":
        return _LAST.get(feature.dtype)
    return None


_LAST: dict[DataType, Finish] = {Timestamp: from_us, Bool: bool}


def _as_float32(value: float) -> float:
    return c_float(value).value


def _checked_sum(feature: AggregateFeature) -> Finish:
    limit = 1 << (31 if feature.dtype == Int32 else 63)

    def check(total: int) -> int:
        if -limit <= total < limit:
            return total
        raise AggregationOverflow(feature=feature.name, dtype=str(feature.column.dtype), count=1)

    return check


def _mean_total(feature: AggregateFeature) -> Finish:
    """Return how the sum of a mean becomes a float."""
    if not feature.column.dtype.is_integer:
        return float

    def check(total: int) -> float:
        if -(1 << 63) <= total < 1 << 63:
            return float(total)
        raise AggregationOverflow(feature=feature.name, dtype=str(feature.column.dtype), count=1)

    return check


def _finish_variance(feature: AggregateFeature) -> Finish:
    function = canonical_function(feature.function)
    fewest = 2 if function.endswith("samp") else 1
    is_deviation = function.startswith("stddev")

    def finish(moments: Moments) -> float | None:
        number, m2 = moments
        if number < fewest:
            return None
        variance = m2 / (number - fewest + 1)
        return math.sqrt(variance) if is_deviation else variance

    return finish
