"""What comes of a key after its deletion counts again, once no tile can hold both what is gone and what is new."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa

from featurekit_dagster import FeatureView, Workspace
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.execution.compaction import compact_view
from featurekit_dagster.execution.delete_keys import KeyRemoval
from featurekit_dagster.execution.deletion_request import request_deletion
from featurekit_dagster.execution.refill import look_for_gaps
from featurekit_dagster.intervals import Interval
from tests.support.clicks import continuous, live, tiled
from tests.support.clock import Clock
from tests.support.followed import NOON, Followed, pushed
from tests.support.visits import (
    HOUR,
    MICROSECOND,
    day,
    latest,
    materialize,
    totals,
    visit,
    workspace_of,
    write_visits,
)

MINUTE = timedelta(minutes=1)
KEY = {"user": 1}


def delete(view: FeatureView, workspace: Workspace) -> None:
    """Delete the user at the time of the clock, in both stores."""
    job = request_deletion(view, pa.table({"user": pa.array([1], pa.int64())}), workspace.stores, tell=lambda _: None)
    assert job is not None
    begun = workspace.stores.ledger.begin(job.id, run_id=None)
    done = KeyRemoval(view, workspace.stores, begun, lambda: None).carry_out()
    workspace.stores.ledger.finish_chore(job.id, stats=done)


def test_an_event_of_a_continuous_stream_counts_from_the_moment_of_the_deletion_on(tmp_path: Path) -> None:
    world = Followed(tmp_path, continuous(pushed(), online=True))
    world.send(visit(1, NOON - MINUTE, 1.0))
    delete(world.view, world.workspace)
    report = world.send(visit(1, NOON - MICROSECOND, 2.0), visit(1, NOON, 4.0))
    assert report.deleted == 1
    assert world.online(1, NOON + MINUTE) == [4.0, 1]


def test_a_newest_row_counts_from_the_moment_of_the_deletion_on(tmp_path: Path) -> None:
    world = Followed(tmp_path, live(pushed(), online=True))
    world.send(visit(1, NOON - MINUTE, 1.0))
    delete(world.view, world.workspace)
    assert world.send(visit(1, NOON - MICROSECOND, 2.0)).deleted == 1
    assert world.online(1)[0] is None
    assert world.send(visit(1, NOON, 4.0)).deleted == 1  # a count since the first event
    assert world.online(1)[0] == 4.0


def test_an_event_of_a_tiled_stream_counts_from_the_next_tile_of_its_own_size_on(tmp_path: Path) -> None:
    """The tile that the deletion cuts is refused: nobody could tell one with older events from one without."""
    world = Followed(tmp_path, tiled(pushed(), online=True))
    world.clock.now = NOON + MINUTE
    world.send(visit(1, NOON, 1.0))
    delete(world.view, world.workspace)
    assert world.send(visit(1, NOON + 2 * MINUTE, 2.0)).deleted == 1
    world.clock.now = NOON + HOUR
    assert world.send(visit(1, NOON + HOUR, 4.0)).deleted == 1  # a count since the first event
    assert world.online(1, NOON + 2 * HOUR) == [4.0, 1]


def _history(folder: Path, make: Callable[..., FeatureView], deleted_at: datetime) -> Workspace:
    """Materialize three days of hourly events, with a deletion of the key before the last day is materialized."""
    clock = Clock(day(3))
    rows = [visit(1, day(1) + n * HOUR, 1.0) for n in range(72)]
    workspace = workspace_of(folder, [make(write_visits(folder, rows))], clock)
    (view,) = workspace.repo.views
    materialize(workspace, view.name)
    clock.now = deleted_at
    delete(view, workspace)
    clock.now = day(4)
    materialize(workspace, view.name)
    return workspace


def test_a_batch_row_counts_from_the_moment_of_the_deletion_on(tmp_path: Path) -> None:
    workspace = _history(tmp_path, latest, day(3) + 22.5 * HOUR)
    assert workspace.get_feature_view("newest").get_online_features(KEY).to_dict()["amount"] == 1.0
    (view,) = workspace.repo.views
    times = _stored_times(workspace, view)
    assert times == [day(3) + 23 * HOUR]


def test_batch_tiles_count_from_the_next_end_of_a_tile_of_any_size_on(tmp_path: Path) -> None:
    """Tiles of an hour may be laid out anew as tiles of a day, so all stores agree on the end of the day."""
    workspace = _history(tmp_path, totals, day(2) + 22.5 * HOUR)
    (view,) = workspace.repo.views
    assert _stored_times(workspace, view) == [day(3) + n * HOUR for n in range(24)]
    online = workspace.get_feature_view("totals").get_online_features(KEY).to_dict()
    assert online["sum_1d"] == online["count_3d"] == 24


def test_what_came_after_a_deletion_stays_when_tiles_are_laid_out_anew_or_refilled(tmp_path: Path) -> None:
    workspace = _history(tmp_path, totals, day(2) + 22.5 * HOUR)
    (view,) = workspace.repo.views
    compact_view(view, workspace.stores, holder="test", check=lambda: None, patience=timedelta(0))
    handle = workspace.get_feature_view("totals")
    assert handle.get_online_features(KEY).to_dict()["count_3d"] == 24
    workspace.stores.online.close()
    shutil.rmtree(workspace.home / "online")
    workspace = workspace_of(tmp_path, [view], Clock(day(4)))  # the other remembers for a second where tiles lay
    handle = workspace.get_feature_view("totals")
    assert look_for_gaps(view, workspace.stores).lost
    materialize(workspace, "totals")
    assert handle.get_online_features(KEY).to_dict()["count_3d"] == 24


def _stored_times(workspace: Workspace, view: FeatureView) -> list[datetime]:
    stored = workspace.stores.read_offline(view, stored_schema(view), Interval(day(1), day(5)))
    return sorted(stored[view.stored_time_column].to_pylist())
