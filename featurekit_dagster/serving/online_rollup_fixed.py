"""Features from packed tiles whose columns have a fixed width: the inner loop of online reads.

Compiled once per view. One key goes through `struct` and Python's own `sum`, `fsum`, `min` and `max`, which for a few
dozen tiles is faster than NumPy; many keys go through `online_rollup_batch.py`. Both obey `domain/aggregation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurekit_dagster.serving.online_rollup_any import AnyRollup, tiles_before
from featurekit_dagster.serving.online_rollup_batch import BatchRollup
from featurekit_dagster.serving.online_rollup_source import LEAD, ShortWay, write_short_way
from featurekit_dagster.serving.online_rollup_windows import Slot, compile_windows, finish_window
from featurekit_dagster.stores.online import TILES_PER_CHUNK, PackedTiles
from featurekit_dagster.stores.packing import ValueCodec

# First tile of the chunk, present tiles, their number, and all cells column by column.
_Chunk = tuple[int, int, int, tuple[Any, ...]]
# All cells of a chunk, number of tiles, first tile of the window, first tile after it.
_Part = tuple[tuple[Any, ...], int, int, int]

# From here on one NumPy pass is faster than a loop over keys, or over the chunks of one key.
_BATCH_KEYS = 8
_BATCH_CHUNKS = 6
# Of more windows than these the written function would be long, and slow to compile.
_WRITTEN_WINDOWS = 64


class FixedRollup:
    """Rolls up columns of numbers, truth values and times.

    Args:
        slots: What to compute; their partial columns have a fixed width, others of the tiles need not.
        columns: Name of a partial column to its place in a tile.
        tile_us: Tile size in microseconds.
        codec: Codec of the stored tiles.
    """

    def __init__(self, slots: Sequence[Slot], columns: dict[str, int], tile_us: int, codec: ValueCodec) -> None:
        self._tile_us = tile_us
        self._windows = compile_windows(slots, columns, tile_us)
        self._defaults = [feature.value_default for feature, _ in slots]
        self._any = AnyRollup(slots, columns, tile_us, codec)
        self._batch = BatchRollup(slots, columns, tile_us, codec)
        self._short_ways: list[ShortWay] = []
        self._has_one_lead = codec.lead_bytes == LEAD.size
        self._unpackers = [codec.struct_of_rows(rows).unpack_from for rows in range(TILES_PER_CHUNK + 1)]
        if self._has_one_lead and len(self._windows) <= _WRITTEN_WINDOWS:
            self._short_ways = [
                write_short_way(self._windows, self._defaults, list(columns), self._unpackers, chunks)
                for chunks in (1, 2)
            ]

    def one(self, packed: PackedTiles, edge_us: int) -> Sequence[Any] | None:
        """Return the slots of one key, or None if no tile lies in any window (see `OnlineRollup.one`)."""
        if not packed:
            return None
        if len(packed) >= _BATCH_CHUNKS:
            return self._batch.many([packed], edge_us)[0]
        if not self._has_one_lead:
            return self._any.one(packed, edge_us)
        edge = -(-edge_us // self._tile_us)
        if len(packed) <= len(self._short_ways):
            answer: Sequence[Any] | None = self._short_ways[len(packed) - 1](packed, edge)
            if answer is not NotImplemented:
                return answer
        chunks = []
        for chunk, value in packed:
            present, _, nulls = LEAD.unpack_from(value)
            if nulls:
                return self._any.one(packed, edge_us)
            rows = present.bit_count()
            chunks.append((chunk * TILES_PER_CHUNK, present, rows, self._unpackers[rows](value, LEAD.size)))
        return self._chunks(chunks, edge)

    def _chunks(self, chunks: Sequence[_Chunk], edge: int) -> Sequence[Any] | None:
        """Return `one` of chunks without NULLs."""
        answer, is_found = self._defaults.copy(), False
        for window in self._windows:
            parts, first, end = [], window.first(edge), edge + window.end
            for start, present, rows, cells in chunks:
                low, high = tiles_before(present, first - start), tiles_before(present, end - start)
                if low < high:
                    parts.append((cells, rows, low, high))
            if parts:
                is_found = True
                found = [reduce(_joined(parts, at)) for at, reduce in window.measures]
                for places, joint in window.joints:
                    found.append(joint(*[_joined(parts, at) for at in places]))
                finish_window(window, found, answer)
        return answer if is_found else None

    def many(self, packed: Sequence[PackedTiles], edge_us: int) -> Sequence[Sequence[Any] | None]:
        """Return `one` of each key, in order; the last digits of float sums, means and variances may differ."""
        if len(packed) < _BATCH_KEYS:
            return [self.one(tiles, edge_us) for tiles in packed]
        return self._batch.many(packed, edge_us)


def _joined(parts: Sequence[_Part], at: int) -> Sequence[Any]:
    """Return a column's cells in a window, from all chunks."""
    cells: tuple[Any, ...] = ()
    for part, rows, low, high in parts:
        cells += part[at * rows + low : at * rows + high]
    return cells
