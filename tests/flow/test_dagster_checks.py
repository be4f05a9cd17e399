"""The asset checks of a view: when they pass, when they fail, and that they are recorded by each run."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.checks import CheckOutcome, check_view
from tests.flow.payments import day, payments_workspace, run_asset


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path, now=day(4))


def outcomes(workspace: Workspace, view: str) -> dict[str, CheckOutcome]:
    found = check_view(workspace.repo.view(view), workspace.stores, workspace.now())
    return {outcome.name: outcome for outcome in found}


def failed(workspace: Workspace, view: str) -> list[str]:
    return [name for name, outcome in outcomes(workspace, view).items() if not outcome.passed]


def materialize(workspace: Workspace, view: str, first: int, end: int) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_asset(workspace, view, first, end, instance).success


def write_rows(workspace: Workspace, view_name: str, rows: list[dict[str, object]], interval: Interval) -> None:
    """Put rows into the offline table behind the ledger's back."""
    view = workspace.repo.view(view_name)
    workspace.stores.offline.replace_interval(
        view_name,
        pa.Table.from_pylist(rows, schema=stored_schema(view)),
        interval,
        schema=stored_schema(view),
        time_column=view.stored_time_column,
        sort_by=view.key_names,
        job_id="by hand",
        epoch=2**40,
        coverage=IntervalSet(),
    )


def test_every_run_records_all_checks(workspace: Workspace) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_asset(workspace, "spending", 0, 4, instance)
    evaluations = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    assert evaluations == {"schema": True, "inside_coverage": True, "unique_rows": True, "up_to_date": True}


def test_before_anything_is_stored_only_the_missing_interval_is_reported(workspace: Workspace) -> None:
    assert failed(workspace, "spending") == ["up_to_date"]
    found = outcomes(workspace, "spending")["up_to_date"]
    assert found.description == f"{Interval(day(3), day(4))} is not materialized offline and online."


def test_a_gap_in_history_is_named_and_makes_a_view_stale_until_it_is_filled(workspace: Workspace) -> None:
    materialize(workspace, "spending", 3, 4)
    assert failed(workspace, "spending") == ["up_to_date"]
    found = outcomes(workspace, "spending")["up_to_date"]
    newest, first = Interval(day(3), day(4)), Interval(day(0), day(3))
    assert found.description == f"{newest} is materialized, but not all before it: {first} is the first gap."
    assert found.counts["gaps"] == 2
    materialize(workspace, "spending", 0, 3)
    assert failed(workspace, "spending") == []


def test_rows_outside_the_materialized_intervals_are_counted(workspace: Workspace) -> None:
    materialize(workspace, "last_payment", 3, 4)
    rows = [{"user_id": "a", "paid_at": day(1), "amount": 1.0}, {"user_id": "b", "paid_at": day(1), "amount": 1.0}]
    write_rows(workspace, "last_payment", rows, Interval(day(1), day(2)))
    assert failed(workspace, "last_payment") == ["inside_coverage", "up_to_date"]
    assert outcomes(workspace, "last_payment")["inside_coverage"].counts["rows_outside"] == 2


def test_rows_with_the_same_keys_and_time_are_counted(workspace: Workspace) -> None:
    materialize(workspace, "last_payment", 3, 4)
    rows = [{"user_id": "a", "paid_at": day(3), "amount": float(n)} for n in range(3)]
    write_rows(workspace, "last_payment", rows, Interval(day(3), day(4)))
    assert failed(workspace, "last_payment") == ["unique_rows", "up_to_date"]
    assert outcomes(workspace, "last_payment")["unique_rows"].counts["repeated"] == 1


def test_table_with_other_columns_than_declared_fails(workspace: Workspace) -> None:
    materialize(workspace, "last_payment", 3, 4)
    materialize(workspace, "spending", 3, 4)
    tiles = stored_schema(workspace.repo.view("spending"))
    assert workspace.stores.offline.schema_faults("spending", tiles) == []
    assert workspace.stores.offline.schema_faults("last_payment", tiles)[0] == "_anchor_time is not stored"
    other = tiles.set(0, pa.field("user_id", pa.int64()))
    (fault,) = workspace.stores.offline.schema_faults("spending", other)
    assert fault.startswith("user_id is stored as")


def test_lost_table_of_a_covered_view_fails_every_offline_check(workspace: Workspace) -> None:
    materialize(workspace, "last_payment", 3, 4)
    Path(workspace.stores.offline.location("last_payment")).rename(Path(workspace.lake, "elsewhere"))
    assert failed(workspace, "last_payment") == ["schema", "inside_coverage", "unique_rows", "up_to_date"]


def test_checks_can_be_run_without_materializing(workspace: Workspace) -> None:
    materialize(workspace, "spending", 0, 4)
    checks = {dg.AssetCheckKey(dg.AssetKey("spending"), name) for name in outcomes(workspace, "spending")}
    with dg.DagsterInstance.ephemeral() as instance:
        defs = workspace.definitions()
        result = dg.materialize(
            [defs.get_assets_def("spending")],
            instance=instance,
            resources=dict(defs.resources or {}),
            selection=dg.AssetSelection.checks(*checks),
        )
    assert result.success
    assert [e.passed for e in result.get_asset_check_evaluations()] == [True] * 4
    assert result.asset_materializations_for_node("spending") == []
