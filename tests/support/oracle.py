"""The brute-force oracle: what the answers are, by a double loop over raw events.

It knows nothing of tiles, prefix sums or stores, uses exact fractions, and takes and returns plain Python values.
Offline, online and from-source answers are all judged by it. An event is a dict of columns; a join key equals itself,
None included. Events of equal time count in the order in which they are given.
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
Timed = tuple[datetime, Event]
Stretch = tuple[timedelta | None, timedelta]
"""Size and offset of one window; a window without a size begins at the view's lifetime start."""


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """One feature of an aggregate view; `dtype` is the column's declared type by name.

    Without a size it looks back to the view's `lifetime_start_time`. With `series_start` it is a series of windows.
    """

    column: str
    function: str
    size: timedelta | None = None
    offset: timedelta = NOTHING
    dtype: str = "Float64"
    n: int = 0
    percentile: float = 0.5
    precision: int = 8
    series_start: timedelta | None = None
    series_end: timedelta = NOTHING
    step: timedelta | None = None


@dataclass(frozen=True, kw_only=True)
class AggregateView:
    """What a view with aggregates declares, as far as answers depend on it.

    `stream` is None of a batch view, else `"TIME_INTERVAL"`, which needs the `tile`, or `"CONTINUOUS"`.
    """

    aggregates: Sequence[Aggregate]
    batch_schedule: timedelta
    data_delay: timedelta = NOTHING
    feature_start_time: datetime | None = None
    lifetime_start_time: datetime | None = None
    timestamp_field: str = "ts"
    secondary_key: str | None = None
    stream: str | None = None
    tile: timedelta | None = None


@dataclass(frozen=True, kw_only=True)
class LatestView:
    """What a view without aggregates declares, as far as answers depend on it."""

    features: Sequence[str]
    batch_schedule: timedelta
    data_delay: timedelta = NOTHING
    ttl: timedelta | None = None
    feature_start_time: datetime | None = None
    timestamp_field: str = "ts"
    stream: bool = False


def utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def floor(time: datetime, width: timedelta) -> datetime:
    return EPOCH + (utc(time) - EPOCH) // width * width


def edge_at(time: datetime, view: AggregateView) -> datetime:
    """The right edge of windows as of `time`: the end of the last finished job, of the last tile, or `time` itself."""
    if view.stream == "CONTINUOUS":
        return utc(time)
    if view.stream == "TIME_INTERVAL":
        assert view.tile is not None
        return floor(time, view.tile)
    return floor(utc(time) - view.data_delay, view.batch_schedule)


def visible_from(time: datetime, view: LatestView) -> datetime:
    """The moment a row with this timestamp can be seen."""
    if view.stream:
        return utc(time)
    return floor(time, view.batch_schedule) + view.batch_schedule + view.data_delay


def of_key(events: Iterable[Event], key: Event) -> list[Event]:
    return [event for event in events if all(event[column] == value for column, value in key.items())]


def aggregate_at(events: Iterable[Event], key: Event, time: datetime | None, view: AggregateView) -> list[Any]:
    """The features of `key` as a spine row at `time` gets them: the lists of secondary keys, then all aggregates."""
    return aggregate_as_of(events, key, None if time is None else edge_at(time, view), view)


def aggregate_as_of(events: Iterable[Event], key: Event, edge: datetime | None, view: AggregateView) -> list[Any]:
    """The features of `key` for windows whose right edge is `edge`."""
    start = view.feature_start_time
    stretches = distinct_stretches(view)
    if edge is None or (start is not None and edge < utc(start)):
        return [None for _ in (*(stretches if view.secondary_key else ()), *view.aggregates)]
    mine = timed(of_key(events, key), view)
    if view.secondary_key is None:
        return [feature_over(mine, edge, feature, view) for feature in view.aggregates]
    listed_keys = {stretch: keys_over(mine, edge, stretch, view) for stretch in stretches}
    answers: list[Any] = [listed_keys[stretch] for stretch in stretches]
    for feature in view.aggregates:
        (stretch,) = stretches_of(feature)
        parts = [[(at, e) for at, e in mine if e[view.secondary_key] == part] for part in listed_keys[stretch]]
        answers.append([feature_over(part, edge, feature, view) for part in parts])
    return answers


def timed(events: Iterable[Event], view: AggregateView) -> list[Timed]:
    """Events with their times, in order of time."""
    return sorted(((utc(event[view.timestamp_field]), event) for event in events), key=lambda pair: pair[0])


def feature_over(mine: Sequence[Timed], edge: datetime, feature: Aggregate, view: AggregateView) -> Any:
    answers = []
    for stretch in stretches_of(feature):
        inside = in_window(mine, edge, stretch, view)
        values = [event[feature.column] for event in inside if event[feature.column] is not None]
        answer = combine(feature.function, values, feature.dtype, feature.n, percentile=feature.percentile)
        answers.append(Roughly(answer.count, feature.precision) if isinstance(answer, Roughly) else answer)
    return answers if feature.series_start is not None else answers[0]


def stretches_of(feature: Aggregate) -> list[Stretch]:
    """The windows of a feature, oldest first."""
    if feature.series_start is None or feature.size is None:
        return [(feature.size, feature.offset)]
    stretches, start = [], feature.series_start
    while start + feature.size <= feature.series_end:
        stretches.append((feature.size, start + feature.size))
        start += feature.step or feature.size
    return stretches


def distinct_stretches(view: AggregateView) -> list[Stretch]:
    """The distinct windows of all features: shortest first, of equal ones the nearest first, lifetimes last."""
    found = {stretch for feature in view.aggregates for stretch in stretches_of(feature)}
    return sorted(found, key=lambda stretch: (stretch[0] is None, stretch[0] or NOTHING, -stretch[1]))


def in_window(mine: Sequence[Timed], edge: datetime, stretch: Stretch, view: AggregateView) -> list[Event]:
    """The events inside one window; continuous windows are open on the left and closed on the right."""
    size, offset = stretch
    end = edge + offset
    if size is None:
        assert view.lifetime_start_time is not None
        begin = utc(view.lifetime_start_time)
        if view.stream == "CONTINUOUS":
            return [event for at, event in mine if begin <= at <= end]
        return [event for at, event in mine if begin <= at < end]
    begin = end - size
    if view.stream == "CONTINUOUS":
        return [event for at, event in mine if begin < at <= end]
    return [event for at, event in mine if begin <= at < end]


def keys_over(mine: Sequence[Timed], edge: datetime, stretch: Stretch, view: AggregateView) -> list[Any]:
    """The secondary keys with an event in a window, ascending, None last."""
    assert view.secondary_key is not None
    met = {event[view.secondary_key] for event in in_window(mine, edge, stretch, view)}
    return [*sorted(met - {None}), *(met & {None})]


def default_of(feature: Aggregate, view: AggregateView) -> Any:
    """The answer for a key of which nothing is known."""
    if view.secondary_key is not None:
        return []
    one = [] if feature.function in LISTS else 0 if feature.function in ("count", "approx_count_distinct") else None
    return [one for _ in stretches_of(feature)] if feature.series_start is not None else one


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


def answers_at(
    events: Iterable[Event], key: Event, time: datetime | None, view: AggregateView | LatestView
) -> list[Any]:
    """The features of `key` as a spine row at `time` gets them, of either kind of view."""
    at = aggregate_at if isinstance(view, AggregateView) else latest_at
    return at(events, key, time, view)  # type: ignore[operator]


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
        if not any(value == other or (is_nan(value) and is_nan(other)) for other in met):
            met.append(value)
    return met


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


@dataclass(frozen=True)
class Roughly:
    """An exact number of distinct values, by which an estimate of `2**precision` registers is judged."""

    count: int
    precision: int = 8

    @property
    def room(self) -> float:
        """Two, a fifth, or four times the standard error of few registers."""
        return max(2.0, 0.2 * self.count, 4 * 1.04 / 2 ** (self.precision / 2) * self.count)

    def holds(self, answer: Any) -> bool:
        return isinstance(answer, int) and abs(answer - self.count) <= self.room


@dataclass(frozen=True)
class Ranked:
    """The values of a window, by which an estimate of a percentile is judged: its rank may be a little off."""

    values: tuple[float, ...]
    percentile: float

    def holds(self, answer: Any, tolerance: float = 0.05) -> bool:
        if not isinstance(answer, float | int):
            return False
        # NaN stands above every other number; an estimate lies between two neighbours, so one place more is allowed
        ranks, count = sorted((is_nan(v), 0.0 if is_nan(v) else float(v)) for v in self.values), len(self.values)
        slack = tolerance + 1.0 / count
        low = ranks[max(0, math.floor((self.percentile - slack) * count))]
        high = ranks[min(count - 1, max(0, math.ceil((self.percentile + slack) * count)))]
        if high[0] or not math.isfinite(low[1]) or not math.isfinite(high[1]):  # no number lies between such two
            return is_nan(answer) or answer >= low[1]
        nearly = 1e-6 * max(abs(low[1]), abs(high[1]), 1.0)
        return low[1] - nearly <= answer <= high[1] + nearly


def agrees(ours: Any, theirs: Any, scale: float = 0.0) -> bool:
    """Whether an answer is the oracle's: floats to a billionth of themselves and of `scale`, estimates in bounds."""
    if isinstance(theirs, Roughly | Ranked):
        return theirs.holds(ours)
    if isinstance(theirs, list):
        fits = isinstance(ours, list | tuple) and len(ours) == len(theirs)
        return fits and all(agrees(a, b, scale) for a, b in zip(ours, theirs, strict=True))
    if isinstance(theirs, float) and isinstance(ours, float):
        if not math.isfinite(theirs):
            return ours == theirs or (math.isnan(ours) and math.isnan(theirs))
        return abs(ours - theirs) <= 1e-9 * scale + 1e-9 * abs(theirs)
    if isinstance(theirs, datetime) and isinstance(ours, datetime):
        return utc(ours) == utc(theirs)
    return type(ours) is type(theirs) and bool(ours == theirs)


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
