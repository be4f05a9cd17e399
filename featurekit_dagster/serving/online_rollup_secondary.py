"""Features that are broken down by a secondary key, from tiles that hold all its values side by side.

A tile of a key is a list of secondary keys and, parallel to it, a list per partial column (see
`engine/nested_tiles.py`). The answer has, per window, the secondary keys with a tile in it, ascending and NULL last,
and a list parallel to them for every feature.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from featurekit_dagster.domain.aggregation import AggregateFeature
from featurekit_dagster.domain.windows import Span
from featurekit_dagster.serving.online_rollup_any import reduce_columns
from featurekit_dagster.serving.online_rollup_windows import compile_windows, finish_window, slots_of
from featurekit_dagster.stores.cell_codec import decoder
from featurekit_dagster.stores.online import TILES_PER_CHUNK, PackedTiles
from featurekit_dagster.stores.packing import ValueCodec, presence

# A tile and the place of a secondary key in it, and the tile's cells.
_Row = tuple[int, int, tuple[Any, ...]]


class SecondaryRollup:
    """Rolls up nested tiles, one key at a time.

    Args:
        wanted: What to answer: a window, whose secondary keys are listed, or a feature over one window.
        columns: Name of a partial column to its place among the partial columns of a tile.
        tile_us: Tile size in microseconds.
        codec: Codec of the stored tiles; their first column is the secondary key.
    """

    def __init__(
        self,
        wanted: Sequence[Span | AggregateFeature],
        columns: dict[str, int],
        tile_us: int,
        codec: ValueCodec,
    ) -> None:
        features = [each for each in wanted if isinstance(each, AggregateFeature)]
        slots = slots_of(features)
        spans = tuple(dict.fromkeys([*(each for each in wanted if isinstance(each, Span)), *(s for _, s in slots)]))
        used = dict.fromkeys(partial.name for feature in features for partial in feature.partials)
        self._decoders = {at: decoder(codec.fields[at].dtype) for at in (0, *(1 + columns[name] for name in used))}
        places = {name: at for at, name in enumerate(used)}
        self._windows = compile_windows(slots, places, tile_us, spans, is_packed=False)
        slot = iter(range(len(slots)))
        # a window's number for its secondary keys, or the slot of a feature
        self._answer = [(True, spans.index(each)) if isinstance(each, Span) else (False, next(slot)) for each in wanted]
        self._outputs = [[slot for slot, (_, span) in enumerate(slots) if span == window] for window in spans]
        self._defaults = [feature.value_default for feature in features]
        self._codec, self._tile_us = codec, tile_us

    def one(self, packed: PackedTiles, edge_us: int) -> list[Any] | None:
        """Return a list for each of what is wanted; None if no window has a secondary key."""
        edge = -(-edge_us // self._tile_us)
        rows = self._rows(packed)
        keys: list[list[Any]] = [[] for _ in self._windows]
        values: list[list[Any]] = [[] for _ in self._defaults]
        for key in sorted(rows, key=lambda key: (key is None, key)):
            self._add(key, rows[key], edge, keys, values)
        if not any(keys):
            return None
        return [keys[number] if is_window else values[number] for is_window, number in self._answer]

    def many(self, packed: Sequence[PackedTiles], edge_us: int) -> list[list[Any] | None]:
        """Return `one` of each key, in order."""
        return [self.one(tiles, edge_us) for tiles in packed]

    def _rows(self, packed: PackedTiles) -> dict[Any, list[_Row]]:
        """Return the rows of each secondary key, in order of time."""
        rows: dict[Any, list[_Row]] = {}
        for chunk, value in packed:
            cells_of = self._codec.packed_columns(value, self._decoders)
            secondary, *columns = ([decode(cell) for cell in cells_of[at]] for at, decode in self._decoders.items())
            present, first = presence(value), chunk * TILES_PER_CHUNK
            tiles = [first + slot for slot in range(TILES_PER_CHUNK) if present >> slot & 1]
            for row, (tile, keys) in enumerate(zip(tiles, secondary, strict=True)):
                cells = tuple([column[row] for column in columns])
                for place, key in enumerate(keys):
                    rows.setdefault(key, []).append((tile, place, cells))
        return rows

    def _add(self, key: Any, rows: Sequence[_Row], edge: int, keys: list[list[Any]], values: list[list[Any]]) -> None:
        """Put a secondary key and its values behind those that are there, in every window that has a tile of it."""
        tiles = [tile for tile, _, _ in rows]
        columns = [[cells[at][place] for _, place, cells in rows] for at in range(len(self._decoders) - 1)]
        answer: list[Any] = [None] * len(values)
        for number, window in enumerate(self._windows):
            low, high = bisect_left(tiles, window.first(edge)), bisect_left(tiles, edge + window.end)
            if low >= high:
                continue
            keys[number].append(key)
            for slot in self._outputs[number]:
                default = self._defaults[slot]
                answer[slot] = [] if isinstance(default, list) else default
            finish_window(window, reduce_columns(window, columns, low, high), answer)
            for slot in self._outputs[number]:
                values[slot].append(answer[slot])
