"""The warehouse: full features of views as tables that people query, one schema per workspace.

A table of changes is written window by window; a view over it, named as the feature view, shows from and to when each
row held. Both kinds of warehouse take the same SQL; what differs is behind `WarehouseSession`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import pyarrow as pa

from featurekit_dagster.domain.schema import Field
from featurekit_dagster.errors import Unsupported
from featurekit_dagster.intervals import Interval, IntervalSet, as_utc, from_us
from featurekit_dagster.sql_text import quoted

VALID_FROM, VALID_TO, ENDED = "_valid_from", "_valid_to", "_ended"
_RECORD = "_featurekit_published"
_CHANGES = "_featurekit_changes_"


@dataclass(frozen=True, slots=True, kw_only=True)
class WarehouseTable:
    """One published feature view.

    Args:
        schema: Name of the workspace, which is the schema's.
        name: Name of the feature view, which is that of the view over the changes.
        keys: Join keys.
        features: Features.
        identity: Changes when rows that were published before have another meaning.
        shown_after_us: How long after its start a window says what a reader sees.
    """

    schema: str
    name: str
    keys: tuple[Field, ...]
    features: tuple[Field, ...]
    identity: str
    shown_after_us: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a change."""
        return (*(field.name for field in (*self.keys, *self.features)), VALID_FROM, ENDED)

    def shown(self, windows: Interval) -> Interval:
        """Return the times for which windows say what a reader sees."""
        after = timedelta(microseconds=self.shown_after_us)
        return Interval(windows.start + after, windows.end + after)


class WarehouseSession(Protocol):
    """One transaction in a warehouse."""

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        ...

    def insert(self, table: str, fields: Sequence[Field], rows: pa.Table) -> None:
        """Insert rows, the columns of which are `fields`, into a table of that SQL name."""
        ...

    def type_of(self, field: Field) -> str:
        """Return the SQL type that holds a declared one."""
        ...

    def lock(self, name: str) -> None:
        """Let nobody else who locks that name go on until the transaction has ended."""
        ...


class Warehouse(ABC):
    """Where full features are published.

    Args:
        place: Where it is, without credentials.
    """

    longest_name_bytes: int | None = None
    has_index = False

    def __init__(self, place: str) -> None:
        self.place = place

    @abstractmethod
    def session(self) -> AbstractContextManager[WarehouseSession]:
        """Open a transaction, which is committed at the end of a `with` and otherwise undone.

        Raises:
            WarehouseBusy: Somebody else has the warehouse all the time.
        """

    def exists(self) -> bool:
        """Tell whether anything can be there; opening some makes them."""
        return True

    def check(self, table: WarehouseTable) -> None:
        """Refuse a table that the warehouse cannot hold.

        Raises:
            Unsupported: A name is too long.
        """
        most = self.longest_name_bytes
        names = (table.schema, f"{_CHANGES}{table.name}", *table.columns)
        long = [name for name in names if most is not None and len(name.encode()) > most]
        if long:
            raise Unsupported(
                f"{table.name}: {self.place} takes names of at most {most} bytes, and {', '.join(long)} "
                f"{'is' if len(long) == 1 else 'are'} longer; give shorter names, or publish in a DuckDB file"
            )

    def published(self, table: WarehouseTable) -> IntervalSet | None:
        """Return the windows that are published; None where there is no such table."""
        if not self.exists():
            return None
        with self.session() as session:
            return _runs(session, table) if _identity(session, table) == table.identity else None

    def replace(self, table: WarehouseTable, fields: Sequence[Field], rows: pa.Table, windows: Interval) -> int:
        """Make `rows` all changes of windows, in one transaction; return how many were there.

        A table of another identity is made anew.

        Args:
            table: The table.
            fields: The columns of `rows` with their types: those of `table.columns`.
            rows: The changes.
            windows: The windows that they are all of.
        """
        self.check(table)
        span = table.shown(windows)
        with self.session() as session:
            _lock(session, table)
            if _identity(session, table) != table.identity:
                _drop(session, table)
                _create(session, table, fields, has_index=self.has_index)
            inside = f"{VALID_FROM} >= {_time(span.start)} AND {VALID_FROM} < {_time(span.end)}"
            ((before,),) = session.run(f"SELECT count(*) FROM {_changes(table)} WHERE {inside}")
            session.run(f"DELETE FROM {_changes(table)} WHERE {inside}")
            session.insert(_changes(table), fields, rows)
            _record(session, table, _runs(session, table).union([windows]))
        return int(before)

    def delete_keys(self, table: WarehouseTable, keys: pa.Table) -> int:
        """Remove all rows of join keys, in one transaction; return their number.

        Args:
            table: The table, which need not be there; one that was published by other join keys is left as it is.
            keys: The join keys, columns in any order, distinct.
        """
        if not self.exists():
            return 0
        with self.session() as session:
            _lock(session, table)
            if _identity(session, table) is None or not _has_keys(session, table):
                return 0
            columns = ", ".join(f"{quoted(key.name)} {session.type_of(key)}" for key in table.keys)
            session.run(f"CREATE TEMPORARY TABLE _featurekit_keys ({columns})")
            session.insert("_featurekit_keys", table.keys, keys.select([key.name for key in table.keys]))
            same = " AND ".join(f"k.{quoted(key.name)} IS NOT DISTINCT FROM c.{quoted(key.name)}" for key in table.keys)
            doomed = f"EXISTS (SELECT 1 FROM _featurekit_keys AS k WHERE {same})"
            ((found,),) = session.run(f"SELECT count(*) FROM {_changes(table)} AS c WHERE {doomed}")
            session.run(f"DELETE FROM {_changes(table)} AS c WHERE {doomed}")
            session.run("DROP TABLE _featurekit_keys")
        return int(found)

    def drop(self, table: WarehouseTable) -> None:
        """Remove a table with everything in it; one that is not there is left at that."""
        if not self.exists():
            return
        with self.session() as session:
            _lock(session, table)
            if _identity(session, table) is not None:
                _drop(session, table)


def _identity(session: WarehouseSession, table: WarehouseTable) -> str | None:
    """Return the identity of what is published now; None where nothing is."""
    there = f"table_schema = {_text(table.schema)} AND table_name = {_text(_RECORD)}"
    if not session.run(f"SELECT 1 FROM information_schema.tables WHERE {there}"):
        return None
    found = session.run(f"SELECT identity FROM {_of(table, _RECORD)} WHERE name = {_text(table.name)} LIMIT 1")
    return None if not found else str(found[0][0])


def _has_keys(session: WarehouseSession, table: WarehouseTable) -> bool:
    """Tell whether the stored changes have the join keys, which they have not between a rebuild and the next job."""
    own = f"table_schema = {_text(table.schema)} AND table_name = {_text(f'{_CHANGES}{table.name}')}"
    stored = session.run(f"SELECT column_name FROM information_schema.columns WHERE {own}")
    return {key.name for key in table.keys} <= {name for (name,) in stored}


def _runs(session: WarehouseSession, table: WarehouseTable) -> IntervalSet:
    """Return the windows that are published."""
    own = f"name = {_text(table.name)} AND start_us < end_us"
    found = session.run(f"SELECT start_us, end_us FROM {_of(table, _RECORD)} WHERE {own}")
    return IntervalSet(Interval(from_us(start_us), from_us(end_us)) for start_us, end_us in found)


def _record(session: WarehouseSession, table: WarehouseTable, runs: IntervalSet) -> None:
    """Remember which windows are published; an empty run says that the table is there."""
    session.run(f"DELETE FROM {_of(table, _RECORD)} WHERE name = {_text(table.name)}")
    head = f"{_text(table.name)}, {_text(table.identity)}"
    cells = [
        f"({head}, {run.start_us}, {run.end_us}, {_time(table.shown(run).start)}, {_time(table.shown(run).end)})"
        for run in runs
    ]
    rows = ", ".join(cells or [f"({head}, 0, 0, NULL, NULL)"])
    session.run(f"INSERT INTO {_of(table, _RECORD)} VALUES {rows}")


def _create(session: WarehouseSession, table: WarehouseTable, fields: Sequence[Field], *, has_index: bool) -> None:
    session.lock(table.schema)  # of those who make it at once PostgreSQL lets all but one fail, IF NOT EXISTS or not
    session.run(f"CREATE SCHEMA IF NOT EXISTS {quoted(table.schema)}")
    session.run(
        f"CREATE TABLE IF NOT EXISTS {_of(table, _RECORD)} (name VARCHAR NOT NULL, identity VARCHAR NOT NULL, start_us "
        "BIGINT NOT NULL, end_us BIGINT NOT NULL, start_time TIMESTAMP WITH TIME ZONE, end_time TIMESTAMP WITH TIME "
        "ZONE)"
    )
    columns = ", ".join(f"{quoted(field.name)} {session.type_of(field)}" for field in fields)
    session.run(f"CREATE TABLE {_changes(table)} ({columns})")
    if has_index:  # by which the changes of a window are found
        session.run(f"CREATE INDEX ON {_changes(table)} ({VALID_FROM})")
    session.run(f"CREATE VIEW {_of(table, table.name)} AS {_view(table)}")
    _record(session, table, IntervalSet())


def _lock(session: WarehouseSession, table: WarehouseTable) -> None:
    """Let one writer of a table go on at a time: what is published is read, extended and written again."""
    session.lock(f"{table.schema}.{table.name}")


def _drop(session: WarehouseSession, table: WarehouseTable) -> None:
    session.run(f"DROP VIEW IF EXISTS {_of(table, table.name)}")
    session.run(f"DROP TABLE IF EXISTS {_changes(table)}")
    if _identity(session, table) is not None:
        session.run(f"DELETE FROM {_of(table, _RECORD)} WHERE name = {_text(table.name)}")


def _view(table: WarehouseTable) -> str:
    """Return the query of what readers see: each change until the next one, not beyond what is published.

    A change that repeats what was there is none.
    """
    keys = ", ".join(quoted(key.name) for key in table.keys)
    features = [quoted(feature.name) for feature in table.features]
    window = f"WINDOW w AS (PARTITION BY {keys}, _run ORDER BY {VALID_FROM})"
    same = " AND ".join(f"lag({name}) OVER w IS NOT DISTINCT FROM {name}" for name in features)
    shown = ", ".join([keys, *features, VALID_FROM, VALID_TO])
    return (
        f"WITH placed AS (SELECT c.*, r.start_time AS _run, r.end_time AS _until FROM {_changes(table)} AS c "
        f"JOIN {_of(table, _RECORD)} AS r ON r.name = {_text(table.name)} AND c.{VALID_FROM} >= r.start_time "
        f"AND c.{VALID_FROM} < r.end_time), "
        f"compared AS (SELECT *, lag({ENDED}) OVER w = {ENDED} AND ({ENDED} OR ({same})) AS _same "
        f"FROM placed {window}), "
        f"held AS (SELECT *, least(coalesce(lead({VALID_FROM}) OVER w, _until), _until) AS {VALID_TO} "
        f"FROM compared WHERE _same IS NOT TRUE {window}) "
        f"SELECT {shown} FROM held WHERE NOT {ENDED}"
    )


def _changes(table: WarehouseTable) -> str:
    return _of(table, f"{_CHANGES}{table.name}")


def _of(table: WarehouseTable, name: str) -> str:
    return f"{quoted(table.schema)}.{quoted(name)}"


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _time(time: datetime) -> str:
    return f"TIMESTAMP WITH TIME ZONE '{as_utc(time).isoformat(sep=' ')}'"
