"""Materialization jobs as people see them: records with the seeds' fields, and the status of a view as a frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from featurekit_dagster.errors import TectonValidationError
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, FEATURE_EXPORT, STREAM, AttemptRecord, JobRecord

if TYPE_CHECKING:
    import pandas as pd

MISSING = "N/A"
SCHEDULED = "SCHEDULED"
MATERIALIZATION_KINDS = ("BATCH", "STREAM")

_COLUMNS = ("TYPE", "WINDOW_START_TIME", "WINDOW_END_TIME", "STATUS", "ATTEMPT")
_VERBOSE = ("MATERIALIZATION_TASK", "ENV_VERSION", "TERMINATION_REASON", "STATE_MESSAGE", "TASK_SCHEDULED_AT")
_TYPES = {FEATURE_EXPORT: "FEATURE PUBLISH"}
_LAST_COLUMNS = ("JOB_CREATED_AT", "JOB_LOGS")
_SHOWN_ENDS = (JobState.DRAINED, JobState.MANUALLY_CANCELLED, JobState.MANUAL_CANCELLATION_REQUESTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterializationAttemptData:
    """One attempt of a job; times are naive UTC in whole seconds.

    Args:
        id: Unique name.
        run_url: Page of the Dagster run that carried it; None where there is none.
        state: PENDING, RUNNING, SUCCESS, ERROR, CANCELLING or CANCELLED.
        created_at: When it began.
        updated_at: When its state last changed.
    """

    id: str
    run_url: str | None
    state: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterializationJobData:
    """One materialization job; times are naive UTC in whole seconds.

    Args:
        id: Its name in the ledger.
        workspace: Name of the workspace.
        feature_view: The feature view.
        feature_service: The feature service whose features a dataset is made of; None of the jobs of a view.
        state: RUNNING, DRAINING, DRAINED, MANUAL_RETRY, MANUAL_CANCELLATION_REQUESTED, MANUALLY_CANCELLED, FAILURE or
            SUCCESS.
        created_at: When it was asked for.
        updated_at: When its state last changed.
        attempts: Its attempts, first to last.
        next_attempt_at: When it is tried next; None while it is tried and when it has ended.
        job_type: BATCH, STREAM, or a kind that materializes nothing, such as DELETION.
        online: Whether it writes the online store.
        offline: Whether it writes the offline store.
        start_time: First instant of its window.
        end_time: First instant after its window; None of a STREAM job, which has no end.
        reason: Why it, or its last attempt, ended without success.
        stats: Counts of a success: `rows` in the window, `rows_offline` and `rows_online` that were written, and
            `rows_replaced`, those that were in the window offline before. Of an overwrite of the online store also
            `rows_online_skipped`, which lost against newer ones, and `keys_cleared`, which had rows there and have
            none any more.

    Source: Manually Trigger Materialization, Waiting for job completion (`MaterializationJobData`).
    """

    id: str
    workspace: str
    feature_view: str
    feature_service: str | None
    state: str
    created_at: datetime
    updated_at: datetime
    attempts: tuple[MaterializationAttemptData, ...]
    next_attempt_at: datetime | None
    job_type: str
    online: bool
    offline: bool
    start_time: datetime
    end_time: datetime | None
    reason: str | None = None
    stats: Mapping[str, int] = field(default_factory=dict)


def job_data(job: JobRecord, dagster_url: str) -> MaterializationJobData:
    """Return a job of the ledger as people see it."""
    return MaterializationJobData(
        id=job.id,
        workspace=job.workspace,
        feature_view=job.view,
        feature_service=(job.request or {}).get("service"),
        state=job.state,
        created_at=_shown(job.created_at),
        updated_at=_shown(job.updated_at),
        attempts=tuple(_attempt_data(attempt, dagster_url) for attempt in job.attempts),
        next_attempt_at=None if job.next_attempt_at is None else _shown(job.next_attempt_at),
        job_type=job.kind,
        online=job.online,
        offline=job.offline,
        start_time=_shown(job.interval.start),
        end_time=None if job.kind == STREAM else _shown(job.interval.end),
        reason=job.reason,
        stats=dict(job.stats),
    )


def _attempt_data(attempt: AttemptRecord, dagster_url: str) -> MaterializationAttemptData:
    return MaterializationAttemptData(
        id=attempt.id,
        run_url=_run_url(attempt, dagster_url),
        state=attempt.state,
        created_at=_shown(attempt.created_at),
        updated_at=_shown(attempt.updated_at),
    )


def _run_url(attempt: AttemptRecord, dagster_url: str) -> str | None:
    return None if attempt.run_id is None else f"{dagster_url}/runs/{attempt.run_id}"


def _shown(time: datetime) -> datetime:
    return time.replace(tzinfo=None, microsecond=0)


def status_frame(
    jobs: Sequence[JobRecord],
    planned: Iterable[Interval],
    dagster_url: str,
    *,
    verbose: bool,
    limit: int,
    sort_columns: str | None,
    errors_only: bool,
) -> pd.DataFrame:
    """Return one row per attempt, and one per job or planned window that has none yet.

    Args:
        jobs: Newest first.
        planned: Windows that are missing and that nobody has asked for yet.
        dagster_url: Address of the Dagster UI.
        verbose: Whether to show the columns that help to find errors.
        limit: At most so many rows, counted before `errors_only`.
        sort_columns: Names of columns, separated by commas, in whatever case; ascending.
        errors_only: Keep only attempts that ended with an error.

    Raises:
        TectonValidationError: A column to sort by does not exist.
    """
    from featurekit_dagster.status_frame import StatusFrame

    columns = [*_COLUMNS, *(_VERBOSE if verbose else ()), *_LAST_COLUMNS]
    wanted = [name.strip().upper() for name in (sort_columns or "").split(",") if name.strip()]
    unknown = [name for name in wanted if name not in columns]
    if unknown:
        raise TectonValidationError(f"sort_columns names {', '.join(unknown)}; the columns are {', '.join(columns)}")
    rows = [_planned_row(window) for window in planned]
    rows += [row for job in jobs for row in _job_rows(job, dagster_url)]
    shown = [row for row in rows[:limit] if not errors_only or row["STATUS"] == "ERROR"]
    frame = StatusFrame([[row[name] for name in columns] for row in shown], columns=columns)
    return frame.sort_values(wanted, key=_as_text, ignore_index=True) if wanted else frame


def _as_text(column: Any) -> Any:
    """Return what orders a column in which text may stand beside times."""
    return column.map(lambda value: (isinstance(value, str), value if isinstance(value, str) else str(value)))


def _job_rows(job: JobRecord, dagster_url: str) -> list[dict[str, Any]]:
    """Return a row per attempt, newest first; a job that waits for one has a row for that too."""
    rows = [_attempt_row(job, attempt, dagster_url) for attempt in reversed(job.attempts)]
    if not job.attempts or job.next_attempt_at is not None:
        waits = job.state in ACTIVE_STATES and job.state not in _SHOWN_ENDS
        status = SCHEDULED if waits else job.state
        rows.insert(0, _row(job, status, len(job.attempts) + 1 if waits else MISSING, MISSING))
    return rows


def _attempt_row(job: JobRecord, attempt: AttemptRecord, dagster_url: str) -> dict[str, Any]:
    last = attempt is job.attempts[-1]
    status = job.state if last and job.state in _SHOWN_ENDS else attempt.state
    row = _row(job, status, attempt.number, _run_url(attempt, dagster_url) or MISSING)
    return row | {"TERMINATION_REASON": attempt.reason or MISSING}


def _row(job: JobRecord, status: str, attempt: int | str, logs: str) -> dict[str, Any]:
    due = job.next_attempt_at or job.created_at
    return {
        "TYPE": _TYPES.get(job.kind, job.kind.replace("_", " ")),
        "WINDOW_START_TIME": _shown(job.interval.start),
        "WINDOW_END_TIME": MISSING if job.kind == STREAM else _shown(job.interval.end),
        "STATUS": status,
        "ATTEMPT": attempt,
        "MATERIALIZATION_TASK": job.id,
        "ENV_VERSION": MISSING,
        "TERMINATION_REASON": MISSING,
        "STATE_MESSAGE": job.reason or MISSING,
        "TASK_SCHEDULED_AT": _shown(due),
        "JOB_CREATED_AT": _shown(job.created_at),
        "JOB_LOGS": logs,
    }


def _planned_row(window: Interval) -> dict[str, Any]:
    nothing = dict.fromkeys((*_VERBOSE, *_LAST_COLUMNS), MISSING)
    return {
        **nothing,
        "TYPE": "BATCH",
        "WINDOW_START_TIME": _shown(window.start),
        "WINDOW_END_TIME": _shown(window.end),
        "STATUS": SCHEDULED,
        "ATTEMPT": MISSING,
    }
