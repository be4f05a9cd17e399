from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.errors import JobStopped, LeaseHeld, NotPublished
from featurekit_dagster.execution.publish import Published, publish, queue_missing, queue_range
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.serving.published import changes_in
from featurekit_dagster.serving.stored import StoredRows
from featurekit_dagster.stores.ledger_records import FEATURE_EXPORT
from tests.flow.payments import payments_workspace
from tests.support.published import (
    DAY,
    day,
    export,
    materialize,
    published_view,
    rows_expected,
    rows_published,
    workspace_of,
    write_events,
)

EVENTS = [("a", 20, 1), ("b", 50, 2), ("a", 75, 3), ("c", 100, None), ("a", 130, 3), ("b", 200, 4)]


def days(first: int, end: int) -> IntervalSet:
    return IntervalSet([Interval(day(first), day(end))])


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A view without aggregates, of which four days are materialized and nothing is published."""
    write_events(tmp_path / "events.parquet", EVENTS)
    workspace = workspace_of(tmp_path, published_view("rows", tmp_path / "events.parquet"))
    materialize(workspace, 2, 6)
    return workspace


def published(workspace: Workspace) -> Published:
    return Published.of(workspace.repo.view("seen"), workspace.stores)


def changes(workspace: Workspace, span: Interval, is_continued: bool) -> Any:
    stored = StoredRows.choose(workspace.repo.view("seen"), workspace.stores, from_source=False)
    return changes_in(stored, span.start_us, span.end_us, is_continued=is_continued)


def test_what_is_overwritten_while_it_is_read_does_not_count_as_published(workspace: Workspace) -> None:
    ledger = workspace.stores.ledger
    (waiting,) = ledger.unfinished_chores("world", FEATURE_EXPORT)
    job = ledger.begin(waiting.id, run_id=None)

    def overtaken(span: Interval, is_continued: bool) -> Any:
        rows = changes(workspace, span, is_continued)
        write_events(workspace.home.parent / "events.parquet", [(user, hour, 9) for user, hour, _ in EVENTS])
        materialize(workspace, 3, 4)
        return rows

    ledger.finish_chore(job.id, stats=publish(published(workspace), job, overtaken, lambda: None))
    assert published(workspace).windows() == days(2, 3).union(days(4, 6))
    assert [done.interval for done in export(workspace)] == [Interval(day(2), day(6))]
    assert published(workspace).windows() == days(2, 6)
    assert rows_published(workspace) == rows_expected(workspace, days(2, 6))


def test_a_job_that_died_between_the_warehouse_and_the_ledger_is_done_again(workspace: Workspace) -> None:
    class Died(Exception):
        pass

    ledger = workspace.stores.ledger
    (waiting,) = ledger.unfinished_chores("world", FEATURE_EXPORT)
    job = ledger.begin(waiting.id, run_id=None)

    class Dying:
        def __getattr__(self, name: str) -> Any:
            if name == "end_publishing":
                raise Died
            return getattr(ledger, name)

    stores = workspace.stores
    stores.__dict__["ledger"] = Dying()
    with pytest.raises(Died):
        publish(published(workspace), job, lambda *asked: changes(workspace, *asked), lambda: None)
    stores.__dict__["ledger"] = ledger
    assert not published(workspace).windows()
    ledger.fail(job.id, reason="it died")
    (done,) = export(workspace)
    assert done.stats["rows_replaced"] == done.stats["rows"] > 0
    assert published(workspace).windows() == days(2, 6)
    assert rows_published(workspace) == rows_expected(workspace, days(2, 6))


def test_a_cancelled_job_keeps_the_pieces_that_it_has_published(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurekit_dagster.execution.publish._LONGEST_PIECE", DAY)
    ledger = workspace.stores.ledger
    (waiting,) = ledger.unfinished_chores("world", FEATURE_EXPORT)
    job = ledger.begin(waiting.id, run_id=None)
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks > 4:  # before each piece, and before it is written
            raise JobStopped(job_id=job.id)

    with pytest.raises(JobStopped):
        publish(published(workspace), job, lambda *asked: changes(workspace, *asked), check)
    assert published(workspace).windows() == days(2, 4)
    assert rows_published(workspace) == rows_expected(workspace, days(2, 4))
    ledger.fail(job.id, reason="told to end")
    (done,) = export(workspace)
    assert (done.stats["windows"], done.stats["rows_replaced"]) == (2, 0)
    assert rows_published(workspace) == rows_expected(workspace, days(2, 6))


def test_a_warehouse_that_was_lost_is_filled_again_by_the_next_job(workspace: Workspace) -> None:
    export(workspace)
    (workspace.home / "warehouse.duckdb").unlink()
    materialize(workspace, 6, 7)
    export(workspace)
    assert published(workspace).windows() == days(6, 7)
    queue_missing(workspace.repo.view("seen"), workspace.stores, trigger="test")
    export(workspace)
    assert published(workspace).windows() == days(2, 7)
    assert rows_published(workspace) == rows_expected(workspace, days(2, 7))


def test_one_job_publishes_a_view_at_a_time(workspace: Workspace) -> None:
    ledger = workspace.stores.ledger
    (waiting,) = ledger.unfinished_chores("world", FEATURE_EXPORT)
    job, own = ledger.begin(waiting.id, run_id=None), published(workspace)
    with ledger.lease(own.lease, holder="another"), pytest.raises(LeaseHeld):
        publish(own, job, lambda *asked: changes(workspace, *asked), lambda: None, wait=timedelta(0))


def test_what_waits_is_not_asked_for_twice(workspace: Workspace) -> None:
    view, stores = workspace.repo.view("seen"), workspace.stores
    (waiting,) = stores.ledger.unfinished_chores("world", FEATURE_EXPORT)
    for give_up in (False, True):
        assert [job.id for job in queue_missing(view, stores, trigger="test", give_up=give_up)] == [waiting.id]
    materialize(workspace, 6, 8)
    jobs = stores.ledger.unfinished_chores("world", FEATURE_EXPORT)
    assert sorted(job.interval for job in jobs) == [Interval(day(2), day(6)), Interval(day(6), day(8))]


def test_a_range_is_widened_to_whole_windows_that_can_be_published(workspace: Workspace) -> None:
    asked = Interval(day(0), day(3) + timedelta(hours=1))
    job = queue_range(workspace.repo.view("seen"), workspace.stores, asked, trigger="test")
    assert (job.interval, job.request) == (
        Interval(day(2), day(4)),
        {"again": True, "warehouse": str(workspace.home / "warehouse.duckdb")},
    )


def test_windows_need_what_they_look_back_on(tmp_path: Path) -> None:
    # windows of three days that end a day before the edge: four days back
    view = published_view("tiles", tmp_path / "events.parquet")
    workspace = workspace_of(tmp_path, view)
    rules = published(workspace).rules
    first = day(2) - 4 * DAY
    assert rules.publishable(IntervalSet([Interval(first, day(5))])) == days(1, 5)
    assert not rules.publishable(days(2, 5))
    assert rules.publishable(days(2, 9)) == days(5, 9)
    assert rules.outdated(days(1, 12), Interval(day(3), day(4))) == days(3, 8)


def test_windows_of_lifetimes_and_of_rows_without_ttl_change_for_ever(tmp_path: Path) -> None:
    lifetime = published(workspace_of(tmp_path / "1", published_view("lifetime", tmp_path / "e.parquet"))).rules
    assert lifetime.outdated(days(2, 9), Interval(day(3), day(4))) == days(3, 9)
    rows = published(workspace_of(tmp_path / "2", published_view("rows", tmp_path / "e.parquet"))).rules
    # only the first window of a run repeats older rows
    assert rows.outdated(days(2, 5).union(days(7, 9)), Interval(day(3), day(4))) == days(3, 4).union(days(7, 8))


def test_a_view_that_is_not_published_cannot_be(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path, now=day(1))
    with pytest.raises(NotPublished, match="spending: its features are not published; declare it"):
        queue_missing(workspace.repo.view("spending"), workspace.stores, trigger="test")
