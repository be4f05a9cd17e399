"""Feature tables in real Dagster: what is shown of ingests, the job that ingests, and what the sensor does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from featurekit_dagster.execution.table_ingest import CLAIMED, WRITTEN_OFFLINE, ingest_rows
from tests.support.scores import DAY, FIRST, HOUR, Table, rows

KEY = dg.AssetKey(["scores"])
TAG = "featurekit/view"


class Killed(BaseException):
    """The end of the process, as far as `except Exception` can tell."""


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path / "home")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def look(table: Table, instance: dg.DagsterInstance, cursor: str | None) -> Any:
    """Return what the sensor does at one tick: `asset_events`, `run_requests`, `cursor`."""
    defs = table.workspace.definitions()
    given = {"resources": dict(defs.resources or {}), "repository_def": defs.get_repository_def()}
    with dg.build_sensor_context(instance=instance, cursor=cursor, **given) as context:
        return defs.resolve_sensor_def("follow_feature_tables").evaluate_tick(context)


def ingest_job(world: Table, instance: dg.DagsterInstance, **config: str) -> dg.ExecuteInProcessResult:
    job = world.workspace.definitions().resolve_job_def("ingest")
    return job.execute_in_process(run_config=config, instance=instance, raise_on_error=False)


def killed_at(table: Table, step: str) -> None:
    def on_step(reached: str) -> None:
        if reached == step:
            raise Killed

    with pytest.raises(Killed):
        ingest_rows(table.view, rows(("a", FIRST, 7.0)), table.stores, on_step=on_step)
    (died,) = table.handle.list_jobs()
    table.stores.ledger.abandon([died.id], reason="its process ended")


def test_a_table_is_an_external_asset_without_partitions(table: Table) -> None:
    definitions = table.workspace.definitions()
    dg.Definitions.validate_loadable(definitions)
    (spec,) = definitions.resolve_all_asset_specs()
    assert (spec.key, spec.partitions_def, spec.kinds) == (KEY, None, {"deltalake", "duckdb"})
    assert [c.name for c in spec.metadata["dagster/column_schema"].columns] == ["user_id", "scored_at", "score", "rank"]
    assert spec.metadata["featurekit/feature_services"] == "ranking"
    assert "featurekit/batch_schedule" not in spec.metadata
    repository = definitions.get_repository_def()
    assert KEY not in repository.asset_graph.executable_asset_keys
    assert {"ingest", "backfill", "overwrite"} <= {job.name for job in repository.get_all_jobs()}


def test_tables_of_two_workspaces_share_a_code_location_under_prefixes(table: Table, tmp_path: Path) -> None:
    from featurekit_dagster.orchestration.build import build_definitions

    other = Table(tmp_path / "other")
    both = [build_definitions(table.workspace, "one"), build_definitions(other.workspace, "two")]
    merged = dg.Definitions.merge(*both)
    dg.Definitions.validate_loadable(merged)
    assert {s.key.to_user_string() for s in merged.resolve_all_asset_specs()} == {"one/scores", "two/scores"}
    assert {"one_ingest", "two_ingest"} <= {job.name for job in merged.get_repository_def().get_all_jobs()}


def test_every_ingest_is_told_once(table: Table, instance: dg.DagsterInstance) -> None:
    nothing = look(table, instance, None)
    assert (list(nothing.asset_events), list(nothing.run_requests)) == ([], [])
    first = table.handle.ingest(rows(("a", FIRST, 1.0), ("b", FIRST + DAY, 2.0)))
    second = table.handle.ingest(rows(("a", FIRST, 3.0)))
    told = look(table, instance, nothing.cursor)
    events = [event for event in told.asset_events if isinstance(event, dg.AssetMaterialization)]
    assert [event.metadata["featurekit/job"].value for event in events] == [first.id, second.id]
    assert {event.asset_key for event in events} == {KEY}
    assert events[0].metadata["featurekit/rows_offline"].value == 2
    assert events[1].metadata["featurekit/rows_replaced"].value == 1
    assert list(look(table, instance, told.cursor).asset_events) == []
    third = table.handle.ingest(rows(("a", FIRST + HOUR, 4.0)))
    (event,) = look(table, instance, told.cursor).asset_events
    assert event.metadata["featurekit/job"].value == third.id


def test_the_job_ingests_a_file_and_tells_it_itself(table: Table, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    file = tmp_path / "scores.parquet"
    pq.write_table(rows(("a", FIRST, 1.0), ("b", FIRST, 2.0)), file)
    result = ingest_job(table, instance, table="scores", file=str(file))
    assert result.success
    (job,) = table.handle.list_jobs()
    assert (job.state, job.job_type) == ("SUCCESS", "INGEST")
    assert table.workspace.jobs()[0].attempts[0].run_id == result.run_id
    assert instance.get_run_by_id(result.run_id).tags[TAG] == "scores"  # type: ignore[union-attr]
    shown = instance.get_latest_materialization_event(KEY)
    assert shown is not None
    assert shown.asset_materialization is not None
    assert shown.asset_materialization.metadata["featurekit/rows"].value == 2
    assert list(look(table, instance, None).asset_events) == []
    assert table.online("b") == 2.0


def test_the_job_says_why_rows_are_refused_without_a_value(
    table: Table, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    file = tmp_path / "scores.parquet"
    pq.write_table(rows(("secret", None, 1.0)), file)
    for config, said in (
        ({"table": "scores", "file": str(file)}, "'scored_at' is NULL in 1 rows"),
        ({"table": "scores", "file": str(tmp_path / "none.parquet")}, "FileNotFoundError"),
        ({"table": "nobody"}, "no feature table named 'nobody'"),
    ):
        result = ingest_job(table, instance, **config)
        assert not result.success
        text = str([event.event_specific_data for event in result.all_events if event.is_step_failure])
        assert said in text
        assert "secret" not in text


def test_the_sensor_has_an_interrupted_ingest_finished(table: Table, instance: dg.DagsterInstance) -> None:
    killed_at(table, WRITTEN_OFFLINE)
    assert table.online("a") is None
    (request,) = look(table, instance, None).run_requests
    (same,) = look(table, instance, None).run_requests
    assert same.run_key == request.run_key  # so that Dagster starts it once
    assert ingest_job(table, instance, **request.run_config).success
    assert table.online("a") == 7.0
    (job,) = table.handle.list_jobs()
    assert [attempt.state for attempt in job.attempts] == ["ERROR", "SUCCESS"]
    after = look(table, instance, None)
    assert (list(after.asset_events), list(after.run_requests)) == ([], [])


def test_the_job_gives_up_an_ingest_whose_rows_nobody_has(table: Table, instance: dg.DagsterInstance) -> None:
    killed_at(table, CLAIMED)
    assert ingest_job(table, instance, table="scores").success
    assert table.handle.list_jobs()[0].state == "FAILURE"
    assert instance.get_latest_materialization_event(KEY) is None


def test_a_backfill_of_a_table_is_refused(table: Table, instance: dg.DagsterInstance) -> None:
    job = table.workspace.definitions().resolve_job_def("backfill")
    result = job.execute_in_process(run_config={"view": "scores"}, instance=instance, raise_on_error=False)
    assert not result.success
    assert "whose rows are ingested" in str([e.event_specific_data for e in result.all_events if e.is_step_failure])
