from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from featurekit_dagster import Field, StreamSource, String, Workspace
from featurekit_dagster.execution import ingest_drain
from tests.support.push import NOW, SCHEMA, log_of, payment, payments_workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return payments_workspace(tmp_path)


def _items(tmp_path: Path) -> list[int]:
    return sorted(DeltaTable(tmp_path / "payments").to_pyarrow_table()["items"].to_pylist())


def test_each_event_reaches_the_table_once_and_the_log_is_trimmed(workspace: Workspace, tmp_path: Path) -> None:
    source = workspace.get_stream_source("payments")
    source.ingest([payment(number) for number in range(3)])
    report = source.drain(keep=timedelta(0))
    assert (report.rows, report.drained, report.trimmed) == (
        3,
        3,
        0,
    )  # the clock stands still: nothing is older than now
    workspace._clock.now += timedelta(seconds=1)  # type: ignore[attr-defined]
    source.ingest([payment(3)])
    report = source.drain(keep=timedelta(0))
    assert (report.rows, report.drained, report.trimmed) == (1, 4, 3)
    assert source.drain().rows == 0
    assert _items(tmp_path) == [0, 1, 2, 3]
    assert log_of(workspace).read(3, 10).last == 4


def test_before_the_first_drain_a_push_source_has_no_rows(workspace: Workspace, tmp_path: Path) -> None:
    view = workspace.get_feature_view("paid")
    rows = view.run_transformation(NOW - timedelta(days=1), NOW).to_arrow()
    assert (rows.num_rows, rows.column_names) == (0, ["user", "ts", "amount", "items"])
    assert not (tmp_path / "payments").exists()


def test_events_stay_in_the_log_as_long_as_a_view_may_need_them(workspace: Workspace) -> None:
    source = workspace.get_stream_source("payments")
    source.ingest([payment(1)])
    workspace._clock.now += timedelta(days=2)  # type: ignore[attr-defined]
    assert source.drain().trimmed == 0
    workspace._clock.now += timedelta(microseconds=1)  # type: ignore[attr-defined]
    assert source.drain().trimmed == 1


def test_a_drain_that_dies_between_commits_is_done_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_drain, "EVENTS_AT_ONCE", 4)
    source = workspace.get_stream_source("payments")
    source.ingest([payment(number) for number in range(10)])
    append, calls = ingest_drain._append, []

    def dies(*arguments: Any) -> bool:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return append(*arguments)

    monkeypatch.setattr(ingest_drain, "_append", dies)
    with pytest.raises(KeyboardInterrupt):
        source.drain()
    assert len(_items(tmp_path)) == 8
    assert source.drain().rows == 2
    assert _items(tmp_path) == list(range(10))


def test_drains_at_the_same_time_write_each_event_once(workspace: Workspace, tmp_path: Path) -> None:
    source = workspace.get_stream_source("payments")
    for turn in range(3):
        source.ingest([payment(turn * 5 + number) for number in range(5)])
        with ThreadPoolExecutor(3) as threads:
            for drain in [threads.submit(workspace.get_stream_source("payments").drain) for _ in range(3)]:
                drain.result()
    assert _items(tmp_path) == list(range(15))


@pytest.mark.parametrize("is_before", [True, False])
def test_a_drain_goes_on_behind_what_another_one_has_taken_and_trimmed(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_before: bool
) -> None:
    source, append = workspace.get_stream_source("payments"), ingest_drain._append
    source.ingest([payment(number) for number in range(7)])
    workspace._clock.now += timedelta(seconds=1)  # type: ignore[attr-defined]
    monkeypatch.setattr(ingest_drain, "EVENTS_AT_ONCE", 5)

    def overtaken(*arguments: Any) -> bool:
        monkeypatch.setattr(ingest_drain, "_append", append)
        monkeypatch.setattr(ingest_drain, "EVENTS_AT_ONCE", 3)  # the other one began when the log had less
        done = False if is_before else append(*arguments)
        ingest_drain.drain_push_log(
            source.declaration, [], workspace.stores, keep=timedelta(0), most_commits=1 if is_before else None
        )
        return append(*arguments) if is_before else done

    monkeypatch.setattr(ingest_drain, "_append", overtaken)
    source.drain()
    assert _items(tmp_path) == list(range(7))


def test_a_log_that_was_lost_and_begun_anew_is_drained_from_its_first_event(
    workspace: Workspace, tmp_path: Path
) -> None:
    workspace.get_stream_source("payments").ingest([payment(0), payment(1)])
    workspace.get_stream_source("payments").drain()
    for file in (workspace.home / "push" / "prod").iterdir():
        file.unlink()
    workspace.get_stream_source("payments").ingest([payment(2)])
    workspace.get_stream_source("payments").drain()
    assert _items(tmp_path) == [0, 1, 2]


def test_events_that_do_not_fit_the_schema_any_more_become_dead_letters(workspace: Workspace, tmp_path: Path) -> None:
    workspace.get_stream_source("payments").ingest([payment(1), payment(2)])
    old = workspace.get_stream_source("payments").declaration
    changed = StreamSource(
        name="payments",
        stream_config=old.stream_config,
        batch_config=old.batch_config,
        schema=[*SCHEMA, Field("city", String)],
    )
    later = Workspace("prod", [changed], home=workspace.home)
    report = later.get_stream_source("payments").drain()
    assert (report.rows, report.refused, report.drained) == (0, 2, 2)
    letters = later.get_stream_source("payments").dead_letters()
    assert letters["reason"].tolist() == ["city is missing; give null where there is no value"] * 2
    assert later.get_stream_source("payments").drain().refused == 0
