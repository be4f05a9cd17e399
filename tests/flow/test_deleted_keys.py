"""Deleting join keys from Python, the shell and the launchpad: refused, hidden at once, gone in the end, kept out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from featurekit_dagster import PublishFeaturesConfig, Workspace
from featurekit_dagster.cli import app
from featurekit_dagster.errors import JobFailedException, KeysRefused, TectonValidationError
from featurekit_dagster.execution.delete_keys import KeyRemoval
from featurekit_dagster.execution.deletion_request import folder_of
from featurekit_dagster.execution.repair import repair_coverage
from featurekit_dagster.stores.ledger_records import JobRecord
from tests.support.scores import FIRST as SCORED
from tests.support.scores import HOUR, Table, rows
from tests.support.visits import day, latest, materialize, totals, visit, workspace_of, write_visits

HERE = "carried out in this process"
VISITS = [visit(user, number + 0.3, user * 10.0 + number) for user in (1, 2, 3) for number in range(1, 5)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    return tmp_path


@pytest.fixture
def workspace(home: Path) -> Workspace:
    source = write_visits(home, VISITS)
    return workspace_of(home, [totals(source), latest(source)], now=day(5))


def answers(workspace: Workspace, view: str = "totals") -> dict[int, tuple[float | None, float | None]]:
    """Return what each user has online and at the same time offline."""
    handle, name = workspace.get_feature_view(view), "visits_3d" if view == "totals" else "amount"
    spine = pl.DataFrame({"user": [1, 2, 3], "at": [day(5)] * 3})
    offline = handle.get_features_for_events(spine).to_arrow()[f"{view}__{name}"].to_pylist()
    online = [handle.get_online_features({"user": user}).to_dict()[name] for user in (1, 2, 3)]
    return dict(zip((1, 2, 3), zip(online, offline, strict=True), strict=True))


def finish(workspace: Workspace, job_id: str) -> JobRecord:
    """Carry a waiting deletion out without Dagster."""
    ledger, stores = workspace.stores.ledger, workspace.stores
    job = ledger.begin(job_id, run_id=None)
    removal = KeyRemoval(workspace.repo.view(job.view), stores, job, lambda: None)
    return ledger.finish_chore(job_id, stats=removal.carry_out())


def users(*given: int) -> pa.Table:
    return pa.table({"user": pa.array(given, pa.int64())})


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        (pa.table({"users": [1]}), "must be exactly the join keys user"),
        (pa.table({"user": [1], "more": [1]}), "must be exactly the join keys user"),
        (users(), "there are none"),
        (pa.table({"user": [1] * 10_001}), "at most 10,000"),
        (pa.table({"user": ["a-secret"]}), "cannot be Int64 without loss"),
        (pa.table([[1], [2]], names=["user", "user"]), "more than once"),
        ([1, 2], "is no frame"),
    ],
)
def test_keys_that_do_not_fit_are_refused_and_no_value_is_told(workspace: Workspace, keys: Any, rule: str) -> None:
    materialize(workspace, "totals")
    with pytest.raises(TectonValidationError, match=rule) as refusal:
        workspace.get_feature_view("totals").delete_keys(keys)
    assert "a-secret" not in str(refusal.value)
    assert {job.kind for job in workspace.jobs("totals")} == {"BATCH"}


def test_a_store_has_to_be_named(workspace: Workspace) -> None:
    with pytest.raises(KeysRefused, match="name a store"):
        workspace.get_feature_view("totals").delete_keys(users(1), online=False, offline=False)


def test_what_was_never_materialized_is_skipped_with_a_note(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = workspace.get_feature_view("totals")
    assert handle.delete_keys(users(1)) == []
    assert capsys.readouterr().out.count("nothing was ever materialized") == 2
    materialize(workspace, "totals", day(1), day(5), online=False)
    assert len(handle.delete_keys(users(1))) == 1
    assert capsys.readouterr().out.count("nothing was ever materialized online") == 1


@pytest.mark.parametrize("view", ["totals", "newest"])
def test_deleted_keys_are_hidden_at_once_gone_after_the_job_and_kept_out(workspace: Workspace, view: str) -> None:
    materialize(workspace, view)
    handle, before = workspace.get_feature_view(view), answers(workspace, view)
    keys = pd.DataFrame({"user": [1, 2, 1]})
    (job_id,) = handle.delete_keys(keys)
    gone = (None, None)
    assert answers(workspace, view) == {1: gone, 2: gone, 3: before[3]}
    (kept,) = folder_of(workspace.stores).glob("*.parquet")
    assert kept.stat().st_mode & 0o777 == 0o600
    done = finish(workspace, job_id)
    assert not list(folder_of(workspace.stores).iterdir())
    assert done.stats["keys"] == 2
    assert done.stats["rows_offline"] == 8
    assert done.stats["files_rewritten"] == 4
    assert done.stats["rows_online"] == (8 if view == "totals" else 2)
    materialize(workspace, view, day(1), day(5), overwrite=True)
    assert answers(workspace, view) == {1: gone, 2: gone, 3: before[3]}
    spine = pl.DataFrame({"user": [1, 3], "at": [day(5)] * 2})
    frame = handle.get_features_for_events(spine, from_source=True).to_arrow()
    assert frame.column(frame.num_columns - 1).to_pylist()[0] is None
    job = workspace.jobs(view)[0]
    assert (job.kind, job.stats["rows_deleted"], job.stats["rows"]) == ("BATCH", 8, 4)
    status = handle.deletion_status()
    assert status[["TYPE", "STATUS"]].values.tolist() == [["DELETION", "SUCCESS"]]
    assert "STATE_MESSAGE" in handle.deletion_status(verbose=True, sort_columns="job_created_at, type").columns
    assert handle.deletion_status(limit=0).empty
    assert handle.deletion_status(errors_only=True).empty


def test_allowed_keys_come_back_with_the_next_overwrite(workspace: Workspace) -> None:
    materialize(workspace, "totals")
    handle, before = workspace.get_feature_view("totals"), answers(workspace)
    (job_id,) = handle.delete_keys(users(1), permanent=True)
    finish(workspace, job_id)
    assert handle.allow_keys(users(1, 2)) == 1
    assert answers(workspace) == {**before, 1: (None, None)}
    materialize(workspace, "totals", day(1), day(5), overwrite=True)
    assert answers(workspace) == before


def test_keys_are_not_allowed_before_their_rows_are_deleted_unless_that_was_cancelled(workspace: Workspace) -> None:
    materialize(workspace, "totals")
    handle, before = workspace.get_feature_view("totals"), answers(workspace)
    (job_id,) = handle.delete_keys(users(1, 2), online=False)
    with pytest.raises(KeysRefused, match=f"job {job_id} has yet to delete rows of 1 of them; wait for it or cancel"):
        handle.allow_keys(users(1, 3))
    assert answers(workspace) == {user: (before[user][0], None if user < 3 else before[3][1]) for user in before}
    assert handle.allow_keys(users(3)) == 0
    workspace.stores.ledger.cancel(job_id)
    assert handle.allow_keys(users(1)) == 1
    assert answers(workspace) == {**before, 2: (before[2][0], None)}


def test_one_store_alone(workspace: Workspace) -> None:
    materialize(workspace, "totals")
    handle, before = workspace.get_feature_view("totals"), answers(workspace)
    handle.delete_keys(users(1), offline=False)
    handle.delete_keys(users(2), online=False)
    now = answers(workspace)
    assert now == {1: (None, before[1][1]), 2: (before[2][0], None), 3: before[3]}
    materialize(workspace, "totals", day(1), day(5), overwrite=True)
    assert answers(workspace) == now


def test_repair_gives_an_online_store_that_came_back_from_a_copy_its_tombstones(workspace: Workspace) -> None:
    materialize(workspace, "totals")
    handle, stores = workspace.get_feature_view("totals"), workspace.stores
    stores.online.close()
    online = stores.home / "online"
    os.rename(online, stores.home / "copy")
    handle.delete_keys(users(1), offline=False)
    stores.online.close()
    os.rename(online, stores.home / "lost")
    os.rename(stores.home / "copy", online)
    list(repair_coverage([handle.declaration], stores))
    assert answers(workspace)[1][0] is None


@pytest.mark.slow
def test_a_job_whose_keys_are_gone_fails_for_good(workspace: Workspace) -> None:
    materialize(workspace, "totals")
    handle = workspace.get_feature_view("totals")
    (job_id,) = handle.delete_keys(users(1))
    for path in folder_of(workspace.stores).iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match=HERE), pytest.raises(JobFailedException, match="KeysGone|are not in"):
        handle.wait_for_deletion_job(job_id)


def test_the_files_of_cancelled_jobs_go_with_the_next_request(workspace: Workspace) -> None:
    materialize(workspace, "totals")
    handle = workspace.get_feature_view("totals")
    (job_id,) = handle.delete_keys(users(1))
    workspace.stores.ledger.cancel(job_id)
    handle.delete_keys(users(2))
    assert len(list(folder_of(workspace.stores).glob("*.parquet"))) == 1
    assert answers(workspace)[1] == (None, None)


@pytest.mark.slow
def test_keys_go_from_the_warehouse_and_are_named_with_datasets(home: Path) -> None:
    source = write_visits(home, VISITS)
    view = totals(source, publish_features_config=PublishFeaturesConfig())
    workspace = workspace_of(home, [view], now=day(5))
    materialize(workspace, "totals")
    handle = workspace.get_feature_view("totals")
    with pytest.warns(UserWarning, match=HERE):
        handle.publish()
    spine = pl.DataFrame({"user": [1, 3], "at": [day(5)] * 2})
    with pytest.warns(UserWarning, match=HERE):
        handle.get_features_for_events(spine).start_dataset_job("both").wait_for_completion()
    (job_id,) = handle.delete_keys(users(1))
    with pytest.warns(UserWarning, match=HERE):
        done = handle.wait_for_deletion_job(job_id)
    assert done.stats["rows_published"] > 0
    assert done.stats["datasets"] == 1
    assert (workspace.stores.ledger.job(job_id).request or {})["datasets"] == ["both"]


def test_feature_tables_refuse_rows_of_deleted_keys(tmp_path: Path) -> None:
    table = Table(tmp_path / "home")
    table.handle.ingest(rows(("a", SCORED, 1.0), ("b", SCORED, 2.0)))
    table.handle.delete_keys(pa.table({"user_id": ["a"]}))
    assert table.online("a") is None
    job = table.handle.ingest(rows(("a", SCORED, 1.0)))
    assert (job.stats["rows_deleted"], job.stats.get("rows_online")) == (1, 0)
    later = table.clock.now + HOUR
    table.clock.now = later
    table.handle.ingest(rows(("a", later, 3.0), ("b", SCORED, 2.0)))
    assert table.online("a") == 3.0
    assert table.stored() == [("a", later, 3.0), ("b", SCORED, 2.0)]


@pytest.mark.parametrize(("online", "offline"), [(True, False), (False, True)])
def test_feature_tables_take_rows_of_keys_that_were_deleted_from_the_other_store(
    tmp_path: Path, online: bool, offline: bool
) -> None:
    table = Table(tmp_path / "home")
    table.handle.ingest(rows(("b", SCORED, 2.0)))
    table.handle.delete_keys(pa.table({"user_id": ["a"]}), online=online, offline=offline)
    table.handle.ingest(rows(("a", SCORED, 1.0)))
    assert (table.online("a"), ("a", SCORED, 1.0) in table.stored()) == (None if online else 1.0, not offline)


@pytest.mark.slow
def test_launchpad_takes_a_file_and_shows_no_key(workspace: Workspace, home: Path) -> None:
    materialize(workspace, "totals")
    pl.DataFrame({"user": [1]}).write_csv(home / "keys.csv")
    job = workspace.definitions().resolve_job_def("delete_keys")
    config = {"view": "totals", "keys_file": str(home / "keys.csv"), "vacuum": True}
    with dg.DagsterInstance.get() as instance:
        result = job.execute_in_process(run_config=config, instance=instance)
        refused = job.execute_in_process(run_config={"view": "totals"}, instance=instance, raise_on_error=False)
        (seen,) = instance.fetch_observations(dg.AssetKey("totals"), limit=5).records
    assert result.success
    assert not refused.success
    assert seen.asset_observation is not None
    assert seen.asset_observation.metadata["featurekit/rows_offline"].value == 4
    lake = Path(workspace.stores.offline.location("totals"))  # type: ignore[attr-defined]
    assert len(list(lake.rglob("*.parquet"))) == 4
    assert answers(workspace)[1] == (None, None)


@pytest.mark.slow
def test_commands(workspace: Workspace, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    materialize(workspace, "totals")
    users(1, 2).to_pandas().to_parquet(home / "keys.parquet")
    monkeypatch.setattr("featurekit_dagster.sdk.get_workspace", lambda name: workspace)
    keys = ["--keys", str(home / "keys.parquet")]
    with pytest.warns(UserWarning, match=HERE):
        done = CliRunner().invoke(app, ["delete-keys", "totals", *keys, "--permanent"])
    assert done.exit_code == 0, done.output
    assert "2 keys hidden from every read" in done.output
    assert "8 rows gone offline, 4 files written again" in done.output
    status = CliRunner().invoke(app, ["deletion-status", "totals", "--json"])
    (shown,) = json.loads(status.output)
    assert (shown["state"], shown["stats"]["keys"], shown["datasets"]) == ("SUCCESS", 2, [])
    assert "SUCCESS" in CliRunner().invoke(app, ["deletion-status", "totals"]).output
    allowed = CliRunner().invoke(app, ["allow-keys", "totals", *keys])
    assert "2 deleted keys may be stored again" in allowed.output
