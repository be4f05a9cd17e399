"""Maintaining the offline tables of a view: files sorted, old ones deleted, what nothing uses any more removed.

No row changes. Each commit is short and takes the view's lease for itself, so that batch jobs have their turn; what is
left to do is known by the tables, so a maintenance that was killed is gone on with by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.errors import ChangedDeclaration, JobStateError, JobStopped, safe_reason
from featurekit_dagster.execution.removal import remove_generation
from featurekit_dagster.execution.turns import PATIENCE, Turns
from featurekit_dagster.intervals import Interval
from featurekit_dagster.planning.generations import GenerationState, StoredShape
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.planning.review import retired_generations
from featurekit_dagster.stores.ledger_leases import Lease
from featurekit_dagster.stores.ledger_records import JobRecord
from featurekit_dagster.stores.offline import TableMaintenance
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

RETENTION = timedelta(days=7)
"""How long files are kept that newer ones have replaced; longer than any read takes."""

TYPICAL_READ = timedelta(days=30)
"""The newest part of a table whose files are counted as the cost of a read."""

SORTED, CLEANED = "sorted", "cleaned"
OnStep = Callable[[str], None]


def _ignore(step: str) -> None:
    """Do nothing at a step."""


def maintain_view(
    view: FeatureView,
    stores: WorkspaceStores,
    *,
    trigger: str,
    run_id: str | None = None,
    retention: timedelta = RETENTION,
    wait: timedelta = PATIENCE,
    on_step: OnStep = _ignore,
) -> Iterator[JobRecord]:
    """Maintain the table of each generation of a view that is used, remove the others, and yield each finished job.

    Partitions that were written in parts since the last time are sorted, one commit each. Columns that are declared no
    more go. Doing it again does what is left.

    Args:
        view: The feature view.
        stores: Where rows and record are kept.
        trigger: What asked for it.
        run_id: The Dagster run that does it.
        retention: How long replaced files are kept. A read that lasts longer fails.
        wait: How long to wait, before each commit, for a job that writes the view.
        on_step: Called after each partition and each table.

    Yields:
        Jobs of the kind DELTA_MAINTENANCE, and of the kind DELETION where a generation was removed.

    Raises:
        LeaseHeld: A job writes the view all the time; what was done stays.
        MaintenanceUnderWay: Another process maintains the table.
        JobStopped: The job was told to end; what was done stays.
    """
    known = stores.ledger.generations(stores.workspace, view.name)
    shapes = {each.generation: each.shape for each in known if each.state is not GenerationState.RETIRED}
    for generation, shape in (shapes or {1: None}).items():
        if stores.offline.exists(view.name, generation):
            turns = Turns(stores, view.name, run_id or "maintenance", wait)
            upkeep = _Upkeep(view, generation, shape, stores, turns, on_step)
            job = upkeep.carry_out(trigger, run_id, retention)
            if job is not None:
                yield job
    for retired in retired_generations({view.name: known}):
        if retired.removable_at <= stores.clock():
            removed = remove_generation(view.name, retired.generation, stores, wait=wait)
            if removed is not None:
                yield removed


@dataclass(slots=True)
class _Upkeep:
    """The maintenance of one table.

    Args:
        view: The feature view.
        generation: Generation of the table.
        shape: What it stores; None where that is not known.
        stores: Where rows and record are kept.
        turns: Gives the view's lease for one commit at a time.
        on_step: Called after each step.
    """

    view: FeatureView
    generation: int
    shape: StoredShape | None
    stores: WorkspaceStores
    turns: Turns
    on_step: OnStep

    def carry_out(self, trigger: str, run_id: str | None, retention: timedelta) -> JobRecord | None:
        """Maintain the table as one job of the ledger; None where it covers nothing."""
        ledger, table = self.stores.ledger, self.stores.offline.maintenance(self.view.name, self.generation)
        with self._turn() as lease:
            covered = table.coverage
            if not covered:
                return None
            whole = Interval(covered.intervals[0].start, covered.intervals[-1].end)
            job = ledger.begin_maintenance(
                workspace=self.stores.workspace,
                view=self.view.name,
                generation=self.generation,
                interval=whole,
                trigger=trigger,
                run_id=run_id,
                lease=lease,
            )
        try:
            stats = self._tidy(table, job, retention)
            return ledger.finish_chore(job.id, stats=stats)
        except Exception as error:
            # whatever happened, the ledger must not go on saying that the job runs; the error itself goes on
            with suppress(JobStateError):  # somebody else has ended the attempt
                if isinstance(error, JobStopped):
                    ledger.stop(job.id, reason="it was told to end")
                else:
                    ledger.fail(job.id, reason=safe_reason(error), permanent=True)
            raise

    def _tidy(self, table: TableMaintenance, job: JobRecord, retention: timedelta) -> Mapping[str, int]:
        end = job.interval.end
        newest = Interval(end - TYPICAL_READ, end)
        before, read_before = table.size(), table.size(newest)
        with self._turn(job) as lease:
            gone = self._forget_columns(table, job, lease)
            version, left = table.version(), table.left_to_sort()
        for partition in left:
            with self._turn(job) as lease:
                table.sort_partition(partition, self._order, job_id=job.id, epoch=lease.epoch)
            self.on_step(SORTED)
        with self._turn(job) as lease:
            deleted = table.clean_up(retention, version, job_id=job.id, epoch=lease.epoch)
        self.on_step(CLEANED)
        after, read_after = table.size(), table.size(newest)
        return {
            "partitions_sorted": len(left),
            "columns_removed": len(gone),
            "files_deleted": deleted,
            "files_before": before.files,
            "files_after": after.files,
            "bytes_before": before.bytes,
            "bytes_after": after.bytes,
            "read_files_before": read_before.files,
            "read_files_after": read_after.files,
        }

    @property
    def _order(self) -> tuple[str, ...]:
        """The columns that order the rows of a partition, as when they are written."""
        if self.shape is None:
            return (*self.view.key_names, self.view.stored_time_column)
        return (*(name for name, _ in self.shape.keys), self.shape.time_column)

    def _forget_columns(self, table: TableMaintenance, job: JobRecord, lease: Lease) -> tuple[str, ...]:
        """Take out the columns that are declared no more, of the generation that the declaration writes.

        The record is told before that they are stored no more, so that declaring one again needs a rebuild.
        """
        view, ledger = self.view, self.stores.ledger
        with suppress(ChangedDeclaration):  # a person has to decide first
            if ledger.open_generation(self.stores.workspace, view.name, StoredShape.of(view)) == self.generation:
                return table.forget_columns(stored_schema(view), job_id=job.id, epoch=lease.epoch)
        return ()

    @contextmanager
    def _turn(self, job: JobRecord | None = None) -> Iterator[Lease]:
        """Hold the view's lease for one commit; now and then leave it to others before.

        Raises:
            LeaseHeld: A job had it all the time.
            JobStopped: The job was told to end.
        """

        def check(lease: Lease) -> None:
            if job is not None and self.stores.ledger.look(job.id, lease=lease) is not JobState.RUNNING:
                raise JobStopped(job_id=job.id)

        with self.turns.turn(check) as lease:
            yield lease
