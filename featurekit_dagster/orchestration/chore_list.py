"""All kinds of chores, and what Dagster gets of them."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from featurekit_dagster.orchestration.chores import Chore, chore_job, chore_schedule
from featurekit_dagster.orchestration.compaction import CLEAN_UP, ONLINE_COMPACTION
from featurekit_dagster.orchestration.consistency import ONLINE_OFFLINE_CONSISTENCY
from featurekit_dagster.orchestration.datasets import DATASETS
from featurekit_dagster.orchestration.deletion import KEY_DELETION
from featurekit_dagster.orchestration.integration_chores import INTEGRATION_TEST_OF_BATCH, INTEGRATION_TEST_OF_STREAM
from featurekit_dagster.orchestration.open_interval import OPEN_INTERVAL
from featurekit_dagster.orchestration.publish import FEATURE_PUBLISH
from featurekit_dagster.orchestration.resources import BoundWorkspace

CHORES: tuple[Chore, ...] = (
    KEY_DELETION,
    FEATURE_PUBLISH,
    ONLINE_COMPACTION,
    CLEAN_UP,
    DATASETS,
    ONLINE_OFFLINE_CONSISTENCY,
    INTEGRATION_TEST_OF_BATCH,
    INTEGRATION_TEST_OF_STREAM,
    OPEN_INTERVAL,
)
"""One for each public job that carries out chores."""


def chore_jobs(workspace: BoundWorkspace, prefix: str | None = None) -> dict[str, dg.JobDefinition]:
    """Return the job of each kind of chore."""
    return {chore.kind: chore_job(chore, workspace, prefix) for chore in CHORES}


def chore_schedules(
    workspace: BoundWorkspace, jobs: Mapping[str, dg.JobDefinition], prefix: str | None = None
) -> list[dg.ScheduleDefinition]:
    """Return the schedules of the kinds of chores that have one."""
    return [
        chore_schedule(chore, jobs[chore.kind], workspace, chore.cron, prefix)
        for chore in CHORES
        if chore.cron is not None
    ]


def chore_of(kind: str) -> Chore | None:
    """Return the chore of a kind of job; None where the kind is no chore."""
    return next((chore for chore in CHORES if chore.kind == kind), None)
