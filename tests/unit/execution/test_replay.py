from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.errors import EventsRefused
from featurekit_dagster.execution.ingest import PushSource
from featurekit_dagster.execution.replay import Replay, ReplayStep, followed
from tests.support.push import NOW, log_of, payments_workspace

FIRST = datetime(2024, 1, 10, 9, 0, tzinfo=UTC)
HOUR, NONE = timedelta(hours=1), timedelta(0)


def payments_file(folder: Path, count: int = 12, **changes: object) -> Path:
    """Write payments every ten minutes, the newest first, with a column that is no field."""
    times = [FIRST + number * timedelta(minutes=10) for number in reversed(range(count))]
    rows = {"user": "u1", "amount": 2.5, "items": range(count), "ts": times, "other": "x", **changes}
    path = folder / "payments.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


def source_of(workspace: Workspace) -> PushSource:
    repo = workspace.repo
    return PushSource(repo.stream_source("payments"), repo.views, workspace.stores)


def ignore(step: ReplayStep) -> None:
    """Be told, and say nothing."""


def sent_times(workspace: Workspace) -> list[datetime]:
    log = log_of(workspace)
    return [datetime.fromisoformat(msgspec.json.decode(each)["ts"]) for each in log.read(0, log.newest()).records]


def test_events_are_sent_in_the_order_of_their_times_and_are_online_at_the_end(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    push, steps = source_of(workspace), list[ReplayStep]()
    with followed(push, workspace.stores):
        sent = Replay(push, payments_file(tmp_path)).run(100_000, steps.append)
        vector = workspace.get_feature_view("paid").get_online_features({"user": "u1"})
    times = sent_times(workspace)
    assert sent == len(times) == 12
    assert times == sorted(times)
    assert steps[-1].events == 12
    assert steps[-1].event_time == FIRST + 110 * timedelta(minutes=1)
    assert any(step.delays for step in steps)
    # the clock stands at 12:00, so the hour holds nothing of 9:00 to 10:50
    assert vector.to_dict()["count"] == 0
    assert vector.slo_info["UNKNOWN"] == 0
    assert NOW - FIRST == 3 * HOUR


def test_a_second_replay_goes_on_behind_the_last_event_sent(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    push, file = source_of(workspace), payments_file(tmp_path)
    assert Replay(push, file, span=HOUR).run(100_000, ignore, patience=NONE) == 6
    assert Replay(push, file).run(100_000, ignore, patience=NONE) == 6
    assert Replay(push, file).run(100_000, ignore, patience=NONE) == 0
    assert len(set(sent_times(workspace))) == 12


def test_the_start_is_inside_and_the_end_is_not(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    replay = Replay(source_of(workspace), payments_file(tmp_path), start=FIRST + HOUR / 2, end=FIRST + HOUR)
    assert replay.run(100_000, ignore, patience=NONE) == 3
    assert sent_times(workspace)[0] == FIRST + HOUR / 2


def test_events_take_as_long_as_the_speed_says(tmp_path: Path) -> None:
    workspace, steps = payments_workspace(tmp_path), list[ReplayStep]()
    replay = Replay(source_of(workspace), payments_file(tmp_path))
    began = datetime.now(UTC)
    replay.run(6_600.0, steps.append, every=timedelta(milliseconds=100), patience=NONE)
    assert datetime.now(UTC) - began >= timedelta(milliseconds=950)  # 110 minutes of events
    assert steps[0].events < 12


def test_rows_that_do_not_fit_are_refused_without_their_values(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    file = payments_file(tmp_path, user=None)
    with pytest.raises(EventsRefused) as refused:
        Replay(source_of(workspace), file).run(100_000, ignore, patience=NONE)
    assert refused.value.refused[0][1] == "user"
    assert log_of(workspace).newest() == 0
