"""The rules of claiming: what stands in the way of a range, what a finished job covers, whose jobs are orphans.

Every function works inside a transaction that the ledger has opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select

from featurekit_dagster.errors import OverlappingMaterialization
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.ledger_processes import ProcessIdentity
from featurekit_dagster.stores.ledger_records import (
    ACTIVE_STATES,
    PROCESS_ENDED,
    SUCCESS,
    fail_active,
    read_coverage,
    read_jobs,
)
from featurekit_dagster.stores.ledger_tables import coverage, jobs


@dataclass(frozen=True, slots=True)
class Place:
    """One generation of one view of one workspace: what claims and coverage are about."""

    workspace: str
    view: str
    generation: int


def jobs_of(place: Place) -> ColumnElement[bool]:
    """Return the condition of the jobs of a place."""
    return and_(jobs.c.workspace == place.workspace, jobs.c.view == place.view, jobs.c.generation == place.generation)


def covered_in(connection: Connection, place: Place, store: str) -> IntervalSet:
    """Return what is covered of a place in one store."""
    return read_coverage(connection, _coverage_of(place, store)).get((place.view, store), IntervalSet())


def refusal_of(
    connection: Connection, place: Place, interval: Interval, stores: Sequence[str], *, overwrite: bool
) -> OverlappingMaterialization | None:
    """Return why a range may not be claimed for the given stores; None when it may."""
    touching = and_(jobs_of(place), jobs.c.start_us < interval.end_us, jobs.c.end_us > interval.start_us)
    for store in stores:
        writing = and_(touching, jobs.c[store])
        others = read_jobs(connection, writing, jobs.c.state.in_(ACTIVE_STATES), limit=1)
        taken = IntervalSet(job.interval for job in others)
        running = bool(others)
        if not running and not overwrite:
            others = read_jobs(connection, writing, jobs.c.state == SUCCESS, limit=1)
            taken = covered_in(connection, place, store)
        overlap = taken.intersect([interval])
        if overlap:
            return OverlappingMaterialization(
                view=place.view,
                interval=interval,
                store=store,
                overlap=overlap,
                running=running,
                job_id=others[0].id if others else None,
            )
    return None


def cover(connection: Connection, place: Place, store: str, interval: Interval) -> None:
    """Add a range to a store's coverage, merged into one row with the rows that it touches."""
    start_us, end_us = interval.start_us, interval.end_us
    touching = and_(_coverage_of(place, store), coverage.c.start_us <= end_us, coverage.c.end_us >= start_us)
    for row in connection.execute(select(coverage.c.start_us, coverage.c.end_us).where(touching)).all():
        start_us, end_us = min(start_us, row.start_us), max(end_us, row.end_us)
    connection.execute(delete(coverage).where(touching))
    merged = {"store": store, "start_us": start_us, "end_us": end_us}
    of_place = {"workspace": place.workspace, "view": place.view, "generation": place.generation}
    connection.execute(insert(coverage).values(**of_place, **merged))


def dead_jobs(connection: Connection, condition: ColumnElement[bool]) -> list[str]:
    """Return the ids of active jobs whose process has certainly ended."""
    active = select(jobs.c.id, jobs.c.process).where(jobs.c.state.in_(ACTIVE_STATES), condition)
    return [row.id for row in connection.execute(active) if ProcessIdentity.parse(row.process).is_dead]


def fail_dead(connection: Connection, condition: ColumnElement[bool], now_us: int) -> tuple[str, ...]:
    """Fail the active jobs whose process has certainly ended, so that their ranges are free; return their ids."""
    dead = dead_jobs(connection, condition)
    return fail_active(connection, jobs.c.id.in_(dead), PROCESS_ENDED, now_us) if dead else ()


def _coverage_of(place: Place, store: str) -> ColumnElement[bool]:
    return and_(
        coverage.c.workspace == place.workspace,
        coverage.c.view == place.view,
        coverage.c.generation == place.generation,
        coverage.c.store == store,
    )
