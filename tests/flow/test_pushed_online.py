"""Events sent over HTTP, followed by the stream's loop: online before the answer, in the table after a drain."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from deltalake import DeltaTable

from featurekit_dagster import Workspace
from featurekit_dagster.execution.stream import run_stream_loop
from featurekit_dagster.ingest_app import IngestLimits
from featurekit_dagster.streams.readers import open_reader
from tests.support.push import ingest_server, payment, payments_workspace

PATIENT = IngestLimits(visible_time=timedelta(seconds=60))


@contextmanager
def _followed(workspace: Workspace) -> Iterator[None]:
    """Follow the payments in a thread."""
    view, stop, begun = workspace.repo.view("paid"), threading.Event(), threading.Event()
    assert view.stream_source is not None
    reader = open_reader(view.stream_source, workspace.home, workspace=workspace.name)
    arguments = {"stop": stop, "on_report": lambda _: begun.set()}
    loop = threading.Thread(target=run_stream_loop, args=(view, reader, workspace.stores), kwargs=arguments)
    loop.start()
    try:
        assert begun.wait(60)
        yield
    finally:
        stop.set()
        loop.join(60)
        reader.close()


def _paid(workspace: Workspace, user: str) -> dict[str, object]:
    return dict(workspace.get_feature_view("paid").get_online_features({"user": user}).to_dict())


def test_an_event_is_online_before_its_sender_is_answered(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    with ingest_server(workspace, PATIENT) as server, _followed(workspace):
        for number in range(1, 4):
            answer = server.send([payment(7 * number)])
            assert answer.json()["visible"] is True
            assert _paid(workspace, "u0") == {"sum": sum(7 * n + 0.5 for n in range(1, number + 1)), "count": number}


def test_events_sent_while_nobody_follows_are_online_once_somebody_does(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    source = workspace.get_stream_source("payments")
    source.ingest([payment(7), payment(14)], wait=timedelta(0))
    with _followed(workspace):
        assert source.ingest([payment(21)], wait=timedelta(seconds=60)).sequence == 3
        assert _paid(workspace, "u0") == {"sum": 43.5, "count": 3}
    source.ingest([payment(28)], wait=timedelta(0))
    source.drain(keep=timedelta(0))
    with _followed(workspace):
        source.ingest([payment(35)], wait=timedelta(seconds=60))
        assert _paid(workspace, "u0") == {"sum": 107.5, "count": 5}
    source.drain()
    assert DeltaTable(tmp_path / "payments").to_pyarrow_table().num_rows == 5


def test_the_log_is_not_trimmed_before_the_loop_has_read_it(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path)
    source = workspace.get_stream_source("payments")
    with _followed(workspace):
        source.ingest([payment(7)], wait=timedelta(seconds=60))
    source.ingest([payment(14), payment(21)], wait=timedelta(0))
    workspace._clock.now += timedelta(microseconds=1)  # type: ignore[attr-defined]
    assert (source.drain(keep=timedelta(0)).drained, source.drain(keep=timedelta(0)).trimmed) == (3, 1)
