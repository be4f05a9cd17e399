"""Runs in this process: a plan carried out without a daemon, its progress, its failure, and where Dagster keeps it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.run import (
    Progress,
    dagster_home,
    failure_text,
    materialize_in_process,
    open_instance,
)
from tests.flow.payments import break_days, day, key, payments_workspace, statuses


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path, now=day(5))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


def test_plan_is_carried_out_by_one_ranged_run_per_contiguous_range(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    middle = workspace.plan_interval("spending", day(1), day(2), overwrite=False)
    assert materialize_in_process(workspace, middle, instance).success
    (plan,) = workspace.plan(["spending"])
    assert [run.interval for run in plan.runs] == [Interval(day(0), day(1)), Interval(day(2), day(5))]
    assert all(materialize_in_process(workspace, run, instance).success for run in plan.runs)
    (plan,) = workspace.plan(["spending"])
    assert plan.runs == ()
    assert instance.get_runs_count() == 3
    assert statuses(workspace, "spending", instance, 5) == ["M"] * 5


def test_progress_counts_partitions(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    seen: list[Progress] = []
    (plan,) = workspace.plan(["last_payment"])
    materialize_in_process(workspace, plan.runs[0], instance, seen.append)
    assert [(p.view, p.done, p.total) for p in seen] == [("last_payment", n, 5) for n in range(6)]


def test_runs_of_one_process_take_turns(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    plans, done = {plan.view: plan.runs[0] for plan in workspace.plan()}, []

    def other() -> None:
        assert materialize_in_process(workspace, plans["last_payment"], instance, done.append).success

    def begin_the_other(progress: Progress) -> None:
        done.append(progress)
        if progress.done == 1:
            second.start()
            second.join(2)

    second = threading.Thread(target=other)
    assert materialize_in_process(workspace, plans["spending"], instance, begin_the_other).success
    second.join(300)
    assert [p.view for p in done if p.done] == ["spending"] * 5 + ["last_payment"] * 5


def test_runs_carry_view_kind_trigger_and_range_and_are_not_retried(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    run = workspace.plan_interval("spending", day(1), day(3), overwrite=True)
    materialize_in_process(workspace, run, instance)
    (started,) = instance.get_runs()
    assert started.tags == {
        "featurekit/view": "spending",
        "featurekit/kind": "BATCH",
        "featurekit/trigger": "manual",
        "dagster/max_retries": "0",
        "dagster/asset_partition_range_start": key(1),
        "dagster/asset_partition_range_end": key(2),
    }
    (job,) = workspace.stores.ledger.jobs(workspace.name)
    assert (job.overwrite, job.trigger) == (True, "manual")


def test_failed_run_tells_which_intervals_failed_and_why(
    workspace: Workspace, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    break_days(tmp_path, [2])
    (plan,) = workspace.plan(["last_payment"])
    result = materialize_in_process(workspace, plan.runs[0], instance)
    told = failure_text(result)
    assert told is not None
    assert told.splitlines()[0] == "last_payment: 1 job failed"
    assert str(Interval(day(2), day(3))) in told
    assert failure_text(materialize_in_process(workspace, plan.runs[0], instance)) is not None


def test_runs_are_quiet(workspace: Workspace, instance: dg.DagsterInstance, capfd: pytest.CaptureFixture[str]) -> None:
    (plan,) = workspace.plan(["spending"])
    materialize_in_process(workspace, plan.runs[0], instance)
    assert capfd.readouterr() == ("", "")


def test_instance_is_kept_below_the_workspace_with_telemetry_off(workspace: Workspace) -> None:
    assert dagster_home(workspace) == workspace.home / "dagster"
    with open_instance(workspace) as instance:
        assert not instance.telemetry_enabled
        assert instance.is_persistent


def test_users_own_dagster_home_and_settings_are_used(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "own"))
    assert dagster_home(workspace) == tmp_path / "own"
    assert (tmp_path / "own" / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


def test_packaged_settings_are_those_of_the_project(project_root: Path) -> None:
    packaged = project_root / "featurekit_dagster" / "orchestration" / "dagster.yaml"
    assert packaged.read_text() == (project_root / "dagster.yaml").read_text()
