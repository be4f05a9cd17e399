"""The clock rules of a feature view: which interval a time belongs to, and when a row or a window may be seen.

Times are integer microseconds since the Unix epoch; every function takes Python integers and NumPy arrays alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import Interval, duration_us, floor_time, to_us


def floor_us(us: Any, width: int) -> Any:
    """Return the largest multiple of `width` not after `us`; right for times before 1970 too."""
    return us - us % width


def ceil_us(us: Any, width: int) -> Any:
    """Return the smallest multiple of `width` not before `us`."""
    return us + -us % width


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The time settings of a batch feature view, in microseconds.

    Args:
        schedule_us: Width of one batch interval.
        delay_us: Largest data delay of the sources.
        tile_us: Tile size; None for plain features.
        ttl_us: Time to live; None is for ever.
        start_us: Feature start time; None when the view is not materialized.
    """

    schedule_us: int
    delay_us: int
    tile_us: int | None = None
    ttl_us: int | None = None
    start_us: int | None = None

    @classmethod
    def of(cls, view: FeatureView) -> Timing:
        """Return the settings of a view."""
        return cls(
            schedule_us=duration_us(view.batch_schedule),
            delay_us=duration_us(view.data_delay),
            tile_us=None if view.aggregation_interval is None else duration_us(view.aggregation_interval),
            ttl_us=None if view.ttl is None else duration_us(view.ttl),
            start_us=None if view.feature_start_time is None else to_us(view.feature_start_time),
        )

    def effective(self, us: Any) -> Any:
        """Return when a row with this timestamp becomes visible: `floor(ts, schedule) + schedule + delay`.

        A row exactly on an edge belongs to the interval it opens, so it becomes visible one schedule later.
        """
        return floor_us(us, self.schedule_us) + (self.schedule_us + self.delay_us)

    def edge(self, us: Any) -> Any:
        """Return the end of the last batch interval that is finished at this time: `floor(t - delay, schedule)`.

        It is the right edge of aggregate windows; a row without aggregates is visible when its timestamp is before it.
        """
        return floor_us(us - self.delay_us, self.schedule_us)

    def expires(self, us: Any) -> Any:
        """Return the first instant at which a row with this timestamp is no longer served: `effective(ts + ttl)`.

        Raises:
            ValueError: The view has no ttl.
        """
        if self.ttl_us is None:
            raise ValueError("a view without ttl never expires")
        return self.effective(us + self.ttl_us)


def ready_time(view: FeatureView, interval: Interval) -> datetime:
    """Return when the sources of an interval are complete: its end plus the data delay."""
    return interval.end + view.data_delay


def last_ready_end(view: FeatureView, now: datetime) -> datetime:
    """Return the end of the newest interval that a schedule may run: `floor(now - data_delay, batch_schedule)`."""
    return floor_time(now - view.data_delay, view.batch_schedule)


def last_complete_end(view: FeatureView, now: datetime) -> datetime:
    """Return the end of the newest interval that a person may materialize: `floor(now, batch_schedule)`.

    Source: Manually Trigger Materialization (data_delay does not impact when the job can be triggered).
    """
    return floor_time(now, view.batch_schedule)
