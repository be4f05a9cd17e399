"""The brute-force oracle: what the answers are, by a double loop over raw events.

It knows nothing of tiles, prefix sums or stores, uses exact fractions, and takes and returns plain Python values.
Offline, online and from-source answers are all judged by it. An event is a dict of columns; a join key equals itself,
None included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOTHING = timedelta(0)
INTEGER_BITS = {"Int32": 31, "Int64": 63}
LISTS = ("last_n", "last_distinct", "first_n", "first_distinct")

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """One feature of an aggregate view; `dtype` is the column's declared type by name."""

    column: str
    function: str
    size: timedelta
    offset: timedelta = NOTHING
    dtype: str = "Float64"


@dataclass(frozen=True, kw_only=True)
class AggregateView:
    """What a batch view with aggregates declares, as far as answers depend on it."""

    aggregates: Sequence[Aggregate]
    batch_schedule: timedelta
    data_delay: timedelta = NOTHING
    feature_start_time: datetime | None = None
    timestamp_field: str = "ts"


@dataclass(frozen=True, kw_only=True)
class LatestView:
    """What a batch view without aggregates declares, as far as answers depend on it."""

    features: Sequence[str]
    batch_schedule: timedelta
    data_delay: timedelta = NOTHING
    ttl: timedelta | None = None
    feature_start_time: datetime | None = None
    timestamp_field: str = "ts"


def utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def floor(time: datetime, width: timedelta) -> datetime:
    return EPOCH + (utc(time) - EPOCH) // width * width


def batch_edge(time: datetime, view: AggregateView) -> datetime:
    """The end of the last batch job finished at `time`."""
    return floor(utc(time) - view.data_delay, view.batch_schedule)


def visible_from(time: datetime, view: LatestView) -> datetime:
    """The moment a row with this timestamp can be seen."""
    return floor(time, view.batch_schedule) + view.batch_schedule + view.data_delay


def of_key(events: Iterable[Event], key: Event) -> list[Event]:
    return [event for event in events if all(event[column] == value for column, value in key.items())]


def aggregate_at(events: Iterable[Event], key: Event, time: datetime | None, view: AggregateView) -> list[Any]:
    """The features of `key` as a spine row at `time` gets them, in the order of `view.aggregates`."""
    edge = None if time is None else batch_edge(time, view)
    return aggregate_as_of(events, key, edge, view)


def aggregate_as_of(events: Iterable[Event], key: Event, edge: datetime | None, view: AggregateView) -> list[Any]:
    """The features of `key` for windows whose right edge is `edge`."""
    start = view.feature_start_time
    if edge is None or (start is not None and edge < utc(start)):
        return [None for _ in view.aggregates]
    mine = of_key(events, key)
    answers = []
    for feature in view.aggregates:
        first, end = edge - feature.size + feature.offset, edge + feature.offset
        inside = [event for event in mine if first <= utc(event[view.timestamp_field]) < end]
        inside.sort(key=lambda event: utc(event[view.timestamp_field]))
        values = [event[feature.column] for event in inside if event[feature.column] is not None]
        answers.append(combine(feature.function, values, feature.dtype))
    return answers


def latest_at(events: Iterable[Event], key: Event, time: datetime | None, view: LatestView) -> list[Any]:
    """The features of `key` as a spine row at `time` gets them: the newest visible row, unless it has expired."""
    row = latest_row(events, key, time, view)
    return [None if row is None else row[feature] for feature in view.features]


def latest_row(events: Iterable[Event], key: Event, time: datetime | None, view: LatestView) -> Event | None:
    """The event that a spine row at `time` sees, None where there is none or the newest one has expired."""
    if time is None:
        return None
    time, newest, newest_order = utc(time), None, None
    for event in of_key(events, key):
        at = utc(event[view.timestamp_field])
        if view.feature_start_time is not None and at < utc(view.feature_start_time):
            continue
        order = (visible_from(at, view), at)
        if order <= (time, time) and (newest_order is None or order >= newest_order):
            newest, newest_order = event, order
    if newest is None or view.ttl is None:
        return newest
    return newest if time < visible_from(utc(newest[view.timestamp_field]) + view.ttl, view) else None


def combine(
    function: str, values: Sequence[Any], dtype: str = "Float64", n: int = 0, *, percentile: float = 0.5
) -> Any:
    """What a function answers for the non-null values of a window, in time order.

    Approximate functions answer a `Roughly` or a `Ranked`, whose `holds` judges an estimate.
    """
    if function in LISTS:
        return listed(function, values, n)
    if function == "count":
        return len(values)
    if function == "approx_count_distinct":
        return Roughly(len(distinct(values)))
    if not values:
        return None
    if function == "approx_percentile":
        return Ranked(tuple(values), percentile)
    if function == "last":
        return values[-1]
    if function in ("min", "max"):
        return extreme(function, values)
    if function == "sum":
        return fitting(values, dtype) if dtype in INTEGER_BITS else exact_sum(values)
    if function == "mean":
        return exact_sum(values, divisor=len(values))
    return spread(function, values)


def listed(function: str, values: Sequence[Any], n: int) -> list[Any]:
    """The n first or last values in time order; of distinct ones, each at its first or its last place."""
    if function == "first_n":
        return list(values[:n])
    if function == "last_n":
        return list(values[-n:])
    if function == "first_distinct":
        return distinct(values)[:n]
    return distinct(list(reversed(values)))[:n][::-1]


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, where it is first met; NaN equals itself."""
    met: list[Any] = []
    for value in values:
        if not any(same_value(value, other) for other in met):
            met.append(value)
    return met


def same_value(one: Any, other: Any) -> bool:
    return bool(one == other) or (one is not None and other is not None and one != one and other != other)


@dataclass(frozen=True)
class Roughly:
    """An exact number of distinct values, by which an estimate is judged."""

    count: int

    def holds(self, answer: Any, tolerance: float = 0.2) -> bool:
        return isinstance(answer, int) and abs(answer - self.count) <= max(2.0, tolerance * self.count)


@dataclass(frozen=True)
class Ranked:
    """The values of a window, by which an estimate of a percentile is judged: its rank may be a little off."""

    values: tuple[float, ...]
    percentile: float

    def holds(self, answer: Any, tolerance: float = 0.05) -> bool:
        if not isinstance(answer, float | int):
            return False
        # NaN stands above every other number; an estimate lies between two neighbours, so one place more is allowed
        ranks, count = sorted((math.isnan(v), v if not math.isnan(v) else 0.0) for v in self.values), len(self.values)
        slack = tolerance + 1.0 / count
        low = ranks[max(0, math.floor((self.percentile - slack) * count))]
        high = ranks[min(count - 1, max(0, math.ceil((self.percentile + slack) * count)))]
        nearly = 1e-9 * max(abs(low[1]), abs(high[1]), 1.0) if math.isfinite(low[1]) and math.isfinite(high[1]) else 0.0
        if high[0] or math.isinf(high[1]) or math.isinf(low[1]):  # between a number and no number lies anything
            return math.isnan(answer) or answer >= low[1]
        return low[1] - nearly <= answer <= high[1] + nearly


def extreme(function: str, values: Sequence[float]) -> float:
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers or (function == "max" and len(numbers) < len(values)):
        return math.nan
    return min(numbers) if function == "min" else max(numbers)


def fitting(values: Sequence[int], dtype: str) -> int:
    total, bits = sum(values), INTEGER_BITS[dtype]
    if not -(1 << bits) <= total < 1 << bits:
        raise OverflowError(f"the sum does not fit {dtype}")
    return total


def exact_sum(values: Sequence[float], divisor: int = 1) -> float:
    special = {repr(value) for value in values if not math.isfinite(value)}
    if special:
        return float(special.pop()) if len(special) == 1 else math.nan
    return rounded(sum(map(Fraction, values)) / divisor)


def spread(function: str, values: Sequence[float]) -> float | None:
    sample = function in ("var_samp", "variance", "stddev_samp", "stddev")
    if sample and len(values) == 1:
        return None
    if not all(map(math.isfinite, values)):
        return math.nan
    mean = sum(map(Fraction, values)) / len(values)
    squares = sum((Fraction(value) - mean) ** 2 for value in values)
    variance = rounded(squares / (len(values) - sample))
    return math.sqrt(variance) if function.startswith("stddev") else variance


def rounded(value: Fraction | int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
