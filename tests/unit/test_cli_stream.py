"""The commands about streams."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.stores.stream_state import DeadLetter
from tests.support.push import payments_workspace
from tests.unit.cli_runner import bind, output
from tests.unit.cli_shop import shop_workspace

NOON = datetime(2024, 1, 10, 12, tzinfo=UTC)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    return bind(payments_workspace(tmp_path), tmp_path, monkeypatch)


def test_a_stream_that_nobody_has_followed_is_told_so(workspace: Workspace) -> None:
    (found,) = json.loads(output("stream", "status", "--json"))
    assert (found["view"], found["state"], found["events"], found["job"]) == ("paid", "NOT STARTED", None, None)
    assert not workspace.stores.has_ledger


def test_status_says_what_the_run_has_said_last(workspace: Workspace) -> None:
    facts = {"workspace": workspace.name, "view": "paid", "generation": 1, "code_version": "c"}
    job = workspace.stores.ledger.follow_stream(**facts, run_id="run")
    stats = {"events": 1200, "lag": 3, "late": 2, "newest_event_us": 1_704_886_200_000_000}
    workspace.stores.ledger.report_stream(job.id, stats)
    printed = output("stream", "status", "paid", width=160)
    assert printed.splitlines()[-1].split() == ["paid", "RUNNING", "1,200", "3", "2", "2024-01-10T11:30Z"]
    (found,) = json.loads(output("stream", "status", "--json"))
    assert (found["job"], found["run_id"], found["newest_event"]) == (job.id, "run", "2024-01-10T11:30Z")
    assert output("jobs").splitlines()[-1].split()[1:4] == ["paid", "STREAM", "[2024-01-10T12:00Z,"]
    assert json.loads(output("job", job.id, "--json"))["interval"]["end_time"] is None


def test_status_adds_up_what_the_runs_of_one_stream_have_said(workspace: Workspace) -> None:
    facts = {"workspace": workspace.name, "view": "paid", "generation": 1, "code_version": "c", "groups": 2}
    ledger = workspace.stores.ledger
    jobs = [ledger.follow_stream(**facts, group=group, run_id=f"run {group}") for group in range(2)]
    for job, newest, watermark in zip(jobs, (5_000_000, 9_000_000), (4_000_000, 2_000_000), strict=True):
        times = {"newest_event_us": newest, "watermark_us": watermark, "retention_seconds": 3600}
        ledger.report_stream(job.id, {"events": 10, "lag": 1, **times})
    ledger.fail(jobs[1].id, reason="the broker is away")
    ledger.cancel(jobs[1].id)
    (found,) = json.loads(output("stream", "status", "--json"))
    assert (found["events"], found["lag"], found["state"]) == (20, 2, "1 RUNNING, 1 MANUALLY_CANCELLED")
    assert (found["newest_event"], found["watermark"]) == ("1970-01-01T00:00:09Z", "1970-01-01T00:00:02Z")
    assert [(each["share"], each["run_id"]) for each in found["shares"]] == [("1 of 2", "run 0"), ("2 of 2", "run 1")]
    assert found["warning"].startswith("paid: its stream keeps events for 1h, less than the batch_schedule 1d;")


def test_what_a_stream_refused_is_counted_by_reason_and_not_shown(workspace: Workspace) -> None:
    letters = workspace.stores.dead_letters(workspace.repo.view("paid"))
    assert output("stream", "dead-letters", "paid") == "Every event of the stream of paid has become a row.\n"
    assert json.loads(output("stream", "dead-letters", "paid", "--json")) == []
    assert workspace.get_feature_view("paid").dead_letters().empty
    texts = ["paid_at is missing", "amount is no Float64", "paid_at is missing"]
    refused = [
        DeadLetter(partition="0", reason=text, payload=b"s3cr3t", number=at) for at, text in enumerate(texts, start=1)
    ]
    for at, letter in enumerate(refused):
        letters.append([letter], NOON + timedelta(minutes=at))
    printed = output("stream", "dead-letters", "paid", width=160)
    assert [line.split(maxsplit=3) for line in printed.splitlines() if "is " in line] == [
        ["2", "2024-01-10T12:00Z", "2024-01-10T12:02Z", "paid_at is missing"],
        ["1", "2024-01-10T12:01Z", "2024-01-10T12:01Z", "amount is no Float64"],
    ]
    assert "s3cr3t" not in printed
    assert letters.location in printed
    (first, _) = json.loads(output("stream", "dead-letters", "paid", "--json"))
    assert first == {
        "reason": "paid_at is missing",
        "events": 2,
        "first": "2024-01-10T12:00Z",
        "last": "2024-01-10T12:02Z",
    }
    frame = workspace.get_feature_view("paid").dead_letters()
    assert (frame["reason"].tolist(), frame["payload"].tolist()) == (texts, [b"s3cr3t"] * 3)


def test_a_stream_is_paused_and_resumed(workspace: Workspace) -> None:
    assert output("stream", "pause", "paid") == (
        "Paused the stream of paid; featurekit stream resume paid lets it go on where it is.\n"
    )
    (found,) = json.loads(output("stream", "status", "--json"))
    assert found["state"] == "PAUSED"
    assert output("stream", "resume", "paid") == (
        "Resumed the stream of paid; its sensor in Dagster starts the run that follows it.\n"
    )
    assert workspace.stores.ledger.stream_paused(workspace.name, "paid") is None


def test_a_view_without_a_stream_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = bind(shop_workspace(tmp_path), tmp_path, monkeypatch)
    name = workspace.repo.views[0].name
    assert output("stream", "pause", name, exit_code=1) == "\n"
    assert output("stream", "status") == "No feature view follows a stream.\n"
