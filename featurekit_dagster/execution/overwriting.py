"""What a person should know before a job writes again online what an earlier one has written there."""

from __future__ import annotations

from collections.abc import Iterable

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.stores.ledger_records import JobRecord


def overwrite_caution(
    view: FeatureView, interval: Interval, covered: IntervalSet, jobs: Iterable[JobRecord]
) -> str | None:
    """Return what an overwrite of the online store does not put right; None where nothing was written there before.

    Offline the interval is deleted and written again, so nothing has to be said about it.

    Args:
        view: The feature view.
        interval: What is overwritten.
        covered: What is materialized of the view online.
        jobs: Jobs of the view, in any order.

    Source: Manually Trigger Materialization, Overwriting previously materialized data (when it is safe); Stream Feature
    View materialization (moved timestamps can lead to duplicates).
    """
    there = covered.intersect([interval])
    earlier = [job for job in jobs if job.online and job.state == JobState.SUCCESS and job.interval.overlaps(interval)]
    wrote = any(job.stats.get("rows_online", 0) for job in earlier)
    # of what a lost ledger was told by the stores nobody knows whether it had rows
    if not wrote and not there.subtract(job.interval for job in earlier):
        return None
    what = (
        "replaces its tiles, and those of no other interval; an event whose timestamp was moved from one interval to "
        "another counts in both or in neither until both are overwritten"
        if view.is_aggregate
        else "puts newer or equal rows in place and removes none; a row whose timestamp was moved back leaves the "
        "former one there"
    )
    return f"{view.name}: overwriting {interval} online {what}"
