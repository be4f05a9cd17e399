"""What a read takes from store or source, and what it is told: each view once, its columns only, mocks, bounds."""

from __future__ import annotations

import io
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurekit_dagster import Aggregation, BatchSource, FeatureService, FilteredSource, TimeWindow, pandas_batch_config
from featurekit_dagster.errors import NotMaterialized, ReadError, SpineError
from featurekit_dagster.serving import progress
from featurekit_dagster.serving.progress import shown_progress
from tests.support.clicks import batch, both_ways, continuous, followed, live, ranged, values
from tests.support.visits import (
    DAY,
    HOUR,
    MICROSECOND,
    SCHEMA,
    day,
    latest,
    materialize,
    totals,
    visit,
    workspace_of,
    write_visits,
)

ROWS = [visit(1, 3.25, 2.0), visit(2, 3.5, 8.0), visit(2, 5.5, 32.0)]


class Counted:
    """A source that counts how often it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def source(self) -> BatchSource:
        @pandas_batch_config(supports_time_filtering=True)
        def rows(filter_context: Any) -> Any:
            self.reads += 1
            frame = pl.DataFrame(ROWS, schema=SCHEMA, orient="row").to_pandas()
            naive = frame["ts"].dt.tz_localize(None)
            return frame[(naive >= filter_context.start_time) & (naive < filter_context.end_time)]

        return BatchSource(name="visits", batch_config=rows)


# ---- services --------------------------------------------------------------------------------------------------------


def test_a_view_that_a_service_uses_twice_is_read_once_and_answers_each_spine_column(tmp_path: Path) -> None:
    counted = Counted()
    view = totals(counted.source(), sources=[FilteredSource(counted.source())], online=False, offline=False)
    payee = view[["sum_1d"]].with_name("payee").with_join_key_map({"user": "to"})
    service = FeatureService(name="pair", features=[view[["sum_1d", "count_3d"]], payee])
    handle = workspace_of(tmp_path, [view, service]).get_feature_service("pair")
    spine = pl.DataFrame({"user": [1, 2, None], "to": [2, 1, 2], "ts": [day(4), day(4), day(6)], "row": [7, 8, 9]})
    answer = handle.get_features_for_events(spine)
    assert counted.reads == 1
    assert answer.columns == ["user", "to", "ts", "row", "totals__sum_1d", "totals__count_3d", "payee__sum_1d"]
    assert values(answer, *answer.columns[3:]) == [(7, 2.0, 1, 8.0), (8, 8.0, 1, 2.0), (9, None, 0, 32.0)]


def test_a_selection_needs_only_what_its_own_windows_hold(tmp_path: Path) -> None:
    narrow = Aggregation("amount", "sum", TimeWindow(DAY), name="narrow")
    wide = Aggregation("amount", "sum", TimeWindow(3 * DAY), name="wide")
    view = batch(tmp_path, ROWS, narrow, wide)
    services = [FeatureService(name=name, features=[view[[name]]]) for name in ("narrow", "wide")]
    workspace = workspace_of(tmp_path, [view, *services])
    materialize(workspace, "batch", day(5), day(6))
    spine = pl.DataFrame({"user": [2], "ts": [day(6)]})
    answer = workspace.get_feature_service("narrow").get_features_for_events(spine)
    assert answer.to_arrow()["batch__narrow"].to_pylist() == [32.0]
    with pytest.raises(NotMaterialized):
        workspace.get_feature_service("wide").get_features_for_events(spine)


def test_a_spine_row_that_several_references_miss_counts_once(tmp_path: Path) -> None:
    view = batch(tmp_path, ROWS)
    service = FeatureService(name="pair", features=[view, view.with_name("other")])
    handle = workspace_of(tmp_path, [view, service]).get_feature_service("pair")
    spine = pl.DataFrame({"user": [1, 2], "ts": [day(4), day(5)]})
    with pytest.raises(NotMaterialized, match="2 spine rows need"):
        handle.get_features_for_events(spine)


def test_a_name_that_the_spine_has_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    counted = Counted()
    view = totals(counted.source(), sources=[FilteredSource(counted.source())], online=False, offline=False)
    handle = workspace_of(tmp_path, [view]).get_feature_view("totals")
    with pytest.raises(SpineError, match="the spine has columns with the names of features: totals__sum_1d"):
        handle.get_features_for_events(pl.DataFrame({"user": [1], "ts": [day(4)], "totals__sum_1d": [1.0]}))
    assert counted.reads == 0


# ---- mocks -----------------------------------------------------------------------------------------------------------

MOCK = pl.DataFrame([visit(1, 3.25, 100.0)], schema=SCHEMA, orient="row")


def test_mocks_are_read_instead_of_the_source_by_every_reading_method(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, batch(tmp_path, ROWS))
    mocks = {"visits": MOCK}
    spine = pl.DataFrame({"user": [1, 2], "ts": [day(4), day(4)]})
    assert values(handle.get_features_for_events(spine, mock_inputs=mocks), "batch__sum") == [(100.0,), (None,)]
    assert values(handle.get_features_in_range(day(3), day(9), mock_inputs=mocks), "user", "sum") == [(1, 100.0)]
    assert values(handle.get_partial_aggregates(day(3), day(9), mock_inputs=mocks), "sum_amount") == [(100.0,)]
    assert values(handle.run(day(3), day(4), mock_inputs=mocks), "sum") == [(100.0,)]
    assert values(handle.run_transformation(day(3), day(4), mocks), "amount") == [(100.0,)]


def test_a_mock_without_parameter_or_beside_the_store_is_refused(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, batch(tmp_path, ROWS))
    with pytest.raises(ReadError, match="clicks is no source parameter of the function; it has visits"):
        handle.get_features_in_range(day(3), day(9), mock_inputs={"clicks": MOCK})
    with pytest.raises(ReadError, match="mock_inputs beside from_source=False, which reads no source"):
        handle.get_features_in_range(day(3), day(9), from_source=False, mock_inputs={"visits": MOCK})


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_lookback_bounds_the_search_before_a_range_and_changes_no_value(tmp_path: Path, is_stream: bool) -> None:
    rows = [visit(1, 2.5, 1.0), visit(2, 4.5, 2.0), visit(2, 5.75, 3.0)]
    view = live(followed(tmp_path, rows)) if is_stream else latest(write_visits(tmp_path, rows), online=False)
    handle, _ = both_ways(tmp_path, view)
    for start in (day(5), day(6)):
        whole = ranged(handle, start, day(9), "amount")
        assert ranged(handle, start, day(9), "amount", max_lookback=9 * DAY) == whole
        assert ranged(handle, start, day(9), "amount", max_lookback=2 * DAY) == [r for r in whole if r[0] != 1.0]
    assert all(row[0] == 3.0 for row in ranged(handle, day(5), day(9), "amount", max_lookback=timedelta(0)))


def test_a_lookback_is_refused_for_aggregates_and_when_negative(tmp_path: Path) -> None:
    plain = workspace_of(tmp_path, [latest(write_visits(tmp_path, ROWS))]).get_feature_view("newest")
    with pytest.raises(ReadError, match="max_lookback -1 day, 0:00:00 is negative"):
        plain.get_features_in_range(day(3), day(4), max_lookback=-DAY)
    windows = workspace_of(tmp_path, [batch(tmp_path, ROWS)]).get_feature_view("batch")
    with pytest.raises(ReadError, match="max_lookback on a view with aggregates, whose windows decide"):
        windows.get_features_in_range(day(3), day(4), max_lookback=DAY)


def test_entities_bound_every_read_without_a_spine(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, continuous(followed(tmp_path, ROWS)))
    one = pl.DataFrame({"user": [1]})
    assert ranged(handle, day(3), day(4), "sum", entities=one) == [(2.0, day(3.25), day(3.25) + HOUR)]
    for from_source in (False, True):
        answer = handle.get_historical_features(entities=one, from_source=from_source)
        assert values(answer, "user", "ts", "sum") == [(1, day(3.25), 2.0)]


def test_a_summary_tells_aggregations_windows_and_mode(tmp_path: Path) -> None:
    shifted = Aggregation("amount", "sum", TimeWindow(DAY, -HOUR), name="shifted")
    workspace = workspace_of(
        tmp_path, [continuous(followed(tmp_path, ROWS), shifted, aggregation_secondary_key="page")]
    )
    summary = workspace.get_feature_view("live").summary()
    assert summary["aggregations"] == ["shifted: sum of amount over 1d offset 1h"]
    assert summary["features"] == ["page_keys_1d_offset_1h", "shifted"]
    assert summary["aggregation_secondary_key"] == "page"
    assert summary["stream_processing_mode"].value == "CONTINUOUS"
    assert (summary["is_stream"], summary["compaction_enabled"], summary["lifetime_start_time"]) == (True, False, None)


# ---- progress --------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)


def timers() -> set[threading.Timer]:
    return {thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)}


def test_a_long_read_shows_its_progress_on_a_terminal_and_takes_it_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
    with shown_progress("reading features", 2) as advance:
        advance()
        assert terminal.written.wait(60)
        advance()
    assert "reading features" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K"), "the line is cleared"


def test_a_short_read_shows_nothing_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "DELAY_SECONDS", 60.0)
    before = timers()
    with shown_progress("reading features", 1):
        (timer,) = timers() - before
    timer.join(50)
    assert not timer.is_alive()
    assert terminal.getvalue() == ""


def test_nothing_is_shown_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
    before = timers()
    with shown_progress("reading features", 1):
        assert timers() <= before, "none waits to write"
    assert written.getvalue() == ""


def test_an_edge_one_microsecond_off_sees_one_tile_less(tmp_path: Path) -> None:
    handle, _ = both_ways(tmp_path, batch(tmp_path, [visit(1, day(4) - MICROSECOND)]))
    spine = pl.DataFrame({"user": [1, 1], "ts": [day(4) - MICROSECOND, day(4)]})
    assert values(handle.get_features_for_events(spine), "batch__count") == [(0,), (1,)]
