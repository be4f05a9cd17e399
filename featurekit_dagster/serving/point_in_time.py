"""Point-in-time answers: for every question, what could have been known at its time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP, arrow_schema
from featurekit_dagster.domain.aggregation import AggregateFeature, distinct_spans, secondary_keys_name
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.buckets import roll_up_in_buckets
from featurekit_dagster.engine.columns import microseconds, to_column
from featurekit_dagster.engine.point_in_time import latest_positions
from featurekit_dagster.engine.rollup import EDGE
from featurekit_dagster.planning.grid import Timing
from featurekit_dagster.serving.stored import FIRST_US, Mask, StoredRows, Tiles, Times


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked for: features of a key at a time, once per row.

    Args:
        keys: Columns named as the view's join keys.
        times_us: The times in microseconds.
        no_time: Questions without a time; their features are NULL.
        copies: How many times the spine stands in the rows, one copy after the other.
    """

    keys: pa.Table
    times_us: Times
    no_time: Mask
    copies: int = 1

    def spine_rows(self, concerned: Mask) -> int:
        """Return of how many spine rows at least one question is concerned."""
        return int(concerned.reshape(self.copies, -1).any(axis=0).sum())


@dataclass(frozen=True, slots=True)
class Answer:
    """Features of questions.

    Args:
        features: One row per question, in order.
        gaps: Which rows are NULL because something they need is not materialized.
    """

    features: pa.Table
    gaps: Mask


def features_at(stored: StoredRows, questions: Questions, names: Sequence[str], *, allow_gaps: bool = False) -> Answer:
    """Return some features of each question.

    Args:
        stored: Where tiles or rows come from.
        questions: Keys and times.
        names: Of the features that are asked for.
        allow_gaps: Whether a question that needs unmaterialized intervals is answered with NULL instead of refused.

    Raises:
        NotMaterialized: Something needed is not materialized, and gaps are not allowed.
    """
    timing = Timing.of(stored.view)
    edges = timing.edge(questions.times_us)
    ask = ~questions.no_time
    if not stored.view.is_aggregate:
        return _rows_at(stored, questions, edges, ask, names, allow_gaps)
    if timing.first_edge_us is not None:
        ask &= edges >= timing.first_edge_us
    return _aggregates_at(stored, questions, edges, ask, names, allow_gaps)


def needed_span(features: Iterable[AggregateFeature], edge: Any) -> tuple[Any, Any]:
    """Return the smallest span `[start, end)` that holds all windows at an edge; integers and arrays alike.

    It is empty, `end <= start`, where every window is.
    """
    spans = distinct_spans(features)
    start = edge + min((s.begin_us for s in spans if s.begin_us is not None), default=0)
    lifetimes = [FIRST_US if s.since_us is None else s.since_us for s in spans if s.begin_us is None]
    start = np.minimum(start, min(lifetimes)) if lifetimes else start
    return start, edge + max(s.end_us for s in spans)


def asked_aggregates(view: FeatureView, names: Iterable[str]) -> tuple[AggregateFeature, ...]:
    """Return the aggregates that answer some features; a list of secondary keys comes with any feature of its span."""
    wanted = set(names)
    chosen = [feature for feature in view.aggregates if feature.name in wanted]
    for span in distinct_spans(view.aggregates) if view.secondary_key else ():
        is_asked = view.secondary_key and secondary_keys_name(view.secondary_key.name, span) in wanted
        if is_asked and not any(span in feature.spans for feature in chosen):
            chosen.append(next(feature for feature in view.aggregates if span in feature.spans))
    return tuple(chosen)


def rolled_up(view: FeatureView, tiles: Tiles, probes: pa.Table, features: Sequence[AggregateFeature]) -> pa.Table:
    """Return features as of each probe's right edge: lists of secondary keys first, if the view has such a key.

    Args:
        view: The feature view.
        tiles: What the windows are combined from.
        probes: Columns `view.key_names` and `_edge`; where the edge is NULL, all features are NULL.
        features: The features that are asked for.
    """
    secondary_key = None if view.secondary_key is None else view.secondary_key.name
    return roll_up_in_buckets(
        tiles.table,
        probes,
        keys=view.key_names,
        tile_us=tiles.tile_us,
        features=features,
        secondary_key=secondary_key,
    )


def _aggregates_at(
    stored: StoredRows, questions: Questions, edges: Times, ask: Mask, names: Sequence[str], allow_gaps: bool
) -> Answer:
    features = asked_aggregates(stored.view, names)
    starts, ends = needed_span(features, edges)
    gaps = _gaps(stored, questions, starts, ends, ask, allow_gaps)
    ask = ask & ~gaps
    start, end = (int(starts[ask].min()), int(ends[ask].max())) if ask.any() else (0, 0)
    probes = questions.keys.append_column(EDGE, to_column(edges, ask, TIMESTAMP))
    with stored.tiles_asked(start, end, features, probes) as tiles:
        found = rolled_up(stored.view, tiles, probes, features)
    return Answer(found.select(list(names)), gaps)


def _gaps(stored: StoredRows, questions: Questions, starts: Times, ends: Times, ask: Mask, allow_gaps: bool) -> Mask:
    """Return which questions need something that is not materialized; refuse them unless gaps are allowed."""
    gaps = stored.gaps(starts, ends, ask)
    if gaps.any() and not allow_gaps:
        stored.refuse(starts[gaps], ends[gaps], questions.spine_rows(gaps))
    return gaps


def earliest(timing: Timing, edge: Any) -> Any:
    """Return the first timestamp that a row may have to be alive at an edge; integers and arrays alike."""
    oldest = edge - timing.ttl_us if timing.ttl_us is not None else FIRST_US
    return oldest if timing.start_us is None else np.maximum(oldest, timing.start_us)


def _rows_at(
    stored: StoredRows, questions: Questions, edges: Times, ask: Mask, names: Sequence[str], allow_gaps: bool
) -> Answer:
    """Answer with the newest row that is visible and alive: `edge - ttl <= timestamp < edge`, and not before the start.

    A row is visible from `floor(ts, schedule) + schedule + delay`, which is not after T exactly when `ts < edge`; it is
    alive while T is before `floor(ts + ttl, schedule) + schedule + delay`, exactly when `ts + ttl >= edge`. For a
    stream, whose rows are seen at once, the edge is one microsecond after T, and the same holds.
    """
    view, timing = stored.view, Timing.of(stored.view)
    oldest = np.broadcast_to(earliest(timing, edges), edges.shape)
    asked = ask & (oldest < edges)
    columns = list(dict.fromkeys([*view.key_names, view.timestamp_field, *names]))
    span = (int(oldest[asked].min()), int(edges[asked].max())) if asked.any() else (0, 0)
    rows = stored.rows(*span, columns)
    probes = questions.keys.append_column(EDGE, to_column(edges - 1, asked, TIMESTAMP))
    found = latest_positions(rows, probes, keys=view.key_names, row_time=view.timestamp_field, probe_time=EDGE)
    row_times = microseconds(rows[view.timestamp_field])[0]
    times = row_times[found] if len(row_times) else np.full(len(found), FIRST_US)
    found = np.where((found >= 0) & (times >= oldest), found, -1)
    # a newer row may be missing between the row found and the edge
    gaps = _gaps(stored, questions, np.where(found >= 0, times, oldest), edges, asked, allow_gaps)
    positions = to_column(found, (found >= 0) & ~gaps, pa.int64())
    features = rows.select(list(names)).take(positions)
    types = {feature.name: feature for feature in view.features}
    return Answer(features.cast(arrow_schema(types[name] for name in names)), gaps)
