"""What the ledger knows of the warehouse: which windows of a view are published and in date.

It is kept as coverage is, under names of its own. While windows are being read they are noted under another name; what
is written meanwhile takes them out there too, so that nothing that was read before a change counts as published.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, and_, select

from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.ledger_claims import Place, cover, covered_in, uncover
from featurekit_dagster.stores.ledger_jobs import JobBook
from featurekit_dagster.stores.ledger_tables import coverage

_READING = "publishing:"
_PUBLISHED = "published:"


class PublishedBook(JobBook):
    """What is published, in one ledger."""

    def begin_publishing(self, place: Place, job_id: str, windows: Interval) -> None:
        """Note that windows are about to be read."""
        with self._write() as connection:
            uncover(connection, place, f"{_READING}{job_id}")
            cover(connection, place, (f"{_READING}{job_id}",), windows)

    def end_publishing(self, place: Place, name: str, job_id: str) -> IntervalSet:
        """Let the windows that a job has read count as published, save those written since; return what counts.

        Args:
            place: The generation of the view.
            name: Under which name what is published is kept.
            job_id: The job.
        """
        with self._write() as connection:
            done = covered_in(connection, place, f"{_READING}{job_id}")
            uncover(connection, place, f"{_READING}{job_id}")
            for windows in done:
                cover(connection, place, (name,), windows)
        return done

    def outdate_published(self, place: Place, changed: Callable[[IntervalSet], IntervalSet]) -> None:
        """Take back that windows are published, of what is published and of what is being read.

        Args:
            place: The generation of the view.
            changed: Returns which of some windows are not in date any more.
        """
        with self._write() as connection:
            for name in _names(connection, place):
                before = covered_in(connection, place, name)
                _replace(connection, place, name, before.subtract(changed(before)))

    def was_published(self, workspace: str, view: str) -> bool:
        """Tell whether anything of a view is known to be published anywhere."""
        own = (coverage.c.workspace == workspace, coverage.c.view == view, coverage.c.store.startswith(_PUBLISHED))
        with self._engine.connect() as connection:
            return connection.execute(select(coverage.c.store).where(*own).limit(1)).first() is not None

    def keep_published(self, place: Place, name: str, windows: IntervalSet) -> None:
        """Take back what is not among some windows: the warehouse has nothing else."""
        with self._write() as connection:
            before = covered_in(connection, place, name)
            after = before.intersect(windows)
            if after != before:
                _replace(connection, place, name, after)


def _names(connection: Connection, place: Place) -> list[str]:
    here = and_(
        coverage.c.workspace == place.workspace,
        coverage.c.view == place.view,
        coverage.c.generation == place.generation,
    )
    found = connection.execute(select(coverage.c.store).where(here).distinct()).scalars()
    return [name for name in found if name.startswith((_READING, _PUBLISHED))]


def _replace(connection: Connection, place: Place, name: str, windows: IntervalSet) -> None:
    uncover(connection, place, name)
    for each in windows:
        cover(connection, place, (name,), each)
