"""What the ledger promises about claims, coverage and the states of jobs."""

from __future__ import annotations

import os
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurekit_dagster.errors import (
    JobStateError,
    LedgerOnOtherHost,
    LedgerUnavailable,
    LedgerVersionMismatch,
    NotFoundError,
    OverlappingMaterialization,
    Unsupported,
)
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.tasks import LedgerSnapshot
from featurekit_dagster.stores.ledger import Ledger
from featurekit_dagster.stores.ledger_records import JobRecord
from tests.support import ledger_client
from tests.support.postgres import ledger_place

SOAK = bool(os.environ.get("FEATUREKIT_SOAK"))
T0 = datetime(2024, 3, 1, tzinfo=UTC)
NOW = datetime(2024, 6, 1, 12, 0, 0, 5, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    opened = Ledger(ledger_place(request, tmp_path), clock=lambda: NOW)
    yield opened
    opened.close()


def days(first: int, last: int) -> Interval:
    return Interval(T0 + first * DAY, T0 + last * DAY)


def claim(ledger: Ledger, interval: Interval, **more: Any) -> JobRecord:
    facts = {"workspace": "w", "view": "v", "online": True, "offline": True, "trigger": "manual"} | more
    return ledger.claim(interval=interval, **facts)


def finish(ledger: Ledger, interval: Interval, **more: Any) -> JobRecord:
    job = claim(ledger, interval, **more)
    ledger.succeed(job.id, stats={})
    return ledger.job(job.id)


def test_a_claim_is_a_running_job_with_its_first_attempt(tmp_path: Path) -> None:
    names = iter(["job", "attempt"])
    ledger = Ledger(tmp_path / "ledger.db", clock=lambda: NOW, new_id=lambda: next(names))
    job = claim(ledger, days(0, 2), online=False, trigger="backfill", run_id="run", overwrite=True)
    assert (job.id, job.workspace, job.view, job.generation, job.kind) == ("job", "w", "v", 1, "BATCH")
    assert (job.interval, job.online, job.offline, job.overwrite) == (days(0, 2), False, True, True)
    assert (job.trigger, job.state, job.reason, job.next_attempt_at) == ("backfill", "RUNNING", None, None)
    assert (job.created_at, job.updated_at, dict(job.stats)) == (NOW, NOW, {})
    (attempt,) = job.attempts
    assert (attempt.id, attempt.number, attempt.run_id, attempt.state) == ("attempt", 1, "run", "RUNNING")
    assert ledger.job("job") == job
    ledger.close()


def test_a_claim_of_no_store_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="neither was asked for"):
        claim(ledger, days(0, 1), online=False, offline=False)


def test_a_range_that_succeeded_is_refused_without_overwrite(ledger: Ledger) -> None:
    first = finish(ledger, days(0, 2))
    with pytest.raises(OverlappingMaterialization, match="pass overwrite=True") as refused:
        claim(ledger, days(1, 3))
    error = refused.value
    assert (error.running, error.job_id, error.overlap) == (False, first.id, IntervalSet([days(1, 2)]))
    assert [job.id for job in ledger.jobs("w")] == [first.id]


def test_a_range_that_succeeded_is_accepted_with_overwrite(ledger: Ledger) -> None:
    finish(ledger, days(0, 2))
    assert claim(ledger, days(1, 3), overwrite=True).state == "RUNNING"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_running_range_is_always_refused(ledger: Ledger, overwrite: bool) -> None:
    first = claim(ledger, days(0, 2))
    with pytest.raises(OverlappingMaterialization, match="queued or running") as refused:
        claim(ledger, days(1, 3), overwrite=overwrite)
    assert (refused.value.running, refused.value.job_id) == (True, first.id)


def test_ranges_that_touch_do_not_overlap(ledger: Ledger) -> None:
    claim(ledger, days(0, 1))
    finish(ledger, days(2, 3))
    assert claim(ledger, days(1, 2)).interval == days(1, 2)


def test_overlap_is_tested_for_each_store_by_itself(ledger: Ledger) -> None:
    finish(ledger, days(0, 1), online=False)
    running = claim(ledger, days(0, 1), offline=False)
    with pytest.raises(OverlappingMaterialization, match="in the offline store") as refused:
        claim(ledger, days(0, 1))
    assert not refused.value.running
    with pytest.raises(OverlappingMaterialization, match="in the online store"):
        claim(ledger, days(0, 1), overwrite=True)
    ledger.succeed(running.id, stats={})
    assert ledger.coverage("w", "v", "online") == ledger.coverage("w", "v", "offline") == IntervalSet([days(0, 1)])


def test_views_workspaces_and_generations_do_not_meet(ledger: Ledger) -> None:
    finish(ledger, days(0, 1))
    for other in ({"view": "other"}, {"workspace": "other"}, {"generation": 2}):
        finish(ledger, days(0, 1), **other)
    assert ledger.coverage("w", "v", "online", generation=2) == IntervalSet([days(0, 1)])
    assert ledger.coverage("w", "v", "online", generation=3) == IntervalSet()
    assert [job.workspace for job in ledger.jobs("other")] == ["other"]


def test_success_covers_the_stores_of_the_job_and_keeps_its_counts(ledger: Ledger) -> None:
    job = claim(ledger, days(0, 1), online=False)
    ledger.succeed(job.id, stats={"rows_offline": 7, "rows_before": 0})
    done = ledger.job(job.id)
    assert (done.state, dict(done.stats)) == ("SUCCESS", {"rows_offline": 7, "rows_before": 0})
    assert [attempt.state for attempt in done.attempts] == ["SUCCESS"]
    assert ledger.coverage("w", "v", "offline") == IntervalSet([days(0, 1)])
    assert ledger.coverage("w", "v", "online") == IntervalSet()


def test_success_twice_is_success_once(ledger: Ledger) -> None:
    job = claim(ledger, days(0, 1))
    ledger.succeed(job.id, stats={"rows_offline": 7})
    before = ledger.job(job.id)
    ledger.succeed(job.id, stats={"rows_offline": 8})
    assert ledger.job(job.id) == before


def test_a_job_that_failed_cannot_succeed_and_covers_nothing(ledger: Ledger) -> None:
    job = claim(ledger, days(0, 1))
    ledger.fail(job.id, reason="no source")
    with pytest.raises(JobStateError, match=r"FAILURE \(no source\) and cannot succeed"):
        ledger.succeed(job.id, stats={})
    assert ledger.coverage("w", "v", "online") == IntervalSet()


def test_failure_frees_the_range_and_keeps_the_first_reason(ledger: Ledger) -> None:
    job = claim(ledger, days(0, 1))
    ledger.fail(job.id, reason="first")
    ledger.fail(job.id, reason="second")
    failed = ledger.job(job.id)
    assert (failed.state, failed.reason) == ("FAILURE", "first")
    assert [(attempt.state, attempt.reason) for attempt in failed.attempts] == [("ERROR", "first")]
    assert claim(ledger, days(0, 1)).state == "RUNNING"


def test_a_job_that_succeeded_cannot_fail(ledger: Ledger) -> None:
    job = finish(ledger, days(0, 1))
    with pytest.raises(JobStateError, match="SUCCESS and cannot fail"):
        ledger.fail(job.id, reason="too late")


def test_a_failed_overwrite_leaves_the_range_covered(ledger: Ledger) -> None:
    finish(ledger, days(0, 2))
    ledger.fail(claim(ledger, days(0, 1), overwrite=True).id, reason="x")
    assert ledger.coverage("w", "v", "offline") == IntervalSet([days(0, 2)])


def test_abandoned_jobs_free_their_ranges_and_finished_ones_stay(ledger: Ledger) -> None:
    done = finish(ledger, days(0, 1), run_id="run")
    of_run = claim(ledger, days(1, 2), run_id="run")
    by_id = claim(ledger, days(2, 3), run_id="other")
    kept = claim(ledger, days(3, 4), run_id="other")
    assert ledger.abandon([by_id.id, done.id], run_id="run", reason="the run is gone") == (of_run.id, by_id.id)
    assert [ledger.job(job.id).state for job in (done, of_run, by_id, kept)] == [
        "SUCCESS",
        "FAILURE",
        "FAILURE",
        "RUNNING",
    ]
    assert ledger.job(of_run.id).reason == "the run is gone"
    assert ledger.abandon(run_id="run", reason="again") == ()


def test_jobs_are_listed_newest_first_and_by_view_and_state(ledger: Ledger) -> None:
    first = finish(ledger, days(0, 1))
    second = claim(ledger, days(1, 2))
    third = claim(ledger, days(0, 1), view="other")
    assert [job.id for job in ledger.jobs("w")] == [third.id, second.id, first.id]
    assert [job.id for job in ledger.jobs("w", limit=2)] == [third.id, second.id]
    assert [job.id for job in ledger.jobs("w", "v")] == [second.id, first.id]
    assert [job.id for job in ledger.jobs("w", states=["SUCCESS"])] == [first.id]
    assert [len(job.attempts) for job in ledger.jobs("w")] == [1, 1, 1]


def test_an_unknown_job_is_named_beside_known_ones(ledger: Ledger) -> None:
    job = claim(ledger, days(0, 1))
    for ask in (lambda: ledger.job("no"), lambda: ledger.succeed("no", stats={}), lambda: ledger.fail("no", reason="")):
        with pytest.raises(NotFoundError, match=f"no job named 'no'; there is {job.id}"):
            ask()


def test_a_snapshot_tells_what_is_covered_running_and_still_missing(ledger: Ledger) -> None:
    finish(ledger, days(0, 2))
    finish(ledger, days(5, 6), online=False)
    claim(ledger, days(2, 3))
    for interval in (days(6, 8), days(8, 9), days(0, 1)):
        ledger.fail(claim(ledger, interval, overwrite=True).id, reason="x")
    finish(ledger, days(6, 7))
    claim(ledger, days(0, 1), workspace="other")
    assert ledger.snapshot("w") == LedgerSnapshot(
        covered={
            ("v", "online"): IntervalSet([days(0, 2), days(6, 7)]),
            ("v", "offline"): IntervalSet([days(0, 2), days(5, 7)]),
        },
        running={"v": IntervalSet([days(2, 3)])},
        failed={"v": IntervalSet([days(7, 9)])},
    )


_SPANS = st.tuples(st.integers(0, 30), st.integers(1, 8)).map(lambda pair: days(pair[0], pair[0] + pair[1]))


@settings(max_examples=300 if SOAK else 15)
@given(st.lists(_SPANS, max_size=8))
def test_coverage_is_the_union_of_what_succeeded(spans: list[Interval]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.db", clock=lambda: NOW)
        for span in spans:
            finish(ledger, span, overwrite=True)
        assert ledger.coverage("w", "v", "online") == IntervalSet(spans)
        ledger.close()
        with sqlite3.connect(Path(folder) / "ledger.db") as connection:
            (rows,) = connection.execute("SELECT count(*) FROM coverage WHERE store = 'online'").fetchone()
        connection.close()
        assert rows == len(IntervalSet(spans))


def test_of_two_processes_that_claim_the_same_ranges_exactly_one_wins_each(tmp_path: Path) -> None:
    count = 400 if SOAK else 60
    path = tmp_path / "ledger.db"
    processes = [ledger_client.start("race", path, count) for _ in range(2)]
    for process in processes:
        ledger_client.go(process)
    won = [[int(number) for number in ledger_client.answer(process).split()] for process in processes]
    for process in processes:
        ledger_client.end(process)
    assert sorted(won[0] + won[1]) == list(range(count))
    ledger = Ledger(path, clock=lambda: NOW)
    assert ledger.coverage("w", "v", "offline") == IntervalSet([days(0, count)])
    assert {job.state for job in ledger.jobs("w")} == {"SUCCESS"}
    ledger.close()


def test_of_many_threads_that_claim_the_same_range_one_wins(ledger: Ledger) -> None:
    won: list[str] = []
    refused: list[str] = []

    def try_claim() -> None:
        try:
            won.append(claim(ledger, days(0, 1)).id)
        except OverlappingMaterialization as error:
            refused.append(str(error))

    threads = [threading.Thread(target=try_claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)


def test_a_range_whose_process_was_killed_can_be_claimed_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    process = ledger_client.start("hold", path, "lease")
    ledger_client.go(process)
    job_id = ledger_client.answer(process)
    ledger = Ledger(path, clock=lambda: NOW)
    with pytest.raises(OverlappingMaterialization, match="queued or running"):
        claim(ledger, days(0, 1))
    assert ledger.snapshot("w").running == {"v": IntervalSet([days(0, 1)])}
    ledger_client.end(process, kill=True)
    assert claim(ledger, days(0, 1)).state == "RUNNING"
    killed = ledger.job(job_id)
    assert (killed.state, killed.reason) == ("FAILURE", "its process ended")
    assert [attempt.state for attempt in killed.attempts] == ["ERROR"]
    with pytest.raises(JobStateError, match="its process ended"):
        ledger.succeed(job_id, stats={})
    ledger.close()


def test_a_snapshot_counts_a_killed_process_as_failed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    process = ledger_client.start("hold", path, "lease")
    ledger_client.go(process)
    ledger_client.answer(process)
    ledger_client.end(process, kill=True)
    ledger = Ledger(path, clock=lambda: NOW)
    snapshot = ledger.snapshot("w")
    assert (snapshot.running, snapshot.failed) == ({}, {"v": IntervalSet([days(0, 1)])})
    ledger.close()


def test_a_forked_process_has_connections_of_its_own(tmp_path: Path) -> None:
    process = ledger_client.start("fork", tmp_path / "ledger.db")
    ledger_client.go(process)
    assert ledger_client.answer(process) == "7"
    ledger_client.end(process)
    assert process.returncode == 0


def test_a_ledger_keeps_everything_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    first = Ledger(path, clock=lambda: NOW)
    job = finish(first, days(0, 1))
    first.close()
    second = Ledger(f"sqlite:///{path}", clock=lambda: NOW)
    assert second.job(job.id) == job
    assert second.coverage("w", "v", "online") == IntervalSet([days(0, 1)])
    second.close()


def test_a_ledger_of_another_host_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger(path, clock=lambda: NOW, host="first").close()
    with pytest.raises(LedgerOnOtherHost, match="PostgreSQL"):
        Ledger(path, clock=lambda: NOW, host="second")
    Ledger(path, clock=lambda: NOW, host="first").close()


def test_a_ledger_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger(path, clock=lambda: NOW).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE facts SET value = '99' WHERE name = 'schema_version'")
    connection.close()
    with pytest.raises(LedgerVersionMismatch, match="schema version 99, this package needs 4"):
        Ledger(path, clock=lambda: NOW)


def test_a_ledger_on_another_database_is_refused() -> None:
    with pytest.raises(Unsupported, match="it is kept in SQLite or PostgreSQL"):
        Ledger("mysql://host/ledger", clock=lambda: NOW)


def test_a_server_that_does_not_answer_is_named_without_a_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LedgerUnavailable) as refused:
        Ledger(f"postgresql://someone:secret@127.0.0.1:{port}/ledger", clock=lambda: NOW)
    assert str(refused.value).startswith(
        f"the ledger in PostgreSQL at 127.0.0.1:{port}/ledger cannot be opened: the server does not answer"
    )
    assert "secret" not in str(refused.value)
    assert refused.value.retryable


def test_many_may_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    """Switching SQLite to its write-ahead log is the one step that its own waiting does not cover."""
    opened: list[Ledger] = []
    for number in range(20 if SOAK else 5):
        path = tmp_path / f"{number}.db"
        gate = threading.Barrier(6)

        def open_ledger(path: Path = path, gate: threading.Barrier = gate) -> None:
            gate.wait()
            opened.append(Ledger(path, clock=lambda: NOW))

        threads = [threading.Thread(target=open_ledger) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(opened) == 6 * (20 if SOAK else 5)
    for ledger in opened:
        ledger.close()
