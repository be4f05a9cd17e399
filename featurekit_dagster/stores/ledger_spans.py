"""What jobs say about ranges, for planning: what is under way, what failed, what nothing fills until somebody asks.

Only the columns that this takes are read, because a view may have tens of thousands of jobs that wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, or_, select
from sqlalchemy.engine import Row

from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, CLAIM_NOTHING, DELETION, interval_of, written_stores
from featurekit_dagster.stores.ledger_tables import jobs

_LEFT_STATES = (JobState.FAILURE.value, JobState.MANUALLY_CANCELLED.value)
_COLUMNS = ("view", "start_us", "end_us", "online", "offline", "state", "max_attempts", "generation")


@dataclass(slots=True)
class JobSpans:
    """The ranges of one view's jobs.

    Args:
        running: What queued and running jobs have claimed.
        failed: What is missing of the ranges of failed jobs.
        left_alone: What is missing of the ranges of jobs that were cancelled by hand, or given up after all their
            attempts, and that no later job asked for.
    """

    running: list[Interval] = field(default_factory=list)
    failed: list[Interval] = field(default_factory=list)
    left_alone: list[Interval] = field(default_factory=list)
    _asked_later: IntervalSet = field(default_factory=IntervalSet)
    _just_asked: list[Interval] = field(default_factory=list)

    def add(self, job: Row[Any], covered: Mapping[tuple[str, str], IntervalSet]) -> None:
        """Take in the next older job.

        Args:
            job: A job that has not ended, failed, or was cancelled.
            covered: What is covered, by view and store.
        """
        interval = interval_of(job.start_us, job.end_us)
        if job.state in ACTIVE_STATES:
            self.running.append(interval)
            self._just_asked.append(interval)
            return
        missing = IntervalSet()
        for store in written_stores(online=job.online, offline=job.offline):
            missing = missing.union(IntervalSet([interval]).subtract(covered.get((job.view, store), IntervalSet())))
        if job.state == JobState.FAILURE.value:
            self.failed.extend(missing)
        if job.state == JobState.MANUALLY_CANCELLED.value or job.max_attempts > 1:
            if self._just_asked:
                self._asked_later, self._just_asked = self._asked_later.union(self._just_asked), []
            self.left_alone.extend(missing.subtract(self._asked_later))
        else:
            self._just_asked.append(interval)


def read_spans(
    connection: Connection,
    covered: Mapping[tuple[str, str], IntervalSet],
    generations: Mapping[str, int],
    *conditions: ColumnElement[bool],
) -> dict[str, JobSpans]:
    """Return the ranges of all jobs that meet the conditions, by view.

    Args:
        connection: An open transaction.
        covered: What is covered, by view and store.
        generations: View to the generation whose jobs count, where that is not the first.
        conditions: Which jobs.
    """
    wanted = select(*(jobs.c[name] for name in _COLUMNS)).where(
        *conditions,
        jobs.c.kind.not_in(CLAIM_NOTHING),
        jobs.c.request.is_(None),
        or_(jobs.c.state.in_(ACTIVE_STATES), and_(jobs.c.state.in_(_LEFT_STATES), jobs.c.kind != DELETION)),
    )
    spans: dict[str, JobSpans] = {}
    for job in connection.execute(wanted.order_by(jobs.c.sequence.desc())):
        if job.generation == generations.get(job.view, 1):
            spans.setdefault(job.view, JobSpans()).add(job, covered)
    return spans
