"""What has to be done, as values: tasks, the runs that carry them, and the record they were planned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from featurekit_dagster.intervals import Interval, IntervalSet

ONLINE, OFFLINE = "online", "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSnapshot:
    """What the ledger knows at one moment, for planning.

    Args:
        covered: `(view, store)` to the intervals that are materialized there.
        running: View to the intervals that queued or running jobs have claimed.
        failed: View to the intervals whose last job failed and was not repeated.
        left_alone: View to the intervals that nothing fills until somebody asks: cancelled by hand, or given up after
            all their attempts.
    """

    covered: Mapping[tuple[str, str], IntervalSet] = field(default_factory=dict)
    running: Mapping[str, IntervalSet] = field(default_factory=dict)
    failed: Mapping[str, IntervalSet] = field(default_factory=dict)
    left_alone: Mapping[str, IntervalSet] = field(default_factory=dict)

    def coverage(self, view: str, store: str) -> IntervalSet:
        """Return what is materialized of a view in a store."""
        return self.covered.get((view, store), IntervalSet())


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One job to be: one claimed range, one query, one commit per store.

    Args:
        view: The feature view.
        interval: `[start, end)` on the view's grid.
        online: Whether the online store is to be written.
        offline: Whether the offline store is to be written.
        overwrite: Whether what is there may be replaced.
        job_id: The waiting job of the ledger that it carries out; None for one that is claimed when it begins.
    """

    view: str
    interval: Interval
    online: bool
    offline: bool
    overwrite: bool = False
    job_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One Dagster run: the tasks of one contiguous range, one after another."""

    view: str
    interval: Interval
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPlan:
    """Everything that has to be done for one view, and why.

    Args:
        view: The feature view.
        runs: One per contiguous range, in order of time.
        wanted: The range that should be materialized by now; None when nothing is.
        reason: One sentence for people.
        warnings: What a person should know before running it.
        partitions: Number of grid intervals that the runs cover.
    """

    view: str
    runs: tuple[RunPlan, ...]
    wanted: Interval | None
    reason: str
    warnings: tuple[str, ...] = ()
    partitions: int = 0

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of all runs."""
        return tuple(task for run in self.runs for task in run.tasks)

    @property
    def jobs(self) -> int:
        """Number of jobs."""
        return len(self.tasks)

    @property
    def queries(self) -> int:
        """Number of times the transformation is run; each job runs it once over its whole range."""
        return len(self.tasks)
