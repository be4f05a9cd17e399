"""The definitions of the example as text: one line per asset, check, job and schedule."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.orchestration.build import build_definitions
from tests.flow.payments import day, payments_workspace


def lines(defs: dg.Definitions) -> Iterator[str]:
    """Yield one line per definition, in order of name."""
    for spec in sorted(defs.resolve_all_asset_specs(), key=lambda spec: spec.key):
        partitions, parts = spec.partitions_def, [f"asset {spec.key.to_user_string()}", f"group={spec.group_name}"]
        if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
            last = partitions.get_last_partition_key()
            parts.append(f"partitions={partitions.cron_schedule}|{partitions.get_first_partition_key()}..{last}")
            columns = spec.metadata["dagster/column_schema"].columns
            parts.append(f"columns={','.join(column.name for column in columns)}")
        parts.append(f"kinds={','.join(sorted(spec.kinds))}")
        parts += [f"deps={','.join(dep.asset_key.to_user_string() for dep in spec.deps)}"] if spec.deps else []
        parts += [f"owners={','.join(spec.owners)}"] if spec.owners else []
        yield " ".join(parts)
    repository = defs.get_repository_def()
    for check in sorted(repository.asset_graph.asset_check_keys, key=lambda k: (k.asset_key, k.name)):
        yield f"check {check.asset_key.to_user_string()}:{check.name}"
    for job in sorted(defs.jobs or [], key=lambda job: job.name):
        yield f"job {job.name}"
    for schedule in sorted(defs.schedules or [], key=lambda schedule: schedule.name):
        yield f"schedule {schedule.name} {schedule.cron_schedule} {schedule.default_status.value}"
    for sensor in sorted(defs.sensors or [], key=lambda sensor: sensor.name):
        yield f"sensor {sensor.name} {sensor.minimum_interval_seconds}s {sensor.default_status.value}"


def test_definitions_of_the_example_are_as_recorded(project_root: Path) -> None:
    from examples.flights.features import workspace

    golden = project_root / "tests" / "golden" / "definitions.txt"
    text = "\n".join(lines(workspace.definitions())) + "\n"
    if os.environ.get("FEATUREKIT_UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), "FEATUREKIT_UPDATE_GOLDEN=1 records it anew"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path, now=day(5))


def test_two_workspaces_share_a_code_location_under_prefixes(workspace: Workspace, tmp_path: Path) -> None:
    other = payments_workspace(tmp_path / "other", now=day(5))
    merged = dg.Definitions.merge(build_definitions(workspace, "one"), build_definitions(other, "two"))
    dg.Definitions.validate_loadable(merged)
    keys = {spec.key.to_user_string() for spec in merged.resolve_all_asset_specs()}
    assert keys == {f"{p}/{k}" for p in ("one", "two") for k in ("spending", "last_payment", "sources/payments")}
    with dg.DagsterInstance.ephemeral() as instance:
        job = merged.resolve_job_def("two_backfill")
        assert job.execute_in_process(run_config={"view": "spending"}, instance=instance).success
        asset_job = merged.resolve_job_def("materialize_one__spending")
        assert asset_job.execute_in_process(partition_key="2023-01-02T00:00Z", instance=instance).success
    assert other.stores.ledger.jobs("payments")[0].interval.end == day(5)
    assert workspace.stores.ledger.jobs("payments")[0].interval.end == day(2)


def test_view_that_writes_no_store_is_no_asset(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path, now=day(5), offline=False)
    views = [view.name for view in workspace.repo.views]
    assert "spending" in views
    spec = {spec.key.to_user_string(): spec for spec in workspace.definitions().resolve_all_asset_specs()}
    assert spec["spending"].kinds == {"duckdb"}


def test_stores_can_be_pointed_elsewhere_by_configuration(workspace: Workspace, tmp_path: Path) -> None:
    defs = workspace.definitions()
    elsewhere = {"home": str(tmp_path / "elsewhere"), "lake": str(tmp_path / "elsewhere" / "lake")}
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("materialize_spending").execute_in_process(
            partition_key="2023-01-02T00:00Z",
            instance=instance,
            run_config={"resources": {"feature_stores": {"config": elsewhere}}},
        )
    assert result.success
    assert (tmp_path / "elsewhere" / "ledger.db").exists()
    assert list((tmp_path / "elsewhere" / "lake").rglob("spending/**/*.parquet"))
    assert workspace.stores.ledger.jobs(workspace.name) == []


def test_assets_say_what_they_are(workspace: Workspace) -> None:
    specs = {spec.key.to_user_string(): spec for spec in workspace.definitions().resolve_all_asset_specs()}
    spending, source = specs["spending"], specs["sources/payments"]
    assert spending.description == "What a user spent."
    assert spending.owners == ["team:payments"]
    assert spending.metadata["featurekit/feature_services"] == "fraud"
    schema = {column.name: column for column in spending.metadata["dagster/column_schema"].columns}
    assert list(schema) == ["user_id", "paid_at", "amount_sum_1d_1d", "amount_count_1d_1d"]
    assert schema["amount_sum_1d_1d"].description == "sum of amount over 1d."
    assert not schema["amount_count_1d_1d"].constraints.nullable
    assert len(spending.code_version or "") == 16
    assert source.metadata["dagster/uri"].endswith("payments.parquet")
    assert source.kinds == {"parquet"}
