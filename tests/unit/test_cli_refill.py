"""`featurekit refill-online`: an online store that was lost gets what the offline store has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.planner import split_tasks
from tests.unit.cli_runner import bind, output
from tests.unit.cli_shop import DAY, FIRST_DAY, shop_workspace, write_purchases


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    write_purchases(tmp_path / "purchases.parquet")
    return bind(shop_workspace(tmp_path), tmp_path, monkeypatch)


def test_what_was_lost_online_is_asked_for_once(shop: Workspace) -> None:
    view = next(view for view in shop.repo.views if view.online and view.offline)
    span = Interval(FIRST_DAY, FIRST_DAY + 2 * DAY)
    list(run_tasks(view, split_tasks(view, span, online=True, offline=True), shop.stores, trigger="test"))
    assert "Nothing is missing online" in output("refill-online", view.name, "--no-wait")
    shop.stores.online.close()
    shutil.rmtree(shop.home / "online")
    (asked,) = json.loads(output("refill-online", view.name, "--no-wait", "--json"))
    assert (asked["view"], asked["state"]) == (view.name, "RUNNING")
    (waiting,) = [job for job in shop.jobs(view.name) if job.next_attempt_at is not None]
    assert (waiting.id, waiting.interval, waiting.trigger) == (asked["job"], span, "refill")
