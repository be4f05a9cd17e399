"""A ledger that is gone, read back from tables whose log was cleaned up after many commits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.execution.repair import repair_coverage
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.planner import split_tasks
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE, Task
from tests.flow.payments import DAY, day, payments_workspace
from tests.support.delta_log import forget_log

COMMITS = 200


def fill(workspace: Workspace, spans: Sequence[Interval], *, online: bool = True, offline: bool = True) -> None:
    """Materialize spans of `spending` below Dagster, one job for each day."""
    view = workspace.repo.view("spending")
    for span in spans:
        days = span.split_on_grid(DAY)
        tasks = [task for each in days for task in split_tasks(view, each, online=online, offline=offline)]
        list(run_tasks(view, tasks, workspace.stores, trigger="test"))


def lose_ledger(workspace: Workspace) -> None:
    workspace.stores.ledger.close()
    for file in workspace.home.glob("ledger.db*"):
        file.unlink()
    del workspace.__dict__["stores"]


def covered(workspace: Workspace) -> dict[str, IntervalSet]:
    view = workspace.repo.view("spending")
    return {store: workspace.stores.coverage(view, store) for store in (OFFLINE, ONLINE)}


@pytest.mark.slow
def test_both_stores_are_read_back_exactly_after_200_commits_and_a_cleaned_log(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path, now=day(COMMITS + 20), days=COMMITS + 20)
    fill(workspace, [Interval(day(0), day(80)), Interval(day(90), day(COMMITS))])
    fill(workspace, [Interval(day(COMMITS + 2), day(COMMITS + 7))], online=False)
    fill(workspace, [Interval(day(COMMITS + 8), day(COMMITS + 13))], offline=False)
    fill(workspace, [Interval(day(COMMITS), day(COMMITS + 1))])
    known, location = covered(workspace), workspace.stores.offline.location("spending")  # type: ignore[attr-defined]
    assert [len(known[store]) for store in (OFFLINE, ONLINE)] == [3, 3]
    assert forget_log(location) == 1
    lose_ledger(workspace)
    assert set(map(len, covered(workspace).values())) == {0}
    found = {each.store: each for each in repair_coverage([workspace.repo.view("spending")], workspace.stores)}
    assert covered(workspace) == known == {store: each.after for store, each in found.items()}
    fill(workspace, [Interval(day(80), day(82))])
    assert covered(workspace)[OFFLINE].covers(Interval(day(0), day(82)))


@pytest.mark.parametrize("step", ["written_offline", "written_online"])
def test_what_a_job_wrote_before_it_died_is_read_back_too(tmp_path: Path, step: str) -> None:
    workspace = payments_workspace(tmp_path, now=day(9))
    fill(workspace, [Interval(day(0), day(2))])
    view = workspace.repo.view("spending")

    def die(reached: str, task: Task) -> None:
        if reached == step:
            raise KeyboardInterrupt

    tasks = split_tasks(view, Interval(day(5), day(6)), online=True, offline=True)
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(view, tasks, workspace.stores, trigger="test", on_step=die))
    lose_ledger(workspace)
    list(repair_coverage([view], workspace.stores))
    whole = IntervalSet([Interval(day(0), day(2)), Interval(day(5), day(6))])
    assert covered(workspace)[OFFLINE] == whole
    assert (covered(workspace)[ONLINE] == whole) == (step == "written_online")
