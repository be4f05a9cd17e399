"""What `status` and `materialize` say: the facts from planner and ledger, as tables and as plain dicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurekit_dagster.cli_output import (
    count_of,
    open_console,
    print_frame,
    print_json,
    print_line,
    print_notes,
    print_table,
    short_interval,
    short_intervals,
    short_time,
    to_the_second,
    value_text,
)
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.planning.planner import stores_of, wanted_interval
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE, LedgerSnapshot

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from featurekit_dagster.sdk import Workspace
    from featurekit_dagster.serving.vector import FeatureVector
    from featurekit_dagster.stores.ledger_records import JobRecord

SHOWN_ROWS = 5
SUCCESS, FAILURE = "SUCCESS", "FAILURE"


def written(*, online: bool, offline: bool) -> tuple[str, ...]:
    """Return the names of the chosen stores."""
    return (OFFLINE,) * offline + (ONLINE,) * online


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewStatus:
    """How far a view is materialized.

    Args:
        view: The feature view.
        wanted: What should be materialized by now without anybody asking; None when nothing is.
        covered: Store to what is materialized there, for the stores that the view writes.
        last_job: The newest job, if there was one.
        open_jobs: Running jobs, and failed ones whose interval is still missing, newest first.
    """

    view: FeatureView
    wanted: Interval | None
    covered: dict[str, IntervalSet]
    last_job: JobRecord | None
    open_jobs: tuple[JobRecord, ...]

    @classmethod
    def of(cls, view: FeatureView, snapshot: LedgerSnapshot, jobs: Sequence[JobRecord], now: datetime) -> ViewStatus:
        """Return the status of a view from the ledger's snapshot and its jobs, newest first."""
        covered = {store: snapshot.coverage(view.name, store) for store in stores_of(view)}
        own = [job for job in jobs if job.view == view.name]
        return cls(
            view=view,
            wanted=wanted_interval(view, now),
            covered=covered,
            last_job=own[0] if own else None,
            open_jobs=tuple(job for job in own if _is_open(job, covered) or (job is own[0] and job.state == FAILURE)),
        )

    @property
    def missing(self) -> IntervalSet:
        """What of the wanted interval is missing in at least one store."""
        wanted = IntervalSet([self.wanted] if self.wanted else [])
        return IntervalSet(hole for covered in self.covered.values() for hole in wanted.subtract(covered))

    @property
    def missing_partitions(self) -> int:
        """Number of batch intervals that are missing."""
        return sum(hole.duration // self.view.batch_schedule for hole in self.missing)

    def newest_end(self, store: str) -> datetime | None:
        """Return the end of the newest interval that is materialized in a store."""
        covered = self.covered.get(store)
        return covered.intervals[-1].end if covered else None


def status_jobs(workspace: Workspace, view: FeatureView) -> list[JobRecord]:
    """Return the jobs that a view's status tells about, newest first: the newest, and all that did not succeed."""
    newest = workspace.jobs(view.name, limit=1)
    others = workspace.jobs(view.name, states=[state.value for state in JobState if state is not JobState.SUCCESS])
    return newest + [job for job in others if job.id != newest[0].id]


def _is_open(job: JobRecord, covered: dict[str, IntervalSet]) -> bool:
    if job.state == SUCCESS:
        return False
    return job.state != FAILURE or any(not covered.get(s, IntervalSet()).covers(job.interval) for s in job.stores)


def status_record(status: ViewStatus, limit: int) -> dict[str, Any]:
    """Return a view's status as a plain dict."""
    return {
        "view": status.view.name,
        "batch_trigger": status.view.batch_trigger.value,
        "wanted": status.wanted,
        "covered": status.covered,
        "missing": status.missing,
        "missing_partitions": status.missing_partitions,
        "last_job": job_record(status.last_job) if status.last_job else None,
        "open_jobs": [job_record(job) for job in status.open_jobs[:limit]],
    }


def job_record(job: JobRecord) -> dict[str, Any]:
    """Return a job as a plain dict."""
    last = job.attempts[-1] if job.attempts else None
    return {
        "id": job.id,
        "view": job.view,
        "kind": job.kind,
        "state": job.state,
        "interval": job.interval,
        "stores": job.stores,
        "overwrite": job.overwrite,
        "trigger": job.trigger,
        "attempts": len(job.attempts),
        "run_id": last.run_id if last else None,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "next_attempt_at": job.next_attempt_at,
        "reason": job.reason,
        "stats": dict(job.stats),
    }


def print_status(console: Console, workspace: str, statuses: Sequence[ViewStatus], now: datetime, limit: int) -> None:
    """Print how far each view is, holes, and the jobs that run or failed."""
    print_line(console, f"Status of workspace {workspace} at {to_the_second(now)}", style="bold")
    console.print()
    titles = ("Feature view", "Offline to", "Online to", "Wanted to", "Missing", "Last job")
    print_table(console, titles, [_status_row(status) for status in statuses])
    holes = [
        (status.view.name, f"{store} has {short_intervals(covered)}")
        for status in statuses
        for store, covered in status.covered.items()
        if len(covered) > 1
    ]
    print_notes(console, holes)
    jobs = [job for status in statuses for job in status.open_jobs]
    print_notes(console, [_job_note(job) for job in jobs[:limit]], title="Jobs that run or failed")
    if len(jobs) > limit:
        console.print(f"  and {len(jobs) - limit:,} more; --limit shows them")


def _status_row(status: ViewStatus) -> tuple[Any, ...]:
    ends = []
    for store in (OFFLINE, ONLINE):
        end = status.newest_end(store)
        ends.append("not kept" if store not in status.covered else "nothing" if end is None else short_time(end))
    wanted = short_time(status.wanted.end) if status.wanted else "by hand" if status.covered else "never"
    last = status.last_job.state if status.last_job else "none"
    return (status.view.name, *ends, wanted, status.missing_partitions, last)


def _job_note(job: JobRecord) -> tuple[str, str]:
    detail = f"job {job.id}, started by {job.trigger}" + (f", attempt {len(job.attempts)}" if job.attempts else "")
    reason = f"{_own_words(job)} ({detail})" if job.reason else detail
    return f"{job.state} {job.view} {short_interval(job.interval)}", reason


def _own_words(job: JobRecord) -> str:
    """Return why a job failed, without the view's name in front."""
    return (job.reason or "no reason is known").removeprefix(f"{job.view}: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOutcome:
    """What was done for one view.

    Args:
        view: The feature view.
        partitions: Number of batch intervals that were to be done.
        jobs: The jobs of the runs.
        seconds: Time that the runs took.
        error: Why a run did not get as far as its jobs, or None.
    """

    view: str
    partitions: int
    jobs: tuple[JobRecord, ...]
    seconds: float
    error: str | None = None

    @property
    def failed(self) -> tuple[JobRecord, ...]:
        """The jobs that did not succeed."""
        return tuple(job for job in self.jobs if job.state != SUCCESS)

    @property
    def is_success(self) -> bool:
        """Whether everything is done."""
        return not self.failed and self.error is None

    def with_error(self, error: str) -> ViewOutcome:
        """Return the same outcome with the reason why a run failed."""
        return replace(self, error=error)

    def count(self, name: str) -> int:
        """Return the sum of one count over the jobs."""
        return sum(job.stats.get(name, 0) for job in self.jobs)


def outcome_record(outcome: ViewOutcome) -> dict[str, Any]:
    """Return an outcome as a plain dict."""
    return {
        "view": outcome.view,
        "success": outcome.is_success,
        "partitions": outcome.partitions,
        "rows": outcome.count("rows"),
        "seconds": round(outcome.seconds, 3),
        "error": outcome.error,
        "jobs": [job_record(job) for job in outcome.jobs],
    }


def print_outcomes(console: Console, outcomes: Sequence[ViewOutcome]) -> None:
    """Print what was done, and every failed interval with its reason."""
    titles = ("Feature view", "Partitions", "Jobs", "Failed", "Rows", "Seconds")
    rows: list[tuple[Any, ...]] = [
        (o.view, o.partitions, len(o.jobs), len(o.failed), o.count("rows"), f"{o.seconds:.1f}") for o in outcomes
    ]
    sums = [sum(row[column] for row in rows) for column in range(1, len(titles) - 1)]
    seconds = f"{sum(outcome.seconds for outcome in outcomes):.1f}"
    total = (count_of(len(rows), "feature view"), *sums, seconds) if len(rows) > 1 else None
    console.print()
    print_table(console, titles, rows, total)
    failures = [note for outcome in outcomes for note in _failure_notes(outcome)]
    print_notes(console, failures, title="Failed", style="red")
    advice = _advice([job for outcome in outcomes for job in outcome.failed])
    if advice:
        console.print()
        print_line(console, advice)


def _advice(failed: Sequence[JobRecord]) -> str:
    """Return what becomes of failed jobs, and what to do."""
    if not failed:
        return ""
    times = [job.next_attempt_at for job in failed if job.next_attempt_at is not None]
    if times:
        many = count_of(len(times), "failed job")
        return f"The daemon tries {many} again, first at {to_the_second(min(times))}; featurekit jobs shows them."
    if all(job.max_attempts == 1 for job in failed):
        return "No Dagster daemon is there to try again; run the same command once the cause is repaired."
    return "Trying again does not help before the cause is repaired; then run the same command."


def print_queued(console: Console, jobs: Sequence[JobRecord], *, json: bool) -> None:
    """Print the jobs that wait for the daemon now."""
    if json:
        print_json(job_record(job) for job in jobs)
        return
    console.print()
    for job in jobs:
        print_line(console, f"queued {job.id} {job.view} {short_interval(job.interval)}")


def _failure_notes(outcome: ViewOutcome) -> list[tuple[str, str]]:
    """Return one note per reason, with all intervals that failed for it."""
    by_reason: dict[str, list[Interval]] = {}
    for job in outcome.failed:
        by_reason.setdefault(_own_words(job), []).append(job.interval)
    notes = [
        (f"{outcome.view} {short_intervals(IntervalSet(intervals))}", f"{count_of(len(intervals), 'job')}: {reason}")
        for reason, intervals in by_reason.items()
    ]
    return notes + ([(outcome.view, outcome.error.removeprefix(f"{outcome.view}: "))] if outcome.error else [])


def vector_records(vector: FeatureVector) -> list[dict[str, Any]]:
    """Return an online answer as one plain dict per feature."""
    statuses = vector.statuses
    return [
        {
            "name": name,
            "value": facts["value"],
            "status": statuses[name].name,
            "effective_time": facts["effective_time"],
        }
        for name, facts in vector.to_dict(return_effective_times=True).items()
    ]


def print_vector(console: Console, records: Sequence[dict[str, Any]]) -> None:
    """Print one row per feature."""
    rows = [(r["name"], value_text(r["value"]), r["status"], r["effective_time"]) for r in records]
    print_table(console, ("Feature", "Value", "Status", "Effective time"), rows)


def print_frame_head(table: pa.Table, written_to: Path | None, *, json: bool) -> None:
    """Print the shape of an answer, and its first rows unless it went to a file."""
    head = table.slice(0, SHOWN_ROWS)
    rows = list(zip(*(column.to_pylist() for column in head.columns), strict=True))
    types = [str(kind) for kind in table.schema.types]
    if json:
        columns = [{"name": name, "type": kind} for name, kind in zip(table.column_names, types, strict=True)]
        shown = [dict(zip(table.column_names, row, strict=True)) for row in rows]
        print_json({"rows": table.num_rows, "columns": columns, "head": shown, "written_to": written_to})
        return
    console = open_console()
    if written_to is None:
        print_frame(console, table.column_names, types, rows)
        console.print()
    place = f" written to {written_to}" if written_to else ""
    print_line(console, f"{count_of(table.num_rows, 'row')}, {count_of(table.num_columns, 'column')}{place}")
