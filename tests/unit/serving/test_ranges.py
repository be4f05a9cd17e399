"""Ranges agree with what a reader saw at every instant; partial aggregates are the tiles."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from featurekit_dagster import Aggregation, FeatureView, TimeWindow
from featurekit_dagster.errors import NotMaterialized, ReadError
from featurekit_dagster.handles import FeatureViewHandle
from featurekit_dagster.serving.frame import FeatureFrame
from tests.support import oracle
from tests.support.visits import (
    DAY,
    HOUR,
    MICROSECOND,
    day,
    latest,
    materialize,
    totals,
    visit,
    workspace_of,
    write_visits,
)

EXAMPLES = 500 if os.environ.get("FEATUREKIT_SOAK") else 20
MINUTE = timedelta(minutes=1)
SPAN = 30 * HOUR
AGGREGATES = [
    ("amount", "sum", 2 * HOUR, 0 * HOUR),
    ("visits", "count", HOUR, -2 * HOUR),
    ("visits", "sum", 5 * HOUR, -HOUR),
]


def instants(schedule: timedelta) -> st.SearchStrategy[datetime]:
    """Moments of the first hours: half-hours, and the edges of intervals a microsecond more or less."""
    on_grid = st.integers(0, 2 * int(SPAN / HOUR)).map(lambda n: day(1) + n * 30 * MINUTE)
    return st.builds(lambda t, off: t + off * MICROSECOND, on_grid, st.sampled_from([0, 0, 0, -1, 1]))


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    schedule = draw(st.sampled_from([HOUR, 4 * HOUR]))
    times = instants(schedule)
    row = st.builds(
        visit, st.sampled_from([1, 2, None]), times, st.sampled_from([None, 1.0, 2.0]), st.sampled_from([None, 1, 2])
    )
    first = draw(st.sampled_from([None, day(1), day(1) + 5 * HOUR, day(1) + 6 * HOUR + 10 * MINUTE]))
    start, end = sorted(draw(st.lists(times, min_size=2, max_size=2, unique=True)))
    end = end if first is None else max(end, first)
    return {
        "schedule": schedule,
        "delay": draw(st.sampled_from([timedelta(0), 20 * MINUTE, 3 * HOUR])),
        "rows": draw(st.lists(row, max_size=15, unique_by=lambda r: (r[0], r[1]))),
        "first": first,
        "ttl": draw(st.sampled_from([None, 30 * MINUTE, HOUR, 90 * MINUTE, 8 * HOUR])),
        "start": start,
        "end": end,
        "is_stored": draw(st.booleans()),
    }


def read_range(folder: Path, world: dict[str, Any], *, is_aggregate: bool) -> list[dict[str, Any]]:
    """Return the rows of the range, from the source or the store; from the store only where features begin."""
    source = write_visits(folder, world["rows"], delay=world["delay"])
    is_stored = world["is_stored"] and world["first"] is not None
    options = {"batch_schedule": world["schedule"], "feature_start_time": world["first"]}
    options |= {"online": False, "offline": is_stored}
    view: FeatureView
    if is_aggregate:
        aggregations = [Aggregation(c, f, TimeWindow(size, offset), name=c + f) for c, f, size, offset in AGGREGATES]
        view = totals(source, aggregations=aggregations, **options)
    else:
        view = latest(source, ttl=world["ttl"], **options)
    workspace = workspace_of(folder, [view], now=day(5))
    if is_stored:
        materialize(workspace, view.name)
    handle = workspace.get_feature_view(view.name)
    found = handle.get_features_in_range(world["start"], world["end"], from_source=not is_stored)
    answer = found.to_arrow().to_pylist()
    note(str(answer))
    return answer


def probes(world: dict[str, Any]) -> list[datetime]:
    """Every instant at which anything can change, one microsecond before it, and the ends of the range."""
    schedule, delay = world["schedule"], world["delay"]
    grid = [day(1) - DAY + n * schedule for n in range(int(4 * DAY / schedule))]
    ttls = [timedelta(0)] if world["ttl"] is None else [timedelta(0), world["ttl"]]
    edges = {g + delay + ttl + off * MICROSECOND for g in grid for ttl in ttls for off in (-1, 0)}
    edges |= {world["start"], world["end"] - MICROSECOND}
    return sorted(t for t in edges if world["start"] <= t < world["end"])


def shown_at(answer: list[dict[str, Any]], user: int | None, time: datetime, names: list[str]) -> list[Any] | None:
    rows = [r for r in answer if r["user"] == user and r["_valid_from"] <= time < r["_valid_to"]]
    assert len(rows) <= 1, "spans of a key overlap"
    return [rows[0][name] for name in names] if rows else None


def check_shape(answer: list[dict[str, Any]], world: dict[str, Any], names: list[str]) -> None:
    first = world["first"] or world["start"]
    for row in answer:
        assert max(world["start"], first) <= row["_valid_from"] < row["_valid_to"] <= world["end"]
    ordered = sorted(answer, key=lambda r: (str(r["user"]), r["_valid_from"]))
    for one, other in zip(ordered, ordered[1:], strict=False):
        if one["user"] == other["user"] and one["_valid_to"] == other["_valid_from"]:
            assert [one[n] for n in names] != [other[n] for n in names], "equal neighbours are one row"


def events(world: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(("user", "ts", "amount", "visits", "page"), row, strict=True)) for row in world["rows"]]


@settings(max_examples=EXAMPLES)
@given(world=worlds())
def test_a_range_of_aggregates_shows_at_each_instant_what_point_in_time_shows(world: dict[str, Any]) -> None:
    judged = oracle.AggregateView(
        aggregates=[
            oracle.Aggregate(column=c, function=f, size=s, offset=o, dtype="Int64" if c == "visits" else "Float64")
            for c, f, s, o in AGGREGATES
        ],
        batch_schedule=world["schedule"],
        data_delay=world["delay"],
        feature_start_time=world["first"],
    )
    names = [c + f for c, f, _, _ in AGGREGATES]
    with TemporaryDirectory() as folder:
        answer = read_range(Path(folder), world, is_aggregate=True)
    check_shape(answer, world, names)
    for user in (1, 2, None):
        for time in probes(world):
            wanted = oracle.aggregate_at(events(world), {"user": user}, time, judged)
            shown = shown_at(answer, user, time, names)
            if wanted in ([None, 0, None], [None, None, None]):
                assert shown is None, (user, time)
            else:
                assert shown == wanted, (user, time)


def range_row(world: dict[str, Any], user: int | None, time: datetime) -> dict[str, Any] | None:
    """Return what the range rule shows: the newest visible row, until its effective time plus ttl."""
    view = oracle.LatestView(
        features=(), batch_schedule=world["schedule"], data_delay=world["delay"], feature_start_time=world["first"]
    )
    row = oracle.latest_row(events(world), {"user": user}, time, view)
    if row is None or world["ttl"] is None:
        return dict(row) if row else None
    return dict(row) if time < oracle.visible_from(row["ts"], view) + world["ttl"] else None


@settings(max_examples=EXAMPLES)
@given(world=worlds())
def test_a_range_of_rows_shows_at_each_instant_the_newest_row_until_it_expires(world: dict[str, Any]) -> None:
    names = ["amount", "visits", "page"]
    with TemporaryDirectory() as folder:
        answer = read_range(Path(folder), world, is_aggregate=False)
    check_shape(answer, world, names)
    for user in (1, 2, None):
        for time in probes(world):
            row = range_row(world, user, time)
            shown = shown_at(answer, user, time, names)
            assert shown == (None if row is None else [row[name] for name in names]), (user, time)


def table(frame: FeatureFrame, *columns: str) -> list[tuple[Any, ...]]:
    arrow = frame.to_arrow()
    return sorted(zip(*(arrow[name].to_pylist() for name in columns), strict=True))


def handle_of(folder: Path, view: FeatureView) -> FeatureViewHandle:
    return workspace_of(folder, [view]).get_feature_view(view.name)


@pytest.mark.parametrize("begin", [None, day(1), day(2) + HOUR])
def test_a_ttl_beside_the_schedule_ends_a_range_earlier_than_a_point_in_time(
    tmp_path: Path, begin: datetime | None
) -> None:
    source = write_visits(tmp_path, [visit(1, day(2) + 90 * MINUTE)])
    view = latest(source, batch_schedule=HOUR, ttl=90 * MINUTE, feature_start_time=begin, online=False, offline=False)
    handle = handle_of(tmp_path, view)
    spans = table(handle.get_features_in_range(day(2), day(3)), "_valid_from", "_valid_to")
    assert spans == [(day(2) + 2 * HOUR, day(2) + 3.5 * HOUR)]
    last = day(2) + 4 * HOUR
    asked = pl.DataFrame({"user": [1, 1], "ts": [last - MICROSECOND, last]})
    assert handle.get_features_for_events(asked).to_arrow()["newest__visits"].to_pylist() == [1, None]
    for start in (day(2) + 3.25 * HOUR, day(2) + 3.5 * HOUR - MICROSECOND):
        assert len(handle.get_features_in_range(start, day(3))) == 1
    assert len(handle.get_features_in_range(day(2) + 3.5 * HOUR, day(3))) == 0


def test_a_start_before_the_features_begin_is_raised_to_it(tmp_path: Path) -> None:
    source = write_visits(tmp_path, [visit(1, 1.5), visit(1, 4.5)])
    for view in (latest(source, feature_start_time=day(4)), totals(source, feature_start_time=day(4))):
        handle = handle_of(tmp_path, view)
        answer = handle.get_features_in_range(day(1), day(6), from_source=True)
        (first, *_) = table(answer, "_valid_from", "_valid_to")
        # the window of three days that ends on the fourth holds the visit of the first
        assert first[0] == (day(5) if view.name == "newest" else day(4))
        with pytest.raises(
            ReadError, match="end_time 2024-01-03T00:00Z is before feature_start_time 2024-01-04T00:00Z"
        ):
            handle.get_features_in_range(day(1), day(3))
        assert len(handle.get_features_in_range(day(1), day(4), from_source=True)) == 0


def test_an_empty_range_is_refused(tmp_path: Path) -> None:
    handle = handle_of(tmp_path, latest(write_visits(tmp_path, [])))
    for start, end in ((day(3), day(3)), (day(4), day(3))):
        with pytest.raises(ReadError, match="is not before end_time"):
            handle.get_features_in_range(start, end)


def test_entities_keep_their_rows_only_and_an_unknown_one_has_none(tmp_path: Path) -> None:
    source = write_visits(tmp_path, [visit(1, 2.5), visit(2, 2.5), visit(None, 2.5)])
    for view in (latest(source), totals(source)):
        handle = handle_of(tmp_path, view)
        some = pl.DataFrame({"user": [2, 99, None]}, schema={"user": pl.Int64})
        answer = handle.get_features_in_range(day(2), day(5), some, from_source=True)
        assert set(answer.to_arrow()["user"].to_pylist()) == {2, None}
        for none in (some.clear(), pl.DataFrame({"user": [99]})):
            assert len(handle.get_features_in_range(day(2), day(5), none, from_source=True)) == 0


def test_a_source_without_rows_gives_no_row_of_the_declared_types(tmp_path: Path) -> None:
    source = write_visits(tmp_path, [])
    for view in (latest(source), totals(source)):
        answer = handle_of(tmp_path, view).get_features_in_range(day(2), day(5), from_source=True)
        assert len(answer) == 0
        assert answer.columns == ["user", *view.feature_names, "_valid_from", "_valid_to"]
        assert answer.to_pandas().empty


def test_a_range_before_the_first_edge_needs_nothing(tmp_path: Path) -> None:
    first = day(4) + 6 * HOUR
    view = totals(write_visits(tmp_path, [visit(1, 3.5)]), feature_start_time=first)
    assert len(handle_of(tmp_path, view).get_features_in_range(first, first + HOUR)) == 0


# ---- partial aggregates ----------------------------------------------------------------------------------------------

TILED = [
    visit(1, day(2) + 10 * MINUTE, 3.0, 1),
    visit(1, day(2) + 50 * MINUTE, 5.0, None),
    visit(1, day(2) + HOUR, 2.0),
]


def test_partial_aggregates_are_the_tiles_with_the_columns_that_features_share(tmp_path: Path) -> None:
    handle = handle_of(tmp_path, totals(write_visits(tmp_path, TILED)))
    answer = handle.get_partial_aggregates(day(2), day(2) + 90 * MINUTE, from_source=True)
    ends = ["_interval_start_time", "_interval_end_time"]
    assert sorted(answer.columns) == sorted(
        ["user", "sum_amount", "count_visits", "sum_visits", "mean_amount", "count_amount", *ends]
    )
    assert table(answer, *ends, "sum_amount", "mean_amount", "count_amount", "count_visits", "sum_visits") == [
        (day(2), day(2) + HOUR, 8.0, 4.0, 2, 1, 1),
        (day(2) + HOUR, day(2) + 2 * HOUR, 2.0, 2.0, 1, 1, 1),
    ]


def test_variances_show_their_sums_of_squares(tmp_path: Path) -> None:
    view = totals(write_visits(tmp_path, TILED), aggregations=[Aggregation("amount", "var_pop", TimeWindow(DAY))])
    answer = handle_of(tmp_path, view).get_partial_aggregates(day(2), day(2) + HOUR - MICROSECOND, from_source=True)
    assert answer.columns[:4] == ["user", "sum_of_squares_amount", "sum_amount", "count_amount"]
    assert table(answer, "sum_of_squares_amount", "sum_amount", "count_amount") == [(pytest.approx(34.0), 8.0, 2)]


def test_an_end_on_the_tile_grid_still_adds_the_tile_that_begins_there(tmp_path: Path) -> None:
    handle = handle_of(tmp_path, totals(write_visits(tmp_path, TILED)))
    for end, tiles in ((day(2) + HOUR - MICROSECOND, 1), (day(2) + HOUR, 2), (day(2) + HOUR + MICROSECOND, 2)):
        for start in (day(2), day(2) + 59 * MINUTE):
            assert len(handle.get_partial_aggregates(start, end, from_source=True)) == tiles


def test_partial_aggregates_read_what_is_stored_and_only_that(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, [totals(write_visits(tmp_path, TILED))])
    handle = workspace.get_feature_view("totals")
    with pytest.raises(NotMaterialized):
        handle.get_partial_aggregates(day(2), day(3))
    materialize(workspace, "totals")
    stored = handle.get_partial_aggregates(day(2), day(3))
    computed = handle.get_partial_aggregates(day(2), day(3), from_source=True)
    assert table(stored, *stored.columns) == table(computed, *stored.columns)
    assert len(handle.get_partial_aggregates(day(2), day(3), pl.DataFrame({"user": [5]}))) == 0


def test_partial_aggregates_begin_with_the_features(tmp_path: Path) -> None:
    view = totals(write_visits(tmp_path, [visit(1, 1.5), visit(1, 4.5)]), feature_start_time=day(4))
    answer = handle_of(tmp_path, view).get_partial_aggregates(day(1), day(5), from_source=True)
    assert table(answer, "_interval_start_time") == [(day(4.5),)]


def test_a_view_without_aggregates_has_no_partial_ones(tmp_path: Path) -> None:
    handle = handle_of(tmp_path, latest(write_visits(tmp_path, TILED)))
    with pytest.raises(
        ReadError, match="it has no aggregates, so there are no partial ones; use get_features_in_range"
    ):
        handle.get_partial_aggregates(day(2), day(3))
