"""`featurekit integration-test` and `featurekit check-consistency`: what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from junitparser import JUnitXml
from typer.testing import CliRunner

from featurekit_dagster.cli import app
from featurekit_dagster.engine.local import compute_stored
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.execution.online_rows import online_rows
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.planner import split_tasks
from featurekit_dagster.sdk import Workspace
from tests.unit.cli_runner import bind, output
from tests.unit.cli_shop import DAY, FIRST_DAY, shop_workspace, write_purchases

VIEW = "spend"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    write_purchases(tmp_path / "purchases.parquet")
    return bind(shop_workspace(tmp_path), tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_view_that_passes_ends_with_0_and_tells_each_step(shop: Workspace, tmp_path: Path) -> None:
    command = ["integration-test", "batch", VIEW, "--events", f"purchases={tmp_path / 'purchases.parquet'}"]
    text = output(*command, "--junit", str(tmp_path / "report.xml"), width=140)
    assert "source           PASSED  20 rows of purchases (given)" in text
    assert text.endswith(f"Integration test (batch) of {VIEW}: passed.\n")
    assert JUnitXml.fromfile(str(tmp_path / "report.xml")).tests > 10
    assert not (tmp_path / "home").exists()


def test_a_view_that_fails_ends_with_1_and_says_at_which_step(shop: Workspace, tmp_path: Path) -> None:
    pd.DataFrame({"user_id": [1], "bought_at": [FIRST_DAY], "amount": ["a lot"], "shop": ["s"]}).to_parquet(
        "odd.parquet"
    )
    printed = output("integration-test", "batch", VIEW, "--events", "odd.parquet", "--json", exit_code=1)
    report = json.loads(printed)
    assert report["passed"] is False
    assert [step["step"] for step in report["steps"] if step["state"] == "FAILED"] == ["schema"]


def test_files_and_views_that_do_not_fit_are_refused(shop: Workspace, tmp_path: Path) -> None:
    for arguments, said in (
        (["batch", VIEW, "--events", "none.parquet"], "there is no file 'none.parquet'"),
        (["batch", VIEW, "--events", "other=purchases.parquet"], "other is no source parameter"),
        (["stream", VIEW], "it is a batch feature view"),
        (["batch", "nothing"], "no feature view named 'nothing'"),
    ):
        result = CliRunner().invoke(app, ["integration-test", *arguments])
        assert result.exit_code != 0
        assert said in result.output.replace("\n", " ").replace("│ ", "")


@pytest.mark.slow
def test_stores_that_are_the_same_end_with_0_and_others_with_1(shop: Workspace) -> None:
    view, stores = shop.repo.view(VIEW), shop.stores
    interval = Interval(FIRST_DAY, FIRST_DAY + 10 * DAY)
    list(run_tasks(view, split_tasks(view, interval, online=True, offline=True), stores, trigger="manual"))
    assert VIEW in output("check-consistency", VIEW)
    tiles = compute_stored(view, interval)
    place = tiles.column_names.index("sum_amount")
    wrong = tiles.set_column(place, "sum_amount", pa.array([7.0] * tiles.num_rows))
    layout = stores.online_layout(view)
    with stores.online.snapshot(layout) as snapshot:
        covered, epoch = snapshot.coverage, snapshot.epoch
    stores.online.write(layout, online_rows(view, wrong, interval, shop.now()), covered=covered, epoch=epoch)
    result = CliRunner().invoke(app, ["check-consistency", VIEW, "--json"])
    assert result.exit_code == 1
    (report,) = json.loads(result.stdout)
    assert [each["mismatched"] for each in report["features"] if "sum" in each["feature"]] == [2, 2]
    assert f"online answers of {VIEW} differ from offline ones" in result.stderr
