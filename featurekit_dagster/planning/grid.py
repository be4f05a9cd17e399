"""The clock rules of a feature view: which interval a time belongs to, and when a row or a window may be seen.

Times are integer microseconds since the Unix epoch; every function takes Python integers and NumPy arrays alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import duration_us, floor_time, to_us


def floor_us(us: Any, width: int) -> Any:
    """Return the largest multiple of `width` not after `us`; right for times before 1970 too."""
    return us - us % width


def ceil_us(us: Any, width: int) -> Any:
    """Return the smallest multiple of `width` not before `us`."""
    return us + -us % width


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When what a feature view knows can be seen, in microseconds.

    A batch view sees whole batch intervals, `data_delay` after they end; a stream view with interval aggregates sees
    whole tiles; every other stream view, and a feature table, sees an event at its own instant.

    Args:
        grid_us: Distance of the right edges that a read can have: the batch schedule, the tile, or 1.
        delay_us: How long after an edge it may be seen; the largest data delay of the sources of a batch view, else 0.
        closed_us: 1 where an event at the very time asked for is seen, else 0.
        tile_us: Tile size, 1 where every event is a tile of its own; None for plain features.
        ttl_us: Time to live; None is for ever.
        start_us: Feature start time; None when the view is not materialized.
    """

    grid_us: int
    delay_us: int = 0
    closed_us: int = 0
    tile_us: int | None = None
    ttl_us: int | None = None
    start_us: int | None = None

    @classmethod
    def of(cls, view: FeatureView) -> Timing:
        """Return the settings of a view."""
        tile_us, instant = view.tile_us, view.is_seen_at_once and not view.is_tiled
        stream_us = 1 if tile_us is None or instant else tile_us
        return cls(
            grid_us=stream_us if view.is_seen_at_once else duration_us(view.batch_schedule),
            delay_us=0 if view.is_seen_at_once else duration_us(view.data_delay),
            closed_us=int(instant),
            tile_us=tile_us,
            ttl_us=None if view.ttl is None else duration_us(view.ttl),
            start_us=None if view.feature_start_time is None else to_us(view.feature_start_time),
        )

    @property
    def first_edge_us(self) -> int | None:
        """The earliest right edge at which aggregates are shown, on the grid or not; None when there is no limit."""
        return None if self.start_us is None else self.start_us + self.closed_us

    def effective(self, us: Any) -> Any:
        """Return when a row with this timestamp becomes visible: `floor(ts, schedule) + schedule + delay`, or at once.

        A row exactly on an edge belongs to the interval it opens, so it becomes visible one schedule later.
        """
        return floor_us(us, self.grid_us) + (self.grid_us + self.delay_us - self.closed_us)

    def edge(self, us: Any) -> Any:
        """Return the right edge as of a time: the end of the last finished interval, `floor(t - delay, schedule)`.

        Aggregate windows end there; a row without aggregates is visible when its timestamp is before it. Where events
        are seen at their own instant, the edge is one microsecond after the time.
        """
        return floor_us(us + (self.closed_us - self.delay_us), self.grid_us)

    def visible(self, edge: Any) -> Any:
        """Return the first time that has this right edge; `edge(visible(e)) == e` for edges on the grid."""
        return edge + (self.delay_us - self.closed_us)

    def expires(self, us: Any) -> Any:
        """Return the first instant at which a row with this timestamp is no longer served: `effective(ts + ttl)`.

        Raises:
            ValueError: The view has no ttl.
        """
        if self.ttl_us is None:
            raise ValueError("a view without ttl never expires")
        return self.effective(us + self.ttl_us)


def last_ready_end(view: FeatureView, now: datetime) -> datetime:
    """Return the end of the newest interval that a schedule may run: `floor(now - data_delay, batch_schedule)`."""
    return floor_time(now - view.data_delay, view.batch_schedule)


def last_complete_end(view: FeatureView, now: datetime) -> datetime:
    """Return the end of the newest interval that a person may materialize: `floor(now, batch_schedule)`.

    Source: Manually Trigger Materialization (data_delay does not impact when the job can be triggered).
    """
    return floor_time(now, view.batch_schedule)
