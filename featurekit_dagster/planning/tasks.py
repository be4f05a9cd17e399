"""What has to be done, as values: tasks, the runs that carry them, and the record they were planned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.generations import Change

ONLINE, OFFLINE = "online", "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedView:
    """A view that the ledger knows and nobody declares any more.

    Args:
        view: Its name.
        generations: Those that are known, ascending.
        covered: Store to what is materialized there, in any generation.
    """

    view: str
    generations: tuple[int, ...]
    covered: Mapping[str, IntervalSet]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSnapshot:
    """What the ledger knows at one moment, for planning; of each view one generation, the one that jobs write.

    Args:
        covered: `(view, store)` to the intervals that are materialized there.
        running: View to the intervals that queued or running jobs have claimed.
        failed: View to the intervals whose last job failed and was not repeated.
        left_alone: View to the intervals that nothing fills until somebody asks: cancelled by hand, or given up after
            all their attempts.
        generation: Declared view to the generation that all this is about.
        changes: Declared view to what has changed so that a person has to decide; views without are left out.
        superseded: `(view, store)` to what is materialized in the generation that reads answer from until the one that
            is being built covers as much.
        retired: Declared view to its generations that nothing uses any more.
        undeclared: Name of a view that nobody declares any more to what is known of it.
        stream_starts: View to the time from which on its stream covers everything online; none before it began.
    """

    covered: Mapping[tuple[str, str], IntervalSet] = field(default_factory=dict)
    running: Mapping[str, IntervalSet] = field(default_factory=dict)
    failed: Mapping[str, IntervalSet] = field(default_factory=dict)
    left_alone: Mapping[str, IntervalSet] = field(default_factory=dict)
    generation: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    superseded: Mapping[tuple[str, str], IntervalSet] = field(default_factory=dict)
    retired: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    undeclared: Mapping[str, RemovedView] = field(default_factory=dict)
    stream_starts: Mapping[str, datetime] = field(default_factory=dict)

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
class PartitionLimits:
    """How the number of a view's partitions grows.

    Args:
        partitions: Number of complete batch intervals by now.
        reached_at: Number of partitions that matters to Dagster, to the time at which the view has so many; None where
            that lies beyond the calendar.
    """

    partitions: int
    reached_at: Mapping[int, datetime | None]


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
        generation: The generation that the runs write.
        changes: What has changed so that nothing is run before a person decides.
        limits: How the view's partitions grow; None for a view that has none.
    """

    view: str
    runs: tuple[RunPlan, ...]
    wanted: Interval | None
    reason: str
    warnings: tuple[str, ...] = ()
    partitions: int = 0
    generation: int = 1
    changes: tuple[Change, ...] = ()
    limits: PartitionLimits | None = None

    @property
    def needs_decision(self) -> bool:
        """Whether nothing is run before a person says what becomes of what is stored."""
        return bool(self.changes)

    @property
    def is_destructive(self) -> bool:
        """Whether going on needs a person's word, because what is stored is replaced or declared to stand."""
        return self.needs_decision

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
