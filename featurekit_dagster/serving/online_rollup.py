"""Features from packed tiles: the inner loop of online reads.

Compiled once per view. One key goes through `struct` and Python's own `sum`, `fsum`, `min` and `max`, which for a few
dozen tiles is faster than NumPy; many keys go through `online_rollup_batch.py`. Both obey `domain/aggregation.py`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from ctypes import c_float
from dataclasses import dataclass
from typing import Any

from featurekit_dagster.domain.aggregation import AggregateFeature, PartialColumn, canonical_function
from featurekit_dagster.domain.schema import Bool, DataType, Field, Float32, Int32, Timestamp
from featurekit_dagster.errors import AggregationOverflow
from featurekit_dagster.intervals import from_us
from featurekit_dagster.serving.online_rollup_batch import BatchRollup, window_span
from featurekit_dagster.stores.online import TILES_PER_CHUNK, PackedTiles
from featurekit_dagster.stores.packing import ValueCodec, presence

Reduce = Callable[[Sequence[Any]], Any]
Finish = Callable[[Any], Any]
Moments = tuple[int, float]
# Edge relative to the chunk, present tiles, their number, and all cells column by column.
_Chunk = tuple[int, int, int, tuple[Any, ...]]
# All cells of a chunk, number of tiles, first tile of the window, first tile after it.
_Part = tuple[tuple[Any, ...], int, int, int]

# Words 0 to 2 of a value: which tiles are there, which are from batch, which columns have NULLs (up to 64 columns).
_LEAD = struct.Struct("<QQQ")
_unpack_lead = _LEAD.unpack_from

# From here on one NumPy pass is faster than a loop over keys, or over the chunks of one key.
_BATCH_KEYS = 8
_BATCH_CHUNKS = 6


@dataclass(frozen=True, slots=True)
class _Window:
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


class OnlineRollup:
    """Rolls the packed tiles of a view up to its features.

    Args:
        features: What to compute.
        partials: Columns of the stored tiles, in stored order; all that the features need.
        tile_us: Tile size in microseconds.
    """

    def __init__(self, features: Sequence[AggregateFeature], partials: Sequence[PartialColumn], tile_us: int) -> None:
        self._codec = ValueCodec([Field(p.name, p.dtype) for p in partials], is_tiled=True)
        self._tile_us = tile_us
        columns = {partial.name: at for at, partial in enumerate(partials)}
        distinct = dict.fromkeys(feature.window for feature in features)
        groups = [[(at, f) for at, f in enumerate(features) if f.window == window] for window in distinct]
        self._windows = tuple(_compile_window(group, columns, tile_us) for group in groups)
        self._defaults = [feature.default for feature in features]
        self._unpackers: list[Callable[[bytes, int], tuple[Any, ...]]] | None = None
        if self._codec.is_fixed and self._codec.lead_bytes == _LEAD.size:
            self._unpackers = [self._codec.struct_of_rows(rows).unpack_from for rows in range(TILES_PER_CHUNK + 1)]
        self._batch = BatchRollup(features, partials, tile_us, self._codec) if self._codec.is_fixed else None

    def one(self, packed: PackedTiles, edge_us: int) -> Sequence[Any] | None:
        """Return the features of one key, or None if no tile lies in any window.

        A window is the tiles with `edge - size + offset <= start < edge + offset`.

        Args:
            packed: The key's chunks that may hold such tiles, ascending; others do no harm.
            edge_us: Right edge in microseconds.

        Raises:
            AggregationOverflow: A sum of integers does not fit the feature's type.
        """
        if not packed:
            return None
        if len(packed) >= _BATCH_CHUNKS and self._batch is not None:
            return self._in_batch([packed], edge_us)[0]
        edge = -(-edge_us // self._tile_us)
        if self._unpackers is None:
            return self._any_cells(packed, edge)
        if len(packed) == 1:
            chunk, value = packed[0]
            present, _, nulls = _unpack_lead(value)
            if nulls:
                return self._any_cells(packed, edge)
            rows = present.bit_count()
            cells = self._unpackers[rows](value, _LEAD.size)
            return self._one_chunk(edge - chunk * TILES_PER_CHUNK, present, rows, cells)
        chunks = []
        for chunk, value in packed:
            present, _, nulls = _unpack_lead(value)
            if nulls:
                return self._any_cells(packed, edge)
            rows = present.bit_count()
            chunks.append((edge - chunk * TILES_PER_CHUNK, present, rows, self._unpackers[rows](value, _LEAD.size)))
        return self._chunks(chunks)

    def _one_chunk(self, edge: int, present: int, rows: int, cells: tuple[Any, ...]) -> Sequence[Any] | None:
        """Return `one` of a single chunk without NULLs, by far the most frequent; `edge` is relative to the chunk."""
        answer, is_found = self._defaults.copy(), False
        for window in self._windows:
            low, high = _rank(present, rows, edge + window.begin), _rank(present, rows, edge + window.end)
            if low < high:
                is_found = True
                found = [reduce(cells[at * rows + low : at * rows + high]) for at, reduce in window.measures]
                for columns in window.moments:
                    found.append(_moments(*[cells[at * rows + low : at * rows + high] for at in columns]))
                _finish_window(window, found, answer)
        return answer if is_found else None

    def _chunks(self, chunks: Sequence[_Chunk]) -> Sequence[Any] | None:
        """Return `one` of several chunks without NULLs."""
        answer, is_found = self._defaults.copy(), False
        for window in self._windows:
            parts = []
            for edge, present, rows, cells in chunks:
                low, high = _rank(present, rows, edge + window.begin), _rank(present, rows, edge + window.end)
                if low < high:
                    parts.append((cells, rows, low, high))
            if parts:
                is_found = True
                found = [reduce(_joined(parts, at)) for at, reduce in window.measures]
                for columns in window.moments:
                    found.append(_moments(*[_joined(parts, at) for at in columns]))
                _finish_window(window, found, answer)
        return answer if is_found else None

    def _any_cells(self, packed: PackedTiles, edge: int) -> Sequence[Any] | None:
        """Return `one` where there are NULLs or columns of variable width."""
        chunks = []
        for chunk, value in packed:
            present = presence(value)
            chunks.append((edge - chunk * TILES_PER_CHUNK, present, present.bit_count()))
        columns = [
            [cell for cells in parts for cell in cells]
            for parts in zip(*[self._codec.columns(value) for _, value in packed], strict=True)
        ]
        answer, is_found = self._defaults.copy(), False
        for window in self._windows:
            low = sum([_rank(present, rows, edge + window.begin) for edge, present, rows in chunks])
            high = sum([_rank(present, rows, edge + window.end) for edge, present, rows in chunks])
            if low < high:
                is_found = True
                found = [_reduce_present(reduce, columns[at][low:high]) for at, reduce in window.measures]
                for moments in window.moments:
                    found.append(_moments(*[columns[at][low:high] for at in moments]))
                _finish_window(window, found, answer)
        return answer if is_found else None

    def many(self, packed: Sequence[PackedTiles], edge_us: int) -> list[Sequence[Any] | None]:
        """Return `one` of each key, in order; the last digits of float sums, means and variances may differ."""
        if self._batch is None or len(packed) < _BATCH_KEYS:
            return [self.one(tiles, edge_us) for tiles in packed]
        return self._in_batch(packed, edge_us)

    def _in_batch(self, packed: Sequence[PackedTiles], edge_us: int) -> list[Sequence[Any] | None]:
        assert self._batch is not None
        return self._batch.many(packed, edge_us)


def compile_rollup(
    features: Sequence[AggregateFeature], partials: Sequence[PartialColumn], tile_us: int
) -> OnlineRollup:
    """Return the roll-up of a view's features from its stored tiles."""
    return OnlineRollup(features, partials, tile_us)


def _rank(present: int, rows: int, slot: int) -> int:
    """Return how many of a chunk's tiles come before a slot, which may lie outside of it."""
    if slot <= 0:
        return 0
    return rows if slot >= TILES_PER_CHUNK else (present & ((1 << slot) - 1)).bit_count()


def _joined(parts: Sequence[_Part], at: int) -> Sequence[Any]:
    """Return a column's cells in a window, from all chunks."""
    cells: tuple[Any, ...] = ()
    for part, rows, low, high in parts:
        cells += part[at * rows + low : at * rows + high]
    return cells


def _finish_window(window: _Window, found: list[Any], answer: list[Any]) -> None:
    """Put what was computed over a window into the answer."""
    for position, place, finish in window.outputs:
        value = found[place]
        answer[position] = value if finish is None or value is None else finish(value)
    for position, total, count, finish in window.means:
        if found[count]:
            answer[position] = finish(found[total]) / found[count]


def _reduce_present(reduce: Reduce, cells: Sequence[Any]) -> Any:  # noqa: ANN401 - cells are of any type
    present = [cell for cell in cells if cell is not None]
    return reduce(present) if present else None


# ---- what happens over a window --------------------------------------------------------------------------------------


def _float_sum(cells: Sequence[float]) -> float:
    try:
        return math.fsum(cells)
    except (OverflowError, ValueError):
        # Infinities of both signs, or too large on the way: what adding one by one says.
        return sum(cells)


def _float_min(cells: Sequence[float]) -> float:
    """Return the smallest; NaN only if there is nothing else, for it counts as the greatest."""
    least = min(cells)
    return min((cell for cell in cells if not math.isnan(cell)), default=least) if math.isnan(least) else least


def _float_max(cells: Sequence[float]) -> float:
    """Return the greatest, which is NaN if there is one."""
    return math.nan if math.isnan(sum(cells)) and any(map(math.isnan, cells)) else max(cells)


def _last(cells: Sequence[Any]) -> Any:  # noqa: ANN401 - cells are of any type
    return cells[-1]


def _moments(counts: Sequence[int], means: Sequence[float | None], m2s: Sequence[float | None]) -> Moments:
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
    within = _float_sum([s for _, _, s in tiles])
    return number, max(within + _float_sum([n * d * d for n, d in distances]) - missed * missed / number, 0.0)


# ---- compilation -----------------------------------------------------------------------------------------------------


def _compile_window(features: Sequence[tuple[int, AggregateFeature]], columns: dict[str, int], tile_us: int) -> _Window:
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
    begin, end = window_span(features[0][1].window, tile_us)
    return _Window(begin, end, tuple(measures), tuple(moments), tuple(outputs), tuple(means))


def _reducer(partial: PartialColumn) -> Reduce:
    if partial.kind == "last":
        return _last
    is_float = partial.dtype.is_float
    if partial.kind == "min":
        return _float_min if is_float else min
    if partial.kind == "max":
        return _float_max if is_float else max
    return _float_sum if is_float else sum


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
