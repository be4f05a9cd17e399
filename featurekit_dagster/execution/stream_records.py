"""From rows of a stream view to online records, and how records of one tile are combined."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_type
from featurekit_dagster.domain.aggregation import PartialColumn
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import DataType, Field
from featurekit_dagster.engine.columns import microseconds
from featurekit_dagster.engine.event_cells import event_cells
from featurekit_dagster.errors import KeyTooLong
from featurekit_dagster.planning.grid import floor_us
from featurekit_dagster.stores.cell_codec import decoder, encode_raw
from featurekit_dagster.stores.key_codec import KeyCodec
from featurekit_dagster.stores.online import ANCHOR_TIME, OnlineLayout
from featurekit_dagster.stores.online import TIMESTAMP as ONLINE_TIMESTAMP
from featurekit_dagster.stores.packing import is_fixed
from featurekit_dagster.stores.stream_state import Columns, IntArray, Nulls
from featurekit_dagster.streams.tiler import ListCells, Tiler
from featurekit_dagster.streams.tiler_nested import NestedTiler


def stream_records(view: FeatureView, rows: pa.Table) -> pa.Table:
    """Return a record per row, in the same order: the row itself, or a tile that holds this one event.

    Args:
        view: A stream feature view.
        rows: Rows of its transformation.
    """
    if not view.is_aggregate:
        names = [ONLINE_TIMESTAMP if name == view.timestamp_field else name for name in rows.column_names]
        return rows.rename_columns(names)
    tiles = event_cells(rows, keys=view.tile_keys, timestamp=view.timestamp_field, partials=view.partials)
    timed_partials = view.online_partials[len(view.partials) :]
    if view.tile_us == 1 and not timed_partials:  # each event is a tile, of its own time
        return tiles if view.secondary_key is None else _nested(view, tiles)
    times = microseconds(tiles[ANCHOR_TIME])[0]
    for own, timed in zip(_ordered(view.partials) if timed_partials else [], timed_partials, strict=True):
        tiles = tiles.append_column(timed.name, _times_of(tiles[own.name], times, is_list=own.kind != "last"))
    starts = pa.array(floor_us(times, view.tile_us or 1)).cast(TIMESTAMP)
    tiles = tiles.set_column(tiles.column_names.index(ANCHOR_TIME), ANCHOR_TIME, starts)
    return tiles if view.secondary_key is None else _nested(view, tiles)


def long_keys(layout: OnlineLayout, records: pa.Table) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell which records have a key that is too long to be stored."""
    codec, columns = KeyCodec(layout), [records[field.name].combine_chunks() for field in layout.key_fields]
    found = np.zeros(records.num_rows, bool)
    for row in range(records.num_rows):
        try:
            codec.encode_columns([column.slice(row, 1) for column in columns])
        except KeyTooLong:
            found[row] = True
    return found


def with_no_times(view: FeatureView, records: pa.Table) -> pa.Table:
    """Return batch tiles with the columns of a stream's times, as no event is ever added to such a tile."""
    for timed in view.online_partials[len(view.partials) :]:
        is_list = bool(timed.dtype.children)
        if view.secondary_key is None:
            cells: Any = [[] if is_list else 0] * records.num_rows
            dtype = arrow_type(timed.dtype)
        else:
            cells, dtype = [[]] * records.num_rows, pa.list_(arrow_type(timed.dtype))
        records = records.append_column(timed.name, pa.array(cells, dtype))
    return records


def _ordered(partials: Sequence[PartialColumn]) -> list[PartialColumn]:
    """Return the partial columns that have a column of times, in its order."""
    return [p for p in partials if p.kind in ("last", "last_n", "last_distinct", "first_n", "first_distinct")]


def _times_of(cells: pa.ChunkedArray, times: IntArray, *, is_list: bool) -> pa.Array:
    """Return the time of each cell's value, or a list of it; 0 or none where there is no value."""
    column = cells.combine_chunks()
    if not is_list:
        return pa.array(np.where(column.is_null().to_numpy(zero_copy_only=False), 0, times))
    lengths = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.repeat(times, lengths)))


def _nested(view: FeatureView, tiles: pa.Table) -> pa.Table:
    """Return the tiles with each secondary key and partial column as a list of its one value."""
    assert view.secondary_key is not None
    offsets = pa.array(np.arange(tiles.num_rows + 1, dtype=np.int32))
    for name in (view.secondary_key.name, *(p.name for p in view.online_partials)):
        lists = pa.ListArray.from_arrays(offsets, tiles[name].combine_chunks())
        tiles = tiles.set_column(tiles.column_names.index(name), name, lists)
    return tiles


class TileCombiner:
    """Combines the records of a view's tiles, in the columns of its stored layout.

    Args:
        view: A stream feature view with aggregates.
        layout: How it is stored; columns that are declared no more are NULL.
    """

    def __init__(self, view: FeatureView, layout: OnlineLayout) -> None:
        partials, own = view.online_partials, len(view.partials)
        places = {field.name: at for at, field in enumerate(layout.value_fields)}
        names = [p.name for p in partials]
        ordered = [names.index(p.name) for p in _ordered(view.partials)]
        times = dict(zip(ordered, range(own, len(partials)), strict=True)) if len(partials) > own else {}
        if view.secondary_key is None:
            lists = {at: _cells(p.dtype) for at, p in enumerate(partials) if p.dtype.children}
            self._tiler: Tiler | NestedTiler = Tiler(view.partials, times, lists)
        else:
            names.insert(0, view.secondary_key.name)
            kinds = [_number_kind(p.dtype) for p in partials]
            cells = [_cells(layout.value_fields[places[name]].dtype) for name in names]
            self._tiler = NestedTiler(view.partials, times, cells, kinds)
        self._order = [places[name] for name in names]
        self._fields: Sequence[Field] = layout.value_fields

    def __call__(self, columns: Columns, nulls: Nulls, groups: IntArray) -> tuple[Columns, Nulls, IntArray | None]:
        """Return one row per group, or the groups of which an integer sum does not fit; see `Combine`."""
        own = [columns[at] for at in self._order], [nulls[at] for at in self._order]
        made, made_nulls, wrong = self._tiler(*own, groups)
        if wrong is not None or len(made[0]) == len(groups):
            return columns, nulls, wrong
        count = len(made[0])
        found: Columns = [_nothing(field.dtype, count) for field in self._fields]
        gone: Nulls = [np.ones(count, bool) for _ in self._fields]
        for at, column, null in zip(self._order, made, made_nulls, strict=True):
            found[at], gone[at] = column, null
        return found, gone, None


def _cells(dtype: DataType) -> ListCells:
    return ListCells(decode=decoder(dtype), encode=partial(encode_raw, dtype))


def _number_kind(dtype: DataType) -> str | None:
    if not is_fixed(dtype):
        return None
    return "f" if dtype.is_float else "i"


def _nothing(dtype: DataType, count: int) -> np.ndarray[Any, Any]:
    """Return the cells of a column that is NULL throughout."""
    if not is_fixed(dtype):
        return np.full(count, b"", object)
    return np.zeros(count, np.float64 if dtype.is_float else np.int64)
