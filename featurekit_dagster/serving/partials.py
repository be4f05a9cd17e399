"""Partial aggregates: the tiles themselves, with the columns that people know."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.arrow_types import TIMESTAMP
from featurekit_dagster.domain.aggregation import LIST_FUNCTIONS, PartialColumn
from featurekit_dagster.domain.feature_view import ANCHOR_TIME, FeatureView
from featurekit_dagster.engine.columns import microseconds, to_column
from featurekit_dagster.errors import ReadError
from featurekit_dagster.planning.grid import Timing, floor_us
from featurekit_dagster.serving.ranges import only
from featurekit_dagster.serving.stored import StoredRows

INTERVAL_START, INTERVAL_END = "_interval_start_time", "_interval_end_time"


def partial_aggregates(stored: StoredRows, start_us: int, end_us: int, entities: pa.Table | None = None) -> pa.Table:
    """Return the tiles of a span: join keys, partial columns, `_interval_start_time` and `_interval_end_time`.

    The span is `[floor(start, tile), floor(end, tile) + tile)`: an end on the grid still adds the tile that begins at
    it.

    Args:
        stored: Where tiles come from.
        start_us: First microsecond.
        end_us: Last instant of interest.
        entities: Only these join keys; all of them by default.

    Raises:
        ReadError: The view has no tiles.
        NotMaterialized: Something needed is not materialized.
    """
    view = stored.view
    refuse_untiled(view)
    tile_us = Timing.of(view).tile_us or 1
    start, end = floor_us(start_us, tile_us), floor_us(end_us, tile_us) + tile_us
    stored.require(start, end)
    tiles = only(stored.rows(start, end), view, entities)
    starts = microseconds(tiles[ANCHOR_TIME])[0]
    table = _shown_partials(view, tiles)
    table = table.append_column(INTERVAL_START, tiles[ANCHOR_TIME])
    return table.append_column(INTERVAL_END, to_column(starts + tile_us, None, TIMESTAMP))


def refuse_untiled(view: FeatureView) -> None:
    """Refuse to show tiles of a view that has none.

    Raises:
        ReadError: It has no aggregates, or its windows are made of single events.
    """
    if view.is_tiled:
        return
    if not view.is_aggregate:
        why = "it has no aggregates, so there are no partial ones"
    elif view.compaction_enabled:
        why = "compaction_enabled=True, so it stores events and has no partial aggregates"
    else:
        why = "its stream_processing_mode is CONTINUOUS, so it stores events and has no partial aggregates"
    raise ReadError(f"{view.name}: {why}; use get_features_in_range")


def _shown_partials(view: FeatureView, tiles: pa.Table) -> pa.Table:
    """Return keys and partial columns as people know them: `mean` and `sum_of_squares` are derived."""
    columns = {name: tiles[name] for name in view.tile_keys}
    for feature in view.aggregates:
        column = feature.column.name
        kinds = [p.kind for p in feature.partials]
        counts = pc.cast(tiles[f"count_{column}"], pa.float64()) if "count" in kinds else None
        if "m2" in kinds:
            mean = tiles[f"mean_{column}"]
            total = pc.multiply(mean, counts)
            columns[f"sum_of_squares_{column}"] = pc.add(tiles[f"m2_{column}"], pc.multiply(total, mean))
            columns.setdefault(f"sum_{column}", total)
        elif feature.function == "mean":
            total = pc.cast(tiles[f"sum_{column}"], pa.float64(), safe=False)
            columns[f"mean_{column}"] = pc.divide(total, pc.if_else(pc.equal(counts, 0.0), None, counts))
        else:
            columns |= {partial.name: _shown(partial, tiles[partial.name]) for partial in feature.partials}
        if counts is not None:
            columns[f"count_{column}"] = tiles[f"count_{column}"]
    return pa.table(columns)


def _shown(partial: PartialColumn, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a partial column; a list of values is NULL where the tile has none, sketches of nothing are empty."""
    if partial.kind not in LIST_FUNCTIONS:
        return column
    return pc.if_else(pc.equal(pc.list_value_length(column), 0), pa.scalar(None, column.type), column)
