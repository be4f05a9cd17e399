"""What a view's features compute over each window: which columns are combined how, and what becomes of the result.

Small functions over the cells of one key; `online_rollup_fixed` and `online_rollup_any` apply them, and
`online_rollup_source` writes those of numbers out as one function. A slot is a feature over one of its windows: a
series has several, every other feature has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from ctypes import c_float
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from featurekit_dagster.domain.aggregation import LIST_FUNCTIONS, AggregateFeature, PartialColumn, canonical_function
from featurekit_dagster.domain.schema import Float32, Int32
from featurekit_dagster.domain.windows import Span
from featurekit_dagster.errors import AggregationOverflow
from featurekit_dagster.serving.online_rollup_lists import distinct_counter, list_reducer, merge_digests, newest
from featurekit_dagster.stores.cell_codec import user_value
from featurekit_dagster.stores.packing import is_fixed

Reduce = Callable[[Sequence[Any]], Any]
Joint = Callable[..., Any]
Finish = Callable[[Any], Any]
Moments = tuple[int, float]
Slot = tuple[AggregateFeature, Span]


@dataclass(frozen=True, slots=True)
class CompiledWindow:
    """A distinct window and what is computed over it.

    Args:
        begin: First tile, relative to the edge's tile; of no meaning for a lifetime.
        end: First tile after it, relative to the edge's tile.
        since: First tile of a lifetime, counted from the Unix epoch; else None.
        measures: Column and reducer of each shared quantity.
        joints: Columns and reducer of each quantity that several columns make together (variances, sketches); they
            follow the measures.
        outputs: Slot, place of its quantity, and how it becomes the answer.
        means: Slot, places of sum and count, and how the sum becomes a float.
    """

    begin: int
    end: int
    since: int | None
    measures: tuple[tuple[int, Reduce], ...]
    joints: tuple[tuple[tuple[int, ...], Joint], ...]
    outputs: tuple[tuple[int, int, Finish | None], ...]
    means: tuple[tuple[int, int, int, Finish], ...]

    def first(self, edge: int) -> int:
        """Return the first tile of the window whose edge is at this tile."""
        return edge + self.begin if self.since is None else min(self.since, edge + self.end)


def slots_of(features: Iterable[AggregateFeature]) -> list[Slot]:
    """Return every feature over each of its windows, in order."""
    return [(feature, span) for feature in features for span in feature.spans]


def tile_bounds(span: Span, tile_us: int) -> tuple[int, int, int | None]:
    """Return a window's `begin`, `end` and `since` in tiles, as `CompiledWindow` has them."""
    since = None if span.since_us is None else -(-span.since_us // tile_us)
    return (span.begin_us or 0) // tile_us, span.end_us // tile_us, since


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


def compile_windows(
    slots: Sequence[Slot], columns: dict[str, int], tile_us: int, spans: Iterable[Span] = (), *, is_packed: bool = True
) -> tuple[CompiledWindow, ...]:
    """Return what is computed over each distinct window; slots are counted from 0.

    Args:
        slots: What to compute.
        columns: Name of a partial column to its place in a tile.
        tile_us: Tile size in microseconds.
        spans: The windows and their order; those of the slots when empty.
        is_packed: Whether cells of variable width are bytes.
    """
    wanted = tuple(spans) or tuple(dict.fromkeys(span for _, span in slots))
    numbered = [(at, feature, span) for at, (feature, span) in enumerate(slots)]
    groups = [[(at, feature) for at, feature, other in numbered if other == span] for span in wanted]
    bounds = [tile_bounds(span, tile_us) for span in wanted]
    return tuple(_compile(group, bound, columns, is_packed) for group, bound in zip(groups, bounds, strict=True))


def _compile(
    features: Sequence[tuple[int, AggregateFeature]],
    bounds: tuple[int, int, int | None],
    columns: dict[str, int],
    is_packed: bool,
) -> CompiledWindow:
    """Return what one window computes; `features` are (slot, feature), all of that window."""
    measures: dict[tuple[int, Reduce], int] = {}
    joints: dict[tuple[tuple[int, ...], Joint], int] = {}
    for _, feature in features:
        joint = _joint(feature)
        if joint is not None:
            joints.setdefault((_places(feature, columns), joint), len(joints))
        else:
            for partial in feature.partials:
                measures.setdefault((columns[partial.name], _reducer(partial, is_packed)), len(measures))
    outputs: list[tuple[int, int, Finish | None]] = []
    means: list[tuple[int, int, int, Finish]] = []
    for slot, feature in features:
        joint = _joint(feature)
        if joint is not None:
            place = len(measures) + joints[_places(feature, columns), joint]
            outputs.append((slot, place, _finish(feature)))
        else:
            found = [measures[columns[partial.name], _reducer(partial, is_packed)] for partial in feature.partials]
            if len(found) > 1:
                means.append((slot, found[0], found[1], _mean_total(feature)))
            else:
                outputs.append((slot, found[0], _finish(feature)))
    return CompiledWindow(*bounds, tuple(measures), tuple(joints), tuple(outputs), tuple(means))


def _places(feature: AggregateFeature, columns: dict[str, int]) -> tuple[int, ...]:
    return tuple(columns[partial.name] for partial in feature.partials)


def _joint(feature: AggregateFeature) -> Joint | None:
    """Return what makes a quantity of several columns together; None where each is reduced on its own."""
    if feature.function == "approx_count_distinct":
        return distinct_counter(feature.precision)
    if feature.function == "approx_percentile":
        return merge_digests
    return merge_moments if "m2" in [partial.kind for partial in feature.partials] else None


def _reducer(partial: PartialColumn, is_packed: bool) -> Reduce:
    if partial.kind == "last":
        return newest(partial.dtype) if is_packed and not is_fixed(partial.dtype) else last
    if partial.kind in LIST_FUNCTIONS:
        return list_reducer(partial.kind, partial.size, partial.dtype, is_packed)
    is_float = partial.dtype.is_float
    if partial.kind == "min":
        return float_min if is_float else min
    if partial.kind == "max":
        return float_max if is_float else max
    return float_sum if is_float else sum


def _finish(feature: AggregateFeature) -> Finish | None:
    """Return how a quantity becomes the answer; None where it is the answer."""
    if feature.function == "sum":
        if feature.value_dtype.is_integer:
            return _checked_sum(feature)
        return _as_float32 if feature.value_dtype == Float32 else None
    if feature.function == "last" or feature.function in LIST_FUNCTIONS:
        return user_value(feature.value_dtype)
    if feature.function == "approx_percentile":
        return methodcaller("percentile", feature.percentile)
    return _finish_variance(feature) if _joint(feature) is merge_moments else None


def finish_window(window: CompiledWindow, found: Sequence[Any], answer: list[Any]) -> None:
    """Put what was computed over a window into the answer."""
    for slot, place, finish in window.outputs:
        value = found[place]
        answer[slot] = value if finish is None or value is None else finish(value)
    for slot, total, count, finish in window.means:
        if found[count]:
            answer[slot] = finish(found[total]) / found[count]


def _as_float32(value: float) -> float:
    return c_float(value).value


def _checked_sum(feature: AggregateFeature) -> Finish:
    limit = 1 << (31 if feature.value_dtype == Int32 else 63)

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
