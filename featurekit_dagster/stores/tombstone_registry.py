"""The tombstones of a workspace in the lake: one small Delta table per view, which outlives ledger and online stores.

A row is the tombstone of one key of one request; a request without `finished` row is one whose rows may still be in
the offline tables. The salt is a property of the table, made with it in one commit. Whatever is asked of a view that
nothing was ever deleted of costs one look whether its table is there.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from featurekit_dagster.stores.delta_commits import TRIES, created, opened, redone
from featurekit_dagster.stores.lake_files import local_path
from featurekit_dagster.stores.tombstones import Tombstones

_SALT = "featurekit.salt"
_SALT_BYTES = 16
_MOST_FILES = 64
_SCHEMA = pa.schema(
    [
        ("request", pa.string()),
        ("finished", pa.bool_()),
        ("hash", pa.string()),
        ("deleted_at", pa.timestamp("us", "UTC")),
        ("cutoff_us", pa.int64()),
        ("online", pa.bool_()),
        ("offline", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """A request to delete keys.

    Args:
        request: Names it.
        deleted_at: When it was made.
        cutoff_us: Time in microseconds since 1970 before which records of the keys are deleted; `FOR_EVER_US` for all
            that there ever are.
        online: Whether it holds online.
        offline: Whether it holds offline.
    """

    request: str
    deleted_at: datetime
    cutoff_us: int
    online: bool
    offline: bool


@dataclass(frozen=True, slots=True)
class Registered:
    """What is registered for one view.

    Args:
        online: The tombstones that hold online.
        offline: Those that hold offline, and for what is computed from a source.
        pending: Those of them of which rows may still be in the offline tables.
    """

    online: Tombstones
    offline: Tombstones
    pending: Tombstones


class TombstoneRegistry:
    """The tombstones of the views of one workspace.

    Args:
        root: Folder of the tables: a local path or any URI that delta-rs takes.
    """

    def __init__(self, root: str) -> None:
        self._root, self._is_local = root, local_path(root) is not None
        self._known: dict[str, Registered] = {}
        self._lock = threading.Lock()

    def load(self, view: str) -> Registered | None:
        """Return what is registered for a view as of now; None where nothing ever was."""
        table = self._found(view)
        if table is None:
            return None
        with self._lock:
            known = self._known.get(view)
            if known is None or known.online.version != table.version():
                known = self._known[view] = _registered(table)
        return known

    def salt(self, view: str) -> bytes:
        """Return the salt of a view's tombstones; it is drawn by the first call."""
        return _salt_of(self._opened(view))

    def add(self, view: str, hashes: Iterable[bytes], deletion: Deletion) -> None:
        """Register the tombstones of a request, whose rows are thought to be in the offline tables still.

        Args:
            view: The feature view.
            hashes: Those of the keys, made with `salt`.
            deletion: The request; one that is known changes nothing.

        Raises:
            CommitFailedError: Other writers came first each time; nothing was written.
        """
        about = (deletion.deleted_at, deletion.cutoff_us, deletion.online, deletion.offline)
        rows = [(deletion.request, False, each.hex(), *about) for each in sorted(set(hashes))]
        if rows:
            redone(TRIES, self._append, view, rows)

    def finish(self, view: str, request: str) -> None:
        """Remember that no row of a request's keys is in the offline tables any more."""
        redone(TRIES, self._append, view, [(request, True, None, None, None, None, None)])

    def lift(self, view: str, hashes: Iterable[bytes]) -> None:
        """Take the tombstones of keys away; those that have none are left at that."""
        listed = ", ".join(f"'{each.hex()}'" for each in sorted(set(hashes)))
        if listed and self._found(view) is not None:
            redone(TRIES, lambda: DeltaTable(self._location(view)).delete(f"hash IN ({listed})"))

    def _append(self, view: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Append rows of one request, unless it has such rows."""
        table = self._opened(view)
        stored = table.to_pyarrow_table(columns=["request", "finished"])
        known: set[tuple[object, ...]] = set(
            zip(stored["request"].to_pylist(), stored["finished"].to_pylist(), strict=True)
        )
        if rows[0][:2] in known:
            return
        columns = [pa.array(column, each.type) for column, each in zip(zip(*rows, strict=True), _SCHEMA, strict=True)]
        write_deltalake(table, pa.table(columns, schema=_SCHEMA), mode="append")
        if len(table.file_uris()) > _MOST_FILES:
            table.optimize.compact()

    def _opened(self, view: str) -> DeltaTable:
        """Return the table, made where there is none."""
        configuration = {_SALT: secrets.token_hex(_SALT_BYTES)}
        return self._found(view) or created(self._location(view), _SCHEMA, configuration=configuration)

    def _found(self, view: str) -> DeltaTable | None:
        """Return the table; None where nothing was ever deleted."""
        location = self._location(view)
        if self._is_local and not os.path.isdir(f"{local_path(location)}/_delta_log"):
            return None
        return opened(location)

    def _location(self, view: str) -> str:
        return f"{self._root}/{view}"


def _salt_of(table: DeltaTable) -> bytes:
    salt = table.metadata().configuration[_SALT]
    assert salt is not None  # the table was made with it
    return bytes.fromhex(salt)


def _registered(table: DeltaTable) -> Registered:
    rows = table.to_pyarrow_table()
    is_finished = rows["finished"].to_numpy(zero_copy_only=False).astype(bool)
    finished = set(rows["request"].filter(pa.array(is_finished)).to_pylist())
    online: dict[bytes, int] = {}
    offline: dict[bytes, int] = {}
    pending: dict[bytes, int] = {}
    names = ("request", "hash", "cutoff_us", "online", "offline")
    columns = (rows.filter(pa.array(~is_finished))[name].to_pylist() for name in names)
    for request, text, cutoff, is_online, is_offline in zip(*columns, strict=True):
        each = bytes.fromhex(text)
        scopes = ((is_online, online), (is_offline, offline), (is_offline and request not in finished, pending))
        for holds, cutoffs in scopes:
            if holds:
                cutoffs[each] = max(cutoff, cutoffs.get(each, cutoff))
    salt, version = _salt_of(table), table.version()
    return Registered(*(Tombstones(salt, version, cutoffs) for cutoffs in (online, offline, pending)))
