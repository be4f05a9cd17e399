"""A push log that was lost with the machine's files and begun anew: what is sent from then on counts all the same."""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurekit_dagster import RedisConfig, Workspace
from featurekit_dagster.execution.ingest import PushSource
from featurekit_dagster.execution.push_applier import make_visible
from featurekit_dagster.execution.stream import run_stream_loop
from featurekit_dagster.execution.stream_follower import StreamReport
from featurekit_dagster.streams.push_log import PushLogReader, push_log_path
from tests.support.online_servers import valkey_url
from tests.support.push import log_of, payment, payments_workspace

EXAMPLES = 50 if "FEATUREKIT_SOAK" in os.environ else 3
PATIENCE = timedelta(seconds=60)
AT_ONCE = timedelta(0)


def _workspace(folder: Path, store: str) -> Workspace:
    if store == "lmdb":
        return payments_workspace(folder)
    url = valkey_url().rpartition("/")[0] + "/15"
    redis.Redis.from_url(url).flushdb()
    return payments_workspace(folder, online_store=RedisConfig(primary_endpoint=url, authentication_token=""))


def _lose(workspace: Workspace) -> None:
    for file in push_log_path(workspace.home, workspace.name, "payments").parent.iterdir():
        file.unlink()


def _paid(workspace: Workspace) -> dict[str, Any]:
    return dict(workspace.get_feature_view("paid").get_online_features({"user": "u0"}).to_dict())


@pytest.mark.parametrize("store", ["lmdb", "valkey"])
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(logs=st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=2, max_size=3))
def test_what_was_sent_counts_once_however_often_the_log_was_begun_anew(
    tmp_path_factory: pytest.TempPathFactory, store: str, logs: list[list[bool]]
) -> None:
    workspace = _workspace(tmp_path_factory.mktemp("lost"), store)
    source, expected, number = workspace.get_stream_source("payments"), [], 0
    for waits in logs:
        sent: list[float] = []
        for is_waiting in waits:  # an event that nobody has applied when the log is lost is lost with it
            number += 1
            sent.append(7 * number + 0.5)
            result = source.ingest([payment(7 * number)], wait=PATIENCE if is_waiting else AT_ONCE)
            assert result.visible is (True if is_waiting else None)
            if is_waiting:
                expected, sent = [*expected, *sent], []
                assert _paid(workspace) == {"sum": sum(expected), "count": len(expected)}
        assert log_of(workspace).newest() == len(waits)
        _lose(workspace)


@pytest.mark.parametrize("store", ["lmdb", "valkey"])
def test_whoever_follows_the_log_while_it_is_lost_goes_on_with_the_new_one(tmp_path: Path, store: str) -> None:
    workspace = _workspace(tmp_path, store)
    source, stop, begun = workspace.get_stream_source("payments"), threading.Event(), threading.Event()
    told: list[StreamReport] = []

    def on_report(report: StreamReport) -> None:
        told.append(report)
        begun.set()

    reader = PushLogReader(push_log_path(workspace.home, workspace.name, "payments"))
    loop = threading.Thread(
        target=run_stream_loop,
        args=(workspace.repo.view("paid"), reader, workspace.stores),
        kwargs={"stop": stop, "on_report": on_report},
    )
    loop.start()
    try:
        assert begun.wait(PATIENCE.total_seconds())
        push = PushSource(source.declaration, workspace.repo.views, workspace.stores)
        sent = 0
        for count in (3, 2, 4):
            events = [payment(7 * number) for number in range(sent, sent + count)]
            sent += count
            assert source.ingest(events, wait=AT_ONCE).sequence == count
            assert push.wait_until_applied(count, PATIENCE)
            assert _paid(workspace) == {"sum": sum(7 * n + 0.5 for n in range(sent)), "count": sent}
            _lose(workspace)
    finally:
        stop.set()
        loop.join(60)
        reader.close()
    assert told[-1].events == sent
    assert told[-1].lag == 0


def test_a_view_that_had_the_lost_log_keeps_the_new_one_from_being_trimmed(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    source = workspace.get_stream_source("payments")
    source.ingest([payment(number) for number in range(5)], wait=PATIENCE)
    _lose(workspace)
    source.ingest([payment(7), payment(14)], wait=AT_ONCE)
    workspace._clock.now += timedelta(microseconds=1)  # type: ignore[attr-defined]
    report = source.drain(keep=AT_ONCE)
    assert (report.rows, report.drained, report.trimmed) == (2, 2, 0)
    push = PushSource(source.declaration, workspace.repo.views, workspace.stores)
    assert push.applied() == 0
    assert make_visible(push, workspace.stores, 2, PATIENCE)
    assert (push.applied(), source.drain(keep=AT_ONCE).trimmed) == (2, 2)


def test_a_checkpoint_of_an_older_version_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = payments_workspace(tmp_path)
    source = workspace.get_stream_source("payments")
    with monkeypatch.context() as older:
        older.setattr("featurekit_dagster.streams.push_log.LogSlice.position", property(lambda found: str(found.last)))
        source.ingest([payment(7)], wait=PATIENCE)
    layout = workspace.stores.online_layout(workspace.repo.view("paid"))
    assert [known.position for known in workspace.stores.online.checkpoints(layout).values()] == ["1"]
    assert source.ingest([payment(14)], wait=PATIENCE).visible
    assert _paid(workspace) == {"sum": 22.0, "count": 2}
    identity = log_of(workspace).identity()
    assert [known.position for known in workspace.stores.online.checkpoints(layout).values()] == [f"{identity}:2"]
