"""The public jobs `backfill` and `overwrite`, as the launchpad and `dagster job execute` run them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.intervals import Interval
from tests.flow.payments import break_days, day, keys, materialized, payments_workspace, run_asset, statuses


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path, now=day(8))


def run_job(workspace: Workspace, name: str, instance: dg.DagsterInstance, **config: str) -> dg.ExecuteInProcessResult:
    job = workspace.definitions().resolve_job_def(name)
    return job.execute_in_process(run_config=config, instance=instance, raise_on_error=False)


def told(result: dg.ExecuteInProcessResult) -> str:
    (event,) = result.get_step_failure_events()
    assert event.step_failure_data.user_failure_data is not None
    return str(event.step_failure_data.user_failure_data.description)


def test_backfill_fills_what_is_missing_in_one_run(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    run_asset(workspace, "spending", 2, 4, instance)
    result = run_job(workspace, "backfill", instance, view="spending", start="2023-01-02", end="2023-01-07T00:00Z")
    assert list(materialized(result, "backfill_range")) == [*keys(1, 2), *keys(4, 6)]
    assert {e.check_name for e in result.get_asset_check_evaluations()} >= {"schema", "up_to_date"}
    jobs = workspace.stores.ledger.jobs(workspace.name, "spending")
    assert [(str(j.interval), j.trigger) for j in jobs[:2]] == [
        (str(Interval(day(4), day(6))), "backfill"),
        (str(Interval(day(1), day(2))), "backfill"),
    ]
    assert statuses(workspace, "spending", instance, 7) == [None, "M", "M", "M", "M", "M", None]


def test_backfill_without_times_fills_everything_that_is_complete(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    run_job(workspace, "backfill", instance, view="spending")
    assert statuses(workspace, "spending", instance, 8) == ["M"] * 8
    again = run_job(workspace, "backfill", instance, view="spending")
    assert again.success
    assert materialized(again, "backfill_range") == {}


def test_overwrite_replaces_the_range_and_says_so(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    run_asset(workspace, "spending", 0, 3, instance)
    result = run_job(workspace, "overwrite", instance, view="spending", start="2023-01-02", end="2023-01-05")
    events = materialized(result, "overwrite_range")
    assert list(events) == keys(1, 4)
    assert all(facts["featurekit/overwrite"] for facts in events.values())
    (run,) = instance.get_runs(dg.RunsFilter(job_name="overwrite"))
    assert run.tags["featurekit/view"] == "spending"
    assert run.tags["featurekit/trigger"] == "manual"
    assert run.tags["dagster/max_retries"] == "0"


def test_failed_jobs_leave_their_partitions_as_they_were(
    workspace: Workspace, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    break_days(tmp_path, [1])
    result = run_job(workspace, "backfill", instance, view="last_payment", start="2023-01-01", end="2023-01-04")
    assert "1 job failed" in told(result)
    assert statuses(workspace, "last_payment", instance, 4) == ["M", None, "M", None]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"view": "outgoings"}, "no feature view named 'outgoings'; there are last_payment, spending"),
        ({"view": "spending", "start": "soon"}, "Invalid isoformat string: 'soon'"),
        ({"view": "spending", "start": "2023-01-05", "end": "2023-01-05"}, "the range is empty"),
        ({"view": "spending", "end": "2024-01-05"}, "is after the last complete interval"),
        ({"view": "spending", "start": "2023-01-02T06:00"}, "is not on the 1d grid"),
    ],
)
def test_configuration_that_cannot_be_run_is_refused(
    workspace: Workspace, instance: dg.DagsterInstance, config: dict[str, str], sentence: str
) -> None:
    result = run_job(workspace, "backfill", instance, **config)
    assert not result.success
    assert sentence in told(result)
