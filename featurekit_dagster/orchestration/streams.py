"""One job per stream view: a long run that follows the stream, or its share of it, until it is told to end.

`execution.stream_attempt` carries the loop in a thread; this watches it, and tells Dagster how far it is. Micro-batches
are never runs.
"""

# No `from __future__ import annotations`: Dagster wants the type of `context` as an object, not as text.

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import FeatureKitError, NoSuchShare, safe_reason
from featurekit_dagster.execution.stream_attempt import CANCELLED, StreamAttempt, stats_of
from featurekit_dagster.execution.stream_follower import StreamReport
from featurekit_dagster.intervals import from_us
from featurekit_dagster.orchestration.checks import check_fresh
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import KIND, view_key
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.stream_code import stream_code
from featurekit_dagster.planning.stream_gap import retention_warning
from featurekit_dagster.stores.ledger_records import STREAM, JobRecord
from featurekit_dagster.stores.ledger_streams import newest_of_groups, summed_stats
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from featurekit_dagster.streams.sharing import ONLY_SHARE, Share

STREAM_TAG, CODE_TAG = "featurekit/stream", "featurekit/code"
"""Tags of a run that follows a stream: the view's name, and what its loop does as one short text."""
SHARE_TAG = "featurekit/share"
"""Tag of one of several runs that follow a stream together: which of them it is, such as `1 of 3`."""

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_OBSERVATIONS = 30.0
SECONDS_BETWEEN_IDLE_OBSERVATIONS = 300.0


def follows_stream(view: FeatureView) -> bool:
    """Tell whether a view's stream is followed."""
    return view.is_stream and view.online and view.stream_source is not None


def share_of(view: FeatureView, tags: Mapping[str, str]) -> Share:
    """Return which share of a view's stream a run follows, by its tags; the first one where they say nothing.

    Raises:
        NoSuchShare: The stream is not divided so.
    """
    source = view.stream_source
    count = 1 if source is None else source.parallelism
    text = tags.get(SHARE_TAG, str(Share(0, count)))
    try:
        found = Share.parse(text)
    except ValueError:
        found = Share(0, count + 1)
    if found.count != count:
        raise NoSuchShare(view=view.name, given=text, parallelism=count)
    return found


def stream_job_name(view: FeatureView, prefix: str | None = None) -> str:
    """Return the name of the job that follows a view's stream."""
    return f"{prefix}_stream_{view.name}" if prefix else f"stream_{view.name}"


def stream_job(view: FeatureView, workspace: BoundWorkspace, prefix: str | None = None) -> dg.JobDefinition:
    """Return the job that follows a view's stream; its sensor starts it, and a person may.

    Args:
        view: A stream view that is written online.
        workspace: The workspace it is declared in.
        prefix: First part of every name, if wanted.
    """
    name, resource = stream_job_name(view, prefix), resource_key(prefix)
    said = f"Follow the stream of {view.name} and keep its features fresh online, until told to end."

    @dg.op(name=f"{name}_loop", out={}, required_resource_keys={resource}, description=said)
    def follow(context: dg.OpExecutionContext) -> Iterator[Any]:
        opened: FeatureStores = getattr(context.resources, resource)
        try:
            share = share_of(view, context.run.tags)
        except NoSuchShare as refused:
            raise dg.Failure(description=str(refused), allow_retries=False) from None
        key, stores = view_key(view, prefix), opened.open(workspace)
        yield from StreamRun(view, key, stores, context.instance, context.run_id, share).events(context.log)

    tags = {STREAM_TAG: view.name, CODE_TAG: stream_code(view), KIND: STREAM, "dagster/max_retries": "0"}

    # Not tagged with the view: runs with that tag wait for each other, and batch runs go on beside this one.
    @dg.job(name=name, tags=tags, executor_def=dg.in_process_executor, description=said)
    def job() -> None:
        follow()

    return job


@dataclass(frozen=True, slots=True)
class StreamRun:
    """One run that follows a stream.

    Args:
        view: A stream view that is written online.
        key: Its asset key.
        stores: Where rows and record are kept.
        instance: Where events are kept.
        run_id: The run.
        share: Which of several runs it is.
    """

    view: FeatureView
    key: dg.AssetKey
    stores: WorkspaceStores
    instance: dg.DagsterInstance
    run_id: str
    share: Share = ONLY_SHARE

    def events(self, log: logging.Logger) -> Iterator[dg.AssetObservation | dg.AssetCheckEvaluation]:
        """Follow the stream and yield how far it is and whether that is fresh, at most every 30 seconds.

        Raises:
            dagster.Failure: The loop failed, or another one follows the stream.
        """
        try:
            job = self._begin()
        except FeatureKitError as refused:
            raise dg.Failure(description=str(refused), allow_retries=False) from None
        loop, why, said = self._attempt(job), "", Said()
        loop.start()
        try:
            while not loop.ended.wait(SECONDS_BETWEEN_LOOKS) and not why:
                why = loop.told() or ""
                if loop.report is not None and said.is_due(loop.report):
                    self._warn(said, loop.report, log)
                    loop.note()
                    yield from self._said(said, job, loop.report)
        except BaseException:  # Dagster interrupts the run, whatever with
            why = CANCELLED if self._is_cancelled() else "its run was interrupted"
            raise
        finally:
            loop.end(why)
        if loop.report is not None:
            yield from self._said(said, job, loop.report)
        if loop.error is not None:
            raise dg.Failure(description=safe_reason(loop.error), allow_retries=False)
        log.info("%s: the stream is followed no longer: %s", self.view.name, why)

    def _warn(self, said: "Said", report: StreamReport, log: logging.Logger) -> None:
        """Say once what may be missing because the stream forgets too soon."""
        warning = retention_warning(self.view, report.retention, report.at)
        if warning is not None and said.events < 0:
            log.warning(warning)

    def _said(
        self, said: "Said", job: JobRecord, report: StreamReport
    ) -> Iterator[dg.AssetObservation | dg.AssetCheckEvaluation]:
        """Yield how far the whole stream is, whichever of its runs says it."""
        said.now(report)
        others = self._others(job) if self.share.count > 1 else []
        stats = summed_stats([stats_of(report), *(other.stats for other in others)])
        yield observation(self.key, stats, report.at)
        if self.view.expected_feature_freshness is not None:
            newest_us = stats.get("newest_event_us")
            newest = None if newest_us is None else from_us(newest_us)
            yield check_fresh(self.view, newest, report.at).evaluation(self.key)

    def _others(self, job: JobRecord) -> list[JobRecord]:
        """Return the jobs of the other runs that follow the stream beside this one."""
        known = self.stores.ledger.stream_jobs(self.stores.workspace, self.view.name)
        return [
            each
            for each in newest_of_groups(known)
            if each.id != job.id and each.generation == job.generation and each.stats
        ]

    def _begin(self) -> JobRecord:
        ledger, place = self.stores.ledger, (self.stores.workspace, self.view.name)
        return ledger.follow_stream(
            workspace=self.stores.workspace,
            view=self.view.name,
            generation=ledger.open_generation(*place, StoredShape.of(self.view)),
            run_id=self.run_id,
            code_version=stream_code(self.view),
            group=self.share.index,
            groups=self.share.count,
        )

    def _attempt(self, job: JobRecord) -> StreamAttempt:
        return StreamAttempt(self.view, self.stores, job, share=self.share, holder=self.run_id)

    def _is_cancelled(self) -> bool:
        """Tell whether a person has asked Dagster to end the run."""
        run = self.instance.get_run_by_id(self.run_id)
        return run is not None and run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)


@dataclass(slots=True)
class Said:
    """When a run last said how far it is, and how far that was."""

    at: float = float("-inf")
    events: int = -1

    def is_due(self, report: StreamReport) -> bool:
        """Tell whether to say it again: soon when there is something new, seldom when not."""
        pause = SECONDS_BETWEEN_IDLE_OBSERVATIONS if report.events == self.events else SECONDS_BETWEEN_OBSERVATIONS
        return time.monotonic() - self.at >= pause

    def now(self, report: StreamReport) -> None:
        """Take note that it is said now."""
        self.at, self.events = time.monotonic(), report.events


def observation(key: dg.AssetKey, stats: Mapping[str, int], at: datetime) -> dg.AssetObservation:
    """Return what Dagster is told: numbers and times only. Numbers are numbers, so that it plots them.

    Args:
        key: Asset key of the view.
        stats: What `stats_of` makes of a report.
        at: When that was.
    """
    found: dict[str, Any] = {
        "lag": stats["lag"],
        "events": stats["events"],
        "dropped_late": stats["late"],
        "duplicates": stats["duplicates"],
        "superseded": stats["superseded"],
        "dead_letters": stats["dead_letters"],
    }
    if (newest_us := stats.get("newest_event_us")) is not None:
        found["freshness_seconds"] = round((at - from_us(newest_us)).total_seconds(), 3)
        found["newest_event"] = dg.MetadataValue.timestamp(from_us(newest_us))
    if (watermark_us := stats.get("watermark_us")) is not None:
        found["watermark"] = dg.MetadataValue.timestamp(from_us(watermark_us))
    metadata = {f"featurekit/{name}": value for name, value in found.items()}
    said = f"{stats['events']:,} events, {stats['lag']:,} to be read"
    return dg.AssetObservation(asset_key=key, description=said, metadata=metadata)
