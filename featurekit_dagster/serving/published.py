"""What is published of a view: each change of what a reader sees, which holds until the next one of its key."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.columns import rows_at, to_column
from featurekit_dagster.engine.keys import encode_keys
from featurekit_dagster.serving.ranges import VALID_FROM, merged, pieces_of
from featurekit_dagster.serving.stored import StoredRows, Times

ENDED = "_ended"
"""Column that says that a key's features end, because they have expired or every window is empty."""


def changes_in(stored: StoredRows, start_us: int, end_us: int, *, is_continued: bool) -> pa.Table:
    """Return join keys, features, `_valid_from` and `_ended`: what changes with `start <= _valid_from < end`.

    Args:
        stored: Where tiles or rows come from.
        start_us: First microsecond.
        end_us: First microsecond after.
        is_continued: Whether what held just before the start is known, so that it is left out; otherwise all that
            holds at the start is there, too.

    Returns:
        One row per key and time, in no order. Where `_ended`, the features are NULL.

    Raises:
        NotMaterialized: Something needed is not materialized.
    """
    view, since_us = stored.view, start_us - int(is_continued)
    pieces, valid_from, valid_to = pieces_of(stored, since_us, end_us)
    if view.is_aggregate:
        # what a row of a plain view repeats may be as old as it likes, so these are compared where they are read
        pieces, valid_from, valid_to = merged(view, pieces, valid_from, valid_to)
    ends = np.flatnonzero(_is_last(pieces, view, valid_from, valid_to) & (valid_to < end_us))
    begins = np.flatnonzero(valid_from >= start_us)
    rows = pa.concat_tables([rows_at(pieces, begins), _without_features(rows_at(pieces, ends), view)])
    times = np.concatenate([valid_from[begins], valid_to[ends]])
    is_end = np.concatenate([np.zeros(len(begins), dtype=bool), np.ones(len(ends), dtype=bool)])
    rows = rows.append_column(VALID_FROM, to_column(times, None, TIMESTAMP))
    return rows.append_column(ENDED, pa.array(is_end))


def _is_last(
    pieces: pa.Table, view: FeatureView, valid_from: Times, valid_to: Times
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which rows are followed by none of their key, or by one that does not touch them."""
    is_last = np.ones(pieces.num_rows, dtype=bool)
    if pieces.num_rows:
        keys = pieces.select(view.key_names)
        codes = encode_keys(keys, keys, view.key_names).probes
        is_last[:-1] = (codes[1:] != codes[:-1]) | (valid_from[1:] > valid_to[:-1])
    return is_last


def _without_features(rows: pa.Table, view: FeatureView) -> pa.Table:
    """Return the rows with all features NULL."""
    for name in view.feature_names:
        place = rows.column_names.index(name)
        rows = rows.set_column(place, rows.field(name), pa.nulls(rows.num_rows, rows.field(name).type))
    return rows
