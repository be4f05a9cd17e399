"""The job that follows a stream: one at a time, beside batch jobs, until it is told to end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from featurekit_dagster.errors import JobStateError, StreamFollowed
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.job_state import FOLLOWED
from featurekit_dagster.stores.ledger import Ledger
from featurekit_dagster.stores.ledger_records import JobRecord
from featurekit_dagster.stores.ledger_streams import newest_of_groups
from tests.conftest import ROOT
from tests.support.clock import Clock

NOW = datetime(2024, 1, 10, 12, tzinfo=UTC)
DAY = Interval(datetime(2024, 1, 10, tzinfo=UTC), datetime(2024, 1, 11, tzinfo=UTC))
FOLLOW = """
import os, sys
from datetime import UTC, datetime
from featurekit_dagster.stores.ledger import Ledger
ledger = Ledger(sys.argv[1], clock=lambda: datetime.now(UTC))
ledger.follow_stream(workspace="w", view="v", generation=1, run_id="lost", code_version="a")
os._exit(0)
"""


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.db", clock=clock)
    yield opened
    opened.close()


def follow(ledger: Ledger, run_id: str = "run", code: str = "a", generation: int = 1, **group: int) -> JobRecord:
    facts = {"workspace": "w", "view": "v", "generation": generation}
    return ledger.follow_stream(**facts, run_id=run_id, code_version=code, **group)


def newest(ledger: Ledger) -> JobRecord:
    return ledger.stream_jobs("w", "v")[0]


def test_a_stream_has_one_job_at_a_time(ledger: Ledger) -> None:
    job = follow(ledger)
    assert (job.kind, job.state, job.attempts[0].run_id, job.code_version) == ("STREAM", "RUNNING", "run", "a")
    with pytest.raises(StreamFollowed, match=job.id):
        follow(ledger)
    assert follow(ledger, generation=2).id != job.id


def test_batch_jobs_of_the_same_time_go_on_beside_it(ledger: Ledger) -> None:
    job = follow(ledger)
    batch = {"workspace": "w", "view": "v", "interval": DAY, "online": True, "offline": True, "trigger": "manual"}
    made = ledger.claim(**batch)
    ledger.succeed(made.id, stats={})
    snapshot = ledger.snapshot("w")
    assert snapshot.running == {}
    assert [each.id for each in ledger.jobs("w", "v")] == [made.id, job.id]


def test_an_attempt_that_failed_is_followed_by_another_of_the_same_job(ledger: Ledger, clock: Clock) -> None:
    job = follow(ledger)
    waits = []
    for number in range(9):
        ledger.fail(job.id, reason="the broker is away")
        failed = newest(ledger)
        assert (failed.state, failed.reason) == ("RUNNING", "the broker is away")
        assert failed.next_attempt_at is not None
        waits.append((failed.next_attempt_at - clock.now).total_seconds())
        assert ledger.due("w") == []
        assert follow(ledger, run_id=f"run {number}").id == job.id
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_failures_are_forgotten_once_an_attempt_lasts(ledger: Ledger, clock: Clock) -> None:
    job = follow(ledger)
    for _ in range(3):
        ledger.fail(job.id, reason="no")
        follow(ledger)
    clock.now += timedelta(minutes=9)
    ledger.report_stream(job.id, {"events": 1})
    assert newest(ledger).attempts_used == 4
    clock.now += timedelta(minutes=1)
    ledger.report_stream(job.id, {"events": 2})
    assert (newest(ledger).attempts_used, newest(ledger).stats) == (1, {"events": 2})
    assert FOLLOWED.wait_after(10_000) == timedelta(minutes=5)


def test_an_attempt_of_a_dead_process_is_taken_over(ledger: Ledger, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FOLLOW, str(tmp_path / "ledger.db")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    job = follow(ledger)
    assert [(each.run_id, each.state) for each in job.attempts] == [("lost", "ERROR"), ("run", "RUNNING")]


@pytest.mark.parametrize(("ask", "end"), [("cancel", "MANUALLY_CANCELLED"), ("drain", "DRAINED")])
def test_it_ends_when_it_is_told_to(ledger: Ledger, ask: str, end: str) -> None:
    job = follow(ledger)
    getattr(ledger, ask)(job.id)
    ledger.stop(job.id, reason="told")
    assert newest(ledger).state == end
    assert follow(ledger).id != job.id


def test_a_cancelled_stream_is_followed_again_once_it_is_resumed(ledger: Ledger) -> None:
    job = follow(ledger)
    ledger.fail(job.id, reason="no")
    assert ledger.cancel(job.id).state == "MANUALLY_CANCELLED"
    ledger.resume_stream("w", "v")
    assert newest(ledger).state == "MANUAL_RETRY"
    assert ledger.due("w") == []
    assert follow(ledger).id == job.id


def test_an_ended_job_is_not_asked_for_again_beside_its_successor(ledger: Ledger) -> None:
    first = follow(ledger)
    ledger.drain(first.id)
    ledger.stop(first.id, reason="told")
    second = follow(ledger)
    with pytest.raises(JobStateError, match=second.id):
        ledger.retry(first.id)
    ledger.cancel(second.id)
    ledger.stop(second.id, reason="told")
    assert ledger.retry(first.id).state == "MANUAL_RETRY"


def test_each_group_of_source_partitions_has_a_job_of_its_own(ledger: Ledger) -> None:
    first, second = (follow(ledger, run_id=f"run {n}", group=n, groups=2) for n in range(2))
    assert [job.stream_group for job in (first, second)] == [(0, 2), (1, 2)]
    with pytest.raises(StreamFollowed, match=second.id):
        follow(ledger, group=1, groups=2)
    ledger.fail(first.id, reason="no")
    assert follow(ledger, group=0, groups=2).id == first.id
    for job in (first, second):
        ledger.cancel(job.id)
        ledger.stop(job.id, reason="told")
    alone = follow(ledger)
    assert newest_of_groups(ledger.stream_jobs("w", "v")) == [alone]
    ledger.cancel(alone.id)
    ledger.stop(alone.id, reason="told")
    ledger.resume_stream("w", "v")
    states = {job.id: job.state for job in ledger.stream_jobs("w", "v")}
    assert states == {alone.id: "MANUAL_RETRY", first.id: "MANUALLY_CANCELLED", second.id: "MANUALLY_CANCELLED"}


def test_a_run_that_was_cancelled_before_it_began_cancels_its_job_once(ledger: Ledger) -> None:
    facts = {"workspace": "w", "view": "v", "generation": 1, "code_version": "a", "group": 0, "groups": 1}
    cancelled = ledger.cancel_stream_run(**facts, run_id="queued")
    assert cancelled is not None
    assert (cancelled.state, cancelled.attempts[0].run_id) == ("MANUALLY_CANCELLED", "queued")
    ledger.resume_stream("w", "v")
    assert ledger.cancel_stream_run(**facts, run_id="queued") is None
    assert newest(ledger).state == "MANUAL_RETRY"
    assert follow(ledger).id == cancelled.id
    assert ledger.cancel_stream_run(**facts, run_id="another") is None
    assert newest(ledger).state == "RUNNING"


def test_a_pause_lasts_until_it_is_resumed(ledger: Ledger, clock: Clock) -> None:
    assert ledger.stream_paused("w", "v") is None
    ledger.pause_stream("w", "v")
    clock.now += timedelta(hours=1)
    ledger.pause_stream("w", "v")
    assert ledger.stream_paused("w", "v") == NOW
    assert ledger.stream_paused("w", "other") is None
    ledger.resume_stream("w", "v")
    assert ledger.stream_paused("w", "v") is None
