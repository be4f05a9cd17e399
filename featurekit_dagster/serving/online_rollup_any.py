"""Features of one key from its decoded tiles: the general way, for columns of any width and for NULLs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurekit_dagster.serving.online_rollup_windows import (
    CompiledWindow,
    Reduce,
    Slot,
    compile_windows,
    finish_window,
)
from featurekit_dagster.stores.online import TILES_PER_CHUNK, PackedTiles
from featurekit_dagster.stores.packing import ValueCodec, presence

Columns = Sequence[Sequence[Any]]


class AnyRollup:
    """Rolls up the tiles of one key by decoding the columns that are needed.

    Args:
        slots: What to compute.
        columns: Name of a partial column to its place in a tile.
        tile_us: Tile size in microseconds.
        codec: Codec of the stored tiles.
    """

    def __init__(self, slots: Sequence[Slot], columns: dict[str, int], tile_us: int, codec: ValueCodec) -> None:
        self._windows = compile_windows(slots, columns, tile_us)
        self._defaults = [feature.value_default for feature, _ in slots]
        self._lists = [slot for slot, default in enumerate(self._defaults) if isinstance(default, list)]
        self._wanted = frozenset(columns[partial.name] for feature, _ in slots for partial in feature.partials)
        self._codec, self._tile_us = codec, tile_us

    def one(self, packed: PackedTiles, edge_us: int) -> list[Any] | None:
        """Return the slots of one key, or None if no tile lies in any window (see `OnlineRollup.one`)."""
        if not packed:
            return None
        edge = -(-edge_us // self._tile_us)
        leads = [(chunk * TILES_PER_CHUNK, presence(value)) for chunk, value in packed]
        parts = [self._codec.packed_columns(value, self._wanted) for _, value in packed]
        columns = parts[0] if len(parts) == 1 else [_joined(column) for column in zip(*parts, strict=True)]

        def rank(tile: int) -> int:
            return sum([tiles_before(present, tile - start) for start, present in leads])

        answer = self._defaults.copy()
        for slot in self._lists:
            answer[slot] = []
        is_found = False
        for window in self._windows:
            low, high = rank(window.first(edge)), rank(edge + window.end)
            if low < high:
                is_found = True
                finish_window(window, reduce_columns(window, columns, low, high), answer)
        return answer if is_found else None

    def many(self, packed: Sequence[PackedTiles], edge_us: int) -> list[list[Any] | None]:
        """Return `one` of each key, in order."""
        return [self.one(tiles, edge_us) for tiles in packed]


def tiles_before(present: int, slot: int) -> int:
    """Return how many of a chunk's tiles come before a slot, which may lie outside of it."""
    if slot <= 0:
        return 0
    return (present if slot >= TILES_PER_CHUNK else present & ((1 << slot) - 1)).bit_count()


def reduce_columns(window: CompiledWindow, columns: Columns, low: int, high: int) -> list[Any]:
    """Return a window's quantities over the rows `low` to `high - 1`."""
    found = [_reduce_present(reduce, columns[at][low:high]) for at, reduce in window.measures]
    for places, joint in window.joints:
        found.append(joint(*[columns[at][low:high] for at in places]))
    return found


def _reduce_present(reduce: Reduce, cells: Sequence[Any]) -> Any:  # noqa: ANN401 - cells are of any type
    present = [cell for cell in cells if cell is not None]
    return reduce(present) if present else None


def _joined(parts: Sequence[Sequence[Any]]) -> list[Any]:
    return [cell for part in parts for cell in part]
