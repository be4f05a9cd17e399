"""Integration tests of views: sound ones pass each step, planted bugs are found, and nothing of the user's changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from junitparser import JUnitXml

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    DeltaTableConfig,
    Entity,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    Int64,
    KafkaConfig,
    PublishFeaturesConfig,
    PushConfig,
    RedisConfig,
    StreamProcessingMode,
    StreamSource,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
    stream_feature_view,
)
from featurekit_dagster.errors import EventsNotUsable, ReadError
from featurekit_dagster.execution.integration_report import IntegrationReport
from featurekit_dagster.intervals import IntervalSet
from featurekit_dagster.orchestration.integration_test import run_integration_test
from tests.flow.payments import break_days, day, payments_workspace

DAY, NOW = timedelta(days=1), datetime(2024, 3, 4, 12, tzinfo=UTC)
SCHEMA = [Field("user", String), Field("paid_at", Timestamp), Field("amount", Float64)]
USER = Entity(name="user", join_keys=[Field("user", String)])
BATCH_STEPS = (
    "source transformation schema intervals future materialization online_write offline_write retrieval training_set "
    "online_offline recomputed"
)


def payments(days: int = 3) -> pd.DataFrame:
    """Return a payment per user and four hours; each is booked a day later."""
    rows = [
        {"user": f"secret-{user}", "paid_at": time, "booked_at": time + DAY, "amount": float(number % 9)}
        for number in range(days * 6)
        for user in range(3)
        for time in [datetime(2024, 3, 1) + number * timedelta(hours=4) + user * timedelta(minutes=1)]  # noqa: DTZ001
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    payments().to_parquet(tmp_path / "payments.parquet")
    return tmp_path / "payments.parquet"


def batch_view(file: Path, function: Callable[..., Any], *, whole: bool = False, **changes: Any) -> FeatureView:
    config = FileConfig(uri=str(file), file_format="parquet", timestamp_field="paid_at")
    source = BatchSource(name="payments", batch_config=config)
    settings: dict[str, Any] = {
        "mode": "pandas",
        "schema": SCHEMA,
        "timestamp_field": "paid_at",
        "aggregation_interval": timedelta(hours=6),
        "aggregations": [Aggregation("amount", name, TimeWindow(DAY)) for name in ("sum", "last")],
    }
    return batch_feature_view(
        name="spending",
        sources=[source.unfiltered() if whole else FilteredSource(source)],
        entities=[USER],
        batch_schedule=DAY,
        feature_start_time=datetime(2024, 1, 1, tzinfo=UTC),
        online=True,
        offline=True,
        **{**settings, **changes},
    )(function)


def stream_view(config: Any, table: Path, function: Callable[..., Any] | None, **changes: Any) -> FeatureView:
    history = DeltaTableConfig(uri=str(table), timestamp_field="paid_at")
    schema = SCHEMA if isinstance(config, PushConfig) else None
    source = StreamSource(name="payments", stream_config=config, batch_config=history, schema=schema)
    settings: dict[str, Any] = {"mode": "pandas"} if function else {}
    settings |= {"stream_processing_mode": StreamProcessingMode.CONTINUOUS}
    made = stream_feature_view(
        name="spending",
        source=source,
        entities=[USER],
        schema=SCHEMA,
        timestamp_field="paid_at",
        aggregations=[Aggregation("amount", "sum", TimeWindow(DAY))],
        batch_schedule=DAY,
        feature_start_time=datetime(2024, 1, 1, tzinfo=UTC),
        online=True,
        offline=True,
        **{**settings, **changes},
    )
    return made(function) if function else made


def checked(folder: Path, view: FeatureView, **options: Any) -> IntegrationReport:
    workspace = Workspace("prod", [view], home=folder / "home", clock=NOW)
    return run_integration_test(workspace, view.name, **{"count": 60, **options})


def as_they_are(payments: pd.DataFrame) -> pd.DataFrame:
    return payments[["user", "paid_at", "amount"]]


def states(report: IntegrationReport) -> dict[str, str]:
    return {step.name: f"{step.state.value} {step.detail}" for step in report.steps if step.state.value != "PASSED"}


@pytest.mark.slow
def test_a_sound_batch_view_passes_every_step_with_given_and_with_made_up_events(tmp_path: Path, file: Path) -> None:
    view = batch_view(file, as_they_are)
    report = checked(tmp_path, view, events=payments())
    assert states(report) == {}
    assert [step.name for step in report.steps] == BATCH_STEPS.split()
    assert report.events == {"payments": "given"}
    assert report.step("online_offline").counts["keys"] == 3
    assert report.step("offline_write").counts["rows"] > 0
    assert states(checked(tmp_path, view)) == {}


@pytest.mark.slow
def test_a_wrong_time_column_is_found(tmp_path: Path, file: Path) -> None:
    def spending(payments: pd.DataFrame) -> pd.DataFrame:
        return payments[["user", "booked_at", "amount"]]

    schema = [Field("user", String), Field("booked_at", Timestamp), Field("amount", Float64)]
    view = batch_view(file, spending, schema=schema, timestamp_field="booked_at")
    for events in (payments(), None):
        report = checked(tmp_path, view, events=events)
        assert "intervals" in report.failed
        assert "The view's time is booked_at, but payments is cut by paid_at" in report.step("intervals").detail


def test_a_transformation_that_looks_into_the_future_is_found(tmp_path: Path, file: Path) -> None:
    def spending(payments: pd.DataFrame) -> pd.DataFrame:
        later = payments.sort_values("paid_at").groupby("user")["amount"].shift(-1).fillna(0.0)
        return payments.assign(amount=later)[["user", "paid_at", "amount"]]

    report = checked(tmp_path, batch_view(file, spending, whole=True), events=payments())
    assert report.step("intervals").state.value == "PASSED"
    assert report.failed == ["future", "recomputed"]
    assert "looks into the future" in report.step("future").detail
    assert "amount_sum_1d" in report.step("recomputed").detail


@pytest.mark.slow
def test_a_stream_whose_code_is_not_that_of_the_batch_side_is_found(tmp_path: Path) -> None:
    def in_cents(records: pd.DataFrame) -> pd.DataFrame:
        rows = pd.DataFrame([json.loads(text) for text in records["value"]], index=records.index)
        return rows.assign(amount=rows["amount"] * 100.0, paid_at=pd.to_datetime(rows["paid_at"]))

    kafka = KafkaConfig(
        kafka_bootstrap_servers="127.0.0.1:1", topics="payments", timestamp_field="paid_at", post_processor=in_cents
    )
    report = checked(tmp_path, stream_view(kafka, tmp_path / "table", as_they_are), events=payments())
    assert report.failed == ["stream_as_batch", "online_offline"]
    assert "rows have another amount" in report.step("stream_as_batch").detail
    assert "amount_sum" in report.step("online_offline").detail


@pytest.mark.slow
def test_a_stream_whose_rows_depend_on_what_comes_with_them_is_found(tmp_path: Path) -> None:
    def spending(payments: pd.DataFrame) -> pd.DataFrame:
        return payments.assign(amount=payments["amount"] - payments["amount"].mean())[["user", "paid_at", "amount"]]

    view = stream_view(PushConfig(timestamp_field="paid_at"), tmp_path / "table", spending)
    assert {"intervals", "stream_as_batch", "online_offline"} <= set(checked(tmp_path, view, events=payments()).failed)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["CONTINUOUS", "TIME_INTERVAL"])
def test_a_sound_stream_view_passes_every_step(tmp_path: Path, mode: str) -> None:
    config = PushConfig(timestamp_field="paid_at", watermark_delay_threshold=timedelta(minutes=5))
    changes = {"aggregation_interval": timedelta(hours=1)} if mode == "TIME_INTERVAL" else {}
    view = stream_view(
        config, tmp_path / "table", as_they_are, stream_processing_mode=StreamProcessingMode[mode], **changes
    )
    report = checked(tmp_path, view, events=payments()[["user", "paid_at", "amount"]])
    assert states(report) == {}
    names = [step.name for step in report.steps]
    assert {"stream_as_batch", "bootstrap", "stream", "freshness", "materialization", "recomputed"} <= set(names)
    assert report.step("stream").counts["events"] == 36


@pytest.mark.slow
def test_records_that_a_push_source_makes_rows_of_are_made_up_as_they_are_sent(tmp_path: Path) -> None:
    def in_euros(record: dict[str, Any]) -> dict[str, Any]:
        return {"user": record["who"], "paid_at": record["paid_at"], "amount": record["cents"] / 100}

    sent = [Field("who", String), Field("cents", Int64), Field("paid_at", Timestamp)]
    config = PushConfig(timestamp_field="paid_at", post_processor=in_euros, input_schema=sent)
    report = checked(tmp_path, stream_view(config, tmp_path / "table", as_they_are))
    assert states(report) == {}
    assert report.step("stream").counts["events"] == 60


@pytest.mark.slow
def test_nothing_of_the_users_stores_is_touched(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATUREKIT_LEDGER", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("FEATUREKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEATUREKIT_LAKE", str(tmp_path / "home" / "lake"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEATUREKIT_ONLINE_STORE", "redis://127.0.0.1:1")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine").write_text("mine")
    before = dict(files(tmp_path))
    view = batch_view(
        file,
        as_they_are,
        online_store=RedisConfig(primary_endpoint="redis://127.0.0.1:2", authentication_token=""),
        publish_features_config=PublishFeaturesConfig(),
    )
    assert checked(tmp_path, view, from_source=True).passed
    assert dict(files(tmp_path)) == before


def files(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.rglob("*"):
        yield str(path), hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


def test_the_report_holds_no_values_and_becomes_junit_xml(tmp_path: Path, file: Path) -> None:
    def spending(payments: pd.DataFrame) -> pd.DataFrame:
        return payments.assign(amount=payments["user"])[["user", "paid_at", "amount"]]

    report = checked(tmp_path, batch_view(file, spending), events=payments())
    assert report.failed == ["schema"]
    assert "secret" not in json.dumps(report.record())
    report.write_junit(tmp_path / "report.xml")
    (suite,) = JUnitXml.fromfile(str(tmp_path / "report.xml"))
    assert (suite.name, suite.tests, suite.failures) == ("integration test, batch: spending", 3, 1)


@pytest.mark.slow
def test_the_public_job_tests_the_views_it_is_given_and_tells_the_ledger(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path, now=day(4))
    job = workspace.definitions().resolve_job_def("integration_test_batch")
    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance, run_config={"views": ["spending"]}).success
        break_days(tmp_path, range(12))
        failing = job.execute_in_process(
            instance=instance, run_config={"views": ["last_payment"], "from_source": True}, raise_on_error=False
        )
    assert not failing.success
    shown = {record.view: record for record in workspace.jobs()}
    assert {(record.kind, record.state) for record in shown.values()} == {
        ("INTEGRATION_TEST_BATCH", "SUCCESS"),
        ("INTEGRATION_TEST_BATCH", "FAILURE"),
    }
    assert shown["spending"].stats == {"steps_passed": 12, "steps_failed": 0, "steps_skipped": 0}
    assert "failed at transformation" in (shown["last_payment"].reason or "")
    assert workspace.stores.coverage(workspace.repo.view("spending"), "offline") == IntervalSet()


def test_what_cannot_be_tested_so_is_refused(tmp_path: Path, file: Path) -> None:
    view = batch_view(file, as_they_are)
    with pytest.raises(ReadError, match="no source parameter"):
        checked(tmp_path, view, events={"others": payments()})
    with pytest.raises(ReadError, match="batch feature view"):
        checked(tmp_path, view, kind="stream")
    with pytest.raises(EventsNotUsable, match="there is no column 'paid_at'"):
        checked(tmp_path, view, events=payments().drop(columns="paid_at"))
    with pytest.raises(EventsNotUsable, match="no rows"):
        checked(tmp_path, view, events=payments().head(0))
