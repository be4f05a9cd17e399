"""Comparing our answer with the reference's: rows by identity, validity ranges moment by moment, cells by tolerance.

A cell that differs may be excused: an estimate that lies within its bounds, a cell whose reference is arbitrary (equal
timestamps), and the few places where the semantics decide against the reference engine. Each excuse is worked out from
the events of the case; what the folder's `known_differences.json` says is applied beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from featurekit_dagster import FeatureView
from tests.conformance.cases import Case, as_time
from tests.conformance.judged import oracle_view, window_events
from tests.support import oracle

RELATIVE = 1e-6
RANK_ERROR = 0.06
ORDERED = ("last", "last_n", "last_distinct", "first_n", "first_distinct")
# What the reference engine makes of nulls in continuous mode where the semantics leave them out.
COUNTS_NULLS = ("count", "mean", "last_n", "first_n")
Row = dict[str, Any]


def same(ours: Any, reference: Any) -> bool:
    if isinstance(ours, list) and isinstance(reference, list):
        return len(ours) == len(reference) and all(same(a, b) for a, b in zip(ours, reference, strict=True))
    if isinstance(ours, bool) or isinstance(reference, bool):
        return ours is reference
    if isinstance(ours, float | int) and isinstance(reference, float | int):
        return math.isclose(ours, reference, rel_tol=RELATIVE, abs_tol=1e-9)
    return bool(ours == reference)


def plain(value: Any) -> Any:
    """A value without what only its container brought in: missing integers are NaN in the reference, times naive."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list):
        return [plain(element) for element in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return value


class ViewJudge:
    """Says of a view's cell that differs whether it is excused."""

    def __init__(self, case: Case, declaration: Mapping[str, Any], view: FeatureView) -> None:
        self.case, self.declaration, self.view = case, declaration, view

    @cached_property
    def judged(self) -> oracle.AggregateView | oracle.LatestView:
        return oracle_view(dict(self.declaration))

    @cached_property
    def aggregates(self) -> dict[str, oracle.Aggregate]:
        """Aggregates in the oracle's words, by the names of the features."""
        if not isinstance(self.judged, oracle.AggregateView):
            return {}
        return {f.name: a for f, a in zip(self.view.aggregates, self.judged.aggregates, strict=True)}

    @property
    def defaults(self) -> Row:
        return dict(zip(self.view.feature_names, self.view.defaults, strict=True))

    @property
    def is_continuous(self) -> bool:
        return isinstance(self.judged, oracle.AggregateView) and self.judged.stream == "CONTINUOUS"

    def excuses(self, feature: str, ours: Any, reference: Any, key: Row | None, time: datetime | None) -> bool:
        """Tell whether a cell may differ; `key` and `time` are those of the window, None where there is no window."""
        aggregate = self.aggregates.get(feature)
        if aggregate is None or not isinstance(self.judged, oracle.AggregateView):
            return False
        inside = [] if key is None or time is None else self._inside(key, time, aggregate)
        if aggregate.function.startswith("approx"):
            return self._estimated(aggregate, ours, reference, inside)
        if self.is_continuous and (aggregate.function in COUNTS_NULLS or aggregate.function[:3] in ("var", "std")):
            return any(event[aggregate.column] is None for event in inside)
        if aggregate.function in ORDERED:
            values: dict[datetime, set[Any]] = {}
            for event in inside:
                values.setdefault(event[self.judged.timestamp_field], set()).add(event[aggregate.column])
            return any(len(tied) > 1 for tied in values.values())
        return False

    def _inside(self, key: Row, time: datetime, aggregate: oracle.Aggregate) -> list[Row]:
        assert isinstance(self.judged, oracle.AggregateView)
        return window_events(self.case.events, key, time, self.judged, aggregate)

    def _estimated(self, aggregate: oracle.Aggregate, ours: Any, reference: Any, inside: list[Row]) -> bool:
        """Estimates: of counts a fifth off, or two; of percentiles a few hundredths of rank, or of the value."""
        if isinstance(ours, list) and isinstance(reference, list):
            pairs = zip(ours, reference, strict=False)
            return len(ours) == len(reference) and all(self._estimated(aggregate, a, b, []) for a, b in pairs)
        if ours is None or reference is None:
            return ours is reference
        if aggregate.function == "approx_count_distinct":
            return oracle.Roughly(reference, aggregate.precision).holds(ours)
        values = [event[aggregate.column] for event in inside if event[aggregate.column] is not None]
        if not values:
            return math.isclose(ours, reference, rel_tol=0.2, abs_tol=1e-9)
        return oracle.Ranked(tuple(values), aggregate.percentile).holds(ours, RANK_ERROR)


def pieces_by_key(rows: list[Row], keys: list[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Validity ranges of each key in order of time."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["_valid_from"]):
        found.setdefault(tuple(row[name] for name in keys), []).append(row)
    return found


def moments(ours: list[Row], theirs: list[Row]) -> Iterator[tuple[datetime, Row | None, Row | None]]:
    """Yield the start of every stretch on which neither side changes, with the row of each side, None without one."""
    times = sorted({row[name] for row in (*ours, *theirs) for name in ("_valid_from", "_valid_to")})
    for time in times[:-1]:
        mine, reference = (
            next((row for row in side if row["_valid_from"] <= time < row["_valid_to"]), None)
            for side in (ours, theirs)
        )
        if mine is not None or reference is not None:
            yield time, mine, reference


def moved(rows: list[Row], by: timedelta, start: datetime, end: datetime) -> list[Row]:
    """Return validity ranges moved in time and cut to `[start, end)`."""
    cut = []
    for row in rows:
        begin, until = max(row["_valid_from"] + by, start), min(row["_valid_to"] + by, end)
        if begin < until:
            cut.append(row | {"_valid_from": begin, "_valid_to": until})
    return cut


def first_change(judge: ViewJudge, start: datetime) -> datetime | None:
    """Return until when the reference's first piece is not to be trusted, None when it is.

    With a schedule wider than the tiles, a range that begins off the job grid is summed over too few tiles there.
    """
    view = judge.judged
    if (
        not isinstance(view, oracle.AggregateView)
        or view.stream is not None
        or view.tile in (None, view.batch_schedule)
    ):
        return None
    edge = oracle.floor(start - view.data_delay, view.batch_schedule)
    if edge + view.data_delay == start:
        return None
    return edge + view.batch_schedule + view.data_delay


def own_faults(rows: list[Row], judge: ViewJudge, keys: list[str], start: datetime, end: datetime) -> list[str]:
    """Return what is wrong with validity ranges in themselves: overlaps, empty ones, neighbours that are one."""
    faults = []
    features = list(judge.view.feature_names)
    first = judge.declaration.get("feature_start_time")
    start = start if first is None else max(start, as_time(first))
    for row in rows:
        if not start <= row["_valid_from"] < row["_valid_to"] <= end:
            faults.append(f"not inside the range: {row}")
        if judge.aggregates and all(row[name] in (judge.defaults[name], None) for name in features):
            faults.append(f"says nothing: {row}")
    for pieces in pieces_by_key(rows, keys).values():
        for before, after in zip(pieces, pieces[1:], strict=False):
            if before["_valid_to"] > after["_valid_from"]:
                faults.append(f"overlap: {before} and {after}")
            if before["_valid_to"] == after["_valid_from"] and all(before[n] == after[n] for n in features):
                faults.append(f"two that are one: {before} and {after}")
    return faults
