"""Takes the log of a push source to the source's own Delta table, each event exactly once, and trims the log.

A Delta commit carries the number of the last event that it has, so a drain that dies anywhere is simply done again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from featurekit_dagster.arrow_types import arrow_type
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.sources import DeltaTableConfig
from featurekit_dagster.domain.stream_sources import StreamSource
from featurekit_dagster.errors import NotAPushSource, StreamPositionLost
from featurekit_dagster.execution.ingest import PushSource, applied_sequence
from featurekit_dagster.stores.dead_letters import DeadLetters
from featurekit_dagster.stores.delta_commits import TRIES, created, redone
from featurekit_dagster.stores.stream_state import DeadLetter
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from featurekit_dagster.streams.decoding import decode
from featurekit_dagster.streams.push_log import LogSlice, PushLog

EVENTS_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What a drain did.

    Args:
        source: Name of the source.
        rows: Events that it has put into the table.
        refused: Events that do not fit the schema as it is declared now; they are dead letters of the source.
        drained: Number of the newest event of the log that is in the table.
        trimmed: Number up to which the log was trimmed.
    """

    source: str
    rows: int
    refused: int
    drained: int
    trimmed: int


def drain_push_log(
    source: StreamSource,
    views: Iterable[FeatureView],
    stores: WorkspaceStores,
    *,
    keep: timedelta | None = None,
    most_commits: int | None = None,
) -> DrainReport:
    """Append what was logged since the last drain to the source's Delta table, then trim what nobody needs any more.

    Args:
        source: A push source whose batch side is a Delta table, which is made if it is missing.
        views: The views of the workspace; an event is kept in the log until those that follow the source have it.
        stores: The workspace's stores.
        keep: How long an event is kept in the log in any case; by default twice the longest `batch_schedule` of these
            views, so that a view that is followed for the first time finds what its batch side does not have yet.
        most_commits: How many commits of `EVENTS_AT_ONCE` to make at most; all that is needed by default.

    Raises:
        NotAPushSource: The source is no push source, or its batch side is no Delta table.
    """
    push, uri = PushSource(source, views, stores), _table_uri(source)
    log = push.log
    letters = dead_letters_of(source, stores)
    identity = log.identity()
    app = f"featurekit.push_log.{identity}"
    schema = pa.schema([(f.name, arrow_type(f.dtype)) for f in push.fields])
    created(uri, schema)
    drained, rows, refused = _drained(uri, app), 0, 0
    for _ in itertools.count() if most_commits is None else range(most_commits):
        try:
            found = log.read(drained, EVENTS_AT_ONCE, identity)
        except StreamPositionLost:
            before, drained = drained, _drained(uri, app)
            if drained > before:  # another drain has taken what was to be read here, and trimmed the log
                continue
            raise
        if not found.records or found.log != identity:  # one that was begun anew meanwhile is the next drain's
            break
        decoded = decode(found.records, push.fields, never_null=push.never_null, time_field=push.time_field)
        reasons = {each.index: f"{each.field} {each.rule}".strip() for each in reversed(decoded.refused)}
        if reasons:
            letters.append(_letters(identity, found, reasons), stores.clock())
        if _append(uri, decoded.rows, app, drained, found.last):
            drained, rows, refused = found.last, rows + decoded.rows.num_rows, refused + len(reasons)
        else:
            drained = _drained(uri, app)
    schedules = [view.batch_schedule for view in push.views]
    kept = keep if keep is not None else 2 * max(schedules, default=timedelta(days=1))
    needed = [drained, log.newest_before(stores.clock() - kept)]
    needed += [applied for view in push.views if (applied := _applied(stores, view, log)) is not None]
    log.trim(min(needed), identity)
    return DrainReport(source.name, rows, refused, drained, log.oldest())


def dead_letters_of(source: StreamSource, stores: WorkspaceStores) -> DeadLetters:
    """Return where the logged events of a push source go that do not fit its schema any more when they are drained."""
    return DeadLetters(f"{stores.lake.rstrip('/')}/{stores.workspace}/dead_letters_of_sources/{source.name}")


def _table_uri(source: StreamSource) -> str:
    if not isinstance(source.batch_config, DeltaTableConfig):
        reason = "its batch side is no Delta table to drain into; declare batch_config=DeltaTableConfig(...)"
        raise NotAPushSource(source=source.name, reason=reason)
    return source.batch_config.uri


def _applied(stores: WorkspaceStores, view: FeatureView, log: PushLog) -> int | None:
    """Return up to which number a view has the log online; None if it is not written online or was never followed."""
    return applied_sequence(stores, view, log) if view.online else None


def _drained(uri: str, app: str) -> int:
    return DeltaTable(uri).transaction_version(app) or 0


def _append(uri: str, rows: pa.Table, app: str, after: int, last: int) -> bool:
    """Commit the rows of the events behind number `after` up to `last`, and that number; False if they are not next."""
    return redone(TRIES, _append_once, uri, rows, app, after, last)


def _append_once(uri: str, rows: pa.Table, app: str, after: int, last: int) -> bool:
    # The handle that is looked at is the one that writes, so another drain's commit in between makes this one fail.
    table = DeltaTable(uri)
    if (table.transaction_version(app) or 0) != after:
        return False  # another drain was quicker, and may have found less or more in the log
    properties = CommitProperties(app_transactions=[Transaction(app, last)])
    write_deltalake(table, rows, mode="append", commit_properties=properties)
    return True


def _letters(log: str, found: LogSlice, reasons: dict[int, str]) -> list[DeadLetter]:
    first = found.last - len(found.records) + 1
    return [
        DeadLetter(partition=f"log {log}", reason=reason, payload=found.records[index], number=first + index)
        for index, reason in sorted(reasons.items())
    ]
