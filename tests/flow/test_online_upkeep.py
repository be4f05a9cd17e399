"""Compaction and online clean-up: as jobs of Dagster, from Python and the command line, and what comes after them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from featurekit_dagster import Aggregation, BatchSource, FileConfig, TimeWindow, Workspace
from featurekit_dagster.cli import app
from featurekit_dagster.errors import NotKeptOnline
from featurekit_dagster.execution.compaction import compact_view
from featurekit_dagster.handles import FeatureViewHandle
from featurekit_dagster.serving.vector import PRESENT, UNKNOWN
from featurekit_dagster.stores.ledger_records import COMPACTION, ONLINE_CLEAN_UP
from tests.support.clicks import compacted
from tests.support.clock import Clock
from tests.support.visits import (
    DAY,
    HOUR,
    NOW,
    Row,
    day,
    latest,
    materialize,
    totals,
    visit,
    workspace_of,
    write_visits,
)

DAY_US, HOUR_US = DAY // timedelta(microseconds=1), HOUR // timedelta(microseconds=1)
USERS = range(1, 6)


def visits() -> list[Row]:
    """One visit of each user in every second hour of ten days."""
    return [visit(user, 1 + hour / 24, float(hour + user)) for user in USERS for hour in range(0, 240, 2)]


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


def visits_file(folder: Path) -> FileConfig:
    return FileConfig(uri=str(folder / "visits.parquet"), file_format="parquet", timestamp_field="ts")


def declared(folder: Path, clock: Clock) -> Workspace:
    source = BatchSource(name="visits", batch_config=visits_file(folder))
    return workspace_of(folder, [totals(source), latest(source, ttl=2 * DAY), latest(source, name="for_ever")], clock)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten days in both stores."""
    folder = tmp_path_factory.mktemp("filled")
    write_visits(folder, visits())
    made = declared(folder, Clock(NOW))
    for name in ("totals", "newest", "for_ever"):
        materialize(made, name)
    made.stores.online.close()
    return folder


@pytest.fixture
def workspace(filled: Path, tmp_path: Path, clock: Clock) -> Iterator[Workspace]:
    """A copy of it, with a source of its own."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    made = declared(tmp_path, clock)
    yield made
    made.stores.online.close()


def vectors(handle: FeatureViewHandle) -> list[dict[str, Any]]:
    return [handle.get_online_features({"user": user}).to_dict() for user in USERS]


def compact(workspace: Workspace) -> dict[str, int]:
    view = workspace.repo.view("totals")
    return compact_view(view, workspace.stores, holder="test", check=lambda: None, patience=timedelta(0))


def tile_us(workspace: Workspace, view: str = "totals") -> int | None:
    return workspace.stores.online_layout(workspace.repo.view(view)).tile_us


def test_the_dagster_job_lays_tiles_out_anew_and_shows_the_view_what_was_done(workspace: Workspace) -> None:
    handle, defs = workspace.get_feature_view("totals"), workspace.definitions()
    before, covered = vectors(handle), workspace.stores.coverage(handle.declaration, "online")
    assert defs.resolve_schedule_def("compaction_schedule").cron_schedule == "30 3 * * *"
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def("compaction")
        assert job.execute_in_process(run_config={"views": ["totals"]}, instance=instance).success
        (seen,) = instance.fetch_observations(dg.AssetKey("totals"), limit=5).records
    told = seen.asset_observation
    assert told is not None
    assert told.metadata["featurekit/kind"].value == COMPACTION
    (done, *_) = handle.list_jobs()
    assert (done.job_type, done.state, len(done.attempts), done.online, done.offline) == (
        COMPACTION,
        "SUCCESS",
        1,
        True,
        False,
    )
    # three days of hourly tiles, in two or three chunks, became three daily ones in one
    assert (done.stats["laid_out_anew"], done.stats["tile_seconds"], done.stats["values_after"]) == (1, 86_400, 5)
    assert done.stats["bytes_after"] * 4 < done.stats["bytes_before"]
    assert (tile_us(workspace), vectors(handle)) == (DAY_US, before)
    assert workspace.stores.coverage(handle.declaration, "online") == covered
    assert workspace.plan(["totals"])[0].runs == ()


def test_the_handle_compacts_and_later_jobs_and_overwrites_stay_exact(workspace: Workspace, clock: Clock) -> None:
    handle = workspace.get_feature_view("totals")
    with pytest.warns(UserWarning, match="no Dagster daemon"):
        done = handle.compact()
    assert done is not None
    assert done.stats["laid_out_anew"] == 1
    write_visits(workspace.home.parent, [visit(1, 9.5, 7.0), visit(2, 10.25, 3.0), visit(1, 11.5, 1.0)])
    materialize(workspace, "totals", day(9), day(11), overwrite=True)
    clock.now = NOW + DAY
    materialize(workspace, "totals")
    assert vectors(handle)[:2] == [
        {"sum_1d": 1.0, "count_3d": 2, "visits_3d": 2, "mean_3d": 4.0},
        {"sum_1d": None, "count_3d": 1, "visits_3d": 1, "mean_3d": 3.0},
    ]
    assert vectors(handle)[2:] == [{"sum_1d": None, "count_3d": 0, "visits_3d": None, "mean_3d": None}] * 3


def test_a_window_declared_later_is_unknown_until_the_next_compaction_brings_back_what_it_needs(
    workspace: Workspace, tmp_path: Path
) -> None:
    assert compact(workspace)["laid_out_anew"]
    source = write_visits(tmp_path, visits())
    aggregations = [
        Aggregation("visits", "count", TimeWindow(3 * DAY), name="count_3d"),
        Aggregation("visits", "count", TimeWindow(8 * DAY), name="count_8d"),
        Aggregation("visits", "count", TimeWindow(6 * HOUR), name="count_6h"),
    ]
    wider = workspace_of(tmp_path, [totals(source, aggregations=aggregations)])
    handle = wider.get_feature_view("totals")
    vector = handle.get_online_features({"user": 1})
    assert vector.to_dict() == {"count_3d": 36, "count_8d": None, "count_6h": None}
    assert [vector.statuses[name] for name in handle.features] == [PRESENT, UNKNOWN, UNKNOWN]
    assert compact(wider)["laid_out_anew"]
    assert handle.get_online_features({"user": 1}).to_dict() == {"count_3d": 36, "count_8d": 96, "count_6h": 3}
    assert tile_us(wider) == 6 * HOUR_US


def test_what_was_overwritten_in_one_store_alone_is_not_laid_out_anew(workspace: Workspace) -> None:
    handle = workspace.get_feature_view("totals")
    write_visits(workspace.home.parent, [visit(1, 10.5, 100.0)])
    materialize(workspace, "totals", day(10), day(11), overwrite=True, offline=False)
    before = vectors(handle)
    assert (compact(workspace)["laid_out_anew"], tile_us(workspace), vectors(handle)) == (0, HOUR_US, before)
    assert before[0]["sum_1d"] == 100.0
    materialize(workspace, "totals", day(10), day(11), overwrite=True)
    assert compact(workspace)["laid_out_anew"]
    assert (tile_us(workspace), vectors(handle)) == (DAY_US, before)


def test_the_command_compacts_and_the_clean_up_forgets_what_no_window_reaches(
    workspace: Workspace, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurekit_dagster.sdk.get_workspace", lambda name: workspace)
    answer = CliRunner().invoke(app, ["compact", "--json"])
    assert answer.exit_code == 0, answer.output
    assert [(job["view"], job["kind"], job["state"]) for job in json.loads(answer.stdout)] == [
        ("totals", COMPACTION, "SUCCESS")
    ]
    handle = workspace.get_feature_view("totals")
    clock.now = NOW + DAY
    materialize(workspace, "totals")
    before = vectors(handle)
    answer = CliRunner().invoke(app, ["clean-up"])
    assert answer.exit_code == 0, answer.output
    assert "totals" in answer.output
    # an hour before now the edge was a day earlier than now, so of each user the fourth day before now goes
    assert (handle.list_jobs()[0].job_type, handle.list_jobs()[0].stats["removed"]) == (ONLINE_CLEAN_UP, 5)
    clock.now += 2 * HOUR
    answer = CliRunner().invoke(app, ["clean-up", "totals", "--json"])
    (told,) = json.loads(answer.stdout)
    assert (told["stats"]["removed"], vectors(handle)) == (5, before)


def test_expired_rows_go_and_those_that_never_expire_stay(workspace: Workspace, clock: Clock) -> None:
    newest, for_ever = workspace.get_feature_view("newest"), workspace.get_feature_view("for_ever")
    with dg.DagsterInstance.ephemeral() as instance:
        job = workspace.definitions().resolve_job_def("online_clean_up")
        assert job.execute_in_process(instance=instance).success
        assert newest.list_jobs()[0].stats["removed"] == 0
        clock.now = NOW + 3 * DAY
        before = vectors(newest)
        assert job.execute_in_process(instance=instance).success
    assert (newest.list_jobs()[0].stats["removed"], newest.list_jobs()[0].stats["values_after"]) == (5, 0)
    assert vectors(newest) == before
    assert all(value is None for vector in before for value in vector.values())
    assert vectors(for_ever)[0]["amount"] == 239.0
    assert [job.job_type for job in for_ever.list_jobs()] == ["BATCH"] * len(for_ever.list_jobs())
    with pytest.raises(NotKeptOnline, match="nothing of it can be made small"):
        for_ever.clean_up_online()
    with pytest.raises(NotKeptOnline, match="compaction takes views with aggregates online"):
        newest.compact()


def test_an_untiled_view_is_served_online_in_the_largest_tiles(tmp_path: Path) -> None:
    rows = [visit(1, 9.5, 2.0), visit(1, 10 + 23.5 / 24, 4.0), visit(1, 10.0, 8.0)]
    view = compacted(tmp_path, rows, Aggregation("amount", "sum", TimeWindow(timedelta(minutes=90))), online=True)
    workspace = workspace_of(tmp_path, [view])
    materialize(workspace, "batch")
    handle = workspace.get_feature_view("batch")
    assert handle.get_online_features({"user": 1}).to_dict() == {"amount_sum_1h30m": 4.0}
    assert tile_us(workspace, "batch") == 3 * HOUR_US // 2
