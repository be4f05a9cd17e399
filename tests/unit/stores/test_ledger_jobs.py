"""What the ledger promises about queued jobs: they wait, are tried again, cancelled, drained and asked for again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster.errors import JobStateError, OverlappingMaterialization
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.job_state import ONCE
from featurekit_dagster.stores import ledger_lifecycle
from featurekit_dagster.stores.ledger import Ledger
from featurekit_dagster.stores.ledger_records import JobRecord
from tests.support.clock import Clock
from tests.support.postgres import ledger_place

T0 = datetime(2024, 3, 1, tzinfo=UTC)
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
VERSION_1_JOBS = """
CREATE TABLE facts (name VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);
CREATE TABLE views (workspace VARCHAR, view VARCHAR, created_us INTEGER NOT NULL, PRIMARY KEY (workspace, view));
CREATE TABLE jobs (sequence INTEGER PRIMARY KEY, id VARCHAR NOT NULL UNIQUE, workspace VARCHAR NOT NULL,
 view VARCHAR NOT NULL, generation INTEGER NOT NULL, kind VARCHAR NOT NULL, start_us INTEGER NOT NULL,
 end_us INTEGER NOT NULL, online BOOLEAN NOT NULL, offline BOOLEAN NOT NULL, overwrite BOOLEAN NOT NULL,
 "trigger" VARCHAR NOT NULL, state VARCHAR NOT NULL, created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL,
 next_attempt_us INTEGER, reason TEXT, stats TEXT NOT NULL, process VARCHAR NOT NULL);
CREATE TABLE attempts (id VARCHAR PRIMARY KEY, job_id VARCHAR NOT NULL REFERENCES jobs (id), number INTEGER NOT NULL,
 run_id VARCHAR, state VARCHAR NOT NULL, created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, reason TEXT);
CREATE TABLE coverage (workspace VARCHAR, view VARCHAR, generation INTEGER, store VARCHAR, start_us INTEGER,
 end_us INTEGER NOT NULL, PRIMARY KEY (workspace, view, generation, store, start_us));
CREATE TABLE leases (name VARCHAR PRIMARY KEY, epoch INTEGER NOT NULL, holder VARCHAR, process VARCHAR,
 expires_us INTEGER);
"""


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime(2024, 6, 1, tzinfo=UTC))


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(tmp_path: Path, clock: Clock, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    opened = Ledger(ledger_place(request, tmp_path), clock=clock)
    yield opened
    opened.close()


def days(first: int, last: int) -> Interval:
    return Interval(T0 + first * DAY, T0 + last * DAY)


def queue(ledger: Ledger, *spans: Interval, **more: Any) -> list[JobRecord]:
    facts = {"workspace": "w", "view": "v", "online": True, "offline": True, "trigger": "manual"} | more
    return ledger.queue(intervals=spans, **facts)


def test_queued_jobs_are_one_batch_that_is_due_at_once_and_has_no_attempt(ledger: Ledger, clock: Clock) -> None:
    first, second = queue(ledger, days(0, 1), days(1, 3))
    assert first.batch == second.batch is not None
    assert [job.state for job in (first, second)] == ["RUNNING", "RUNNING"]
    assert (first.attempts, first.attempts_used, first.next_attempt_at) == ((), 0, clock.now)
    assert ledger.due("w") == [first, second]
    assert ledger.due("other") == []


def test_a_queued_range_is_claimed(ledger: Ledger) -> None:
    (waiting,) = queue(ledger, days(0, 2))
    with pytest.raises(OverlappingMaterialization) as caught:
        queue(ledger, days(1, 3), overwrite=True)
    assert (caught.value.job_id, caught.value.running) == (waiting.id, True)
    assert queue(ledger, days(2, 3))


def test_of_a_batch_with_a_refused_range_nothing_is_queued(ledger: Ledger) -> None:
    queue(ledger, days(1, 2))
    with pytest.raises(OverlappingMaterialization):
        queue(ledger, days(0, 1), days(1, 2))
    assert len(ledger.jobs("w")) == 1


def test_a_failed_attempt_is_followed_by_another_after_the_wait(ledger: Ledger, clock: Clock) -> None:
    (job,) = queue(ledger, days(0, 1))
    started = ledger.begin(job.id, run_id="run-1")
    assert (started.next_attempt_at, started.attempts[0].run_id, started.attempts_used) == (None, "run-1", 1)
    ledger.fail(job.id, reason="the source was away")
    waiting = ledger.job(job.id)
    assert (waiting.state, waiting.reason) == ("RUNNING", "the source was away")
    assert waiting.next_attempt_at == clock.now + 5 * MINUTE
    assert [a.state for a in waiting.attempts] == ["ERROR"]
    assert ledger.due("w") == []
    clock.now += 5 * MINUTE
    assert [due.id for due in ledger.due("w")] == [job.id]
    again = ledger.begin(job.id, run_id="run-2")
    assert [(a.number, a.run_id, a.state) for a in again.attempts] == [(1, "run-1", "ERROR"), (2, "run-2", "RUNNING")]
    ledger.succeed(job.id, stats={"rows": 3})
    done = ledger.job(job.id)
    assert (done.state, dict(done.stats), done.reason) == ("SUCCESS", {"rows": 3}, None)
    assert ledger.coverage("w", "v", "offline") == IntervalSet([days(0, 1)])


def test_a_job_is_given_up_after_ten_attempts_and_its_range_is_free(ledger: Ledger, clock: Clock) -> None:
    (job,) = queue(ledger, days(0, 1))
    for number in range(1, 11):
        ledger.begin(job.id)
        ledger.fail(job.id, reason=f"failure {number}")
        clock.now += DAY
    given_up = ledger.job(job.id)
    assert (given_up.state, given_up.attempts_used, given_up.next_attempt_at) == ("FAILURE", 10, None)
    assert given_up.reason == "failure 10"
    assert queue(ledger, days(0, 1))


def test_a_permanent_error_ends_the_job_at_its_first_attempt(ledger: Ledger) -> None:
    (job,) = queue(ledger, days(0, 1))
    ledger.begin(job.id)
    ledger.fail(job.id, reason="a column is missing", permanent=True)
    assert ledger.job(job.id).state == "FAILURE"


def test_without_managed_retries_one_attempt_is_all(ledger: Ledger) -> None:
    (job,) = queue(ledger, days(0, 1), policy=ONCE)
    ledger.begin(job.id)
    ledger.fail(job.id, reason="the source was away")
    assert ledger.job(job.id).state == "FAILURE"


def test_an_attempt_that_is_under_way_is_not_started_again(ledger: Ledger) -> None:
    (job,) = queue(ledger, days(0, 1))
    ledger.begin(job.id)
    with pytest.raises(JobStateError, match="cannot be started; wait for it"):
        ledger.begin(job.id)


def test_a_waiting_job_is_cancelled_at_once_and_never_starts(ledger: Ledger) -> None:
    (job,) = queue(ledger, days(0, 1))
    assert ledger.cancel(job.id).state == "MANUALLY_CANCELLED"
    assert ledger.due("w") == []
    with pytest.raises(JobStateError, match="MANUALLY_CANCELLED"):
        ledger.begin(job.id)
    assert ledger.cancel(job.id) == ledger.job(job.id)


def test_a_running_job_is_asked_to_end_and_is_cancelled_when_its_attempt_has_seen_it(ledger: Ledger) -> None:
    (job,) = queue(ledger, days(0, 1))
    ledger.begin(job.id)
    asked = ledger.cancel(job.id)
    assert (asked.state, asked.attempts[0].state) == ("MANUAL_CANCELLATION_REQUESTED", "CANCELLING")
    with pytest.raises(OverlappingMaterialization):
        queue(ledger, days(0, 1))
    ledger.stop(job.id, reason="it was cancelled by hand")
    ended = ledger.job(job.id)
    assert (ended.state, ended.attempts[0].state) == ("MANUALLY_CANCELLED", "CANCELLED")
    assert queue(ledger, days(0, 1))


def test_a_job_that_fails_after_it_was_cancelled_is_cancelled(ledger: Ledger) -> None:
    (job,) = queue(ledger, days(0, 1))
    ledger.begin(job.id)
    ledger.cancel(job.id)
    ledger.fail(job.id, reason="the source was away")
    assert ledger.job(job.id).state == "MANUALLY_CANCELLED"


def test_a_drained_job_may_be_filled_again(ledger: Ledger) -> None:
    (job,) = queue(ledger, days(0, 1))
    ledger.begin(job.id)
    assert ledger.drain(job.id).state == "DRAINING"
    ledger.stop(job.id, reason="newer code")
    assert ledger.job(job.id).state == "DRAINED"
    assert ledger.snapshot("w").running == {}


@pytest.mark.parametrize("ending", ["succeed", "give up", "cancel"])
def test_a_retry_has_all_its_attempts_again(ledger: Ledger, ending: str) -> None:
    (job,) = queue(ledger, days(0, 1))
    ledger.begin(job.id)
    if ending == "succeed":
        ledger.succeed(job.id, stats={})
    elif ending == "cancel":
        ledger.cancel(job.id)
        ledger.stop(job.id, reason="it was cancelled by hand")
    else:
        ledger.fail(job.id, reason="no", permanent=True)
    asked = ledger.retry(job.id)
    assert (asked.state, asked.attempts_used) == ("MANUAL_RETRY", 0)
    assert [due.id for due in ledger.due("w")] == [job.id]
    assert ledger.begin(job.id).state == "RUNNING"
    assert [a.number for a in ledger.job(job.id).attempts] == [1, 2]


def test_a_retry_is_refused_while_another_job_has_the_range(ledger: Ledger) -> None:
    (first,) = queue(ledger, days(0, 1))
    ledger.cancel(first.id)
    (other,) = queue(ledger, days(0, 1))
    with pytest.raises(OverlappingMaterialization) as caught:
        ledger.retry(first.id)
    assert caught.value.job_id == other.id


def test_a_retry_of_a_job_on_its_way_is_refused(ledger: Ledger) -> None:
    (job,) = queue(ledger, days(0, 1))
    with pytest.raises(JobStateError, match="cannot be retried before it has ended"):
        ledger.retry(job.id)


def test_an_attempt_that_was_given_up_for_lost_cannot_succeed_later(ledger: Ledger, clock: Clock) -> None:
    (job,) = queue(ledger, days(0, 1))
    ledger.begin(job.id, run_id="run")
    held = ledger.acquire("batch:w/v", "run", MINUTE)
    clock.now += MINUTE
    ledger.acquire(held.name, "other", MINUTE)
    with pytest.raises(JobStateError, match=r"RUNNING \(its lease ran out\) and cannot succeed any more"):
        ledger.succeed(job.id, stats={})
    assert ledger.coverage("w", "v", "offline") == IntervalSet()
    assert [due.id for due in ledger.due("w")] == [job.id]


def test_nobody_fails_an_attempt_that_another_process_has_under_way(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = queue(ledger, days(0, 1))
    ledger.begin(job.id)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(ledger_lifecycle, "current_process", lambda: "another process")
        ledger.fail(job.id, reason="the stale one's trouble")
        with pytest.raises(JobStateError, match="its attempt was taken over"):
            ledger.succeed(job.id, stats={})
    assert ledger.job(job.id).reason is None
    ledger.succeed(job.id, stats={})


def test_a_ledger_of_version_1_keeps_its_rows_and_takes_new_jobs(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1_JOBS)
    us = int(T0.timestamp() * 1e6)
    day_us = 86_400_000_000
    with connection:
        connection.executemany("INSERT INTO facts VALUES (?, ?)", [("schema_version", "1"), ("host", "h")])
        old = (1, "old", "w", "v", 1, "BATCH", us, us + day_us, 1, 1, 0, "manual", "SUCCESS", us, us, None, None)
        connection.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * 19)})", (*old, json.dumps({"rows": 2}), "p"))
        connection.execute("INSERT INTO attempts VALUES ('a', 'old', 1, NULL, 'SUCCESS', ?, ?, NULL)", (us, us))
        connection.execute("INSERT INTO coverage VALUES ('w', 'v', 1, 'offline', ?, ?)", (us, us + day_us))
    connection.close()
    for _ in range(2):
        ledger = Ledger(path, clock=clock, host="h")
        job = ledger.job("old")
        assert (job.state, dict(job.stats), job.max_attempts, len(job.attempts)) == ("SUCCESS", {"rows": 2}, 1, 1)
        assert ledger.coverage("w", "v", "offline") == IntervalSet([days(0, 1)])
        ledger.close()
    ledger = Ledger(path, clock=clock, host="h")
    assert queue(ledger, days(1, 2))
    ledger.close()
