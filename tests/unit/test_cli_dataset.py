"""The commands about datasets."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import csv
from typer.testing import CliRunner

from featurekit_dagster import Workspace
from featurekit_dagster.cli import app
from featurekit_dagster.dataset_handles import DatasetJob
from featurekit_dagster.execution.materialize import run_tasks
from tests.support.datasets import make
from tests.unit.cli_runner import bind, output
from tests.unit.cli_shop import DAY, FIRST_DAY, USERS, shop_workspace, write_purchases

HELD = "SELECT user_id, bought_at FROM 'purchases.parquet'"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    write_purchases(tmp_path / "purchases.parquet")
    bound = bind(shop_workspace(tmp_path), tmp_path, monkeypatch)
    for plan in bound.plan(["spend"]):
        for run in plan.runs:
            list(run_tasks(bound.repo.view(plan.view), run.tasks, bound.stores, trigger="backfill"))
    return bound


@pytest.mark.slow
def test_dataset_is_made_from_a_file(workspace: Workspace, tmp_path: Path) -> None:
    times = [FIRST_DAY + day * DAY for day in range(2, 6)]
    rows = pa.table({"user_id": [USERS[0]] * 4, "seen_at": times})
    csv.write_csv(rows, tmp_path / "spine.csv")
    made = output("dataset", "create", "--name", "training", "--view", "spend", "--spine", "spine.csv")
    assert made.startswith("training: 4 rows, ")
    stored = workspace.get_dataset("training").to_dataframe().to_arrow()
    expected = workspace.get_feature_view("spend").get_features_for_events(rows).to_arrow()
    assert stored.to_pylist() == expected.to_pylist()


def test_dataset_is_shown_verified_archived_and_deleted(workspace: Workspace) -> None:
    make(workspace, workspace.get_feature_view("spend").create_dataset("training", HELD))
    (line,) = json.loads(output("dataset", "list", "--json"))
    assert {name: line[name] for name in ("name", "of", "rows", "state")} == {
        "name": "training",
        "of": "spend",
        "rows": 20,
        "state": "ready",
    }
    shown = output("dataset", "show", "training", width=200)
    assert "Dataset training of spend" in shown
    assert "█" in shown
    assert json.loads(output("dataset", "show", "training", "--json"))["rows"] == 20
    assert output("dataset", "verify", "training").startswith("training: the same rows, ")
    output("dataset", "archive", "training")
    assert output("dataset", "list") == "There are no datasets.\n"
    assert "archived" in output("dataset", "list", "--archived")
    output("dataset", "archive", "training", "--undo")
    output("dataset", "delete", "training")
    assert "no dataset named 'training'" in _refused("dataset", "show", "training")


def test_dataset_that_waits_is_listed_with_its_progress(workspace: Workspace) -> None:
    command = ["dataset", "create", "--name", "queued", "--view", "spend", "--spine", HELD, "--no-wait"]
    assert "waits" in output(*command)
    (job,) = [job for job in workspace.jobs() if job.kind == "DATASET_GENERATION"]
    assert "RUNNING, 0 of 1" in output("dataset", "list")
    assert f"of job {job.id}" in _refused(*command)
    assert "is being made by job" in _refused("dataset", "delete", "queued")
    make(workspace, DatasetJob(workspace, job.id, "queued"))
    assert workspace.get_dataset("queued").row_count == 20


def test_create_wants_a_service_or_a_view(workspace: Workspace) -> None:
    for chosen in ([], ["--view", "spend", "--service", "offers"]):
        output("dataset", "create", "--name", "x", "--spine", HELD, *chosen, exit_code=2)
    assert workspace.list_datasets() == []


def _refused(*arguments: str) -> str:
    """Return what a command that ends with an error prints, standard error included."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1
    return result.output
