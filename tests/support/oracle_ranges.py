"""The oracle's answers over a span of time, made of nothing but point-in-time answers and the raw events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from tests.support import oracle
from tests.support.oracle import AggregateView, Event, LatestView, utc

MICROSECOND, MILLISECOND = timedelta(microseconds=1), timedelta(milliseconds=1)


@dataclass(frozen=True)
class Piece:
    """What a reader saw from one moment to another."""

    values: list[Any]
    start: datetime
    end: datetime


def grid_of(view: AggregateView) -> tuple[timedelta, timedelta]:
    """Distance of the right edges, and how long after an edge it is seen."""
    if view.stream == "TIME_INTERVAL":
        assert view.tile is not None
        return view.tile, oracle.NOTHING
    if view.stream == "CONTINUOUS":
        return MICROSECOND, oracle.NOTHING
    return view.batch_schedule, view.data_delay


def moments(events: Iterable[Event], key: Event, view: AggregateView) -> set[datetime]:
    """Every moment at which an event of `key` may enter or leave a window, or features begin."""
    found: set[datetime] = set()
    for event in oracle.of_key(events, key):
        at = utc(event[view.timestamp_field])
        for size, offset in oracle.distinct_stretches(view):
            found |= {at - offset} if size is None else {at - offset, at - offset + size}
    if view.stream == "CONTINUOUS":
        return found | ({utc(view.feature_start_time)} if view.feature_start_time else set())
    grid, delay = grid_of(view)
    after = {oracle.floor(moment, grid) + grid + delay for moment in found}
    if view.feature_start_time is not None:
        after.add(oracle.floor(utc(view.feature_start_time) - MICROSECOND, grid) + grid + delay)
    return after


def pieces(
    events: Sequence[Event], key: Event, start: datetime, end: datetime, view: AggregateView | LatestView
) -> list[Piece]:
    """The validity ranges of a key inside `[start, end]`, the start raised to the feature start time."""
    start, end = utc(start), utc(end)
    if view.feature_start_time is not None:
        start = max(start, utc(view.feature_start_time))
    if start >= end:
        return []
    if isinstance(view, LatestView):
        return merged(latest_pieces(events, key, start, end, view))
    times = [start, *sorted(moment for moment in moments(events, key, view) if start < moment < end), end]
    found = []
    for begin, until in zip(times, times[1:], strict=False):
        values = oracle.aggregate_at(events, key, begin, view)
        if not all_default(values, view):
            found.append(Piece(values, begin, until))
    return merged(found)


def all_default(values: Sequence[Any], view: AggregateView) -> bool:
    """Whether a row says nothing: every feature at its default, or unknown before the features begin."""
    if view.secondary_key is not None:
        return all(value in (None, []) for value in values)
    defaults = [oracle.default_of(feature, view) for feature in view.aggregates]
    return all(v is None or is_default(v, d) for v, d in zip(values, defaults, strict=True))


def is_default(value: Any, default: Any) -> bool:
    if isinstance(value, list) and isinstance(default, list):
        return len(value) == len(default) and all(is_default(v, d) for v, d in zip(value, default, strict=True))
    return value.count == default if isinstance(value, oracle.Roughly) else bool(value == default)


def latest_pieces(events: Sequence[Event], key: Event, start: datetime, end: datetime, view: LatestView) -> list[Piece]:
    """The last row of each effective time, until the next one, or until ttl after it became visible."""
    seen: dict[datetime, Event] = {}
    for event in sorted(oracle.of_key(events, key), key=lambda event: utc(event[view.timestamp_field])):
        at = utc(event[view.timestamp_field])
        if view.feature_start_time is None or at >= utc(view.feature_start_time):
            seen[oracle.visible_from(at, view)] = event
    times = sorted(seen)
    found = []
    for effective, following in zip(times, [*times[1:], end], strict=False):
        until = min(following, end)
        if view.ttl is not None:
            until = min(until, effective + view.ttl)
        if max(effective, start) < until:
            row = seen[effective]
            found.append(Piece([row[feature] for feature in view.features], max(effective, start), until))
    return found


def merged(found: Sequence[Piece]) -> list[Piece]:
    """Touching pieces of equal values as one."""
    joined: list[Piece] = []
    for piece in found:
        before = joined[-1] if joined else None
        if before is not None and before.end == piece.start and alike(before.values, piece.values):
            joined[-1] = Piece(before.values, before.start, piece.end)
        else:
            joined.append(piece)
    return joined


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(alike(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other) or (oracle.is_nan(one) and oracle.is_nan(other))


def history(
    events: Sequence[Event], keys: Iterable[str], start: datetime, end: datetime, view: AggregateView | LatestView
) -> list[tuple[dict[str, Any], list[Any], datetime, datetime]]:
    """The older range form: (key, values, timestamp, effective time) per row, or per key and tile end."""
    start, end, names = utc(start), utc(end), list(keys)
    if view.feature_start_time is not None:
        start = max(start, utc(view.feature_start_time))
    rows = []
    if isinstance(view, LatestView):
        for event in events:
            at = utc(event[view.timestamp_field])
            if start <= at < end:
                values = [event[feature] for feature in view.features]
                rows.append(({n: event[n] for n in names}, values, at, oracle.visible_from(at, view)))
        return rows
    assert view.tile is not None
    ends: list[tuple[dict[str, Any], datetime]] = []
    first = first_stored(view)
    for event in events:
        row = ({n: event[n] for n in names}, oracle.floor(event[view.timestamp_field], view.tile) + view.tile)
        if start <= row[1] < end and row not in ends and (first is None or row[1] > first):
            ends.append(row)
    grid, delay = grid_of(view)
    for key, at in ends:
        effective = oracle.floor(at - MILLISECOND, grid) + grid + delay
        rows.append((key, oracle.aggregate_as_of(events, key, at, view), at, effective))
    return rows


def first_stored(view: AggregateView) -> datetime | None:
    """Where the data of a view with nothing but lifetimes begin; others are never asked for what lies before theirs."""
    if view.feature_start_time is None or any(a.size or a.series_start for a in view.aggregates):
        return None
    starts = [utc(time) for time in (view.feature_start_time, view.lifetime_start_time) if time is not None]
    return oracle.floor(min(starts), view.batch_schedule)


def tiles(
    events: Iterable[Event], names: Sequence[str], start: datetime, end: datetime, view: AggregateView
) -> dict[tuple[tuple[Any, ...], datetime], list[Event]]:
    """The events, in order of time, of each key and tile, the tile that begins at the end included."""
    assert view.tile is not None
    first, found = oracle.floor(start, view.tile), dict[tuple[tuple[Any, ...], datetime], list[Event]]()
    for at, event in oracle.timed(events, view):
        anchor = oracle.floor(at, view.tile)
        if first <= anchor <= oracle.floor(end, view.tile):
            found.setdefault((tuple(event[name] for name in names), anchor), []).append(event)
    return found


def run_full(
    events: Iterable[Event], names: Sequence[str], start: datetime, end: datetime, view: AggregateView
) -> dict[tuple[tuple[Any, ...], datetime], list[Any]]:
    """The features as of the end of each tile that has data, tiles laid back from `end`, of the events inside only."""
    assert view.tile is not None
    start, end, view = utc(start), utc(end), replace(view, feature_start_time=None)
    inside = [event for at, event in oracle.timed(events, view) if start <= at < end]
    found = {}
    for event in inside:
        tile_end = end - (end - utc(event[view.timestamp_field]) - MICROSECOND) // view.tile * view.tile
        key = {name: event[name] for name in names}
        found[tuple(key.values()), tile_end] = oracle.aggregate_as_of(inside, key, tile_end, view)
    return found
