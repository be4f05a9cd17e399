"""Online answers beside offline ones: the same after jobs of every kind, and each planted difference is found."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.engine.local import compute_stored
from featurekit_dagster.errors import ReadError
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.execution.online_rows import online_rows
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.planner import split_tasks
from featurekit_dagster.serving.consistency import ConsistencyReport, check_consistency
from tests.flow.payments import USERS, day, payments_workspace, run_asset


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path, now=day(5), data_delay=timedelta(hours=1))


def materialize(workspace: Workspace, first: int, end: int, view_name: str = "spending", **stores: bool) -> None:
    view = workspace.repo.view(view_name)
    wanted = {"online": view.online, "offline": view.offline} | stores
    tasks = split_tasks(view, Interval(day(first), day(end)), **wanted)
    list(run_tasks(view, tasks, workspace.stores, trigger="manual"))


def write_online(workspace: Workspace, rows: pa.Table, number: int) -> None:
    """Write tiles of a day online, behind the ledger's back."""
    view, stores = workspace.repo.view("spending"), workspace.stores
    interval, layout = Interval(day(number), day(number + 1)), stores.online_layout(view)
    covered: IntervalSet = stores.online.coverage(layout)
    records = online_rows(view, rows, interval, workspace.now())
    stores.online.write(layout, records, covered=covered, epoch=2**40, replace=interval)


def checked(workspace: Workspace, **options: int) -> ConsistencyReport:
    return check_consistency(workspace.repo.view("spending"), workspace.stores, **options)


def counts(report: ConsistencyReport) -> dict[str, tuple[int, int, int]]:
    return {each.feature: (each.mismatched, each.missing, each.extra) for each in report.features if each.total}


def test_nothing_is_compared_before_something_is_materialized(workspace: Workspace) -> None:
    report = checked(workspace)
    assert (report.time, report.is_consistent, report.features) == (None, True, ())


def test_what_jobs_have_written_is_the_same_in_both_stores_as_of_the_end_of_the_newest(workspace: Workspace) -> None:
    materialize(workspace, 0, 3)
    report = checked(workspace)
    assert report.is_consistent
    assert (report.time, report.keys) == (day(3) + timedelta(hours=1), len(USERS))
    assert [(each.compared, each.unknown) for each in report.features] == [(3, 0), (3, 0)]
    materialize(workspace, 3, 5)
    assert checked(workspace).time == day(5) + timedelta(hours=1)


def test_what_is_not_covered_online_is_not_compared(workspace: Workspace) -> None:
    materialize(workspace, 0, 2, online=False)
    materialize(workspace, 2, 3, offline=False)
    materialize(workspace, 3, 4)
    report = checked(workspace)
    assert report.is_consistent
    assert [each.unknown for each in report.features] == [0, 0]


def test_a_wrong_tile_a_lost_key_and_one_too_many_are_found(workspace: Workspace) -> None:
    materialize(workspace, 0, 3)
    tiles = compute_stored(workspace.repo.view("spending"), Interval(day(2), day(3))).to_pandas().sort_values("user_id")
    tiles.loc[tiles["user_id"] == USERS[0], "sum_amount"] += 0.5
    write_online(workspace, pa.Table.from_pandas(tiles, preserve_index=False), 2)
    assert counts(checked(workspace)) == {"amount_sum_1d_1d": (1, 0, 0)}
    stranger = tiles.head(1).assign(user_id="secret-user-nobody")
    write_online(workspace, pa.Table.from_pandas(stranger, preserve_index=False), 2)
    report = checked(workspace)
    assert counts(report) == {"amount_sum_1d_1d": (1, 0, 1), "amount_count_1d_1d": (0, 0, 1)}
    assert report.stats()["extra"] == 2
    assert "secret" not in f"{report.description}{report.record()}"


def test_a_key_that_is_missing_online_is_found_by_the_sample_of_the_offline_store(workspace: Workspace) -> None:
    materialize(workspace, 0, 3)
    view, stores = workspace.repo.view("spending"), workspace.stores
    stores.online.drop(workspace.name, view.name, None, epoch=2**40)
    stores.online.close()
    tiles = compute_stored(view, Interval(day(0), day(3)))
    some = tiles.filter(pa.compute.not_equal(tiles["user_id"], USERS[1]))
    layout = stores.online_layout(view)
    covered = IntervalSet([Interval(day(0), day(3))])
    records = online_rows(view, some, Interval(day(0), day(3)), workspace.now())
    stores.online.write(layout, records, covered=covered, epoch=2**41)
    report = checked(workspace)
    assert counts(report) == {"amount_sum_1d_1d": (0, 1, 0), "amount_count_1d_1d": (0, 1, 0)}
    assert (report.keys_online, report.keys_offline) == (2, 3)


def test_a_sample_bounds_the_keys_and_is_the_same_again(workspace: Workspace) -> None:
    materialize(workspace, 0, 3)
    reports = [checked(workspace, sample=1, seed=seed) for seed in (1, 1)]
    assert reports[0] == reports[1]
    assert reports[0].keys in (1, 2)


def test_a_source_that_changed_since_is_no_difference_between_the_stores(workspace: Workspace, tmp_path: Path) -> None:
    materialize(workspace, 0, 3)
    file = tmp_path / "payments.parquet"
    pd.read_parquet(file).assign(amount=1.0).to_parquet(file)
    assert checked(workspace).is_consistent


def test_a_view_that_is_not_online_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ReadError, match="not materialized online"):
        check_consistency(workspace.repo.view("last_payment"), workspace.stores)


def test_the_check_is_made_when_it_is_asked_for_alone_and_by_no_materialization(workspace: Workspace) -> None:
    key = dg.AssetCheckKey(dg.AssetKey("spending"), "online_as_offline")
    defs = workspace.definitions()
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_asset(workspace, "spending", 0, 4, instance)
        assert "online_as_offline" not in {e.check_name for e in result.get_asset_check_evaluations()}
        alone = dg.materialize(
            [defs.get_assets_def("spending"), *(defs.asset_checks or ())],
            instance=instance,
            resources=dict(defs.resources or {}),
            selection=dg.AssetSelection.checks(key),
        )
    (evaluation,) = alone.get_asset_check_evaluations()
    assert (evaluation.check_name, evaluation.passed) == ("online_as_offline", True)
    assert evaluation.metadata["featurekit/keys"].value == len(USERS)


def test_the_job_compares_every_online_view_and_tells_the_check_and_the_ledger(workspace: Workspace) -> None:
    materialize(workspace, 0, 3)
    tiles = compute_stored(workspace.repo.view("spending"), Interval(day(2), day(3))).to_pandas()
    write_online(workspace, pa.Table.from_pandas(tiles.assign(count_amount=7), preserve_index=False), 2)
    job = workspace.definitions().resolve_job_def("online_offline_consistency")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, run_config={"sample": 50})
    assert result.success
    (evaluation,) = result.get_asset_check_evaluations()
    assert (evaluation.asset_key.path, evaluation.passed) == (["spending"], False)
    assert evaluation.description == "3 keys were compared: amount_count_1d_1d (3) differ."
    (shown,) = [j for j in workspace.get_feature_view("spending").list_jobs() if j.job_type == "CONSISTENCY"]
    assert (shown.state, len(shown.attempts)) == ("SUCCESS", 1)
    assert "secret" not in f"{evaluation}{[j.stats for j in workspace.jobs('spending')]}"


def test_the_sdk_returns_what_differs(workspace: Workspace) -> None:
    materialize(workspace, 0, 3)
    report = workspace.get_feature_view("spending").check_consistency(sample=5)
    assert report.is_consistent
    assert [job.kind for job in workspace.jobs("spending")] == ["CONSISTENCY", "BATCH"]
    with pytest.raises(ReadError, match="not materialized online"):
        workspace.get_feature_view("last_payment").check_consistency()
