"""The database under the ledger: opening, migrating, and one short write transaction at a time."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, insert, inspect, select
from sqlalchemy.engine import Row
from sqlalchemy.exc import OperationalError

from featurekit_dagster.errors import LedgerOnOtherHost, LedgerUnavailable, LedgerVersionMismatch, NotFoundError
from featurekit_dagster.stores.ledger_migrations import migrate
from featurekit_dagster.stores.ledger_processes import host_id
from featurekit_dagster.stores.ledger_tables import (
    SCHEMA_VERSION,
    WRITE,
    facts,
    is_shared,
    jobs,
    metadata,
    open_engine,
)

_KNOWN_IDS_SHOWN = 5
_ONE_JOB = select(jobs).where(jobs.c.id == bindparam("job"))


def new_hex_id() -> str:
    """Return a new unique name."""
    return uuid.uuid4().hex


class LedgerDatabase:
    """The ledger's tables at one place; any number of threads and processes may use it at once.

    Args:
        url: Path of a SQLite file or its `sqlite:///` URL, created when missing (its directory is not), or the
            `postgresql://` URL of a database.
        clock: Returns "now", aware.
        new_id: Returns a new unique name.
        host: Name of this host; by default found out.

    Raises:
        LedgerOnOtherHost: Another host made the SQLite ledger.
        LedgerUnavailable: The PostgreSQL server does not answer, or lets nobody in.
        LedgerVersionMismatch: The ledger has a schema version from which no migration leads here.
        Unsupported: The URL is of another database, or a driver is not installed.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        clock: Callable[[], datetime],
        new_id: Callable[[], str] = new_hex_id,
        host: str | None = None,
    ) -> None:
        self._location = str(url)
        self._clock, self._new_id = clock, new_id
        self._engine = open_engine(url)
        try:
            self._prepare(host or host_id())
        except OperationalError as error:
            if not is_shared(self._engine):
                raise
            at = self._engine.url
            raise LedgerUnavailable(place=f"{at.host}:{at.port or 5432}/{at.database}") from error

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self._engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._engine.connect().execution_options(**WRITE) as connection, connection.begin():
            yield connection

    def _prepare(self, host: str) -> None:
        """Create what is missing, and refuse a ledger of another host or version."""
        with self._write() as connection:
            found = {}
            if inspect(connection).has_table(facts.name):
                found = {row.name: row.value for row in connection.execute(select(facts))}
            if found.get("host", host) != host and not is_shared(self._engine):
                raise LedgerOnOtherHost(location=self._location)
            version = found.get("schema_version", SCHEMA_VERSION)
            if not migrate(connection, version):
                raise LedgerVersionMismatch(location=self._location, found=version, wanted=SCHEMA_VERSION)
            if not found:
                metadata.create_all(connection)
                values = {"schema_version": SCHEMA_VERSION, "host": host}
                connection.execute(insert(facts), [{"name": k, "value": v} for k, v in values.items()])

    def _row(self, connection: Connection, job_id: str) -> Row[Any]:
        row = connection.execute(_ONE_JOB, {"job": job_id}).one_or_none()
        if row is None:
            raise self._unknown(connection, job_id)
        return row

    def _unknown(self, connection: Connection, job_id: str) -> NotFoundError:
        newest = select(jobs.c.id).order_by(jobs.c.sequence.desc()).limit(_KNOWN_IDS_SHOWN)
        return NotFoundError(kind="job", name=job_id, known=list(connection.execute(newest).scalars()))
