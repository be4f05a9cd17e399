"""Keys that had tiles in an interval and have none after its overwrite: online they get an empty tile.

An online write only touches keys that it has records of, so without this a key that vanished from the source would keep
its old tiles and online would differ from offline.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import Array, Field
from featurekit_dagster.engine.arrow import TIMESTAMP, arrow_type
from featurekit_dagster.engine.keys import encode_keys
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.execution.stream_records import with_no_times
from featurekit_dagster.planning.tasks import ONLINE, Task
from featurekit_dagster.stores.online import ANCHOR_TIME
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

# What a number is of no events; every other partial column is an empty list then.
_NOTHING = {"count": 0, **dict.fromkeys(("sum", "min", "max", "last", "mean", "m2"))}


def clear_vanished_keys(view: FeatureView, task: Task, stores: WorkspaceStores, rows: pa.Table, epoch: int) -> int:
    """Replace the tiles of keys that are in the offline store's interval, but not in `rows`, by an empty one online.

    Done before the offline store forgets those keys, so that it can be repeated after a crash.

    Args:
        view: The feature view; nothing happens without aggregates.
        task: What is to be done; nothing happens unless it overwrites online.
        stores: Where the tiles are.
        rows: The interval's new tiles.
        epoch: Epoch of the lease that the writer holds.

    Returns:
        How many keys have vanished.
    """
    if not (view.is_aggregate and task.online and task.overwrite):
        return 0
    before = stores.read_offline(view, stored_schema(view), task.interval, list(view.key_names))
    if not before.num_rows:
        return 0
    codes = encode_keys(rows.select(list(view.key_names)), before, view.key_names)
    distinct, places = np.unique(codes.probes, return_index=True)
    vanished = before.take(pa.array(places[~np.isin(distinct, codes.rows)]))
    count: int = vanished.num_rows
    if count:
        stores.online.write(
            stores.online_layout(view),
            _empty_tiles(view, vanished, task.interval.start_us),
            covered=stores.coverage(view, ONLINE),
            epoch=epoch,
            replace=task.interval,
        )
    return count


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
