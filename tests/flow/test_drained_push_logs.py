"""The sensor that takes what was sent to push sources to their Delta tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from featurekit_dagster import Workspace
from tests.flow.payments import payments_workspace as batch_workspace
from tests.support.push import NOW, payment, payments_workspace

PAYMENTS = dg.AssetKey(["sources", "payments"])


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    quiet = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster"), overrides=quiet) as opened:
        yield opened


def look(workspace: Workspace, instance: dg.DagsterInstance) -> tuple[list[dg.AssetObservation], str]:
    """Let the sensor look once; return what it observed, and what it says."""
    defs = workspace.definitions()
    sensor = defs.resolve_sensor_def("drain_push_logs")
    given = {"resources": dict(defs.resources or {}), "repository_def": defs.get_repository_def()}
    with dg.build_sensor_context(instance=instance, **given) as context:
        data = sensor.evaluate_tick(context)
    observed = [event for event in data.asset_events if isinstance(event, dg.AssetObservation)]
    return observed, data.skip_message or ""


def test_what_was_sent_is_in_the_table_after_a_look_once(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    workspace = payments_workspace(tmp_path / "data")
    workspace.get_stream_source("payments").ingest([payment(number) for number in range(5)])
    (observed,), told = look(workspace, instance)
    assert (observed.asset_key, observed.metadata["featurekit/rows"].value) == (PAYMENTS, 5)
    assert told == "payments: 5 events drained"
    assert look(workspace, instance) == ([], "payments: 0 events drained")
    table = DeltaTable(str(tmp_path / "data" / "payments")).to_pyarrow_table()
    assert sorted(table["items"].to_pylist()) == [0, 1, 2, 3, 4]


def test_a_table_that_cannot_be_written_is_told_and_the_log_keeps_its_events(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    workspace = payments_workspace(tmp_path / "data")
    workspace.get_stream_source("payments").ingest([payment()])
    (tmp_path / "data" / "payments").write_text("no table")
    with pytest.raises(DeltaError):
        look(workspace, instance)
    (tmp_path / "data" / "payments").unlink()
    (observed,), _ = look(workspace, instance)
    assert observed.metadata["featurekit/rows"].value == 1


def test_a_workspace_without_push_sources_has_no_such_sensor(tmp_path: Path) -> None:
    names = [sensor.name for sensor in batch_workspace(tmp_path, now=NOW).definitions().sensors or []]
    assert names == ["start_due_jobs"]
