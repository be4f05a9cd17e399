"""Keys that have tiles in an interval online and none after its overwrite: they get an empty tile.

An online write only touches keys that it has records of, so without this a key that vanished from the source would keep
its old tiles and online would differ from offline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_type
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import Array, Field
from featurekit_dagster.execution.held_online import held_online
from featurekit_dagster.execution.online_rows import complete_part
from featurekit_dagster.execution.stream_records import with_no_times
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.tasks import Task
from featurekit_dagster.stores.online import ANCHOR_TIME, Key, OnlineLayout
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

# What a number is of no events; every other partial column is an empty list then.
_NOTHING = {"count": 0, **dict.fromkeys(("sum", "min", "max", "last", "mean", "m2"))}


def clear_vanished_keys(view: FeatureView, task: Task, stores: WorkspaceStores, rows: pa.Table, epoch: int) -> int:
    """Replace the tiles of keys that are online in the interval, but not in `rows`, by an empty one.

    The online store itself is asked for them: the offline store may have been overwritten alone, or not be written at
    all.

    Args:
        view: The feature view; nothing happens without aggregates.
        task: What is to be done; nothing happens unless it replaces what is online.
        stores: Where the tiles are.
        rows: The interval's new tiles.
        epoch: Epoch of the lease that the writer holds.

    Returns:
        How many keys have vanished.
    """
    part = complete_part(view, task.interval, stores.clock())
    replaces = task.online and (task.overwrite or view.is_rewritten_online)
    if part is None or not (view.is_aggregate and replaces):
        return 0
    layout = stores.online_layout(view)
    vanished = [
        key
        for key, tiles in _tiles(stores, layout, stores.online.keys_besides(layout, rows, part), part)
        if not all(_is_empty(view, layout, tile) for tile in tiles)
    ]
    if vanished:
        stores.online.write(
            layout,
            _empty_tiles(view, _key_columns(layout, vanished), part.start_us),
            covered=held_online(view, stores),
            epoch=epoch,
            replace=part,
        )
    return len(vanished)


def _tiles(
    stores: WorkspaceStores, layout: OnlineLayout, keys: Sequence[Key], part: Interval
) -> Iterable[tuple[Key, list[tuple[Any, ...]]]]:
    return zip(keys, stores.online.read(layout, keys, part.start_us, part.end_us), strict=True)


def _is_empty(view: FeatureView, layout: OnlineLayout, tile: tuple[Any, ...]) -> bool:
    """Tell whether a tile is what an earlier overwrite has left of a key."""
    nothing = {partial.name: _NOTHING.get(partial.kind, []) for partial in view.partials}
    cells = zip(layout.value_fields, tile[1:], strict=True)
    own = [(nothing[field.name], cell) for field, cell in cells if field.name in nothing]
    return all(cell in ([], None) or cell == empty for empty, cell in own)


def _key_columns(layout: OnlineLayout, keys: Sequence[Key]) -> pa.Table:
    columns = zip(layout.key_fields, zip(*keys, strict=True), strict=True)
    return pa.table({field.name: pa.array(values, arrow_type(field.dtype)) for field, values in columns})


def _empty_tiles(view: FeatureView, keys: pa.Table, start_us: int) -> pa.Table:
    """Return one online tile per key in which nothing happened: counts are 0, lists are empty, all else is NULL."""
    count = keys.num_rows
    tiles = keys.append_column(ANCHOR_TIME, pa.array(np.full(count, start_us)).cast(TIMESTAMP))
    cells: list[tuple[Field, Any]] = [(Field(p.name, p.dtype), _NOTHING.get(p.kind, [])) for p in view.partials]
    if view.secondary_key is not None:
        fields = (view.secondary_key, *(field for field, _ in cells))
        cells = [(Field(field.name, Array(field.dtype)), []) for field in fields]
    for field, nothing in cells:
        tiles = tiles.append_column(field.name, pa.array([nothing] * count, arrow_type(field.dtype)))
    return with_no_times(view, tiles)
