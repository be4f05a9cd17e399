"""The rules of claiming: what stands in the way of a range, what a finished job covers, whose jobs are orphans.

Every function works inside a transaction that the ledger has opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, bindparam, delete, insert, select
from sqlalchemy.engine import Row

from featurekit_dagster.errors import OverlappingMaterialization
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.job_state import JobEvent, JobState
from featurekit_dagster.stores.ledger_lifecycle import NOBODY, PROCESS_ENDED, carry_out, failed, is_live, lose
from featurekit_dagster.stores.ledger_processes import ProcessIdentity
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES, CLAIM_NOTHING, interval_of
from featurekit_dagster.stores.ledger_tables import coverage, jobs


@dataclass(frozen=True, slots=True)
class Place:
    """One generation of one view of one workspace: what claims and coverage are about."""

    workspace: str
    view: str
    generation: int


def _at_place(table: Table) -> ColumnElement[bool]:
    return and_(*(table.c[name] == bindparam(name) for name in ("workspace", "view", "generation")))


def _overlapping(table: Table) -> ColumnElement[bool]:
    return and_(_at_place(table), table.c.start_us < bindparam("until_us"), table.c.end_us > bindparam("from_us"))


# Built once: making a statement costs more than running it.
_CLAIMING = and_(_overlapping(jobs), jobs.c.kind.not_in(CLAIM_NOTHING), jobs.c.request.is_(None))
_ACTIVE_JOBS = select(jobs).where(_CLAIMING, jobs.c.state.in_(ACTIVE_STATES))
_SUCCEEDED_JOBS = select(jobs).where(_CLAIMING, jobs.c.state == JobState.SUCCESS.value).order_by(jobs.c.sequence.desc())
_COVERED = select(coverage).where(_overlapping(coverage))
_TOUCHED = select(coverage).where(
    _at_place(coverage), coverage.c.start_us <= bindparam("until_us"), coverage.c.end_us >= bindparam("from_us")
)
_UNCOVER = delete(coverage).where(
    _at_place(coverage), coverage.c.store == bindparam("of_store"), coverage.c.start_us == bindparam("from_us")
)
_ALL_COVERED = select(coverage).where(_at_place(coverage), coverage.c.store == bindparam("of_store"))


def covered_in(connection: Connection, place: Place, store: str) -> IntervalSet:
    """Return what is covered of a place in one store."""
    return _spans(connection.execute(_ALL_COVERED, {**asdict(place), "of_store": store}).all())


def refusal_of(
    connection: Connection,
    place: Place,
    interval: Interval,
    stores: Sequence[str],
    *,
    overwrite: bool,
    now_us: int,
) -> OverlappingMaterialization | None:
    """Return why a range may not be claimed for the given stores; None when it may.

    Attempts in the way whose process has ended are ended first; a job of which that was the last is not in the way.
    """
    asked = {**asdict(place), "from_us": interval.start_us, "until_us": interval.end_us}
    active = connection.execute(_ACTIVE_JOBS, asked).all()
    ended = [failed(row, PROCESS_ENDED, now_us, lost=True) for row in active if is_dead(row)]
    carry_out(connection, ended, now_us)
    given_up = {move.job.id for move in ended if move.event is JobEvent.GIVE_UP}
    running = [row for row in active if row.id not in given_up]
    covered = [] if overwrite else connection.execute(_COVERED, asked).all()
    for store in stores:
        others = [row for row in running if row._mapping[store]]
        taken = others or [row for row in covered if row.store == store]
        if not taken:
            continue
        jobs_there = others or [row for row in connection.execute(_SUCCEEDED_JOBS, asked) if row._mapping[store]]
        return OverlappingMaterialization(
            view=place.view,
            interval=interval,
            store=store,
            overlap=_spans(taken).intersect([interval]),
            running=bool(others),
            job_id=jobs_there[0].id if jobs_there else None,
        )
    return None


def first_refusal(
    connection: Connection,
    place: Place,
    intervals: Sequence[Interval],
    stores: Sequence[str],
    *,
    overwrite: bool,
    now_us: int,
) -> OverlappingMaterialization | None:
    """Return why one of several ranges may not be claimed; None when all may, at the cost of their contiguous spans."""
    for span in IntervalSet(intervals):
        refusal = refusal_of(connection, place, span, stores, overwrite=overwrite, now_us=now_us)
        if refusal is not None:
            first = next(interval for interval in intervals if refusal.overlap.overlaps(interval))
            return refusal_of(connection, place, first, stores, overwrite=overwrite, now_us=now_us) or refusal
    return None


def cover(connection: Connection, place: Place, stores: Sequence[str], interval: Interval) -> None:
    """Add a range to the coverage of stores, merged in each into one row with the rows that it touches."""
    here = asdict(place)
    bounds = {"from_us": interval.start_us, "until_us": interval.end_us}
    touched = [row for row in connection.execute(_TOUCHED, {**here, **bounds}) if row.store in stores]
    merged = []
    for store in stores:
        own = [row for row in touched if row.store == store]
        start_us = min([interval.start_us, *(row.start_us for row in own)])
        end_us = max([interval.end_us, *(row.end_us for row in own)])
        merged.append({**here, "store": store, "start_us": start_us, "end_us": end_us})
    if touched:
        gone = [{**here, "of_store": row.store, "from_us": row.start_us} for row in touched]
        connection.execute(_UNCOVER, gone)
    connection.execute(insert(coverage), merged)


def uncover(connection: Connection, place: Place, store: str) -> None:
    """Forget what is covered of a place in one store."""
    connection.execute(delete(coverage).where(_at_place(coverage), coverage.c.store == store), asdict(place))


def uncover_all(connection: Connection, place: Place, stores: Sequence[str]) -> None:
    """Forget what is covered of a place in stores."""
    for store in stores:
        uncover(connection, place, store)


def lose_dead(connection: Connection, workspace: str, now_us: int) -> tuple[str, ...]:
    """End the attempts of a workspace whose process has certainly ended; return the ids of their jobs."""
    return lose(connection, jobs.c.workspace == workspace, PROCESS_ENDED, now_us, is_dead)


def any_dead(connection: Connection, workspace: str) -> bool:
    """Tell whether an attempt of a workspace is under way in a process that has certainly ended."""
    under_way = (jobs.c.workspace == workspace, jobs.c.state.in_(ACTIVE_STATES), jobs.c.process != NOBODY)
    processes = connection.execute(select(jobs.c.process).where(*under_way).distinct()).scalars()
    return any(ProcessIdentity.parse(process).is_dead for process in processes)


def is_dead(job: Row[Any]) -> bool:
    """Tell whether a job has an attempt under way whose process has certainly ended."""
    return is_live(job) and ProcessIdentity.parse(job.process).is_dead


def _spans(rows: Sequence[Row[Any]]) -> IntervalSet:
    return IntervalSet(interval_of(row.start_us, row.end_us) for row in rows)
