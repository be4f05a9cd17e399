"""The recipe: what a job leaves in both stores and in the ledger, whatever happens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.errors import MaterializationFailed
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE, Task
from featurekit_dagster.serving.vector import MISSING_DATA, PRESENT, UNKNOWN
from tests.support.visits import DAY, SCHEMA, Row, day, latest, materialize, totals, visit, workspace_of, write_visits

ROWS = [visit(1, n + 0.5, float(n), n) for n in range(1, 11)]


def tasks_of(view: str, *days: int, **changes: Any) -> list[Task]:
    options: dict[str, Any] = {"online": True, "offline": True}
    return [Task(view=view, interval=Interval(day(n), day(n + 1)), **(options | changes)) for n in days]


def run(workspace: Workspace, tasks: Sequence[Task]) -> list[Any]:
    return list(run_tasks(workspace.repo.view(tasks[0].view), tasks, workspace.stores, trigger="test"))


def covered(workspace: Workspace, view: str, store: str) -> IntervalSet:
    return workspace.stores.coverage(workspace.repo.view(view), store)


def rewrite(folder: Path, rows: Sequence[Row]) -> None:
    pl.DataFrame(list(rows), schema=SCHEMA, orient="row").write_parquet(folder / "visits.parquet")


def everything(workspace: Workspace, view: str) -> list[tuple[Any, ...]]:
    table = workspace.get_feature_view(view).get_historical_features(start_time=day(1), end_time=day(5)).to_arrow()
    return sorted(zip(table["user"].to_pylist(), table["ts"].to_pylist(), strict=True))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    source = write_visits(tmp_path, ROWS)
    return workspace_of(tmp_path, [latest(source, incremental_backfills=True), totals(source)])


def test_a_job_that_fails_in_the_middle_leaves_the_others_done(tmp_path: Path) -> None:
    def breaking(visits: pl.DataFrame) -> pl.DataFrame:
        if 2 in visits["visits"]:
            raise ValueError("user 271828 is broken")
        return visits

    workspace = workspace_of(tmp_path, [latest(write_visits(tmp_path, ROWS), breaking)])
    view, tasks, reports = workspace.repo.view("newest"), tasks_of("newest", 1, 2, 3), []
    jobs_to_be = run_tasks(view, tasks, workspace.stores, trigger="test")
    reports += [next(jobs_to_be), next(jobs_to_be)]
    with pytest.raises(MaterializationFailed, match="newest: 1 job failed") as failed:
        next(jobs_to_be)
    assert [r.job.interval.start for r in reports] == [day(1), day(3)]
    assert [r.job.state for r in reports] == ["SUCCESS", "SUCCESS"]
    (interval, error) = failed.value.failures[0]
    assert interval == Interval(day(2), day(3))
    assert "the transformation raised ValueError" in str(error)
    for store in (ONLINE, OFFLINE):
        assert covered(workspace, "newest", store).intervals == (Interval(day(1), day(2)), Interval(day(3), day(4)))
    jobs = {job.interval.start: job for job in workspace.stores.ledger.jobs("world", "newest")}
    assert [jobs[day(n)].state for n in (1, 2, 3)] == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert jobs[day(2)].reason == "newest: the transformation raised ValueError"
    assert "271828" not in f"{failed.value} {jobs[day(2)]}"


def test_an_error_that_is_not_ours_is_recorded_by_its_type_only(workspace: Workspace) -> None:
    def interrupted(step: str, task: Task) -> None:
        raise RuntimeError("user 271828")

    view, tasks = workspace.repo.view("newest"), tasks_of("newest", 1)
    steps: list[str] = []

    def later(step: str, task: Task) -> None:
        steps.append(step)
        if step == "written_offline":
            interrupted(step, task)

    with pytest.raises(MaterializationFailed) as failed:
        list(run_tasks(view, tasks, workspace.stores, trigger="test", on_step=later))
    (job,) = workspace.stores.ledger.jobs("world", "newest")
    assert job.state == "FAILURE"
    assert job.reason is not None
    assert job.reason.startswith("RuntimeError")
    assert "271828" not in f"{failed.value} {job.reason}"
    assert steps == ["claimed", "computed", "written_offline"]
    assert not covered(workspace, "newest", OFFLINE), "written, but not recorded: to be done again"
    run(workspace, tasks)
    assert covered(workspace, "newest", OFFLINE).covers(Interval(day(1), day(2)))


def test_a_report_counts_what_was_done(workspace: Workspace) -> None:
    (report,) = materialize(workspace, "newest", day(1), day(4))
    assert report.rows == 3
    assert report.rows_by_start == {day(1): 1, day(2): 1, day(3): 1}
    assert report.null_counts == {"user": 0, "ts": 0, "amount": 0, "visits": 0, "page": 0}
    assert report.job.stats == {"rows": 3, "rows_offline": 3, "rows_replaced": 0, "rows_online": 1}
    (again,) = materialize(workspace, "newest", day(1), day(4), overwrite=True)
    replaced = {"rows": 3, "rows_offline": 3, "rows_replaced": 3, "rows_online": 1}
    assert again.job.stats == replaced | {"rows_online_skipped": 2, "keys_cleared": 0}
    assert again.job.trigger == "test"


@pytest.mark.parametrize("view", ["newest", "totals"])
def test_a_second_run_is_refused_without_overwrite_and_changes_nothing(workspace: Workspace, view: str) -> None:
    run(workspace, tasks_of(view, 1, 2))
    version = workspace.stores.offline.version(view)
    with pytest.raises(MaterializationFailed, match="overwrite"):
        run(workspace, tasks_of(view, 1, 2))
    assert workspace.stores.offline.version(view) == version
    run(workspace, tasks_of(view, 1, 2, overwrite=True))
    assert workspace.stores.offline.version(view) > version


@pytest.mark.parametrize("view", ["newest", "totals"])
def test_a_refused_job_in_the_middle_leaves_the_others_done(workspace: Workspace, view: str) -> None:
    run(workspace, tasks_of(view, 2))
    with pytest.raises(MaterializationFailed):
        run(workspace, tasks_of(view, 1, 2, 3))
    assert covered(workspace, view, OFFLINE).intervals == (Interval(day(1), day(4)),)


@pytest.mark.parametrize("view", ["newest", "totals"])
def test_an_online_job_reads_the_offline_store_where_it_is_covered(
    tmp_path: Path, workspace: Workspace, view: str
) -> None:
    first = workspace.repo.view(view).materialization_start
    assert first is not None
    materialize(workspace, view, first, day(11), online=False)
    before = workspace.get_feature_view(view).get_online_features({"user": 1})
    assert set(before.statuses.values()) == {UNKNOWN}
    (tmp_path / "visits.parquet").unlink()
    (report,) = materialize(workspace, view, first, day(11), offline=False)
    assert report.offline is None
    after = workspace.get_feature_view(view).get_online_features({"user": 1})
    assert set(after.statuses.values()) == {PRESENT}


def test_an_online_job_computes_what_the_offline_store_lacks(workspace: Workspace) -> None:
    materialize(workspace, "newest", day(10), day(11), offline=False)
    assert not covered(workspace, "newest", OFFLINE)
    assert workspace.get_feature_view("newest").get_online_features({"user": 1}).to_dict()["visits"] == 10


@pytest.mark.parametrize("view", ["newest", "totals"])
def test_an_overwrite_replaces_its_interval_and_nothing_else(tmp_path: Path, workspace: Workspace, view: str) -> None:
    first = workspace.repo.view(view).materialization_start
    assert first is not None
    materialize(workspace, view, first, day(11))
    rewrite(tmp_path, [visit(1, 2.25), visit(2, 2.25), visit(1, 3.25)])
    before = everything(workspace, view)
    materialize(workspace, view, day(2), day(3), overwrite=True)
    after = everything(workspace, view)
    outside = [row for row in before if not day(2) <= row[1] < day(3)]
    inside = [row for row in after if day(2) <= row[1] < day(3)]
    assert [row for row in after if not day(2) <= row[1] < day(3)] == outside
    assert [user for user, _ in inside] == [1, 2]


def test_an_overwrite_of_tiles_leaves_online_what_is_offline(tmp_path: Path, workspace: Workspace) -> None:
    materialize(workspace, "totals")
    rewrite(tmp_path, [visit(2, 10.5, 5.0, 5)])
    (report,) = materialize(workspace, "totals", day(10), day(11), overwrite=True)
    assert (report.offline.rows_replaced, report.offline.rows_written, report.keys_cleared) == (1, 1, 1)
    assert report.job.stats["keys_cleared"] == 1
    handle = workspace.get_feature_view("totals")
    asked = pl.DataFrame({"user": [1, 2, 3], "ts": [day(11)] * 3})
    offline = handle.get_features_for_events(asked).to_arrow().drop_columns(["user", "ts"]).to_pylist()
    online = handle.get_online_features_many([{"user": user} for user in (1, 2, 3)])
    assert [list(vector.to_dict().values()) for vector in online] == [list(row.values()) for row in offline]
    assert online[0].to_dict()["count_3d"] == 2, "the eighth and the ninth; the tenth is gone"


def test_an_overwrite_that_is_run_again_after_the_offline_commit_still_clears_vanished_keys(
    tmp_path: Path, workspace: Workspace
) -> None:
    materialize(workspace, "totals")
    rewrite(tmp_path, [visit(2, 10.5, 5.0, 5)])

    def fail(step: str, task: Task) -> None:
        if step == "written_offline":
            raise RuntimeError

    view, tasks = workspace.repo.view("totals"), tasks_of("totals", 10, overwrite=True)
    with pytest.raises(MaterializationFailed):
        list(run_tasks(view, tasks, workspace.stores, trigger="test", on_step=fail))
    run(workspace, tasks)
    vectors = workspace.get_feature_view("totals").get_online_features_many([{"user": 1}, {"user": 2}])
    assert [vector.to_dict()["count_3d"] for vector in vectors] == [2, 1]


def test_an_overwrite_of_older_rows_keeps_the_newest_online(tmp_path: Path, workspace: Workspace) -> None:
    materialize(workspace, "newest", day(1), day(11))
    rewrite(tmp_path, [visit(1, 3.25, 99.0)])
    materialize(workspace, "newest", day(3), day(4), overwrite=True)
    assert workspace.get_feature_view("newest").get_online_features({"user": 1}).to_dict()["amount"] == 10.0


def test_rows_that_have_expired_are_not_written_online(tmp_path: Path) -> None:
    view = latest(write_visits(tmp_path, ROWS[:3]), ttl=DAY)
    workspace = workspace_of(tmp_path, [view])
    (report,) = materialize(workspace, "newest", day(1), day(11))
    assert report.job.stats["rows_offline"] == 3
    assert report.job.stats["rows_online"] == 0
    vector = workspace.get_feature_view("newest").get_online_features({"user": 1})
    assert set(vector.statuses.values()) == {MISSING_DATA}


def test_an_interval_without_rows_is_covered(tmp_path: Path) -> None:
    source = write_visits(tmp_path, [])
    workspace = workspace_of(tmp_path, [latest(source), totals(source)])
    for view in workspace.list_feature_views():
        (report,) = run(workspace, tasks_of(view, 1))
        assert report.rows == 0
        for store in (ONLINE, OFFLINE):
            assert covered(workspace, view, store).covers(Interval(day(1), day(2)))


def test_no_value_is_logged(workspace: Workspace, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    rewrite(tmp_path, [visit(271828, 1.5, 314159.0)])
    with caplog.at_level(logging.DEBUG):
        for view in workspace.list_feature_views():
            materialize(workspace, view)
            workspace.get_feature_view(view).get_online_features({"user": 271828})
    assert "271828" not in caplog.text
    assert "314159" not in caplog.text


# ---- reads during jobs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["newest", "totals"])
def test_a_read_during_an_overwrite_answers_the_state_before_or_after_it(tmp_path: Path, view: str) -> None:
    users = range(300)
    states = [[visit(u, 10 + n / 24, float(scale), scale) for u in users for n in range(1, 4)] for scale in (1, 1000)]
    source = write_visits(tmp_path, states[0])
    workspace = workspace_of(tmp_path, [latest(source), totals(source)])
    materialize(workspace, view)
    handle = workspace.get_feature_view(view)

    def snapshot() -> list[tuple[Any, ...]]:
        vectors = handle.get_online_features_many([{"user": user} for user in users])
        return [tuple(vector.to_dict().values()) for vector in vectors]

    known = [snapshot()[0]]
    done = threading.Event()
    seen: set[tuple[Any, ...]] = set()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                seen.update(snapshot())
                seen.add(tuple(handle.get_online_features({"user": 7}).to_dict().values()))
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for state in (1, 0, 1):
        rewrite(tmp_path, states[state])
        materialize(workspace, view, day(10), day(11), overwrite=True)
        known.append(snapshot()[0])
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert len(set(known)) == 2
    assert seen <= set(known)


def test_a_read_while_the_next_interval_is_written_answers_the_state_before_or_after_it(tmp_path: Path) -> None:
    users = range(300)
    rows = [visit(u, n + 0.5, float(n), n) for u in users for n in range(1, 11)]
    now = [day(9)]
    workspace = workspace_of(tmp_path, [totals(write_visits(tmp_path, rows))], now=lambda: now[0])
    materialize(workspace, "totals")
    handle = workspace.get_feature_view("totals")
    seen: set[tuple[Any, ...]] = set()
    now[0] = day(11)

    def look(step: str, task: Task) -> None:
        for vector in handle.get_online_features_many([{"user": user} for user in users]):
            answer = vector.to_dict(return_effective_times=True)
            seen.add((answer["sum_1d"]["value"], answer["visits_3d"]["value"], answer["sum_1d"]["effective_time"]))

    view = workspace.repo.view("totals")
    list(run_tasks(view, tasks_of("totals", 9, 10), workspace.stores, trigger="test", on_step=look))
    assert seen == {(float(n), 3 * n - 3, day(n + 1)) for n in (8, 9, 10)}
