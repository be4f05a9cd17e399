"""Views that are served from a server beside ones that are not, and stores that were emptied."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import redis

from featurekit_dagster import RedisConfig, Workspace
from featurekit_dagster.errors import NothingToRefillFrom
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.planning.tasks import ONLINE, Task
from featurekit_dagster.serving.vector import UNKNOWN
from tests.support.online_servers import valkey_url
from tests.support.visits import NOW, day, latest, materialize, totals, visit, write_visits

pytestmark = pytest.mark.filterwarnings("ignore:.*no Dagster daemon gives a sign of life")
KEY = {"user": 1}


@pytest.fixture
def config() -> RedisConfig:
    return RedisConfig(primary_endpoint=valkey_url(), authentication_token="")


def opened(folder: Path, config: RedisConfig, **usual: Any) -> Workspace:
    """Materialize one view on the server, its twin in files and one of rows on the server, each of three days."""
    source = write_visits(folder, [visit(user, 1.5 + n, float(n + user)) for user in (1, 2) for n in range(9)])
    remote = totals(source, name="remote", online_store=config)
    local, rows = totals(source, name="local"), latest(source, name="rows", online_store=config)
    workspace = Workspace(f"w{uuid.uuid4().hex}", [remote, local, rows], home=folder / "home", clock=NOW, **usual)
    for view in ("remote", "local", "rows"):
        materialize(workspace, view)
    return workspace


def answers(workspace: Workspace, view: str) -> dict[str, Any]:
    return workspace.get_feature_view(view).get_online_features(KEY).to_dict()


def forget(workspace: Workspace) -> None:
    """Lose everything that the server keeps of a workspace."""
    client = redis.Redis.from_url(valkey_url())
    client.delete(*client.keys(f"*{workspace.name}*"))


def run_waiting(workspace: Workspace, view: str) -> None:
    """Carry out the jobs of a view that wait."""
    waiting = [job for job in workspace.jobs(view) if job.next_attempt_at is not None]
    tasks = [Task(view=view, interval=j.interval, online=j.online, offline=j.offline, job_id=j.id) for j in waiting]
    list(run_tasks(workspace.repo.view(view), tasks, workspace.stores, trigger="test"))


def test_a_view_on_a_server_answers_as_its_twin_in_files(tmp_path: Path, config: RedisConfig) -> None:
    workspace = opened(tmp_path, config)
    theirs = {name.partition(".")[2]: value for name, value in answers(workspace, "local").items()}
    ours = {name.partition(".")[2]: value for name, value in answers(workspace, "remote").items()}
    assert ours == theirs
    assert None not in ours.values()
    assert {path.name for path in (tmp_path / "home" / "online" / workspace.name).iterdir()} == {"local"}


def test_a_store_that_was_emptied_says_unknown_and_is_refilled_without_the_source(
    tmp_path: Path, config: RedisConfig
) -> None:
    workspace = opened(tmp_path, config)
    before = {view: answers(workspace, view) for view in ("remote", "rows")}
    forget(workspace)
    (tmp_path / "visits.parquet").unlink()
    for view in ("remote", "rows"):
        handle = workspace.get_feature_view(view)
        assert set(handle.get_online_features(KEY).statuses.values()) == {UNKNOWN}
        jobs = handle.refill_online()
        assert [(job.online, job.offline) for job in jobs] == [(True, False)]
        run_waiting(workspace, view)
        assert answers(workspace, view) == before[view]
        assert handle.refill_online() == []


def test_the_dagster_job_refills_what_the_store_has_lost(tmp_path: Path, config: RedisConfig) -> None:
    workspace = opened(tmp_path, config)
    before = answers(workspace, "remote")
    forget(workspace)
    job = workspace.definitions().resolve_job_def("refill_online")
    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(run_config={"view": "remote"}, instance=instance).success
    assert answers(workspace, "remote") == before
    covered = workspace.stores.coverage(workspace.repo.view("remote"), ONLINE)
    assert covered
    assert [job.trigger for job in workspace.jobs("remote")][0] == "refill"


def test_another_home_serves_what_is_on_the_server(tmp_path: Path, config: RedisConfig) -> None:
    workspace = opened(tmp_path, config)
    elsewhere = Workspace(workspace.name, workspace.repo.views, home=tmp_path / "elsewhere", clock=NOW)
    assert answers(elsewhere, "remote") == answers(workspace, "remote")
    assert set(answers(elsewhere, "local").values()) == {None}


def test_a_view_without_history_cannot_be_refilled(tmp_path: Path) -> None:
    source = write_visits(tmp_path, [visit(1, day(1.5))])
    workspace = Workspace("w", [latest(source, offline=False)], home=tmp_path / "home", clock=NOW)
    with pytest.raises(NothingToRefillFrom, match="a view is needed that writes both"):
        workspace.get_feature_view("newest").refill_online()


def test_a_removed_view_goes_from_the_server(tmp_path: Path, config: RedisConfig) -> None:
    workspace = opened(tmp_path, config)
    workspace.stores.online.drop(workspace.name, "remote", None, epoch=1_000)
    assert workspace.stores.online.generations(workspace.name, "remote") == ()
    assert workspace.stores.online.generations(workspace.name, "rows") == (1,)
