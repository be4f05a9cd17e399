"""Features from packed tiles: the inner loop of online reads.

Compiled once per view. One key goes through `struct` and Python's own `sum`, `fsum`, `min` and `max`, which for a few
dozen tiles is faster than NumPy; many keys go through `online_rollup_batch.py`. Both obey `domain/aggregation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from featurekit_dagster.domain.aggregation import AggregateFeature, PartialColumn
from featurekit_dagster.domain.schema import Field
from featurekit_dagster.serving.online_rollup_batch import BatchRollup
from featurekit_dagster.serving.online_rollup_source import LEAD, ShortWay, write_short_way
from featurekit_dagster.serving.online_rollup_windows import CompiledWindow, Reduce, compile_window, merge_moments
from featurekit_dagster.stores.online import TILES_PER_CHUNK, PackedTiles
from featurekit_dagster.stores.packing import ValueCodec, presence

# Edge relative to the chunk, present tiles, their number, and all cells column by column.
_Chunk = tuple[int, int, int, tuple[Any, ...]]
# All cells of a chunk, number of tiles, first tile of the window, first tile after it.
_Part = tuple[tuple[Any, ...], int, int, int]

# From here on one NumPy pass is faster than a loop over keys, or over the chunks of one key.
_BATCH_KEYS = 8
_BATCH_CHUNKS = 6


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
        distinct = dict.fromkeys(feature.spans[0] for feature in features)
        groups = [[(at, f) for at, f in enumerate(features) if f.spans[0] == window] for window in distinct]
        self._windows = tuple(compile_window(group, columns, tile_us) for group in groups)
        self._defaults = [feature.default for feature in features]
        self._short_ways: list[ShortWay] = []
        self._unpackers: list[Callable[[bytes, int], tuple[Any, ...]]] | None = None
        if self._codec.is_fixed and self._codec.lead_bytes == LEAD.size:
            self._unpackers = [self._codec.struct_of_rows(rows).unpack_from for rows in range(TILES_PER_CHUNK + 1)]
            self._short_ways = [
                write_short_way(self._windows, self._defaults, list(columns), self._unpackers, chunks)
                for chunks in (1, 2)
            ]
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
        if len(packed) <= len(self._short_ways):
            answer: Sequence[Any] | None = self._short_ways[len(packed) - 1](packed, edge)
            if answer is not NotImplemented:
                return answer
        chunks = []
        for chunk, value in packed:
            present, _, nulls = LEAD.unpack_from(value)
            if nulls:
                return self._any_cells(packed, edge)
            rows = present.bit_count()
            chunks.append((edge - chunk * TILES_PER_CHUNK, present, rows, self._unpackers[rows](value, LEAD.size)))
        return self._chunks(chunks)

    def _chunks(self, chunks: Sequence[_Chunk]) -> Sequence[Any] | None:
        """Return `one` of chunks without NULLs."""
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
                    found.append(merge_moments(*[_joined(parts, at) for at in columns]))
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
                    found.append(merge_moments(*[columns[at][low:high] for at in moments]))
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


def _finish_window(window: CompiledWindow, found: list[Any], answer: list[Any]) -> None:
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
