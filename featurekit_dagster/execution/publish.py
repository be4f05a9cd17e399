"""Publishing: the windows of a view that are materialized go to the warehouse as changes of full features.

Each piece is read, replaced in the warehouse in one transaction, and then noted in the ledger, so that whatever ends in
between is done again. Who computes the features hands them in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import Bool, Field, Timestamp
from featurekit_dagster.errors import NothingToPublish, NotPublished
from featurekit_dagster.intervals import Interval, IntervalSet, floor_time
from featurekit_dagster.planning.job_state import MANAGED, JobState, RetryPolicy
from featurekit_dagster.planning.publishing import Publishing, ledger_name
from featurekit_dagster.planning.tasks import OFFLINE
from featurekit_dagster.stores.ledger_claims import Place
from featurekit_dagster.stores.ledger_records import FEATURE_EXPORT, JobRecord
from featurekit_dagster.stores.warehouse import ENDED, VALID_FROM, Warehouse, WarehouseTable
from featurekit_dagster.stores.warehouses import open_warehouse
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

PATIENCE = timedelta(minutes=10)
_LONGEST_PIECE = timedelta(days=30)
_GIVEN_UP = (JobState.FAILURE.value, JobState.MANUALLY_CANCELLED.value)
Changes = Callable[[Interval, bool], pa.Table]
"""Returns what changes in a time, with or without what holds at its start; see `serving.published.changes_in`."""


@dataclass(frozen=True, slots=True)
class Published:
    """What is published of a view, and where.

    Args:
        view: The feature view.
        stores: Where rows and record are kept.
        warehouse: Where it is published.
        rules: Its clock rules.
    """

    view: FeatureView
    stores: WorkspaceStores
    warehouse: Warehouse
    rules: Publishing

    @classmethod
    def of(cls, view: FeatureView, stores: WorkspaceStores, warehouse: Warehouse | None = None) -> Published:
        """Return what is published of a view.

        Raises:
            NotPublished: It is not declared to be.
        """
        if view.publish is None:
            raise NotPublished(view=view.name)
        return cls(view, stores, warehouse or open_warehouse(stores.home), Publishing.of(view))

    @property
    def place(self) -> Place:
        """The generation that is read."""
        return Place(self.stores.workspace, self.view.name, self.stores.generation(self.view))

    @property
    def name(self) -> str:
        """Under which name the ledger keeps what is published."""
        return ledger_name(self.rules.digest, self.warehouse.place)

    @property
    def lease(self) -> str:
        """The lease of whoever writes the published table."""
        return _lease(self.stores, self.view.name)

    @property
    def table(self) -> WarehouseTable:
        """The table in the warehouse."""
        return WarehouseTable(
            schema=self.stores.workspace,
            name=self.view.name,
            keys=self.view.join_keys,
            features=self.view.features,
            identity=f"{self.place.generation}:{self.rules.digest}",
            shown_after_us=self.rules.shown_after_us,
        )

    def windows(self) -> IntervalSet:
        """Return the windows that are published and in date, as the ledger knows."""
        place = self.place
        return self.stores.ledger.coverage(place.workspace, place.view, self.name, place.generation)

    def publishable(self) -> IntervalSet:
        """Return the windows that can be published."""
        return self.rules.publishable(self.stores.coverage(self.view, OFFLINE))


def queue_missing(
    view: FeatureView, stores: WorkspaceStores, *, trigger: str, give_up: bool = False
) -> list[JobRecord]:
    """Ask for a job that publishes what can be and is not yet, and return it beside those that wait already.

    Args:
        view: A feature view.
        stores: Where rows and record are kept.
        trigger: What asks for it.
        give_up: Whether what a job has failed at, or a person has cancelled, is left alone.

    Raises:
        NotPublished: The view is not declared to be published.
    """
    published = Published.of(view, stores)
    unfinished = stores.ledger.unfinished_chores(stores.workspace, FEATURE_EXPORT, view.name)
    waiting = [job for job in unfinished if job.next_attempt_at is not None]
    # what is under way may have read the rows before they changed, and is followed by another job; but not at each look
    left = published.publishable().subtract(published.windows())
    left = left.subtract(job.interval for job in (unfinished if give_up else waiting))
    if give_up and left:
        ended = stores.ledger.jobs(stores.workspace, view.name, states=_GIVEN_UP)
        left = left.subtract(job.interval for job in ended if job.kind == FEATURE_EXPORT)
    if not left:
        return waiting
    whole = Interval(left.intervals[0].start, left.intervals[-1].end)
    return [*waiting, _queue(published, whole, trigger=trigger, again=False, policy=MANAGED)]


def queue_range(
    view: FeatureView,
    stores: WorkspaceStores,
    interval: Interval,
    *,
    trigger: str,
    policy: RetryPolicy = MANAGED,
) -> JobRecord:
    """Ask for a job that publishes what can be of a range, what is published already again; return it.

    Args:
        view: A feature view.
        stores: Where rows and record are kept.
        interval: Event times, widened to whole batch intervals.
        trigger: What asks for it.
        policy: How often it is tried.

    Raises:
        NotPublished: The view is not declared to be published.
        NothingToPublish: Nothing of it can be.
    """
    published = Published.of(view, stores)
    publishable = published.publishable()
    possible = publishable.intersect([interval.aligned_outward(view.batch_schedule)])
    if not possible:
        shown = str(publishable) if publishable else "nothing"
        raise NothingToPublish(view=view.name, asked=str(interval), possible=shown)
    whole = Interval(possible.intervals[0].start, possible.intervals[-1].end)
    return _queue(published, whole, trigger=trigger, again=True, policy=policy)


def _queue(published: Published, interval: Interval, *, trigger: str, again: bool, policy: RetryPolicy) -> JobRecord:
    return published.stores.ledger.queue_chore(
        workspace=published.stores.workspace,
        view=published.view.name,
        kind=FEATURE_EXPORT,
        trigger=trigger,
        interval=interval,
        request={"again": again, "warehouse": published.warehouse.place},
        generation=published.place.generation,
        policy=policy,
    )


def outdate(view: FeatureView, stores: WorkspaceStores, written: Interval) -> None:
    """Take back, before a job is recorded, that windows are published which its rows may change.

    Args:
        view: Any feature view.
        stores: The stores with the generation that the job writes.
        written: The job's range.
    """
    if view.publish is not None:
        rules = Publishing.of(view)
        place = Place(stores.workspace, view.name, stores.generation(view))
        stores.ledger.outdate_published(place, lambda windows: rules.outdated(windows, written))


def publish(
    published: Published, job: JobRecord, changes: Changes, check: Callable[[], None], wait: timedelta = PATIENCE
) -> Mapping[str, int]:
    """Carry out a job: publish the missing windows of its range, or all that can be; return counts.

    A table that is not there any more, or was made of another declaration, is made anew.

    Args:
        published: What and where.
        job: The job.
        changes: Computes what is published.
        check: Called before each piece; raises when the job was told to end.
        wait: How long to wait for another job that publishes the view.

    Raises:
        LeaseHeld: Another one publishes it all the time.
        WarehouseBusy: The warehouse cannot be opened.
        NotMaterialized: What was to be published is not covered any more.
    """
    ledger, again = published.stores.ledger, bool((job.request or {}).get("again"))
    counts = {"windows": 0, "rows": 0, "rows_replaced": 0}
    with ledger.lease(published.lease, holder=job.id, wait=wait):
        there = published.warehouse.published(published.table)
        ledger.keep_published(published.place, published.name, there or IntervalSet())
        wanted = published.publishable().intersect([job.interval])
        todo = wanted if again else wanted.subtract(published.windows())
        for piece in _pieces(published, todo):
            check()
            rows, replaced = _publish_piece(published, job, piece, changes, check)
            counts["windows"] += piece.duration // published.view.batch_schedule
            counts["rows"] += rows
            counts["rows_replaced"] += replaced
    return counts


def _pieces(published: Published, todo: IntervalSet) -> Iterator[Interval]:
    """Cut what is to be published into ranges that are read at once.

    What is published behind a range began with all that held there; its first window is made again without that.
    """
    schedule = published.view.batch_schedule
    ends = {piece.end for piece in todo}
    seams = [Interval(run.start, run.start + schedule) for run in published.windows() if run.start in ends]
    length = max(_LONGEST_PIECE, published.view.reach)
    for run in todo.union(seams):
        start = run.start
        while start < run.end:
            end = min(max(floor_time(start + length, schedule), start + schedule), run.end)
            yield Interval(start, end)
            start = end


def _publish_piece(
    published: Published, job: JobRecord, piece: Interval, changes: Changes, check: Callable[[], None]
) -> tuple[int, int]:
    """Publish a range of windows; return how many changes it has now and how many it had."""
    ledger, view = published.stores.ledger, published.view
    before = Interval(piece.start - view.batch_schedule, piece.start)
    is_continued = published.windows().covers(before)
    ledger.begin_publishing(published.place, job.id, piece)
    span = published.rules.shown(piece)
    first = view.publish.publish_start_time if view.publish is not None else None
    asked = span if first is None or first <= span.start else Interval(first, span.end)
    rows = changes(asked, is_continued)
    check()
    fields = (*view.join_keys, *view.features, Field(VALID_FROM, Timestamp), Field(ENDED, Bool))
    with ledger.lease(f"warehouse:{published.stores.workspace}", holder=job.id, wait=PATIENCE):
        replaced = published.warehouse.replace(published.table, fields, rows, piece)
    ledger.end_publishing(published.place, published.name, job.id)
    return rows.num_rows, replaced


def unpublish_keys(view: FeatureView, stores: WorkspaceStores, keys: pa.Table, wait: timedelta = PATIENCE) -> int:
    """Remove join keys from what is published of a view, and return how many rows they had.

    A job that is publishing the view is waited for, so that it cannot bring back what it has read before.

    Args:
        view: Any feature view; one that was never published has no rows.
        stores: Where rows and record are kept.
        keys: The join keys, typed as declared.
        wait: How long to wait for a job that publishes the view.

    Raises:
        LeaseHeld: Such a job has gone on all the time.
        WarehouseBusy: The warehouse cannot be opened.
    """
    if not is_in_warehouse(view, stores):
        return 0
    with stores.ledger.lease(_lease(stores, view.name), holder="deletion", wait=wait):
        return open_warehouse(stores.home).delete_keys(_table(view.name, stores, view.join_keys), keys)


def is_in_warehouse(view: FeatureView, stores: WorkspaceStores) -> bool:
    """Tell whether a view is published, or was before its declaration left that out, which leaves what is there."""
    return view.publish is not None or stores.ledger.was_published(stores.workspace, view.name)


def drop_published(view_name: str, stores: WorkspaceStores, wait: timedelta = PATIENCE) -> None:
    """Remove what is published of a view, which need not be declared any more.

    Raises:
        LeaseHeld: A job publishes it all the time.
        WarehouseBusy: The warehouse cannot be opened.
    """
    if not stores.ledger.was_published(stores.workspace, view_name):
        return
    with stores.ledger.lease(_lease(stores, view_name), holder="removal", wait=wait):
        open_warehouse(stores.home).drop(_table(view_name, stores))


def _table(view_name: str, stores: WorkspaceStores, keys: tuple[Field, ...] = ()) -> WarehouseTable:
    """Return the table of a view, which need not be declared to be published, to take rows out of it."""
    return WarehouseTable(
        schema=stores.workspace, name=view_name, keys=keys, features=(), identity="", shown_after_us=0
    )


def _lease(stores: WorkspaceStores, view_name: str) -> str:
    return f"publish:{stores.workspace}/{view_name}"


def path_of(view: FeatureView, stores: WorkspaceStores) -> str | None:
    """Return where a view is published: the warehouse and the name of the view in it; None where it is not."""
    if view.publish is None:
        return None
    return f"{open_warehouse(stores.home).place}#{stores.workspace}.{view.name}"
