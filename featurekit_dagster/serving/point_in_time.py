"""Point-in-time answers: for every spine row, what could have been known at its time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.aggregation import distinct_spans
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.arrow import TIMESTAMP, arrow_schema
from featurekit_dagster.engine.point_in_time import latest_positions
from featurekit_dagster.engine.rollup import EDGE, roll_up
from featurekit_dagster.intervals import duration_us, to_us
from featurekit_dagster.planning.grid import Timing
from featurekit_dagster.serving.stored import Mask, StoredRows, Times, refuse_gaps, uncovered

FIRST_US = to_us(datetime(1000, 1, 1))  # noqa: DTZ001 - read as UTC; earlier than any event, later than any overflow


@dataclass(frozen=True, slots=True)
class Answer:
    """Features of spine rows.

    Args:
        features: One row per spine row, in order; columns as the view declares them.
        gaps: Number of rows that are NULL because something they need is not materialized.
    """

    features: pa.Table
    gaps: int


def features_at(
    stored: StoredRows, keys: pa.Table, times_us: Times, no_time: Mask, *, allow_gaps: bool = False
) -> Answer:
    """Return the features of each (key, time).

    Args:
        stored: Where tiles or rows come from.
        keys: One row per question, columns named as the view's join keys.
        times_us: Time of each question.
        no_time: Questions without a time; their features are NULL.
        allow_gaps: Whether a question that needs unmaterialized intervals is answered with NULL instead of refused.

    Raises:
        NotMaterialized: Something needed is not materialized, and gaps are not allowed.
    """
    timing = Timing.of(stored.view)
    edges = timing.edge(times_us)
    ask = ~no_time
    if stored.view.is_aggregate and timing.start_us is not None:
        ask &= edges >= timing.start_us
    if stored.view.is_aggregate:
        return _aggregates_at(stored, keys, edges, ask, allow_gaps)
    return _rows_at(stored, keys, edges, ask, allow_gaps)


def window_span(view: FeatureView) -> tuple[int, int]:
    """Return how far before an edge the windows begin, and how far before it the last of them ends."""
    return duration_us(view.reach), -max(span.end_us for span in distinct_spans(view.aggregates))


def _aggregates_at(stored: StoredRows, keys: pa.Table, edges: Times, ask: Mask, allow_gaps: bool) -> Answer:
    view = stored.view
    back, front = window_span(view)
    coverage = stored.coverage()
    gaps = np.zeros(len(edges), dtype=bool)
    if coverage is not None:
        gaps = ask & uncovered(edges - back, edges - front, coverage)
        if gaps.any() and not allow_gaps:
            refuse_gaps(view, edges[gaps] - back, edges[gaps] - front, coverage, int(gaps.sum()))
        ask = ask & ~gaps
    asked = edges[ask]
    span = (int(asked.min()) - back, int(asked.max()) - front) if len(asked) else (0, 0)
    tiles = stored.read_to_roll_up(*span)
    probes = keys.append_column(EDGE, pa.array(edges, mask=~ask).cast(TIMESTAMP))
    tile_us = Timing.of(view).tile_us or 1
    features = roll_up(tiles, probes, keys=view.key_names, tile_us=tile_us, features=view.aggregates)
    return Answer(features, int(gaps.sum()))


def earliest(timing: Timing, edge: Any) -> Any:
    """Return the first timestamp that a row may have to be alive at an edge; integers and arrays alike."""
    oldest = edge - timing.ttl_us if timing.ttl_us is not None else FIRST_US
    return oldest if timing.start_us is None else np.maximum(oldest, timing.start_us)


def _rows_at(stored: StoredRows, keys: pa.Table, edges: Times, ask: Mask, allow_gaps: bool) -> Answer:
    """Answer with the newest row that is visible and alive: `edge - ttl <= timestamp < edge`, and not before the start.

    A row is visible from `floor(ts, schedule) + schedule + delay`, which is not after T exactly when `ts < edge`; it is
    alive while T is before `floor(ts + ttl, schedule) + schedule + delay`, exactly when `ts + ttl >= edge`.
    """
    view, timing = stored.view, Timing.of(stored.view)
    oldest = np.broadcast_to(earliest(timing, edges), edges.shape)
    asked = ask & (oldest < edges)
    rows = stored.read(int(oldest[asked].min()), int(edges[asked].max())) if asked.any() else stored.read(0, 0)
    probes = keys.append_column(EDGE, pa.array(edges - 1, mask=~asked).cast(TIMESTAMP))
    found = latest_positions(rows, probes, keys=view.key_names, row_time=view.timestamp_field, probe_time=EDGE)
    row_times = rows[view.timestamp_field].cast(pa.int64()).to_numpy()
    times = row_times[found] if len(row_times) else np.full(len(found), FIRST_US)
    found = np.where((found >= 0) & (times >= oldest), found, -1)
    gaps = _row_gaps(stored, np.where(found >= 0, times, oldest), edges, asked, allow_gaps)
    positions = pa.array(found, mask=(found < 0) | gaps)
    features = rows.select(view.feature_names).take(positions)
    return Answer(features.cast(arrow_schema(view.features)), int(gaps.sum()))


def _row_gaps(stored: StoredRows, since: Times, edges: Times, asked: Mask, allow_gaps: bool) -> Mask:
    """Return which answers could be wrong because a newer row may be missing between `since` and the edge."""
    coverage = stored.coverage()
    if coverage is None:
        return np.zeros(len(edges), dtype=bool)
    gaps: Mask = asked & uncovered(since, edges, coverage)
    if gaps.any() and not allow_gaps:
        refuse_gaps(stored.view, since[gaps], edges[gaps], coverage, int(gaps.sum()))
    return gaps
