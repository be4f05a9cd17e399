"""What a store refuses, or fails at."""

from __future__ import annotations

from collections.abc import Sequence

from featurekit_dagster.errors.base import FeatureKitError, TectonValidationError
from featurekit_dagster.intervals import Interval


class StoreError(FeatureKitError):
    """A store refused or failed."""


class Unsupported(StoreError):
    """Something that this store, engine or installation cannot do."""


class KeyTooLong(StoreError):
    """A join key is too long for a view that is read by a part of its keys."""

    def __init__(self, *, view: str, given_bytes: int, max_bytes: int) -> None:
        self.view, self.given_bytes, self.max_bytes = view, given_bytes, max_bytes
        super().__init__(
            f"{view}: a join key of {given_bytes} encoded bytes cannot be stored; views whose online_serving_index "
            f"leaves out a join key take at most {max_bytes}; shorten the key or list all join keys in it"
        )


class OnlineRecordsMismatch(StoreError):
    """Records for the online store do not fit its layout.

    Args:
        view: The feature view.
        faults: One clause per fault; never a value.
    """

    def __init__(self, *, view: str, faults: Sequence[str]) -> None:
        self.view, self.faults = view, tuple(faults)
        super().__init__(f"{view}: records do not fit the online layout: " + "; ".join(faults))


class OnlineLayoutMismatch(StoreError):
    """The online store holds records of the view that were written with other columns, keys or tile size."""

    def __init__(self, *, view: str, generation: int) -> None:
        self.view, self.generation = view, generation
        super().__init__(
            f"{view}: the online store holds generation {generation} with other join keys, columns or tile size than "
            f"declared now; clear it and materialize the view online again"
        )


class OnlineTileOverflow(StoreError):
    """Tiles cannot be made one online, as a sum of integers would not fit 64 bits.

    Args:
        view: The feature view.
        count: Number of tiles concerned.
    """

    def __init__(self, *, view: str, count: int) -> None:
        self.view, self.count = view, count
        super().__init__(
            f"{view}: the integer sum of {count:,} tile(s) over one interval does not fit 64 bits; return the column "
            "as Float64, or declare a window that is no multiple of the interval"
        )


class NotKeptOnline(StoreError, TectonValidationError):
    """A view has nothing online that could be kept small.

    Args:
        view: The feature view.
        is_online: Whether it is written online at all.
    """

    def __init__(self, *, view: str, is_online: bool) -> None:
        self.view, self.is_online = view, is_online
        why = "what it has online has neither tiles nor an end" if is_online else "it is declared with online=False"
        super().__init__(
            f"{view}: nothing of it can be made small, as {why}; compaction takes views with aggregates online, "
            "clean-up also those with a ttl"
        )


class OnlineUpkeepFailed(StoreError):
    """What lies online was not kept small to the end.

    Args:
        reason: Of which view, and why.
    """

    retryable = True

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"not everything was done: {reason}; answers are as they were, do it again for the rest")


class OnlineStoreBusy(StoreError):
    """The online store's memory map must move and a read of the same process holds it."""

    retryable = True

    def __init__(self, *, path: str, readers: int) -> None:
        self.path, self.readers = path, readers
        super().__init__(
            f"online store {path}: {readers} reads of this process are open while its map must move; "
            f"end them before writing or closing"
        )


class ConcurrentOnlineWrite(StoreError):
    """Two writers filled the same online view at once."""

    retryable = True

    def __init__(self, *, view: str) -> None:
        self.view = view
        super().__init__(f"{view}: another writer put online records while this one loaded the empty view; write again")


class TableMissing(StoreError):
    """A feature view has no offline table yet."""

    def __init__(self, *, view: str, location: str) -> None:
        self.view, self.location = view, location
        super().__init__(f"{view}: there is no offline table at {location}; materialize the view offline first")


class UnusableLakePath(Unsupported):
    """The path of the lake has characters that the table format's library cannot open."""

    def __init__(self, *, path: str, refused: Sequence[str]) -> None:
        self.path, self.refused = path, tuple(refused)
        shown = " ".join(map(repr, refused))
        super().__init__(f"the lake path {path!r} contains {shown}; no Delta table can be kept there; choose another")


class RowsOutsideInterval(StoreError):
    """Rows that a job wants to write are not of its interval.

    Args:
        view: The feature view.
        interval: The interval that the job replaces.
        column: The time column that was looked at.
        outside: Number of rows before or after the interval.
        missing: Number of rows without a time.
    """

    def __init__(self, *, view: str, interval: Interval, column: str, outside: int, missing: int) -> None:
        self.view, self.interval, self.column, self.outside, self.missing = view, interval, column, outside, missing
        super().__init__(
            f"{view}: {outside:,} rows lie outside {interval} and {missing:,} have no {column}; a job writes only "
            f"rows of its interval; cut the output to it and drop rows without a time"
        )


class StoredSchemaMismatch(StoreError):
    """Rows do not fit the columns that a store keeps; `faults` has one clause per column."""

    def __init__(self, *, view: str, faults: Sequence[str]) -> None:
        self.view, self.faults = view, tuple(faults)
        super().__init__(f"{view}: the rows do not fit the offline table: " + "; ".join(self.faults))


class CommitConflict(StoreError):
    """Other writers committed first each time a write was tried."""

    retryable = True

    def __init__(self, *, view: str, interval: Interval, tries: int) -> None:
        self.view, self.interval, self.tries = view, interval, tries
        super().__init__(
            f"{view}: {interval} was not written: other writers changed the table during each of {tries} tries; "
            "run the job again when they are done"
        )


class LeaseHeld(StoreError):
    """Somebody who is alive holds the lease, until `until` unless it is renewed."""

    retryable = True

    def __init__(self, *, name: str, holder: str, until: str) -> None:
        self.name, self.holder, self.until = name, holder, until
        super().__init__(f"{name} is held by {holder} until {until}, and has one holder at a time; wait for it")


class LeaseLost(StoreError):
    """A lease was taken over, so the holder of its former epoch may write no more."""

    retryable = True

    def __init__(self, *, name: str, epoch: int, current: int) -> None:
        self.name, self.epoch, self.current = name, epoch, current
        super().__init__(
            f"{name}: the lease of epoch {epoch} is gone, the current epoch is {current}; nothing more may be written "
            "under it; run the job again"
        )


class LedgerOnOtherHost(Unsupported):
    """A SQLite ledger was opened by a second host."""

    def __init__(self, *, location: str) -> None:
        self.location = location
        super().__init__(
            f"the ledger at {location} belongs to another host, and a SQLite ledger serves one; use a home of this "
            "host's own, or keep what several hosts share on servers: the ledger in PostgreSQL (FEATUREKIT_LEDGER) and "
            "what is served in Redis (FEATUREKIT_ONLINE_STORE)"
        )


class LedgerUnavailable(StoreError):
    """The PostgreSQL server of the ledger cannot be reached, or lets nobody in.

    Args:
        place: Host, port and database; never a password.
    """

    retryable = True

    def __init__(self, *, place: str) -> None:
        self.place = place
        super().__init__(
            f"the ledger in PostgreSQL at {place} cannot be opened: the server does not answer, or it refuses the user "
            "or the database; look at the server, and at FEATUREKIT_LEDGER"
        )


class LedgerVersionMismatch(StoreError):
    """A ledger was written by a version of the package with another schema."""

    def __init__(self, *, location: str, found: str, wanted: str) -> None:
        self.location, self.found, self.wanted = location, found, wanted
        super().__init__(
            f"the ledger at {location} has schema version {found}, this package needs {wanted}; "
            "use the version of the package that wrote it, or another home"
        )


class OnlineStoreForked(StoreError):
    """A forked process cannot use the online store, because its parent was reading or writing at the fork."""

    def __init__(self, *, path: str) -> None:
        self.path = path
        super().__init__(
            f"online store {path}: this process was forked while its parent had a read or a write open; "
            f"fork outside of a snapshot, or start the process by spawn"
        )


class MaintenanceUnderWay(StoreError):
    """The table of a view is being maintained already.

    Args:
        view: The feature view.
        job_id: The job that does it.
    """

    retryable = True

    def __init__(self, *, view: str, job_id: str) -> None:
        self.view, self.job_id = view, job_id
        super().__init__(f"{view}: job {job_id} maintains its table now; wait until it has ended, or cancel its run")


class MaintenanceFailed(StoreError):
    """Tables of feature views could not be maintained to the end.

    Args:
        reason: Which, and why.
    """

    retryable = True

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the maintenance was not finished: {reason}; what was done stays, do it again for the rest")


class MaintenanceNotRetried(StoreError):
    """A maintenance was to be tried again like a materialization.

    Args:
        job_id: The job.
        view: The feature view.
    """

    def __init__(self, *, job_id: str, view: str) -> None:
        self.job_id, self.view = job_id, view
        super().__init__(
            f"job {job_id} maintained the table of {view} and is not tried again by itself; run featurekit maintain "
            f"{view}, which goes on where it ended"
        )
