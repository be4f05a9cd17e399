"""Which tiles a view needs online: how large they may be, and how far back they reach.

Online, the windows of a batch view only ever end at the end of a batch interval. So tiles between two such ends are
always counted together, as long as no window begins or ends among them, and may be one tile.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from math import gcd

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.windows import Span
from featurekit_dagster.intervals import IntervalSet, duration_us, to_us
from featurekit_dagster.planning.grid import Timing, floor_us

PATIENCE = timedelta(hours=1)
"""For how long after an edge was passed the records that it needs are kept: clocks differ, and requests take time."""


def largest_tile_us(view: FeatureView) -> int | None:
    """Return the largest tile size that divides the schedule and all distances of window ends, in microseconds.

    The windows of a stream end anywhere on its own grid, so its tiles stay as they are; None without aggregates.
    """
    if view.tile_us is None or view.is_stream:
        return view.tile_us
    return gcd(duration_us(view.batch_schedule), *(us for span in _spans(view) for us in _ends(span)))


def first_tile_us(view: FeatureView) -> int | None:
    """Return the tile size with which a view begins online: its own, or the largest where it stores events."""
    return largest_tile_us(view) if view.compaction_enabled else view.tile_us


def is_whole(span: Span, tile_us: int) -> bool:
    """Tell whether a window, and with it its edge, begins and ends between tiles of a size."""
    return not any(us % tile_us for us in _ends(span))


def needed_since_us(view: FeatureView, now: datetime, online: IntervalSet, offline: IntervalSet) -> int | None:
    """Return from when on records may be asked for online, in microseconds; None where all may be, or none is known.

    Aggregates need the tiles from the beginning of the widest window on, other features the rows within their ttl. A
    stream's are kept until the offline store has them, so that both can be compared.

    Args:
        view: The feature view.
        now: The time.
        online: What is materialized online.
        offline: What is materialized offline.
    """
    timing = Timing.of(view)
    edge_us = timing.edge(to_us(now - PATIENCE))
    if not view.is_aggregate:
        return None if timing.ttl_us is None else edge_us - timing.ttl_us
    if not view.is_stream:
        ended = newest_end(((i.start_us, i.end_us) for i in online), edge_us, timing.grid_us)
    elif view.inputs and view.offline:
        ended = newest_end(((i.start_us, i.end_us) for i in offline), edge_us, timing.grid_us)
    else:
        ended = edge_us
    return None if ended is None else min(_begin_us(span, ended) for span in _spans(view))


def newest_end(spans: Iterable[tuple[int, int]], clock_edge: int, grid_us: int) -> int | None:
    """Return the end of the newest covered interval on the grid that is not after the clock's edge.

    Args:
        spans: What is covered, as disjoint `[start, end)` pairs in microseconds.
        clock_edge: The clock's edge.
        grid_us: Width of the grid.
    """
    before = [(start, floor_us(min(end, clock_edge), grid_us)) for start, end in spans if start < clock_edge]
    starts = [start for start, _ in before]
    return max((end for _, end in before if any(start < end for start in starts)), default=None)


def _spans(view: FeatureView) -> Iterable[Span]:
    return dict.fromkeys(span for feature in view.aggregates for span in feature.spans)


def _ends(span: Span) -> tuple[int, int]:
    """Return the distances of a window's ends from the edge; of a lifetime the time at which it begins."""
    return (span.begin_us if span.begin_us is not None else span.since_us or 0), span.end_us


def _begin_us(span: Span, edge_us: int) -> int:
    end_us = edge_us + span.end_us
    begin_us = span.since_us if span.begin_us is None else edge_us + span.begin_us
    return end_us if begin_us is None else min(begin_us, end_us)
