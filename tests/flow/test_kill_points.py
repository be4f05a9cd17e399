"""A materialization killed at any step is as if it had never been interrupted, once it was run again."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.execution.materialize import CLAIMED, COMPUTED, WRITTEN_OFFLINE, WRITTEN_ONLINE
from tests.support import killed_run
from tests.support.forked import run_forked

ROUNDS = 50 if os.environ.get("FEATUREKIT_SOAK") else 2
DURING_ONLINE_WRITE = f"during the online write, after {WRITTEN_OFFLINE}"
POINTS = [CLAIMED, COMPUTED, WRITTEN_OFFLINE, DURING_ONLINE_WRITE, WRITTEN_ONLINE]
LONGEST_DELAY_SECONDS = 0.06  # about as long as the write takes


class Undisturbed(NamedTuple):
    source: Path
    view: FeatureView
    left: tuple[object, ...]


@pytest.fixture(scope="module", params=["tiles", pytest.param("rows", marks=pytest.mark.slow)])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run that nothing interrupts, and what it leaves behind."""
    root = tmp_path_factory.mktemp("undisturbed")
    killed_run.make_source(root / "events.parquet")
    view = killed_run.make_view(request.param, root / "events.parquet")
    killed_run.run(root, view)
    return Undisturbed(root / "events.parquet", view, killed_run.stored(root, view))


def kill_and_run_again(root: Path, undisturbed: Undisturbed, point: str) -> None:
    shutil.copy(undisturbed.source, root / "events.parquet")
    view = killed_run.make_view(undisturbed.view.name, root / "events.parquet")
    if point == DURING_ONLINE_WRITE:
        point = f"{WRITTEN_OFFLINE}+{random.uniform(0.001, LONGEST_DELAY_SECONDS)}"
    killed = run_forked(root, killed_run.run_and_die, root, view.name, point)
    assert killed.code == -signal.SIGKILL, killed.said
    assert point.partition("+")[0] in killed.said.split()
    hit = killed_run.START + killed_run.DAY
    assert hit in {task.interval.start for task in killed_run.missing_tasks(view, killed_run.open_stores(root))}
    killed_run.run(root, view)
    assert killed_run.stored(root, view) == undisturbed.left


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_at_a_step_and_run_again_leaves_what_an_undisturbed_run_leaves(
    tmp_path: Path, undisturbed: Undisturbed, point: str
) -> None:
    kill_and_run_again(tmp_path, undisturbed, point)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_it_does_so_every_time(tmp_path: Path, undisturbed: Undisturbed, point: str) -> None:
    for number in range(ROUNDS):
        root = tmp_path / str(number)
        root.mkdir()
        kill_and_run_again(root, undisturbed, point)
        shutil.rmtree(root)


@pytest.mark.slow
def test_a_run_killed_twice_at_different_steps_still_ends_the_same(tmp_path: Path, undisturbed: Undisturbed) -> None:
    shutil.copy(undisturbed.source, tmp_path / "events.parquet")
    view = killed_run.make_view(undisturbed.view.name, tmp_path / "events.parquet")
    for point in (WRITTEN_OFFLINE, WRITTEN_ONLINE):
        killed = run_forked(tmp_path, killed_run.run_and_die, tmp_path, view.name, point)
        assert killed.code == -signal.SIGKILL, killed.said
    killed_run.run(tmp_path, view)
    assert killed_run.stored(tmp_path, view) == undisturbed.left
