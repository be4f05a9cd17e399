from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from featurekit_dagster import Field, KafkaConfig, PushConfig, StreamSource, Timestamp, Workspace
from featurekit_dagster.domain.sources import FileConfig
from featurekit_dagster.errors import EventsRefused, NotAPushSource, NotFoundError, TectonValidationError
from featurekit_dagster.source_handles import StreamSourceHandle
from tests.support.push import log_of, payment, payments_workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path)


@pytest.fixture
def source(workspace: Workspace) -> StreamSourceHandle:
    return workspace.get_stream_source("payments")


def _logged(workspace: Workspace) -> list[bytes]:
    return list(log_of(workspace).read(0, 1_000).records)


def test_events_that_fit_are_logged_in_order(workspace: Workspace, source: StreamSourceHandle) -> None:
    result = source.ingest([payment(1), payment(2)])
    assert (result.accepted, result.refused, result.sequence) == (2, (), 2)
    assert _logged(workspace)[1] == b'{"user":"u2","amount":2.5,"items":2,"ts":"2024-01-10T11:30:00Z"}'


def test_one_event_alone_need_not_be_in_a_list(workspace: Workspace, source: StreamSourceHandle) -> None:
    assert source.ingest(payment(1)).accepted == 1
    assert len(_logged(workspace)) == 1


def test_one_event_that_does_not_fit_keeps_all_out(workspace: Workspace, source: StreamSourceHandle) -> None:
    with pytest.raises(EventsRefused, match=r"event 1: items is no Int64\n  - event 2: user is null") as refused:
        source.ingest([payment(1), payment(2, items=1.9), payment(3, user=None)])
    assert [(index, field) for index, field, _ in refused.value.refused] == [(1, "items"), (2, "user")]
    assert _logged(workspace) == []


def test_a_dry_run_tells_what_does_not_fit_and_logs_nothing(workspace: Workspace, source: StreamSourceHandle) -> None:
    assert source.ingest([payment(1)], dry_run=True).accepted == 1
    result = source.ingest([payment(1), payment(2, extra=1)], dry_run=True)
    assert (result.accepted, [each.field for each in result.refused]) == (0, ["extra"])
    assert _logged(workspace) == []


def test_frames_of_every_kind_become_the_same_events(workspace: Workspace, source: StreamSourceHandle) -> None:
    columns: dict[str, Any] = {
        "user": ["u1", "u2"],
        "amount": [0.5, None],
        "items": [1, 2],
        "ts": [datetime(2024, 1, 10, 11), datetime(2024, 1, 10, 11, 30)],  # noqa: DTZ001 - naive is UTC
    }
    for frame in (pd.DataFrame(columns), pl.DataFrame(columns), pl.DataFrame(columns).to_arrow()):
        source.ingest(frame)
    logged = _logged(workspace)
    assert len(logged) == 6
    assert logged[:2] == logged[2:4] == logged[4:]
    assert b'"amount":null' in logged[1]


def test_values_of_numpy_and_aware_times_are_taken_as_what_they_are(
    workspace: Workspace, source: StreamSourceHandle
) -> None:
    zone = datetime(2024, 1, 10, 11, tzinfo=UTC).astimezone(__import__("zoneinfo").ZoneInfo("Asia/Kolkata"))
    source.ingest([payment(1, items=np.int64(3), amount=np.float32(0.5), ts=zone), payment(2, ts=pd.Timestamp(zone))])
    assert all(b'"ts":"2024-01-10T11:00:00+00:00"' in each for each in _logged(workspace))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, 1 + 2j])
def test_a_value_that_json_has_not_is_refused_by_event_and_field(source: StreamSourceHandle, value: object) -> None:
    with pytest.raises(TectonValidationError, match="event 1: amount has a"):
        source.ingest([payment(1), payment(2, amount=value)])


@pytest.mark.parametrize("value", [2**70, "\ud800", -(2**63) - 1, b"x"])
def test_a_value_outside_its_type_is_refused(source: StreamSourceHandle, value: object) -> None:
    with pytest.raises(EventsRefused, match="event 0"):
        source.ingest([payment(1, items=value)])


def test_an_event_from_far_ahead_is_refused(source: StreamSourceHandle) -> None:
    source.ingest([payment(1, ts="2024-01-11T12:00:00Z")])
    with pytest.raises(EventsRefused, match="ts lies too far ahead of now"):
        source.ingest([payment(1, ts="2024-01-11T12:00:00.000001Z")])


def test_an_error_names_fields_and_never_values(source: StreamSourceHandle) -> None:
    with pytest.raises(EventsRefused) as refused:
        source.ingest([payment(1, user="s3cr3t", items="s3cr3t")] * 30)
    assert "s3cr3t" not in str(refused.value)
    assert "and 20 more faults" in str(refused.value)


def test_nothing_is_waited_for_longer_than_asked(source: StreamSourceHandle) -> None:
    assert source.ingest([payment(1)], wait=timedelta(milliseconds=30)).sequence == 1
    assert source._push.wait_until_applied(1, timedelta(0)) is False


def test_a_source_that_is_read_or_has_no_schema_takes_no_events(tmp_path: Path) -> None:
    batch = FileConfig(uri="rows.parquet", file_format="parquet", timestamp_field="ts")
    kafka = KafkaConfig(kafka_bootstrap_servers="127.0.0.1:1", topics="a")
    declared = [
        StreamSource(name="read", stream_config=kafka, batch_config=batch),
        StreamSource(name="free", stream_config=PushConfig(timestamp_field="ts")),
        StreamSource(name="loose", stream_config=PushConfig(timestamp_field="ts"), schema=[Field("ts", Timestamp)]),
    ]
    workspace = Workspace("prod", declared, home=tmp_path)
    for name, reason in (("read", "it is read from a stream"), ("free", "it has no schema")):
        with pytest.raises(NotAPushSource, match=f"source '{name}': {reason}"):
            workspace.get_stream_source(name).ingest([])
    with pytest.raises(NotAPushSource, match="its batch side is no Delta table"):
        workspace.get_stream_source("loose").drain()
    with pytest.raises(NotFoundError, match="no stream source named 'none'; there are free, loose, read"):
        workspace.get_stream_source("none")
