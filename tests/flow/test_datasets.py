"""Datasets: asked for in several ways, made from versions that stay the same, gone on with, kept and taken away."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from deltalake import DeltaTable

from featurekit_dagster import Workspace
from featurekit_dagster.dataset_handles import DatasetJob
from featurekit_dagster.errors import (
    DatasetBusy,
    DatasetChanged,
    DatasetExists,
    DatasetTaken,
    FeatureKitError,
    JobFailedException,
    NoSpine,
    NotADatasetFrame,
    NotFoundError,
    SpineError,
    TectonValidationError,
    VersionGone,
)
from featurekit_dagster.execution.dataset import remove_dataset
from featurekit_dagster.execution.maintenance import maintain_view
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.orchestration.datasets import DATASETS
from featurekit_dagster.orchestration.resources import FeatureStores
from tests.flow.payments import AMOUNT, USERS, day, payments_workspace, write_payments
from tests.support.datasets import after_buckets, content, ended_by, made, make

HOUR = timedelta(hours=1)
ROWS = 36


def materialized(folder: Path) -> Workspace:
    workspace = payments_workspace(folder, now=day(12))
    for plan in workspace.plan(["spending"]):
        for run in plan.runs:
            list(run_tasks(workspace.repo.view(plan.view), run.tasks, workspace.stores, trigger="backfill"))
    view = workspace.repo.view("last_payment")
    run = workspace.plan_interval("last_payment", day(0), day(12), overwrite=False)
    list(run_tasks(view, run.tasks, workspace.stores, trigger="backfill"))
    return workspace


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a workspace of which everything is materialized."""
    folder = tmp_path_factory.mktemp("untouched")
    materialized(folder)
    return folder


@pytest.fixture(scope="module")
def shared(untouched: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace of which everything is materialized; tests give their datasets names of their own."""
    folder = tmp_path_factory.mktemp("payments")
    shutil.copytree(untouched, folder, dirs_exist_ok=True)
    return payments_workspace(folder, now=day(12))


@pytest.fixture
def own(untouched: Path, tmp_path: Path) -> Workspace:
    """A workspace of the test's own, of which everything is materialized."""
    shutil.copytree(untouched, tmp_path, dirs_exist_ok=True)
    return payments_workspace(tmp_path, now=day(12))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as opened:
        yield opened


@pytest.fixture
def spine() -> pd.DataFrame:
    times = [day(2 + number % 9) + number % 24 * HOUR for number in range(ROWS)]
    return pd.DataFrame({"user_id": [USERS[n % 3] for n in range(ROWS)], "asked_at": times, "label": range(ROWS)})


def asked(workspace: Workspace, name: str, spine: Any, bucket_rows: int = 15) -> DatasetJob:
    frame = workspace.get_feature_service("fraud").get_features_for_events(spine)
    job: DatasetJob = frame.start_dataset_job(name, extra_config={"bucket_rows": bucket_rows})
    return job


def overwrite(workspace: Workspace, folder: Path) -> None:
    """Let two days of `spending` be others, as a late correction of its source does."""
    file = folder / "payments.parquet"
    payments = pd.read_parquet(file)
    payments["amount"] = 1.0
    payments.to_parquet(file)
    run = workspace.plan_interval("spending", day(3), day(9), overwrite=True)
    list(run_tasks(workspace.repo.view("spending"), run.tasks, workspace.stores, trigger="manual"))


def test_dataset_of_a_frame_has_its_rows_and_says_how_it_came_about(shared: Workspace, spine: pd.DataFrame) -> None:
    frame = shared.get_feature_service("fraud").get_features_for_events(spine)
    job = frame.start_dataset_job("from_frame", extra_config={"bucket_rows": 10}, job_retry_times=0)
    assert (job.get_dataset(), job.progress, job.state) == (None, (0, 4), "RUNNING")
    dataset = made(shared, job)
    assert job.progress == (4, 4)
    assert dataset.to_dataframe().to_arrow().to_pylist() == frame.to_arrow().to_pylist()
    assert dataset.get_spine_dataframe().to_pandas().drop(columns="asked_at").equals(spine.drop(columns="asked_at"))
    assert dataset.columns == frame.columns
    assert dataset.manifest["spine"]["rows"] == dataset.row_count == ROWS
    assert dataset.manifest["versions"]["spending"]["coverage"].endswith("2023-01-13T00:00Z")
    amount = dataset.statistics["spending__amount_sum_1d_1d"]
    assert (amount["min"], sum(amount["histogram"]["counts"])) == (AMOUNT + 1, ROWS * (1 - amount["null_rate"]))
    (record,) = [each for each in shared.jobs() if each.id == job.id]
    assert (record.kind, record.view, record.max_attempts) == ("DATASET_GENERATION", "", 1)
    (shown,) = [each for each in shared.get_feature_service("fraud").list_jobs() if each.id == job.id]
    assert (shown.job_type, shown.feature_service, shown.feature_view) == ("DATASET_GENERATION", "fraud", "")


def test_dataset_of_the_launchpad_reads_a_query(
    shared: Workspace, spine: pd.DataFrame, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    spine.to_parquet(tmp_path / "spine.parquet")
    job = shared.definitions().resolve_job_def("dataset_generation")
    query = f"SELECT user_id, asked_at FROM '{tmp_path / 'spine.parquet'}' WHERE label % 2 = 0"
    config = {"name": "launched", "view": "spending", "spine": query}
    resources = {"feature_stores": FeatureStores.of(shared)}
    result = job.execute_in_process(run_config=config, instance=instance, resources=resources)
    assert result.success
    dataset = shared.get_dataset("launched")
    chosen = spine[spine["label"] % 2 == 0][["user_id", "asked_at"]]
    frame = shared.get_feature_view("spending").get_features_for_events(chosen)
    assert dataset.to_dataframe().to_arrow().to_pylist() == frame.to_arrow().to_pylist()
    (shown,) = result.asset_observations_for_node("dataset_generation_jobs")
    assert shown.metadata["featurekit/rows"].value == ROWS // 2
    logged = [repr(record) for record in instance.all_logs(result.run_id)]
    assert logged
    assert not any(user in line for line in logged for user in USERS)
    (record,) = shared.get_feature_view("spending").list_jobs()[:1]
    assert (record.job_type, record.state) == ("DATASET_GENERATION", "SUCCESS")
    assert record.stats == {"rows": ROWS // 2, "features": 2, "buckets": 1, "buckets_before": 0}


@pytest.mark.parametrize(
    ("config", "refusal"),
    [
        ({"view": "spending", "spine": "SELECT 1"}, "a name, a spine, and either a service or a view"),
        ({"name": "x", "spine": "SELECT 1"}, "a name, a spine, and either a service or a view"),
        ({"name": "x", "service": "fraud", "spine": "SELECT nothing"}, "the query is refused: Binder Error"),
        ({"name": "x", "service": "fraud", "spine": "SELECT 1 AS a"}, "join key 'user_id' is not in the spine"),
        ({"name": "x", "service": "fraud", "spine": "gone.parquet"}, "there is no such file"),
        ({"name": "../x", "service": "fraud", "spine": "SELECT 1"}, "cannot be the name of a dataset"),
    ],
)
def test_run_that_asks_for_no_dataset_says_why(shared: Workspace, config: dict[str, Any], refusal: str) -> None:
    defaults = {"allow_gaps": False, "bucket_rows": 10}
    with pytest.raises(FeatureKitError) as refused:
        DATASETS.queue(shared, shared.stores, {**defaults, **config}, "manual")
    assert refusal in str(refused.value)
    assert "x" not in shared.stores.datasets.begun()


@pytest.mark.slow
def test_job_that_is_cancelled_half_way_goes_on_where_it_was(shared: Workspace, spine: pd.DataFrame) -> None:
    job = asked(shared, "cancelled", spine, bucket_rows=3)
    with after_buckets(2, job.cancel), pytest.raises(JobFailedException):
        job.complete()
    assert (job.state, job.get_dataset()) == ("MANUALLY_CANCELLED", None)
    assert job.progress[0] == shared.stores.ledger.job(job.id).stats["buckets"] == 2
    job.retry()
    with pytest.warns(UserWarning, match="no Dagster daemon"):
        job.wait_for_completion(timedelta(minutes=5))
    assert job.get_dataset() is not None
    whole = made(shared, asked(shared, "whole", spine, bucket_rows=ROWS))
    resumed = shared.get_dataset("cancelled")
    assert resumed.manifest["content_sha256"] == whole.manifest["content_sha256"]
    assert shared.stores.ledger.job(job.id).stats["buckets_before"] == 2


def test_all_buckets_are_of_one_version_whatever_is_written_in_between(
    own: Workspace, spine: pd.DataFrame, tmp_path: Path
) -> None:
    before = own.get_feature_service("fraud").get_features_for_events(spine).to_arrow()
    job = asked(own, "pinned", spine)
    assert ended_by(lambda: make(own, job, buckets=1))
    overwrite(own, tmp_path)
    after = own.get_feature_service("fraud").get_features_for_events(spine).to_arrow()
    dataset = made(own, job)
    assert content(before) != content(after)
    assert dataset.manifest["content_sha256"] == content(before)
    assert dataset.reproduce().is_equal


@pytest.mark.slow
def test_what_is_not_covered_at_the_first_bucket_is_refused_for_all(
    own: Workspace, spine: pd.DataFrame, tmp_path: Path
) -> None:
    spine.loc[ROWS - 1, "asked_at"] = day(14)
    frame = own.get_feature_service("fraud").get_features_for_events(spine, allow_gaps=True)
    job = frame.start_dataset_job("gaps", extra_config={"bucket_rows": 10})
    assert ended_by(lambda: make(own, job, buckets=1))
    write_payments(tmp_path, 14)
    later = payments_workspace(tmp_path, now=day(14), days=14)
    for run in later.plan(["spending"])[0].runs:
        list(run_tasks(later.repo.view("spending"), run.tasks, later.stores, trigger="schedule"))
    dataset = made(later, job)
    assert dataset.manifest["content_sha256"] == content(frame.to_arrow())


def test_dataset_whose_versions_are_gone_says_so(own: Workspace, spine: pd.DataFrame, tmp_path: Path) -> None:
    begun = asked(own, "begun", spine)
    assert ended_by(lambda: make(own, begun, buckets=1))
    dataset = made(own, asked(own, "whole", spine))
    overwrite(own, tmp_path)
    list(maintain_view(own.repo.view("spending"), own.stores, trigger="manual", retention=timedelta(0)))
    with pytest.raises(VersionGone, match="spending: version 0"):
        dataset.reproduce()
    with pytest.raises(VersionGone, match="make the dataset again"):
        make(own, begun)
    assert len(dataset.to_dataframe()) == ROWS


def test_rows_that_are_no_longer_those_of_the_manifest_are_told(own: Workspace, spine: pd.DataFrame) -> None:
    dataset = made(own, asked(own, "changed", spine))
    table = DeltaTable(dataset.storage_location)
    table.update(updates={"label": "label + 1"}, predicate="label = 7")
    outcome = dataset.reproduce()
    assert outcome.reproduced == outcome.recorded != outcome.stored
    assert not outcome.is_equal


def test_rows_of_two_declarations_never_make_one_dataset(own: Workspace, spine: pd.DataFrame, tmp_path: Path) -> None:
    job = asked(own, "changing", spine)
    assert ended_by(lambda: make(own, job, buckets=1))
    whole = made(own, asked(own, "whole", spine))
    other = payments_workspace(tmp_path, now=day(12), data_delay=HOUR)
    with pytest.raises(DatasetChanged) as refused:
        make(other, job)
    assert refused.value.views == ("spending", "last_payment")
    with pytest.raises(DatasetChanged):
        other.get_dataset(whole.name).reproduce()


def test_name_is_taken_while_its_job_may_succeed_and_free_when_it_has_failed(
    own: Workspace, spine: pd.DataFrame
) -> None:
    first = asked(own, "training", spine)
    with pytest.raises(DatasetExists, match=first.id):
        asked(own, "training", spine)
    first.cancel()
    second = asked(own, "training", spine.head(5))
    assert made(own, second).row_count == 5
    with pytest.raises(DatasetExists, match=second.id):
        asked(own, "training", spine)
    with pytest.raises(DatasetTaken, match=first.id):
        make(own, first)
    assert first.progress == (0, 0)


def test_dataset_is_archived_and_deleted(own: Workspace, spine: pd.DataFrame) -> None:
    job = asked(own, "training", spine)
    with pytest.raises(NotFoundError):
        own.get_dataset("training")
    dataset = made(own, job)
    dataset.archive()
    assert (own.list_datasets(), own.list_datasets(include_archived=True)) == ([], ["training"])
    assert own.get_dataset("training").is_archived
    dataset.unarchive()
    assert own.list_datasets() == ["training"]
    dataset.delete()
    assert own.list_datasets(include_archived=True) == []
    assert not Path(dataset.storage_location).exists()
    with pytest.raises(NotFoundError):
        dataset.delete()
    asked(own, "training", spine)
    with pytest.raises(DatasetBusy):
        remove_dataset(own.stores, "training")


@pytest.mark.slow
def test_history_is_saved_under_a_given_name_or_one_that_is_made_up(shared: Workspace, spine: pd.DataFrame) -> None:
    service = shared.get_feature_service("fraud")
    frame = service.get_historical_features(spine, save=True)
    assert frame.dataset_name is not None
    assert frame.dataset_name.startswith("fraud-")
    stored = shared.get_dataset(frame.dataset_name).to_dataframe()
    assert stored.columns == frame.columns
    assert "spending.amount_sum_1d_1d" in stored.columns
    assert stored.to_arrow().to_pylist() == frame.to_arrow().to_pylist()
    with pytest.raises(DatasetExists):
        service.get_historical_features(spine, save_as=frame.dataset_name)
    with pytest.raises(TectonValidationError, match="cannot be the name of a dataset"):
        shared.get_feature_view("spending").get_historical_features(start_time=day(2), end_time=day(3), save_as="")


def test_dataset_of_a_time_range_has_no_spine(shared: Workspace) -> None:
    view = shared.get_feature_view("spending")
    keys = pd.DataFrame({"user_id": USERS[:2]})
    frames = {
        "range_of_two": view.get_features_in_range(day(2), day(9), entities=keys),
        "history": view.get_historical_features(start_time=day(2), end_time=day(9)),
        "rows": shared.get_feature_view("last_payment").get_features_in_range(day(2), day(9), max_lookback=2 * HOUR),
    }
    for name, frame in frames.items():
        dataset = made(shared, frame.start_dataset_job(name))
        assert dataset.to_dataframe().to_arrow().to_pylist() == frame.to_arrow().to_pylist()
        assert dataset.reproduce().is_equal
        with pytest.raises(NoSpine):
            dataset.get_spine_dataframe()
        with pytest.raises(TectonValidationError, match="no time column"):
            dataset.to_dataframe(day(3))


def test_rows_of_a_span_are_those_whose_times_lie_in_it(shared: Workspace, spine: pd.DataFrame) -> None:
    dataset = made(shared, asked(shared, "span", spine))
    found = dataset.to_dataframe(day(3), day(5)).to_pandas()["label"]
    assert list(found) == list(spine[(spine["asked_at"] >= day(3)) & (spine["asked_at"] < day(5))]["label"])
    assert len(dataset.to_dataframe(day(40))) == 0


def test_bucket_without_a_single_time_has_rows_without_features(shared: Workspace, spine: pd.DataFrame) -> None:
    spine.loc[10:19, "asked_at"] = pd.NaT
    frame = shared.get_feature_service("fraud").get_features_for_events(spine)
    dataset = made(shared, asked(shared, "timeless", spine))
    assert dataset.manifest["content_sha256"] == content(frame.to_arrow())
    spine["asked_at"] = spine["asked_at"].where(spine["label"] < 0)
    with pytest.raises(SpineError, match="empty in every row"):
        shared.get_feature_service("fraud").create_dataset("never", spine, "asked_at")


@pytest.mark.parametrize("column", ["LABEL", "SPENDING__amount_sum_1d_1d", "_featurekit_row"])
def test_column_that_delta_would_take_for_another_is_refused(
    shared: Workspace, spine: pd.DataFrame, column: str
) -> None:
    with pytest.raises(SpineError, match=f"{column} would be one|{column} and"):
        shared.get_feature_view("spending").create_dataset("never", spine.assign(**{column: 1}), "asked_at")
    assert "never" not in shared.stores.datasets.begun()


def test_empty_spine_makes_an_empty_dataset(shared: Workspace, spine: pd.DataFrame) -> None:
    dataset = made(shared, asked(shared, "empty", spine.head(0)))
    assert (dataset.row_count, dataset.to_dataframe().columns) == (0, dataset.columns)
    assert dataset.reproduce().is_equal


def test_frame_that_no_read_gives_again_makes_no_dataset(shared: Workspace, spine: pd.DataFrame) -> None:
    view = shared.get_feature_view("spending")
    payments = pd.DataFrame({"user_id": ["x"], "paid_at": [day(1).replace(tzinfo=None)], "amount": [1.0]})
    frames = [
        view.run_transformation(day(2), day(3)),
        view.get_features_for_events(spine, mock_inputs={"payments": payments}),
        view.get_features_in_range(day(2), day(3), mock_inputs={"payments": payments}),
    ]
    for frame in frames:
        with pytest.raises(NotADatasetFrame):
            frame.start_dataset_job("never")


@pytest.mark.parametrize(
    "settings",
    [
        {"cluster_config": {"instance": "large"}},
        {"environment": "prod"},
        {"compute_mode": "spark"},
        {"extra_config": {"spark.executors": 3}},
        {"extra_config": {"bucket_rows": 0}},
        {"job_retry_times": -1},
    ],
)
def test_setting_without_meaning_here_is_refused(
    shared: Workspace, spine: pd.DataFrame, settings: dict[str, Any]
) -> None:
    frame = shared.get_feature_view("spending").get_features_for_events(spine)
    with pytest.raises(TectonValidationError):
        frame.start_dataset_job("never", **settings)
    assert "never" not in shared.stores.datasets.begun()
