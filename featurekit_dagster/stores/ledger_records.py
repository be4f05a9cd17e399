"""Jobs and attempts as values, and the statements that read them from the ledger's tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, select

from featurekit_dagster.intervals import Interval, IntervalSet, from_us
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.stores.ledger_tables import attempts, coverage, jobs

BATCH, STREAM, DELETION, DELTA_MAINTENANCE = "BATCH", "STREAM", "DELETION", "DELTA_MAINTENANCE"
INGEST = "INGEST"
COMPACTION, ONLINE_CLEAN_UP, FEATURE_EXPORT = "COMPACTION", "ONLINE_CLEAN_UP", "FEATURE_EXPORT"
DATASET_GENERATION, CONSISTENCY = "DATASET_GENERATION", "CONSISTENCY"
INTEGRATION_TEST_BATCH, INTEGRATION_TEST_STREAM = "INTEGRATION_TEST_BATCH", "INTEGRATION_TEST_STREAM"
CLAIM_NOTHING = (STREAM, DELTA_MAINTENANCE, INGEST)
ACTIVE_STATES = tuple(state.value for state in JobState if not state.is_final)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One try of a job.

    Args:
        id: Unique name.
        number: 1 for the first try.
        run_id: The Dagster run that carries it, if any.
        state: PENDING, RUNNING, SUCCESS, ERROR, CANCELLING or CANCELLED.
        created_at: When it began.
        updated_at: When its state last changed.
        reason: Why it ended without success.

    Source: Job Types, Materialization Job States (attempts).
    """

    id: str
    number: int
    run_id: str | None
    state: str
    created_at: datetime
    updated_at: datetime
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One claimed range of one view, with its own commits, coverage and state.

    Args:
        id: Unique name.
        workspace: Name of the workspace.
        view: The feature view.
        generation: Generation of the view's stored layout.
        kind: BATCH for a batch materialization, STREAM for following a stream, DELETION for removing a generation,
            DELTA_MAINTENANCE for tidying the files of one.
        interval: The claimed range. A STREAM job, which goes on without an end, claims nothing; nor does a job of the
            kind DELTA_MAINTENANCE, of which it is what the table covers.
        online: Whether the online store is written.
        offline: Whether the offline store is written.
        overwrite: Whether what was there may be replaced.
        trigger: What asked for it: `schedule`, `backfill`, `manual`, `dagster_ui`, ...
        state: A `JobState` as text. RUNNING says that it is tried or will be, see `next_attempt_at`.
        created_at: When it was claimed.
        updated_at: When its state last changed.
        next_attempt_at: When it is tried again; None when it is not.
        attempts: Its tries, first to last.
        reason: Why it, or its last attempt, ended without success.
        stats: Counts of what was done (`rows_offline`, `rows_online`, ...).
        max_attempts: How often it may be tried; 1 is no retry.
        attempts_used: How often it was tried since the last manual retry.
        batch: Name of the jobs that one run is to carry; None for a job that was started as it was made. Of a STREAM
            job its `stream_group` as text, unless it is the only one.
        code_version: Fingerprint of the declaration that it is for; None where nobody has said.
        request: Of a chore, which claims no range: what was asked for; None of any other job.

    Source: Job Types, Materialization Job States.
    """

    id: str
    workspace: str
    view: str
    generation: int
    kind: str
    interval: Interval
    online: bool
    offline: bool
    overwrite: bool
    trigger: str
    state: str
    created_at: datetime
    updated_at: datetime
    next_attempt_at: datetime | None
    attempts: tuple[AttemptRecord, ...]
    reason: str | None
    stats: Mapping[str, int]
    max_attempts: int = 1
    attempts_used: int = 1
    batch: str | None = None
    code_version: str | None = None
    request: Mapping[str, Any] | None = None

    @property
    def claims(self) -> bool:
        """Whether the job's range is its own while it waits and is tried."""
        return self.request is None and self.kind not in CLAIM_NOTHING

    @property
    def stream_group(self) -> tuple[int, int]:
        """Of a STREAM job: which of the groups of source partitions it follows, from 0 on, and how many there are."""
        group, _, groups = (self.batch or "0/1").partition("/")
        return int(group), int(groups)

    @property
    def stores(self) -> tuple[str, ...]:
        """The stores that the job writes."""
        return written_stores(online=self.online, offline=self.offline)


def written_stores(*, online: bool, offline: bool) -> tuple[str, ...]:
    """Return the names of the chosen stores."""
    return ("offline",) * offline + ("online",) * online


def read_jobs(connection: Connection, *conditions: ColumnElement[bool], limit: int | None = None) -> list[JobRecord]:
    """Return the jobs that meet all conditions, newest first, with their attempts."""
    newest = jobs.c.sequence.desc()
    ids: Select[Any] = select(jobs.c.id).where(*conditions).order_by(newest).limit(limit)
    tried = connection.execute(select(attempts).where(attempts.c.job_id.in_(ids)).order_by(attempts.c.number))
    by_job: dict[str, list[AttemptRecord]] = {}
    for row in tried.mappings():
        by_job.setdefault(row["job_id"], []).append(attempt_of(row))
    found = connection.execute(select(jobs).where(*conditions).order_by(newest).limit(limit))
    return [job_of(row, tuple(by_job.get(row["id"], ()))) for row in found.mappings()]


def read_coverage(connection: Connection, workspace: str) -> dict[tuple[str, int, str], IntervalSet]:
    """Return what is covered in a workspace, by view, generation and store."""
    spans: dict[tuple[str, int, str], list[Interval]] = {}
    for row in connection.execute(select(coverage).where(coverage.c.workspace == workspace)):
        place = (row.view, row.generation, row.store)
        spans.setdefault(place, []).append(interval_of(row.start_us, row.end_us))
    return {place: IntervalSet(intervals) for place, intervals in spans.items()}


def interval_of(start_us: int, end_us: int) -> Interval:
    """Return `[start_us, end_us)` as an interval."""
    return Interval(from_us(start_us), from_us(end_us))


def attempt_of(row: Mapping[Any, Any]) -> AttemptRecord:
    """Return an attempt from its row."""
    return AttemptRecord(
        id=row["id"],
        number=row["number"],
        run_id=row["run_id"],
        state=row["state"],
        created_at=from_us(row["created_us"]),
        updated_at=from_us(row["updated_us"]),
        reason=row["reason"],
    )


def job_of(row: Mapping[Any, Any], tried: tuple[AttemptRecord, ...]) -> JobRecord:
    """Return a job from its row and its attempts."""
    next_attempt_us = row["next_attempt_us"]
    return JobRecord(
        id=row["id"],
        workspace=row["workspace"],
        view=row["view"],
        generation=row["generation"],
        kind=row["kind"],
        interval=interval_of(row["start_us"], row["end_us"]),
        online=row["online"],
        offline=row["offline"],
        overwrite=row["overwrite"],
        trigger=row["trigger"],
        state=row["state"],
        created_at=from_us(row["created_us"]),
        updated_at=from_us(row["updated_us"]),
        next_attempt_at=None if next_attempt_us is None else from_us(next_attempt_us),
        attempts=tried,
        reason=row["reason"],
        stats=json.loads(row["stats"]),
        max_attempts=row["max_attempts"],
        attempts_used=row["attempts_used"],
        batch=row["batch"],
        code_version=row["code_version"],
        request=None if row["request"] is None else json.loads(row["request"]),
    )
