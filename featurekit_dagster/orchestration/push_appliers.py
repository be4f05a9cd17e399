"""Streams that an ingest process follows, which is no run: how a supervisor knows of it and shows how far it is."""

from __future__ import annotations

import time
from collections.abc import Sequence

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import from_us
from featurekit_dagster.orchestration.checks import check_fresh
from featurekit_dagster.orchestration.streams import (
    SECONDS_BETWEEN_IDLE_OBSERVATIONS,
    SECONDS_BETWEEN_OBSERVATIONS,
    observation,
)
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, JobRecord


def applied_job(jobs: Sequence[JobRecord], generation: int | None) -> JobRecord | None:
    """Return the job by which a process that is no run follows a stream; None if none does.

    Args:
        jobs: The stream's jobs, without attempts whose process has ended.
        generation: The generation that the declaration writes.
    """
    for job in jobs:
        attempt = job.attempts[-1] if job.attempts else None
        if attempt is None or attempt.run_id is not None or attempt.state not in ("RUNNING", "CANCELLING"):
            continue
        if job.state in ACTIVE_STATES and job.generation == generation:
            return job
    return None


def tell_progress(view: FeatureView, key: dg.AssetKey, job: JobRecord, context: dg.SensorEvaluationContext) -> None:
    """Tell Dagster how far the ingest process is, as a run would: soon when there is something new, seldom when not.

    Args:
        view: The stream view.
        key: Its asset key.
        job: The job by which the process follows the stream.
        context: Of the sensor; when something was told last is its cursor, with the number of events then.
    """
    stats = job.stats
    last, _, events = (context.cursor or "-inf").partition(" ")
    is_new = str(stats.get("events")) != events
    pause = SECONDS_BETWEEN_OBSERVATIONS if is_new else SECONDS_BETWEEN_IDLE_OBSERVATIONS
    if "reported_us" not in stats or time.time() - float(last) < pause:
        return
    at = from_us(stats["reported_us"])
    context.instance.report_runless_asset_event(observation(key, stats, at))
    if view.expected_feature_freshness is not None:
        newest_us = stats.get("newest_event_us")
        newest = None if newest_us is None else from_us(newest_us)
        context.instance.report_runless_asset_event(check_fresh(view, newest, at).evaluation(key))
    context.update_cursor(f"{time.time()} {stats['events']}")
