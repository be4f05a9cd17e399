"""Runs of a feature view's asset: what they do, what the ledger knows afterwards, and what Dagster shows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.execution import materialize
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration import materializations as materializations_module
from featurekit_dagster.orchestration.materializations import MaterializationRequest, materializations
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE, Task
from tests.flow.payments import (
    AMOUNT,
    USERS,
    break_days,
    day,
    key,
    keys,
    materialized,
    payments_workspace,
    run_asset,
    statuses,
)

BACKFILL = {"featurekit/trigger": "backfill"}
MANUAL = {"featurekit/trigger": "manual"}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path, now=day(10))


def covered(workspace: Workspace, view: str, store: str) -> str:
    return str(workspace.stores.ledger.coverage(workspace.name, view, store))


def test_a_year_of_days_is_one_run_with_one_job_and_one_materialization_each(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    workspace = payments_workspace(tmp_path, now=day(365), days=365)
    result = run_asset(workspace, "spending", 0, 365, instance, tags=BACKFILL)
    events = materialized(result, "spending")
    assert result.success
    assert list(events) == keys(0, 365)
    assert instance.get_runs_count() == 1
    (job,) = workspace.stores.ledger.jobs(workspace.name, "spending")
    assert (job.state, job.trigger, job.interval) == ("SUCCESS", "backfill", Interval(day(0), day(365)))
    assert [attempt.run_id for attempt in job.attempts] == [result.run_id]
    assert covered(workspace, "spending", ONLINE) == covered(workspace, "spending", OFFLINE) == str(job.interval)
    assert {facts["dagster/row_count"] for facts in events.values()} == {len(USERS)}
    assert statuses(workspace, "spending", instance, 365) == ["M"] * 365


def test_each_partition_tells_its_own_rows_and_window_and_the_last_one_about_its_job(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    events = materialized(run_asset(workspace, "spending", 0, 5, instance, tags=BACKFILL), "spending")
    first, last = events[key(0)], events[key(4)]
    assert first["dagster/row_count"] == len(USERS)
    assert first["featurekit/window_end"] - first["featurekit/window_start"] == timedelta(days=1).total_seconds()
    assert "featurekit/overwrite" not in first
    assert "featurekit/job_rows" not in first
    assert last["featurekit/job_rows"] == 5 * len(USERS)
    assert last["featurekit/job_stores"] == "offline, online"
    assert last["featurekit/job_null_rates"]["sum_amount"] == pytest.approx(1 / 5)


def test_incremental_backfill_is_one_run_with_one_job_per_day(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    result = run_asset(workspace, "last_payment", 0, 4, instance, tags=BACKFILL)
    jobs = workspace.stores.ledger.jobs(workspace.name, "last_payment")
    assert [job.interval for job in reversed(jobs)] == [Interval(day(n), day(n + 1)) for n in range(4)]
    assert len({facts["featurekit/job"] for facts in materialized(result, "last_payment").values()}) == 4


def test_run_that_the_ledger_does_not_know_is_adopted(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    result = run_asset(workspace, "spending", 0, 3, instance)
    (job,) = workspace.stores.ledger.jobs(workspace.name, "spending")
    assert (job.trigger, job.overwrite, job.state) == ("dagster_ui", False, "SUCCESS")
    assert list(materialized(result, "spending")) == keys(0, 3)


def test_adopted_run_overwrites_what_is_covered_fills_the_rest_and_says_so(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    run_asset(workspace, "spending", 2, 4, instance, tags=BACKFILL)
    events = materialized(run_asset(workspace, "spending", 0, 6, instance), "spending")
    assert list(events) == keys(0, 6)
    assert [bool(events[k].get("featurekit/overwrite")) for k in keys(0, 6)] == [False, False, True, True, False, False]
    assert events[key(3)]["featurekit/job_rows_replaced"] == 2 * len(USERS)
    jobs = workspace.stores.ledger.jobs(workspace.name, "spending")
    assert sorted((str(j.interval), j.overwrite) for j in jobs if j.trigger == "dagster_ui") == [
        (str(Interval(day(0), day(2))), False),
        (str(Interval(day(2), day(4))), True),
        (str(Interval(day(4), day(6))), False),
    ]
    assert covered(workspace, "spending", ONLINE) == str(Interval(day(0), day(6)))


def test_same_run_twice_leaves_the_same_rows(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    first = materialized(run_asset(workspace, "spending", 0, 3, instance), "spending")
    second = materialized(run_asset(workspace, "spending", 0, 3, instance), "spending")
    rows = {k: facts["dagster/row_count"] for k, facts in first.items()}
    assert {k: facts["dagster/row_count"] for k, facts in second.items()} == rows
    assert all(facts["featurekit/overwrite"] for facts in second.values())


def test_planned_run_whose_range_was_covered_meanwhile_finds_nothing_to_do(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    run_asset(workspace, "spending", 0, 3, instance)
    result = run_asset(workspace, "spending", 0, 3, instance, tags=BACKFILL)
    assert result.success
    assert materialized(result, "spending") == {}
    assert len(workspace.stores.ledger.jobs(workspace.name, "spending")) == 1
    assert statuses(workspace, "spending", instance, 4) == ["M", "M", "M", None]


def test_run_that_must_not_overwrite_is_refused_on_covered_parts(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    run_asset(workspace, "spending", 0, 3, instance)
    result = run_asset(workspace, "spending", 2, 4, instance, tags=MANUAL, config={"overwrite": False})
    assert not result.success
    assert "pass overwrite=True" in failure(result)
    assert statuses(workspace, "spending", instance, 4) == ["M", "M", "M", "F"]


def test_partition_is_shown_only_when_every_store_of_the_view_has_it(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    offline = run_asset(workspace, "spending", 0, 2, instance, config={"online": False})
    assert offline.success
    assert materialized(offline, "spending") == {}
    online = run_asset(workspace, "spending", 0, 2, instance, config={"offline": False})
    assert list(materialized(online, "spending")) == keys(0, 2)
    assert statuses(workspace, "spending", instance, 2) == ["M", "M"]


def test_failed_job_in_the_middle_leaves_the_others_materialized(
    workspace: Workspace, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    break_days(tmp_path, [2])
    result = run_asset(workspace, "last_payment", 0, 5, instance, tags=BACKFILL)
    assert not result.success
    assert list(materialized(result, "last_payment")) == [*keys(0, 2), *keys(3, 5)]
    assert statuses(workspace, "last_payment", instance, 6) == ["M", "M", "F", "M", "M", None]
    missing = IntervalSet([Interval(day(0), day(5))]).subtract(
        workspace.stores.ledger.coverage(workspace.name, "last_payment", OFFLINE)
    )
    assert str(missing) == str(Interval(day(2), day(3)))
    break_days(tmp_path, [])
    again = run_asset(workspace, "last_payment", 0, 5, instance, tags=BACKFILL)
    assert list(materialized(again, "last_payment")) == [key(2)]
    assert statuses(workspace, "last_payment", instance, 5) == ["M"] * 5


def test_failed_overwrite_of_good_data_stays_materialized(
    workspace: Workspace, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    run_asset(workspace, "last_payment", 0, 4, instance)
    break_days(tmp_path, [1, 2])
    result = run_asset(workspace, "last_payment", 0, 5, instance)
    assert not result.success
    assert list(materialized(result, "last_payment")) == [key(0), key(3), key(4)]
    assert statuses(workspace, "last_payment", instance, 5) == ["M"] * 5


def test_failure_tells_intervals_and_places_but_no_value(
    workspace: Workspace, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    break_days(tmp_path, [1])
    result = run_asset(workspace, "last_payment", 0, 3, instance)
    text = failure(result)
    assert "1 job failed" in text
    assert str(Interval(day(1), day(2))) in text
    (event,) = result.get_step_failure_events()
    told = event.step_failure_data.user_failure_data.metadata["featurekit/failed_1"].value
    assert told.startswith(f"{Interval(day(1), day(2))}: TransformError from ValueError at ")
    assert told.endswith(" in last_payment")


@pytest.mark.parametrize("broken", [[], [1]])
def test_no_key_and_no_value_reaches_events_logs_tags_or_configuration(
    tmp_path: Path, instance: dg.DagsterInstance, broken: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    workspace = payments_workspace(tmp_path, now=day(10))
    break_days(tmp_path, broken)
    for view in ("spending", "last_payment"):
        run_asset(workspace, view, 0, 3, instance)
    logs = [entry for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]
    text = "\n".join([*map(repr, logs), *map(repr, instance.get_runs()), *capfd.readouterr()])
    assert "spending" in text
    assert not [secret for secret in (*USERS, str(int(AMOUNT))) if secret in text]


def test_run_outside_the_complete_intervals_is_refused(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    late = payments_workspace(workspace.home.parent, now=lambda: day(5))
    result = run_asset(late, "spending", 3, 7, instance)
    assert not result.success
    assert "is after the last complete interval" in failure(result)


def test_run_without_partitions_is_refused_with_what_to_do(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    job = workspace.definitions().resolve_job_def("materialize_spending")
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    assert "give a partition or a range of them" in failure(result)


def test_single_partition_can_be_materialized(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    job = workspace.definitions().resolve_job_def("materialize_spending")
    result = job.execute_in_process(instance=instance, partition_key=key(1))
    assert list(materialized(result, "spending")) == [key(1)]


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = result.get_step_failure_events()
    assert event.step_failure_data.user_failure_data is not None
    return str(event.step_failure_data.user_failure_data.description)


def test_last_partition_tells_from_which_source_columns_the_features_come(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    result = run_asset(workspace, "spending", 0, 2, instance)
    event = result.asset_materializations_for_node("spending")[-1]
    lineage = event.metadata["dagster/column_lineage"].value
    assert lineage.deps_by_column["amount_sum_1d_1d"] == [
        dg.TableColumnDep(dg.AssetKey(["sources", "payments"]), "amount")
    ]
    assert set(lineage.deps_by_column) == {"user_id", "paid_at", "amount_sum_1d_1d", "amount_count_1d_1d"}


def test_run_waits_while_another_one_writes_the_view(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = workspace.stores.ledger
    held, looks = ledger.acquire(f"batch:{workspace.name}/spending", "somebody else"), []

    def give_back_at_the_second_look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            ledger.release(held)

    monkeypatch.setattr(materializations_module, "time", SimpleNamespace(sleep=give_back_at_the_second_look))
    result = run_asset(workspace, "spending", 0, 2, instance)
    assert len(looks) == 2
    assert list(materialized(result, "spending")) == keys(0, 2)
    assert "waiting: " in "\n".join(entry.user_message for entry in instance.all_logs(result.run_id))


@pytest.mark.parametrize("retries", [True, False])
def test_interrupted_run_leaves_its_range_to_whoever_comes_next(
    workspace: Workspace, instance: dg.DagsterInstance, *, retries: bool
) -> None:
    def interrupted(step: str, task: Task) -> None:
        raise KeyboardInterrupt

    request = MaterializationRequest(
        interval=Interval(day(0), day(2)), trigger="manual", run_id="run", managed_retries=retries
    )
    log, view = logging.getLogger("interrupted"), workspace.repo.view("last_payment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(materialize.run_tasks.__kwdefaults__, "on_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(materializations(view, dg.AssetKey("last_payment"), request, workspace.stores, log))
    (job,) = workspace.stores.ledger.jobs(workspace.name, "last_payment")
    assert (job.state, job.reason) == ("RUNNING" if retries else "FAILURE", "its run was ended before it was done")
    assert job.next_attempt_at == (day(10) if retries else None), "a lost attempt is repeated at once"
    assert run_asset(workspace, "last_payment", 0, 2, instance).success
