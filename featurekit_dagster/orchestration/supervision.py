"""One sensor per stream view: starts the run that follows the stream, replaces it when it is lost, drains it when old.

What to do is decided by a pure function of what the ledger and Dagster know; the sensor carries it out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import format_time, to_us
from featurekit_dagster.orchestration.checks import check_fresh, newest_event
from featurekit_dagster.orchestration.due_jobs import UNFINISHED, end_orphans, newest_views
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.streams import CODE_TAG, STREAM_TAG
from featurekit_dagster.orchestration.translator import view_key
from featurekit_dagster.planning.generations import Resolution, StoredShape
from featurekit_dagster.planning.job_state import FOLLOWED, JobState
from featurekit_dagster.planning.stream_code import stream_code
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, JobRecord
from featurekit_dagster.stores.ledger_streams import STEADY_AFTER
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

SECONDS_BETWEEN_LOOKS = 10
SECONDS_BETWEEN_CHECKS = 300
_RUNS_LOOKED_AT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run that followed the stream.

    Args:
        failed: Whether it failed, or was lost.
        began_at: When it began; None if it never did.
        ended_at: When it ended.
    """

    failed: bool
    began_at: datetime | None
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What is known of a view's stream.

    Args:
        code: What this code location's loop would do.
        resolution: Which generations the declaration writes and reads.
        paused_at: Since when the stream is paused.
        jobs: The stream's newest job, and all that have not ended, newest first.
        runs: Code of each run that has not ended, by its id; without those of which the ledger knows that they have.
        finished: Runs of this code that have ended, or are known to have, newest first.
    """

    code: str
    resolution: Resolution
    paused_at: datetime | None
    jobs: Sequence[JobRecord]
    runs: dict[str, str]
    finished: Sequence[FinishedRun]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a supervisor does.

    Args:
        start: Whether to start a run.
        drain: Ids of jobs that are to end.
        reason: Why nothing is started.
        is_followed: Whether a run goes on.
    """

    start: bool = False
    drain: tuple[str, ...] = ()
    reason: str = ""
    is_followed: bool = False


def decide(known: Followed, now: datetime) -> Decision:
    """Return what to do about a view's stream.

    Args:
        known: What is known of it.
        now: The real time.
    """
    resolution = known.resolution
    if resolution.write is None:
        changes = "; ".join(change.text for change in resolution.changes)
        waits = "its run goes on, and no other is started, until featurekit apply has decided"
        return Decision(reason=f"changed: {changes}; {waits}")
    active = [job for job in known.jobs if job.state in ACTIVE_STATES]
    drain = tuple(job.id for job in active if _is_old(job, known))
    if known.paused_at is not None:
        return Decision(drain=drain, reason=f"paused since {format_time(known.paused_at)}")
    own = [job for job in known.jobs if job.generation == resolution.write]
    reason = _obstacle(known, own, now)
    return Decision(drain=drain, start=not reason, reason=reason, is_followed=bool(known.runs))


def _is_old(job: JobRecord, known: Followed) -> bool:
    """Tell whether a job follows the stream for code that has been replaced.

    One that fills an older generation goes on for as long as that answers reads.
    """
    if job.generation == known.resolution.write:
        return job.code_version != known.code
    return job.generation != known.resolution.read_online


def _obstacle(known: Followed, own: Sequence[JobRecord], now: datetime) -> str:
    """Return why no run is started; empty where nothing is in the way."""
    job_of = {job.attempts[-1].run_id: job for job in known.jobs if job.attempts}
    for run_id, code in known.runs.items():
        job = job_of.get(run_id)
        if job is not None and job.generation != known.resolution.write:
            continue
        if code == known.code:
            return f"run {run_id[:8]} follows the stream"
        if job is not None:
            return f"run {run_id[:8]} of older code is ending"
    if own and own[0].state == JobState.MANUALLY_CANCELLED:
        return "it was cancelled by hand; featurekit stream resume starts it again"
    failures = failures_in_a_row(known.finished)
    if failures:
        due = known.finished[0].ended_at + FOLLOWED.wait_after(failures)
        if now < due:
            times = "once" if failures == 1 else f"{failures} times in a row"
            return f"it failed {times}; started again at {format_time(due)}"
    return ""


def failures_in_a_row(finished: Sequence[FinishedRun]) -> int:
    """Return how many runs have failed since the last one that did not, or that lasted for long.

    Args:
        finished: Newest first.
    """
    count = 0
    for run in finished:
        if not run.failed:
            break
        count += 1
        if run.began_at is not None and run.ended_at - run.began_at >= STEADY_AFTER:
            break
    return count


def supervisor(
    view: FeatureView, workspace: BoundWorkspace, job: dg.JobDefinition, prefix: str | None = None
) -> dg.SensorDefinition:
    """Return the sensor that keeps a view's stream followed.

    With a clock that stands still it is off at first.

    Args:
        view: A stream view that is written online.
        workspace: The workspace.
        job: The job that follows the stream.
        prefix: First part of every name, if wanted.
    """
    resource, code = resource_key(prefix), stream_code(view)
    fixed = workspace.fixed_now is not None

    @dg.sensor(
        name=f"{prefix}_supervise_{view.name}" if prefix else f"supervise_{view.name}",
        job_name=job.name,
        minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
        default_status=dg.DefaultSensorStatus.STOPPED if fixed else dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={resource},
        description=f"Keeps the stream of {view.name} followed by one run of the newest code.",
    )
    def supervise(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        opened: FeatureStores = getattr(context.resources, resource)
        stores, instance = opened.open(workspace), context.instance
        if not leads(view, workspace, stores):
            yield dg.SkipReason(
                f"{view.name}: a code location that was loaded later has other code of it; reload this one"
            )
            return
        end_orphans(stores.ledger, workspace.name, instance)
        decision = decide(known_of(view, code, stores, instance), datetime.now(UTC))
        for job_id in decision.drain:
            stores.ledger.drain(job_id)
        if decision.start:
            # no key: the same request is right again once the run has ended
            yield dg.RunRequest(run_key=None, tags={STREAM_TAG: view.name, CODE_TAG: code})
        else:
            if not decision.is_followed:
                _look_at_freshness(view, view_key(view, prefix), stores, context)
            yield dg.SkipReason(f"{view.name}: {decision.reason}")

    return supervise


def _look_at_freshness(
    view: FeatureView, key: dg.AssetKey, stores: WorkspaceStores, context: dg.SensorEvaluationContext
) -> None:
    """Tell Dagster now and then whether a stream that nobody follows is fresh."""
    last = float(context.cursor or "-inf")
    if view.expected_feature_freshness is None or time.time() - last < SECONDS_BETWEEN_CHECKS:
        return
    found = check_fresh(view, newest_event(view, stores), stores.clock())
    context.instance.report_runless_asset_event(found.evaluation(key))
    context.update_cursor(str(time.time()))


def leads(view: FeatureView, workspace: BoundWorkspace, stores: WorkspaceStores) -> bool:
    """Tell whether no code location that was loaded later has other code of a view, or reads its stream otherwise."""
    if view.name not in newest_views(workspace, stores, [view]):
        return False
    name = f"stream {view.name}"  # the settings of a stream are no part of the view's own code
    return not stores.ledger.deploy(stores.workspace, {name: stream_code(view)}, to_us(workspace.loaded_at))


def known_of(view: FeatureView, code: str, stores: WorkspaceStores, instance: dg.DagsterInstance) -> Followed:
    """Return what the ledger and Dagster know of a view's stream."""
    ledger, place = stores.ledger, (stores.workspace, view.name)
    of_view = {STREAM_TAG: view.name}
    jobs = ledger.stream_jobs(*place)
    over = {each.run_id for job in jobs for each in job.attempts if each.state in ("ERROR", "CANCELLED")}
    unfinished = instance.get_run_records(dg.RunsFilter(tags=of_view, statuses=list(UNFINISHED)))
    # Dagster notices late that a process was killed
    lost = [each for each in unfinished if each.dagster_run.run_id in over]
    going = [each.dagster_run for each in unfinished if each.dagster_run.run_id not in over]
    ended = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED]
    filters = dg.RunsFilter(tags=of_view | {CODE_TAG: code}, statuses=ended)
    return Followed(
        code=code,
        resolution=ledger.resolution(*place, StoredShape.of(view)),
        paused_at=ledger.stream_paused(*place),
        jobs=jobs,
        runs={run.run_id: run.tags.get(CODE_TAG, "") for run in going},
        finished=tuple(_finished([*lost, *instance.get_run_records(filters, limit=_RUNS_LOOKED_AT)])),
    )


def _finished(records: Iterable[dg.RunRecord]) -> Iterator[FinishedRun]:
    for record in records:
        ended = record.end_time
        yield FinishedRun(
            failed=record.dagster_run.status not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED),
            began_at=None if record.start_time is None else datetime.fromtimestamp(record.start_time, UTC),
            ended_at=record.update_timestamp if ended is None else datetime.fromtimestamp(ended, UTC),
        )
