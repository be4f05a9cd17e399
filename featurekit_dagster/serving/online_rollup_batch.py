"""Features of many keys from packed tiles, in one NumPy pass. Used by `online_rollup_fixed`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurekit_dagster.domain.aggregation import AggregateFeature, PartialColumn, canonical_function
from featurekit_dagster.domain.schema import Float32, Int32
from featurekit_dagster.errors import AggregationOverflow
from featurekit_dagster.serving.online_rollup_cells import Cells, Grid, Ragged, Span, Values
from featurekit_dagster.serving.online_rollup_windows import Slot, tile_bounds
from featurekit_dagster.stores.cell_codec import user_value
from featurekit_dagster.stores.online import TILES_PER_CHUNK, PackedTiles
from featurekit_dagster.stores.packing import ValueCodec


class BatchRollup:
    """Rolls up the tiles of many keys at once (see `FixedRollup`)."""

    def __init__(self, slots: Sequence[Slot], columns: dict[str, int], tile_us: int, codec: ValueCodec) -> None:
        self._slots = [(feature, feature.partials, tile_bounds(span, tile_us)) for feature, span in slots]
        self._places = {p.name: columns[p.name] for feature, _ in slots for p in feature.partials}
        self._tile_us = tile_us
        self._codec = codec

    def many(self, packed: Sequence[PackedTiles], edge_us: int) -> Sequence[Sequence[Any] | None]:
        """Return the slots of each key, in order; None for a key without a tile in any window.

        Raises:
            AggregationOverflow: A sum of integers does not fit the feature's type.
        """
        if not any(packed):
            return [None] * len(packed)
        edge = -(-edge_us // self._tile_us)
        cells = self._grid(packed, edge) or self._ragged(packed, edge)
        spans = [(begin if since is None else min(since - edge, end), end) for _, _, (begin, end, since) in self._slots]
        with np.errstate(all="ignore"):
            columns = [
                _slot(cells, feature, parts, span) for (feature, parts, _), span in zip(self._slots, spans, strict=True)
            ]
        answers: list[Sequence[Any] | None] = list(zip(*columns, strict=True))
        for key in np.flatnonzero(~np.any([cells.tiles(span) > 0 for span in dict.fromkeys(spans)], axis=0)).tolist():
            answers[key] = None
        return answers

    def _grid(self, packed: Sequence[PackedTiles], edge: int) -> Cells | None:
        """Return the cells of keys that have the same tiles, or None if they have not."""
        if len(set(map(len, packed))) > 1:
            return None
        parts, tiles = [], []
        for chunk_of_each in zip(*packed, strict=True):
            chunks, values = zip(*chunk_of_each, strict=True)
            found = self._codec.unpack_alike(values) if len(set(chunks)) == 1 else None
            if found is None:
                return None
            tiles.append(found[0] + (chunks[0] * TILES_PER_CHUNK - edge))
            parts.append(found[1])
        columns = parts[0] if len(parts) == 1 else [np.concatenate(part, axis=1) for part in zip(*parts, strict=True)]
        named = {name: columns[at] for name, at in self._places.items()}
        return Grid(named, tiles[0] if len(tiles) == 1 else np.concatenate(tiles), len(packed))

    def _ragged(self, packed: Sequence[PackedTiles], edge: int) -> Cells:
        block = self._codec.unpack([value for tiles in packed for _, value in tiles], with_heaps=False)
        starts = np.array([chunk for tiles in packed for chunk, _ in tiles]) * TILES_PER_CHUNK - edge
        keys = np.repeat(np.arange(len(packed)), [len(tiles) for tiles in packed])
        return Ragged(block, self._places, keys[block.owners], starts[block.owners] + block.leads, len(packed))


def _slot(cells: Cells, feature: AggregateFeature, parts: Sequence[PartialColumn], span: Span) -> list[Any]:
    """Return one slot of every key."""
    function = canonical_function(feature.function)
    if function == "last":
        return _listed(*cells.last(parts[0], span), user_value(feature.value_dtype))
    if function in ("min", "max"):
        return _listed(cells.extreme(parts[0], span), cells.present(parts[0], span))
    if len(parts) == 3:
        number, m2 = cells.moments(parts, span)
        fewest = 2 if function.endswith("samp") else 1
        variance = m2 / np.maximum(number - (fewest - 1), 1)
        return _listed(np.sqrt(variance) if function.startswith("stddev") else variance, number >= fewest)
    total, overflows = cells.total(parts[0], span)
    if function == "sum" and feature.value_dtype == Int32:
        overflows += int(np.count_nonzero((total < -(1 << 31)) | (total >= 1 << 31)))
    if overflows:
        raise AggregationOverflow(feature=feature.name, dtype=str(feature.column.dtype), count=overflows)
    if function == "mean":
        number, _ = cells.total(parts[1], span)
        return _listed(total / np.maximum(number, 1), number > 0)
    if function == "count":
        counts: list[Any] = total.tolist()
        return counts
    return _listed(total.astype(np.float32) if feature.value_dtype == Float32 else total, cells.present(parts[0], span))


def _listed(values: Values, there: npt.NDArray[np.bool_], convert: Callable[[Any], Any] | None = None) -> list[Any]:
    """Return Python values, None where there is none."""
    found: list[Any] = values.tolist()
    if convert is not None:
        found = [convert(value) for value in found]
    return found if there.all() else [value if p else None for value, p in zip(found, there.tolist(), strict=True)]
