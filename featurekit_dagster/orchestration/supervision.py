"""One sensor per stream view: starts the runs that follow the stream, replaces lost ones, drains old ones.

What to do is decided by a pure function of what the ledger and Dagster know; the sensor carries it out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import format_time, to_us
from featurekit_dagster.orchestration.checks import check_fresh, newest_event
from featurekit_dagster.orchestration.due_jobs import end_orphans, newest_views
from featurekit_dagster.orchestration.push_appliers import applied_job, tell_progress
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.streams import CODE_TAG, SHARE_TAG, STREAM_TAG
from featurekit_dagster.orchestration.translator import UNFINISHED, view_key
from featurekit_dagster.planning.generations import Resolution, StoredShape
from featurekit_dagster.planning.job_state import FOLLOWED, JobState
from featurekit_dagster.planning.stream_code import stream_code
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, JobRecord
from featurekit_dagster.stores.ledger_streams import STEADY_AFTER
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from featurekit_dagster.streams.sharing import Share

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
        share: Which of the runs that follow the stream together it was.
    """

    failed: bool
    began_at: datetime | None
    ended_at: datetime
    share: int = 0


@dataclass(frozen=True, slots=True)
class GoingRun:
    """A run that follows the stream, or will as soon as it has its place.

    Args:
        code: What its loop does.
        share: Which of the runs that follow the stream together it is.
    """

    code: str
    share: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What is known of a view's stream.

    Args:
        code: What this code location's loop would do.
        resolution: Which generations the declaration writes and reads.
        paused_at: Since when the stream is paused.
        jobs: The stream's newest jobs, and all that have not ended, newest first.
        runs: The runs that have not ended, by their ids; without those of which the ledger knows that they have.
        finished: Runs of this code that have ended, or are known to have, newest first.
        parallelism: How many runs follow the stream together.
    """

    code: str
    resolution: Resolution
    paused_at: datetime | None
    jobs: Sequence[JobRecord]
    runs: Mapping[str, GoingRun]
    finished: Sequence[FinishedRun]
    parallelism: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a supervisor does.

    Args:
        start: The shares of the stream for which to start a run.
        drain: Ids of jobs that are to end.
        reason: Why none is started, or not one for each share.
        is_followed: Whether a run goes on.
        applied: The job by which an ingest process follows the stream.
    """

    start: tuple[int, ...] = ()
    drain: tuple[str, ...] = ()
    reason: str = ""
    is_followed: bool = False
    applied: JobRecord | None = None


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
    obstacles = {share: _obstacle(known, share, now) for share in range(known.parallelism)}
    start = tuple(share for share, obstacle in obstacles.items() if not obstacle)
    reason = "; ".join(dict.fromkeys(obstacle for obstacle in obstacles.values() if obstacle))
    applied = applied_job(known.jobs, resolution.write)
    return Decision(drain=drain, start=start, reason=reason, is_followed=bool(known.runs), applied=applied)


def _is_old(job: JobRecord, known: Followed) -> bool:
    """Tell whether a job follows the stream for code that has been replaced.

    One that fills an older generation goes on for as long as that answers reads.
    """
    if job.generation == known.resolution.write:
        return job.code_version != known.code
    return job.generation != known.resolution.read_online


def _obstacle(known: Followed, share: int, now: datetime) -> str:
    """Return why no run is started for a share of the stream; empty where nothing is in the way."""
    if (applied := applied_job(known.jobs, known.resolution.write)) is not None:
        return f"an ingest process {'follows the stream' if applied.code_version == known.code else 'is ending'}"
    job_of = {job.attempts[-1].run_id: job for job in known.jobs if job.attempts}
    part = "the stream" if known.parallelism == 1 else f"share {Share(share, known.parallelism)} of the stream"
    for run_id, run in known.runs.items():
        job = job_of.get(run_id)
        if job is not None and job.generation != known.resolution.write:
            continue
        if run == GoingRun(known.code, share):
            return f"run {run_id[:8]} follows {part}"
        if run.code != known.code and job is not None:
            return f"run {run_id[:8]} of older code is ending"
    if _newest_state(known, share) == JobState.MANUALLY_CANCELLED:
        return "it was cancelled by hand; featurekit stream resume starts it again"
    finished = [run for run in known.finished if run.share == share]
    failures = failures_in_a_row(finished)
    if failures:
        due = finished[0].ended_at + FOLLOWED.wait_after(failures)
        if now < due:
            times = "once" if failures == 1 else f"{failures} times in a row"
            return f"it failed {times}; started again at {format_time(due)}"
    return ""


def _newest_state(known: Followed, share: int) -> str | None:
    """Return the state of a share's newest job; where it has none, as the stream was divided otherwise, of any."""
    jobs = [job for job in known.jobs if job.generation == known.resolution.write]
    of_share = [job for job in jobs if job.stream_group == (share, known.parallelism)]
    return next((job.state for job in of_share or jobs), None)


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
        description=f"Keeps the stream of {view.name} followed by {_runs_in_words(view)} of the newest code.",
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
        ended = ended_runs(view, code, instance)
        end_cancelled(view, code, stores, ended)
        decision = decide(known_of(view, code, stores, instance, ended), datetime.now(UTC))
        for job_id in decision.drain:
            stores.ledger.drain(job_id)
        if decision.applied is not None:
            tell_progress(view, view_key(view, prefix), decision.applied, context)
        for share in decision.start:
            # no key: the same request is right again once the run has ended
            yield dg.RunRequest(run_key=None, tags={STREAM_TAG: view.name, CODE_TAG: code} | _share_tag(view, share))
        if not decision.start:
            if not decision.is_followed and decision.applied is None:
                _look_at_freshness(view, view_key(view, prefix), stores, context)
            yield dg.SkipReason(f"{view.name}: {decision.reason}")

    return supervise


def _parallelism(view: FeatureView) -> int:
    return 1 if view.stream_source is None else view.stream_source.parallelism


def _runs_in_words(view: FeatureView) -> str:
    count = _parallelism(view)
    return "one run" if count == 1 else f"{count} runs"


def _share_tag(view: FeatureView, share: int) -> dict[str, str]:
    count = _parallelism(view)
    return {SHARE_TAG: str(Share(share, count))} if count > 1 else {}


def _share(run: dg.DagsterRun) -> int:
    """Return which share a run has; the first one where its tag was mistyped, so that nothing is started beside it."""
    try:
        return Share.parse(run.tags[SHARE_TAG]).index if SHARE_TAG in run.tags else 0
    except ValueError:
        return 0


def ended_runs(view: FeatureView, code: str, instance: dg.DagsterInstance) -> Sequence[dg.RunRecord]:
    """Return the last runs of this code that have ended, newest first."""
    ends = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED]
    filters = dg.RunsFilter(tags={STREAM_TAG: view.name, CODE_TAG: code}, statuses=ends)
    return instance.get_run_records(filters, limit=_RUNS_LOOKED_AT * _parallelism(view))


def end_cancelled(view: FeatureView, code: str, stores: WorkspaceStores, ended: Iterable[dg.RunRecord]) -> None:
    """Cancel the job of a share whose newest run a person has cancelled in Dagster before it began to follow."""
    ledger, place = stores.ledger, (stores.workspace, view.name)
    generation = ledger.resolution(*place, StoredShape.of(view)).write
    if generation is None:
        return
    looked_at: set[int] = set()
    for record in ended:
        run, share = record.dagster_run, _share(record.dagster_run)
        if share not in looked_at and run.status is dg.DagsterRunStatus.CANCELED:
            facts = {"workspace": stores.workspace, "view": view.name, "run_id": run.run_id, "code_version": code}
            ledger.cancel_stream_run(**facts, generation=generation, group=share, groups=_parallelism(view))
        looked_at.add(share)


def _look_at_freshness(
    view: FeatureView, key: dg.AssetKey, stores: WorkspaceStores, context: dg.SensorEvaluationContext
) -> None:
    """Tell Dagster now and then whether a stream that nobody follows is fresh."""
    last = float((context.cursor or "-inf").split()[0])
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


def known_of(
    view: FeatureView,
    code: str,
    stores: WorkspaceStores,
    instance: dg.DagsterInstance,
    ended: Iterable[dg.RunRecord],
) -> Followed:
    """Return what the ledger and Dagster know of a view's stream."""
    ledger, place = stores.ledger, (stores.workspace, view.name)
    of_view = {STREAM_TAG: view.name}
    jobs = ledger.stream_jobs(*place)
    over = {each.run_id for job in jobs for each in job.attempts if each.state in ("ERROR", "CANCELLED")}
    unfinished = instance.get_run_records(dg.RunsFilter(tags=of_view, statuses=list(UNFINISHED)))
    # Dagster notices late that a process was killed
    lost = [each for each in unfinished if each.dagster_run.run_id in over]
    going = [each.dagster_run for each in unfinished if each.dagster_run.run_id not in over]
    return Followed(
        code=code,
        resolution=ledger.resolution(*place, StoredShape.of(view)),
        paused_at=ledger.stream_paused(*place),
        jobs=jobs,
        runs={run.run_id: GoingRun(run.tags.get(CODE_TAG, ""), _share(run)) for run in going},
        finished=tuple(_finished([*lost, *ended])),
        parallelism=_parallelism(view),
    )


def _finished(records: Iterable[dg.RunRecord]) -> Iterator[FinishedRun]:
    for record in records:
        ended = record.end_time
        yield FinishedRun(
            failed=record.dagster_run.status not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED),
            began_at=None if record.start_time is None else datetime.fromtimestamp(record.start_time, UTC),
            ended_at=record.update_timestamp if ended is None else datetime.fromtimestamp(ended, UTC),
            share=_share(record.dagster_run),
        )
