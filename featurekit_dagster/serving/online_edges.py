"""Up to when an online read sees a view, and whether all is there that its features need.

A batch view ends with the newest interval that was materialized. A stream view ends at the clock, or at the newest
event; what its stream brings is all there from the stream's start on, what came before is as far as batch jobs go. A
feature table ends at the clock too, and what was ingested is all there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from featurekit_dagster.domain.feature_view import AggregationLeadingEdge, FeatureView
from featurekit_dagster.planning.grid import Timing
from featurekit_dagster.planning.online_tiles import newest_end
from featurekit_dagster.serving.online_windows import WindowedFeatures
from featurekit_dagster.stores.online import OnlineSnapshot

Spans = tuple[tuple[int, int], ...]
_FIRST_US, _LAST_US = -(1 << 62), 1 << 62


@dataclass(frozen=True, slots=True)
class Edge:
    """What a read at one moment may see of a view.

    Args:
        us: Right edge; None when nothing is covered.
        served_us: The same; None too before the features begin.
        since_us: First tile that a window may hold; of no meaning without aggregates.
        known: Per aggregate feature, whether everything it needs is covered, in tiles that it can be made of.
        complete: Whether that is so for all of them.
        effective_us: The time as of which a read offline answers the same.
        times: The same, once per feature.
        spans: What is covered, as ascending, disjoint `[start, end)` pairs in microseconds.
    """

    us: int | None
    served_us: int | None = None
    since_us: int = 0
    known: tuple[bool, ...] = ()
    complete: bool = True
    effective_us: int | None = None
    times: tuple[int | None, ...] = ()
    spans: Spans = ()


class Edges(Protocol):
    """Finds the edge of reads of one view."""

    def at(self, snapshot: OnlineSnapshot, now_us: int) -> Edge:
        """Return the edge for what is stored and the time."""
        ...


def edges_of(view: FeatureView, windows: WindowedFeatures | None, count: int) -> Edges:
    """Return what finds the edges of a view.

    Args:
        view: The feature view.
        windows: Its features; None without aggregates.
        count: How many features are read.
    """
    return (_StreamEdges if view.is_seen_at_once else _BatchEdges)(view, windows, count)


class _Finder:
    """What both kinds of views share."""

    def __init__(self, view: FeatureView, windows: WindowedFeatures | None, count: int) -> None:
        self._view, self._windows, self._count = view, windows, count
        self._timing = Timing.of(view)

    def _nothing(self) -> Edge:
        return Edge(None, times=(None,) * self._count)

    def _edge(self, spans: Spans, edge: int, effective_us: int) -> Edge:
        first, times = self._timing.first_edge_us, (effective_us,) * self._count
        if self._windows is None:
            return Edge(edge, edge, effective_us=effective_us, times=times, spans=spans)
        needs = zip(self._windows.are_whole, self._windows.needs(edge), strict=True)
        known = tuple(whole and all(covers(spans, *bounds) for bounds in each) for whole, each in needs)
        served = edge if first is None or edge >= first else None
        since = self._windows.since_us(edge)
        return Edge(edge, served, since, known, all(known), effective_us, times, spans)


class _BatchEdges(_Finder):
    """The end of the newest covered interval not after the clock's."""

    def __init__(self, view: FeatureView, windows: WindowedFeatures | None, count: int) -> None:
        super().__init__(view, windows, count)
        # one value, as threads may read and set it at the same time
        self._last: tuple[Any, int, int, Edge] = (None, 0, 0, Edge(None))

    def at(self, snapshot: OnlineSnapshot, now_us: int) -> Edge:
        """Return the edge; computed again only when the coverage or the clock's edge has changed."""
        spans = snapshot.coverage_us
        known_spans, since, until, edge = self._last
        if known_spans is spans and since <= now_us < until:
            return edge
        clock_edge = self._timing.edge(now_us)
        since = clock_edge + self._timing.delay_us
        found = newest_end(spans, clock_edge, self._timing.grid_us)
        edge = self._nothing() if found is None else self._edge(spans, found, found)
        self._last = (spans, since, since + self._timing.grid_us, edge)
        return edge


class _StreamEdges(_Finder):
    """The clock, or the newest event of the stream.

    Source: semantics of `AggregationLeadingEdge`; a stream without batch side has nothing but the stream,
    as a feature table has nothing but what was ingested.
    """

    def __init__(self, view: FeatureView, windows: WindowedFeatures | None, count: int) -> None:
        super().__init__(view, windows, count)
        self._follows_events = view.aggregation_leading_edge is AggregationLeadingEdge.LATEST_EVENT_TIME
        self._has_batch_side = bool(view.inputs)
        nothing_yet: Spans = ((_FIRST_US, _LAST_US),) if view.is_table else ()
        self._last_spans: tuple[Spans, int | None, int | None, Spans] = ((), None, None, nothing_yet)
        self._last: tuple[Any, int, Edge] = (None, 0, Edge(None))

    def at(self, snapshot: OnlineSnapshot, now_us: int) -> Edge:
        """Return the edge; computed again only when it or the coverage has changed."""
        progress, timing = snapshot.stream, self._timing
        batch = snapshot.coverage_us
        spans = self._covered(batch, progress.start_us, snapshot.trimmed_us)
        if not spans:
            return self._nothing()
        if not self._follows_events:
            edge = timing.edge(now_us)
        elif progress.newest_us is not None:
            edge = timing.edge(progress.newest_us)
        else:
            ended = newest_end(batch, timing.edge(now_us), timing.grid_us)
            if ended is None:
                return self._nothing()
            edge = ended
        known_spans, known_edge, known = self._last
        if known_spans is spans and known_edge == edge:
            return known
        found = self._edge(spans, edge, timing.visible(edge))
        self._last = (spans, edge, found)
        return found

    def _covered(self, batch: Spans, start_us: int | None, trimmed_us: int | None) -> Spans:
        """Return what batch jobs and the stream cover together, without what was trimmed away."""
        known_batch, known_start, known_trimmed, spans = self._last_spans
        if known_batch is batch and known_start == start_us and known_trimmed == trimmed_us:
            return spans
        first_us = _FIRST_US if trimmed_us is None else trimmed_us
        if not self._has_batch_side:
            spans = ((first_us, _LAST_US),)
        elif start_us is None:
            spans = batch
        else:
            begin_us = max(start_us, first_us)
            before = tuple((start, end) for start, end in batch if end < begin_us)
            joined = min([begin_us, *(start for start, end in batch if end >= begin_us)])
            spans = (*before, (joined, _LAST_US))
        self._last_spans = (batch, start_us, trimmed_us, spans)
        return spans


def covers(spans: Spans, start: int, end: int) -> bool:
    """Tell whether `[start, end)` is covered; an empty one always is."""
    return start >= end or any(s <= start and end <= e for s, e in spans)
