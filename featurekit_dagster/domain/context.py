"""What a transformation is told about the interval it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from featurekit_dagster.errors import TectonValidationError
from featurekit_dagster.intervals import EPOCH, Interval

_MICROSECOND = timedelta(microseconds=1)
_UNBOUNDED = Interval(EPOCH, datetime(2100, 1, 1))  # noqa: DTZ001 - read as UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterializationContext:
    """The interval `[start_time, end_time)` that a transformation is asked for.

    Args:
        start_time: First instant inside, naive UTC (the seeds' listings compare it with naive columns).
        end_time: First instant after, naive UTC.
        batch_schedule: The view's schedule.
        secrets: Values the user's function may need; never logged.
        resources: Objects the user's function may need.

    Source: Custom ETL Features with Incremental Backfills, Materialization Context.
    """

    start_time: datetime
    end_time: datetime
    batch_schedule: timedelta
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    resources: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def for_interval(cls, interval: Interval | None, batch_schedule: timedelta) -> MaterializationContext:
        """Return the context of an interval; without one it spans 1970-01-01 to 2100-01-01."""
        interval = interval or _UNBOUNDED
        return cls(
            start_time=interval.start.replace(tzinfo=None),
            end_time=interval.end.replace(tzinfo=None),
            batch_schedule=batch_schedule,
        )

    @property
    def end_time_inclusive(self) -> datetime:
        """The last microsecond inside, naive UTC."""
        return self.end_time - _MICROSECOND

    def time_filter_sql(self, timestamp_expr: str) -> str:
        """Return a SQL condition that keeps `start_time <= timestamp_expr < end_time`."""
        start, end = (f"TIMESTAMP '{t.isoformat(sep=' ')}'" for t in (self.start_time, self.end_time))
        return f"({timestamp_expr} >= {start} AND {timestamp_expr} < {end})"

    @property
    def feature_start_time(self) -> datetime:
        """Old name of `start_time`."""
        return self.start_time

    @property
    def feature_end_time(self) -> datetime:
        """Old name of `end_time`."""
        return self.end_time

    @property
    def feature_start_time_string(self) -> str:
        """`start_time` as ISO text with a space."""
        return self.start_time.isoformat(sep=" ")

    @property
    def feature_end_time_string(self) -> str:
        """`end_time` as ISO text with a space."""
        return self.end_time.isoformat(sep=" ")

    def feature_time_filter_sql(self, timestamp_expr: str) -> str:
        """Old name of `time_filter_sql`."""
        return self.time_filter_sql(timestamp_expr)


class UnboundContext:
    """What `materialization_context()` returns: a mark on the parameter that receives the real context."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise TectonValidationError(
            f"materialization_context().{name} was read outside a job; make it the default value of a parameter "
            "(context=materialization_context()) and read that parameter"
        )


def materialization_context() -> Any:
    """Mark a parameter of a feature view's function as the one that receives the `MaterializationContext`.

    Source: Custom ETL Features with Incremental Backfills, Materialization Context.
    """
    return UnboundContext()
